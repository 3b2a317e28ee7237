"""TRL 1.12.0's own trainers, driven on given weights and given replies: what ours are held against.

Nothing of TRL is copied or rewritten here. Its PPO is one long method, so three things are put in from outside: the
replies (in place of sampling), the order of the minibatches, and an onlooker that keeps the method's own variables, its
gradients and its log. Everything else is TRL's.
"""

from __future__ import annotations

import copy
import inspect
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import torch
from datasets import Dataset
from tiny import language_model, reward_model, tokenizer
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from trl import RewardConfig as TRLRewardConfig
from trl import RewardTrainer, SFTConfig, SFTTrainer
from trl.experimental.ppo import PPOConfig as TRLConfig
from trl.experimental.ppo import PPOTrainer
from trl.experimental.ppo import ppo_trainer as trl_ppo

import rlhf_lab.ppo
from rlhf_lab.config import LanguageConfig, PPOConfig, RewardConfig
from rlhf_lab.language import make_optimizer
from rlhf_lab.models import Critic, frozen_copy
from rlhf_lab.ppo import PPO, Experience, gae, policy_loss, value_loss, whiten
from rlhf_lab.records import Comparison
from rlhf_lab.reward import reward_score
from rlhf_lab.sampling import Sample
from rlhf_lab.text import Dialogue

Gradients = dict[str, torch.Tensor]
CPU_FP32 = {"use_cpu": True, "bf16": False, "gradient_checkpointing": False, "report_to": "none", "disable_tqdm": True}
KEPT = ["logprobs", "ref_logprobs", "scores", "values", "rewards", "advantages", "returns"]
KEPT += ["padding_mask", "padding_mask_p1", "query_responses", "context_length"]


# --- the same start for both ------------------------------------------------------------------------------------------


@dataclass
class Start:
    """Weights, replies and settings that both trainers are given. Each works on copies of its own."""

    config: PPOConfig
    samples: list[list[Sample]]  # of each step
    policy: PreTrainedModel = field(default_factory=lambda: decided(language_model(seed=1)))
    reference: PreTrainedModel = field(default_factory=lambda: decided(language_model(seed=2)))
    reward: PreTrainedModel = field(default_factory=lambda: reward_model(seed=1))
    critic: PreTrainedModel = field(default_factory=lambda: reward_model(seed=2))
    seed: int = 0


@dataclass
class Outcome:
    """What a trainer did with a start: its tensors and log by step, its gradients by update, its weights at the end."""

    seen: list[Any]
    log: list[Any]
    gradients: list[dict[str, Gradients]]  # by update: "policy" and "critic"
    policy: Gradients
    critic: Gradients


def decided(model: PreTrainedModel) -> PreTrainedModel:
    """With larger weights than a fresh model has, so that its distributions are far from even."""
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(3)
    return model.eval()


def replies(lengths: Sequence[int], ended: bool = True, seed: int = 0, prompts: Sequence[int] = ()) -> list[Sample]:
    """Samples of random tokens: replies of these lengths, prompts of other, ragged lengths (or of those given)."""
    generator = torch.Generator().manual_seed(seed)
    own, samples = tokenizer(), []
    first = max(own.all_special_ids) + 1
    for i, length in enumerate(lengths):
        prompt_length = prompts[i] if prompts else 3 + (5 * i) % 7
        ids = torch.randint(first, len(own), (prompt_length + length,), generator=generator).tolist()
        if ended:
            ids[-1] = own.eos_token_id
        samples.append(Sample(f"prompt {i}", f"reply {i}", Dialogue(tuple(ids), prompt_length), not ended))
    return samples


def keep_gradients(optimizer: torch.optim.Optimizer, models: dict[str, nn.Module]) -> list[dict[str, Gradients]]:
    """A list that grows by the gradients of each update, by model and parameter, as the optimizer meets them."""
    kept: list[dict[str, Gradients]] = []

    def look(*_: object) -> None:
        kept.append(
            {
                name: {n: p.grad.clone() for n, p in m.named_parameters() if p.grad is not None}
                for name, m in models.items()
            }
        )

    optimizer.register_step_pre_hook(look)
    return kept


