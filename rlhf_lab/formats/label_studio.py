"""Label Studio's JSON export: a list of tasks with their annotations.

Schema: labelstud.io/guide/task_format and labelstud.io/tags (pairwise, ranker, rating, choices, textarea); read in
github.com/HumanSignal/label-studio, web/libs/editor/src/tags/control. A task is `{"id", "data": {…}, "annotations":
[{"completed_by", "lead_time", "created_at", "was_cancelled", "result": [{"from_name", "to_name", "type", "value"}]}]}`.

What we write: `data` holds `question_id`, `prompt`, `reply1`, `reply2`, … and `items` (the replies: id, title, body,
model and sampling, as a List takes them). Each answer is one annotation with `unique_id`: a strict pair is a Pairwise
("left" is the first reply) with its grade as Choices `grade`; a longer order is a Ranker, and one with ties a Ranker
with Buckets `tier1`, `tier2`, …; a mark is a Rating `rating_1_helpful`, a thumb Choices `vote_1` ("up", "down"), a
correction a TextArea `correction_1`; a skipped ranking is a cancelled annotation.

Files from elsewhere: the prompt is the field `prompt`, `question`, `instruction`, `input` or `context` of `data`, and
its other texts are the replies, in their order. Results of other kinds are left out and counted.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from ..errors import InputError
from ..records import GRADES, Answer, Candidate, Correction, Question, Ranking, Rating, Vote
from .feedback import Builder, Feedback, made_id, unwritten, worded
from .files import Fields, Record, located, shown, storable, text
from .trl import Rows

PROMPTS = ("prompt", "question", "instruction", "input", "context")
_OWN = re.compile(r"(rating|vote|correction)_([1-9][0-9]{0,3})(?:_(.+))?", re.DOTALL)
_TIER = re.compile(r"tier([1-9][0-9]{0,3})")
Decision = tuple[type[Answer], dict[str, Any]]


# --- reading ---


def read(records: Iterable[Record], builder: Builder) -> None:
    """Take every task with its annotations."""
    for where, data in records:
        with located(where):
            task = Fields(data)
            question = _question(task.object("data"))
            builder.question(where, question)
            for annotation in task.objects("annotations") if "annotations" in task else []:
                for answer in _answers(annotation, question, builder):
                    builder.answer(where, answer)
            predictions = task.array("predictions") if "predictions" in task else []
            if predictions:
                builder.leave_out("prediction", "a model made it", len(predictions))


def _question(data: Fields) -> Question:
    named = [name for name in PROMPTS if name in data]
    if not named:
        raise InputError(f"field 'data.prompt' is missing; the prompt is wanted as one of {', '.join(PROMPTS)}")
    prompt = data.text(named[0])
    if "items" in data:
        replies = [_item(item) for item in data.objects("items", least=1)]
    else:
        names = [name for name in data if isinstance(data.data[name], str) and name not in (named[0], "question_id")]
        if not names:
            raise InputError("field 'data' holds no reply; texts beside the prompt, or 'items', are wanted")
        replies = [Candidate(storable(name, data.called(name)), data.text(name)) for name in names]
    made = made_id("question", prompt, *(part for reply in replies for part in (reply.id, reply.text, reply.model)))
    with located("field 'data.items'"):
        return Question(data.identifier("question_id", "") or made, prompt, tuple(replies))


def _item(item: Fields) -> Candidate:
    said = item.text("body") if "body" in item else item.text("title")
    return Candidate(item.identifier("id"), said, item.text("model", ""), item.plain("sampling"))


def _answers(annotation: Fields, question: Question, builder: Builder) -> Iterator[Answer]:
    person, seconds = _person(annotation, builder.annotator), annotation.seconds("lead_time")
    created = annotation.time("created_at") if "created_at" in annotation else builder.now
    decisions = _decisions(annotation, question, builder)
    unique = annotation.identifier("unique_id", "")
    for kind, decided in decisions:
        key = unique if unique and len(decisions) == 1 else made_id("answer", unique, question.id, person, decided)
        fields = {"question_id": question.id, "annotator": person, "seconds": seconds, "created": created, "id": key}
        with located(annotation.called("result")):
            answer = kind(**(fields | decided))
            answer.check(question)
        yield answer


def _person(annotation: Fields, default: str) -> str:
    """The name of the person who annotated: a text, a user's number, or a user with an e-mail address."""
    if "completed_by" not in annotation:
        return default
    value = annotation.raw("completed_by")
    if isinstance(value, dict):
        user = annotation.object("completed_by")
        return user.identifier("email") if "email" in user else str(user.whole("id", 0, 10**15))
    if isinstance(value, int):
        return str(annotation.whole("completed_by", 0, 10**15))
    return annotation.identifier("completed_by")


