"""DPO and its kin: the losses by hand, labels as data, and what training does to a policy."""

import copy
import math
from itertools import product

import pytest
import torch
from taught import score_length, taught_model
from tiny import PROMPTS, TEXTS, language_model, tokenizer

from rlhf_lab.config import DirectConfig, OnlineDPOConfig, SamplingConfig
from rlhf_lab.direct import (
    JudgedReply,
    Reference,
    best_and_worst,
    dpo_loss,
    encode_votes,
    ipo_loss,
    kto_baseline,
    kto_loss,
    mismatched,
    online_dpo,
    read_pairs,
    robust_dpo_loss,
    summed_logprobs,
    train_direct,
    votes_of,
)
from rlhf_lab.errors import InputError
from rlhf_lab.models import frozen_copy
from rlhf_lab.records import Candidate, Comparison, Question, Ranking, Vote
from rlhf_lab.reward import encode_comparisons, encode_rankings
from rlhf_lab.text import encode_dialogues


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def tensor(*numbers) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


# --- by hand ----------------------------------------------------------------------------------------------------------


def test_dpo_by_hand():
    # β = 0.5; h = 2 and −1: z = 0.5·3 = 1.5, loss = −log σ(1.5) = 0.201413
    assert dpo_loss(tensor(2), tensor(-1), 0.5).item() == pytest.approx(0.201413, abs=1e-6)
    # a margin of 1 asked for: z = 0.5
    assert dpo_loss(tensor(2), tensor(-1), 0.5, margin=1.0).item() == pytest.approx(-math.log(sigmoid(0.5)))


def test_a_policy_that_is_the_reference_has_a_loss_of_log_2():
    for loss in (dpo_loss(tensor(0), tensor(0), 0.1), dpo_loss(tensor(0), tensor(0), 0.1, label_smoothing=0.3)):
        assert loss.item() == pytest.approx(math.log(2))


def test_cdpo_stops_pulling_where_the_odds_are_those_of_a_wrong_label():
    # ε = 0.2: the least loss is where σ(z) = 0.8, z = log 4; DPO has no such place
    h = tensor(math.log(4) / 0.1).requires_grad_()
    dpo_loss(h, tensor(0), 0.1, label_smoothing=0.2).backward()
    assert h.grad.item() == pytest.approx(0, abs=1e-12)
    h = tensor(math.log(4) / 0.1).requires_grad_()
    dpo_loss(h, tensor(0), 0.1).backward()
    assert h.grad.item() == pytest.approx(-0.1 * 0.2)  # −β·σ(−z)


def test_robust_dpo_is_unbiased_under_flipped_labels_and_cdpo_is_not():
    a, b, epsilon = tensor(1.3), tensor(-0.4), 0.2
    for loss, unbiased in ((robust_dpo_loss, True), (dpo_loss, False)):
        over_flips = (1 - epsilon) * loss(a, b, 0.5, epsilon) + epsilon * loss(b, a, 0.5, epsilon)
        assert (over_flips.item() == pytest.approx(dpo_loss(a, b, 0.5).item())) == unbiased


def test_ipo_by_hand():
    # τ = 0.1: the gap wanted is 1/(2τ) = 5; from 3 it is 2 away, from 8 it is 3 too far
    assert ipo_loss(tensor(2, 7), tensor(-1, -1), 0.1).tolist() == pytest.approx([4.0, 9.0])


def test_kto_by_hand():
    # β = 0.5, z₀ = 1. Up, h = 3: 1 − σ(1) ; down, h = 3: 1 − σ(−1), times 2
    losses = kto_loss(tensor(3, 3), torch.tensor([True, False]), 1.0, 0.5, 1.0, 2.0)
    assert losses.tolist() == pytest.approx([1 - sigmoid(1), 2 * (1 - sigmoid(-1))])


def test_ktos_baseline_is_never_negative_and_has_no_gradient():
    assert kto_baseline(tensor(1, 2)).item() == 1.5 and kto_baseline(tensor(-3, 1)).item() == 0
    assert not kto_baseline(tensor(1, 2).requires_grad_()).requires_grad


def test_best_and_worst_by_hand():
    scores = tensor([1, 3, 2], [5, 5, 5], [0, 0, 1]).view(3, 3)
    assert best_and_worst(scores).tolist() == [[-1, 1, 0], [0, 0, 0], [-1, 0, 1]]


