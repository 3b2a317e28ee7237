"""One PPO step under the microscope: for every token of a reply, all the numbers that PPO makes of it.

    stats, step = look(trainer, prompts)  # one step of a PPO trainer, and what it saw
    for token in step.replies[0].tokens:
        print(token.text, token.kl, token.advantage, token.ratio, token.clipped)

Records of plain numbers, which `widgets.MicroscopeWidget` and `plots.token_strip` draw. `QUANTITIES` says in one line
what each number is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from .errors import InputError
from .ppo import PPO, Experience
from .records import StepStats
from .sampling import Sample


@dataclass(frozen=True)
class Quantity:
    """One number of a token: its name and symbol, what it is, its unit, and the value that means "nothing"."""

    key: str
    title: str
    symbol: str
    explanation: str
    unit: str = ""
    neutral: float = 0.0  # colours and bars start here
    after: str = ""  # the field that holds it after the update, where the update changes it


QUANTITIES = (
    Quantity(
        "kl", "KL", "log π − log π_ref",
        "How much likelier the policy finds this token than the SFT model does. Above 0: drift, and it is charged for.",
        "nats", after="kl_after",
    ),
    Quantity(
        "reward", "Reward", "r",
        "What the token earned: −β times its KL as it was written, and on the last token the whole reply's score too.",
    ),
    Quantity(
        "value", "Value", "V",
        "What the critic, having read up to here, expects this token and the rest of the reply to earn.",
        after="value_after",
    ),
    Quantity(
        "return_", "Return", "A + V",
        "What the critic should have said: its value plus the advantage before whitening. The critic learns this.",
    ),
    Quantity(
        "advantage", "Advantage", "A",
        "Whether things went better than foreseen, from this token on, in standard deviations of the batch."
        " Above 0: made likelier.",
    ),
    Quantity(
        "ratio", "Ratio", "π_new / π_old",
        "How much likelier the update made the token. PPO stops paying outside 1 ± ε: then it is clipped.",
        neutral=1.0, after="ratio",
    ),
    Quantity(
        "logprob", "Log-probability", "log π",
        "How likely the policy found the token when it wrote it: 0 is certain, −0.7 a coin flip, −4.6 one in 100.",
        "nats", after="logprob_after",
    ),
    Quantity(
        "ref_logprob", "Reference", "log π_ref",
        "How likely the frozen SFT model finds the same token.",
        "nats",
    ),
)  # fmt: skip


@dataclass(frozen=True)
class TokenView:
    """One token of a reply. Log-probabilities and KL in nats; `…_after`, `ratio` and `clipped` are after the update."""

    text: str
    logprob: float
    ref_logprob: float
    kl: float  # log π − log π_ref, what the penalty is charged on; may be below 0 on one token
    value: float
    reward: float
    return_: float
    advantage: float  # as the policy's loss takes it: whitened
    logprob_after: float
    kl_after: float
    value_after: float
    ratio: float  # π_new / π_old
    clipped: bool  # the clip decides: the policy's loss pays nothing more for this token
    end: bool = False  # the end token


@dataclass(frozen=True)
class ReplyView:
    """One reply as PPO saw it."""

    prompt: str
    text: str
    score: float  # as judged: the fixed low score where it was truncated
    truncated: bool
    kl: float  # log π − log π_ref of the whole reply, nats: the sum of its tokens' (StepStats reports k3 instead)
    tokens: tuple[TokenView, ...]


@dataclass(frozen=True)
class StepView:
    """One step: its replies, and the settings that the numbers depend on."""

    step: int
    beta: float
    clip_range: float
    replies: tuple[ReplyView, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, numbers to five digits (an infinite clip range as None)."""
        return _rounded(asdict(self))


@dataclass
class Watch:
    """What `watching` notes of a trainer's latest step; None before the first."""

    samples: Sequence[Sample] = ()
    scores: torch.Tensor | None = None  # (B,)
    experience: Experience | None = None
    logprobs: torch.Tensor | None = None  # (B, R) after the update
    values: torch.Tensor | None = None  # (B, R) after the update


