"""Checkers for the notebooks' exercises: each calls a student's function on worked cases and says what is wrong.

A checker prints one friendly sentence and raises nothing, so a notebook whose exercises are still empty runs from top
to bottom. An exercise not yet begun returns None (or `...`). Written so that it imports without torch: tensors that
come back are read through `tolist`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

# --- the machinery every checker shares -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """One worked case: the arguments, the right answer, and `causes`: wrong answers with what usually leads to them."""

    arguments: tuple[Any, ...]
    expected: Any
    causes: tuple[tuple[Any, str], ...] = ()


def check(
    function: Callable[..., Any], cases: Sequence[Case], praise: str, hint: str = "", tolerance: float = 1e-4
) -> bool:
    """Prints "✓ praise" when `function` gives every case's answer, else one sentence on the first that it does not.

    Numbers agree within `tolerance`. `hint` is added where no listed cause fits. Returns whether all was right.
    """
    sentence = next((s for case in cases if (s := _complaint(function, case, hint, tolerance))), None)
    print(sentence or f"✓ {praise}")
    return sentence is None


def _complaint(function: Callable[..., Any], case: Case, hint: str, tolerance: float) -> str | None:
    """What is wrong with the function's answer to one case, or None when it is right."""
    name = getattr(function, "__name__", "your function")
    call = f"{name}({', '.join(_shown(argument) for argument in case.arguments)})"
    try:
        got = plain(function(*case.arguments))
    except Exception as error:  # a student's function may raise anything; the notebook goes on
        return f"✗ {call} stopped with {type(error).__name__}: {error}. {hint}".rstrip()
    if got is None or got is ...:
        return f"○ {name} gives nothing yet: write its body, `return` the answer, and run this cell again."
    expected = plain(case.expected)
    if same(got, expected, tolerance):
        return None
    cause = next((why for wrong, why in case.causes if same(got, plain(wrong), tolerance)), hint)
    return f"✗ {call} should be {_shown(expected)}, but yours gives {_shown(got)}. {cause}".rstrip()


def plain(value: Any) -> Any:
    """A tensor or array as numbers and lists; anything else as it is, tuples as lists."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def same(got: Any, expected: Any, tolerance: float = 1e-4) -> bool:
    """Whether two plain values are equal: numbers within `tolerance`, lists item by item."""
    if isinstance(got, list) and isinstance(expected, list):
        return len(got) == len(expected) and all(same(a, b, tolerance) for a, b in zip(got, expected, strict=True))
    if isinstance(got, (int, float)) and isinstance(expected, (int, float)):
        return math.isclose(got, expected, rel_tol=tolerance, abs_tol=tolerance)
    return got == expected


def _shown(value: Any, limit: int = 160) -> str:
    """A value as short text: numbers with four digits, tensors as lists."""
    text = _text(plain(value))
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def _text(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(_text(item) for item in value)}]"
    return f"{value:.4g}" if isinstance(value, float) else repr(value)


# --- 00 start here ----------------------------------------------------------------------------------------------------


def check_count_pairs(function: Callable[[int], int]) -> bool:
    """`function(k)`: how many comparisons a ranking of k replies gives, k(k − 1)/2."""
    per_pair_twice = "Each pair is counted twice: A over B and B over A are one comparison."
    neighbours = "Those are only the neighbours; the first also beats the third, and so on."
    cases = [
        Case(
            (k,),
            right,
            ((k * (k - 1), per_pair_twice), (k - 1, neighbours), (k * k // 2, "A reply never meets itself.")),
        )
        for k, right in ((4, 6), (2, 1), (9, 36))
    ]
    return check(function, cases, "k replies give k(k − 1)/2 comparisons: that is why a ranking is worth its seconds.")


def check_preference(function: Callable[[float, float], float]) -> bool:
    """`function(reward_a, reward_b)`: Bradley and Terry's probability that A is preferred, σ(reward_a − reward_b)."""

    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    cases = [
        Case(
            (a, b),
            sigmoid(a - b),
            (
                (sigmoid(b - a), "That is the probability that B is preferred: swap the two."),
                (a - b, "That is the difference itself; put it through the sigmoid 1 / (1 + e^−x)."),
                (sigmoid(a), "It must depend on both rewards: only their difference counts."),
                (
                    a / (a + b) if a + b else None,
                    "That divides the rewards; it is their exponentials that are divided.",
                ),
            ),
        )
        for a, b in ((2.0, 1.0), (-1.0, 1.5), (0.5, 0.5))
    ]
    praise = "only the difference of two rewards matters; equal rewards mean a coin flip."
    return check(function, cases, praise, "The formula is 1 / (1 + e^−(reward_a − reward_b)).")


