"""Sampling: many replies at once with a key-value cache, and the candidates of a question."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from .config import SamplingConfig
from .errors import InputError
from .models import fingerprint
from .records import Candidate, Question, new_id
from .text import Dialogue, decode_reply, encode_prompts


@dataclass(frozen=True)
class Sample:
    """One sampled reply: its text, and its tokens behind the prompt's. `truncated` when no end token came."""

    prompt: str
    text: str
    dialogue: Dialogue
    truncated: bool


@torch.no_grad()
def sample(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    config: SamplingConfig | None = None,
    generator: torch.Generator | None = None,
) -> list[Sample]:
    """One reply to each prompt, drawn at `config.temperature` (0: the likeliest token each time).

    Prompts are padded on the left with position ids from their mask, so that every reply starts in the same column.
    Rows that have ended leave the batch. The same seed gives the same replies. Raises InputError when a prompt leaves
    no room for a reply.
    """
    config = config or SamplingConfig()
    positions = getattr(model.config, "max_position_embeddings", None) or sys.maxsize  # some models know no limit
    room = positions - config.max_new_tokens
    encoded = encode_prompts(tokenizer, prompts)
    for prompt, ids in zip(prompts, encoded, strict=True):
        if len(ids) > room:
            raise InputError(f"prompt {prompt[:40]!r}… has {len(ids)} tokens; at most {room} leave room for a reply")
    order = sorted(range(len(prompts)), key=lambda i: len(encoded[i]))  # prompts of like length share a batch
    samples: list[Sample | None] = [None] * len(prompts)
    for start in range(0, len(order), config.batch_size):
        rows = order[start : start + config.batch_size]
        replies = sample_tokens(model, [encoded[i] for i in rows], tokenizer.eos_token_id, config, generator)
        for i, reply in zip(rows, replies, strict=True):
            dialogue = Dialogue((*encoded[i], *reply), len(encoded[i]))
            ended = bool(reply) and reply[-1] == tokenizer.eos_token_id
            samples[i] = Sample(prompts[i], decode_reply(tokenizer, reply), dialogue, not ended)
    return samples  # type: ignore[return-value]


@torch.no_grad()
def sample_tokens(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    end_id: int,
    config: SamplingConfig,
    generator: torch.Generator | None = None,
) -> list[list[int]]:
    """The reply tokens of each prompt, end token included where it came. All prompts run in one batch."""
    device = next(model.parameters()).device
    width = max(len(ids) for ids in prompts)
    ids = torch.tensor([[end_id] * (width - len(p)) + list(p) for p in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    cache = DynamicCache(config=model.config)
    alive = torch.arange(len(prompts), device=device)
    replies: list[list[int]] = [[] for _ in prompts]
    for _ in range(config.max_new_tokens):
        hidden = model.base_model(
            input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
        ).last_hidden_state[:, -1]
        tokens = draw(model.get_output_embeddings()(hidden), config, generator)  # (alive,)
        for row, token in zip(alive.tolist(), tokens.tolist(), strict=True):
            replies[row].append(token)
        going = (tokens != end_id).nonzero().squeeze(1)
        if len(going) == 0:
            break
        if len(going) < 0.75 * len(alive):  # dropping rows copies the cache: worth it only for many
            cache.batch_select_indices(going)
            alive, tokens, mask, positions = alive[going], tokens[going], mask[going], positions[going]
        ids = tokens[:, None]
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        positions = positions[:, -1:] + 1
    return [_up_to_end(reply, end_id) for reply in replies]


def draw(logits: torch.Tensor, config: SamplingConfig, generator: torch.Generator | None = None) -> torch.Tensor:
    """One token a row (B,) from logits (B, V): softmax(logits / temperature), cut to the `top_k` likeliest."""
    if config.temperature == 0:
        return logits.argmax(-1)
    logits = logits.float() / config.temperature
    if config.top_k is not None and config.top_k < logits.shape[-1]:
        floor = logits.topk(config.top_k).values[:, -1:]
        logits = logits.masked_fill(logits < floor, -torch.inf)
    chances = logits.softmax(-1)
    if generator is not None:  # a seed means the same replies wherever the model is: chance stays on the CPU
        chances = chances.to(generator.device)
    return torch.multinomial(chances, 1, generator=generator).squeeze(1).to(logits.device)


def _up_to_end(reply: list[int], end_id: int) -> list[int]:
    return reply[: reply.index(end_id) + 1] if end_id in reply else reply


def make_questions(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    k: int = 4,
    config: SamplingConfig | None = None,
    generator: torch.Generator | None = None,
    name: str = "",
    ids: Callable[[], str] = new_id,
) -> list[Question]:
    """A question a prompt: k different replies of one model, where it gives that many. `name` says which model wrote
    them.

    Replies are drawn until k differ, three rounds at most; a prompt that ends with fewer than two gets no question.
    `ids` gives every question and candidate its identifier.
    """
    texts: dict[int, list[str]] = {i: [] for i in range(len(prompts))}
    for _ in range(3):
        short = [i for i, found in texts.items() for _ in range(k - len(found))]
        for i, drawn in zip(
            short, sample(model, tokenizer, [prompts[i] for i in short], config, generator), strict=True
        ):
            if drawn.text and drawn.text not in texts[i]:
                texts[i].append(drawn.text)
    made_with = made_with_of(model, config)
    return [
        Question(ids(), prompts[i], tuple(Candidate(ids(), text, name, made_with) for text in found))
        for i, found in texts.items()
        if len(found) >= 2
    ]


def made_with_of(model: PreTrainedModel, config: SamplingConfig | None = None) -> dict[str, Any]:
    """Where a reply came from, for its `Candidate.sampling`: the weights' fingerprint and how they were sampled."""
    facts = asdict(config or SamplingConfig())
    facts.pop("batch_size")  # changes nothing in a reply
    return {"checkpoint": fingerprint(model)} | {name: value for name, value in facts.items() if value is not None}


def best_of_n(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    n: int,
    score: Callable[[Sequence[Sample]], torch.Tensor],
    config: SamplingConfig | None = None,
    generator: torch.Generator | None = None,
) -> list[Sample]:
    """The best of n replies to each prompt by `score(list[Sample]) -> tensor (N,)`.

    The KL to the model is at most log n − (n − 1)/n nats a reply (Stiennon et al., arXiv:2009.01325).
    """
    many = sample(model, tokenizer, [p for p in prompts for _ in range(n)], config, generator)
    best = torch.as_tensor(score(many)).view(len(prompts), n).argmax(1).tolist()
    return [many[i * n + j] for i, j in enumerate(best)]


def greedy(config: SamplingConfig) -> SamplingConfig:
    """The same sampling without chance."""
    return replace(config, temperature=0.0)
