"""Who answers what: the queue of a class, on the feedback store's database.

A question in the queue is to be answered by `overlap` different people, so that their agreement can be measured.
`next_question` hands one out: never the same to one person twice, never to more people at a time than its overlap,
whatever the number of programs that ask at once (one writing transaction does it all). A person who asks again before
answering gets the same question again, so a reloaded page loses nothing. A place that nobody used for `lease` seconds
is free for others; if its person answers late, the label counts all the same.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from .database import ANNOTATORS, ASSIGNMENTS, EVENTS, QUEUE
from .errors import InputError
from .records import Question, Ranking, order_of, pairs_of_order, utc_now
from .store import FeedbackStore

Expected = Sequence[tuple[str, str]]  # (better, worse) candidate ids: what a check question's answer must hold


@dataclass(frozen=True)
class QueueState:
    """How far the queue is: places in all, places answered, places handed out and not answered yet."""

    questions: int
    places: int
    answered: int
    open: int


@dataclass(frozen=True)
class Progress:
    """How far one person is: questions answered, questions free for them now, and those that others hold just now.

    A held question may become free again when its person takes too long.
    """

    answered: int
    free: int
    held: int


@dataclass(frozen=True)
class Queued:
    """A question in the queue: its place in the order of arrival, how many people it is for and how many have it."""

    question_id: str
    number: int
    overlap: int
    taken: int
    priority: float
    is_check: bool


class Assignments:
    """The people and the queue of one class, kept in `store`'s database."""

    def __init__(self, store: FeedbackStore, *, lease: float = 1800.0) -> None:
        if not lease > 0:
            raise InputError(f"lease of {lease!r} seconds: it must be greater than 0")
        self.store, self.lease = store, lease

    # --- people ---

    def enrol(self, name: str) -> str:
        """Add a person and return their key, 22 characters that open their queue and nobody else's.

        The key is shown now and never again: the database keeps its hash. Enrolling a name again gives it a new key,
        and the old one ends.
        """
        name = name.strip()
        if not 0 < len(name) <= 100 or "\x00" in name:
            raise InputError(f"name {name!r} of an annotator: it must have 1 to 100 characters")
        key = secrets.token_urlsafe(16)
        row = {"key_hash": _hash(key), "created": utc_now()}
        with self.store.database.begin(write=True) as connection:
            mine = sa.update(ANNOTATORS).where(ANNOTATORS.c.name == name)
            changed = connection.execute(mine.values(key_hash=row["key_hash"]))
            if not changed.rowcount:
                connection.execute(sa.insert(ANNOTATORS).values(row | {"name": name}))
        return key

    def who(self, key: str) -> str:
        """The name of the person with this key; InputError when there is none."""
        with self.store.database.begin() as connection:
            name = connection.scalar(sa.select(ANNOTATORS.c.name).where(ANNOTATORS.c.key_hash == _hash(key)))
        if name is None:
            raise InputError("this link's key is not known; ask your teacher for your link again")
        return name

    def people(self) -> list[str]:
        """Everybody enrolled, in the order of enrolment."""
        with self.store.database.begin() as connection:
            return list(connection.scalars(sa.select(ANNOTATORS.c.name).order_by(ANNOTATORS.c.created)))

    def admit_teacher(self) -> str:
        """A new key for the teacher's page; the one before it ends. Only its hash is kept."""
        key = secrets.token_urlsafe(16)
        self.store.add_note("teacher", {"key_hash": _hash(key)})
        return key

    def is_teacher(self, key: str) -> bool:
        """Whether `key` opens the teacher's page."""
        note = self.store.note("teacher")
        return note is not None and hmac.compare_digest(str(note.get("key_hash")), _hash(key))

    # --- the queue ---

    def enqueue(
        self,
        questions: Iterable[Question],
        overlap: int = 1,
        priority: float = 0.0,
        expected: dict[str, Expected] | None = None,
    ) -> int:
        """Put questions into the queue, each for `overlap` people; returns how many were new there.

        `expected` makes a question a check: {question id: [(better, worse), …]} says what an attentive person answers.
        """
        questions, expected = list(questions), expected or {}
        if overlap < 1:
            raise InputError(f"overlap {overlap}: each question needs at least one person")
        for question in questions:
            _check_expected(question, expected.get(question.id, ()))
        self.store.add_questions(questions)
        with self.store.database.begin(write=True) as connection:
            known = set(connection.scalars(sa.select(QUEUE.c.question_id)))
            number = connection.scalar(sa.select(sa.func.max(QUEUE.c.number))) or 0
            fresh = list({q.id: q for q in questions if q.id not in known}.values())
            rows = [
                {
                    "question_id": question.id,
                    "number": number + place,
                    "overlap": overlap,
                    "taken": 0,
                    "priority": priority,
                    "expected": [list(pair) for pair in expected.get(question.id, ())] or None,
                    "created": utc_now(),
                }
                for place, question in enumerate(fresh, start=1)
            ]
            if rows:
                connection.execute(sa.insert(QUEUE), rows)
        return len(rows)

    def prioritise(self, priorities: dict[str, float]) -> None:
        """Set the priority of questions in the queue, all or none; higher comes first (active learning decides so)."""
        rows = [{"of": question_id, "to": priority} for question_id, priority in priorities.items()]
        if not rows:
            return
        change = sa.update(QUEUE).where(QUEUE.c.question_id == sa.bindparam("of"))
        with self.store.database.begin(write=True) as connection:
            unknown = set(priorities) - set(connection.scalars(sa.select(QUEUE.c.question_id)))
            if unknown:
                raise InputError(f"question {min(unknown)!r} is not in the queue")
            connection.execute(change.values(priority=sa.bindparam("to")), rows)

    def queued(self) -> list[Queued]:
        """Every question of the queue, in the order of arrival."""
        query = sa.select(QUEUE).order_by(QUEUE.c.number)
        with self.store.database.begin() as connection:
            rows = connection.execute(query).all()
        return [Queued(r.question_id, r.number, r.overlap, r.taken, r.priority, bool(r.expected)) for r in rows]

    def next_question(self, annotator: str) -> Question | None:
        """The question that `annotator` is to answer now; None when the queue holds none for them.

        The one that they have and did not answer yet, or else a new one: of the highest priority, those that others
        have already taken first (so that overlaps fill up), then in order of arrival.
        """
        with self.store.database.begin() as connection:  # the common second look needs no writer's turn
            held = self._held(connection, annotator)
        if held is None:
            with self.store.database.begin(write=True) as connection:
                held = self._held(connection, annotator) or self._assign(connection, annotator)
        return None if held is None else self.store.question(held)

    def _held(self, connection: sa.Connection, annotator: str) -> str | None:
        # A few numbers first, then whether those are answered: in one statement PostgreSQL reads every event.
        held = list(connection.scalars(_HELD, {"annotator": annotator, "now": time.time()}))
        return connection.scalar(_FIRST_OPEN, {"numbers": held}) if held else None

    def _assign(self, connection: sa.Connection, annotator: str) -> str | None:
        self._settle(connection)
        mine = sa.select(ASSIGNMENTS.c.number).where(
            ASSIGNMENTS.c.question_id == QUEUE.c.question_id, ASSIGNMENTS.c.annotator == annotator
        )
        told = sa.select(EVENTS.c.seq).where(
            EVENTS.c.question_id == QUEUE.c.question_id, EVENTS.c.annotator == annotator
        )
        free = sa.select(QUEUE.c.question_id).where(QUEUE.c.taken < QUEUE.c.overlap, ~mine.exists(), ~told.exists())
        order = (QUEUE.c.priority.desc(), QUEUE.c.taken.desc(), QUEUE.c.number)
        chosen = connection.scalar(free.order_by(*order).limit(1))
        if chosen is None:
            chosen = self._again(connection, annotator)
        else:
            now = time.time()
            row = {"question_id": chosen, "annotator": annotator, "state": "open"}
            connection.execute(sa.insert(ASSIGNMENTS).values(row | {"assigned": now, "expires": now + self.lease}))
        if chosen is not None:
            taken = sa.update(QUEUE).where(QUEUE.c.question_id == chosen).values(taken=QUEUE.c.taken + 1)
            connection.execute(taken)
        return chosen

    def _again(self, connection: sa.Connection, annotator: str) -> str | None:
        """A question whose place this person let run out, if it is still free."""
        query = (
            sa.select(ASSIGNMENTS.c.number, ASSIGNMENTS.c.question_id)
            .join(QUEUE, QUEUE.c.question_id == ASSIGNMENTS.c.question_id)
            .where(ASSIGNMENTS.c.annotator == annotator, ASSIGNMENTS.c.state == "expired", ~_ANSWERED)
            .where(QUEUE.c.taken < QUEUE.c.overlap)
        )
        row = connection.execute(query.order_by(QUEUE.c.priority.desc(), QUEUE.c.number).limit(1)).first()
        if row is None:
            return None
        now = time.time()
        renewed = {"state": "open", "assigned": now, "expires": now + self.lease}
        connection.execute(sa.update(ASSIGNMENTS).where(ASSIGNMENTS.c.number == row.number).values(renewed))
        return row.question_id

    def _settle(self, connection: sa.Connection) -> None:
        """Mark what was answered as done, and free the places that ran out."""
        is_open = ASSIGNMENTS.c.state == "open"
        connection.execute(sa.update(ASSIGNMENTS).where(is_open, _ANSWERED).values(state="done"))
        over = is_open & (ASSIGNMENTS.c.expires <= time.time())
        late = connection.execute(sa.select(ASSIGNMENTS.c.number, ASSIGNMENTS.c.question_id).where(over)).all()
        for number, question_id in late:
            connection.execute(sa.update(ASSIGNMENTS).where(ASSIGNMENTS.c.number == number).values(state="expired"))
            mine = QUEUE.c.question_id == question_id
            connection.execute(sa.update(QUEUE).where(mine).values(taken=QUEUE.c.taken - 1))

    # --- looking at it ---

    def state(self) -> QueueState:
        """How far the class is."""
        with self.store.database.begin() as connection:
            questions, places = connection.execute(
                sa.select(sa.func.count(), sa.func.coalesce(sa.func.sum(QUEUE.c.overlap), 0)).select_from(QUEUE)
            ).one()
            rows = sa.select(sa.func.count()).select_from(ASSIGNMENTS)
            answered = connection.scalar(rows.where(_ANSWERED))
            running = (ASSIGNMENTS.c.state == "open") & (ASSIGNMENTS.c.expires > time.time())
            open_ = connection.scalar(rows.where(running, ~_ANSWERED))
        return QueueState(questions, int(places), answered, open_)

    def progress(self, annotator: str) -> Progress:
        """How far `annotator` is, and whether more can come to them."""
        theirs = (ASSIGNMENTS.c.question_id == QUEUE.c.question_id) & (ASSIGNMENTS.c.annotator == annotator)
        mine = sa.select(ASSIGNMENTS.c.number).where(theirs, ASSIGNMENTS.c.state != "expired").exists()
        told = sa.select(EVENTS.c.seq).where(
            EVENTS.c.question_id == QUEUE.c.question_id, EVENTS.c.annotator == annotator
        )
        rest = sa.select(QUEUE.c.question_id).where(~mine, ~told.exists())
        full = QUEUE.c.taken >= QUEUE.c.overlap
        waiting = (
            sa.select(ASSIGNMENTS.c.number)
            .where(ASSIGNMENTS.c.question_id == QUEUE.c.question_id, ASSIGNMENTS.c.state == "open", ~_ANSWERED)
            .exists()
        )
        with self.store.database.begin() as connection:
            free = connection.scalar(sa.select(sa.func.count()).select_from(rest.where(~full).subquery()))
            held = connection.scalar(sa.select(sa.func.count()).select_from(rest.where(full, waiting).subquery()))
        return Progress(len(self.store.answered(annotator)), free, held)

    def assigned(self, annotator: str | None = None) -> list[tuple[str, str]]:
        """(question id, annotator) of every place handed out and not run out, in order."""
        query = sa.select(ASSIGNMENTS.c.question_id, ASSIGNMENTS.c.annotator).where(ASSIGNMENTS.c.state != "expired")
        if annotator is not None:
            query = query.where(ASSIGNMENTS.c.annotator == annotator)
        with self.store.database.begin() as connection:
            return [tuple(row) for row in connection.execute(query.order_by(ASSIGNMENTS.c.number))]

    def checks(self) -> dict[str, list[tuple[str, str]]]:
        """{question id: [(better, worse), …]} of the queue's check questions."""
        query = sa.select(QUEUE.c.question_id, QUEUE.c.expected).order_by(QUEUE.c.number)
        with self.store.database.begin() as connection:
            rows = connection.execute(query).all()
        return {row.question_id: [tuple(pair) for pair in row.expected] for row in rows if row.expected}


