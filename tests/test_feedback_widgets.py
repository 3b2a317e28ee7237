"""The Python half of the feedback widgets: what the page is told, and what becomes of what it sends."""

import json
import subprocess
import sys
import threading

import pytest

from rlhf_lab.errors import InputError
from rlhf_lab.records import Candidate, Question, Ranking
from rlhf_lab.store import FeedbackStore
from widgets import CompareWidget, RankingWidget


def question(name: str = "q1", k: int = 4) -> Question:
    candidates = tuple(Candidate(f"{name}-sft-{i}", f"reply {i}", model=f"checkpoint-{i}") for i in range(k))
    return Question(name, f"prompt of {name}", candidates)


def send(widget, order, answer_id="a1", status="ranked", attempt=1, **fields) -> None:
    """What the page does: set `answer`, in numbers on the screen."""
    data = {"id": answer_id, "question": widget.shown.get("id"), "order": order, "status": status, "seconds": 1.25}
    widget.set_state({"answer": data | {"attempt": attempt} | fields, "error": ""})


def texts(asked: Question, ranking: Ranking) -> list[list[str]]:
    return [[asked.texts[candidate] for candidate in tier] for tier in ranking.order]


@pytest.fixture
def store(tmp_path):
    with FeedbackStore(tmp_path / "feedback.db") as opened:
        yield opened


# --- what the page learns ---


def test_the_page_gets_texts_only_neither_models_nor_ids_of_replies():
    widget = RankingWidget(question())
    state = json.dumps(widget.get_state())
    assert "reply 0" in state
    assert "checkpoint" not in state and "q1-sft" not in state


def test_replies_are_shuffled_the_same_way_each_time_and_differently_for_each_question():
    shown = [RankingWidget(question(f"q{n}")).shown["replies"] for n in range(12)]
    assert shown == [RankingWidget(question(f"q{n}")).shown["replies"] for n in range(12)]
    assert len({tuple(replies) for replies in shown}) > 3
    assert all(sorted(replies) == [f"reply {i}" for i in range(4)] for replies in shown)
    assert shown != [RankingWidget(question(f"q{n}"), seed=1).shown["replies"] for n in range(12)]


def test_text_that_no_message_can_carry_is_replaced():
    widget = RankingWidget(Question("q", "\ud800", (Candidate("a", "x\udfff"), Candidate("b", "y"))))
    json.dumps(widget.shown, ensure_ascii=False).encode()  # as the kernel does


# --- an answer ---


def test_an_answer_reaches_on_answer_as_a_ranking_and_is_acknowledged_after_it_returned():
    asked, seen = question(), []

    def on_answer(ranking: Ranking) -> int:
        seen.append((ranking, dict(widget.acknowledged)))
        return 7

    widget = RankingWidget(asked, on_answer, annotator="Zoë")
    replies = widget.shown["replies"]
    send(widget, [[2], [4, 1], [3]])
    [(ranking, acknowledged_before)] = seen
    assert acknowledged_before == {}
    assert widget.acknowledged == {"id": "a1", "seq": 7}
    assert texts(asked, ranking) == [[replies[1]], [replies[3], replies[0]], [replies[2]]]
    assert (ranking.id, ranking.annotator, ranking.seconds) == ("a1", "Zoë", 1.25)
    assert [asked.texts[candidate] for candidate in ranking.displayed] == replies
    assert widget.rankings == [ranking]


@pytest.mark.parametrize("status", ["undecided", "skipped"])
def test_not_deciding_is_an_answer_too(store, status):
    widget = RankingWidget.for_store([question("q1"), question("q2")], store)
    send(widget, [], status=status)
    assert [(r.question_id, r.status, r.order) for r in store.rankings()] == [("q1", status, ())]
    assert widget.question.id == "q2"


