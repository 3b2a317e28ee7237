"""Which question to ask next: active learning of one person's reward (`rlhf_lab.reward.TasteModel`).

A question is its replies' features (k, d). Each strategy gives every waiting question a value; the highest is asked.

- `random`: none knows better than chance;
- `disagreement`: how far an ensemble of reward heads, each fitted to a resample of the labels, differs about which
  reply is better (Christiano et al., arXiv:1706.03741, section 2.2.4);
- `information_gain`: how many nats the answer is expected to tell about the head (BALD: Houlsby et al.,
  arXiv:1112.5745), under Laplace's approximation of the posterior;
- `coverage_gain`: how much the answer is expected to shrink the uncertainty about the replies that the *policy* writes,
  which are the ones that PPO will be paid for (I-optimal design; Fedorov, 1972).

All but the first look for what is not known yet; they differ in what they want to know it for.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import get_args

import torch

from .config import Strategy
from .errors import InputError
from .reward import TasteModel

STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)


def next_questions(
    strategy: Strategy,
    taste: TasteModel,
    pool: Sequence[torch.Tensor],
    generator: torch.Generator,
    policy: torch.Tensor | None = None,
    n: int = 1,
) -> list[int]:
    """The places of the n questions to ask next, the best first.

    `pool` holds each waiting question's features (k, d), k ≥ 2; `policy` the features (m, d) of replies that the policy
    writes, for "coverage" (default: the pool's own replies). Raises InputError for an unknown strategy or empty pool.
    """
    if strategy not in STRATEGIES:
        raise InputError(f"strategy {strategy!r}: must be one of {', '.join(STRATEGIES)}")
    if not pool:
        raise InputError("no question to choose from: give at least one")
    values = question_values(strategy, taste, pool, generator, policy)
    values = values + 1e-12 * torch.rand(len(values), generator=generator)  # equal values: chance decides
    return values.argsort(descending=True)[:n].tolist()


def question_values(
    strategy: Strategy,
    taste: TasteModel,
    pool: Sequence[torch.Tensor],
    generator: torch.Generator,
    policy: torch.Tensor | None = None,
) -> torch.Tensor:
    """The value (N,) of asking each question of the pool: the mean over the pairs of its replies."""
    if strategy == "random":
        return torch.rand(len(pool), generator=generator)
    differences, owner = pair_differences(pool)
    if strategy == "disagreement":
        values = disagreement(differences, taste.ensemble(generator=generator))
    elif strategy == "information":
        values = information_gain(differences, taste.weight, taste.covariance())
    else:
        replies = torch.cat(list(pool)) if policy is None else policy
        values = coverage_gain(differences, taste.weight, taste.covariance(), torch.cov(replies.double().T))
    totals = torch.zeros(len(pool)).double().index_add_(0, owner, values)
    return totals / torch.bincount(owner, minlength=len(pool)).clamp(min=1)


def learning_curve(
    strategy: Strategy,
    taste: TasteModel,
    pool: Sequence[torch.Tensor],
    answers: Sequence[Sequence[tuple[int, int, bool]]],
    test: torch.Tensor,
    labels: int,
    generator: torch.Generator,
) -> list[float]:
    """Accuracy before the first label and after each of `labels`, when `strategy` chooses what is asked next.

    `pool` holds the features (k, d) of the questions that wait, `answers` the pairs that the person's answer to each
    would state, `test` the feature differences (n, d) of held-out pairs, the better reply first. `taste` is trained.
    """
    if labels > len(pool):
        raise InputError(f"labels is {labels}: only {len(pool)} questions wait")
    left = list(range(len(pool)))
    curve = [accuracy(taste, test)]
    for _ in range(labels):
        (place,) = next_questions(strategy, taste, [pool[i] for i in left], generator)
        asked = left.pop(place)
        taste.learn(str(asked), pool[asked], answers[asked])
        curve.append(accuracy(taste, test))
    return curve


def accuracy(taste: TasteModel, test: torch.Tensor) -> float:
    """The share of pairs, given as feature differences (n, d) with the better reply first, in the right order."""
    return (test @ taste.weight > 0).double().mean().item()


def pair_differences(pool: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Feature differences (P, d) of all pairs of replies of all questions, and which question (P,) each is of."""
    differences, owner = [], []
    for number, features in enumerate(pool):
        for one, other in combinations(range(len(features)), 2):
            differences.append(features[one] - features[other])
            owner.append(number)
    if not differences:
        raise InputError("no question has two replies to compare")
    return torch.stack(differences).double(), torch.tensor(owner)


def disagreement(differences: torch.Tensor, heads: torch.Tensor) -> torch.Tensor:
    """Variance (P,) over the ensemble's heads (M, d) of the probability that the first reply is better."""
    return torch.sigmoid(differences @ heads.T).var(1, unbiased=False)


def information_gain(differences: torch.Tensor, weight: torch.Tensor, covariance: torch.Tensor) -> torch.Tensor:
    """Nats (P,) that the answer to each pair tells about the head w ~ N(weight, covariance): H(E p) − E H(p).

    A score difference is then a Gaussian in one dimension, so both expectations are taken by Gauss-Hermite quadrature.
    """
    nodes, weights = hermite(16)
    spread = ((differences @ covariance) * differences).sum(1).clamp(min=0).sqrt()
    p = torch.sigmoid((differences @ weight)[:, None] + spread[:, None] * nodes)  # (P, nodes)
    return (entropy(p @ weights) - entropy(p) @ weights).clamp(min=0)


def coverage_gain(
    differences: torch.Tensor, weight: torch.Tensor, covariance: torch.Tensor, target: torch.Tensor
) -> torch.Tensor:
    """How much (P,) each answer shrinks the mean variance of scores of replies with feature covariance `target` (d, d).

    An answer with p = σ(w·x) adds p(1 − p) x xᵀ to the precision; by Sherman and Morrison the trace of
    target · covariance falls by p(1 − p) xᵀ C T C x / (1 + p(1 − p) xᵀ C x).
    """
    p = torch.sigmoid(differences @ weight)
    curvature = p * (1 - p)
    seen = differences @ covariance  # (P, d)
    shrinks = ((seen @ target) * seen).sum(1)
    return curvature * shrinks / (1 + curvature * (seen * differences).sum(1))


def entropy(p: torch.Tensor) -> torch.Tensor:
    """Nats of a yes-or-no question with probability p."""
    return -(torch.xlogy(p, p) + torch.xlogy(1 - p, 1 - p))


def hermite(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Nodes and weights (n,) for the mean of a function of a standard Gaussian (Golub and Welsch, 1969)."""
    off = torch.arange(1, n).double().sqrt()
    nodes, vectors = torch.linalg.eigh(torch.diag(off, 1) + torch.diag(off, -1))
    return nodes, vectors[0] ** 2
