"""The reward model: losses by hand and against an independent implementation, data, training, normalisation, taste."""

import math
from dataclasses import replace

import numpy as np
import pytest
import reference
import torch
from tiny import TEXTS, reward_model, tokenizer

from rlhf_lab.aggregation import majority_vote
from rlhf_lab.config import RewardConfig
from rlhf_lab.errors import InputError
from rlhf_lab.language import make_optimizer
from rlhf_lab.models import head_of
from rlhf_lab.records import Candidate, Comparison, Correction, Question, Ranking, Rating, Vote
from rlhf_lab.reward import (
    RankedReplies,
    TasteModel,
    bradley_terry_loss,
    calibration,
    encode_comparisons,
    encode_rankings,
    fit_head,
    normalise,
    pair_margins,
    pairs_of_tiers,
    plackett_luce_loss,
    reward_loss,
    score_dialogues,
    score_many,
    taste_prior,
    train_reward_model,
)
from rlhf_lab.text import encode_dialogues

LN2 = math.log(2)


def tensor(*values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


# --- by hand ----------------------------------------------------------------------------------------------------------


def test_bradley_terry_by_hand():
    # r = (ln 3, 0): P = 3 / (3 + 1) = 3/4, loss = ln 4/3.   r = (0, ln 3): P = 1/4, loss = ln 4.   Equal: ln 2.
    loss = bradley_terry_loss(tensor(math.log(3), 0, 2), tensor(0, math.log(3), 2))
    assert loss.tolist() == pytest.approx([math.log(4 / 3), math.log(4), LN2])


def test_bradley_terry_tie_by_hand():
    # A tie is half a preference either way: (ln 4/3 + ln 4) / 2 = ½·ln 16/3. At equal scores: ln 2, its minimum.
    tie = torch.tensor([True, True, False])
    loss = bradley_terry_loss(tensor(math.log(3), 1, math.log(3)), tensor(0, 1, 0), tie)
    assert loss.tolist() == pytest.approx([0.5 * math.log(16 / 3), LN2, math.log(4 / 3)])


def test_a_tie_pulls_both_scores_together_with_equal_force():
    chosen, rejected = tensor(2.0).requires_grad_(), tensor(-1.0).requires_grad_()
    bradley_terry_loss(chosen, rejected, torch.tensor([True])).sum().backward()
    # d/dc ½(−ln σ(d) − ln σ(−d)) = σ(d) − ½ at d = 3
    assert chosen.grad.item() == pytest.approx(1 / (1 + math.exp(-3)) - 0.5)
    assert rejected.grad.item() == pytest.approx(-chosen.grad.item())


def test_bradley_terry_margin_by_hand():
    # d = ln 6 − 0 − ln 2 = ln 3: loss = ln 4/3. The margin asks for more: without it the loss is ln 7/6.
    loss = bradley_terry_loss(tensor(math.log(6)), tensor(0), margin=tensor(LN2))
    assert loss.item() == pytest.approx(math.log(4 / 3))
    assert bradley_terry_loss(tensor(math.log(6)), tensor(0)).item() == pytest.approx(math.log(7 / 6))


def test_bradley_terry_is_stable_far_out():
    loss = bradley_terry_loss(tensor(-1000.0, 1000.0), tensor(1000.0, -1000.0))
    assert loss.tolist() == pytest.approx([2000.0, 0.0])


def test_plackett_luce_of_two_is_bradley_terry():
    scores = tensor(math.log(3), 0)
    assert plackett_luce_loss(scores, [[0], [1]]).item() == pytest.approx(math.log(4 / 3))
    assert plackett_luce_loss(scores, [[1], [0]]).item() == pytest.approx(math.log(4))


def test_plackett_luce_of_three_by_hand():
    # strengths e^r = 3, 2, 1.  Order 0, 1, 2: 3/6 · 2/3 = 1/3.   Order 2, 0, 1: 1/6 · 3/5 = 1/10.
    scores = tensor(math.log(3), LN2, 0)
    assert plackett_luce_loss(scores, [[0], [1], [2]]).item() == pytest.approx(math.log(3))
    assert plackett_luce_loss(scores, [[2], [0], [1]]).item() == pytest.approx(math.log(10))


def test_plackett_luce_ties_by_hand():
    scores = tensor(math.log(3), LN2, 0)
    # {0, 1} above 2: each of them against 2 alone: 3/4 · 2/3 = 1/2.   0 above {1, 2}: 3/6, nothing about 1 and 2.
    assert plackett_luce_loss(scores, [[0, 1], [2]]).item() == pytest.approx(math.log(2))
    assert plackett_luce_loss(scores, [[0], [1, 2]]).item() == pytest.approx(math.log(2))
    assert plackett_luce_loss(scores, [[0, 1, 2]]).item() == 0.0


def test_all_pairs_of_a_four_way_ranking_with_ties():
    # best {2}, then {0, 3} tied, then {1}: C(4, 2) = 6 pairs, one of them a tie
    pairs = pairs_of_tiers([(2,), (0, 3), (1,)])
    assert sorted(pairs) == sorted(
        [(2, 0, False), (2, 3, False), (2, 1, False), (0, 1, False), (3, 1, False), (0, 3, True)]
    )
    assert len(pairs_of_tiers([(0, 1, 2, 3)])) == 6 and all(tie for *_, tie in pairs_of_tiers([(0, 1, 2, 3)]))


# --- against an independent implementation ----------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_bradley_terry_agrees_with_the_formula(seed):
    rng = np.random.default_rng(seed)
    chosen, rejected, margin = rng.normal(0, 2, (3, 20))
    loss = bradley_terry_loss(*map(torch.tensor, (chosen, rejected)), margin=torch.tensor(margin))
    expected = [reference.bradley_terry(*row) for row in zip(chosen, rejected, margin, strict=True)]
    np.testing.assert_allclose(loss.numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("k", [2, 3, 5])
def test_plackett_luce_and_its_gradient_agree_with_the_formula(k):
    rng = np.random.default_rng(k)
    values, order = rng.normal(0, 1.5, k), rng.permutation(k).tolist()
    scores = torch.tensor(values, requires_grad=True)
    loss = plackett_luce_loss(scores, [[i] for i in order])
    loss.backward()
    assert loss.item() == pytest.approx(reference.plackett_luce(values, order), abs=1e-5)
    slope = reference.slope(lambda x: reference.plackett_luce(x, order), values)
    np.testing.assert_allclose(scores.grad.numpy(), slope, atol=1e-5)


def test_plackett_luce_is_a_probability():
    assert reference.probabilities_of_all_orders([0.3, -1.0, 2.0, 0.0]) == pytest.approx(1)


@pytest.mark.parametrize("loss_name", ["pairs", "plackett-luce"])
def test_the_batch_loss_is_the_mean_over_questions(loss_name):
    """A question of four replies weighs as much as one of two."""
    model, data = reward_model(), rankings_of([[(0,), (1,), (3,), (2,)], [(1,), (0,)]])
    loss, accuracy = reward_loss(model, data, loss_name)
    per_question, hits = [], []
    for item in data:
        scores = [score_dialogues(model, [d]).item() for d in item.dialogues]  # one at a time: no padding at all
        order = [i for (i,) in item.tiers]
        pairs = [(a, b) for n, a in enumerate(order) for b in order[n + 1 :]]
        hits += [scores[a] > scores[b] for a, b in pairs]
        bt = np.mean([reference.bradley_terry(scores[a], scores[b]) for a, b in pairs])
        per_question.append(bt if loss_name == "pairs" else reference.plackett_luce(scores, order))
    assert loss.item() == pytest.approx(np.mean(per_question), abs=1e-5)
    assert accuracy == pytest.approx(np.mean(hits))


def test_a_pair_of_weight_two_counts_like_the_same_pair_twice():
    """As questions of their own, as a consensus gives them, and within a question; gradients too."""
    pairs = [Comparison("P?", TEXTS[0], TEXTS[1]), Comparison("P?", TEXTS[2], TEXTS[1]), Comparison("Q?", *TEXTS[2:4])]
    twice = encode_comparisons(tokenizer(), [pairs[0], *pairs[:2]])
    weighed = encode_comparisons(tokenizer(), pairs, weights=[2.0, 1.0, 0.0])
    (item,) = rankings_of([[(0,), (1,), (2,)]])
    first, second, third = item.pairs
    for one, other in (
        (weighed, twice),
        ([replace(item, weights=(2.0, 1.0, 0.0))], [replace(item, pairs=(first, first, second))]),
        ([replace(item, weights=(0.5, 0.5, 0.5)), weighed[1]], [item, *[weighed[1]] * 2]),
    ):
        results = []
        for batch in (one, other):
            model = reward_model()
            loss, _ = reward_loss(model, batch)
            loss.backward()
            results.append((loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)))
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


def test_the_weighted_loss_agrees_with_the_formula():
    model, weights = reward_model(), [0.9, 0.2, 0.55]
    pairs = [Comparison("P?", TEXTS[i], TEXTS[i + 1]) for i in range(3)]
    data = encode_comparisons(tokenizer(), pairs, weights=weights)
    alone = [[score_dialogues(model, [d]).item() for d in item.dialogues] for item in data]
    expected = np.average([reference.bradley_terry(*scores) for scores in alone], weights=weights)
    assert reward_loss(model, data)[0].item() == pytest.approx(expected, abs=1e-5)


def test_a_batch_of_weight_zero_teaches_nothing():
    model = reward_model()
    loss, _ = reward_loss(model, encode_comparisons(tokenizer(), [Comparison("P?", "one", "two")], weights=[0.0]))
    loss.backward()
    assert loss.item() == 0 and all(not p.grad.any() for p in model.parameters() if p.grad is not None)


def test_a_consensus_trains_a_reward_model():
    """Three people of whom one answers the wrong way round: verdicts and weights go straight into training."""
    orders = {"ada": ("c0", "c1"), "ben": ("c0", "c1"), "eve": ("c1", "c0")}
    questions = [question(TEXTS[:2], prompt=f"Question {n}?") for n in range(12)]
    answers = [Ranking(q.id, tuple((c,) for c in order), name) for q in questions for name, order in orders.items()]
    comparisons, weights = majority_vote(answers).comparisons(questions)
    assert weights == pytest.approx([1 / 3] * 12)
    model, data = reward_model(), encode_comparisons(tokenizer(), comparisons, weights=weights)
    list(train_reward_model(model, data, RewardConfig(epochs=8, questions_per_batch=3, learning_rate=5e-3)))
    assert (pair_margins(model, data) > 0).all()


@pytest.mark.parametrize("weights", [(1.0,), (1.0, -0.5), (1.0, math.nan), (math.inf, 1.0)])
def test_weights_that_mean_nothing_are_refused(weights):
    (item,) = rankings_of([[(0, 1, 2)]])
    with pytest.raises(InputError, match="weights"):
        replace(item, pairs=item.pairs[:2], weights=weights)
    with pytest.raises(InputError, match="1 weights for 2 comparisons"):
        encode_comparisons(tokenizer(), [Comparison("P?", "one", "two")] * 2, weights=[1.0])


def test_the_likelihood_of_whole_rankings_refuses_weights_of_pairs():
    data = encode_comparisons(tokenizer(), [Comparison("P?", "one", "two")], weights=[0.5])
    with pytest.raises(InputError, match='use the loss "pairs"'):
        next(train_reward_model(reward_model(), data, RewardConfig(loss="plackett-luce")))


# --- data -------------------------------------------------------------------------------------------------------------


def question(texts: list[str], prompt: str = "When is the choir?") -> Question:
    return Question(f"q {prompt}", prompt, tuple(Candidate(f"c{i}", text) for i, text in enumerate(texts)))


def rankings_of(orders) -> list[RankedReplies]:
    """One ranked question per list of tiers of indices."""
    questions = [question(TEXTS[: sum(map(len, tiers))], prompt=f"Question {n}?") for n, tiers in enumerate(orders)]
    rankings = [
        Ranking(q.id, tuple(tuple(f"c{i}" for i in tier) for tier in tiers), "me")
        for q, tiers in zip(questions, orders, strict=True)
    ]
    return encode_rankings(tokenizer(), questions, rankings)


def test_rankings_become_tokens_and_pairs():
    q = question(TEXTS[:3])
    ranking = Ranking(q.id, (("c2",), ("c0", "c1")), "me")
    skipped = Ranking(q.id, (), "me", status="skipped")
    (item,) = encode_rankings(tokenizer(), [q], [skipped, ranking])
    assert item.tiers == ((2,), (0, 1))
    assert set(item.pairs) == {(2, 0, False), (2, 1, False), (0, 1, True)}
    assert list(item.dialogues) == encode_dialogues(tokenizer(), [(q.prompt, text) for text in TEXTS[:3]])


def test_a_ranking_that_does_not_answer_its_question_is_refused():
    q = question(TEXTS[:3])
    with pytest.raises(InputError, match="orders"):
        encode_rankings(tokenizer(), [q], [Ranking(q.id, (("c0",), ("c1",)), "me")])


def test_a_ranking_of_a_question_that_is_not_there_is_refused():
    with pytest.raises(InputError, match="elsewhere"):
        encode_rankings(tokenizer(), [question(TEXTS[:2])], [Ranking("elsewhere", (("c0",), ("c1",)), "me")])


def test_pairs_from_a_file_take_the_same_form():
    pairs = [Comparison("P?", "good", "bad"), Comparison("P?", "one", "other", tie=True)]
    strict, tie = encode_comparisons(tokenizer(), pairs)
    assert strict.pairs == ((0, 1, False),) and strict.tiers == ((0,), (1,))
    assert tie.pairs == ((0, 1, True),) and tie.tiers == ((0, 1),)
    assert strict.dialogues == tuple(encode_dialogues(tokenizer(), [("P?", "good"), ("P?", "bad")]))


# --- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["pairs", "plackett-luce"])
def test_it_learns_an_order_it_is_shown(loss):
    model, data = reward_model(), rankings_of([[(3,), (1,), (0,), (2,)]] * 6)
    config = RewardConfig(epochs=8, questions_per_batch=3, learning_rate=5e-3, loss=loss)
    points = list(train_reward_model(model, data, config))
    assert points[-1].loss < points[0].loss / 2 and points[-1].accuracy == 1.0
    assert (pair_margins(model, data) > 0).all()
    assert [p.step for p in points] == list(range(1, 17)) and points[-1].pairs == 16 * 3 * 6


@pytest.mark.parametrize("loss", ["pairs", "plackett-luce"])
def test_a_ranking_that_is_all_ties_does_no_harm(loss):
    model, data = reward_model(), rankings_of([[(0, 1, 2)]])
    config = RewardConfig(epochs=2, questions_per_batch=1, loss=loss)
    points = list(train_reward_model(model, data, config))
    assert len(points) == 2 and all(math.isfinite(p.loss) and math.isnan(p.accuracy) for p in points)


def test_training_that_was_interrupted_goes_on_to_the_same_weights_and_points():
    data = rankings_of([[(0,), (1,), (2,)], [(1,), (0,)], [(2, 0), (1,)], [(0,), (1,)], [(1,), (0,), (2,), (3,)]])
    config = RewardConfig(epochs=3, questions_per_batch=2)
    whole = reward_model()
    expected = list(train_reward_model(whole, data, config, seed=5))
    model = reward_model()
    optimizer = make_optimizer(model, config.learning_rate, config.weight_decay)
    run = train_reward_model(model, data, config, seed=5, optimizer=optimizer)
    points = [next(run) for _ in range(4)]
    points += train_reward_model(model, data, config, seed=5, optimizer=optimizer, start=4)
    assert points == expected
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), whole.parameters(), strict=True))


