"""RLOO, GRPO and rejection sampling: a group of replies to each prompt, judged against one another. No critic.

The pure functions are the papers' equations. Rows are replies, columns their tokens; `mask` (B, R) is True on real
tokens. Scores come as (G, n): G prompts, n replies to each. One trainer, `GroupTrainer`, has the face of `ppo.PPO` and
takes the two functions in which the methods differ: how scores become advantages, and the loss.

    trainer = grpo(policy, reference, score, tokenizer, GRPOConfig(length="dr_grpo", scale=False))
    for stats in train_online(trainer, prompts): ...

Sources: Ahmadian et al., arXiv:2402.14740 (RLOO; Kool et al., 2019); Shao et al., arXiv:2402.03300 (GRPO); Liu et al.,
arXiv:2503.20783 (Dr. GRPO); Yu et al., arXiv:2503.14476 (DAPO); Dong et al., arXiv:2304.06767 (RAFT).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .config import GroupConfig, GRPOConfig, LengthRule, RaftConfig, RLOOConfig
from .cores import step_on_one_core
from .errors import InputError
from .ppo import PPO, Score, draw_prompts, k3, masked_mean, next_kl_coefficient
from .records import Rollout, StepStats
from .replies import ReplyBatch, reply_batch, reply_logprobs
from .sampling import Sample, sample

# --- the equations: advantages (G, n) from scores (G, n) --------------------------------------------------------------


def leave_one_out(rewards: torch.Tensor) -> torch.Tensor:
    """Each reply's reward less the mean of the *other* replies' to the same prompt: (G, n).

    Leaving oneself out keeps the baseline independent of the reply, so the gradient stays unbiased (RLOO).
    """
    n = rewards.shape[1]
    return rewards - (rewards.sum(1, keepdim=True) - rewards) / (n - 1)


def group_advantages(scores: torch.Tensor, scale: bool = True, eps: float = 1e-4) -> torch.Tensor:
    """(score − mean) / (std + eps) within each group, std with n − 1: (G, n). GRPO's equation 3.

    `scale=False` leaves the division out (Dr. GRPO): with it, a group that the scores hardly tell apart counts as much
    as one that they tell apart clearly.
    """
    advantages = scores - scores.mean(1, keepdim=True)
    return advantages / (scores.std(1, keepdim=True) + eps) if scale else advantages


def best_of_group(scores: torch.Tensor) -> torch.Tensor:
    """1 for each group's best reply, the first of equals, 0 for the others: (G, n)."""
    return torch.zeros_like(scores).scatter_(1, scores.argmax(1, keepdim=True), 1.0)


# --- the equations: losses --------------------------------------------------------------------------------------------


def rloo_loss(
    logprobs: torch.Tensor, old_logprobs: torch.Tensor, advantages: torch.Tensor, mask: torch.Tensor, clip: float = 0.2
) -> tuple[torch.Tensor, torch.Tensor]:
    """max(−A·ρ, −A·clip(ρ, 1 ± ε)), mean over replies, and the share of replies that were clipped.

    ρ = π(reply) / π_old(reply): the reply is one action, so its tokens' log-probabilities are summed, where PPO and
    GRPO take a ratio a token. At ρ = 1 the gradient is REINFORCE's, −A·∇log π(reply). `advantages` (B,).
    """
    ratio = torch.exp(((logprobs - old_logprobs) * mask).sum(1))
    unclipped, clipped = -advantages * ratio, -advantages * ratio.clamp(1 - clip, 1 + clip)
    return torch.maximum(unclipped, clipped).mean(), (clipped > unclipped).float().mean()


