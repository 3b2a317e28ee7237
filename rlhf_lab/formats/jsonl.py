"""Our own JSON Lines: loses nothing, and is read without this package too.

The first line is a header, `{"type": "header", "format": "rlhf-lab-feedback", "version": 1, "questions": n, "answers":
n, "withdrawals": n}`; its counts show that the file is whole. Then one record a line:

- `{"type": "question", "id", "prompt", "candidates": [{"id", "text", "model", "sampling"}]}`;
- `{"type": "ranking" | "rating" | "vote" | "correction", "id", "question_id", "annotator", "created", "status",
  "seconds", "displayed", "context", …}`, with `order` and `grade`, `scores`, `candidate` and `up`, or `candidate` and
  `text`: the fields of `rlhf_lab.records`;
- `{"type": "withdrawal", "answer_id", "created"}`.

Files may be put one after another: a record that is there twice counts once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import fields as dataclass_fields
from typing import Any

from ..errors import InputError
from ..records import ANSWERS, DECLINED, GRADES, Answer, Candidate, Question
from .feedback import Builder, Feedback, Withdrawal
from .files import Fields, Record, located, shown

NAME, VERSION = "rlhf-lab-feedback", 1
COUNTS = ("questions", "answers", "withdrawals")
TYPES = ("header", "question", *ANSWERS, "withdrawal")
_KNOWN = {
    "header": {"format", "version", *COUNTS},
    "question": {"id", "prompt", "candidates"},
    "withdrawal": {"answer_id", "created"},
} | {kind: {field.name for field in dataclass_fields(cls)} for kind, cls in ANSWERS.items()}
_MAIN = {"ranking": "order", "rating": "scores", "vote": "up", "correction": "text"}  # what an answer decides


# --- reading ---


def read(records: Iterable[Record], builder: Builder) -> None:
    """Take every record; the counts of the headers, where there are any, must be those of the file."""
    promised, found, last = Counter(), Counter(), ""
    for where, data in records:
        with located(where):
            kind = take(where, Fields(data), builder)
        if kind == "header":
            promised.update({name: data[name] for name in COUNTS})
        else:
            found[f"{kind}s" if kind in ("question", "withdrawal") else "answers"] += 1
        last = where
    for name in COUNTS if promised else ():
        if promised[name] != found[name]:
            raise InputError(
                f"{last}: the file ends after {found[name]} {name}; field {name!r} of its header says {promised[name]}"
            )


def take(where: str, fields: Fields, builder: Builder) -> str:
    """Take one record and return its type."""
    kind = fields.choice("type", TYPES)
    unknown = sorted(set(fields) - _KNOWN[kind] - {"type"})
    if unknown:
        raise InputError(f"{fields.called(unknown[0])} is no field of a {kind}, and would be lost")
    if kind == "question":
        builder.question(where, _question(fields))
    elif kind == "withdrawal":
        withdrawal = Withdrawal(fields.identifier("answer_id"), fields.time("created"))
        builder.withdrawal(where, withdrawal)
    elif kind == "header":
        _check_header(fields)
    else:
        builder.answer(where, _answer(kind, fields))
    return kind


def _check_header(fields: Fields) -> None:
    fields.choice("format", (NAME,))
    if fields.whole("version", 1, 10**6) > VERSION:
        raise InputError(f"field 'version' is {fields.raw('version')}; this RLHF Lab reads up to {VERSION}")
    for name in COUNTS:
        fields.whole(name, 0, 10**12)


def _question(fields: Fields) -> Question:
    replies = [
        Candidate(reply.identifier("id"), reply.text("text"), reply.text("model", ""), reply.plain("sampling"))
        for reply in fields.objects("candidates", least=1)
    ]
    key, prompt = fields.identifier("id"), fields.text("prompt")
    with located("field 'candidates'"):
        return Question(key, prompt, tuple(replies))


def _answer(kind: str, fields: Fields) -> Answer:
    make = ANSWERS[kind]
    values: dict[str, Any] = {
        "question_id": fields.identifier("question_id"),
        "annotator": fields.identifier("annotator"),
        "displayed": fields.identifiers("displayed") if "displayed" in fields else (),
        "seconds": fields.seconds("seconds"),
        "status": fields.choice("status", (make.GIVEN, *DECLINED)),
        "id": fields.identifier("id"),
        "created": fields.time("created"),
        "context": fields.texts("context"),
    }
    if kind == "ranking":
        tiers = fields.array("order")
        order = Fields({f"order[{at}]": tier for at, tier in enumerate(tiers)})
        values["order"] = tuple(order.identifiers(name) for name in order)
        values["grade"] = fields.choice("grade", GRADES, "")
    elif kind == "rating":
        fields.plain("scores")  # names, too, are texts that can be written
        values["scores"] = _scores(fields.object("scores"))
    else:
        values["candidate"] = fields.identifier("candidate")
        decided = {"up": fields.boolean("up") if "up" in fields else None} if kind == "vote" else {}
        values |= decided or {"text": fields.text("text", "")}
    with located(f"field {_MAIN[kind]!r}"):
        return make(**values)


def _scores(fields: Fields) -> dict[str, dict[str, int]]:
    scores = {}
    for candidate in fields:
        marks = fields.object(candidate)
        scores[candidate] = {name: marks.whole(name, 1, 5) for name in marks}
    return scores


# --- writing ---


def objects(feedback: Feedback) -> Iterator[dict[str, Any]]:
    """Every record as a JSON object, without the header."""
    for question in feedback.questions:
        yield {"type": "question"} | question.to_dict()
    for answer in feedback.answers:
        yield {"type": answer.kind} | answer.to_dict()
    for withdrawal in feedback.withdrawals:
        yield {"type": "withdrawal", "answer_id": withdrawal.answer_id, "created": withdrawal.created}


def rows(feedback: Feedback) -> tuple[list[dict[str, Any]], int, list[str]]:
    """Header and records; InputError for feedback that would read back differently."""
    found = list(objects(feedback))
    check_faithful(feedback, found)
    counts = {name: len(getattr(feedback, name)) for name in COUNTS}
    return [{"type": "header", "format": NAME, "version": VERSION} | counts, *found], len(found), []


def check_faithful(feedback: Feedback, found: list[dict[str, Any]]) -> None:
    """InputError unless reading these objects gives the feedback back."""
    builder = Builder()
    try:
        for number, data in enumerate(found, start=1):
            with located(f"record {number} ({data['type']} {shown(data.get('id', ''))})"):
                take("", Fields(data), builder)
        same = builder.feedback() == feedback
    except InputError as error:
        raise InputError(f"this feedback cannot be written without loss: {error}") from None
    if not same:
        raise InputError("this feedback cannot be written without loss: it holds data that JSON does not keep")
