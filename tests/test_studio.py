"""The Studio in Python: what the person does reaches the loop, what the loop says reaches the screen, on any thread."""

import json
import threading
import time

import pytest
from fake_loop import FakeLoop, make_question, make_stats

from rlhf_lab.errors import InputError
from rlhf_lab.records import (
    Candidate,
    Correction,
    Effect,
    Interval,
    LoopError,
    Question,
    QuestionsReady,
    Ranking,
    RewardUpdate,
    Rollout,
    StateChanged,
    Taught,
    Vote,
    WinRate,
)
from widgets.studio import FORMS, Studio, effect_view, pairs_agreed, verdict


@pytest.fixture
def open_studio():
    """Makes Studios that show changes at once, and closes them."""
    made = []

    def make(loop: FakeLoop) -> Studio:
        made.append(Studio(loop, interval=0.0))
        return made[-1]

    yield make
    for studio in made:
        studio.close()


def shown(studio: Studio, part: str) -> dict:
    return studio._parts[part].data


def press(studio: Studio, action: str) -> None:
    studio._parts["bar"]._handle_custom_msg({"action": action}, [])


def rank(studio: Studio, answer_id: str, order=None, status: str = "ranked") -> None:
    """Answer the question on the screen as the page does."""
    count = len(studio.widget.shown["replies"])
    order = [[n] for n in range(1, count + 1)] if order is None else order
    answer = {"id": answer_id, "question": studio.widget.shown["id"], "order": order, "status": status}
    studio.widget.set_state({"answer": answer | {"seconds": 1.0, "attempt": 1}, "error": ""})


def wait_for(condition) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


def update(labels: int, answer_id: str = "r", **fields) -> RewardUpdate:
    return RewardUpdate(
        **{"labels": labels, "ranking_id": answer_id, "agreement": 0.5, "running_agreement": 0.6, "window": 10} | fields
    )


# --- controls ---


def test_each_control_calls_the_loop_and_shows_its_state(open_studio):
    loop = FakeLoop()
    studio = open_studio(loop)
    for action, state in [("start", "running"), ("pause", "paused"), ("step", "paused"), ("stop", "stopped")]:
        press(studio, action)
        assert loop.calls[-1] == action
        assert shown(studio, "bar")["state"] == state
        assert shown(studio, "bar")["message"].endswith((".", "…"))


def test_the_loop_s_own_words_about_its_state_are_shown(open_studio):
    loop = FakeLoop()
    studio = open_studio(loop)
    loop.emit(StateChanged("paused", "PPO waits for your first five labels."))
    assert shown(studio, "bar")["message"] == "PPO waits for your first five labels."


@pytest.mark.parametrize(
    ("error", "text"),
    [(InputError("the store is read-only; choose another folder"), "the store is read-only; choose another folder"),
     (RuntimeError("no thread"), "RuntimeError: no thread")],
)  # fmt: skip
def test_what_a_control_raises_is_shown_and_can_be_dismissed(open_studio, error, text):
    loop = FakeLoop()
    studio = open_studio(loop)
    loop.failing["start"] = error
    press(studio, "start")
    assert [e["message"] for e in shown(studio, "bar")["errors"]] == [text]
    press(studio, "dismiss")
    assert shown(studio, "bar")["errors"] == []


def test_a_message_that_is_no_control_does_nothing(open_studio):
    loop = FakeLoop()
    studio = open_studio(loop)
    before = list(loop.calls)
    press(studio, "__init__")
    assert loop.calls == before and shown(studio, "bar")["errors"] == []


# --- questions and answers ---


def test_an_answer_is_submitted_counted_and_followed_by_the_next_question(open_studio):
    loop = FakeLoop([make_question("q1"), make_question("q2")])
    studio = open_studio(loop)
    rank(studio, "a1")
    assert [ranking.question_id for ranking in loop.answers] == ["q1"]
    assert loop.answers[0].annotator == "ada"
    assert studio.widget.acknowledged == {"id": "a1", "seq": 1}
    assert shown(studio, "bar")["labels"] == 1
    assert studio.widget.question.id == "q2"


def test_a_ranking_that_was_not_stored_is_not_acknowledged_and_the_reason_is_shown(open_studio):
    loop = FakeLoop([make_question("q1")])
    studio = open_studio(loop)
    loop.failing["submit"] = InputError("the disk is full; your label was not stored")
    rank(studio, "a1")
    assert studio.widget.acknowledged == {} and studio.widget.question.id == "q1"
    assert "the disk is full" in studio.widget.error
    assert shown(studio, "effect").get("pending", 0) == 0


