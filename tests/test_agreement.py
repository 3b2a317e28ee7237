"""Agreement: the textbooks' numbers, what must not matter, missing answers, honest intervals, a model as annotator."""

import random
import subprocess
import sys
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_lab import agreement
from rlhf_lab.agreement import (
    agreement_report,
    cohen_kappa,
    contested,
    fleiss_kappa,
    grade_data,
    krippendorff_alpha,
    model_agreement,
    pair_data,
    rank_data,
    rating_data,
    strength,
    vote_data,
)
from rlhf_lab.errors import InputError
from rlhf_lab.records import Candidate, Question, Ranking, Rating, Vote
from rlhf_lab.store import FeedbackStore

# Krippendorff, Computing Krippendorff's Alpha-Reliability (2011), part C: four observers, twelve units, some missing.
KRIPPENDORFF = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3],
    [None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None],
]
# Fourteen people put ten units into five categories: the worked example of Fleiss' kappa (kappa 0.210).
FLEISS = [
    [0, 0, 0, 0, 14],
    [0, 2, 6, 4, 2],
    [0, 0, 3, 5, 6],
    [0, 3, 9, 2, 0],
    [2, 2, 8, 1, 1],
    [7, 7, 0, 0, 0],
    [3, 2, 6, 3, 0],
    [2, 5, 3, 2, 2],
    [6, 5, 2, 1, 0],
    [0, 2, 2, 3, 7],
]


def ranked(question: str, order: str, who: str, **fields) -> Ranking:
    """The ranking that "b>a=c" says."""
    return Ranking(question, tuple(tuple(tier.split("=")) for tier in order.split(">")), who, **fields)


def a_class(questions: int, people: int, overlap: int, noise: float = 1.0, seed: int = 0, k: int = 3) -> list[Ranking]:
    """Simulated rankings: each question has true values, each of its `overlap` people sees them with noise."""
    rng, answers = random.Random(seed), []
    for q in range(questions):
        worth = [rng.gauss(0, 1) for _ in range(k)]
        for person in rng.sample(range(people), overlap):
            seen = [value + rng.gauss(0, noise) for value in worth]
            order = ">".join(f"c{i}" for i in sorted(range(k), key=seen.__getitem__, reverse=True))
            answers.append(ranked(f"q{q}", order, f"p{person}"))
    return answers


# --- the textbooks ----------------------------------------------------------------------------------------------------


def test_cohen_s_kappa_of_a_table_worked_by_hand():
    """Both yes 20, both no 15, only one says yes 5 and 10: p_o = 0.7, p_e = 0.5 × 0.6 + 0.5 × 0.4 = 0.5."""
    a = ["yes"] * 25 + ["no"] * 25
    b = ["yes"] * 20 + ["no"] * 5 + ["yes"] * 10 + ["no"] * 15
    assert cohen_kappa(a, b) == pytest.approx(0.4)


def test_cohen_s_kappa_is_statsmodels():
    inter_rater = pytest.importorskip("statsmodels.stats.inter_rater")
    rng = np.random.default_rng(1)
    a = rng.integers(0, 3, 200)
    b = np.where(rng.random(200) < 0.6, a, rng.integers(0, 3, 200))
    table = np.zeros((3, 3))
    np.add.at(table, (a, b), 1)
    assert cohen_kappa(a.tolist(), b.tolist()) == pytest.approx(inter_rater.cohens_kappa(table).kappa)


def test_fleiss_kappa_of_the_worked_example_and_statsmodels():
    assert fleiss_kappa(FLEISS) == pytest.approx(0.2099, abs=5e-5)
    inter_rater = pytest.importorskip("statsmodels.stats.inter_rater")
    assert fleiss_kappa(FLEISS) == pytest.approx(inter_rater.fleiss_kappa(FLEISS))


def test_fleiss_kappa_with_different_numbers_of_people_by_hand():
    """Units (2, 0), (1, 1), (1, 2) and one person alone: P̄ = (1 + 0 + 1/3) / 3; shares 4/7 and 3/7."""
    chance = (4 / 7) ** 2 + (3 / 7) ** 2
    assert fleiss_kappa([[2, 0], [1, 1], [1, 2], [0, 1]]) == pytest.approx((4 / 9 - chance) / (1 - chance))


@pytest.mark.parametrize("level, value", [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)])
def test_alpha_of_krippendorff_s_own_example(level, value):
    assert krippendorff_alpha(KRIPPENDORFF, level) == pytest.approx(value, abs=5e-4)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.sampled_from([None, 0, 1, 2, 5]), min_size=6, max_size=6), min_size=2, max_size=5))
