"""The chat in a real JupyterLab: talk, mark, rank, correct, stop; by mouse and by keyboard; reload, second view."""

import pytest
from playwright.sync_api import expect

from .axe import serious_violations
from .test_studio import HOSTILE, SETUP, ask, do

CHAT = """
from widgets import ChatWidget
loop = FakeLoop()
chat = ChatWidget(loop.reply, loop.submit, "ada", loop.checkpoints, on_undo=lambda answer: loop.withdraw(answer.id))
chat
"""


class Chat:
    """A notebook whose cell shows a chat, and the person at it."""

    def __init__(self, notebook) -> None:
        self.notebook, self.page = notebook, notebook.page

    @property
    def box(self):
        return self.page.get_by_role("textbox", name="Your message").first

    @property
    def replies(self):
        return self.page.locator(".rlhf-chat").first.locator(".rlhf-chat-reply")

    @property
    def last(self):
        return self.replies.last

    def start(self, *more):
        self.notebook.run(SETUP, CHAT, *more)
        self.box.wait_for()
        return self

    def say(self, text: str) -> None:
        count = self.replies.count()
        self.box.fill(text)
        self.box.press("Enter")
        expect(self.replies).to_have_count(count + 1)
        expect(self.last.locator(".rlhf-text").first).to_contain_text(text)

    def kinds(self) -> list[str]:
        return ask(self.notebook, "[answer.kind for answer in loop.answers]")


@pytest.fixture
def chat(notebook) -> Chat:
    return Chat(notebook)


def test_a_person_talks_marks_ranks_and_corrects_by_mouse_and_a_reload_keeps_it_all(chat):
    page = chat.start().page
    chat.say("Open on Sunday?")
    chat.last.get_by_role("button", name="Good reply").click()
    expect(chat.last).to_contain_text("✓ Saved: 👍")
    page.get_by_label("Talk with").select_option("sft")
    chat.say("And on Monday?")
    expect(chat.last).to_contain_text("SFT model, before PPO")

    chat.last.get_by_role("button", name="Show 4 to rank").click()
    choices = chat.last.locator(".rlhf-chat-choice")
    expect(choices).to_have_count(4)
    best = choices.nth(2).locator(".rlhf-text").inner_text()
    for n in (2, 0, 3):
        choices.nth(n).click()
    chat.last.get_by_role("button", name="Save ranking").click()
    expect(chat.last).to_contain_text("✓ Saved: ranked 1 of 4")
    expect(chat.last.locator(".rlhf-text").first).to_have_text(best)

    chat.last.get_by_role("button", name="Correct").click()
    chat.last.get_by_role("textbox").fill("Yes, from ten.")
    chat.last.get_by_role("button", name="Save correction").click()
    expect(chat.last).to_contain_text("corrected by you")
    expect(chat.last).to_contain_text(f"It wrote: {best}")
    assert chat.kinds() == ["vote", "ranking", "correction"]
    shown = chat.replies.all_inner_texts()

    chat.box.fill("half a mess")
    chat.notebook.reload()
    expect(chat.replies).to_have_count(2)
    assert chat.replies.all_inner_texts() == shown
    expect(chat.box).to_have_value("half a mess")
    page.get_by_role("button", name="Undo label").click()
    expect(chat.last).not_to_contain_text("corrected by you")
    assert chat.kinds() == ["vote", "ranking"]


