"""Which of two replies is better, and by how much? One click or key is one label."""

from __future__ import annotations

from typing import Any

import traitlets

from rlhf_lab.errors import InputError
from rlhf_lab.records import GRADES, Question, Ranking

from .feedback import static_source
from .ranking import OrderWidget


class CompareWidget(OrderWidget):
    """Asks which of a question's two replies is better, or whether they tie; see `FeedbackWidget` for the arguments.

    Keys: 1 and 2 choose, 0 ties, D can't decide, S skip, U undo. The answer is a `Ranking` with one or two tiers.
    """

    _esm = static_source("feedback.js", "compare.js")
    _css = static_source("feedback.css", "compare.css")

    grades = traitlets.List([]).tag(sync=True)  # what the page offers: no grades, just the better one

    def _check(self, question: Question) -> None:
        if (k := len(question.candidates)) != 2:
            use = "RankingWidget" if k > 2 else "ThumbsWidget or RatingWidget"
            raise InputError(f"question {question.id!r} has {k} replies; a comparison needs two (use {use})")


class GradedCompareWidget(CompareWidget):
    """Asks which of two replies is better and how much: significantly, plainly, slightly or negligibly, or a tie.

    The scale is that of Llama 2 (arXiv:2307.09288, section 3.1), whose reward model learns from it with a margin. The
    answer is a `Ranking` with a `grade`. Keys, as the scale stands on the screen: 1 … 4 for A from significantly to
    negligibly better, 5 or 0 for a tie, 6 … 9 for B from negligibly to significantly better; arrows and Enter; D can't
    decide, S skip, U undo. See `FeedbackWidget` for the arguments.
    """

    grades = traitlets.List(list(GRADES)).tag(sync=True)  # least first

    def _decision(self, question: Question, answer: dict) -> dict[str, Any]:
        decision, grade = super()._decision(question, answer), answer.get("grade", "")
        if len(decision["order"]) == 2 and grade not in GRADES:
            raise InputError(f"grade {grade!r}: must be one of {', '.join(GRADES)}")
        return decision | {"grade": grade}

    def _draft_of(self, question: Question, answer: Ranking) -> dict:
        return super()._draft_of(question, answer) | {"grade": answer.grade}
