"""The list of a person's labels: what each was, what it changed, and the way back to before it.

Python keeps one row a label; the page is sent only the rows that are new or have changed, as messages, and asks for
all of them when a view opens. So hundreds of labels cost an event no more than one does.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import anywidget
import traitlets

from rlhf_lab.records import Answer, Correction, Question, Ranking, Rating, RolledBack, Vote

from .curves import STATIC, Coalescer

OnAction = Callable[[str, str], None]  # "withdraw", "change" or "rollback", and the answer's id

KINDS = {"ranking": "Ranking", "rating": "Rating", "vote": "Thumb", "correction": "Correction"}
SHORT = 90  # characters of a prompt or reply in a row


@dataclass
class Label:
    """One answer of the person, and what became of it."""

    question: Question
    answer: Answer
    number: int  # 1, 2, …: among all that the person gave, those taken back included
    step: int | None  # the PPO step after which it was given; None in an earlier session
    taken_back: str = ""  # "withdrawn", "rolled back", or "" while it stands
    learned: bool = False
    effect: str = ""  # what it did to the reward model, in words

    @property
    def name(self) -> str:
        """Short: "label 7: ranking of “Where is …”"."""
        return f"label {self.number}: {KINDS[self.answer.kind].lower()} of “{short(self.question.prompt, 48)}”"


def short(text: str, limit: int = SHORT) -> str:
    """The text on one line, cut with "…" where it is longer than `limit`."""
    line = " ".join(text.split())
    return line if len(line) <= limit else f"{line[: limit - 1].rstrip()}…"


def decision(question: Question, answer: Answer) -> str:
    """What an answer says, in a few words."""
    texts = question.texts
    if not answer.given:
        return "can't decide" if answer.status == "undecided" else "skipped"
    match answer:
        case Ranking(order=(only,)):
            return f"{len(only)} replies tied"
        case Ranking(order=(best, *_), grade=grade):
            first = " = ".join(f"“{short(texts[candidate], 60)}”" for candidate in best[:2])
            return f"{first} {grade or 'first'}"
        case Rating():
            marks = sorted(answer.overall().items(), key=lambda item: -item[1])
            return ", ".join(f"{mark:.1f} “{short(texts[name], 40)}”" for name, mark in marks[:2])
        case Vote():
            return f"{'👍 up' if answer.up else '👎 down'}: “{short(texts[answer.candidate], 70)}”"
        case Correction():
            return f"now “{short(answer.text, 80)}”"
    return ""


class HistoryWidget(anywidget.AnyWidget):
    """The labels, newest first. Every method is safe on any thread.

    `on_action(action, id)` is called when the person wants to "withdraw", "change" or go back to before ("rollback") a
    label. `can_change` says whether a form for that is offered.
    """

    _esm = STATIC / "history.js"
    _css = STATIC / "history.css"
    step = traitlets.Int().tag(sync=True)  # PPO steps so far, for the confirmation of a rollback
    opened = traitlets.Bool().tag(sync=True)

    def __init__(
        self,
        on_action: OnAction,
        can_change: Callable[[Question, Answer], bool] = lambda _question, _answer: True,
        interval: float = 0.2,
    ) -> None:
        self._coalescer = Coalescer(self._send_new, interval)
        super().__init__()
        self._on_action, self._can_change = on_action, can_change
        self._lock = threading.RLock()
        self._labels: dict[str, Label] = {}
        self._given = 0
        self._rows: list[dict[str, Any]] = []  # as the page has them, oldest first
        self._place: dict[str, int] = {}
        self._unsent: set[int] = set()
        self.on_msg(self._on_message)

    # --- what happened ---

    def add(self, question: Question, answer: Answer, step: int | None, taken_back: str = "") -> Label:
        """A label was given (an answer that is known already stays as it is)."""
        with self._lock:
            if answer.id not in self._labels:
                self._given += answer.given
                self._labels[answer.id] = Label(question, answer, self._given if answer.given else 0, step, taken_back)
                self._place[answer.id] = len(self._rows)
                self._rows.append({})
                self._redraw(self._labels[answer.id])
            label = self._labels[answer.id]
        self._coalescer.poke()
        return label

    def learned(self, answer_id: str, effect: str, step: int | None = None) -> None:
        """The reward model has learned the label; `effect` says what that did, `step` when, where that is not known."""
        with self._lock:
            label = self._labels[answer_id]
            label.learned, label.effect = True, effect
            label.step = step if label.step is None else label.step
            self._redraw(label)
        self._coalescer.poke()

    def take_back(self, answer_id: str, how: str = "withdrawn") -> None:
        """The label counts no more."""
        with self._lock:
            label = self._labels.get(answer_id)
            if label is not None and not label.taken_back:
                label.taken_back = how
                self._redraw(label)
        self._coalescer.poke()

    def standing_from(self, answer_id: str) -> list[Label]:
        """This label and all after it that count."""
        with self._lock:
            return [label for label in self._from(answer_id) if not label.taken_back]

    def rolled_back(self, event: RolledBack) -> tuple[int, int] | None:
        """The loop went back to before a label: the numbers of the first and the last label taken back by that."""
        with self._lock:
            if event.answer_id not in self._labels:
                return None
            gone = [label for label in self._from(event.answer_id) if label.learned or label.taken_back]
            replayed = all(label.taken_back == "withdrawn" for label in gone)  # read from the log, which knows no more
            for label in gone:
                label.taken_back = "" if replayed else label.taken_back
                self.take_back(label.answer.id, "rolled back")
            numbers = [label.number for label in gone if label.number]
            span = (numbers[0], numbers[-1]) if numbers else None
            self._rows.append(rollback_row(event, span))
            self._unsent.add(len(self._rows) - 1)
        self._coalescer.poke()
        return span

    def __getitem__(self, answer_id: str) -> Label:
        return self._labels[answer_id]

    def __contains__(self, answer_id: object) -> bool:
        return answer_id in self._labels

    def get(self, answer_id: str) -> Label | None:
        """The label of that answer, if it is known."""
        return self._labels.get(answer_id)

    @property
    def labels(self) -> list[Label]:
        """All labels, oldest first."""
        with self._lock:
            return list(self._labels.values())

    # --- the page ---

    def reveal(self, answer_id: str) -> None:
        """Open the list at this label and give it the focus."""
        self.opened = True
        self.send({"type": "reveal", "id": answer_id})

    def flush(self) -> None:
        """Send what is new now, without waiting for the interval."""
        self._send_new()

    def close(self) -> None:
        """Close the widget; nothing more is sent."""
        self._coalescer.close()
        super().close()

    def _from(self, answer_id: str) -> list[Label]:
        labels = list(self._labels.values())
        return labels[labels.index(self._labels[answer_id]) :]

    def _of_same_target(self, answer: Answer) -> list[Label]:
        """The labels of which at most one counts: the same kind, question and reply."""
        same = (answer.kind, answer.question_id, answer.target)
        return [
            label
            for label in self._labels.values()
            if (label.answer.kind, label.answer.question_id, label.answer.target) == same
        ]

    def _redraw(self, changed: Label) -> None:
        """Make the row of this label anew, and of those that it replaces or stands back for."""
        labels = self._of_same_target(changed.answer)
        standing = [label for label in labels if not label.taken_back]
        for label in labels:
            place = self._place[label.answer.id]
            state = replaced_words(standing[-1]) if label in standing[:-1] else label.taken_back
            row = self._row(label, state)
            if row != self._rows[place]:
                self._rows[place] = row
                self._unsent.add(place)

    def _row(self, label: Label, state: str) -> dict[str, Any]:
        answer = label.answer
        return {
            "id": answer.id,
            "kind": KINDS[answer.kind],
            "number": label.number,
            "created": answer.created,
            "step": label.step,
            "prompt": short(label.question.prompt),
            "decision": decision(label.question, answer),
            "effect": label.effect,
            "state": state,
            "gone": bool(label.taken_back),
            "can_change": self._can_change(label.question, answer),
        }

    def _send_new(self) -> None:
        with self._lock:  # while sending too, so that two threads cannot swap their messages
            places, self._unsent = sorted(self._unsent), set()
            if places:
                self.send({"type": "rows", "count": len(self._rows), "rows": [[p, self._rows[p]] for p in places]})

    def _on_message(self, _widget: object, content: dict[str, Any], _buffers: object) -> None:
        if content.get("type") == "hello":
            with self._lock:
                self.send({"type": "rows", "count": len(self._rows), "rows": list(enumerate(self._rows))})
        elif content.get("action") in ("withdraw", "change", "rollback") and content.get("id") in self._labels:
            self._on_action(content["action"], content["id"])


def replaced_words(by: Label) -> str:
    """What became of a label that a later answer replaced."""
    return f"replaced by label {by.number}" if by.number else f"replaced: {decision(by.question, by.answer)}"


def rollback_row(event: RolledBack, span: tuple[int, int] | None) -> dict[str, Any]:
    """The row that says that the loop went back."""
    labels = "" if span is None else f" to before label {span[0]}"
    count = f"{event.withdrawn} label{'' if event.withdrawn == 1 else 's'} withdrawn"
    words = f"Rolled back{labels}: {count}, policy of PPO step {event.to_step}"
    return {"id": "", "kind": "rollback", "step": event.step, "decision": words, "state": "", "gone": False}
