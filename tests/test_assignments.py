"""Who answers what: overlap, no double assignment, leases, people and their keys. On SQLite and on PostgreSQL."""

import time
from collections import Counter

import pytest

from rlhf_lab.assignments import Assignments, passed
from rlhf_lab.errors import InputError
from rlhf_lab.records import Candidate, Question, Ranking
from rlhf_lab.store import FeedbackStore


def question(name: str) -> Question:
    return Question(name, f"prompt of {name}", (Candidate("a", "one"), Candidate("b", "two")))


def answer(asked: Question, annotator: str, order=(("a",), ("b",))) -> Ranking:
    return Ranking(asked.id, order, annotator)


@pytest.fixture
def store(database):
    with FeedbackStore(database) as opened:
        yield opened


def test_each_question_goes_to_as_many_people_as_its_overlap(store):
    queue = Assignments(store)
    assert queue.enqueue([question(f"q{i}") for i in range(4)], overlap=2) == 4
    people, given = ["ada", "bob", "eve"], Counter()
    for person in people * 4:
        asked = queue.next_question(person)
        if asked:
            store.append(answer(asked, person))
            given[asked.id] += 1
    assert given == {f"q{i}": 2 for i in range(4)}
    assert all(queue.next_question(person) is None for person in people)
    assert (queue.state().places, queue.state().answered, queue.state().open) == (8, 8, 0)
    assert len(set(queue.assigned())) == 8


def test_asking_again_before_answering_gives_the_same_question(store):
    queue = Assignments(store)
    queue.enqueue([question("q1"), question("q2")])
    assert queue.next_question("ada") == queue.next_question("ada") == question("q1")
    assert queue.next_question("bob") == question("q2") and queue.next_question("eve") is None


def test_a_withdrawn_answer_gives_its_person_the_question_again(store):
    queue = Assignments(store)
    queue.enqueue([question("q1"), question("q2")])
    first = answer(queue.next_question("ada"), "ada")
    store.append(first)
    assert queue.next_question("ada") == question("q2")
    store.withdraw(first.id, "ada")
    assert queue.next_question("ada") == question("q1") and queue.next_question("bob") is None


def test_a_place_that_nobody_uses_becomes_free_and_a_late_answer_still_counts(store):
    queue = Assignments(store, lease=0.05)
    queue.enqueue([question("q1")])
    assert queue.next_question("ada") == question("q1")
    time.sleep(0.1)
    assert queue.next_question("bob") == question("q1")
    store.append(answer(question("q1"), "ada"))
    assert {ranking.annotator for ranking in store.rankings()} == {"ada"}
    time.sleep(0.1)
    assert Assignments(store).next_question("bob") == question("q1")  # bob's own place, taken again


def test_higher_priority_first_then_what_others_have_begun(store):
    queue = Assignments(store)
    queue.enqueue([question("q1"), question("q2"), question("q3")], overlap=2)
    queue.prioritise({"q3": 1.0})
    assert [queue.next_question(person).id for person in ("ada", "bob", "eve")] == ["q3", "q3", "q1"]
    with pytest.raises(InputError, match="'q9' is not in the queue"):
        queue.prioritise({"q1": 5.0, "q9": 1.0})
    assert queue.next_question("dan").id == "q1"


def test_putting_a_question_in_twice_changes_nothing(store):
    queue = Assignments(store)
    assert queue.enqueue([question("q1")]) == 1 and queue.enqueue([question("q1"), question("q2")]) == 1
    assert queue.state().questions == 2
    with pytest.raises(InputError, match="at least one person"):
        queue.enqueue([question("q3")], overlap=0)


def test_a_key_opens_its_persons_queue_only(store):
    queue = Assignments(store)
    ada, bob = queue.enrol("ada"), queue.enrol("  bob ")
    assert len(ada) == 22 and (queue.who(ada), queue.who(bob)) == ("ada", "bob") and queue.people() == ["ada", "bob"]
    again = queue.enrol("ada")
    assert queue.who(again) == "ada" and queue.people() == ["ada", "bob"]
    for wrong in (ada, "", "ada", bob[:-1]):
        with pytest.raises(InputError, match="not known"):
            queue.who(wrong)
    for name in ("", " ", "x" * 101, "a\x00b"):
        with pytest.raises(InputError, match="1 to 100 characters"):
            queue.enrol(name)


def test_check_questions_know_what_an_attentive_person_answers(store):
    queue = Assignments(store)
    queue.enqueue([question("q1"), question("q2")], expected={"q1": [("a", "b")]})
    assert queue.checks() == {"q1": [("a", "b")]}
    assert passed([("a", "b")], answer(question("q1"), "ada"))
    assert not passed([("a", "b")], answer(question("q1"), "ada", (("a", "b"),)))
    assert not passed([("b", "a")], answer(question("q1"), "ada"))
    assert not passed([("a", "b")], Ranking("q1", (), "ada", status="skipped"))
    with pytest.raises(InputError, match="two different replies"):
        queue.enqueue([question("q3")], expected={"q3": [("a", "c")]})


def test_a_lease_is_a_time(store):
    with pytest.raises(InputError, match="greater than 0"):
        Assignments(store, lease=0)


def test_progress_counts_what_is_free_and_what_others_hold(store):
    queue = Assignments(store)
    queue.enqueue([question(f"q{i}") for i in range(3)])
    store.append(answer(queue.next_question("ada"), "ada"))
    assert queue.next_question("bob") is not None
    ada, bob = queue.progress("ada"), queue.progress("bob")
    assert (ada.answered, ada.free, ada.held) == (1, 1, 1)
    assert (bob.answered, bob.free, bob.held) == (0, 1, 0)


def test_the_teachers_key_is_of_the_teacher_only(store):
    queue = Assignments(store)
    student, earlier = queue.enrol("ada"), queue.admit_teacher()
    teacher = queue.admit_teacher()
    assert queue.is_teacher(teacher) and not any(map(queue.is_teacher, (earlier, student, "")))
    with pytest.raises(InputError, match="not known"):
        queue.who(teacher)
