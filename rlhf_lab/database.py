"""The SQL database under the feedback store: opening it, transactions, its schema's version, errors in plain words.

SQLite (a file; the default) and PostgreSQL (a class) behave alike here: a writing transaction has the database to
itself from its first look to its commit, so "look whether it is there, then insert" is one step for every thread and
process, and sequence numbers grow in the order of commits. SQLite does that with `BEGIN IMMEDIATE`, PostgreSQL with an
advisory lock. No torch; Alembic is imported only where a schema is made or brought up to date.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError, DataError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from .errors import InputError


class StoreError(InputError):
    """The database cannot be used as asked. Nothing was half-written: a write happened completely or not at all."""


# --- the schema -------------------------------------------------------------------------------------------------------
# What it is now. How it came to be, step by step, is in migrations/versions; a test holds that both agree.

SCHEMA = "0002"  # the newest migration
TABLES = sa.MetaData()

QUESTIONS = sa.Table(
    "questions",
    TABLES,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("id", sa.Text, nullable=False, unique=True),
    sa.Column("body", sa.JSON, nullable=False),
    sa.Column("created", sa.Text, nullable=False),
    sqlite_autoincrement=True,
)
EVENTS = sa.Table(
    "events",
    TABLES,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("id", sa.Text, nullable=False, unique=True),
    sa.Column("kind", sa.Text, nullable=False),  # an answer's kind, or "withdrawal"
    sa.Column("question_id", sa.Text, sa.ForeignKey("questions.id"), nullable=False),
    sa.Column("annotator", sa.Text, nullable=False),
    sa.Column("withdraws", sa.Text, unique=True),  # the answer that a withdrawal takes back
    sa.Column("payload", sa.JSON, nullable=False),
    sa.Column("created", sa.Text, nullable=False),
    sa.Column("target", sa.Text, nullable=False, server_default=""),  # the candidate that the answer is about, if one
    sa.Index("events_of_annotator", "annotator", "seq"),
    sa.Index("events_of_question", "question_id", "annotator"),
    sa.Index(
        "events_withdrawn",
        "annotator",
        sqlite_where=sa.text("withdraws IS NOT NULL"),
        postgresql_where=sa.text("withdraws IS NOT NULL"),
    ),
    sqlite_autoincrement=True,
)
ANNOTATORS = sa.Table(
    "annotators",
    TABLES,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("key_hash", sa.Text, nullable=False, unique=True),  # SHA-256 of the person's key; the key is not kept
    sa.Column("created", sa.Text, nullable=False),
)
QUEUE = sa.Table(
    "queue",
    TABLES,
    sa.Column("question_id", sa.Text, sa.ForeignKey("questions.id"), primary_key=True),
    sa.Column("number", sa.Integer, nullable=False),  # the order of arrival
    sa.Column("overlap", sa.Integer, nullable=False),  # how many people shall answer it
    sa.Column("taken", sa.Integer, nullable=False),  # how many places are taken: assigned, and not run out
    sa.Column("priority", sa.Float, nullable=False),  # higher comes first
    sa.Column("expected", sa.JSON),  # of a check question: [[better, worse], …], candidate ids
    sa.Column("created", sa.Text, nullable=False),
    sa.Index(  # the next one for somebody: what is full is not in it
        "queue_free",
        sa.desc("priority"),
        sa.desc("taken"),
        "number",
        sqlite_where=sa.text("taken < overlap"),
        postgresql_where=sa.text("taken < overlap"),
    ),
)
ASSIGNMENTS = sa.Table(
    "assignments",
    TABLES,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("question_id", sa.Text, sa.ForeignKey("queue.question_id"), nullable=False),
    sa.Column("annotator", sa.Text, nullable=False),
    sa.Column("assigned", sa.Float, nullable=False),  # seconds since 1970, UTC
    sa.Column("expires", sa.Float, nullable=False),
    sa.Column("state", sa.Text, nullable=False),  # open, done, expired
    sa.UniqueConstraint("question_id", "annotator", name="one_assignment_each"),
    sa.Index("assignments_of_annotator", "annotator", "state"),
    sa.Index("assignments_open", "state", "expires"),
    sqlite_autoincrement=True,
)
NOTES = sa.Table(
    "notes",
    TABLES,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("kind", sa.Text, nullable=False),  # "guidelines", or what a trainer reports
    sa.Column("body", sa.JSON, nullable=False),
    sa.Column("created", sa.Text, nullable=False),
    sa.Index("notes_of_kind", "kind", "number"),
    sqlite_autoincrement=True,
)
_VERSION = sa.table("alembic_version", sa.column("version_num"))
_WRITERS = 0x524C4846  # "RLHF": the advisory lock that PostgreSQL's writers take, one after another

# What the databases' codes mean to a person, and what to do; matched by prefix (SQLITE_IOERR → SQLITE_IOERR_WRITE).
_REASONS = {
    "SQLITE_BUSY": "is locked by another program (waited {timeout:g} s); close what is writing to it, then try again",
    "SQLITE_LOCKED": "is locked by another program; close what is writing to it, then try again",
    "SQLITE_READONLY": "is read-only; make the file and its folder writable, or choose another place",
    "SQLITE_NOTADB": "is not a SQLite database; choose another file name, or move this file away",
    "SQLITE_CORRUPT": "is damaged; restore a copy of the file, or save what can be read with `sqlite3 FILE .recover`",
    "SQLITE_FULL": "cannot grow because the disk is full; free some space, then try again",
    "SQLITE_IOERR": "could not be read or written ({detail}); check the disk and its free space, then try again",
    "3D000": "does not exist on this server; create it first (createdb NAME)",
    "28": "refuses this user or password; check the URL",
    "42501": "may not be used by this user ({detail}); grant it the rights",
    "25006": "is read-only; connect to a server that may be written",
    "53100": "cannot grow because the server's disk is full; free some space there, then try again",
    "53300": "has no connection left; close some, or raise max_connections on the server",
    "55P03": "is locked by another program (waited {timeout:g} s); close what is writing to it, then try again",
    "57P": "has been shut down or is starting up; try again when the server runs",
}
# The same for a connection that PostgreSQL's client could not make: then there is no code, only the server's words.
_REFUSALS = {
    r'database ".*" does not exist': _REASONS["3D000"],
    r'role ".*" does not exist|authentication failed|no password supplied|no pg_hba\.conf entry': _REASONS["28"],
    r"too many (clients|connections)|remaining connection slots": _REASONS["53300"],
    r"(starting up|shutting down|in recovery mode|not yet accepting)": _REASONS["57P"],
    r"No space left on device": _REASONS["53100"],
}


class Database:
    """A database with the current schema, shared by any number of threads and processes.

    `where` is a path or a SQLAlchemy URL; a SQLite file that does not exist is created, a schema of an earlier version
    is brought up to date. `timeout` is how many seconds to wait for another program's lock, or for a server.
    Raises StoreError when it cannot be opened.
    """

    def __init__(self, where: str | os.PathLike[str], timeout: float = 10.0) -> None:
        self.url = _url(where)
        self.timeout = timeout
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        self._closed = False
        self._engine = _engine(self.url, timeout)
        self._writer = self._engine.execution_options(rlhf_lab_write=True)  # read by `_begin_sqlite`
        with self.begin() as connection:
            version = self._version(connection)
        if version != SCHEMA:
            self._migrate(version)

    @property
    def name(self) -> str:
        """How messages call it: its file, or its URL without the password."""
        is_file = self.is_sqlite and self.url.database
        return f"feedback store {self.url.database if is_file else self.url.render_as_string(hide_password=True)}"

    def close(self) -> None:
        """Let go of the database. Closing twice is allowed; any other use afterwards raises StoreError."""
        self._closed = True
        self._engine.dispose()

    @contextmanager
    def begin(self, write: bool = False) -> Iterator[sa.Connection]:
        """One transaction: committed when the block ends, undone when it raises. Writers take turns."""
        if self._closed:
            raise StoreError(f"{self.name} is closed; open it again with FeedbackStore(…)")
        try:
            with (self._writer if write else self._engine).begin() as connection:
                if write and not self.is_sqlite:
                    connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_WRITERS)))
                yield connection
        except (SQLAlchemyError, json.JSONDecodeError) as error:
            raise StoreError(f"{self.name} {self._reason(error)}") from None
        except UnicodeEncodeError as error:
            raise InputError(f"{error.object!r} is not text that a database can keep: {error.reason}") from None

    def _version(self, connection: sa.Connection) -> str | None:
        """The schema's version; "0001" for a store made before versions were written down, None for an empty one."""
        inspector = sa.inspect(connection)
        present = set(inspector.get_table_names())
        ours = present >= {EVENTS.name, QUESTIONS.name}
        version = connection.scalar(sa.select(_VERSION.c.version_num)) if _VERSION.name in present else None
        if version is not None and not ours:
            raise StoreError(f"{self.name} holds another program's tables; choose another file or database")
        if version is not None:
            return version
        for table in (EVENTS, QUESTIONS):
            columns = {c["name"] for c in inspector.get_columns(table.name)} if table.name in present else set()
            if columns and not columns >= set(table.columns.keys()) - {"target"}:
                raise StoreError(
                    f"{self.name} has a table {table.name!r} that is not a feedback store's; choose another file"
                )
        return "0001" if ours else None

    def _migrate(self, version: str | None) -> None:
        """Bring the schema from `version` to `SCHEMA` in one transaction: others see the old one or the new one."""
        from .migrations import known_versions, upgrade

        known = known_versions() | {None}
        try:
            with self.begin(write=version in known) as connection:
                version = self._version(connection)  # somebody else may have been faster
                if version not in known:
                    raise StoreError(
                        f"{self.name} has schema version {version!r}, and this RLHF Lab knows versions up to {SCHEMA}; "
                        "open it with a newer RLHF Lab"
                    )
                if version != SCHEMA:
                    upgrade(connection, version)
        except StoreError as error:
            if version is None or version not in known:
                raise
            raise StoreError(
                f"{error}. An earlier RLHF Lab made it (schema {version}): open it once where it may be written, which "
                f"brings it to schema {SCHEMA} and keeps everything in it"
            ) from None

    def _reason(self, error: Exception) -> str:
        """What went wrong and what would be right, in words."""
        origin = getattr(error, "orig", None)
        detail = (str(origin or error).splitlines() or [type(error).__name__])[0]
        code = getattr(origin, "sqlite_errorname", None) or getattr(origin, "sqlstate", None) or ""
        if code.startswith("SQLITE_CANTOPEN"):
            return _why_not_opened(self.url.database or "")
        for prefix, reason in _REASONS.items():
            if code.startswith(prefix):
                return reason.format(timeout=self.timeout, detail=detail)
        if not self.is_sqlite and not code:
            for words, reason in _REFUSALS.items():
                if re.search(words, detail):
                    return reason.format(timeout=self.timeout, detail=detail)
        if not self.is_sqlite and isinstance(error, OperationalError | PoolTimeout):
            return f"cannot be reached: {detail}; check that the server runs, then try again"
        if isinstance(error, DataError):
            return f"cannot keep this: {detail}"
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
    """A connection pool for `url`; a commit returns once it is on the disk, whatever the server's default says."""
    options: dict[str, Any] = {}
    is_sqlite = url.get_backend_name() == "sqlite"
    if is_sqlite:
        options["connect_args"] = {"timeout": timeout, "check_same_thread": False}
        if url.database in (None, "", ":memory:"):  # such a database lives and dies with its connection: keep one
            options |= {"poolclass": sa.QueuePool, "pool_size": 1, "max_overflow": 0}
    else:
        options |= _postgresql_options(url, timeout)
    try:
        engine = sa.create_engine(url, **options)
    except (SQLAlchemyError, ImportError) as error:
        hint = "install its driver (for PostgreSQL: pip install 'psycopg[binary]') or use sqlite:///feedback.db"
        raise StoreError(f"cannot use the database URL {url}: {error}; {hint}") from None
    if is_sqlite:
        sa.event.listen(engine, "connect", _prepare_sqlite)
        sa.event.listen(engine, "begin", _begin_sqlite)
    return engine


def _postgresql_options(url: sa.URL, timeout: float) -> dict[str, Any]:
    """Durable commits, UTF-8, and one connection kept for each program: a class has many programs.

    A writer must see, once it has its turn, what the writers before it committed: that is READ COMMITTED, whatever
    the server's default says. A connection that a restarted server has dropped is replaced before it is used
    (`pool_pre_ping`), and one that went silent is given up after half a minute.
    """
    own = url.query.get("options", "")
    settings = f"{own} -c synchronous_commit=on -c lock_timeout={max(1, int(timeout * 1000))}"
    connect = {"connect_timeout": max(2, round(timeout)), "client_encoding": "utf8", "options": settings.strip()}
    connect |= {"keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 4, "tcp_user_timeout": 30_000}
    pool = {"pool_size": 1, "max_overflow": 4, "pool_pre_ping": True}
    return pool | {"connect_args": connect, "isolation_level": "READ COMMITTED"}


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
