"""One small interface to every method, so that the same person's labels drive any of them.

    start = Start(sft, tokenizer, prompts, reward_model=reward)      # what all begin with; nothing in it is changed
    feedback = Feedback.of(tokenizer, questions, answers)            # what the person said
    policy = start.policy()                                          # a copy of the SFT model: this one moves
    for point in train("dpo", policy, start, feedback): ...
    replies = write("dpo", policy, start, prompts)

A method that learns from *labels* reads `feedback` alone; one that learns from a *score* writes replies to `prompts`
and has them scored, by a reward model that the same labels trained or by any function. `METHODS` has a line for each.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, Literal

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .config import (
    BestOfNConfig,
    DirectConfig,
    GroupConfig,
    GRPOConfig,
    OnlineDPOConfig,
    PPOConfig,
    RaftConfig,
    RewardConfig,
    RLOOConfig,
)
from .direct import JudgedReply, encode_votes, online_dpo, train_direct
from .errors import InputError
from .group import GroupTrainer, grpo, raft, rloo, train_online
from .models import Critic, ValueHead
from .ppo import PPO, Score
from .records import Answer, DirectPoint, Question, StepStats
from .reward import RankedReplies, encode_rankings, reward_score
from .sampling import Sample, best_of_n, sample

Trainer = PPO | GroupTrainer
Config = BestOfNConfig | DirectConfig | GroupConfig | PPOConfig
Answered = Callable[[], Sequence[RankedReplies]]  # the rankings that a person has given so far


@dataclass(frozen=True)
class Start:
    """What every method begins with. Nothing in it is changed.

    `reference` is the SFT model, `prompts` those to practise on. `score` judges replies; without it the `reward_model`
    does. PPO's critic begins as a copy of `reward_model`, or as a head on the policy's trunk where there is none.
    """

    reference: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    prompts: Sequence[str] = ()
    reward_model: PreTrainedModel | None = None
    score: Score | None = None

    def policy(self) -> PreTrainedModel:
        """A copy of the reference, yours to train."""
        return copy.deepcopy(self.reference).eval().requires_grad_(True)

    def judge(self) -> Score:
        """The score function. Raises InputError where there is none."""
        if self.score is not None:
            return self.score
        if self.reward_model is None:
            raise InputError("this method learns from scores; give Start a reward_model or a score function")
        return reward_score(self.reward_model)


@dataclass(frozen=True)
class Feedback:
    """What a person said, as every method takes it: rankings (of two or more) and votes."""

    rankings: Sequence[RankedReplies] = ()
    votes: Sequence[JudgedReply] = ()

    @classmethod
    def of(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        questions: Sequence[Question],
        answers: Sequence[Answer],
        max_tokens: int | None = None,
    ) -> Feedback:
        """From answers of every form; see `encode_rankings` and `encode_votes`."""
        rankings = [r for r in encode_rankings(tokenizer, questions, answers, max_tokens) if r.pairs]
        return cls(rankings, encode_votes(tokenizer, questions, answers, max_tokens))


# --- the methods, a line each -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Method:
    """A method by name: what it does, what it learns from, its options, and how a trainer of it is made."""

    name: str
    does: str
    learns_from: Literal["labels", "score", "nothing"]
    config: Any  # gives the options' defaults when called
    make: Callable[..., GroupTrainer] | None = None  # of a group method


METHODS = {
    method.name: method
    for method in (
        Method("best-of-n", "no training: write n replies, give the best", "nothing", BestOfNConfig),
        Method("raft", "SFT on the best of each group of replies", "score", RaftConfig, raft),
        Method("dpo", "the better reply likelier than the worse", "labels", DirectConfig),
        Method("cdpo", "DPO that takes some labels to be wrong", "labels", partial(DirectConfig, label_smoothing=0.1)),
        Method(
            "ipo",
            "the better reply likelier by a fixed distance",
            "labels",
            partial(DirectConfig, loss="ipo", beta=0.5),
        ),
        Method("kto", "thumbs: good replies likelier, bad ones less", "labels", partial(DirectConfig, loss="kto")),
        Method("online-dpo", "DPO on the best and worst of each new group", "score", OnlineDPOConfig, online_dpo),
        Method("rloo", "REINFORCE; the group's other replies are the baseline", "score", RLOOConfig, rloo),
        Method("grpo", "PPO's clip; the group's mean and spread in place of a critic", "score", GRPOConfig, grpo),
        Method("ppo", "every token credited by a critic, clipped", "score", PPOConfig),
    )
}


def method_named(name: str) -> Method:
    """The method of that name; InputError for another."""
    if name not in METHODS:
        raise InputError(f"method {name!r} does not exist; use one of {', '.join(METHODS)}")
    return METHODS[name]


def train(
    name: str,
    policy: PreTrainedModel,
    start: Start,
    feedback: Feedback | None = None,
    config: Config | None = None,
    seed: int = 0,
) -> Iterator[StepStats | DirectPoint]:
    """Trains `policy` in place by the method of that name; yields a record a step. Best-of-n trains nothing.

    Raises InputError for what the method lacks: labels, scores, prompts, or options of its own kind.
    """
    method, feedback = method_named(name), feedback or Feedback()
    config = options(name, config)
    if method.learns_from == "nothing":
        return iter(())
    if method.learns_from == "score":
        return train_online(online_trainer(name, policy, start, config, seed), start.prompts)
    data = feedback.votes if config.loss == "kto" and feedback.votes else feedback.rankings
    return train_direct(policy, start.reference, data, config, seed)


def write(
    name: str,
    policy: PreTrainedModel,
    start: Start,
    prompts: Sequence[str],
    config: Config | None = None,
    generator: torch.Generator | None = None,
) -> list[Sample]:
    """A reply to each prompt, as the method gives it: sampled from the policy; by best-of-n, the best of n samples."""
    config = options(name, config)
    sampling = getattr(config, "sampling", None)
    if isinstance(config, BestOfNConfig):
        return best_of_n(policy, start.tokenizer, prompts, config.n, start.judge(), sampling, generator)
    return sample(policy, start.tokenizer, prompts, sampling, generator)


def options(name: str, config: Config | None = None) -> Config:
    """The method's options: its defaults, or `config` if it is of the right kind. Raises InputError otherwise."""
    default = method_named(name).config()
    if config is not None and not isinstance(config, type(default)):
        raise InputError(f"method {name!r} takes a {type(default).__name__}, and was given a {type(config).__name__}")
    return default if config is None else config


