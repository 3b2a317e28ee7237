"""Annotation quality: known biases are recovered, careless people found, honest classes left in peace."""

import math
import random

import numpy as np
import pytest

from rlhf_lab.agreement import pair_data
from rlhf_lab.errors import InputError
from rlhf_lab.quality import (
    benjamini_hochberg,
    bias_report,
    binomial_tail,
    logistic_regression,
    order_effect,
    polite_words,
    random_clickers,
    sides_taken,
    time_per_label,
)
from rlhf_lab.records import Candidate, Question, Ranking
from rlhf_lab.store import FeedbackStore


def make_questions(n: int, k: int = 2, seed: int = 0) -> list[Question]:
    """Replies of 6 to 30 words, two in five of them with a polite phrase."""
    rng = random.Random(seed)

    def text() -> str:
        return " ".join(["word"] * rng.randint(6, 30)) + (" thank you" if rng.random() < 0.4 else "")

    return [
        Question(f"q{i}", f"When is class {i}?", tuple(Candidate(f"c{j}", text()) for j in range(k))) for i in range(n)
    ]


def rank(question: Question, who: str, value, rng: random.Random, seconds: float = 20.0) -> Ranking:
    """Ranks by `value(candidate, shown first)`, replies shuffled."""
    shown = rng.sample(question.candidates, len(question.candidates))
    felt = {c.id: value(c, c is shown[0]) for c in shown}
    order = tuple((c,) for c in sorted(felt, key=felt.get, reverse=True))
    return Ranking(question.id, order, who, tuple(c.id for c in shown), seconds)


def gumbel(rng: random.Random) -> float:
    """Noise whose differences are logistic: with it, choices follow the regression's model exactly."""
    return -math.log(-math.log(rng.random()))


def leaning(questions, who: str, seed: int, length=0.0, first=0.0, polite=0.0) -> list[Ranking]:
    rng = random.Random(seed)

    def value(candidate, is_first):
        words = len(candidate.text.split()) / 10
        return length * words + first * is_first + polite * polite_words(candidate.text) + gumbel(rng)

    return [rank(question, who, value, rng) for question in questions]


def a_class(n: int, people: int, overlap: int, seed: int, clickers: int = 0, lazy: int = 0, k: int = 4):
    """Honest people of somewhat different tastes and speeds; the first ones click at random or always take the first.

    (Random clickers take the same time as others; the lazy are quick.) Returns questions, answers and checks: every
    tenth question, whose best and worst reply are far apart.
    """
    rng, questions, answers = random.Random(seed), make_questions(n, k, seed), []
    taste = [rng.gauss(0, 0.5) for _ in range(people)]
    speed = [rng.lognormvariate(0, 0.3) for _ in range(people)]
    for number, question in enumerate(questions):
        worth = {c.id: rng.gauss(0, 1) for c in question.candidates}
        worth |= {"c0": 4.0, "c1": -4.0} if number % 10 == 0 else {}
        trait = {c.id: rng.gauss(0, 1) for c in question.candidates}
        words = sum(len(c.text.split()) for c in question.candidates)
        for person in rng.sample(range(people), overlap):
            seconds = words / 4 * speed[person] * rng.lognormvariate(0, 0.4)
            if person < clickers:
                answer = rank(question, f"p{person:02}", lambda *_: rng.random(), rng, seconds)
            elif person < clickers + lazy:
                answer = rank(question, f"p{person:02}", lambda _, first: 9 * first + rng.random(), rng, 1.0)
            else:
                answer = rank(
                    question,
                    f"p{person:02}",
                    lambda c, _, p=person, w=worth, t=trait: w[c.id] + taste[p] * t[c.id] + rng.gauss(0, 0.6),
                    rng,
                    seconds,
                )
            answers.append(answer)
    return questions, answers, {f"q{i}": [("c0", "c1")] for i in range(0, n, 10)}


# --- biases -----------------------------------------------------------------------------------------------------------


