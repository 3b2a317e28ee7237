"""PPO: its equations by hand and against an independent implementation, and what the trainer does with them."""

import copy
import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import reference
import torch
from tiny import PROMPTS, TEXTS, language_model, reward_model, tokenizer

from rlhf_lab.config import LanguageConfig, PPOConfig, SamplingConfig
from rlhf_lab.errors import InputError
from rlhf_lab.language import train_sft
from rlhf_lab.models import Critic, ValueHead, frozen_copy, hidden_states, last_hidden, sequence_scores
from rlhf_lab.ppo import (
    PPO,
    Experience,
    draw_prompts,
    explained_variance,
    gae,
    k3,
    masked_mean,
    next_kl_coefficient,
    per_token_rewards,
    policy_loss,
    train_ppo,
    value_loss,
    whiten,
)
from rlhf_lab.replies import reply_logprobs
from rlhf_lab.sampling import Sample, sample
from rlhf_lab.text import encode_dialogues


def tensor(*rows) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def mask_of(*lengths, width: int | None = None) -> torch.Tensor:
    return torch.arange(width or max(lengths)) < torch.tensor(lengths)[:, None]


# --- by hand ----------------------------------------------------------------------------------------------------------


def test_gae_on_three_steps_by_hand():
    # r = (1, 0, 2), V = (0.5, 1, 1.5), γ = 0.9, λ = 0.5, so γλ = 0.45
    # δ2 = 2 + 0 − 1.5          = 0.5      A2 = 0.5
    # δ1 = 0 + 0.9·1.5 − 1      = 0.35     A1 = 0.35 + 0.45·0.5    = 0.575
    # δ0 = 1 + 0.9·1   − 0.5    = 1.4      A0 = 1.4  + 0.45·0.575  = 1.65875
    advantages, returns = gae(tensor([1, 0, 2]), tensor([0.5, 1, 1.5]), mask_of(3), gamma=0.9, lam=0.5)
    assert advantages[0].tolist() == pytest.approx([1.65875, 0.575, 0.5])
    assert returns[0].tolist() == pytest.approx([2.15875, 1.575, 2.0])  # A + V


def test_gae_does_not_see_what_lies_behind_the_reply():
    # two real tokens, then rubbish: δ1 = 2 − 1 = 1 = A1; δ0 = 1 + 1 − 0.5 = 1.5; γ = λ = 1: A0 = 2.5
    advantages, returns = gae(tensor([1, 2, 99]), tensor([0.5, 1, 99]), mask_of(2, width=3), gamma=1, lam=1)
    assert advantages[0].tolist() == [2.5, 1.0, 0.0] and returns[0].tolist() == [3.0, 2.0, 0.0]


def test_per_token_rewards_by_hand():
    # β = 0.1. Row 0, three tokens: −0.1·(log π − log π_ref) = −0.1·(0.5, −1, 0); score 2 on the third.
    # Row 1, two tokens and one of padding whose numbers must not count; score −1 on the *second*.
    logprobs, ref = tensor([-1, -2, -3], [-1, -1, 7]), tensor([-1.5, -1, -3], [-2, -1, -7])
    rewards = per_token_rewards(logprobs, ref, torch.tensor([2.0, -1.0]).double(), mask_of(3, 2), beta=0.1)
    assert rewards.flatten().tolist() == pytest.approx([-0.05, 0.1, 2.0, -0.1, -1.0, 0.0])


def test_the_kl_penalty_punishes_what_the_reference_finds_unlikely():
    rewards = per_token_rewards(tensor([-0.1]), tensor([-5]), torch.tensor([0.0]).double(), mask_of(1), beta=1.0)
    assert rewards.item() == pytest.approx(-4.9)


