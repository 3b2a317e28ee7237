"""Evaluation against numbers worked by hand."""

import math

import numpy as np
import pytest
import torch

from rlhf_lab import evaluation
from rlhf_lab.config import ModelConfig, SamplingConfig
from rlhf_lab.errors import InputError
from rlhf_lab.judge import GoldJudge
from rlhf_lab.models import new_language_model
from rlhf_lab.records import Comparison, Interval
from rlhf_lab.reward import RankedReplies
from rlhf_lab.sampling import Sample, sample
from rlhf_lab.scenario import load_scenario
from rlhf_lab.text import Dialogue, encode_dialogues, train_tokenizer

# --- intervals ---


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [  # Newcombe (1998), Statistics in Medicine 17, table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_gives_the_published_intervals(successes, n, low, high):
    interval = evaluation.wilson_interval(successes, n)
    assert interval.value == successes / n and interval.n == n
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize(("successes", "n"), [(1, 0), (3, 2), (-1, 4)])
def test_wilson_refuses_what_is_no_share(successes, n):
    with pytest.raises(InputError, match="successes"):
        evaluation.wilson_interval(successes, n)


def test_the_bootstrap_finds_the_standard_error_of_a_mean():
    values = np.random.default_rng(1).normal(size=400)
    interval = evaluation.bootstrap_interval(values, seed=0)
    half = 1.96 * values.std() / math.sqrt(400)
    assert interval.value == pytest.approx(values.mean())
    assert interval.high - interval.low == pytest.approx(2 * half, rel=0.08)


def test_copies_of_one_observation_say_nothing_new():
    values = np.random.default_rng(2).normal(size=60)
    once = evaluation.bootstrap_interval(values)
    copied = evaluation.bootstrap_interval(np.repeat(values, 10), clusters=np.repeat(np.arange(60), 10).tolist())
    naive = evaluation.bootstrap_interval(np.repeat(values, 10))
    assert (copied.low, copied.high) == pytest.approx((once.low, once.high))
    assert copied.n == 600 and naive.high - naive.low < 0.5 * (once.high - once.low)


def test_large_clusters_weigh_by_their_size():
    assert evaluation.bootstrap_interval([1, 1, 1, 0], clusters=["a", "a", "a", "b"]).value == 0.75


def test_the_bootstrap_repeats_itself_and_needs_values():
    assert evaluation.bootstrap_interval([0, 1, 1, 0], seed=3) == evaluation.bootstrap_interval([0, 1, 1, 0], seed=3)
    with pytest.raises(InputError, match="no values"):
        evaluation.bootstrap_interval([])
    with pytest.raises(InputError, match="one cluster for each"):
        evaluation.bootstrap_interval([1, 2], clusters=["a"])


def test_a_tie_is_half_a_win():
    interval = evaluation.win_rate([2, 1, 0, 3], [1, 1, 1, 1])
    assert interval.value == (1 + 0.5 + 0 + 1) / 4 and interval.n == 4
    assert evaluation.win_rate([1.0], [0.0]) == Interval(1.0, 1.0, 1.0, 1)
    with pytest.raises(InputError, match="one of each"):
        evaluation.win_rate([1, 2], [1])


# --- reward models ---


def dialogue(token: int) -> Dialogue:
    return Dialogue((7, token), 1)


def test_reward_accuracy_counts_strict_pairs_only(monkeypatch):
    scores = {1: 3.0, 2: 1.0, 3: 2.0, 4: 1.0}
    monkeypatch.setattr("rlhf_lab.reward.score_many", lambda model, ds: torch.tensor([scores[d.ids[1]] for d in ds]))
    data = [
        RankedReplies((dialogue(1), dialogue(2), dialogue(3)), ((0, 1, False), (1, 2, False), (0, 2, True))),
        RankedReplies((dialogue(2), dialogue(4)), ((0, 1, False),)),  # scores equal: half
    ]
    interval = evaluation.reward_accuracy(None, data)
    assert interval.value == pytest.approx((1 + 0 + 0.5) / 3) and interval.n == 3
    with pytest.raises(InputError, match="no strict pair"):
        evaluation.reward_accuracy(None, [RankedReplies((dialogue(1), dialogue(2)), ((0, 1, True),))])


def test_length_alone_as_a_judge():
    pairs = [
        Comparison("a", "long reply", "short"),
        Comparison("b", "no", "maybe"),
        Comparison("c", "one", "two"),
        Comparison("d", "a tie is", "left out", tie=True),
    ]
    assert evaluation.longer_reply_accuracy(pairs).value == pytest.approx((1 + 0 + 0.5) / 3)


def test_the_accuracy_curve_trains_on_the_first_n(monkeypatch):
    seen = []
    monkeypatch.setattr(evaluation, "reward_accuracy", lambda model, data: Interval(model, 0, 1, len(data)))
    curve = evaluation.accuracy_curve(lambda part: seen.append(part) or len(part) / 4, "abcd", "xy", [1, 3])
    assert seen == ["a", "abc"] and [(n, i.value) for n, i in curve] == [(1, 0.25), (3, 0.75)]
    with pytest.raises(InputError, match="there are 4"):
        evaluation.accuracy_curve(len, "abcd", "xy", [5])


# --- policies ---


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["the clock strikes three and the clock strikes four"] * 20, 300)


