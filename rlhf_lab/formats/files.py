"""From a file to its records and back: JSON Lines, a JSON array, Parquet; and clear words for what is wrong with one.

Every reader gets `(where, record)` pairs from `read_records`, whatever the file looks like, and asks for values through
`Fields`, which checks their types. So every error names the file, the line (of JSON Lines), the record (of a JSON
array) or the row (of a table), and the field. Nothing in a file is ever executed, unpickled or fetched.
"""

from __future__ import annotations

import json
import math
import os
import re
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from ..errors import InputError

Record = tuple[str, dict[str, Any]]  # (where it stands, its fields)
_SPACE = re.compile(r"[ \t\r\n]*")


# --- bytes → records ---


def read_records(path: str | Path) -> Iterator[Record]:
    """Each record: a line of JSON Lines, an element of a JSON array, a row of Parquet or of a `datasets` folder.

    Raises InputError naming file and place for what cannot be read: missing, compressed, binary, not UTF-8, not JSON.
    """
    path = Path(path)
    if path.is_dir():
        from .tables import folder_rows

        return folder_rows(path)
    data = read_bytes(path)
    if data.startswith(b"PAR1"):
        from .tables import parquet_rows

        return parquet_rows(path, data)
    if data.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"["):
        return _elements(path, data)
    return ((f"{path}, line {number}", _parse_line(path, number, line)) for number, line in lines(path, data))


def read_bytes(path: Path) -> bytes:
    """The file's content; InputError when it cannot be read or is compressed."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None
    except ValueError as error:  # a name with NUL
        raise InputError(f"cannot read {str(path)!r}: {error}") from None
    if data.startswith(b"\x1f\x8b"):
        raise InputError(f"{path} is compressed; unpack it first (gunzip) and give the .jsonl file")
    return data


def lines(path: Path, data: bytes) -> Iterator[tuple[int, str]]:
    """(line number from 1, text) of each line that is not blank, of a UTF-8 file. Only "\\n" ends a line."""
    _refuse_binary(path, data)
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"{path}, line {number}: not UTF-8 at byte {error.start + 1} of the line") from None
        if text.strip():
            yield number, text


def parse_object(line: str, once: bool = False) -> dict[str, Any]:
    """The JSON object on one line; `once` refuses an object that names a field twice."""
    try:
        value = json.loads(line, object_pairs_hook=_each_once if once else None)
    except InputError:
        raise
    except (ValueError, RecursionError) as error:  # ValueError: also a number of thousands of digits
        raise InputError(f"not JSON ({_reason(error)}); one whole JSON object a line is wanted") from None
    if not isinstance(value, dict):
        raise InputError(f"a JSON {json_type(value)}; one object a line is wanted")
    return value


def _parse_line(path: Path, number: int, line: str) -> dict[str, Any]:
    with located(f"{path}, line {number}"):
        return parse_object(line, once=True)


def _elements(path: Path, data: bytes) -> Iterator[Record]:
    """The objects of a JSON array, decoded one by one so that an error can say which."""
    text = "\n".join(_lines_kept(path, data))
    decoder = json.JSONDecoder(object_pairs_hook=_each_once)
    at, number = _next(text, text.index("[") + 1), 0
    if text[at : at + 1] == "]":
        at += 1
    else:
        while True:
            number += 1
            where = f"{path}, record {number}"
            with located(where):
                value, at = _element(decoder, text, at)
            yield where, value
            at = _next(text, at)
            mark, at = text[at : at + 1], _next(text, at + 1)
            if mark == "]":
                break
            if mark != ",":
                raise InputError(f"{path}, line {_line_at(text, at)}: not JSON (a comma or ] is wanted after {number})")
    if _next(text, at) < len(text):
        raise InputError(f"{path}, line {_line_at(text, at)}: not JSON (something follows the array's end)")


def _lines_kept(path: Path, data: bytes) -> list[str]:
    _refuse_binary(path, data)
    texts = []
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        try:
            texts.append(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise InputError(f"{path}, line {number}: not UTF-8 at byte {error.start + 1} of the line") from None
    return texts


def _element(decoder: json.JSONDecoder, text: str, at: int) -> tuple[dict[str, Any], int]:
    try:
        value, end = decoder.raw_decode(text, at)
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        line = _line_at(text, error.pos if isinstance(error, json.JSONDecodeError) else at)
        raise InputError(f"not JSON at line {line} ({_reason(error)})") from None
    if not isinstance(value, dict):
        raise InputError(f"a JSON {json_type(value)}; an array of objects is wanted")
    return value, end


def _next(text: str, at: int) -> int:
    """Where the next thing stands that is not white space."""
    return _SPACE.match(text, at).end()  # type: ignore[union-attr]


def _line_at(text: str, at: int) -> int:
    return text.count("\n", 0, at) + 1


def _reason(error: Exception) -> str:
    return error.msg if isinstance(error, json.JSONDecodeError) else "too deep or too long"


def _refuse_binary(path: Path, data: bytes) -> None:
    if b"\x00" in data:
        raise InputError(f"{path} is a binary file; UTF-8 text is wanted, one JSON object a line")


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise InputError(f"field {name!r} is there twice in one object; which one counts?")
        found[name] = value
    return found


# --- values, checked ---


@contextmanager
def located(where: str) -> Iterator[None]:
    """Put `where` before the message of an InputError raised in the block."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