def test_questions_that_become_ready_appear_without_a_click(open_studio):
    loop = FakeLoop()
    studio = open_studio(loop)
    assert studio.widget.question is None
    loop.questions.append(make_question("q1"))
    loop.emit(QuestionsReady(1, 4))
    wait_for(lambda: studio.widget.question is not None)
    assert shown(studio, "bar")["waiting"] == 1


def test_questions_that_become_ready_while_the_last_answer_is_taken_are_not_missed(open_studio):
    class Late(FakeLoop):
        """The next question comes just after `next_question` has looked and found none."""

        def next_question(self):
            found = super().next_question()
            if found is None and self.labels == 1 and not self.questions and "q2" not in self.known:
                self.questions.append(make_question("q2"))
                self.emit(QuestionsReady(1, 1))  # the ranking widget still shows q1 now
            return found

    loop = Late([make_question("q1")])
    studio = open_studio(loop)
    rank(studio, "a1")
    wait_for(lambda: studio.widget.question is not None)
    assert studio.widget.question.id == "q2"


def test_undo_withdraws_and_brings_the_question_back(open_studio):
    loop = FakeLoop([make_question("q1"), make_question("q2")])
    studio = open_studio(loop)
    rank(studio, "a1")
    studio.widget.set_state({"undo": {"id": "u1"}})
    assert loop.answers == [] and shown(studio, "bar")["labels"] == 0
    assert studio.widget.question.id == "q1"
    rank(studio, "a2")
    assert studio.widget.question.id == "q2"


def test_ask_me_again_asks_an_earlier_question_and_then_the_one_it_displaced(open_studio):
    loop = FakeLoop([make_question("q1"), make_question("q2")])
    studio = open_studio(loop)
    press(studio, "again")
    assert "nothing to ask again" in shown(studio, "bar")["message"]
    rank(studio, "a1")
    press(studio, "again")
    assert studio.widget.question.id == "q1"
    rank(studio, "a2")
    assert [ranking.question_id for ranking in loop.answers] == ["q1", "q1"]
    assert studio.widget.question.id == "q2"


# --- what the loop says ---


def test_events_become_curves(open_studio):
    loop = FakeLoop()
    studio = open_studio(loop)
    loop.emit(make_stats(7, reward=0.5, kl=2.0))
    loop.emit(update(1, agreement=0.25, running_agreement=0.5))
    loop.emit(WinRate(7, Interval(0.6, 0.5, 0.7, 64)))
    assert studio.curves.points("reward") == [(7.0, 0.5, None, None)]
    assert studio.curves.points("kl") == [(7.0, 2.0, None, None)]
    assert studio.curves.points("agreement/one") == [(1.0, 0.25, None, None)]
    assert studio.curves.points("agreement/running") == [(1.0, 0.5, None, None)]
    assert studio.curves.points("win_rate") == [(7.0, 0.6, 0.5, 0.7)]
    assert [(mark.x, mark.label) for mark in studio.curves.marks] == [(7.0, "label 1")]
    assert len(studio.figure().axes) == 4


def test_a_ranking_without_a_strict_pair_adds_no_agreement(open_studio):
    loop = FakeLoop()
    studio = open_studio(loop)
    loop.emit(update(1, agreement=None, running_agreement=None))
    assert studio.curves.points("agreement/one") == [] and shown(studio, "bar")["errors"] == []


def test_the_policy_s_latest_replies_are_shown(open_studio):
    loop = FakeLoop()
    studio = open_studio(loop)
    loop.emit(make_stats(3, samples=tuple(Rollout("p", f"reply {i}", 1.5, 2.0) for i in range(9))))
    assert shown(studio, "samples")["step"] == 3
    assert [item["reply"] for item in shown(studio, "samples")["items"]] == ["reply 0", "reply 1", "reply 2"]


def test_worker_errors_are_shown_until_it_runs_again(open_studio):
    loop = FakeLoop()
    studio = open_studio(loop)
    loop.emit(LoopError("PPO", "out of memory"))
    loop.enter("error")
    assert shown(studio, "bar")["errors"] == [{"where": "PPO", "message": "out of memory"}]
    press(studio, "start")
    assert shown(studio, "bar")["errors"] == []