def _decisions(annotation: Fields, question: Question, builder: Builder) -> list[Decision]:
    """What one annotation decides: kind of answer and its fields."""
    if "was_cancelled" in annotation and annotation.boolean("was_cancelled"):
        if len(question.candidates) > 1:
            return [(Ranking, {"order": (), "status": "skipped"})]
        builder.leave_out("cancelled annotation")
        return []
    found: list[Decision] = []
    scores: dict[str, dict[str, int]] = {}
    grade = ""
    for result in annotation.objects("result"):
        kind, name, value = result.choice("type", _types(result)), result.text("from_name", ""), result.object("value")
        own = _OWN.fullmatch(name)
        if kind == "pairwise":
            found.append((Ranking, {"order": _selected(value, question)}))
        elif kind == "ranker":
            order = _ranked(value.object("ranker"))
            found += [(Ranking, {"order": order})] if order else []
            builder.leave_out("ranker with buckets that are no tiers", n=not order)
        elif kind == "choices" and name == "grade":
            [grade] = _one(value, "choices", GRADES)
        elif kind == "choices" and own and own[1] == "vote":
            [thumb] = _one(value, "choices", ("up", "down"))
            found.append((Vote, {"candidate": _reply(result, own, question), "up": thumb == "up"}))
        elif kind == "textarea" and own and own[1] == "correction":
            [said] = _one(value, "text")
            found.append((Correction, {"candidate": _reply(result, own, question), "text": said}))
        elif kind == "rating" and own and own[1] == "rating" and own[3]:
            scores.setdefault(_reply(result, own, question), {})[own[3]] = value.whole("rating", 1, 5)
        elif kind == "rating" and len(question.candidates) == 1:
            scores.setdefault(question.candidates[0].id, {})[name] = value.whole("rating", 1, 5)
        else:
            builder.leave_out(f"result of type {shown(kind)}", "it does not say which reply it is about")
    found += [(Rating, {"scores": scores})] if scores else []
    return [(kind, decided | {"grade": grade} if kind is Ranking and grade else decided) for kind, decided in found]


def _types(result: Fields) -> tuple[str, ...]:
    """Any type of result is allowed: what we have no place for is left out."""
    return (result.text("type"),)


def _selected(value: Fields, question: Question) -> tuple[tuple[str, ...], ...]:
    chosen = value.choice("selected", ("left", "right"))
    ids = [candidate.id for candidate in question.candidates]
    if len(ids) != 2:
        raise InputError(f"{value.called('selected')} compares two replies, and the task has {len(ids)}")
    return tuple((key,) for key in (ids if chosen == "left" else ids[::-1]))


def _ranked(ranker: Fields) -> tuple[tuple[str, ...], ...]:
    """The tiers that a Ranker states; () for buckets that are no tiers."""
    names = [name for name in ranker if name in ranker]
    if len(names) == 1 and not _TIER.fullmatch(names[0]):
        return tuple((key,) for key in ranker.identifiers(names[0]))
    if not names or not all(_TIER.fullmatch(name) for name in names):
        return ()
    return tuple(ranker.identifiers(name) for name in sorted(names, key=lambda name: int(name[4:])))