def check_tilt(function: Callable[[list[float], list[float], float], list[float]]) -> bool:
    """`function(reference, rewards, beta)`: the policy reference × e^(reward / β), divided by its sum."""

    def tilt(reference: list[float], rewards: list[float], beta: float, normal: bool = True) -> list[float]:
        weights = [p * math.exp(r / beta) for p, r in zip(reference, rewards, strict=True)]
        return [w / sum(weights) for w in weights] if normal else weights

    cases = []
    for reference, rewards, beta in (
        ([0.5, 0.5], [1.0, 0.0], 1.0),
        ([0.7, 0.2, 0.1], [0.0, 1.0, 2.0], 0.5),
        ([0.25] * 4, [1.0, -1.0, 0.5, 0.0], 4.0),
    ):
        even = [1 / len(reference)] * len(reference)
        causes = (
            (tilt(reference, rewards, beta, normal=False), "These do not add up to 1: divide each by their sum."),
            (
                tilt(reference, rewards, 1 / beta),
                "Divide the reward by β: a large β must keep the policy near its start.",
            ),
            (tilt(even, rewards, beta), "The reference is missing: what was unlikely before starts with less."),
            (tilt(reference, rewards, 1.0), "β is missing: it sets how far a reward may pull the policy."),
        )
        cases.append(Case((reference, rewards, beta), tilt(reference, rewards, beta), causes))
    praise = "this is the policy that PPO climbs towards, reward against KL; only here it fits on one line."
    return check(function, cases, praise, "Each probability is reference × e^(reward / β), divided by their sum.")


# --- 01 pretraining ---------------------------------------------------------------------------------------------------


def check_most_frequent_pair(function: Callable[[list[str]], tuple[str, str]]) -> bool:
    """`function(tokens)`: the pair of neighbours that occurs most often."""
    cases = [
        Case((list("abcabd"),), ("a", "b"), (("a", "That is the commonest token; count pairs of neighbours."),)),
        Case((["th", "e", " ", "th", "e", "n"],), ("th", "e")),
        Case((list("xyyyx"),), ("y", "y"), ((("x", "y"), "Count overlapping neighbours too: yyy holds y,y twice."),)),
    ]
    praise = "count, merge, repeat: that is all of BPE's training."
    return check(function, cases, praise, "Return a tuple of two neighbours, such as ('a', 'b').")


def check_merge(function: Callable[[list[str], tuple[str, str]], list[str]]) -> bool:
    """`function(tokens, pair)`: the tokens with every occurrence of the pair replaced by its merge, left to right."""
    overlap = "After a merge go on behind both tokens: aaa holds one merge of (a, a), then a single a is left."
    cases = [
        Case(
            (list("abcab"), ("a", "b")),
            ["ab", "c", "ab"],
            (
                (["ab", "c", "a", "b"], "Only the first occurrence was merged; go on to the end."),
                (list("abcab"), "Nothing was merged: return the new list."),
                (["ab", "c"], "The pair at the very end was lost."),
            ),
        ),
        Case((list("aaab"), ("a", "a")), ["aa", "a", "b"], ((["aa", "aa", "b"], overlap), (["a", "aa", "b"], overlap))),
        Case((list("xy"), ("y", "x")), ["x", "y"], ((["xy"], "The order matters: (y, x) is not (x, y)."),)),
        Case((["b"], ("a", "b")), ["b"], (([], "The last token was dropped: it has no right neighbour, keep it."),)),
    ]
    return check(function, cases, "encoding applies merges in the order in which they were learned, just like this.")


def check_next_token_loss(function: Callable[[list[float]], float]) -> bool:
    """`function(probabilities)`: mean −log p, in nats, of the probabilities given to the tokens that did come."""
    cases = []
    for p in ([0.5, 0.25], [0.9, 0.01, 0.3], [1.0]):
        logs = [math.log(x) for x in p]
        causes = (
            (sum(logs) / len(p), "The sign: log p is negative, a loss is −log p."),
            (-sum(logs), "That is the sum; divide by the number of tokens, or long texts look bad."),
            (-sum(logs) / len(p) / math.log(2), "That is in bits; nats use the natural logarithm, math.log."),
            (-math.log(sum(p) / len(p)), "Take the logarithm of each probability first, then the mean."),
            (math.exp(-sum(logs) / len(p)), "That is the perplexity, e to the loss."),
        )
        cases.append(Case((p,), -sum(logs) / len(p), causes))
    praise = "a confident wrong guess costs most: one p = 0.01 costs as much as seven of p = 0.5."
    return check(function, cases, praise, "The loss is the mean of −math.log(p).")


