"""Weights as they were: what the live loop needs to go back to before any label.

A snapshot is a safetensors file in a temporary folder of its own; the folder goes when the `Snapshots` object does.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from .errors import InputError

ROOM = 2 * 10**9  # bytes on the disk that the snapshots of one loop may take


@dataclass(frozen=True)
class Snapshot:
    """Weights after PPO step `step`, with the KL coefficient that was in force."""

    step: int
    beta: float
    file: Path


class Snapshots:
    """Up to `limit` snapshots of `modules`; when there are more, every second of the older ones goes.

    About the size of the modules each on the disk: 6 MB for the lab's policy and critic. Of larger modules only as many
    are kept as `ROOM` holds, but four at least.
    """

    def __init__(self, modules: Mapping[str, nn.Module], limit: int) -> None:
        self._modules = dict(modules)
        size = sum(tensor.numel() * tensor.element_size() for _, tensor in self._tensors())
        self._limit = min(limit, max(4, ROOM // max(size, 1)))
        self._folder = tempfile.TemporaryDirectory(prefix="rlhf-lab-snapshots-")
        self._kept: list[Snapshot] = []
        self._number = 0

    def take(self, step: int, beta: float) -> Snapshot:
        """Write the weights as they are now; InputError, and nothing is kept, where the disk does not take them."""
        self._number += 1
        snapshot = Snapshot(step, beta, Path(self._folder.name) / f"{self._number}.safetensors")
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in self._tensors()}
        try:
            save_file(weights, snapshot.file)
        except (OSError, SafetensorError) as error:
            snapshot.file.unlink(missing_ok=True)
            raise InputError(
                f"a snapshot to go back to cannot be written to {self._folder.name} ({error}); free some space there"
            ) from None
        self._kept.append(snapshot)
        if len(self._kept) > self._limit:
            self._thin()
        return snapshot

    def restore(self, snapshot: Snapshot) -> Snapshot:
        """Put the weights back, in place; returns the snapshot used: this one, or the last kept one before it.

        Those taken after it go: they belong to what is given up, and must not stand in for one that was thinned out.
        """
        place = self._kept.index(snapshot) if snapshot in self._kept else None
        used = snapshot if place is not None else [s for s in self._kept if s.step <= snapshot.step][-1]
        weights = load_file(used.file)
        with torch.no_grad():
            for name, tensor in self._tensors():
                tensor.copy_(weights[name])
        kept = self._kept.index(used) + 1
        for gone in self._kept[kept:]:
            gone.file.unlink(missing_ok=True)
        self._kept = self._kept[:kept]
        return used

    def close(self) -> None:
        """Remove the files."""
        self._folder.cleanup()

    def _tensors(self) -> list[tuple[str, torch.Tensor]]:
        return [(f"{key}.{name}", p) for key, module in self._modules.items() for name, p in module.named_parameters()]

    def _thin(self) -> None:
        """The first stays, for it is where the loop began; so does the newer half."""
        older, newer = self._kept[1 : len(self._kept) // 2], self._kept[len(self._kept) // 2 :]
        for gone in older[::2]:
            gone.file.unlink(missing_ok=True)
        self._kept = [self._kept[0], *older[1::2], *newer]
