"""The checkers of notebooks 00 to 03 and 10: common mistakes get their cause (the solutions hold the right answers)."""

from __future__ import annotations

import math
import re
import statistics

import pytest

from rlhf_lab import exercises
from rlhf_lab.exercises import Case, check


def double(x):
    return 2 * x


class Tensor:
    """Anything with `tolist`, as torch and numpy have it."""

    def __init__(self, values):
        self.values = values

    def tolist(self):
        return self.values


def said(capsys) -> str:
    return capsys.readouterr().out.strip()


def test_right_answers_are_praised_and_a_tensor_is_as_good_as_a_list(capsys):
    assert check(double, [Case((2,), 4), Case((0.5,), 1.0)], "that is twice as much.")
    assert said(capsys) == "✓ that is twice as much."
    assert check(lambda x: Tensor([1.0, x]), [Case((2,), [1, 2])], "fine")


def test_a_wrong_answer_says_what_was_called_expected_and_got_and_why(capsys):
    cases = [Case((2,), 4), Case((3,), 9, ((6, "Square it instead of doubling."),))]
    assert not check(double, cases, "", hint="Think.")
    assert said(capsys) == "✗ double(3) should be 9, but yours gives 6. Square it instead of doubling."


def test_an_unforeseen_wrong_answer_gets_the_hint(capsys):
    assert not check(double, [Case((3,), 9, ((3, "Not the number itself."),))], "", hint="Think again.")
    assert said(capsys).endswith("yours gives 6. Think again.")


def test_an_exercise_not_yet_begun_is_not_called_wrong(capsys):
    for empty in (lambda x: None, lambda x: ...):
        assert not check(empty, [Case((1,), 1)], "")
        assert said(capsys).startswith("○")


def test_a_function_that_fails_does_not_stop_the_notebook(capsys):
    assert not check(lambda x: 1 / 0, [Case((1,), 1)], "")
    assert "ZeroDivisionError" in said(capsys)


@pytest.mark.parametrize("wrong", [True, "4", [4], float("nan"), (4, 4), object()])
def test_an_answer_of_another_kind_is_wrong_and_no_error(wrong, capsys):
    assert not check(lambda x: wrong, [Case((2,), 4)], "")
    assert said(capsys).startswith("✗")


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def tilt(reference, rewards, beta):
    weights = [p * math.exp(r / beta) for p, r in zip(reference, rewards, strict=True)]
    return [w / sum(weights) for w in weights]


def merge_once(word, merges):
    return exercises_merge(list(word), merges[0])


def exercises_merge(tokens, pair):
    merged, i = [], 0
    while i < len(tokens):
        hit = tuple(tokens[i : i + 2]) == pair
        merged.append("".join(pair) if hit else tokens[i])
        i += 2 if hit else 1
    return merged


def greedy_overlap(word, merges):
    """Merges aaa into aa, aa: what a loop that steps by one does."""
    tokens = list(word)
    for pair in merges:
        tokens = (
            ["".join(pair)] * 2 + tokens[3:]
            if tokens[:3] == ["a"] * 3 == [*pair, "a"]
            else exercises_merge(tokens, pair)
        )
    return tokens


def identity_labels(ids, replies):
    return [ids[i] if any(a <= i < b for a, b in replies) else -100 for i in range(len(ids))]


WRONG = [
    (exercises.check_count_pairs, lambda k: k * (k - 1), "counted twice"),
    (exercises.check_count_pairs, lambda k: k - 1, "neighbours"),
    (exercises.check_preference, lambda a, b: sigmoid(b - a), "swap"),
    (exercises.check_preference, lambda a, b: a - b, "sigmoid"),
    (exercises.check_tilt, lambda p, r, beta: tilt(p, r, 1 / beta), "Divide the reward by β"),
    (exercises.check_tilt, lambda p, r, beta: tilt([1.0] * len(p), r, beta), "reference is missing"),
    (exercises.check_tilt, lambda p, r, beta: tilt(p, r, 1.0), "β is missing"),
    (exercises.check_encode, merge_once, "Only the first merge"),
    (exercises.check_encode, greedy_overlap, "go on behind both tokens"),
    (exercises.check_perplexity, lambda losses, n: math.exp(sum(losses) / len(losses)), "by its tokens"),
    (exercises.check_bits_per_byte, lambda loss, size: loss / size, "nats a byte"),
    (exercises.check_chat, lambda turns: "".join(f"<|{r}|> {t}<|end|>" for r, t in turns), "Only a reply ends"),
    (exercises.check_chat, lambda turns: "".join(f"<|{r}|> {t}" for r, t in turns), "never learns to stop"),
    (exercises.check_turn_labels, identity_labels, "not shifted"),
    (exercises.check_turn_labels, lambda ids, replies: identity_labels(ids, replies)[:-1], "shifting drops the first"),
    (exercises.check_turn_labels, lambda ids, replies: identity_labels(ids, replies[-1:])[1:], "Every reply bears"),
    (exercises.check_early_stop, lambda training, held_out: training.index(min(training)), "memorised"),
    (exercises.check_order_of_scores, lambda s: [[k] for k in sorted(s, key=s.get, reverse=True)], "share a tier"),
    (exercises.check_order_of_scores, lambda s: sorted(s, key=s.get, reverse=True), "list of its own"),
    (exercises.check_kappa, lambda agreement, chance: agreement - chance, "Divide by the room"),
    (exercises.check_majority, lambda p: p**3, "two are enough"),
    (exercises.check_majority, lambda p: 1 - (1 - p) ** 3, "at least one"),
]


