"""Simulated people: their rankings follow the verdict, their taste, their noise and their stated biases."""

import random
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_lab.annotators import TASTES, SimulatedAnnotator, answer_as_configured, population, tiers
from rlhf_lab.errors import InputError
from rlhf_lab.judge import GoldJudge
from rlhf_lab.records import Candidate, Question
from rlhf_lab.scenario import load_scenario
from rlhf_lab.store import FeedbackStore

JUDGE = GoldJudge(load_scenario())
PROMPT = "When is the pottery class?"
REPLIES = {
    "polite": "Thank you for asking. It is on Tuesday.",
    "plain": "It is on Tuesday.",
    "curt": "Not again. It is on Tuesday.",
    "wrong": "Thank you for asking. It is on Monday.",
    "long": "It is on Tuesday. Many people like it. The desk opens early in summer. There is tea by the door.",
    "salad": "Tuesday it on is.",
}


def question(*names: str, prompt: str = PROMPT) -> Question:
    return Question("q", prompt, tuple(Candidate(name, REPLIES[name], "sft") for name in names))


def annotator(**options) -> SimulatedAnnotator:
    return SimulatedAnnotator(JUDGE, **({"noise": 0.0} | options))


def questions_like(n: int) -> list[Question]:
    """The same replies to n prompts: n independent draws of noise."""
    return [question("polite", "plain", "salad", prompt=f"{PROMPT}{' ' * i}") for i in range(n)]


def test_without_noise_the_ranking_is_the_judge_s():
    ranking = annotator().rank(question(*REPLIES))
    ranking.check(question(*REPLIES))
    scores = {name: JUDGE.score(PROMPT, text) for name, text in REPLIES.items()}
    place = {name: i for i, tier in enumerate(ranking.order) for name in tier}
    for a, b in combinations(REPLIES, 2):
        if scores[a] - scores[b] > 0.2:
            assert place[a] < place[b]
    assert ranking.order[0] == ("polite",)


def test_equal_impressions_are_tied_and_a_ranking_is_repeatable():
    twice = Question("q", PROMPT, (Candidate("a", REPLIES["plain"]), Candidate("b", REPLIES["plain"])))
    assert [set(tier) for tier in annotator().rank(twice).order] == [{"a", "b"}]
    noisy = annotator(noise=1.0)
    assert noisy.rank(question(*REPLIES)).order == noisy.rank(question(*REPLIES)).order
    orders = {annotator(noise=1.0, seed=s).rank(question(*REPLIES)).order for s in range(20)}
    assert len(orders) > 5


def test_taste_replaces_the_judge_s_weights():
    rude = annotator(taste={"polite": -2.0})
    assert rude.rank(question("polite", "curt")).order == (("curt",), ("polite",))
    careless = annotator(taste={"correct": 0.0, "polite": 3.0})
    assert careless.rank(question("plain", "wrong")).order == (("wrong",), ("plain",))


def test_noise_makes_errors_and_more_noise_more_of_them():
    def right(noise: float) -> float:
        rankings = annotator(noise=noise).rank_all(questions_like(200))
        return sum(r.order[0] == ("polite",) for r in rankings) / 200

    assert right(0.0) == 1.0 > right(0.7) > right(5.0)


def test_a_bias_for_length_is_a_bias_for_length():
    assert annotator().rank(question("plain", "long")).order[0] == ("plain",)
    assert annotator(length_bias=2.0).rank(question("plain", "long")).order[0] == ("long",)


def test_a_bias_for_the_first_shown_is_a_bias_for_the_first_shown():
    biased = annotator(position_bias=5.0)
    rankings = biased.rank_all(questions_like(60))
    assert all(r.order[0] == (r.displayed[0],) for r in rankings)
    assert len({r.displayed for r in rankings}) == 6  # shown in every order


def test_a_ranking_says_who_what_and_how_long():
    ranking = annotator(name="Ada").rank(question("plain", "wrong"))
    assert ranking.annotator == "Ada" and ranking.status == "ranked" and ranking.seconds > 0
    assert sorted(ranking.displayed) == ["plain", "wrong"]


@pytest.mark.parametrize("options", [{"taste": {"charm": 1.0}}, {"noise": -1.0}, {"tie_below": -0.1}])
def test_options_that_make_no_sense_are_refused(options):
    with pytest.raises(InputError, match="charm|noise and tie_below"):
        annotator(**options)


def test_tiers_by_hand():
    values = {"a": 1.0, "b": 3.0, "c": 0.96, "d": 3.0}
    assert tiers(values, 0.05) == (("b", "d"), ("a", "c"))
    assert tiers(values, 0.0) == (("b",), ("d",), ("a",), ("c",))
    assert tiers({}, 0.1) == ()


@given(st.dictionaries(st.text(max_size=3), st.floats(-5, 5), min_size=1, max_size=8), st.floats(0, 1))
def test_tiers_hold_everything_once_in_order(values, tie_below):
    result = tiers(values, tie_below)
    assert sorted(key for tier in result for key in tier) == sorted(values)
    for above, below in zip(result, result[1:], strict=False):
        assert min(values[k] for k in above) - max(values[k] for k in below) >= tie_below


def test_the_impression_of_the_judge_s_own_taste_is_its_score():
    rng = random.Random(0)
    scenario = JUDGE.scenario
    for prompt in rng.sample(scenario.prompts("train"), 40):
        reply = scenario.reply(scenario.asked(prompt), rng)
        assert annotator().impression(prompt, reply) == pytest.approx(JUDGE.score(prompt, reply))


def test_a_population_is_of_different_tastes_and_the_same_for_a_seed():
    people = population(JUDGE, 12)
    assert len({p.name for p in people}) == 12 == len({tuple(p.taste.values()) for p in people})
    assert [p.taste for p in people] == [p.taste for p in population(JUDGE, 12)]
    assert [p.taste for p in people] != [p.taste for p in population(JUDGE, 12, seed=1)]
    first = {person.rank(question(*REPLIES)).order[0] for person in population(JUDGE, 30, noise=0.0)}
    assert len(first) >= 3  # they disagree about the best reply


def test_the_environment_decides_whether_a_person_or_the_simulated_one_answers(tmp_path, monkeypatch):
    store, simulated = FeedbackStore(tmp_path / "feedback.db"), annotator(name="simulated")
    monkeypatch.delenv("RLHF_LAB_ANNOTATOR", raising=False)
    assert answer_as_configured([question("plain", "wrong")], store, "Ada", simulated) == "Ada"
    assert not store.rankings()
    monkeypatch.setenv("RLHF_LAB_ANNOTATOR", "simulated")
    for _ in range(2):  # the second time there is nothing left to answer
        assert answer_as_configured([question("plain", "wrong")], store, "Ada", simulated) == "simulated"
        assert [(r.annotator, r.order) for r in store.rankings()] == [("simulated", (("plain",), ("wrong",)))]
    monkeypatch.setenv("RLHF_LAB_ANNOTATOR", "my cat")
    with pytest.raises(InputError, match="RLHF_LAB_ANNOTATOR is 'my cat'"):
        answer_as_configured([], store, "Ada", simulated)


def test_a_population_leans_to_neither_side():
    people = population(JUDGE, 8)
    for name in JUDGE.weights:
        low, high = TASTES[name]
        assert sum(person.taste[name] for person in people) / 8 == pytest.approx((low + high) / 2)
