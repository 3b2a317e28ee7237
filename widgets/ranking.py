"""RankingWidget: put k replies in order, best first, by key, click or drag."""

from __future__ import annotations

from .feedback import FeedbackWidget, static_source


class RankingWidget(FeedbackWidget):
    """Asks a person to rank the replies of a `Question`, ties allowed; see `FeedbackWidget` for the arguments.

    Keys: 1 … 9 give that reply the next rank (again: take it out), = or T ties the next one with the previous,
    Backspace takes the last back, Enter confirms (the one reply left comes last), D can't decide, S skip, U undo;
    arrows walk through the replies, Shift with an arrow moves one. A four-way ranking is three keys and Enter.
    """

    _esm = static_source("feedback.js", "ranking.js")
    _css = static_source("feedback.css", "ranking.css")
