"""Our side of the contests of against_trl.py: each function is a contestant's body (see contest.py)."""

from __future__ import annotations

import statistics
from pathlib import Path

import rlhf_lab  # noqa: F401  (before torch: it sets how threads wait)

# isort: split
import torch
from kit import in_turn, read_texts

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
from rlhf_lab.group import GroupTrainer, grpo, rloo
from rlhf_lab.language import step_generator, train_sft
from rlhf_lab.models import Critic, ValueHead, frozen_copy, load_language_model, load_reward_model
from rlhf_lab.ppo import PPO
from rlhf_lab.records import Comparison
from rlhf_lab.reward import encode_comparisons, reward_score, train_reward_model
from rlhf_lab.text import encode_dialogues


def ppo(pace, kit: str, shared: bool, episodes: int, reply: int) -> None:
    policy, tokenizer = load_language_model(Path(kit, "policy"))
    reward, _ = load_reward_model(Path(kit, "reward"))
    config = PPOConfig(
        batch_size=episodes,
        minibatches=4,
        epochs=4,
        learning_rate=1e-5,
        critic_learning_rate=1e-5,
        anneal=False,
        kl_coefficient=0.05,
        kl_target=None,
        max_kl_step=None,
        sampling=SamplingConfig(max_new_tokens=reply),
    )
    critic = ValueHead(policy) if shared else Critic(reward)
    trainer = PPO(policy, frozen_copy(policy), critic, reward_score(reward), tokenizer, config)
    take_steps(pace, trainer, read_texts(kit).prompts, episodes)


def group(pace, kit: str, method: str, episodes: int, reply: int) -> None:
    policy, tokenizer = load_language_model(Path(kit, "policy"))
    reward, _ = load_reward_model(Path(kit, "reward"))
    make, config_class = {"rloo": (rloo, RLOOConfig), "grpo": (grpo, GRPOConfig)}[method]
    config = config_class(
        batch_size=episodes,
        group_size=4,
        learning_rate=1e-5,
        anneal=False,
        max_kl_step=None,
        sampling=SamplingConfig(max_new_tokens=reply),
    )
    trainer = make(policy, frozen_copy(policy), reward_score(reward), tokenizer, config)
    take_steps(pace, trainer, read_texts(kit).prompts, episodes // 4)


def take_steps(pace, trainer: PPO | GroupTrainer, questions: list[str], prompts: int) -> None:
    """A round is a step. No reply can end by itself here, so none is punished for not having ended."""
    trainer.judged = lambda samples: torch.as_tensor(trainer.score(samples), dtype=torch.float32)
    own_critic = not isinstance(getattr(trainer, "critic", None), ValueHead)
    pace.begin()
    for asked in in_turn(questions, prompts):
        stats = trainer.step(asked)
        tokens = round(stats.reply_length * len(stats.samples))
        facts = {"kl": stats.kl, "entropy": stats.entropy, "score": stats.reward}
        if own_critic:  # the rival's is a model of its own too; a head on the policy's trunk guesses otherwise
            facts["value_loss"] = stats.value_loss
        facts["score_error"] = statistics.stdev(r.score for r in stats.samples) / len(stats.samples) ** 0.5
        pace({"episodes": len(stats.samples), "tokens": tokens, "epochs": stats.epochs}, **facts)


def sft(pace, kit: str, batch: int, steps: int, items: int) -> None:
    model, tokenizer = load_language_model(Path(kit, "language"))
    dialogues = encode_dialogues(tokenizer, read_texts(kit).demonstrations[:items])
    config = LanguageConfig(steps=items // batch, batch_size=batch, learning_rate=1e-4)
    points = train_sft(model, in_order(dialogues, salt=1), tokenizer.pad_token_id, config)
    pace.begin()
    tokens = 0
    while True:
        first, *_, last = (next(points) for _ in range(steps))
        pace({"tokens": last.tokens - tokens}, loss=first.loss)
        tokens = last.tokens


def reward(pace, kit: str, batch: int, steps: int, items: int) -> None:
    model, tokenizer = load_reward_model(Path(kit, "reward"))
    data = encode_comparisons(tokenizer, comparisons(kit, items))
    config = RewardConfig(epochs=1, questions_per_batch=batch, learning_rate=1e-4, pooling="last")
    points = train_reward_model(model, in_order(data, salt=2), config)
    pace.begin()
    pairs = 0
    while True:
        first, *_, last = (next(points) for _ in range(steps))
        pace({"pairs": last.pairs - pairs}, loss=first.loss)
        pairs = last.pairs


def dpo(pace, kit: str, batch: int, steps: int, items: int) -> None:
    policy, tokenizer = load_language_model(Path(kit, "language"))
    reference, _ = load_language_model(Path(kit, "reference"))
    data = in_order(encode_comparisons(tokenizer, comparisons(kit, items)), salt=14)
    config = DirectConfig(steps=items // batch, questions_per_batch=batch, learning_rate=1e-4)
    points = train_direct(policy, reference, data, config)
    pace.begin()
    pairs = 0
    while True:
        first, *_, last = (next(points) for _ in range(steps))
        pace({"pairs": last.labels - pairs}, loss=first.loss)
        pairs = last.labels


def comparisons(kit: str, items: int) -> list[Comparison]:
    return [Comparison(*texts) for texts in read_texts(kit).comparisons[:items]]


def in_order(items: list, salt: int) -> list:
    """The items so arranged that a trainer that shuffles with this salt meets them in their order (first epoch)."""
    order = torch.randperm(len(items), generator=step_generator(0, 0, salt)).tolist()
    arranged = [None] * len(items)
    for item, place in zip(items, order, strict=True):
        arranged[place] = item
    return arranged
