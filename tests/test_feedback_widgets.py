"""The Python half of the feedback widgets: what the page is told, and what becomes of what it sends."""

import json
import subprocess
import sys
import threading

import pytest

from rlhf_lab.errors import InputError
from rlhf_lab.records import GRADES, Candidate, Correction, Question, Ranking, Rating
from rlhf_lab.store import FeedbackStore
from widgets import (
    CompareWidget,
    CorrectionWidget,
    GradedCompareWidget,
    RankingWidget,
    RatingWidget,
    ThumbsWidget,
)


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


def test_a_draft_that_comes_with_the_answer_is_kept_if_that_fails_and_gone_once_it_is_saved():
    results = iter([InputError("the disk is full"), 3])

    def on_answer(ranking):
        result = next(results)
        if isinstance(result, Exception):
            raise result
        return result

    widget = RankingWidget(question(), on_answer, next_question=lambda: question("q2"))
    order = [[1], [2], [3], [4]]
    answer = {"id": "a1", "question": "q1", "order": order, "status": "ranked", "seconds": 1.0, "attempt": 1}
    draft = {"question": "q1", "since": 5, "tiers": order[:3]}
    widget.set_state({"draft": draft, "answer": answer, "error": ""})
    assert widget.error == "Not saved: the disk is full" and widget.draft == draft
    widget.set_state({"draft": draft, "answer": answer | {"attempt": 2}, "error": ""})
    assert widget.error == "" and widget.question.id == "q2" and widget.draft == {}


def test_a_draft_that_comes_with_an_undo_is_there_again_when_its_question_is(store):
    widget = RankingWidget.for_store([question("q1"), question("q2")], store)
    send(widget, [[1], [2], [3], [4]])
    widget.set_state({"draft": {"question": "q2", "tiers": [[3]]}, "undo": {"id": "u1"}, "error": ""})
    assert widget.question.id == "q1"
    send(widget, [[1], [2], [3], [4]], answer_id="a2")
    assert widget.question.id == "q2" and widget.draft == {"question": "q2", "tiers": [[3]]}


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


def test_putting_in_order_needs_two_replies():
    with pytest.raises(InputError, match="has one reply; putting in order needs at least two"):
        RankingWidget(question(k=1))
    with pytest.raises(InputError, match="use ThumbsWidget or RatingWidget"):
        CompareWidget(question(k=1))


def test_a_next_question_that_cannot_be_asked_is_no_reason_to_call_the_answer_unsaved():
    widget = RankingWidget(question("q1"), lambda answer: question("q2", k=1))
    send(widget, [[1], [2], [3], [4]])
    assert widget.acknowledged["id"] == "a1" and widget.error.startswith("Saved, but the next question")


# --- the other forms ---


def tell(widget, answer_id="a1", **decision) -> None:
    """What the page of any form does: one decision about what is on the screen."""
    about = {"question": widget.shown.get("id")} | {k: widget.shown[k] for k in ("reply",) if k in widget.shown}
    data = {"id": answer_id, "seconds": 1.25, "attempt": 1, "status": widget.record.GIVEN}
    widget.set_state({"answer": data | about | decision, "error": ""})


def undo(widget, request_id="u1") -> None:
    widget.set_state({"undo": {"id": request_id}, "error": ""})


@pytest.mark.parametrize("grade", GRADES)
def test_a_graded_comparison_is_a_ranking_with_its_grade(store, grade):
    asked = question(k=2)
    widget = GradedCompareWidget.for_store([asked], store)
    second = widget.shown["replies"][1]
    tell(widget, order=[[2], [1]], grade=grade)
    [pair] = store.comparisons()
    assert (pair.chosen, pair.grade, pair.tie) == (second, grade, False)
    undo(widget)
    assert widget.draft == {"question": "q1", "tiers": [[2], [1]], "grade": grade} and store.answers() == []
    tell(widget, "a2", order=[[1, 2]], grade="")
    assert [(pair.tie, pair.grade) for pair in store.comparisons()] == [(True, "")]


def test_a_rating_marks_every_reply_for_every_attribute(store):
    asked = question(k=2)
    widget = RatingWidget.for_store([asked], store, attributes={"helpful": "Does it help?", "short": ""})
    assert [row["name"] for row in widget.attributes] == ["helpful", "short"]
    first, second = widget.shown["replies"]
    tell(widget, scores=[[5, 4], [1, 2]])
    [rating] = store.answers()
    assert isinstance(rating, Rating)
    marks = {asked.texts[candidate]: row for candidate, row in rating.scores.items()}
    assert marks == {first: {"helpful": 5, "short": 4}, second: {"helpful": 1, "short": 2}}
    undo(widget)
    assert widget.draft == {"question": "q1", "marks": [[5, 4], [1, 2]]}


