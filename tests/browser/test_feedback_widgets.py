"""The ranking and pairwise widgets in real JupyterLab, used as a person uses them."""

from __future__ import annotations

import os
import random
import signal
import threading
import time

import pytest
from playwright.sync_api import expect

from rlhf_lab.records import Ranking
from rlhf_lab.store import FeedbackStore

TEXTS = [f"This is reply {word}" for word in ("one", "two", "three", "four")]

CELL = """
from rlhf_lab.records import Candidate, Question
from rlhf_lab.store import FeedbackStore
from widgets import CompareWidget, RankingWidget

texts = {texts!r}
candidates = tuple(Candidate(f"c{{i}}", text, "sft") for i, text in enumerate(texts))
questions = [Question(f"q{{n}}", {prompt!r}.format(n=n), candidates) for n in range({count})]
store = FeedbackStore({db!r})
widget = {widget}
widget
"""


class Labelling:
    """A notebook whose first cell shows a feedback widget on `count` questions, and the database that it fills."""

    def __init__(self, notebook, tmp_path) -> None:
        self.notebook, self.page, self.db = notebook, notebook.page, tmp_path / "feedback.db"

    def start(
        self, *more_cells, count=3, texts=TEXTS, prompt="Prompt {n}", widget="RankingWidget.for_store(questions, store)"
    ):
        cell = CELL.format(count=count, texts=list(texts), prompt=prompt, db=str(self.db), widget=widget)
        self.notebook.run(cell, *more_cells)
        self.root.first.wait_for()
        return self

    @property
    def root(self):
        return self.page.locator(".rlhf-feedback")

    def card(self, text):
        return self.root.first.get_by_role("button", name=text)

    def number(self, text) -> str:
        """The number that this reply has on the screen."""
        return self.card(text).get_attribute("aria-keyshortcuts")

    def cards(self) -> list[str]:
        return self.root.first.locator(".rlhf-card .rlhf-text").all_inner_texts()

    def button(self, name):
        return self.root.first.get_by_role("button", name=name)

    def focus(self) -> None:
        self.root.first.click(position={"x": 8, "y": 8})

    def expect_saved(self, progress=None) -> None:
        expect(self.root.first.get_by_role("status")).to_contain_text("Saved")
        if progress:
            expect(self.root.first.locator(".rlhf-progress-text")).to_have_text(progress)

    def rankings(self) -> list[Ranking]:
        with FeedbackStore(self.db) as store:
            return store.rankings()

    def orders(self) -> list[list[list[str]]]:
        """The stored orders, as texts; tied replies in alphabetical order."""
        with FeedbackStore(self.db) as store:
            asked = {q.id: q.texts for q in store.questions()}
            return [[sorted(asked[r.question_id][c] for c in tier) for tier in r.order] for r in store.rankings()]


@pytest.fixture
def labelling(notebook, tmp_path) -> Labelling:
    return Labelling(notebook, tmp_path)


def test_ranking_by_clicks_alone(labelling):
    labelling.start()
    for text in ("three", "one", "four", "two"):
        labelling.card(text).click()
    labelling.page.get_by_role("button", name="Tie them").nth(1).click()
    expect(labelling.card("reply four")).to_contain_text("=2nd")
    labelling.button("Confirm").click()
    labelling.expect_saved("2 of 3")
    assert labelling.orders() == [[[TEXTS[2]], [TEXTS[3], TEXTS[0]], [TEXTS[1]]]]
    [ranking] = labelling.rankings()
    assert ranking.seconds > 0 and len(ranking.displayed) == 4

    labelling.card("one").click()
    labelling.card("one").click()  # a second thought
    expect(labelling.card("reply one")).to_have_attribute("aria-pressed", "false")
    labelling.button("Can't decide").click()
    labelling.expect_saved("3 of 3")
    labelling.button("Skip").click()
    expect(labelling.root.get_by_text("Every question is answered")).to_be_visible()
    assert [r.status for r in labelling.rankings()] == ["ranked", "undecided", "skipped"]