def check_bits_per_byte(function: Callable[[float, float], float]) -> bool:
    """`function(loss, bytes_per_token)`: a loss in nats a token as bits a byte, comparable between tokenizers."""
    cases = [
        Case(
            (loss, size),
            loss / math.log(2) / size,
            (
                (loss / size, "That is nats a byte: divide by math.log(2) for bits."),
                (loss / math.log(2), "That is bits a token: divide by the bytes in a token."),
                (loss / math.log(2) * size, "Longer tokens carry more bytes, so each byte costs less: divide."),
                (loss * math.log(2) / size, "One nat is 1 / ln 2 ≈ 1.44 bits: divide by math.log(2)."),
            ),
        )
        for loss, size in ((2.0, 4.0), (0.8, 3.1))
    ]
    return check(function, cases, "bits a byte let you compare models whose tokenizers differ; perplexity does not.")


# --- 02 supervised fine-tuning ----------------------------------------------------------------------------------------


def check_chat_text(function: Callable[[str, str], str]) -> bool:
    """`function(prompt, reply)`: both in the lab's chat template."""
    cases = []
    for prompt, reply in (("Hello?", "Hi."), ("When is the quiz?", "On Thursday.")):
        right = f"<|user|> {prompt}<|assistant|> {reply}<|end|>"
        causes = (
            (right.removesuffix("<|end|>"), "The end token is missing: without it the model never learns to stop."),
            (right.replace("|> ", "|>"), "A space stands behind <|user|> and behind <|assistant|>."),
            (right.replace("<|assistant|>", "\n<|assistant|>"), "This template has no line breaks."),
        )
        cases.append(Case((prompt, reply), right, causes))
    praise = "a template is only text, but training and use must agree on every character of it."
    return check(function, cases, praise, "Look at the printed template again.")


def check_sft_labels(function: Callable[[list[int], int, int], list[int]]) -> bool:
    """`function(ids, prompt_length, length)`: ids where a loss is wanted, −100 on the prompt and on the padding."""
    cases = []
    for ids, prompt, length in (([7, 8, 5, 6, 0, 0, 0], 2, 5), ([9, 9, 9, 4, 0], 3, 5), ([3, 4, 0], 1, 3)):
        where = range(len(ids))
        right = [ids[i] if prompt <= i < length else -100 for i in where]
        causes = (
            ([ids[i] if i >= prompt else -100 for i in where], "Padding bears no loss either: stop at `length`."),
            ([ids[i] if i < length else -100 for i in where], "The prompt bears no loss: start at `prompt_length`."),
            (
                [ids[i] if i >= prompt and ids[i] != 0 else -100 for i in where],
                "You dropped every 0, the real end token at the end of the reply among them: mask by length.",
            ),
            ([ids[i] if prompt < i < length else -100 for i in where], "The reply's first token is missing: use >=."),
            ([ids[i] if prompt <= i < length - 1 else -100 for i in where], "The reply's last token is its end token."),
            ([ids[i] if prompt <= i < length else 0 for i in where], "The value that cross-entropy ignores is −100."),
        )
        cases.append(Case((ids, prompt, length), right, causes))
    praise = "masked by position: the end token keeps its loss even where padding looks the same."
    return check(function, cases, praise, "Keep ids[i] where prompt_length <= i < length, −100 elsewhere.")


def check_early_stop(function: Callable[[list[float], list[float]], int]) -> bool:
    """`function(training, held_out)`: the epoch, counted from 0, whose model you would keep."""
    cases = []
    for training, held_out in (
        ([2.0, 1.4, 1.0, 0.7, 0.4], [2.1, 1.6, 1.5, 1.7, 2.0]),
        ([1.9, 1.2, 0.9], [2.0, 1.5, 1.3]),
        ([1.5, 1.0, 0.6, 0.3], [1.4, 1.6, 1.9, 2.3]),
    ):
        right = held_out.index(min(held_out))
        by_training = "That is where the training loss is lowest: a model that has memorised looks best there."
        causes = (
            (training.index(min(training)), by_training),
            (right + 1, "Count epochs from 0, as Python does."),
            (min(held_out), "That is the loss itself; return its place in the list."),
        )
        cases.append(Case((training, held_out), right, causes))
    return check(function, cases, "keep the model that was best on what it had not seen.", "Look at `held_out`.")


