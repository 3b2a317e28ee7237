"""A reward model from a file of human preference pairs: stage 4 on real data, measured honestly.

    pairs ──► split by conversation ──► a language model ──► reward model ──► accuracy on the held-out pairs

Without a model of your own, a small one is trained on the spot on the training dialogues' text; it knows that text and
nothing else of the world, so do not expect of it what published reward models reach. What the accuracy is worth is
shown by two baselines that read nothing: always the longer reply, and always the shorter.
"""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .checkpoints import publish_model, write_json, write_text, writing
from .config import LanguageConfig, ModelConfig, Pooling, RewardConfig
from .errors import InputError
from .evaluation import longer_reply_accuracy, reward_accuracy
from .formats import read_pairs
from .language import pretrain
from .models import load_language_model, new_language_model, new_reward_model
from .records import Comparison, Interval
from .reward import encode_comparisons, normalise, train_reward_model
from .text import encode_dialogues, train_tokenizer

Model = tuple[PreTrainedModel, PreTrainedTokenizerBase]
NORMALISING_DIALOGUES = 512


@dataclass(frozen=True)
class PairOptions:
    """How to train on pairs. `model` is a folder or Hugging Face name; None trains a small model on the spot.

    `learning_rate` and `pooling` default to what suits the model: 5e-4 and "mean" for the small one, 2e-5 and "last"
    for a model of your own. `pretraining_steps` belongs to the small one.
    """

    model: str | None = None
    seed: int = 0
    held_out: float = 0.2  # share of the pairs
    epochs: int = 2
    max_tokens: int = 256  # of a dialogue; longer prompts lose their beginning
    learning_rate: float | None = None
    batch_size: int = 16
    pooling: Pooling | None = None
    pretraining_steps: int = 400

    def __post_init__(self) -> None:
        for name, holds, right in (
            ("held_out", 0 < self.held_out < 1, "a share between 0 and 1, such as 0.2"),
            ("max_tokens", self.max_tokens >= 16, "at least 16"),
            ("pretraining_steps", self.pretraining_steps > 0, "greater than 0"),
        ):
            if not holds:
                raise InputError(f"{name.replace('_', '-')} is {getattr(self, name)!r}; it must be {right}")
        self.reward_config  # noqa: B018 (it validates the rest)

    @property
    def reward_config(self) -> RewardConfig:
        own = self.model is not None
        rate = self.learning_rate if self.learning_rate is not None else 2e-5 if own else 5e-4
        pooling = self.pooling or ("last" if own else "mean")
        return RewardConfig(self.epochs, self.batch_size, rate, pooling=pooling)


def train_on_pairs(
    pairs: str | Path, out: str | Path, options: PairOptions | None = None, progress: Callable[..., Any] | None = tqdm
) -> dict[str, Any]:
    """Trains a reward model on a file of pairs, and returns what `out`/reward.json then holds.

    Leaves `out`/reward, as transformers loads it, and `out`/metrics/*.jsonl. Raises InputError for a file that is not
    one of pairs, too few of them, a model that cannot be loaded, or an `out` that is taken.
    """
    options, bar = options or PairOptions(), progress or partial(tqdm, disable=True)
    folder, began = Path(out), time.perf_counter()
    _check_free(folder)
    train, held_out = split_by_conversation(read_pairs(pairs), options.held_out, options.seed)
    given = load_language_model(options.model) if options.model is not None else None
    with writing(folder):
        (folder / "metrics").mkdir(parents=True)
    model, tokenizer = given or _small_language_model(train, options, folder, bar)
    reward, accuracy_in_training = _reward_model(model, tokenizer, train, options, folder, bar)
    publish_model(reward, tokenizer, folder / "reward")
    accuracy = reward_accuracy(reward, encode_comparisons(tokenizer, held_out, _room(model, options)), options.seed)
    longer = longer_reply_accuracy(held_out, options.seed)
    report = {
        "pairs": {"train": len(train), "held_out": len(held_out)},
        "accuracy": asdict(accuracy),
        "last_epoch_training_accuracy": accuracy_in_training,
        "baselines": {"longer": asdict(longer), "shorter": asdict(_complement(longer))},
        "options": asdict(options),
        "seconds": time.perf_counter() - began,
    }
    write_json(folder / "reward.json", report)
    return report


