"""Argilla's records, as `dataset.records.to_json` writes them and `Record.from_dict` takes them.

Schema: github.com/argilla-io/argilla, argilla/src/argilla/records/_resource.py and responses.py (SDK 2). A file is a
list of `{"id", "fields": {name: text}, "metadata", "suggestions": {question: {"value", "score", "agent"}}, "responses":
{question: [{"value", "user_id"}]}, "vectors"}`. A ranking's value is the list of field names, best first; the server's
own form `[{"value", "rank"}]`, in which equal ranks are ties, is read too, as are responses grouped by user,
`[{"user_id", "status", "values": {question: {"value"}}}]`.

What we write: fields `prompt`, `response_1`, `response_2`, …; questions `ranking`, `rating_1_helpful`, `vote_1` (label
"up" or "down") and `correction_1` (text); metadata `id_1`, `model_1`. `user_id` holds the annotator's name: put your
Argilla users' ids there before an upload.

Files from elsewhere: the fields that a ranking names are the replies, or, without a ranking, the field `response`,
`completion`, `answer`, `generation` or `output`; the one other field, or the one called `prompt`, `instruction`,
`question`, `input` or `context`, is the prompt. Suggestions, drafts, discarded responses and questions that do not say
which reply they are about are left out and counted.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from ..errors import InputError
from ..records import Answer, Candidate, Correction, Question, Ranking, Rating, Vote
from .feedback import Builder, Feedback, made_id, unwritten, worded
from .files import Fields, Record, located, shown, text
from .label_studio import PROMPTS
from .transcripts import given_prompt, given_reply
from .trl import Rows

REPLIES = ("response", "completion", "answer", "generation", "output")
_OWN_FIELD = re.compile(r"response_([1-9][0-9]{0,3})")
_OWN = re.compile(r"(rating|vote|correction)_([1-9][0-9]{0,3})(?:_(.+))?", re.DOTALL)


@dataclass(frozen=True)
class _Response:
    """One user's response to one Argilla question, and what messages call its value."""

    question: str
    user: str
    value: Any
    called: str


# --- reading ---


def read(records: Iterable[Record], builder: Builder) -> None:
    """Take every record with its responses."""
    for where, data in records:
        with located(where):
            record = Fields(data)
            responses = list(_responses(record, builder))
            question, names = _question(record, responses)
            builder.question(where, question)
            for answer in _answers(responses, question, names, builder):
                builder.answer(where, answer)
            suggestions = record.plain("suggestions") if isinstance(data.get("suggestions"), dict) else {}
            if suggestions:
                builder.leave_out("suggestion", "a model made it", len(suggestions))


def _responses(record: Fields, builder: Builder) -> Iterator[_Response]:
    """Every submitted response, whether they are grouped by question or by user."""
    given = record.data.get("responses")
    if isinstance(given, list):
        for user in record.objects("responses"):
            values = user.object("values")
            if _submitted(user, builder):
                for name in values:
                    yield _response(name, user, values.object(name), builder)
    elif given is not None:
        responses = record.object("responses")
        for name in responses:
            for response in responses.objects(name):
                if _submitted(response, builder):
                    yield _response(name, response, response, builder)


def _submitted(response: Fields, builder: Builder) -> bool:
    status = response.choice("status", ("submitted", "draft", "discarded"), "submitted")
    if status != "submitted":
        builder.leave_out(f"{status} response")
    return status == "submitted"


def _response(name: str, user: Fields, value: Fields, builder: Builder) -> _Response:
    text(name, user.called(name))
    return _Response(name, user.identifier("user_id", builder.annotator), value.raw("value"), value.called("value"))


