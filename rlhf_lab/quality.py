"""The quality of annotations: biases with intervals, people who may not be reading, time per label, order effects.

Everything here reads answers as they are stored and says what they show, in figures and in one plain sentence each.
None of it is an accusation: a person flagged here may be tired, may have understood the guidelines differently, or may
simply disagree with the rest. How to make the best of labels of mixed quality is in `rlhf_lab.aggregation`.

Sources: Benjamini and Hochberg (1995), Journal of the Royal Statistical Society B 57, for false alarms; Brysbaert
(2019), Journal of Memory and Language 109, for reading speed; Dubois et al. (2024), arXiv:2404.04475, for adjusting a
judge's length bias by regression. No torch; numpy only.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .agreement import Z95, ReliabilityData, answers_in, one_each, pair_data, wilson_interval
from .assignments import Expected, passed
from .errors import InputError
from .records import ANSWERS, Answer, Interval, Question, Ranking, Rating, answer_from_dict, order_of, pairs_of_order

if TYPE_CHECKING:
    from .store import FeedbackStore

# --- biases -----------------------------------------------------------------------------------------------------------

# A lexical measure of politeness: whether a reply holds one of these. It knows words, not manners: "please yourself"
# counts and irony passes. Pass your own measure to `bias_report` where that is not good enough.
POLITE = re.compile(
    r"\b(thank you|thanks|please|welcome|sorry|pleasure|glad|happy to|kindly|enjoy|lovely|wonderful|nice day"
    r"|good question|look forward|hope to see|of course)\b",
    re.IGNORECASE,
)
BIASES = ("length", "position", "politeness")
FEWEST_QUESTIONS = 10  # below that, a person's biases are not estimated
PRIOR_SD = 5.0  # of every coefficient, in log-odds: only keeps perfectly separated answers finite


def polite_words(text: str) -> float:
    """1 if the text holds a polite word of `POLITE`, else 0."""
    return float(bool(POLITE.search(text)))


@dataclass(frozen=True)
class Bias:
    """How one trait of a reply moves a person's choices, all other traits here being equal.

    `effect` is in log-odds: for ten words more (length), for being shown first (position), for polite words against
    none (politeness). `share` says the same as the share of choices that go to such a reply, 0.5 being no bias.
    `points` is the effect in units of the `quality` that `bias_report` was given. `p` is the two-sided p-value, and
    `clear` holds when it stands after correction for the number of people looked at. `n` of the intervals are pairs.
    """

    name: str
    effect: Interval
    share: Interval
    points: Interval | None
    p: float
    clear: bool
    words: str


@dataclass(frozen=True)
class BiasReport:
    """Biases by name, of everyone together and of each person; None where there is too little to tell."""

    everyone: dict[str, Bias | None]
    people: dict[str, dict[str, Bias | None]]


def bias_report(
    questions: Sequence[Question],
    answers: Sequence[Answer],
    politeness: Callable[[str], float] = polite_words,
    quality: Callable[[str, str], float] | None = None,
) -> BiasReport:
    """Length, position and politeness bias, each adjusted for the others, from rankings and ratings.

    Logistic regression of who wins a pair on the two replies' differences (a tie is half a win either way); intervals
    allow for pairs of one question hanging together. A preference for polite replies is a *bias* only where the
    guidelines say that manners should not count; the same holds for length. Position never should. Where the truth is
    known, `quality(prompt, reply)` adjusts for it, too.

    InputError where an answer's question is missing.
    """
    asked = {question.id: question for question in questions}
    design = _Design.of(asked, one_each(answers), politeness, quality)
    people = sorted(set(design.people))
    fits = {name: design.fit(name) for name in people}
    clear = _clear(fits)
    return BiasReport(
        {bias: _bias(bias, fit, fit.p < 0.05) if fit else None for bias, fit in design.fit(None).items()},
        {who: {b: _bias(b, f, (who, b) in clear) if f else None for b, f in fits[who].items()} for who in people},
    )


@dataclass(frozen=True)
class _Fit:
    """A coefficient with its standard error, and the same in points of quality."""

    value: float
    error: float
    pairs: int
    points: tuple[float, float] | None = None

    @property
    def p(self) -> float:
        return math.erfc(abs(self.value) / self.error / math.sqrt(2))


@dataclass(frozen=True, eq=False)
class _Design:
    """Pairs as regression data: differences better − worse (n, d), 1 or ½ for a tie; whose, and of which question."""

    names: tuple[str, ...]
    x: np.ndarray
    y: np.ndarray
    people: list[str]
    questions: list[str]

    @classmethod
    def of(cls, asked: dict[str, Question], answers: Sequence[Ranking | Rating], politeness, quality) -> _Design:
        names = BIASES if quality is None else (*BIASES, "quality")
        rows, y, people, questions = [], [], [], []
        for answer in answers:
            question = _question(asked, answer)
            traits = {
                c.id: [
                    len(c.text.split()) / 10,
                    float(answer.displayed[:1] == (c.id,)),
                    politeness(c.text),
                    *([] if quality is None else [quality(question.prompt, c.text)]),
                ]
                for c in question.candidates
            }
            for better, worse, tie in pairs_of_order(order_of(answer)):
                rows.append(np.subtract(traits[better], traits[worse]))
                y.append(0.5 if tie else 1.0)
                people.append(answer.annotator)
                questions.append(answer.question_id)
        return cls(names, np.array(rows).reshape(len(rows), len(names)), np.array(y), people, questions)

    def fit(self, person: str | None) -> dict[str, _Fit | None]:
        """Each bias of one person, or of all; None for a trait that does not differ within ten questions."""
        mine = np.array([person in (None, name) for name in self.people], dtype=bool)
        x, y, of = self.x[mine], self.y[mine], np.array(self.questions)[mine]
        told = [j for j in range(x.shape[1]) if len(set(of[x[:, j] != 0])) >= FEWEST_QUESTIONS]
        found: dict[str, _Fit | None] = dict.fromkeys(BIASES)
        if not told:
            return found
        w, cov = logistic_regression(x[:, told], y, of)
        quality = told.index(3) if 3 in told else None
        for place, j in enumerate(told):
            if j != 3:
                points = None if quality is None else _ratio(w, cov, place, quality)
                found[self.names[j]] = _Fit(w[place], math.sqrt(cov[place, place]), int((x[:, j] != 0).sum()), points)
        return found


def logistic_regression(x: np.ndarray, y: np.ndarray, clusters: Sequence, prior_sd: float = PRIOR_SD):
    """Coefficients (d,) and covariance (d, d) of P(y = 1) = σ(x·w), without intercept; x (n, d), y (n,) in [0, 1].

    Newton's method on the likelihood with a wide normal prior. The covariance is the larger, coefficient by
    coefficient, of the inverse Hessian and the sandwich that sums scores over clusters (Liang and Zeger, 1986): the
    first fails where the answers of a cluster hang together, the second where the answers are perfectly separated.
    """
    x, y = np.asarray(x, float), np.asarray(y, float)
    w, prior = np.zeros(x.shape[1]), np.eye(x.shape[1]) / prior_sd**2
    for _ in range(100):
        p = 1 / (1 + np.exp(-np.clip(x @ w, -500, 500)))
        hessian = x.T @ (x * (p * (1 - p))[:, None]) + prior
        step = np.linalg.solve(hessian, x.T @ (y - p) - prior @ w)
        w = w + step * min(1.0, 2.0 / (1e-12 + np.abs(step).max()))  # no leap: Newton overshoots where data separate
        if np.abs(step).max() < 1e-9:
            break
    _, place = np.unique(np.asarray(clusters), return_inverse=True)
    scores = np.zeros((place.max() + 1, len(w)))
    np.add.at(scores, place, x * (y - p)[:, None])
    inverse = np.linalg.inv(hessian)
    groups = len(scores)
    sandwich = inverse @ (scores.T @ scores) @ inverse * groups / max(groups - 1, 1)
    widen = np.sqrt(np.maximum(np.diag(inverse), np.diag(sandwich)) / np.maximum(np.diag(sandwich), 1e-300))
    return w, sandwich * np.outer(widen, widen)


def _ratio(w: np.ndarray, cov: np.ndarray, one: int, by: int) -> tuple[float, float] | None:
    """w[one] / w[by] and its standard error (delta method); None where the divisor may be 0."""
    if w[by] < 3 * math.sqrt(cov[by, by]):
        return None
    ratio = w[one] / w[by]
    variance = cov[one, one] - 2 * ratio * cov[one, by] + ratio**2 * cov[by, by]
    return float(ratio), math.sqrt(max(variance, 0.0)) / w[by]


def _clear(fits: Mapping[str, Mapping[str, _Fit | None]]) -> set[tuple[str, str]]:
    """The (person, bias) whose p-value stands among all those looked at."""
    looked_at = [(who, bias, fit.p) for who, own in fits.items() for bias, fit in own.items() if fit]
    adjusted = benjamini_hochberg([p for *_, p in looked_at])
    return {(who, bias) for (who, bias, _), q in zip(looked_at, adjusted, strict=True) if q < 0.05}


def _bias(name: str, fit: _Fit, clear: bool) -> Bias:
    effect = _normal_interval(fit.value, fit.error, fit.pairs)
    share = Interval(*(1 / (1 + math.exp(-v)) for v in (effect.value, effect.low, effect.high)), fit.pairs)
    points = None if fit.points is None else _normal_interval(*fit.points, fit.pairs)
    return Bias(name, effect, share, points, fit.p, clear, _in_words(name, share, clear))


def _normal_interval(value: float, error: float, n: int) -> Interval:
    return Interval(float(value), float(value - Z95 * error), float(value + Z95 * error), n)


def _in_words(name: str, share: Interval, clear: bool) -> str:
    of, this, other = {
        "length": ("two replies that differ by ten words", "the longer", "the shorter"),
        "position": ("two replies of which one is shown first", "the one shown first", "the one shown later"),
        "politeness": ("two replies of which one has polite words", "the one with polite words", "the one without"),
    }[name]
    more = share.value >= 0.5
    won, low, high = (v if more else 1 - v for v in (share.value, share.low, share.high))
    low, high = min(low, high), max(low, high)
    figures = f"{won:.0%} [{low:.0%} to {high:.0%}]"
    if clear:
        return f"Of {of}, {this if more else other} is chosen in {figures}, all else equal."
    return f"No clear {name} bias: of {of}, {this if more else other} is chosen in {figures}."


# --- who may not be reading -------------------------------------------------------------------------------------------

READING_SPEED = 238 / 60  # words a second, silent reading of English non-fiction (Brysbaert, 2019)
SKIMMING = 3.0  # nobody takes in a text at this many times the reading speed
SLIP = 0.1  # share of checks that attentive people may fail
HURRY = 1 / 3  # share of labels that attentive people may give without reading all: some replies need no second word
FALSE_ALARMS = 0.05  # share of false ones among the alarms of a class
FEWEST_LABELS = 8  # below that, nothing is said of a person


@dataclass(frozen=True)
class Attention:
    """What a person's answers say about their attention. `verdict`: "fine", "worth a look" or "too few labels".

    `agreement` is the share of questions on which they side with the majority of the others (random clicking: one
    half), `chance_p` how likely clicking at random would agree at least so often. `failed` of `checks` check questions
    were failed, `fast` is the share of labels given faster than the texts can be skimmed, `same_place` the largest
    share of labels won by the reply shown first, or by that shown last. `reasons` are plain sentences, one for each
    thing that stands out when the whole class is looked at; `tests` their p-values before correction.
    """

    annotator: str
    labels: int
    verdict: str
    reasons: tuple[str, ...]
    agreement: Interval | None
    chance_p: float | None
    failed: int
    checks: int
    fast: float | None
    seconds: float | None  # median per label
    same_place: float | None
    tests: dict[str, float]


def random_clickers(
    questions: Sequence[Question], answers: Sequence[Answer], checks: Mapping[str, Expected] | None = None
) -> list[Attention]:
    """Looks at everybody's attention; those worth a look come first. `checks` as `Assignments.checks()` gives them.

    Four tests for each person: agreement with the others (sign test over questions) lower than the rest's and no
    better than chance; check questions failed; labels faster than reading; the same place always winning. All p-values
    of a class are corrected together (Benjamini and Hochberg), so that in a class without any clicker there is no
    alarm at all in 95 of 100 cases, however many students it has.
    """
    asked = {question.id: question for question in questions}
    evidence = _Evidence.of(asked, one_each(answers), checks or {})
    tests = {who: evidence.tests(who) for who in evidence.people if evidence.labels[who] >= FEWEST_LABELS}
    flat = [(who, test, p) for who, own in tests.items() for test, p in own.items()]
    adjusted = benjamini_hochberg([p for *_, p in flat])
    alarms = defaultdict(set)
    for (who, test, _), q in zip(flat, adjusted, strict=True):
        if q < FALSE_ALARMS:
            alarms[who].add(test)
    found = [evidence.attention(who, alarms[who], tests.get(who)) for who in evidence.people]
    return sorted(found, key=lambda a: (a.verdict != "worth a look", min(a.tests.values(), default=1.0), a.annotator))


@dataclass(frozen=True, eq=False)
class _Evidence:
    """What is counted of each person, by name."""

    people: list[str]
    labels: dict[str, int]
    sides: dict[str, tuple[int, int]]  # questions on which they sided with the majority of the others, of how many
    checks: dict[str, tuple[int, int]]  # failed, of how many
    fast: dict[str, tuple[int, int]]  # labels faster than skimming, of how many with a time
    seconds: dict[str, list[float]]
    places: dict[str, list[tuple[float, float, float]]]  # per label: win of the first shown, of the last, chance of it

    @classmethod
    def of(cls, asked: dict[str, Question], answers: Sequence[Ranking | Rating], checks: Mapping[str, Expected]):
        own: dict[str, list[Ranking | Rating]] = defaultdict(list)
        for answer in answers:
            _question(asked, answer)
            own[answer.annotator].append(answer)
        checked = {
            who: [not passed(checks[a.question_id], a) for a in given if a.question_id in checks]
            for who, given in own.items()
        }
        hasty = {
            who: [_too_fast(asked[a.question_id], a) for a in given if a.seconds > 0] for who, given in own.items()
        }
        return cls(
            sorted(own),
            {who: len(given) for who, given in own.items()},
            sides_taken(pair_data(answers)),
            {who: (sum(failed), len(failed)) for who, failed in checked.items()},
            {who: (sum(fast), len(fast)) for who, fast in hasty.items()},
            {who: [a.seconds for a in given if a.seconds > 0] for who, given in own.items()},
            {who: [place for a in given if (place := _place(a))] for who, given in own.items()},
        )

    def tests(self, who: str) -> dict[str, float]:
        """One-sided p-values, by test; a test that cannot be made is left out."""
        found = {}
        agreed, n = self.sides[who]
        if n >= FEWEST_LABELS and len(self.people) > 2:
            usual = min(max(self._rest(self.sides, who), 0.5), 0.99)
            like_chance = binomial_tail(agreed, n, 0.5) > 0.01 and binomial_tail(n - agreed, n, 0.5) > 0.025
            found["agreement"] = binomial_tail(n - agreed, n, 1 - usual) if like_chance else 1.0
        for name, counted, allowed in (("checks", self.checks, SLIP), ("speed", self.fast, HURRY)):
            bad, n = counted[who]
            if n:
                found[name] = binomial_tail(bad, n, min(max(self._rest(counted, who), allowed), 0.9))
        if len(self.places[who]) >= FEWEST_LABELS:
            found["place"] = _place_p(self.places[who])
        return found

    def _rest(self, counted: Mapping[str, tuple[int, int]], who: str) -> float:
        """The share among the others: the median person's, so that a few careless ones do not set the measure."""
        shares = [k / n for name, (k, n) in counted.items() if name != who and n]
        return float(np.median(shares)) if shares else 0.0

    def attention(self, who: str, alarms: Collection[str], tests: dict[str, float] | None) -> Attention:
        agreed, n = self.sides[who]
        (failed, checks), (fast, timed) = self.checks[who], self.fast[who]
        first, last = (np.mean([p[i] for p in self.places[who]]) if self.places[who] else 0.0 for i in (0, 1))
        seconds = float(np.median(self.seconds[who])) if self.seconds[who] else None
        sentences = {
            "agreement": f"Sides with the others on {agreed} of {n} questions, as clicking at random would; "
            f"the class's median is {self._rest(self.sides, who):.0%}.",
            "checks": f"Failed {failed} of {checks} check questions.",
            "speed": f"{fast} of {timed} labels came faster than the replies can be skimmed"
            + (f" (median {seconds:.0f} s)." if seconds is not None else "."),
            "place": f"The reply shown {'first' if first >= last else 'last'} won {max(first, last):.0%} of labels.",
        }
        reasons = tuple(sentence for test, sentence in sentences.items() if test in alarms)
        verdict = "too few labels" if tests is None else "worth a look" if reasons else "fine"
        return Attention(
            who,
            self.labels[who],
            verdict,
            reasons,
            wilson_interval(agreed, n) if n else None,
            binomial_tail(agreed, n, 0.5) if n else None,
            failed,
            checks,
            fast / timed if timed else None,
            seconds,
            max(float(first), float(last)) if self.places[who] else None,
            tests or {},
        )