def split_by_conversation(
    pairs: Sequence[Comparison], held_out: float, seed: int = 0
) -> tuple[list[Comparison], list[Comparison]]:
    """Training and held-out pairs. Pairs whose dialogues open with the same words stay on one side.

    People's data sets hold several pairs from different turns of one conversation; split at random they would leak.
    Raises InputError when either side would be left without a pair.
    """
    by_opening: dict[str, list[int]] = {}
    for i, pair in enumerate(pairs):
        by_opening.setdefault(opening(pair.prompt), []).append(i)
    groups = list(by_opening.values())
    random.Random(f"split {seed}").shuffle(groups)
    kept_aside: set[int] = set()
    for group in groups:
        if len(kept_aside) >= round(held_out * len(pairs)):
            break
        kept_aside.update(group)
    sides = [[p for i, p in enumerate(pairs) if (i in kept_aside) is aside] for aside in (False, True)]
    if not all(any(not pair.tie for pair in side) for side in sides):
        raise InputError(
            f"{len(pairs)} pairs from {len(groups)} conversations cannot be split into {1 - held_out:.0%} for training "
            f"and {held_out:.0%} held out; give more pairs or another share"
        )
    return sides[0], sides[1]


def opening(prompt: str) -> str:
    """The first turn of a prompt: what the pairs of one conversation share."""
    return prompt.removeprefix("\n\nHuman:").strip().split("\n\nAssistant:")[0].strip()


def _check_free(folder: Path) -> None:
    with writing(folder):
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise InputError(f"{folder}: exists and is not an empty folder; name a new one")


def _small_language_model(
    train: Sequence[Comparison], options: PairOptions, folder: Path, bar: Callable[..., Any]
) -> Model:
    """A tokenizer and a small model that have read the training dialogues, chosen and rejected alike."""
    texts = [f"{c.prompt} {reply}" for c in train for reply in (c.chosen, c.rejected)]
    tokenizer = train_tokenizer(texts, 2048)
    model = new_language_model(ModelConfig(2048, context=options.max_tokens), tokenizer, options.seed)
    replies = [(c.prompt, reply) for c in train for reply in (c.chosen, c.rejected)]
    dialogues = encode_dialogues(tokenizer, replies, options.max_tokens)
    stream = torch.tensor([token for dialogue in dialogues for token in dialogue.ids])
    block = min(128, options.max_tokens, max(1, len(stream) // 4))
    config = LanguageConfig(options.pretraining_steps, 16, block, learning_rate=4e-3)
    _follow(bar, "1/2 Language model", config.steps, pretrain(model, stream, config, options.seed), folder, "pretrain")
    return model, tokenizer


def _reward_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    train: Sequence[Comparison],
    options: PairOptions,
    folder: Path,
    bar: Callable[..., Any],
) -> tuple[PreTrainedModel, float]:
    """The trained, normalised reward model, and its accuracy on the batches of its last epoch."""
    config, data = options.reward_config, encode_comparisons(tokenizer, train, _room(model, options))
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    reward = new_reward_model(model, config.pooling, options.seed)
    per_epoch = math.ceil(len(data) / config.questions_per_batch)
    points = train_reward_model(reward, data, config, options.seed)
    points = _follow(bar, "2/2 Reward model", per_epoch * config.epochs, points, folder, "reward_model")
    normalise(reward, [d for item in data for d in item.dialogues][:NORMALISING_DIALOGUES])
    latest = [point.accuracy for point in points[-per_epoch:] if math.isfinite(point.accuracy)]
    return reward, sum(latest) / len(latest)


def _room(model: PreTrainedModel, options: PairOptions) -> int:
    """Tokens a dialogue may have: the option, or the model's positions where they are fewer."""
    return min(options.max_tokens, getattr(model.config, "max_position_embeddings", None) or options.max_tokens)


def _follow(bar: Callable[..., Any], title: str, total: int, points: Any, folder: Path, name: str) -> list[Any]:
    """Lets a trainer run to its end behind a progress bar, and writes its metrics."""
    with bar(points, desc=f"{title:<18}", total=total, unit="step") as shown:
        done = list(shown)
    write_text(folder / "metrics" / f"{name}.jsonl", "".join(json.dumps(vars(point)) + "\n" for point in done))
    return done


def _complement(interval: Interval) -> Interval:
    return Interval(1 - interval.value, 1 - interval.high, 1 - interval.low, interval.n)
