"""What each implementation detail of PPO is for: break one, and watch a short PPO fail beside the right one.

    setup = Setup(sft, reward_model, tokenizer, prompts, replace(profile.ppo, steps=12))
    for step in compare(setup, SWITCHES["kl_sign"]):
        print(step.arm, step.stats.reward, step.logged_kl)

`SWITCHES` names the details. A switch breaks the trainer by a change of its config, by another score or critic, or by a
subclass that overrides one of `PPO`'s hooks, so that each bug stands here as the few lines that it is in the wild. Both
arms start from the same checkpoint, prompts and random numbers; the right one is the plain PPO, number for number.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .config import PPOConfig, replaced
from .errors import InputError
from .microscope import watching
from .models import Critic, frozen_copy, new_reward_model, sequence_scores
from .ppo import PPO, Score, gae, per_token_rewards, train_ppo, whiten
from .records import StepStats
from .reward import reward_score
from .sampling import Sample
from .text import Dialogue, pad_right

Arm = Literal["right", "broken"]
ARMS: tuple[Arm, Arm] = ("right", "broken")


@dataclass(frozen=True)
class Setup:
    """The checkpoint that both arms start from, and how they train. Models are copied, never changed.

    `config.steps` is the length of the comparison; the learning rate is annealed over it.
    """

    policy: PreTrainedModel  # the SFT model: the policy's start, and the reference
    reward_model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    prompts: Sequence[str]
    config: PPOConfig = field(default_factory=PPOConfig)
    seed: int = 0


# --- the bugs, a few lines each ---------------------------------------------------------------------------------------


class KLSignFlipped(PPO):
    """Pays for drift instead of charging for it."""

    def rewards(self, logprobs, ref_logprobs, scores, mask):
        return super().rewards(ref_logprobs, logprobs, scores, mask)


class UntemperedLogprobs(PPO):
    """Samples at one temperature, computes log-probabilities at 1."""

    temperature = 1.0


class EndTokenDropped(PPO):
    """Masks by token identity where the padding token is the end token: the real end token drops out of everything."""

    def experience(self, samples, scores):
        return super().experience([_without_end(sample) for sample in samples], scores)


def _without_end(sample: Sample) -> Sample:
    if sample.truncated:
        return sample
    dialogue = sample.dialogue
    return replace(sample, dialogue=Dialogue(dialogue.ids[:-1], dialogue.prompt_length))


class TruncatedUnpunished(PPO):
    """Lets half a sentence keep whatever the reward model makes of it."""

    def judged(self, samples):
        return torch.as_tensor(self.score(samples), dtype=torch.float32, device="cpu").detach()


class ScoreInPadding(PPO):
    """Adds the score in the batch's last column, which is padding for all but the longest reply."""

    def rewards(self, logprobs, ref_logprobs, scores, mask):
        rewards = per_token_rewards(logprobs, ref_logprobs, torch.zeros_like(scores), mask, self.beta)
        rewards[:, -1] += scores
        return rewards


class RewardMeanRemoved(PPO):
    """Whitens rewards with their mean taken off, so that each token's being there is paid or fined."""

    def rewards(self, logprobs, ref_logprobs, scores, mask):
        return whiten(per_token_rewards(logprobs, ref_logprobs, scores, mask, self.beta), mask, shift_mean=True)


class WhitenedBeforeReturns(PPO):
    """Teaches the critic returns made of whitened advantages."""

    def advantages(self, rewards, values, mask):
        white, _ = super().advantages(rewards, values, mask)
        return white, (white + values) * mask


class AdvantageMeanKept(PPO):
    """Scales advantages to standard deviation 1 and adds their mean back."""

    def advantages(self, rewards, values, mask):
        advantages, returns = gae(rewards, values, mask, self.config.gamma, self.config.lam)
        return whiten(advantages, mask, shift_mean=False), returns


