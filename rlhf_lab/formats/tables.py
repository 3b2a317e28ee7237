"""Parquet and `datasets.Dataset`: our own columns, which lose nothing, and rows of other people's tables.

Our table has one row a record. `record` says which: "question", "ranking", "rating", "vote", "correction" or
"withdrawal"; columns that a record does not have are null. `sampling`, whose shape is free, is JSON text. All other
columns are plain Arrow types, so that any tool can read them:

    record, id, question_id, annotator, created, status, seconds, prompt, candidates [{id, text, model, sampling}],
    displayed [id], order [[id]], grade, scores [{candidate, attribute, mark}], candidate, up, text,
    context [{name, value}], answer_id

Reading never runs code: Parquet is decoded by pyarrow, a folder of `datasets` by `load_from_disk`, which reads Arrow
files. Both packages come with the extra `formats`.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from . import jsonl
from .feedback import Builder, Feedback
from .files import Fields, Record, located, shown

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa


def _missing(name: str) -> InputError:
    return InputError(f"{name} is not installed; pip install 'rlhf-lab[formats]' brings it")


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise _missing("pyarrow") from None
    return pyarrow


def _datasets() -> Any:
    try:
        import datasets
    except ImportError:
        raise _missing("datasets") from None
    return datasets


# --- rows of any table ---


def parquet_rows(path: Path, data: bytes) -> Iterator[Record]:
    """The rows of a Parquet file."""
    pa = _pyarrow()
    try:
        table = pa.parquet.read_table(io.BytesIO(data))
    except Exception as error:  # a damaged file makes the decoder raise almost anything; it says why in one line
        raise InputError(f"{path}: not a Parquet file that can be read ({_first_line(error)})") from None
    return _table_rows(str(path), table)


def folder_rows(path: Path) -> Iterator[Record]:
    """The rows of a folder that `Dataset.save_to_disk` made."""
    try:
        found = _datasets().load_from_disk(str(path))
    except InputError:
        raise
    except Exception as error:  # as above
        raise InputError(f"{path} is a folder, but not one that datasets saved ({_first_line(error)})") from None
    return dataset_rows(found, str(path))


def dataset_rows(dataset: Any, name: str = "the data set") -> Iterator[Record]:
    """The rows of a `datasets.Dataset`."""
    if isinstance(dataset, dict):
        raise InputError(f"{name} holds the splits {', '.join(dataset)}; give one of them")
    return _table_rows(name, dataset.with_format("arrow")[:])


def _table_rows(name: str, table: pa.Table) -> Iterator[Record]:
    if len(set(table.column_names)) < len(table.column_names):
        raise InputError(f"{name}: two columns have one name; which one counts?")
    for start in range(0, table.num_rows, 1000):
        try:
            rows = table.slice(start, 1000).to_pylist()
        except (ValueError, OverflowError):  # bytes that are not UTF-8, times beyond Python's
            raise _bad_value(name, table, start) from None
        for number, row in enumerate(rows, start=start + 1):
            yield f"{name}, row {number}", row


def _bad_value(name: str, table: pa.Table, start: int) -> InputError:
    """The error for the first value, from that row on, that Python cannot hold."""
    for number in range(start, table.num_rows):
        for column in table.column_names:
            try:
                table.column(column)[number].as_py()
            except (ValueError, OverflowError) as error:
                return InputError(f"{name}, row {number + 1}: field {column!r} cannot be read: {_first_line(error)}")
    return InputError(f"{name}, row {start + 1}: cannot be read")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


# --- our own table ---


def _schema() -> pa.Schema:
    pa = _pyarrow()
    words = pa.list_(pa.string())
    reply = pa.struct([(name, pa.string()) for name in ("id", "text", "model", "sampling")])
    mark = pa.struct([("candidate", pa.string()), ("attribute", pa.string()), ("mark", pa.int8())])
    named = pa.struct([("name", pa.string()), ("value", pa.string())])
    types = {name: pa.string() for name in ("record", "id", "question_id", "annotator", "created", "status")}
    types |= {"seconds": pa.float64(), "prompt": pa.string(), "candidates": pa.list_(reply), "displayed": words}
    types |= {"order": pa.list_(words), "grade": pa.string(), "scores": pa.list_(mark), "candidate": pa.string()}
    types |= {"up": pa.bool_(), "text": pa.string(), "context": pa.list_(named), "answer_id": pa.string()}
    return pa.schema(list(types.items()), metadata={"rlhf_lab.format": "feedback", "rlhf_lab.version": "1"})


def rows(feedback: Feedback) -> tuple[list[dict[str, Any]], int, list[str]]:
    """Every record as a row."""
    found = list(jsonl.objects(feedback))
    jsonl.check_faithful(feedback, found)
    return [_row(item) for item in found], len(found), []


def _row(item: dict[str, Any]) -> dict[str, Any]:
    row = {name: value for name, value in item.items() if name != "type"} | {"record": item["type"]}
    if "candidates" in row:
        row["candidates"] = [
            reply | {"sampling": json.dumps(reply["sampling"], ensure_ascii=False)} for reply in row["candidates"]
        ]
    if "scores" in row:
        row["scores"] = [
            {"candidate": candidate, "attribute": name, "mark": mark}
            for candidate, marks in row["scores"].items()
            for name, mark in marks.items()
        ]
    if "context" in row:
        row["context"] = [{"name": name, "value": value} for name, value in row["context"].items()]
    return row


def table_of(rows: list[dict[str, Any]]) -> pa.Table:
    """Our rows as an Arrow table."""
    return _pyarrow().Table.from_pylist(rows, schema=_schema())


def parquet_bytes(rows: list[dict[str, Any]]) -> bytes:
    """Our rows as a Parquet file."""
    out = io.BytesIO()
    _pyarrow().parquet.write_table(table_of(rows), out)
    return out.getvalue()


def read(records: Iterable[Record], builder: Builder) -> None:
    """Take every row of our own table."""
    for where, row in records:
        with located(where):
            jsonl.take(where, Fields(_object(Fields(row))), builder)


def _object(row: Fields) -> dict[str, Any]:
    """A row as the JSON object that it came from."""
    kind = row.choice("record", jsonl.TYPES[1:])
    item = {name: value for name, value in row.data.items() if value is not None and name != "record"} | {"type": kind}
    if "candidates" in row:
        item["candidates"] = [_candidate(reply) for reply in row.objects("candidates")]
    if "context" in row:
        item["context"] = {}
        for pair in row.objects("context"):
            _put(item["context"], pair.text("name"), pair.text("value"), pair.called("name"))
    if "scores" in row:
        scores: dict[str, dict[str, Any]] = {}
        for mark in row.objects("scores"):
            marks = scores.setdefault(mark.text("candidate"), {})
            _put(marks, mark.text("attribute"), mark.raw("mark"), mark.called("attribute"))
        item["scores"] = scores
    return item


def _put(items: dict[str, Any], name: str, value: Any, called: str) -> None:
    if name in items:
        raise InputError(f"{called} is {shown(name)} a second time; which one counts?")
    items[name] = value


def _candidate(reply: Fields) -> dict[str, Any]:
    sampling = reply.text("sampling", "") or "{}"
    try:
        return reply.data | {"sampling": json.loads(sampling)}
    except (ValueError, RecursionError):
        raise InputError(f"{reply.called('sampling')} is not JSON") from None


# --- datasets ---


def dataset_of(rows: list[dict[str, Any]], own: bool) -> datasets.Dataset:
    """A `datasets.Dataset` of rows: of our own table, or of another form's records."""
    module = _datasets()
    if own:
        return module.Dataset(table_of(rows))
    names = list(dict.fromkeys(name for row in rows for name in row))
    try:
        return module.Dataset.from_list([{name: row.get(name) for name in names} for row in rows])
    except (ValueError, TypeError) as error:  # half a surrogate pair; columns whose types differ from row to row
        raise InputError(f"these records do not fit into a table: {_first_line(error)}") from None