def test_whitening_by_hand():
    # (1, 3 | 5), padding apart: mean 3, biased variance (4 + 0 + 4)/3 = 8/3
    x, mask = tensor([1, 3], [5, 1000]), mask_of(2, 1)
    unit = 2 / math.sqrt(8 / 3)
    assert whiten(x, mask).flatten().tolist() == pytest.approx([-unit, 0, unit, 0])
    scaled = [value / math.sqrt(8 / 3) for value in (1, 3, 5)]
    assert whiten(x, mask, shift_mean=False).flatten().tolist() == pytest.approx([*scaled, 0])


@pytest.mark.parametrize(
    ("advantage", "ratio", "loss", "clipped"),
    [
        (2.0, 1.1, -2.2, 0),  # inside the clip: −A·r
        (2.0, 1.5, -2.4, 1),  # good and already likelier: no more than −2·1.2
        (2.0, 0.5, -1.0, 0),  # good but less likely: the full slope back, −2·0.5
        (-2.0, 1.1, 2.2, 0),
        (-2.0, 1.5, 3.0, 0),  # bad and likelier: the full slope back
        (-2.0, 0.5, 1.6, 1),  # bad and already less likely: no more than 2·0.8
    ],
)
def test_the_clipped_objective_by_hand(advantage, ratio, loss, clipped):
    logprobs = tensor([math.log(ratio)]).requires_grad_()
    value, clipfrac = policy_loss(logprobs, tensor([0]), tensor([advantage]), mask_of(1), clip=0.2)
    value.backward()
    assert value.item() == pytest.approx(loss) and clipfrac.item() == clipped
    # d(−A·r)/d log π = −A·r where clipping does not decide, and 0 where it does
    assert logprobs.grad.item() == pytest.approx(0 if clipped else -advantage * ratio)


def test_policy_loss_is_a_mean_over_real_tokens():
    # ratios 1 everywhere: −mean of the advantages 1, 2, 6 of the three real tokens = −3; the padding's 100 is not seen
    value, _ = policy_loss(tensor([0, 0], [0, 5]), tensor([0, 0], [0, 0]), tensor([1, 2], [6, 100]), mask_of(2, 1))
    assert value.item() == pytest.approx(-3)


def test_value_clipping_by_hand():
    # V_old = 0, ε = 0.2, R = 1.  V = 0.1: inside, ½·0.9² = 0.405.   V = 0.9: ½·max(0.1², (0.2 − 1)²) = 0.32.
    # V = −0.5 (the wrong way): ½·max(1.5², (−0.2 − 1)²) = 1.125
    values, zero, one = tensor([0.1, 0.9, -0.5]), tensor([0, 0, 0]), tensor([1, 1, 1])
    each = [value_loss(values, zero, one, mask_of(3) & (torch.arange(3) == i), clip=0.2).item() for i in range(3)]
    assert each == pytest.approx([0.405, 0.32, 1.125])
    assert value_loss(values, zero, one, mask_of(3), clip=0.2).item() == pytest.approx(sum(each) / 3)


def test_k3_by_hand_and_on_average():
    # x = log π_ref − log π = ln 2: (2 − 1) − ln 2.   x = 0: 0.   x = −ln 2: (½ − 1) + ln 2.
    estimates = k3(tensor([0, 0, 0]), tensor([math.log(2), 0, -math.log(2)]))
    assert estimates[0].tolist() == pytest.approx([1 - math.log(2), 0, math.log(2) - 0.5])
    p, q = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.3, 0.3, 0.4])
    exact = (p * (p / q).log()).sum()
    assert (p * k3(p.log(), q.log())).sum().item() == pytest.approx(exact.item(), abs=1e-6)


def test_the_kl_controller_by_hand():
    # β = 0.1, n/horizon = 64/1000.   KL = 6.6 of 6: error 0.1.   KL = 60: clipped at 0.2.   KL = 0: clipped at −0.2.
    assert next_kl_coefficient(0.1, 6.6, 6, 64, 1000) == pytest.approx(0.1 * (1 + 0.1 * 0.064))
    assert next_kl_coefficient(0.1, 60, 6, 64, 1000) == pytest.approx(0.1 * (1 + 0.2 * 0.064))
    assert next_kl_coefficient(0.1, 0, 6, 64, 1000) == pytest.approx(0.1 * (1 - 0.2 * 0.064))