class AdvantagesRaw(PPO):
    """Uses advantages in the reward's own unit."""

    def advantages(self, rewards, values, mask):
        return gae(rewards, values, mask, self.config.gamma, self.config.lam)


class DropoutOn(PPO):
    """Leaves dropout on in the update pass: a tenth of each final hidden state is 0 (one layer stands for all)."""

    share = 0.1
    draws = 0

    def parts(self, mb, beside=1):
        return [mb]  # undivided: the states are drawn one after another, whatever the number of cores

    def states(self, replies):
        states = super().states(replies)
        return states * self.kept(states) / (1 - self.share) if torch.is_grad_enabled() else states

    def kept(self, states: torch.Tensor) -> torch.Tensor:
        """Which entries stay: 1 or 0, drawn anew for each minibatch, the same for the same seed."""
        self.draws += 1
        generator = torch.Generator().manual_seed(1_000_003 * self.seed + self.draws)
        return (torch.rand(states.shape, generator=generator) >= self.share).to(states)


def score_at_last_column(model: PreTrainedModel) -> Score:
    """A reward read at the padded batch's last position: for all but the longest dialogue, on padding."""

    @torch.no_grad()
    def score(samples: Sequence[Sample]) -> torch.Tensor:
        device = next(model.parameters()).device
        ids, lengths = pad_right([s.dialogue.ids for s in samples], model.config.pad_token_id)
        return sequence_scores(model, ids.to(device), torch.full_like(lengths, ids.shape[1]).to(device)).cpu()

    return score


def shifted_score(model: PreTrainedModel) -> Score:
    """A reward model that nobody normalised: every score 10 higher."""
    right = reward_score(model)
    return lambda samples: right(samples) + 10.0


def misaligned_score(model: PreTrainedModel) -> Score:
    """Scores in the order of the replies' lengths: batched by length, and never put back."""
    right = reward_score(model)

    def score(samples: Sequence[Sample]) -> torch.Tensor:
        order = sorted(range(len(samples)), key=lambda i: len(samples[i].dialogue.ids))
        return right(samples)[torch.tensor(order)]

    return score


def critic_of_reward_model(setup: Setup) -> Critic:
    """The right one: V begins as the score that a prefix would earn."""
    return Critic(setup.reward_model)


def critic_of_sft_model(setup: Setup) -> Critic:
    """The SFT model's trunk with a random head: V begins as noise."""
    return Critic(new_reward_model(setup.policy, "last", setup.seed))


# --- the switches -----------------------------------------------------------------------------------------------------

Change = Callable[[PPOConfig], PPOConfig]


def same(config: PPOConfig) -> PPOConfig:
    """No change."""
    return config


def changed(**fields: Any) -> Change:
    """A config with these fields instead."""
    return lambda config: replaced(config, **fields)


def sampled(**fields: Any) -> Change:
    """A config that samples with these fields instead."""
    return lambda config: replace(config, sampling=replaced(config.sampling, **fields))


@dataclass(frozen=True)
class Switch:
    """One implementation detail: what it is for, what its failure looks like, and how to break it.

    `right` and `wrong` are the line as it should be and as the bug has it. `watch` names the metrics
    (`plots.ABLATION_METRICS`) that tell, the most telling first. `measured` is what three comparisons gave (see
    `MEASURED`). `both` changes the config of *both* arms, where only a special setting shows the effect in a short run.
    A broken implementation would log its KL with `logged_sign`.
    """

    name: str
    title: str
    family: str
    purpose: str
    failure: str
    right: str
    wrong: str
    source: str
    measured: str
    watch: tuple[str, ...]
    config: Change = same
    both: Change = same
    trainer: type[PPO] = PPO
    score: Callable[[PreTrainedModel], Score] = reward_score
    critic: Callable[[Setup], nn.Module] = critic_of_reward_model
    logged_sign: int = 1

    def right_config(self, config: PPOConfig) -> PPOConfig:
        """The config of the right arm."""
        return self.both(config)

    def broken_config(self, config: PPOConfig) -> PPOConfig:
        """The config of the broken arm."""
        return self.config(self.both(config))


