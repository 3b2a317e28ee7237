"""One frozen dataclass of options per stage, and the profiles that bundle them. No torch.

A config validates itself once, when it is made, and says which field is wrong and what would be right.
`profile("quick")` is for tests, "default" for a class on a laptop, "thorough" for an afternoon.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, get_args

from .errors import InputError


def _check(config: Any, **rules: tuple[bool, str]) -> None:
    """Raises InputError for the first field whose rule does not hold."""
    for name, (holds, right) in rules.items():
        if not holds:
            raise InputError(f"{type(config).__name__}.{name} is {getattr(config, name)!r}; it must be {right}")


def _positive(config: Any, *names: str) -> None:
    for name in names:
        _check(config, **{name: (getattr(config, name) > 0, "greater than 0")})


@dataclass(frozen=True)
class ModelConfig:
    """The shape of the small language model: a Llama architecture, trained from scratch."""

    vocab_size: int = 1024
    hidden_size: int = 128
    layers: int = 3
    heads: int = 4
    context: int = 192  # positions

    def __post_init__(self) -> None:
        _positive(self, "layers", "heads", "context")
        _check(
            self,
            vocab_size=(self.vocab_size >= 300, "at least 300 (256 bytes, the special tokens and some merges)"),
            hidden_size=(self.hidden_size % (2 * self.heads) == 0, "a multiple of twice the number of heads"),
        )


@dataclass(frozen=True)
class LanguageConfig:
    """Next-token training, for pretraining and for SFT. AdamW, linear warm-up, then constant, then linear decay."""

    steps: int = 900
    batch_size: int = 16  # sequences a step
    block_size: int = 64  # tokens a sequence (pretraining packs documents into blocks of this size)
    learning_rate: float = 6e-3
    warmup: float = 0.04  # share of the steps
    decay: float = 0.6  # share of the steps
    weight_decay: float = 0.05
    clip_norm: float = 1.0
    bf16: bool = False  # matrix products in bfloat16: quicker where the device has them (AVX512-BF16, AMX, a GPU)

    def __post_init__(self) -> None:
        _positive(self, "steps", "batch_size", "block_size", "learning_rate", "clip_norm")
        for name in ("warmup", "decay"):
            _check(self, **{name: (0 <= getattr(self, name) <= 1, "a share from 0 to 1")})


@dataclass(frozen=True)
class SamplingConfig:
    """How replies are sampled."""

    temperature: float = 0.7
    max_new_tokens: int = 56
    top_k: int | None = None
    batch_size: int = 256

    def __post_init__(self) -> None:
        _positive(self, "max_new_tokens", "batch_size")
        _check(
            self,
            temperature=(self.temperature >= 0, "0 (always the likeliest token) or more"),
            top_k=(self.top_k is None or self.top_k > 0, "None or greater than 0"),
        )


@dataclass(frozen=True)
class PreferenceConfig:
    """Collecting rankings from the simulated annotator."""

    questions: int = 1_200
    candidates: int = 4
    noise: float = 0.35  # standard deviation of the annotator's error, in gold-score units
    held_out_questions: int = 192

    def __post_init__(self) -> None:
        _positive(self, "questions", "held_out_questions")
        _check(
            self,
            candidates=(self.candidates >= 2, "at least 2"),
            noise=(self.noise >= 0, "0 or more"),
        )


Pooling = Literal["mean", "last"]


@dataclass(frozen=True)
class RewardConfig:
    """Training the reward model on comparisons."""

    epochs: int = 2
    questions_per_batch: int = 8  # all pairs of a question stand in one batch
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    pooling: Pooling = "mean"
    loss: Literal["pairs", "plackett-luce"] = "pairs"

    def __post_init__(self) -> None:
        _positive(self, "epochs", "questions_per_batch", "learning_rate", "clip_norm")
        _check(
            self,
            pooling=(self.pooling in ("mean", "last"), "'mean' or 'last'"),
            loss=(self.loss in ("pairs", "plackett-luce"), "'pairs' or 'plackett-luce'"),
        )


@dataclass(frozen=True)
class PPOConfig:
    """PPO for RLHF. Defaults and sources: FACTS of "The N Implementation Details of RLHF with PPO"."""

    steps: int = 20
    batch_size: int = 64  # replies a step
    minibatches: int = 4
    epochs: int = 3
    learning_rate: float = 3e-4
    critic_learning_rate: float = 1e-3
    anneal: bool = True  # the learning rate falls linearly to 0 over `steps`
    adam_eps: float = 1e-5
    clip_norm: float = 1.0
    clip_range: float = 0.2  # ε of the policy ratio
    value_clip_range: float = 0.2
    value_coefficient: float = 0.1  # of the value loss, where policy and critic share a trunk
    gamma: float = 1.0
    lam: float = 0.95
    kl_coefficient: float = 0.15  # β at the start
    kl_target: float | None = 3.0  # nats a reply; None keeps β fixed
    kl_horizon: float = 2_000.0  # episodes
    max_kl_step: float | None = 0.05  # epochs stop early past this approximate KL (nats a token) to the step's start
    truncated_score: float = -2.0  # what a reply without an end token earns, in place of its score
    whiten_rewards: bool = False
    sampling: SamplingConfig = field(default_factory=SamplingConfig)

    def __post_init__(self) -> None:
        _positive(self, "steps", "batch_size", "minibatches", "epochs", "learning_rate", "critic_learning_rate")
        _positive(self, "adam_eps", "clip_norm", "clip_range", "value_clip_range", "kl_horizon", "value_coefficient")
        _check(
            self,
            minibatches=(self.minibatches <= self.batch_size, "at most batch_size"),
            sampling=(self.sampling.temperature > 0, "sampling at a temperature above 0: PPO learns from chance"),
            truncated_score=(math.isfinite(self.truncated_score), "a finite number"),
            gamma=(0 < self.gamma <= 1, "in (0, 1]"),
            lam=(0 <= self.lam <= 1, "in [0, 1]"),
            kl_coefficient=(self.kl_coefficient >= 0, "0 or more"),
            kl_target=(self.kl_target is None or self.kl_target > 0, "None or greater than 0"),
            max_kl_step=(self.max_kl_step is None or self.max_kl_step > 0, "None or greater than 0"),
        )

    @property
    def prompts_per_step(self) -> int:
        """How many prompts make one step: a reply each."""
        return self.batch_size


@dataclass(frozen=True)
class GroupConfig:
    """What the methods that write a group of replies to each prompt have in common. Fields named as in `PPOConfig`."""

    steps: int = 20
    batch_size: int = 64  # replies a step: batch_size / group_size prompts
    group_size: int = 4  # replies to each prompt
    minibatches: int = 1  # of whole groups; with one, and one epoch, the loss is REINFORCE's and nothing is clipped
    epochs: int = 1
    learning_rate: float = 5e-4
    anneal: bool = True  # the learning rate falls linearly to 0 over `steps`
    adam_eps: float = 1e-5
    clip_norm: float = 1.0
    kl_coefficient: float = 0.1  # β at the start
    kl_target: float | None = None  # nats a reply; None keeps β fixed
    kl_horizon: float = 2_000.0  # episodes
    max_kl_step: float | None = 0.05  # epochs stop early past this approximate KL (nats a token) to the step's start
    truncated_score: float = -2.0  # what a reply without an end token earns, in place of its score
    sampling: SamplingConfig = field(default_factory=SamplingConfig)

    def __post_init__(self) -> None:
        _positive(self, "steps", "batch_size", "minibatches", "epochs", "learning_rate")
        _positive(self, "adam_eps", "clip_norm", "kl_horizon")
        _check(
            self,
            group_size=(self.group_size >= 2, "at least 2: a reply is judged against the others to its prompt"),
            batch_size=(self.batch_size % self.group_size == 0, f"a multiple of group_size ({self.group_size})"),
            minibatches=(self.minibatches <= self.prompts_per_step, "at most batch_size / group_size"),
            sampling=(self.sampling.temperature > 0, "sampling at a temperature above 0: replies must differ"),
            truncated_score=(math.isfinite(self.truncated_score), "a finite number"),
            kl_coefficient=(self.kl_coefficient >= 0, "0 or more"),
            kl_target=(self.kl_target is None or self.kl_target > 0, "None or greater than 0"),
            max_kl_step=(self.max_kl_step is None or self.max_kl_step > 0, "None or greater than 0"),
        )

    @property
    def prompts_per_step(self) -> int:
        """How many prompts make one step: `group_size` replies to each make `batch_size`."""
        return self.batch_size // self.group_size


@dataclass(frozen=True)
class RLOOConfig(GroupConfig):
    """REINFORCE with a leave-one-out baseline (Ahmadian et al., arXiv:2402.14740)."""

    clip_range: float = 0.2  # ε of the ratio of whole replies

    def __post_init__(self) -> None:
        super().__post_init__()
        _positive(self, "clip_range")


LengthRule = Literal["grpo", "dr_grpo", "dapo"]  # by what a reply's summed loss is divided: rlhf_lab.group.grpo_loss


@dataclass(frozen=True)
class GRPOConfig(GroupConfig):
    """GRPO (Shao et al., arXiv:2402.03300) and what was published on it since."""

    clip_range: float = 0.2  # ε of the token ratio
    clip_range_high: float | None = None  # DAPO's higher upper limit ("clip-higher"); None: the same both ways
    length: LengthRule = "grpo"
    scale: bool = True  # advantages are divided by the group's standard deviation; Dr. GRPO does not
    correct_kl: bool = True  # k3 times the token's ratio, so that its gradient is that of KL(π‖π_ref)

    def __post_init__(self) -> None:
        super().__post_init__()
        _positive(self, "clip_range")
        _check(
            self,
            clip_range_high=(self.clip_range_high is None or self.clip_range_high > 0, "None or greater than 0"),
            length=(self.length in get_args(LengthRule), f"one of {', '.join(get_args(LengthRule))}"),
        )


@dataclass(frozen=True)
class RaftConfig(GroupConfig):
    """Rejection sampling: SFT on the best reply of each group (RAFT: Dong et al., arXiv:2304.06767)."""

    learning_rate: float = 3e-4
    kl_coefficient: float = 0.0


@dataclass(frozen=True)
class OnlineDPOConfig(GroupConfig):
    """DPO on the policy's own pairs, ordered as they come (Guo et al., arXiv:2402.04792): best and worst of a group."""

    learning_rate: float = 4e-4
    kl_coefficient: float = 0.3  # DPO's β; it stays as it is
    label_smoothing: float = 0.0
    answered: int = 8  # answered questions beside each minibatch, where the trainer is given any
    answered_weight: float = 1.0  # of their loss

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(
            self,
            kl_coefficient=(self.kl_coefficient > 0, "greater than 0: it is DPO's β"),
            kl_target=(self.kl_target is None, "None: DPO's β is not steered"),
            label_smoothing=(0 <= self.label_smoothing < 0.5, "from 0 to below 0.5"),
            answered=(self.answered >= 1, "at least 1"),
            answered_weight=(self.answered_weight >= 0, "0 or more"),
        )


