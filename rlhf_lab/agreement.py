"""How far people agree with one another, and a model with people: raw agreement, kappa, alpha, each with an interval.

What is compared is a *unit*: for preferences a question and two of its replies, with the verdict "this one", "that one"
or "tie"; for ratings a reply and its mark; for thumbs a reply and up or down. People rarely answer the same questions,
so everything here allows for missing answers. `ReliabilityData` is the table of who said what of which unit; its
methods are the coefficients, `agreement_report` is all of them at once for a class.

Which of two replies is called "this one" means nothing, so a pair's verdicts count both ways round. Chance agreement
then cannot depend on the order in which replies happen to be stored.

Intervals are of 95% and resample questions, not units: the six pairs of one ranking hang together (cluster bootstrap).

Sources: Cohen (1960), Educational and Psychological Measurement 20; Light (1971), Psychological Bulletin 76; Fleiss
(1971), Psychological Bulletin 76; Krippendorff, Computing Krippendorff's Alpha-Reliability (2011); Artstein and Poesio
(2008), Computational Linguistics 34. No torch; the package `krippendorff` is imported where alpha is asked for.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from .errors import InputError
from .records import GRADES, Answer, Interval, Ranking, Rating, Vote, order_of, pairs_of_order

if TYPE_CHECKING:
    from .store import FeedbackStore

    Source = FeedbackStore | Iterable[Answer]  # a store (its answers in force), or the answers themselves

Level = Literal["nominal", "ordinal", "interval"]
Z95 = 1.959964  # the 97.5% point of the normal distribution

# Landis and Koch's words for a kappa (1977, Biometrics 33): customary, and by their own account arbitrary.
STRENGTH = ((0.0, "poor"), (0.2, "slight"), (0.4, "fair"), (0.6, "moderate"), (0.8, "substantial"))


# --- the coefficients, on plain numbers -------------------------------------------------------------------------------


def cohen_kappa(a: Sequence[Any], b: Sequence[Any]) -> float | None:
    """Cohen's kappa of two people's labels of the same units: (p_o − p_e) / (1 − p_e).

    p_o is the share of equal labels, p_e what two people would reach who label at random, each with their own habits.
    None where it is undefined: no unit, or both always say one and the same thing.
    """
    if len(a) != len(b):
        raise InputError(f"{len(a)} labels against {len(b)}: kappa needs both people's label of every unit")
    names = {name: i for i, name in enumerate(dict.fromkeys([*a, *b]))}
    table = np.zeros((len(names), len(names)))
    for one, other in zip(a, b, strict=True):
        table[names[one], names[other]] += 1
    return _number(_cohen(table[None])) if len(a) else None


def fleiss_kappa(counts: Sequence[Sequence[int]]) -> float | None:
    """Fleiss' kappa of many people, from how many put each unit (row) into each category (column).

    Units may have different numbers of people; those with fewer than two say nothing. None where it is undefined.
    """
    table = _counts(counts)
    return _number(_fleiss(_fleiss_sums(table).sum(0)[None]))


def krippendorff_alpha(values: Sequence[Sequence[float | None]], level: Level = "nominal") -> float | None:
    """Krippendorff's alpha, 1 − observed / expected disagreement, from values (people, units), None or NaN if missing.

    `level`: "nominal" (labels), "ordinal" (their order counts) or "interval" (their distance counts). Computed by the
    package `krippendorff`. None where it is undefined: no unit with two values, or only one value in all.
    """
    table = np.array(values, dtype=float, ndmin=2)
    return _alpha_of_counts(*_tally(table), _level(level))


def strength(kappa: float) -> str:
    """Landis and Koch's word for a kappa or alpha: poor, slight, fair, moderate, substantial or almost perfect."""
    return next((word for limit, word in STRENGTH if kappa <= limit), "almost perfect")