def online_trainer(
    name: str,
    policy: PreTrainedModel,
    start: Start,
    config: Config | None = None,
    seed: int = 0,
    answered: Answered | None = None,
) -> Trainer:
    """A trainer with `step(prompts)` for a method that writes replies. `answered` is for online DPO, which learns from
    a person's own rankings beside its own pairs. Raises InputError for a method that does not work step by step."""
    method, config = method_named(name), options(name, config)
    parts = (policy, start.reference)
    if name == "ppo":
        critic = Critic(start.reward_model) if start.reward_model is not None else ValueHead(policy)
        return PPO(*parts, critic, start.judge(), start.tokenizer, config, seed)
    if method.make is None:
        online = [m.name for m in METHODS.values() if m.learns_from == "score"]
        raise InputError(f"method {name!r} writes no replies as it learns; those that do: {', '.join(online)}")
    more = {"answered": answered} if name == "online-dpo" else {}
    return method.make(*parts, start.judge(), start.tokenizer, config, seed, **more)


def options_like(name: str, config: PPOConfig, **changes: Any) -> Config:
    """Another method's options with those that it shares with `config`: batch, sampling, steps, truncated score …

    What belongs to a method's own way of learning stays its own: learning rate, β, epochs and minibatches.
    """
    own = options(name)
    if isinstance(own, PPOConfig):
        return replace(config, **changes)
    shared = {"steps", "batch_size", "anneal", "truncated_score", "sampling"} & {f.name for f in fields(own)}
    return replace(own, **{field: getattr(config, field) for field in shared} | changes)


# --- what a method costs ----------------------------------------------------------------------------------------------


def passes(config: Config, feedback: Feedback | None = None) -> float:
    """What `config.steps` steps cost, in *passes*: reads of one reply by one network.

    A read with gradient counts as three, for going back takes twice the work of going forward. Writing a reply is one
    pass: with a cache, each token is read once. The networks count alike, though a reward model may have a layer more.
    """
    if not hasattr(config, "steps"):
        return 0.0
    a_step, once, of_labels = _costs(config, feedback or Feedback())
    return config.steps * a_step + min(config.steps * once, of_labels)


def reward_passes(config: RewardConfig, feedback: Feedback) -> float:
    """What training a reward model on the rankings costs, in passes: what a method that needs one pays first."""
    return 3.0 * config.epochs * sum(len(item.dialogues) for item in feedback.rankings)


def within(config: Config, budget: float, feedback: Feedback | None = None) -> Config:
    """The same options with as many steps as that many passes pay for, at least one."""
    if not hasattr(config, "steps"):
        return config
    a_step, once, of_labels = _costs(config, feedback or Feedback())
    steps = budget / (a_step + once)
    if steps * once > of_labels:  # every label has been read by the reference: from then on a step costs less
        steps = (budget - of_labels) / a_step
    return replace(config, steps=max(1, int(steps)))


def _costs(config: Config, feedback: Feedback) -> tuple[float, float, float]:
    """Passes of a step; of the reference reading that step's labels, where it has not yet; of its reading all."""
    if isinstance(config, PPOConfig):  # write, score, π, π_ref, V; then policy and critic in every epoch
        return config.batch_size * (5.0 + 6 * config.epochs), 0.0, 0.0
    if isinstance(config, GroupConfig):  # write, score, π, π_ref; then those replies of a group that are read again
        again = {RaftConfig: 1, OnlineDPOConfig: 2}.get(type(config), config.group_size)
        return config.batch_size * (4 + 3 * config.epochs * again / config.group_size), 0.0, 0.0
    replies = sum(len(item.dialogues) for item in feedback.rankings)
    if config.loss != "kto":
        batch = config.questions_per_batch * (replies / len(feedback.rankings) if replies else 2.0)
        return 3.0 * batch, batch, float(replies)
    reads = 2 if config.kto_baseline == "mismatched" else 1  # each vote's own reply, and the same behind another prompt
    return (
        config.votes_per_batch * (2.0 + reads),
        config.votes_per_batch * reads,
        reads * (len(feedback.votes) or replies),
    )
