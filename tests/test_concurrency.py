"""A whole class at once: every label there exactly once, every rule of the queue kept."""

import random
import threading
from collections import Counter

import pytest

from rlhf_lab.assignments import Assignments
from rlhf_lab.records import Candidate, Question, Ranking
from rlhf_lab.store import FeedbackStore

OVERLAP, LABELS = 3, 100


def questions(n: int) -> list[Question]:
    return [Question(f"q{i}", f"prompt {i}", (Candidate("a", "one"), Candidate("b", "two"))) for i in range(n)]


class Student(threading.Thread):
    """One person with a connection of their own, who now and then sends an answer twice or takes one back."""

    def __init__(self, url: str, name: str, ready: threading.Barrier) -> None:
        super().__init__(name=name)
        self.url, self.ready, self.acknowledged, self.withdrawn = url, ready, [], set()
        self.failure: Exception | None = None

    def run(self) -> None:
        try:
            with FeedbackStore(self.url, timeout=60) as store:
                self.ready.wait()
                self.label(store, Assignments(store), random.Random(self.name))
        except Exception as error:
            self.failure = error

    def label(self, store: FeedbackStore, queue: Assignments, rng: random.Random) -> None:
        while len(self.acknowledged) - len(self.withdrawn) < LABELS:
            asked = queue.next_question(self.name)
            assert asked is not None, f"{self.name} was given nothing after {len(self.acknowledged)} labels"
            order = rng.choice(((("a",), ("b",)), (("b",), ("a",))))
            answer = Ranking(asked.id, order, self.name, ("a", "b"))
            seq = store.append(answer)
            if rng.random() < 0.1:
                assert store.append(answer) == seq  # as a page does that lost the acknowledgement
            self.acknowledged.append((seq, answer))
            if rng.random() < 0.03:
                store.withdraw(answer.id, self.name)
                self.withdrawn.add(answer.id)


@pytest.mark.parametrize(("kind", "people"), [("postgresql", 30), ("sqlite", 8)])
def test_a_class_labels_at_once(kind, people, request, tmp_path):
    url = request.getfixturevalue("postgres") if kind == "postgresql" else f"sqlite:///{tmp_path / 'class.db'}"
    with FeedbackStore(url) as store:
        # enough that the last one finds LABELS questions even when all others have filled up what they could
        Assignments(store).enqueue(questions((people - 1) * LABELS // OVERLAP + LABELS), OVERLAP)
        ready = threading.Barrier(people)
        class_ = [Student(url, f"student {i}", ready) for i in range(people)]
        for student in class_:
            student.start()
        for student in class_:
            student.join()
        assert [student.failure for student in class_ if student.failure] == []
        check(store, class_)


def check(store: FeedbackStore, class_: list[Student]) -> None:
    log = store.events()
    answers = {event.id: event for event in log if event.kind == "ranking"}
    acknowledged = {answer.id: seq for student in class_ for seq, answer in student.acknowledged}
    assert {name: event.seq for name, event in answers.items()} == acknowledged  # each once, under its number
    assert {event.withdraws for event in log} - {None} == set().union(*(student.withdrawn for student in class_))
    for student in class_:  # a person's labels stand in the log in the order in which they were given
        numbers = [seq for seq, _ in student.acknowledged]
        assert numbers == sorted(numbers)
    assert len(store) == LABELS * len(class_)

    places = Assignments(store).assigned()
    assert len(set(places)) == len(places)  # nobody was given a question twice
    assert max(Counter(question for question, _ in places).values()) <= OVERLAP
    in_force = Counter((answer.question_id, answer.annotator) for answer in store.answers())
    assert max(in_force.values()) == 1 and set(in_force) <= set(places)
    per_question = Counter(question for question, _ in in_force)
    assert max(per_question.values()) <= OVERLAP