def _cohen(tables: np.ndarray) -> np.ndarray:
    """Kappas (R,) of contingency tables (R, V, V); NaN where undefined."""
    total = tables.sum((1, 2))
    with np.errstate(invalid="ignore", divide="ignore"):
        observed = np.trace(tables, axis1=1, axis2=2) / total
        expected = (tables.sum(1) * tables.sum(2)).sum(1) / total**2
        return np.where(expected < 1 - 1e-12, (observed - expected) / (1 - expected), np.nan)


def _fleiss_sums(counts: np.ndarray) -> np.ndarray:
    """What Fleiss' kappa needs of each unit (U, 2 + V): its agreement P_i, 1, and its counts; 0 if fewer than two."""
    n = counts.sum(1)
    shared = n >= 2
    agreement = np.where(shared, (counts * (counts - 1)).sum(1) / np.maximum(n * (n - 1), 1), 0.0)
    return np.column_stack([agreement, shared, counts * shared[:, None]])


def _fleiss(sums: np.ndarray) -> np.ndarray:
    """Kappas (R,) from sums (R, 2 + V) of `_fleiss_sums` over units."""
    with np.errstate(invalid="ignore", divide="ignore"):
        observed = sums[:, 0] / sums[:, 1]
        shares = sums[:, 2:] / sums[:, 2:].sum(1, keepdims=True)
        expected = (shares**2).sum(1)
        return np.where(expected < 1 - 1e-12, (observed - expected) / (1 - expected), np.nan)


def _coincidences(counts: np.ndarray) -> np.ndarray:
    """Each unit's share (U, V, V) of Krippendorff's coincidence matrix."""
    n = counts.sum(1)
    pairs = counts[:, :, None] * counts[:, None, :] - counts[:, :, None] * np.eye(counts.shape[1])
    return np.where(n >= 2, 1 / np.maximum(n - 1, 1), 0.0)[:, None, None] * pairs


def _alpha(coincidences: np.ndarray, domain: np.ndarray, level: Level) -> np.ndarray:
    """Alphas (R,) from coincidence matrices (R, V, V) of the values `domain` (V,), in order."""
    n_v = coincidences.sum(2)  # (R, V)
    n = n_v.sum(1)
    place = {"nominal": None, "ordinal": np.cumsum(n_v, 1) - n_v / 2, "interval": np.broadcast_to(domain, n_v.shape)}
    if level == "nominal":
        distance = 1 - np.eye(len(domain))[None]
    else:  # an ordinal distance is that of mid-ranks: the values between two, and half of the two themselves
        distance = (place[level][:, :, None] - place[level][:, None, :]) ** 2
    expected = n_v[:, :, None] * n_v[:, None, :]
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = (n - 1) * (coincidences * distance).sum((1, 2)) / (expected * distance).sum((1, 2))
    return np.where((expected * distance).sum((1, 2)) > 0, 1 - ratio, np.nan)


def _alpha_of_counts(counts: np.ndarray, domain: np.ndarray, level: Level) -> float | None:
    try:
        import krippendorff
    except ImportError:
        raise InputError(
            "Krippendorff's alpha needs the package krippendorff; install it: pip install 'rlhf-lab[quality]'"
        ) from None
    counts = counts[counts.sum(1) >= 2]
    if (counts.sum(0) > 0).sum() < 2:
        return None
    used = counts.sum(0) > 0
    counts, domain = counts[:, used], domain[used]
    return float(krippendorff.alpha(value_counts=counts, value_domain=domain, level_of_measurement=level))


