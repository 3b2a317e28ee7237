"""How a class is doing: one look at the store, brought up to date at the cost of what is new.

`ClassLog` follows the store's log (events since the last look) and keeps the answers in force in memory, so that a
dashboard may ask every few seconds with thirty students and thousands of labels. `report` turns it into plain records.
No torch.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from .agreement import AgreementReport, agreement_report, contested
from .assignments import Assignments, QueueState, passed
from .database import ASSIGNMENTS
from .quality import random_clickers
from .records import ANSWERS, Answer, Correction, Question, Ranking, Rating, Vote, answer_from_dict, order_of
from .store import Event, FeedbackStore

RECENT = 300.0  # seconds over which speed is measured
ITEMS = 8  # items worth discussing, at most
RESAMPLES = 200  # of the bootstrap intervals: a dashboard is looked at, not cited


@dataclass(frozen=True)
class StudentRow:
    """One person: how much they did, how fast, and how it compares.

    `pace` is labels a minute over the last five minutes, `seconds` the median time of a label, `checks` how many check
    questions they passed and how many they answered, `first` how often the reply shown first won and of how many.
    """

    name: str
    assigned: int = 0
    answered: int = 0
    declined: int = 0
    pace: float = 0.0
    seconds: float | None = None
    last_seen: str = ""
    checks: tuple[int, int] = (0, 0)
    first: tuple[int, int] = (0, 0)
    agreement: float | None = None
    concerns: tuple[str, ...] = ()


@dataclass(frozen=True)
class Opinion:
    """Who gave one verdict on an item: the verdict in words, its people."""

    verdict: str
    people: tuple[str, ...]


@dataclass(frozen=True)
class Item:
    """A question on which people differ. `replies` are numbered from 1 in the question's own order."""

    question_id: str
    prompt: str
    replies: tuple[str, ...]
    opinions: tuple[Opinion, ...]
    agreement: float


@dataclass(frozen=True)
class ClassReport:
    """Everything a teacher's dashboard shows."""

    students: tuple[StudentRow, ...]
    queue: QueueState
    answers: int
    agreement: AgreementReport
    items: tuple[Item, ...]
    models: tuple[dict[str, Any], ...] = field(default=())
    longest: int = 0  # replies of the largest question answered