def test_nothing_to_learn_from():
    with pytest.raises(InputError, match="no rankings"):
        next(train_reward_model(reward_model(), [], RewardConfig()))


def test_scores_do_not_depend_on_what_shares_the_batch():
    model = reward_model()
    dialogues = encode_dialogues(tokenizer(), [("When?", text) for text in [*TEXTS, "a" * 60, "x"]])
    alone = torch.cat([score_dialogues(model, [d]) for d in dialogues])
    torch.testing.assert_close(score_many(model, dialogues, batch_size=3), alone.detach(), atol=1e-5, rtol=0)


# --- normalisation and calibration ------------------------------------------------------------------------------------


def test_normalise_gives_mean_zero_and_spread_one_and_keeps_the_order():
    model = reward_model()
    rng = np.random.default_rng(0)
    replies = [" ".join(rng.choice(TEXTS, rng.integers(1, 4))) + str(n) for n in range(150)]
    dialogues = encode_dialogues(tokenizer(), [("When is it?", reply) for reply in replies])
    with torch.no_grad():
        head_of(model).weight.mul_(40)
    before = score_many(model, dialogues)
    normalise(model, dialogues)
    after = score_many(model, dialogues)
    assert after.mean().abs() < 0.02 and after.std() == pytest.approx(1, abs=0.01)
    assert torch.corrcoef(torch.stack([before, after]))[0, 1] > 0.99