def test_the_sums_that_the_interval_resamples_give_the_library_s_alpha(values):
    """The point is the package krippendorff's, the resamples are ours: both must be one and the same coefficient."""
    counts, domain = agreement._tally(np.array(values, float))
    for level in ("nominal", "ordinal", "interval"):
        library = krippendorff_alpha(values, level)
        ours = agreement._number(agreement._alpha(agreement._coincidences(counts).sum(0)[None], domain, level))
        assert ours == (None if library is None else pytest.approx(library))


# --- what must not matter ---------------------------------------------------------------------------------------------

labels = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=2, max_size=30)


@given(labels, st.permutations(range(4)), st.randoms())
def test_kappa_does_not_know_the_labels_names_the_units_order_or_who_is_who(pairs, names, rng):
    a, b = zip(*pairs, strict=True)
    kappa = cohen_kappa(a, b)
    shuffled = rng.sample(pairs, len(pairs))
    renamed = cohen_kappa([names[one] for one, _ in shuffled], [names[other] for _, other in shuffled])
    assert renamed == (None if kappa is None else pytest.approx(kappa))
    assert cohen_kappa(b, a) == (None if kappa is None else pytest.approx(kappa))
    assert kappa is None or -1 - 1e-9 <= kappa <= 1 + 1e-9


@settings(max_examples=20, deadline=None)
@given(st.randoms(use_true_random=False))
def test_figures_do_not_depend_on_candidates_names_or_the_order_of_answers(rng):
    answers = a_class(12, 4, 3, seed=rng.randrange(1000))
    names = {(f"q{q}", f"c{i}"): f"{rng.random()} {i}" for q in range(12) for i in range(3)}
    renamed = [
        Ranking(a.question_id, tuple(tuple(names[a.question_id, c] for c in tier) for tier in a.order), a.annotator)
        for a in rng.sample(answers, len(answers))
    ]
    one, other = pair_data(answers), pair_data(renamed)
    for figure in ("raw", "cohen", "fleiss", "alpha"):
        assert getattr(one, figure)(resamples=10).value == pytest.approx(getattr(other, figure)(resamples=10).value)


# --- from answers to figures ------------------------------------------------------------------------------------------


def test_raw_agreement_of_two_rankings_by_hand():
    """a>b>c against b>a>c: two of three pairs; then a=b>c against a>b>c: two of three, and the tie leaves strict."""
    answers = [ranked("q1", "a>b>c", "Ann"), ranked("q1", "b>a>c", "Bob")]
    answers += [ranked("q2", "a=b>c", "Ann"), ranked("q2", "a>b>c", "Bob")]
    data = pair_data(answers)
    assert data.raw().value == pytest.approx(4 / 6) and data.raw().n == 6
    assert data.raw(strict=True).value == pytest.approx(4 / 5) and data.raw(strict=True).n == 5


def test_chance_is_one_half_for_two_people_who_never_tie():
    """Both ways round each verdict is as common as the other, so kappa is 2 × agreement − 1."""
    data = pair_data(a_class(40, 2, 2))
    expected = 2 * data.raw().value - 1
    assert data.cohen().value == pytest.approx(expected) == data.fleiss().value
    assert data.cohen_between("p0", "p1").value == pytest.approx(expected)
    assert data.alpha().value == pytest.approx(expected, abs=0.01)


def test_people_who_agree_people_who_guess_and_people_who_oppose():
    same = [ranked(a.question_id, ">".join(c for (c,) in a.order), "twin") for a in a_class(30, 1, 1)]
    agreeing = agreement_report(a_class(30, 1, 1) + same)
    assert agreeing.alpha.value == agreeing.cohen.value == agreeing.fleiss.value == agreeing.raw.value == 1.0
    assert 0.8 < agreeing.alpha.low < 0.95, "30 agreements in a row do not prove that there will never be another view"
    turned = [ranked(a.question_id, ">".join(c for (c,) in reversed(a.order)), "opposite") for a in same]
    assert agreement_report(same + turned).cohen.value == pytest.approx(-1.0)
    guessing = agreement_report(a_class(300, 6, 3, noise=1e6))
    assert guessing.alpha.low < 0 < guessing.alpha.high and guessing.strict.low < 0.5 < guessing.strict.high


