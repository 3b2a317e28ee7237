"""OpenAI's comparisons of summaries (Stiennon et al., 2020, arXiv:2009.01325).

Schema: github.com/openai/summarize-from-feedback, README, "Comparisons". One line is `{"info": {"id", "post" or
"article", "title", "subreddit"}, "summaries": [{"text", "policy", "note"} twice], "choice": 0 or 1, "worker", "batch",
"split", "extra": {"confidence"}}`.

`confidence` runs from 1 (the first is certainly better) to 9 (the second is), 5 being neither; its distance from 5 is
read and written as the grade: 1 negligibly, 2 slightly, 3 better, 4 significantly. `choice` decides which is better;
a confidence on the other side, or 5, gives no grade. A post with title and subreddit becomes the prompt as in the
paper: "SUBREDDIT: r/…\\n\\nTITLE: …\\n\\nPOST: …\\n\\nTL;DR:"; a post or an article alone is the prompt as it stands.
"""

from __future__ import annotations

from collections.abc import Iterable

from ..errors import InputError
from ..records import GRADES, Comparison
from .feedback import Builder, Feedback, Pair, strict_pairs, unwritten
from .files import Fields, Record, located
from .trl import Rows, take_pair

EVEN = 5  # the confidence that prefers neither


def read(records: Iterable[Record], builder: Builder) -> None:
    """Take every comparison."""
    for where, data in records:
        with located(where):
            _take(where, Fields(data), builder)


def _take(where: str, fields: Fields, builder: Builder) -> None:
    summaries = fields.objects("summaries", least=2)
    if len(summaries) > 2:
        raise InputError(f"field 'summaries' has {len(summaries)} elements; two are compared")
    choice = fields.whole("choice", 0, 1)
    better, worse = summaries[choice], summaries[1 - choice]
    extra = fields.optional_object("extra")
    grade = _grade(extra, choice, builder)
    pair = Comparison(_prompt(fields.object("info")), better.text("text"), worse.text("text"), grade=grade)
    notes = sum(bool(summary.text("note", "")) for summary in summaries)
    builder.leave_out("note on a summary", n=notes) if notes else None
    models = (better.text("policy", ""), worse.text("policy", ""))
    origin = {"annotator": fields.identifier("worker", ""), "given_id": extra.identifier("question_id", "")}
    take_pair(where, pair, builder, models, **origin)


def _prompt(info: Fields) -> str:
    if "post" not in info and "article" not in info:
        raise InputError("field 'info.post' is missing; 'post' or 'article' is what was summarized")
    said = info.text("post" if "post" in info else "article")
    title, subreddit = info.text("title", ""), info.text("subreddit", "")
    return f"SUBREDDIT: r/{subreddit}\n\nTITLE: {title}\n\nPOST: {said}\n\nTL;DR:" if title and subreddit else said


def _grade(extra: Fields, choice: int, builder: Builder) -> str:
    if "confidence" not in extra:
        return ""
    lean = extra.whole("confidence", 1, 9) - EVEN
    if lean == 0 or (lean > 0) != (choice == 1):
        builder.leave_out("confidence", "it does not lean to the choice")
        return ""
    return GRADES[abs(lean) - 1]


def rows(feedback: Feedback) -> Rows:
    """A line for each strict pair, the replies in the question's own order."""
    pairs, lost = strict_pairs(feedback)
    answers = {pair.answer.id: pair.answer for pair in pairs}.values()
    lost += unwritten(answers, feedback.question_of, {"grade", "models"})
    return [_row(pair) for pair in pairs], len(pairs), lost


def _row(pair: Pair) -> dict:
    places = {candidate.id: place for place, candidate in enumerate(pair.question.candidates)}
    replies = sorted((pair.better, pair.worse), key=lambda reply: places.get(reply.id, len(places)))
    choice = replies.index(pair.better)
    lean = GRADES.index(pair.grade) + 1 if pair.grade else 0
    confidence = {"confidence": EVEN + lean * (1 if choice else -1)} if lean else {}
    return {
        "info": {"id": pair.question.id, "post": pair.question.prompt, "title": None, "subreddit": None},
        "summaries": [{"text": reply.text, "policy": reply.model, "note": None} for reply in replies],
        "choice": choice,
        "worker": pair.answer.annotator,
        "batch": "rlhf-lab",
        "split": "train",
        "extra": confidence | {"question_id": pair.question.id},
    }