def test_calibration_by_hand():
    # σ(±0) = ½; σ(ln 3) = ¾. Sorted by confidence, two bins: {0, 0}: none above 0; {ln 3, −ln 3}: half came true.
    low, high = calibration(torch.tensor([0.0, math.log(3), 0.0, -math.log(3)]), bins=2)
    assert (low.predicted, low.observed, low.count) == (0.5, 0.0, 2)
    assert (high.predicted, high.observed, high.count) == (pytest.approx(0.75), 0.5, 2)


# --- one person's taste -----------------------------------------------------------------------------------------------


def rankings_in_feature_space(weight: torch.Tensor, n: int, seed: int = 0):
    """n rankings of four replies in random features, ordered by a true head."""
    generator = torch.Generator().manual_seed(seed)
    for i in range(n):
        features = torch.randn(4, len(weight), generator=generator)
        order = (features @ weight).argsort(descending=True).tolist()
        yield f"r{i}", features, pairs_of_tiers([(j,) for j in order])


def test_taste_is_learned_whatever_the_order_and_can_be_taken_back():
    truth = torch.tensor([1.0, -2.0, 0.0, 0.5])
    rankings = list(rankings_in_feature_space(truth, 20))
    forwards, backwards = (TasteModel(torch.zeros(4), torch.eye(4)) for _ in range(2))
    for ranking in rankings:
        forwards.learn(*ranking)
    for ranking in reversed(rankings):
        backwards.learn(*ranking)
    torch.testing.assert_close(forwards.weight, backwards.weight, atol=1e-6, rtol=0)
    assert torch.cosine_similarity(forwards.weight, truth.double(), dim=0) > 0.9
    assert forwards.labels == 20
    for ranking_id, *_ in rankings:
        forwards.forget(ranking_id)
    assert forwards.labels == 0 and torch.equal(forwards.weight, torch.zeros(4).double())


