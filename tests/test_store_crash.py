"""Nothing that was acknowledged is lost, nothing is there twice: `kill -9` at random moments, and disks that fill.

The moments are drawn from a seed. RLHF_LAB_CRASH_ROUNDS=40 makes every test go through that many rounds instead of a
few (`python -m pytest tests/test_store_crash.py tests/browser/test_crash.py`, about half an hour).
"""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import uuid

import pytest
from jupyter_client import KernelManager
from postgres import Server, find_programs
from small_disk import fill, small_disk

from rlhf_lab.records import Candidate, Question, Ranking
from rlhf_lab.store import FeedbackStore, StoreError

SOAK = int(os.environ.get("RLHF_LAB_CRASH_ROUNDS", "0"))

# Labels until it is killed. Prints an id only after `append` has returned: that is the acknowledgement. What was
# refused is sent again, as a person does it, with the same id.
LABELLER = """
import itertools, sys, time
from rlhf_lab.records import Candidate, Question, Ranking
from rlhf_lab.store import FeedbackStore, StoreError

def until_it_works(call, *arguments):
    while True:
        try:
            return call(*arguments)
        except StoreError:
            time.sleep(0.02)

store = until_it_works(FeedbackStore, sys.argv[1])
print("open", flush=True)
for n in itertools.count():
    question = Question(f"{sys.argv[2]}-{n}", "p" * 500, (Candidate("a", "x" * 500), Candidate("b", "y" * 500)))
    until_it_works(store.add_question, question)
    ranking = Ranking(question.id, (("a",), ("b",)), "me")
    until_it_works(store.append, ranking)
    print(ranking.id, flush=True)
    if n % 5 == 4:
        until_it_works(store.withdraw, ranking.id, "me")
        print("withdrawn", ranking.id, flush=True)
"""


class Labeller:
    """A process that labels as fast as it can."""

    def __init__(self, url: str, name: object) -> None:
        command = [sys.executable, "-c", LABELLER, url, str(name)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def wait_until_open(self) -> None:
        assert self.process.stdout.readline() == "open\n"

    def kill(self) -> list[str]:
        """kill -9; the lines that it had acknowledged."""
        self.process.send_signal(signal.SIGKILL)
        lines = self.process.communicate()[0].splitlines(keepends=True)
        return [line.strip() for line in lines if line.endswith("\n") and line != "open\n"]


def assert_nothing_lost(url: str, acknowledged: list[str], deaths: int) -> None:
    """Every acknowledged event is in the log once, and no more than one in hand at each death besides."""
    given = [line for line in acknowledged if not line.startswith("withdrawn")]
    withdrawn = [line.split()[1] for line in acknowledged if line.startswith("withdrawn")]
    with FeedbackStore(url) as store:
        events = store.events()
        stored = [event.id for event in events if event.kind == "ranking"]
        taken_back = [event.withdraws for event in events if event.kind == "withdrawal"]
        assert len(stored) == len(set(stored)) and len({event.question_id for event in events}) == len(stored)
        assert set(given) <= set(stored) and set(withdrawn) <= set(taken_back)
        assert len(stored) + len(taken_back) <= len(acknowledged) + deaths
        assert not set(withdrawn) & {ranking.id for ranking in store.rankings()}
        after = Question(uuid.uuid4().hex, "p", (Candidate("a", "x"), Candidate("b", "y")))
        assert store.append_all([Ranking(after.id, (("a",), ("b",)), "me")], [after])[0] > len(events)
    if url.startswith("sqlite:///"):
        with sqlite3.connect(url.removeprefix("sqlite:///")) as raw:
            assert raw.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            assert raw.execute("PRAGMA foreign_key_check").fetchall() == []


def test_kill_9_of_the_program_that_labels(database):
    rounds, moments, acknowledged = SOAK or 15, random.Random(0), []
    FeedbackStore(database).close()
    for number in range(rounds):
        labeller = Labeller(database, number)
        labeller.wait_until_open()
        time.sleep(moments.uniform(0.0, 0.15))
        acknowledged += labeller.kill()
    assert len(acknowledged) > rounds  # they did work before they died
    assert_nothing_lost(database, acknowledged, rounds)
    print(f"{len(acknowledged)} acknowledged, {rounds} kills")


def test_kill_9_of_postgresql_while_three_programs_label(postgres_server, postgres):
    rounds, moments = SOAK or 4, random.Random(1)
    FeedbackStore(postgres).close()
    labellers = [Labeller(postgres, f"program {n}") for n in range(3)]
    for labeller in labellers:
        labeller.wait_until_open()
    for _ in range(rounds):
        time.sleep(moments.uniform(0.05, 0.4))
        postgres_server.kill()  # the server and all that it had started
        postgres_server.start()
    time.sleep(0.3)
    acknowledged = [line for labeller in labellers for line in labeller.kill()]
    assert len(acknowledged) > 3 * rounds
    assert_nothing_lost(postgres, acknowledged, len(labellers))  # what the server's death left open was sent again
    print(f"{len(acknowledged)} acknowledged, {rounds} kills of the server")


# --- a Jupyter kernel: the page's messages, without a page ---

KERNEL = """
from rlhf_lab.records import Candidate, Question
from rlhf_lab.store import FeedbackStore
from widgets import RankingWidget
questions = [Question(f"q{{n}}", "p", (Candidate("a", "x"), Candidate("b", "y"))) for n in range(4000)]
store = FeedbackStore({url!r})
store.add_questions(questions)
answered = store.answered("me")
left = iter([question for question in questions if question.id not in answered])
widget = RankingWidget(None, store.append, next_question=lambda: next(left, None))
print(widget.model_id, widget.question.id)
"""


class Kernel:
    """A Jupyter kernel with a ranking widget, and the other end of its wire: what the page would send and receive."""

    def __init__(self, url: str) -> None:
        self.manager = KernelManager(kernel_name="python3")
        self.manager.start_kernel(extra_arguments=["--HistoryManager.enabled=False"])
        self.client = self.manager.blocking_client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=60)
        said = []
        self.client.execute_interactive(
            KERNEL.format(url=url), timeout=60, output_hook=lambda message: said.append(message["content"])
        )
        text = "".join(content.get("text", "") for content in said)
        assert len(text.split()) == 2, said
        self.widget, self.question = text.split()

    def send(self, answer: dict) -> None:
        content = {
            "comm_id": self.widget,
            "data": {"method": "update", "state": {"answer": answer}, "buffer_paths": []},
        }
        self.client.shell_channel.send(self.client.session.msg("comm_msg", content))

    def acknowledges(self, answer_id: str) -> bool:
        """Whether the acknowledgement arrives; False when the kernel died first. Notes the next question."""
        while True:
            try:
                message = self.client.get_iopub_msg(timeout=0.2)
            except Exception:
                if not self.manager.is_alive():
                    return False
                continue
            state = message["content"].get("data", {}).get("state", {})
            assert not state.get("error"), state
            self.question = state.get("shown", {}).get("id", self.question)
            if state.get("acknowledged", {}).get("id") == answer_id:
                return True

    def kill(self) -> None:
        if self.manager.is_alive():
            os.kill(self.manager.provisioner.pid, signal.SIGKILL)

    def close(self) -> None:
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)


