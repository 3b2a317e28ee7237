"""Independent implementations of the papers' formulas: float64 loops over plain lists of numbers, nothing of ours.

They are slow and obvious on purpose. A reply is a list of its real tokens' numbers, so nothing here knows of masks or
padding: `ragged` cuts a padded tensor into such lists, `padded` builds one.
"""

from __future__ import annotations

import math
from itertools import permutations

import numpy as np


def ragged(x, lengths) -> list[list[float]]:
    """Rows of a padded (B, R) tensor as lists of their real numbers."""
    return [[float(v) for v in row[:n]] for row, n in zip(np.asarray(x, dtype=np.float64), lengths, strict=True)]


def padded(rows, width: int) -> np.ndarray:
    """Lists of numbers as one (B, width) array, 0 behind each."""
    out = np.zeros((len(rows), width))
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return out


def rewards(logprobs, ref_logprobs, scores, beta):
    """Ziegler et al. (arXiv:1909.08593), equation 2, token by token: r_t = −β·log(π/π_ref), the score on the last."""
    result = []
    for lp, ref, score in zip(logprobs, ref_logprobs, scores, strict=True):
        row = [-beta * (a - b) for a, b in zip(lp, ref, strict=True)]
        row[-1] += float(score)
        result.append(row)
    return result


def gae(rewards, values, gamma, lam):
    """Schulman et al. (arXiv:1506.02438), equation 16, as the written-out sum: A_t = Σ_l (γλ)^l δ_{t+l}."""
    advantages, returns = [], []
    for r, v in zip(rewards, values, strict=True):
        after = [*v[1:], 0.0]
        deltas = [r[t] + gamma * after[t] - v[t] for t in range(len(r))]
        row = [sum((gamma * lam) ** (s - t) * deltas[s] for s in range(t, len(r))) for t in range(len(r))]
        advantages.append(row)
        returns.append([a + b for a, b in zip(row, v, strict=True)])
    return advantages, returns


def whiten(rows, shift_mean=True):
    """To standard deviation 1 over all numbers (divided by n, not n − 1), and to mean 0 when asked."""
    flat = [x for row in rows for x in row]
    mean = sum(flat) / len(flat)
    std = math.sqrt(sum((x - mean) ** 2 for x in flat) / len(flat) + 1e-8)
    return [[((x - mean) if shift_mean else x) / std for x in row] for row in rows]


def policy_loss(logprobs, old_logprobs, advantages, clip):
    """Schulman et al. (arXiv:1707.06347), equation 7: −mean min(rA, clip(r)A); and how often clipping decided."""
    terms, clipped = [], []
    for lp, old, adv in zip(logprobs, old_logprobs, advantages, strict=True):
        for a, b, advantage in zip(lp, old, adv, strict=True):
            ratio = math.exp(a - b)
            inside = min(max(ratio, 1 - clip), 1 + clip)
            terms.append(-min(ratio * advantage, inside * advantage))
            clipped.append(inside * advantage < ratio * advantage)
    return sum(terms) / len(terms), sum(clipped) / len(clipped)


def value_loss(values, old_values, returns, clip):
    """½·max((V − R)², (V_clipped − R)²) with V_clipped within ±ε of the old value (detail 7)."""
    terms = []
    for row in zip(values, old_values, returns, strict=True):
        for v, old, target in zip(*row, strict=True):
            near = min(max(v, old - clip), old + clip)
            terms.append(0.5 * max((v - target) ** 2, (near - target) ** 2))
    return sum(terms) / len(terms)


def bradley_terry(chosen: float, rejected: float, margin: float = 0.0) -> float:
    """−log P(chosen above rejected), P = e^c / (e^c + e^(r + margin)) (Bradley and Terry, 1952)."""
    return -math.log(math.exp(chosen) / (math.exp(chosen) + math.exp(rejected + margin)))


def plackett_luce(scores, order) -> float:
    """−log of the chance to draw the items in this order, one after another, without replacement (Plackett, 1975)."""
    strengths = [math.exp(scores[i]) for i in order]
    chance = 1.0
    for place in range(len(strengths)):
        chance *= strengths[place] / sum(strengths[place:])
    return -math.log(chance)


def probabilities_of_all_orders(scores) -> float:
    """The sum of the Plackett-Luce probabilities of every order: 1, or the likelihood is none."""
    return sum(math.exp(-plackett_luce(scores, order)) for order in permutations(range(len(scores))))


def slope(function, x: np.ndarray, step: float = 1e-6) -> np.ndarray:
    """The gradient of a scalar function of an array by central differences."""
    gradient = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        up[index] += step
        down[index] -= step
        gradient[index] = (function(up) - function(down)) / (2 * step)
    return gradient