# What `measured` was measured in; "at the end" is the mean of the last five steps.
MEASURED = "default profile, 16 steps of 32 replies, seeds 0–2"

KL, REWARD, CREDIT, STEP, ENDS = "KL", "Reward", "Credit", "Step size", "Ends and masks"
DETAILS = "Huang et al., The N Implementation Details of RLHF with PPO (2023)"
OPENAI = "Ziegler et al., arXiv:1909.08593"

_ALL = (
    Switch(
        "kl_sign", "The sign of the KL penalty", KL,
        "Charges each token for being likelier under the policy than under the SFT model, so that drift costs.",
        "Drift is paid for. The true KL runs away, while the KL that this code logs falls below 0.",
        "reward = −β · (logprob − ref_logprob)", "reward = −β · (ref_logprob − logprob)", OPENAI,
        "KL at the end 9–13 nats a reply (right: 3), logged as −9 to −13. Entropy 0.23–0.31 (right: 0.39–0.45).",
        ("logged_kl", "kl", "reward"), trainer=KLSignFlipped, logged_sign=-1,
    ),
    Switch(
        "no_kl", "The KL penalty (β = 0)", KL,
        "Keeps the policy where the reward model's scores mean something: near the text it was trained on.",
        "KL goes on rising where the penalty would have held it, and reward looks better than ever. Where the reward"
        " model is wrong out there, that is reward hacking.",
        "β = 0.15, steered to a KL of 3 nats", "β = 0", OPENAI,
        "KL at the end 4.1–6.0 nats a reply (right: 2.6–2.9), reward 1.3–1.5 (right: 0.9–1.3).",
        ("kl", "reward", "distinct"), config=changed(kl_coefficient=0.0, kl_target=None),
    ),
    Switch(
        "fixed_kl", "Adaptive β", KL,
        "Steers β so that the KL settles at its target, whatever the scale of the reward.",
        "The KL settles wherever reward and a β that somebody guessed happen to balance. Guessed too high, as here, the"
        " policy hardly moves.",
        "β ← β · (1 + clip(KL / target − 1, ±0.2) · n / horizon), from β = 1", "β = 1", f"{OPENAI}, section 2.2",
        "From β = 1, with the controller's horizon at 50 replies: KL at the end 0.4–0.5 nats (right: 1.4–1.8), reward"
        " 0.4–0.6 (right: 0.9–1.1). From β = 0.15: nothing beyond noise.",
        ("kl", "reward", "entropy"), config=changed(kl_target=None),
        both=changed(kl_coefficient=1.0, kl_horizon=50.0),
    ),
    Switch(
        "top_k", "Sampling from the whole distribution", KL,
        "Log-probabilities must be of the distribution that the replies were drawn from, or the KL is no KL.",
        "Tokens outside the cut hold probability but are never drawn: two estimates of the KL of the same replies stop"
        " agreeing, for neither is one. Where the policy moves mass to such tokens, the logged KL may fall below 0.",
        "sample from softmax(logits / T)", "sample from the 2 likeliest; log-probabilities of all", DETAILS,
        "k1 says 3.6–4.1 nats at the end, k3 2.0–2.2 (right: 2.5–3.2 and 2.6–2.9). Reward is no lower.",
        ("logged_kl", "kl", "reward"), config=sampled(top_k=2),
    ),
    Switch(
        "no_temperature", "Log-probabilities at the sampling temperature", KL,
        "Divides the logits by the temperature before the softmax, for policy and reference alike, as sampling does.",
        "Ratio and KL are of another distribution than the one that wrote the replies: estimates of the KL are biased,"
        " and no longer agree.",
        "logprobs = log_softmax(logits / 0.7)", "logprobs = log_softmax(logits)", f"{DETAILS}, detail 3",
        "k1 says 3.1–3.6 nats at the end, k3 2.1–2.9 (right: 2.5–3.2 and 2.6–2.9). Reward within 0.2.",
        ("logged_kl", "reward", "clipfrac"), trainer=UntemperedLogprobs,
    ),
    Switch(
        "score_in_padding", "Where the score is paid", REWARD,
        "Adds the score at each reply's last real token, from where it flows back to the tokens that earned it.",
        "Paid in the batch's last column it lands on padding for nearly every reply: the reward is flat.",
        "rewards[row, length − 1] += score", "rewards[row, −1] += score", f"{DETAILS}, detail 15",
        "Reward at the end −0.1 to 0.2 (right: 0.9–1.3). Explained variance −1.3 to −2.3 (right: 0.4–0.5).",
        ("reward", "kl", "explained_variance"), trainer=ScoreInPadding,
    ),
    Switch(
        "score_at_last_column", "Where the score is read", REWARD,
        "Reads the reward model's head at the last real token, the only place where it was trained.",
        "Read on padding, the score depends on the longest neighbour in the batch. The policy climbs that number, not"
        " the one that was trained.",
        "score = head(hidden[row, length − 1])", "score = head(hidden[row, −1])", f"{DETAILS}, detail 15",
        "The score that it climbs reaches 0.4–0.7; rightly read it is 0.1–0.4 (right: 0.9–1.3). Replies of 8 tokens"
        " (right: 14–17).",
        ("true_reward", "reward", "reply_length"), score=score_at_last_column,
    ),
    Switch(
        "scores_misaligned", "Each reply gets its own score", REWARD,
        "A batch may be sorted by length for speed; its scores must be put back in order.",
        "Every reply is praised for another's text: the mean score is as it should be, and nothing is learned.",
        "scores[order] = computed", "scores = computed", "a classic of every batched scorer",
        "Reward at the end −0.1 to 0.2 (right: 0.9–1.3). Explained variance −0.2 (right: 0.4–0.5).",
        ("reward", "explained_variance", "kl"), score=misaligned_score,
    ),
    Switch(
        "reward_shifted", "Rewards normalised to mean 0", REWARD,
        "The reward model is shifted so that the SFT model's replies score 0 on average: the critic starts level.",
        "The critic is 10 short everywhere; until it has caught up, the returns are its error, not the reply's merit.",
        "score = (r − mean) / std", "score = r + 10", f"{DETAILS}, detail 13",
        "Explained variance 0.1–0.2 (right: 0.4–0.5), value loss 3.2–3.4 (right: 0.1), reward at the end 0.5–0.8"
        " (right: 0.9–1.3).",
        ("explained_variance", "value_loss", "reward"), score=shifted_score,
    ),
    Switch(
        "reward_mean_removed", "Whitened rewards keep their mean", REWARD,
        "Rewards, where they are whitened, are only scaled: taking their mean off would change what is wanted.",
        "A bonus or a fine for each token's being there: the policy learns a length. Here the mean is above 0, so that"
        " every token is fined.",
        "whiten(rewards, shift_mean=False)", "whiten(rewards, shift_mean=True)", f"{DETAILS}, detail 5",
        "Replies of 12–14 tokens, 1.1–1.3 shorter than the right ones (both arms whiten rewards). Reward within 0.1.",
        ("reply_length", "reward", "explained_variance"), config=same, both=changed(whiten_rewards=True),
        trainer=RewardMeanRemoved,
    ),
    Switch(
        "whiten_before_returns", "Returns before whitening", CREDIT,
        "The critic learns what the rewards to come add up to; whitening is for the policy's step size alone.",
        "The critic is taught numbers of another scale, which move with it: its returns are not the rewards' sum.",
        "returns = advantages + values;  advantages = whiten(advantages)",
        "advantages = whiten(advantages);  returns = advantages + values", f"{DETAILS}, detail 4",
        "Explained variance 0.04–0.15 (right: 0.4–0.5), value loss 0.46 (right: 0.1). Reward within 0.2: the policy"
        " loss is that of the right one.",
        ("explained_variance", "value_loss", "reward"), trainer=WhitenedBeforeReturns,
    ),
    Switch(
        "advantages_not_whitened", "Whitened advantages", CREDIT,
        "Makes the loss independent of the reward's unit, and its pushes up and down balance.",
        "The gradient is as large as the unit of the reward happens to be. Adam, which divides by the gradient's own"
        " size, hides most of that; plain gradient descent, or a value loss on the same trunk, would not.",
        "advantages = whiten(advantages)", "advantages = advantages", f"{DETAILS}, detail 5",
        "Nothing beyond noise: reward within 0.1, approximate KL and clip fraction alike.",
        ("reward", "approx_kl", "clipfrac"), trainer=AdvantagesRaw,
    ),
    Switch(
        "advantage_mean_kept", "Whitening takes the mean off", CREDIT,
        "With mean 0 a batch that is better than foreseen does not push up every token that happened to be written.",
        "While the critic is off by a constant, all tokens are pushed the same way, good ones and bad ones. A critic"
        " that starts level leaves little mean to keep.",
        "whiten(advantages, shift_mean=True)", "whiten(advantages, shift_mean=False)", f"{DETAILS}, detail 5",
        "Nothing beyond noise: reward within 0.2, entropy alike.",
        ("reward", "entropy", "approx_kl"), trainer=AdvantageMeanKept,
    ),
    Switch(
        "critic_from_scratch", "The critic starts from the reward model", CREDIT,
        "V begins as the score that a prefix would earn, so advantages mean something from the first step.",
        "The first steps follow noise: explained variance starts below 0 and stays low for most of a short run.",
        "critic = Critic(reward_model)", "critic = Critic(sft_model), head ~ N(0, σ²) with σ = 1/√(d + 1)",
        f"{DETAILS}, details 11 and 12",
        "Explained variance −0.4 over the first six steps (right: 0.1–0.3), 0.0–0.1 over all (right: 0.4–0.5). Reward"
        " at the end 0.0–0.2 lower.",
        ("explained_variance", "value_loss", "reward"), critic=critic_of_sft_model,
    ),
    Switch(
        "no_value_clip", "The value clip", CREDIT,
        "Keeps V within 0.2 of what it was when the replies were written, so that a few replies cannot pull it far.",
        "The critic follows each batch's returns faster. Whether that hurts is disputed; here it helps the critic.",
        "max((V − R)², (clip(V, V_old ± 0.2) − R)²)", "(V − R)²", f"{DETAILS}, detail 7",
        "Value loss 0.09 (right: 0.11–0.13), explained variance 0.02–0.06 higher. Reward within 0.1.",
        ("explained_variance", "value_loss", "reward"), config=changed(value_clip_range=math.inf),
    ),
    Switch(
        "no_ratio_clip", "The ratio clip (and early stopping)", STEP,
        "Stops paying for a token once its probability has moved by 20%, so that one batch cannot carry it away.",
        "A step goes as far as its epochs let it: approximate KL spikes. A short run may gain by it, until one step"
        " goes too far.",
        "max(−A·ratio, −A·clip(ratio, 1 ± 0.2))", "−A·ratio", "Schulman et al., arXiv:1707.06347",
        "Approximate KL 1.5–3 times the right one's, with peaks of 0.05–0.18 (right: 0.03–0.04). Reward at the end"
        " higher in two of three runs.",
        ("approx_kl", "kl", "reward"), config=changed(clip_range=math.inf, max_kl_step=None),
    ),
    Switch(
        "dropout", "Dropout off", STEP,
        "The new log-probabilities must differ from the old ones because the weights moved, and for no other reason.",
        "Ratios are noise before a single step is taken: the clip throws tokens away for it, and the approximate KL no"
        " longer says how far the step went.",
        "policy.eval()", "policy.train()", f"{DETAILS}, detail 17",
        "Clip fraction 7–8% (right: 3–4%), approximate KL 2–3 times the right one's. Reward 0.05–0.1"
        " lower, which is noise.",
        ("clipfrac", "approx_kl", "reward"), trainer=DropoutOn,
    ),
    Switch(
        "tiny_learning_rate", "A learning rate for this size of model", STEP,
        "A small model needs larger steps than the billions of parameters that published settings are for.",
        "Nothing moves: reward flat, KL 0, clip fraction 0, approximate KL 0.",
        "learning_rate = 3e-4", "learning_rate = 1e-6", "a setting for a model a thousand times larger",
        "Approximate KL below 1e-6 (right: 0.01). Reward stays within 0.1 of where it began.",
        ("reward", "approx_kl", "kl"), config=changed(learning_rate=1e-6),
    ),
    Switch(
        "no_anneal", "Annealing the learning rate", STEP,
        "Takes smaller steps towards the end, where the policy is good and the reward model least sure.",
        "The last steps are as large as the first, and carry the policy further out. In a run as short as this one,"
        " that also earns more.",
        "learning_rate falls linearly to 0", "learning_rate stays", f"{DETAILS}, detail 9",
        "Approximate KL of the last three steps 0.02–0.04 (right: 0.001–0.002), KL 3.3–4.9 (right: 2.6–2.9), reward"
        " 0.1–0.4 higher.",
        ("approx_kl", "kl", "reward"), config=changed(anneal=False),
    ),
    Switch(
        "adam_eps", "Adam's epsilon", STEP,
        "1e-5 damps the steps of weights whose gradients are tiny, above all in the first steps.",
        "Larger first steps of weights whose gradients are tiny; too little to be seen in these curves.",
        "eps = 1e-5", "eps = 1e-8 (PyTorch's default)", f"{DETAILS}, detail 10",
        "Nothing beyond noise: reward within 0.1, approximate KL and clip fraction alike.",
        ("approx_kl", "clipfrac", "reward"), config=changed(adam_eps=1e-8),
    ),
    Switch(
        "no_brakes", "Every brake at once", STEP,
        "KL penalty, ratio clip, early stopping and a modest learning rate each limit how fast the policy moves.",
        "The policy comes apart within a few steps: the same words over and over, without an end, whatever the"
        " question. The cure is an earlier checkpoint.",
        "β = 0.15, ε = 0.2, learning rate 3e-4", "β = 0, no clip, learning rate 3e-3", DETAILS,
        "KL of hundreds of nats within a few steps. In two of three runs, at the end: entropy 0.02, 27% of the replies"
        " different, 81–100% cut off.",
        ("distinct", "entropy", "kl"),
        config=changed(
            kl_coefficient=0.0, kl_target=None, clip_range=math.inf, max_kl_step=None, anneal=False, learning_rate=3e-3
        ),
    ),
    Switch(
        "pad_is_eos", "A padding token of its own", ENDS,
        "The mask goes by length, so the end token keeps its place in the loss, and the policy learns when to stop.",
        "With pad = eos and a mask by identity the end token drops out of the loss: nothing teaches the policy when to"
        " stop. After an SFT that taught it, the damage is small; in SFT itself, replies would never end.",
        "mask = position < length", "mask = token ≠ pad", f"{DETAILS}, detail 16",
        "With at most 12 tokens a reply in both arms: reward at the end 0.1–0.2 (right: 0.2–0.4). It gets short all the"
        " same, 5–8% cut off (right: 4–8%): the tokens before the end are paid.",
        ("reward", "truncated", "reply_length"), both=sampled(max_new_tokens=12), trainer=EndTokenDropped,
    ),
    Switch(
        "no_end_penalty", "A low score for replies that never end", ENDS,
        "Half a sentence has no meaningful score, so it earns a fixed low one, and the policy learns to finish.",
        "Whatever the reward model makes of half a sentence counts, and replies run into the limit.",
        "score = −2 where no end token came", "score = reward_model(half a sentence)", f"{DETAILS}, detail 14",
        "With at most 12 tokens a reply in both arms: 71–91% cut off at the end (right: 4–8%).",
        ("truncated", "reply_length", "reward"), both=sampled(max_new_tokens=12), trainer=TruncatedUnpunished,
    ),
)  # fmt: skip