def test_when_storing_fails_the_person_is_told_nothing_is_acknowledged_and_a_retry_works():
    results = iter([InputError("the disk is full; free some space"), ZeroDivisionError("bug"), 3])

    def on_answer(ranking):
        result = next(results)
        if isinstance(result, Exception):
            raise result
        return result

    widget = RankingWidget(question(), on_answer)
    widget.set_state({"draft": {"question": "q1", "tiers": [[1], [2], [3], [4]]}})
    send(widget, [[1], [2], [3], [4]])
    assert widget.error == "Not saved: the disk is full; free some space"
    send(widget, [[1], [2], [3], [4]], attempt=2)
    assert widget.error == "Not saved: ZeroDivisionError: bug"
    assert widget.acknowledged == {} and widget.rankings == []
    assert widget.question.id == "q1" and widget.draft["tiers"] == [[1], [2], [3], [4]]
    send(widget, [[1], [2], [3], [4]], attempt=3)
    assert widget.error == "" and widget.acknowledged == {"id": "a1", "seq": 3}


def test_an_answer_sent_again_is_acknowledged_again_and_stored_once(store):
    widget = RankingWidget.for_store([question("q1"), question("q2")], store)
    send(widget, [[1], [2], [3], [4]])
    widget.acknowledged = {}
    send(widget, [[1], [2], [3], [4]], question="q1", attempt=2)
    assert widget.acknowledged == {"id": "a1", "seq": 1}
    assert len(store.events()) == 1 and len(widget.rankings) == 1 and widget.question.id == "q2"


@pytest.mark.parametrize(
    "wrong",
    [
        {"order": [[1], [2]]},
        {"order": [[1], [2], [3], [5]]},
        {"order": [[1], [1], [2], [3], [4]]},
        {"order": "1234"},
        {"order": None},
        {"status": "loved"},
        {"question": "never-asked"},
        {"question": None},
        {"id": ""},
        {"id": 5},
        {"seconds": "soon"},
    ],
    ids=str,
)
def test_nonsense_from_the_page_is_refused_with_a_message(wrong):
    seen = []
    widget = RankingWidget(question(), seen.append)
    send(
        widget,
        **{"order": [[1], [2], [3], [4]], "answer_id": "a1"}
        | {k: v for k, v in wrong.items() if k != "id"}
        | ({"answer_id": wrong["id"]} if "id" in wrong else {}),
    )
    assert widget.error.startswith("Not saved: ")
    assert seen == [] and widget.acknowledged == {}


def test_a_late_answer_to_a_question_that_was_just_replaced_still_counts():
    seen = []
    widget = RankingWidget(question("q1"), seen.append)
    widget.show(question("q2"))
    send(widget, [[1], [2], [3], [4]], question="q1")
    assert [ranking.question_id for ranking in seen] == ["q1"]
    assert widget.question.id == "q2"


# --- the next question ---


def test_on_answer_may_return_the_next_question():
    questions = iter([question("q2"), None])
    widget = RankingWidget(question("q1"), lambda ranking: next(questions), wait_text="The policy is writing…")
    send(widget, [[1], [2], [3], [4]])
    assert widget.shown["id"] == "q2"
    send(widget, [[1], [2], [3], [4]], answer_id="a2")
    assert widget.shown == {} and widget.question is None and widget.wait_text == "The policy is writing…"


def test_refresh_brings_the_next_question_only_when_none_is_on_the_screen():
    ready = []
    widget = RankingWidget(next_question=lambda: ready.pop(0) if ready else None)
    assert widget.question is None
    ready += [question("q1"), question("q2")]
    widget.refresh()
    assert widget.question.id == "q1"
    widget.refresh()
    assert widget.question.id == "q1" and len(ready) == 1


def test_a_failing_next_question_does_not_undo_the_acknowledgement():
    def next_question():
        raise OSError("gone")

    widget = RankingWidget(question(), lambda ranking: 1, next_question=next_question)
    send(widget, [[1], [2], [3], [4]])
    assert widget.acknowledged == {"id": "a1", "seq": 1}
    assert widget.error == "Saved, but the next question could not be fetched: OSError: gone"


def test_show_from_another_thread_while_an_answer_is_being_stored_does_not_block():
    shown = threading.Event()

    def on_answer(ranking):
        def worker():
            widget.show(question("q2"))
            shown.set()

        threading.Thread(target=worker).start()
        assert shown.wait(10), "the widget held its lock while on_answer ran"

    widget = RankingWidget(question("q1"), on_answer)
    send(widget, [[1], [2], [3], [4]])
    assert widget.error == "" and widget.question.id == "q2" and len(widget.rankings) == 1


