"""How good a model is, with intervals: win rates, accuracy, KL, variety, and the gold judge's attributes.

Every estimate comes as an `Interval` of 95%. Observations that share a prompt (or a question) are not independent, so
intervals resample prompts, not observations (the cluster bootstrap: Efron and Tibshirani, 1993; Cameron et al., 2008).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import numpy as np
import torch
from transformers import PreTrainedModel

from .agreement import wilson_interval as wilson_interval  # of a share; one piece of code, without torch
from .errors import InputError
from .judge import GoldJudge
from .ppo import k3
from .records import Comparison, Interval
from .replies import reply_batch, reply_logprobs
from .reward import RankedReplies, pair_margins
from .sampling import Sample

GOLD_ATTRIBUTES = ("score", "right", "correct", "safe", "polite", "concise", "fluent", "addressed")


# --- intervals --------------------------------------------------------------------------------------------------------


def bootstrap_interval(
    values: Sequence[float], seed: int = 0, clusters: Sequence[Hashable] | None = None, resamples: int = 2000
) -> Interval:
    """The mean of `values` and its 95% percentile-bootstrap interval; deterministic for a seed.

    `clusters` names, for each value, the group (a prompt, a question) that is drawn as a whole. One cluster alone says
    nothing about chance: its interval is the mean itself, which is no sign of certainty.
    """
    x = np.asarray(values, dtype=float)
    if x.size == 0:
        raise InputError("no values to average: an interval needs at least one")
    if clusters is not None and len(clusters) != x.size:
        raise InputError(f"{x.size} values with {len(clusters)} clusters; name one cluster for each value")
    names = range(x.size) if clusters is None else clusters
    number = {name: i for i, name in enumerate(dict.fromkeys(names))}
    of = np.array([number[name] for name in names])
    sums, counts = np.bincount(of, x), np.bincount(of)
    means = _resampled_means(sums, counts, np.random.default_rng(seed), resamples)
    low, high = np.percentile(means, (2.5, 97.5))
    return Interval(float(x.mean()), float(low), float(high), int(x.size))


def _resampled_means(sums: np.ndarray, counts: np.ndarray, rng: np.random.Generator, resamples: int) -> np.ndarray:
    """Means (resamples,) of clusters drawn with replacement, from their sums (C,) and sizes (C,)."""
    means = []
    for start in range(0, resamples, 100):  # in parts, so that thousands of clusters need little memory
        drawn = rng.integers(len(sums), size=(min(100, resamples - start), len(sums)))
        means.append(sums[drawn].sum(1) / counts[drawn].sum(1))
    return np.concatenate(means)


def win_rate(
    scores_a: Sequence[float], scores_b: Sequence[float], prompts: Sequence[Hashable] | None = None, seed: int = 0
) -> Interval:
    """How often a beats b, pair by pair, a tie counting half. `prompts` says which pairs share a prompt."""
    a, b = np.asarray(scores_a, dtype=float), np.asarray(scores_b, dtype=float)
    if a.shape != b.shape:
        raise InputError(f"win rate of {a.size} scores against {b.size}: give one of each for every pair")
    return bootstrap_interval((a > b) + 0.5 * (a == b), seed, prompts)


# --- reward models ----------------------------------------------------------------------------------------------------


def reward_accuracy(model: PreTrainedModel, data: Sequence[RankedReplies], seed: int = 0) -> Interval:
    """The share of strict pairs whose better reply scores higher (equal scores: half), clustered by question."""
    margins = pair_margins(model, data)
    question = [i for i, item in enumerate(data) for *_, tie in item.pairs if not tie]
    if not question:
        raise InputError("no strict pair to be right or wrong about: every ranking is a tie, or there is none")
    return bootstrap_interval(((margins > 0) + 0.5 * (margins == 0)).tolist(), seed, question)


def longer_reply_accuracy(comparisons: Sequence[Comparison], seed: int = 0) -> Interval:
    """How often the chosen reply is the one with more characters: what a judge of length alone would reach.

    One minus it is what "always the shorter" reaches. A reward model that does not beat both has learned nothing else.
    """
    strict = [c for c in comparisons if not c.tie]
    lengths = [(len(c.chosen), len(c.rejected)) for c in strict]
    return win_rate([a for a, _ in lengths], [b for _, b in lengths], [c.prompt for c in strict], seed)


def accuracy_curve(
    fit: Callable[[Sequence[RankedReplies]], PreTrainedModel],
    data: Sequence[RankedReplies],
    held_out: Sequence[RankedReplies],
    counts: Sequence[int],
) -> list[tuple[int, Interval]]:
    """Held-out accuracy against the number of labels: for each n, `fit` trains a fresh model on the first n."""
    for n in counts:
        if not 0 < n <= len(data):
            raise InputError(f"accuracy with {n} rankings: there are {len(data)}; ask for 1 to {len(data)}")
    return [(n, reward_accuracy(fit(data[:n]), held_out)) for n in counts]


# --- policies ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def kl_per_reply(
    policy: PreTrainedModel,
    reference: PreTrainedModel,
    samples: Sequence[Sample],
    temperature: float = 1.0,
    batch_size: int = 128,
    seed: int = 0,
) -> Interval:
    """KL(π‖π_ref) in nats a reply, estimated with k3 summed over each reply's tokens; `samples` are the policy's own.

    `temperature` is the one they were sampled at. The end token counts. Clustered by prompt.
    """
    ordered = sorted(samples, key=lambda s: len(s.dialogue.ids))
    sums: list[float] = []
    for start in range(0, len(ordered), batch_size):
        dialogues = [s.dialogue for s in ordered[start : start + batch_size]]
        replies = reply_batch(dialogues, policy.config.pad_token_id, next(policy.parameters()).device)
        logprobs, ref_logprobs = (
            reply_logprobs(model, replies, temperature, entropy=False)[0] for model in (policy, reference)
        )
        sums += (k3(logprobs, ref_logprobs) * replies.mask).sum(1).tolist()
    return bootstrap_interval(sums, seed, [s.prompt for s in ordered])


def distinct_n(texts: Sequence[str], n: int = 2) -> float:
    """Different n-grams of words as a share of all n-grams, over all texts (Li et al., arXiv:1510.03055).

    It falls as texts are added, so compare it only between equal numbers of texts. 0 when there is no n-gram.
    """
    grams = [tuple(words[i : i + n]) for words in map(str.split, texts) for i in range(len(words) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


def gold_report(judge: GoldJudge, samples: Sequence[Sample]) -> dict[str, float]:
    """Means of the gold judge's attributes over samples, each over the replies to which it applies.

    `score`, `right`, `correct`, `safe`, `polite`, `concise`, `fluent`, `addressed`; and `truncated`, the share of
    replies without an end. An attribute that applies to no sample is left out.
    """
    if not samples:
        raise InputError("nothing to judge: give at least one sample")
    verdicts = [judge.verdict(s.prompt, s.text) for s in samples]
    report = {}
    for name in GOLD_ATTRIBUTES:
        values = [float(v) for v in (getattr(verdict, name) for verdict in verdicts) if v is not None]
        if values:
            report[name] = sum(values) / len(values)
    return report | {"truncated": sum(s.truncated for s in samples) / len(samples)}
