"""FeedbackStore: an append-only log of what people decided, in a SQL database.

Two tables. `questions` holds what was asked; `events` holds what happened, in order: a *ranking* (a person's answer)
or a *withdrawal* (the person took an answer back). Nothing is ever updated or deleted, so the log is also the audit
trail. What counts now follows from it: **of one person's answers to one question, the latest that was not withdrawn
is in force.** Answering twice therefore replaces the first answer, and withdrawing the second brings the first back.

A method that writes returns only after the database has committed. On SQLite that means write-ahead logging with
`synchronous=FULL`: an answer that was acknowledged survives `kill -9` and a power cut.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError

from .errors import InputError
from .records import Comparison, Question, Ranking, comparisons_of, new_id, utc_now


class StoreError(InputError):
    """The database cannot be used as asked. Nothing was half-written: a write happened completely or not at all."""


@dataclass(frozen=True)
class Event:
    """One line of the log. `payload` is the ranking as JSON data, or `{"ranking": id}` for a withdrawal."""

    seq: int
    id: str
    kind: Literal["ranking", "withdrawal"]
    question_id: str
    annotator: str
    payload: dict[str, Any]
    created: str  # when the store received it, UTC


_TABLES = sa.MetaData()
_QUESTIONS = sa.Table(
    "questions",
    _TABLES,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("id", sa.Text, nullable=False, unique=True),
    sa.Column("body", sa.JSON, nullable=False),
    sa.Column("created", sa.Text, nullable=False),
    sqlite_autoincrement=True,
)
_EVENTS = sa.Table(
    "events",
    _TABLES,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("id", sa.Text, nullable=False, unique=True),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("question_id", sa.Text, sa.ForeignKey("questions.id"), nullable=False),
    sa.Column("annotator", sa.Text, nullable=False),
    sa.Column("withdraws", sa.Text, unique=True),  # the ranking that a withdrawal takes back
    sa.Column("payload", sa.JSON, nullable=False),
    sa.Column("created", sa.Text, nullable=False),
    sqlite_autoincrement=True,
)

# What SQLite's result codes mean to a person, and what to do; matched by prefix (SQLITE_IOERR_WRITE → SQLITE_IOERR).
_SQLITE_REASONS = {
    "SQLITE_BUSY": "is locked by another program (waited {timeout:g} s); close what is writing to it, then try again",
    "SQLITE_LOCKED": "is locked by another program; close what is writing to it, then try again",
    "SQLITE_READONLY": "is read-only; make the file and its folder writable, or choose another place",
    "SQLITE_NOTADB": "is not a SQLite database; choose another file name, or move this file away",
    "SQLITE_CORRUPT": "is damaged; restore a copy of the file, or save what can be read with `sqlite3 FILE .recover`",
    "SQLITE_FULL": "cannot grow because the disk is full; free some space, then try again",
    "SQLITE_IOERR": "could not be read or written ({detail}); check the disk and its free space, then try again",
}


class FeedbackStore:
    """The append-only feedback log of a project, shared by any number of threads and processes.

    `where` is a path ("runs/feedback.db") or a SQLAlchemy URL ("sqlite:///…", "postgresql+psycopg://…"). A file that
    does not exist is created; its folder must exist. `timeout` is how many seconds to wait for another program's
    lock. Raises StoreError (an InputError) when the database cannot be opened.
    """

    def __init__(self, where: str | os.PathLike[str], *, timeout: float = 10.0) -> None:
        self.url = _url(where)
        self.timeout = timeout
        self._closed = False
        self._engine = _engine(self.url, timeout)
        # The "begin" listener reads this option: a writer takes SQLite's write lock before it looks, so that
        # "look whether it is there, then insert" is one step for every thread and process.
        self._writer = self._engine.execution_options(rlhf_lab_write=True)
        self._create_tables()

    def _create_tables(self) -> None:
        with self._begin() as connection:
            present = set(sa.inspect(connection).get_table_names())
        if not present >= set(_TABLES.tables):
            with self._begin(write=True) as connection:
                _TABLES.create_all(connection)
        with self._begin() as connection:
            for table in _TABLES.sorted_tables:
                columns = {column["name"] for column in sa.inspect(connection).get_columns(table.name)}
                if not columns >= set(table.columns.keys()):
                    raise StoreError(
                        f"{self.name} has a table {table.name!r} that is not a feedback store's; choose another file"
                    )

    # --- questions ---

    def add_question(self, question: Question) -> None:
        """Keep `question`. Adding it again does nothing; another question under its id raises InputError."""
        with self._begin(write=True) as connection:
            known = connection.scalar(sa.select(_QUESTIONS.c.body).where(_QUESTIONS.c.id == question.id))
            if known is None:
                row = {"id": question.id, "body": question.to_dict(), "created": utc_now()}
                connection.execute(sa.insert(_QUESTIONS).values(row))
            elif Question.from_dict(known) != question:
                raise InputError(
                    f"{self.name} already has another question under the id {question.id!r}; give this one its own id"
                )

    def question(self, question_id: str) -> Question:
        """The question with this id; InputError when there is none."""
        with self._begin() as connection:
            return self._question(connection, question_id)

    def questions(self) -> list[Question]:
        """Every question, in the order in which they were added."""
        with self._begin() as connection:
            bodies = connection.scalars(sa.select(_QUESTIONS.c.body).order_by(_QUESTIONS.c.number)).all()
        return [Question.from_dict(body) for body in bodies]

    def _question(self, connection: sa.Connection, question_id: str) -> Question:
        body = connection.scalar(sa.select(_QUESTIONS.c.body).where(_QUESTIONS.c.id == question_id))
        if body is None:
            raise InputError(f"{self.name} has no question {question_id!r}; add_question it before its answers")
        return Question.from_dict(body)

    # --- writing the log ---

    def append(self, ranking: Ranking) -> int:
        """Commit one answer and return its sequence number (1, 2, …; later answers have larger ones).

        Sending the same ranking again (same id; its `created` may differ) changes nothing and returns the same
        number, so a caller that lost the reply may simply repeat. InputError when the ranking does not fit its
        question, or when its id belongs to a different ranking.
        """
        with self._begin(write=True) as connection:
            ranking.check(self._question(connection, ranking.question_id))
            known = connection.execute(sa.select(_EVENTS).where(_EVENTS.c.id == ranking.id)).one_or_none()
            if known is None:
                return self._insert(connection, ranking.id, "ranking", ranking, ranking.to_dict())
            if known.kind != "ranking" or not _same(Ranking.from_dict(known.payload), ranking):
                raise InputError(f"{self.name} already has a different answer under the id {ranking.id!r}")
            return known.seq

    def withdraw(self, ranking_id: str, annotator: str) -> int:
        """Take back one of `annotator`'s own answers; returns the withdrawal's sequence number.

        Both events stay in the log. Withdrawing twice is the same as once. InputError when there is no such
        ranking, or when somebody else gave it.
        """
        with self._begin(write=True) as connection:
            is_ranking = (_EVENTS.c.id == ranking_id) & (_EVENTS.c.kind == "ranking")
            given = connection.execute(sa.select(_EVENTS).where(is_ranking)).one_or_none()
            if given is None:
                raise InputError(f"{self.name} has no ranking {ranking_id!r} to withdraw")
            if given.annotator != annotator:
                raise InputError(
                    f"ranking {ranking_id!r} is {given.annotator!r}'s; {annotator!r} can withdraw only their own"
                )
            known = connection.scalar(sa.select(_EVENTS.c.seq).where(_EVENTS.c.withdraws == ranking_id))
            return known or self._insert(
                connection, new_id(), "withdrawal", given, {"ranking": ranking_id}, withdraws=ranking_id
            )

    @staticmethod
    def _insert(
        connection: sa.Connection, event_id: str, kind: str, about: Any, payload: dict, withdraws: str | None = None
    ) -> int:
        row = {"id": event_id, "kind": kind, "question_id": about.question_id, "annotator": about.annotator}
        row |= {"withdraws": withdraws, "payload": payload, "created": utc_now()}
        return connection.execute(sa.insert(_EVENTS).values(row)).inserted_primary_key[0]

    # --- reading it ---

    def rankings(self, annotator: str | None = None, since_seq: int = 0) -> list[Ranking]:
        """The answers in force, oldest first: withdrawn and replaced ones left out.

        `annotator` keeps one person's; `since_seq` keeps those appended after that sequence number.
        """
        with self._begin() as connection:
            payloads = connection.scalars(_in_force(_EVENTS.c.payload, annotator, since_seq)).all()
        return [Ranking.from_dict(payload) for payload in payloads]

    def comparisons(self, annotator: str | None = None, since_seq: int = 0) -> list[Comparison]:
        """All pairs of the answers in force, ties included; "can't decide" and "skip" give none."""
        ranked = [r for r in self.rankings(annotator, since_seq) if r.status == "ranked"]
        questions = {question.id: question for question in self.questions()} if ranked else {}
        return [pair for r in ranked for pair in comparisons_of(questions[r.question_id], r)]

    def answered(self, annotator: str) -> set[str]:
        """Ids of the questions that `annotator` has dealt with, "can't decide" and "skip" included."""
        with self._begin() as connection:
            return set(connection.scalars(_in_force(_EVENTS.c.question_id, annotator)).all())

    def events(self, since_seq: int = 0) -> list[Event]:
        """The whole log in order, withdrawn and replaced answers included."""
        columns = [column for column in _EVENTS.c if column.name != "withdraws"]
        query = sa.select(*columns).where(_EVENTS.c.seq > since_seq).order_by(_EVENTS.c.seq)
        with self._begin() as connection:
            return [Event(**row) for row in connection.execute(query).mappings()]

    @property
    def last_seq(self) -> int:
        """The sequence number of the latest event; 0 for an empty log."""
        with self._begin() as connection:
            return connection.scalar(sa.select(sa.func.max(_EVENTS.c.seq))) or 0

    def __len__(self) -> int:
        """How many answers are in force."""
        with self._begin() as connection:
            return connection.scalar(sa.select(sa.func.count()).select_from(_in_force(_EVENTS.c.seq).subquery()))

    def __bool__(self) -> bool:
        """Always true: an empty store is still a store (`store or default` must not drop it)."""
        return True

    # --- life ---

    @property
    def name(self) -> str:
        """How messages call this store: its file, or its URL without the password."""
        is_file = self.url.get_backend_name() == "sqlite" and self.url.database
        return f"feedback store {self.url.database if is_file else self.url.render_as_string(hide_password=True)}"

    def close(self) -> None:
        """Let go of the database. Closing twice is allowed; any other use afterwards raises StoreError."""
        self._closed = True
        self._engine.dispose()

    def __enter__(self) -> FeedbackStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{self.name}>"

    @contextmanager
    def _begin(self, write: bool = False) -> Iterator[sa.Connection]:
        """One transaction: committed when the block ends, undone when it raises."""
        if self._closed:
            raise StoreError(f"{self.name} is closed; open it again with FeedbackStore(…)")
        try:
            with (self._writer if write else self._engine).begin() as connection:
                yield connection
        except (SQLAlchemyError, json.JSONDecodeError) as error:
            raise StoreError(f"{self.name} {self._reason(error)}") from None

    def _reason(self, error: Exception) -> str:
        """What went wrong and what would be right, in words."""
        detail = str(getattr(error, "orig", None) or error).splitlines()[0]
        code = getattr(error.orig, "sqlite_errorname", "") if isinstance(error, DBAPIError) else ""
        if code.startswith("SQLITE_CANTOPEN"):
            return _why_not_opened(self.url.database or "")
        for prefix, reason in _SQLITE_REASONS.items():
            if code.startswith(prefix):
                return reason.format(timeout=self.timeout, detail=detail)
        return f"cannot be used: {detail}"


def _url(where: str | os.PathLike[str]) -> sa.URL:
    """The SQLAlchemy URL for a path or for a URL given as text."""
    if isinstance(where, str) and "://" in where:
        try:
            return sa.make_url(where)
        except ArgumentError:  # the text is not repeated: it may hold a password
            scheme = where.partition("://")[0]
            raise StoreError(f"not a database URL: {scheme}://…; an example is sqlite:///feedback.db") from None
    return sa.URL.create("sqlite", database=os.fspath(Path(where).expanduser()))


def _engine(url: sa.URL, timeout: float) -> sa.Engine:
    """A connection pool for `url`; SQLite connections wait for locks and sync every commit to the disk."""
    options: dict[str, Any] = {}
    if is_sqlite := url.get_backend_name() == "sqlite":
        options["connect_args"] = {"timeout": timeout, "check_same_thread": False}
        if url.database in (None, "", ":memory:"):  # such a database lives and dies with its connection: keep one
            options |= {"poolclass": sa.QueuePool, "pool_size": 1, "max_overflow": 0}
    try:
        engine = sa.create_engine(url, **options)
    except (SQLAlchemyError, ImportError) as error:
        hint = "install its driver (for PostgreSQL: pip install 'psycopg[binary]') or use sqlite:///feedback.db"
        raise StoreError(f"cannot use the database URL {url}: {error}; {hint}") from None
    if is_sqlite:
        sa.event.listen(engine, "connect", _prepare_sqlite)
        sa.event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # transactions begin where `_begin_sqlite` says, not where sqlite3 guesses
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA foreign_keys=ON")
    try:
        connection.execute("PRAGMA journal_mode=WAL")
    except connection.OperationalError as error:
        # A read-only file cannot change its mode, and one that is being opened elsewhere is just changing it.
        # Without WAL a commit is as durable, only slower; a lasting lock is reported by the statement that follows.
        if not error.sqlite_errorname.startswith(("SQLITE_READONLY", "SQLITE_BUSY")):
            raise


def _begin_sqlite(connection: sa.Connection) -> None:
    write = connection.get_execution_options().get("rlhf_lab_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


def _why_not_opened(database: str) -> str:
    path = Path(database)
    if path.is_dir():
        return "cannot be opened: that is a folder; name a file in it, such as feedback.db"
    if not database.startswith("file:") and not path.parent.is_dir():
        return f"cannot be opened: the folder {path.parent} does not exist; create it first"
    return "cannot be opened: the file does not exist or may not be read and written; check its name and permissions"


def _same(one: Ranking, other: Ranking) -> bool:
    """Whether both are one answer: `created` is stamped anew when an answer is sent again."""
    return replace(one, created=other.created) == other


def _in_force(column: sa.Column, annotator: str | None = None, since_seq: int = 0) -> sa.Select:
    """`column` of the answers in force: the latest of each person on each question that was not withdrawn."""
    withdrawn = sa.select(_EVENTS.c.withdraws).where(_EVENTS.c.withdraws.is_not(None))
    latest = (
        sa.select(sa.func.max(_EVENTS.c.seq))
        .where(_EVENTS.c.kind == "ranking", _EVENTS.c.id.not_in(withdrawn))
        .group_by(_EVENTS.c.question_id, _EVENTS.c.annotator)
    )
    query = sa.select(column).where(_EVENTS.c.seq.in_(latest), _EVENTS.c.seq > since_seq).order_by(_EVENTS.c.seq)
    return query if annotator is None else query.where(_EVENTS.c.annotator == annotator)