def weights(model: nn.Module) -> Gradients:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


# --- ours -------------------------------------------------------------------------------------------------------------


def run_ours(start: Start, monkeypatch, trainer: type[PPO] = PPO, critic: Any = None) -> Outcome:
    """Our trainer's `step` on each step's replies. `critic`: made from the policy, where it is not `start.critic`."""
    policy = copy.deepcopy(start.policy)
    own = critic(policy) if critic else Critic(start.critic)
    ppo = trainer(
        policy, frozen_copy(start.reference), own, reward_score(start.reward), tokenizer(), start.config, start.seed
    )
    named = own if critic else own.model
    gradients, seen, log = keep_gradients(ppo.optimizer, {"policy": policy, "critic": named}), [], []
    experience = ppo.experience

    def look(samples: Sequence[Sample], scores: torch.Tensor) -> tuple[Experience, float]:
        result = experience(samples, scores)
        seen.append(SimpleNamespace(scores=scores, entropy=result[1], **vars(result[0])))
        return result

    ppo.experience = look
    for samples in start.samples:
        monkeypatch.setattr(rlhf_lab.ppo, "sample", lambda *_, given=samples, **__: given)
        log.append(ppo.step([s.prompt for s in samples]))
    return Outcome(seen, log, gradients, weights(policy), weights(named))