def sides_taken(data: ReliabilityData) -> dict[str, tuple[int, int]]:
    """For each person: on how many questions they side with the majority of the others, of how many where one is.

    A question's verdict is the sign of Σ own verdict × majority's verdict over its pairs; 0 leaves it out. Turning a
    ranking round turns that sign round, so for somebody who clicks at random it is a fair coin, whatever k is.
    """
    values = np.nan_to_num(data.values)
    majority = np.sign(values.sum(0)[None] - values)  # of the others, for each person and unit
    number = {question: i for i, question in enumerate(dict.fromkeys(data.questions))}
    sides = np.zeros((len(data.people), len(number)))
    if len(number):
        np.add.at(sides.T, [number[q] for q in data.questions], (values * majority).T)
    return {who: (int((own > 0).sum()), int((own != 0).sum())) for who, own in zip(data.people, sides, strict=True)}


def _too_fast(question: Question, answer: Ranking | Rating) -> bool:
    words = len(question.prompt.split()) + sum(len(c.text.split()) for c in question.candidates)
    return answer.seconds < words / (READING_SPEED * SKIMMING)


def _place(answer: Ranking | Rating) -> tuple[float, float, float] | None:
    """Whether the first shown won alone or shared (1, 1/2 …), whether the last shown did, and one's chance of it."""
    order = order_of(answer)
    if len(answer.displayed) < 2 or not order:
        return None
    first, last = ((shown in order[0]) / len(order[0]) for shown in (answer.displayed[0], answer.displayed[-1]))
    return first, last, 1 / len(answer.displayed)


