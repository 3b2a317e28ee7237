"""DPO and its kin: learning from labels without a reward model, and online DPO, which makes its own pairs.

The policy itself is the reward model: β·h with h = log π(reply) − log π_ref(reply) is its *implicit reward*, and DPO
fits it to a person's pairs as reward training fits scores. The losses take h, not log-probabilities: `chosen` and
`rejected` (N,) are the h of each pair's better and worse reply, in nats. The same records train all: `RankedReplies`
(`reward.encode_rankings`) and, for KTO, `JudgedReply` (`encode_votes`, or `votes_of` rankings).

Sources: Rafailov et al., arXiv:2305.18290 (DPO); Mitchell, "A note on DPO with noisy preferences" (2023: cDPO);
Chowdhury et al., arXiv:2403.00409 (robust DPO); Azar et al., arXiv:2310.12036 (IPO); Ethayarajh et al.,
arXiv:2402.01306 (KTO); Amini et al., arXiv:2402.10571 (margins); Guo et al., arXiv:2402.04792 (online DPO).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .config import DirectConfig, OnlineDPOConfig
from .cores import step_on_one_core
from .errors import InputError
from .group import GroupExperience, GroupTrainer
from .language import make_optimizer, step_generator
from .ppo import Score
from .records import Answer, DirectPoint, Question, Vote
from .replies import reply_batch, reply_logprobs
from .reward import RankedReplies
from .text import Dialogue, encode_dialogues

T = TypeVar("T")

# --- losses: h in nats (N,) → loss (N,) -------------------------------------------------------------------------------


def dpo_loss(
    chosen: torch.Tensor,
    rejected: torch.Tensor,
    beta: float,
    label_smoothing: float = 0.0,
    margin: torch.Tensor | float = 0.0,
) -> torch.Tensor:
    """−(1 − ε)·log σ(z) − ε·log σ(−z) with z = β·(h_chosen − h_rejected) − margin: (N,).

    ε = 0 is DPO's equation 7; ε > 0 is cDPO, which takes each label to be wrong with that probability, and so stops
    pulling where σ(z) = 1 − ε. `margin` is how far apart, in implicit reward, a person said the two are (ODPO).
    """
    z = beta * (chosen - rejected) - margin
    return -(1 - label_smoothing) * F.logsigmoid(z) - label_smoothing * F.logsigmoid(-z)


def robust_dpo_loss(
    chosen: torch.Tensor, rejected: torch.Tensor, beta: float, label_smoothing: float = 0.1
) -> torch.Tensor:
    """(−(1 − ε)·log σ(z) + ε·log σ(−z)) / (1 − 2ε): (N,). Robust DPO's equation 13.

    Its mean over labels flipped with probability ε is DPO's loss on the right ones; cDPO's is not.
    """
    z = beta * (chosen - rejected)
    clean, flipped = -F.logsigmoid(z), -F.logsigmoid(-z)
    return ((1 - label_smoothing) * clean - label_smoothing * flipped) / (1 - 2 * label_smoothing)


def ipo_loss(chosen: torch.Tensor, rejected: torch.Tensor, tau: float) -> torch.Tensor:
    """(h_chosen − h_rejected − 1/(2τ))²: (N,). IPO's equation 17: a distance to reach, where DPO always wants more.

    The paper's h are sums over a reply's tokens; its authors' experiments, and TRL, use means. Give either.
    """
    return (chosen - rejected - 1 / (2 * tau)) ** 2


def kto_loss(
    h: torch.Tensor,
    desirable: torch.Tensor,
    baseline: torch.Tensor | float,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> torch.Tensor:
    """λ·(1 − σ(±β·(h − z₀))): (N,), + where `desirable` (N, bool), − elsewhere. KTO's equation 8.

    `baseline` z₀ is the policy's KL to the reference, below which a gain is felt as a loss; see `kto_baseline`.
    """
    up = desirable_weight * (1 - torch.sigmoid(beta * (h - baseline)))
    down = undesirable_weight * (1 - torch.sigmoid(beta * (baseline - h)))
    return torch.where(desirable, up, down)


def kto_baseline(mismatched: torch.Tensor) -> torch.Tensor:
    """max(0, mean h) of replies read behind *other* prompts, without gradient: KTO's cheap estimate of the KL."""
    return mismatched.detach().mean().clamp(min=0)


# --- data -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class JudgedReply:
    """One reply with a thumb, up or down, and how much that counts."""

    dialogue: Dialogue
    up: bool
    weight: float = 1.0


