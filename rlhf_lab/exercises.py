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


def check_encode(function: Callable[[str, list[tuple[str, str]]], list[str]]) -> bool:
    """`function(word, merges)`: the word's characters after applying each merge in turn, left to right."""
    merges = [("t", "h"), ("th", "e"), ("a", "a")]
    order = "Apply the merges in the order in which they were learned: th must exist before the can."
    overlap = "After a merge go on behind both tokens: aaa holds one merge of (a, a), then a single a is left."
    cases = [
        Case(
            ("theatre", merges),
            ["the", "a", "t", "r", "e"],
            (
                (list("theatre"), "Nothing was merged: return the new list."),
                (["th", "e", "a", "t", "r", "e"], "Only the first merge was applied; " + order),
                (["the", "a", "t", "r"], "The last token was lost: it has no right neighbour, keep it."),
            ),
        ),
        Case(("aaab", merges), ["aa", "a", "b"], ((["aa", "aa", "b"], overlap), (["a", "aa", "b"], overlap))),
        Case(("thth", merges), ["th", "th"], ((["th", "t", "h"], "Go on after the first hit: merge every one."),)),
        Case(("ht", merges), ["h", "t"], ((["ht"], "The order within a pair matters: (t, h) is not (h, t)."),)),
    ]
    return check(function, cases, "encoding is nothing but the learned merges, replayed in order.", order)


def check_perplexity(function: Callable[[list[float], list[int]], float]) -> bool:
    """`function(losses, tokens)`: perplexity of a whole text from each document's mean loss and number of tokens."""
    cases = []
    for losses, tokens in (([1.0, 3.0], [30, 10]), ([0.5, 0.5], [7, 9]), ([2.0, 1.0, 0.0], [1, 2, 5])):
        total, n = sum(loss * t for loss, t in zip(losses, tokens, strict=True)), sum(tokens)
        of_each = sum(math.exp(loss) * t for loss, t in zip(losses, tokens, strict=True)) / n
        causes = (
            (total / n, "That is the mean loss; perplexity is e to it."),
            (math.exp(sum(losses) / len(losses)), "Weigh each document by its tokens: a long one counts for more."),
            (of_each, "Take the mean of the losses first and the exponential last."),
            (sum(map(math.exp, losses)) / len(losses), "Take the (weighted) mean of the losses first, then e to it."),
            (math.exp(total), "Divide by the number of tokens before taking the exponential."),
            (2 ** (total / n), "The loss is in nats, so the base is e."),
        )
        cases.append(Case((losses, tokens), math.exp(total / n), causes))
    praise = "average in logarithms, then exponentiate: one hopeless document may not drown the rest."
    return check(function, cases, praise, "Mean loss over all tokens first, then math.exp.")


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


def check_chat(function: Callable[[list[tuple[str, str]]], str]) -> bool:
    """`function(messages)`: a dialogue of several (role, text) turns in the lab's chat template."""
    turns = [("user", "When is the quiz?"), ("assistant", "On Thursday."), ("user", "Where?"), ("assistant", "Here.")]
    cases = []
    for messages in (turns[:2], turns, turns[:3]):
        text = {role: f"<|{role}|> {{}}" for role in ("user", "assistant")}
        parts = [text[role].format(words) for role, words in messages]
        ends = ["<|end|>" if role == "assistant" else "" for role, _ in messages]
        right = "".join(part + end for part, end in zip(parts, ends, strict=True))
        causes = (
            ("".join(parts), "The end tokens are missing: without them a model never learns to stop."),
            ("<|end|>".join(parts) + "<|end|>", "Only a reply ends with <|end|>; a question does not."),
            ("".join(parts) + ends[-1], "Every reply ends with <|end|>, not only the last."),
            (right.replace("|> ", "|>"), "A space stands behind <|user|> and behind <|assistant|>."),
            ("\n".join(p + e for p, e in zip(parts, ends, strict=True)), "This template has no line breaks."),
        )
        cases.append(Case((messages,), right, causes))
    praise = "a template is only text, but training and use must agree on every character of it."
    return check(function, cases, praise, "Look at the printed template again.")