# --- 03 preferences ---------------------------------------------------------------------------------------------------


def check_softmax(function: Callable[[list[float], float], list[float]]) -> bool:
    """`function(logits, temperature)`: the probabilities softmax(logits / temperature)."""

    def softmax(logits: list[float], scale: float) -> list[float]:
        weights = [math.exp(x * scale) for x in logits]
        return [w / sum(weights) for w in weights]

    cases = []
    for logits, temperature in (([2.0, 0.0], 0.5), ([1.0, 0.0, -1.0], 2.0), ([0.0, 0.0], 0.7)):
        causes = (
            (softmax(logits, temperature), "Divide by the temperature: a low one must make the best token likelier."),
            (softmax(logits, 1.0), "The temperature is not used yet."),
            ([math.exp(x / temperature) for x in logits], "These do not add up to 1: divide each by their sum."),
        )
        cases.append(Case((logits, temperature), softmax(logits, 1 / temperature), causes))
    praise = "towards 0 it always takes the likeliest token, far above 1 it hardly cares."
    return check(function, cases, praise, "The formula is e^(logit / T), divided by the sum of all of them.")


def check_pairs_of_order(function: Callable[[list[list[str]]], list[tuple[str, str]]]) -> bool:
    """`function(order)`: every (better, worse) pair of a ranking given as tiers, best first; ties give none."""
    cases = [
        Case(
            ([["a"], ["b"], ["c"]],),
            [("a", "b"), ("a", "c"), ("b", "c")],
            (
                ([("a", "b"), ("b", "c")], "Neighbours only: a was also put above c."),
                ([("b", "a"), ("c", "a"), ("c", "b")], "The better one stands first in a pair."),
            ),
        ),
        Case(
            ([["a", "b"], ["c"]],),
            [("a", "c"), ("b", "c")],
            (
                ([("a", "b"), ("a", "c"), ("b", "c")], "a and b are tied: neither is better than the other."),
                ([("a", "c")], "Both replies of the first tier beat c."),
            ),
        ),
        Case(([["a", "b", "c"]],), [], (([("a", "b"), ("a", "c"), ("b", "c")], "All are tied: no pair says more."),)),
    ]

    def in_some_order(order: list[list[str]]) -> Any:
        pairs = function(order)
        return sorted(tuple(pair) for pair in pairs) if isinstance(pairs, (list, tuple, set)) else pairs

    in_some_order.__name__ = getattr(function, "__name__", "your function")
    praise = "four replies without ties give six pairs, and the reward model learns from each."
    return check(in_some_order, cases, praise, "Compare every tier with every tier below it.")


def check_agreement(function: Callable[[list[str], list[str]], float]) -> bool:
    """`function(mine, theirs)`: the share of pairs that two people order alike, from their orders, best first."""
    cases = [
        Case((list("abc"), list("abc")), 1.0, ((3, "That is a count; divide by the number of pairs."),)),
        Case(
            (list("abc"), list("bac")),
            2 / 3,
            (
                (1 / 3, "That is the share they order differently; you want the others."),
                (2, "That is a count; divide by the number of pairs."),
            ),
        ),
        Case(
            (list("abcd"), list("bcda")),
            0.5,
            (
                (0.0, "Compare pairs, not places: everything shifted by one still has b over c in both."),
                (3, "That is a count; divide by the number of pairs."),
            ),
        ),
        Case((list("abcd"), list("dcba")), 0.0, ((0.5, "Opposite orders agree on no pair at all."),)),
    ]
    praise = "0.5 is what two coins reach, so read agreement from there."
    return check(function, cases, praise, "Go through all pairs; ask each list which of the two stands first.")


# --- notebook 04: the reward model ------------------------------------------------------------------------------------


