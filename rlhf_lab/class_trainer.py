"""The one trainer of a room: learns a reward model from everybody's answers while they are given.

    python -m rlhf_lab.class_trainer < PLAN.json

It looks at the store every two seconds, learns when there are new answers, and reports with a note "class_model" that
the teacher's dashboard plots. It reads labels and writes notes: whether it runs, waits or has died, labelling goes on.

The model is a linear head on what the run's reward model reads of a reply (its features), fitted to all pairs at once
(Bradley and Terry, 1952), with a Gaussian prior: before any label, the log-odds of a pair have mean 0 and standard
deviation 2. Refitting takes milliseconds, so every report is of a model that has seen all labels in force, whatever
their order, and a withdrawn label is truly forgotten.

People whose answers the others' contradict count for less (`reliability`), as soon as enough of them have answered the
same questions. What the model is least sure of is asked next (`rlhf_lab.selection`, `order_of_asking`).
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from .aggregation import dawid_skene
from .agreement import pair_data
from .assignments import Queued
from .class_questions import Plan
from .class_report import ClassLog
from .errors import InputError
from .evaluation import bootstrap_interval
from .records import Answer, Interval, Question, Ranking, Rating
from .reward import (
    PairEvidence,
    RankedReplies,
    TasteModel,
    encode_rankings,
    features_of,
    fit_bradley_terry,
    pair_evidence,
)
from .selection import STRATEGIES, Strategy, question_values
from .store import FeedbackStore, StoreError
from .text import encode_dialogues

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from .runs import Run

LOOK = 2.0  # seconds between two looks at the store
FOLDS = 5
PRIOR_SPREAD = 2.0  # standard deviation of a pair's log-odds before any label
LEAST_QUESTIONS = 10  # with answers, before an accuracy is worth showing
JUDGES = 3  # people on one pair, from whom can be told who is reliable: of two that differ, either may be right
LEAST_SHARED = 5  # such pairs of each of at least so many people, before reliability is estimated
SHRINK = 10.0  # pairs that a person must have shared for their own figure to count as much as the class's mean
ALIKE, RELIABLE, GIVEN = "everybody alike", "reliability (Dawid-Skene)", "as given"


@dataclass(frozen=True)
class Pairs:
    """Pairs as the head sees them, and each one's question."""

    evidence: PairEvidence
    questions: tuple[str, ...]

    def part(self, chosen: torch.Tensor) -> PairEvidence:
        """The pairs where `chosen` (N, bool)."""
        return PairEvidence(*(column[chosen] for column in self.evidence))


