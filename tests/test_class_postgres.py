"""A class on PostgreSQL whose server dies: labels that were acknowledged are there once, and the trainer goes on."""

from __future__ import annotations

import threading
import time

from rlhf_lab import class_trainer
from rlhf_lab.assignments import Assignments
from rlhf_lab.class_questions import Plan
from rlhf_lab.class_trainer import ClassTrainer
from rlhf_lab.records import Candidate, Question, Ranking
from rlhf_lab.store import FeedbackStore, StoreError

KILLS = 2
DEADLINE = 40.0


def questions(n: int) -> list[Question]:
    return [Question(f"q{i}", f"Prompt {i}?", (Candidate("a", "yes"), Candidate("b", "no"))) for i in range(n)]


def until_it_works(call, *arguments):
    """What a page does: say that it has not been confirmed, and send the same again."""
    while True:
        try:
            return call(*arguments)
        except StoreError:
            time.sleep(0.02)


class Student(threading.Thread):
    """What a labelling page asks of the store, over and over: the next question, the answer, how far the class is."""

    def __init__(self, url: str, name: str, stop: threading.Event) -> None:
        super().__init__(name=name, daemon=True)
        self.url, self.stop, self.acknowledged = url, stop, []

    def run(self) -> None:
        store = until_it_works(FeedbackStore, self.url)
        queue = Assignments(store)
        while not self.stop.is_set():
            asked = until_it_works(queue.next_question, self.name)
            answer = Ranking(asked.id, (("a",), ("b",)), self.name, ("a", "b"))
            until_it_works(store.append, answer)
            self.acknowledged.append(answer.id)
            until_it_works(queue.progress, self.name)
            time.sleep(0.01)
        store.close()


def wait_for(condition, what: str) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def test_kill_9_of_postgresql_under_a_running_trainer_and_labelling_pages(postgres_server, postgres, monkeypatch):
    from tiny import reward_model, tokenizer

    trainer_of = lambda run, store, ask: ClassTrainer(store, reward_model(), tokenizer(), ask=ask)  # noqa: E731
    monkeypatch.setattr(class_trainer, "LOOK", 0.05)
    monkeypatch.setattr(class_trainer, "_run", lambda plan: None)
    monkeypatch.setattr(class_trainer, "make_trainer", trainer_of)
    with FeedbackStore(postgres) as store:
        Assignments(store).enqueue(questions(2000), overlap=2, expected={"q5": [("a", "b")]})
    leave, end, said = threading.Event(), threading.Event(), []
    trainer = threading.Thread(
        target=class_trainer.work, args=(Plan("out", postgres), end, said.append), daemon=True
    )  # fmt: skip
    students = [Student(postgres, name, leave) for name in ("Ada", "Ben")]
    for thread in (trainer, *students):
        thread.start()

    def learned() -> int:
        return max((note["answers"] for note in FeedbackStore(postgres).notes("class_model")), default=0)

    try:
        wait_for(lambda: learned() > 0, "the trainer learned nothing before the first kill")
        for _ in range(KILLS):
            before, said_before = [len(student.acknowledged) for student in students], len(said)
            postgres_server.kill()
            wait_for(lambda n=said_before: len(said) > n, "the trainer did not say that the database is away")
            postgres_server.start()
            wait_for(lambda n=said_before: len(said) > n + 1, "the trainer did not find its database again")
            wait_for(
                lambda n=before: all(len(s.acknowledged) > had + 3 for s, had in zip(students, n, strict=True)),
                "labelling did not go on",
            )
        leave.set()
        for student in students:
            student.join(DEADLINE)
        given = [name for student in students for name in student.acknowledged]
        wait_for(lambda: learned() == len(given), "the trainer did not catch up with all labels")
    finally:
        leave.set()
        end.set()
        trainer.join(DEADLINE)
    with FeedbackStore(postgres) as store:
        assert sorted(event.id for event in store.events()) == sorted(given)  # each acknowledged label once, no other
        places = Assignments(store).assigned()
        assert len(places) == len(set(places))
        check = next(each for each in Assignments(store).queued() if each.is_check)
        assert check.priority == -check.number
    assert ["waits" in message for message in said] == [True, False] * KILLS