def test_known_biases_are_recovered_each_adjusted_for_the_others():
    questions = make_questions(400)
    report = bias_report(questions, leaning(questions, "Ann", 1, length=0.8, first=0.6, polite=-1.0))
    own = report.people["Ann"]
    for name, truth in {"length": 0.8, "position": 0.6, "politeness": -1.0}.items():
        assert own[name].effect.low < truth < own[name].effect.high and own[name].clear
        assert own[name].effect.high - own[name].effect.low < 1.2
    assert own["position"].share.value == pytest.approx(1 / (1 + math.exp(-own["position"].effect.value)))
    assert "longer is chosen" in own["length"].words and "the one without is chosen" in own["politeness"].words
    assert report.everyone["length"].effect.value == pytest.approx(own["length"].effect.value)


def test_a_preference_for_polite_replies_is_not_taken_for_one_for_long_ones():
    """Polite words make a reply longer; somebody who wants only the words gets no length bias."""
    rng = random.Random(0)
    polite = " thank you and please come back any time, it was a pleasure to be of help"
    texts = [["word " * rng.randint(5, 12) + (polite if rng.random() < 0.5 else "") for _ in "ab"] for _ in range(400)]
    questions = [Question(f"q{i}", "?", (Candidate("a", a), Candidate("b", b))) for i, (a, b) in enumerate(texts)]
    own = bias_report(questions, leaning(questions, "Ann", 3, polite=2.0)).people["Ann"]
    assert own["politeness"].clear and own["politeness"].effect.low > 0.5
    assert own["length"].effect.low < 0 < own["length"].effect.high and not own["length"].clear


def test_intervals_of_biases_cover_the_truth_about_as_often_as_they_say():
    """Small samples (25 questions) of four replies, whose six pairs hang together."""
    hits = [0, 0, 0]
    for seed in range(80):
        questions = make_questions(25, k=4, seed=seed)
        own = bias_report(questions, leaning(questions, "Ann", seed, length=0.5, first=0.5)).people["Ann"]
        for i, (name, truth) in enumerate({"length": 0.5, "position": 0.5, "politeness": 0.0}.items()):
            hits[i] += own[name].effect.low <= truth <= own[name].effect.high
    assert min(hits) >= 70


def test_with_the_quality_known_a_bias_is_told_in_its_points():
    """Somebody sees quality, and ten words more are worth half a point to them: only the ratio is known, and found."""
    questions, rng = make_questions(500), random.Random(4)
    worth = {c.text + q.id: rng.gauss(0, 1) for q in questions for c in q.candidates}
    answers = []
    for q in questions:
        answers.append(
            rank(q, "Ann", lambda c, _, q=q: 3 * (worth[c.text + q.id] + 0.05 * len(c.text.split())) + gumbel(rng), rng)
        )
    quality = {(q.prompt, c.text): worth[c.text + q.id] for q in questions for c in q.candidates}
    own = bias_report(questions, answers, quality=lambda prompt, text: quality[prompt, text]).people["Ann"]
    assert own["length"].points.low < 0.5 < own["length"].points.high < 0.7
    assert own["position"].points.low < 0 < own["position"].points.high


def test_the_regression_is_statsmodels_with_clusters():
    api = pytest.importorskip("statsmodels.api")
    rng = np.random.default_rng(0)
    x, of = rng.normal(size=(300, 2)), np.repeat(np.arange(60), 5)
    x[:, 0] += rng.normal(size=60)[of]
    y = (rng.random(300) < 1 / (1 + np.exp(-(x @ [0.7, -0.4] + rng.normal(size=60)[of])))).astype(float)
    w, cov = logistic_regression(x, y, of, prior_sd=1e4)
    theirs = api.Logit(y, x).fit(disp=0, cov_type="cluster", cov_kwds={"groups": of, "use_correction": False})
    plain = api.Logit(y, x).fit(disp=0)
    assert w == pytest.approx(theirs.params, rel=1e-4)
    assert np.sqrt(np.diag(cov)) == pytest.approx(np.maximum(theirs.bse * math.sqrt(60 / 59), plain.bse), rel=1e-3)


def test_answers_that_separate_perfectly_give_a_finite_honest_interval():
    questions = make_questions(20)
    own = bias_report(questions, leaning(questions, "Ann", 0, first=1e3)).people["Ann"]["position"]
    assert own.share.value > 0.9 and own.effect.high < 50 and own.effect.low < 5