SWITCHES = {switch.name: switch for switch in _ALL}


def switch_named(name: str) -> Switch:
    """The switch of that name. Raises InputError for a name that does not exist."""
    if name not in SWITCHES:
        raise InputError(f"no switch {name!r}; there are {', '.join(SWITCHES)}")
    return SWITCHES[name]


# --- two arms, side by side -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ArmStep:
    """One PPO step of one arm: its StepStats and what they do not hold."""

    arm: Arm
    stats: StepStats
    logged_kl: float  # nats a reply: the mean of Σ(log π − log π_ref), as this arm's code would log it
    true_reward: float  # mean score of the replies by the right score function
    distinct: float  # share of different replies among this step's

    def metric(self, key: str) -> float:
        """A metric by its name, those of `stats` included."""
        return getattr(self if hasattr(self, key) else self.stats, key)


def trainer_of(setup: Setup, switch: Switch | None = None) -> PPO:
    """A fresh trainer: the plain PPO, or with the switch's detail broken."""
    policy, reference = copy.deepcopy(setup.policy), frozen_copy(setup.policy)
    make = switch.trainer if switch else PPO
    critic = (switch.critic if switch else critic_of_reward_model)(setup)
    score = (switch.score if switch else reward_score)(setup.reward_model)
    config = switch.broken_config(setup.config) if switch else setup.config
    return make(policy, reference, critic, score, setup.tokenizer, config, setup.seed)


