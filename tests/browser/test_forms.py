"""Every form of feedback in real JupyterLab: by keys alone, by mouse, under a screen reader's eyes, after a reload.

All six forms stand in the output of one cell, replies in their own order (shuffle="fixed"), so that numbers are known.
"""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from rlhf_lab.records import Answer
from rlhf_lab.store import FeedbackStore

from .axe import serious_violations

CELL = """
from IPython.display import display
from rlhf_lab.records import Candidate, Question
from rlhf_lab.store import FeedbackStore
from widgets import (
    CompareWidget, CorrectionWidget, GradedCompareWidget, RankingWidget, RatingWidget, ThumbsWidget
)

store, texts = FeedbackStore({db!r}), {texts!r}

def ask(form, replies):
    candidates = tuple(Candidate(f"c{{i}}", text) for i, text in enumerate(texts[:replies]))
    return [Question(f"{{form}}-{{n}}", {prompt!r}, candidates) for n in range(4)]

options = dict(shuffle="fixed", guidelines={guidelines!r})
forms = [
    RankingWidget.for_store(ask("ranking", 3), store, **options),
    CompareWidget.for_store(ask("compare", 2), store, **options),
    GradedCompareWidget.for_store(ask("graded", 2), store, **options),
    RatingWidget.for_store(ask("rating", 2), store, attributes={attributes!r}, **options),
    ThumbsWidget.for_store(ask("thumbs", 2), store, **options),
    CorrectionWidget.for_store(ask("correction", 1), store, **options),
]
display(*forms)
"""
TEXTS = ["The first reply", "The second reply", "The third reply"]
ATTRIBUTES = {"helpful": "Does it help?", "polite": ""}
GUIDELINES = "Judge what was **asked** for.\n\n- Facts first\n- Then the tone"
FORMS = ("ranking", "compare", "graded", "rating", "thumbs", "correction")
# What the focused element shows of its focus: an outline of its own, or the frame around the whole form.
FOCUS_SHOWS = """() => {
    const style = getComputedStyle(document.activeElement);
    return (style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2) || style.boxShadow !== "none";
}"""


class Forms:
    """A notebook page that shows the six forms, and the database that they fill."""

    def __init__(self, notebook, tmp_path) -> None:
        self.notebook, self.page, self.keys = notebook, notebook.page, notebook.page.keyboard
        self.db = tmp_path / "feedback.db"

    def start(self, *more, texts=TEXTS, prompt="Where is it?", guidelines=GUIDELINES, attributes=ATTRIBUTES) -> Forms:
        values = {"texts": list(texts), "prompt": prompt, "guidelines": guidelines, "attributes": attributes}
        self.notebook.run(CELL.format(db=str(self.db), **values), *more)
        self["correction"].wait_for()
        return self

    def __getitem__(self, form: str):
        """A form's outermost element."""
        return self.page.locator(f".rlhf-{form}")

    def focus(self, form: str) -> None:
        self[form].click(position={"x": 6, "y": 6})

    def tab_to(self, form: str) -> None:
        """Tab until the form has the focus; on the way each place must show that it has it."""
        for _ in range(80):
            self.keys.press("Tab")
            if self[form].evaluate("root => root === document.activeElement"):
                assert self.page.evaluate(FOCUS_SHOWS)
                return
            inside = self.page.evaluate("() => Boolean(document.activeElement.closest('.rlhf-feedback'))")
            assert not inside or self.page.evaluate(FOCUS_SHOWS), self.page.evaluate("document.activeElement.outerHTML")
        raise AssertionError(f"Tab does not lead to {form}")

    def expect_saved(self, form: str, place: str) -> None:
        expect(self[form].locator(".rlhf-progress-text")).to_have_text(place)
        expect(self[form].get_by_role("status")).to_contain_text("Saved")

    def answers(self, form: str) -> list[Answer]:
        """What the database holds for the form's questions, oldest first."""
        with FeedbackStore(self.db) as store:
            return [answer for answer in store.answers() if answer.question_id.startswith(form)]


@pytest.fixture
def forms(notebook, tmp_path) -> Forms:
    return Forms(notebook, tmp_path)


def decided(answer: Answer) -> object:
    """What an answer says, of whatever kind."""
    for field in ("scores", "up", "text", "order"):
        if hasattr(answer, field):
            return getattr(answer, field)