def check_turn_labels(function: Callable[[list[int], list[tuple[int, int]]], list[int]]) -> bool:
    """`function(ids, replies)`: the label of each input position, −100 where the next token is in no reply.

    Position i predicts ids[i + 1], so there is one label less than there are ids. `replies` holds (start, stop).
    """
    cases = []
    for ids, replies in (([7, 8, 5, 6], [(2, 4)]), ([1, 2, 3, 4, 5, 6, 7, 8], [(2, 4), (6, 8)]), ([9, 4, 9], [(1, 3)])):
        inside = [any(start <= i < stop for start, stop in replies) for i in range(len(ids))]
        right = [ids[i] if inside[i] else -100 for i in range(1, len(ids))]
        last = [ids[i] if replies[-1][0] <= i < replies[-1][1] else -100 for i in range(1, len(ids))]
        unshifted = [ids[i] if inside[i] else -100 for i in range(len(ids))]
        late = [ids[i + 1] if inside[i] else -100 for i in range(len(ids) - 1)]
        causes = (
            (unshifted, "These are not shifted yet: position i predicts the token at i + 1."),
            (unshifted[:-1], "You dropped the last label; shifting drops the first: a token does not predict itself."),
            (late, "The reply's first token is missing: it is predicted from the last token of the question."),
            (last, "Every reply bears a loss, not only the last one."),
            (ids[1:], "The question bears no loss: put −100 there."),
            ([x if x != -100 else 0 for x in right], "The value that cross-entropy ignores is −100."),
        )
        cases.append(Case((ids, replies), right, causes))
    praise = "off-by-one here is the most expensive bug of fine-tuning, and no loss curve shows it."
    return check(function, cases, praise, "Label i is ids[i + 1] where i + 1 lies in a reply, else −100.")


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


def check_order_of_scores(function: Callable[[dict[str, float]], list[list[str]]]) -> bool:
    """`function(scores)`: tiers of names, best first; equal scores share a tier."""
    cases = [
        Case(
            ({"a": 3, "b": 9, "c": 5},),
            [["b"], ["c"], ["a"]],
            (
                ([["a"], ["c"], ["b"]], "That is worst first; a ranking starts with the best."),
                (["b", "c", "a"], "Each place is a list of its own, a tier: [['b'], ['c'], ['a']]."),
            ),
        ),
        Case(
            ({"a": 4, "b": 4, "c": 1},),
            [["a", "b"], ["c"]],
            (
                ([["a"], ["b"], ["c"]], "a and b have one score: they share a tier, or you invent a preference."),
                ([["c"], ["a", "b"]], "That is worst first; a ranking starts with the best."),
            ),
        ),
        Case(({"x": 0},), [["x"]]),
    ]

    def tiers_sorted_inside(scores: dict[str, float]) -> Any:
        tiers = function(scores)
        listed = isinstance(tiers, list) and all(isinstance(tier, (list, tuple, set)) for tier in tiers)
        return [sorted(tier) for tier in tiers] if listed else tiers

    tiers_sorted_inside.__name__ = getattr(function, "__name__", "your function")
    praise = "what survives is the order, which is the part of a score that people agree on."
    return check(tiers_sorted_inside, cases, praise, "Sort the distinct scores downwards, one tier for each.")


def check_kappa(function: Callable[[float, float], float]) -> bool:
    """`function(agreement, chance)`: agreement beyond chance, (agreement − chance) / (1 − chance)."""
    cases = [
        Case(
            (agreement, chance),
            (agreement - chance) / (1 - chance),
            (
                (agreement - chance, "Divide by the room above chance, 1 − chance: perfect agreement must give 1."),
                ((agreement - chance) / chance, "Divide by 1 − chance, the room that was left."),
                (agreement / chance, "Chance is taken away, not divided by."),
                ((chance - agreement) / (1 - chance), "The sign is turned: more agreement, higher kappa."),
            ),
        )
        for agreement, chance in ((0.75, 0.5), (1.0, 0.2), (0.4, 0.5))
    ]
    praise = "Cohen's kappa: 0 is chance, 1 is perfect, and below 0 two people contradict each other."
    return check(function, cases, praise, "The formula is (agreement − chance) / (1 − chance).")


def check_majority(function: Callable[[float], float]) -> bool:
    """`function(p)`: how often the majority of three people is right who are each right with probability p."""
    cases = [
        Case(
            (p,),
            p**3 + 3 * p**2 * (1 - p),
            (
                (p**3, "That is all three being right; two are enough."),
                (3 * p**2 * (1 - p), "That is exactly two being right; add all three: p³."),
                (p**3 + p**2 * (1 - p), "There are three ways to choose the one who errs."),
                (p, "Two heads are better than one: add up the ways in which two or three are right."),
                (1 - (1 - p) ** 3, "That is at least one being right; a majority needs two."),
            ),
        )
        for p in (0.75, 0.9, 0.5)
    ]
    praise = "three careful people beat one, and three coins are still coins."
    return check(function, cases, praise, "Two right: 3 p² (1 − p). Three right: p³.")


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


