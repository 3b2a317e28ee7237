"""The screen of RLHF Lab: Jupyter widgets on top of `rlhf_lab` (which never imports them).

Names are looked up when they are first used, so that labelling does not import what only training needs.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "RankingWidget": ".ranking",
    "CompareWidget": ".compare",
    "GradedCompareWidget": ".compare",
    "RatingWidget": ".rating",
    "ThumbsWidget": ".thumbs",
    "CorrectionWidget": ".correction",
    "ChatWidget": ".chat",
    "CurvesWidget": ".curves",
    "HistoryWidget": ".history",
    "Studio": ".studio",
    "MicroscopeWidget": ".microscope",
    "AblationPanel": ".ablations",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name], __name__), name)