class ClassTrainer:
    """Follows one store. `step` learns what is new and returns a report, or None when nothing is.

    `held_out` are ranked replies free of noise for measuring only; `weight_of` gives each person's say, 1 for whom it
    leaves out (default: `reliability`); `ask` is the strategy by which still unasked questions are put in order.
    """

    def __init__(
        self,
        store: FeedbackStore,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        held_out: Sequence[RankedReplies] = (),
        context: int | None = None,
        weight_of: Callable[[Sequence[Answer]], dict[str, float]] | None = None,
        ask: Strategy = "random",
    ) -> None:
        if ask not in STRATEGIES:
            raise InputError(f"ask {ask!r}: must be one of {', '.join(STRATEGIES)}")
        self.log, self.ask = ClassLog(store), ask
        self.model, self.tokenizer, self.context, self._weight_of = model, tokenizer, context, weight_of
        self._learned: dict[str, PairEvidence | None] = {}  # by answer id; None: it compares nothing
        self._replies: dict[str, torch.Tensor] = {}  # features (k, d) of queued questions' replies
        self._gold, self._gold_question = self._strict(held_out)
        self._seen = 0  # the last event of the last report
        self.head: torch.Tensor | None = None

    def step(self) -> dict[str, Any] | None:
        """Take in new answers, fit, measure, order the queue. Raises StoreError when the database is away."""
        self.log.refresh()
        if self.log.seq == self._seen:  # its own notes are no news
            return None
        answers = [answer for answer in self.log.answers() if answer.given]
        self._encode(answers)
        say, weighting = self._say(answers)
        pairs = self._pairs(answers, say)
        if pairs is None:
            self._seen = self.log.seq
            return None
        self.scale, self.head = fit(pairs.evidence)
        report = {"seq": self.log.seq, "answers": len(answers), "pairs": len(pairs.questions)}
        report |= {"people": len({answer.annotator for answer in answers}), "weighting": weighting, "ask": self.ask}
        report |= {"accuracy": _plain(cross_validated(pairs)), "gold": _plain(self._gold_accuracy())}
        self._order_queue(pairs)
        self._seen = self.log.seq
        return report

    def _encode(self, answers: Sequence[Answer]) -> None:
        """Read the replies of answers not seen before; answers that compare nothing give no pair."""
        fresh = [answer for answer in answers if answer.id not in self._learned]
        encoded, whose = [], []
        for answer in fresh:
            question = self.log.question(answer.question_id)
            for item in encode_rankings(self.tokenizer, [question], [answer], self.context):
                encoded.append(item)
                whose.append(answer.id)
        learned: dict[str, PairEvidence | None] = {answer.id: None for answer in fresh}
        if encoded:
            features = features_of(self.model, [d for item in encoded for d in item.dialogues])
            parts = features.split([len(item.dialogues) for item in encoded])
            for name, item, own in zip(whose, encoded, parts, strict=True):
                learned[name] = pair_evidence(own, item.pairs, item.margin, 1 / len(item.pairs))
        self._learned |= learned

    def _say(self, answers: Sequence[Answer]) -> tuple[dict[str, float], str]:
        if self._weight_of:
            return self._weight_of(answers), GIVEN
        found = reliability(answers)
        return found, RELIABLE if found else ALIKE

    def _pairs(self, answers: Sequence[Answer], say: dict[str, float]) -> Pairs | None:
        """All pairs of the answers in force; each answer counts once, however many pairs it states."""
        rows = [(answer, own) for answer in answers if (own := self._learned[answer.id]) is not None]
        if not rows:
            return None
        weighed = [own._replace(counts=own.counts * say.get(answer.annotator, 1.0)) for answer, own in rows]
        evidence = PairEvidence(*(torch.cat(column) for column in zip(*weighed, strict=True)))
        return Pairs(evidence, tuple(answer.question_id for answer, own in rows for _ in own.targets))

    def _order_queue(self, pairs: Pairs) -> None:
        """Set the priorities of questions that nobody has yet, by what their answers would teach."""
        queue = self.log.queue.queued()
        fresh = [each.question_id for each in queue if not each.taken and not each.is_check]
        values = dict.fromkeys(fresh, 0.0)
        if fresh and self.ask != "random":
            self._read([each.question_id for each in queue if each.question_id not in self._replies])
            pool = [self._replies[name] / self.scale for name in fresh]
            if min(map(len, pool)) > 1:  # a thumb on one reply compares nothing
                policy = torch.cat([self._replies[each.question_id] for each in queue]) / self.scale
                generator = torch.Generator().manual_seed(self.log.seq)
                found = question_values(self.ask, self._taste(pairs), pool, generator, policy)
                values = dict(zip(fresh, found.tolist(), strict=True))
        priorities = order_of_asking(queue, values)
        now = {each.question_id: each.priority for each in queue}
        self.log.queue.prioritise({name: to for name, to in priorities.items() if now[name] != to})

    def _read(self, names: Sequence[str]) -> None:
        """Features of all replies of these questions."""
        questions: list[Question] = self.log.store.questions(names) if names else []
        texts = [(question.prompt, candidate.text) for question in questions for candidate in question.candidates]
        if texts:
            features = features_of(self.model, encode_dialogues(self.tokenizer, texts, self.context))
            parts = features.split([len(question.candidates) for question in questions])
            self._replies |= {question.id: own for question, own in zip(questions, parts, strict=True)}

    def _taste(self, pairs: Pairs) -> TasteModel:
        """The class model with its uncertainty, on scaled features; what was said of one question is one piece."""
        d, scaled = len(self.scale), pairs.evidence._replace(differences=pairs.evidence.differences / self.scale)
        rows: dict[str, list[int]] = {}
        for row, name in enumerate(pairs.questions):
            rows.setdefault(name, []).append(row)
        taste = TasteModel(torch.zeros(d), torch.eye(d) * (PRIOR_SPREAD**2 / d))
        taste.learn_all({name: PairEvidence(*(column[own] for column in scaled)) for name, own in rows.items()})
        return taste

    def _strict(self, ranked: Sequence[RankedReplies]) -> tuple[torch.Tensor, list[int]]:
        """Differences (N, d), better − worse, of the strict pairs, and which item each is of."""
        if not ranked:
            return torch.zeros(0, 0), []
        features = features_of(self.model, [d for item in ranked for d in item.dialogues])
        rows, of = [], []
        for number, (item, own) in enumerate(
            zip(ranked, features.split([len(item.dialogues) for item in ranked]), strict=True)
        ):
            for better, worse, tie in item.pairs:
                if not tie:
                    rows.append(own[better] - own[worse])
                    of.append(number)
        return torch.stack(rows).double(), of

    def _gold_accuracy(self) -> Interval | None:
        if not len(self._gold_question):
            return None
        return _accuracy(self._gold / self.scale @ self.head, self._gold_question)