def test_ranking_by_keyboard_alone(labelling):
    labelling.start(count=4)
    keys = labelling.page.keyboard
    for _ in range(80):  # Tab leads into the widget
        if labelling.root.evaluate("root => root.contains(document.activeElement)"):
            break
        keys.press("Tab")
    expected = []
    numbers = {text: labelling.number(text) for text in TEXTS}
    keys.type(numbers[TEXTS[1]] + numbers[TEXTS[3]] + numbers[TEXTS[0]])
    keys.press("Enter")  # three keys and Enter: the one left comes last
    labelling.expect_saved("2 of 4")
    expected.append([[TEXTS[1]], [TEXTS[3]], [TEXTS[0]], [TEXTS[2]]])

    numbers = {text: labelling.number(text) for text in TEXTS}
    keys.type(numbers[TEXTS[0]] + "=" + numbers[TEXTS[1]] + numbers[TEXTS[2]])
    keys.press("Backspace")
    keys.type(numbers[TEXTS[3]] + "t" + numbers[TEXTS[2]])
    keys.press("Enter")
    labelling.expect_saved("3 of 4")
    expected.append([sorted(TEXTS[:2]), sorted(TEXTS[2:])])
    assert labelling.orders() == expected

    keys.press("u")  # the last answer comes back as it was
    expect(labelling.root.locator(".rlhf-progress-text")).to_have_text("2 of 4")
    expect(labelling.card("reply one")).to_contain_text("=1st")
    assert labelling.orders() == expected[:1]
    keys.press("ArrowDown")
    keys.press("Shift+ArrowUp")  # the first of two tied becomes first alone
    keys.press("Enter")
    labelling.expect_saved("3 of 4")
    first = labelling.orders()[1][0]
    assert len(first) == 1 and first[0] in expected[1][0]
    keys.press("d")
    labelling.expect_saved("4 of 4")
    keys.press("s")
    expect(labelling.root.get_by_text("Every question is answered")).to_be_visible()
    assert [r.status for r in labelling.rankings()] == ["ranked", "ranked", "undecided", "skipped"]


def test_ranking_by_dragging_with_the_mouse(labelling):
    labelling.start()
    mouse = labelling.page.mouse

    def drag(card, onto, share: float) -> None:
        """Press on `card`, let go at `share` of the height of `onto`."""
        start, end = card.bounding_box(), onto.bounding_box()
        mouse.move(start["x"] + 200, start["y"] + start["height"] / 2)
        mouse.down()
        mouse.move(start["x"] + 200, start["y"] + start["height"] / 2 + 12, steps=3)
        mouse.move(end["x"] + 200, end["y"] + share * end["height"], steps=5)
        mouse.up()
        labelling.page.wait_for_timeout(300)  # the cards slide to their places

    before = labelling.cards()
    drag(labelling.card(before[3]), labelling.card(before[0]), 0.05)
    expect(labelling.card(before[3])).to_contain_text("1st")
    assert labelling.cards() == [before[3], *before[:3]]
    drag(labelling.card(before[2]), labelling.card(before[3]), 0.5)
    expect(labelling.card(before[2])).to_contain_text("=1st")
    drag(labelling.card(before[1]), labelling.card(before[0]), 0.95)  # below an unranked one: that one goes along
    expect(labelling.card(before[1])).to_contain_text("3rd")
    labelling.focus()
    labelling.page.keyboard.press("Enter")
    labelling.expect_saved("2 of 3")
    assert labelling.orders() == [[sorted([before[3], before[2]]), [before[0]], [before[1]]]]


def test_ranking_by_dragging_with_a_finger(new_notebook, tmp_path):
    labelling = Labelling(new_notebook(has_touch=True), tmp_path).start()
    before = labelling.cards()
    handle = labelling.card(before[2]).locator(".rlhf-handle").bounding_box()
    target = labelling.card(before[0]).bounding_box()
    x, y = handle["x"] + handle["width"] / 2, handle["y"] + handle["height"] / 2
    finger = labelling.page.context.new_cdp_session(labelling.page)

    def touch(kind: str, *points: tuple[float, float]) -> None:
        finger.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": a, "y": b} for a, b in points]})

    touch("touchStart", (x, y))
    for share in (0.2, 0.5, 1.0):
        touch("touchMove", (x, y + share * (target["y"] + 2 - y)))
    touch("touchEnd")
    expect(labelling.card(before[2])).to_contain_text("1st")


def test_pairs_take_one_click_or_key_each(labelling):
    labelling.start(count=5, texts=TEXTS[:2], widget="CompareWidget.for_store(questions, store)")
    labelling.card("reply one").click()
    labelling.expect_saved("2 of 5")
    labelling.focus()
    two = labelling.number("reply two")
    labelling.page.keyboard.press(two)
    labelling.expect_saved("3 of 5")
    labelling.page.keyboard.press("0")
    labelling.expect_saved("4 of 5")
    labelling.button("Can't decide").click()
    labelling.expect_saved("5 of 5")
    labelling.page.keyboard.press("u")
    expect(labelling.root.locator(".rlhf-progress-text")).to_have_text("4 of 5")
    assert labelling.orders() == [[[TEXTS[0]], [TEXTS[1]]], [[TEXTS[1]], [TEXTS[0]]], [sorted(TEXTS[:2])]]


