"""The live chart's Python side: what the page is sent puts together the whole history, whatever was lost on the way."""

import math
import threading

import pytest

from rlhf_lab.errors import InputError
from rlhf_lab.records import LossPoint, RewardPoint, StepStats
from widgets.curves import Coalescer, CurvesWidget, Panel, Series, loss_curves, ppo_curves, reward_curves

PANELS = [
    Panel("reward", "Reward"),
    Panel("win", "Win rate", series=(Series("gold", "gold"), Series("rm", "reward model"))),
]


class Page:
    """Stands for a browser: takes messages as curves.js does, and says hello like it."""

    def __init__(self, widget):
        self.widget, self.epoch, self.series, self.marks, self.messages = widget, -1, {}, [], []
        widget.send = self.take

    def take(self, message):
        self.messages.append(message)
        if message["epoch"] > self.epoch:
            self.epoch, self.series, self.marks = message["epoch"], {}, []
        for key, part in message["series"].items():
            have = self.series.setdefault(key, [])
            assert part["start"] <= len(have), "a gap"
            have[part["start"] : part["start"] + len(part["points"])] = part["points"]
        start = message["marks"]["start"]
        self.marks[start : start + len(message["marks"]["items"])] = message["marks"]["items"]
        for place, mark in message["marks"]["changed"]:
            self.marks[place] = mark
        self.cuts = message["cuts"]

    def hello(self):
        self.widget._handle_custom_msg({"type": "hello"}, [])


def chart(**options):
    return CurvesWidget(PANELS, **{"interval": 0.0} | options)


def test_points_reach_the_page_as_they_come():
    widget = chart()
    page = Page(widget)
    page.hello()
    widget.add("reward", 1, 0.5)
    widget.add("win/gold", 1, 0.6, low=0.5, high=0.7)
    widget.mark(1, "your label 1")
    assert page.series == {"reward": [(1.0, 0.5, None, None)], "win/gold": [(1.0, 0.6, 0.5, 0.7)]}
    assert [mark[:2] for mark in page.marks] == [[1.0, "your label 1"]]


def test_only_what_is_new_is_sent_to_a_page_that_has_said_hello():
    widget = chart()
    page = Page(widget)
    page.hello()
    for x in range(100):
        widget.add("reward", x, x)
    assert [len(m["series"]["reward"]["points"]) for m in page.messages[1:]] == [1] * 100


def test_a_page_that_opens_late_or_again_gets_everything():
    widget = chart()
    widget.send = lambda message: None  # no page yet: what is sent now is lost
    for x in range(50):
        widget.add("reward", x, 2 * x)
    widget.mark(7, "your label 1")
    for _ in range(2):
        page = Page(widget)
        page.hello()
        assert [point[1] for point in page.series["reward"]] == [2 * x for x in range(50)]
        assert [mark[:2] for mark in page.marks] == [[7.0, "your label 1"]]


def test_a_page_that_opens_inside_a_running_cell_misses_nothing():
    # Its hello waits until the cell is done (ipykernel 6), and messages before its script had loaded are lost.
    widget = chart()
    widget.send = lambda message: None
    widget.add("reward", 1, 1.0)
    page = Page(widget)
    widget.add("reward", 2, 2.0)
    assert page.series["reward"] == [(1.0, 1.0, None, None), (2.0, 2.0, None, None)]


def test_clear_forgets_here_and_on_the_page():
    widget = chart()
    page = Page(widget)
    page.hello()
    widget.add("reward", 1, 1.0)
    widget.mark(1, "one")
    widget.clear()
    assert (page.series, page.marks) == ({}, []) and widget.points("reward") == []
    widget.add("reward", 5, 5.0)
    assert page.series == {"reward": [(5.0, 5.0, None, None)]}


