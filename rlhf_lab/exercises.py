"""Checkers for the notebooks' exercises: each calls a student's function on worked cases and says what is wrong.

A checker prints one friendly sentence and raises nothing, so a notebook whose exercises are still empty runs from top
to bottom. An exercise not yet begun returns None (or `...`). Written so that it imports without torch: tensors that
come back are read through `tolist`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

# --- the machinery every checker shares -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """One worked case: the arguments, the right answer, and `causes`: wrong answers with what usually leads to them."""

    arguments: tuple[Any, ...]
    expected: Any
    causes: tuple[tuple[Any, str], ...] = ()


def check(
    function: Callable[..., Any], cases: Sequence[Case], praise: str, hint: str = "", tolerance: float = 1e-4
) -> bool:
    """Prints "✓ praise" when `function` gives every case's answer, else one sentence on the first that it does not.

    Numbers agree within `tolerance`. `hint` is added where no listed cause fits. Returns whether all was right.
    """
    sentence = next((s for case in cases if (s := _complaint(function, case, hint, tolerance))), None)
    print(sentence or f"✓ {praise}")
    return sentence is None


def _complaint(function: Callable[..., Any], case: Case, hint: str, tolerance: float) -> str | None:
    """What is wrong with the function's answer to one case, or None when it is right."""
    name = getattr(function, "__name__", "your function")
    call = f"{name}({', '.join(_shown(argument) for argument in case.arguments)})"
    try:
        got = plain(function(*case.arguments))
    except Exception as error:  # a student's function may raise anything; the notebook goes on
        return f"✗ {call} stopped with {type(error).__name__}: {error}. {hint}".rstrip()
    if got is None or got is ...:
        return f"○ {name} gives nothing yet: write its body, `return` the answer, and run this cell again."
    expected = plain(case.expected)
    if same(got, expected, tolerance):
        return None
    cause = next((why for wrong, why in case.causes if same(got, plain(wrong), tolerance)), hint)
    return f"✗ {call} should be {_shown(expected)}, but yours gives {_shown(got)}. {cause}".rstrip()


def plain(value: Any) -> Any:
    """A tensor or array as numbers and lists; anything else as it is, tuples as lists."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def same(got: Any, expected: Any, tolerance: float = 1e-4) -> bool:
    """Whether two plain values are equal: numbers within `tolerance`, lists item by item."""
    if isinstance(got, list) and isinstance(expected, list):
        return len(got) == len(expected) and all(same(a, b, tolerance) for a, b in zip(got, expected, strict=True))
    if isinstance(got, (int, float)) and isinstance(expected, (int, float)):
        return math.isclose(got, expected, rel_tol=tolerance, abs_tol=tolerance)
    return got == expected


def _shown(value: Any, limit: int = 160) -> str:
    """A value as short text: numbers with four digits, tensors as lists."""
    text = _text(plain(value))
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def _text(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(_text(item) for item in value)}]"
    return f"{value:.4g}" if isinstance(value, float) else repr(value)