def test_jupyterlabs_shortcuts_do_nothing_inside_the_widget(labelling):
    labelling.start("second = 2", "third = 3", count=60)
    labelling.focus()
    cells, mode = labelling.notebook.cells(), labelling.notebook.mode()
    keys = "x d d a b c v z y m r l o p j k h f q i 0 1 2 3 4 5 6 Escape ArrowUp ArrowDown ArrowLeft ArrowRight"
    for key in keys.split() + ["Enter", "Shift+Enter", "Control+Enter", "Alt+Enter", "Shift+m", "Space", "Delete"]:
        labelling.page.keyboard.press(key)
    for key in ("x", "d", "d", "Enter", "a", "b"):  # with the focus on a card and on a button
        for place in (labelling.root.locator(".rlhf-card").first, labelling.button("Skip")):
            place.focus()
            labelling.page.keyboard.press(key)
            labelling.notebook.wait_until_idle()
    assert labelling.notebook.cells() == cells
    assert labelling.notebook.mode() == mode == ("command", mode[1])
    assert labelling.notebook.content()["cells"][1]["execution_count"] == 2  # nothing ran again


def test_a_page_reload_brings_the_draft_back(labelling):
    labelling.start()
    labelling.card("three").click()
    labelling.page.keyboard.press("=")
    labelling.page.keyboard.press(labelling.number("reply one"))
    labelling.page.keyboard.press(labelling.number("reply two"))
    order = labelling.cards()
    labelling.notebook.wait_until_idle()
    labelling.notebook.reload()
    labelling.root.wait_for()
    expect(labelling.card("reply one")).to_contain_text("=1st")
    expect(labelling.card("reply two")).to_contain_text("2nd")
    assert labelling.cards() == order
    labelling.focus()
    labelling.page.keyboard.press("Enter")
    labelling.expect_saved("2 of 3")
    assert labelling.orders() == [[sorted([TEXTS[2], TEXTS[0]]), [TEXTS[1]], [TEXTS[3]]]]


HOSTILE = [
    "<img src=x onerror='window.hacked = 1'><script>window.hacked = 2</script><b>bold</b>",
    "W" * 3000,
    "pay \u202eevil\u202c \u0000 \u0007 \u001b[31m \u007f \u009b \u2028 \u200b end",
    "</div></style><style>body { display: none }</style><iframe src='javascript:parent.hacked = 3'></iframe>&lt;",
]


def test_hostile_text_is_shown_as_text_and_does_nothing(labelling):
    labelling.start(texts=HOSTILE, prompt="<h1 onclick='hacked = 4'>{n}</h1> \u202e" + "M" * 2000)
    shown = labelling.cards()
    assert HOSTILE[0] in shown and HOSTILE[3] in shown and HOSTILE[1] in shown
    assert "pay ‹U+202E›evil‹U+202C› ␀ ␇ ␛[31m ␡ ‹U+009B› ‹U+2028› ‹U+200B› end" in shown
    for _ in range(4):
        labelling.root.locator(".rlhf-card[aria-pressed=false]").first.click()
    assert labelling.page.evaluate("window.hacked") is None
    assert labelling.root.locator("img, script, style, iframe, b, h1").count() == 0
    overflow = "root => [...root.querySelectorAll('*'), root].filter(e => e.scrollWidth > root.clientWidth + 1).length"
    assert labelling.root.evaluate(overflow) == 0  # long words wrap
    labelling.button("Confirm").click()
    labelling.expect_saved("2 of 3")
    assert sorted(text for [text] in labelling.orders()[0]) == sorted(HOSTILE)


def test_the_page_is_never_told_which_model_wrote_a_reply(labelling):
    frames = []
    labelling.page.on("websocket", lambda socket: socket.on("framereceived", lambda frame: frames.append(str(frame))))
    labelling.start(
        widget="RankingWidget.for_store([Question(q.id, q.prompt, [Candidate('id-' + c.id, c.text, 'm' + 'odel-7') "
        "for c in q.candidates]) for q in questions], store)"
    )
    assert any("This is reply two" in frame for frame in frames)
    assert not any("model-7" in frame or "id-c0" in frame for frame in frames)


def test_two_views_of_one_widget_agree(labelling):
    labelling.start("widget")
    one, two = labelling.root.nth(0), labelling.root.nth(1)
    two.wait_for()
    one.get_by_role("button", name="reply three").click()
    expect(two.get_by_role("button", name="reply three")).to_contain_text("1st")
    two.get_by_role("button", name="reply one").click()
    expect(one.get_by_role("button", name="reply one")).to_contain_text("2nd")
    two.get_by_role("button", name="Can't decide").click()
    for view in (one, two):
        expect(view.locator(".rlhf-progress-text")).to_have_text("2 of 3")
        expect(view.get_by_role("status")).to_contain_text("Saved")
    assert len(labelling.rankings()) == 1


FAILING = """RankingWidget(questions[0], lambda ranking: failing(ranking))
store.add_question(questions[0])
attempts = []
def failing(ranking):
    attempts.append(ranking.id)
    if len(attempts) < 3:
        raise OSError(f"no space left on <device>, attempt {len(attempts)}")
    return store.append(ranking)
"""


