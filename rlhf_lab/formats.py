"""Human preference pairs from files and to files, as `Comparison` records. No torch, no screen.

A file of pairs is JSON Lines: one JSON object a line, UTF-8. A line may take any of these forms:

- **HH-RLHF** (Bai et al., 2022, arXiv:2204.05862): `{"chosen", "rejected"}`, two whole transcripts
  "\\n\\nHuman: …\\n\\nAssistant: …" that share their beginning;
- **TRL, explicit prompt**: `{"prompt", "chosen", "rejected"}`, three strings, kept exactly as they are; or three lists
  of messages `{"role", "content"}`;
- **TRL, implicit prompt**: `{"chosen", "rejected"}`, two lists of messages, each the whole dialogue.

`question_id` and `annotator` are read when a line has them; other fields are ignored.

How a dialogue becomes `prompt` and replies
-------------------------------------------
`prompt` is the longest shared beginning after which both dialogues continue with an assistant turn; what follows is
the reply. Nearly always that is the last assistant turn of each, and its text is the reply.

- A prompt of one human turn is that turn's text: "\\n\\nHuman: Hi\\n\\nAssistant: Hello" gives "Hi" and "Hello".
- A longer prompt is transcript text with its markers, "\\n\\nHuman: …\\n\\nAssistant: …\\n\\nHuman: …". In it a
  system message stands as "\\n\\nSystem: …".
- Where the dialogues part before their last turn, the replies are longer than a turn: the first assistant turn's text,
  then the turns after it with their markers.
- Where even the first human turn differs, `prompt` is empty and the replies are the whole transcripts.

Everything that is wrong with a file raises one `InputError` that names the file, the line and the field.
"""

from __future__ import annotations

import json
import os
import re
import uuid
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from .errors import InputError
from .records import Comparison

PairForm = Literal["trl", "hh"]
PAIR_FORMS = ("trl", "hh")
Turns = list[tuple[str, str]]  # (speaker, text): a dialogue

_MARKER = re.compile(r"\n\n(Human|Assistant):")
_SPEAKERS = {"user": "Human", "assistant": "Assistant", "system": "System"}
_HUMAN = "\n\nHuman:"


def read_pairs(path: str | Path) -> list[Comparison]:
    """The comparisons in a JSON Lines file of preference pairs, in the file's order. The forms are listed above.

    All or nothing: one malformed line raises InputError naming file, line number and field, and nothing is returned.
    A file that is missing, empty, binary, compressed or not UTF-8 raises InputError too. Blank lines are passed over.
    """
    comparisons = []
    for number, line in _lines(Path(path)):
        try:
            comparisons.append(_comparison(_parse_object(line)))
        except InputError as error:
            raise InputError(f"{path}, line {number}: {error}") from None
    if not comparisons:
        raise InputError(f"{path} holds no pairs; one JSON object a line with 'chosen' and 'rejected' is wanted")
    return comparisons


def write_pairs(path: str | Path, comparisons: Iterable[Comparison], form: PairForm = "trl") -> int:
    """Write comparisons as JSON Lines for others to read, and return how many; `read_pairs` gives the same back.

    `form="trl"` writes `{"prompt", "chosen", "rejected"}` strings, `form="hh"` HH-RLHF transcripts; `question_id` and
    `annotator` are added where a comparison has them. The file appears whole or not at all: it is written beside its
    place and renamed. Raises InputError for a tie (neither form can say so: leave ties out), for a comparison that the
    form cannot carry, when there is nothing to write, and when the disk refuses.
    """
    if form not in PAIR_FORMS:
        raise InputError(f"form {form!r} of pairs: must be one of {', '.join(PAIR_FORMS)}")
    lines = [_line(number, comparison, form) for number, comparison in enumerate(comparisons, start=1)]
    if not lines:
        raise InputError(f"no comparisons to write to {path}")
    _write_atomically(Path(path), b"".join(lines))
    return len(lines)


