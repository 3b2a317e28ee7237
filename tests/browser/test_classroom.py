"""A real class: `rlhf-lab classroom`, two students in two browsers, the teacher in a third."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from rlhf_lab.store import FeedbackStore

from .axe import serious_violations

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Class:
    """A running class: its links by name, and its database."""

    links: dict[str, str]
    store: Path


@pytest.fixture(scope="module")
def class_(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Class]:
    folder = tmp_path_factory.mktemp("classroom") / "run"
    command = [sys.executable, "-m", "rlhf_lab.cli", "classroom", "--out", str(folder), "--students", "Ada,Ben"]
    command += ["--profile", "quick", "--questions", "12", "--overlap", "2", "--port", "0"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment, cwd=folder.parent
    )
    try:
        for line in process.stdout:
            if "Ctrl-C ends" in line:
                break
        with open(folder / "links.csv", newline="") as file:
            yield Class(dict(csv.reader(file)), folder / "class.db")
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130


@pytest.fixture
def open_page(browser):
    """Opens a link in a browser of its own; nothing may be asked of another host, and nothing may go wrong."""
    contexts, problems = [], []

    def make(link: str, **options) -> Page:
        contexts.append(browser.new_context(**{"viewport": {"width": 1200, "height": 900}} | options))
        page = contexts[-1].new_page()
        page.set_default_timeout(60_000)
        page.on("request", lambda r: None if r.url.startswith(("http://127.0.0.1", "data:", "blob:")) else
                problems.append(r.url))  # fmt: skip
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(link)
        return page

    yield make
    for context in contexts:
        context.close()
    assert problems == []


def task(page: Page):
    return page.locator(".rlhf-feedback")


def choose(page: Page, number: int) -> None:
    """Press a reply's number and wait until the store has the answer."""
    done = page.locator(".rlhf-progress-text").inner_text()
    page.keyboard.press(str(number))
    expect(page.locator(".rlhf-progress-text")).not_to_have_text(done)
    expect(task(page).get_by_role("status")).to_contain_text("Saved")


def test_two_students_and_a_teacher(class_, open_page):
    ada, ben = open_page(class_.links["Ada"]), open_page(class_.links["Ben"])
    for page, name in ((ada, "Ada"), (ben, "Ben")):
        expect(page.get_by_role("heading", name=name)).to_be_visible()
        expect(task(page)).to_be_focused()  # the keys work from the start
        assert "key=" not in page.url
    teacher = open_page(class_.links["(teacher)"])
    expect(teacher.get_by_role("row", name="Ada")).to_contain_text("0 of 1")

    ada.locator(".rlhf-choice, .rlhf-card").first.click()
    expect(task(ada).get_by_role("status")).to_contain_text("Saved")
    for _ in range(3):
        choose(ada, 1)
    choose(ben, 2)
    with FeedbackStore(class_.store) as store:
        assert (store.count("Ada"), store.count("Ben")) == (4, 1)
        assert store.answers("Ben")[0].order[0][0] == store.answers("Ben")[0].displayed[1]

    expect(teacher.get_by_role("row", name="Ada")).to_contain_text("4 of 5")
    expect(teacher.get_by_role("row", name="Ben")).to_contain_text("1 of 2")

    asked = task(ada).locator(".rlhf-prompt-text").inner_text()
    ada.reload()
    expect(task(ada).locator(".rlhf-prompt-text")).to_have_text(asked)
    expect(ada.locator(".rlhf-page-own")).to_have_text("4 questions answered")
    expect(task(ada)).to_be_focused()
    ada.keyboard.press("u")
    expect(ada.locator(".rlhf-page-own")).to_have_text("3 questions answered")
    with FeedbackStore(class_.store) as store:
        assert store.count("Ada") == 3


def test_the_last_answer_ends_the_queue(class_, open_page):
    ben = open_page(class_.links["Ben"])
    expect(task(ben)).to_be_focused()
    while task(ben).locator(".rlhf-prompt").is_visible():
        with FeedbackStore(class_.store) as store:
            before = store.count("Ben")
        ben.keyboard.press("1")
        ben.wait_for_function(
            "n => Number(document.querySelector('.rlhf-progress-text').textContent.split(' ')[0]) > n", arg=before
        )
    expect(task(ben)).to_contain_text("All done")
    with FeedbackStore(class_.store) as store:
        assert store.count("Ben") == len(store.answered("Ben")) == 12


def test_a_wrong_key_shows_one_sentence_and_no_data(class_, open_page):
    page = open_page(class_.links["Ada"][:-4] + "xxxx")
    expect(page.get_by_role("alert")).to_have_text(
        "This link’s key is not known. Ask your teacher for your link again."
    )
    assert page.locator("script[id=jupyter-config-data]").count() == 0
    page.goto(class_.links["Ada"].partition("?")[0].replace("label", "teacher"))
    expect(page.get_by_role("alert")).to_contain_text("personal link")


def test_the_dashboard_by_keyboard_and_for_the_wall(class_, open_page):
    page = open_page(class_.links["(teacher)"])
    expect(page.get_by_role("row", name="Ada")).to_be_visible()
    page.get_by_role("button", name="Answered").focus()
    page.keyboard.press("Enter")
    assert page.get_by_role("columnheader", name="Answered").get_attribute("aria-sort") == "descending"
    page.get_by_role("button", name="Hide names").click()
    expect(page.get_by_role("row", name="Person 1")).to_be_visible()
    assert "Ada" not in page.content() and "Ben" not in page.content()
    page.get_by_role("button", name="Pause").click()
    expect(page.get_by_role("button", name="Resume")).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_are_serious_violations(class_, open_page, scheme):
    student, teacher = (open_page(class_.links[who], color_scheme=scheme) for who in ("Ada", "(teacher)"))
    expect(task(student)).to_be_visible()
    expect(teacher.get_by_role("row", name="Ada")).to_be_visible()
    for page in (student, teacher):
        assert page.evaluate("document.body.dataset.jpThemeLight") == str(scheme == "light").lower()
        assert serious_violations(page) == []
