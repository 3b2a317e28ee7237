"""Next-token training: pretraining on packed documents, and SFT on demonstrations with the loss on the reply only.

Batches are drawn from (seed, step), so a run that was interrupted goes on from any step to the same numbers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import nn
from transformers import PreTrainedModel

from .config import LanguageConfig
from .cores import add_gradients, divided, step_on_one_core, weighted_means
from .errors import InputError
from .fast import chosen_logprobs
from .models import states_at
from .records import LossPoint
from .text import Dialogue, language_batch

Batch = tuple[torch.Tensor, torch.Tensor]  # inputs (B, T), labels (B, T) with −100 where there is no loss


def step_generator(seed: int, step: int, salt: int = 0) -> torch.Generator:
    """The random source of one training step: a function of the seed and the step alone."""
    return torch.Generator().manual_seed((seed * 1_000_003 + step) * 64 + salt)


def language_loss(model: PreTrainedModel, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy in nats a token over the labels that are not −100. Logits are computed only where needed.

    What stands behind a row's last label is seen by nothing that counts, so it is treated as padding.
    """
    wanted = labels != -100
    states = states_at(model, ids, wanted.flatten().nonzero().squeeze(1), used_lengths(wanted))  # (N, d)
    logits = model.get_output_embeddings()(states)  # (N, V)
    return -chosen_logprobs(logits.float(), labels[wanted]).mean()


def used_lengths(wanted: torch.Tensor) -> torch.Tensor:
    """How many tokens of each row lead up to its last wanted place, (B,) from (B, T)."""
    return (wanted * torch.arange(1, wanted.shape[1] + 1, device=wanted.device)).amax(1)


def language_gradients(model: PreTrainedModel, ids: torch.Tensor, labels: torch.Tensor, bf16: bool = False) -> float:
    """Adds the gradient of `language_loss` to the model's, the rows divided among the cores; returns the loss.

    With `bf16`, matrix products are computed in bfloat16 (Micikevicius et al., arXiv:1710.03740; no loss scaling is
    needed, as bfloat16 has float32's range): weights, gradients and the loss itself stay float32.
    """
    wanted = labels != -100
    lengths, total = used_lengths(wanted), int(wanted.sum())
    parts = [(ids[rows, : lengths[rows].max()], labels[rows, : lengths[rows].max()]) for rows in divided(lengths)]
    shares = [int((part != -100).sum()) / total for _, part in parts]

    def loss(part: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        with torch.autocast(ids.device.type, torch.bfloat16, enabled=bf16):
            value = language_loss(model, *part)
        return value, {"loss": value}

    return weighted_means(add_gradients(loss, parts, shares, model.parameters()), shares)["loss"]


def make_optimizer(parameters: nn.Module, learning_rate: float, weight_decay: float = 0.0) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices only, β = (0.9, 0.95)."""
    trained = [p for p in parameters.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.95), fused=True)


def learning_rate_at(step: int, config: LanguageConfig) -> float:
    """Linear warm-up, constant, then linear decay to a twentieth."""
    warmup, decay = config.warmup * config.steps, config.decay * config.steps
    up = min(1.0, (step + 1) / max(warmup, 1))
    down = min(1.0, 0.05 + 0.95 * (config.steps - step) / max(decay, 1))
    return config.learning_rate * min(up, down)


def train_language(
    model: PreTrainedModel,
    batch_at: Callable[[int], Batch],
    config: LanguageConfig,
    optimizer: torch.optim.Optimizer | None = None,
    start: int = 0,
) -> Iterator[LossPoint]:
    """Trains on `batch_at(step)` for `start … config.steps`, yielding a point a step. Dropout stays off (TRL: on)."""
    optimizer = optimizer or make_optimizer(model, config.learning_rate, config.weight_decay)
    device = next(model.parameters()).device
    began, tokens = time.perf_counter(), sum(int((batch_at(step)[1] != -100).sum()) for step in range(start))
    for step in range(start, config.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, config)
        ids, labels = (tensor.to(device) for tensor in batch_at(step))
        optimizer.zero_grad()
        loss = language_gradients(model, ids, labels, config.bf16)
        with step_on_one_core(model.parameters()):
            nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
            optimizer.step()
        tokens += int((labels != -100).sum())
        yield LossPoint(step + 1, tokens, loss, time.perf_counter() - began)


def pretrain(
    model: PreTrainedModel,
    tokens: torch.Tensor,
    config: LanguageConfig,
    seed: int = 0,
    optimizer: torch.optim.Optimizer | None = None,
    start: int = 0,
) -> Iterator[LossPoint]:
    """Pretrains on a stream of tokens (N,), in random blocks of `config.block_size`. See `train_language`."""
    if len(tokens) < config.block_size + 2:
        raise InputError(
            f"the text has {len(tokens)} tokens; at least {config.block_size + 2} are needed for one block"
        )
    return train_language(model, lambda step: block_batch(tokens, config, seed, step), config, optimizer, start)


def block_batch(tokens: torch.Tensor, config: LanguageConfig, seed: int, step: int) -> Batch:
    """`batch_size` random blocks of the stream: inputs and the tokens that follow them."""
    starts = torch.randint(len(tokens) - config.block_size, (config.batch_size,), generator=step_generator(seed, step))
    blocks = tokens[starts[:, None] + torch.arange(config.block_size + 1)]  # (B, T + 1)
    return blocks[:, :-1], blocks[:, 1:]


def train_sft(
    model: PreTrainedModel,
    dialogues: Sequence[Dialogue],
    pad_id: int,
    config: LanguageConfig,
    seed: int = 0,
    optimizer: torch.optim.Optimizer | None = None,
    start: int = 0,
) -> Iterator[LossPoint]:
    """Supervised fine-tuning on demonstrations, loss on the reply (its end token included) and nothing else."""
    if not dialogues:
        raise InputError("no demonstrations to train on: give at least one")

    def batch_at(step: int) -> Batch:
        chosen = _epoch_slice(len(dialogues), config.batch_size, seed, step)
        return language_batch([dialogues[i] for i in chosen], pad_id)

    return train_language(model, batch_at, config, optimizer, start)


def _epoch_slice(n: int, batch_size: int, seed: int, step: int) -> list[int]:
    """The indices of batch `step` when n items are reshuffled every epoch."""
    per_epoch = max(1, n // batch_size)
    epoch, place = divmod(step, per_epoch)
    order = torch.randperm(n, generator=step_generator(seed, epoch, salt=1)).tolist()
    return order[place * batch_size : (place + 1) * batch_size]


@torch.no_grad()
def evaluate_loss(model: PreTrainedModel, batches: Sequence[Batch]) -> float:
    """Mean loss in nats a token over the batches, weighted by their tokens; perplexity is its exponential."""
    total = count = 0.0
    for ids, labels in batches:
        n = int((labels != -100).sum())
        total, count = total + language_loss(model, ids, labels).item() * n, count + n
    return total / count
