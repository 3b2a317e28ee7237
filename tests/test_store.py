"""FeedbackStore: what is in force, idempotence, durability's other half (clear errors, nothing half-written)."""

import os
import resource
import sqlite3
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa

from rlhf_lab.errors import InputError
from rlhf_lab.records import Candidate, Question, Ranking
from rlhf_lab.store import FeedbackStore, StoreError


def question(number: int = 1, k: int = 3) -> Question:
    candidates = tuple(Candidate(f"q{number}-{i}", f"reply {i}", model=f"model-{i}") for i in range(k))
    return Question(f"q{number}", f"prompt {number}", candidates)


def answer(asked: Question, annotator: str = "me", status: str = "ranked", reverse: bool = False) -> Ranking:
    ids = [candidate.id for candidate in asked.candidates]
    order = tuple((i,) for i in (reversed(ids) if reverse else ids)) if status == "ranked" else ()
    return Ranking(asked.id, order, annotator, displayed=tuple(ids), seconds=1.5, status=status)


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "feedback.db"


@pytest.fixture
def store(path):
    with FeedbackStore(path) as opened:
        opened.add_question(question())
        yield opened


# --- what goes in comes out ---


def test_everything_about_an_answer_survives_closing_and_opening_again(path):
    asked = Question("q1", "Grüße \x00 \u202e", (Candidate("a", "<b>", "sft"), Candidate("b", "", "ppo-3")))
    given = Ranking("q1", (("a", "b"),), "Zoë", displayed=("b", "a"), seconds=2.25)
    with FeedbackStore(path) as store:
        store.add_question(asked)
        store.append(given)
    with FeedbackStore(str(path)) as again:
        assert again.questions() == [asked]
        assert again.rankings() == [given]


def test_a_url_and_a_path_name_the_same_store(path, store):
    store.append(answer(question()))
    with FeedbackStore(f"sqlite:///{path}") as by_url:
        assert by_url.rankings() == store.rankings()


def test_a_database_in_memory_is_one_store_for_every_thread():
    with FeedbackStore("sqlite://") as store:
        store.add_question(question())
        thread = threading.Thread(target=store.append, args=[answer(question())])
        thread.start()
        thread.join()
        assert len(store) == 1


def test_commits_are_synchronous_and_use_the_write_ahead_log(store):
    with store.database._engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2  # FULL


def test_an_empty_store_is_true_so_that_a_default_does_not_replace_it(store):
    assert len(store) == 0
    assert store


# --- sending again ---


def test_an_answer_sent_again_is_kept_once_under_its_first_number(store):
    given = answer(question())
    seq = store.append(given)
    assert store.append(given) == seq
    assert store.append(replace(given, created="2030-01-01T00:00:00+00:00")) == seq
    assert len(store.events()) == 1


def test_another_answer_under_a_known_id_is_refused(store):
    given = answer(question())
    store.append(given)
    with pytest.raises(InputError, match="different answer"):
        store.append(replace(answer(question(), reverse=True), id=given.id))
    assert store.rankings() == [given]


def test_a_question_is_added_once_and_never_replaced(store):
    store.add_question(question())
    assert store.questions() == [question()]
    with pytest.raises(InputError, match="another question"):
        store.add_question(replace(question(), prompt="something else"))


@pytest.mark.parametrize(
    "wrong",
    [
        answer(question(2)),
        replace(answer(question()), order=(("q1-0",), ("q1-1",))),
        replace(answer(question()), displayed=("q1-0",)),
    ],
    ids=["unknown question", "a reply is missing", "displayed something else"],
)
def test_an_answer_that_does_not_fit_its_question_is_not_written(store, wrong):
    with pytest.raises(InputError):
        store.append(wrong)
    assert store.events() == []


# --- what is in force ---


def test_the_latest_answer_to_a_question_replaces_the_same_persons_earlier_one(store):
    first, second, other = answer(question()), answer(question(), reverse=True), answer(question(), "you")
    for given in (first, other, second):
        store.append(given)
    assert store.rankings() == [other, second]
    assert store.rankings("me") == [second]
    assert [event.id for event in store.events()] == [first.id, other.id, second.id]


def test_withdrawing_an_answer_takes_it_out_and_brings_the_earlier_one_back(store):
    first, second = answer(question()), answer(question(), reverse=True)
    store.append(first)
    store.append(second)
    seq = store.withdraw(second.id, "me")
    assert store.rankings() == [first]
    assert store.withdraw(second.id, "me") == seq
    store.withdraw(first.id, "me")
    assert store.rankings() == [] and len(store) == 0 and store.answered("me") == set()
    assert [event.kind for event in store.events()] == ["ranking", "ranking", "withdrawal", "withdrawal"]


def test_only_the_person_who_gave_an_answer_may_withdraw_it(store):
    given = answer(question())
    store.append(given)
    with pytest.raises(InputError, match="'you' can withdraw only their own"):
        store.withdraw(given.id, "you")
    with pytest.raises(InputError, match="no answer 'nonsense'"):
        store.withdraw("nonsense", "me")
    assert store.rankings() == [given]


def test_comparisons_come_from_ranked_answers_only(store):
    store.add_question(question(2))
    store.add_question(question(3))
    store.append(answer(question()))
    store.append(answer(question(2), status="skipped"))
    store.append(answer(question(3), status="undecided"))
    pairs = [(pair.chosen, pair.rejected) for pair in store.comparisons()]
    assert pairs == [("reply 0", "reply 1"), ("reply 0", "reply 2"), ("reply 1", "reply 2")]
    assert store.answered("me") == {"q1", "q2", "q3"}