class AsTRLWhitens(PPO):
    """Ours with the one thing that differs when all replies are of one length: the variance of whitening, divided by
    n − 1 instead of n."""

    def advantages(
        self, rewards: torch.Tensor, values: torch.Tensor, mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        advantages, returns = super().advantages(rewards, values, mask)
        n = mask.sum()
        return advantages * ((n - 1) / n).sqrt(), returns


class AsTRLEnds(PPO):
    """Ours with TRL's layout of a reply that ended early: one more state, that after the end token, has a value, earns
    the score and is in the value loss. The policy's part leaves it out. Needs a padding token that is not the end."""

    def experience(self, samples: Sequence[Sample], scores: torch.Tensor) -> tuple[Experience, float]:
        widest = max(s.dialogue.reply_length for s in samples)
        pad = self.policy.config.pad_token_id
        longer = [
            replace(s, dialogue=Dialogue((*s.dialogue.ids, pad), s.dialogue.prompt_length))
            if s.dialogue.reply_length < widest
            else s
            for s in samples
        ]
        self.written = torch.arange(widest) < torch.tensor([s.dialogue.reply_length for s in samples])[:, None]
        return super().experience(longer, scores)

    def rewards(
        self, logprobs: torch.Tensor, ref_logprobs: torch.Tensor, scores: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        return super().rewards(logprobs * self.written, ref_logprobs * self.written, scores, mask)

    def advantages(
        self, rewards: torch.Tensor, values: torch.Tensor, mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        advantages, returns = gae(rewards, values, mask, self.config.gamma, self.config.lam)
        n = self.written.sum()
        return whiten(advantages, self.written) * ((n - 1) / n).sqrt(), returns

    def minibatch(self, mb: Experience) -> dict[str, float]:
        written = mb.mask & (mb.tokens != self.policy.config.pad_token_id)
        logprobs, values, _ = self.read(mb)
        pg_loss, clipfrac = policy_loss(logprobs, mb.logprobs, mb.advantages, written, self.config.clip_range)
        v_loss = value_loss(values, mb.values, mb.returns, mb.mask, self.config.value_clip_range)
        self.optimizer.zero_grad()
        (pg_loss + v_loss).backward()
        self.optimizer.step()
        found = {"policy_loss": pg_loss, "value_loss": v_loss, "clipfrac": clipfrac}
        return {name: value.item() for name, value in found.items()} | {"approx_kl": 0.0}


# --- TRL's PPO --------------------------------------------------------------------------------------------------------


class Onlooker(TrainerCallback):
    """Keeps the variables of TRL's `train` at the end of each step, while they still live."""

    def __init__(self) -> None:
        self.seen: list[SimpleNamespace] = []

    def on_step_end(self, *_: object, **__: object) -> None:
        frame = inspect.currentframe()
        while frame.f_code.co_name != "train" or "query_responses" not in frame.f_locals:
            frame = frame.f_back
        found = {name: frame.f_locals[name] for name in KEPT}
        self.seen.append(SimpleNamespace(**{n: v.clone() if hasattr(v, "clone") else v for n, v in found.items()}))


def run_trl(
    start: Start,
    monkeypatch,
    folder: Path,
    shared: nn.Module | None = None,
    own_sampling: bool = False,
    own: PreTrainedTokenizerBase | None = None,
    **settings: Any,
) -> Outcome:
    """TRL's PPOTrainer on the same. `shared` is a value head for the policy's own trunk, `own` another tokenizer.

    With `own_sampling` it writes its replies itself, to the prompts of `start`; `settings` go to its config.
    """
    policy, own = copy.deepcopy(start.policy), own or tokenizer()
    critic = copy.deepcopy(start.critic)
    if shared is not None:
        critic.model, critic.score = policy.model, copy.deepcopy(shared)
    head = critic if shared is None else critic.score
    groups = [
        {"params": list(policy.parameters()), "lr": start.config.learning_rate},
        {"params": list(head.parameters()), "lr": start.config.critic_learning_rate},
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=start.config.adam_eps, weight_decay=0.0)
    onlooker, size = Onlooker(), len(start.samples[0])
    trainer = PPOTrainer(
        args=trl_config(start, folder, **settings),
        processing_class=own,
        model=policy,
        ref_model=copy.deepcopy(start.reference),
        reward_model=copy.deepcopy(start.reward),
        value_model=critic,
        train_dataset=Dataset.from_dict({"row": list(range(size))}),
        data_collator=left_padded(start.samples[0]),
        optimizers=(optimizer, None),
        callbacks=[onlooker],
    )
    gradients = keep_gradients(optimizer, {"policy": policy, "critic": head})
    log: list[dict[str, float]] = []
    monkeypatch.setattr(trainer, "log", lambda metrics, *_: log.append(metrics))
    if not own_sampling:
        monkeypatch.setattr(trl_ppo, "batch_generation", given_replies(start))
    monkeypatch.setattr(trl_ppo, "np", SimpleNamespace(random=SimpleNamespace(permutation=our_orders(start))))
    trainer.train()
    return Outcome(onlooker.seen, log, gradients, weights(policy), weights(head))


def trl_config(start: Start, folder: Path, **settings: Any) -> TRLConfig:
    """Our config in TRL's words."""
    ours, size = start.config, len(start.samples[0])
    same = {
        "per_device_train_batch_size": size,
        "gradient_accumulation_steps": 1,
        "num_mini_batches": ours.minibatches,
        "num_ppo_epochs": ours.epochs,
        "total_episodes": size * len(start.samples),
        "response_length": max(s.dialogue.reply_length for s in start.samples[0]),
        "temperature": ours.sampling.temperature,
        "stop_token": "eos",
        "kl_coef": ours.kl_coefficient,
        "cliprange": ours.clip_range,
        "cliprange_value": ours.value_clip_range,
        "vf_coef": 1.0,
        "gamma": ours.gamma,
        "lam": ours.lam,
        "whiten_rewards": ours.whiten_rewards,
        "num_sample_generations": 0,
        "save_strategy": "no",
    }
    return TRLConfig(output_dir=str(folder), **CPU_FP32, **(same | settings))


def left_padded(samples: Sequence[Sample]):
    """A collator that puts the prompts of a batch, in whatever order it comes, into ours, padded on the left."""
    prompts = [torch.tensor(s.dialogue.ids[: s.dialogue.prompt_length]) for s in samples]

    def collate(examples: list[dict[str, int]]) -> dict[str, torch.Tensor]:
        rows = [prompts[row] for row in sorted(example["row"] for example in examples)]
        pad = tokenizer().pad_token_id
        return {"input_ids": nn.utils.rnn.pad_sequence(rows, True, pad, padding_side="left")}

    return collate


def given_replies(start: Start):
    """In place of TRL's sampling: the replies of the step, padded on the right, and the logits that TRL gives them."""
    steps = iter(start.samples)

    def generation(model: PreTrainedModel, queries: torch.Tensor, _size: int, pad: int, _config: object):
        rows = [torch.tensor(s.dialogue.ids[s.dialogue.prompt_length :]) for s in next(steps)]
        both = torch.cat([queries, nn.utils.rnn.pad_sequence(rows, True, pad)], dim=1)
        logits = trl_ppo.forward(model, both, pad).logits[:, queries.shape[1] - 1 : -1]
        return both, logits / start.config.sampling.temperature

    return generation


def our_orders(start: Start):
    """In place of TRL's shuffling: the orders that our trainer draws, epoch after epoch, step after step."""
    orders = []
    for step in range(len(start.samples)):
        generator = rlhf_lab.ppo.step_generator(start.seed, step, 4)
        orders += [torch.randperm(len(start.samples[0]), generator=generator) for _ in range(start.config.epochs)]
    following = iter(orders)
    return lambda _: next(following).numpy()


# --- TRL's reward and SFT trainers ------------------------------------------------------------------------------------


def supervised(
    optimizer: torch.optim.Optimizer, rate: Callable[[int], float] | None, size: int, **settings: Any
) -> dict:
    """Settings and optimizers for a TRL trainer that goes through its data in order, `size` rows at a time."""
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate or (lambda _: 1.0))
    plain = {"per_device_train_batch_size": size, "num_train_epochs": 1, "logging_steps": 1, "save_strategy": "no"}
    plain |= {"train_sampling_strategy": "sequential", "remove_unused_columns": True, "max_length": None}
    return {"optimizers": (optimizer, schedule), "settings": CPU_FP32 | plain | settings}


def trl_reward_trainer(
    model: PreTrainedModel,
    pairs: Sequence[Comparison],
    folder: Path,
    size: int = 8,
    margin: float = 0.0,
    rate: Callable[[int], float] | None = None,
    config: RewardConfig | None = None,
    **settings: Any,
) -> tuple[RewardTrainer, PreTrainedModel]:
    """TRL's trainer on a copy of `model` with our optimizer, and that copy. It is given texts, as conversations."""
    other = copy.deepcopy(model).requires_grad_(True).train()
    config = config or RewardConfig()
    given = supervised(make_optimizer(other, config.learning_rate, config.weight_decay), rate, size, **settings)
    rows = [
        {
            "prompt": [{"role": "user", "content": pair.prompt}],
            "chosen": [{"role": "assistant", "content": pair.chosen}],
            "rejected": [{"role": "assistant", "content": pair.rejected}],
        }
        | ({"margin": margin} if margin else {})
        for pair in pairs
    ]
    trainer = RewardTrainer(
        model=other,
        args=TRLRewardConfig(output_dir=str(folder), **given["settings"]),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer(),
        optimizers=given["optimizers"],
    )
    return trainer, other


def trl_sft_trainer(
    model: PreTrainedModel,
    demonstrations: Sequence[tuple[str, str]],
    folder: Path,
    size: int,
    rate: Callable[[int], float] | None = None,
    config: LanguageConfig | None = None,
    **settings: Any,
) -> tuple[SFTTrainer, PreTrainedModel]:
    """TRL's trainer on a copy of `model` with our optimizer, and that copy; the loss on replies only."""
    other = copy.deepcopy(model).train()
    config = config or LanguageConfig()
    given = supervised(make_optimizer(other, config.learning_rate, config.weight_decay), rate, size, **settings)
    rows = [
        {
            "prompt": [{"role": "user", "content": prompt}],
            "completion": [{"role": "assistant", "content": reply}],
        }
        for prompt, reply in demonstrations
    ]
    trainer = SFTTrainer(
        model=other,
        args=SFTConfig(output_dir=str(folder), completion_only_loss=True, **given["settings"]),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer(),
        optimizers=given["optimizers"],
    )
    return trainer, other