def check_adversary(
    reply: str, honest: str, score: Callable[[str], float], judge: Callable[[str], float], words: int = 8
) -> bool:
    """Whether `reply`, of few words, beats `honest` for the reward model while the gold judge gives it half or less."""
    if not reply.strip():
        print("○ Nothing yet: put a reply into `my_reply` and run this cell again.")
        return False
    ours, theirs, gold, gold_honest = score(reply), score(honest), judge(reply), judge(honest)
    shown = f"reward model {ours:.2f} against {theirs:.2f}, gold judge {gold:.2f} against {gold_honest:.2f}"
    if len(reply.split()) > words:
        print(f"✗ Your reply has {len(reply.split())} words; at most {words} ({shown}).")
    elif ours <= theirs:
        print(f"✗ The reward model is not fooled ({shown}). What does it like that a visitor cannot use?")
    elif gold > gold_honest / 2:
        print(f"✗ The gold judge likes it too ({shown}): that is no trick. Make it useless, not just different.")
    else:
        print(f"✓ Fooled ({shown}). A policy finds such replies by itself; see notebook 05.")
        return True
    return False


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


# --- notebook 03b: forms of feedback ----------------------------------------------------------------------------------


def check_tiers_of_marks(function: Callable[[dict[str, dict[str, int]], dict[str, float]], list[list[str]]]) -> bool:
    """`function(scores, weights)`: replies in tiers, best first, by the weighted mean of their marks."""

    def tiers(scores: dict[str, dict[str, int]], weights: dict[str, float]) -> list[list[str]]:
        mean = {reply: sum(weights[name] * marks[name] for name in weights) for reply, marks in scores.items()}
        return [[reply for reply in mean if mean[reply] == mark] for mark in sorted(set(mean.values()), reverse=True)]

    scores = {
        "a": {"helpful": 4, "polite": 1},
        "b": {"helpful": 2, "polite": 5},
        "c": {"helpful": 5, "polite": 3},
        "d": {"helpful": 3, "polite": 3},
    }
    cases = []
    for weights in ({"helpful": 2.0, "polite": 1.0}, {"helpful": 1.0, "polite": 3.0}, {"helpful": 1.0, "polite": 1.0}):
        right = tiers(scores, weights)
        causes = (
            (right[::-1], "That is worst first."),
            (tiers(scores, dict.fromkeys(weights, 1.0)), "All attributes count alike in yours; use the weights."),
            ([[reply] for tier in right for reply in tier], "Replies with equal means share a tier."),
            ([reply for tier in right for reply in tier], "Each tier is a list of its own, also with one reply."),
        )
        cases.append(Case((scores, weights), right, causes))
    praise = "change the weights and the order changes: a rating leaves that choice to whoever trains."
    return check(function, cases, praise, "Weighted mean of each reply's marks; equal means together; highest first.")


def check_in_force(function: Callable[[list[tuple[str, str, str | None]]], dict[str, str]]) -> bool:
    """`function(events)`: {question: id} of the answers that count, from a log of (id, question, withdraws)."""
    replaced = [("a", "q1", None), ("b", "q2", None), ("c", "q1", None)]
    taken_back = [*replaced, ("d", "q1", "c")]
    nothing = [("a", "q1", None), ("b", "q1", "a")]
    cases = [
        Case(
            (replaced,),
            {"q1": "c", "q2": "b"},
            (({"q1": "a", "q2": "b"}, "A later answer to the same question takes the earlier one's place."),),
        ),
        Case(
            (taken_back,),
            {"q1": "a", "q2": "b"},
            (
                ({"q1": "d", "q2": "b"}, "A withdrawal is a line of the log, but no answer."),
                ({"q1": "c", "q2": "b"}, "The last event takes c back."),
                ({"q2": "b"}, "c was taken back, and a never was: it counts again."),
            ),
        ),
        Case((nothing,), {}, (({"q1": "a"}, "The only answer was taken back."),)),
        Case(([],), {}),
    ]
    hint = "Leave out withdrawals and what they take back; then keep the last answer of each question."
    return check(function, cases, "nothing is ever deleted, and what counts can be read off at any time.", hint)


