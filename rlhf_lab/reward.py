"""The reward model: its losses, its training, its normalisation, how far it can be trusted, and its live update.

A ranking of k replies gives C(k, 2) pairs (InstructGPT, arXiv:2203.02155) or one Plackett-Luce likelihood; both train a
scalar score r(prompt, reply). `TasteModel` learns one person's taste on top, from tens of rankings, in milliseconds.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .config import RewardConfig
from .cores import add_gradients, divided, side_by_side, step_on_one_core
from .errors import InputError
from .language import make_optimizer, step_generator
from .models import head_of, last_hidden, sequence_scores
from .records import (
    GRADES,
    Answer,
    Comparison,
    Correction,
    Question,
    RewardPoint,
    Vote,
    order_of,
    pairs_of_order,
)
from .sampling import Sample
from .text import Dialogue, encode_dialogues, pad_right

# --- losses: tensors in, tensors out ----------------------------------------------------------------------------------


def bradley_terry_loss(
    chosen: torch.Tensor, rejected: torch.Tensor, tie: torch.Tensor | None = None, margin: torch.Tensor | None = None
) -> torch.Tensor:
    """−log σ(r_chosen − r_rejected − margin) of each pair, in nats: (N,) from scores (N,).

    A tie (N, bool) counts as half a preference either way, so it pulls the two scores together. `margin` is Llama 2's
    (arXiv:2307.09288, equation 2). Source: Bradley and Terry (1952); Christiano et al., arXiv:1706.03741.
    """
    difference = chosen - rejected if margin is None else chosen - rejected - margin
    loss = -F.logsigmoid(difference)
    if tie is None:
        return loss
    return torch.where(tie, (loss - F.logsigmoid(-difference)) / 2, loss)


def plackett_luce_loss(scores: torch.Tensor, tiers: Sequence[Sequence[int]]) -> torch.Tensor:
    """−log P(ranking) in nats, a scalar, from the scores (k,) of a question's replies and tiers of their indices.

    P = Π over places of exp(r_next) / Σ exp(r of those still to be placed) (Plackett, 1975). Replies in one tier are
    placed at once: each against all below and itself, the others of its tier left out (Breslow's approximation,
    averaged over the order inside the tier, would count them too; leaving them out says nothing about their order).
    """
    below = [scores[list(tier)] for tier in tiers]
    loss = 0.0 * scores.sum()  # all tied: nothing to learn, yet a loss that has a gradient
    for place, tier in enumerate(below[:-1]):
        rest = torch.cat(below[place + 1 :])
        for score in tier:
            loss = loss + torch.logsumexp(torch.cat([score[None], rest]), 0) - score
    return loss


# --- data -------------------------------------------------------------------------------------------------------------


GRADE_MARGINS = dict(zip(GRADES, (0.0, 1 / 3, 2 / 3, 1.0), strict=True))
"""How far apart graded replies should be, in logits: "margin small" of Llama 2 (arXiv:2307.09288, table 27)."""


@dataclass(frozen=True)
class RankedReplies:
    """A question as tensors' raw material: its replies, and which of them was put above which (by index).

    `pairs` holds (better, worse, tie); `tiers` the whole ranking, when there is one; `margin` how far apart the
    person said that a strict pair is; `weights` how often each pair counts, () for once each.
    Raises InputError for weights that are negative, not finite, or not one a pair.
    """

    dialogues: tuple[Dialogue, ...]
    pairs: tuple[tuple[int, int, bool], ...]
    tiers: tuple[tuple[int, ...], ...] = ()
    margin: float = 0.0
    weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.weights and len(self.weights) != len(self.pairs):
            raise InputError(f"{len(self.weights)} weights for {len(self.pairs)} pairs: one a pair is wanted")
        if not all(0 <= weight < math.inf for weight in self.weights):
            raise InputError(f"weights {self.weights} of pairs: each must be finite and not negative")


def encode_rankings(
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    answers: Sequence[Answer],
    max_tokens: int | None = None,
) -> list[RankedReplies]:
    """Answers with their questions' texts as tokens: rankings, ratings (by mean mark) and corrections (above what
    they correct). Undecided and skipped ones are left out, and so are votes, which compare with nothing.

    Raises InputError for an answer whose question is not among `questions`, or that does not answer it.
    """
    by_id = {question.id: question for question in questions}
    stated = []
    for answer in answers:
        if answer.given and answer.question_id not in by_id:
            raise InputError(f"{answer.kind} {answer.id!r} answers question {answer.question_id!r}, which is not given")
        if answer.given and not isinstance(answer, Vote):
            stated.append(stated_order(by_id[answer.question_id], answer))
    texts = [(prompt, reply) for prompt, replies, *_ in stated for reply in replies]
    dialogues = iter(encode_dialogues(tokenizer, texts, max_tokens))
    return [
        RankedReplies(tuple(next(dialogues) for _ in replies), pairs_of_tiers(tiers), tiers, margin)
        for _, replies, tiers, margin in stated
    ]


def stated_order(question: Question, answer: Answer) -> tuple[str, tuple[str, ...], tuple[tuple[int, ...], ...], float]:
    """What an answer says about replies: (prompt, replies, tiers of their places, margin of a strict pair)."""
    answer.check(question)
    if isinstance(answer, Correction):
        return question.prompt, (answer.text, question.texts[answer.candidate]), ((0,), (1,)), 0.0
    margin = GRADE_MARGINS.get(getattr(answer, "grade", ""), 0.0)
    return question.prompt, tuple(question.texts.values()), tier_indices(question, answer), margin


def tier_indices(question: Question, answer: Answer) -> tuple[tuple[int, ...], ...]:
    """The tiers that a ranking or rating states, best first, as places in `question.candidates`."""
    places = {candidate.id: i for i, candidate in enumerate(question.candidates)}
    return tuple(tuple(places[candidate] for candidate in tier) for tier in order_of(answer))


def pairs_of_tiers(tiers: Sequence[Sequence[int]]) -> tuple[tuple[int, int, bool], ...]:
    """All C(k, 2) pairs of a ranking: (better, worse, False), and (one, other, True) inside a tier."""
    return tuple(pairs_of_order(tiers))


def encode_comparisons(
    tokenizer: PreTrainedTokenizerBase,
    comparisons: Sequence[Comparison],
    max_tokens: int | None = None,
    weights: Sequence[float] | None = None,
) -> list[RankedReplies]:
    """Pairs from a file (`rlhf_lab.formats.read_pairs`) or a consensus (`rlhf_lab.aggregation`), in the same form: one
    question of two replies each.

    `weights`, one a comparison, say how often each counts (`Consensus.comparisons` gives them). Raises InputError where
    their number is another.
    """
    if weights is not None and len(weights) != len(comparisons):
        raise InputError(f"{len(weights)} weights for {len(comparisons)} comparisons: one a comparison is wanted")
    texts = [(c.prompt, text) for c in comparisons for text in (c.chosen, c.rejected)]
    dialogues = iter(encode_dialogues(tokenizer, texts, max_tokens))
    return [
        RankedReplies(
            (next(dialogues), next(dialogues)),
            ((0, 1, c.tie),),
            ((0, 1),) if c.tie else ((0,), (1,)),
            GRADE_MARGINS.get(c.grade, 0.0),
            () if weights is None else (weights[place],),
        )
        for place, c in enumerate(comparisons)
    ]


# --- training ---------------------------------------------------------------------------------------------------------


def train_reward_model(
    model: PreTrainedModel,
    data: Sequence[RankedReplies],
    config: RewardConfig,
    seed: int = 0,
    optimizer: torch.optim.Optimizer | None = None,
    start: int = 0,
) -> Iterator[RewardPoint]:
    """Trains on ranked replies, yielding a point a step. Learning rate: warm-up over a twentieth, then linear to 0.

    All pairs of a question stand in one batch and are averaged first within it, so a question counts once however
    many replies it has. Dropout stays off.
    """
    if not data:
        raise InputError("no rankings to learn from: rank at least one question")
    optimizer = optimizer or make_optimizer(model, config.learning_rate, config.weight_decay)
    model.requires_grad_(True)
    per_epoch = -(-len(data) // config.questions_per_batch)
    total = per_epoch * config.epochs

    def batch_at(step: int) -> list[RankedReplies]:
        epoch, place = divmod(step, per_epoch)
        order = torch.randperm(len(data), generator=step_generator(seed, epoch, salt=2)).tolist()
        return [data[i] for i in order[place * config.questions_per_batch :][: config.questions_per_batch]]

    seen = sum(len(item.pairs) for step in range(start) for item in batch_at(step))
    for step in range(start, total):
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * min(1.0, (step + 1) / (total / 20)) * (1 - step / total)
        batch = batch_at(step)
        optimizer.zero_grad()
        loss, accuracy = reward_gradients(model, batch, config.loss)
        with step_on_one_core(model.parameters()):
            nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
            optimizer.step()
        seen += sum(len(item.pairs) for item in batch)
        yield RewardPoint(step + 1, seen, loss, accuracy)


def reward_loss(
    model: PreTrainedModel, batch: Sequence[RankedReplies], loss: str = "pairs"
) -> tuple[torch.Tensor, float]:
    """Mean loss over the questions of a batch, and the share of strict pairs put in the right order (each counting 1).

    A question counts once however many pairs it has; TRL's trainer counts every pair once.
    Where pairs have weights, both means are weighted: over a question's pairs by their weights, over questions by the
    mean weight of their pairs, so a pair of weight 2 counts like the same pair given twice. The Plackett-Luce
    likelihood is of whole rankings and knows no weights of pairs: InputError.
    """
    value, hit = question_losses(model, batch, loss)
    return value, hit.mean().item() if len(hit) else float("nan")


def question_losses(
    model: PreTrainedModel, batch: Sequence[RankedReplies], loss: str = "pairs"
) -> tuple[torch.Tensor, torch.Tensor]:
    """What `reward_loss` averages: the mean loss, and for each strict pair whether it was put in the right order."""
    if loss == "plackett-luce" and any(item.weights for item in batch):
        raise InputError('loss "plackett-luce" is of whole rankings and cannot weigh pairs; use the loss "pairs"')
    scores = score_dialogues(model, [d for item in batch for d in item.dialogues])
    losses, hits = [], []
    for item, own in zip(batch, scores.split([len(item.dialogues) for item in batch]), strict=True):
        better, worse, tie = (torch.tensor(column, device=own.device) for column in zip(*item.pairs, strict=True))
        margin = torch.where(tie.bool(), 0.0, torch.full_like(own[better], item.margin))
        pair_losses = bradley_terry_loss(own[better], own[worse], tie.bool(), margin)
        weights = own.new_tensor(item.weights or [1.0] * len(item.pairs))
        losses.append(
            plackett_luce_loss(own, item.tiers) if loss == "plackett-luce" else (weights * pair_losses).mean()
        )
        hits.append((own[better] > own[worse])[~tie.bool()])
    size = max(sum(map(question_weight, batch)), 1e-12)  # a batch of weight 0 teaches nothing
    return torch.stack(losses).sum() / size, torch.cat(hits).float()


def question_weight(item: RankedReplies) -> float:
    """How much a question counts: the mean weight of its pairs."""
    return sum(item.weights) / len(item.weights) if item.weights else 1.0


def reward_gradients(
    model: PreTrainedModel, batch: Sequence[RankedReplies], loss: str = "pairs"
) -> tuple[float, float]:
    """Adds the gradient of `reward_loss` to the model's, the questions divided among the cores; returns both."""
    device = next(model.parameters()).device
    tokens = torch.tensor([sum(len(d.ids) for d in item.dialogues) for item in batch], device=device)
    parts = [[batch[i] for i in rows.tolist()] for rows in divided(tokens)]
    sizes = [max(sum(map(question_weight, part)), 1e-12) for part in parts]
    shares = [size / sum(sizes) for size in sizes]

    def part_loss(part: Sequence[RankedReplies]) -> tuple[torch.Tensor, tuple[float, torch.Tensor]]:
        value, hit = question_losses(model, part, loss)
        return value, (value.item(), hit)

    told = add_gradients(part_loss, parts, shares, model.parameters())
    hit = torch.cat([hit for _, hit in told])
    value = sum(share * value for share, (value, _) in zip(shares, told, strict=True))
    return value, hit.mean().item() if len(hit) else float("nan")