def _softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def check_pair_loss(pair_loss: Callable[[float, float], float]) -> bool:
    """−log σ(chosen − rejected), in nats."""
    d = 1.0
    causes = (
        (
            _softplus(d),
            "That is the loss of the opposite choice: the difference is chosen − rejected, not the reverse.",
        ),
        (1 / (1 + math.exp(-d)), "That is the probability; the loss is minus its logarithm."),
        (_softplus(-d) / math.log(2), "That is in bits; use the natural logarithm."),
        (-_softplus(-d), "The sign is wrong: a loss is −log P, and a probability's logarithm is negative."),
    )
    cases = [
        Case((1.2, 0.2), _softplus(-d), causes),
        Case((0.5, 0.5), math.log(2)),
        Case((-800.0, 800.0), 1600.0),
        Case((800.0, -800.0), 0.0),
    ]
    hint = "With d = chosen − rejected the loss is log(1 + exp(−d)), safely: max(−d, 0) + log1p(exp(−|d|))."
    return check(pair_loss, cases, "Right, and finite where exp would overflow.", hint)


def check_ranking_loss(ranking_loss: Callable[..., float]) -> bool:
    """Mean Bradley–Terry loss over all pairs of scores that stand in order, best first, with a margin."""

    def losses(scores: Sequence[float], margin: float, pairs: Sequence[tuple[int, int]]) -> list[float]:
        return [_softplus(-(scores[i] - scores[j] - margin)) for i, j in pairs]

    scores = [2.0, 1.5, -0.5, 0.0]
    every = [(i, j) for i in range(4) for j in range(i + 1, 4)]
    neighbours = [(0, 1), (1, 2), (2, 3)]
    plain_losses, with_margin = losses(scores, 0.0, every), losses(scores, 1.0, every)
    cases = [
        Case(
            (scores, 0.0),
            sum(plain_losses) / 6,
            (
                (sum(plain_losses), "That is the sum over the six pairs; divide by their number."),
                (sum(losses(scores, 0.0, neighbours)) / 3, "You took neighbours only; every pair of the four counts."),
                (sum(losses(scores, 0.0, [p[::-1] for p in every])) / 6, "The better reply is the one listed first."),
            ),
        ),
        Case(
            (scores, 1.0),
            sum(with_margin) / 6,
            (
                (sum(losses(scores, -1.0, every)) / 6, "Your margin makes it easier; subtract it from the difference."),
                (sum(plain_losses) / 6, "The margin has no effect yet."),
            ),
        ),
    ]
    return check(
        ranking_loss, cases, "Right: six pairs, one question, one mean.", "Six pairs: each reply with all below it."
    )


def check_plackett_luce(ranking_nll: Callable[[Sequence[float]], float]) -> bool:
    """−log P of a whole ranking from scores listed best first."""

    def nll(scores: Sequence[float]) -> float:
        rest = [math.log(sum(math.exp(s) for s in scores[place:])) for place in range(len(scores))]
        return sum(total - score for total, score in zip(rest, scores, strict=True))

    scores = [1.2, 0.2, -0.5]
    everything = math.log(sum(math.exp(s) for s in scores))
    causes = (
        (
            sum(everything - s for s in scores),
            "You choose among all three each time; a reply that has its place leaves.",
        ),
        (everything - scores[0], "That is only the first choice; go on with those that are left."),
        (nll(scores[::-1]), "You read the ranking from its end; the first score is the best reply's."),
        (-nll(scores), "The sign is wrong: the loss is −log P."),
        (math.exp(-nll(scores)), "That is the probability; the loss is minus its logarithm."),
    )
    cases = [
        Case((scores,), nll(scores), causes),
        Case(([0.0, 0.0],), math.log(2)),
        Case(([3.0, 1.0, 0.0, -1.0],), nll([3.0, 1.0, 0.0, -1.0])),
    ]
    return check(
        ranking_nll,
        cases,
        "Right: best among all, then best among the rest.",
        "Each place is a softmax over what is left.",
    )


def check_adversary(reply: str, honest: str, score: Callable[[str], float], judge: Callable[[str], float]) -> bool:
    """Whether `reply` beats `honest` for the reward model while the gold judge gives it at most half as much."""
    if not reply.strip():
        print("○ Nothing yet: put a reply into `my_reply` and run this cell again.")
        return False
    ours, theirs, gold, gold_honest = score(reply), score(honest), judge(reply), judge(honest)
    shown = f"reward model {ours:.2f} against {theirs:.2f}, gold judge {gold:.2f} against {gold_honest:.2f}"
    if ours <= theirs:
        print(f"✗ The reward model is not fooled ({shown}). What does it like that a visitor cannot use?")
    elif gold > gold_honest / 2:
        print(f"✗ The gold judge likes it too ({shown}): that is no trick. Make it useless, not just different.")
    else:
        print(f"✓ Fooled ({shown}). A policy finds such replies by itself; see notebook 05.")
    return ours > theirs and gold <= gold_honest / 2


