"""RankingWidget: put k replies in order, best first, by key, click or drag."""

from __future__ import annotations

from typing import Any

from rlhf_lab.errors import InputError
from rlhf_lab.records import Question, Ranking

from .feedback import FeedbackWidget, static_source


class OrderWidget(FeedbackWidget):
    """Base of the widgets whose answer is a `Ranking`: the page sends tiers of reply numbers, best first."""

    record = Ranking

    def _check(self, question: Question) -> None:
        if len(question.candidates) < 2:
            raise InputError(f"question {question.id!r} has one reply; putting in order needs at least two")

    def _decision(self, question: Question, answer: dict) -> dict[str, Any]:
        numbers = dict(enumerate(self._displayed(question), start=1))
        try:
            return {"order": tuple(tuple(numbers[n] for n in tier) for tier in answer.get("order", ()))}
        except (KeyError, TypeError):
            raise InputError(f"an order lists tiers of the numbers 1 to {len(numbers)}, not {answer!r}") from None

    def _draft_of(self, question: Question, answer: Ranking) -> dict:
        numbers = {candidate: n for n, candidate in enumerate(self._displayed(question), start=1)}
        tiers = [[numbers[candidate] for candidate in tier] for tier in answer.order]
        return {"question": question.id, "tiers": tiers}


class RankingWidget(OrderWidget):
    """Asks a person to rank the replies of a `Question`, ties allowed; see `FeedbackWidget` for the arguments.

    Keys: 1 … 9 give that reply the next rank (again: take it out), = or T ties the next one with the previous,
    Backspace takes the last back, Enter confirms (the one reply left comes last), D can't decide, S skip, U undo;
    arrows walk through the replies, Shift with an arrow moves one. A four-way ranking is three keys and Enter.
    """

    _esm = static_source("feedback.js", "ranking.js")
    _css = static_source("feedback.css", "ranking.css")