def test_too_little_to_tell_is_none_and_a_missing_question_an_error():
    questions = make_questions(9)
    answers = leaning(questions, "Ann", 0)
    assert bias_report(questions, answers).people["Ann"] == {"length": None, "position": None, "politeness": None}
    assert bias_report(questions, []).people == {}
    with pytest.raises(InputError, match="'q8', which is not given"):
        bias_report(questions[:-1], answers)


def test_a_position_that_was_not_recorded_is_not_guessed():
    questions = make_questions(150)
    answers = [Ranking(a.question_id, a.order, a.annotator) for a in leaning(questions, "Ann", 0, length=1.0)]
    own = bias_report(questions, answers).people["Ann"]
    assert own["position"] is None and own["length"].effect.low > 0


def test_in_a_class_without_bias_hardly_anybody_is_called_biased():
    questions = make_questions(60)
    clear = 0
    for seed in range(6):
        answers = [a for i in range(30) for a in leaning(questions, f"p{i}", 100 * seed + i)]
        clear += sum(b.clear for own in bias_report(questions, answers).people.values() for b in own.values())
    assert clear <= 3  # of 540 looked at; at 5% each without correction it would be 27


# --- attention --------------------------------------------------------------------------------------------------------


def test_careless_people_are_found_for_the_right_reasons():
    questions, answers, checks = a_class(400, 30, 3, seed=1, clickers=2, lazy=1)
    found = random_clickers(questions, answers, checks)
    assert {a.annotator for a in found if a.verdict == "worth a look"} == {"p00", "p01", "p02"}
    assert [a.verdict == "worth a look" for a in found][:3] == [True] * 3, "those come first"
    by_name = {a.annotator: a for a in found}
    assert any("clicking at random" in reason for reason in by_name["p00"].reasons)
    lazy = by_name["p02"]
    assert any("shown first won 100%" in reason for reason in lazy.reasons) and lazy.fast == 1.0
    assert any("faster than the replies can be skimmed" in reason for reason in lazy.reasons)
    honest = by_name["p20"]
    assert honest.reasons == () and honest.agreement.value > 0.6 and honest.chance_p < 0.05 and honest.failed == 0


def test_an_honest_class_of_thirty_is_hardly_ever_troubled():
    """40 classes without a clicker, 30 students each, with tastes and speeds of their own: alarms in about 5%."""
    alarms = [
        any(a.verdict == "worth a look" for a in random_clickers(*a_class(150, 30, 3, seed=seed))) for seed in range(40)
    ]
    assert sum(alarms) <= 6


def test_somebody_with_the_opposite_taste_is_no_clicker():
    questions, answers, _ = a_class(60, 6, 6, seed=2)
    turned = [
        Ranking(a.question_id, tuple(reversed(a.order)), a.annotator, a.displayed, a.seconds)
        if a.annotator == "p00"
        else a
        for a in answers
    ]
    other = {a.annotator: a for a in random_clickers(questions, turned)}["p00"]
    assert other.agreement.high < 0.5 and other.verdict == "fine"


def test_failed_checks_alone_are_a_reason():
    questions, answers, _ = a_class(120, 4, 4, seed=3)
    mine = [a for a in answers if a.annotator == answers[0].annotator]
    checks = {a.question_id: [(a.order[-1][0], a.order[0][0])] for a in mine[:12]}
    found = {a.annotator: a for a in random_clickers(questions, mine, checks)}[mine[0].annotator]
    assert found.reasons == ("Failed 12 of 12 check questions.",) and (found.failed, found.checks) == (12, 12)


def test_few_labels_and_nobody():
    questions, answers, checks = a_class(7, 3, 3, seed=0)
    assert {a.verdict for a in random_clickers(questions, answers, checks)} == {"too few labels"}
    assert random_clickers([], []) == []


