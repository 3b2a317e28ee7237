"""Records that cross module borders: frozen dataclasses, no torch, no screen.

A person's feedback travels as `Question` → an answer (`Ranking`, `Rating`, `Vote` or `Correction`) → `Comparison` and
`Demonstration`; a trainer's progress as `LossPoint`, `RewardPoint` and `StepStats`. Everything in a feedback record is
plain data, so it can be stored as JSON and read by others.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from itertools import combinations, product
from typing import Any, ClassVar, Literal, Self, TypeVar

from .errors import InputError

T = TypeVar("T")


def new_id() -> str:
    """A fresh identifier: 32 hexadecimal characters, unique without coordination (UUID 4)."""
    return uuid.uuid4().hex


def utc_now() -> str:
    """The time now, in UTC, as ISO 8601 text with microseconds."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


# --- what is asked ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Candidate:
    """One reply to a question, and where it came from; an annotator sees the text only.

    `model` names the checkpoint that wrote it; `sampling` holds what it was written with, plain data: temperature,
    top_k, max_new_tokens, the seed, the checkpoint's fingerprint.
    """

    id: str
    text: str
    model: str = ""
    sampling: dict[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Question:
    """A prompt and k ≥ 1 replies that a person is asked about; putting them in order takes two or more.

    A prompt of several turns is transcript text, "\\n\\nHuman: …\\n\\nAssistant: …\\n\\nHuman: …" (`rlhf_lab.formats`).
    """

    id: str
    prompt: str
    candidates: tuple[Candidate, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "candidates", tuple(self.candidates))
        ids = [candidate.id for candidate in self.candidates]
        if not ids:
            raise InputError(f"question {self.id!r} has no reply; a question needs at least one")
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


# --- what is answered: one record a decision, the atomic unit of feedback ---------------------------------------------

Kind = Literal["ranking", "rating", "vote", "correction"]
DECLINED = ("undecided", "skipped")  # statuses of an answer in which the person decided nothing

# How much better, in the words and the order of Llama 2 (arXiv:2307.09288, section 3.1), least first.
GRADES = ("negligibly better", "slightly better", "better", "significantly better")
ATTRIBUTES = ("helpful", "correct", "polite", "safe")  # what a reply is rated for unless you say otherwise
RATING_SCALE = (1, 2, 3, 4, 5)  # Likert: from "not at all" to "completely"


class _Answer:
    """What all answers share: the fields question_id, annotator, displayed, seconds, status, id, created, context.

    `displayed` is the order of the replies on the screen, `seconds` the time from first sight to confirmation.
    `status` is the class's `GIVEN`, or "undecided" or "skipped", and then nothing is decided. `context` says how the
    question was put, plain text by name: the widget, the guidelines in force.
    """

    kind: ClassVar[Kind]
    GIVEN: ClassVar[str]

    @property
    def given(self) -> bool:
        """Whether the person decided something: neither "undecided" nor "skipped"."""
        return self.status == self.GIVEN

    @property
    def target(self) -> str:
        """The one candidate that the answer is about, or "" when it is about the whole question.

        A later answer replaces an earlier one of the same person, kind, question and target.
        """
        return ""

    def _validate(self, decided: bool) -> None:
        """The checks of every answer when it is made; `decided` says whether it carries a decision."""
        object.__setattr__(self, "displayed", tuple(self.displayed))
        statuses = (self.GIVEN, *DECLINED)
        if self.status not in statuses:
            raise InputError(f"status {self.status!r} of {self.kind} {self.id!r}: must be one of {', '.join(statuses)}")
        if self.given and not decided:
            raise InputError(f"{self.kind} {self.id!r} is {self.status!r} but decides nothing")
        if decided and not self.given:
            raise InputError(f"{self.kind} {self.id!r} is {self.status!r} but carries a decision; leave it empty")

    def check(self, question: Question) -> Self:
        """This answer, if it answers `question` completely; InputError otherwise."""
        if self.question_id != question.id:
            raise InputError(f"{self.kind} {self.id!r} answers question {self.question_id!r}, not {question.id!r}")
        ids = set(question.texts)
        if self.displayed and (set(self.displayed) != ids or len(self.displayed) != len(ids)):
            raise InputError(
                f"{self.kind} {self.id!r} was displayed as {list(self.displayed)}, not the replies of its question"
            )
        if self.target and self.target not in ids:
            raise InputError(
                f"{self.kind} {self.id!r} is about reply {self.target!r}; question {question.id!r} has {sorted(ids)}"
            )
        return self

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as JSON has it; empty fields that an older version did not know are left out."""
        data = asdict(self) | {"displayed": list(self.displayed)}
        return {name: value for name, value in data.items() if value or name not in ("grade", "context")}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """The answer that `to_dict` wrote. Raises InputError naming a field that is missing or unknown."""
        try:
            return cls(**data)
        except (TypeError, ValueError) as error:
            raise InputError(f"not a {cls.kind}: {error}") from None


@dataclass(frozen=True)
class Ranking(_Answer):
    """One person's order of a question's replies.

    `order` lists tiers, best first; the candidates in one tier are tied. Every candidate stands in exactly one tier
    when `status` is "ranked"; `order` is empty when the person could not decide ("undecided") or skipped. `grade`,
    one of `GRADES`, says how much better the first of two replies is; "" when that was not asked.
    """

    kind: ClassVar[Kind] = "ranking"
    GIVEN: ClassVar[str] = "ranked"

    question_id: str
    order: tuple[tuple[str, ...], ...]
    annotator: str
    displayed: tuple[str, ...] = ()
    seconds: float = 0.0
    status: Literal["ranked", "undecided", "skipped"] = "ranked"
    id: str = field(default_factory=new_id)
    created: str = field(default_factory=utc_now)
    grade: str = ""
    context: dict[str, str] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "order", tuple(tuple(tier) for tier in self.order))
        if self.status == "ranked" and not self.order:
            raise InputError(f"ranking {self.id!r} is 'ranked' but its order is empty")
        if self.status in DECLINED and self.order:
            raise InputError(f"ranking {self.id!r} is {self.status!r} but carries an order; leave it empty")
        self._validate(decided=bool(self.order))
        flat = [candidate for tier in self.order for candidate in tier]
        if len(set(flat)) < len(flat) or any(not tier for tier in self.order):
            raise InputError(f"order {self.order} of ranking {self.id!r}: each reply once, no empty tier")
        if self.grade and self.grade not in GRADES:
            raise InputError(f"grade {self.grade!r} of ranking {self.id!r}: must be one of {', '.join(GRADES)}")
        if self.grade and [len(tier) for tier in self.order] != [1, 1]:
            raise InputError(f"ranking {self.id!r} has a grade; only one reply put above one other can have that")

    def check(self, question: Question) -> Ranking:
        super().check(question)
        ids = set(question.texts)
        ranked = {candidate for tier in self.order for candidate in tier}
        if self.status == "ranked" and ranked != ids:
            raise InputError(f"ranking {self.id!r} orders {sorted(ranked)}; question {question.id!r} has {sorted(ids)}")
        if len(ids) < 2:
            raise InputError(f"question {question.id!r} has one reply; a ranking needs at least two")
        return self

    def to_dict(self) -> dict[str, Any]:
        return super().to_dict() | {"order": [list(tier) for tier in self.order]}


@dataclass(frozen=True)
class Rating(_Answer):
    """One person's marks, 1 to 5, for attributes of each of a question's replies (a Likert scale).

    `scores` is {candidate id: {attribute: mark}}, every reply rated for the same attributes; {} when the person
    could not decide or skipped. (UltraFeedback, arXiv:2310.01377, and HelpSteer, arXiv:2311.09528, rate so.)
    """

    kind: ClassVar[Kind] = "rating"
    GIVEN: ClassVar[str] = "rated"

    question_id: str
    scores: dict[str, dict[str, int]] = field(hash=False)
    annotator: str
    displayed: tuple[str, ...] = ()
    seconds: float = 0.0
    status: Literal["rated", "undecided", "skipped"] = "rated"
    id: str = field(default_factory=new_id)
    created: str = field(default_factory=utc_now)
    context: dict[str, str] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if not isinstance(self.scores, dict) or not all(isinstance(marks, dict) for marks in self.scores.values()):
            raise InputError(f"scores of rating {self.id!r}: {{reply: {{attribute: mark}}}} is wanted")
        self._validate(decided=bool(self.scores))
        for candidate, marks in self.scores.items():
            if not marks or set(marks) != set(self.attributes):
                raise InputError(f"rating {self.id!r}: reply {candidate!r} is not rated for {list(self.attributes)}")
            for attribute, mark in marks.items():
                if isinstance(mark, bool) or mark not in RATING_SCALE:
                    raise InputError(
                        f"rating {self.id!r}: {attribute} of reply {candidate!r} is {mark!r}; it must be 1 to 5"
                    )

    @property
    def attributes(self) -> tuple[str, ...]:
        """What the replies were rated for."""
        return tuple(next(iter(self.scores.values()), {}))

    def overall(self, weights: dict[str, float] | None = None) -> dict[str, float]:
        """Each reply's mean mark, by candidate id; `weights` by attribute (0 for one not named), or all alike."""
        weights = weights or dict.fromkeys(self.attributes, 1.0)
        total = sum(weights.get(name, 0.0) for name in self.attributes)
        if self.given and not total > 0:
            raise InputError(f"weights {weights} give none of {', '.join(self.attributes)} a say; use positive ones")
        return {
            candidate: sum(weights.get(name, 0.0) * mark for name, mark in marks.items()) / total
            for candidate, marks in self.scores.items()
        }

    def check(self, question: Question) -> Rating:
        super().check(question)
        if self.given and set(self.scores) != set(question.texts):
            raise InputError(
                f"rating {self.id!r} marks {sorted(self.scores)}; question {question.id!r} has {sorted(question.texts)}"
            )
        return self


@dataclass(frozen=True)
class Vote(_Answer):
    """One person's thumb, up or down, for one reply (Ethayarajh et al.'s KTO, arXiv:2402.01306, learns from these).

    `up` is None when the person could not decide or skipped.
    """

    kind: ClassVar[Kind] = "vote"
    GIVEN: ClassVar[str] = "voted"

    question_id: str
    candidate: str
    up: bool | None
    annotator: str
    displayed: tuple[str, ...] = ()
    seconds: float = 0.0
    status: Literal["voted", "undecided", "skipped"] = "voted"
    id: str = field(default_factory=new_id)
    created: str = field(default_factory=utc_now)
    context: dict[str, str] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if self.up not in (True, False, None) or isinstance(self.up, int | float) != isinstance(self.up, bool):
            raise InputError(f"vote {self.id!r}: up is {self.up!r}; it must be true, false or null")
        self._validate(decided=self.up is not None)
        _needs_candidate(self)

    @property
    def target(self) -> str:
        return self.candidate


@dataclass(frozen=True)
class Correction(_Answer):
    """One person's better wording of one reply: a demonstration for SFT, and a comparison, corrected above original.

    `text` is "" when the person could not decide or skipped.
    """

    kind: ClassVar[Kind] = "correction"
    GIVEN: ClassVar[str] = "corrected"

    question_id: str
    candidate: str
    text: str
    annotator: str
    displayed: tuple[str, ...] = ()
    seconds: float = 0.0
    status: Literal["corrected", "undecided", "skipped"] = "corrected"
    id: str = field(default_factory=new_id)
    created: str = field(default_factory=utc_now)
    context: dict[str, str] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if not isinstance(self.text, str):
            raise InputError(f"correction {self.id!r}: its text is {self.text!r}; it must be text")
        self._validate(decided=bool(self.text.strip()))
        _needs_candidate(self)

    @property
    def target(self) -> str:
        return self.candidate

    def check(self, question: Question) -> Correction:
        super().check(question)
        if self.text == question.texts[self.candidate]:
            raise InputError(f"correction {self.id!r} leaves the reply as it was; change it, or skip")
        return self


def _needs_candidate(answer: Vote | Correction) -> None:
    if not isinstance(answer.candidate, str) or not answer.candidate:
        raise InputError(f"{answer.kind} {answer.id!r} must name the reply that it is about")


Answer = Ranking | Rating | Vote | Correction
ANSWERS: dict[str, type[Answer]] = {each.kind: each for each in (Ranking, Rating, Vote, Correction)}


def answer_from_dict(kind: str, data: dict[str, Any]) -> Answer:
    """The answer of that kind that `to_dict` wrote; InputError for an unknown kind or field."""
    if kind not in ANSWERS:
        raise InputError(f"kind of answer {kind!r}: must be one of {', '.join(ANSWERS)}")
    return ANSWERS[kind].from_dict(data)


# --- what answers say to a trainer ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Comparison:
    """One pair read off an answer: `chosen` was put above `rejected` (or beside it, when `tie`).

    `grade`, one of `GRADES`, says how much better, where the person was asked.
    """

    prompt: str
    chosen: str
    rejected: str
    tie: bool = False
    question_id: str = ""
    annotator: str = ""
    grade: str = ""


@dataclass(frozen=True)
class Demonstration:
    """A prompt and a reply that a person wrote for it."""

    prompt: str
    reply: str


def comparisons_of(question: Question, answer: Answer) -> list[Comparison]:
    """All pairs that one answer states, ties included.

    A ranking gives C(k, 2) pairs (InstructGPT, arXiv:2203.02155, section 3.5); a rating the pairs of its order by
    mean mark; a correction one, corrected above original; a vote none, for it compares with nothing on the screen.
    """
    texts = answer.check(question) and question.texts
    if isinstance(answer, Correction):
        pairs = [(answer.text, texts[answer.candidate], False)] if answer.given else []
    else:
        pairs = [(texts[better], texts[worse], tie) for better, worse, tie in pairs_of_order(order_of(answer))]
    grade = getattr(answer, "grade", "")
    return [Comparison(question.prompt, *pair, question.id, answer.annotator, grade) for pair in pairs]


def order_of(answer: Answer) -> tuple[tuple[str, ...], ...]:
    """The tiers of candidate ids, best first, that an answer states; () where it orders nothing."""
    if isinstance(answer, Ranking):
        return answer.order
    if not isinstance(answer, Rating) or not answer.given:
        return ()
    tiers: dict[float, list[str]] = {}
    for candidate, mark in answer.overall().items():
        tiers.setdefault(mark, []).append(candidate)
    return tuple(tuple(tiers[mark]) for mark in sorted(tiers, reverse=True))


def pairs_of_order(order: Sequence[Sequence[T]]) -> list[tuple[T, T, bool]]:
    """All C(k, 2) pairs of tiers, best first: (better, worse, False), then (one, other, True) inside each tier."""
    strict = [(a, b, False) for above, below in combinations(order, 2) for a, b in product(above, below)]
    return [*strict, *((a, b, True) for tier in order for a, b in combinations(tier, 2))]


def demonstration_of(question: Question, answer: Answer) -> Demonstration | None:
    """What an answer shows the policy to write: a correction's text; None for every other answer."""
    if isinstance(answer, Correction) and answer.check(question).given:
        return Demonstration(question.prompt, answer.text)
    return None


# --- what a trainer reports -------------------------------------------------------------------------------------------


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
class DirectPoint:
    """A point of DPO's (or its kin's) training curve. h = log π − log π_ref of a whole reply, in nats; β·h is the
    implicit reward. "Better" are the replies that were put first or thumbed up, "worse" the others, in that batch."""

    step: int
    labels: int  # questions (KTO: votes) learned from so far, each once for every batch it stood in
    loss: float
    accuracy: float  # share of strict pairs whose better reply has the higher h; KTO: share with h on the right side
    margin: float  # mean h of the better less that of the worse
    chosen: float  # mean h of the better replies: above 0, they became likelier
    rejected: float  # mean h of the worse replies
    learning_rate: float = 0.0
    seconds: float = 0.0  # of this step


@dataclass(frozen=True)
class StepStats:
    """What one step of PPO, or of another method that writes replies, did. KL and entropy are in nats; KL is to the
    frozen reference, summed over a reply. Without a critic, explained variance and value loss are 0."""

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
    """The reward model has learned from one answer (`ranking_id` is its id, whatever its kind), or unlearned it.

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
    kind: Kind = "ranking"  # of the answer that was learned, or taken back


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


@dataclass(frozen=True)
class Taught:
    """The policy has learned corrections by SFT steps; `before` and `after`: its loss on the newest, nats a token."""

    step: int
    demonstrations: int
    before: float
    after: float


@dataclass(frozen=True)
class RolledBack:
    """Policy, critic and reward model are again as they were just before an answer; it and later ones are withdrawn.

    The step counter goes on: `step` is where the curve is now, `to_step` where policy and critic come from.
    """

    step: int
    to_step: int
    answer_id: str
    withdrawn: int
    labels: int


LiveEvent = StepStats | RewardUpdate | WinRate | QuestionsReady | StateChanged | LoopError | Taught | RolledBack
