"""RLOO, GRPO and rejection sampling: the equations by hand, and what the trainer does with them."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from taught import score_length, taught_model
from tiny import PROMPTS, tokenizer

from rlhf_lab.config import GRPOConfig, OnlineDPOConfig, PPOConfig, RaftConfig, RLOOConfig, SamplingConfig
from rlhf_lab.direct import online_dpo
from rlhf_lab.errors import InputError
from rlhf_lab.group import (
    best_of_group,
    group_advantages,
    grpo,
    grpo_loss,
    leave_one_out,
    likelihood_loss,
    raft,
    rloo,
    rloo_loss,
    train_online,
)
from rlhf_lab.models import frozen_copy
from rlhf_lab.sampling import sample


def tensor(*rows) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def mask_of(*lengths) -> torch.Tensor:
    return torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]


# --- advantages by hand -----------------------------------------------------------------------------------------------


def test_leave_one_out_by_hand():
    # 1 − (2 + 6)/2 = −3; 2 − (1 + 6)/2 = −1.5; 6 − (1 + 2)/2 = 4.5
    assert leave_one_out(tensor([1, 2, 6])).tolist() == [[-3.0, -1.5, 4.5]]


def test_leave_one_out_is_the_distance_to_the_mean_stretched():
    scores = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(leave_one_out(scores), group_advantages(scores, scale=False) * 4 / 3)


def test_group_advantages_by_hand():
    # (1, 3): mean 2, standard deviation √2 (n − 1 = 1)
    assert group_advantages(tensor([1, 3]), eps=0.0)[0].tolist() == pytest.approx([-1 / math.sqrt(2), 1 / math.sqrt(2)])
    assert group_advantages(tensor([1, 3]), scale=False).tolist() == [[-1.0, 1.0]]
    assert group_advantages(tensor([5, 5, 5])).tolist() == [[0.0, 0.0, 0.0]]  # and not 0/0


def test_scaling_makes_a_hairs_breadth_count_like_a_mile():
    near, far = group_advantages(tensor([0, 0.1], [0, 100]))
    assert near.tolist() == pytest.approx(far.tolist(), rel=2e-3)


def test_best_of_group_by_hand():
    assert best_of_group(tensor([1, 4, 2], [3, 3, 0])).tolist() == [[0, 1, 0], [1, 0, 0]]


# --- losses by hand ---------------------------------------------------------------------------------------------------


def test_rloo_loss_by_hand():
    # Reply 0, two tokens: ρ = e^(0.1 + 0.2) = 1.3499, A = 2: clipped to −2·1.2. Reply 1, one token: ρ = e^0.1, A = −1.
    logprobs = tensor([-0.9, -1.8], [-0.9, 5]).requires_grad_()
    loss, clipfrac = rloo_loss(logprobs, tensor([-1, -2], [-1, -7]), tensor(2, -1).flatten(), mask_of(2, 1), clip=0.2)
    assert loss.item() == pytest.approx((-2.4 + math.exp(0.1)) / 2) and clipfrac.item() == 0.5
    loss.backward()
    assert logprobs.grad.flatten().tolist() == pytest.approx([0, 0, math.exp(0.1) / 2, 0])


def grpo_case(**options):
    """Reply 0 has one token, reply 1 three; at ρ = 1 with A = 2 and −1 the losses are −2 | 1, 1, 1."""
    zeros = torch.zeros(2, 3, dtype=torch.float64)
    loss, _ = grpo_loss(zeros, zeros, zeros, tensor(2, -1).flatten(), mask_of(1, 3), **options)
    return loss.item()


def test_what_grpos_loss_is_divided_by():
    assert grpo_case(length="grpo") == pytest.approx((-2 + 1) / 2)
    assert grpo_case(length="dapo") == pytest.approx((-2 + 3) / 4)
    assert grpo_case(length="dapo", tokens=10) == pytest.approx((-2 + 3) / 10)
    assert grpo_case(length="dr_grpo", max_tokens=5) == pytest.approx((-2 + 3) / (2 * 5))
    with pytest.raises(InputError, match="give the most tokens that a reply may have"):
        grpo_case(length="dr_grpo")


def test_a_long_bad_reply_is_punished_less_a_token_unless_length_is_left_out():
    """The bias that Dr. GRPO takes away."""
    for length, same in (("grpo", False), ("dr_grpo", True), ("dapo", True)):
        logprobs = torch.zeros(2, 4, dtype=torch.float64, requires_grad=True)
        old = torch.zeros(2, 4, dtype=torch.float64)
        loss, _ = grpo_loss(logprobs, old, old, tensor(-1, -1).flatten(), mask_of(1, 4), length=length, max_tokens=4)
        loss.backward()
        assert (logprobs.grad[0, 0] == logprobs.grad[1, 0]).item() == same
        assert logprobs.grad[1, 0] > 0 and logprobs.grad[0, 0] >= logprobs.grad[1, 0]


def test_clip_higher_lets_good_tokens_grow_further():
    ratio, old = tensor([math.log(1.25)]), tensor([0])
    low, clipped = grpo_loss(ratio, old, old, tensor(1).flatten(), mask_of(1), clip=0.2)
    high, free = grpo_loss(ratio, old, old, tensor(1).flatten(), mask_of(1), clip=0.2, clip_high=0.28)
    assert (low.item(), clipped.item()) == (pytest.approx(-1.2), 1)
    assert (high.item(), free.item()) == (pytest.approx(-1.25), 0)


@pytest.mark.parametrize("correct_kl", [True, False])
def test_the_kls_gradient_points_where_it_is_said_to(correct_kl):
    """Mean over all tokens of a distribution: ∇KL(π‖π_ref) with the ratio, ∇KL(π_ref‖π) without."""
    logits = tensor(0.3, -1.0, 0.8).flatten().requires_grad_()
    ref = tensor(-0.5, 0.2, 0.1).flatten().log_softmax(0)
    logp = logits.log_softmax(0)
    chances = logp.exp().detach()
    terms = [
        grpo_loss(logp[i].view(1, 1), logp[i].detach().view(1, 1), ref[i].view(1, 1), torch.zeros(1), mask_of(1),
                  beta=1.0, correct_kl=correct_kl)[0]
        for i in range(3)
    ]  # fmt: skip
    (got,) = torch.autograd.grad(sum(p * t for p, t in zip(chances, terms, strict=True)), logits, retain_graph=True)
    reverse, forward = (logp.exp() * (logp - ref)).sum(), (ref.exp() * (ref - logp)).sum()
    wanted = torch.autograd.grad(reverse if correct_kl else forward, logits)[0]
    assert torch.allclose(got, wanted)


def test_likelihood_loss_is_sfts_on_the_chosen_replies():
    logprobs = tensor([-1, -2], [-3, 9], [-5, -5])
    assert likelihood_loss(logprobs, torch.tensor([1.0, 1.0, 0.0]), mask_of(2, 1, 2)).item() == pytest.approx(6 / 3)


# --- the trainer ------------------------------------------------------------------------------------------------------

OPTIONS = {
    "steps": 8,
    "batch_size": 16,
    "group_size": 4,
    "learning_rate": 2e-3,
    "anneal": False,
    "truncated_score": -5.0,
    "sampling": SamplingConfig(temperature=1.0, max_new_tokens=40),
}
METHODS = {
    "rloo": (rloo, RLOOConfig(**OPTIONS)),
    "grpo": (grpo, GRPOConfig(**OPTIONS)),
    "dr_grpo": (grpo, GRPOConfig(length="dr_grpo", scale=False, **OPTIONS)),
    "dapo": (grpo, GRPOConfig(length="dapo", minibatches=2, epochs=2, **OPTIONS | {"learning_rate": 1e-3})),
    "raft": (raft, RaftConfig(**OPTIONS)),
    "online-dpo": (online_dpo, OnlineDPOConfig(**OPTIONS)),
}


def trainer(name: str, score=score_length, **changes):
    make, config = METHODS[name]
    policy = taught_model()
    seed = changes.pop("seed", 0)
    return make(policy, frozen_copy(policy), score, tokenizer(), replace(config, **changes), seed)


@pytest.mark.parametrize("name", ["rloo", "grpo", "dr_grpo", "dapo", "raft"])
def test_every_method_learns_a_simple_taste(name):
    made = trainer(name)
    reference = copy.deepcopy(made.reference.state_dict())
    stats = list(train_online(made, PROMPTS))
    length, reward = (sum(getattr(s, name) for s in stats[-3:]) / 3 for name in ("reply_length", "reward"))
    assert length < stats[0].reply_length - 3 and reward > stats[0].reward + 0.3
    assert stats[0].kl == pytest.approx(0, abs=1e-4) and stats[-1].kl > 0.1
    assert [s.step for s in stats] == list(range(1, 9)) and len(stats[0].samples) == 16
    assert all(torch.equal(t, reference[n]) for n, t in made.reference.state_dict().items())


@pytest.mark.parametrize("name", METHODS)
def test_the_same_seed_gives_the_same_numbers_and_weights_go_on_as_unbroken(name):
    def numbers(steps):
        return [(s.reward, s.kl, s.policy_loss) for s in steps]

    whole, again, other = trainer(name), trainer(name), trainer(name, seed=1)
    unbroken = numbers(whole.step(PROMPTS) for _ in range(3))
    first = numbers([again.step(PROMPTS)])
    resumed = trainer(name)
    resumed.policy.load_state_dict(again.policy.state_dict())
    resumed.optimizer.load_state_dict(again.optimizer.state_dict())
    resumed.steps_done, resumed.beta = again.steps_done, again.beta
    assert first + numbers(resumed.step(PROMPTS) for _ in range(2)) == unbroken
    assert numbers([other.step(PROMPTS)]) != first


def test_the_kl_penalty_holds_the_policy_back():
    for name in ("rloo", "grpo"):
        free, held = (trainer(name, kl_coefficient=beta) for beta in (0.0, 2.0))
        ends = [[made.step(PROMPTS) for _ in range(8)][-1].kl for made in (free, held)]
        assert ends[1] < ends[0] / 2, name


def test_beta_is_steered_towards_the_target():
    made = trainer("rloo", kl_target=0.05, kl_horizon=16.0, kl_coefficient=0.1)
    betas = [made.step(PROMPTS).beta for _ in range(6)]
    assert betas[1] < betas[0] and betas[-1] > min(betas)  # KL 0 at first: β falls; then above the target: it rises


def test_groups_that_the_score_cannot_tell_apart_move_nothing():
    for name in ("rloo", "grpo", "online-dpo"):
        made = trainer(
            name, score=lambda s: torch.full((len(s),), -5.0), kl_coefficient=0.0 if name != "online-dpo" else 0.1
        )
        made.step(PROMPTS)
        before = taught_model()
        assert all(
            torch.allclose(a, b, atol=1e-7) for a, b in zip(made.policy.parameters(), before.parameters(), strict=True)
        ), name


def test_each_reply_is_compared_with_the_others_to_its_own_prompt():
    """A score that only knows the prompt: no reply is better than its fellows, so nothing is learned."""
    hard = {prompt: float(i) for i, prompt in enumerate(PROMPTS)}
    made = trainer("rloo", score=lambda s: torch.tensor([hard[x.prompt] for x in s]), truncated_score=0.0)
    samples = [s for s in sampled(made) if not s.truncated]
    assert samples
    scores = torch.tensor([hard[s.prompt] for s in sampled(made)])
    experience, _ = made.experience(sampled(made), scores)
    assert experience.advantages.abs().max() < 1e-4


def sampled(made):
    many = [p for p in PROMPTS for _ in range(4)]
    return sample(made.policy, made.tokenizer, many, made.config.sampling, torch.Generator().manual_seed(0))


def test_raft_reads_only_the_best_of_each_group_again(monkeypatch):
    made, sizes = trainer("raft"), []
    monkeypatch.setattr(made, "loss", lambda lp, mb, *rest: sizes.append(len(lp)) or (lp.sum() * 0, torch.zeros(())))
    made.step(PROMPTS)
    assert sizes == [4]


def test_the_pulse_beats_between_the_parts_of_a_step():
    made, beats = trainer("rloo", minibatches=2, epochs=2, max_kl_step=None), []
    made.pulse = lambda: beats.append(made.steps_done)
    made.step(PROMPTS)
    assert beats == [0] * 5


def test_bad_input_is_one_clear_sentence():
    with pytest.raises(InputError, match="at least one prompt"):
        trainer("rloo").step([])
    with pytest.raises(InputError, match="it must give 16 finite numbers"):
        trainer("grpo", score=lambda s: torch.tensor([1.0])).step(PROMPTS)


@pytest.mark.parametrize(
    ("make", "bad", "message"),
    [
        (RLOOConfig, {"group_size": 1}, "RLOOConfig.group_size is 1; it must be at least 2"),
        (RLOOConfig, {"batch_size": 10}, r"RLOOConfig.batch_size is 10; it must be a multiple of group_size \(4\)"),
        (RLOOConfig, {"minibatches": 17}, "RLOOConfig.minibatches is 17; it must be at most batch_size / group_size"),
        (GRPOConfig, {"length": "long"}, "GRPOConfig.length is 'long'; it must be one of grpo, dr_grpo, dapo"),
        (OnlineDPOConfig, {"kl_coefficient": 0.0}, "greater than 0: it is DPO's β"),
        (OnlineDPOConfig, {"kl_target": 3.0}, "None: DPO's β is not steered"),
    ],
)
def test_a_wrong_option_is_named(make, bad, message):
    with pytest.raises(InputError, match=message):
        make(**bad)


def test_how_many_prompts_make_a_step():
    assert PPOConfig(batch_size=64).prompts_per_step == 64
    assert RLOOConfig(batch_size=64, group_size=4).prompts_per_step == 16
