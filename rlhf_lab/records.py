"""Records that cross module borders: frozen dataclasses, no torch, no screen.

A person's feedback travels as `Question` → `Ranking` → `Comparison`; a trainer's progress as `LossPoint`, `RewardPoint`
and `StepStats`. Everything in a feedback record is plain data, so it can be stored as JSON and read by others.
"""

from __future__ import annotations

import uuid
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from itertools import combinations, product
from typing import Any, Literal

from .errors import InputError

Status = Literal["ranked", "undecided", "skipped"]
STATUSES = ("ranked", "undecided", "skipped")


def new_id() -> str:
    """A fresh identifier: 32 hexadecimal characters, unique without coordination (UUID 4)."""
    return uuid.uuid4().hex


def utc_now() -> str:
    """The time now, in UTC, as ISO 8601 text with microseconds."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


@dataclass(frozen=True)
class Candidate:
    """One reply to a question. `model` names the checkpoint that wrote it; an annotator never sees that."""

    id: str
    text: str
    model: str = ""


@dataclass(frozen=True)
class Question:
    """A prompt and k ≥ 2 replies that a person is asked to put in order."""

    id: str
    prompt: str
    candidates: tuple[Candidate, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "candidates", tuple(self.candidates))
        ids = [candidate.id for candidate in self.candidates]
        if len(ids) < 2:
            raise InputError(f"question {self.id!r} has {len(ids)} replies; a question needs at least two")
        if len(set(ids)) < len(ids):
            raise InputError(f"question {self.id!r} has two replies with one id: {ids}; each needs its own")

    @property
    def texts(self) -> dict[str, str]:
        """Reply text by candidate id."""
        return {candidate.id: candidate.text for candidate in self.candidates}

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"candidates": [asdict(candidate) for candidate in self.candidates]}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Question:
        """The question that `to_dict` wrote. Raises InputError naming a field that is missing or unknown."""
        try:
            return cls(data["id"], data["prompt"], tuple(Candidate(**c) for c in data["candidates"]))
        except (KeyError, TypeError) as error:
            raise InputError(f"not a question: {error}; a question has id, prompt and candidates") from None


@dataclass(frozen=True)
class Ranking:
    """One person's decision on one question: the atomic unit of feedback.

    `order` lists tiers, best first; the candidates in one tier are tied. Every candidate stands in exactly one tier
    when `status` is "ranked"; `order` is empty when the person could not decide ("undecided") or skipped.
    `displayed` is the order on the screen, `seconds` the time from first sight to confirmation.
    """

    question_id: str
    order: tuple[tuple[str, ...], ...]
    annotator: str
    displayed: tuple[str, ...] = ()
    seconds: float = 0.0
    status: Status = "ranked"
    id: str = field(default_factory=new_id)
    created: str = field(default_factory=utc_now)

    def __post_init__(self) -> None:
        object.__setattr__(self, "order", tuple(tuple(tier) for tier in self.order))
        object.__setattr__(self, "displayed", tuple(self.displayed))
        if self.status not in STATUSES:
            raise InputError(f"status {self.status!r} of ranking {self.id!r}: must be one of {', '.join(STATUSES)}")
        if self.status == "ranked" and not self.order:
            raise InputError(f"ranking {self.id!r} is 'ranked' but its order is empty")
        if self.status != "ranked" and self.order:
            raise InputError(f"ranking {self.id!r} is {self.status!r} but carries an order; leave it empty")
        flat = [candidate for tier in self.order for candidate in tier]
        if len(set(flat)) < len(flat) or any(not tier for tier in self.order):
            raise InputError(f"order {self.order} of ranking {self.id!r}: each reply once, no empty tier")

    def check(self, question: Question) -> Ranking:
        """This ranking, if it answers `question` completely; InputError otherwise."""
        if self.question_id != question.id:
            raise InputError(f"ranking {self.id!r} answers question {self.question_id!r}, not {question.id!r}")
        ids = set(question.texts)
        ranked = {candidate for tier in self.order for candidate in tier}
        if self.status == "ranked" and ranked != ids:
            raise InputError(f"ranking {self.id!r} orders {sorted(ranked)}; question {question.id!r} has {sorted(ids)}")
        if self.displayed and set(self.displayed) != ids:
            raise InputError(
                f"ranking {self.id!r} was displayed as {list(self.displayed)}, not the replies of its question"
            )
        return self

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"order": [list(tier) for tier in self.order], "displayed": list(self.displayed)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Ranking:
        """The ranking that `to_dict` wrote. Raises InputError naming a field that is missing or unknown."""
        try:
            return cls(**data)
        except TypeError as error:
            raise InputError(f"not a ranking: {error}") from None


@dataclass(frozen=True)
class Comparison:
    """One pair read off a ranking: `chosen` was put above `rejected` (or beside it, when `tie`)."""

    prompt: str
    chosen: str
    rejected: str
    tie: bool = False
    question_id: str = ""
    annotator: str = ""


def comparisons_of(question: Question, ranking: Ranking) -> list[Comparison]:
    """All pairs of one ranking, C(k, 2) of them, ties included (InstructGPT, arXiv:2203.02155, section 3.5)."""
    texts = ranking.check(question) and question.texts
    pairs: list[Comparison] = []

    def add(better: str, worse: str, tie: bool) -> None:
        pairs.append(Comparison(question.prompt, texts[better], texts[worse], tie, question.id, ranking.annotator))

    for above, below in combinations(ranking.order, 2):
        for better, worse in product(above, below):
            add(better, worse, False)
    for tier in ranking.order:
        for one, other in combinations(tier, 2):
            add(one, other, True)
    return pairs


@dataclass(frozen=True)
class Rollout:
    """One reply that the policy wrote during PPO, as text, with what it earned."""

    prompt: str
    reply: str
    score: float
    kl: float
    truncated: bool = False


@dataclass(frozen=True)
class LossPoint:
    """A point of a next-token training curve. `loss` is in nats a token, `seconds` since training began."""

    step: int
    tokens: int
    loss: float
    seconds: float = 0.0
    validation_loss: float | None = None


@dataclass(frozen=True)
class RewardPoint:
    """A point of a reward model's training curve: loss in nats a pair, accuracy on the pairs of that step."""

    step: int
    pairs: int
    loss: float
    accuracy: float


