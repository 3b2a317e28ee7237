"""One consensus from many people's answers, each weighed by how reliable the answers themselves show the person to be.

Nobody needs to know the truth for that: somebody who often contradicts the others, where the others agree, counts for
less. Three ways from answers to a `Consensus`:

- `majority_vote`: everybody counts alike.
- `dawid_skene`: each pair of replies has a true verdict (one better, the other better, tie), each person their own
  table of how often they say what when which is true; expectation-maximisation finds both. Dawid and Skene (1979),
  Journal of the Royal Statistical Society C 28, 20-28.
- `crowd_bradley_terry`: each reply has a score, P(i above j) = σ(r_i − r_j), and each person looks at it the right way
  round with probability η. Chen, Bennett, Collins-Thompson and Horvitz (2013), WSDM, "Pairwise ranking aggregation in
  a crowdsourced setting". Knows that a close pair is hard and an error there no sign of carelessness.

What they cannot know: if most people make the same mistake, it looks like the truth. No torch; numpy only.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from .agreement import ReliabilityData, pair_data
from .errors import InputError
from .records import Comparison, Interval, Question, Ranking

if TYPE_CHECKING:
    from .agreement import Source

FIRST, TIE, SECOND = 0, 1, 2  # columns of a verdict's probabilities
_RESAMPLES = 40  # of questions, for the intervals of abilities


@dataclass(frozen=True)
class WeightedPair:
    """A consensus verdict on two replies, by candidate id. `probability` is that of the verdict being right.

    `weight` is for training on `chosen` above `rejected`: with p the probability that it is the better one (a tie
    half each way) it is 2p − 1, the pull of a soft label p on a model that does not know yet; 0 for a coin flip. A tie
    weighs as much as it is probable.
    """

    question_id: str
    chosen: str
    rejected: str
    tie: bool
    probability: float
    weight: float


@dataclass(frozen=True, eq=False)
class Consensus:
    """What people say together: for each pair of replies the probabilities that the first is better, a tie, the second.

    `units` are (question id, first, second) candidate ids, `probabilities` (units, 3). `abilities` says how often each
    person names the better reply where one is better (`dawid_skene`), or looks the right way round
    (`crowd_bradley_terry`): one half is clicking at random, below that the person tends to say the opposite. `scores`
    are the replies' {(question id, candidate id): r} where the method has them.
    """

    method: str
    units: tuple[tuple[str, str, str], ...]
    probabilities: np.ndarray
    abilities: dict[str, Interval] = field(default_factory=dict)
    scores: dict[tuple[str, str], float] = field(default_factory=dict)

    def pairs(self) -> list[WeightedPair]:
        """The most probable verdict of each pair, with its weight. A pair that may equally go either way is a tie."""
        found = []
        for (question, first, second), (p, tie, q) in zip(self.units, self.probabilities.tolist(), strict=True):
            chosen, rejected = (first, second) if p >= q else (second, first)
            is_tie = tie >= max(p, q) or abs(p - q) < 1e-9
            probability = tie if is_tie else max(p, q)
            found.append(WeightedPair(question, chosen, rejected, is_tie, probability, tie if is_tie else abs(p - q)))
        return found

    def rankings(self, name: str = "consensus") -> list[Ranking]:
        """One ranking a question, as an annotator called `name` would give it: replies by their expected wins.

        Replies whose expected wins are equal are tied.
        """
        wins: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
        for (question, first, second), (p, tie, q) in zip(self.units, self.probabilities.tolist(), strict=True):
            wins[question][first] += p + tie / 2
            wins[question][second] += q + tie / 2
        return [Ranking(question, _tiers(own), name) for question, own in wins.items()]

    def comparisons(self, questions: Sequence[Question]) -> tuple[list[Comparison], list[float]]:
        """The verdicts as a trainer reads them, and each one's weight; InputError where a question is missing."""
        asked = {question.id: question for question in questions}
        comparisons, weights = [], []
        for pair in self.pairs():
            if pair.question_id not in asked:
                raise InputError(f"the consensus is about question {pair.question_id!r}, which is not given")
            question = asked[pair.question_id]
            texts = question.texts[pair.chosen], question.texts[pair.rejected]
            comparisons.append(Comparison(question.prompt, *texts, pair.tie, question.id, "consensus"))
            weights.append(pair.weight)
        return comparisons, weights


def _tiers(wins: Mapping[str, float]) -> tuple[tuple[str, ...], ...]:
    rounded = {candidate: round(value, 9) for candidate, value in wins.items()}
    marks = sorted(set(rounded.values()), reverse=True)
    return tuple(tuple(c for c, value in rounded.items() if value == mark) for mark in marks)