def _place_p(places: Sequence[tuple[float, float, float]]) -> float:
    """How likely shuffled replies let one end of the screen win so often (both ends looked at).

    1 unless it wins most of what it could win beyond chance: a lean to one side is a bias, not an empty click.
    """
    chances = [chance for *_, chance in places]
    won = max(sum(first for first, *_ in places), sum(last for _, last, _ in places))
    n, expected = len(places), sum(chances)
    if won - expected < 0.5 * (n - expected):
        return 1.0
    return min(1.0, 2 * _unequal_tail(math.floor(won), chances))


# --- time -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TimePerLabel:
    """Seconds a label: how many labels have a time, the median, the tenth and ninetieth percentile, the sum.

    `speed_up` is the median of the person's first half over that of the second: above 1 they got faster.
    """

    labels: int
    median: float
    low: float
    high: float
    total: float
    speed_up: float | None


def time_per_label(answers: Sequence[Answer]) -> dict[str, TimePerLabel]:
    """Time per label of each person, and of all under ""; answers without a time are left out."""
    by_person: dict[str, list[tuple[str, float]]] = defaultdict(list)
    for answer in answers_in(answers):
        if answer.given and answer.seconds > 0:
            by_person[answer.annotator].append((answer.created, answer.seconds))
            by_person[""].append((answer.created, answer.seconds))
    found = {}
    for who, timed in sorted(by_person.items()):
        seconds = [s for _, s in sorted(timed)]
        low, median, high = np.percentile(seconds, (10, 50, 90)).tolist()
        half = len(seconds) // 2
        speed_up = float(np.median(seconds[:half]) / np.median(seconds[-half:])) if half >= 4 and who else None
        found[who] = TimePerLabel(len(seconds), median, low, high, float(sum(seconds)), speed_up)
    return found