def score_dialogues(model: PreTrainedModel, dialogues: Sequence[Dialogue]) -> torch.Tensor:
    """Scores (N,) of dialogues, in one batch, with gradient."""
    ids, lengths = pad_right([d.ids for d in dialogues], model.config.pad_token_id)
    device = next(model.parameters()).device
    return sequence_scores(model, ids.to(device), lengths.to(device))


@torch.no_grad()
def score_many(model: PreTrainedModel, dialogues: Sequence[Dialogue], batch_size: int = 64) -> torch.Tensor:
    """Scores (N,) of any number of dialogues, dialogues of like length together, on the CPU."""
    return _in_batches(lambda batch: score_dialogues(model, batch), model, dialogues, batch_size)


@torch.no_grad()
def features_of(model: PreTrainedModel, dialogues: Sequence[Dialogue], batch_size: int = 64) -> torch.Tensor:
    """What the reward model's head reads, (N, d), of any number of dialogues, on the CPU."""

    def features(batch: Sequence[Dialogue]) -> torch.Tensor:
        ids, lengths = pad_right([d.ids for d in batch], model.config.pad_token_id)
        device = next(model.parameters()).device
        return last_hidden(model, ids.to(device), lengths.to(device))

    return _in_batches(features, model, dialogues, batch_size)