@dataclass(frozen=True)
class BestOfNConfig:
    """No training: n replies to each prompt, of which the best is given (Stiennon et al., arXiv:2009.01325)."""

    n: int = 8
    sampling: SamplingConfig = field(default_factory=SamplingConfig)

    def __post_init__(self) -> None:
        _check(self, n=(self.n >= 1, "at least 1"))


DirectLoss = Literal["dpo", "robust", "ipo", "kto"]


@dataclass(frozen=True)
class DirectConfig:
    """Training on labels without a reward model: DPO and its kin (rlhf_lab.direct)."""

    loss: DirectLoss = "dpo"
    steps: int = 150
    questions_per_batch: int = 8  # all pairs of a question stand in one batch
    votes_per_batch: int = 32  # KTO's
    beta: float = 0.1  # β of the KL that the loss stands for; IPO's τ
    label_smoothing: float = 0.0  # share of labels taken to be wrong: cDPO's ε, robust DPO's ε
    ipo_mean: bool = True  # IPO's log-ratios are means over a reply's tokens, else sums
    desirable_weight: float = 1.0  # KTO's λ_D
    undesirable_weight: float = 1.0  # KTO's λ_U
    kto_baseline: Literal["mismatched", "zero"] = "mismatched"
    temperature: float = 1.0  # logits are divided by it; at the sampling temperature, π is the policy as it is sampled
    learning_rate: float = 6e-4
    weight_decay: float = 0.0
    clip_norm: float = 1.0

    def __post_init__(self) -> None:
        _positive(self, "steps", "questions_per_batch", "votes_per_batch", "beta", "temperature", "learning_rate")
        _positive(self, "clip_norm", "desirable_weight", "undesirable_weight")
        _check(
            self,
            loss=(self.loss in get_args(DirectLoss), f"one of {', '.join(get_args(DirectLoss))}"),
            label_smoothing=(0 <= self.label_smoothing < 0.5, "from 0 to below 0.5"),
            kto_baseline=(self.kto_baseline in ("mismatched", "zero"), "'mismatched' or 'zero'"),
            weight_decay=(self.weight_decay >= 0, "0 or more"),
        )