class ClassLog:
    """The class's log up to the last `refresh`, and what is in force."""

    def __init__(self, store: FeedbackStore) -> None:
        self.store, self.queue = store, Assignments(store)
        self._seq = self._note = 0
        self._given: dict[tuple[str, str, str, str], list[tuple[int, str, Answer]]] = defaultdict(list)
        self._withdrawn: set[str] = set()
        self._times: dict[str, list[float]] = defaultdict(list)  # when each person's answers came, seconds since 1970
        self._models: list[dict[str, Any]] = []
        self._questions: dict[str, Question] = {}
        self._kept: tuple[int, AgreementReport, dict[str, tuple[str, ...]]] | None = None

    def refresh(self) -> bool:
        """Take in what is new; whether there was anything. Raises StoreError when the database is away."""
        events = self.store.events(self._seq)
        notes = self.store.notes("class_model", self._note)
        for event in events:
            self._take(event)
        self._models += notes
        self._note = notes[-1]["number"] if notes else self._note
        return bool(events or notes)

    def _take(self, event: Event) -> None:
        self._seq = max(self._seq, event.seq)
        if event.kind in ANSWERS:
            key = (event.annotator, event.kind, event.question_id, event.target)
            self._given[key].append((event.seq, event.id, answer_from_dict(event.kind, event.payload)))
            self._times[event.annotator].append(datetime.fromisoformat(event.created).timestamp())
        elif event.withdraws:
            self._withdrawn.add(event.withdraws)

    @property
    def seq(self) -> int:
        """The last event taken in."""
        return self._seq

    def answers(self) -> list[Answer]:
        """The answers in force, as `FeedbackStore.answers` has them, oldest first."""
        standing = ([each for each in given if each[1] not in self._withdrawn] for given in self._given.values())
        return [answer for _, _, answer in sorted((given[-1] for given in standing if given), key=lambda each: each[0])]

    def question(self, question_id: str) -> Question:
        """A question that somebody has answered, read once."""
        if question_id not in self._questions:
            missing = {key[2] for key in self._given} - set(self._questions)
            self._questions |= {question.id: question for question in self.store.questions(missing | {question_id})}
        return self._questions[question_id]

    def report(self, now: datetime | None = None) -> ClassReport:
        """The class as it is at the last `refresh`."""
        answers, now = self.answers(), now or datetime.now(UTC)
        agreement, concerns = self._judged(answers)
        people = dict.fromkeys([*self.queue.people(), *(answer.annotator for answer in answers)])
        assigned, checks = self._assigned(), self.queue.checks()
        mine: dict[str, list[Answer]] = defaultdict(list)
        for answer in answers:
            mine[answer.annotator].append(answer)
        rows = [self._row(name, mine[name], assigned.get(name, 0), checks, agreement, now) for name in people]
        rows = [replace(row, concerns=concerns.get(row.name, ())) for row in rows]
        return ClassReport(
            tuple(rows), self.queue.state(), len(answers), agreement, self._items(answers), tuple(self._models),
            max((len(self.question(a.question_id).candidates) for a in answers), default=0),
        )  # fmt: skip

    def _assigned(self) -> dict[str, int]:
        query = sa.select(ASSIGNMENTS.c.annotator, sa.func.count()).where(ASSIGNMENTS.c.state != "expired")
        with self.store.database.begin() as connection:
            return {name: n for name, n in connection.execute(query.group_by(ASSIGNMENTS.c.annotator))}

    def _judged(self, answers: list[Answer]) -> tuple[AgreementReport, dict[str, tuple[str, ...]]]:
        """The coefficients, and what stands out about people; computed anew when a fiftieth of the answers is new."""
        if self._kept is None or self._seq - self._kept[0] > len(answers) / 50:
            asked = [self.question(answer.question_id) for answer in answers]
            looked_at = random_clickers(asked, answers, self.queue.checks()) if answers else []
            concerns = {found.annotator: found.reasons for found in looked_at if found.verdict == "worth a look"}
            self._kept = self._seq, agreement_report(answers, resamples=RESAMPLES), concerns
        return self._kept[1:]

    def _row(
        self, name: str, answers: list[Answer], assigned: int, checks: dict, agreement: AgreementReport, now: datetime
    ) -> StudentRow:
        given = [answer for answer in answers if answer.given]
        times = [t for t in self._times[name] if now.timestamp() - t <= RECENT]
        span = now.timestamp() - times[0] if times else 0.0
        tried = [answer for answer in given if answer.question_id in checks]
        with_others = agreement.with_others.get(name)
        last = self._times[name][-1:] or [None]
        return StudentRow(
            name=name,
            assigned=assigned,
            answered=len({answer.question_id for answer in answers}),
            declined=len(answers) - len(given),
            pace=len(times) / max(span, 30.0) * 60,
            seconds=statistics.median(a.seconds for a in given) if given else None,
            last_seen=datetime.fromtimestamp(last[0], UTC).isoformat(timespec="seconds") if last[0] else "",
            checks=(sum(passed(checks[answer.question_id], answer) for answer in tried), len(tried)),
            first=first_wins(given),
            agreement=with_others.value if with_others else None,
        )

    def _items(self, answers: list[Answer]) -> tuple[Item, ...]:
        by_question: dict[str, list[Answer]] = defaultdict(list)
        for answer in answers:
            by_question[answer.question_id].append(answer)
        found = [item for item in contested(answers) if item.agreement < 1][:ITEMS]
        return tuple(
            discussed(self.question(item.question_id), by_question[item.question_id], item.agreement) for item in found
        )


def first_wins(answers: Iterable[Answer]) -> tuple[int, int]:
    """How often the reply shown first came out alone on top, and of how many rankings."""
    ranked = [a for a in answers if isinstance(a, Ranking) and a.given and a.displayed and len(a.order[0]) == 1]
    return sum(a.order[0][0] == a.displayed[0] for a in ranked), len(ranked)


def discussed(question: Question, answers: Iterable[Answer], agreement: float) -> Item:
    """A question with what people said of it, the commonest verdict first."""
    number = {candidate.id: n for n, candidate in enumerate(question.candidates, start=1)}
    said: dict[str, list[str]] = defaultdict(list)
    for answer in answers:
        said[verdict(answer, number)].append(answer.annotator)
    opinions = [Opinion(words, tuple(sorted(people))) for words, people in said.items()]
    opinions.sort(key=lambda opinion: (-len(opinion.people), opinion.verdict))
    replies = tuple(candidate.text for candidate in question.candidates)
    return Item(question.id, question.prompt, replies, tuple(opinions), agreement)


def verdict(answer: Answer, number: dict[str, int]) -> str:
    """An answer in a few words: "2 > 1", "1 = 2", "2 > 1, slightly better", "can't decide"."""
    if not answer.given:
        return "can’t decide" if answer.status == "undecided" else "skipped"
    if isinstance(answer, Ranking | Rating):
        words = " > ".join(" = ".join(str(n) for n in sorted(number[c] for c in tier)) for tier in order_of(answer))
        grade = getattr(answer, "grade", "")
        return f"{words}, {grade}" if grade else words
    if isinstance(answer, Vote):
        return f"{number[answer.candidate]} {'👍' if answer.up else '👎'}"
    assert isinstance(answer, Correction)
    return f"{number[answer.candidate]} corrected"