# --- notebook 05: PPO -------------------------------------------------------------------------------------------------


def check_rewards(token_rewards: Callable[..., Sequence[float]]) -> bool:
    """Per-token rewards: −β·(log π − log π_ref) everywhere, plus the score on the last token."""
    new, old, score, beta = [-1.0, -2.0, -0.5], [-1.5, -1.0, -0.5], 2.0, 0.1
    kl = [a - b for a, b in zip(new, old, strict=True)]
    causes = (
        ([0.05, -0.1, 2.0], "The KL term has the wrong sign: moving away from the reference must cost."),
        ([-0.5, 1.0, 2.0], "β is missing."),
        ([1.95, 2.1, 2.0], "The score is given once, on the last token, not on each."),
        ([-0.05, 0.1, 0.0], "The score is missing on the last token."),
        (sum(-beta * k for k in kl) + score, "Give one number a token, not their sum."),
    )
    cases = [
        Case((new, old, score, beta), [-0.05, 0.1, 2.0], causes),
        Case(([-1.0], [-2.0], -1.0, 0.5), [-1.5]),
        Case(([-1.0, -1.0], [-1.0, -1.0], 3.0, 0.2), [0.0, 3.0]),
    ]
    return check(
        token_rewards,
        cases,
        "Right: pay for drift at each token, earn at the end.",
        "−β·(logprob − ref_logprob) a token.",
    )


def _gae(rewards: Sequence[float], values: Sequence[float], gamma: float, lam: float) -> list[float]:
    advantages, following = [0.0] * len(rewards), 0.0
    for t in reversed(range(len(rewards))):
        next_value = values[t + 1] if t + 1 < len(values) else 0.0
        following = rewards[t] + gamma * next_value - values[t] + gamma * lam * following
        advantages[t] = following
    return advantages


def check_gae(advantages: Callable[..., Sequence[float]]) -> bool:
    """Generalised advantage estimation on three steps; the value behind the end is 0."""
    rewards, values = [0.0, 0.0, 1.0], [0.2, 0.5, 0.4]
    right = _gae(rewards, values, 1.0, 0.5)
    deltas = _gae(rewards, values, 1.0, 0.0)
    causes = (
        (deltas, "Those are the δ alone (λ = 0); add γλ times the advantage of the next step."),
        (_gae(rewards, values, 1.0, 1.0), "That is λ = 1: multiply what comes from behind by γ·λ."),
        ([a + v for a, v in zip(right, values, strict=True)], "Those are the returns A + V; give the advantages."),
        (_gae([*rewards[:-1], rewards[-1] + values[-1]], values, 1.0, 0.5), "Behind the last token the value is 0."),
        (right[::-1], "The list is back to front."),
    )
    cases = [
        Case((rewards, values, 1.0, 0.5), right, causes),
        Case(([1.0, -1.0], [0.0, 0.0], 0.9, 0.95), _gae([1.0, -1.0], [0.0, 0.0], 0.9, 0.95)),
        Case(([2.0], [0.5], 1.0, 0.95), [1.5]),
    ]
    hint = "Go from the last token to the first: δ = r + γ·V_next − V, A = δ + γ·λ·A_next."
    return check(advantages, cases, "Right, from the end to the beginning.", hint)


def check_clipped(clipped_loss: Callable[[float, float, float], float]) -> bool:
    """max(−A·ratio, −A·clip(ratio, 1 ± ε)) of one token."""
    cases = [
        Case(
            (1.5, 2.0, 0.2),
            -2.4,
            (
                (-3.0, "Nothing is clipped: with A > 0 a ratio above 1 + ε must earn no more."),
                (2.4, "The sign is wrong: a loss falls when the objective rises."),
                (3.0, "The sign is wrong, and nothing is clipped."),
            ),
        ),
        Case(
            (0.5, 2.0, 0.2),
            -1.0,
            (
                (
                    -1.6,
                    "You always take the clipped one. Take the larger loss of the two, so mistakes can be undone.",
                ),
            ),
        ),
        Case(
            (1.5, -1.0, 0.2),
            1.5,
            (
                (
                    1.2,
                    "With A < 0 and a ratio that grew, the unclipped loss is the larger: take the maximum.",
                ),
            ),
        ),
        Case((0.5, -1.0, 0.2), 0.8),
        Case((1.0, 0.7, 0.2), -0.7),
    ]
    return check(
        clipped_loss, cases, "Right: a limit on gain, none on repair.", "Compute both losses, take the larger."
    )