Strategy = Literal["random", "disagreement", "information", "coverage"]  # which question next: rlhf_lab.selection


OnlineMethod = Literal["ppo", "rloo", "grpo", "online-dpo"]  # what may move the policy while a person ranks


@dataclass(frozen=True)
class LiveConfig:
    """The live loop: one person's rankings, a reward model that learns each at once, PPO in the background.

    Another `method` than PPO takes from `ppo` what the two share (batch, KL target, sampling …), or `group` whole.
    """

    candidates: int = 4
    buffer: int = 2  # questions written ahead; few, so that they come from a recent policy
    question_temperature: float = 1.0  # hotter than training: replies worth comparing differ
    sft_candidates: int = 1  # of each question's replies, how many the SFT model writes, for contrast
    ask: Strategy = "information"  # which of the questions written at a time is asked (rlhf_lab.selection)
    ask_among: int = 4  # how many are written at a time
    window: int = 10  # rankings over which the running agreement is averaged
    effects: int = 3  # earlier questions whose change of scores is shown beside the latest
    win_rate_every: int = 5  # PPO steps
    win_rate_prompts: int = 48
    population: int = 16  # simulated people whose tastes make the prior
    prior_questions: int = 300  # that each of them ranks
    correction_steps: int = 10  # SFT steps of the policy after a correction
    correction_batch: int = 8  # corrections in each, the newest always among them
    correction_replay: int = 24  # replies of the SFT model beside them, lest the policy forget what it knows
    correction_learning_rate: float = 6e-4
    snapshots: int = 200  # states of policy and critic kept on disk for going back; older ones are thinned out
    chat_memory: int | None = 0  # earlier turns of a conversation that the model is given; None: all
    ppo: PPOConfig = field(
        default_factory=lambda: PPOConfig(batch_size=32, minibatches=2, anneal=False, kl_target=4.0, kl_horizon=500.0)
    )
    method: OnlineMethod = "ppo"
    group: GroupConfig | None = None  # a method's own options, of its own kind

    def __post_init__(self) -> None:
        _positive(self, "buffer", "window", "win_rate_every", "win_rate_prompts", "prior_questions")
        _positive(self, "correction_batch", "correction_replay", "correction_learning_rate")
        _check(
            self,
            correction_steps=(self.correction_steps >= 0, "0 (corrections teach the reward model only) or more"),
            snapshots=(self.snapshots >= 4, "at least 4"),
            chat_memory=(self.chat_memory is None or self.chat_memory >= 0, "None (all turns) or 0 or more"),
            candidates=(self.candidates >= 2, "at least 2"),
            sft_candidates=(0 <= self.sft_candidates <= self.candidates, "from 0 to candidates"),
            question_temperature=(self.question_temperature > 0, "greater than 0"),
            ask=(self.ask in get_args(Strategy), f"one of {', '.join(get_args(Strategy))}"),
            ask_among=(self.ask_among >= 1, "at least 1"),
            effects=(self.effects >= 0, "0 or more"),
            population=(self.population >= 2, "at least 2: a spread of tastes needs two people"),
            method=(self.method in get_args(OnlineMethod), f"one of {', '.join(get_args(OnlineMethod))}"),
            group=(self.group is None or self.method != "ppo", "None: PPO's options are in `ppo`"),
        )