def _in_batches(
    function: Callable[[Sequence[Dialogue]], torch.Tensor],
    model: PreTrainedModel,
    dialogues: Sequence[Dialogue],
    batch_size: int,
) -> torch.Tensor:
    """function(batch) of dialogues of like length, the batches side by side on the cores, in the dialogues' order."""
    order = sorted(range(len(dialogues)), key=lambda i: len(dialogues[i].ids))
    cores = torch.get_num_threads() if next(model.parameters()).device.type == "cpu" else 1
    size = min(batch_size, -(-len(order) // cores))
    batches = [[dialogues[i] for i in order[at : at + size]] for at in range(0, len(order), size)]
    joined = torch.cat(side_by_side(lambda batch: function(batch).cpu(), batches))
    result = torch.empty_like(joined)
    result[torch.tensor(order)] = joined
    return result


@torch.no_grad()
def normalise(model: PreTrainedModel, dialogues: Sequence[Dialogue]) -> None:
    """Rescales the head so that scores on these dialogues have mean 0 and standard deviation 1, in place.

    transformers' head has no bias, so the mean is taken off along the direction u of the features that varies least
    while u·mean = 1: u = C⁻¹m / (mᵀC⁻¹m). Scores move together by a constant (nearly), so their order stays.
    (Detail 13 of the PPO details: lm-human-preferences normalises before and after training.)
    """
    features = features_of(model, dialogues).double()
    mean, covariance = features.mean(0), torch.cov(features.T)
    ridge = 1e-4 * covariance.diagonal().mean() * torch.eye(len(mean), dtype=torch.double)
    direction = torch.linalg.solve(covariance + ridge, mean)
    direction = direction / (direction @ mean)
    weight = head_of(model).weight[0].double().cpu()
    weight = weight - (weight @ mean) * direction
    weight = weight / (features @ weight).std()
    head_of(model).weight.copy_(weight[None].to(head_of(model).weight))


def reward_score(model: PreTrainedModel):
    """A `score(samples) -> (N,)` function for PPO, best-of-n and evaluation."""

    def score(samples: Sequence[Sample]) -> torch.Tensor:
        return score_many(model, [s.dialogue for s in samples])

    return score


# --- how far it can be trusted ----------------------------------------------------------------------------------------


def pair_margins(model: PreTrainedModel, data: Sequence[RankedReplies]) -> torch.Tensor:
    """r_better − r_worse of every strict pair, (N,)."""
    scores = score_many(model, [d for item in data for d in item.dialogues])
    margins = []
    for item, own in zip(data, scores.split([len(item.dialogues) for item in data]), strict=True):
        margins += [own[a] - own[b] for a, b, tie in item.pairs if not tie]
    return torch.stack(margins) if margins else torch.zeros(0)


@dataclass(frozen=True)
class CalibrationBin:
    """Pairs whose predicted probability fell in one bin: mean prediction, share that came true, how many."""

    predicted: float
    observed: float
    count: int


def calibration(margins: torch.Tensor, bins: int = 10) -> list[CalibrationBin]:
    """Is σ(margin) an honest probability? Pairs are sorted by confidence max(p, 1 − p) into bins of equal count."""
    confidence = torch.sigmoid(margins.abs())
    order = confidence.argsort()
    parts = [part for part in order.chunk(bins) if len(part)]
    return [
        CalibrationBin(confidence[part].mean().item(), (margins[part] > 0).float().mean().item(), len(part))
        for part in parts
    ]


# --- one person's taste, live -----------------------------------------------------------------------------------------


class TasteModel:
    """Learns one person's taste from tens of answers: a Bayesian head on the reward model's features.

    The head w has a Gaussian prior N(prior_mean, prior_covariance), learned from a population of tastes
    (`taste_prior`), so that a handful of answers moves it along the directions in which people differ and leaves the
    rest alone. After every answer w is the maximum of the posterior (Bradley-Terry likelihood of the person's pairs,
    each counting `strength` times), found by Newton's method: milliseconds, and the same whatever the order of labels.
    """

    def __init__(self, prior_mean: torch.Tensor, prior_covariance: torch.Tensor, strength: float = 1.0) -> None:
        self.prior_mean = prior_mean.double()
        self.precision = torch.linalg.inv(prior_covariance.double())
        self.strength = strength
        self.weight = self.prior_mean.clone()
        self._evidence: dict[str, PairEvidence] = {}  # by answer id

    @property
    def labels(self) -> int:
        """How many answers it has learned from."""
        return len(self._evidence)

    def score(self, features: torch.Tensor) -> torch.Tensor:
        """Scores (N,) from features (N, d)."""
        return (features.double() @ self.weight).float()

    def learn(
        self, answer_id: str, features: torch.Tensor, pairs: Sequence[tuple[int, int, bool]], margin: float = 0.0
    ) -> float:
        """Learns one answer: features (k, d) of its replies and pairs (better, worse, tie). Returns seconds taken.

        `margin` is how far apart the answer says that its strict pairs are (`GRADE_MARGINS`).
        """
        began = time.perf_counter()
        if pairs:
            self._evidence[answer_id] = pair_evidence(features, pairs, margin, self.strength)
            self._fit()
        return time.perf_counter() - began

    def forget(self, answer_id: str) -> None:
        """Takes an answer back, as if it had never been given."""
        if self._evidence.pop(answer_id, None) is not None:
            self._fit()

    def forget_all(self) -> None:
        """As if nobody had answered anything."""
        self._evidence.clear()
        self._fit()

    def learn_all(self, evidence: dict[str, PairEvidence]) -> None:
        """Learns many answers at once, by id: one fit."""
        self._evidence |= evidence
        self._fit()

    def covariance(self) -> torch.Tensor:
        """How uncertain the head is, (d, d): Laplace's approximation, the inverse Hessian at the maximum."""
        return torch.linalg.inv(self._hessian(self.weight))

    def ensemble(self, members: int = 8, generator: torch.Generator | None = None) -> torch.Tensor:
        """Heads (M, d), each fitted to a resample of the answers (with repetition) from a start drawn from the prior.

        The drawn start stands for what the prior leaves open: without labels the heads are samples of the prior.
        """
        root = torch.linalg.cholesky(torch.linalg.inv(self.precision))
        noise = torch.randn(members, len(self.weight), generator=generator).double()
        starts = self.prior_mean + noise @ root.T
        evidence = list(self._evidence.values())
        heads = []
        for start in starts:
            if not evidence:
                heads.append(start)
                continue
            drawn = torch.randint(len(evidence), (len(evidence),), generator=generator).tolist()
            resample = PairEvidence(*(torch.cat(column) for column in zip(*(evidence[i] for i in drawn), strict=True)))
            heads.append(fit_bradley_terry(resample, start, self.precision, start=start, iterations=6))
        return torch.stack(heads)

    def _all(self) -> PairEvidence:
        columns = zip(*self._evidence.values(), strict=True)
        return PairEvidence(*(torch.cat(column) for column in columns))

    def _hessian(self, weight: torch.Tensor) -> torch.Tensor:
        return bradley_terry_hessian(weight, self._all(), self.precision) if self._evidence else self.precision

    def _fit(self) -> None:
        self.weight = (
            fit_bradley_terry(self._all(), self.prior_mean, self.precision, start=self.weight)
            if self._evidence
            else self.prior_mean.clone()
        )


class PairEvidence(NamedTuple):
    """n pairs of replies and what was said of them, for a linear head on features of d numbers."""

    differences: torch.Tensor  # (n, d): features of the better reply minus those of the worse
    targets: torch.Tensor  # (n,): 1, or 0.5 for a tie
    margins: torch.Tensor  # (n,): how far apart a strict pair is said to be, on the scale of scores
    counts: torch.Tensor  # (n,): how much each pair counts


def pair_evidence(
    features: torch.Tensor, pairs: Sequence[tuple[int, int, bool]], margin: float = 0.0, count: float = 1.0
) -> PairEvidence:
    """What one answer says: from features (k, d) of its replies and pairs (better, worse, tie) of their places."""
    better, worse, tie = torch.tensor(pairs, dtype=torch.long).reshape(-1, 3).unbind(1)  # no pair: nothing said
    differences = features.double()[better] - features.double()[worse]
    strict = (~tie.bool()).double()
    return PairEvidence(differences, (1 + strict) / 2, margin * strict, torch.full_like(strict, count))


def bradley_terry_hessian(weight: torch.Tensor, pairs: PairEvidence, precision: torch.Tensor) -> torch.Tensor:
    """Second derivatives (d, d) of −log posterior at `weight` (d,)."""
    p = torch.sigmoid(pairs.differences @ weight - pairs.margins)
    return precision + (pairs.differences * (pairs.counts * p * (1 - p))[:, None]).T @ pairs.differences


def fit_bradley_terry(
    pairs: PairEvidence,
    mean: torch.Tensor,
    precision: torch.Tensor,
    start: torch.Tensor | None = None,
    iterations: int = 25,
) -> torch.Tensor:
    """The head (d,) that makes the pairs likeliest under a prior N(mean, precision⁻¹): Newton's method with a line
    search (Armijo) on `negative_log_posterior`, which is convex."""
    w = mean.clone() if start is None else start
    value = negative_log_posterior(w, pairs, mean, precision)
    for _ in range(iterations):
        p = torch.sigmoid(pairs.differences @ w - pairs.margins)
        gradient = precision @ (w - mean) + pairs.differences.T @ (pairs.counts * (p - pairs.targets))
        step = torch.linalg.solve(bradley_terry_hessian(w, pairs, precision), gradient)
        size, expected = 1.0, float(gradient @ step)
        while True:  # a full step may overshoot where the curvature is small: halve it until the posterior rises
            candidate = w - size * step
            reached = negative_log_posterior(candidate, pairs, mean, precision)
            if reached <= value - 1e-4 * size * expected or size < 1e-6:
                break
            size /= 2
        w, value = candidate, reached
        if size * float(step.norm()) < 1e-8 * (1 + float(w.norm())):
            break
    return w


def negative_log_posterior(
    weight: torch.Tensor, pairs: PairEvidence, mean: torch.Tensor, precision: torch.Tensor
) -> float:
    """Σ count · BCE(σ(w·x − margin), target) + ½ (w − mean)ᵀ precision (w − mean), in nats."""
    logits = pairs.differences @ weight - pairs.margins
    loss = F.binary_cross_entropy_with_logits(logits, pairs.targets, reduction="none")
    offset = weight - mean
    return float((pairs.counts * loss).sum() + 0.5 * offset @ precision @ offset)


def fit_head(x: torch.Tensor, target: torch.Tensor, ridge: float = 1.0, iterations: int = 25) -> torch.Tensor:
    """Logistic regression without intercept: weights (d,) from pair differences x (N, d) and targets (N,) in [0, 1]."""
    n, d = x.shape
    pairs = PairEvidence(x.double(), target.double(), torch.zeros(n).double(), torch.ones(n).double())
    return fit_bradley_terry(pairs, torch.zeros(d).double(), ridge * torch.eye(d).double(), iterations=iterations)


def taste_prior(heads: torch.Tensor, spread: float = 1.0, floor: float = 1e-3) -> tuple[torch.Tensor, torch.Tensor]:
    """Prior mean (d,) and covariance (d, d) of a head, from the heads (K, d) of a population of tastes.

    The covariance is the population's own, widened by `spread`, plus `floor` × its mean variance in every direction, so
    that a person unlike anybody in the population can still be learned, only more slowly.
    """
    mean = heads.mean(0)
    centred = (heads - mean).double()
    covariance = centred.T @ centred / max(len(heads) - 1, 1) * spread
    scale = covariance.diagonal().mean() + 1e-12
    return mean, covariance + floor * scale * torch.eye(len(mean), dtype=torch.double)