@pytest.mark.parametrize(("checker", "function", "cause"), WRONG)
def test_each_common_mistake_is_named(checker, function, cause, capsys):
    assert not checker(function)
    assert cause in said(capsys)


@pytest.mark.parametrize(
    "checker, answer, cause",
    [
        ("check_table_kappa", lambda t: sum(t[i][i] for i in range(len(t))) / sum(map(sum, t)), "observed agreement"),
        ("check_unit_agreement", lambda c: max(c) / sum(c), "majority's share"),
        ("check_unit_agreement", lambda c: sum(x * x for x in c) / sum(c) ** 2, "agreeing with themselves"),
        ("check_posterior", lambda v, a: math.prod(p if x else 1 - p for x, p in zip(v, a)), "divide by both"),  # noqa: B905
    ],
)
def test_mistakes_about_agreement_get_their_cause(checker, answer, cause, capsys):
    assert not getattr(exercises, checker)(answer)
    assert cause in said(capsys)


def tiers_of_marks(scores, weights):
    mean = {reply: sum(weights[name] * marks[name] for name in weights) for reply, marks in scores.items()}
    return [[reply for reply in mean if mean[reply] == mark] for mark in sorted(set(mean.values()), reverse=True)]


def in_force(events):
    gone = {withdraws for _, _, withdraws in events}
    return {question: name for name, question, withdraws in events if withdraws is None and name not in gone}


def votes_to_pairs(votes):
    up, down = ([vote for vote in votes if vote[2] is thumb] for thumb in (True, False))
    return [(prompt, chosen, rejected) for prompt, chosen, _ in up for other, rejected, _ in down if other == prompt]


def equal_weights(scores, weights):
    return tiers_of_marks(scores, dict.fromkeys(weights, 1))


@pytest.mark.parametrize(
    "checker, answer, cause",
    [
        ("check_tiers_of_marks", equal_weights, "use the weights"),
        ("check_tiers_of_marks", lambda s, w: tiers_of_marks(s, w)[::-1], "worst first"),
        ("check_in_force", lambda e: {q: n for n, q, w in e[::-1] if not w}, "takes the earlier one's place"),
        ("check_in_force", lambda e: {q: n for n, q, _ in e}, "no answer"),
        ("check_in_force", lambda e: {q: n for n, q, w in e if not w}, "takes c back"),
        ("check_votes_to_pairs", lambda v: [(p, b, a) for p, a, b in votes_to_pairs(v)], "the chosen one"),
        ("check_votes_to_pairs", lambda v: votes_to_pairs([("p", r, up) for _, r, up in v]), "one prompt"),
    ],
)
def test_mistakes_about_forms_get_their_cause(checker, answer, cause, capsys):
    assert not getattr(exercises, checker)(answer)
    assert cause in said(capsys)


def test_right_answers_about_forms_are_praised(capsys):
    assert exercises.check_tiers_of_marks(tiers_of_marks)
    assert exercises.check_in_force(in_force)
    assert exercises.check_votes_to_pairs(votes_to_pairs)
    assert said(capsys).count("\u2713") == 3


# --- notebook 03c ---


def nats(p):
    return 0.0 if p in (0, 1) else -(p * math.log(p) + (1 - p) * math.log(1 - p))


def information(opinions):
    return nats(sum(opinions) / len(opinions)) - sum(map(nats, opinions)) / len(opinions)


def labels_to(curve, target):
    return next((n for n in range(len(curve) - 2) if min(curve[n : n + 3]) >= target), None)


