"""FeedbackStore: what is in force, idempotence, durability's other half (clear errors, nothing half-written).

What a store does is tested on SQLite and on PostgreSQL; what is a file's own, on SQLite. For PostgreSQL's own see
test_postgres.py.
"""

import os
import resource
import sqlite3
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import hypothesis
import pytest
import sqlalchemy as sa
from hypothesis import strategies as st

from rlhf_lab.errors import InputError
from rlhf_lab.records import Candidate, Correction, Question, Ranking, Rating, Vote, new_id
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
def store(database):
    with FeedbackStore(database) as opened:
        opened.add_question(question())
        yield opened


@pytest.fixture
def file_store(path):
    with FeedbackStore(path) as opened:
        opened.add_question(question())
        yield opened


# --- what goes in comes out ---


def test_everything_about_an_answer_survives_closing_and_opening_again(database):
    asked = Question("q1", "Grüße \x00 \u202e", (Candidate("a", "<b>", "sft"), Candidate("b", "", "ppo-3")))
    given = Ranking("q1", (("a", "b"),), "Zoë", displayed=("b", "a"), seconds=2.25)
    with FeedbackStore(database) as store:
        store.add_question(asked)
        store.append(given)
    with FeedbackStore(database) as again:
        assert again.questions() == [asked]
        assert again.rankings() == [given]


def test_a_url_and_a_path_name_the_same_store(path, file_store):
    file_store.append(answer(question()))
    with FeedbackStore(f"sqlite:///{path}") as by_url:
        assert by_url.rankings() == file_store.rankings()


SURROGATES = "half \ud83d of one, two halves \ud83d\ude00, NUL \x00, \u202e, e\u0301 \U0001f469\u200d\U0001f4bb, \ufffe"


def test_odd_text_comes_back_as_it_went_in(store):
    asked = Question("ｑ\u0301 ' \" % \\ ; --", SURROGATES, (Candidate("a\u200d", SURROGATES), Candidate("😀", "b")))
    given = Correction(asked.id, "😀", SURROGATES + "!", "O'Neil\u0301 名 😀\n%s")
    store.add_question(asked)
    seq = store.append(given)
    # Two halves are one character once they have been written down (JSON does that); the same text, seen again.
    assert store.append(given) == seq and store.add_question(asked) is None
    [kept] = store.answers(given.annotator)
    assert (kept.text, kept.annotator) == (given.text.replace("\ud83d\ude00", "😀"), given.annotator)
    assert store.question(asked.id).prompt == SURROGATES.replace("\ud83d\ude00", "😀")
    assert store.answered(given.annotator) == {asked.id} and store.withdraw(given.id, given.annotator) == seq + 1


@pytest.mark.parametrize("bad", ["", "NUL \x00", "half \ud800", "x" * 201])
def test_a_name_that_no_database_can_keep_is_refused_before_anything_is_written(store, bad):
    odd = replace(question(2), candidates=(Candidate(bad, "one"), Candidate("b", "two")))
    store.add_question(odd)
    attempts = [
        lambda: store.add_question(replace(question(3), id=bad)),
        lambda: store.append(answer(question(), annotator=bad)),
        lambda: store.append(replace(answer(question()), id=bad)),
        lambda: store.append(Vote("q2", bad, True, "me")),
    ]
    for attempt in attempts:
        with pytest.raises(InputError):
            attempt()
    assert store.events() == [] and store.questions() == [question(), odd]


def test_asking_for_a_name_that_cannot_exist_is_a_clear_error_or_finds_nothing(store):
    for bad in ("NUL \x00", "half \ud800"):
        for ask in (
            store.question,
            store.answers,
            store.latest,
            store.answered,
            lambda name: store.withdraw(name, "me"),
        ):
            try:
                assert not ask(bad)
            except InputError as error:
                assert len(str(error).splitlines()) == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}, b"bytes"], ids=str)
def test_provenance_that_is_not_plain_data_is_refused_whole(store, value):
    odd = replace(question(2), candidates=(Candidate("a", "", sampling={"temperature": value}), Candidate("b", "")))
    with pytest.raises(InputError, match="question 'q2' is not plain JSON data"):
        store.add_questions([question(3), odd])
    assert store.questions() == [question()]


def test_provenance_with_tuples_and_numbers_as_names_is_recognised_when_it_is_sent_again(store):
    sampling = {"stop": ("\n", "Human:"), 0: "zero", "temperature": 1}
    odd = replace(question(2), candidates=(Candidate("a", "", sampling=sampling), Candidate("b", "")))
    store.add_questions([odd, odd])
    store.add_question(odd)
    assert store.question("q2").candidates[0].sampling == {"stop": ["\n", "Human:"], "0": "zero", "temperature": 1}


def test_a_database_in_memory_is_one_store_for_every_thread():
    with FeedbackStore("sqlite://") as store:
        store.add_question(question())
        thread = threading.Thread(target=store.append, args=[answer(question())])
        thread.start()
        thread.join()
        assert len(store) == 1


def test_commits_are_synchronous_and_use_the_write_ahead_log(file_store):
    with file_store.database._engine.connect() as connection:
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