# --- order effects: the same pair asked twice, the other way round ----------------------------------------------------


@dataclass(frozen=True)
class OrderEffect:
    """Pairs that one person judged in both orders. `consistent` chose the same reply twice (or a tie twice).

    `first` is the share in which what stood first won both times, `last` the same for what stood later.
    """

    consistent: Interval
    first: Interval
    last: Interval


def order_effect(questions: Sequence[Question], answers: FeedbackStore | Sequence[Answer]) -> OrderEffect | None:
    """How far a person's choice follows the order on the screen, from pairs of texts asked in both orders.

    Either one question asked twice (the widgets' shuffle="mirrored"), or two with the same prompt and texts. The second
    answer to a question replaces the first in the store's `answers()`, so give the store itself, whose log holds
    both, or a list of all. None where nobody was asked anything both ways.
    """
    asked = {question.id: question for question in questions}
    seen: dict[tuple, dict[bool, int]] = defaultdict(dict)
    for answer in _all_standing(answers):
        question = _question(asked, answer)
        texts = question.texts
        for better, worse, tie in pairs_of_order(order_of(answer)):
            one, other = sorted((texts[better], texts[worse]))
            if one == other or not answer.displayed:
                continue
            won = 0 if tie else 1 if texts[better] == one else -1
            shown = {texts[c]: place for place, c in enumerate(answer.displayed)}
            seen[answer.annotator, question.prompt, one, other][shown[one] < shown[other]] = won
    both = [(verdicts[True], verdicts[False]) for verdicts in seen.values() if len(verdicts) == 2]
    if not both:
        return None
    n = len(both)
    return OrderEffect(
        wilson_interval(sum(a == b for a, b in both), n),
        wilson_interval(sum((a, b) == (1, -1) for a, b in both), n),
        wilson_interval(sum((a, b) == (-1, 1) for a, b in both), n),
    )