def encode_votes(
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    answers: Sequence[Answer],
    max_tokens: int | None = None,
) -> list[JudgedReply]:
    """The votes among a person's answers, as tokens; undecided and skipped ones, and other answers, are left out.

    Raises InputError for a vote whose question is not among `questions`, or that does not answer it.
    """
    by_id = {question.id: question for question in questions}
    votes = [answer for answer in answers if isinstance(answer, Vote) and answer.given]
    for vote in votes:
        if vote.question_id not in by_id:
            raise InputError(f"vote {vote.id!r} is about question {vote.question_id!r}, which is not given")
        vote.check(by_id[vote.question_id])
    asked = [by_id[vote.question_id] for vote in votes]
    texts = [(q.prompt, q.texts[v.candidate]) for q, v in zip(asked, votes, strict=True)]
    dialogues = encode_dialogues(tokenizer, texts, max_tokens)
    return [JudgedReply(dialogue, bool(vote.up)) for dialogue, vote in zip(dialogues, votes, strict=True)]


def votes_of(data: Iterable[RankedReplies]) -> list[JudgedReply]:
    """Rankings as votes: a reply that won more pairs than it lost is thumbed up, one that lost more, down.

    Its weight is |won − lost| as a share of the question's pairs a reply, k − 1. With KTO's loss that is exactly every
    pair taken apart into a thumb up and a thumb down, for 1 − σ(z) and 1 − σ(−z) add up to a constant.
    """
    votes = []
    for item in data:
        net = [0.0] * len(item.dialogues)
        for (better, worse, tie), weight in zip(item.pairs, item.weights or [1.0] * len(item.pairs), strict=True):
            if not tie:
                net[better] += weight
                net[worse] -= weight
        most = max(1, len(item.dialogues) - 1)
        votes += [JudgedReply(d, n > 0, abs(n) / most) for d, n in zip(item.dialogues, net, strict=True) if n]
    return votes


def mismatched(votes: Sequence[JudgedReply], max_tokens: int | None = None) -> list[Dialogue]:
    """Each reply behind the prompt of the next vote that has another one (its own, where all share one prompt).

    KTO's baseline is read from these. A prompt too long for `max_tokens` loses its beginning.
    """
    prompts = [vote.dialogue.ids[: vote.dialogue.prompt_length] for vote in votes]
    n, others = len(votes), []
    for i, vote in enumerate(votes):
        other = next((prompts[j % n] for j in range(i + 1, i + n) if prompts[j % n] != prompts[i]), prompts[i])
        room = len(other) if max_tokens is None else max(1, max_tokens - vote.dialogue.reply_length)
        other = other[-room:]
        others.append(Dialogue((*other, *vote.dialogue.ids[vote.dialogue.prompt_length :]), len(other)))
    return others


class Reference:
    """log π_ref of whole replies, read once each: summed over a reply's tokens, in nats."""

    def __init__(self, model: PreTrainedModel, temperature: float = 1.0) -> None:
        self.model, self.temperature = model.eval(), temperature
        self._known: dict[Dialogue, float] = {}

    @torch.no_grad()
    def __call__(self, dialogues: Sequence[Dialogue], batch_size: int = 128) -> torch.Tensor:
        """log π_ref of each dialogue's reply: (N,)."""
        new = sorted({d for d in dialogues if d not in self._known}, key=lambda d: (len(d.ids), d.ids))
        for at in range(0, len(new), batch_size):
            part = new[at : at + batch_size]
            self._known |= zip(part, summed_logprobs(self.model, part, self.temperature).tolist(), strict=True)
        return torch.tensor([self._known[d] for d in dialogues], device=next(self.model.parameters()).device)


def summed_logprobs(model: PreTrainedModel, dialogues: Sequence[Dialogue], temperature: float = 1.0) -> torch.Tensor:
    """log π of each dialogue's reply, its end token included: (N,), in nats, in one batch, with gradient."""
    device = next(model.parameters()).device
    replies = reply_batch(dialogues, model.config.pad_token_id, device)
    return reply_logprobs(model, replies, temperature, entropy=False)[0].sum(1)


# --- training ---------------------------------------------------------------------------------------------------------


