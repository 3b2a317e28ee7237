"""The teacher's dashboard: how far the class is, how well it agrees, what to talk about, what the class model learns.

    Dashboard(FeedbackStore(url))

It reads the store on a thread of its own every few seconds, at the cost of what is new, and sends the page plain data;
nothing is sent when nothing has changed. With `anonymous` on, names do not reach the page at all: it may stand on a
wall. No torch.
"""

from __future__ import annotations

import threading
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import anywidget
import ipywidgets
import traitlets

from rlhf_lab.agreement import strength
from rlhf_lab.class_report import ClassLog, ClassReport, Item, StudentRow
from rlhf_lab.errors import InputError
from rlhf_lab.records import Interval
from rlhf_lab.store import FeedbackStore

from .curves import STATIC, CurvesWidget, Panel

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PANELS = (
    Panel(
        "accuracy", "Class model on new questions",
        "Share of the class’s own pairs that a model fitted to its other questions orders as they did. Band: 95%.",
        percent=True, ymin=0.3, ymax=1.0, xlabel="answers", reference=0.5, reference_label="coin flip", marks=False,
        empty="Appears when ten questions are answered",
    ),
    Panel(
        "gold", "Class model against the gold judge",
        "Share of the run’s held-out pairs that it orders as the gold judge does: has the class taught what is true?",
        percent=True, ymin=0.3, ymax=1.0, xlabel="answers", reference=0.5, reference_label="coin flip", marks=False,
        empty="Appears with the trainer’s first report",
    ),
)  # fmt: skip

COEFFICIENTS = (  # field of the report, title, what it means in one sentence
    ("strict", "Raw agreement", "How often two students prefer the same reply, ties left out; a coin reaches 50%."),
    ("cohen", "Cohen’s kappa", "Agreement of two students beyond chance, on average: 0 is chance, 1 perfect."),
    ("fleiss", "Fleiss’ kappa", "The same for the whole class at once, if everybody had the same habits."),
    ("alpha", "Krippendorff’s alpha", "The same with answers missing. Custom wants 0.8, or 0.67 with care."),
    ("places", "Alpha of whole rankings", "Krippendorff’s alpha of each reply’s place, where near misses count less."),
    ("grades", "Alpha of grades", "Krippendorff’s alpha of how much better, where near misses count less."),
    ("votes", "Alpha of thumbs", "Krippendorff’s alpha of thumbs up and down."),
)  # fmt: skip


class DashboardPart(anywidget.AnyWidget):
    """One region, "overview", "students" or "items", drawn from the plain data that Python puts in `data`."""

    _esm = STATIC / "dashboard.js"
    _css = STATIC / "dashboard.css"
    part = traitlets.Unicode().tag(sync=True)
    data = traitlets.Dict().tag(sync=True)


