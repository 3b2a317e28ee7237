"""Preference pairs as `Comparison` records, from JSON Lines and to them. No torch, no screen.

A line may take any of these forms:

- **HH-RLHF** (Bai et al., 2022, arXiv:2204.05862; github.com/anthropics/hh-rlhf): `{"chosen", "rejected"}`, two whole
  transcripts "\\n\\nHuman: …\\n\\nAssistant: …" that share their beginning;
- **TRL, explicit prompt** (huggingface.co/docs/trl/dataset_formats): `{"prompt", "chosen", "rejected"}`, three strings,
  kept exactly as they are; or three lists of messages `{"role", "content"}`;
- **TRL, implicit prompt**: `{"chosen", "rejected"}`, two lists of messages, each the whole dialogue.

`question_id`, `annotator` and `grade` are read when a line has them; other fields are ignored. How a dialogue becomes
`prompt` and replies is told in `rlhf_lab.formats.transcripts`.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from ..errors import InputError
from ..records import GRADES, Comparison
from .files import Fields, json_lines, lines, located, parse_object, read_bytes, text, write_atomically
from .transcripts import (
    HUMAN,
    Turns,
    given_prompt,
    parse_messages,
    parse_transcript,
    prompt_messages,
    render_reply,
    reply_messages,
    split,
)

PairForm = Literal["trl", "hh"]
PAIR_FORMS = ("trl", "hh")


def read_pairs(path: str | Path) -> list[Comparison]:
    """The comparisons in a JSON Lines file of preference pairs, in the file's order. The forms are listed above.

    All or nothing: one malformed line raises InputError naming file, line number and field, and nothing is returned.
    A file that is missing, empty, binary, compressed or not UTF-8 raises InputError too. Blank lines are passed over.
    """
    path = Path(path)
    comparisons = []
    for number, line in lines(path, read_bytes(path)):
        with located(f"{path}, line {number}"):
            comparisons.append(comparison_of(parse_object(line)))
    if not comparisons:
        raise InputError(f"{path} holds no pairs; one JSON object a line with 'chosen' and 'rejected' is wanted")
    return comparisons


def write_pairs(path: str | Path, comparisons: Iterable[Comparison], form: PairForm = "trl") -> int:
    """Write comparisons as JSON Lines for others to read, and return how many; `read_pairs` gives the same back.

    `form="trl"` writes `{"prompt", "chosen", "rejected"}` strings, `form="hh"` HH-RLHF transcripts; `question_id`,
    `annotator` and `grade` are added where a comparison has them. The file appears whole or not at all: it is written
    beside its place and renamed. Raises InputError for a tie (neither form can say so: leave ties out), for a
    comparison that the form cannot carry, when there is nothing to write, and when the disk refuses.
    """
    if form not in PAIR_FORMS:
        raise InputError(f"form {form!r} of pairs: must be one of {', '.join(PAIR_FORMS)}")
    rows = [_faithful_row(number, comparison, form) for number, comparison in enumerate(comparisons, start=1)]
    if not rows:
        raise InputError(f"no comparisons to write to {path}")
    write_atomically(Path(path), json_lines(rows))
    return len(rows)


# --- one record → one comparison ---


def comparison_of(data: dict[str, Any]) -> Comparison:
    """The comparison that one record states, whichever form it has; InputError naming the field otherwise."""
    prompt, chosen, rejected = _texts(data)
    fields = Fields(data)
    grade = fields.choice("grade", GRADES, "")
    return Comparison(
        prompt,
        chosen,
        rejected,
        question_id=fields.text("question_id", ""),
        annotator=fields.text("annotator", ""),
        grade=grade,
    )


def _texts(data: dict[str, Any]) -> tuple[str, str, str]:
    """(prompt, chosen, rejected) of one record."""
    for field in ("chosen", "rejected"):
        if data.get(field) is None:
            raise InputError(f"field {field!r} is missing; a pair has 'chosen' and 'rejected'")
    prompt, chosen, rejected = given_prompt(data.get("prompt")), data["chosen"], data["rejected"]
    if isinstance(chosen, list) != isinstance(rejected, list):
        raise InputError("fields 'chosen' and 'rejected' differ in form; both must be texts, or both lists of messages")
    if isinstance(chosen, list):
        return _texts_of_messages(prompt, parse_messages(chosen, "chosen"), parse_messages(rejected, "rejected"))
    if prompt is None:
        return split(parse_transcript(chosen, "chosen"), parse_transcript(rejected, "rejected"))
    return prompt, text(chosen, "field 'chosen'"), text(rejected, "field 'rejected'")


def _texts_of_messages(prompt: str | None, chosen: Turns, rejected: Turns) -> tuple[str, str, str]:
    """(prompt, chosen, rejected) of replies given as messages: after an explicit prompt, or each a whole dialogue."""
    if chosen[0][0] == rejected[0][0] == "Assistant" and prompt is not None:
        return prompt, render_reply(chosen), render_reply(rejected)
    for field, turns in (("chosen", chosen), ("rejected", rejected)):
        if turns[0][0] == "Assistant":
            raise InputError(f"field {field!r} starts with the assistant; give what came before as 'prompt', to both")
    shared = split(chosen, rejected)
    if prompt is not None and prompt != shared[0]:
        raise InputError("field 'prompt' is not the beginning that 'chosen' and 'rejected' share; leave it out")
    return shared


# --- one comparison → one record ---


def _faithful_row(number: int, comparison: Comparison, form: str) -> dict[str, Any]:
    """One comparison as a record; refused unless reading it gives the comparison back."""
    if comparison.tie:
        raise InputError(f"comparison {number} is a tie, which pairs of chosen and rejected cannot say; leave ties out")
    row = PAIR_ROWS[form](comparison)
    try:
        faithful = comparison_of(row) == comparison
    except InputError as error:
        raise InputError(f"comparison {number} cannot be written in the form {form!r}: {error}") from None
    if not faithful:
        raise InputError(f"comparison {number} would read back differently in the form {form!r}; use form 'trl'")
    return row


def _trl_row(comparison: Comparison) -> dict[str, Any]:
    texts = {"prompt": comparison.prompt, "chosen": comparison.chosen, "rejected": comparison.rejected}
    return texts | _origin(comparison)


def _chat_row(comparison: Comparison) -> dict[str, Any]:
    replies = {"chosen": reply_messages(comparison.chosen), "rejected": reply_messages(comparison.rejected)}
    return {"prompt": prompt_messages(comparison.prompt)} | replies | _origin(comparison)


def _implicit_row(comparison: Comparison) -> dict[str, Any]:
    before = prompt_messages(comparison.prompt)
    replies = {"chosen": comparison.chosen, "rejected": comparison.rejected}
    return {field: before + reply_messages(reply) for field, reply in replies.items()} | _origin(comparison)


def _hh_row(comparison: Comparison) -> dict[str, Any]:
    replies = {"chosen": comparison.chosen, "rejected": comparison.rejected}
    if comparison.prompt or not all(reply.startswith(HUMAN) for reply in replies.values()):
        prompt = comparison.prompt if comparison.prompt.startswith(HUMAN) else f"{HUMAN} {comparison.prompt}"
        replies = {field: f"{prompt}\n\nAssistant: {reply}" for field, reply in replies.items()}
    return replies | _origin(comparison)


def _origin(comparison: Comparison) -> dict[str, str]:
    """Which question and annotator a comparison came from and its grade, where it says so."""
    fields = {"question_id": comparison.question_id, "annotator": comparison.annotator, "grade": comparison.grade}
    return {field: value for field, value in fields.items() if value}


PAIR_ROWS = {"trl": _trl_row, "trl-chat": _chat_row, "trl-implicit": _implicit_row, "hh": _hh_row}