def run_arm(setup: Setup, switch: Switch, arm: Arm) -> Iterator[ArmStep]:
    """One arm of a comparison, a record a step."""
    plain = trainer_of(replace(setup, config=switch.right_config(setup.config)))
    trainer = plain if arm == "right" else trainer_of(setup, switch)
    sign = 1 if arm == "right" else switch.logged_sign
    with watching(trainer, after=False) as watch:
        for stats in train_ppo(trainer, setup.prompts):
            drift = (watch.experience.logprobs - watch.experience.ref_logprobs) * watch.experience.mask
            yield ArmStep(
                arm,
                stats,
                logged_kl=sign * drift.sum(1).mean().item(),
                true_reward=stats.reward if arm == "right" else plain.judged(watch.samples).mean().item(),
                distinct=len({sample.text for sample in watch.samples}) / len(watch.samples),
            )


def compare(setup: Setup, switch: Switch, right: Sequence[ArmStep] | None = None) -> Iterator[ArmStep]:
    """Both arms from the same checkpoint and seed, a step of each in turn: right, broken, right, …

    `right` is a right arm that was run before on the same setup and `switch.right_config`: it saves half the time.
    Raises InputError where it is of another length.
    """
    if right and len(right) != setup.config.steps:
        raise InputError(f"this right arm has {len(right)} steps and the comparison {setup.config.steps}; run it again")
    arms = (right or run_arm(setup, switch, "right"), run_arm(setup, switch, "broken"))
    for pair in zip(*arms, strict=True):
        yield from pair