@dataclass(frozen=True)
class StepStats:
    """What one PPO step did. KL and entropy are in nats; KL is to the frozen reference, summed over a reply."""

    step: int
    reward: float  # mean reward-model score of the replies, before the KL penalty
    kl: float  # nats per reply, to the reference
    objective: float  # reward − β·KL: what PPO climbs
    beta: float  # the KL coefficient in force
    entropy: float  # nats per token
    clipfrac: float  # share of tokens whose ratio left 1 ± ε
    approx_kl: float  # nats per token, between the policy before and after this step (k3)
    explained_variance: float  # 1 − Var(returns − values) / Var(returns), before the update
    policy_loss: float
    value_loss: float
    reply_length: float  # tokens, mean
    truncated: float  # share of replies without an end token
    learning_rate: float = 0.0
    epochs: int = 0  # epochs done before the KL early stop
    seconds: float = 0.0
    samples: tuple[Rollout, ...] = ()


@dataclass(frozen=True)
class Interval:
    """An estimate and its 95% confidence interval, from n observations."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}] (n = {self.n})"


# --- what the live loop says while it works (rlhf_lab.live): every event is one of these, or a StepStats ---

LoopState = Literal["idle", "running", "paused", "stopped", "error"]


@dataclass(frozen=True)
class Effect:
    """What one new label did to the reward model's scores of one question's replies.

    `before` and `after` hold a score for each of the question's candidates, in the order of `question.candidates`.
    `order` is how the person ranked them (tiers of candidate ids, best first).
    """

    question: Question
    order: tuple[tuple[str, ...], ...]
    before: tuple[float, ...]
    after: tuple[float, ...]


@dataclass(frozen=True)
class RewardUpdate:
    """The reward model has learned from one ranking.

    `agreement` is the share of that ranking's pairs which the model ordered as the person did *before* it was
    trained on them (None when the ranking held no strict pair); `running_agreement` averages it over the latest
    `window` rankings. `effects` starts with the ranking just given, then the last few before it.
    """

    labels: int
    ranking_id: str
    agreement: float | None
    running_agreement: float | None
    window: int
    effects: tuple[Effect, ...] = ()
    seconds: float = 0.0


@dataclass(frozen=True)
class WinRate:
    """The policy against the SFT model, judged by the live reward model on prompts kept aside."""

    step: int
    interval: Interval


@dataclass(frozen=True)
class QuestionsReady:
    """`count` questions wait to be ranked, written by the policy after PPO step `step`."""

    count: int
    step: int


@dataclass(frozen=True)
class StateChanged:
    """The loop's worker is now in `state`; `message` says in one sentence what that means for the person."""

    state: LoopState
    message: str = ""


@dataclass(frozen=True)
class LoopError:
    """Something failed in the worker: `where` it was, and the message a person should read."""

    where: str
    message: str


LiveEvent = StepStats | RewardUpdate | WinRate | QuestionsReady | StateChanged | LoopError