def test_many_threads_lose_no_point():
    widget = chart(interval=0.01)
    page = Page(widget)
    page.hello()

    def work(key):
        for x in range(300):
            widget.add(key, x, x)

    threads = [threading.Thread(target=work, args=(key,)) for key in ("reward", "win/gold", "win/rm")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    widget.flush()
    assert {key: [p[0] for p in points] for key, points in page.series.items()} == {
        key: list(range(300)) for key in ("reward", "win/gold", "win/rm")
    }


def test_a_mark_with_the_id_of_an_earlier_one_takes_its_place_here_and_on_the_page():
    widget = chart()
    page = Page(widget)
    page.hello()
    widget.mark(1, "label 1", "a", also={"your label": 1})
    widget.mark(2, "label 2", "b")
    widget.mark(1, "label 1 (withdrawn)", "a", withdrawn=True)
    assert [(mark.x, mark.label, mark.withdrawn) for mark in widget.marks] == [
        (1.0, "label 1 (withdrawn)", True), (2.0, "label 2", False),
    ]  # fmt: skip
    assert page.marks == [[1.0, "label 1 (withdrawn)", "a", True, {}], [2.0, "label 2", "b", False, {}]]
    assert page.messages[-1]["marks"]["items"] == []  # one change is all that was sent
    late = Page(widget)
    late.hello()
    assert late.marks == page.marks


def test_a_mark_that_changes_before_any_page_has_said_hello_arrives_as_it_is_now():
    widget = chart()
    widget.send = lambda message: None
    widget.mark(1, "one", "a")
    widget.mark(1, "one, changed", "a")
    page = Page(widget)
    page.hello()
    assert [mark[1] for mark in page.marks] == ["one, changed"]


def test_a_cut_reaches_every_page_and_the_figure_and_is_cleared():
    widget = chart()
    page = Page(widget)
    page.hello()
    for x in range(6):
        widget.add("reward", x, x)
    widget.cut(2, 5, "back to 2")
    assert page.cuts == [{"xlabel": "step", "start": 2.0, "end": 5.0, "label": "back to 2"}]
    reward = widget.figure().axes[0]
    assert [line.get_label() for line in reward.lines if "back" in str(line.get_label())] == ["back to 2"]
    widget.clear()
    assert page.cuts == [] == widget.cuts


def test_a_mark_that_the_person_chooses_is_told_by_its_id():
    chosen = []
    widget = chart(on_mark=chosen.append)
    widget.mark(1, "one", "a")
    for name in ("a", "never marked", None):
        widget._handle_custom_msg({"type": "mark", "id": name}, [])
    assert chosen == ["a"]


class FakeTime:
    """A clock that is set by hand, and timers that fire when it passes them."""

    def __init__(self):
        self.now, self.timers = 100.0, []

    def timer(self, wait, call):
        timer = threading.Thread(target=call)  # has .daemon; never started as a thread
        timer.due, timer.call, timer.cancel = self.now + wait, call, lambda: self.timers.remove(timer)
        timer.start = lambda: self.timers.append(timer)
        return timer

    def advance(self, seconds):
        self.now += seconds
        for timer in [timer for timer in self.timers if timer.due <= self.now]:
            self.timers.remove(timer)
            timer.call()


def test_coalescer_flushes_at_once_then_at_most_once_an_interval_and_always_last():
    time, flushed = FakeTime(), []
    coalescer = Coalescer(lambda: flushed.append(time.now), 0.2, lambda: time.now, time.timer)
    coalescer.poke()
    assert flushed == [100.0]
    for _ in range(10):  # a second of pokes, one every 10 ms
        for _ in range(10):
            time.advance(0.01)
            coalescer.poke()
    assert 4 <= len(flushed) - 1 <= 5
    count = len(flushed)
    coalescer.poke()
    time.advance(1.0)
    assert len(flushed) == count + 1  # the last poke was not lost
    time.advance(1.0)
    assert len(flushed) == count + 1


def test_coalescer_is_silent_after_close():
    time, flushed = FakeTime(), []
    coalescer = Coalescer(lambda: flushed.append(1), 0.2, lambda: time.now, time.timer)
    coalescer.poke()
    coalescer.poke()
    coalescer.close()
    time.advance(1.0)
    coalescer.poke()
    assert flushed == [1]


def test_numbers_that_json_cannot_carry_leave_a_gap():
    widget = chart()
    page = Page(widget)
    page.hello()
    widget.add("reward", 1, math.nan)
    widget.add("reward", 2, math.inf)
    assert page.series["reward"] == [(1.0, None, None, None), (2.0, None, None, None)]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda w: w.add("rewrad", 1, 1.0), "no series 'rewrad'.*reward, win/gold, win/rm"),
        (lambda w: w.add("win", 1, 1.0), "no series 'win'"),
        (lambda w: w.add("reward", math.nan, 1.0), "must be a finite number"),
        (lambda w: w.add("reward", 1, "high"), "'high' is not a number"),
        (lambda w: w.add(RewardPoint(1, 2, 0.5, 0.5)), "cannot read a RewardPoint"),
        (lambda w: w.points("nothing"), "no series 'nothing'"),
        (lambda w: CurvesWidget([]), "at least one"),
        (lambda w: CurvesWidget([Panel("a", "A"), Panel("a", "B")]), "own key"),
    ],
)
def test_mistakes_are_named(call, said):
    with pytest.raises(InputError, match=said):
        call(chart())


def test_ppo_curves_take_step_stats_and_explain_every_metric():
    curves = ppo_curves(interval=0.0)
    numbers = dict(
        reward=1.5, kl=3.0, entropy=2.0, clipfrac=0.1, explained_variance=0.5, approx_kl=0.01, reply_length=20.0
    )
    others = dict(objective=1.2, beta=0.1, policy_loss=0.0, value_loss=0.0, truncated=0.0)
    curves.add(StepStats(step=4, **numbers, **others))
    assert {key: curves.points(key) for key in numbers} == {key: [(4.0, y, None, None)] for key, y in numbers.items()}
    assert all(len(panel["explanation"]) > 40 for panel in curves.panels)


def test_loss_and_reward_curves_take_their_records():
    loss, reward = loss_curves(interval=0.0), reward_curves(interval=0.0)
    loss.add(LossPoint(1, 64, math.log(8)))
    loss.add(LossPoint(2, 128, math.log(4), validation_loss=math.log(5)))
    assert [round(y) for _, y, _, _ in loss.points("perplexity/training")] == [8, 4]
    assert [(x, round(y)) for x, y, _, _ in loss.points("perplexity/held_out")] == [(128.0, 5)]
    reward.add(RewardPoint(1, 32, 0.6, 0.7))
    assert reward.points("accuracy") == [(32.0, 0.7, None, None)]


def test_the_static_figure_shows_the_same_numbers():
    widget = chart()
    widget.add("reward", 1, 0.5)
    widget.add("reward", 2, 0.7)
    widget.add("win/gold", 1, 0.6, 0.5, 0.7)
    widget.mark(2, "your label 1")
    reward, win = widget.figure().axes
    assert list(reward.lines[0].get_ydata()) == [0.5, 0.7]
    assert [list(line.get_xdata()) for line in reward.lines[1:]] == [[2.0, 2.0]]  # the mark
    assert win.get_title(loc="left") == "Win rate" and len(win.collections) == 1  # the band


def test_a_chart_without_points_still_has_a_figure():
    assert [axis.get_title(loc="left") for axis in chart().figure().axes] == ["Reward", "Win rate"]