SCORES = {"c0": {"helpful": 5, "polite": 4}, "c1": {"helpful": 1, "polite": 2}}
BY_KEYS = {  # keys, what they decide; then Undo, other keys (arrows, the space bar), what those decide
    "ranking": (["2", "1", "Enter"], (("c1",), ("c0",), ("c2",)), ["ArrowDown", "Shift+ArrowDown", "Enter"], "moved"),
    "compare": (["2"], (("c1",), ("c0",)), ["ArrowLeft", "Enter"], (("c0",), ("c1",))),
    "graded": (["8"], (("c1",), ("c0",)), ["ArrowRight", "ArrowLeft", "ArrowLeft", "Enter"], (("c0",), ("c1",))),
    "rating": (["5", "4", "1", "2", "Enter"], SCORES, ["ArrowDown", "ArrowLeft", "Enter"], "moved"),
    "thumbs": (["n"], False, ["ArrowUp"], True),
    "correction": (
        ["e", "!", "Control+Enter"],
        "The first reply!",
        ["Enter", "?", "Control+Enter"],
        "The first reply!?",
    ),
}
MOVED = {"ranking": (("c0",), ("c1",), ("c2",)), "rating": SCORES | {"c1": {"helpful": 1, "polite": 1}}}


def test_every_form_by_keys_alone(forms):
    forms.start()
    cells = forms.notebook.cells()
    for form, (keys, first, others, second) in BY_KEYS.items():
        forms.tab_to(form)
        after = "1 of 4" if form == "thumbs" else "2 of 4"  # a question of two replies takes two votes
        for key in keys:
            forms.keys.press(key)
        forms.expect_saved(form, after)
        assert [decided(answer) for answer in forms.answers(form)] == [first]
        forms.keys.press("u")
        expect(forms[form].locator(".rlhf-progress-text")).to_have_text("1 of 4")
        expect(forms[form].get_by_role("status")).not_to_contain_text("Saved")
        expect(forms[form].get_by_role("status")).not_to_contain_text("Taking your last answer back")
        assert forms.answers(form) == []
        for key in others:
            forms.keys.press(key)
        forms.expect_saved(form, after)
        assert [decided(answer) for answer in forms.answers(form)] == [MOVED[form] if second == "moved" else second]
    assert [answer.grade for answer in forms.answers("graded")] == ["slightly better"]
    assert forms.notebook.cells() == cells


NAMES = {  # what a screen reader says: the form, then (role, name) of what is in it
    "ranking": ("Rank the replies, best first", [("button", "Reply 2, not ranked yet: The second reply")]),
    "compare": ("Which reply is better?", [("button", "Reply A is better: The first reply")]),
    "graded": (
        "Which reply is better, and by how much?",
        [("group", "How much better?"), ("button", "A significantly better"), ("button", "Tie: equally good")],
    ),
    "rating": (
        "Rate each reply",
        [("group", "Reply 2"), ("radiogroup", "Reply 2, helpful: Does it help?"), ("radiogroup", "Reply 1, polite")],
    ),
    "thumbs": ("Is this a good reply?", [("group", "Your vote"), ("button", "Good reply"), ("button", "Bad reply")]),
    "correction": ("Make this reply better", [("textbox", "Reply: your version"), ("region", "What you changed")]),
}


def test_screen_readers_hear_what_stands_there_and_axe_finds_nothing_serious(forms):
    forms.start()
    for form, (title, parts) in NAMES.items():
        root = forms.page.get_by_role("group", name=title, exact=True)
        expect(root).to_contain_class(f"rlhf-{form} rlhf-guided")
        for role, name in [*parts, ("region", "Guidelines"), ("button", "Can't decide"), ("status", "")]:
            exact = role != "button"  # a button's name ends in its key
            expect(root.get_by_role(role, name=name or None, exact=exact)).to_have_count(1)
    assert forms["compare"].locator(".rlhf-guidelines strong").all_inner_texts() == ["asked"]
    for form, keys in {"ranking": "2=1", "rating": "54", "correction": "e!"}.items():
        forms.focus(form)
        forms.keys.type(keys)
    radios = forms["rating"].get_by_role("radiogroup", name="Reply 1, helpful: Does it help?")
    expect(radios.get_by_role("radio", name="5, completely")).to_have_attribute("aria-checked", "true")
    expect(forms["ranking"].get_by_role("button", name="Reply 1, ranked 1st, tied: The first reply")).to_have_count(1)
    expect(forms["ranking"].get_by_role("status")).to_contain_text("1st: replies 2 and 1 (tie)")
    for dark in (False, True):
        forms.notebook.dark(dark)
        assert serious_violations(forms.page, ".rlhf-feedback") == []