def test_an_event_that_cannot_be_shown_does_not_break_the_worker(open_studio):
    loop = FakeLoop()
    studio = open_studio(loop)
    loop.emit(make_stats(1, reward="high"))
    assert "'high' is not a number" in shown(studio, "bar")["errors"][0]["message"]


def test_a_stored_label_is_announced_until_the_reward_model_has_learned_it(open_studio):
    loop = FakeLoop([make_question("q1"), make_question("q2")])
    studio = open_studio(loop)
    rank(studio, "a1")
    assert shown(studio, "effect")["pending"] == 1
    loop.emit(update(1, "a1"))
    assert shown(studio, "effect")["pending"] == 0


def test_a_correction_taught_before_submit_returned_is_still_said(open_studio):
    class Fast(FakeLoop):
        def submit(self, answer):
            number = super().submit(answer)
            self.emit(update(number, answer.id, kind="correction"))
            self.emit(Taught(1, 1, before=1.5, after=0.4))
            return number

    studio = open_studio(Fast([make_question("q1", 1)]))
    choose(studio, "correct")
    send(studio, "a1", text="a better one")
    assert "likelier" in shown(studio, "effect")["taught"] and "likelier" in studio.history["a1"].effect


def test_a_label_learned_before_submit_returned_is_not_announced_as_waiting(open_studio):
    class Fast(FakeLoop):
        def submit(self, answer):
            number = super().submit(answer)
            self.emit(update(number, answer.id, agreement=0.75))
            return number

    studio = open_studio(Fast([make_question("q1")]))
    rank(studio, "a1")
    assert shown(studio, "effect").get("pending", 0) == 0
    assert studio.curves.points("agreement/one") == [(1.0, 0.75, None, None)]
    assert studio.history["a1"].learned


# --- one loop, one Studio; the whole history ---


def test_a_second_studio_shows_everything_and_takes_the_first_one_s_place(open_studio):
    loop = FakeLoop([make_question("q1"), make_question("q2"), make_question("q3")])
    first = open_studio(loop)
    rank(first, "a1")
    loop.start()
    for step in range(1, 6):
        loop.emit(make_stats(step, reward=step / 10))
    loop.emit(LoopError("PPO", "a spike"))
    second = open_studio(loop)
    assert len(loop.callbacks) == 1
    assert second.curves.points("reward") == first.curves.points("reward")
    assert shown(second, "bar") == shown(first, "bar") and shown(second, "bar")["errors"]
    assert second.widget.question.id == "q2"  # the unanswered one is not lost
    second.widget.set_state({"undo": {"id": "u1"}})
    assert second.widget.question.id == "q1" and loop.answers == []
    loop.emit(make_stats(6, reward=0.6))
    assert len(second.curves.points("reward")) == 6 and len(first.curves.points("reward")) == 5


def test_events_that_come_while_the_history_is_read_are_taken_once(open_studio):
    class Busy(FakeLoop):
        """Speaks on its worker's thread while a new Studio reads the history."""

        def subscribe(self, callback):
            unsubscribe = super().subscribe(callback)
            worker = threading.Thread(target=lambda: self.emit(make_stats(2, reward=2.0)))
            worker.start()
            worker.join()
            return unsubscribe

    loop = Busy()
    loop.emit(make_stats(1, reward=1.0))
    studio = open_studio(loop)
    loop.emit(make_stats(3, reward=3.0))
    assert [point[0] for point in studio.curves.points("reward")] == [1.0, 2.0, 3.0]


def test_two_loops_have_a_studio_each(open_studio):
    one, other = FakeLoop(), FakeLoop()
    open_studio(one), open_studio(other)
    assert len(one.callbacks) == len(other.callbacks) == 1


def test_close_stops_listening_and_can_be_repeated(open_studio):
    loop = FakeLoop()
    studio = open_studio(loop)
    studio.close()
    studio.close()
    assert loop.callbacks == []


