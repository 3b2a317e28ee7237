"""CompareWidget: which of two replies is better? One click or key is one label."""

from __future__ import annotations

from rlhf_lab.errors import InputError
from rlhf_lab.records import Question

from .feedback import FeedbackWidget, static_source


class CompareWidget(FeedbackWidget):
    """Asks which of a question's two replies is better, or whether they tie; see `FeedbackWidget` for the arguments.

    Keys: 1 and 2 choose, 0 ties, D can't decide, S skip, U undo. The answer is a `Ranking` with one or two tiers.
    """

    _esm = static_source("feedback.js", "compare.js")
    _css = static_source("feedback.css", "compare.css")

    def _check(self, question: Question) -> None:
        if (k := len(question.candidates)) != 2:
            raise InputError(f"question {question.id!r} has {k} replies; a comparison needs two (use RankingWidget)")