@pytest.mark.parametrize("same", [True, False], ids=["the same answer", "different answers"])
def test_eight_programs_that_send_one_id_at_once_keep_one_answer(database, store, same):
    first, outcomes, gate = answer(question()), [], threading.Barrier(8)

    def send(number: int) -> None:
        own = first if same else replace(first, seconds=float(number))
        with FeedbackStore(database) as mine:
            gate.wait()
            try:
                outcomes.append(mine.append(own))
            except InputError as error:
                outcomes.append(str(error))

    threads = [threading.Thread(target=send, args=[number]) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    [event] = store.events()
    kept = [outcome for outcome in outcomes if outcome == event.seq]
    refused = [outcome for outcome in outcomes if "different answer under the id" in str(outcome)]
    assert (len(kept), len(refused)) == ((8, 0) if same else (1, 7))


def test_a_batch_is_kept_whole_or_not_at_all(store):
    earlier = answer(question())
    store.append(earlier)
    batch = [answer(question(n)) for n in (2, 3)]
    asked = [question(2), question(3)]
    spoilt = [
        ([*batch, answer(question(9))], asked),  # a question that nobody asked
        ([*batch, replace(batch[0], seconds=9.0)], asked),  # an id twice, with two contents
        ([*batch, replace(earlier, annotator="you")], asked),  # the id of another answer
        (batch, [*asked, replace(question(2), prompt="another")]),
        ([*batch, replace(batch[0], id="x", displayed=("zork",))], asked),
    ]
    for answers, questions in spoilt:
        with pytest.raises(InputError):
            store.append_all(answers, questions)
        assert store.rankings() == [earlier] and store.questions() == [question()]
    numbers = store.append_all([*batch, earlier, batch[0]], [*asked, question()])
    assert numbers == [numbers[0], numbers[0] + 1, 1, numbers[0]] and numbers[0] > 1
    assert store.append_all(batch, asked) == numbers[:2]
    assert [event.id for event in store.events()] == [earlier.id, batch[0].id, batch[1].id]


def test_a_large_import_keeps_its_order(store):
    asked = [question(n) for n in range(2, 1300)]
    answers = [answer(each, "importer") for each in reversed(asked)]
    numbers = store.append_all(answers, asked)
    assert numbers == sorted(numbers) and store.answers("importer") == answers and store.questions()[1:] == asked


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


def test_kinds_that_do_not_exist_are_named(store):
    for kinds in ("ranking", ["ranking", "thumb"], ["withdrawal"]):
        with pytest.raises(InputError, match="a collection of ranking, rating, vote, correction is wanted"):
            store.answers(kinds=kinds)


def test_a_rating_a_vote_and_a_correction_stand_beside_a_ranking_of_the_same_question(store):
    marks = {f"q1-{i}": {"helpful": 5 - i, "polite": 3} for i in range(3)}
    given = [
        answer(question()),
        Rating("q1", marks, "me", displayed=("q1-0", "q1-1", "q1-2"), seconds=2.5, context={"widget": "rating"}),
        Vote("q1", "q1-0", True, "me"),
        Vote("q1", "q1-1", None, "me", status="undecided"),
        Correction("q1", "q1-0", "better", "me"),
    ]
    for each in given:
        store.append(each)
    assert store.answers() == given and store.rankings() == given[:1] and store.count(kinds=["vote"]) == 2
    changed = [Vote("q1", "q1-0", False, "me"), Correction("q1", "q1-0", "best", "me")]
    for each in changed:
        store.append(each)
    assert store.answers("me") == [*given[:2], given[3], *changed] and store.latest("me") == changed[1]
    assert [d.reply for d in store.demonstrations()] == ["best"]
    pairs = [(c.chosen, c.rejected, c.tie) for c in store.comparisons()]
    ranked = [("reply 0", "reply 1", False), ("reply 0", "reply 2", False), ("reply 1", "reply 2", False)]
    assert pairs == [*ranked, *ranked, ("best", "reply 0", False)]
    store.withdraw(changed[1].id, "me")
    assert store.latest("me") == changed[0] and [d.reply for d in store.demonstrations()] == ["better"]
    assert store.answered("me", "correction") == store.answered("me") == {"q1"} and store.answered("you") == set()


@dataclass
class Replay:
    """The store's rule in plain Python: everything that happened, in order, replayed for every question asked of it."""

    given: list = field(default_factory=list)  # (answer, withdrawn), oldest first

    def standing(self) -> list:
        return [answer for answer, withdrawn in self.given if not withdrawn]

    def in_force(self) -> list:
        latest = {(a.annotator, a.kind, a.question_id, a.target): a for a in self.standing()}
        return [answer for answer in self.standing() if answer in latest.values()]

    def withdraw(self, answers: list) -> None:
        self.given = [(answer, withdrawn or answer in answers) for answer, withdrawn in self.given]


def some_answer(kind: str, asked: str, target: str, person: str, decides: bool):
    ids = ("a", "b")
    if kind == "ranking":
        order = ((target,), tuple(i for i in ids if i != target)) if decides else ()
        return Ranking(asked, order, person, status="ranked" if decides else "skipped")
    if kind == "rating":
        scores = {i: {"helpful": 2 + (i == target)} for i in ids} if decides else {}
        return Rating(asked, scores, person, status="rated" if decides else "undecided")
    if kind == "vote":
        return Vote(asked, target, decides, person)
    return (
        Correction(asked, target, "better", person) if decides else Vote(asked, target, None, person, status="skipped")
    )


STEPS = st.lists(
    st.one_of(
        st.tuples(
            st.sampled_from(["ranking", "rating", "vote", "correction"]),
            st.sampled_from(["one", "two"]), st.sampled_from("ab"), st.sampled_from("12"), st.booleans(),
        ),
        st.tuples(st.sampled_from(["resend", "withdraw", "withdraw_from"]), st.integers(0, 30)),
    ),
    min_size=3, max_size=14,
)  # fmt: skip


@hypothesis.given(STEPS)
@hypothesis.settings(max_examples=40, suppress_health_check=list(hypothesis.HealthCheck))
def test_what_is_in_force_is_what_a_replay_of_the_log_says_now_and_at_every_earlier_moment(store, steps):
    two = (Candidate("a", "reply a"), Candidate("b", "reply b"))
    store.add_questions([Question("one", "p", two), Question("two", "p", two)])
    people = {"1": new_id(), "2": new_id()}  # of this example only: the store goes on through all of them
    replay, moments = Replay(), []
    for what, *how in steps:
        if what not in ("resend", "withdraw", "withdraw_from"):
            asked, target, person, decides = how
            replay.given.append((some_answer(what, asked, target, people[person], decides), False))
            store.append(replay.given[-1][0])
        elif replay.given:
            chosen = replay.given[how[0] % len(replay.given)][0]
            later = [answer for answer, _ in replay.given[how[0] % len(replay.given) :]]
            if what == "resend":
                store.append(chosen)
            elif what == "withdraw":
                store.withdraw(chosen.id, chosen.annotator)
                replay.withdraw([chosen])
            else:
                own = [answer for answer in later if answer.annotator == chosen.annotator]
                standing = [answer for answer in own if answer in replay.standing()]
                assert store.withdraw_from(chosen.id, chosen.annotator) == standing
                replay.withdraw(own)
        moments.append((store.last_seq, replay.in_force()))
    for until, in_force in moments:
        for person in people.values():
            own = [answer for answer in in_force if answer.annotator == person]
            assert store.answers(person, until_seq=until) == own
    for person in people.values():
        own = [answer for answer in replay.in_force() if answer.annotator == person]
        assert store.answers(person) == own and store.count(person) == len(own)
        assert store.latest(person) == (own[-1] if own else None)
        assert store.answered(person) == {answer.question_id for answer in own}
        assert store.answers(person, kinds=["vote"]) == [answer for answer in own if answer.kind == "vote"]


def test_a_reader_that_asks_for_what_is_new_never_misses_an_event(database, store):
    """Numbers that grow in the order of commits: a trainer that remembers the last one it saw sees every event."""
    asked = [question(n) for n in range(2, 122)]
    store.add_questions(asked)
    seen, running = [], True

    def follow() -> None:
        while True:
            last_round = not running
            seen.extend(store.events(since_seq=seen[-1].seq if seen else 0))
            if last_round:
                return
            time.sleep(0.005)

    def write(questions: list[Question]) -> None:
        with FeedbackStore(database) as mine:
            for each in questions:
                mine.append(answer(each))

    reader = threading.Thread(target=follow)
    writers = [threading.Thread(target=write, args=[asked[i::4]]) for i in range(4)]
    for thread in (reader, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    running = False
    reader.join()
    assert seen == store.events() and len(seen) == 120


def test_since_seq_gives_only_what_came_later(store):
    store.add_question(question(2))
    seq = store.append(answer(question()))
    assert store.last_seq == seq
    later = answer(question(2))
    store.append(later)
    assert store.rankings(since_seq=seq) == [later]
    assert [event.id for event in store.events(since_seq=seq)] == [later.id]


def test_threads_and_a_second_connection_lose_nothing(database, store):
    asked = [question(n) for n in range(2, 42)]
    with FeedbackStore(database) as second:

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


def test_a_locked_database_says_so_and_works_again_afterwards(path, file_store):
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


def test_a_full_disk_refuses_the_answer_whole_and_keeps_the_earlier_ones(path, file_store):
    kept = answer(question())
    file_store.append(kept)
    pages = sqlite3.connect(path).execute("PRAGMA page_count").fetchone()[0]
    with FeedbackStore(path) as full:
        sa.event.listen(full.database._engine, "connect", lambda raw, _: raw.execute(f"PRAGMA max_page_count={pages}"))
        full.database._engine.dispose()  # later connections have no page to spare
        large = replace(question(2), prompt="x" * 100_000)
        with pytest.raises(StoreError, match="disk is full; free some space, then try again"):
            full.add_question(large)
        assert full.rankings() == [kept] and full.questions() == [question()]
    file_store.add_question(large)
    assert file_store.questions() == [question(), large]


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