def _question(record: Fields, responses: list[_Response]) -> tuple[Question, dict[str, str]]:
    """The question that a record asks, and the candidate's id by the field's name."""
    fields, metadata = record.object("fields"), record.optional_object("metadata")
    present = [name for name in fields if name in fields]
    ranked = {key for r in responses if _is_ranking(r) for tier in _tiers(r) for key in tier}
    names = [name for name in present if name in ranked or _OWN_FIELD.fullmatch(name)]
    names = names or [name for name in present if name in REPLIES][:1]
    if not names:
        raise InputError(f"field 'fields' holds no reply; response_1, response_2, … or {', '.join(REPLIES)} is wanted")
    prompt_field = _prompt_field(present, names)
    prompt = given_prompt(_at(fields, prompt_field, "prompt")) or ""
    replies = []
    for place, name in enumerate(names, start=1):
        said = given_reply(_at(fields, name, name), f"fields.{name}")
        model = metadata.text(f"model_{place}", "")
        replies.append(Candidate(metadata.identifier(f"id_{place}", "") or name, said, model))
    made = made_id("question", prompt, *(part for reply in replies for part in (reply.id, reply.text)))
    with located("field 'fields'"):
        question = Question(record.identifier("id", "") or made, prompt, tuple(replies))
    return question, dict(zip(names, (reply.id for reply in replies), strict=True))


def _prompt_field(present: list[str], replies: list[str]) -> str:
    others = [name for name in present if name not in replies]
    named = [name for name in others if name in PROMPTS]
    if len(others) != 1 and not named:
        raise InputError(f"field 'fields' names no prompt among {shown(others)}; call it one of {', '.join(PROMPTS)}")
    return named[0] if named else others[0]


def _at(fields: Fields, name: str, as_field: str) -> Any:
    """A field's value: a text, or the messages of a chat field."""
    value = fields.raw(name)
    if not isinstance(value, str | list):
        raise InputError(f"{fields.called(name)} is no text and no chat; only those can be a {as_field}")
    return text(value, fields.called(name)) if isinstance(value, str) else value


def _is_ranking(response: _Response) -> bool:
    """Whether a response orders fields: a list of texts, or of values with ranks, to a question that is one of ours
    or not about a single reply."""
    value = response.value
    if response.question == "ranking":
        return True
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict) and "rank" in value[0]


def _tiers(response: _Response) -> tuple[tuple[str, ...], ...]:
    """Field names, best first."""
    if not isinstance(response.value, list) or not response.value:
        raise InputError(f"{response.called} is {shown(response.value)}; a ranking is a list of names of fields")
    tiers: dict[int, list[str]] = {}
    for place, item in enumerate(response.value, start=1):
        called = f"{response.called[:-1]}[{place - 1}]"
        if isinstance(item, str):
            tiers.setdefault(place, []).append(text(item, f"{called}'"))
            continue
        if not isinstance(item, dict):
            raise InputError(f"{called}' is {shown(item)}; the name of a field, or its value and rank, is wanted")
        fields = Fields(item, called.removeprefix("field '"))
        rank = fields.whole("rank", 1, 10**6) if "rank" in fields else place
        tiers.setdefault(rank, []).append(fields.text("value"))
    return tuple(tuple(tiers[rank]) for rank in sorted(tiers))


def _answers(
    responses: list[_Response], question: Question, names: dict[str, str], builder: Builder
) -> Iterator[Answer]:
    scores: dict[str, tuple[_Response, dict[str, dict[str, int]]]] = {}  # of each user
    ids = [candidate.id for candidate in question.candidates]
    for response in responses:
        own = _OWN.fullmatch(response.question)
        with located(response.called):
            if _is_ranking(response):
                yield _make(Ranking, response, question, builder, {"order": _order(response, names)})
            elif own and own[1] == "vote":
                up = _word(response, ("up", "down")) == "up"
                yield _make(Vote, response, question, builder, {"candidate": _reply(own, ids), "up": up})
            elif own and own[1] == "correction":
                said = text(response.value, "this")
                yield _make(Correction, response, question, builder, {"candidate": _reply(own, ids), "text": said})
            elif (own and own[1] == "rating" and own[3]) or (len(ids) == 1 and type(response.value) is int):
                candidate, attribute = (_reply(own, ids), own[3]) if own else (ids[0], response.question)
                of_user = scores.setdefault(response.user, (response, {}))[1]
                of_user.setdefault(candidate, {})[attribute] = _mark(response)
            else:
                builder.leave_out(f"response to {shown(response.question)}", "it does not say which reply it is about")
    for response, marks in scores.values():
        with located(response.called):
            yield _make(Rating, response, question, builder, {"scores": marks})