def test_taste_is_the_maximum_of_the_posterior():
    """The gradient of the negative log posterior vanishes where `learn` stops; a tie has target ½ and no margin."""
    mean, covariance = torch.tensor([0.5, 0.0]), torch.tensor([[1.0, 0.2], [0.2, 0.5]])
    taste = TasteModel(mean, covariance, strength=2.0)
    features = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.5]])
    pairs = [(0, 1, False), (0, 2, False), (1, 2, True)]
    taste.learn("r", features, pairs, margin=0.7)

    def negative_log_posterior(w: np.ndarray) -> float:
        offset = w - mean.double().numpy()
        value = 0.5 * offset @ np.linalg.inv(covariance.double().numpy()) @ offset
        scores = features.double().numpy() @ w
        for a, b, tie in pairs:
            one, other = reference.bradley_terry(scores[a], scores[b]), reference.bradley_terry(scores[b], scores[a])
            value += 2 * ((one + other) / 2 if tie else reference.bradley_terry(scores[a] - 0.7, scores[b]))
        return value

    np.testing.assert_allclose(reference.slope(negative_log_posterior, taste.weight.numpy()), 0, atol=1e-5)


def test_the_uncertainty_of_a_taste_is_the_inverse_curvature_and_shrinks_with_labels():
    taste = TasteModel(torch.zeros(2), torch.eye(2))
    torch.testing.assert_close(taste.covariance(), torch.eye(2).double())
    features = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    taste.learn("r", features, [(0, 1, False)])
    p = torch.sigmoid(taste.weight[0])
    expected = torch.diag(torch.tensor([1 / (1 + p * (1 - p)), 1.0]).double())  # 1 / (precision + p(1 − p)) along x
    torch.testing.assert_close(taste.covariance(), expected)