# --- against an independent implementation ----------------------------------------------------------------------------


@pytest.fixture(params=range(3))
def batch(request):
    """Random numbers for every token of replies of ragged length, rubbish behind them."""
    rng = np.random.default_rng(request.param)
    lengths = [int(n) for n in rng.integers(1, 9, size=7)]
    width = max(lengths) + 2
    draws = {name: rng.normal(0, 1, (7, width)) for name in ("advantages", "values", "returns", "rewards")}
    draws["old_logprobs"] = rng.normal(-2, 1, (7, width))
    draws["logprobs"] = draws["old_logprobs"] + rng.normal(0, 0.3, (7, width))
    draws["old_values"] = draws["values"] + rng.normal(0, 0.3, (7, width))
    return lengths, mask_of(*lengths, width=width), draws, rng.normal(0, 1, 7)


def test_rewards_gae_and_whitening_agree_with_the_formulas(batch):
    lengths, mask, draws, scores = batch
    rows = {name: reference.ragged(x, lengths) for name, x in draws.items()}
    logprobs, old, values = (torch.tensor(draws[name]) for name in ("logprobs", "old_logprobs", "values"))
    rewards = per_token_rewards(logprobs, old, torch.tensor(scores), mask, beta=0.3)
    advantages, returns = gae(rewards, values, mask, gamma=0.97, lam=0.9)

    expected = reference.rewards(rows["logprobs"], rows["old_logprobs"], scores, 0.3)
    expected_advantages, expected_returns = reference.gae(expected, rows["values"], 0.97, 0.9)

    def same(ours: torch.Tensor, theirs: list[list[float]]) -> None:
        np.testing.assert_allclose(ours.numpy(), reference.padded(theirs, mask.shape[1]), atol=1e-5)

    same(rewards, expected)
    same(advantages, expected_advantages)
    same(returns, expected_returns)
    for shift_mean in (True, False):
        same(whiten(advantages, mask, shift_mean), reference.whiten(expected_advantages, shift_mean))


def test_the_policy_loss_and_its_gradient_agree_with_the_formula(batch):
    lengths, mask, draws, _ = batch
    old, advantages = draws["old_logprobs"], draws["advantages"]

    def expected(x: np.ndarray) -> tuple[float, float]:
        return reference.policy_loss(*(reference.ragged(t, lengths) for t in (x, old, advantages)), clip=0.2)

    logprobs = torch.tensor(draws["logprobs"], requires_grad=True)
    loss, clipfrac = policy_loss(logprobs, torch.tensor(old), torch.tensor(advantages), mask)
    loss.backward()
    assert (loss.item(), clipfrac.item()) == pytest.approx(expected(draws["logprobs"]), abs=1e-5)
    slope = reference.slope(lambda x: expected(x)[0], draws["logprobs"])
    np.testing.assert_allclose(logprobs.grad.numpy(), slope, atol=1e-5)


def test_the_value_loss_and_its_gradient_agree_with_the_formula(batch):
    lengths, mask, draws, _ = batch

    def expected(x: np.ndarray) -> float:
        parts = (x, draws["old_values"], draws["returns"])
        return reference.value_loss(*(reference.ragged(t, lengths) for t in parts), clip=0.2)

    values = torch.tensor(draws["values"], requires_grad=True)
    loss = value_loss(values, torch.tensor(draws["old_values"]), torch.tensor(draws["returns"]), mask)
    loss.backward()
    assert loss.item() == pytest.approx(expected(draws["values"]), abs=1e-5)
    np.testing.assert_allclose(values.grad.numpy(), reference.slope(expected, draws["values"]), atol=1e-5)


