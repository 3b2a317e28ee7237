"""Replies as tensors, and what a language model makes of them: log-probabilities and states, one column a reply token.

Every algorithm that trains a policy (`ppo`, `group`, `direct`) reads its batches through this module. Rows are replies;
`mask` (B, R) is True on real tokens, the end token included, and goes by length, never by token identity.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Self

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from .cores import divided, with_gradients
from .fast import chosen_logprobs
from .models import states_at
from .text import Dialogue, pad_right


@dataclass(frozen=True)
class ReplyBatch:
    """Dialogues (B of them, T tokens wide), with the tokens of their replies (R wide) in columns of their own."""

    ids: torch.Tensor  # (B, T) prompt and reply, padded on the right
    prompt_lengths: torch.Tensor  # (B,)
    mask: torch.Tensor  # (B, R)
    tokens: torch.Tensor  # (B, R) the reply's tokens

    @property
    def size(self) -> int:
        """How many real reply tokens there are."""
        return int(self.mask.sum())

    @property
    def lengths(self) -> torch.Tensor:
        """Tokens of prompt and reply together, (B,)."""
        return self.prompt_lengths + self.mask.sum(1)

    @property
    def context(self) -> tuple[torch.Tensor, torch.Tensor]:
        """What stands before reply tokens: the ids (B, T − 1) and lengths (B,) without each reply's last token, whose
        own state nobody reads."""
        return self.ids[:, :-1], self.lengths - self.mask.any(1).long()

    def rows(self, rows: torch.Tensor) -> Self:
        """Some of the replies: a minibatch, cut to its longest row. Fields beyond these four are (B, R) or (B,)."""
        width, replies = int(self.lengths[rows].max()), int(self.mask[rows].sum(1).max())
        cut = {field.name: getattr(self, field.name)[rows] for field in fields(self)}
        return type(self)(
            **{
                name: t[:, :width] if name == "ids" else t if t.dim() == 1 else t[:, :replies]
                for name, t in cut.items()
            }
        )


def reply_batch(dialogues: Sequence[Dialogue], pad_id: int, device: torch.device | str = "cpu") -> ReplyBatch:
    """Dialogues as one batch on `device`. A dialogue without a reply has a row of `mask` that is all False."""
    ids, lengths = pad_right([d.ids for d in dialogues], pad_id)
    prompt_lengths = torch.tensor([d.prompt_length for d in dialogues])
    position = torch.arange(int((lengths - prompt_lengths).max()))
    mask = position < (lengths - prompt_lengths)[:, None]
    tokens = ids.gather(1, (prompt_lengths[:, None] + position).clamp(max=ids.shape[1] - 1))
    return ReplyBatch(*(t.to(device) for t in (ids, prompt_lengths, mask, tokens)))


def state_places(replies: ReplyBatch) -> torch.Tensor:
    """Where the state before each real reply token stands, (N,), numbered through the flattened `context`.

    That is the place of the token before it: for the first one, the prompt's last token.
    """
    row, column = replies.mask.nonzero(as_tuple=True)
    return row * (replies.ids.shape[1] - 1) + replies.prompt_lengths[row] - 1 + column


def reply_states(model: PreTrainedModel, replies: ReplyBatch) -> torch.Tensor:
    """The final hidden state before each real reply token, (N, d), row after row; N is the number of such tokens."""
    ids, lengths = replies.context
    return states_at(model, ids, state_places(replies), lengths)


def token_logprobs(
    model: PreTrainedModel, states: torch.Tensor, tokens: torch.Tensor, temperature: float = 1.0, entropy: bool = True
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """log π of tokens (N,) from the states (N, d) before them, and without gradient each distribution's entropy too, if
    `entropy` is wanted.

    Logits are divided by the sampling temperature (detail 3 of the PPO details).
    """
    logits = model.get_output_embeddings()(states).float()  # (N, V)
    logits = logits if temperature == 1 else logits / temperature
    if torch.is_grad_enabled() or not entropy:
        return chosen_logprobs(logits, tokens), None
    logprobs = logits.log_softmax(-1)
    return logprobs.gather(1, tokens[:, None]).squeeze(1), -(logprobs.exp() * logprobs).sum(-1)


def reply_logprobs(
    model: PreTrainedModel, replies: ReplyBatch, temperature: float = 1.0, entropy: bool = True
) -> tuple[torch.Tensor, torch.Tensor]:
    """log π of each reply token and the entropy of its distribution, both (B, R), 0 outside the mask.

    Logits are computed for real reply tokens only. Entropy is left 0 where a gradient is wanted, or no `entropy`. The
    rows are divided among the cores, and so is the gradient.
    """

    def read(part: ReplyBatch) -> list[torch.Tensor]:
        found = token_logprobs(model, reply_states(model, part), part.tokens[part.mask], temperature, entropy)
        return [in_columns(one, part.mask) for one in found]

    return tuple(in_parts(read, replies, model.parameters()))


def in_parts(
    read: Callable[[ReplyBatch], Sequence[torch.Tensor]], replies: ReplyBatch, parameters: Iterable[torch.Tensor] = ()
) -> torch.Tensor:
    """K numbers of every reply token, (K, B, R): what `read` gives, K times (rows, their R), for the part of the rows
    that each core takes. A loss on them goes back, side by side too, to the `parameters` that `read` trains."""
    order = divided(replies.lengths)

    def columns(rows: torch.Tensor) -> torch.Tensor:
        found = torch.stack(list(read(replies.rows(rows) if len(order) > 1 else replies)))
        return F.pad(found, (0, replies.mask.shape[1] - found.shape[2]))

    joined = torch.cat(with_gradients(columns, order, parameters), dim=1)
    return joined if len(order) == 1 else joined[:, torch.cat(order).argsort()]


def in_columns(values: torch.Tensor | None, mask: torch.Tensor) -> torch.Tensor:
    """Values (N,) of the real reply tokens in their places: (B, R), 0 outside the mask; all 0 for None."""
    empty = torch.zeros(mask.shape, device=mask.device)
    return empty if values is None else empty.to(values.dtype).masked_scatter(mask, values)