def fit(pairs: PairEvidence) -> tuple[torch.Tensor, torch.Tensor]:
    """The scale (d,) of the features, and the head (d,) on scaled features that maximises the posterior.

    Scaled differences have mean square 1 in every dimension, so under the prior N(0, s²/d) a pair's log-odds have
    standard deviation s = `PRIOR_SPREAD`.
    """
    scale = pairs.differences.square().mean(0).sqrt().clamp(min=1e-6)
    d = len(scale)
    precision = torch.eye(d, dtype=torch.double) * (d / PRIOR_SPREAD**2)
    scaled = pairs._replace(differences=pairs.differences / scale)
    return scale, fit_bradley_terry(scaled, torch.zeros(d, dtype=torch.double), precision)


def reliability(answers: Sequence[Answer]) -> dict[str, float]:
    """Each person's say by how far the others bear them out; {} where too few have judged the same pairs to tell.

    With a the share of pairs on which a person names the better reply (`rlhf_lab.aggregation.dawid_skene`), drawn
    towards the class's mean where they shared few, the say is 2a − 1, 0 for a coin; scaled to a mean of 1 over people,
    because how noisy labels are in general is the Bradley-Terry model's to say.
    """
    stated = [answer for answer in answers if isinstance(answer, Ranking | Rating)]
    data = pair_data(stated)
    if not data.units:
        return {}
    judged = data.values == data.values  # not NaN: (people, units)
    shared = judged[:, judged.sum(0) >= JUDGES].sum(1)
    if (shared >= LEAST_SHARED).sum() < JUDGES:
        return {}
    found = dawid_skene(stated, resamples=0).abilities
    able = [found[name].value for name in data.people]
    mean = float((shared * able).sum() / shared.sum())
    say = [max(0.0, 2 * (n * a + SHRINK * mean) / (n + SHRINK) - 1) for n, a in zip(shared.tolist(), able, strict=True)]
    level = sum(say) / len(say)
    return {name: each / level for name, each in zip(data.people, say, strict=True)} if level else {}