# --- reading: bytes → lines → objects → comparisons ---


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """(line number from 1, text) of each line of a UTF-8 file that is not blank. Only "\\n" ends a line."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None
    if data.startswith(b"\x1f\x8b"):
        raise InputError(f"{path} is compressed; unpack it first (gunzip) and give the .jsonl file")
    if b"\x00" in data:
        raise InputError(f"{path} is a binary file; pairs are UTF-8 text, one JSON object a line")
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"{path}, line {number}: not UTF-8 at byte {error.start + 1} of the line") from None
        if text.strip():
            yield number, text


def _parse_object(line: str) -> dict[str, Any]:
    """The JSON object on one line."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:  # ValueError: also a number of thousands of digits
        reason = error.msg if isinstance(error, json.JSONDecodeError) else "too deep or too long"
        raise InputError(f"not JSON ({reason}); one whole JSON object a line is wanted") from None
    if not isinstance(value, dict):
        raise InputError(f"a JSON {_json_type(value)}; one object a line with 'chosen' and 'rejected' is wanted")
    return value


def _comparison(data: dict[str, Any]) -> Comparison:
    """The comparison that one line's object states."""
    prompt, chosen, rejected = _texts(data)
    question_id, annotator = (_optional_text(data, field) for field in ("question_id", "annotator"))
    return Comparison(prompt, chosen, rejected, question_id=question_id, annotator=annotator)


def _texts(data: dict[str, Any]) -> tuple[str, str, str]:
    """(prompt, chosen, rejected) of one line's object, whichever form it has."""
    for field in ("chosen", "rejected"):
        if data.get(field) is None:
            raise InputError(f"field {field!r} is missing; a pair has 'chosen' and 'rejected'")
    prompt, chosen, rejected = _given_prompt(data.get("prompt")), data["chosen"], data["rejected"]
    if isinstance(chosen, list) != isinstance(rejected, list):
        raise InputError("fields 'chosen' and 'rejected' differ in form; both must be texts, or both lists of messages")
    if isinstance(chosen, list):
        return _texts_of_messages(prompt, _turns(chosen, "chosen"), _turns(rejected, "rejected"))
    if prompt is None:
        return _split(_parse_transcript(chosen, "chosen"), _parse_transcript(rejected, "rejected"))
    return prompt, _text(chosen, "field 'chosen'"), _text(rejected, "field 'rejected'")


def _given_prompt(value: Any) -> str | None:
    """The explicit prompt of a line, a text or a list of messages, as text; None where the line has none."""
    if value is None:
        return None
    return _render_prompt(_turns(value, "prompt")) if isinstance(value, list) else _text(value, "field 'prompt'")


def _texts_of_messages(prompt: str | None, chosen: Turns, rejected: Turns) -> tuple[str, str, str]:
    """(prompt, chosen, rejected) of replies given as messages: after an explicit prompt, or each a whole dialogue."""
    if chosen[0][0] == rejected[0][0] == "Assistant" and prompt is not None:
        return prompt, _render_reply(chosen), _render_reply(rejected)
    for field, turns in (("chosen", chosen), ("rejected", rejected)):
        if turns[0][0] == "Assistant":
            raise InputError(f"field {field!r} starts with the assistant; give what came before as 'prompt', to both")
    shared = _split(chosen, rejected)
    if prompt is not None and prompt != shared[0]:
        raise InputError("field 'prompt' is not the beginning that 'chosen' and 'rejected' share; leave it out")
    return shared


def _parse_transcript(value: Any, field: str) -> Turns:
    """The turns of an HH-RLHF transcript. The single space after a marker belongs to the marker."""
    text = _text(value, f"field {field!r}")
    before, *pieces = _MARKER.split(text)
    if before or not pieces or pieces[0] != "Human":
        raise InputError(f"field {field!r} has no 'prompt' beside it and does not start with '\\n\\nHuman:'")
    turns = [(speaker, said.removeprefix(" ")) for speaker, said in zip(pieces[::2], pieces[1::2], strict=True)]
    return _ending_with_assistant(turns, field)


def _turns(messages: list[Any], field: str) -> Turns:
    """The turns of a list of messages; 'prompt' must end before the assistant speaks, the others with the assistant."""
    turns = []
    for place, message in enumerate(messages, start=1):
        where = f"field {field!r}, message {place}"
        if not isinstance(message, dict):
            raise InputError(f"{where}: a JSON {_json_type(message)}; an object with role and content is wanted")
        role = message.get("role")
        if not isinstance(role, str) or role not in _SPEAKERS:
            raise InputError(f"{where}: its 'role' must be one of {', '.join(_SPEAKERS)}")
        turns.append((_SPEAKERS[role], _text(message.get("content"), f"{where}: its 'content'")))
    if field != "prompt":
        return _ending_with_assistant(turns, field)
    if not turns or turns[-1][0] == "Assistant":
        raise InputError("field 'prompt' must wait for the assistant: end it with the user's message")
    return turns