def test_a_head_fitted_to_pairs_separates_them():
    x = torch.randn(80, 3, generator=torch.Generator().manual_seed(1))
    x = torch.where((x[:, :1] > 0), x, -x)  # the first feature decides
    weight = fit_head(x, torch.ones(80), ridge=0.1)
    assert (x.double() @ weight > 0).float().mean() > 0.95


def test_the_prior_spreads_where_people_differ():
    heads = torch.tensor([[1.0, 3.0, 0.0], [1.0, -3.0, 0.0], [1.0, 1.0, 0.0], [1.0, -1.0, 0.0]])
    mean, covariance = taste_prior(heads)
    assert mean.tolist() == [1.0, 0.0, 0.0]
    assert covariance[1, 1].item() == pytest.approx(20 / 3, rel=1e-2)  # (9 + 9 + 1 + 1) / 3
    assert 0 < covariance[0, 0] < 0.01 * covariance[1, 1]
    assert torch.linalg.eigvalsh(covariance).min() > 0


def graded(grade: str):
    q = question(TEXTS[:2])
    return encode_rankings(tokenizer(), [q], [Ranking(q.id, (("c0",), ("c1",)), "me", grade=grade)])


def test_a_grade_asks_for_a_margin_between_the_scores():
    """Llama 2, equation 2: the loss of a pair is −log σ(r_chosen − r_rejected − margin of its grade)."""
    model = reward_model()
    plain, slight, clear = (
        reward_loss(model, graded(g))[0].item() for g in ("", "slightly better", "significantly better")
    )
    with torch.no_grad():
        scores = score_dialogues(model, graded("")[0].dialogues)
    gap = (scores[0] - scores[1]).item()
    assert plain == pytest.approx(reference.bradley_terry(gap, 0), abs=1e-5)
    assert slight == pytest.approx(reference.bradley_terry(gap - 1 / 3, 0), abs=1e-5)
    assert clear == pytest.approx(reference.bradley_terry(gap - 1, 0), abs=1e-5)


def test_ratings_and_corrections_train_as_what_they_state():
    q = question(TEXTS[:3])
    marks = {"c0": {"correct": 2, "polite": 2}, "c1": {"correct": 5, "polite": 4}, "c2": {"correct": 3, "polite": 1}}
    rating = Rating(q.id, marks, "me")
    correction = Correction(q.id, "c2", "It is on Friday, I am sure.", "me")
    vote = Vote(q.id, "c0", True, "me")
    rated, corrected = encode_rankings(tokenizer(), [q], [rating, correction, vote])
    assert rated.tiers == ((1,), (0, 2)) and rated.pairs == ((1, 0, False), (1, 2, False), (0, 2, True))
    assert corrected.pairs == ((0, 1, False),) and corrected.dialogues[1] == rated.dialogues[2]
    assert (
        tokenizer()
        .decode(corrected.dialogues[0].ids[corrected.dialogues[0].prompt_length :])
        .startswith(" It is on Friday")
    )