def test_siding_with_the_others_is_a_fair_coin_for_somebody_who_clicks():
    """Whatever the number of replies: the sum over six classes is within four standard deviations of one half."""
    agreed = asked = 0
    for seed in range(6):
        _, answers, _ = a_class(100, 5, 5, seed=seed, clickers=1, k=2 + seed % 3)
        ours = sides_taken(pair_data(answers))["p00"]
        agreed, asked = agreed + ours[0], asked + ours[1]
    assert asked > 400 and abs(agreed / asked - 0.5) < 4 * 0.5 / math.sqrt(asked)


# --- time and order ---------------------------------------------------------------------------------------------------


def test_time_per_label_by_hand():
    answers = [
        Ranking("q", (("a",), ("b",)), "Ann", seconds=s, created=f"2026-01-01T00:00:{i:02}")
        for i, s in enumerate([20, 20, 20, 20, 5, 5, 5, 5])
    ]
    answers += [Ranking("q", (("a",), ("b",)), "Bob"), Ranking("q", (), "Bob", status="skipped", seconds=9)]
    times = time_per_label(list(reversed(answers)))
    assert set(times) == {"", "Ann"}
    assert (times["Ann"].labels, times["Ann"].median, times["Ann"].total) == (8, 12.5, 100)
    assert times["Ann"].speed_up == 4.0 and times[""].speed_up is None


def test_asking_both_ways_round_shows_who_follows_the_screen():
    questions = [Question(f"q{i}{way}", f"Q{i}?", (Candidate("a", "one"), Candidate("b", "two")))
                 for i in range(30) for way in "xy"]  # fmt: skip

    def answer(question, winner):
        shown = ("a", "b") if question.id.endswith("x") else ("b", "a")
        best = shown[0] if winner == "first" else winner
        return Ranking(question.id, ((best,), ("b" if best == "a" else "a",)), winner, shown)

    steady = order_effect(questions, [answer(q, "a") for q in questions])
    assert (steady.consistent.value, steady.first.value, steady.consistent.n) == (1.0, 0.0, 30)
    follower = order_effect(questions, [answer(q, "first") for q in questions])
    assert (follower.consistent.value, follower.first.value, follower.last.value) == (0.0, 1.0, 0.0)
    assert order_effect(questions, [answer(q, "a") for q in questions[::2]]) is None


def test_one_question_asked_again_in_mirrored_order_is_found_in_the_store_s_log(tmp_path):
    """The second answer replaces the first in `answers()`; the log has both, and a withdrawn one does not count."""
    questions = [Question(f"q{i}", f"Q{i}?", (Candidate("a", "one"), Candidate("b", "two"))) for i in range(3)]
    store = FeedbackStore(tmp_path / "feedback.db")
    store.add_questions(questions)
    for shown in (("a", "b"), ("b", "a")):
        for question in questions:
            store.append(Ranking(question.id, ((shown[0],), (shown[1],)), "Ann", shown))
    assert order_effect(questions, store.answers()) is None
    effect = order_effect(questions, store)
    assert (effect.first.value, effect.first.n) == (1.0, 3)
    store.withdraw(store.answers()[0].id, "Ann")
    assert order_effect(questions, store).first.n == 2


# --- small statistics -------------------------------------------------------------------------------------------------


def test_benjamini_hochberg_is_statsmodels():
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    p = np.random.default_rng(0).random(50) ** 3
    assert benjamini_hochberg(p) == pytest.approx(multitest.multipletests(p, method="fdr_bh")[1])
    assert benjamini_hochberg([]) == []


def test_binomial_tail_by_hand():
    assert binomial_tail(2, 2, 0.5) == 0.25 and binomial_tail(0, 5, 0.3) == pytest.approx(1.0)
    assert binomial_tail(9, 10, 0.5) == pytest.approx(11 / 1024)
    with pytest.raises(InputError, match="3 of 2"):
        binomial_tail(3, 2, 0.5)


def test_binomial_tail_of_more_labels_than_a_float_has_room_for():
    stats = pytest.importorskip("scipy.stats")
    for k, n, p in ((560, 1100, 0.5), (5200, 10_000, 0.5), (30, 3000, 0.01), (0, 2000, 0.3), (1, 5, 0.0), (5, 5, 1.0)):
        assert binomial_tail(k, n, p) == pytest.approx(stats.binom.sf(k - 1, n, p), rel=1e-9)
