"""How the feedback store's times grow with the number of labels in it.

    python benchmarks/store_scale.py [--labels 1000 10000 100000] [--postgresql URL] [--repeats 15]

A class of 30 people, each question answered by three, a tenth of the queue still open; four replies to a question. One
store a size, on SQLite in a temporary folder, and with --postgresql (the URL of an empty database, which is empty
again afterwards) on PostgreSQL too. Prints the median time of each call in milliseconds.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import sqlalchemy as sa

from rlhf_lab.assignments import Assignments
from rlhf_lab.database import ASSIGNMENTS, QUEUE, TABLES
from rlhf_lab.records import Candidate, Question, Ranking, new_id
from rlhf_lab.store import FeedbackStore

PEOPLE = [f"student {n:02}" for n in range(30)]
OVERLAP = 3
CHUNK = 2000  # questions in one transaction


def question(number: int) -> Question:
    prompt = f"Question {number}: how do I get my money back? " + "The order came late. " * 5
    replies = tuple(Candidate(f"{number}-{i}", f"Reply {i}. " * 12, "sft", {"temperature": 0.7}) for i in range(4))
    return Question(f"q{number}", prompt, replies)


def ranking(asked: Question, annotator: str) -> Ranking:
    ids = tuple(candidate.id for candidate in asked.candidates)
    return Ranking(asked.id, tuple((i,) for i in ids), annotator, displayed=ids, seconds=4.0)


def answered_by(number: int) -> list[str]:
    """The three people who have answered this question."""
    return [PEOPLE[(number + place) % len(PEOPLE)] for place in range(OVERLAP)]


def fill(store: FeedbackStore, labels: int) -> None:
    """`labels` answers on a queue that is nine tenths done."""
    done = -(-labels // OVERLAP)
    queue = Assignments(store)
    for start in range(0, done, CHUNK):
        asked = [question(number) for number in range(start, min(done, start + CHUNK))]
        pairs = [(q, person) for number, q in enumerate(asked, start) for person in answered_by(number)]
        queue.enqueue(asked, overlap=OVERLAP)
        store.append_all([ranking(q, person) for q, person in pairs])
        row = {"assigned": time.time(), "expires": time.time() + 1800, "state": "done"}
        with store.database.begin(write=True) as connection:
            connection.execute(
                sa.insert(ASSIGNMENTS), [row | {"question_id": q.id, "annotator": person} for q, person in pairs]
            )
            connection.execute(sa.update(QUEUE).values(taken=OVERLAP))
    queue.enqueue([question(number) for number in range(done, done + max(60, done // 9))], overlap=OVERLAP)
    with store.database.begin(write=True) as connection:
        connection.exec_driver_sql("ANALYZE")


def median_ms(call: Callable[[int], object], repeats: int) -> float:
    times = []
    for turn in range(repeats):
        began = time.perf_counter()
        call(turn)
        times.append(time.perf_counter() - began)
    return 1000 * statistics.median(times)


def measure(url: str, labels: int, repeats: int) -> dict[str, float]:
    """Milliseconds a call, by what is called."""
    few = max(2, repeats // 5)
    with FeedbackStore(url) as store:
        began = time.perf_counter()
        fill(store, labels)
        times = {"fill, ms per label": 1000 * (time.perf_counter() - began) / labels}
        queue, fresh = Assignments(store), [Question(new_id(), "p", question(0).candidates) for _ in range(repeats)]
        store.add_questions(fresh)
        times["append"] = median_ms(lambda turn: store.append(ranking(fresh[turn], PEOPLE[turn % 30])), repeats)
        times["next_question, a new one"] = median_ms(lambda turn: queue.next_question(PEOPLE[turn % 30]), repeats)
        times["next_question, the same again"] = median_ms(lambda turn: queue.next_question(PEOPLE[0]), repeats)
        times["latest(annotator)"] = median_ms(lambda turn: store.latest(PEOPLE[turn % 30]), repeats)
        times["count(annotator)"] = median_ms(lambda turn: store.count(PEOPLE[turn % 30]), repeats)
        times["progress(annotator)"] = median_ms(lambda turn: queue.progress(PEOPLE[turn % 30]), few)
        times["answers(annotator)"] = median_ms(lambda turn: store.answers(PEOPLE[turn % 30]), few)
        times["comparisons(annotator)"] = median_ms(lambda turn: store.comparisons(PEOPLE[turn % 30]), few)
        times["answers since the last 100"] = median_ms(lambda _: store.answers(since_seq=store.last_seq - 100), few)
        times["events since the last 100"] = median_ms(lambda _: store.events(since_seq=store.last_seq - 100), few)
        times["queue's state"] = median_ms(lambda _: queue.state(), few)
        times["count, of all"] = median_ms(lambda _: store.count(), few)
        times["comparisons, of all"] = median_ms(lambda _: store.comparisons(), 1)
    return times


def measure_all(sizes: Iterable[int], postgresql: str | None, repeats: int) -> dict[str, dict[str, float]]:
    columns: dict[str, dict[str, float]] = {}
    for labels in sizes:
        with tempfile.TemporaryDirectory() as folder:
            columns[f"SQLite {labels:,}"] = measure(f"sqlite:///{Path(folder) / 'feedback.db'}", labels, repeats)
        if postgresql:
            must_be_empty(postgresql)
            columns[f"PostgreSQL {labels:,}"] = measure(postgresql, labels, repeats)
            make_empty(postgresql)
    return columns


def must_be_empty(url: str) -> None:
    """Ends the program when this database holds anything: it would be lost."""
    engine = sa.create_engine(url)
    if tables := sa.inspect(engine).get_table_names():
        raise SystemExit(f"--postgresql: this database has tables ({', '.join(tables)}); name an empty one")
    engine.dispose()


def make_empty(url: str) -> None:
    """Take the tables out again that `measure` has made."""
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        TABLES.drop_all(connection)
        connection.exec_driver_sql("DROP TABLE alembic_version")
    engine.dispose()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--postgresql", metavar="URL", help="an empty database")
    parser.add_argument("--repeats", type=int, default=15)
    chosen = parser.parse_args()
    columns = measure_all(chosen.labels, chosen.postgresql, chosen.repeats)
    print("| ms | " + " | ".join(columns) + " |\n|" + " --- |" * (len(columns) + 1))
    for call in next(iter(columns.values())):
        print(f"| {call} | " + " | ".join(f"{times[call]:.3g}" for times in columns.values()) + " |")


if __name__ == "__main__":
    main()