def check_votes_to_pairs(function: Callable[[list[tuple[str, str, bool]]], list[tuple[str, str, str]]]) -> bool:
    """`function(votes)`: pairs (prompt, chosen, rejected) from votes (prompt, reply, up) on the same prompt."""
    votes = [("p", "a", True), ("p", "b", False), ("p", "c", True), ("q", "d", False), ("q", "e", False)]
    mixed = [("p", chosen, rejected) for chosen in "ac" for rejected in "bde"]
    causes = (
        (mixed, "Only votes on one prompt make a pair: d and e answered another question."),
        ([("p", "b", "a"), ("p", "b", "c")], "The reply with its thumb up is the chosen one."),
        ([("p", "a", "b")], "Both a and c are better than b: all pairs, not one a prompt."),
        ([("p", "a", "b"), ("p", "c", "b"), ("q", "d", "e")], "Two thumbs down do not say which is better."),
    )
    cases = [
        Case((votes,), [("p", "a", "b"), ("p", "c", "b")], causes),
        Case(([("p", "a", False), ("p", "b", True)],), [("p", "b", "a")]),
        Case(([("p", "a", True)],), []),
    ]
    praise = "votes on one prompt are comparisons in disguise; a lonely vote is not."
    return check(function, cases, praise, "For each vote up, every vote down that has the same prompt.")


# --- notebook 03d: agreement and quality ------------------------------------------------------------------------------


def check_table_kappa(function: Callable[[list[list[int]]], float]) -> bool:
    """`function(table)`: Cohen's kappa of a table of counts, rows one person's labels, columns the other's."""
    cases = []
    for table in ([[20, 5], [10, 15]], [[45, 15], [25, 15]], [[10, 2, 0], [3, 5, 1], [0, 4, 9]]):
        n, size = sum(map(sum, table)), len(table)
        rows, columns = [sum(row) / n for row in table], [sum(column) / n for column in zip(*table, strict=True)]
        observed = sum(table[i][i] for i in range(size)) / n
        chance = sum(r * c for r, c in zip(rows, columns, strict=True))
        even = 1 / size
        causes = (
            (observed, "That is the observed agreement; chance must still be taken away."),
            (chance, "That is the agreement by chance."),
            (observed - chance, "Divide by the room above chance, 1 − chance."),
            ((observed - even) / (1 - even), "Chance depends on how often each person says what: use both margins."),
            (
                (observed - sum(r * r for r in rows)) / (1 - sum(r * r for r in rows)),
                "Those are one person's habits squared; multiply the row's share by the column's.",
            ),
        )
        cases.append(Case((table,), (observed - chance) / (1 - chance), causes))
    praise = "the same agreement is worth less where both people nearly always say the same."
    return check(function, cases, praise, "p_o from the diagonal, p_e from rows × columns, each as a share of all.")


def check_unit_agreement(function: Callable[[list[int]], float]) -> bool:
    """`function(counts)`: the share of all two people who agree about one unit, Σ c(c − 1) / n(n − 1)."""
    cases = []
    for counts in ([3, 1, 0], [2, 2], [0, 5, 0], [1, 1, 1]):
        n = sum(counts)
        with_oneself = "That counts everybody as agreeing with themselves: c (c − 1), not c²."
        causes = (
            (sum(c * c for c in counts) / n**2, with_oneself),
            (max(counts) / n, "That is the majority's share; look at people two by two."),
            (sum(c * (c - 1) for c in counts) / 2, "That is a number of pairs; divide by all pairs, n (n − 1) / 2."),
            (sum(c * (c - 1) for c in counts) / (2 * n * (n - 1)), "One of the two is counted once, the other twice."),
        )
        cases.append(Case((counts,), sum(c * (c - 1) for c in counts) / (n * (n - 1)), causes))
    return check(function, cases, "average it over questions, take chance away, and it is Fleiss' kappa.")


