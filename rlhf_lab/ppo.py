"""PPO for language models: per-token KL reward, advantages, clipped losses, and the loop.

The pure functions at the top are the algorithm's equations. Rows are replies, columns their tokens; `mask` (B, R) is
True on real tokens. Sources: Schulman et al., arXiv:1707.06347 and arXiv:1506.02438 (GAE); Ziegler et al.,
arXiv:1909.08593 (KL reward, adaptive β); "The N Implementation Details of RLHF with PPO" (Huang et al., 2023).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .config import PPOConfig
from .cores import add_gradients, divided, step_on_one_core, weighted_means
from .errors import InputError
from .language import step_generator
from .models import Critic, ValueHead
from .records import Rollout, StepStats
from .replies import (
    ReplyBatch,
    in_columns,
    in_parts,
    reply_batch,
    reply_logprobs,
    reply_states,
    state_places,
    token_logprobs,
)
from .sampling import Sample, sample

Score = Callable[[Sequence[Sample]], torch.Tensor]  # samples → scores (N,): a learned, a synthetic or a person's reward


# --- the equations ----------------------------------------------------------------------------------------------------


def per_token_rewards(
    logprobs: torch.Tensor, ref_logprobs: torch.Tensor, scores: torch.Tensor, mask: torch.Tensor, beta: float
) -> torch.Tensor:
    """−β·(log π − log π_ref) at every token, plus the score at each reply's last real one: (B, R).

    TRL pays the score one state later where a reply ended early, and trains a value there; here V is 0 behind the end.
    """
    rewards = -beta * (logprobs - ref_logprobs) * mask
    last = mask.sum(1) - 1
    rewards[torch.arange(len(rewards)), last] += scores
    return rewards


def gae(
    rewards: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, gamma: float = 1.0, lam: float = 0.95
) -> tuple[torch.Tensor, torch.Tensor]:
    """Generalised advantages and returns, both (B, R), the latter before any whitening.

    δ_t = r_t + γ·V_{t+1} − V_t;  A_t = δ_t + γλ·A_{t+1};  return_t = A_t + V_t. Beyond a reply's end V and A are 0.
    """
    values = values * mask
    advantages = torch.zeros_like(values)
    following = values.new_zeros(len(values))
    for t in reversed(range(values.shape[1])):
        next_value = values[:, t + 1] if t + 1 < values.shape[1] else 0.0
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        following = (delta + gamma * lam * following) * mask[:, t]
        advantages[:, t] = following
    return advantages, (advantages + values) * mask


def masked_mean(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean over the tokens where `mask` holds: every token weighs the same, whatever its reply's length."""
    return (x * mask).sum() / mask.sum()


def whiten(x: torch.Tensor, mask: torch.Tensor, shift_mean: bool = True) -> torch.Tensor:
    """x scaled to standard deviation 1 over the mask (biased variance, eps 1e-8), and to mean 0 if `shift_mean`.

    TRL divides by n − 1, and without `shift_mean` it keeps the mean, as lm-human-preferences does; here 0 stays 0.
    """
    mean = masked_mean(x, mask)
    variance = masked_mean((x - mean) ** 2, mask)
    whitened = (x - mean) * torch.rsqrt(variance + 1e-8)
    return (whitened if shift_mean else whitened + mean * torch.rsqrt(variance + 1e-8)) * mask


def policy_loss(
    logprobs: torch.Tensor, old_logprobs: torch.Tensor, advantages: torch.Tensor, mask: torch.Tensor, clip: float = 0.2
) -> tuple[torch.Tensor, torch.Tensor]:
    """max(−A·ratio, −A·clip(ratio, 1 ± ε)), mean over tokens, and the share of tokens that were clipped."""
    ratio = torch.exp(logprobs - old_logprobs)
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - clip, 1 + clip)
    clipfrac = masked_mean((clipped > unclipped).float(), mask)
    return masked_mean(torch.maximum(unclipped, clipped), mask), clipfrac


def value_loss(
    values: torch.Tensor, old_values: torch.Tensor, returns: torch.Tensor, mask: torch.Tensor, clip: float = 0.2
) -> torch.Tensor:
    """½·max((V − R)², (clip(V, V_old ± ε) − R)²), mean over tokens."""
    clipped = torch.clamp(values, old_values - clip, old_values + clip)
    return 0.5 * masked_mean(torch.maximum((values - returns) ** 2, (clipped - returns) ** 2), mask)