# --- the trainer ------------------------------------------------------------------------------------------------------

SAMPLING = SamplingConfig(temperature=1.0, max_new_tokens=24)
CONFIG = PPOConfig(
    steps=10,
    batch_size=8,
    minibatches=2,
    epochs=2,
    learning_rate=3e-4,
    kl_coefficient=0.05,
    kl_target=6.0,
    kl_horizon=2_000.0,
    max_kl_step=0.05,
    gamma=1.0,
    lam=0.95,
    sampling=SAMPLING,
)
LEARNING = replace(
    CONFIG,
    steps=15,
    batch_size=16,
    learning_rate=2e-3,
    truncated_score=-4.0,
    sampling=SamplingConfig(temperature=1.0, max_new_tokens=40),
)


def score_length(samples) -> torch.Tensor:
    return torch.tensor([-s.dialogue.reply_length / 10 for s in samples])


_TRAINED = []


def sft_model():
    """A tiny model that answers any prompt with one of the four texts, each about as often."""
    if not _TRAINED:
        model = language_model()
        dialogues = encode_dialogues(tokenizer(), [(prompt, text) for prompt in PROMPTS for text in TEXTS])
        config = LanguageConfig(steps=150, batch_size=16, learning_rate=2e-2)
        points = list(train_sft(model, dialogues, tokenizer().pad_token_id, config))
        assert points[-1].loss < 0.2  # nats a token: it has learned the four texts
        _TRAINED.append(model)
    return copy.deepcopy(_TRAINED[0])


def trainer(score=score_length, config: PPOConfig = CONFIG, policy=None, shared: bool = False, **kwargs) -> PPO:
    """`shared`: the critic is a head on the policy's trunk, else a model of its own."""
    policy = policy or sft_model()
    critic = ValueHead(policy) if shared else Critic(reward_model())
    return PPO(policy, frozen_copy(policy), critic, score, tokenizer(), config, **kwargs)


def samples_of(ppo: PPO, seed: int = 0, n: int = 8) -> list[Sample]:
    generator = torch.Generator().manual_seed(seed)
    return sample(ppo.policy, ppo.tokenizer, (PROMPTS * n)[:n], ppo.config.sampling, generator)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_experience_of_a_padded_batch_is_that_of_each_reply_alone(temperature):
    """Logprobs, values, advantages, returns: recomputed a reply at a time, without padding, by the formulas."""
    sampling = replace(SAMPLING, temperature=temperature)
    ppo = trainer(config=replace(CONFIG, sampling=sampling, kl_coefficient=0.2), policy=sft_model())
    ppo.reference = frozen_copy(language_model(seed=3))
    samples = samples_of(ppo)
    lengths = [s.dialogue.reply_length for s in samples]
    assert len(set(lengths)) > 1  # ragged, or the test shows nothing
    scores = ppo.judged(samples)
    experience, entropy = ppo.experience(samples, scores)

    def alone(model, s: Sample) -> torch.Tensor:
        logits = model(torch.tensor([s.dialogue.ids])).logits[0, s.dialogue.prompt_length - 1 : -1] / temperature
        return logits.log_softmax(-1)

    with torch.no_grad():
        full = [alone(ppo.policy, s) for s in samples]
        replies = [torch.tensor(s.dialogue.ids[s.dialogue.prompt_length :]) for s in samples]
        logprobs = [lp[range(len(r)), r].tolist() for lp, r in zip(full, replies, strict=True)]
        refs = [alone(ppo.reference, s)[range(len(r)), r].tolist() for s, r in zip(samples, replies, strict=True)]
        values = [
            ppo.critic.model.score(ppo.critic.model.model(torch.tensor([s.dialogue.ids])).last_hidden_state)
            .flatten()[s.dialogue.prompt_length - 1 : -1]
            .tolist()
            for s in samples
        ]
    advantages, returns = reference.gae(reference.rewards(logprobs, refs, scores, 0.2), values, 1.0, 0.95)
    width = max(lengths)
    for name, rows in {
        "logprobs": logprobs,
        "ref_logprobs": refs,
        "values": values,
        "advantages": reference.whiten(advantages),
        "returns": returns,
    }.items():
        np.testing.assert_allclose(getattr(experience, name), reference.padded(rows, width), atol=2e-4, err_msg=name)
    expected_entropy = torch.cat([-(lp.exp() * lp).sum(-1) for lp in full]).mean().item()
    assert entropy == pytest.approx(expected_entropy, abs=1e-4)


