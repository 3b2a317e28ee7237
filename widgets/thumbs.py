"""ThumbsWidget: is this reply good or not? One click or key is one vote."""

from __future__ import annotations

from typing import Any

from rlhf_lab.errors import InputError
from rlhf_lab.records import Question, Vote

from .feedback import ReplyWidget, static_source


class ThumbsWidget(ReplyWidget):
    """Asks for a thumb, up or down, for one reply at a time; see `ReplyWidget` for the arguments.

    Keys: Up, Y or 1 for a thumb up, Down, N or 0 for a thumb down, D can't decide, S skip, U undo. The answer is a
    `Vote` (what KTO learns from, arXiv:2402.01306).
    """

    record = Vote
    _esm = static_source("feedback.js", "thumbs.js")
    _css = static_source("feedback.css", "thumbs.css")

    def _decision(self, question: Question, answer: dict) -> dict[str, Any]:
        up = answer.get("up")
        if up is not None and not isinstance(up, bool):
            raise InputError(f"a vote is true (up) or false (down), not {up!r}")
        return {"candidate": self._target(question, answer), "up": up}

    def _draft_of(self, question: Question, answer: Vote) -> dict:
        return self._place(question, answer) | {"up": answer.up}