def check_posterior(function: Callable[[list[bool], list[float]], float]) -> bool:
    """`function(votes, abilities)`: P(the first is better) after independent votes, both equally likely before."""
    cases = []
    for votes, abilities in (
        ([True], [0.8]),
        ([True, True, False], [0.6, 0.6, 0.9]),
        ([True, False, False], [0.5, 0.7, 0.2]),
    ):
        both = list(zip(votes, abilities, strict=True))
        first = math.prod(p if vote else 1 - p for vote, p in both)
        second = math.prod(1 - p if vote else p for vote, p in both)
        causes = (
            (first, "That is how likely these votes are if the first is better; divide by both possibilities' sum."),
            (second / (first + second), "That is the probability of the second."),
            (sum(votes) / len(votes), "That is the share of votes: a careful person's must weigh more."),
            (
                sum(p for vote, p in both if vote) / sum(abilities),
                "Adding abilities is a weighted vote; independent evidence multiplies.",
            ),
            (
                math.prod(p for vote, p in both if vote) / (math.prod(p for vote, p in both if vote) + second),
                "A vote for the second counts in both products: it is 1 − ability if the first is better.",
            ),
        )
        cases.append(Case((votes, abilities), first / (first + second), causes))
    praise = "one who is right nine times in ten outweighs two who are right six times in ten."
    return check(function, cases, praise, "Multiply ability or 1 − ability over the voters, for each possibility.")


# --- notebook 03c: which question next --------------------------------------------------------------------------------


def check_information(function: Callable[[list[float]], float]) -> bool:
    """`function(opinions)`: entropy of the mean minus mean entropy, in nats, of probabilities (BALD)."""

    def entropy(p: float) -> float:
        return 0.0 if p in (0, 1) else -(p * math.log(p) + (1 - p) * math.log(1 - p))

    cases = []
    for opinions in ([0.9, 0.1], [0.5, 0.5, 0.5], [0.99, 0.8, 0.3, 0.6]):
        mean = sum(opinions) / len(opinions)
        doubt, remaining = entropy(mean), sum(map(entropy, opinions)) / len(opinions)
        causes = (
            (doubt, "That is all the doubt about the answer; take away what would remain if the head were known."),
            (remaining, "That is the doubt that remains; it is to be taken away from the entropy of the mean."),
            (remaining - doubt, "The other way round: information is never negative."),
            ((doubt - remaining) / math.log(2), "That is in bits; use the natural logarithm."),
        )
        cases.append(Case((opinions,), doubt - remaining, causes))
    cases.append(Case(([1.0, 0.0],), math.log(2)))
    praise = "heads that all say fifty-fifty tell nothing; heads that contradict each other tell most."
    return check(function, cases, praise, "H(mean) − mean of H, with H(p) = −p ln p − (1 − p) ln(1 − p), and H(0) = 0.")


def check_labels_to(function: Callable[[list[float], float], int | None]) -> bool:
    """`function(curve, target)`: the first n from which three points in a row reach the target; None without one.

    "Never" is written as −1 for the comparison, because None also says that an exercise has not been begun.
    """
    lucky = [0.5, 0.81, 0.7, 0.8, 0.82, 0.8, 0.79]
    causes = (
        (1, "One lucky label does not count: the next two must reach it as well."),
        (5, "That is where the three labels end; say where they begin."),
        (4, "Reaching the target exactly is enough."),
    )
    cases = [
        Case((lucky, 0.8), 3, causes),
        Case(([0.9, 0.9, 0.9], 0.8), 0, ((1, "The curve begins with no label at all: n counts from 0."),)),
        Case(([0.5, 0.9, 0.9], 0.8), -1, ((1, "Two are not three: the curve ends too early to say."),)),
    ]

    def with_never(curve: list[float], target: float) -> Any:
        got = function(list(curve), target)
        return -1 if got is None and function([1.0] * 3, 0.5) is not None else got

    with_never.__name__ = getattr(function, "__name__", "your function")
    return check(
        with_never,
        cases,
        "now a number can be compared.",
        "The first n with curve[n], curve[n+1], curve[n+2] ≥ target.",
    )


# --- notebook 10: beyond PPO ------------------------------------------------------------------------------------------