def majority_vote(answers: Source) -> Consensus:
    """Shares of the votes on each pair; `answers` may be a store."""
    data = pair_data(answers)
    votes = np.stack([(data.values == value).sum(0) for value in (1, 0, -1)], axis=1)  # (units, 3)
    return Consensus("majority vote", data.units, votes / np.maximum(votes.sum(1, keepdims=True), 1))


# --- Dawid and Skene --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class DawidSkeneFit:
    """P(truth) of each unit (U, K), each person's P(says | truth) (N, truth, said), P(truth) in general (K,)."""

    truth: np.ndarray
    confusion: np.ndarray
    prior: np.ndarray
    iterations: int


def fit_dawid_skene(
    labels: np.ndarray,
    classes: int,
    weights: np.ndarray | None = None,
    smoothing: float = 0.01,
    start: np.ndarray | None = None,
    iterations: int = 200,
    tolerance: float = 1e-6,
) -> DawidSkeneFit:
    """Expectation-maximisation on labels (people, units) from 0 to classes − 1, −1 where missing.

    It starts from the shares of the votes, or from `start` (U, K). `smoothing` is added to every cell of a person's
    table of counts, so that nothing is impossible because it was not seen; `weights` (U,) say how often a unit counts.
    """
    people, units = labels.shape
    said = (labels.T[:, :, None] == np.arange(classes)).reshape(units, people * classes).astype(float)
    weights = np.ones(units) if weights is None else weights
    truth = said.reshape(units, people, classes).sum(1) if start is None else start
    truth = truth / truth.sum(1, keepdims=True)
    change, step = np.inf, 0
    while step < iterations and change >= tolerance:
        # M: how often each person says what, and what is true how often, if `truth` is right
        counts = ((truth * weights[:, None]).T @ said).reshape(classes, people, classes).swapaxes(0, 1) + smoothing
        confusion = np.maximum(counts / np.maximum(counts.sum(2, keepdims=True), 1e-300), 1e-10)
        prior = np.maximum((truth * weights[:, None]).sum(0) / weights.sum(), 1e-10)
        # E: what is true of each unit, if people are like that (Bayes' rule, people independent given the truth)
        log = np.log(prior) + said @ np.log(confusion).swapaxes(1, 2).reshape(people * classes, classes)
        new = np.exp(log - log.max(1, keepdims=True))
        new /= new.sum(1, keepdims=True)
        change, truth, step = np.abs(new - truth).max(initial=0.0), new, step + 1
    return DawidSkeneFit(truth, confusion, prior, step)


def dawid_skene(answers: Source, smoothing: float = 0.1, seed: int = 0, resamples: int = _RESAMPLES) -> Consensus:
    """Consensus verdicts on pairs and people's abilities; `answers` may be a store.

    Each pair counts both ways round, for which reply is called the first means nothing. Abilities' intervals resample
    questions and fit again.
    """
    data = pair_data(answers)
    if not data.units:
        return Consensus("Dawid-Skene", (), np.zeros((0, 3)))
    labels = _labels(data)
    fit = fit_dawid_skene(labels, 3, smoothing=smoothing)

    def abilities(drawn: np.ndarray | None) -> np.ndarray:
        again = fit if drawn is None else fit_dawid_skene(labels, 3, drawn, smoothing, fit.truth, 50, 1e-4)
        return (again.confusion[:, FIRST, FIRST] + again.confusion[:, SECOND, SECOND]) / 2

    unit_weights = (np.tile(drawn, 2) for drawn in _draws(data, resamples, seed))
    intervals = _ability_intervals(data, abilities(None), [abilities(w) for w in unit_weights])
    return Consensus("Dawid-Skene", data.units, fit.truth[: len(data.units)], intervals)


def _labels(data: ReliabilityData) -> np.ndarray:
    """Verdicts as columns' numbers (people, 2 × units): the units, then the same the other way round; −1 missing."""
    both = np.hstack([data.values, -data.values])
    return np.where(np.isnan(both), -1, 1 - np.nan_to_num(both)).astype(int)


# --- Bradley and Terry with annotators' abilities ---------------------------------------------------------------------