# --- undo ---


def test_undo_withdraws_the_last_answer_and_brings_its_question_back_as_it_was_ordered(store):
    widget = RankingWidget.for_store([question("q1"), question("q2")], store)
    first = widget.shown
    send(widget, [[3], [1, 2], [4]])
    widget.set_state({"draft": {"question": "q2", "tiers": [[4]]}})
    widget.set_state({"undo": {"id": "u1"}, "error": ""})
    assert widget.undone == {"id": "u1"} and widget.shown == first
    assert widget.draft == {"question": "q1", "tiers": [[3], [1, 2], [4]]}
    assert store.rankings() == [] and [e.kind for e in store.events()] == ["ranking", "withdrawal"]
    assert widget.progress == {"done": 0, "total": 2} and not widget.can_undo

    send(widget, [[1], [2], [3], [4]], answer_id="a2")
    assert widget.question.id == "q2" and widget.draft["tiers"] == [[4]]  # where the person had been
    assert [r.id for r in store.rankings()] == ["a2"]


def test_undo_walks_back_through_several_answers(store):
    widget = RankingWidget.for_store([question("q1"), question("q2"), question("q3")], store)
    send(widget, [[1], [2], [3], [4]], answer_id="a1")
    send(widget, [[1], [2], [3], [4]], answer_id="a2")
    asked = []
    for n in (1, 2):
        widget.set_state({"undo": {"id": f"u{n}"}})
        asked.append(widget.question.id)
    assert asked == ["q2", "q1"] and store.rankings() == []
    for n in (3, 4, 5):
        asked.append(widget.question.id)
        send(widget, [[1], [2], [3], [4]], answer_id=f"a{n}")
    assert asked[2:] == ["q1", "q2", "q3"] and widget.question is None


def test_an_undo_that_fails_changes_nothing_and_says_why():
    def on_undo(ranking):
        raise InputError("the database is locked")

    widget = RankingWidget(question("q1"), lambda ranking: question("q2"), on_undo=on_undo)
    send(widget, [[1], [2], [3], [4]])
    widget.set_state({"undo": {"id": "u1"}, "error": ""})
    assert widget.error == "Not saved: the database is locked"
    assert widget.question.id == "q2" and len(widget.rankings) == 1 and widget.undone == {}


# --- walking through a list ---


def test_running_the_cell_again_goes_on_where_the_person_was_and_can_still_undo(store):
    questions = [question(f"q{n}") for n in range(1, 4)]
    widget = RankingWidget.for_store(questions, store, "me")
    assert widget.progress == {"done": 0, "total": 3}
    send(widget, [[1], [2], [3], [4]])
    again = RankingWidget.for_store(questions, store, "me")
    assert again.question.id == "q2" and again.progress == {"done": 1, "total": 3}
    again.set_state({"undo": {"id": "u1"}})
    assert again.question.id == "q1" and store.rankings() == []
    assert RankingWidget.for_store(questions, store, "you").question.id == "q1"


def test_the_end_of_the_list_says_so(store):
    widget = RankingWidget.for_store([question("q1")], store)
    send(widget, [[1], [2], [3], [4]])
    assert widget.shown == {} and widget.wait_text == "Every question is answered. Thank you!"
    assert repr(widget) == "<RankingWidget: 1 of 1 questions answered>"


# --- pairs ---


@pytest.mark.parametrize("order, tiers", [([[1], [2]], 2), ([[1, 2]], 1)])
def test_a_comparison_is_a_ranking_of_two(store, order, tiers):
    widget = CompareWidget.for_store([question(k=2)], store)
    send(widget, order)
    [ranking] = store.rankings()
    assert len(ranking.order) == tiers
    assert [pair.tie for pair in store.comparisons()] == [tiers == 1]


def test_a_comparison_needs_exactly_two_replies():
    with pytest.raises(InputError, match="has 3 replies; a comparison needs two"):
        CompareWidget(question(k=3))


def test_labelling_is_light_torch_is_not_imported():
    code = "import sys; from widgets import RankingWidget, CompareWidget; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