def train_direct(
    policy: PreTrainedModel,
    reference: PreTrainedModel | Reference,
    data: Sequence[RankedReplies] | Sequence[JudgedReply],
    config: DirectConfig | None = None,
    seed: int = 0,
    optimizer: torch.optim.Optimizer | None = None,
    start: int = 0,
) -> Iterator[DirectPoint]:
    """Trains the policy on labels, yielding a point a step. Learning rate: warm-up over a twentieth, then linear to 0.

    Batches are drawn as in reward training: whole questions, reshuffled every time all have been seen. With
    `config.loss` "kto", rankings are read as votes (`votes_of`). Dropout stays off. `reference` is read once a reply;
    give a `Reference` to share what it has read among several trainings.
    """
    config = config or DirectConfig()
    if not data:
        raise InputError("no labels to learn from: answer at least one question")
    if not isinstance(reference, Reference):
        reference = Reference(reference, config.temperature)
    if reference.temperature != config.temperature:
        raise InputError(
            f"the reference was read at temperature {reference.temperature}; the config says {config.temperature}"
        )
    if config.loss == "kto":
        votes = [item for item in data if isinstance(item, JudgedReply)] or votes_of(data)
        if not votes:
            raise InputError("no ranking among these prefers one reply to another: there is nothing to learn")
        items = list(zip(votes, mismatched(votes, policy.config.max_position_embeddings), strict=True))
        read, size = partial(read_votes, policy, reference, config=config), config.votes_per_batch
        return _train(policy, read, items, size, config, seed, optimizer, start)
    if not isinstance(data[0], RankedReplies):
        raise InputError(f'loss "{config.loss}" learns from pairs and was given votes; use the loss "kto"')
    read, size = partial(read_pairs, policy, reference, config=config), config.questions_per_batch
    return _train(policy, read, data, size, config, seed, optimizer, start)


class Read(NamedTuple):
    """What a policy makes of one batch of labels: the loss, and h in nats without gradient."""

    loss: torch.Tensor
    chosen: torch.Tensor  # (P,) h of each strict pair's better reply; KTO: of the replies thumbed up
    rejected: torch.Tensor  # (P,) h of its worse reply; KTO: of those thumbed down
    right: torch.Tensor  # (N, bool) whether h says what the label says

    def point(self, step: int, labels: int, learning_rate: float, seconds: float) -> DirectPoint:
        chosen, rejected, right = (x.float().mean().item() for x in (self.chosen, self.rejected, self.right))
        return DirectPoint(
            step, labels, self.loss.item(), right, chosen - rejected, chosen, rejected, learning_rate, seconds
        )