@pytest.mark.parametrize(
    "checker, answer, cause",
    [
        ("check_information", lambda o: nats(sum(o) / len(o)), "take away what would remain"),
        ("check_information", lambda o: -information(o), "never negative"),
        ("check_information", lambda o: information(o) / math.log(2), "natural logarithm"),
        ("check_labels_to", lambda c, t: next(n for n, x in enumerate(c) if x >= t), "lucky"),
        ("check_labels_to", lambda c, t: ..., "has not been begun|gives nothing yet"),
        ("check_labels_to", lambda c, t: 3, "no label at all|should be 0"),
    ],
)
def test_mistakes_about_questions_get_their_cause(checker, answer, cause, capsys):
    assert not getattr(exercises, checker)(answer)
    assert re.search(cause, said(capsys))


def test_right_answers_about_questions_are_praised(capsys):
    assert exercises.check_information(information) and exercises.check_labels_to(labels_to)
    assert said(capsys).count("\u2713") == 2


# --- notebook 10 ---


def dpo(chosen, rejected, ref_chosen, ref_rejected, beta):
    z = beta * ((chosen - ref_chosen) - (rejected - ref_rejected))
    return max(-z, 0.0) + math.log1p(math.exp(-abs(z)))


def leave_one_out(rewards):
    return [r - (sum(rewards) - r) / (len(rewards) - 1) for r in rewards]


def standardised(scores, less=1):
    mean = sum(scores) / len(scores)
    std = math.sqrt(sum((s - mean) ** 2 for s in scores) / (len(scores) - less))
    return [(s - mean) / (std + 1e-4) for s in scores]


def best_of_n_kl(n):
    return math.log(n) - (n - 1) / n


@pytest.mark.parametrize(
    "checker, answer, cause",
    [
        ("check_dpo", lambda c, r, rc, rr, b: dpo(r, c, rr, rc, b), "pulls the other way"),
        ("check_dpo", lambda c, r, rc, rr, b: dpo(c, r, 0, 0, b), "reference is missing"),
        ("check_dpo", lambda c, r, rc, rr, b: dpo(c, r, rc, rr, 1), "β is missing"),
        ("check_dpo", lambda c, r, rc, rr, b: dpo(c, r, rc, rr, 1 / b), "do not divide"),
        ("check_dpo", lambda c, r, rc, rr, b: math.exp(-dpo(c, r, rc, rr, b)), "minus its logarithm"),
        ("check_dpo", lambda *a: -dpo(*a), "sign is wrong"),
        ("check_leave_one_out", lambda r: [x - sum(r) / len(r) for x in r], "leave it out"),
        ("check_leave_one_out", lambda r: [x - (sum(r) - x) / len(r) for x in r], "divide their sum by n − 1"),
        ("check_leave_one_out", lambda r: [(sum(r) - x) / (len(r) - 1) for x in r], "That is the baseline"),
        ("check_leave_one_out", lambda r: [-a for a in leave_one_out(r)], "sign is turned"),
        ("check_group_advantages", lambda s: [x - sum(s) / len(s) for x in s], "Dr. GRPO"),
        ("check_group_advantages", lambda s: standardised(s, less=0), "divides by n − 1"),
        ("check_group_advantages", lambda s: [a / statistics.stdev(s) for a in standardised(s)], "not by its square"),
        ("check_best_of_n_kl", lambda n: math.log(n), "away"),
        ("check_best_of_n_kl", lambda n: math.log2(n) - (n - 1) / n, "natural logarithm"),
        ("check_best_of_n_kl", lambda n: math.log(n) + (n - 1) / n, "not added"),
    ],
)
def test_mistakes_about_other_methods_get_their_cause(checker, answer, cause, capsys):
    assert not getattr(exercises, checker)(answer)
    assert cause in said(capsys)


def test_right_answers_about_other_methods_are_praised(capsys):
    assert exercises.check_dpo(dpo) and exercises.check_leave_one_out(leave_one_out)
    assert exercises.check_group_advantages(standardised) and exercises.check_best_of_n_kl(best_of_n_kl)
    assert said(capsys).count("\u2713") == 4


def test_what_is_right_in_an_exercise_is_what_the_package_does():
    torch = pytest.importorskip("torch")
    from rlhf_lab.direct import dpo_loss
    from rlhf_lab.group import group_advantages
    from rlhf_lab.group import leave_one_out as of_the_package

    scores = [0.3, -1.0, 2.0, 0.3]
    assert of_the_package(torch.tensor([scores]))[0].tolist() == pytest.approx(leave_one_out(scores), abs=1e-5)
    assert group_advantages(torch.tensor([scores]))[0].tolist() == pytest.approx(standardised(scores), abs=1e-5)
    gained = torch.tensor([1.0]), torch.tensor([-3.0])
    assert dpo_loss(*gained, 0.5).item() == pytest.approx(dpo(-10.0, -12.0, -11.0, -9.0, 0.5), abs=1e-5)