class Dashboard(ipywidgets.VBox):
    """The class of one store, live. `interval` is in seconds; `pause` and `resume`, or the button, hold it still."""

    anonymous = traitlets.Bool(False)
    paused = traitlets.Bool(False)

    def __init__(self, store: FeedbackStore, *, interval: float = 3.0, title: str = "The class") -> None:
        self.class_log, self.title = ClassLog(store), title
        self._interval, self._error, self._report = interval, "", None
        self._wake, self._closed, self._lock = threading.Event(), False, threading.RLock()
        self._plotted = 0
        self.parts = {name: DashboardPart(part=name) for name in ("overview", "students", "items")}
        self.curves = CurvesWidget(PANELS, interval=1.0)
        super().__init__([self.parts["overview"], self.parts["students"], self.curves, self.parts["items"]])
        self.add_class("rlhf-dashboard")
        self.parts["overview"].on_msg(self._on_message)
        self.refresh()
        threading.Thread(target=self._watch, name="rlhf-lab dashboard", daemon=True).start()

    # --- for the teacher's own code ---

    def pause(self) -> None:
        """Stand still: nothing is read or shown until `resume`."""
        self.paused = True

    def resume(self) -> None:
        """Go on, with what has come meanwhile."""
        self.paused = False

    def refresh(self) -> None:
        """Read what is new and show it now. A database that is away is said in place."""
        try:
            with self._lock:
                if self.class_log.refresh() or self._report is None or self._error:
                    self._report = self.class_log.report()
            error = ""
        except InputError as problem:
            error = str(problem)
        except Exception as problem:  # it runs on a thread, where nobody would see it: the page would just stand still
            error = f"{type(problem).__name__}: {problem}"
        with self._lock:
            self._error = error
            self._show()

    @property
    def report(self) -> ClassReport | None:
        """What is shown, as records."""
        return self._report

    def figure(self) -> Figure:
        """Progress of each student and the class model's accuracy, as a static picture for a notebook that is saved."""
        from matplotlib.figure import Figure as Picture

        rows = self._rows()
        picture = Picture(figsize=(10, max(2.4, 0.28 * len(rows) + 1.2)), layout="constrained")
        left, right = picture.subplots(1, 2, width_ratios=(3, 2))
        names = [row["name"] for row in rows][::-1]
        left.barh(names, [row["answered"] for row in rows][::-1], color="#0072b2")
        left.set(xlabel="questions answered", title=self.title)
        models = [note for note in (self._report.models if self._report else ()) if note.get("accuracy")]
        x, y = [note["answers"] for note in models], [note["accuracy"]["value"] for note in models]
        right.plot(x, y, color="#0072b2", marker="o", markersize=3)
        low, high = ([note["accuracy"][bound] for note in models] for bound in ("low", "high"))
        right.fill_between(x, low, high, color="#0072b2", alpha=0.16)
        right.axhline(0.5, color="0.5", linestyle=":")
        right.set(xlabel="answers", ylim=(0.3, 1), title="class model, pairs of new questions")
        return picture

    def close(self) -> None:
        """Stop reading and close the view."""
        self._closed = True
        self._wake.set()
        for widget in (*self.parts.values(), self.curves):
            widget.close()
        super().close()

    def __repr__(self) -> str:
        n = len(self._report.students) if self._report else 0
        return f"<Dashboard: {n} students, {self._report.answers if self._report else 0} answers>"

    # --- reading and showing ---

    def _watch(self) -> None:
        while not self._closed:
            self._wake.wait(self._interval)
            self._wake.clear()
            if not self._closed and not self.paused:
                self.refresh()

    def _on_message(self, _part: object, content: dict[str, Any], _buffers: object) -> None:
        if content.get("action") == "pause":
            self.paused = not self.paused
        elif content.get("action") == "names":
            self.anonymous = not self.anonymous

    @traitlets.observe("anonymous", "paused")
    def _on_choice(self, _change: dict) -> None:
        with self._lock:
            self._show()
        self._wake.set()

    def _show(self) -> None:
        report = self._report
        self.parts["overview"].data = self._overview(report)
        if report is None:
            return
        self.parts["students"].data = {"rows": self._rows()}
        self.parts["items"].data = {"items": [self._item(item) for item in report.items]}
        for note in report.models[self._plotted :]:
            for key in ("accuracy", "gold"):
                if note.get(key):
                    value = note[key]
                    self.curves.add(key, note["answers"], value["value"], value["low"], value["high"])
        self._plotted = len(report.models)

    def _overview(self, report: ClassReport | None) -> dict[str, Any]:
        state = {"title": self.title, "paused": self.paused, "anonymous": self.anonymous, "error": self._error}
        if report is None:
            return state
        queue = asdict(report.queue)
        agreement = [
            {"title": title, "meaning": meaning} | _words(getattr(report.agreement, name), name)
            for name, title, meaning in COEFFICIENTS
            if name in ("strict", "cohen", "fleiss", "alpha") or getattr(report.agreement, name) is not None
            if name != "places" or report.longest > 2  # of two replies it says what alpha says
        ]
        return state | {
            "students": len(report.students), "answers": report.answers, "queue": queue, "agreement": agreement,
            "message": self._named(report.agreement.message),
        }  # fmt: skip

    def _rows(self) -> list[dict[str, Any]]:
        return [self._row(row) for row in self._report.students] if self._report else []

    def _row(self, row: StudentRow) -> dict[str, Any]:
        return asdict(row) | {
            "name": self._called(row.name),
            "pace": round(row.pace, 1),
            "concerns": [self._named(reason) for reason in row.concerns],
        }

    def _item(self, item: Item) -> dict[str, Any]:
        opinions = [
            {"verdict": opinion.verdict, "people": [self._called(name) for name in opinion.people]}
            for opinion in item.opinions
        ]
        return asdict(item) | {"opinions": opinions}

    # --- names ---

    def _called(self, name: str) -> str:
        """A person's name, or the number in their place."""
        return self._aliases().get(name, name) if self.anonymous else name

    def _named(self, sentence: str) -> str:
        """A sentence that may hold names, the longest first, so that "Ada" does not cut "Ada B." short."""
        if self.anonymous:
            for name, alias in sorted(self._aliases().items(), key=lambda pair: -len(pair[0])):
                sentence = sentence.replace(name, alias)
        return sentence

    def _aliases(self) -> dict[str, str]:
        rows = self._report.students if self._report else ()
        return {row.name: f"Person {number}" for number, row in enumerate(rows, start=1)}


def _words(value: Interval | None, name: str) -> dict[str, Any]:
    """A coefficient as it is shown: number, interval, and a word for its size where one is customary."""
    if value is None:
        return {"value": "–", "interval": "not enough answers yet", "word": ""}
    if name == "strict":
        return {"value": f"{value.value:.0%}", "interval": f"{value.low:.0%} to {value.high:.0%}", "word": ""}
    word = strength(value.value)
    return {"value": f"{value.value:.2f}", "interval": f"{value.low:.2f} to {value.high:.2f}", "word": word}


def teacher_page() -> ipywidgets.DOMWidget:
    """The teacher's page of the class that the server serves."""
    from .labelling import ProblemPage, class_settings

    try:
        return Dashboard(FeedbackStore(class_settings()["store"]))
    except InputError as error:
        return ProblemPage(f"This page cannot be opened: {error}. Reload it in a minute.")
