"""Which question to ask next: values by hand and against independent numbers, and what they are for."""

import math

import numpy as np
import pytest
import torch

from rlhf_lab.errors import InputError
from rlhf_lab.reward import TasteModel
from rlhf_lab.selection import (
    STRATEGIES,
    coverage_gain,
    disagreement,
    hermite,
    information_gain,
    learning_curve,
    next_questions,
    pair_differences,
    question_values,
)


def taste(spread=(1.0, 1.0)) -> TasteModel:
    return TasteModel(torch.zeros(len(spread)), torch.diag(torch.tensor(spread)))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_quadrature_takes_the_moments_of_a_gaussian():
    nodes, weights = hermite(8)
    moments = [float((weights * nodes**n).sum()) for n in (0, 1, 2, 4, 6)]
    assert moments == pytest.approx([1, 0, 1, 3, 15], abs=1e-9)


def test_information_gain_agrees_with_sampling_the_head():
    """H(E p) − E H(p) over heads drawn from the posterior."""
    covariance = torch.tensor([[1.0, 0.3], [0.3, 0.5]]).double()
    weight, x = torch.tensor([0.4, -0.2]).double(), torch.tensor([[1.5, -0.5]]).double()
    rng = np.random.default_rng(0)
    heads = rng.multivariate_normal(weight.numpy(), covariance.numpy(), 400_000)
    p = 1 / (1 + np.exp(-heads @ x[0].numpy()))

    def nats(q):
        return -(q * np.log(q) + (1 - q) * np.log(1 - q))

    expected = nats(p.mean()) - nats(p).mean()
    assert information_gain(x, weight, covariance).item() == pytest.approx(expected, abs=5e-4)


def test_what_is_certain_or_cannot_be_answered_tells_nothing():
    x = torch.tensor([[1.0, 0.0], [0.0, 0.0]]).double()
    certain = torch.zeros(2, 2).double()
    assert information_gain(x, torch.zeros(2).double(), certain).tolist() == pytest.approx([0, 0], abs=1e-12)
    assert information_gain(x, torch.zeros(2).double(), 1e9 * torch.eye(2).double())[0] == pytest.approx(
        math.log(2), 0.01
    )


def test_coverage_gain_is_the_fall_of_the_policys_uncertainty():
    """Against the inverse of the precision with the answer's curvature added."""
    weight, x = torch.tensor([0.3, -0.4, 0.1]).double(), torch.tensor([[1.0, 2.0, -1.0]]).double()
    covariance = torch.tensor([[1.0, 0.2, 0.0], [0.2, 0.8, 0.1], [0.0, 0.1, 0.5]]).double()
    target = torch.diag(torch.tensor([0.1, 2.0, 0.5])).double()
    p = torch.sigmoid(x @ weight)
    after = torch.linalg.inv(torch.linalg.inv(covariance) + p * (1 - p) * x.T @ x)
    expected = torch.trace(target @ covariance) - torch.trace(target @ after)
    torch.testing.assert_close(coverage_gain(x, weight, covariance, target)[0], expected)


def test_an_ensemble_without_labels_is_the_prior_and_agrees_as_labels_come():
    model = taste((4.0, 0.01))
    heads = model.ensemble(400, generator())
    assert heads.std(0).tolist() == pytest.approx([2.0, 0.1], rel=0.15)
    x = torch.tensor([[1.0, 0.0]]).double()
    before = disagreement(x, heads).item()
    for i in range(40):
        model.learn(str(i), torch.tensor([[1.0, 0.0], [0.0, 0.0]]), [(0, 1, False)])
    assert disagreement(x, model.ensemble(16, generator())).item() < before / 4


@pytest.mark.parametrize("strategy", ["disagreement", "information", "coverage"])
def test_what_is_open_is_asked_before_what_is_known(strategy):
    model = taste()
    known, open_ = torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), torch.tensor([[0.0, 1.0], [0.0, -1.0]])
    for i in range(30):
        model.learn(str(i), known, [(0, 1, False)])
    assert next_questions(strategy, model, [known, open_], generator()) == [1]


def test_coverage_asks_about_what_the_policy_writes():
    one, other = torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), torch.tensor([[0.0, 1.0], [0.0, -1.0]])
    writes = torch.randn(50, 2, generator=generator()) * torch.tensor([0.1, 3.0])
    assert next_questions("coverage", taste(), [one, other], generator(), writes) == [1]
    assert next_questions("coverage", taste(), [one, other], generator(), writes.flip(1)) == [0]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_choices_are_the_seeds_and_each_question_is_chosen_once(strategy):
    pool = list(torch.randn(12, 3, 2, generator=generator(1)))
    first = next_questions(strategy, taste(), pool, generator(5), n=12)
    assert first == next_questions(strategy, taste(), pool, generator(5), n=12) and sorted(first) == list(range(12))


def test_a_questions_value_is_the_mean_over_its_pairs():
    pool = [torch.randn(3, 2, generator=generator(2)), torch.randn(2, 2, generator=generator(3))]
    differences, owner = pair_differences(pool)
    assert owner.tolist() == [0, 0, 0, 1] and torch.equal(differences[3], (pool[1][0] - pool[1][1]).double())
    model = taste()
    single = information_gain(differences, model.weight, model.covariance())
    values = question_values("information", model, pool, generator())
    torch.testing.assert_close(values, torch.stack([single[:3].mean(), single[3]]))


def test_bad_input_is_named():
    with pytest.raises(InputError, match="must be one of random, disagreement, information, coverage"):
        next_questions("luck", taste(), [torch.zeros(2, 2)], generator())
    with pytest.raises(InputError, match="no question to choose from"):
        next_questions("random", taste(), [], generator())
    with pytest.raises(InputError, match="two replies to compare"):
        next_questions("coverage", taste(), [torch.zeros(1, 2)], generator())


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_learning_curve_starts_with_the_prior_and_ends_where_all_labels_lead(strategy):
    truth = torch.tensor([1.0, -2.0, 0.5])
    pool = list(torch.randn(15, 2, 3, generator=generator(7)))
    answers = [[(0, 1, False)] if (f @ truth)[0] > (f @ truth)[1] else [(1, 0, False)] for f in pool]
    test = torch.randn(200, 3, generator=generator(8)).double()
    test = test * (test @ truth.double()).sign()[:, None]
    curve = learning_curve(strategy, taste((1.0, 1.0, 1.0)), pool, answers, test, 15, generator())
    everything = taste((1.0, 1.0, 1.0))
    for i, (features, pairs) in enumerate(zip(pool, answers, strict=True)):
        everything.learn(str(i), features, pairs)
    assert len(curve) == 16 and curve[0] == 0.0
    assert curve[-1] == pytest.approx((test @ everything.weight > 0).double().mean().item())
    assert curve[-1] > 0.8
    with pytest.raises(InputError, match="only 15 questions wait"):
        learning_curve(strategy, taste(), pool, answers, test, 16, generator())