@contextmanager
def watching(trainer: PPO, after: bool = True) -> Iterator[Watch]:
    """Notes what each step of `trainer` judged and learned from; with `after`, reads the replies again behind the
    update. Changes no number."""
    watch, judged, update = Watch(), trainer.judged, trainer.update
    names = ("judged", "update")
    before = {name: vars(trainer)[name] for name in names if name in vars(trainer)}

    def noted_judged(samples: Sequence[Sample]) -> torch.Tensor:
        watch.samples, watch.scores = samples, judged(samples)
        return watch.scores

    def noted_update(experience: Experience) -> Any:
        watch.experience = experience
        result = update(experience)
        if after:
            with torch.no_grad():
                watch.logprobs, watch.values, _ = trainer.read(experience)
        return result

    trainer.judged, trainer.update = noted_judged, noted_update
    try:
        yield watch
    finally:
        for name in names:
            delattr(trainer, name)
        vars(trainer).update(before)


def look(trainer: PPO, prompts: Sequence[str]) -> tuple[StepStats, StepView]:
    """One step of the trainer on these prompts, as it would have been without the microscope, and what it held."""
    beta = trainer.beta
    with watching(trainer) as watch:
        stats = trainer.step(prompts)
    return stats, StepView(stats.step, beta, trainer.config.clip_range, reply_views(watch, trainer))


def reply_views(watch: Watch, trainer: PPO) -> tuple[ReplyView, ...]:
    """The replies that were noted, each with its tokens. Raises InputError before the first step."""
    seen = watch.experience
    if seen is None or watch.logprobs is None:
        raise InputError("the microscope has seen no step yet: call trainer.step(prompts) inside `watching(trainer)`")
    columns = token_columns(seen, watch.logprobs, watch.values, trainer.config.clip_range)
    kl = (columns["kl"] * seen.mask).sum(1).tolist()
    views = []
    for row, sample in enumerate(watch.samples):
        length = int(seen.mask[row].sum())
        ids = seen.tokens[row, :length].tolist()
        numbers = {name: column[row, :length].tolist() for name, column in columns.items()}
        tokens = [
            TokenView(
                text,
                **{name: column[i] for name, column in numbers.items()},
                end=ids[i] == trainer.tokenizer.eos_token_id,
            )
            for i, text in enumerate(token_texts(trainer.tokenizer, ids))
        ]
        views.append(
            ReplyView(sample.prompt, sample.text, watch.scores[row].item(), sample.truncated, kl[row], tuple(tokens))
        )
    return tuple(views)


def token_columns(
    seen: Experience, logprobs: torch.Tensor, values: torch.Tensor, clip_range: float
) -> dict[str, torch.Tensor]:
    """Every number of a TokenView for every token, (B, R) each, from an Experience and what the models say after the
    update. A token is clipped where −A·clip(ratio, 1 ± ε) > −A·ratio, as in `policy_loss`."""
    ratio = torch.exp(logprobs - seen.logprobs)
    clipped = -seen.advantages * ratio.clamp(1 - clip_range, 1 + clip_range) > -seen.advantages * ratio
    return {
        "logprob": seen.logprobs,
        "ref_logprob": seen.ref_logprobs,
        "kl": seen.logprobs - seen.ref_logprobs,
        "value": seen.values,
        "reward": seen.rewards,
        "return_": seen.returns,
        "advantage": seen.advantages,
        "logprob_after": logprobs,
        "kl_after": logprobs - seen.ref_logprobs,
        "value_after": values,
        "ratio": ratio,
        "clipped": clipped,
    }


def token_texts(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str]:
    """Each token as text. A piece of a character that several tokens share is shown by the tokenizer's own name."""
    texts = [tokenizer.decode([token], clean_up_tokenization_spaces=False) for token in ids]
    names = tokenizer.convert_ids_to_tokens(list(ids))
    return [name if "\ufffd" in text else text for text, name in zip(texts, names, strict=True)]


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.5g}") if abs(value) < float("inf") else None
    return value