def fit_crowd_bradley_terry(
    winner: np.ndarray,
    loser: np.ndarray,
    person: np.ndarray,
    weights: np.ndarray | None = None,
    spread: float = 2.0,
    start: tuple[np.ndarray, np.ndarray] | None = None,
    iterations: int = 1000,
    tolerance: float = 1e-5,
) -> tuple[np.ndarray, np.ndarray]:
    """Scores r (items,) and abilities η (people,) from comparisons (n,) of item and person numbers.

    P(a says i above j) = η_a σ(r_i − r_j) + (1 − η_a) σ(r_j − r_i). Expectation-maximisation: how likely was each
    comparison made the right way round; then η is their mean, and r takes a step that cannot overshoot (the logistic
    curve bends by no more than ¼). Scores have a normal prior of standard deviation `spread`, abilities Beta(4, 2):
    without one, turning all scores and all people round would fit as well.
    """
    weights = np.ones(len(winner)) if weights is None else weights
    items, people = max(winner.max(), loser.max()) + 1, person.max() + 1
    r, eta = (np.zeros(items), np.full(people, 0.75)) if start is None else start
    given = np.bincount(person, weights, people)
    met = np.bincount(winner, weights, items) + np.bincount(loser, weights, items)
    for _ in range(iterations):
        p = 1 / (1 + np.exp(r[loser] - r[winner]))
        right = eta[person] * p / (eta[person] * p + (1 - eta[person]) * (1 - p))
        eta = (np.bincount(person, weights * right, people) + 3) / (given + 4)
        pull = weights * (right - p)
        gradient = np.bincount(winner, pull, items) - np.bincount(loser, pull, items) - r / spread**2
        step = gradient / (met / 2 + 1 / spread**2)
        r = r + step
        if np.abs(step).max() < tolerance:
            break
    return r, eta


def crowd_bradley_terry(answers: Source, spread: float = 2.0, seed: int = 0, resamples: int = _RESAMPLES) -> Consensus:
    """Consensus scores of replies, verdicts on pairs, and people's abilities; `answers` may be a store.

    A tie counts as half a win either way, so no verdict of this method is a tie but an exact one. Abilities are the
    more to be trusted the more people answered each question: with two or three, scores follow the noise.
    """
    data = pair_data(answers)
    if not data.units:
        return Consensus("crowd Bradley-Terry", (), np.zeros((0, 3)))
    items = {(unit[0], c): None for unit in data.units for c in unit[1:]}
    number = {item: i for i, item in enumerate(items)}
    first, second = (np.array([number[unit[0], unit[place]] for unit in data.units]) for place in (1, 2))
    person, unit = np.nonzero(~np.isnan(data.values))
    value = data.values[person, unit]
    wins = np.concatenate([(1 + value) / 2, (1 - value) / 2])  # of the first, then of the second
    told = wins > 0
    winner = np.concatenate([first[unit], second[unit]])[told]
    loser = np.concatenate([second[unit], first[unit]])[told]
    who, of = np.tile(person, 2)[told], np.tile(unit, 2)[told]
    fit = fit_crowd_bradley_terry(winner, loser, who, wins[told], spread)

    def abilities(drawn: np.ndarray) -> np.ndarray:
        return fit_crowd_bradley_terry(winner, loser, who, wins[told] * drawn[of], spread, fit, 200, 1e-3)[1]

    intervals = _ability_intervals(data, fit[1], [abilities(drawn) for drawn in _draws(data, resamples, seed)])
    p = 1 / (1 + np.exp(fit[0][second] - fit[0][first]))
    probabilities = np.stack([p, np.zeros_like(p), 1 - p], axis=1)
    scores = dict(zip(items, fit[0].tolist(), strict=True))
    return Consensus("crowd Bradley-Terry", data.units, probabilities, intervals, scores)


# --- what both share --------------------------------------------------------------------------------------------------


def _draws(data: ReliabilityData, resamples: int, seed: int) -> np.ndarray:
    """How often each unit's question is in each resample of questions, (resamples, units)."""
    number = {question: i for i, question in enumerate(dict.fromkeys(data.questions))}
    n = len(number)
    drawn = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples).astype(float)
    return drawn[:, [number[question] for question in data.questions]]


def _ability_intervals(data: ReliabilityData, values: np.ndarray, again: list[np.ndarray]) -> dict[str, Interval]:
    """Percentile intervals (2.5, 97.5) of abilities; n is the number of pairs that the person judged."""
    n = (~np.isnan(data.values)).sum(1)
    low, high = np.percentile([values, *again], (2.5, 97.5), axis=0)
    return {
        name: Interval(float(values[i]), float(min(low[i], values[i])), float(max(high[i], values[i])), int(n[i]))
        for i, name in enumerate(data.people)
    }
