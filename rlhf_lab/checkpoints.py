"""Files that survive a kill: written beside their place, flushed to the disk, then renamed.

A reader sees the old file or folder or the whole new one, never a part. Training state is one safetensors file: weights
and the optimizer's moments as tensors, counters as JSON in its header. Nothing is pickled.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .errors import InputError
from .models import save_model


@contextmanager
def writing(place: Path) -> Iterator[None]:
    """Turns what a full or read-only disk raises into one InputError that says what to do."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise _cannot_write(place, error) from None


def _cannot_write(place: Path, error: Exception) -> InputError:
    reason = getattr(error, "strerror", None) or (str(error).splitlines() or [type(error).__name__])[0]
    return InputError(
        f"{place}: cannot be written: {reason}; make room or make it writable, then start again: "
        "what was finished is kept"
    )


def write_text(path: Path, text: str) -> None:
    """Writes a text file, whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    with writing(path):
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
        _flush(temporary)
        os.replace(temporary, path)
        _flush(path.parent)


def write_json(path: Path, data: Any) -> None:
    """Writes data as JSON, whole or not at all."""
    write_text(path, json.dumps(data, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """What a JSON file holds; InputError when it cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or f"not JSON ({error})"
        raise InputError(f"{path}: cannot be read: {reason}; delete it, and what it held is made again") from None


def publish(folder: Path, save: Callable[[Path], None]) -> None:
    """Has `save(path)` write a folder, and puts it in its place, whole or not at all."""
    temporary = folder.with_name(f".{folder.name}.tmp")
    with writing(folder):
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            save(temporary)
        except Exception as error:  # the tokenizer's Rust code raises plain Exceptions when the disk is full
            raise _cannot_write(folder, error) from None
        for file in temporary.rglob("*"):
            _flush(file)
        _flush(temporary)
        if folder.exists():
            shutil.rmtree(folder)
        os.rename(temporary, folder)
        _flush(folder.parent)


def publish_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Saves model and tokenizer as one folder that `from_pretrained` loads, whole or not at all."""
    publish(folder, lambda path: save_model(model, tokenizer, path))


def _flush(path: Path) -> None:
    """Has the disk keep a file's bytes, or a folder's entries, before anything that follows."""
    if os.name == "nt" and path.is_dir():  # Windows cannot sync a folder, and needs not
        return
    handle = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# --- training state ---------------------------------------------------------------------------------------------------


def save_training_state(
    path: Path, modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer, counters: Mapping[str, Any]
) -> None:
    """Weights of the modules, the optimizer's state and the counters (JSON data), in one file, whole or not at all."""
    tensors = {f"weight.{name}": p.detach().contiguous() for name, p in _parameters(modules).items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value.contiguous() for name, value in state.items()}
    temporary = path.with_name(f".{path.name}.tmp")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, temporary, {"counters": json.dumps(dict(counters))})
        _flush(temporary)
        os.replace(temporary, path)
        _flush(path.parent)


def load_training_state(
    path: Path, modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer
) -> dict[str, Any] | None:
    """Restores modules and optimizer in place and returns the counters; None when there is no such file.

    Raises InputError when the file is damaged or belongs to another model; the modules are then of no use.
    """
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            counters = json.loads((file.metadata() or {})["counters"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        _restore(tensors, modules, optimizer)
        return counters
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"checkpoint {path}: cannot be used ({reason}); delete it, and its stage starts again from its beginning"
        ) from None


def _restore(
    tensors: dict[str, torch.Tensor], modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer
) -> None:
    with torch.no_grad():
        for name, parameter in _parameters(modules).items():
            saved = tensors.pop(f"weight.{name}")
            if saved.shape != parameter.shape:
                raise ValueError(f"{name} has shape {tuple(saved.shape)}, not {tuple(parameter.shape)}")
            parameter.copy_(saved)
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        _, index, key = name.split(".")
        state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _parameters(modules: Mapping[str, nn.Module]) -> dict[str, nn.Parameter]:
    """Every parameter once, tied ones under their first name."""
    return {f"{key}.{name}": p for key, module in modules.items() for name, p in module.named_parameters()}