def test_when_saving_fails_the_widget_says_so_and_keeps_the_draft(labelling):
    labelling.start(widget=FAILING, count=1)
    for text in ("three", "one", "four", "two"):
        labelling.card(text).click()
    alert = labelling.root.get_by_role("alert")
    for attempt in (1, 2):
        labelling.page.keyboard.press("Enter")
        expect(alert).to_contain_text(f"Not saved: OSError: no space left on <device>, attempt {attempt}")
        expect(labelling.card("reply three")).to_contain_text("1st")
        expect(labelling.root.get_by_role("status")).not_to_contain_text("Saved")
        assert labelling.rankings() == []
    labelling.page.keyboard.press("Enter")
    expect(alert).to_be_hidden()
    labelling.expect_saved()
    assert labelling.orders() == [[[TEXTS[2]], [TEXTS[0]], [TEXTS[3]], [TEXTS[1]]]]


SLOW = """RankingWidget(questions[0], lambda ranking: slow(ranking))
import pathlib, time
store.add_question(questions[0])
def slow(ranking):
    while not pathlib.Path({go!r}).exists():
        time.sleep(0.05)
    return store.append(ranking)
"""


def test_an_answer_that_the_kernel_does_not_confirm_is_not_called_saved_and_can_be_sent_again(labelling, tmp_path):
    go = tmp_path / "go"
    labelling.start(widget=SLOW.format(go=str(go)), count=1)
    labelling.focus()
    labelling.page.keyboard.type("123")
    labelling.page.keyboard.press("Enter")
    status = labelling.root.get_by_role("status")
    expect(status).to_have_text("Saving…")
    expect(labelling.root.get_by_role("alert")).to_contain_text("The kernel has not confirmed this yet")
    labelling.button("Send again").click()
    expect(status).to_have_text("Saving…")
    go.touch()
    labelling.expect_saved()
    labelling.notebook.wait_until_idle()
    with FeedbackStore(labelling.db) as store:
        assert len(store.events()) == 1


def test_killing_the_kernel_while_labelling_loses_no_acknowledged_label(labelling, tmp_path):
    pid_file, moments = tmp_path / "pid", random.Random(1)
    labelling.start(
        f"import os, pathlib; pathlib.Path({str(pid_file)!r}).write_text(str(os.getpid()))",
        "from IPython.display import display; display(widget.progress)",
        count=200,
    )
    page, acknowledged = labelling.page, 0
    died = page.get_by_role("dialog", name="Kernel Restarting")  # may come at any time, and lies above everything
    page.add_locator_handler(died, lambda: press_away(page))
    for _ in range(3):
        labelling.root.wait_for()
        stored, place = len(labelling.rankings()), labelling.root.locator(".rlhf-progress-text")
        expect(place).to_have_text(f"{stored + 1} of 200")
        labelling.focus()
        page.keyboard.type("123")
        page.keyboard.press("Enter")  # one label is acknowledged in every round, however slow the machine
        expect(place).to_have_text(f"{stored + 2} of 200")
        pid = int(pid_file.read_text())
        killer = threading.Timer(moments.uniform(0.3, 1.5), os.kill, [pid, signal.SIGKILL])
        killer.start()
        while killer.is_alive():
            page.keyboard.type("123")
            page.keyboard.press("Enter")
        killer.join()
        acknowledged = int(place.inner_text().split()[0]) - 1
        with FeedbackStore(labelling.db) as store:
            answered = [event.question_id for event in store.events()]
        assert answered[:acknowledged] == [f"q{n}" for n in range(acknowledged)]
        assert len(answered) == len(set(answered))
        restart(labelling, pid_file, pid)
    assert acknowledged >= 3  # people did label


def press_away(page) -> None:
    """Closes the dialogs that tell of a dead kernel, if there are any now."""
    for name in ("Ok", "OK", "Dismiss"):
        buttons = page.get_by_role("dialog").get_by_role("button", name=name, exact=True)
        buttons.evaluate_all("buttons => buttons.forEach(button => button.click())")


def restart(labelling, pid_file, dead: int) -> None:
    """What a person does after a kernel died: run the cells again, until Jupyter's new kernel answers."""
    page, end = labelling.page, time.monotonic() + 120
    while int(pid_file.read_text()) == dead:
        assert time.monotonic() < end, "no new kernel came"
        press_away(page)
        page.evaluate(  # cells that were sent to the dead kernel never come to an end
            """() => Promise.race([
                jupyterapp.commands.execute("notebook:run-all-cells"),
                new Promise(done => setTimeout(done, 5000)),
            ]).then(() => null)"""
        )
    labelling.notebook.wait_until_idle()
