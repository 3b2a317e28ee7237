"""What every form of feedback owes to any page it stands in: stops for Tab, guidelines in their place, equal views."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect

from rlhf_lab.store import FeedbackStore

from .axe import serious_violations

TEXTS = ["This is reply one. It is short.", "This is reply two, and it says somewhat more."]
RULES = "Judge the facts.\n\n- First the <b>facts</b>,\n- then the tone.\n\nNothing else."
SETUP = """
from rlhf_lab.records import Candidate, Question
from rlhf_lab.store import FeedbackStore
import widgets

def form(name, k):
    candidates = tuple(Candidate(f"c{{i}}", text) for i, text in enumerate({texts!r}[:k]))
    questions = [Question(f"k{{k}}-{{n}}", {prompt!r}, candidates) for n in range(3)]
    store = FeedbackStore({db!r})
    return getattr(widgets, name).for_store(questions, store, name, shuffle="fixed", guidelines={rules!r})
"""
FORMS = {
    "ranking": "form('RankingWidget', 2)",
    "compare": "form('CompareWidget', 2)",
    "graded": "form('GradedCompareWidget', 2)",
    "rating": "form('RatingWidget', 2)",
    "thumbs": "form('ThumbsWidget', 1)",
    "correction": "form('CorrectionWidget', 1)",
}
STOPS = {  # what Tab comes to first; a scale and a row of marks are one stop each
    "ranking": ["Reply 1, not ranked yet: " + TEXTS[0], "Reply 2, not ranked yet: " + TEXTS[1], "ConfirmEnter"],
    "compare": ["Reply A is better: " + TEXTS[0], "Reply B is better: " + TEXTS[1], "Tie: equally good0"],
    "graded": ["Tie: equally good"],
    "rating": ["1, not at all"] * 8 + ["ConfirmEnter"],
    "thumbs": ["Good reply↑Y", "Bad reply↓N"],
    "correction": ["Reply: your version", "Save correctionCtrl ↵", "It is good as it isY"],
}


@pytest.fixture
def show(notebook, tmp_path):
    """Runs cells after the set-up, and gives the page."""

    def run(*cells: str, texts=TEXTS, prompt="Where is it?", rules=""):
        setup = SETUP.format(db=str(tmp_path / "feedback.db"), texts=list(texts), prompt=prompt, rules=rules)
        notebook.run(setup, *cells)
        notebook.page.locator(".rlhf-feedback").first.wait_for()
        return notebook.page

    return run


def stops(page, root) -> list[str]:
    """Tab from the form's frame until it is left: the name of each stop; each must show that it has the focus."""
    names = []
    for _ in range(40):
        page.keyboard.press("Tab")
        stop = root.evaluate(
            """root => {
                const here = document.activeElement;
                if (!root.contains(here)) return null;
                const { outlineStyle, outlineWidth } = getComputedStyle(here);
                const name = here.getAttribute("aria-label") ?? here.textContent;
                return { name, seen: outlineStyle !== "none" && parseFloat(outlineWidth) >= 2 };
            }"""
        )
        if stop is None:
            return names
        assert stop["seen"], f"the focus on {stop['name']!r} cannot be seen"
        names.append(stop["name"])
    pytest.fail(f"Tab does not leave the form: {names}")


def test_tab_walks_through_every_form_in_order_shows_where_it_is_and_leaves_again(show):
    page = show(*FORMS.values())
    for name, first in STOPS.items():
        root = page.locator(f".rlhf-{name}")
        root.focus()
        walked = stops(page, root)
        assert walked[: len(first)] == first
        assert walked[-3:] == ["Can't decideD", "SkipS", "UndoU"]


def test_axe_finds_nothing_serious_where_texts_are_long_or_no_question_is_left(show):
    long = [f"{text} " + "And on it goes. " * 60 for text in TEXTS]
    none = "widgets.ThumbsWidget(None, wait_text='Wait…')"
    page = show(*FORMS.values(), none, texts=long, prompt="Where is it? " * 300, rules=RULES * 9)
    expect(page.locator(".rlhf-feedback")).to_have_count(len(FORMS) + 1)
    for root in page.locator(".rlhf-feedback").all():
        root.scroll_into_view_if_needed()  # JupyterLab lays out what is in sight
    for prompt in page.locator(".rlhf-prompt-text:visible").all():
        expect(prompt).to_have_attribute("tabindex", "0")  # it scrolls, so the keys must reach it
    assert serious_violations(page, ".rlhf-feedback") == []


def test_two_views_of_one_correction_agree(show, tmp_path):
    page = show(f"widget = {FORMS['correction']}\nwidget", "widget")
    fields = page.get_by_role("textbox", name="your version")
    fields.nth(0).fill("written above")  # at once: no view's first look at the question may take it away
    expect(fields.nth(1)).to_have_value("written above")
    fields.nth(1).press("Control+Enter")
    expect(page.get_by_role("status").filter(has_text="Saved")).to_have_count(2)
    with FeedbackStore(tmp_path / "feedback.db") as store:
        assert [answer.text for answer in store.answers()] == ["written above"]


def test_guidelines_stand_beside_the_task_or_above_it_and_stay_hidden_after_a_reload(show, notebook):
    page = show(FORMS["graded"], rules=RULES)
    root, wide = page.locator(".rlhf-graded"), re.compile("rlhf-wide")
    rules, prompt = root.get_by_role("region", name="Guidelines"), root.locator(".rlhf-prompt")
    toggle = root.get_by_role("button", name="Guidelines")
    expect(rules.get_by_role("listitem")).to_have_text(["First the <b>facts</b>,", "then the tone."])
    page.set_viewport_size({"width": 1500, "height": 900})
    expect(root).to_have_class(wide)
    assert rules.bounding_box()["x"] > prompt.bounding_box()["x"] + prompt.bounding_box()["width"]
    page.set_viewport_size({"width": 800, "height": 900})
    expect(root).not_to_have_class(wide)
    assert rules.bounding_box()["y"] + rules.bounding_box()["height"] <= prompt.bounding_box()["y"]
    root.focus()
    page.keyboard.press("g")
    expect(rules).to_be_hidden()
    notebook.wait_until_idle()
    notebook.reload()
    expect(toggle).to_have_attribute("aria-expanded", "false")
    toggle.click()
    expect(rules).to_be_visible()
