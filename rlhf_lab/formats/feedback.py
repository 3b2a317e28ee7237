"""`Feedback`: questions and answers as one value, between a store and files of every format."""

from __future__ import annotations

import json
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from ..errors import InputError
from ..records import (
    Answer,
    Candidate,
    Correction,
    Question,
    Ranking,
    Rating,
    answer_from_dict,
    order_of,
    pairs_of_order,
    utc_now,
)
from ..store import FeedbackStore
from .files import located

IDS = uuid.UUID("6f1c8a52-6a0f-5d0e-9d57-3a1f0f6c2b11")  # the namespace of ids made from content
IMPORTED = "imported"  # the annotator of a file that names nobody


@dataclass(frozen=True)
class Withdrawal:
    """An answer of the feedback was taken back; `created` says when (UTC, ISO 8601)."""

    answer_id: str
    created: str


@dataclass(frozen=True)
class Feedback:
    """Questions, the answers to them, and which answers were withdrawn; every answer fits its question.

    `left_out` says in words what a file held that these records have no place for; it is no part of equality.
    Raises InputError when an answer's question is missing, does not fit, or an id is there twice.
    """

    questions: tuple[Question, ...]
    answers: tuple[Answer, ...]
    withdrawals: tuple[Withdrawal, ...] = ()
    left_out: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        for name in ("questions", "answers", "withdrawals", "left_out"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        asked, given = {q.id: q for q in self.questions}, {answer.id for answer in self.answers}
        if len(asked) < len(self.questions) or len(given) < len(self.answers):
            raise InputError("two questions or two answers of this feedback have one id; each needs its own")
        for answer in self.answers:
            if answer.question_id not in asked:
                raise InputError(f"{answer.kind} {answer.id!r} answers question {answer.question_id!r}, not given here")
            answer.check(asked[answer.question_id])
        if len({w.answer_id for w in self.withdrawals} & given) < len(self.withdrawals):
            raise InputError("a withdrawal names an answer that is not given here, or one that another one names")

    @property
    def question_of(self) -> dict[str, Question]:
        """Questions by id."""
        return {question.id: question for question in self.questions}

    def __str__(self) -> str:
        kinds = Counter(answer.kind for answer in self.answers)
        said = [count(len(self.questions), "question"), *(count(n, kind) for kind, n in kinds.items())]
        return ", ".join(said + [count(len(self.withdrawals), "withdrawal")] * bool(self.withdrawals))


@dataclass(frozen=True)
class Report:
    """What `write_feedback` did: how many records it wrote, and in words what the form had no place for."""

    path: str
    format: str
    written: int
    unit: str
    dropped: tuple[str, ...] = ()

    def __str__(self) -> str:
        first = f"{count(self.written, self.unit)} written to {self.path} as {self.format}"
        return "\n".join([first, *(f"  {words}" for words in self.dropped)])


# --- store ↔ feedback ---


def feedback_of(store: FeedbackStore, annotator: str | None = None, everything: bool = False) -> Feedback:
    """The answers in force of a store, or of one person, with their questions (all questions, when of everybody).

    `everything` adds the answers that were replaced or withdrawn, and the withdrawals.
    """
    withdrawals: list[Withdrawal] = []
    if everything:
        events = [event for event in store.events() if annotator in (None, event.annotator)]
        answers = [answer_from_dict(e.kind, e.payload) for e in events if e.withdraws is None]
        withdrawals = [Withdrawal(e.withdraws, e.created) for e in events if e.withdraws is not None]
    else:
        answers = store.answers(annotator)
    ids = None if annotator is None else {answer.question_id for answer in answers}
    return Feedback(tuple(store.questions(ids)), tuple(answers), tuple(withdrawals))


def import_into(store: FeedbackStore, feedback: Feedback) -> int:
    """Add it all to a store in one transaction, and return how many events were new; 0 when it was imported before.

    InputError, and nothing is added, when the store has another question or answer under one of the ids.
    """
    before = store.last_seq
    store.append_all(feedback.answers, feedback.questions, [w.answer_id for w in feedback.withdrawals])
    given, gone = {answer.id for answer in feedback.answers}, {w.answer_id for w in feedback.withdrawals}
    return sum(event.id in given or event.withdraws in gone for event in store.events(since_seq=before))


def in_force(feedback: Feedback) -> Feedback:
    """Without the answers that were withdrawn or that a later one replaced, as a store decides it."""
    gone = {withdrawal.answer_id for withdrawal in feedback.withdrawals}
    latest = {
        (answer.annotator, answer.kind, answer.question_id, answer.target): answer.id
        for answer in feedback.answers
        if answer.id not in gone
    }
    kept = set(latest.values())
    return replace(feedback, answers=tuple(a for a in feedback.answers if a.id in kept), withdrawals=())


# --- reading: from a file's records to feedback ---


def made_id(*content: Any) -> str:
    """An id that the same content always gets: 32 hexadecimal characters (UUID 5)."""
    return uuid.uuid5(IDS, json.dumps(content)).hex


@dataclass(frozen=True)
class _Draft:
    """An answer of a format without ids; `decide` gives its fields, given the replies' ids in the file's order."""

    where: str
    prompt: str
    replies: tuple[tuple[str, str], ...]  # (text, model)
    make: type[Answer]
    decide: Callable[[list[str]], dict[str, Any]]
    annotator: str
    given_id: str

    @property
    def content(self) -> tuple[str, ...]:
        """What makes two questions one: the prompt and the replies, in whatever order."""
        return (self.prompt, *(part for reply in sorted(self.replies) for part in reply))

    @property
    def said(self) -> str:
        """The decision as text, to put answers in an order that does not depend on the file's."""
        return json.dumps([self.replies, self.decide([str(place) for place in range(len(self.replies))])])


class Builder:
    """Collects what a file holds, and makes ids from the content where the file has none.

    Such ids do not depend on the line: reading a file twice, or after its lines were moved, gives the same ones.
    Of questions with the same prompt and replies one is made, unless one person answers it twice: a file of pairs
    does not mean that the second answer replaces the first.
    """

    def __init__(self, annotator: str = IMPORTED) -> None:
        self.annotator = annotator
        self.now = utc_now()  # when the answers of a format without times were given, as far as we know
        self.left_out: Counter[tuple[str, str]] = Counter()
        self._drafts: list[_Draft] = []
        self._questions: dict[str, tuple[str, Question]] = {}
        self._answers: dict[str, tuple[str, Answer]] = {}
        self._withdrawals: dict[str, tuple[str, Withdrawal]] = {}

    def leave_out(self, thing: str, why: str = "", n: int = 1) -> None:
        """Note that `n` such things of the file find no place in the records."""
        self.left_out[thing, why] += n

    def draft(
        self,
        where: str,
        prompt: str,
        replies: Iterable[tuple[str, str]],
        make: type[Answer],
        decide: Callable[[list[str]], dict[str, Any]],
        annotator: str = "",
        given_id: str = "",
    ) -> None:
        """An answer of a format without ids; `given_id` is its question's, where the record happens to name it."""
        self._drafts.append(_Draft(where, prompt, tuple(replies), make, decide, annotator or self.annotator, given_id))

    def question(self, where: str, question: Question) -> None:
        """A question of a format that has ids; the same one again changes nothing."""
        self._once(self._questions, where, question)

    def answer(self, where: str, answer: Answer) -> None:
        """An answer of a format that has ids."""
        self._once(self._answers, where, answer)

    def withdrawal(self, where: str, withdrawal: Withdrawal) -> None:
        self._once(self._withdrawals, where, withdrawal, withdrawal.answer_id, "field 'answer_id'")

    @staticmethod
    def _once(kept: dict[str, tuple[str, Any]], where: str, item: Any, key: str = "", called: str = "") -> None:
        key, called = key or item.id, called or "field 'id'"
        earlier = kept.setdefault(key, (where, item))
        if earlier[1] != item:
            raise InputError(f"{where}: {called} is {key!r}, as something else already has ({earlier[0]})")

    def feedback(self) -> Feedback:
        """All of it, checked: every answer against its question."""
        self._settle_drafts()
        for where, answer in self._answers.values():
            if answer.question_id not in self._questions:
                raise InputError(
                    f"{where}: field 'question_id' names {answer.question_id!r}, a question not given here"
                )
            with located(f"{where}: field 'question_id'"):
                answer.check(self._questions[answer.question_id][1])
        for where, withdrawal in self._withdrawals.values():
            if withdrawal.answer_id not in self._answers:
                raise InputError(f"{where}: field 'answer_id' names {withdrawal.answer_id!r}, an answer not given here")
        words = [f"{count(n, thing)} left out{why and ': '}{why}" for (thing, why), n in self.left_out.items()]
        questions, answers, withdrawals = (
            tuple(item for _, item in kept.values()) for kept in (self._questions, self._answers, self._withdrawals)
        )
        return Feedback(questions, answers, withdrawals, tuple(words))

    def _settle_drafts(self) -> None:
        contents: dict[str, set[tuple[str, ...]]] = defaultdict(set)
        for draft in self._drafts:
            contents[draft.given_id].add(draft.content)
        names = []
        same: dict[tuple[str, str, str], list[tuple[str, int]]] = defaultdict(list)  # one person's, to one question
        for place, draft in enumerate(self._drafts):
            alone = draft.given_id and len(contents[draft.given_id]) == 1
            names.append(draft.given_id if alone else made_id("question", draft.given_id, *draft.content))
            same[names[-1], draft.annotator, draft.make.kind].append((draft.said, place))
        for answers in same.values():
            for again, (_, place) in enumerate(sorted(answers)):
                names[place] = made_id("question", names[place], again) if again else names[place]
        for draft, name in zip(self._drafts, names, strict=True):
            with located(draft.where):
                self._settle(draft, name)
        self._drafts.clear()

    def _settle(self, draft: _Draft, question_id: str) -> None:
        copies: Counter[tuple[str, str]] = Counter()
        ids = []
        for reply in draft.replies:  # the same text twice is two replies
            ids.append(made_id("reply", question_id, *reply, copies[reply]))
            copies[reply] += 1
        replies = [Candidate(key, *reply) for key, reply in zip(ids, draft.replies, strict=True)]
        replies.sort(key=lambda candidate: candidate.id)  # so that the place says nothing about which was chosen
        question = Question(question_id, draft.prompt, tuple(replies))
        decided = draft.decide(ids)
        answer_id = made_id("answer", draft.make.kind, question_id, draft.annotator, decided)
        fields = {"question_id": question_id, "annotator": draft.annotator, "id": answer_id, "created": self.now}
        answer = draft.make(**(fields | decided))
        answer.check(question)
        self.question(draft.where, question)
        self.answer(draft.where, answer)


# --- writing: what every form of pairs needs, and what it loses ---


@dataclass(frozen=True)
class Pair:
    """One strict pair that an answer states, with where its replies came from."""

    question: Question
    answer: Answer
    better: Candidate
    worse: Candidate

    @property
    def grade(self) -> str:
        return getattr(self.answer, "grade", "")


def strict_pairs(feedback: Feedback) -> tuple[list[Pair], list[str]]:
    """Every strict pair of the answers, and in words what pairs cannot say."""
    pairs: list[Pair] = []
    lost: Counter[tuple[str, str]] = Counter()
    asked = feedback.question_of
    for answer in feedback.answers:
        question = asked[answer.question_id]
        replies = {candidate.id: candidate for candidate in question.candidates}
        if not answer.given:
            lost["answer without a decision", "left out: a pair needs one"] += 1
        elif isinstance(answer, Correction):
            corrected = Candidate(made_id("correction", answer.id), answer.text, "a person's correction")
            pairs.append(Pair(question, answer, corrected, replies[answer.candidate]))
            lost["correction", "written as the pair corrected above original"] += 1
        elif isinstance(answer, Ranking | Rating):
            stated = pairs_of_order(order_of(answer))
            pairs += [Pair(question, answer, replies[a], replies[b]) for a, b, tie in stated if not tie]
            lost["tie", "left out: the form has no place for them"] += sum(tie for *_, tie in stated)
            lost["rating", "written as the order that its marks give"] += isinstance(answer, Rating)
            long = isinstance(answer, Ranking) and len(replies) > 2
            lost["ranking of more than two replies", "written as pairs"] += long
        else:
            lost["vote", "left out: a thumb compares with nothing"] += 1
    return pairs, worded(lost)


def worded(lost: Counter[tuple[str, str]]) -> list[str]:
    """Counts in words, zero ones left out."""
    return [f"{count(n, thing)} {why}" for (thing, why), n in lost.items() if n]


def unwritten(answers: Iterable[Answer], questions: dict[str, Question], carried: Iterable[str]) -> list[str]:
    """In words, which properties of these answers and their questions a form does not carry; those it does: `carried`.

    The properties: grade, seconds, displayed, context, created, models, sampling, ids.
    """
    answers = list(answers)
    asked = [questions[key] for key in dict.fromkeys(answer.question_id for answer in answers)]
    replies = [candidate for question in asked for candidate in question.candidates]
    held = {
        "grade": ("grades", sum(bool(getattr(answer, "grade", "")) for answer in answers)),
        "seconds": ("times that answers took", sum(bool(answer.seconds) for answer in answers)),
        "displayed": ("orders of display", sum(bool(answer.displayed) for answer in answers)),
        "context": ("contexts of answers", sum(bool(answer.context) for answer in answers)),
        "created": ("dates of answers", len(answers)),
        "models": ("names of models that wrote replies", sum(bool(reply.model) for reply in replies)),
        "sampling": ("sampling settings of replies", sum(bool(reply.sampling) for reply in replies)),
        "ids": ("ids of answers", len(answers)),
    }
    return [f"not carried: {thing} ({n})" for name, (thing, n) in held.items() if n and name not in carried]


def count(n: int, thing: str) -> str:
    """A number of things in words: "1 tie", "12 ties"."""
    return f"{n} {thing if n == 1 else many(thing)}"


def many(thing: str) -> str:
    """The plural, formed at the first noun: "answer without a decision" → "answers without a decision"."""
    first, space, rest = thing.partition(" ")
    if not space or rest.split()[0] in ("of", "on", "that", "to", "with", "without"):
        return f"{first}s{space}{rest}"
    return f"{first} {many(rest)}"
