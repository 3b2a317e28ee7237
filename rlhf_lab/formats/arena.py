"""Chatbot Arena's conversations (Zheng et al., 2023, arXiv:2306.05685), read only.

Schema: huggingface.co/datasets/lmsys/chatbot_arena_conversations: `{"question_id", "model_a", "model_b", "winner":
"model_a" | "model_b" | "tie" | "tie (bothbad)", "judge", "conversation_a", "conversation_b", "tstamp"}`, the two
conversations being lists of messages. "tie (bothbad)" is a tie here too: that both were bad has no place.
"""

from __future__ import annotations

from collections.abc import Iterable

from ..errors import InputError
from ..records import Comparison
from .feedback import Builder
from .files import Fields, Record, located
from .transcripts import parse_messages, split
from .trl import take_pair

WINNERS = ("model_a", "model_b", "tie", "tie (bothbad)")


def read(records: Iterable[Record], builder: Builder) -> None:
    """Take every battle."""
    for where, data in records:
        with located(where):
            _take(where, Fields(data), builder)


def _take(where: str, fields: Fields, builder: Builder) -> None:
    winner = fields.choice("winner", WINNERS)
    sides = ("b", "a") if winner == "model_b" else ("a", "b")
    better, worse = (parse_messages(fields.array(f"conversation_{s}"), f"conversation_{s}") for s in sides)
    for side, turns in zip(sides, (better, worse), strict=True):
        if turns[0][0] == "Assistant":
            raise InputError(f"field 'conversation_{side}' starts with the assistant; the user's message comes first")
    if winner == "tie (bothbad)":
        builder.leave_out("remark that both replies were bad")
    models = tuple(fields.text(f"model_{side}", "") for side in sides)
    pair = Comparison(*split(better, worse), tie=winner.startswith("tie"))
    take_pair(where, pair, builder, models, annotator=fields.identifier("judge", ""))