def passed(expected: Expected, ranking: Ranking) -> bool:
    """Whether a ranking puts every `better` of a check question above its `worse`."""
    above = {(better, worse) for better, worse, tie in pairs_of_order(order_of(ranking)) if not tie}
    return ranking.given and set(expected) <= above


def _check_expected(question: Question, expected: Expected) -> None:
    for pair in expected:
        if len(pair) != 2 or pair[0] == pair[1] or not set(pair) <= set(question.texts):
            raise InputError(
                f"expected {pair} of check question {question.id!r}: two different replies of it are wanted"
            )


def _answered() -> sa.ColumnElement[bool]:
    """Whether an assignment's person has answered its question; a withdrawal opens it again."""
    withdrawal = EVENTS.alias("withdrawal")
    taken_back = sa.select(withdrawal.c.seq).where(withdrawal.c.withdraws == EVENTS.c.id)
    theirs = (EVENTS.c.question_id == ASSIGNMENTS.c.question_id) & (EVENTS.c.annotator == ASSIGNMENTS.c.annotator)
    given = sa.select(EVENTS.c.seq).where(theirs, EVENTS.c.kind != "withdrawal", ~taken_back.exists())
    return given.exists()


def _places_held() -> sa.CompoundSelect:
    """Numbers of the places that a person may have open: running ones, and those whose answer they took back."""
    theirs = sa.select(ASSIGNMENTS.c.number).where(ASSIGNMENTS.c.annotator == sa.bindparam("annotator"))
    withdrawn = sa.select(EVENTS.c.question_id).where(
        EVENTS.c.annotator == sa.bindparam("annotator"), EVENTS.c.withdraws.is_not(None)
    )
    running = theirs.where(ASSIGNMENTS.c.state == "open", ASSIGNMENTS.c.expires > sa.bindparam("now"))
    return sa.union_all(running, theirs.where(ASSIGNMENTS.c.state == "done", ASSIGNMENTS.c.question_id.in_(withdrawn)))


def _first_open() -> sa.Select:
    """The question of the earliest of some places whose person has not answered it."""
    of = ASSIGNMENTS.c.number.in_(sa.bindparam("numbers", expanding=True))
    return sa.select(ASSIGNMENTS.c.question_id).where(of, ~_ANSWERED).order_by(ASSIGNMENTS.c.number).limit(1)


# Made once: putting a statement together takes as long as the database takes to run it.
_ANSWERED = _answered()
_HELD, _FIRST_OPEN = _places_held(), _first_open()


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()