def grpo_loss(
    logprobs: torch.Tensor,
    old_logprobs: torch.Tensor,
    ref_logprobs: torch.Tensor,
    advantages: torch.Tensor,
    mask: torch.Tensor,
    beta: float = 0.0,
    clip: float = 0.2,
    clip_high: float | None = None,
    length: LengthRule = "grpo",
    max_tokens: int | None = None,
    tokens: float | None = None,
    correct_kl: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    """max(−A·ρ, −A·clip(ρ, 1 − ε, 1 + ε_high)) + β·k3 a token, averaged by `length`, and the share of tokens clipped.

    The KL stands in the loss as k3 and is differentiated; RLOO and PPO put k1 into the reward instead. As published,
    that is another brake: ∇k3 = (1 − π_ref/π)·∇log π has the mean ∇KL(π_ref‖π), the other direction. `correct_kl`
    multiplies k3 by ρ, and then the mean is ∇KL(π‖π_ref) (DeepSeek-V3.2, arXiv:2512.02556; TRL's default too).

    - "grpo": each reply's mean over its own tokens, then the mean of replies (arXiv:2402.03300, equation 3). A long
      reply's tokens weigh less, so among bad replies long ones are punished less a token.
    - "dr_grpo": sum over B · `max_tokens`, a constant: no such bias (arXiv:2503.20783).
    - "dapo": every token weighs the same: sum over `tokens`, by default the mask's own (arXiv:2503.14476).

    Raises InputError when "dr_grpo" is not told `max_tokens`.
    """
    ratio = torch.exp(logprobs - old_logprobs)
    advantages = advantages[:, None]  # (B, 1)
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - clip, 1 + (clip if clip_high is None else clip_high))
    kl = k3(logprobs, ref_logprobs) * (ratio if correct_kl else 1.0)
    loss = (torch.maximum(unclipped, clipped) + beta * kl) * mask
    clipfrac = masked_mean((clipped > unclipped).float(), mask)
    if length == "grpo":
        return (loss.sum(1) / mask.sum(1)).mean(), clipfrac
    if length == "dapo":
        return loss.sum() / (mask.sum() if tokens is None else tokens), clipfrac
    if max_tokens is None:
        raise InputError('length "dr_grpo" divides by max_tokens; give the most tokens that a reply may have')
    return loss.sum() / (len(loss) * max_tokens), clipfrac


def likelihood_loss(logprobs: torch.Tensor, weights: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """−log π in nats a token over replies weighted by `weights` (B,): SFT's loss where all are 1."""
    weights = weights[:, None] * mask
    return -(weights * logprobs).sum() / weights.sum()


# --- the trainer ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GroupExperience(ReplyBatch):
    """What one batch of groups holds for the update."""

    logprobs: torch.Tensor  # (B, R) as they were written
    ref_logprobs: torch.Tensor  # (B, R)
    advantages: torch.Tensor  # (B,)
    group: torch.Tensor  # (B,) which prompt of the step


Advantages = Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]  # scores, k1 sums (G, n), β → (G, n)
Loss = Callable[[torch.Tensor, GroupExperience, float, float], tuple[torch.Tensor, torch.Tensor]]
"""Log-probabilities (B, R), a minibatch, β, and the step's tokens a minibatch → the loss and the share clipped."""