def test_kill_9_of_a_jupyter_kernel_while_a_person_labels(database):
    rounds, moments, acknowledged, in_hand = SOAK or 3, random.Random(2), [], {}
    for _ in range(rounds):
        kernel = Kernel(database)
        killer = threading.Timer(moments.uniform(0.1, 0.6), kernel.kill)
        killer.start()
        try:
            while True:
                if in_hand.get("question") != kernel.question:
                    in_hand = {"id": uuid.uuid4().hex, "question": kernel.question, "order": [[1], [2]]}
                    in_hand |= {"status": "ranked", "seconds": 1.0, "attempt": 1}
                kernel.send(in_hand)
                if not kernel.acknowledges(in_hand["id"]):
                    break
                acknowledged.append(in_hand["id"])
        finally:
            killer.join()
            kernel.close()
    assert len(acknowledged) >= rounds
    assert_nothing_lost_of_kernels(database, acknowledged, rounds)
    print(f"{len(acknowledged)} acknowledged, {rounds} kills of the kernel")


def assert_nothing_lost_of_kernels(url: str, acknowledged: list[str], kills: int) -> None:
    with FeedbackStore(url) as store:
        stored = [event.id for event in store.events()]
        assert len(stored) == len(set(stored)) == len({event.question_id for event in store.events()})
        assert set(acknowledged) <= set(stored) and len(stored) <= len(acknowledged) + kills


# --- disks that fill ---


def label_until_full(store: FeedbackStore, start: int) -> tuple[list[Ranking], Ranking]:
    """Labels with long texts until the store refuses: those that it took, and the one that it refused."""
    taken: list[Ranking] = []
    for number in range(start, start + 5000):
        replies = (Candidate("a", "x" * 3000), Candidate("b", "y"))
        ranking = Ranking(f"q{number}", (("a",), ("b",)), "me")
        try:
            store.append_all([ranking], [Question(f"q{number}", "p", replies)])
        except StoreError as error:
            assert "disk" in str(error) and len(str(error).splitlines()) == 1
            return taken, ranking
        taken.append(ranking)
    raise AssertionError("the disk did not fill")


@pytest.mark.parametrize("base", ["sqlite", "postgresql"])
def test_a_disk_that_fills_again_and_again(base, monkeypatch):
    rounds, sizes, kept = SOAK or 4, random.Random(3), []
    with small_disk(6 if base == "sqlite" else 200) as disk:
        monkeypatch.setattr("tempfile.tempdir", str(disk))
        server = None if base == "sqlite" else Server(find_programs())
        try:
            url = server.new_database() if server else f"sqlite:///{disk / 'feedback.db'}"
            for number in range(rounds):
                with FeedbackStore(url) as store:
                    ballast = fill(disk, leave=sizes.randrange(100_000, 900_000))
                    taken, refused = label_until_full(store, 10_000 * number)
                    kept += taken
                    assert store.rankings() == kept  # while the disk is full, everything can be read
                    ballast.unlink()
                    question = Question(refused.question_id, "p", (Candidate("a", "x"), Candidate("b", "y")))
                    store.append_all([refused], [question])  # with the same id, now that there is space
                    kept.append(refused)
                with FeedbackStore(url) as again:
                    assert again.rankings() == kept
                if server is None and disk_is_nearly_used(disk):
                    break
            assert len(kept) > 20
            print(f"{len(kept)} acknowledged, {number + 1} times full")
            if server is None:
                with sqlite3.connect(disk / "feedback.db") as raw:
                    assert raw.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        finally:
            if server:
                server.stop()


def disk_is_nearly_used(disk) -> bool:
    status = os.statvfs(disk)
    return status.f_bavail * status.f_frsize < 1_000_000
