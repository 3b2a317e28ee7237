"""CorrectionWidget: make a reply better by editing it."""

from __future__ import annotations

from typing import Any

from rlhf_lab.errors import InputError
from rlhf_lab.records import Correction, Question

from .feedback import ReplyWidget, _sendable, static_source

GOOD_AS_IT_IS = "good as it is"


class CorrectionWidget(ReplyWidget):
    """Asks a person to edit one reply at a time; see `ReplyWidget` for the arguments.

    A correction is a demonstration for supervised fine-tuning, and a comparison, corrected above original, for the
    reward model. "It is good as it is" skips the reply and says so in the answer's `context`
    ({"verdict": "good as it is"}), so that it can be told from a reply that was merely passed over.

    Keys: E or Enter goes into the text, Ctrl+Enter (Cmd+Enter) saves, Escape restores the original and then leaves
    the text; outside it Y means that the reply is good as it is, D can't decide, S skip, U undo.
    """

    record = Correction
    _esm = static_source("feedback.js", "correction.js")
    _css = static_source("feedback.css", "correction.css")

    def _decision(self, question: Question, answer: dict) -> dict[str, Any]:
        text = answer.get("text", "")
        if not isinstance(text, str):
            raise InputError(f"a correction is text, not {text!r}")
        if not text.strip() and answer.get("status", Correction.GIVEN) == Correction.GIVEN:
            raise InputError("the correction is empty; write what the reply should have been, or skip it")
        return {"candidate": self._target(question, answer), "text": _sendable(text)}

    def _context(self, answer: dict) -> dict[str, str]:
        verdict = {"verdict": GOOD_AS_IT_IS} if answer.get("verdict") == GOOD_AS_IT_IS else {}
        return super()._context(answer) | verdict

    def _draft_of(self, question: Question, answer: Correction) -> dict:
        return self._place(question, answer) | ({"text": answer.text} if answer.given else {})