def test_a_class_of_which_three_answer_each_question():
    report = agreement_report(a_class(120, 30, 3))
    assert report.people == 30 and report.questions == 120 and report.pairs == 360 and not report.message
    for figure in (report.raw, report.strict, report.cohen, report.fleiss, report.alpha, report.places):
        assert figure.low < figure.value < figure.high and figure.high - figure.low < 0.4
    assert set(report.with_others) == {f"p{i}" for i in range(30)}
    assert report.votes is None is report.grades and report.ratings == {}


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    """Agreement of two noisy people over 40 questions, 100 times; the truth from 4,000 questions."""
    truth = pair_data(a_class(4000, 2, 2, seed=99)).raw(resamples=2).value
    intervals = [pair_data(a_class(40, 2, 2, seed=seed)).raw(resamples=300) for seed in range(100)]
    assert 86 <= sum(i.low <= truth <= i.high for i in intervals) <= 100
    kappas = [pair_data(a_class(40, 2, 2, seed=seed)).cohen(resamples=300) for seed in range(100)]
    assert 86 <= sum(i.low <= 2 * truth - 1 <= i.high for i in kappas) <= 100


def test_pairs_of_one_ranking_are_not_taken_for_independent():
    """Six pairs a question are no six questions: the interval is wider than that of as many separate pairs."""
    straight, turned = "a>b>c>d", "d>c>b>a"
    answers = [ranked(f"q{q}", straight, "Ann") for q in range(60)]
    answers += [ranked(f"q{q}", straight if q % 3 else turned, "Bob") for q in range(60)]
    interval = pair_data(answers).raw()
    assert interval.n == 360 and interval.value == pytest.approx(2 / 3)
    half = 1.96 * (2 / 3 * 1 / 3 / 60) ** 0.5  # of 60 independent questions; of 360 pairs it would be 2.4 times less
    assert interval.high - interval.low == pytest.approx(2 * half, rel=0.15)


def test_someone_who_clicks_at_random_stands_out_among_the_others():
    answers = a_class(80, 4, 4, noise=0.3)
    rng = random.Random(5)
    for q in range(80):
        answers.append(ranked(f"q{q}", ">".join(rng.sample(["c0", "c1", "c2"], 3)), "clicker"))
    with_others = pair_data(answers).with_others()
    assert min(with_others, key=lambda name: with_others[name].value) == "clicker"
    assert with_others["clicker"].high < min(i.low for name, i in with_others.items() if name != "clicker")


def test_ratings_votes_grades_and_places_have_their_own_tables():
    def rating(question, who, *marks):
        return Rating(question, {f"c{i}": {"polite": mark} for i, mark in enumerate(marks)}, who)

    answers = [
        rating("q1", "Ann", 1, 3),
        rating("q1", "Bob", 2, 3),
        rating("q2", "Ann", 5, 4),
        rating("q2", "Bob", 5, 4),
    ]
    ours = rating_data(answers, "polite")
    assert ours.alpha().value == pytest.approx(krippendorff_alpha([[1, 3, 5, 4], [2, 3, 5, 4]], "ordinal"))
    assert agreement_report(answers).ratings["polite"].value == ours.alpha().value
    assert pair_data(answers).raw().value == 1.0, "marks are an order, too"

    votes = [Vote(f"q{q}", "c0", up, who) for q, both in enumerate(["ud", "uu", "dd", "uu"]) for who, up in
             zip("AB", (vote == "u" for vote in both), strict=True)]  # fmt: skip
    assert vote_data(votes).alpha().value == pytest.approx(krippendorff_alpha([[1, 1, 0, 1], [0, 1, 0, 1]]))

    better, best = "better", "significantly better"
    graded = [ranked("q1", "a>b", "Ann", grade=better), ranked("q1", "b>a", "Bob", grade=best)]
    graded += [ranked("q2", "a=b", "Ann"), ranked("q2", "a>b", "Bob", grade=better), ranked("q3", "a>b", "Ann")]
    data = grade_data(graded)
    assert [data.units[i][0] for i in range(2)] == ["q1", "q2"] and len(data.units) == 2  # q3 was not graded
    assert data.values.tolist() == [[3, 0], [-4, 3]]
    assert data.alpha().value < 0 < grade_data(graded[:1] + [ranked("q1", "a>b", "Bob", grade=best)] + graded[2:4] +
                                               [ranked("q3", "b>a", w, grade=better) for w in ("Ann", "Bob")]
                                               ).alpha().value  # fmt: skip

    places = rank_data([ranked("q", "a>b=c", "Ann")])
    assert dict(zip(places.units, places.values[0], strict=True)) == {("q", "a"): 0, ("q", "b"): 0.75, ("q", "c"): 0.75}