@dataclass(frozen=True)
class Profile:
    """All stages of a run."""

    name: str
    documents: int = 24_000  # of pretraining text
    model: ModelConfig = field(default_factory=ModelConfig)
    pretraining: LanguageConfig = field(default_factory=LanguageConfig)
    demonstrations: int = 1_600
    sft: LanguageConfig = field(default_factory=lambda: LanguageConfig(steps=100, batch_size=32, learning_rate=2e-3))
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    preferences: PreferenceConfig = field(default_factory=PreferenceConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    ppo: PPOConfig = field(default_factory=PPOConfig)
    live: LiveConfig = field(default_factory=LiveConfig)


def _quick() -> Profile:
    """Every stage really runs, on a model too small to know anything: seconds, for tests."""
    sampling = SamplingConfig(max_new_tokens=20)
    return Profile(
        "quick",
        documents=600,
        model=ModelConfig(vocab_size=512, hidden_size=32, layers=2, heads=2),
        pretraining=LanguageConfig(steps=60, batch_size=8, block_size=48),
        demonstrations=128,
        sft=LanguageConfig(steps=20, batch_size=16, learning_rate=4e-3),
        sampling=sampling,
        preferences=PreferenceConfig(questions=24, held_out_questions=16),
        reward=RewardConfig(epochs=1, questions_per_batch=4),
        ppo=PPOConfig(steps=4, batch_size=16, minibatches=2, epochs=2, sampling=sampling),
        live=LiveConfig(
            win_rate_every=2,
            win_rate_prompts=16,
            population=6,
            prior_questions=24,
            ppo=PPOConfig(batch_size=16, minibatches=2, epochs=2, anneal=False, sampling=sampling),
        ),
    )


def _thorough() -> Profile:
    base = Profile("thorough")
    return replace(
        base,
        documents=60_000,
        model=ModelConfig(hidden_size=192, layers=4, heads=6),
        pretraining=replace(base.pretraining, steps=2_500, learning_rate=4e-3),
        demonstrations=3_200,
        sft=replace(base.sft, steps=200),
        preferences=PreferenceConfig(questions=2_000),
        ppo=replace(base.ppo, steps=40, batch_size=128),
    )


PROFILES = {"quick": _quick, "default": lambda: Profile("default"), "thorough": _thorough}


def profile(name: str | None = None) -> Profile:
    """The profile of that name; without one, that of the environment variable RLHF_LAB_PROFILE, else "default".

    Raises InputError for a name that does not exist.
    """
    source = "profile" if name else "RLHF_LAB_PROFILE"
    name = name or os.environ.get("RLHF_LAB_PROFILE") or "default"
    if name not in PROFILES:
        raise InputError(f"{source} {name!r} does not exist; use one of {', '.join(PROFILES)}")
    return PROFILES[name]()


def replaced(config: Any, **changes: Any) -> Any:
    """`dataclasses.replace` with a clear error for a field that does not exist."""
    known = [f.name for f in fields(config)]
    for name in changes:
        if name not in known:
            raise InputError(f"{type(config).__name__} has no field {name!r}; it has {', '.join(known)}")
    return replace(config, **changes)