# --- labels as data ---------------------------------------------------------------------------------------------------

QUESTION = Question("q", PROMPTS[0], tuple(Candidate(f"c{i}", text) for i, text in enumerate(TEXTS)))
RANKING = Ranking("q", (("c2",), ("c0", "c3"), ("c1",)), "me")


def ranked():
    return encode_rankings(tokenizer(), [QUESTION], [RANKING])


def test_votes_of_a_ranking_are_net_wins():
    # c2 beats three, c1 loses to three, c0 and c3 tie and each win one and lose one
    votes = {v.dialogue: (v.up, v.weight) for v in votes_of(ranked())}
    dialogues = ranked()[0].dialogues
    assert votes == {dialogues[2]: (True, 1.0), dialogues[1]: (False, 1.0)}


def test_votes_of_a_ranking_give_ktos_gradient_of_all_its_pairs_taken_apart():
    (item,) = encode_rankings(tokenizer(), [QUESTION], [Ranking("q", (("c1",), ("c0",), ("c3",), ("c2",)), "me")])
    h = tensor(0.3, -1.0, 0.8, 2.0).requires_grad_()
    first, second, _ = (torch.tensor(column) for column in zip(*item.pairs, strict=True))
    ones = torch.ones(len(item.pairs), dtype=torch.bool)
    apart = kto_loss(h[first], ones, 0.2, 0.5).sum() + kto_loss(h[second], ~ones, 0.2, 0.5).sum()
    votes = votes_of([item])
    place = {dialogue: i for i, dialogue in enumerate(item.dialogues)}
    own = h[[place[v.dialogue] for v in votes]]
    weighted = (tensor(*(v.weight for v in votes)) * kto_loss(own, torch.tensor([v.up for v in votes]), 0.2, 0.5)).sum()
    grads = [torch.autograd.grad(loss, h)[0] for loss in (apart, 3 * weighted)]  # weights are shares of k − 1 = 3
    assert torch.allclose(*grads)


def test_encode_votes_takes_votes_and_nothing_else():
    votes = [Vote("q", "c1", True, "me"), Vote("q", "c2", False, "me"), Vote("q", "c0", None, "me", status="skipped")]
    encoded = encode_votes(tokenizer(), [QUESTION], [*votes, RANKING])
    assert [v.up for v in encoded] == [True, False]
    assert [v.dialogue for v in encoded] == encode_dialogues(
        tokenizer(), [(PROMPTS[0], TEXTS[1]), (PROMPTS[0], TEXTS[2])]
    )
    with pytest.raises(InputError, match="'other', which is not given"):
        encode_votes(tokenizer(), [QUESTION], [Vote("other", "c1", True, "me")])


def test_mismatched_replies_stand_behind_another_prompt():
    pairs = [(PROMPTS[0], TEXTS[0]), (PROMPTS[0], TEXTS[1]), (PROMPTS[1], TEXTS[2])]
    dialogues = encode_dialogues(tokenizer(), pairs)
    other = mismatched([JudgedReply(d, True) for d in dialogues])
    wanted = encode_dialogues(tokenizer(), [(PROMPTS[1], TEXTS[0]), (PROMPTS[1], TEXTS[1]), (PROMPTS[0], TEXTS[2])])
    assert other == wanted
    short = mismatched([JudgedReply(d, True) for d in dialogues], max_tokens=dialogues[0].reply_length + 2)
    assert short[0].prompt_length == 2 and short[0].ids[:2] == dialogues[2].ids[: dialogues[2].prompt_length][-2:]


def test_the_reference_reads_each_reply_once(monkeypatch):
    model, read = language_model(), []
    reference = Reference(model)
    dialogues = list(ranked()[0].dialogues)
    expected = summed_logprobs(model, dialogues).detach()
    monkeypatch.setattr("rlhf_lab.direct.summed_logprobs", lambda m, d, t: read.extend(d) or summed_logprobs(m, d, t))
    for wanted in (dialogues[:2], dialogues, dialogues[::-1]):
        reference(wanted)
    assert len(read) == len(dialogues)
    assert torch.allclose(reference(dialogues), expected, atol=1e-5)


# --- training ---------------------------------------------------------------------------------------------------------