def order_of_asking(queue: Sequence[Queued], values: dict[str, float]) -> dict[str, float]:
    """Priorities that ask questions of high value first: those of `values`, which nobody has yet.

    Questions that somebody has come before them, so that overlaps fill up and agreement can be measured. Checks stay
    where they are: a question takes the place of another in the order of arrival, never that of a check.
    """
    plain = [each for each in queue if not each.is_check]
    open_ = [each for each in plain if each.taken < each.overlap]
    open_.sort(key=lambda each: (each.question_id in values, -values.get(each.question_id, 0.0), -each.taken))
    places = [each.number for each in plain][len(plain) - len(open_) :]  # the first ones are used up
    order = {each.question_id: -float(place) for each, place in zip(open_, places, strict=True)}
    return order | {each.question_id: -float(each.number) for each in queue if each.is_check}


def cross_validated(pairs: Pairs, folds: int = FOLDS) -> Interval | None:
    """Accuracy on strict pairs of questions that the head was not fitted to; None with too few questions.

    Questions are dealt into `folds`; people's answers to one question are never on both sides.
    """
    names = sorted(set(pairs.questions))
    if len(names) < LEAST_QUESTIONS:
        return None
    random.Random("folds").shuffle(names)
    fold_of = {name: place % folds for place, name in enumerate(names)}
    fold = torch.tensor([fold_of[name] for name in pairs.questions])
    targets = pairs.evidence.targets
    margins = torch.zeros_like(targets)
    for k in range(folds):
        seen, aside = fold != k, fold == k
        if seen.any() and aside.any():
            scale, head = fit(pairs.part(seen))
            margins[aside] = pairs.evidence.differences[aside] / scale @ head
    strict = targets == 1.0
    of = [name for name, keep in zip(pairs.questions, strict.tolist(), strict=True) if keep]
    return _accuracy(margins[strict], of) if of else None


def _accuracy(margins: torch.Tensor, questions: Sequence[Any]) -> Interval:
    hits = ((margins > 0) + 0.5 * (margins == 0)).tolist()
    return bootstrap_interval(hits, 0, questions, resamples=500)


def _plain(interval: Interval | None) -> dict[str, float] | None:
    return None if interval is None else {name: round(value, 4) for name, value in vars(interval).items()}


# --- the process ------------------------------------------------------------------------------------------------------


def work(plan: Plan, stop: threading.Event, say: Callable[[str], None]) -> None:
    """Follow the class until `stop`. The run's models are made if need be; a database that is away is waited for."""
    run, trainer, away = _run(plan), None, False
    while not stop.is_set():
        try:
            trainer = trainer or make_trainer(run, FeedbackStore(plan.store), plan.ask)
            report = trainer.step()
            if report:
                trainer.log.store.add_note("class_model", report)
            if away:
                say("the trainer has its database back")
            away = False
        except StoreError as error:
            if not away:
                say(f"the trainer waits: {error}")
            away = True
        stop.wait(LOOK * (5 if away else 1))


def _run(plan: Plan) -> Run:
    from .runs import Run

    return Run(plan.out, plan.scenario, plan.profile, plan.seed, progress=None)


def make_trainer(run: Run, store: FeedbackStore, ask: Strategy = "random") -> ClassTrainer:
    """A trainer on a run's reward model, measured on the run's held-out pairs too."""
    model, tokenizer = run.reward()
    context = run.profile.model.context
    held_out = encode_rankings(tokenizer, *run.held_out_preferences(), context)
    return ClassTrainer(store, model.eval(), tokenizer, held_out, context, ask=ask)


def main() -> int:
    plan, stop = Plan(**json.loads(sys.stdin.readline())), threading.Event()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    threading.Thread(target=lambda: (sys.stdin.read(), stop.set()), daemon=True).start()
    os.nice(10) if hasattr(os, "nice") else None  # labelling comes first
    torch.set_num_threads(1)
    try:
        work(plan, stop, lambda message: print(f"rlhf-lab: {message}", file=sys.stderr, flush=True))
    except InputError as error:
        print(f"rlhf-lab: the trainer stopped: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