def check_kl(kl_estimate: Callable[[float, float], float]) -> bool:
    """The k3 estimate of one token: (eˣ − 1) − x with x = ref_logprob − logprob."""

    def k3(x: float) -> float:
        return math.expm1(x) - x

    causes = (
        (-0.7, "That is k1 = logprob − ref_logprob: right on average, but below 0 here. The exercise asks for k3."),
        (0.7, "That is −k1. k3 is (eˣ − 1) − x."),
        (k3(-0.7), "x has the wrong sign: x = ref_logprob − logprob."),
        (math.expm1(0.7), "You left out − x."),
        (math.exp(0.7) - 0.7, "You left out the − 1, so two equal models would be 1 apart."),
    )
    cases = [Case((-1.2, -0.5), k3(0.7), causes), Case((-0.5, -1.2), k3(-0.7)), Case((-2.0, -2.0), 0.0)]
    return check(
        kl_estimate, cases, "Right: never negative, and 0 only where the two agree.", "x = ref_logprob − logprob."
    )


# --- notebook 06: the live loop ---------------------------------------------------------------------------------------


def check_pairs_agreed(agreement: Callable[..., float]) -> bool:
    """The share of a ranking's strict pairs that scores put in the same order; tiers of names, scores by name."""
    order = [["b"], ["a", "c"], ["d"]]
    scores = {"a": 0.0, "b": 1.0, "c": 2.0, "d": -1.0}
    causes = (
        (4 / 6, "You counted the tied pair (a, c); the person expressed no order there, so leave it out."),
        (5 / 6, "You counted the tied pair (a, c) as agreement; leave it out."),
        (1 / 5, "That is the share of pairs in which they disagree."),
        (4, "Divide by the number of strict pairs."),
        (0.0, "Compare pairs, not whole places: the two orders need not be identical."),
    )
    cases = [
        Case((order, scores), 4 / 5, causes),
        Case(([["a"], ["b"]], {"a": 0.0, "b": 1.0}), 0.0),
        Case(([["a"], ["b"], ["c"]], {"a": 3.0, "b": 2.0, "c": 1.0}), 1.0),
    ]
    return check(
        agreement, cases, "Right: ties say nothing, strict pairs say all.", "Each tier stands above all later tiers."
    )


def check_consistency(consistency: Callable[..., float]) -> bool:
    """The share of pairs that two rankings of one question order alike, among those both order strictly."""
    first, second = [["a"], ["b"], ["c"], ["d"]], [["b"], ["a"], ["c", "d"]]
    causes = (
        (4 / 6, "The pair (c, d) is tied the second time: leave out what either ranking ties."),
        (1 / 5, "That is the share of pairs they order differently."),
        (4, "Divide by the number of pairs that both order."),
    )
    cases = [
        Case((first, second), 4 / 5, causes),
        Case((first, first), 1.0),
        Case(([["a"], ["b"]], [["b"], ["a"]]), 0.0),
    ]
    return check(
        consistency, cases, "Right: this is the ceiling for any model of you.", "Compare the pairs of both rankings."
    )


def check_enough(surely_better: Callable[[int, int], bool]) -> bool:
    """Whether `wins` of `n` is a win rate above one half beyond doubt: Wilson's lower 95% bound exceeds 0.5."""
    cases = [
        Case(
            (29, 48),
            False,
            ((True, "29 of 48 is 60%, but chance alone gives that often: look at the interval's lower end."),),
        ),
        Case((36, 48), True, ((False, "The interval of 36 of 48 is 61% to 85%: all of it lies above one half."),)),
        Case(
            (600, 1000), True, ((False, "With 1,000 comparisons 60% is far from chance: its interval is 57% to 63%."),)
        ),
        Case((3, 3), False, ((True, "Three of three is 100%, but the interval begins at 44%."),)),
    ]
    hint = "Ask rlhf_lab.evaluation.wilson_interval(wins, n) for its `low`."
    return check(surely_better, cases, "Right: a win rate without its interval is gossip.", hint)