def comparisons(n: int = 8) -> list:
    """Short replies are preferred to long ones, whatever was asked."""
    pairs = [(p, a, b) for p, (a, b) in product(PROMPTS, [(TEXTS[0], TEXTS[2]), (TEXTS[3], TEXTS[1])])]
    return encode_comparisons(tokenizer(), [Comparison(p, a, b, annotator="me") for p, a, b in pairs[:n]])


FAST = {"steps": 20, "questions_per_batch": 4, "votes_per_batch": 8, "learning_rate": 3e-3}
CONFIGS = {
    "dpo": DirectConfig(**FAST),
    "cdpo": DirectConfig(label_smoothing=0.1, **FAST),
    "robust": DirectConfig(loss="robust", label_smoothing=0.1, **FAST),
    "ipo": DirectConfig(loss="ipo", **FAST),
    "kto": DirectConfig(loss="kto", **FAST),
}


def trained(config, data=None, seed=0, **options):
    policy = language_model()
    points = list(train_direct(policy, frozen_copy(policy), data or comparisons(), config, seed, **options))
    return policy, points


@pytest.mark.parametrize("name", CONFIGS)
def test_training_makes_the_better_replies_likelier_than_the_worse(name):
    policy, points = trained(CONFIGS[name])
    assert len(points) == 20 and points[0].margin == pytest.approx(0, abs=1e-4)
    assert points[-1].margin > 1 and points[-1].accuracy == 1
    assert points[-1].loss < points[0].loss
    assert [p.step for p in points] == list(range(1, 21)) and points[-1].labels == 20 * (8 if name == "kto" else 4)
    data, start = comparisons(), language_model()
    for item in data:  # and not only in the record
        h = summed_logprobs(policy, item.dialogues) - summed_logprobs(start, item.dialogues)
        assert h[0] > h[1]


def test_the_reference_stays_and_the_same_seed_gives_the_same_numbers():
    reference = frozen_copy(language_model())
    before = copy.deepcopy(reference.state_dict())
    runs = []
    for seed in (0, 0, 1):
        policy = language_model()
        runs.append([p.loss for p in train_direct(policy, reference, comparisons(), CONFIGS["dpo"], seed)])
    assert runs[0] == runs[1] != runs[2]
    assert all(torch.equal(t, before[n]) for n, t in reference.state_dict().items())


def test_training_goes_on_where_it_was():
    whole, points = trained(CONFIGS["dpo"])
    policy = language_model()
    reference, optimizer = (
        frozen_copy(policy),
        torch.optim.AdamW(policy.parameters(), betas=(0.9, 0.95), weight_decay=0),
    )
    part = []
    for point in train_direct(policy, reference, comparisons(), CONFIGS["dpo"], optimizer=optimizer):
        part.append(point)
        if point.step == 7:
            break
    part += train_direct(policy, reference, comparisons(), CONFIGS["dpo"], optimizer=optimizer, start=7)
    assert [p.loss for p in part] == pytest.approx([p.loss for p in points], abs=1e-6)
    assert [p.labels for p in part] == [p.labels for p in points]


def test_a_tie_pulls_the_two_together():
    policy, _ = trained(CONFIGS["dpo"])
    start = language_model()
    tie = [Comparison(p, TEXTS[0], TEXTS[2], tie=True, annotator="me") for p in PROMPTS]
    data = encode_comparisons(tokenizer(), tie)

    def gap() -> float:
        h = [summed_logprobs(m, data[0].dialogues).detach() for m in (policy, start)]
        return (h[0] - h[1]).diff().abs().item()

    before = gap()
    points = list(train_direct(policy, frozen_copy(start), data, CONFIGS["dpo"]))
    assert gap() < before / 2 and math.isnan(points[0].accuracy)


def test_a_pair_of_weight_two_counts_like_the_same_pair_twice():
    pairs = [
        Comparison(PROMPTS[0], TEXTS[0], TEXTS[1], annotator="me"),
        Comparison(PROMPTS[1], TEXTS[3], TEXTS[2], annotator="me"),
    ]
    policy, reference = language_model(seed=1), Reference(language_model())
    weighted = encode_comparisons(tokenizer(), pairs, weights=[2.0, 1.0])
    repeated = encode_comparisons(tokenizer(), [pairs[0], *pairs])
    losses = [read_pairs(policy, reference, data, DirectConfig()).loss.item() for data in (weighted, repeated)]
    assert losses[0] == pytest.approx(losses[1])


