"""Ratings in the form of UltraFeedback (Cui et al., 2023, arXiv:2310.01377).

Schema: github.com/OpenBMB/UltraFeedback, README, "Dataset Format". One record is an instruction with its completions,
`{"instruction", "completions": [{"model", "response", "annotations": {"helpfulness": {"Rating", "Rationale"}, …}}]}`.
`Rating` is "1" to "5", or "N/A". A record here becomes one question with one rating; an attribute that some completion
is not rated for is left out. Our own records add `question_id` and `annotator`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from ..errors import InputError
from ..records import RATING_SCALE, Question, Rating
from .feedback import Builder, Feedback, unwritten, worded
from .files import Fields, Record, located, shown, storable
from .trl import Rows

MARKS = {str(mark): mark for mark in RATING_SCALE}


def read(records: Iterable[Record], builder: Builder) -> None:
    """Take every record."""
    for where, data in records:
        with located(where):
            _take(where, Fields(data), builder)


def _take(where: str, fields: Fields, builder: Builder) -> None:
    prompt, completions = fields.text("instruction"), fields.objects("completions", least=1)
    marks = [_marks(completion.object("annotations"), builder) for completion in completions]
    common = [name for name in marks[0] if all(name in each for each in marks)]
    partial = len({name for each in marks for name in each}) - len(common)
    if partial:
        builder.leave_out("attribute of a question", "not every completion is rated for it", partial)
    replies = [(completion.text("response"), completion.text("model", "")) for completion in completions]
    origin = {"annotator": fields.identifier("annotator", ""), "given_id": fields.identifier("question_id", "")}
    if not common:
        builder.leave_out("question", "no attribute is rated for all of its completions")
        return
    scores = [{name: each[name] for name in common} for each in marks]
    builder.draft(where, prompt, replies, Rating, lambda ids: {"scores": dict(zip(ids, scores, strict=True))}, **origin)


def _marks(annotations: Fields, builder: Builder) -> dict[str, int]:
    """Mark by attribute of one completion; those not rated are missing."""
    found = {}
    for name in annotations:
        storable(name, f"{annotations.called(name)}: its name")
        if name not in annotations:  # null, as Arrow fills it
            continue
        annotation = annotations.object(name)
        rating = annotation.raw("Rating")
        if "Rationale" in annotation:
            builder.leave_out("rationale")
        if rating == "N/A":
            continue
        mark = MARKS.get(rating) if isinstance(rating, str) else rating
        if isinstance(mark, bool) or not isinstance(mark, int) or mark not in RATING_SCALE:
            raise InputError(f"{annotation.called('Rating')} is {shown(rating)}; '1' to '5' or 'N/A' is wanted")
        found[name] = mark
    return found


def rows(feedback: Feedback) -> Rows:
    """A record for each rating."""
    ratings = [answer for answer in feedback.answers if isinstance(answer, Rating) and answer.given]
    kept = {rating.id for rating in ratings}
    others = Counter(
        (answer.kind if answer.given else "answer without a decision", "left out: the form holds ratings only")
        for answer in feedback.answers
        if answer.id not in kept
    )
    asked = feedback.question_of
    lost = worded(others) + unwritten(ratings, asked, {"models"})
    return [_row(asked[rating.question_id], rating) for rating in ratings], len(ratings), lost


def _row(question: Question, rating: Rating) -> dict:
    completions = [
        {
            "model": reply.model,
            "response": reply.text,
            "annotations": {name: {"Rating": str(mark)} for name, mark in rating.scores[reply.id].items()},
        }
        for reply in question.candidates
    ]
    return {
        "source": "rlhf-lab",
        "instruction": question.prompt,
        "models": [reply.model for reply in question.candidates],
        "completions": completions,
        "question_id": question.id,
        "annotator": rating.annotator,
    }