def test_many_threads_may_speak_at_once(open_studio):
    loop = FakeLoop([make_question(f"q{n}") for n in range(30)])
    studio = open_studio(loop)

    def speak(offset: int) -> None:
        for step in range(100):
            loop.emit(make_stats(offset + step, reward=1.0))

    threads = [threading.Thread(target=speak, args=(100 * n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for n in range(30):
        rank(studio, f"a{n}")
    for thread in threads:
        thread.join()
    assert len(studio.curves.points("reward")) == 400
    assert len(loop.answers) == 30 and shown(studio, "bar")["errors"] == []


# --- the effect of a label, by hand ---

FOUR = Question("q", "which?", tuple(Candidate(name, f"text {name}", model="ppo-9") for name in "abcd"))


def test_pairs_agreed_by_hand():
    effect = Effect(FOUR, (("a",), ("b", "c"), ("d",)), (0.0, 1.0, 2.0, 3.0), (3.0, 1.0, 2.0, 2.0))
    # Strict pairs: ab, ac, ad, bd, cd; b and c are tied. Equal scores (c, d) agree with nothing.
    assert pairs_agreed(effect, effect.before) == (0, 5)
    assert pairs_agreed(effect, effect.after) == (3, 5)


def test_effect_view_orders_by_the_new_scores_and_says_where_each_reply_was():
    effect = Effect(FOUR, (("a",), ("b", "c"), ("d",)), (0.0, 1.0, 2.0, 3.0), (3.0, 1.0, 2.0, 0.0))
    view = effect_view(effect)
    assert [
        (row["text"], row["rank_before"], row["rank_after"], row["you"], row["agrees"]) for row in view["rows"]
    ] == [
        ("text a", 4, 1, 1, True),
        ("text c", 2, 2, 2, True),
        ("text b", 3, 3, 2, True),  # tied with c for places 2 and 3
        ("text d", 1, 4, 3, True),
    ]
    assert "agrees with you completely (before your label: 0 of 5 pairs)" in view["verdict"]
    assert "ppo-9" not in json.dumps(view)  # who wrote a reply stays hidden


@pytest.mark.parametrize(
    ("before", "after", "pairs", "said"),
    [
        (3, 5, 6, "now orders 5 of 6 pairs as you did (up from 3)"),
        (5, 3, 6, "now orders 3 of 6 pairs as you did (down from 5)"),
        (3, 3, 6, "now orders 3 of 6 pairs as you did (as before: 3)"),
        (6, 6, 6, "completely (as it did before)"),
        (0, 0, 0, "no pair"),
    ],
)
def test_the_verdict_says_whether_it_agrees_and_whether_that_is_new(before, after, pairs, said):
    assert said in verdict(before, after, pairs)


def test_the_latest_effect_comes_first_and_earlier_ones_below(open_studio):
    loop = FakeLoop()
    studio = open_studio(loop)
    effects = tuple(
        Effect(make_question(f"q{n}", 2), ((f"q{n}-0",), (f"q{n}-1",)), (0.0, 1.0), (1.0, 0.0)) for n in range(3)
    )
    loop.emit(update(4, effects=effects))
    data = shown(studio, "effect")
    assert (data["label"], data["latest"]["prompt"]) == (4, "prompt of q0")
    assert [view["prompt"] for view in data["earlier"]] == ["prompt of q1", "prompt of q2"]


# --- every form of feedback on one waiting question ---


def send(studio: Studio, answer_id: str, **decision) -> None:
    """Answer what the chosen form shows, as its page does."""
    shown_ = studio.widget.shown
    place = {"reply": shown_["reply"]} if "reply" in shown_ else {}
    answer = {"id": answer_id, "question": shown_["id"], "seconds": 1.0, "attempt": 1} | place | decision
    studio.widget.set_state({"answer": answer, "error": ""})
    assert studio.widget.error == ""


def choose(studio: Studio, form: str) -> None:
    studio._parts["forms"]._handle_custom_msg({"action": "form", "form": form}, [])


def test_the_same_question_is_shown_in_every_form_and_asked_of_the_loop_once(open_studio):
    loop = FakeLoop([make_question("q1", 4)])
    studio = open_studio(loop)
    shown_ = {}
    for form in FORMS:
        choose(studio, form)
        assert studio.form == shown(studio, "forms")["form"] == form
        shown_[form] = None if form == "chat" else studio.widget.question
    choose(studio, "rank")
    assert studio.widget.question.id == "q1" and loop.calls.count("next_question") == 1
    assert {form: question.id for form, question in shown_.items() if question} == {
        "rank": "q1", "compare": "q1.pair", "grade": "q1.pair", "rate": "q1", "thumbs": "q1", "correct": "q1",
    }  # fmt: skip
    assert shown_["compare"] == shown_["grade"] and len(shown_["compare"].candidates) == 2
    assert shown(studio, "bar")["errors"] == [] and "ask" not in loop.calls  # a pair is kept when it is answered


@pytest.mark.parametrize(
    ("form", "decision", "kind"),
    [
        ("rank", {"order": [[1], [2, 3], [4]]}, "ranking"),
        ("compare", {"order": [[2], [1]]}, "ranking"),
        ("grade", {"order": [[1], [2]], "grade": "slightly better"}, "ranking"),
        ("rate", {"scores": [[1, 2, 3, 4]] * 4}, "rating"),
    ],
)
def test_an_answer_in_any_form_reaches_the_loop_and_brings_the_next_question_to_all(open_studio, form, decision, kind):
    loop = FakeLoop([make_question("q1", 4), make_question("q2", 4)])
    studio = open_studio(loop)
    choose(studio, form)
    send(studio, "a1", **decision)
    [answer] = loop.answers
    assert answer.kind == kind and loop.known[answer.question_id].prompt == "prompt of q1"
    assert ("ask" in loop.calls) == (form in ("compare", "grade"))
    assert studio.widget.question.prompt == "prompt of q2"
    choose(studio, "correct")
    assert studio.widget.question.id == "q2"


def test_a_question_stays_until_a_thumb_was_given_for_each_reply(open_studio):
    loop = FakeLoop([make_question("q1", 2), make_question("q2", 2)])
    studio = open_studio(loop)
    choose(studio, "thumbs")
    send(studio, "a1", up=True)
    choose(studio, "rank")
    assert studio.widget.question.id == "q1"
    choose(studio, "thumbs")
    send(studio, "a2", up=False)
    assert studio.widget.question.id == "q2"
    assert [(vote.kind, vote.up) for vote in loop.answers] == [("vote", True), ("vote", False)]


def test_switching_forms_loses_no_draft(open_studio):
    loop = FakeLoop([make_question("q1", 3), make_question("q2", 3)])
    studio = open_studio(loop)
    begun = {"question": "q1", "since": 5, "tiers": [[2]]}
    studio.widget.set_state({"draft": begun})
    choose(studio, "correct")
    studio.widget.set_state({"draft": {"question": "q1", "reply": 1, "since": 6, "text": "half a"}})
    for form in ("chat", "rank"):
        choose(studio, form)
    assert studio.widget.draft == begun
    choose(studio, "correct")
    assert studio.widget.draft["text"] == "half a"


def test_a_draft_comes_back_with_a_question_that_was_displaced(open_studio):
    loop = FakeLoop([make_question("q1", 3), make_question("q2", 3)])
    studio = open_studio(loop)
    rank(studio, "a1")
    begun = {"question": "q2", "since": 5, "tiers": [[3]]}
    studio.widget.set_state({"draft": begun})
    press(studio, "again")
    assert studio.widget.question.id == "q1" and studio.widget.draft == {}
    rank(studio, "a2")
    assert studio.widget.question.id == "q2" and studio.widget.draft == begun


def test_a_form_that_is_entered_while_nothing_waits_asks_and_shows_what_comes(open_studio):
    loop = FakeLoop([make_question("q1", 2)])
    studio = open_studio(loop)
    choose(studio, "rate")
    send(studio, "a1", status="skipped")
    choose(studio, "rank")
    assert studio.widget.question is None  # q1 is answered and does not come back
    loop.questions.append(make_question("q2", 2))
    loop.emit(QuestionsReady(1, 0))
    wait_for(lambda: studio.widget.question is not None)
    assert studio.widget.question.id == "q2"


def test_a_question_that_a_form_cannot_ask_waits_for_one_that_can(open_studio):
    loop = FakeLoop([make_question("one", 1), make_question("two", 2)])
    studio = open_studio(loop)
    assert studio.widget.question.id == "two"  # one reply cannot be ranked
    choose(studio, "thumbs")
    send(studio, "a1", up=True)
    send(studio, "a2", up=True)
    assert studio.widget.question.id == "one"
    choose(studio, "rank")
    choose(studio, "thumbs")
    assert studio.widget.question.id == "one"


def test_a_teacher_restricts_the_forms_and_gives_guidelines():
    loop = FakeLoop([make_question("q1", 3)])
    studio = Studio(loop, forms=("grade", "thumbs"), guidelines="Right before polite.", interval=0.0)
    assert studio.form == "grade" and [f["key"] for f in shown(studio, "forms")["forms"]] == ["grade", "thumbs"]
    assert studio.widget.guidelines["text"] == "Right before polite."
    choose(studio, "rank")
    assert studio.form == "grade" and "offers grade, thumbs" in shown(studio, "bar")["errors"][0]["message"]
    send(studio, "a1", order=[[1], [2]], grade="better")
    assert loop.answers[0].context["guidelines"] == studio.widget.guidelines["id"]
    studio.close()


@pytest.mark.parametrize("forms", [(), ("rank", "rank"), ("ranking",), "all"])
def test_forms_that_there_are_not_are_named(forms):
    with pytest.raises(InputError, match="rank, compare, grade, rate, thumbs, correct, chat"):
        Studio(FakeLoop(), forms=forms)


def test_labels_given_in_the_chat_are_labels_like_any_other(open_studio):
    loop = FakeLoop()
    studio = open_studio(loop)
    choose(studio, "chat")
    studio.widget._handle_custom_msg({"id": "m1", "action": "send", "text": "Hello?"}, [])
    wait_for(lambda: studio.widget.turns[-1].get("versions"))
    turn = studio.widget.turns[-1]["id"]
    studio.widget._handle_custom_msg({"id": "v1", "action": "vote", "turn": turn, "version": 0, "up": True}, [])
    assert studio.widget.error == "" and [vote.id for vote in loop.answers] == ["v1"]
    assert studio.history["v1"].number == 1 and shown(studio, "bar")["labels"] == 1
    act(studio, "withdraw", "v1")
    assert loop.answers == [] and studio.widget.turns[-1]["versions"][0]["up"] is None


# --- the history: withdraw, change, roll back ---


class HistoryPage:
    """Stands for the history's page: takes its messages."""

    def __init__(self, studio: Studio):
        self.rows, self.messages = {}, []
        studio.history.send = self.take
        studio.history._handle_custom_msg({"type": "hello"}, [])

    def take(self, message: dict) -> None:
        self.messages.append(message)
        self.rows |= dict(message.get("rows", ()))

    def __getitem__(self, number: int) -> dict:
        return next(row for row in self.rows.values() if row.get("number") == number)


def act(studio: Studio, action: str, answer_id: str) -> None:
    studio.history._handle_custom_msg({"action": action, "id": answer_id}, [])


def effect_of(question: Question, before, after) -> Effect:
    return Effect(question, tuple((candidate.id,) for candidate in question.candidates), before, after)


def labelled(open_studio, count: int) -> tuple[FakeLoop, Studio]:
    """A Studio with `count` rankings a1, a2, … of q1, q2, …, each given after a further PPO step and learned."""
    loop = FakeLoop([make_question(f"q{n}", 2) for n in range(1, count + 2)])
    studio = open_studio(loop)
    for n in range(1, count + 1):
        loop.emit(make_stats(n, reward=n / 10))
        rank(studio, f"a{n}")
        effect = effect_of(loop.known[f"q{n}"], (0.0, 1.0), (1.0, 0.0))
        loop.emit(update(n, f"a{n}", agreement=1.0, effects=(effect,)))
    return loop, studio


def test_each_label_is_a_row_and_a_mark_that_say_what_it_was(open_studio):
    _, studio = labelled(open_studio, 2)
    page = HistoryPage(studio)
    row = page[2]
    assert (row["kind"], row["step"], row["prompt"], row["state"]) == ("Ranking", 2, "prompt of q2", "")
    assert row["effect"] == "0 → 1 of 1 pair in your order" and "reply" in row["decision"]
    [first, second] = studio.curves.marks
    assert (first.x, first.id, first.also) == (1.0, "a1", {"your label": 1})
    assert second.label == "label 2: ranking of “prompt of q2”"


def test_a_withdrawn_label_is_struck_and_its_mark_says_so(open_studio):
    loop, studio = labelled(open_studio, 3)
    page = HistoryPage(studio)
    act(studio, "withdraw", "a2")
    assert [answer.id for answer in loop.answers] == ["a1", "a3"]
    assert page[2]["gone"] and page[2]["state"] == "withdrawn" and not page[3]["gone"]
    assert [(mark.id, mark.withdrawn) for mark in studio.curves.marks] == [("a1", False), ("a2", True), ("a3", False)]
    loop.emit(update(2, "a2", agreement=None, running_agreement=0.9))  # the reward model unlearns it
    assert len(studio.curves.marks) == 3 and len(studio.curves.points("agreement/running")) == 3
    assert shown(studio, "bar")["labels"] == 2
    studio.widget.set_state({"undo": {"id": "u1"}})  # Undo passes a2 by
    studio.widget.set_state({"undo": {"id": "u2"}})
    assert loop.answers == [] and studio.widget.question.id == "q1"


def test_a_label_is_changed_in_its_form_and_the_new_one_takes_its_place(open_studio):
    loop = FakeLoop([make_question("q1", 3), make_question("q2", 3)])
    studio = open_studio(loop)
    choose(studio, "rate")
    send(studio, "a1", scores=[[1, 2, 3, 4]] * 3)
    choose(studio, "thumbs")
    page = HistoryPage(studio)
    act(studio, "change", "a1")
    assert studio.form == "rate" and studio.widget.question.id == "q1"
    assert studio.widget.draft["marks"] == [[1, 2, 3, 4]] * 3  # what was decided then stands there
    send(studio, "a2", scores=[[5, 5, 5, 5]] * 3)
    assert page[1]["state"] == "replaced by label 2" and page[2]["state"] == ""
    assert studio.widget.question.id == "q2"  # the one that was displaced
    act(studio, "withdraw", "a2")
    assert page[1]["state"] == ""  # it counts again


def test_who_cannot_decide_any_more_leaves_no_label_and_the_old_one_is_said_to_be_replaced(open_studio):
    loop, studio = labelled(open_studio, 1)
    page = HistoryPage(studio)
    act(studio, "change", "a1")
    rank(studio, "a2", order=[], status="undecided")
    loop.emit(update(0, "a2", agreement=None, running_agreement=None))  # the reward model unlearns the first
    assert page[1]["state"] == "replaced: can't decide" and page[0]["decision"] == "can't decide"
    assert page[0]["effect"] == "" and [mark.id for mark in studio.curves.marks] == ["a1"]
    act(studio, "withdraw", "a2")
    loop.emit(update(1, "a2", agreement=None))  # and learns it again
    assert page[1]["state"] == "" and [mark.id for mark in studio.curves.marks] == ["a1"]


def test_rolling_back_withdraws_this_label_and_all_later_ones_and_the_curves_show_where(open_studio):
    loop, studio = labelled(open_studio, 4)
    loop.emit(make_stats(9, reward=0.9))
    page = HistoryPage(studio)
    act(studio, "rollback", "a3")
    assert [answer.id for answer in loop.answers] == ["a1", "a2"] and shown(studio, "bar")["labels"] == 2
    assert [page[n]["state"] for n in (1, 2, 3, 4)] == ["", "", "rolled back", "rolled back"]
    assert page.rows[4]["kind"] == "rollback"
    assert page.rows[4]["decision"] == "Rolled back to before label 3: 2 labels withdrawn, policy of PPO step 3"
    assert [(cut.xlabel, cut.start, cut.end) for cut in studio.curves.cuts] == [
        ("PPO step", 3.0, 9.0), ("your label", 2.0, 4.0),
    ]  # fmt: skip
    assert "after PPO step 3" in shown(studio, "bar")["message"]
    assert [mark.withdrawn for mark in studio.curves.marks] == [False, False, True, True]
    assert len(studio.figure().axes) == 4
    rank(studio, "a5")
    loop.emit(update(3, "a5", agreement=0.5))
    assert studio.curves.points("agreement/one")[-1][0] == 5.0  # labels go on being numbered, like PPO steps


def test_a_rollback_that_fails_withdraws_nothing_on_the_screen(open_studio):
    loop, studio = labelled(open_studio, 2)
    page = HistoryPage(studio)
    loop.failing["rollback"] = InputError("the store is read-only")
    act(studio, "rollback", "a1")
    assert "read-only" in shown(studio, "bar")["errors"][0]["message"]
    assert not page[1]["gone"] and studio.curves.cuts == []


def test_a_studio_that_is_made_anew_shows_labels_rollback_and_the_chosen_form(open_studio):
    loop, studio = labelled(open_studio, 3)
    act(studio, "rollback", "a2")
    choose(studio, "grade")
    again = open_studio(loop)
    page = HistoryPage(again)
    assert again.form == "grade" and again.curves.cuts == studio.curves.cuts
    assert [page[n]["state"] for n in (1, 2, 3)] == ["", "rolled back", "rolled back"]
    assert [mark.withdrawn for mark in again.curves.marks] == [False, True, True]


def test_labels_of_an_earlier_session_are_in_the_history_and_can_be_withdrawn(open_studio):
    loop = FakeLoop()
    loop.known["q1"] = make_question("q1", 2)
    loop.submit(Ranking("q1", (("q1-0",), ("q1-1",)), "ada", id="old"))
    studio = open_studio(loop)
    page = HistoryPage(studio)
    assert page[1]["id"] == "old" and page[1]["step"] is None
    act(studio, "withdraw", "old")
    assert loop.answers == [] and page[1]["gone"]


def test_an_event_sends_only_the_rows_that_it_changed_however_long_the_history(open_studio):
    loop, studio = labelled(open_studio, 120)
    page = HistoryPage(studio)
    assert len(page.messages) == 1 and len(page.rows) == 120
    rank(studio, "last")
    loop.emit(update(121, "last", effects=(effect_of(loop.known["q121"], (0.0, 1.0), (1.0, 0.0)),)))
    assert [[place for place, _ in message["rows"]] for message in page.messages[1:]] == [[120], [120]]


def test_choosing_a_mark_opens_the_history_there(open_studio):
    _, studio = labelled(open_studio, 2)
    page = HistoryPage(studio)
    studio.curves._handle_custom_msg({"type": "mark", "id": "a1"}, [])
    assert studio.history.opened and page.messages[-1] == {"type": "reveal", "id": "a1"}


def test_what_a_correction_taught_is_said_in_words(open_studio):
    loop = FakeLoop([make_question("q1", 1)])
    studio = open_studio(loop)
    choose(studio, "correct")
    send(studio, "a1", text="a better one")
    pair = Question("q1", "which?", (Candidate("a1", "a better one"), Candidate("q1-0", "reply 0")))
    effect = Effect(pair, (("a1",), ("q1-0",)), (0.0, 1.0), (0.5, 0.8))
    loop.emit(update(1, "a1", effects=(effect,), kind="correction"))
    loop.emit(Taught(4, 1, before=1.5, after=0.4))
    assert studio.history["a1"].effect == "your text +0.50, the original +0.80; policy: 3.0× likelier"
    assert "3.0× likelier" in shown(studio, "effect")["taught"] and "1.50 → 0.40" in shown(studio, "effect")["taught"]


def test_the_effect_of_a_correction_shows_the_corrected_text_first_and_of_a_vote_the_thumb():
    corrected = Question("q", "which?", (Candidate("new", "better"), Candidate("a", "worse")))
    effect = Effect(corrected, (("new",), ("a",)), (0.0, 1.0), (0.5, 0.8))
    view = effect_view(effect, Correction("q", "a", "better", "ada"))
    assert [(row["text"], row["who"]) for row in view["rows"]] == [("better", "your text"), ("worse", "the original")]
    assert view["verdict"] == "The reward model still puts the original ahead, by 0.30 (before: +1.00)."
    view = effect_view(Effect(corrected, (("new",), ("a",)), (0.0, 1.0), (0.9, 0.5)), Correction("q", "a", "b", "ada"))
    assert "your text above the original by 0.40 (before: the original was ahead by 1.00)" in view["verdict"]
    one = Question("q", "which?", (Candidate("a", "text"),))
    view = effect_view(Effect(one, (), (0.2,), (0.1,)), Vote("q", "a", False, "ada"))
    assert (view["rows"][0]["you"], view["rows"][0]["agrees"]) == ("👎", True)
    assert view["verdict"] == "Your thumb went down, and the reply's score fell with it."


def test_what_a_script_answers_and_takes_back_is_in_the_history_too(open_studio):
    loop = FakeLoop([make_question("q1", 2)])
    studio = open_studio(loop)
    page = HistoryPage(studio)
    loop.ask(make_question("mine", 2))
    loop.emit(make_stats(5))
    loop.submit(Ranking("mine", (("mine-0",), ("mine-1",)), "ada", id="s1"))
    loop.emit(update(1, "s1"))
    assert (page[1]["id"], page[1]["step"], page[1]["gone"]) == ("s1", 5, False)
    loop.undo()
    loop.emit(update(0, "s1", agreement=None, running_agreement=None))
    assert page[1]["gone"] and studio.curves.marks[0].withdrawn
