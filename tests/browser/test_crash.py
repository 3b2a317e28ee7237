"""One click is one committed label; and a Jupyter server that dies takes no acknowledged label with it."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from pathlib import Path

import pytest
from playwright.sync_api import expect

from rlhf_lab.store import FeedbackStore

from .conftest import Notebook, start_lab, stop_lab

ROUNDS = int(os.environ.get("RLHF_LAB_CRASH_ROUNDS", "0")) or 2

CELL = """
import os, pathlib
from rlhf_lab.records import Candidate, Question
from rlhf_lab.store import FeedbackStore
from widgets import {widget}

candidates = tuple(Candidate(f"c{{i}}", f"This is reply {{i}}") for i in range({replies}))
questions = [Question(f"q{{n}}", f"Prompt {{n}}", candidates) for n in range(1000)]
store = FeedbackStore({url!r})
pathlib.Path({pid!r}).write_text(str(os.getpid()))
widget = {widget}.for_store(questions, store)
widget
"""


class Person:
    """Somebody who labels with one widget on one store."""

    def __init__(self, notebook: Notebook, url: str, folder: Path, widget: str, replies: int) -> None:
        self.notebook, self.page, self.url, self.replies = notebook, notebook.page, url, replies
        self.pid_file = folder / "kernel-pid"
        self.cell = CELL.format(widget=widget, replies=replies, url=url, pid=str(self.pid_file))
        self.root = self.page.locator(".rlhf-feedback").first

    def start(self) -> None:
        self.notebook.run(self.cell)
        self.root.wait_for()
        self.root.click(position={"x": 8, "y": 8})

    def acknowledged(self) -> int:
        """How many labels the page says are saved."""
        return int(self.root.locator(".rlhf-progress-text").inner_text().split()[0]) - 1

    def wait_for(self, labels: int) -> None:
        expect(self.root.locator(".rlhf-progress-text")).to_have_text(f"{labels + 1} of 1000")

    def stored(self) -> list[str]:
        """The questions that the log has an answer to, in order."""
        with FeedbackStore(self.url) as store:
            assert all(event.kind == "ranking" for event in store.events())
            return [event.question_id for event in store.events()]


def test_one_click_is_one_committed_label(notebook, database, tmp_path):
    person = Person(notebook, database, tmp_path, "CompareWidget", 2)
    person.start()
    for number in range(1, 4):
        person.root.get_by_role("button", name="This is reply 1").click()
        person.wait_for(number)
        expect(person.root.get_by_role("status")).to_contain_text("Saved")
        assert person.stored() == [f"q{n}" for n in range(number)]  # on the disk once the page says so
    with FeedbackStore(database) as store:
        assert [ranking.order for ranking in store.rankings()] == [(("c1",), ("c0",))] * 3


def test_four_keys_and_enter_are_one_committed_ranking(notebook, database, tmp_path):
    person = Person(notebook, database, tmp_path, "RankingWidget", 4)
    person.start()
    for number in range(1, 3):
        person.page.keyboard.type("3142")
        assert len(person.stored()) == number - 1
        person.page.keyboard.press("Enter")
        person.wait_for(number)
        assert person.stored() == [f"q{n}" for n in range(number)]
    with FeedbackStore(database) as store:
        for ranking in store.rankings():
            assert ranking.order == tuple((ranking.displayed[int(key) - 1],) for key in "3142")


@pytest.fixture
def own_lab(tmp_path):
    """A JupyterLab of the test's own, which it may kill and start again: [Lab, process]."""
    (tmp_path / "home").mkdir()
    (tmp_path / "served").mkdir()
    running = list(start_lab(tmp_path / "home", tmp_path / "served"))
    yield running
    stop_lab(running[1])


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_kill_9_of_the_jupyter_server_while_a_person_labels(own_lab, browser, database, tmp_path):
    moments, seen = random.Random(4), 0
    for _ in range(ROUNDS):
        context = browser.new_context(viewport={"width": 1200, "height": 1000})
        person = Person(Notebook(context.new_page(), own_lab[0]), database, tmp_path, "RankingWidget", 3)
        person.start()
        person.wait_for(len(person.stored()))
        killer = threading.Timer(moments.uniform(0.3, 1.5), os.kill, [own_lab[1].pid, signal.SIGKILL])
        killer.start()
        while killer.is_alive():
            person.page.keyboard.type("123")
            person.page.keyboard.press("Enter")
        killer.join()
        own_lab[1].wait()
        person.page.wait_for_timeout(300)  # what was under way comes to an end: the kernel outlives its server
        seen = person.acknowledged()
        context.close()
        end_kernel(person)
        stored = person.stored()
        assert stored[:seen] == [f"q{n}" for n in range(seen)] and len(stored) == len(set(stored))
        port = int(own_lab[0].url.rpartition(":")[2])
        own_lab[:] = start_lab(tmp_path / "home", tmp_path / "served", port)
    assert seen >= ROUNDS  # people did label
    print(f"{seen} acknowledged, {ROUNDS} kills of the server")


def end_kernel(person: Person) -> None:
    """The dead server's kernel has nobody left who would end it."""
    pid = int(person.pid_file.read_text())
    end = time.monotonic() + 20
    while time.monotonic() < end:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            return
        time.sleep(0.05)