class GroupTrainer:
    """One trainer for all methods that write a group of replies to each prompt; the face of `ppo.PPO`.

    `advantages` and `loss` make the method: `rloo`, `grpo` and `raft` below, and `direct.online_dpo`, choose them.
    With `sparse`, replies of advantage 0 are not read again. `beside(generator)` gives each minibatch one more loss.
    Randomness comes from (seed, step) alone, as PPO's does.
    """

    critic = None  # there is none: the group is the baseline
    generator, judged = PPO.generator, PPO.judged  # the same rules for chance, and for what a score function may give

    def __init__(
        self,
        policy: PreTrainedModel,
        reference: PreTrainedModel,
        score: Score,
        tokenizer: PreTrainedTokenizerBase,
        config: GroupConfig,
        seed: int,
        advantages: Advantages,
        loss: Loss,
        sparse: bool = False,
        beside: Callable[[torch.Generator], torch.Tensor | None] | None = None,
    ) -> None:
        self.policy, self.reference = policy.eval().requires_grad_(True), reference.eval()
        self.score, self.tokenizer, self.config, self.seed = score, tokenizer, config, seed
        self.advantages, self.loss, self.sparse, self.beside = advantages, loss, sparse, beside
        self.pulse: Callable[[], None] = lambda: None  # called between the parts of a step: a live loop looks up here
        self.beta, self.steps_done = config.kl_coefficient, 0
        self.optimizer = torch.optim.AdamW(
            policy.parameters(),
            lr=config.learning_rate,
            betas=(0.9, 0.95),
            eps=config.adam_eps,
            weight_decay=0.0,
            fused=True,
        )

    def step(self, prompts: Sequence[str]) -> StepStats:
        """One step: write `group_size` replies to each prompt, score them, compare within groups, update the policy."""
        if not prompts:
            raise InputError("a step needs at least one prompt")
        began = time.perf_counter()
        many = [prompt for prompt in prompts for _ in range(self.config.group_size)]
        samples = sample(self.policy, self.tokenizer, many, self.config.sampling, self.generator(salt=3))
        self.pulse()
        scores = self.judged(samples)
        experience, entropy = self.experience(samples, scores)
        kl = k3(experience.logprobs, experience.ref_logprobs).mul(experience.mask).sum(1)
        rate, beta = self.set_learning_rate(), self.beta
        updates, epochs = self.update(experience)
        if self.config.kl_target:
            self.beta = next_kl_coefficient(
                beta, kl.mean().item(), self.config.kl_target, len(many), self.config.kl_horizon
            )
        self.steps_done += 1
        mean = {name: sum(u[name] for u in updates) / len(updates) for name in updates[0]}
        return StepStats(
            step=self.steps_done,
            reward=scores.mean().item(),
            kl=kl.mean().item(),
            objective=scores.mean().item() - beta * kl.mean().item(),
            beta=beta,
            entropy=entropy,
            clipfrac=mean["clipfrac"],
            approx_kl=updates[-1]["approx_kl"],
            explained_variance=0.0,
            policy_loss=mean["policy_loss"],
            value_loss=0.0,
            reply_length=experience.mask.sum(1).float().mean().item(),
            truncated=sum(s.truncated for s in samples) / len(samples),
            learning_rate=rate,
            epochs=epochs,
            seconds=time.perf_counter() - began,
            samples=tuple(
                Rollout(s.prompt, s.text, score, float(k), s.truncated)
                for s, score, k in zip(samples, scores.tolist(), kl, strict=True)
            ),
        )

    @torch.no_grad()
    def experience(self, samples: Sequence[Sample], scores: torch.Tensor) -> tuple[GroupExperience, float]:
        """Everything the update needs, and the policy's mean entropy in nats a token."""
        device, temperature = next(self.policy.parameters()).device, self.config.sampling.temperature
        replies = reply_batch([s.dialogue for s in samples], self.policy.config.pad_token_id, device)
        logprobs, entropy = reply_logprobs(self.policy, replies, temperature)
        ref_logprobs, _ = reply_logprobs(self.reference, replies, temperature, entropy=False)
        groups = (-1, self.config.group_size)
        k1 = (logprobs - ref_logprobs).sum(1).view(groups)  # both are 0 outside the mask
        advantages = self.advantages(scores.to(device).view(groups), k1, self.beta).flatten()
        group = torch.arange(len(samples), device=device) // self.config.group_size
        seen = GroupExperience(
            **vars(replies), logprobs=logprobs, ref_logprobs=ref_logprobs, advantages=advantages, group=group
        )
        return seen, masked_mean(entropy, replies.mask).item()

    def set_learning_rate(self) -> float:
        """Anneals the learning rate linearly towards 0 over `config.steps`; never below a twentieth."""
        share = max(1 - self.steps_done / self.config.steps, 0.05) if self.config.anneal else 1.0
        self.optimizer.param_groups[0]["lr"] = self.config.learning_rate * share
        return self.config.learning_rate * share

    def update(self, experience: GroupExperience) -> tuple[list[dict[str, float]], int]:
        """Epochs of shuffled minibatches of whole groups; stops when the policy has moved too far from where it was."""
        generator, updates = self.generator(salt=4), []
        groups = int(experience.group.max()) + 1
        tokens = experience.mask.sum().item() / self.config.minibatches
        for epochs in range(1, self.config.epochs + 1):  # noqa: B007 (how many were done is returned)
            order = torch.randperm(groups, generator=generator)
            latest = [
                self.minibatch(experience, part, tokens, generator) for part in order.chunk(self.config.minibatches)
            ]
            updates += latest
            moved = sum(u["approx_kl"] for u in latest) / len(latest)
            if self.config.max_kl_step and moved > self.config.max_kl_step:
                break
        return updates, epochs

    def minibatch(
        self, experience: GroupExperience, groups: torch.Tensor, tokens: float, generator: torch.Generator
    ) -> dict[str, float]:
        """One gradient step on some of the groups; none where there is nothing to learn from."""
        chosen = torch.isin(experience.group, groups.to(experience.group.device))
        if self.sparse:
            chosen &= experience.advantages != 0
        rows = chosen.nonzero().squeeze(1)
        losses, stats = [], {"policy_loss": 0.0, "clipfrac": 0.0, "approx_kl": 0.0}
        if len(rows):
            mb = experience.rows(rows)
            logprobs, _ = reply_logprobs(self.policy, mb, self.config.sampling.temperature)
            loss, clipfrac = self.loss(logprobs, mb, self.beta, tokens)
            losses.append(loss)
            with torch.no_grad():
                approx_kl = masked_mean(k3(mb.logprobs, logprobs), mb.mask)
            stats = {"policy_loss": loss.item(), "clipfrac": clipfrac.item(), "approx_kl": approx_kl.item()}
        if self.beside is not None and (more := self.beside(generator)) is not None:
            losses.append(more)
        if losses:
            self.optimizer.zero_grad()
            torch.stack(losses).sum().backward()
            with step_on_one_core(self.policy.parameters()):
                nn.utils.clip_grad_norm_(self.policy.parameters(), self.config.clip_norm)
                self.optimizer.step()
        self.pulse()
        return stats