def _one(value: Fields, name: str, allowed: tuple[str, ...] | None = None) -> list[str]:
    """A list of one text, as Choices and TextArea give it."""
    given = value.raw(name)
    given = given if isinstance(given, list) else [given]
    if len(given) != 1:
        raise InputError(f"{value.called(name)} has {len(given)} elements; one is wanted")
    said = text(given[0], value.called(name))
    if allowed and said not in allowed:
        raise InputError(f"{value.called(name)} is {shown(said)}; it must be one of {', '.join(allowed)}")
    return [said]


def _reply(result: Fields, own: re.Match[str], question: Question) -> str:
    place = int(own[2])
    if place > len(question.candidates):
        raise InputError(
            f"{result.called('from_name')} is {shown(own[0])}, and the task has {len(question.candidates)} replies"
        )
    return question.candidates[place - 1].id


# --- writing ---


def rows(feedback: Feedback) -> Rows:
    """A task for each question, an annotation for each answer; questions without answers are tasks to be labelled."""
    given: dict[str, list[Answer]] = {question.id: [] for question in feedback.questions}
    lost: Counter[tuple[str, str]] = Counter()
    for answer in feedback.answers:
        if answer.given or (isinstance(answer, Ranking) and answer.status == "skipped"):
            given[answer.question_id].append(answer)
        else:
            lost["answer without a decision", "left out: only a skipped ranking has a place"] += 1
    written = [answer for answers in given.values() for answer in answers]
    words = worded(lost) + unwritten(
        written, feedback.question_of, {"grade", "seconds", "created", "models", "sampling", "ids"}
    )
    return [_task(question, given[question.id]) for question in feedback.questions], len(written), words


def _task(question: Question, answers: list[Answer]) -> dict[str, Any]:
    data: dict[str, Any] = {"question_id": question.id, "prompt": question.prompt}
    data |= {f"reply{place}": reply.text for place, reply in enumerate(question.candidates, start=1)}
    data["items"] = [
        {"id": reply.id, "title": f"Reply {place}", "body": reply.text, "model": reply.model}
        | ({"sampling": reply.sampling} if reply.sampling else {})
        for place, reply in enumerate(question.candidates, start=1)
    ]
    return {"data": data, "annotations": [_annotation(question, answer) for answer in answers]}


def _annotation(question: Question, answer: Answer) -> dict[str, Any]:
    return {
        "unique_id": answer.id,
        "completed_by": answer.annotator,
        "created_at": answer.created,
        "lead_time": answer.seconds,
        "was_cancelled": not answer.given,
        "result": list(_results(question, answer)) if answer.given else [],
    }


def _results(question: Question, answer: Answer) -> Iterator[dict[str, Any]]:
    places = {reply.id: place for place, reply in enumerate(question.candidates, start=1)}
    if isinstance(answer, Ranking):
        yield from _ranking_results(answer, places)
    elif isinstance(answer, Rating):
        for candidate, marks in answer.scores.items():
            for name, mark in marks.items():
                yield _result(f"rating_{places[candidate]}_{name}", places[candidate], "rating", {"rating": mark})
    elif isinstance(answer, Vote):
        thumb, place = "up" if answer.up else "down", places[answer.candidate]
        yield _result(f"vote_{place}", place, "choices", {"choices": [thumb]})
    else:
        place = places[answer.candidate]
        yield _result(f"correction_{place}", place, "textarea", {"text": [answer.text]})


def _ranking_results(answer: Ranking, places: dict[str, int]) -> Iterator[dict[str, Any]]:
    strict = all(len(tier) == 1 for tier in answer.order)
    if strict and len(places) == 2:
        side = "left" if places[answer.order[0][0]] == 1 else "right"
        yield _result("pairwise", 1, "pairwise", {"selected": side})
        if answer.grade:
            yield _result("grade", 1, "choices", {"choices": [answer.grade]})
        return
    tiers = {f"tier{number}": list(tier) for number, tier in enumerate(answer.order, start=1)}
    ranker = {"ranking": [key for (key,) in answer.order]} if strict else tiers
    yield _result("ranking", 0, "ranker", {"ranker": ranker})


def _result(name: str, place: int, kind: str, value: dict[str, Any]) -> dict[str, Any]:
    return {"from_name": name, "to_name": f"reply{place}" if place else "replies", "type": kind, "value": value}
