"""RatingWidget: mark each reply from 1 to 5 for each of several attributes (a Likert scale)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import traitlets

from rlhf_lab.errors import InputError
from rlhf_lab.records import ATTRIBUTES, RATING_SCALE, Question, Rating

from .feedback import FeedbackWidget, static_source

QUESTIONS = {  # what is asked for the attributes that are rated unless you say otherwise
    "helpful": "Does it do what was asked?",
    "correct": "Is everything it says true?",
    "polite": "Is its tone friendly and respectful?",
    "safe": "Is it free of harm and bad advice?",
}
ENDS = ("not at all", "completely")


class RatingWidget(FeedbackWidget):
    """Asks for a mark from 1 ("not at all") to 5 ("completely") for each attribute of each reply.

    attributes  their names, or {name: the one-line question that is asked}; `records.ATTRIBUTES` unless given

    Keys: 1 … 5 mark the current row and go on to the next; Up and Down choose a row, Left and Right change its mark,
    Backspace clears it, Enter confirms when every row has its mark; D can't decide, S skip, U undo. The answer is a
    `Rating`. See `FeedbackWidget` for the other arguments.
    """

    record = Rating
    _esm = static_source("feedback.js", "rating.js")
    _css = static_source("feedback.css", "rating.css")

    attributes = traitlets.List().tag(sync=True)  # [{"name", "question"}, …]
    ends = traitlets.List(list(ENDS)).tag(sync=True)

    def __init__(
        self,
        question: Question | None = None,
        *args: Any,
        attributes: Iterable[str] | dict[str, str] = ATTRIBUTES,
        **options: Any,
    ):
        self._attributes = _named(attributes)
        super().__init__(question, *args, **options)
        self.attributes = [{"name": name, "question": asks} for name, asks in self._attributes.items()]

    def _decision(self, question: Question, answer: dict) -> dict[str, Any]:
        marks, names = answer.get("scores", ()), tuple(self._attributes)
        try:
            scores = {
                candidate: dict(zip(names, row, strict=True))
                for candidate, row in zip(self._displayed(question), marks, strict=bool(marks))
            }
        except (TypeError, ValueError):
            raise InputError(
                f"scores list {len(names)} marks for each of {len(question.candidates)} replies, not {marks!r}"
            ) from None
        if not all(type(mark) is int and mark in RATING_SCALE for row in scores.values() for mark in row.values()):
            raise InputError(f"a mark is a whole number from 1 to 5; the page sent {marks!r}")
        return {"scores": scores}

    def _draft_of(self, question: Question, answer: Rating) -> dict:
        if not answer.given or set(answer.attributes) != set(self._attributes):
            return {}
        rows = [answer.scores[candidate] for candidate in self._displayed(question)]
        return {"question": question.id, "marks": [[row[name] for name in self._attributes] for row in rows]}


def _named(attributes: Iterable[str] | dict[str, str]) -> dict[str, str]:
    """{name: question} of the attributes; InputError when they are not distinct names."""
    if isinstance(attributes, str):
        raise InputError(f"attributes={attributes!r}: a list of names, or {{name: question}}, is wanted")
    names = list(attributes)
    asks = attributes if isinstance(attributes, dict) else {name: QUESTIONS.get(name, "") for name in names}
    texts = [*names, *asks.values()]
    if not names or len(set(names)) < len(names) or not all(isinstance(text, str) for text in texts) or "" in names:
        raise InputError(f"attributes={attributes!r}: one or more different names are wanted")
    return dict(asks)