def _make(kind: type, response: _Response, question: Question, builder: Builder, decided: dict[str, Any]) -> Answer:
    key = made_id("answer", kind.kind, question.id, response.user, decided)
    fields = {"question_id": question.id, "annotator": response.user, "created": builder.now, "id": key}
    return kind(**(fields | decided)).check(question)


def _order(response: _Response, names: dict[str, str]) -> tuple[tuple[str, ...], ...]:
    tiers = _tiers(response)
    unknown = [name for tier in tiers for name in tier if name not in names]
    if unknown:
        raise InputError(f"it ranks {shown(unknown[0])}, which is no reply among the record's fields")
    return tuple(tuple(names[name] for name in tier) for tier in tiers)


def _mark(response: _Response) -> int:
    mark = response.value
    if isinstance(mark, bool) or not isinstance(mark, int) or not 1 <= mark <= 5:
        raise InputError(f"the value is {shown(mark)}; a whole number from 1 to 5 is wanted")
    return mark


def _word(response: _Response, allowed: tuple[str, ...]) -> str:
    if response.value not in allowed:
        raise InputError(f"the value is {shown(response.value)}; it must be one of {', '.join(allowed)}")
    return response.value


def _reply(own: re.Match[str], ids: list[str]) -> str:
    place = int(own[2])
    if place > len(ids):
        raise InputError(f"question {shown(own[0])} is about reply {place}; the record has {len(ids)}")
    return ids[place - 1]


# --- writing ---


def rows(feedback: Feedback) -> Rows:
    """A record for each question; those without answers are records to be annotated."""
    given: dict[str, list[Answer]] = {question.id: [] for question in feedback.questions}
    lost: Counter[tuple[str, str]] = Counter()
    for answer in feedback.answers:
        why = _why_not(answer)
        if why:
            lost[why] += 1
        else:
            given[answer.question_id].append(answer)
    written = [answer for answers in given.values() for answer in answers]
    words = worded(lost) + unwritten(written, feedback.question_of, {"models"})
    return [_row(question, given[question.id]) for question in feedback.questions], len(written), words


def _why_not(answer: Answer) -> tuple[str, str] | None:
    if not answer.given:
        return "answer without a decision", "left out: the form has no place for them"
    if isinstance(answer, Ranking) and any(len(tier) > 1 for tier in answer.order):
        return "ranking with ties", "left out: Argilla's exchange form lists replies one after another"
    return None


def _row(question: Question, answers: list[Answer]) -> dict[str, Any]:
    fields, metadata = {"prompt": question.prompt}, {}
    for place, reply in enumerate(question.candidates, start=1):
        fields[f"response_{place}"] = reply.text
        metadata |= {f"id_{place}": reply.id} | ({f"model_{place}": reply.model} if reply.model else {})
    places = {reply.id: place for place, reply in enumerate(question.candidates, start=1)}
    responses: dict[str, list[dict[str, Any]]] = {}
    for answer in answers:
        for name, value in _values(answer, places):
            responses.setdefault(name, []).append({"value": value, "user_id": answer.annotator})
    return {
        "id": question.id,
        "fields": fields,
        "metadata": metadata,
        "suggestions": {},
        "responses": responses,
        "vectors": {},
    }


def _values(answer: Answer, places: dict[str, int]) -> Iterator[tuple[str, Any]]:
    """(Argilla question, value) of one answer."""
    if isinstance(answer, Ranking):
        yield "ranking", [f"response_{places[key]}" for (key,) in answer.order]
    elif isinstance(answer, Rating):
        for candidate, marks in answer.scores.items():
            for name, mark in marks.items():
                yield f"rating_{places[candidate]}_{name}", mark
    elif isinstance(answer, Vote):
        yield f"vote_{places[answer.candidate]}", "up" if answer.up else "down"
    else:
        yield f"correction_{places[answer.candidate]}", answer.text
