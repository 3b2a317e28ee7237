"""TRL's data set types and HH-RLHF transcripts, between records and `Feedback`.

Schema: huggingface.co/docs/trl/dataset_formats (preference with explicit or implicit prompt, unpaired preference,
prompt-completion; each standard or conversational) and github.com/anthropics/hh-rlhf. One reader takes them all, record
by record; extra fields that TRL ignores carry what it has no name for: `question_id`, `annotator`, `grade`, and in
demonstrations `original`, the reply that was corrected.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from ..errors import InputError
from ..records import Comparison, Correction, Ranking, Vote
from .feedback import Builder, Feedback, strict_pairs, unwritten, worded
from .files import Fields, Record, located
from .pairs import PAIR_ROWS, comparison_of
from .transcripts import given_prompt, given_reply

Rows = tuple[list[dict[str, Any]], int, list[str]]  # the records to write, how many answers or pairs, what is lost


# --- reading ---


def read(records: Iterable[Record], builder: Builder) -> None:
    """Take every record; its fields say which type it is."""
    for where, data in records:
        with located(where):
            _take(where, Fields(data), builder)


def _take(where: str, fields: Fields, builder: Builder) -> None:
    origin = {"annotator": fields.identifier("annotator", ""), "given_id": fields.identifier("question_id", "")}
    if "chosen" in fields or "rejected" in fields:
        take_pair(where, comparison_of(fields.data), builder, **origin)
    elif "completions" in fields or "labels" in fields:
        raise InputError(
            "field 'completions' holds the steps of one solution (stepwise supervision), and no record here is about "
            "a step; give the whole solution as 'completion' with one 'label'"
        )
    elif "label" in fields:
        prompt, reply = _prompt(fields), given_reply(fields.raw("completion"), "completion")
        up = fields.boolean("label")
        builder.draft(
            where, prompt, [(reply, "")], Vote, lambda ids: {"candidate": ids[0], "up": up, "displayed": ids}, **origin
        )
    elif "completion" in fields:
        _take_demonstration(where, fields, builder, origin)
    else:
        raise InputError("field 'chosen' is missing; 'chosen' and 'rejected', or 'completion', are wanted")


def take_pair(
    where: str, pair: Comparison, builder: Builder, models: tuple[str, str] = ("", ""), **origin: str
) -> None:
    """One pair as a ranking of a question of two replies."""
    replies = [(pair.chosen, models[0]), (pair.rejected, models[1])]
    builder.draft(
        where,
        pair.prompt,
        replies,
        Ranking,
        lambda ids: {"order": ((ids[0], ids[1]),) if pair.tie else ((ids[0],), (ids[1],)), "grade": pair.grade},
        **origin,
    )


def _take_demonstration(where: str, fields: Fields, builder: Builder, origin: dict[str, str]) -> None:
    prompt, reply = _prompt(fields), given_reply(fields.raw("completion"), "completion")
    if "original" not in fields:
        raise InputError(
            "field 'original' is missing; a demonstration is kept as the correction of a reply, so the reply that "
            "'completion' is better than is wanted as 'original'"
        )
    original = given_reply(fields.raw("original"), "original")
    if original == reply or not reply.strip():
        raise InputError("field 'completion' is empty or the same as 'original'; a correction changes the reply")
    builder.draft(
        where, prompt, [(original, "")], Correction, lambda ids: {"candidate": ids[0], "text": reply}, **origin
    )


def _prompt(fields: Fields) -> str:
    return given_prompt(fields.raw("prompt")) or ""


# --- writing ---


def pair_rows(form: str) -> Callable[[Feedback], Rows]:
    """The writer of one form of pairs. A pair that would read back differently is left out, and counted."""

    def rows(feedback: Feedback) -> Rows:
        pairs, lost = strict_pairs(feedback)
        written, unfaithful = [], 0
        for pair in pairs:
            texts = (pair.question.prompt, pair.better.text, pair.worse.text)
            comparison = Comparison(
                *texts, question_id=pair.question.id, annotator=pair.answer.annotator, grade=pair.grade
            )
            row = PAIR_ROWS[form](comparison)
            if _reads_back(row, comparison):
                written.append(row)
            else:
                unfaithful += 1
        lost += worded(Counter({("pair", "left out: markers inside its texts would be read as turns"): unfaithful}))
        answers = {pair.answer.id: pair.answer for pair in pairs}.values()
        return written, len(written), lost + unwritten(answers, feedback.question_of, {"grade"})

    return rows


def _reads_back(row: dict[str, Any], comparison: Comparison) -> bool:
    try:
        return comparison_of(row) == comparison
    except InputError:
        return False


def vote_rows(feedback: Feedback) -> Rows:
    """Unpaired preference: a line for each thumb."""
    votes = [answer for answer in feedback.answers if isinstance(answer, Vote) and answer.given]
    return _about_one_reply(feedback, votes, lambda vote, text: {"completion": text, "label": vote.up})


def demonstration_rows(feedback: Feedback) -> Rows:
    """Prompt-completion: a line for each correction."""
    corrections = [answer for answer in feedback.answers if isinstance(answer, Correction) and answer.given]
    return _about_one_reply(feedback, corrections, lambda fix, text: {"completion": fix.text, "original": text})


def _about_one_reply(feedback: Feedback, answers: list[Any], row: Callable[[Any, str], dict[str, Any]]) -> Rows:
    asked, rows = feedback.question_of, []
    for answer in answers:
        question = asked[answer.question_id]
        origin = {"question_id": question.id, "annotator": answer.annotator}
        rows.append({"prompt": question.prompt} | row(answer, question.texts[answer.candidate]) | origin)
    kept = {answer.id for answer in answers}
    others = Counter((_other(answer), "left out: the form has no place for them") for answer in feedback.answers
                     if answer.id not in kept)  # fmt: skip
    carried = {"grade"}
    return rows, len(rows), worded(others) + unwritten(answers, asked, carried)


def _other(answer: Any) -> str:
    return answer.kind if answer.given else "answer without a decision"
