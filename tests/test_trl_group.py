"""RLOO and GRPO against TRL 1.12.0's trainers: advantages, losses and gradients to 1e-5, GRPO's variants too."""

import copy

import pytest
import torch
from tiny import tokenizer
from trl_beyond import TOLERANCE, gradients, models, same, samples, trl_groups

from rlhf_lab.config import GRPOConfig, RLOOConfig, SamplingConfig
from rlhf_lab.group import GroupTrainer, grpo, rloo
from rlhf_lab.replies import reply_logprobs

WRITTEN = samples([9, 4, 7, 2, 6, 11, 3, 5], [0, 0, 0, 0, 1, 1, 1, 1])
SCORES = [0.3, -1.2, 2.0, 0.4, 1.1, 0.9, -0.5, 3.0]
SAMPLING = SamplingConfig(temperature=0.7, max_new_tokens=12)
OPTIONS = {"batch_size": 8, "group_size": 4, "sampling": SAMPLING}


def moved(policy):
    """The policy as it is some updates after it wrote: ratios far enough from 1 to be clipped, here and there."""
    later, generator = copy.deepcopy(policy), torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in later.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return later


def ours(trainer: GroupTrainer, later=None):
    """Advantages (B,), loss, gradients and the share clipped of our trainer for the same replies."""
    experience, _ = trainer.experience(WRITTEN, torch.tensor(SCORES))
    policy = later or trainer.policy
    logprobs, _ = reply_logprobs(policy, experience, SAMPLING.temperature)
    loss, clipfrac = trainer.loss(logprobs, experience, trainer.beta, experience.mask.sum().item())
    loss.backward()
    return experience.advantages, loss.item(), gradients(policy), clipfrac.item()


def agree(ours_, theirs):
    advantages, loss, grads, _ = ours_
    assert torch.allclose(advantages, theirs[0], atol=TOLERANCE, rtol=TOLERANCE)
    assert loss == pytest.approx(theirs[1], rel=TOLERANCE, abs=TOLERANCE)
    assert same(grads, theirs[2])


@pytest.mark.parametrize("later", [False, True], ids=["first update", "later update"])
@pytest.mark.parametrize("beta", [0.0, 0.05, 0.5])
def test_rloo_equals_trls(beta, later, tmp_path):
    policy, reference = models()
    after = moved(policy) if later else None
    theirs = trl_groups(
        "rloo", policy, reference, WRITTEN, SCORES, 4, tmp_path, after, beta=beta, temperature=0.7, epsilon=0.2
    )
    trainer = rloo(policy, reference, lambda _: 0, tokenizer(), RLOOConfig(kl_coefficient=beta, **OPTIONS))
    mine = ours(trainer, after)
    agree(mine, theirs)
    assert (mine[3] > 0) == later  # so clipping was compared too


VARIANTS = {
    "grpo": ({"length": "grpo"}, {"loss_type": "grpo"}),
    "dr_grpo": ({"length": "dr_grpo", "scale": False}, {"loss_type": "dr_grpo", "scale_rewards": "none"}),
    "dapo": (
        {"length": "dapo", "clip_range_high": 0.28},
        {"loss_type": "dapo", "epsilon_high": 0.28},
    ),
    "as published": ({"correct_kl": False}, {"loss_type": "grpo", "use_bias_correction_kl": False}),
    "unscaled": ({"scale": False}, {"loss_type": "grpo", "scale_rewards": "none"}),
}


@pytest.mark.parametrize("later", [False, True], ids=["first update", "later update"])
@pytest.mark.parametrize("beta", [0.0, 0.1])
@pytest.mark.parametrize("variant", VARIANTS)
def test_grpo_and_its_variants_equal_trls(variant, beta, later, tmp_path):
    options, args = VARIANTS[variant]
    policy, reference = models()
    after = moved(policy) if later else None
    args = {"epsilon": 0.2} | args
    theirs = trl_groups(
        "grpo", policy, reference, WRITTEN, SCORES, 4, tmp_path, after, beta=beta, temperature=0.7, **args
    )
    config = GRPOConfig(kl_coefficient=beta, **OPTIONS, **options)
    mine = ours(grpo(policy, reference, lambda _: 0, tokenizer(), config), after)
    agree(mine, theirs)
    assert (mine[3] > 0) == later