def test_thumbs_ask_about_each_reply_in_turn_and_a_reloaded_cell_goes_on_in_the_middle(store):
    questions = [question("q1", k=3), question("q2", k=1)]
    widget = ThumbsWidget.for_store(questions, store)
    order, seen = [c for c in widget._displayed(questions[0])], []
    for n, up in enumerate([True, False]):
        seen += widget.shown["replies"]
        assert (widget.shown["reply"], widget.shown["of"]) == (n + 1, 3) and widget.progress["done"] == 0
        tell(widget, f"a{n}", up=up)
    again = ThumbsWidget.for_store(questions, store)
    assert again.shown["reply"] == 3 and again.progress == {"done": 0, "total": 2}
    seen += again.shown["replies"]
    tell(again, "a2", up=True)
    assert again.question.id == "q2" and again.progress["done"] == 1
    votes = store.answers()
    assert [(vote.candidate, vote.up, vote.displayed) for vote in votes] == [
        (candidate, up, tuple(order)) for candidate, up in zip(order, [True, False, True], strict=True)
    ]
    assert seen == [questions[0].texts[candidate] for candidate in order]


def test_undo_of_a_vote_asks_about_that_reply_again_and_then_goes_on_where_the_person_was(store):
    widget = ThumbsWidget.for_store([question(k=3)], store)
    tell(widget, "a0", up=True)
    tell(widget, "a1", up=False)
    undo(widget)
    assert widget.shown["reply"] == 2 and widget.draft == {"question": "q1", "reply": 2, "up": False}
    tell(widget, "a2", up=True)
    assert widget.shown["reply"] == 3
    assert [(vote.id, vote.up) for vote in store.answers()] == [("a0", True), ("a2", True)]


def test_thumbs_for_one_reply_of_several_records_no_order_of_what_was_not_shown(store):
    asked = question(k=3)
    widget = ThumbsWidget.for_store([asked], store, candidate=1)
    assert widget.shown["replies"] == ["reply 1"] and widget.shown["of"] == 1
    tell(widget, up=False)
    [vote] = store.answers()
    assert (vote.candidate, vote.displayed, widget.question) == ("q1-sft-1", (), None)
    with pytest.raises(InputError, match="has 1 replies; candidate=1 is not one of them"):
        ThumbsWidget(question(k=1), candidate=1)
    with pytest.raises(InputError, match="counted from 0"):
        ThumbsWidget(question(), candidate=-1)


def test_a_correction_is_a_demonstration_and_a_comparison(store):
    widget = CorrectionWidget.for_store([question(k=1)], store)
    tell(widget, text="a better reply\ud800")
    [correction] = store.answers()
    assert isinstance(correction, Correction) and correction.text == "a better reply?"
    assert [(pair.chosen, pair.rejected) for pair in store.comparisons()] == [("a better reply?", "reply 0")]
    assert [shown.reply for shown in store.demonstrations()] == ["a better reply?"]
    undo(widget)
    assert widget.draft == {"question": "q1", "reply": 1, "text": "a better reply?"} and store.answers() == []


def test_a_reply_that_is_good_as_it_is_can_be_told_from_one_passed_over(store):
    widget = CorrectionWidget.for_store([question(k=2)], store)
    tell(widget, "a1", status="skipped", verdict="good as it is")
    tell(widget, "a2", status="skipped")
    assert [answer.context.get("verdict") for answer in store.answers()] == ["good as it is", None]
    assert store.comparisons() == [] and widget.question is None


FORMS = {
    "ranking": (RankingWidget, 2, {"order": [[1], [2]]}),
    "compare": (CompareWidget, 2, {"order": [[1], [2]]}),
    "graded": (GradedCompareWidget, 2, {"order": [[1], [2]], "grade": "better"}),
    "rating": (RatingWidget, 2, {"scores": [[1, 2, 3, 4], [5, 4, 3, 2]]}),
    "thumbs": (ThumbsWidget, 1, {"up": True}),
    "correction": (CorrectionWidget, 1, {"text": "better"}),
}


@pytest.fixture(params=FORMS)
def form(request):
    return FORMS[request.param]


def test_every_form_stores_once_what_is_sent_twice_and_can_take_it_back(store, form):
    make, k, decision = form
    widget = make.for_store([question(k=k)], store, "Zoë", guidelines="Be kind.")
    shown = widget.shown
    tell(widget, **decision)
    widget.acknowledged = {}
    tell(widget, question="q1", attempt=2, **{"reply": 1} if "reply" in shown else {}, **decision)
    assert widget.acknowledged == {"id": "a1", "seq": 1} and len(store.events()) == 1
    [answer] = store.answers()
    assert (answer.kind, answer.annotator, answer.seconds) == (make.record.kind, "Zoë", 1.25)
    assert answer.displayed == widget._displayed(question(k=k))
    assert answer.context == {"widget": make.__name__, "guidelines": widget.guidelines["id"]}
    assert widget.answers == [answer] and widget.progress == {"done": 1, "total": 1}
    undo(widget)
    assert store.answers() == [] and widget.answers == [] and widget.shown == shown and not widget.can_undo


@pytest.mark.parametrize("status", ["undecided", "skipped"])
def test_every_form_can_be_declined(store, form, status):
    make, k, _ = form
    widget = make.for_store([question(k=k)], store)
    tell(widget, status=status)
    [answer] = store.answers()
    assert answer.status == status and not answer.given and widget.question is None
    undo(widget)
    assert widget.question is not None and store.answers() == []