class Fields:
    """The fields of one record (`path` says where in it), read with their types checked.

    A field that is null counts as missing. Each method raises InputError naming the field in full, `a.b[2].c`.
    """

    def __init__(self, data: dict[str, Any], path: str = "") -> None:
        self.data, self.path = data, path

    def __contains__(self, name: str) -> bool:
        return self.data.get(name) is not None

    def __iter__(self) -> Iterator[str]:
        return iter(self.data)

    def called(self, name: str) -> str:
        """How messages call one of these fields."""
        return f"field {'.'.join(filter(None, (self.path, name)))!r}"

    def raw(self, name: str) -> Any:
        """The value as it is; InputError when it is missing."""
        value = self.data.get(name)
        if value is None:
            raise InputError(f"{self.called(name)} is missing")
        return value

    def text(self, name: str, default: str | None = None) -> str:
        """A text; `default`, where given, when it is missing."""
        if default is not None and name not in self:
            return default
        return text(self.raw(name), self.called(name))

    def identifier(self, name: str, default: str | None = None) -> str:
        """A text that a store takes as an id or a name: 1 to 200 characters without NUL."""
        value = self.text(name, default)
        return value if value == default else storable(value, self.called(name))

    def choice(self, name: str, allowed: Iterable[str], default: str | None = None) -> str:
        """One of the texts allowed."""
        value, allowed = self.text(name, default), tuple(allowed)
        if value not in allowed and value != default:
            raise InputError(f"{self.called(name)} is {shown(value)}; it must be one of {', '.join(allowed)}")
        return value

    def boolean(self, name: str) -> bool:
        value = self.raw(name)
        if not isinstance(value, bool):
            raise InputError(f"{self.called(name)} is a JSON {json_type(value)}; true or false is wanted")
        return value

    def whole(self, name: str, low: int, high: int) -> int:
        """A whole number from `low` to `high`."""
        value = self.raw(name)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise InputError(f"{self.called(name)} is {shown(value)}; a whole number from {low} to {high} is wanted")
        return value

    def seconds(self, name: str) -> float:
        """A time in seconds, 0 or more; 0 when it is missing."""
        value = 0.0 if self.data.get(name) is None else self.data[name]
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf or value > 1e12:
            raise InputError(f"{self.called(name)} is {shown(value)}; a number of seconds, 0 or more, is wanted")
        return value

    def time(self, name: str) -> str:
        """A moment as ISO 8601 text."""
        value = self.text(name)
        try:
            datetime.fromisoformat(value)
        except ValueError:
            raise InputError(f"{self.called(name)} is {shown(value)}; a time as ISO 8601 text is wanted") from None
        return value

    def object(self, name: str) -> Fields:
        return self._inner(self.raw(name), ".".join(filter(None, (self.path, name))))

    def optional_object(self, name: str) -> Fields:
        """An object, or an empty one when it is missing."""
        return self.object(name) if name in self else Fields({}, ".".join(filter(None, (self.path, name))))

    def array(self, name: str, least: int = 0) -> list[Any]:
        """A list of `least` elements or more."""
        value = self.raw(name)
        if not isinstance(value, list):
            raise InputError(f"{self.called(name)} is a JSON {json_type(value)} where an array is wanted")
        if len(value) < least:
            raise InputError(f"{self.called(name)} has {len(value)} elements; {least} or more are wanted")
        return value

    def objects(self, name: str, least: int = 0) -> list[Fields]:
        """A list of objects."""
        place = ".".join(filter(None, (self.path, name)))
        return [self._inner(item, f"{place}[{at}]") for at, item in enumerate(self.array(name, least))]

    def identifiers(self, name: str) -> tuple[str, ...]:
        """A list of ids."""
        called = self.called(name)[:-1]
        return tuple(
            storable(text(item, f"{called}[{at}]'"), f"{called}[{at}]'") for at, item in enumerate(self.array(name))
        )

    def plain(self, name: str) -> dict[str, Any]:
        """An object of plain JSON data, of any shape; {} when it is missing."""
        value = self.data.get(name)
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise InputError(f"{self.called(name)} is a JSON {json_type(value)} where an object is wanted")
        _check_plain(value, self.called(name))
        return value

    def texts(self, name: str) -> dict[str, str]:
        """An object whose values are texts; {} when it is missing."""
        value = self.plain(name)
        for key, item in value.items():
            text(item, Fields(value, ".".join(filter(None, (self.path, name)))).called(key))
        return value

    @staticmethod
    def _inner(value: Any, path: str) -> Fields:
        if not isinstance(value, dict):
            raise InputError(f"field {path!r} is a JSON {json_type(value)} where an object is wanted")
        return Fields(value, path)


