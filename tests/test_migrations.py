"""The store's schema: from the first released version to today's, in one step that happens wholly or not at all."""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
import subprocess
import sys

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from rlhf_lab.database import SCHEMA, TABLES
from rlhf_lab.records import Candidate, Question, Ranking, Vote
from rlhf_lab.store import FeedbackStore, StoreError

# What the first release made, as its database had it.
FIRST = """
CREATE TABLE questions (
    number {number}, id TEXT NOT NULL, body JSON NOT NULL, created TEXT NOT NULL, UNIQUE (id));
CREATE TABLE events (
    seq {number}, id TEXT NOT NULL, kind TEXT NOT NULL, question_id TEXT NOT NULL, annotator TEXT NOT NULL,
    withdraws TEXT, payload JSON NOT NULL, created TEXT NOT NULL,
    UNIQUE (id), FOREIGN KEY(question_id) REFERENCES questions (id), UNIQUE (withdraws))
"""
NUMBER = {"sqlite": "INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT", "postgresql": "SERIAL NOT NULL PRIMARY KEY"}
ASKED = [
    Question(f"q{n}", f"prompt {n} \x00", (Candidate("a", "one", "sft"), Candidate("b", "two", "ppo", {"top_k": 5})))
    for n in range(30)
]
GIVEN = [Ranking(asked.id, (("a",), ("b",)), "ada", ("b", "a"), 1.5, id=f"r{n}") for n, asked in enumerate(ASKED)]


def engine_of(url: str) -> sa.Engine:
    return sa.create_engine(url)


@pytest.fixture
def first(database) -> str:
    """The URL of a store that the first release made: 30 questions, 30 rankings, the last one withdrawn."""
    engine = engine_of(database)
    with engine.begin() as connection:
        for statement in FIRST.format(number=NUMBER[engine.dialect.name]).split(";"):
            connection.exec_driver_sql(statement)
        for question in ASKED:
            question_row = {"id": question.id, "body": json.dumps(question.to_dict()), "created": "2026-11-20"}
            connection.execute(
                sa.text("INSERT INTO questions (id, body, created) VALUES (:id, :body, :created)"), question_row
            )
        rows = [("ranking", given.id, None, given.question_id, given.to_dict()) for given in GIVEN]
        rows.append(("withdrawal", "w", GIVEN[-1].id, GIVEN[-1].question_id, {"ranking": GIVEN[-1].id}))
        for kind, id_, withdraws, question_id, payload in rows:
            connection.execute(
                sa.text(
                    "INSERT INTO events (id, kind, question_id, annotator, withdraws, payload, created) "
                    "VALUES (:id, :kind, :question, 'ada', :withdraws, :payload, '2026-11-20')"
                ),
                {
                    "id": id_,
                    "kind": kind,
                    "question": question_id,
                    "withdraws": withdraws,
                    "payload": json.dumps(payload),
                },
            )
    engine.dispose()
    return database


def schema(url: str) -> dict[str, list[str]]:
    """The tables of a database, each with its columns and indexes."""
    engine = engine_of(url)
    inspector = sa.inspect(engine)
    found = {
        table: sorted(c["name"] for c in inspector.get_columns(table))
        + sorted(i["name"] for i in inspector.get_indexes(table))
        for table in inspector.get_table_names()
    }
    engine.dispose()
    return found


def holds_everything(store: FeedbackStore) -> bool:
    events = [event.id for event in store.events()]
    return (
        store.questions() == ASKED
        and store.rankings() == GIVEN[:-1]
        and events == [given.id for given in GIVEN] + ["w"]
        and store.rankings(until_seq=30) == GIVEN
    )


def test_a_store_of_the_first_release_opens_and_keeps_everything(first):
    for _ in range(2):
        with FeedbackStore(first) as store:
            assert holds_everything(store)
    with FeedbackStore(first) as store:
        assert store.append(GIVEN[3]) == 4  # sent again, years later
        assert store.append(Vote("q0", "a", True, "bob")) == 32 and store.count(kinds=["vote"]) == 1
        assert store.withdraw("r0", "ada") == 33


def indexes(connection: sa.Connection) -> set[str]:
    """The indexes' definitions, as the database has them."""
    if connection.dialect.name == "sqlite":
        query = "SELECT sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL"
    else:
        query = "SELECT indexdef FROM pg_indexes WHERE schemaname = 'public' AND tablename <> 'alembic_version'"
    return set(connection.scalars(sa.text(query)))


def test_the_migrated_schema_is_the_one_that_the_code_describes(first):
    def no_index(_thing, _name, kind, *_) -> bool:
        return kind != "index"  # Alembic cannot compare those with DESC; their definitions are compared below

    FeedbackStore(first).close()
    engine = engine_of(first)
    with engine.begin() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "include_object": no_index})
        assert compare_metadata(context, TABLES) == []
        assert connection.scalars(sa.text("SELECT version_num FROM alembic_version")).all() == [SCHEMA]
        migrated = indexes(connection)
        TABLES.drop_all(connection)
        TABLES.create_all(connection)
        described = indexes(connection)
    engine.dispose()
    assert migrated == described and len(described) >= 6


# Opens the store and kills itself before its n-th statement; "done" when there are fewer.
KILLED_AT = """
import os, signal, sys
import sqlalchemy as sa
import rlhf_lab.migrations
from rlhf_lab.store import FeedbackStore

@sa.event.listens_for(sa.Engine, "before_cursor_execute")
def count(connection, cursor, statement, parameters, context, many):
    global left
    writes = statement.split()[0] in ("CREATE", "ALTER", "INSERT", "UPDATE", "DELETE")
    left -= writes
    if writes and left < 0:
        os.kill(os.getpid(), signal.SIGKILL)

url = sys.argv[1]
for line in sys.stdin:
    left = int(line)
    child = os.fork()
    if not child:
        FeedbackStore(url).close()
        os._exit(0)
    print("killed" if os.waitpid(child, 0)[1] else "done", flush=True)
"""