def _ending_with_assistant(turns: Turns, field: str) -> Turns:
    if not turns or turns[-1][0] != "Assistant":
        raise InputError(f"field {field!r} must end with a turn of the assistant: that is the reply")
    return turns


def _split(chosen: Turns, rejected: Turns) -> tuple[str, str, str]:
    """(prompt, chosen, rejected) of two dialogues: the longest shared beginning before an assistant turn, and rests."""
    cut = 0
    for place, (one, other) in enumerate(zip(chosen, rejected, strict=False)):
        if place and one[0] == other[0] == "Assistant":
            cut = place
        if one != other:
            break
    if not cut:
        return "", _render(chosen), _render(rejected)
    return _render_prompt(chosen[:cut]), _render_reply(chosen[cut:]), _render_reply(rejected[cut:])


def _render(turns: Turns) -> str:
    """Transcript text, every turn with its marker."""
    return "".join(f"\n\n{speaker}: {text}" for speaker, text in turns)


def _render_prompt(turns: Turns) -> str:
    """A prompt: the plain text of a single human turn, transcript text otherwise."""
    return turns[0][1] if len(turns) == 1 and turns[0][0] == "Human" else _render(turns)


def _render_reply(turns: Turns) -> str:
    """A reply: the text of its first turn, which is the assistant's, then any later turns with their markers."""
    return turns[0][1] + _render(turns[1:])


def _text(value: Any, where: str) -> str:
    """`value`, if it is text that UTF-8 can write; InputError that begins with `where` otherwise."""
    if not isinstance(value, str):
        raise InputError(f"{where} is a JSON {_json_type(value)} where text is wanted")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise InputError(f"{where} holds half of a surrogate pair, which is no character") from None
    return value


def _optional_text(data: dict[str, Any], field: str) -> str:
    return "" if data.get(field) is None else _text(data[field], f"field {field!r}")


def _json_type(value: Any) -> str:
    """What JSON calls this value's type."""
    names = {dict: "object", list: "array", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")


# --- writing ---


def _line(number: int, comparison: Comparison, form: PairForm) -> bytes:
    """One comparison as a line of the file; refused unless reading it gives the comparison back."""
    if comparison.tie:
        raise InputError(f"comparison {number} is a tie, which pairs of chosen and rejected cannot say; leave ties out")
    data = _trl_object(comparison) if form == "trl" else _hh_object(comparison)
    try:
        faithful = _comparison(data) == comparison
    except InputError as error:
        raise InputError(f"comparison {number} cannot be written in the form {form!r}: {error}") from None
    if not faithful:
        raise InputError(f"comparison {number} would read back differently in the form {form!r}; use form 'trl'")
    return json.dumps(data, ensure_ascii=False).encode("utf-8") + b"\n"


def _trl_object(comparison: Comparison) -> dict[str, str]:
    texts = {"prompt": comparison.prompt, "chosen": comparison.chosen, "rejected": comparison.rejected}
    return texts | _origin(comparison)


def _hh_object(comparison: Comparison) -> dict[str, str]:
    replies = {"chosen": comparison.chosen, "rejected": comparison.rejected}
    if comparison.prompt or not all(reply.startswith(_HUMAN) for reply in replies.values()):
        prompt = comparison.prompt if comparison.prompt.startswith(_HUMAN) else f"{_HUMAN} {comparison.prompt}"
        replies = {field: f"{prompt}\n\nAssistant: {reply}" for field, reply in replies.items()}
    return replies | _origin(comparison)


def _origin(comparison: Comparison) -> dict[str, str]:
    """Which question and annotator a comparison came from, where it says so."""
    fields = {"question_id": comparison.question_id, "annotator": comparison.annotator}
    return {field: value for field, value in fields.items() if value}


def _write_atomically(path: Path, data: bytes) -> None:
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
