"""Sampling: many replies at once with a key-value cache, and the candidates of a question."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from . import fast
from .config import SamplingConfig
from .cores import divided, one_core, side_by_side
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

    Rows that have ended leave the batch. Chance is drawn beforehand, a number for each token of each reply, so the same
    seed gives the same replies whatever the batches. Raises InputError when a prompt leaves no room for a reply.
    """
    config = config or SamplingConfig()
    positions = getattr(model.config, "max_position_embeddings", None) or sys.maxsize  # some models know no limit
    room = positions - config.max_new_tokens
    encoded = encode_prompts(tokenizer, prompts)
    for prompt, ids in zip(prompts, encoded, strict=True):
        if len(ids) > room:
            raise InputError(f"prompt {prompt[:40]!r}… has {len(ids)} tokens; at most {room} leave room for a reply")
    chance = random_numbers(len(prompts), config, generator)
    order = sorted(range(len(prompts)), key=lambda i: len(encoded[i]))  # prompts of like length share a batch
    samples: list[Sample | None] = [None] * len(prompts)

    for at in range(0, len(order), config.batch_size):
        rows = order[at : at + config.batch_size]
        chosen = None if chance is None else chance[rows]
        replies = _sampled(model, [encoded[i] for i in rows], tokenizer.eos_token_id, config, chosen)
        for i, reply in zip(rows, replies, strict=True):
            dialogue = Dialogue((*encoded[i], *reply), len(encoded[i]))
            ended = bool(reply) and reply[-1] == tokenizer.eos_token_id
            samples[i] = Sample(prompts[i], decode_reply(tokenizer, reply), dialogue, not ended)
    return samples  # type: ignore[return-value]


def random_numbers(
    replies: int, config: SamplingConfig, generator: torch.Generator | None = None
) -> torch.Tensor | None:
    """All chance that some replies need: uniform numbers in [0, 1), (replies, max_new_tokens); None when greedy."""
    if config.temperature == 0:
        return None
    return torch.rand(replies, config.max_new_tokens, generator=generator, dtype=torch.float64)


@torch.no_grad()
def sample_tokens(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    end_id: int,
    config: SamplingConfig,
    generator: torch.Generator | None = None,
) -> list[list[int]]:
    """The reply tokens of each prompt, end token included where it came. All prompts run in one batch."""
    return _sampled(model, prompts, end_id, config, random_numbers(len(prompts), config, generator))


@torch.no_grad()
def _sampled(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    end_id: int,
    config: SamplingConfig,
    chance: torch.Tensor | None,
) -> list[list[int]]:
    """`sample_tokens` with its chance drawn. On the fast path each core writes some of the replies."""
    make = fast.Decoder if fast.supported(model) else Decoder
    parts = [range(len(prompts))]
    if make is fast.Decoder:
        tokens = torch.tensor([len(ids) + config.max_new_tokens for ids in prompts])
        parts = [rows.tolist() for rows in divided(tokens)]

    def write(rows: Sequence[int]) -> list[list[int]]:
        decoder = make(model, [list(prompts[row]) for row in rows], config.max_new_tokens)
        return _written(decoder, end_id, config, None if chance is None else chance[list(rows)])

    replies: dict[int, list[int]] = {}
    for rows, written in zip(parts, side_by_side(write, parts), strict=True):
        replies.update(zip(rows, written, strict=True))
    return [replies[row] for row in range(len(prompts))]


@torch.no_grad()
def _written(
    decoder: Decoder | fast.Decoder, end_id: int, config: SamplingConfig, chance: torch.Tensor | None
) -> list[list[int]]:
    """The loop over tokens: what the decoder's rows become. Rows that have ended leave the batch."""
    alive = torch.arange(len(decoder.logits), device=decoder.logits.device)
    replies: list[list[int]] = [[] for _ in alive]
    with one_core(decoder.light):
        for step in range(config.max_new_tokens):
            tokens = draw(decoder.logits, config, chance=None if chance is None else chance[alive.cpu(), step])
            for row, token in zip(alive.tolist(), tokens.tolist(), strict=True):
                replies[row].append(token)
            going = (tokens != end_id).nonzero().squeeze(1)
            if len(going) == 0 or step + 1 == config.max_new_tokens:
                break
            if len(going) < 0.75 * len(alive):  # dropping rows copies the cache: worth it only for many
                decoder.keep(going)
                alive, tokens = alive[going], tokens[going]
            decoder.write(tokens)
    return [_up_to_end(reply, end_id) for reply in replies]