def test_kill_9_in_the_middle_of_a_migration_leaves_the_old_schema_or_the_new(first):
    old, moments = schema(first), 0
    with subprocess.Popen(
        [sys.executable, "-c", KILLED_AT, first], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as killer:
        while True:
            killer.stdin.write(f"{moments}\n")
            killer.stdin.flush()
            if killer.stdout.readline() == "done\n":
                break
            moments += 1
            assert schema(first) == old
        killer.stdin.close()
    assert moments >= 12  # statements at each of which it died
    assert set(schema(first)) == set(TABLES.tables) | {"alembic_version"}
    with FeedbackStore(first) as store:
        assert holds_everything(store)


# Many programs open one store at the same moment: they are ready before the starting shot.
AT_ONCE = """
import os, sys, time
import rlhf_lab.migrations
from rlhf_lab.records import Candidate, Question
from rlhf_lab.store import FeedbackStore
url, programs = sys.argv[1], int(sys.argv[2])
shot, children = time.monotonic() + 0.3, []
for number in range(programs):
    child = os.fork()
    if not child:
        try:
            time.sleep(max(0, shot - time.monotonic()))
            with FeedbackStore(url, timeout=60) as store:
                store.add_question(Question(f"new{number}", "p", (Candidate("a", "x"), Candidate("b", "y"))))
            os._exit(0)
        except Exception as error:
            print(error, flush=True)
            os._exit(1)
    children.append(child)
print([os.waitpid(child, 0)[1] for child in children])
"""


def open_at_once(url: str, programs: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", AT_ONCE, url, str(programs)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == str([0] * programs), done.stdout + done.stderr


def test_a_new_store_that_thirty_programs_open_at_once_is_made_once(database):
    open_at_once(database, 30)
    with FeedbackStore(database) as store:
        assert {question.id for question in store.questions()} == {f"new{n}" for n in range(30)}


def test_an_old_store_that_several_programs_open_at_once_is_migrated_once(first):
    open_at_once(first, 6)
    with FeedbackStore(first) as store:
        assert len(store.questions()) == 36 and store.rankings() == GIVEN[:-1]


def test_two_threads_may_make_two_stores_at_once(tmp_path):
    code = (
        "import sys, threading\nfrom rlhf_lab.store import FeedbackStore\n"
        "threads = [threading.Thread(target=lambda n=n: FeedbackStore(f'{sys.argv[1]}/{n}.db').close())"
        " for n in range(12)]\n[t.start() for t in threads]\n[t.join() for t in threads]"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert done.stderr == ""
    schemas = [schema(f"sqlite:///{path}") for path in sorted(tmp_path.glob("*.db"))]
    assert len(schemas) == 12 and all(each == schemas[0] and "queue" in each for each in schemas)


def test_a_store_of_a_newer_release_is_left_alone(database):
    FeedbackStore(database).close()
    engine = engine_of(database)
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    engine.dispose()
    with pytest.raises(
        StoreError, match=f"has schema version '9999', .* up to {SCHEMA}; open it with a newer RLHF Lab"
    ):
        FeedbackStore(database)


def test_another_programs_database_is_left_alone(database):
    engine = engine_of(database)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)")
        connection.exec_driver_sql("INSERT INTO alembic_version VALUES ('ae1027a6acf')")
    with pytest.raises(StoreError, match="holds another program's tables; choose another file or database"):
        FeedbackStore(database)
    assert sa.inspect(engine).get_table_names() == ["alembic_version"]
    engine.dispose()


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_an_old_store_that_may_not_be_written_says_what_to_do(first):
    file = first.removeprefix("sqlite:///")
    with pytest.raises(
        StoreError, match=r"is read-only; make .* \(schema 0001\): open it once where it may be written"
    ):
        FeedbackStore(f"sqlite:///file:{file}?mode=ro&uri=true")
    with sqlite3.connect(file) as raw:
        assert raw.execute("SELECT count(*) FROM events").fetchone() == (31,)


OPENED = """
import sys
from rlhf_lab.store import FeedbackStore
FeedbackStore(sys.argv[1]).close()
print(*sorted({name.split(".")[0] for name in sys.modules} & {"alembic", "mako", "torch", "transformers"}))
"""


def test_opening_a_store_of_today_imports_neither_alembic_nor_torch(database):
    imported = [
        subprocess.run([sys.executable, "-c", OPENED, database], capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    ]
    assert imported == ["alembic mako\n", "\n"]


def test_every_migration_has_its_place_in_the_chain():
    from rlhf_lab.migrations import known_versions

    assert sorted(known_versions()) == [f"{n:04}" for n in range(1, int(SCHEMA) + 1)]
    assert re.fullmatch(r"\d{4}", SCHEMA)


def test_a_copy_of_the_file_is_a_whole_store(tmp_path, file="feedback.db"):
    with FeedbackStore(tmp_path / file) as store:
        store.append_all(GIVEN, ASKED)
    shutil.copy(tmp_path / file, tmp_path / "copy.db")  # closed: nothing is left in the write-ahead log
    with FeedbackStore(tmp_path / "copy.db") as copy:
        assert copy.rankings() == GIVEN