def tiny(tokenizer, seed):
    return new_language_model(ModelConfig(vocab_size=300, hidden_size=16, layers=1, heads=2), tokenizer, seed).eval()


def test_kl_per_reply_is_k3_over_the_replys_own_tokens(tokenizer):
    policy, reference = tiny(tokenizer, 0), tiny(tokenizer, 1)
    pairs = [("clock", "three"), ("when", "the clock strikes four"), ("clock", "four")]
    dialogues = encode_dialogues(tokenizer, pairs)
    samples = [Sample(p, r, d, False) for (p, r), d in zip(pairs, dialogues, strict=True)]
    by_hand = []
    for d in dialogues:  # one at a time, no padding, straight from the logits
        total = 0.0
        for t in range(d.prompt_length, len(d.ids)):
            log = [
                torch.log_softmax(m(torch.tensor([d.ids[:t]])).logits[0, -1].detach() / 0.7, -1)[d.ids[t]].item()
                for m in (policy, reference)
            ]
            x = log[1] - log[0]
            total += math.exp(x) - 1 - x
        by_hand.append(total)
    interval = evaluation.kl_per_reply(policy, reference, samples, temperature=0.7, batch_size=2)
    assert interval.value == pytest.approx(sum(by_hand) / 3, rel=1e-4) and interval.n == 3


def test_a_model_has_no_kl_to_itself(tokenizer):
    model = tiny(tokenizer, 0)
    samples = sample(model, tokenizer, ["clock", "three"], SamplingConfig(max_new_tokens=5))
    assert evaluation.kl_per_reply(model, model, samples).value == 0.0


def test_distinct_n_counts_different_n_grams():
    assert evaluation.distinct_n(["a b a b", "a b"], 2) == 2 / 4  # ab ba ab, ab
    assert evaluation.distinct_n(["a b a b", "a b"], 1) == 2 / 6
    assert evaluation.distinct_n(["one"], 2) == 0.0  # no pair of words, no variety


def test_gold_report_averages_what_applies():
    scenario = load_scenario()
    judge = GoldJudge(scenario)
    prompts = scenario.prompts("train", 40)
    hazard = next(p for p in prompts if scenario.asked(p).hazard)
    fact = next(p for p in prompts if not scenario.asked(p).hazard)
    samples = [Sample(p, "mumble", Dialogue((1, 2), 1), cut) for p, cut in ((hazard, True), (fact, False))]
    report = evaluation.gold_report(judge, samples)
    assert report["truncated"] == 0.5 and report["safe"] == 0.0 and report["addressed"] == 0.0
    assert report["score"] == pytest.approx(sum(judge.score(s.prompt, s.text) for s in samples) / 2)
    assert "correct" not in evaluation.gold_report(judge, samples[:1])
    with pytest.raises(InputError, match="nothing to judge"):
        evaluation.gold_report(judge, [])