def test_before_the_first_update_the_ratio_is_one():
    ppo = trainer()
    experience, _ = ppo.experience(samples_of(ppo), torch.zeros(8))
    part = experience.rows(torch.tensor([5, 0, 3]))  # a minibatch, cut to its own width
    logprobs, _ = reply_logprobs(ppo.policy, part)
    torch.testing.assert_close(logprobs, part.logprobs, atol=1e-4, rtol=0)
    first = ppo.minibatch(part)
    assert first["approx_kl"] == pytest.approx(0, abs=1e-6) and first["clipfrac"] == 0
    assert first["policy_loss"] == pytest.approx(-masked_mean(part.advantages, part.mask).item(), abs=1e-4)


def test_at_the_first_step_the_policy_is_the_reference():
    stats = trainer().step(PROMPTS * 2)
    assert stats.kl == pytest.approx(0, abs=1e-5) and stats.objective == pytest.approx(stats.reward, abs=1e-5)
    assert stats.step == 1 and len(stats.samples) == 8


def test_a_truncated_reply_earns_the_fixed_score():
    config = replace(CONFIG, truncated_score=-7.5, sampling=SamplingConfig(temperature=1.0, max_new_tokens=14))
    stats = trainer(lambda samples: torch.full((len(samples),), 3.0), config).step(PROMPTS * 4)
    assert 0 < stats.truncated < 1  # only "It is on Tuesday." fits
    assert {(r.truncated, r.score) for r in stats.samples} == {(True, -7.5), (False, 3.0)}
    assert stats.reward == pytest.approx(-7.5 * stats.truncated + 3.0 * (1 - stats.truncated))


def test_a_large_kl_stops_the_epochs_of_a_step():
    eager = replace(CONFIG, epochs=5, learning_rate=1e-2)
    assert trainer(config=replace(eager, max_kl_step=None)).step(PROMPTS * 2).epochs == 5
    assert trainer(config=replace(eager, max_kl_step=1e-6)).step(PROMPTS * 2).epochs == 1


def test_every_epoch_takes_each_reply_once_and_in_another_order():
    ppo = trainer(config=replace(CONFIG, epochs=3, minibatches=4, max_kl_step=None))
    seen, minibatch = [], ppo.minibatch

    def look(mb: Experience) -> dict[str, float]:
        seen.append(mb.numbers.tolist())
        return minibatch(mb)

    ppo.minibatch = look
    experience, _ = ppo.experience(samples_of(ppo), torch.zeros(8))
    ppo.update(NumberedExperience(**vars(experience), numbers=torch.arange(8)))
    assert [len(rows) for rows in seen] == [2] * 12
    epochs = [sum(seen[i : i + 4], []) for i in (0, 4, 8)]
    assert all(sorted(order) == list(range(8)) for order in epochs) and len(set(map(tuple, epochs))) == 3


@dataclass(frozen=True)
class NumberedExperience(Experience):
    numbers: torch.Tensor  # (B,)


def test_adams_epsilon_halves_the_first_step_of_a_gradient_as_small_as_itself():
    """First step: lr · g/(|g| + ε). PyTorch's default, 1e-8, would step by the whole learning rate here."""
    ppo = trainer(config=replace(CONFIG, adam_eps=1e-5))
    weight = ppo.policy.lm_head.weight
    before = weight.detach().clone()
    weight.grad = torch.full_like(weight, 1e-5)
    ppo.optimizer.step()
    torch.testing.assert_close(before - weight.detach(), torch.full_like(weight, 1.5e-4), atol=1e-7, rtol=0)