def _all_standing(source: FeedbackStore | Sequence[Answer]) -> list[Answer]:
    """Every answer that states an order and was not withdrawn, also one that a later answer replaced, oldest first."""
    if hasattr(source, "events"):
        events = source.events()
        withdrawn = {event.withdraws for event in events}
        source = [answer_from_dict(e.kind, e.payload) for e in events if e.kind in ANSWERS and e.id not in withdrawn]
    return [answer for answer in source if order_of(answer)]


# --- small statistics -------------------------------------------------------------------------------------------------


def benjamini_hochberg(p: Sequence[float]) -> list[float]:
    """Adjusted p-values: calling significant what is below q keeps the expected share of false alarms below q."""
    order = np.argsort(p)
    scaled = np.asarray(p, float)[order] * len(p) / np.arange(1, len(p) + 1)
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1.0)
    return adjusted.tolist()


def binomial_tail(k: int, n: int, p: float) -> float:
    """P(X ≥ k) of n trials that each succeed with probability p, summed in full; n may be large."""
    if not 0 <= k <= n or not 0 <= p <= 1:
        raise InputError(f"{k} of {n} with probability {p}: 0 ≤ k ≤ n and 0 ≤ p ≤ 1 are wanted")
    if p in (0.0, 1.0):
        return float(k == 0 or p == 1.0)
    log_p, log_q, log_n = math.log(p), math.log1p(-p), math.lgamma(n + 1)  # n over i does not fit into a float for long
    logs = (log_n - math.lgamma(i + 1) - math.lgamma(n - i + 1) + i * log_p + (n - i) * log_q for i in range(k, n + 1))
    return min(1.0, math.fsum(map(math.exp, logs)))


def _unequal_tail(k: int, chances: Sequence[float]) -> float:
    """P(X ≥ k) of trials with unequal chances (Poisson binomial), one trial added at a time."""
    probability = np.zeros(len(chances) + 1)
    probability[0] = 1.0
    for chance in chances:
        probability[1:] = probability[1:] * (1 - chance) + probability[:-1] * chance
        probability[0] *= 1 - chance
    return float(min(1.0, probability[k:].sum()))


def _question(asked: Mapping[str, Question], answer: Answer) -> Question:
    if answer.question_id not in asked:
        raise InputError(f"{answer.kind} {answer.id!r} answers question {answer.question_id!r}, which is not given")
    return asked[answer.question_id]