# --- what one sees ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Symptom:
    """A failure by its name, and the numbers that show it in this run."""

    name: str
    words: str


def late(steps: Sequence[ArmStep], key: str) -> float:
    """Mean of a metric over the last third of the steps: one step alone says little."""
    last = steps[-max(1, len(steps) // 3) :]
    return sum(step.metric(key) for step in last) / len(last)


def whole(steps: Sequence[ArmStep], key: str) -> float:
    """Mean of a metric over all steps."""
    return sum(step.metric(key) for step in steps) / len(steps)


def symptoms(steps: Sequence[ArmStep]) -> list[Symptom]:
    """What is wrong with the broken arm beside the right one, in words; empty where this run shows no clear difference.

    `steps` are those of `compare`, in any order. The thresholds are this lab's: larger than what differs between seeds
    at its scale.
    """
    right, broken = ([step for step in steps if step.arm == arm] for arm in ARMS)
    if not right or not broken:
        return []
    last = {key: (late(right, key), late(broken, key)) for key in _LATE}
    over_all = {key: (whole(right, key), whole(broken, key)) for key in _WHOLE}
    gain = [last["true_reward"][i] - arm[0].true_reward for i, arm in enumerate((right, broken))]
    return [Symptom(name, words.replace("-", "−")) for name, holds, words in _signs(last, over_all, gain) if holds]


_LATE = ("true_reward", "logged_kl", "kl", "distinct", "truncated", "reply_length")
_WHOLE = ("explained_variance", "approx_kl", "clipfrac", "value_loss")


def _signs(
    last: dict[str, tuple[float, float]], over_all: dict[str, tuple[float, float]], gain: Sequence[float]
) -> Iterator[tuple[str, bool, str]]:
    """Every symptom: its name, whether it holds, and its sentence. Pairs are (right, broken)."""
    right, broken = last["logged_kl"]
    yield "Negative KL", broken < -0.3, f"the KL that it logs is {broken:+.1f} nats a reply, and a KL is never negative"
    disagree = broken > 1.3 * last["kl"][1] + 0.4 and right < 1.3 * last["kl"][0] + 0.4
    yield "Two KLs", disagree, f"k1 says {broken:.1f} nats a reply and k3 {last['kl'][1]:.1f} of the same replies"
    right, broken = last["kl"]
    yield "KL runs away", broken > max(1.5 * right, right + 1), f"{broken:.1f} nats a reply from SFT, not {right:.1f}"
    flat = gain[0] > 0.3 and gain[1] < 0.35 * gain[0]
    yield "Flat reward", flat, f"the reward rose by {gain[1]:+.2f}, beside it by {gain[0]:+.2f}"
    right, broken = last["true_reward"]
    yield "Less reward", not flat and right - broken > 0.25, f"{broken:+.2f} at the end, not {right:+.2f}"
    right, broken = last["distinct"]
    yield "Collapse", broken < 0.6 * right, f"{broken:.0%} of the replies differ, not {right:.0%}"
    right, broken = last["truncated"]
    yield "Replies do not end", broken > right + 0.1, f"{broken:.0%} ran into the limit, not {right:.0%}"
    right, broken = last["reply_length"]
    yield "Replies grow", broken > 1.25 * right, f"{broken:.0f} tokens, not {right:.0f}"
    yield "Replies shrink", broken < 0.75 * right, f"{broken:.0f} tokens, not {right:.0f}"
    right, broken = over_all["explained_variance"]
    yield "The critic is lost", broken < right - 0.25, f"explained variance {broken:.2f} on average, not {right:.2f}"
    right, broken = over_all["approx_kl"]
    moved = f"a step moves the policy by {_nats(broken)} nats a token, not {_nats(right)}"
    yield "Nothing moves", broken < 0.1 * right, moved
    yield "Steps too large", broken > 2 * right, moved
    right, broken = over_all["clipfrac"]
    clipped = broken > max(1.8 * right, right + 0.03)
    yield "More is clipped", clipped, f"{broken:.0%} of the tokens clipped, not {right:.0%}"


def _nats(value: float) -> str:
    return f"{value:.2g}" if value >= 1e-4 else "less than 0.0001"