def test_beta_rises_when_the_kl_is_above_its_target_and_falls_below():
    far = frozen_copy(language_model(seed=3))  # a reference that finds every reply unlikely
    ppo = trainer()
    ppo.reference = far
    stats = ppo.step(PROMPTS * 2)
    assert stats.kl > CONFIG.kl_target and stats.beta == CONFIG.kl_coefficient < ppo.beta
    near = trainer()
    near.step(PROMPTS * 2)  # KL 0
    assert near.beta < CONFIG.kl_coefficient
    fixed = trainer(config=replace(CONFIG, kl_target=None))
    fixed.reference = far
    fixed.step(PROMPTS * 2)
    assert fixed.beta == CONFIG.kl_coefficient


@pytest.mark.parametrize("shared", [False, True], ids=["own-critic", "shared-trunk"])
def test_it_moves_the_policy_towards_what_is_rewarded(shared):
    """One of four replies is rewarded: its share goes from about a quarter to nearly all. The reference stays."""

    def wants_the_library(samples) -> torch.Tensor:
        return torch.tensor([float("library" in s.text) for s in samples])

    ppo = trainer(wants_the_library, LEARNING, shared=shared)
    before = [p.clone() for p in ppo.reference.parameters()]
    stats = list(train_ppo(ppo, PROMPTS))
    assert stats[0].reward < 0.6
    assert sum(s.reward for s in stats[-5:]) / 5 > 0.8  # seeds 0–4: 0.91–0.98; on a shared trunk 0.84–0.95
    assert stats[-1].kl > 0.3
    assert all(torch.equal(a, b) for a, b in zip(before, ppo.reference.parameters(), strict=True))
    assert [s.step for s in stats] == list(range(1, 16))
    assert stats[-1].learning_rate < stats[0].learning_rate == pytest.approx(2e-3)


def test_it_learns_short_replies():
    stats = list(train_ppo(trainer(score_length, LEARNING), PROMPTS))
    assert stats[-1].reply_length < 0.75 * stats[0].reply_length  # seeds 0–4: 0.24–0.6


def test_a_strong_kl_penalty_holds_the_policy_back():
    def run(beta: float) -> float:
        config = replace(LEARNING, steps=8, batch_size=8, kl_coefficient=beta, kl_target=None)
        return sum([s.kl for s in train_ppo(trainer(config=config), PROMPTS)][-3:])

    assert run(beta=20.0) < 0.25 * run(beta=0.0)


def test_a_model_whose_padding_is_its_end_token_still_learns_its_end_token():
    """Masks go by length: the end token is in the mask, in the loss, and carries the score."""
    ppo = trainer(lambda samples: torch.arange(len(samples)) + 1.0, replace(CONFIG, kl_coefficient=0.0, gamma=1.0))
    ppo.policy.config.pad_token_id = ppo.tokenizer.eos_token_id
    samples = [s for s in samples_of(ppo, n=24) if not s.truncated]
    scores = ppo.judged(samples)
    experience, _ = ppo.experience(samples, scores)
    assert experience.mask.sum(1).tolist() == [s.dialogue.reply_length for s in samples]
    last = experience.mask.sum(1) - 1
    rows = torch.arange(len(samples))
    assert (experience.tokens[rows, last] == ppo.tokenizer.eos_token_id).all()
    # undiscounted, without KL: the return of the last token is the score itself
    torch.testing.assert_close(experience.returns[rows, last], scores)
    weight = ppo.policy.lm_head.weight
    logprobs, _ = reply_logprobs(ppo.policy, experience)
    logprobs[rows, last].sum().backward()
    assert weight.grad.abs().sum() > 0


