"""The formats by name: reading, writing and guessing them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from . import arena, argilla, jsonl, label_studio, summarize, tables, trl, ultrafeedback
from .feedback import IMPORTED, Builder, Feedback, Report, count, in_force
from .files import Record, json_array, json_lines, read_records, write_atomically

if TYPE_CHECKING:
    import datasets


@dataclass(frozen=True)
class Format:
    """One format: how its records are read and written. `rows` is None for a format that is only read."""

    holds: str  # what it has a place for, in words
    unit: str  # what `Report.written` counts
    read: Callable[[Iterable[Record], Builder], None]
    rows: Callable[[Feedback], trl.Rows] | None
    encode: Callable[[list[dict[str, Any]]], bytes] = json_lines
    lossless: bool = False


FORMATS: dict[str, Format] = {
    "trl": Format("strict pairs", "pair", trl.read, trl.pair_rows("trl")),
    "trl-chat": Format("strict pairs", "pair", trl.read, trl.pair_rows("trl-chat")),
    "trl-implicit": Format("strict pairs", "pair", trl.read, trl.pair_rows("trl-implicit")),
    "trl-unpaired": Format("votes", "vote", trl.read, trl.vote_rows),
    "trl-sft": Format("corrections", "demonstration", trl.read, trl.demonstration_rows),
    "hh": Format("strict pairs", "pair", trl.read, trl.pair_rows("hh")),
    "summarize": Format("strict pairs", "comparison", summarize.read, summarize.rows),
    "ultrafeedback": Format("ratings", "rating", ultrafeedback.read, ultrafeedback.rows),
    "argilla": Format("questions and answers", "answer", argilla.read, argilla.rows, json_array),
    "label-studio": Format("questions and answers", "answer", label_studio.read, label_studio.rows, json_array),
    "arena": Format("battles", "battle", arena.read, None),
    "jsonl": Format("everything", "record", jsonl.read, jsonl.rows, json_lines, lossless=True),
    "parquet": Format("everything", "record", tables.read, tables.rows, tables.parquet_bytes, lossless=True),
}
WRITTEN = tuple(name for name, form in FORMATS.items() if form.rows)


def read_feedback(path: str | Path, format: str | None = None, annotator: str = IMPORTED) -> Feedback:
    """The feedback in a file: JSON Lines, a JSON array, Parquet, or a folder that `datasets` saved, in any format.

    `format` is one of `FORMATS`; without it, it is guessed. `annotator` is who answered where the file names nobody.
    All or nothing: what is malformed raises one InputError naming the file, the line (record of an array, row of a
    table) and the field. What the file holds that records have no place for is told in `Feedback.left_out`.
    """
    return _read(read_records(path), format or detect_format(path), annotator, str(path))


def write_feedback(path: str | Path, feedback: Feedback, format: str) -> Report:
    """Write feedback in one of the formats `WRITTEN`, whole or not at all, and report what it has no place for.

    All but "jsonl" and "parquet" write the answers in force: replaced and withdrawn ones would count there.
    Raises InputError when nothing can be written in that form, and when the disk refuses.
    """
    rows, written, lost = _rows(feedback, format, str(path))
    write_atomically(Path(path), FORMATS[format].encode(rows))
    return Report(str(path), format, written, FORMATS[format].unit, tuple(lost))


def detect_format(path: str | Path) -> str:
    """The format of a file, guessed from the fields of its first record; InputError when it is none we know."""
    first = next(iter(read_records(path)), None)
    if first is None:
        raise InputError(f"{path} holds no record")
    return _guess(*first)


def to_dataset(feedback: Feedback, form: str = "trl") -> datasets.Dataset:
    """The records of one format as a `datasets.Dataset`, for TRL's trainers or `push_to_hub`.

    `form` is any format of `WRITTEN`; "parquet" gives our own columns, which lose nothing. What else a form has no
    place for is what `write_feedback` reports. Needs the extra `formats`.
    """
    if form == "jsonl":
        raise InputError(
            "form 'jsonl' has records of several shapes, no table; use form 'parquet', which loses nothing"
        )
    rows, _, _ = _rows(feedback, form, "a data set")
    return tables.dataset_of(rows, own=form == "parquet")


def from_dataset(dataset: datasets.Dataset, format: str | None = None, annotator: str = IMPORTED) -> Feedback:
    """The feedback in a `datasets.Dataset` of any of the formats, guessed where not given; see `read_feedback`."""
    name = "the data set"
    if format is None:
        first = next(iter(tables.dataset_rows(dataset, name)), None)
        if first is None:
            raise InputError(f"{name} holds no record")
        format = _guess(*first)
    return _read(tables.dataset_rows(dataset, name), format, annotator, name)


def _read(records: Iterable[Record], format: str, annotator: str, name: str) -> Feedback:
    if format not in FORMATS:
        raise InputError(f"format {format!r} is unknown; use one of {', '.join(FORMATS)}")
    builder = Builder(annotator)
    FORMATS[format].read(records, builder)
    feedback = builder.feedback()
    if not feedback.questions:
        why = f" ({'; '.join(feedback.left_out)})" if feedback.left_out else ""
        raise InputError(f"{name} holds no feedback in the format {format!r}{why}")
    return feedback


def _rows(feedback: Feedback, format: str, target: str) -> trl.Rows:
    if format not in WRITTEN:
        raise InputError(f"format {format!r} cannot be written; use one of {', '.join(WRITTEN)}")
    form, lost = FORMATS[format], []
    if not form.lossless:
        standing = in_force(feedback)
        gone = len(feedback.answers) - len(standing.answers)
        lost = [f"{count(gone, 'withdrawn or replaced answer')} left out: here they would count"] if gone else []
        feedback = standing
    rows, written, words = form.rows(feedback)  # type: ignore[misc]
    if not rows or (form.lossless and not written):
        raise InputError(f"nothing to write to {target}: {format!r} holds {form.holds}, and here are {feedback}")
    return rows, written, lost + words


def _guess(where: str, data: dict[str, Any]) -> str:
    """The format whose fields a record has."""
    has = {name for name, value in data.items() if value is not None}
    if "record" in has and "question_id" in data:
        return "parquet"
    if "type" in has and (data["type"] in ("header", "question", "withdrawal") or "question_id" in has):
        return "jsonl"
    for name, wanted in _SIGNS.items():
        if has >= wanted:
            return name
    if has >= {"chosen", "rejected"}:
        bare = "prompt" not in has and isinstance(data["chosen"], str)
        return "hh" if bare else "trl"
    found = ", ".join(repr(name) for name in islice(sorted(data), 6)) or "no field"
    raise InputError(
        f"{where}: no format that is known has the fields {found}; say which of {', '.join(FORMATS)} it is"
    )


_SIGNS = {
    "summarize": {"summaries", "choice"},
    "arena": {"conversation_a", "conversation_b"},
    "ultrafeedback": {"instruction", "completions"},
    "argilla": {"fields"},
    "label-studio": {"data"},
    "trl": {"prompt", "completion"},
}  # field names that only one format has