def test_everything_goes_by_keyboard_and_the_notebook_sees_no_key(chat):
    chat.start("'a cell that no key may cut'")
    before, keys = chat.notebook.cells(), chat.page.keyboard
    chat.box.focus()
    keys.type("one xd")
    keys.press("Shift+Enter")
    keys.type("two dd")
    keys.press("Enter")
    expect(chat.replies).to_have_count(1)
    expect(chat.page.locator(".rlhf-chat-user")).to_have_text("one xd\ntwo dd")
    expect(chat.box).to_have_value("")
    keys.press("ArrowUp")  # from the empty box to the last reply
    expect(chat.last).to_be_focused()
    keys.press("n")
    expect(chat.last).to_contain_text("✓ Saved: 👎")
    expect(chat.last).to_be_focused()
    keys.press("r")
    expect(chat.last.locator(".rlhf-chat-choice")).to_have_count(4)
    for key in ("2", "=", "4", "1", "Enter"):
        keys.press(key)
    expect(chat.last).to_contain_text("ranked 1 of 4")
    keys.press("e")
    field = chat.last.get_by_role("textbox")
    expect(field).to_be_focused()
    keys.press("Control+a")
    keys.type("Better.")
    keys.press("Control+Enter")
    expect(chat.last).to_contain_text("corrected by you")
    assert chat.kinds() == ["vote", "ranking", "correction"]
    assert ask(chat.notebook, "[len(tier) for tier in loop.answers[1].order]") == [2, 1, 1]
    keys.press("u")
    expect(chat.last).not_to_contain_text("corrected by you")
    for key in ("x", "d", "d", "b", "Enter", "m"):
        keys.press(key)
    assert chat.notebook.cells() == before


def test_a_slow_reply_can_be_stopped_an_error_is_shown_and_tried_again_and_the_chat_cleared(chat):
    page = chat.start().page
    do(chat.notebook, "loop.replying.clear()")
    chat.box.fill("Slow?")
    chat.box.press("Enter")
    expect(chat.last).to_contain_text("is writing…")
    chat.box.press("Escape")
    expect(chat.last).to_contain_text("Stopped.")
    do(chat.notebook, "loop.replying.set(); loop.failing['reply 1 policy'] = RuntimeError('no memory left')")
    chat.last.get_by_role("button", name="Try again").click()
    expect(chat.last).to_contain_text("RuntimeError: no memory left")
    do(chat.notebook, "loop.failing.clear(); loop.failing['submit'] = InputError('the disk is full')")
    chat.last.get_by_role("button", name="Try again").click()
    expect(chat.last).to_contain_text("policy says")
    chat.last.get_by_role("button", name="Good reply").click()
    expect(page.get_by_role("alert").filter(has_text="the disk is full")).to_be_visible()
    expect(chat.last).not_to_contain_text("Saved")
    page.get_by_role("button", name="Clear").click()
    page.get_by_role("button", name="Keep it").click()
    expect(chat.replies).to_have_count(1)
    page.get_by_role("button", name="Clear").click()
    page.get_by_role("group", name="Clear the conversation?").get_by_role("button", name="Clear").click()
    expect(chat.replies).to_have_count(0)


def test_two_views_show_the_same_and_texts_are_inert(chat):
    chat.start("chat")
    do(chat.notebook, f"bad = {HOSTILE!r}")
    do(chat.notebook, "chat._reply = lambda *a: loop.ask(Question('h', 'p', (Candidate('c', bad + chr(0x202e)),)))")
    chat.box.fill(HOSTILE)
    chat.box.press("Enter")
    views = chat.page.locator(".rlhf-chat")
    expect(views).to_have_count(2)
    for n in (0, 1):
        expect(views.nth(n).locator(".rlhf-chat-reply .rlhf-text")).to_have_text(f"{HOSTILE}‹U+202E›")
        expect(views.nth(n).locator(".rlhf-chat-user")).to_have_text(HOSTILE)
    views.nth(1).get_by_role("button", name="Bad reply").click()
    expect(views.nth(0)).to_contain_text("✓ Saved: 👎")
    assert chat.page.evaluate("() => window.hacked") is None


def test_axe_finds_nothing_serious_light_or_dark(chat):
    chat.start()
    chat.say("Open on Sunday?")
    chat.last.get_by_role("button", name="Good reply").click()
    chat.say("And on Monday?")
    chat.last.get_by_role("button", name="Show 4 to rank").click()
    expect(chat.last.locator(".rlhf-chat-choice")).to_have_count(4)
    for dark in (False, True):
        chat.notebook.dark(dark)
        assert serious_violations(chat.page, ".rlhf-chat") == []