@pytest.mark.parametrize("shared", [False, True], ids=["own-critic", "shared-trunk"])
def test_a_restored_trainer_goes_on_to_the_same_numbers(shared):
    def comparable(stats):
        return replace(stats, seconds=0.0)

    whole = trainer(seed=4, shared=shared)
    expected = [comparable(s) for s in train_ppo(whole, PROMPTS)][:4]
    first = trainer(seed=4, shared=shared)
    run = train_ppo(first, PROMPTS)
    begun = [comparable(next(run)) for _ in range(2)]
    saved = copy.deepcopy(
        (first.policy.state_dict(), first.critic.state_dict(), first.optimizer.state_dict(), first.beta)
    )
    second = trainer(seed=4, shared=shared)
    second.policy.load_state_dict(saved[0])
    second.critic.load_state_dict(saved[1])
    second.optimizer.load_state_dict(saved[2])
    second.beta, second.steps_done = saved[3], 2
    run = train_ppo(second, PROMPTS)
    assert begun + [comparable(next(run)) for _ in range(2)] == expected


@pytest.mark.parametrize(
    "bad",
    [
        lambda samples: torch.zeros(len(samples) + 1),
        lambda samples: torch.zeros(len(samples), 1),
        lambda samples: [float("nan")] * len(samples),
        lambda samples: torch.full((len(samples),), float("inf")),
        lambda samples: None,
        lambda samples: ["good"] * len(samples),
        lambda samples: 1.0,
    ],
    ids=["too-many", "two-dimensional", "nan", "inf", "none", "texts", "one-number"],
)
def test_a_score_function_that_gives_no_scores_is_named(bad):
    with pytest.raises(InputError, match="score function .* must give 8"):
        trainer(bad).step(PROMPTS * 2)


def test_a_score_function_may_return_a_plain_list():
    assert trainer(lambda samples: [1, 2, 3, 4]).judged(samples_of(trainer(), n=4)).dtype == torch.float32


def test_nothing_to_do():
    with pytest.raises(InputError, match="prompt"):
        trainer().step([])
    with pytest.raises(InputError, match="prompt"):
        draw_prompts([], 3, torch.Generator())


def test_fewer_prompts_than_minibatches():
    stats = trainer(config=replace(CONFIG, minibatches=4)).step(PROMPTS[:1])
    assert len(stats.samples) == 1 and math.isfinite(stats.policy_loss)


def test_prompts_are_drawn_without_repetition_while_they_last():
    generator = torch.Generator().manual_seed(0)
    drawn = draw_prompts(PROMPTS, 10, generator)
    assert sorted(drawn[:4]) == sorted(drawn[4:8]) == sorted(PROMPTS) and len(drawn) == 10


def test_explained_variance():
    ppo = trainer()
    experience, _ = ppo.experience(samples_of(ppo), torch.linspace(-1, 1, 8))
    returns = experience.returns
    assert explained_variance(replace(experience, values=returns)) == pytest.approx(1)
    assert explained_variance(replace(experience, values=torch.zeros_like(returns))) == pytest.approx(0, abs=1e-6)
    assert explained_variance(replace(experience, values=-returns)) < 0


def test_the_critic_starts_as_the_reward_model():
    model = reward_model()
    ids = torch.tensor([tokenizer()(TEXTS[0])["input_ids"]])
    lengths = torch.tensor([ids.shape[1]])
    assert Critic(model)(ids)[0, -1].item() == pytest.approx(sequence_scores(model, ids, lengths).item(), abs=1e-6)
    assert last_hidden(model, ids, lengths).shape == (1, 16)


# --- a critic on the policy's own trunk -------------------------------------------------------------------------------


