"""FeedbackStore: an append-only log of what people decided, in a SQL database.

`questions` holds what was asked; `events` holds what happened, in order: an *answer* (a ranking, rating, vote or
correction) or a *withdrawal* (the person took an answer back). Nothing is ever updated or deleted, so the log is also
the audit trail. What counts now follows from it: **of one person's answers of one kind to one question (and reply,
where the answer is about one), the latest that was not withdrawn is in force.** Answering twice therefore replaces the
first answer, and withdrawing the second brings the first back.

A method that writes returns only after the database has committed. On SQLite that means write-ahead logging with
`synchronous=FULL`, on PostgreSQL `synchronous_commit=on`: an answer that was acknowledged survives `kill -9` and a
power cut. Sending an answer again is always safe: its id says that it is the same.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa

from .database import EVENTS, NOTES, QUESTIONS, SCHEMA, Database, StoreError
from .errors import InputError
from .records import (
    ANSWERS,
    Answer,
    Comparison,
    Demonstration,
    Question,
    Ranking,
    answer_from_dict,
    comparisons_of,
    demonstration_of,
    new_id,
    utc_now,
)

__all__ = ["Event", "FeedbackStore", "StoreError"]
_MANY = 500  # rows or names in one statement
_KEEPS = re.compile("[^\\x00\\ud800-\\udfff]*")


@dataclass(frozen=True)
class Event:
    """One line of the log: an answer, `kind` "ranking", "rating", "vote" or "correction", or a "withdrawal".

    `payload` is the answer as JSON data, or `{kind of the answer: its id}` for a withdrawal. `target` names the
    candidate that an answer is about, "" when it is about the whole question.
    """

    seq: int
    id: str
    kind: str
    question_id: str
    annotator: str
    payload: dict[str, Any]
    created: str  # when the store received it, UTC
    target: str = ""
    withdraws: str | None = None  # id of the answer that a withdrawal takes back


class FeedbackStore:
    """The append-only feedback log of a project, shared by any number of threads and processes.

    `where` is a path ("runs/feedback.db") or a SQLAlchemy URL ("sqlite:///…", "postgresql+psycopg://…"). A file that
    does not exist is created; its folder must exist. `timeout` is how many seconds to wait for another program's
    lock. Raises StoreError (an InputError) when the database cannot be opened.
    """

    def __init__(self, where: str | os.PathLike[str], *, timeout: float = 10.0) -> None:
        self.database = Database(where, timeout)
        self.url, self.name, self.timeout = self.database.url, self.database.name, timeout

    schema_version = SCHEMA

    # --- questions ---

    def add_question(self, question: Question) -> None:
        """Keep `question`. Adding it again does nothing; another question under its id raises InputError."""
        self.add_questions([question])

    def add_questions(self, questions: Iterable[Question]) -> None:
        """Keep all of them, or none when one cannot be kept: one transaction."""
        questions = list(questions)
        with self._begin(write=True) as connection:
            self._add_questions(connection, questions)

    def _add_questions(self, connection: sa.Connection, questions: list[Question]) -> None:
        known = self._questions(connection, {_storable(question.id, "id of a question") for question in questions})
        fresh: list[dict[str, Any]] = []
        for question in questions:
            body = _plain(question.to_dict(), f"question {question.id!r}")
            if question.id not in known:
                known[question.id] = Question.from_dict(body)
                fresh.append({"id": question.id, "body": body, "created": utc_now()})
            elif known[question.id] != Question.from_dict(body):
                raise InputError(
                    f"{self.name} already has another question under the id {question.id!r}; give this one its own id"
                )
        if fresh:
            connection.execute(sa.insert(QUESTIONS), fresh)

    def question(self, question_id: str) -> Question:
        """The question with this id; InputError when there is none."""
        with self._begin() as connection:
            return self._question(connection, question_id)

    def questions(self, ids: Collection[str] | None = None) -> list[Question]:
        """Every question in the order in which they were added, or only those with the given ids."""
        with self._begin() as connection:
            if ids is not None:
                return list(self._questions(connection, set(ids)).values())
            bodies = connection.scalars(sa.select(QUESTIONS.c.body).order_by(QUESTIONS.c.number)).all()
        return [Question.from_dict(body) for body in bodies]

    def _question(self, connection: sa.Connection, question_id: str) -> Question:
        found = self._questions(connection, {question_id})
        if not found:
            raise InputError(f"{self.name} has no question {question_id!r}; add_question it before its answers")
        return found[question_id]

    @staticmethod
    def _questions(connection: sa.Connection, ids: set[str]) -> dict[str, Question]:
        rows: list[sa.Row] = []
        for part in _parts(sorted(ids)):
            rows += connection.execute(
                sa.select(QUESTIONS.c.number, QUESTIONS.c.body).where(QUESTIONS.c.id.in_(part))
            ).all()
        bodies = [Question.from_dict(row.body) for row in sorted(rows, key=lambda row: row.number)]
        return {question.id: question for question in bodies}

    # --- writing the log ---

    def append(self, answer: Answer) -> int:
        """Commit one answer and return its sequence number (1, 2, …; later answers have larger ones).

        Sending the same answer again (same id; its `created` may differ) changes nothing and returns the same
        number, so a caller that lost the reply may simply repeat. InputError when the answer does not fit its
        question, or when its id belongs to a different answer.
        """
        return self.append_all([answer])[0]

    def append_all(
        self, answers: Iterable[Answer], questions: Iterable[Question] = (), withdrawn: Collection[str] = ()
    ) -> list[int]:
        """Commit many answers, with the questions that they need, or none of them: one transaction (an import).

        `withdrawn` holds ids of those of the answers that were taken back; they are withdrawn in the same transaction.
        """
        answers, questions = list(answers), list(questions)
        with self._begin(write=True) as connection:
            self._add_questions(connection, questions)
            asked = self._questions(connection, {answer.question_id for answer in answers})
            known = self._known(connection, {_storable(answer.id, f"id of a {answer.kind}") for answer in answers})
            fresh: list[dict[str, Any]] = []
            for answer in answers:
                row = self._row(answer, asked)
                if answer.id not in known:
                    known[answer.id] = row
                    fresh.append(row)
                elif not _same(known[answer.id], row):
                    raise InputError(f"{self.name} already has a different answer under the id {answer.id!r}")
            added = self._insert(connection, fresh)
            self._withdraw_standing(connection, set(withdrawn))
        return [added.get(answer.id) or known[answer.id]["seq"] for answer in answers]

    def _row(self, answer: Answer, asked: dict[str, Question]) -> dict[str, Any]:
        """The log's line for `answer`; InputError when it does not fit its question or cannot be kept."""
        if answer.question_id not in asked:
            raise InputError(f"{self.name} has no question {answer.question_id!r}; add_question it before its answers")
        answer.check(asked[answer.question_id])
        _storable(answer.annotator, "name of an annotator")
        if answer.target:
            _storable(answer.target, "id of a reply")
        payload = _plain(answer.to_dict(), f"{answer.kind} {answer.id!r}")
        return _event(answer.id, answer.kind, answer, payload)

    def withdraw(self, answer_id: str, annotator: str) -> int:
        """Take back one of `annotator`'s own answers; returns the withdrawal's sequence number.

        Both events stay in the log. Withdrawing twice is the same as once. InputError when there is no such
        answer, or when somebody else gave it.
        """
        with self._begin(write=True) as connection:
            given = self._own(connection, answer_id, annotator)
            known = connection.scalar(sa.select(EVENTS.c.seq).where(EVENTS.c.withdraws == answer_id))
            return known or self._withdraw(connection, [given])[0]

    def _withdraw_standing(self, connection: sa.Connection, ids: set[str]) -> None:
        """Withdraw those of these answers that stand."""
        for part in _parts(sorted(ids)):
            query = sa.select(EVENTS).where(EVENTS.c.id.in_(part), EVENTS.c.kind.in_(ANSWERS), _standing())
            self._withdraw(connection, connection.execute(query.order_by(EVENTS.c.seq)).all())

    def withdraw_from(self, answer_id: str, annotator: str) -> list[Answer]:
        """Take back this answer and all that `annotator` gave after it, in one transaction; returns them, oldest first.

        What they had answered before it counts again as it did then, but for what they have withdrawn by itself.
        InputError as for `withdraw`.
        """
        with self._begin(write=True) as connection:
            first = self._own(connection, answer_id, annotator)
            query = sa.select(EVENTS).where(
                EVENTS.c.annotator == annotator, EVENTS.c.kind.in_(ANSWERS), EVENTS.c.seq >= first.seq, _standing()
            )
            given = connection.execute(query.order_by(EVENTS.c.seq)).all()
            self._withdraw(connection, given)
        return [answer_from_dict(event.kind, event.payload) for event in given]

    def _own(self, connection: sa.Connection, answer_id: str, annotator: str) -> sa.Row:
        is_answer = (EVENTS.c.id == answer_id) & EVENTS.c.kind.in_(ANSWERS)
        given = connection.execute(sa.select(EVENTS).where(is_answer)).one_or_none()
        if given is None:
            raise InputError(f"{self.name} has no answer {answer_id!r} to withdraw")
        if given.annotator != annotator:
            raise InputError(
                f"{given.kind} {answer_id!r} is {given.annotator!r}'s; {annotator!r} can withdraw only their own"
            )
        return given

    def _withdraw(self, connection: sa.Connection, given: Sequence[sa.Row]) -> list[int]:
        rows = [_event(new_id(), "withdrawal", answer, {answer.kind: answer.id}, answer.id) for answer in given]
        return list(self._insert(connection, rows).values())

    @staticmethod
    def _insert(connection: sa.Connection, rows: list[dict[str, Any]]) -> dict[str, int]:
        """Add these lines to the log in their order; their sequence numbers by id."""
        if not rows:
            return {}
        connection.execute(sa.insert(EVENTS), rows)
        numbers: dict[str, int] = {}
        for part in _parts([row["id"] for row in rows]):
            query = sa.select(EVENTS.c.id, EVENTS.c.seq).where(EVENTS.c.id.in_(part)).order_by(EVENTS.c.seq)
            numbers |= {row.id: row.seq for row in connection.execute(query)}
        return numbers

    @staticmethod
    def _known(connection: sa.Connection, ids: set[str]) -> dict[str, Mapping[str, Any]]:
        """The log's lines with these ids, by id."""
        known: dict[str, Mapping[str, Any]] = {}
        for part in _parts(sorted(ids)):
            rows = connection.execute(sa.select(EVENTS).where(EVENTS.c.id.in_(part))).mappings()
            known |= {row["id"]: row for row in rows}
        return known

    # --- reading it ---

    def answers(
        self,
        annotator: str | None = None,
        since_seq: int = 0,
        until_seq: int | None = None,
        kinds: Collection[str] | None = None,
    ) -> list[Answer]:
        """The answers in force, oldest first: withdrawn and replaced ones left out.

        `annotator` keeps one person's; `since_seq` those appended after that sequence number; `kinds` those of these
        kinds. With `until_seq`, what was in force when the log ended there.
        """
        query = _in_force([EVENTS.c.kind, EVENTS.c.payload], annotator, since_seq, until_seq, kinds)
        with self._begin() as connection:
            rows = connection.execute(query).all()
        return [answer_from_dict(row.kind, row.payload) for row in rows]

    def rankings(self, annotator: str | None = None, since_seq: int = 0, until_seq: int | None = None) -> list[Ranking]:
        """The rankings among `answers`."""
        return self.answers(annotator, since_seq, until_seq, ("ranking",))  # type: ignore[return-value]

    def latest(self, annotator: str) -> Answer | None:
        """The last answer of this person that is in force."""
        # Of all standing answers the last one is in force: nothing after it could replace it.
        standing = (EVENTS.c.annotator == annotator, EVENTS.c.kind.in_(ANSWERS), _standing())
        query = sa.select(EVENTS.c.kind, EVENTS.c.payload).where(*standing).order_by(EVENTS.c.seq.desc()).limit(1)
        with self._begin() as connection:
            row = connection.execute(query).first()
        return answer_from_dict(row.kind, row.payload) if row else None

    def comparisons(self, annotator: str | None = None, since_seq: int = 0) -> list[Comparison]:
        """All pairs that the answers in force state, ties included; votes, "can't decide" and "skip" give none."""
        return [
            pair for question, answer in self._given(annotator, since_seq) for pair in comparisons_of(question, answer)
        ]

    def demonstrations(self, annotator: str | None = None, since_seq: int = 0) -> list[Demonstration]:
        """What the corrections in force show the policy to write."""
        shown = (demonstration_of(question, answer) for question, answer in self._given(annotator, since_seq))
        return [demonstration for demonstration in shown if demonstration]

    def _given(self, annotator: str | None, since_seq: int) -> list[tuple[Question, Answer]]:
        given = [answer for answer in self.answers(annotator, since_seq) if answer.given]
        asked = {question.id: question for question in self.questions({answer.question_id for answer in given})}
        return [(asked[answer.question_id], answer) for answer in given]

    def answered(self, annotator: str, kind: str | None = None) -> set[str]:
        """Ids of the questions that `annotator` has dealt with, "can't decide" and "skip" included.

        `kind` counts answers of one kind only.
        """
        query = _in_force([EVENTS.c.question_id], annotator, kinds=None if kind is None else (kind,))
        with self._begin() as connection:
            return set(connection.scalars(query).all())

    def count(self, annotator: str | None = None, kinds: Collection[str] | None = None) -> int:
        """How many answers are in force, undecided and skipped ones included."""
        query = _in_force([EVENTS.c.seq], annotator, kinds=kinds).order_by(None)
        with self._begin() as connection:
            return connection.scalar(sa.select(sa.func.count()).select_from(query.subquery()))

    def events(self, since_seq: int = 0) -> list[Event]:
        """The whole log in order, withdrawn and replaced answers included."""
        query = sa.select(EVENTS).where(EVENTS.c.seq > since_seq).order_by(EVENTS.c.seq)
        with self._begin() as connection:
            return [Event(**row) for row in connection.execute(query).mappings()]

    @property
    def last_seq(self) -> int:
        """The sequence number of the latest event; 0 for an empty log."""
        with self._begin() as connection:
            return connection.scalar(sa.select(sa.func.max(EVENTS.c.seq))) or 0

    def __len__(self) -> int:
        """How many answers are in force."""
        return self.count()

    def __bool__(self) -> bool:
        """Always true: an empty store is still a store (`store or default` must not drop it)."""
        return True

    # --- notes: guidelines, and what a trainer reports ---

    def add_note(self, kind: str, body: dict[str, Any]) -> int:
        """Keep a note of some kind (plain JSON data) and return its number; earlier ones of its kind stay."""
        with self._begin(write=True) as connection:
            row = {"kind": kind, "body": body, "created": utc_now()}
            return connection.execute(sa.insert(NOTES).values(row)).inserted_primary_key[0]

    def notes(self, kind: str, since: int = 0) -> list[dict[str, Any]]:
        """The notes of that kind in order, each its body with "number" and "created"; those after number `since`."""
        query = sa.select(NOTES).where(NOTES.c.kind == kind, NOTES.c.number > since).order_by(NOTES.c.number)
        with self._begin() as connection:
            return [row.body | {"number": row.number, "created": row.created} for row in connection.execute(query)]

    def note(self, kind: str) -> dict[str, Any] | None:
        """The latest note of that kind, as `notes` gives it."""
        query = sa.select(NOTES).where(NOTES.c.kind == kind).order_by(NOTES.c.number.desc()).limit(1)
        with self._begin() as connection:
            row = connection.execute(query).first()
        return row.body | {"number": row.number, "created": row.created} if row else None

    # --- life ---

    def close(self) -> None:
        """Let go of the database. Closing twice is allowed; any other use afterwards raises StoreError."""
        self.database.close()

    def __enter__(self) -> FeedbackStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{self.name}>"

    def _begin(self, write: bool = False) -> AbstractContextManager[sa.Connection]:
        return self.database.begin(write)