def test_one_click_is_one_label_and_undo_takes_it_back(forms):
    forms.start()
    clicks = {
        "compare": ("Reply B is better", (("c1",), ("c0",)), "2 of 4"),
        "graded": ("B slightly better", (("c1",), ("c0",)), "2 of 4"),
        "thumbs": ("Good reply", True, "1 of 4"),
    }
    for form, (name, decision, place) in clicks.items():
        forms[form].get_by_role("button", name=name).click()
        forms.expect_saved(form, place)
        assert [decided(answer) for answer in forms.answers(form)] == [decision]
        forms[form].get_by_role("button", name="Undo").click()
        expect(forms[form].get_by_role("status")).not_to_contain_text("Taking your last answer back")
        expect(forms[form].locator(".rlhf-body").get_by_text("your last answer")).to_be_visible()  # to choose afresh
        assert forms.answers(form) == []


def test_typing_a_correction_is_typing_and_drafts_survive_a_reload(forms):
    forms.start("'a cell below'")
    field = forms["correction"].get_by_role("textbox")
    field.focus()
    cells, mode = forms.notebook.cells(), forms.notebook.mode()
    forms.keys.press("Control+a")
    forms.keys.type("xdd ab s u y d g 12\nEsc jk ")
    for key in ("ArrowUp", "ArrowDown", "Home", "End", "Shift+Enter", "Backspace", "z"):
        forms.keys.press(key)
    typed = "xdd ab s u y d g 12\nEsc jk z"
    expect(field).to_have_value(typed)
    forms.focus("rating")
    forms.keys.type("54")
    assert forms.notebook.cells() == cells and forms.notebook.mode() == mode
    forms.notebook.reload()  # at once: nobody waits until a draft is saved
    forms["correction"].wait_for()
    expect(field).to_have_value(typed)
    expect(forms["correction"].locator(".rlhf-diff ins").first).to_be_visible()
    expect(forms["rating"].get_by_role("radio", checked=True)).to_have_text(["5", "4"])
    assert forms.notebook.cells() == cells and forms.answers("") == []

    field.focus()
    forms.keys.press("Escape")  # the original is back, and Escape once more leaves the text
    expect(field).to_have_value("The first reply")
    forms.keys.press("Control+z")
    expect(field).to_have_value(typed)
    forms.keys.press("Control+Enter")
    forms.expect_saved("correction", "2 of 4")
    assert [answer.text for answer in forms.answers("correction")] == [typed]


HOSTILE = [
    "<img src=x onerror='window.hacked = 1'><script>window.hacked = 2</script><b>bold</b>",
    "W" * 1500,
    "</textarea></div><style>body { display: none }</style> pay \u202eevil\u202c \u0000 \u001b[31m end",
]
OVERFLOWS = "root => [root, ...root.querySelectorAll('*')].some(e => e.scrollWidth > root.clientWidth + 1)"


def test_hostile_text_is_inert_in_every_form(forms):
    attributes = {HOSTILE[0]: HOSTILE[2], "W" * 300: "<b>?</b>"}
    forms.start(texts=HOSTILE, prompt=HOSTILE[2], guidelines="\n\n- ".join(HOSTILE), attributes=attributes)
    forms.focus("rating")
    forms.keys.type("1234")
    forms["correction"].get_by_role("textbox").fill(HOSTILE[0] + HOSTILE[2])
    for form in FORMS:
        root = forms[form]
        assert root.locator("img, script, style, iframe, b:has(*:not(.rlhf-control)), h1").count() == 0
        expect(root.locator(".rlhf-prompt-text")).to_contain_text("pay ‹U+202E›evil‹U+202C› ␀ ␛[31m end")
        expect(root.get_by_role("region", name="Guidelines")).to_contain_text("<script>")
        assert not root.evaluate(OVERFLOWS), form
    forms.focus("rating")
    forms.keys.press("Enter")
    forms["correction"].get_by_role("button", name="Save correction").click()
    forms["graded"].get_by_role("button", name="Tie").click()
    for form in ("rating", "correction", "graded"):
        forms.expect_saved(form, "2 of 4")
    assert set(forms.answers("rating")[0].attributes) == set(attributes)
    assert forms.page.evaluate("window.hacked") is None