def _train(
    policy: PreTrainedModel,
    read: Callable[[Sequence[T]], Read],
    items: Sequence[T],
    size: int,
    config: DirectConfig,
    seed: int,
    optimizer: torch.optim.Optimizer | None,
    start: int,
) -> Iterator[DirectPoint]:
    """The loop that pairs and votes share: `read(batch)` of `size` items at a time."""
    policy.eval().requires_grad_(True)
    optimizer = optimizer or make_optimizer(policy, config.learning_rate, config.weight_decay)
    per_epoch = -(-len(items) // size)

    def batch_at(step: int) -> list[T]:
        epoch, place = divmod(step, per_epoch)
        order = torch.randperm(len(items), generator=step_generator(seed, epoch, salt=14)).tolist()
        return [items[i] for i in order[place * size :][:size]]

    labels = sum(len(batch_at(step)) for step in range(start))
    for step in range(start, config.steps):
        began, batch = time.perf_counter(), batch_at(step)
        rate = config.learning_rate * min(1.0, (step + 1) / (config.steps / 20)) * (1 - step / config.steps)
        for group in optimizer.param_groups:
            group["lr"] = rate
        seen = read(batch)
        optimizer.zero_grad()
        seen.loss.backward()
        with step_on_one_core(policy.parameters()):
            nn.utils.clip_grad_norm_(policy.parameters(), config.clip_norm)
            optimizer.step()
        labels += len(batch)
        yield seen.point(step + 1, labels, rate, time.perf_counter() - began)


def read_pairs(
    policy: PreTrainedModel, reference: Reference, batch: Sequence[RankedReplies], config: DirectConfig
) -> Read:
    """The loss of `config.loss` over a batch of rankings. Each reply is read once, however many pairs it stands in.

    A question's pairs are averaged first, by their weights, as `reward.reward_loss` does. A tie counts as half a
    preference either way. A margin is kept by the loss "dpo" only; the others know none.
    """
    dialogues = [d for item in batch for d in item.dialogues]
    h = summed_logprobs(policy, dialogues, config.temperature) - reference(dialogues)
    if config.loss == "ipo" and config.ipo_mean:
        scale = h.new_tensor([d.reply_length for d in dialogues])
    else:
        scale = torch.ones_like(h)
    losses, sizes, better, worse = [], [], [], []
    for item, own, length in zip(batch, *(x.split([len(i.dialogues) for i in batch]) for x in (h, scale)), strict=True):
        first, second, tie = (torch.tensor(column, device=h.device) for column in zip(*item.pairs, strict=True))
        scaled, tie = own / length, tie.bool()
        weights = own.new_tensor(item.weights or [1.0] * len(item.pairs))
        margin = torch.where(tie, 0.0, torch.full_like(weights, item.margin))
        one, other = scaled[first], scaled[second]
        loss = _pair_loss(one, other, margin, config)
        losses.append((weights * torch.where(tie, (loss + _pair_loss(other, one, margin, config)) / 2, loss)).mean())
        sizes.append(weights.mean())
        better.append(own[first][~tie].detach())
        worse.append(own[second][~tie].detach())
    mean = torch.stack(losses).sum() / torch.stack(sizes).sum().clamp(min=1e-12)  # a batch of weight 0 teaches nothing
    chosen, rejected = torch.cat(better), torch.cat(worse)
    return Read(mean, chosen, rejected, chosen > rejected)


def _pair_loss(
    chosen: torch.Tensor, rejected: torch.Tensor, margin: torch.Tensor, config: DirectConfig
) -> torch.Tensor:
    if config.loss == "ipo":
        return ipo_loss(chosen, rejected, config.beta)
    if config.loss == "robust":
        return robust_dpo_loss(chosen, rejected, config.beta, config.label_smoothing)
    return dpo_loss(chosen, rejected, config.beta, config.label_smoothing, margin)


def read_votes(
    policy: PreTrainedModel,
    reference: Reference,
    batch: Sequence[tuple[JudgedReply, Dialogue]],
    config: DirectConfig,
) -> Read:
    """KTO's loss over a batch of votes, each with its reply behind another prompt (for the baseline), by weight."""
    votes, others = [vote for vote, _ in batch], [other for _, other in batch]
    own = [vote.dialogue for vote in votes]
    h = summed_logprobs(policy, own, config.temperature) - reference(own)
    up = torch.tensor([vote.up for vote in votes], device=h.device)
    weights = h.new_tensor([vote.weight for vote in votes])
    baseline = h.new_zeros(())
    if config.kto_baseline == "mismatched":
        with torch.no_grad():
            baseline = kto_baseline(summed_logprobs(policy, others, config.temperature) - reference(others))
    losses = kto_loss(h, up, baseline, config.beta, config.desirable_weight, config.undesirable_weight)
    mean = (weights * losses).sum() / weights.sum().clamp(min=1e-12)
    seen = h.detach()
    return Read(mean, seen[up], seen[~up], (seen > baseline) == up)


# --- online -----------------------------------------------------------------------------------------------------------


def best_and_worst(scores: torch.Tensor) -> torch.Tensor:
    """+1 for each group's best reply, −1 for its worst, the first of equals, 0 for the rest: (G, n).

    All 0 where every reply scores the same, for there is nothing to prefer.
    """
    marks = torch.zeros_like(scores)
    marks.scatter_(1, scores.argmax(1, keepdim=True), 1.0).scatter_(1, scores.argmin(1, keepdim=True), -1.0)
    return marks * (scores.amax(1, keepdim=True) > scores.amin(1, keepdim=True))


def online_dpo(
    policy: PreTrainedModel,
    reference: PreTrainedModel,
    score: Score,
    tokenizer: PreTrainedTokenizerBase,
    config: OnlineDPOConfig | None = None,
    seed: int = 0,
    answered: Callable[[], Sequence[RankedReplies]] | None = None,
) -> GroupTrainer:
    """DPO on the policy's own replies: `score` picks each group's best and worst, and the two are a pair.

    `answered()` gives the rankings that a person has given so far; some of them, drawn anew, stand beside every
    minibatch, so the policy learns from the person directly and not only through `score`.
    """
    config = config or OnlineDPOConfig()
    temperature = config.sampling.temperature
    direct = DirectConfig(beta=config.kl_coefficient, label_smoothing=config.label_smoothing, temperature=temperature)
    read = Reference(reference, temperature)

    def advantages(scores: torch.Tensor, k1: torch.Tensor, beta: float) -> torch.Tensor:
        return best_and_worst(scores)

    def loss(logprobs: torch.Tensor, mb: GroupExperience, beta: float, tokens: float):
        h = (logprobs - mb.ref_logprobs).sum(1)  # rows come group by group: one +1 and one −1 of each
        pairs = dpo_loss(h[mb.advantages > 0], h[mb.advantages < 0], beta, config.label_smoothing)
        return pairs.mean(), torch.zeros(())

    def beside(generator: torch.Generator) -> torch.Tensor | None:
        given = [item for item in answered() if item.pairs] if answered is not None else []
        if not given or not config.answered_weight:
            return None
        drawn = torch.randperm(len(given), generator=generator)[: config.answered].tolist()
        return config.answered_weight * read_pairs(policy, read, [given[i] for i in drawn], direct).loss

    return GroupTrainer(policy, reference, score, tokenizer, config, seed, advantages, loss, sparse=True, beside=beside)