def k3(logprobs: torch.Tensor, ref_logprobs: torch.Tensor) -> torch.Tensor:
    """Schulman's estimate of KL(π‖π_ref) a token, never negative: (eˣ − 1) − x with x = log π_ref − log π.

    TRL plots −x, which may be negative, and x²/2 for the KL to the step's start.
    """
    x = ref_logprobs - logprobs
    return torch.expm1(x) - x


def next_kl_coefficient(beta: float, kl: float, target: float, n: int, horizon: float) -> float:
    """The adaptive controller: β·(1 + clip(KL/target − 1, ±0.2)·n/horizon), n the number of replies since."""
    error = min(max(kl / target - 1, -0.2), 0.2)
    return beta * (1 + error * n / horizon)


# --- the loop ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Experience(ReplyBatch):
    """What one batch of replies holds for the update. All of these are (B, R), one column a reply token."""

    logprobs: torch.Tensor
    ref_logprobs: torch.Tensor
    values: torch.Tensor
    rewards: torch.Tensor
    advantages: torch.Tensor  # as the policy's loss takes them: whitened
    returns: torch.Tensor


class PPO:
    """The trainer: give it prompts, a step at a time.

    `score` is any function from samples to scores, so a person, a learned and a synthetic reward are interchangeable.
    `reference` stays frozen. Randomness comes from (seed, step) alone, so a trainer given back its weights, optimizer,
    `beta` and `steps_done` goes on as the unbroken one would have.

    `critic` is a model of its own, or a `ValueHead` on the policy's trunk: then one pass gives both, and the value
    loss, times `config.value_coefficient`, reaches the trunk too. A critic of its own has no coefficient (TRL: 0.1).
    Gradients are clipped (TRL's PPO clips none). What else differs from TRL, and why: docs/ppo_details.md.
    """

    def __init__(
        self,
        policy: PreTrainedModel,
        reference: PreTrainedModel,
        critic: Critic | ValueHead,
        score: Score,
        tokenizer: PreTrainedTokenizerBase,
        config: PPOConfig | None = None,
        seed: int = 0,
    ) -> None:
        self.policy, self.reference, self.critic = policy.eval().requires_grad_(True), reference.eval(), critic.eval()
        self.score, self.tokenizer, self.seed = score, tokenizer, seed
        self.config = config or PPOConfig()
        self.pulse: Callable[[], None] = lambda: None  # called between the parts of a step: a live loop looks up here
        self.beta, self.steps_done = self.config.kl_coefficient, 0
        self.optimizer = torch.optim.AdamW(
            [
                {"params": list(policy.parameters()), "lr": self.config.learning_rate},
                {"params": list(critic.parameters()), "lr": self.config.critic_learning_rate},
            ],
            betas=(0.9, 0.95),
            eps=self.config.adam_eps,
            weight_decay=0.0,
            fused=True,
        )

    def step(self, prompts: Sequence[str]) -> StepStats:
        """One PPO step: write a reply to each prompt, score them, compute advantages, update policy and critic."""
        if not prompts:
            raise InputError("PPO needs at least one prompt a step")
        began = time.perf_counter()
        samples = sample(self.policy, self.tokenizer, prompts, self.config.sampling, self.generator(salt=3))
        self.pulse()
        scores = self.judged(samples)
        experience, entropy = self.experience(samples, scores)
        rate = self.set_learning_rate()
        updates, epochs = self.update(experience)
        kl = k3(experience.logprobs, experience.ref_logprobs).mul(experience.mask).sum(1)
        beta = self.beta
        if self.config.kl_target:
            self.beta = next_kl_coefficient(
                beta, kl.mean().item(), self.config.kl_target, len(prompts), self.config.kl_horizon
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
            explained_variance=explained_variance(experience),
            policy_loss=mean["policy_loss"],
            value_loss=mean["value_loss"],
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

    def generator(self, salt: int) -> torch.Generator:
        return step_generator(self.seed, self.steps_done, salt)

    def judged(self, samples: Sequence[Sample]) -> torch.Tensor:
        """Scores (B,); a truncated reply earns the fixed low score instead (detail 14; TRL subtracts a penalty)."""
        given = self.score(samples)
        try:
            scores = torch.as_tensor(given, dtype=torch.float32, device="cpu").detach()
        except (TypeError, ValueError, RuntimeError):
            scores = torch.empty(0)
        if scores.shape != (len(samples),) or not torch.isfinite(scores).all():
            shown = " ".join(str(given).split())[:60]
            raise InputError(
                f"the score function gave {shown}; it must give {len(samples)} finite numbers, one for each sample"
            )
        truncated = torch.tensor([s.truncated for s in samples])
        return torch.where(truncated, self.config.truncated_score, scores)

    @torch.no_grad()
    def experience(self, samples: Sequence[Sample], scores: torch.Tensor) -> tuple[Experience, float]:
        """Everything the update needs, and the policy's mean entropy in nats a token."""
        device = next(self.policy.parameters()).device
        replies = reply_batch([s.dialogue for s in samples], self.policy.config.pad_token_id, device)
        logprobs, values, entropy, ref_logprobs = self.read_all(replies)
        rewards = self.rewards(logprobs, ref_logprobs, scores.to(device), replies.mask)
        advantages, returns = self.advantages(rewards, values, replies.mask)
        seen = Experience(
            **vars(replies),
            logprobs=logprobs,
            ref_logprobs=ref_logprobs,
            values=values,
            rewards=rewards,
            advantages=advantages,
            returns=returns,
        )
        return seen, masked_mean(entropy, replies.mask).item()

    def read_all(self, replies: ReplyBatch) -> torch.Tensor:
        """What `read` gives, and log π_ref: (4, B, R), the rows divided among the cores."""

        def both(part: ReplyBatch) -> tuple[torch.Tensor, ...]:
            return *self.read(part), reply_logprobs(self.reference, part, self.temperature, entropy=False)[0]

        return in_parts(both, replies)

    def read(self, replies: ReplyBatch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """log π, V of the state before each reply token, and the entropy (0 with gradient): each (B, R)."""
        states = self.states(replies)
        logprobs, entropy = self.logprobs(replies, states)
        values = in_columns(self.critic(states), replies.mask) if self.shared else self.values(replies)
        return logprobs, values, entropy

    def states(self, replies: ReplyBatch) -> torch.Tensor:
        """The policy's final hidden state before each reply token, (N, d)."""
        return reply_states(self.policy, replies)

    def logprobs(self, replies: ReplyBatch, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """log π of the reply tokens from the policy's states, and the entropy (0 with gradient): (B, R) each."""
        chosen, entropy = token_logprobs(self.policy, states, replies.tokens[replies.mask], self.temperature)
        return in_columns(chosen, replies.mask), in_columns(entropy, replies.mask)

    def values(self, replies: ReplyBatch) -> torch.Tensor:
        """V by a critic of its own: (B, R), 0 outside the mask."""
        ids, lengths = replies.context
        return in_columns(self.critic.at(ids, state_places(replies), lengths), replies.mask)

    def rewards(
        self, logprobs: torch.Tensor, ref_logprobs: torch.Tensor, scores: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        """The reward of each token, (B, R), whitened if the config says so."""
        rewards = per_token_rewards(logprobs, ref_logprobs, scores, mask, self.beta)
        return whiten(rewards, mask, shift_mean=False) if self.config.whiten_rewards else rewards

    def advantages(
        self, rewards: torch.Tensor, values: torch.Tensor, mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Whitened advantages, and returns from the advantages before that: (B, R) each."""
        advantages, returns = gae(rewards, values, mask, self.config.gamma, self.config.lam)
        return whiten(advantages, mask), returns

    def set_learning_rate(self) -> float:
        """Anneals both learning rates linearly towards 0 over `config.steps`; never below a twentieth (TRL: to 0)."""
        share = max(1 - self.steps_done / self.config.steps, 0.05) if self.config.anneal else 1.0
        rates = (self.config.learning_rate, self.config.critic_learning_rate)
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * share
        return self.config.learning_rate * share

    def update(self, experience: Experience) -> tuple[list[dict[str, float]], int]:
        """Several epochs of shuffled minibatches; stops when the policy has moved too far from where the step began."""
        generator, updates = self.generator(salt=4), []
        for epochs in range(1, self.config.epochs + 1):  # noqa: B007 (how many were done is returned)
            order = torch.randperm(len(experience.ids), generator=generator)
            latest = [self.minibatch(experience.rows(rows)) for rows in order.chunk(self.config.minibatches)]
            updates += latest
            moved = sum(u["approx_kl"] for u in latest) / len(latest)
            if self.config.max_kl_step and moved > self.config.max_kl_step:
                break
        return updates, epochs

    def minibatch(self, mb: Experience) -> dict[str, float]:
        """One gradient step on a minibatch. What does not depend on each other is computed side by side: a critic of
        its own beside the policy, and parts of the batch, as many as there are cores."""
        losses = (self.loss,) if self.shared else (self.policy_part, self.value_part)
        jobs = [(loss, part) for loss in losses for part in self.parts(mb, len(losses))]
        shares = [part.size / mb.size for _, part in jobs]
        self.optimizer.zero_grad()
        figures = add_gradients(lambda job: job[0](job[1]), jobs, shares, self.trained)
        with step_on_one_core(self.trained):
            for group in self.optimizer.param_groups:  # the policy's, and the critic's
                nn.utils.clip_grad_norm_(group["params"], self.config.clip_norm)
            self.optimizer.step()
        self.pulse()
        return weighted_means(figures, shares)

    def loss(self, mb: Experience) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """What the step minimises, a mean over the minibatch's reply tokens, and what is told of it."""
        logprobs, values, _ = self.read(mb)
        pg_loss, told = self.policy_part(mb, logprobs)
        v_loss, told_too = self.value_part(mb, values)
        # models that share no weights need no coefficient between them
        return pg_loss + v_loss * (self.config.value_coefficient if self.shared else 1.0), told | told_too

    def policy_part(
        self, mb: Experience, logprobs: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The policy's part of the loss."""
        logprobs = self.logprobs(mb, self.states(mb))[0] if logprobs is None else logprobs
        pg_loss, clipfrac = policy_loss(logprobs, mb.logprobs, mb.advantages, mb.mask, self.config.clip_range)
        approx_kl = masked_mean(k3(mb.logprobs, logprobs.detach()), mb.mask)
        return pg_loss, {"policy_loss": pg_loss, "clipfrac": clipfrac, "approx_kl": approx_kl}

    def value_part(
        self, mb: Experience, values: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The critic's part of the loss, without coefficient."""
        values = self.values(mb) if values is None else values
        v_loss = value_loss(values, mb.values, mb.returns, mb.mask, self.config.value_clip_range)
        return v_loss, {"value_loss": v_loss}

    def parts(self, mb: Experience, beside: int = 1) -> list[Experience]:
        """The minibatch divided among the cores (`rlhf_lab.cores`), `beside` models at a time: the numbers stay."""
        rows = divided(mb.lengths, beside)
        return [mb] if len(rows) == 1 else [mb.rows(part) for part in rows]

    @property
    def shared(self) -> bool:
        """Whether the critic is a head on the policy's own trunk."""
        return isinstance(self.critic, ValueHead)

    @property
    def trained(self) -> list[nn.Parameter]:
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    @property
    def temperature(self) -> float:
        """At which log-probabilities are computed: that of sampling (detail 3)."""
        return self.config.sampling.temperature


def train_ppo(trainer: PPO, prompts: Sequence[str]) -> Iterator[StepStats]:
    """Runs the trainer to `config.steps`, each step on prompts drawn at random; yields a record a step."""
    while trainer.steps_done < trainer.config.steps:
        yield trainer.step(draw_prompts(prompts, trainer.config.batch_size, trainer.generator(salt=5)))


def draw_prompts(prompts: Sequence[str], n: int, generator: torch.Generator) -> list[str]:
    """n prompts at random, without repetition while they last."""
    if not prompts:
        raise InputError("no prompts to draw from: give at least one")
    rounds = math.ceil(n / len(prompts))
    order = torch.cat([torch.randperm(len(prompts), generator=generator) for _ in range(rounds)])
    return [prompts[i] for i in order[:n].tolist()]


def explained_variance(experience: Experience) -> float:
    """1 − Var(returns − values) / Var(returns): 1 for a perfect critic, 0 for one that knows nothing."""
    returns, values = experience.returns[experience.mask], experience.values[experience.mask]
    variance = returns.var(unbiased=False)
    return (1 - (returns - values).var(unbiased=False) / variance).item() if variance > 0 else 0.0