def _storable(text: str, what: str) -> str:
    """`text`, when every database can keep it as it is; NUL and halves of a character it cannot."""
    if not isinstance(text, str) or not 0 < len(text) <= 200 or not _KEEPS.fullmatch(text):
        raise InputError(f"{what} is {text!r}; it must be text of 1 to 200 characters without NUL or lone surrogates")
    return text


def _plain(data: dict[str, Any], what: str) -> dict[str, Any]:
    """`data` as it will be read back: JSON has lists for tuples, text for numbers as keys, and no infinity."""
    try:
        return json.loads(json.dumps(data, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise InputError(f"{what} is not plain JSON data: {error}") from None


def _event(event_id: str, kind: str, about: Any, payload: dict, withdraws: str | None = None) -> dict[str, Any]:
    """A line for the log on the question, annotator and target of the answer `about`."""
    names = {"question_id": about.question_id, "annotator": about.annotator, "target": about.target}
    own = {"id": event_id, "kind": kind, "payload": payload, "withdraws": withdraws, "created": utc_now()}
    return names | own


def _parts(items: list[str]) -> Iterable[list[str]]:
    return (items[at : at + _MANY] for at in range(0, len(items), _MANY))


def _same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two lines hold one answer: `created` is stamped anew when an answer is sent again."""
    if one["kind"] != other["kind"]:
        return False
    first, second = (answer_from_dict(row["kind"], row["payload"]) for row in (one, other))
    return replace(first, created=second.created) == second


def _standing(until_seq: int | None = None) -> sa.ColumnElement[bool]:
    """Whether an answer was not withdrawn (before the log's place `until_seq`)."""
    withdrawal = EVENTS.alias("withdrawal")
    taken_back = sa.select(withdrawal.c.seq).where(withdrawal.c.withdraws == EVENTS.c.id)
    if until_seq is not None:
        taken_back = taken_back.where(withdrawal.c.seq <= until_seq)
    return ~taken_back.exists()


def _in_force(
    columns: list[sa.Column],
    annotator: str | None = None,
    since_seq: int = 0,
    until_seq: int | None = None,
    kinds: Collection[str] | None = None,
) -> sa.Select:
    """`columns` of the answers in force: the latest standing one of each person, kind, question and target."""
    unknown = set(kinds or ()) - set(ANSWERS)
    if isinstance(kinds, str) or unknown:
        raise InputError(f"kinds {kinds!r}: a collection of {', '.join(ANSWERS)} is wanted")
    conditions = [EVENTS.c.kind.in_(ANSWERS if kinds is None else kinds), _standing(until_seq)]
    if until_seq is not None:
        conditions.append(EVENTS.c.seq <= until_seq)
    if annotator is not None:
        conditions.append(EVENTS.c.annotator == annotator)
    same = (EVENTS.c.annotator, EVENTS.c.kind, EVENTS.c.question_id, EVENTS.c.target)
    latest = sa.select(sa.func.max(EVENTS.c.seq)).where(*conditions).group_by(*same)
    return sa.select(*columns).where(EVENTS.c.seq.in_(latest), EVENTS.c.seq > since_seq).order_by(EVENTS.c.seq)