def test_since_seq_gives_only_what_came_later(store):
    store.add_question(question(2))
    seq = store.append(answer(question()))
    assert store.last_seq == seq
    later = answer(question(2))
    store.append(later)
    assert store.rankings(since_seq=seq) == [later]
    assert [event.id for event in store.events(since_seq=seq)] == [later.id]


def test_threads_and_a_second_connection_lose_nothing(path, store):
    asked = [question(n) for n in range(2, 42)]
    with FeedbackStore(path) as second:

        def work(mine: FeedbackStore, questions: list[Question]) -> None:
            for each in questions:
                mine.add_question(each)
                mine.append(answer(each))

        threads = [threading.Thread(target=work, args=(s, asked[i::4])) for i, s in enumerate([store, second] * 2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert {ranking.question_id for ranking in store.rankings()} == {each.id for each in asked}
    assert [event.seq for event in store.events()] == list(range(1, 41))


# --- bad places ---


def test_a_locked_database_says_so_and_works_again_afterwards(path, store):
    given = answer(question())
    other_program = sqlite3.connect(path, isolation_level=None)
    other_program.execute("BEGIN IMMEDIATE")
    with FeedbackStore(path, timeout=0.05) as impatient:
        with pytest.raises(StoreError, match=r"feedback\.db is locked by another program .* try again"):
            impatient.append(given)
        other_program.execute("ROLLBACK")
        assert impatient.append(given) == 1
    other_program.close()


@pytest.mark.parametrize("option", ["mode=ro", "immutable=1"])
def test_a_read_only_database_can_be_read_and_refuses_answers_clearly(path, option):
    given = answer(question())
    with FeedbackStore(path) as store:
        store.add_question(question())
        store.append(given)
    with FeedbackStore(f"sqlite:///file:{path}?{option}&uri=true") as read_only:
        with pytest.raises(StoreError, match="is read-only; make the file and its folder writable"):
            read_only.append(answer(question(), reverse=True))
        assert read_only.rankings() == [given]


def test_a_full_disk_refuses_the_answer_whole_and_keeps_the_earlier_ones(path, store):
    kept = answer(question())
    store.append(kept)
    pages = sqlite3.connect(path).execute("PRAGMA page_count").fetchone()[0]
    with FeedbackStore(path) as full:
        sa.event.listen(full.database._engine, "connect", lambda raw, _: raw.execute(f"PRAGMA max_page_count={pages}"))
        full.database._engine.dispose()  # later connections have no page to spare
        large = replace(question(2), prompt="x" * 100_000)
        with pytest.raises(StoreError, match="disk is full; free some space, then try again"):
            full.add_question(large)
        assert full.rankings() == [kept] and full.questions() == [question()]
    store.add_question(large)
    assert store.questions() == [question(), large]


FILE_TOO_LARGE = """
import resource, signal, sys
from rlhf_lab.records import Candidate, Question
from rlhf_lab.store import FeedbackStore, StoreError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
store = FeedbackStore(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
for n in range(100):
    try:
        store.add_question(Question(f"q{n}", "x" * 10_000, (Candidate("a", ""), Candidate("b", ""))))
    except StoreError as error:
        print(n, error)
        break
"""


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="needs a limit on file size")
def test_when_the_operating_system_refuses_to_write_more_the_file_stays_good(path):
    done = subprocess.run([sys.executable, "-c", FILE_TOO_LARGE, path], capture_output=True, text=True, check=True)
    number, message = done.stdout.split(" ", 1)
    assert "feedback.db could not be read or written" in message and len(message.splitlines()) == 1
    with FeedbackStore(path) as store:
        assert [q.id for q in store.questions()] == [f"q{n}" for n in range(int(number))]


@pytest.mark.parametrize(
    "make, says",
    [
        (lambda path: path.parent / "no" / "such" / "f.db", r"folder .*no/such does not exist; create it first"),
        (lambda path: path.parent, "that is a folder; name a file in it"),
        (lambda path: path.write_bytes(b"some text, no database" * 99) and path, "is not a SQLite database"),
        (lambda path: f"sqlite:///file:{path}?mode=ro&uri=true", "file does not exist"),
        (lambda path: "postgresql+zork://me:secret@host/db", "install its driver"),
        (lambda path: "://me:secret@host", "an example is sqlite:///feedback.db"),
    ],
    ids=["missing folder", "a folder", "not a database", "missing file, read-only", "unknown driver", "not a URL"],
)
def test_a_place_that_cannot_be_a_store_is_one_clear_error(path, make, says):
    with pytest.raises(StoreError, match=says) as caught:
        FeedbackStore(make(path))
    assert len(str(caught.value).splitlines()) == 1
    assert "secret" not in str(caught.value)


def test_a_damaged_file_is_named_as_damaged(path):
    with FeedbackStore(path) as store:
        store.add_question(question())
        store.append(answer(question()))
    whole = path.read_bytes()
    path.write_bytes(whole[:4096] + os.urandom(len(whole) - 4096))
    with pytest.raises(StoreError, match="is damaged; restore a copy"):
        FeedbackStore(path).events()


def test_somebody_elses_database_is_left_alone(path):
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE events (day TEXT)")
    with pytest.raises(StoreError, match="'events' that is not a feedback store's"):
        FeedbackStore(path)


def test_a_closed_store_says_that_it_is_closed(store):
    store.close()
    store.close()
    with pytest.raises(StoreError, match="is closed"):
        store.append(answer(question()))