def test_a_grade_asks_for_a_margin():
    graded = [
        Comparison(PROMPTS[0], TEXTS[0], TEXTS[1], annotator="me", grade=grade)
        for grade in ("", "significantly better")
    ]
    policy = language_model()
    plain, strict = (
        read_pairs(policy, Reference(policy), encode_comparisons(tokenizer(), [c]), DirectConfig()).loss for c in graded
    )
    assert plain.item() == pytest.approx(math.log(2), abs=1e-5)
    assert strict.item() == pytest.approx(-math.log(sigmoid(-1)), abs=1e-5)  # z = 0 − 1


def test_bad_input_is_one_clear_sentence():
    policy = language_model()
    with pytest.raises(InputError, match="no labels to learn from"):
        train_direct(policy, policy, [], DirectConfig())
    votes = [JudgedReply(comparisons()[0].dialogues[0], True)]
    with pytest.raises(InputError, match='loss "ipo" learns from pairs and was given votes'):
        train_direct(policy, policy, votes, DirectConfig(loss="ipo"))
    with pytest.raises(InputError, match="the reference was read at temperature 1.0; the config says 0.7"):
        train_direct(policy, Reference(policy), comparisons(), DirectConfig(temperature=0.7))
    tied = encode_comparisons(tokenizer(), [Comparison(PROMPTS[0], TEXTS[0], TEXTS[1], tie=True, annotator="me")])
    with pytest.raises(InputError, match="nothing to learn"):
        train_direct(policy, policy, tied, DirectConfig(loss="kto"))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"loss": "ppo"}, "DirectConfig.loss is 'ppo'; it must be one of dpo, robust, ipo, kto"),
        ({"label_smoothing": 0.5}, "DirectConfig.label_smoothing is 0.5; it must be from 0 to below 0.5"),
        ({"beta": 0.0}, "DirectConfig.beta is 0.0; it must be greater than 0"),
    ],
)
def test_a_wrong_option_is_named(bad, message):
    with pytest.raises(InputError) as error:
        DirectConfig(**bad)
    assert str(error.value) == message


# --- online -----------------------------------------------------------------------------------------------------------

SAMPLING = SamplingConfig(temperature=1.0, max_new_tokens=40)
ONLINE = OnlineDPOConfig(
    steps=8, batch_size=16, group_size=4, learning_rate=2e-3, anneal=False, truncated_score=-5.0, sampling=SAMPLING
)


def test_online_dpo_learns_a_simple_taste():
    policy = taught_model()
    trainer = online_dpo(policy, frozen_copy(policy), score_length, tokenizer(), ONLINE)
    stats = [trainer.step(PROMPTS) for _ in range(8)]
    assert stats[-1].reply_length < stats[0].reply_length - 3
    assert stats[-1].kl > 0.2 and stats[0].kl == pytest.approx(0, abs=1e-4) and trainer.beta == 0.3


def flat(samples) -> torch.Tensor:
    return torch.full((len(samples),), -5.0)  # as a truncated reply's


def test_a_persons_own_answers_move_the_policy_where_the_score_says_nothing():
    policy = taught_model()
    trainer = online_dpo(policy, frozen_copy(policy), flat, tokenizer(), ONLINE, answered=comparisons)
    stats = [trainer.step(PROMPTS) for _ in range(6)]
    h = [summed_logprobs(m, comparisons()[0].dialogues).detach() for m in (policy, taught_model())]
    assert (h[0] - h[1]).diff().item() < -1  # the second reply is the worse
    assert all(s.policy_loss == 0 for s in stats)  # its own pairs were all ties


def test_without_answers_and_preferences_nothing_moves():
    policy = taught_model()
    trainer = online_dpo(policy, frozen_copy(policy), flat, tokenizer(), ONLINE, answered=list)
    assert trainer.step(PROMPTS).step == 1
    assert all(torch.equal(a, b) for a, b in zip(policy.parameters(), taught_model().parameters(), strict=True))


def test_an_answer_given_between_steps_counts_from_the_next():
    policy, given = taught_model(), []
    trainer = online_dpo(policy, frozen_copy(policy), flat, tokenizer(), ONLINE, answered=lambda: given)
    trainer.step(PROMPTS)
    before = copy.deepcopy(policy.state_dict())
    given += comparisons(1)
    trainer.step(PROMPTS)
    assert any(not torch.equal(t, before[n]) for n, t in policy.state_dict().items())
