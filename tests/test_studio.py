"""The Studio in Python: what the person does reaches the loop, what the loop says reaches the screen, on any thread."""

import json
import threading
import time

import pytest
from fake_loop import FakeLoop, make_question, make_stats

from rlhf_lab.errors import InputError
from rlhf_lab.records import (
    Candidate,
    Effect,
    Interval,
    LoopError,
    Question,
    QuestionsReady,
    RewardUpdate,
    Rollout,
    StateChanged,
    WinRate,
)
from widgets.studio import Studio, effect_view, pairs_agreed, verdict


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
