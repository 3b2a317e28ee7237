"""The page of one student: who they are, how far they and the class are, and the questions of their own queue.

    page = LabellingPage(FeedbackStore(url), "Ada", form="compare")

`student_page` is what the web server of `rlhf-lab classroom` shows. A page keeps nothing of its own: questions come
from `Assignments.next_question`, answers are in the store before they are acknowledged, and a page that is closed and
opened again goes on where it was. Nothing here imports torch, numpy or pandas: a room of thirty has thirty of these.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from importlib import import_module
from typing import Any

import anywidget
import comm
import ipywidgets
import traitlets

from rlhf_lab.assignments import Assignments
from rlhf_lab.errors import InputError
from rlhf_lab.records import Question
from rlhf_lab.store import FeedbackStore

from .feedback import STATIC, FeedbackWidget

FORMS = {  # what a class can be asked for: the widget, by module and name, and how many replies it shows
    "rank": ("ranking", "RankingWidget"),
    "compare": ("compare", "CompareWidget"),
    "grade": ("compare", "GradedCompareWidget"),
    "rate": ("rating", "RatingWidget"),
    "thumbs": ("thumbs", "ThumbsWidget"),
    "correct": ("correction", "CorrectionWidget"),
}
REMEMBERED = 50  # answers that can be undone after a reload

ALL_DONE = "All done: you have answered every question in your queue. Thank you! New ones appear here by themselves."
OTHERS_ANSWER = "The others are answering the last questions. If one becomes free, it appears here…"
NOT_READY = "The first questions are on their way…"


class PageHeader(anywidget.AnyWidget):
    """The strip above the questions: name, own and class progress, light or dark, and what is wrong, if anything."""

    _esm = STATIC / "labelling.js"
    _css = STATIC / "labelling.css"

    data = traitlets.Dict().tag(sync=True)  # {"name", "answered", "done", "places", "error"}


class LabellingPage(ipywidgets.VBox):
    """One student's page on a class's store; `form` is one of `FORMS`.

    `poll` is how many seconds pass between two looks at what others did: new questions, the class's progress. While a
    question is on the screen the page asks the database ten times more rarely.
    """

    def __init__(
        self, store: FeedbackStore, annotator: str, form: str = "rank", *, lease: float = 1800.0, poll: float = 3.0
    ) -> None:
        self._changed, self._closed, self._poll = threading.Event(), False, poll
        if form not in FORMS:
            raise InputError(f"form {form!r} of a class: must be one of {', '.join(FORMS)}")
        self.store, self.annotator = store, annotator
        self.queue = Assignments(store, lease=lease)
        self.header = PageHeader(data={"name": annotator, "answered": 0, "done": 0, "places": 0, "error": ""})
        self.questions = self._make_widget(form)
        super().__init__([self.header, self.questions])
        self.add_class("rlhf-labelling")
        self.questions.observe(lambda _: self._changed.set(), "progress")
        self._look()
        threading.Thread(target=self._watch, name="rlhf-lab labelling page", daemon=True).start()

    def _make_widget(self, form: str) -> FeedbackWidget:
        module, name = FORMS[form]
        widget: type[FeedbackWidget] = getattr(import_module(f".{module}", __package__), name)
        return widget(
            None,
            self.store.append,
            self.annotator,
            on_undo=lambda answer: self.store.withdraw(answer.id, self.annotator),
            next_question=self._next_question,
            seed=_seed(self.annotator),
            wait_text=NOT_READY,
            history=self._history(widget.record.kind),
            guidelines=_text(self.store.note("guidelines")),
        )

    def _history(self, kind: str) -> list[tuple[Question, Any]]:
        given = self.store.answers(self.annotator, kinds=(kind,))[-REMEMBERED:]
        asked = {question.id: question for question in self.store.questions({answer.question_id for answer in given})}
        return [(asked[answer.question_id], answer) for answer in given]

    def _next_question(self) -> Question | None:
        return self.queue.next_question(self.annotator)

    # --- what others do meanwhile ---

    def _watch(self) -> None:
        rounds = 0
        while not self._closed:
            mine = self._changed.wait(self._poll)
            self._changed.clear()
            rounds += 1
            if self._closed:
                return
            if mine or self.questions.question is None or rounds % 10 == 0:
                self._look()

    def _look(self) -> None:
        """Bring the header up to date, and a question onto the screen if there is none and one is free."""
        try:
            if self.questions.question is None:
                self.questions.refresh()
            state, own = self.queue.state(), self.queue.progress(self.annotator)
            if self.questions.question is None:
                text = NOT_READY if not state.questions else OTHERS_ANSWER if own.held else ALL_DONE
                self.questions.wait_text = text
            done = {"done": min(state.answered, state.places), "places": state.places}
            self.header.data = {"name": self.annotator, "answered": own.answered, "error": ""} | done
        except InputError as error:  # the database is away for a moment: say so, and look again soon
            self.header.data = self.header.data | {"error": str(error)}

    def close(self) -> None:
        """Stop watching and close the view; what was answered is in the store."""
        self._closed = True
        self._changed.set()
        for widget in self.children:
            widget.close()
        super().close()

    def __repr__(self) -> str:
        return f"<LabellingPage of {self.annotator}: {self.header.data['answered']} answered>"


class ProblemPage(PageHeader):
    """The page when there is none: one sentence."""

    def __init__(self, message: str) -> None:
        super().__init__(data={"name": "", "answered": 0, "done": 0, "places": 0, "error": message})


def student_page(name: str) -> ipywidgets.DOMWidget:
    """The page of the student `name` of the class that the server serves (its settings are in RLHF_LAB_CLASS)."""
    try:
        settings = class_settings()
        store = FeedbackStore(settings["store"])
        return LabellingPage(store, name, settings["form"], lease=settings["lease"])
    except InputError as error:
        return ProblemPage(f"This page cannot be opened: {error}. Reload it in a minute, or tell your teacher.")


def class_settings() -> dict[str, Any]:
    """The settings that `rlhf-lab classroom` gave its server; InputError outside such a server."""
    text = os.environ.get("RLHF_LAB_CLASS")
    if not text:
        raise InputError("this page is served by `rlhf-lab classroom`; in a notebook make a LabellingPage(store, name)")
    _answer_for_states()
    return json.loads(text)


def _answer_for_states() -> None:
    """Let the page fetch all widgets' states in one message; ipywidgets misses that in a forked kernel.

    Its other target, with which a page could make widgets of its own, stays closed: these pages need none.
    """
    comm.get_comm_manager().register_target("jupyter.widget.control", ipywidgets.Widget.handle_control_comm_opened)


def _text(note: dict[str, Any] | None) -> str | None:
    return note.get("text") if note else None


def _seed(name: str) -> int:
    """Each student sees the replies in an order of their own, the same after a reload."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4])