def _tally(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How many people gave each unit each value (U, V), and the values in order (V,)."""
    domain = np.unique(values[~np.isnan(values)])
    return (values.T[:, :, None] == domain).sum(1).astype(float), domain


def _counts(counts: Sequence[Sequence[int]]) -> np.ndarray:
    table = np.array(counts, dtype=float, ndmin=2)
    if table.ndim != 2 or (table < 0).any() or (table % 1).any():
        raise InputError("Fleiss' kappa needs whole numbers: a row for each unit, a column for each category")
    return table


def _level(level: str) -> Level:
    if level not in ("nominal", "ordinal", "interval"):
        raise InputError(f"level {level!r}: must be nominal, ordinal or interval")
    return level  # type: ignore[return-value]


def _number(values: np.ndarray) -> float | None:
    return None if np.isnan(values[0]) else float(values[0])


# --- who said what ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class ReliabilityData:
    """Who said what of which unit: `values` (people, units), NaN where a person did not answer.

    `questions` names each unit's question: what the bootstrap draws. A `mirrored` value flips its sign when the two
    replies of its unit change places. The methods return None where a figure is undefined: fewer than two questions
    that two people answered, or nothing but one value.
    """

    people: tuple[str, ...]
    units: tuple[tuple[str, ...], ...]  # (question id, candidate id …)
    values: np.ndarray
    level: Level = "nominal"
    mirrored: bool = False

    @property
    def questions(self) -> tuple[str, ...]:
        """The question of each unit."""
        return tuple(unit[0] for unit in self.units)

    @property
    def shared(self) -> np.ndarray:
        """Which units (U, bool) two people or more have answered: the only ones that tell of agreement."""
        return (~np.isnan(self.values)).sum(0) >= 2

    @property
    def n_questions(self) -> int:
        """How many questions two people or more have answered."""
        return len({question for question, shared in zip(self.questions, self.shared, strict=True) if shared})

    def both_ways(self) -> tuple[np.ndarray, np.ndarray]:
        """Values (people, n) and question numbers (n,) of the shared units, a mirrored unit both ways round."""
        number = {question: i for i, question in enumerate(dict.fromkeys(np.array(self.questions)[self.shared]))}
        values, of = self.values[:, self.shared], [number[q] for q in np.array(self.questions)[self.shared]]
        if self.mirrored:
            return np.hstack([values, 0 - values]), np.array([*of, *of], dtype=int)
        return values, np.array(of, dtype=int)

    def raw(self, strict: bool = False, resamples: int = 1000, seed: int = 0) -> Interval | None:
        """The share of equal answers, over all units and all two people who answered them.

        `strict` leaves ties out, so that a coin reaches one half: InstructGPT's 73% is such a figure.
        """
        if self.n_questions < 2:
            return None
        values, of = self.both_ways()
        values = np.where(values == 0, np.nan, values) if strict else values
        counts, _ = _tally(values)
        same = (counts * (counts - 1)).sum(1) / 2
        pairs = counts.sum(1) * (counts.sum(1) - 1) / 2
        sums = _by_question(np.column_stack([same, pairs]), of)
        return _interval(sums, _share, int((pairs > 0).sum() / (1 + self.mirrored)), resamples, seed)

    def cohen(self, resamples: int = 500, seed: int = 0) -> Interval | None:
        """The mean of Cohen's kappa over all two people, weighted by the units that they share (after Light, 1971)."""
        return self._cohen(list(combinations(range(len(self.people)), 2)), resamples, seed)

    def cohen_between(self, one: str, other: str, resamples: int = 500, seed: int = 0) -> Interval | None:
        """Cohen's kappa of two people by name, over the units that both have answered."""
        unknown = [name for name in (one, other) if name not in self.people]
        if unknown:
            raise InputError(f"nobody called {unknown[0]!r} has answered; there are {', '.join(self.people) or 'none'}")
        return self._cohen([(self.people.index(one), self.people.index(other))], resamples, seed)

    def fleiss(self, resamples: int = 1000, seed: int = 0) -> Interval | None:
        """Fleiss' kappa; units may have different numbers of people."""
        if self.n_questions < 2:
            return None
        values, of = self.both_ways()
        sums = _by_question(_fleiss_sums(_tally(values)[0]), of)
        return _interval(sums, _fleiss, int(self.shared.sum()), resamples, seed)

    def alpha(self, resamples: int = 1000, seed: int = 0) -> Interval | None:
        """Krippendorff's alpha at this table's level; needs the package `krippendorff`."""
        if self.n_questions < 2:
            return None
        values, of = self.both_ways()
        counts, domain = _tally(values)
        value = _alpha_of_counts(counts, domain, self.level)
        size = len(domain)
        sums = _by_question(_coincidences(counts).reshape(-1, size * size), of)

        def statistic(sums: np.ndarray) -> np.ndarray:
            return _alpha(sums.reshape(-1, size, size), domain, self.level)

        return None if value is None else _interval(sums, statistic, int(self.shared.sum()), resamples, seed, value)

    def with_others(self, resamples: int = 500, seed: int = 0) -> dict[str, Interval | None]:
        """For each person, how often they agree with the others (raw); None who shares fewer than two questions."""
        values, of = self.both_ways()
        counts, domain = _tally(values)
        found: dict[str, Interval | None] = {}
        for name, own in zip(self.people, values, strict=True):
            mine = ~np.isnan(own)
            code = np.searchsorted(domain, own[mine])
            same, others = counts[mine, code] - 1, counts[mine].sum(1) - 1
            sums = _by_question(np.column_stack([same, others]), of[mine])
            units = int((others > 0).sum() / (1 + self.mirrored))
            found[name] = _interval(sums, _share, units, resamples, seed) if len(sums) > 1 else None
        return found

    def _cohen(self, pairs: list[tuple[int, int]], resamples: int, seed: int) -> Interval | None:
        values, of = self.both_ways()
        counts, domain = _tally(values)
        size, total = len(domain), len(set(of.tolist()))
        weights = np.vstack([np.ones(total), _draws(total, resamples, seed)]) if total else np.ones((1, 0))
        kappas, sizes, met = np.zeros(len(weights)), np.zeros(len(weights)), np.zeros(total, bool)
        for one, other in pairs:
            both = ~np.isnan(values[one]) & ~np.isnan(values[other])
            if not both.any():
                continue
            cell = np.searchsorted(domain, values[one, both]) * size + np.searchsorted(domain, values[other, both])
            sums = np.zeros((total, size * size))
            np.add.at(sums, (of[both], cell), 1.0)
            mine = sums.any(1)
            tables = (weights[:, mine] @ sums[mine]).reshape(-1, size, size)
            kappa, n = _cohen(tables), tables.sum((1, 2))
            kappas += np.where(np.isnan(kappa), 0.0, kappa * n)
            sizes += np.where(np.isnan(kappa), 0.0, n)
            met |= mine
        if met.sum() < 2 or not sizes[0]:
            return None
        drawn = kappas[1:][sizes[1:] > 0] / sizes[1:][sizes[1:] > 0]
        units = np.any([~np.isnan(values[[i, j]]).any(0) for i, j in pairs], 0).sum() / (1 + self.mirrored)
        return _percentiles(kappas[0] / sizes[0], drawn, int(units), int(met.sum()))


def _share(sums: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(sums[:, 1] > 0, sums[:, 0] / sums[:, 1], np.nan)


def _by_question(per_unit: np.ndarray, of: np.ndarray) -> np.ndarray:
    """Sums (Q, D) over the units of each question that has some, of what each unit contributes (U, D)."""
    numbers, place = np.unique(of, return_inverse=True)
    sums = np.zeros((len(numbers), per_unit.shape[1]))
    np.add.at(sums, place, per_unit)
    return sums


def _draws(n: int, resamples: int, seed: int) -> np.ndarray:
    """How often each of n questions is in each resample, (resamples, n)."""
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples).astype(float)


def _interval(
    sums: np.ndarray,
    statistic: Callable[[np.ndarray], np.ndarray],
    n: int,
    resamples: int,
    seed: int,
    value: float | None = None,
) -> Interval | None:
    """The statistic of the sums (Q, D) over questions, with its bootstrap interval; `value` where it is known."""
    value = _number(statistic(sums.sum(0)[None])) if value is None else value
    drawn = statistic(_draws(len(sums), resamples, seed) @ sums)
    return None if value is None else _percentiles(value, drawn[~np.isnan(drawn)], n, len(sums))


def _percentiles(value: float, drawn: np.ndarray, n: int, questions: int) -> Interval | None:
    """A percentile interval. Where all agree, resampling knows no doubt: then Wilson's bound for Q questions of Q.

    (If more than one in so many further questions were answered at random, Q agreements in a row would be unlikely.)
    """
    if not len(drawn):
        return None
    low, high = (float(bound) for bound in np.percentile(drawn, (2.5, 97.5)))
    if value > 1 - 1e-12:
        low = min(low, wilson_interval(questions, questions).low)
    return Interval(float(value), min(low, float(value)), max(high, float(value)), n)


def wilson_interval(successes: float, n: int) -> Interval:
    """A share and Wilson's 95% score interval (1927), right for small n and for shares near 0 and 1 too."""
    if n < 1 or not 0 <= successes <= n:
        raise InputError(f"a share of {successes} in {n}: n must be at least 1, and the successes from 0 to n")
    share, z2 = successes / n, Z95**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 * math.sqrt(share * (1 - share) / n + z2 / (4 * n**2)) / (1 + z2 / n)
    return Interval(share, max(0.0, centre - half), min(1.0, centre + half), n)


# --- from answers to tables -------------------------------------------------------------------------------------------


def pair_data(answers: Source) -> ReliabilityData:
    """Verdicts on pairs of replies: 1 the first is better, −1 the second, 0 a tie; from rankings and ratings.

    Where one person both ranked and rated a question, the ranking counts.
    """
    cells = {}
    for answer in one_each(answers):
        for better, worse, tie in pairs_of_order(order_of(answer)):
            first, second = sorted((better, worse))
            value = 0 if tie else 1 if better == first else -1
            cells[answer.annotator, (answer.question_id, first, second)] = value
    return _table(cells, "nominal", mirrored=True)


def grade_data(answers: Source) -> ReliabilityData:
    """How much better, as one scale of nine: 4 the first is significantly better … 0 a tie … −4 the second."""
    given = [a for a in one_each(answers) if isinstance(a, Ranking) and a.given and sum(map(len, a.order)) == 2]
    graded = {answer.question_id for answer in given if answer.grade}
    cells = {}
    for answer in given:
        tie = len(answer.order) == 1
        if answer.question_id in graded and (answer.grade or tie):
            ids = [candidate for tier in answer.order for candidate in tier]
            size = 0 if tie else GRADES.index(answer.grade) + 1
            unit = (answer.question_id, *sorted(ids))
            cells[answer.annotator, unit] = size if ids[0] == unit[1] else 0 - size
    return _table(cells, "ordinal", mirrored=True)


def rank_data(answers: Source) -> ReliabilityData:
    """Each reply's place in a whole ranking, 0 the best to 1 the last, tied replies in the middle of their places."""
    cells = {}
    for answer in one_each(answers):
        order, above = order_of(answer), 0
        size = sum(map(len, order))
        for tier in order if size > 1 else ():
            place = (above + (len(tier) - 1) / 2) / (size - 1)
            cells |= {(answer.annotator, (answer.question_id, candidate)): round(place, 9) for candidate in tier}
            above += len(tier)
    return _table(cells, "ordinal")


def rating_data(answers: Source, attribute: str) -> ReliabilityData:
    """Marks, 1 to 5, of one attribute of each reply."""
    cells = {
        (answer.annotator, (answer.question_id, candidate)): marks[attribute]
        for answer in answers_in(answers)
        if isinstance(answer, Rating) and answer.given
        for candidate, marks in answer.scores.items()
        if attribute in marks
    }
    return _table(cells, "ordinal")


def vote_data(answers: Source) -> ReliabilityData:
    """Thumbs: 1 up, 0 down, of each reply."""
    cells = {
        (answer.annotator, (answer.question_id, answer.candidate)): int(bool(answer.up))
        for answer in answers_in(answers)
        if isinstance(answer, Vote) and answer.given
    }
    return _table(cells, "nominal")


def answers_in(source: Any) -> list[Answer]:
    """The answers of a store (those in force), or the answers given."""
    return source.answers() if hasattr(source, "answers") else list(source)


def one_each(source: Any) -> list[Ranking | Rating]:
    """One ordering answer of each person to each question: the last ranking, or else the last rating."""
    latest: dict[tuple[str, str], Ranking | Rating] = {}
    answers = [answer for answer in answers_in(source) if answer.given]
    for kind in (Rating, Ranking):
        latest |= {(a.question_id, a.annotator): a for a in answers if isinstance(a, kind)}
    return list(latest.values())


def _table(cells: Mapping[tuple[str, tuple[str, ...]], float], level: Level, mirrored: bool = False) -> ReliabilityData:
    people = {name: i for i, name in enumerate(sorted({person for person, _ in cells}))}
    units = {unit: i for i, unit in enumerate(dict.fromkeys(unit for _, unit in cells))}
    values = np.full((len(people), len(units)), np.nan)
    for (person, unit), value in cells.items():
        values[people[person], units[unit]] = value
    return ReliabilityData(tuple(people), tuple(units), values, level, mirrored)


# --- a class at a glance ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AgreementReport:
    """How far a class agrees. A figure is None where it cannot be told; `message` then says why, "" if all is well.

    `raw` counts ties as a verdict of their own, `strict` leaves them out. `cohen`, `fleiss` and `alpha` are of pair
    verdicts; `places` is alpha of whole rankings, `grades` of "how much better", `ratings` of each attribute's marks
    (all three ordinal), `votes` of thumbs. `with_others` is each person's raw agreement with the rest.
    """

    people: int
    questions: int  # that two people or more have answered
    pairs: int  # of replies that two people or more have judged
    raw: Interval | None = None
    strict: Interval | None = None
    cohen: Interval | None = None
    fleiss: Interval | None = None
    alpha: Interval | None = None
    places: Interval | None = None
    grades: Interval | None = None
    ratings: dict[str, Interval | None] = field(default_factory=dict)
    votes: Interval | None = None
    with_others: dict[str, Interval | None] = field(default_factory=dict)
    message: str = ""


def agreement_report(answers: Source, resamples: int = 500, seed: int = 0) -> AgreementReport:
    """Every coefficient that these answers allow; `answers` may be a store."""
    answers = answers_in(answers)
    pairs = pair_data(answers)
    attributes = dict.fromkeys(name for a in answers if isinstance(a, Rating) for name in a.attributes)
    options = {"resamples": resamples, "seed": seed}
    return AgreementReport(
        people=len({answer.annotator for answer in answers if answer.given}),
        questions=pairs.n_questions,
        pairs=int(pairs.shared.sum()),
        raw=pairs.raw(**options),
        strict=pairs.raw(strict=True, **options),
        cohen=pairs.cohen(**options),
        fleiss=pairs.fleiss(**options),
        alpha=pairs.alpha(**options),
        places=rank_data(answers).alpha(**options),
        grades=grade_data(answers).alpha(**options),
        ratings={name: rating_data(answers, name).alpha(**options) for name in attributes},
        votes=vote_data(answers).alpha(**options),
        with_others=pairs.with_others(**options),
        message=_message(answers, pairs),
    )


def _message(answers: Sequence[Answer], pairs: ReliabilityData) -> str:
    people = {answer.annotator for answer in answers if answer.given}
    if not people:
        return "Nobody has answered yet."
    if len(people) == 1:
        return f"Only {next(iter(people))} has answered; agreement needs two people who answered the same questions."
    if pairs.n_questions == 0:
        return "No two people have compared the same replies yet; ask each question of two or more people."
    if pairs.n_questions == 1:
        return "Only one question has been answered by two people; agreement needs several."
    if pairs.n_questions < 10:
        return f"Only {pairs.n_questions} questions have been answered by two people; take the figures with caution."
    return ""


@dataclass(frozen=True)
class Contested:
    """A question on which people differ: `agreement` is the share of equal verdicts on its pairs."""

    question_id: str
    agreement: float
    people: int
    pairs: int


def contested(answers: Source, least: int = 2) -> list[Contested]:
    """Questions answered by `least` people or more, those with the least agreement first: items worth discussing."""
    data = pair_data(answers)
    counts, _ = _tally(data.values) if data.values.size else (np.zeros((0, 0)), None)
    places = defaultdict(list)
    for place, question in enumerate(data.questions):
        places[question].append(place)
    found = []
    for question, mine in places.items():
        n = counts[mine].sum(1)
        people = int((~np.isnan(data.values[:, mine])).any(1).sum())
        pairs = (n * (n - 1)).sum()
        if people >= max(least, 2) and pairs:
            agreement = float((counts[mine] * (counts[mine] - 1)).sum() / pairs)
            found.append(Contested(question, agreement, people, len(mine)))
    return sorted(found, key=lambda item: (item.agreement, -item.people))


# --- a model is one more annotator ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ModelAgreement:
    """How far a model agrees with people: `strict` over the pairs that a person put in an order, and Cohen's `kappa`.

    In `strict` a pair that the model scores equally counts half. `by_person` is `strict` for each person.
    """

    strict: Interval | None
    kappa: Interval | None
    by_person: dict[str, Interval | None]


def model_agreement(
    scores: Mapping[str, Mapping[str, float]], answers: Source, person: str | None = None, seed: int = 0
) -> ModelAgreement:
    """Agreement of a model with people, or with one `person`, from its `scores` {question id: {candidate id: score}}.

    Questions without scores are left out. InputError where a question's scores lack one of its replies, or hold a NaN.
    """
    given = [a for a in one_each(answers) if a.question_id in scores and person in (None, a.annotator)]
    people = pair_data(given)
    model = _verdicts_of(scores, people)
    right = np.where(model == 0, 0.5, model == people.values).astype(float)
    strict = ~np.isnan(people.values) & (people.values != 0)  # (people, units)
    number = {question: i for i, question in enumerate(dict.fromkeys(people.questions))}
    of = np.array([number[question] for question in people.questions], dtype=int)

    def hits(rows: list[int]) -> Interval | None:
        counted = strict[rows].sum(0)
        sums = _by_question(np.column_stack([(right * strict)[rows].sum(0), counted])[counted > 0], of[counted > 0])
        return _interval(sums, _share, int(counted.sum()), 1000, seed) if len(sums) > 1 else None

    everyone = list(range(len(people.people)))
    with_model = ReliabilityData(
        (*people.people, "the model"), people.units, np.vstack([people.values, model]), "nominal", True
    )
    kappa = with_model._cohen([(row, len(everyone)) for row in everyone], 500, seed)
    return ModelAgreement(hits(everyone), kappa, {name: hits([row]) for row, name in enumerate(people.people)})


def _verdicts_of(scores: Mapping[str, Mapping[str, float]], data: ReliabilityData) -> np.ndarray:
    """The model's verdict on each unit, (units,)."""
    verdicts = []
    for question, first, second in data.units:
        try:
            difference = float(scores[question][first]) - float(scores[question][second])
        except KeyError as error:
            raise InputError(f"the model's scores of question {question!r} lack its reply {error}") from None
        if math.isnan(difference):
            raise InputError(f"the model's scores of question {question!r} hold a NaN; give a number for each reply")
        verdicts.append(np.sign(difference))
    return np.array(verdicts)