class Decoder:
    """A model of any architecture that takes in prompts, then one token a row at a time, with a key-value cache.

    Prompts are padded on the left, with position ids from their mask, so that every reply starts in the same column.
    `logits` (B, V) are those of the next token.
    """

    light = False  # whether one core writes a token as fast as several would

    def __init__(self, model: PreTrainedModel, prompts: list[list[int]], new_tokens: int) -> None:
        self.model, device = model, next(model.parameters()).device
        width = max(len(ids) for ids in prompts)
        ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts], device=device)
        self.mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
        self.positions = (self.mask.cumsum(1) - 1).clamp(min=0)
        self.cache = DynamicCache(config=model.config)
        self.logits = self._forward(ids)

    def _forward(self, ids: torch.Tensor) -> torch.Tensor:
        hidden = self.model.base_model(
            input_ids=ids,
            attention_mask=self.mask,
            position_ids=self.positions,
            past_key_values=self.cache,
            use_cache=True,
        ).last_hidden_state[:, -1]
        return self.model.get_output_embeddings()(hidden)

    def write(self, tokens: torch.Tensor) -> None:
        """Takes one more token a row (B,) in."""
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], dim=1)
        self.positions = self.positions[:, -1:] + 1
        self.logits = self._forward(tokens[:, None])

    def keep(self, rows: torch.Tensor) -> None:
        """Goes on with these rows only."""
        self.cache.batch_select_indices(rows)
        self.mask, self.positions = self.mask[rows], self.positions[rows]


def draw(
    logits: torch.Tensor,
    config: SamplingConfig,
    generator: torch.Generator | None = None,
    chance: torch.Tensor | None = None,
) -> torch.Tensor:
    """One token a row (B,) from logits (B, V): softmax(logits / temperature), cut to the `top_k` likeliest.

    `chance` (B,), uniform in [0, 1), decides; without it the generator draws it. The token is the first whose
    cumulative probability exceeds it (inverse transform sampling).
    """
    if config.temperature == 0:
        return logits.argmax(-1)
    logits = logits.float() / config.temperature
    if config.top_k is not None and config.top_k < logits.shape[-1]:
        floor = logits.topk(config.top_k).values[:, -1:]
        logits = logits.masked_fill(logits < floor, -torch.inf)
    if chance is None:
        chance = torch.rand(len(logits), generator=generator, dtype=torch.float64)
    below = logits.softmax(-1).cumsum(-1, dtype=torch.float64)  # (B, V)
    goal = chance.to(below.device)[:, None] * below[:, -1:]  # rounding: the last entry is not quite 1
    return torch.searchsorted(below, goal, right=True).squeeze(1)


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
    """The best of n replies to each prompt by `score(list[Sample]) -> tensor (N,)`; its KL: see `best_of_n_kl`."""
    many = sample(model, tokenizer, [p for p in prompts for _ in range(n)], config, generator)
    best = torch.as_tensor(score(many)).view(len(prompts), n).argmax(1).tolist()
    return [many[i * n + j] for i, j in enumerate(best)]


def best_of_n_kl(n: int) -> float:
    """log n − (n − 1)/n: the most that best-of-n's KL to the model can be, in nats a reply (Stiennon et al.,
    arXiv:2009.01325). Raises InputError for n below 1."""
    if n < 1:
        raise InputError(f"best_of_n_kl: n is {n}; it must be at least 1")
    return math.log(n) - (n - 1) / n


def greedy(config: SamplingConfig) -> SamplingConfig:
    """The same sampling without chance."""
    return replace(config, temperature=0.0)
