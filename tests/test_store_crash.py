"""`kill -9` at random moments, many times on one file: every acknowledged answer is there, once."""

import random
import signal
import sqlite3
import subprocess
import sys
import time

from rlhf_lab.records import Candidate, Question
from rlhf_lab.store import FeedbackStore

ROUNDS = 40

# Appends until it is killed. Prints an id only after `append` has returned: that is the acknowledgement.
LABELLER = """
import itertools, sys
from rlhf_lab.records import Candidate, Question, Ranking
from rlhf_lab.store import FeedbackStore
store = FeedbackStore(sys.argv[1])
print("open", flush=True)
for n in itertools.count():
    question = Question(f"{sys.argv[2]}-{n}", "p" * 500, (Candidate("a", "x" * 500), Candidate("b", "y" * 500)))
    store.add_question(question)
    ranking = Ranking(question.id, (("a",), ("b",)), "me")
    store.append(ranking)
    print(ranking.id, flush=True)
    if n % 5 == 4:
        store.withdraw(ranking.id, "me")
        print("withdrawn", ranking.id, flush=True)
"""


def label_until_killed(path, round_number: int, seconds: float) -> list[str]:
    """Run the labeller, kill it `seconds` after it has opened the store; the lines it had acknowledged."""
    child = subprocess.Popen(
        [sys.executable, "-c", LABELLER, str(path), str(round_number)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout.readline() == "open\n"
    time.sleep(seconds)
    child.send_signal(signal.SIGKILL)
    lines = child.communicate()[0].splitlines(keepends=True)
    return [line.strip() for line in lines if line.endswith("\n")]


def test_no_acknowledged_answer_is_lost_to_kill_9(tmp_path):
    path, moments = tmp_path / "feedback.db", random.Random(0)
    acknowledged: list[str] = []
    for number in range(ROUNDS):
        acknowledged += label_until_killed(path, number, moments.uniform(0.0, 0.08))
    given = [line for line in acknowledged if not line.startswith("withdrawn")]
    withdrawn = [line.split()[1] for line in acknowledged if line.startswith("withdrawn")]
    assert len(given) > ROUNDS  # the children did work before they died

    with FeedbackStore(path) as store:
        stored = [event.id for event in store.events() if event.kind == "ranking"]
        taken_back = [event.payload["ranking"] for event in store.events() if event.kind == "withdrawal"]
        assert len(stored) == len(set(stored))
        assert set(given) <= set(stored)
        assert set(withdrawn) <= set(taken_back)
        # Killed between the commit and the print: at most one unacknowledged event for each kill.
        assert len(stored) + len(taken_back) <= len(given) + len(withdrawn) + ROUNDS
        assert not set(withdrawn) & {ranking.id for ranking in store.rankings()}
        store.add_question(Question("after", "p", (Candidate("a", "x"), Candidate("b", "y"))))
    with sqlite3.connect(path) as raw:
        assert raw.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