def _check_plain(value: Any, called: str) -> None:
    """InputError unless every text in it can be written and every number is finite."""
    if isinstance(value, str):
        text(value, called)
    elif isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{called} holds {value}, which JSON does not know")
    elif isinstance(value, dict):
        for key, item in value.items():
            text(key, called)
            _check_plain(item, called)
    elif isinstance(value, list):
        for item in value:
            _check_plain(item, called)
    elif not isinstance(value, str | bool | int | float | None):
        raise InputError(f"{called} holds a {type(value).__name__}, which JSON does not know")


def text(value: Any, where: str) -> str:
    """`value`, if it is text that UTF-8 can write; InputError that begins with `where` otherwise."""
    if not isinstance(value, str):
        raise InputError(f"{where} is a JSON {json_type(value)} where text is wanted")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise InputError(f"{where} holds half of a surrogate pair, which is no character") from None
    return value


def storable(value: str, where: str) -> str:
    """`value`, if a store takes it as an id or a name; InputError that begins with `where` otherwise."""
    if not value or "\x00" in value or len(value) > 200:
        raise InputError(f"{where} is {shown(value)}; an id or a name has 1 to 200 characters, none of them NUL")
    return value


def json_type(value: Any) -> str:
    """What JSON calls this value's type."""
    names = {dict: "object", list: "array", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")


def shown(value: Any) -> str:
    """A value in a message: short, and in one line."""
    if isinstance(value, dict | list):
        return f"a JSON {json_type(value)}"
    if isinstance(value, int) and abs(value) > 10**30:
        return "a number of more than 30 digits"
    said = repr(value)
    return said if len(said) <= 60 else f"{said[:57]}…"


# --- records → bytes ---


def json_lines(rows: Iterable[dict[str, Any]]) -> bytes:
    """One JSON object a line."""
    return b"".join(_encoded(number, row) + b"\n" for number, row in enumerate(rows, start=1))


def json_array(rows: Iterable[dict[str, Any]]) -> bytes:
    """A JSON array, one element a line, so that its records can be told apart by eye too."""
    return b"[\n" + b",\n".join(_encoded(number, row) for number, row in enumerate(rows, start=1)) + b"\n]\n"


def _encoded(number: int, row: dict[str, Any]) -> bytes:
    try:
        return json.dumps(row, ensure_ascii=False, allow_nan=False).encode("utf-8")
    except UnicodeEncodeError:
        raise InputError(f"record {number} holds half of a surrogate pair, which is no character") from None
    except (ValueError, TypeError) as error:
        raise InputError(f"record {number} cannot be written as JSON: {error}") from None


def write_atomically(path: Path, data: bytes) -> None:
    """Write beside `path`, flush to the disk, rename: a reader sees the old file or the whole new one."""
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from None
    finally:  # after the rename there is nothing to remove; after an error or an interrupt there may be
        with suppress(OSError):
            temporary.unlink()
