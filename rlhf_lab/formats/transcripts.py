"""Dialogues as transcript text with markers, as lists of messages, and as prompt and reply.

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
"""

from __future__ import annotations

import re
from typing import Any

from ..errors import InputError
from .files import json_type, text

Turns = list[tuple[str, str]]  # (speaker, text): a dialogue

HUMAN = "\n\nHuman:"
_MARKER = re.compile(r"\n\n(Human|Assistant):")
_MARKER_OR_SYSTEM = re.compile(r"\n\n(Human|Assistant|System):")
_SPEAKERS = {"user": "Human", "assistant": "Assistant", "system": "System"}
_ROLES = {speaker: role for role, speaker in _SPEAKERS.items()}


# --- transcript text or messages → turns ---


def parse_transcript(value: Any, field: str) -> Turns:
    """The turns of an HH-RLHF transcript. The single space after a marker belongs to the marker."""
    said = text(value, f"field {field!r}")
    before, *pieces = _MARKER.split(said)
    if before or not pieces or pieces[0] != "Human":
        raise InputError(f"field {field!r} has no 'prompt' beside it and does not start with '\\n\\nHuman:'")
    turns = [(speaker, said.removeprefix(" ")) for speaker, said in zip(pieces[::2], pieces[1::2], strict=True)]
    return _ending_with_assistant(turns, field)


def parse_messages(messages: list[Any], field: str) -> Turns:
    """The turns of a list of messages; 'prompt' must end before the assistant speaks, the others with the assistant."""
    turns = _turns(messages, field)
    if field != "prompt":
        return _ending_with_assistant(turns, field)
    if not turns or turns[-1][0] == "Assistant":
        raise InputError("field 'prompt' must wait for the assistant: end it with the user's message")
    return turns


def _turns(messages: list[Any], field: str) -> Turns:
    turns = []
    for place, message in enumerate(messages, start=1):
        where = f"field {field!r}, message {place}"
        if not isinstance(message, dict):
            raise InputError(f"{where}: a JSON {json_type(message)}; an object with role and content is wanted")
        role = message.get("role")
        if not isinstance(role, str) or role not in _SPEAKERS:
            raise InputError(f"{where}: its 'role' must be one of {', '.join(_SPEAKERS)}")
        turns.append((_SPEAKERS[role], text(message.get("content"), f"{where}: its 'content'")))
    return turns


def _ending_with_assistant(turns: Turns, field: str) -> Turns:
    if not turns or turns[-1][0] != "Assistant":
        raise InputError(f"field {field!r} must end with a turn of the assistant: that is the reply")
    return turns


# --- turns → prompt and replies ---


def given_prompt(value: Any) -> str | None:
    """The explicit prompt of a record, a text or a list of messages, as text; None where the record has none."""
    if value is None:
        return None
    return render_prompt(parse_messages(value, "prompt")) if isinstance(value, list) else text(value, "field 'prompt'")


def given_reply(value: Any, field: str) -> str:
    """A reply given as text, or as the messages after the prompt, as text."""
    if not isinstance(value, list):
        return text(value, f"field {field!r}")
    turns = parse_messages(value, field)
    if turns[0][0] != "Assistant":
        raise InputError(f"field {field!r} must start with the assistant; what came before belongs to 'prompt'")
    return render_reply(turns)


def split(chosen: Turns, rejected: Turns) -> tuple[str, str, str]:
    """(prompt, chosen, rejected) of two dialogues: the longest shared beginning before an assistant turn, and rests."""
    cut = 0
    for place, (one, other) in enumerate(zip(chosen, rejected, strict=False)):
        if place and one[0] == other[0] == "Assistant":
            cut = place
        if one != other:
            break
    if not cut:
        return "", _render(chosen), _render(rejected)
    return render_prompt(chosen[:cut]), render_reply(chosen[cut:]), render_reply(rejected[cut:])


def render_prompt(turns: Turns) -> str:
    """A prompt: the plain text of a single human turn, transcript text otherwise."""
    return turns[0][1] if len(turns) == 1 and turns[0][0] == "Human" else _render(turns)


def render_reply(turns: Turns) -> str:
    """A reply: the text of its first turn, which is the assistant's, then any later turns with their markers."""
    return turns[0][1] + _render(turns[1:])


def _render(turns: Turns) -> str:
    """Transcript text, every turn with its marker."""
    return "".join(f"\n\n{speaker}: {said}" for speaker, said in turns)


# --- prompt and replies → messages ---


def prompt_messages(prompt: str) -> list[dict[str, str]]:
    """A prompt as messages: its turns where it is transcript text that reads back the same, else one user message."""
    before, *pieces = _MARKER_OR_SYSTEM.split(prompt)
    turns = [(speaker, said.removeprefix(" ")) for speaker, said in zip(pieces[::2], pieces[1::2], strict=True)]
    if before or not turns or turns[-1][0] == "Assistant" or render_prompt(turns) != prompt:
        turns = [("Human", prompt)]
    return _messages(turns)


def reply_messages(reply: str) -> list[dict[str, str]]:
    """A reply as messages: its turns where it holds more than one, else one message of the assistant."""
    first, *pieces = _MARKER_OR_SYSTEM.split(reply)
    later = [(speaker, said.removeprefix(" ")) for speaker, said in zip(pieces[::2], pieces[1::2], strict=True)]
    turns = [("Assistant", first), *later]
    if turns[-1][0] != "Assistant" or render_reply(turns) != reply:
        turns = [("Assistant", reply)]
    return _messages(turns)


def _messages(turns: Turns) -> list[dict[str, str]]:
    return [{"role": _ROLES[speaker], "content": said} for speaker, said in turns]