def with_a_value_head(seed: int = 0, **changes) -> tuple[PPO, Experience]:
    """A trainer whose value head is no longer 0, and its experience of eight replies."""
    ppo = trainer(config=replace(CONFIG, minibatches=1, clip_norm=1e9, **changes), shared=True)
    torch.nn.init.normal_(ppo.critic.head.weight, generator=torch.Generator().manual_seed(seed))
    experience, _ = ppo.experience(samples_of(ppo), torch.linspace(-1, 1, 8))
    return ppo, experience


def policy_gradient(ppo: PPO, experience: Experience) -> torch.Tensor:
    """What one update's gradient is for the policy's weights, all in a row; the weights stay."""
    kept = []
    ppo.optimizer.step = lambda: kept.extend(p.grad.flatten() for p in ppo.policy.parameters())
    ppo.minibatch(experience)
    return torch.cat(kept)


def test_a_value_head_starts_at_0_so_the_first_returns_are_the_rewards_to_come():
    ppo = trainer(config=replace(CONFIG, lam=1.0, kl_coefficient=0.2), shared=True)
    ppo.reference = frozen_copy(language_model(seed=3))
    experience, _ = ppo.experience(samples_of(ppo), torch.linspace(-1, 1, 8))
    assert not experience.values.any()
    to_come = experience.rewards.flip(1).cumsum(1).flip(1) * experience.mask
    torch.testing.assert_close(experience.returns, to_come, atol=1e-5, rtol=0)


def test_one_pass_for_policy_and_value_gives_what_two_give():
    ppo, experience = with_a_value_head()
    logprobs, entropy = reply_logprobs(ppo.policy, experience, CONFIG.sampling.temperature)
    own_logprobs, values, own_entropy = ppo.read(experience)
    torch.testing.assert_close(own_logprobs, logprobs)
    torch.testing.assert_close(own_entropy, entropy)
    assert values[experience.mask].std() > 0.1 and not values[~experience.mask].any()
    for row, (ids, start, mask) in enumerate(
        zip(experience.ids, experience.prompt_lengths, experience.mask, strict=True)
    ):
        whole = ppo.critic(hidden_states(ppo.policy, ids[None])[0])  # (T,): a value behind every token
        torch.testing.assert_close(values[row][mask], whole[start - 1 :][: int(mask.sum())], atol=1e-5, rtol=0)


def test_the_value_loss_reaches_the_trunk_times_its_coefficient():
    """policy's gradient + coefficient · value's: measured at three coefficients, it lies on a line."""
    none, tenth, whole = (policy_gradient(*with_a_value_head(value_coefficient=c)) for c in (1e-9, 0.1, 1.0))
    assert (whole - none).norm() > 0.1
    torch.testing.assert_close(tenth - none, 0.1 * (whole - none), atol=1e-5, rtol=0)


def test_a_critic_of_its_own_leaves_the_policys_gradient_alone_whatever_the_coefficient():
    gradients = []
    for coefficient in (0.1, 10.0):
        ppo = trainer(config=replace(CONFIG, minibatches=1, value_coefficient=coefficient))
        experience, _ = ppo.experience(samples_of(ppo), torch.linspace(-1, 1, 8))
        gradients.append(policy_gradient(ppo, experience))
    assert torch.equal(*gradients) and gradients[0].any()


def test_a_value_head_learns_the_returns_of_a_batch():
    """With a policy that stands still: the value loss falls from that of a head that knows nothing."""
    config = replace(CONFIG, learning_rate=1e-6, critic_learning_rate=2e-2, value_clip_range=10.0)
    ppo = trainer(config=config, shared=True)
    samples = samples_of(ppo, n=16)
    experience, _ = ppo.experience(samples, torch.tensor([len(s.text) / 20 - 1 for s in samples]))
    losses = [ppo.minibatch(experience)["value_loss"] for _ in range(50)]
    returns = experience.returns[experience.mask]
    assert losses[0] == pytest.approx(returns.square().mean().item() / 2, abs=1e-5)  # V = 0
    assert losses[-1] < 0.5 * losses[0]  # seeds 0–5: 0.06–0.40