NONSENSE = {
    "ranking": [{"order": 5}, {"order": [[1]]}, {"order": [[{}]]}, {"order": [[1], [2]], "status": "skipped"}],
    "compare": [{"order": [[1], [3]]}, {"order": []}],
    "graded": [{"grade": "much better"}, {"grade": ""}, {"grade": None}, {"order": [[1, 2]], "grade": "better"}],
    "rating": [{"scores": s} for s in (None, [], [[1, 2, 3, 4]], [[1, 2, 3]] * 2, [[0] * 4] * 2, [[6] * 4] * 2)]
    + [{"scores": s} for s in ([[True] * 4] * 2, [[1.5] * 4] * 2, [["5"] * 4] * 2, [[None] * 4] * 2, "abcd", 7)],
    "thumbs": [{"up": None}, {"up": 1}, {"up": "yes"}, {"reply": 0}, {"reply": 2}, {"reply": "1"}, {"reply": None}],
    "correction": [{"text": t} for t in ("", " \n", None, 5, "reply 0")] + [{"reply": 9}, {"status": "skipped"}],
}


@pytest.mark.parametrize("name, wrong", [(name, wrong) for name, each in NONSENSE.items() for wrong in each], ids=str)
def test_nonsense_from_the_page_is_refused_by_every_form_and_stores_nothing(store, name, wrong):
    make, k, decision = FORMS[name]
    widget = make.for_store([question(k=k)], store)
    tell(widget, **decision | wrong)
    assert widget.error.startswith("Not saved: ") and "Error:" not in widget.error  # ours, not a bug's
    assert store.events() == [] and widget.acknowledged == {} and widget.question.id == "q1"


def test_a_question_ranked_is_still_to_be_rated(store):
    asked = [question(k=2)]
    send(RankingWidget.for_store(asked, store), [[1], [2]])
    rating = RatingWidget.for_store(asked, store)
    assert rating.question.id == "q1" and not rating.can_undo
    assert RankingWidget.for_store(asked, store).question is None


@pytest.mark.parametrize("wrong", ["helpful", [], ["a", "a"], [""], [1], {"a": None}], ids=str)
def test_attributes_are_different_names(wrong):
    with pytest.raises(InputError, match="attributes="):
        RatingWidget(question(), attributes=wrong)


# --- guidelines, and the order on the screen ---


def test_the_same_guidelines_have_the_same_id_and_stay_closed_in_a_cell_that_runs_again():
    first = RankingWidget(question(), guidelines="Judge the facts.")
    assert first.guidelines["text"] == "Judge the facts." and first.guidelines_open
    first.set_state({"guidelines_open": False})
    again, other = (RankingWidget(question(), guidelines=text) for text in ("Judge the facts.", "Judge the tone."))
    assert again.guidelines == first.guidelines and not again.guidelines_open
    assert other.guidelines["id"] != first.guidelines["id"] and other.guidelines_open
    assert RankingWidget(question(), guidelines={"id": "v2", "text": "x"}).guidelines == {"id": "v2", "text": "x"}
    assert RankingWidget(question(), guidelines="  ").guidelines == {}
    for wrong in (5, {"text": "x"}, {"id": 1, "text": "x"}):
        with pytest.raises(InputError, match="guidelines are text"):
            RankingWidget(question(), guidelines=wrong)


def test_replies_can_be_shown_as_they_are_or_in_the_mirrored_order(store):
    asked = [question(f"q{n}") for n in range(5)]
    fixed = RankingWidget(asked[0], shuffle="fixed").shown["replies"]
    assert fixed == [f"reply {i}" for i in range(4)]
    for each in asked:
        random, mirrored = (RankingWidget(each, shuffle=how).shown["replies"] for how in ("random", "mirrored"))
        assert mirrored == random[::-1]
    with pytest.raises(InputError, match="shuffle='up'"):
        RankingWidget(asked[0], shuffle="up")


def test_a_question_is_asked_a_second_time_in_the_mirrored_order(store):
    asked = [question("q1"), question("q2")]
    first = RankingWidget.for_store(asked, store)
    shown = first.shown["replies"]
    send(first, [[1], [2], [3], [4]])
    second = RankingWidget.for_store(asked, store, shuffle="mirrored")
    assert second.progress == {"done": 0, "total": 2} and second.shown["replies"] == shown[::-1]
    send(second, [[1], [2], [3], [4]], answer_id="a2")
    one, other = (event.payload["displayed"] for event in store.events())
    assert one == other[::-1]
    assert RankingWidget.for_store(asked, store, shuffle="mirrored").question.id == "q2"


def test_labelling_is_light_neither_torch_nor_pandas_is_imported():
    code = (
        "import sys, rlhf_lab.store, widgets.ranking, widgets.compare, widgets.rating, widgets.thumbs, "
        "widgets.correction; print(*{'torch', 'transformers', 'pandas', 'matplotlib'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (result.returncode, result.stdout.strip()) == (0, ""), result.stderr