# --- the methods ------------------------------------------------------------------------------------------------------


def rloo(
    policy: PreTrainedModel,
    reference: PreTrainedModel,
    score: Score,
    tokenizer: PreTrainedTokenizerBase,
    config: RLOOConfig | None = None,
    seed: int = 0,
) -> GroupTrainer:
    """REINFORCE, leave-one-out: reward = score − β·(log π − log π_ref) of the whole reply, one action a reply."""
    config = config or RLOOConfig()

    def advantages(scores: torch.Tensor, k1: torch.Tensor, beta: float) -> torch.Tensor:
        return leave_one_out(scores - beta * k1)

    def loss(logprobs: torch.Tensor, mb: GroupExperience, beta: float, tokens: float):
        return rloo_loss(logprobs, mb.logprobs, mb.advantages, mb.mask, config.clip_range)

    return GroupTrainer(policy, reference, score, tokenizer, config, seed, advantages, loss)


def grpo(
    policy: PreTrainedModel,
    reference: PreTrainedModel,
    score: Score,
    tokenizer: PreTrainedTokenizerBase,
    config: GRPOConfig | None = None,
    seed: int = 0,
) -> GroupTrainer:
    """GRPO: advantages standardised within each group, PPO's clip a token, β·k3 in the loss. See `grpo_loss`."""
    config = config or GRPOConfig()
    max_tokens = config.sampling.max_new_tokens

    def advantages(scores: torch.Tensor, k1: torch.Tensor, beta: float) -> torch.Tensor:
        return group_advantages(scores, config.scale)

    def loss(logprobs: torch.Tensor, mb: GroupExperience, beta: float, tokens: float):
        return grpo_loss(
            logprobs, mb.logprobs, mb.ref_logprobs, mb.advantages, mb.mask, beta,
            config.clip_range, config.clip_range_high, config.length, max_tokens, tokens, config.correct_kl,
        )  # fmt: skip

    return GroupTrainer(policy, reference, score, tokenizer, config, seed, advantages, loss)


def raft(
    policy: PreTrainedModel,
    reference: PreTrainedModel,
    score: Score,
    tokenizer: PreTrainedTokenizerBase,
    config: RaftConfig | None = None,
    seed: int = 0,
) -> GroupTrainer:
    """Rejection sampling: SFT on the best reply of each group, by score − β·(log π − log π_ref).

    Only the best reply of each group is read with gradient. What it lacks is a push *away* from bad replies.
    """
    config = config or RaftConfig()

    def advantages(scores: torch.Tensor, k1: torch.Tensor, beta: float) -> torch.Tensor:
        return best_of_group(scores - beta * k1)

    def loss(logprobs: torch.Tensor, mb: GroupExperience, beta: float, tokens: float):
        return likelihood_loss(logprobs, mb.advantages, mb.mask), torch.zeros(())

    return GroupTrainer(policy, reference, score, tokenizer, config, seed, advantages, loss, sparse=True)


def train_online(trainer: GroupTrainer | PPO, prompts: Sequence[str]) -> Iterator[StepStats]:
    """Runs a trainer to `config.steps`, each step on prompts drawn at random; yields a record a step."""
    while trainer.steps_done < trainer.config.steps:
        yield trainer.step(draw_prompts(prompts, trainer.config.prompts_per_step, trainer.generator(salt=5)))
