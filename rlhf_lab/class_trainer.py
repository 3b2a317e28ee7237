"""The one trainer of a room: learns a reward model from everybody's answers while they are given.

    python -m rlhf_lab.class_trainer < PLAN.json

It looks at the store every two seconds, learns when there are new answers, and reports with a note "class_model" that
the teacher's dashboard plots. It reads labels and writes notes: whether it runs, waits or has died, labelling goes on.

The model is a linear head on what the run's reward model reads of a reply (its features), fitted to all pairs at once
(Bradley and Terry, 1952), with a Gaussian prior: before any label, the log-odds of a pair have mean 0 and standard
deviation 2. Refitting takes milliseconds, so every report is of a model that has seen all labels in force, whatever
their order, and a withdrawn label is truly forgotten.
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

from .class_questions import Plan
from .class_report import ClassLog
from .errors import InputError
from .evaluation import bootstrap_interval
from .records import Interval
from .reward import RankedReplies, encode_rankings, features_of
from .store import FeedbackStore, StoreError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from .runs import Run

LOOK = 2.0  # seconds between two looks at the store
FOLDS = 5
PRIOR_SPREAD = 2.0  # standard deviation of a pair's log-odds before any label
LEAST_QUESTIONS = 10  # with answers, before an accuracy is worth showing


@dataclass(frozen=True)
class Pairs:
    """Pairs as the head sees them: feature differences x (N, d), targets (N,), weights (N,), and their questions."""

    x: torch.Tensor
    target: torch.Tensor
    weight: torch.Tensor
    questions: tuple[str, ...]


class ClassTrainer:
    """Follows one store. `step` learns what is new and returns a report, or None when nothing is.

    `held_out` are ranked replies free of noise for measuring only; `weight_of` gives each person's say, 1 by default.
    """

    def __init__(
        self,
        store: FeedbackStore,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        held_out: Sequence[RankedReplies] = (),
        context: int | None = None,
        weight_of: Callable[[Sequence[Any]], dict[str, float]] | None = None,
    ) -> None:
        self.log = ClassLog(store)
        self.model, self.tokenizer, self.context, self._weight_of = model, tokenizer, context, weight_of
        self._learned: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}  # answer id → differences, targets
        self._gold, self._gold_question = self._strict(held_out)
        self.head: torch.Tensor | None = None

    def step(self) -> dict[str, Any] | None:
        """Take in new answers, fit, measure. Raises StoreError when the database is away."""
        if not self.log.refresh():
            return None
        answers = [answer for answer in self.log.answers() if answer.given]
        self._encode(answers)
        pairs = self._pairs(answers)
        if not len(pairs.target):
            return None
        self.scale, self.head = fit(pairs)
        report = {"seq": self.log.seq, "answers": len(answers), "pairs": len(pairs.target)}
        report |= {"people": len({answer.annotator for answer in answers})}
        report |= {"accuracy": _plain(cross_validated(pairs)), "gold": _plain(self._gold_accuracy())}
        return report

    def _encode(self, answers: Sequence[Any]) -> None:
        """Read the replies of answers not seen before; answers that compare nothing give no pair."""
        fresh = [answer for answer in answers if answer.id not in self._learned]
        encoded, whose = [], []
        for answer in fresh:
            for item in encode_rankings(
                self.tokenizer, [self.log.question(answer.question_id)], [answer], self.context
            ):
                encoded.append(item)
                whose.append(answer.id)
        self._learned |= {answer.id: (torch.zeros(0, 0), torch.zeros(0)) for answer in fresh}
        if not encoded:
            return
        features = features_of(self.model, [d for item in encoded for d in item.dialogues])
        parts = features.split([len(item.dialogues) for item in encoded])
        for name, item, own in zip(whose, encoded, parts, strict=True):
            self._learned[name] = differences(own, item.pairs)

    def _pairs(self, answers: Sequence[Any]) -> Pairs:
        """All pairs of the answers in force; each answer counts once, however many pairs it states."""
        say = self._weight_of(answers) if self._weight_of else {}
        rows = [(answer, *self._learned[answer.id]) for answer in answers if len(self._learned[answer.id][1])]
        if not rows:
            return Pairs(torch.zeros(0, 0), torch.zeros(0), torch.zeros(0), ())
        weight = [torch.full((len(t),), say.get(a.annotator, 1.0) / len(t)) for a, _, t in rows]
        questions = tuple(a.question_id for a, _, t in rows for _ in range(len(t)))
        return Pairs(torch.cat([x for _, x, _ in rows]), torch.cat([t for *_, t in rows]), torch.cat(weight), questions)

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


def differences(features: torch.Tensor, pairs: Sequence[tuple[int, int, bool]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Feature differences (n, d), better − worse, and targets (n,), 1 or 0.5 for a tie, of one answer's pairs."""
    better, worse, tie = (torch.tensor(column) for column in zip(*pairs, strict=True))
    return (features[better] - features[worse]).double(), torch.where(tie.bool(), 0.5, 1.0).double()


def fit(pairs: Pairs, iterations: int = 25) -> tuple[torch.Tensor, torch.Tensor]:
    """The scale (d,) of the features, and the head (d,) on scaled features that maximises the posterior (Newton).

    Scaled differences have mean square 1 in every dimension, so under the prior N(0, s²/d) a pair's log-odds have
    standard deviation s = `PRIOR_SPREAD`.
    """
    scale = pairs.x.square().mean(0).sqrt().clamp(min=1e-6)
    x, weight = pairs.x / scale, pairs.weight.double()
    d = x.shape[1]
    precision = torch.eye(d, dtype=torch.double) * (d / PRIOR_SPREAD**2)
    w = torch.zeros(d, dtype=torch.double)
    for _ in range(iterations):
        p = torch.sigmoid(x @ w)
        gradient = precision @ w + x.T @ (weight * (p - pairs.target))
        step = torch.linalg.solve(precision + (x * (weight * p * (1 - p))[:, None]).T @ x, gradient)
        w = w - step * min(1.0, 4.0 / float(step.norm() + 1e-12) * float(w.norm() + 1))
        if step.norm() < 1e-8 * (1 + w.norm()):
            break
    return scale, w


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
    margins = torch.zeros(len(pairs.target), dtype=torch.double)
    for k in range(folds):
        seen, aside = fold != k, fold == k
        part = Pairs(pairs.x[seen], pairs.target[seen], pairs.weight[seen], ())
        if len(part.target) and aside.any():
            scale, head = fit(part)
            margins[aside] = pairs.x[aside] / scale @ head
    strict = pairs.target == 1.0
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
            trainer = trainer or make_trainer(run, FeedbackStore(plan.store))
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


def make_trainer(run: Run, store: FeedbackStore) -> ClassTrainer:
    """A trainer on a run's reward model, measured on the run's held-out pairs too."""
    model, tokenizer = run.reward()
    context = run.profile.model.context
    held_out = encode_rankings(tokenizer, *run.held_out_preferences(), context)
    return ClassTrainer(store, model.eval(), tokenizer, held_out, context)


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