def test_near_misses_count_for_more_in_ordinal_places_than_in_none():
    """Neighbours swapped is a smaller disagreement than the whole order turned round, for the same people."""
    straight = [ranked(f"q{i}", "a>b>c>d", "Ann") for i in range(6)]
    swapped = straight + [ranked(f"q{i}", "b>a>c>d", "Bob") for i in range(6)]
    turned = straight + [ranked(f"q{i}", "d>c>b>a", "Bob") for i in range(6)]
    assert rank_data(swapped).alpha().value > 0.5 > -0.5 > rank_data(turned).alpha().value


def test_a_person_s_last_ranking_counts_before_a_rating():
    rating = Rating("q", {"a": {"polite": 1}, "b": {"polite": 5}}, "Ann")
    answers = [ranked("q", "b>a", "Ann"), ranked("q", "a>b", "Ann"), rating]
    assert pair_data(answers).values.tolist() == [[1]] and pair_data([rating]).values.tolist() == [[-1]]


def test_a_store_may_be_given_and_withdrawn_answers_do_not_count(tmp_path):
    store = FeedbackStore(tmp_path / "feedback.db")
    for q in range(12):
        store.add_question(Question(f"q{q}", "?", (Candidate("a", "x"), Candidate("b", "y"))))
        for who in ("Ann", "Bob"):
            store.append(ranked(f"q{q}", "a>b" if who == "Ann" or q else "b>a", who))
    assert agreement_report(store).raw.value == pytest.approx(11 / 12)
    store.withdraw(store.answers("Bob")[0].id, "Bob")
    assert agreement_report(store).raw.value == 1.0 and agreement_report(store).pairs == 11


# --- where there is little or nothing to say --------------------------------------------------------------------------

skipped = Ranking("q0", (), "Bob", status="skipped")


@pytest.mark.parametrize(
    "answers, words",
    [
        ([], "Nobody"),
        ([skipped], "Nobody"),
        ([ranked("q0", "a>b", "Ann"), ranked("q1", "a>b", "Ann"), skipped], "Only Ann"),
        ([ranked("q0", "a>b", "Ann"), ranked("q1", "a>b", "Bob")], "No two people"),
        ([ranked("q0", "a>b", "Ann"), ranked("q0", "a>b", "Bob")], "Only one question"),
        ([Vote("q0", "a", True, "Ann"), Vote("q0", "a", True, "Bob")], "No two people"),
    ],
)
def test_where_agreement_cannot_be_told_the_report_says_why(answers, words):
    report = agreement_report(answers)
    assert report.message.startswith(words)
    figures = (report.raw, report.strict, report.cohen, report.fleiss, report.alpha, report.places, report.grades)
    assert set(figures) == {None} and set(report.with_others.values()) <= {None}
    assert contested(answers) == [] or words == "Only one question"


def test_nothing_but_ties_is_agreement_without_a_kappa():
    answers = [ranked(f"q{q}", "a=b", who) for q in range(5) for who in ("Ann", "Bob")]
    report = agreement_report(answers)
    assert report.raw.value == 1.0 and report.cohen is report.fleiss is report.alpha is report.strict is None
    assert "5 questions" in report.message


def test_no_figure_is_ever_nan_however_thin_the_overlap():
    for seed in range(40):
        rng = random.Random(seed)
        answers = [ranked(f"q{rng.randrange(6)}", rng.choice(["a>b", "a=b", "b>a"]), f"p{i % 4}") for i in range(8)]
        report = agreement_report(answers, resamples=20)
        figures = [report.raw, report.strict, report.cohen, report.fleiss, report.alpha, *report.with_others.values()]
        for figure in filter(None, figures):
            assert np.isfinite([figure.value, figure.low, figure.high]).all()
            assert figure.low <= figure.value <= figure.high


def test_two_people_who_never_meet_and_somebody_unknown():
    data = pair_data([*a_class(10, 2, 2), *(ranked(f"x{q}", "a>b", "alone") for q in range(5))])
    assert data.cohen_between("p0", "alone") is None and data.with_others()["alone"] is None
    with pytest.raises(InputError, match="nobody called 'Zoe'"):
        data.cohen_between("p0", "Zoe")


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: cohen_kappa([1, 2], [1]), "2 labels against 1"),
        (lambda: fleiss_kappa([[0.5, 1.5]]), "whole numbers"),
        (lambda: krippendorff_alpha([[1, 2], [1, 2]], "ratio"), "level 'ratio'"),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(InputError, match=words):
        call()