def check_dpo(dpo_loss: Callable[..., float]) -> bool:
    """−log σ(β·((chosen − ref_chosen) − (rejected − ref_rejected))) of one pair, from four log-probabilities."""
    chosen, rejected, ref_chosen, ref_rejected, beta = -10.0, -12.0, -11.0, -9.0, 0.5
    z = beta * ((chosen - ref_chosen) - (rejected - ref_rejected))
    causes = (
        (_softplus(z), "That pulls the other way: the better reply's gain comes first, the worse one's is taken away."),
        (_softplus(-beta * (chosen - rejected)), "The reference is missing: what counts is how far each reply moved."),
        (_softplus(-z / beta), "β is missing: it multiplies the difference."),
        (_softplus(-z / beta**2), "Multiply by β, do not divide."),
        (1 / (1 + math.exp(-z)), "That is the probability of the person's choice; the loss is minus its logarithm."),
        (-_softplus(-z), "The sign is wrong: a loss is −log P, and a probability's logarithm is negative."),
    )
    cases = [
        Case((chosen, rejected, ref_chosen, ref_rejected, beta), _softplus(-z), causes),
        Case((-10.0, -12.0, -10.0, -12.0, 0.1), math.log(2)),
        Case((-900.0, -5.0, -5.0, -5.0, 1.0), 895.0),
    ]
    hint = "z = β·((chosen − ref_chosen) − (rejected − ref_rejected)); the loss is log(1 + e^−z)."
    return check(dpo_loss, cases, "Right: a reward model's loss, with the policy as the reward model.", hint)


def check_leave_one_out(advantages: Callable[[Sequence[float]], Sequence[float]]) -> bool:
    """Each reward less the mean of the group's other rewards (RLOO)."""
    rewards = [1.0, 3.0, 8.0]
    mean = sum(rewards) / 3
    right = [r - (sum(rewards) - r) / 2 for r in rewards]
    causes = (
        ([r - mean for r in rewards], "That mean has the reply itself in it; leave it out."),
        ([r - (sum(rewards) - r) / 3 for r in rewards], "The others are n − 1, so divide their sum by n − 1."),
        ([(sum(rewards) - r) / 2 for r in rewards], "That is the baseline; the advantage is the reward less it."),
        ([-a for a in right], "The sign is turned: a reply better than the others has an advantage above 0."),
    )
    cases = [Case((rewards,), right, causes), Case(([2.0, 0.0],), [2.0, -2.0]), Case(([1.0] * 4,), [0.0] * 4)]
    hint = "For each reward: itself, less the sum of the others divided by n − 1."
    return check(advantages, cases, "Right: the others are the baseline, and no critic is needed.", hint)


def check_group_advantages(advantages: Callable[[Sequence[float]], Sequence[float]]) -> bool:
    """(score − mean) / (std + 1e-4) within a group, std with n − 1 (GRPO)."""

    def of(scores: Sequence[float], less: int = 1, eps: float = 1e-4) -> list[float]:
        mean = sum(scores) / len(scores)
        std = math.sqrt(sum((s - mean) ** 2 for s in scores) / (len(scores) - less))
        return [(s - mean) / (std + eps) for s in scores]

    scores = [0.0, 1.0, 5.0]
    mean = sum(scores) / 3
    variance = sum((s - mean) ** 2 for s in scores) / 2
    causes = (
        ([s - mean for s in scores], "Divide by the group's standard deviation. (Without: Dr. GRPO, no bad choice.)"),
        (of(scores, less=0), "That standard deviation divides by n; GRPO's divides by n − 1."),
        ([(s - mean) / (variance + 1e-4) for s in scores], "Divide by the standard deviation, not by its square."),
        (_softmax(scores), "No softmax: take the mean away, divide by the spread."),
    )
    cases = [
        Case((scores,), of(scores), causes),
        Case(([2.0, 2.0, 2.0],), [0.0] * 3),
        Case(([-1.0, 1.0],), of([-1.0, 1.0])),
    ]
    hint = "(score − mean) / (std + 1e-4); the 1e-4 keeps a group whose scores are all equal from dividing by 0."
    return check(advantages, cases, "Right. And where all scores are equal there is nothing to learn.", hint)


def _softmax(values: Sequence[float]) -> list[float]:
    total = sum(map(math.exp, values))
    return [math.exp(value) / total for value in values]


def check_best_of_n_kl(bound: Callable[[int], float]) -> bool:
    """How far best-of-n can be from the model it samples from: log n − (n − 1)/n nats a reply."""
    cases = [
        Case(
            (n,),
            math.log(n) - (n - 1) / n,
            (
                (math.log(n), "Take (n − 1)/n away: the best of n is not always the rarest."),
                (math.log2(n) - (n - 1) / n, "In nats: the natural logarithm, math.log."),
                (math.log(n) + (n - 1) / n, "(n − 1)/n is taken away, not added."),
                (math.log(n) - 1 / n, "It is (n − 1)/n that is taken away."),
            ),
        )
        for n in (8, 1, 2)
    ]
    praise = "Right: KL grows with the logarithm of n only, while the cost grows with n."
    return check(bound, cases, praise, "log n − (n − 1)/n, with math.log.")
