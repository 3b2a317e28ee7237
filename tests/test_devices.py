"""Sampler and trainers on every device that is here, in float32 and bfloat16: the CPU always, a GPU where there is one.

In float32 a device must give what the CPU's plain path gives; in bfloat16 the same training must come near it.
"""

from __future__ import annotations

import math

import pytest
import torch
from taught import score_length, taught_model
from tiny import PROMPTS, TEXTS, hub_model, language_model, reward_model, tokenizer
from transformers import PreTrainedModel

from rlhf_lab.config import (
    DirectConfig,
    GRPOConfig,
    LanguageConfig,
    PPOConfig,
    RewardConfig,
    RLOOConfig,
    SamplingConfig,
)
from rlhf_lab.direct import train_direct
from rlhf_lab.group import grpo, rloo
from rlhf_lab.language import pretrain, train_sft
from rlhf_lab.models import Critic, ValueHead, frozen_copy, new_reward_model
from rlhf_lab.ppo import PPO
from rlhf_lab.records import Comparison
from rlhf_lab.reward import encode_comparisons, reward_score, train_reward_model
from rlhf_lab.sampling import sample
from rlhf_lab.text import encode_dialogues, encode_documents

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
CLOSE = {"float32": 2e-3, "bfloat16": 0.15}  # relative, after some steps of training

everywhere = pytest.mark.parametrize("device", DEVICES)
in_each_precision = pytest.mark.parametrize("precision", PRECISIONS)

SAMPLING = SamplingConfig(temperature=0.7, max_new_tokens=16)
PPO_CONFIG = PPOConfig(steps=4, batch_size=8, minibatches=2, epochs=2, sampling=SAMPLING)


def moved(model: PreTrainedModel, device: str, precision: str) -> PreTrainedModel:
    return model.to(device, PRECISIONS[precision])


def pairs() -> list:
    return encode_comparisons(tokenizer(), [Comparison(p, TEXTS[0], TEXTS[2], annotator="me") for p in PROMPTS])


def pretrained(device: str, precision: str) -> list[float]:
    tokens = encode_documents(tokenizer(), TEXTS * 20)
    config = LanguageConfig(steps=8, batch_size=4, block_size=16, learning_rate=1e-3)
    return [p.loss for p in pretrain(moved(language_model(), device, precision), tokens, config)]


def fine_tuned(device: str, precision: str) -> list[float]:
    dialogues = encode_dialogues(tokenizer(), [(p, t) for p in PROMPTS for t in TEXTS])
    config = LanguageConfig(steps=8, batch_size=8, learning_rate=1e-3)
    model = moved(language_model(), device, precision)
    return [p.loss for p in train_sft(model, dialogues, tokenizer().pad_token_id, config)]


def rewarded(device: str, precision: str) -> list[float]:
    config = RewardConfig(epochs=4, questions_per_batch=4, learning_rate=1e-3)
    return [p.loss for p in train_reward_model(moved(reward_model(), device, precision), pairs(), config)]


def preferred(device: str, precision: str) -> list[float]:
    policy = moved(language_model(), device, precision)
    config = DirectConfig(steps=6, questions_per_batch=4, learning_rate=1e-3)
    return [p.loss for p in train_direct(policy, frozen_copy(policy), pairs(), config)]


TRAINERS = {"pretraining": pretrained, "sft": fine_tuned, "reward": rewarded, "dpo": preferred}


@everywhere
@in_each_precision
@pytest.mark.parametrize("name", TRAINERS)
def test_training_gives_the_losses_of_the_cpu_in_float32(name, device, precision):
    losses = TRAINERS[name](device, precision)
    assert losses == pytest.approx(TRAINERS[name]("cpu", "float32"), rel=CLOSE[precision])
    assert losses[-1] < losses[0]


def qwen2() -> PreTrainedModel:
    torch.manual_seed(0)
    return hub_model("qwen2")


@everywhere
@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize("make", [taught_model, qwen2], ids=["llama", "qwen2"])
def test_replies_are_those_of_the_cpu(make, temperature, device):
    config = SamplingConfig(temperature=temperature, max_new_tokens=16)

    def replies(on: str) -> list[str]:
        generator = torch.Generator().manual_seed(0)
        return [s.text for s in sample(make().to(on), tokenizer(), PROMPTS * 4, config, generator)]

    assert replies(device) == replies("cpu")


def steps(device: str, precision: str, method: str, count: int = 2) -> list:
    policy = moved(taught_model(), device, precision)
    reference = frozen_copy(policy)
    if method in ("rloo", "grpo"):
        make, config_class = {"rloo": (rloo, RLOOConfig), "grpo": (grpo, GRPOConfig)}[method]
        config = config_class(steps=4, batch_size=8, group_size=4, sampling=SAMPLING)
        trainer = make(policy, reference, score_length, tokenizer(), config)
    else:
        critic = ValueHead(policy) if method == "ppo, value head" else Critic(moved(reward_model(), device, precision))
        trainer = PPO(policy, reference, critic, score_length, tokenizer(), PPO_CONFIG)
    return [trainer.step(PROMPTS[: 8 if method.startswith("ppo") else 2] * 2) for _ in range(count)]


@everywhere
@in_each_precision
@pytest.mark.parametrize("method", ["ppo", "ppo, value head", "rloo", "grpo"])
def test_a_step_of_reinforcement_learning_is_that_of_the_cpu(method, device, precision):
    stats = steps(device, precision, method)
    for step in stats:
        figures = [step.reward, step.kl, step.entropy, step.policy_loss, step.value_loss]
        assert all(math.isfinite(figure) for figure in figures)
    assert stats[0].kl == pytest.approx(0, abs=1e-6)  # the policy still is the reference
    if precision == "float32":
        expected = steps("cpu", "float32", method)
        assert [r.reply for r in stats[0].samples] == [r.reply for r in expected[0].samples]
        for mine, theirs in zip(stats, expected, strict=True):
            assert mine.reward == pytest.approx(theirs.reward, abs=1e-3)
            assert mine.kl == pytest.approx(theirs.kl, abs=1e-3)
            assert mine.entropy == pytest.approx(theirs.entropy, abs=1e-3)


@everywhere
@in_each_precision
def test_a_reward_models_scores_are_those_of_the_cpu(device, precision):
    samples = sample(taught_model(), tokenizer(), PROMPTS, SAMPLING, torch.Generator().manual_seed(0))
    expected = torch.as_tensor(reward_score(reward_model())(samples))
    given = torch.as_tensor(reward_score(moved(reward_model(), device, precision))(samples)).float().cpu()
    assert given.tolist() == pytest.approx(expected.tolist(), abs=1e-4 if precision == "float32" else 0.05)


@everywhere
@in_each_precision
@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_a_reward_model_stands_where_its_language_model_does(pooling, device, precision):
    made = new_reward_model(moved(language_model(), device, precision), pooling)
    assert {(p.device.type, p.dtype) for p in made.parameters()} == {(device, PRECISIONS[precision])}
    expected = new_reward_model(language_model(), pooling)
    for (name, mine), theirs in zip(made.named_parameters(), expected.parameters(), strict=True):
        assert torch.equal(mine.cpu(), theirs.to(mine.dtype)), name