def test_undefined_coefficients_are_none():
    assert cohen_kappa([], []) is cohen_kappa([1, 1], [1, 1]) is fleiss_kappa([[1, 0], [0, 1]]) is None
    assert krippendorff_alpha([[1, 1], [1, 1]]) is krippendorff_alpha([[1, None], [None, 2]]) is None


def test_without_the_library_alpha_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "krippendorff", None)
    with pytest.raises(InputError, match=r"rlhf-lab\[quality\]"):
        krippendorff_alpha(KRIPPENDORFF)


def test_the_words_of_landis_and_koch():
    assert [strength(k) for k in (-0.1, 0.1, 0.3, 0.46, 0.7, 0.9)] == [
        "poor", "slight", "fair", "moderate", "substantial", "almost perfect",
    ]  # fmt: skip


# --- questions worth discussing, and a model --------------------------------------------------------------------------


def test_contested_questions_come_first():
    answers = [ranked("calm", "a>b", who) for who in "ABC"] + [ranked("split", o, w) for o, w in
               zip(["a>b", "b>a", "a>b"], "ABC", strict=True)] + [ranked("lonely", "a>b", "A")]  # fmt: skip
    found = contested(answers)
    assert [item.question_id for item in found] == ["split", "calm"]
    assert found[0].agreement == pytest.approx(1 / 3) and found[0].people == 3 and found[0].pairs == 1
    assert contested(answers, least=4) == []


def test_a_model_s_agreement_by_hand():
    """Ann's strict pairs: right, wrong, equal (half). Bob's tie tells nothing in `strict`."""
    answers = [ranked("q1", "a>b", "Ann"), ranked("q2", "a>b", "Ann"), ranked("q3", "b>a", "Ann")]
    answers += [ranked("q1", "a=b", "Bob"), ranked("q2", "b>a", "Bob"), ranked("q3", "b>a", "Bob")]
    scores = {"q1": {"a": 2.0, "b": 1.0}, "q2": {"a": -1.0, "b": 0.0}, "q3": {"a": 3.0, "b": 3.0}}
    report = model_agreement(scores, answers)
    assert report.by_person["Ann"].value == pytest.approx(0.5) and report.by_person["Ann"].n == 3
    assert report.strict.value == pytest.approx(3 / 5)
    assert model_agreement(scores, answers, "Bob").strict.value == pytest.approx(1.5 / 2)
    assert model_agreement({"q1": scores["q1"]}, answers).strict is None, "one question gives no interval"


def test_a_model_that_is_right_agrees_more_with_noisy_people_than_they_with_each_other():
    rng, answers, scores = random.Random(3), [], {}
    for q in range(500):
        scores[f"q{q}"] = {f"c{i}": rng.gauss(0, 1) for i in range(3)}
        for who in ("Ann", "Bob"):
            seen = {c: value + rng.gauss(0, 1) for c, value in scores[f"q{q}"].items()}
            answers.append(ranked(f"q{q}", ">".join(sorted(seen, key=seen.get, reverse=True)), who))
    model = model_agreement(scores, answers)
    assert model.strict.low > pair_data(answers).raw(strict=True).high
    assert model.kappa.value == pytest.approx(2 * model.strict.value - 1)


def test_a_model_s_scores_are_checked():
    answers = [ranked("q", "a>b", "Ann")]
    with pytest.raises(InputError, match="'q' lack its reply 'b'"):
        model_agreement({"q": {"a": 1.0}}, answers)
    with pytest.raises(InputError, match="NaN"):
        model_agreement({"q": {"a": 1.0, "b": float("nan")}}, answers)


def test_importing_it_is_light():
    code = "import sys, rlhf_lab.agreement, rlhf_lab.aggregation, rlhf_lab.quality; print(*sys.modules)"
    loaded = set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.split())
    assert "rlhf_lab.quality" in loaded
    assert not loaded & {"torch", "pandas", "scipy", "statsmodels", "krippendorff", "transformers"}


def test_every_pair_of_people_counts_by_what_they_share():
    """Ann and Bob meet often and agree; Cem meets each twice and opposes them: the mean is near the first."""
    answers = [ranked(f"q{q}", "a>b" if q % 2 else "b>a", who) for q in range(40) for who in ("Ann", "Bob")]
    answers += [ranked(f"q{q}", "b>a" if q % 2 else "a>b", "Cem") for q in range(2)]
    data = pair_data(answers)
    between = {pair: data.cohen_between(*pair).value for pair in combinations(data.people, 2)}
    assert between == {("Ann", "Bob"): 1.0, ("Ann", "Cem"): -1.0, ("Bob", "Cem"): -1.0}
    assert data.cohen().value == pytest.approx((40 - 2 - 2) / 44)
