"""The fast path: the lab's own Llama shape, written for a processor with few cores. Same weights, same numbers.

`models.hidden_states` and `sampling.sample_tokens` come here when the model allows it (`supported`); every other model
goes through transformers. Nothing is taught here and nothing is decided here: a test holds that states, gradients and
sampled tokens equal those of transformers' own class.

What makes it fast, in the order of what it saves:

- one autograd node for all blocks, with a backward pass written out (`rlhf_lab.blocks`): no graph of small operations,
  and a single call that leaves Python's lock alone, so that each core really takes its part of a batch;
- no padding: matrix products, norms and the MLP see real tokens only, and attention alone sees the padded shape;
- the last block's MLP runs only where somebody reads the result (`Shape.wanted`): replies, or one token a sequence;
- query, key and value are one product, gate and up another; RMSNorm's gain is folded into the weights behind it;
- sampling writes keys and values into a cache of fixed size instead of growing one token by token.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, PreTrainedModel

from .blocks import WEIGHTS, Shape, block_forward, gather, next_token, normed, trunk_backward, trunk_forward

LIGHT = 150_000_000  # multiplications a token for all rows: below that, one core writes as fast as two (measured)


def supported(model: PreTrainedModel) -> bool:
    """Whether this model may take the fast path: a plain Llama shape in float32 on the CPU, as the lab makes it.

    Under `torch.autocast("cpu", torch.bfloat16)` it computes matrix products in bfloat16, under another kind nothing.
    """
    config = getattr(model, "config", None)
    if not isinstance(config, LlamaConfig) or type(model.base_model).__name__ != "LlamaModel":
        return False
    plain = (
        config.num_key_value_heads == config.num_attention_heads
        and config.head_dim * config.num_attention_heads == config.hidden_size
        and not (config.attention_bias or config.mlp_bias or config.attention_dropout)
        and config.hidden_act == "silu"
        and config.rope_parameters.get("rope_type", "default") == "default"
    )
    weight = model.base_model.embed_tokens.weight
    known = not torch.is_autocast_enabled("cpu") or torch.get_autocast_dtype("cpu") == torch.bfloat16
    return plain and known and weight.device.type == "cpu" and weight.dtype == torch.float32 and not hooked(model)


def hooked(model: PreTrainedModel) -> bool:
    """Whether somebody listens to, or has replaced, a part that the fast path would pass by."""
    modules = [model.base_model]  # by hand: `model.modules()` takes as long as reading a short text
    for module in modules:
        modules += filter(None, module._modules.values())
    return any(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or "forward" in vars(module)
        for module in modules
    )


# --- states -----------------------------------------------------------------------------------------------------------


def states(
    model: PreTrainedModel,
    ids: torch.Tensor,
    lengths: torch.Tensor | None = None,
    wanted: torch.Tensor | None = None,
) -> torch.Tensor:
    """Final hidden states (M, d) of right-padded ids (B, T) at the `wanted` places (M,) of (B·T).

    Without `wanted`: of every place, (B·T, d). `lengths` (B,) tells padding from tokens, so that it costs nothing.
    """
    trunk = model.base_model
    shape = shape_of(model, ids, lengths if wanted is not None else None, wanted)
    x = trunk.embed_tokens(gather(ids, shape).flatten())
    weights = [weight for block in trunk.layers for weight in weights_of(block)]
    if torch.is_grad_enabled():
        return trunk.norm(Trunk.apply(shape, x, *weights))
    with torch.autocast("cpu", enabled=False):
        return trunk.norm(trunk_forward(x, weights, shape, False)[0])


class Trunk(torch.autograd.Function):
    """All blocks of a model as one node of autograd's graph."""

    @staticmethod
    def forward(ctx: Any, shape: Shape, x: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", enabled=False):  # what it would do to single operations, `shape.bf16` says
            out, kept = trunk_forward(x, list(weights), shape, True)
        ctx.shape = shape
        ctx.save_for_backward(*weights, *kept)
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor):
        _, of_x, *needed = ctx.needs_input_grad
        weights, kept = list(ctx.saved_tensors[: len(needed)]), list(ctx.saved_tensors[len(needed) :])
        lowest = 0 if of_x else needed.index(True) // WEIGHTS
        with torch.autocast("cpu", enabled=False):
            d_x, *grads = trunk_backward(grad.contiguous(), weights, kept, ctx.shape, lowest)
        return None, d_x if of_x else None, *[None] * (len(needed) - len(grads)), *grads


def weights_of(block: nn.Module) -> list[torch.Tensor]:
    """A block's weights in the order that `rlhf_lab.blocks` takes them."""
    attention, mlp = block.self_attn, block.mlp
    return [
        block.input_layernorm.weight,
        attention.q_proj.weight,
        attention.k_proj.weight,
        attention.v_proj.weight,
        attention.o_proj.weight,
        block.post_attention_layernorm.weight,
        mlp.gate_proj.weight,
        mlp.up_proj.weight,
        mlp.down_proj.weight,
    ]


def shape_of(
    model: PreTrainedModel, ids: torch.Tensor, lengths: torch.Tensor | None, wanted: torch.Tensor | None
) -> Shape:
    """Where the tokens of right-padded ids (B, T) of these lengths (B,) are; `wanted` (M,) holds places in (B·T).

    Tokens are packed where at least a tenth of the batch is padding: below that, moving them costs more than it saves.
    """
    (rows, width), real = ids.shape, None
    if lengths is not None and int(lengths.sum()) <= 0.9 * rows * width:
        is_real = (torch.arange(width) < lengths[:, None]).flatten()
        real = is_real.nonzero().squeeze(1)
        if wanted is not None:
            wanted = (is_real.cumsum(0) - 1)[wanted]
    places = torch.arange(rows * width) if real is None else real
    cos, sin = rotation(model.config, places % width)
    bf16 = torch.is_autocast_enabled("cpu")
    return Shape(model.config.num_attention_heads, model.config.rms_norm_eps, cos, sin, rows, width, real, wanted, bf16)


def rotation(config: LlamaConfig, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine of the rotary angles, (N, 1, head width / 2), of positions (N,) (Su et al., arXiv:2104.09864)."""
    half = config.head_dim // 2
    frequency = config.rope_parameters["rope_theta"] ** -(torch.arange(half, dtype=torch.float32) / half)
    angle = (torch.arange(int(positions.max()) + 1, dtype=torch.float32)[:, None] * frequency)[:, None]
    return angle.cos().index_select(0, positions), angle.sin().index_select(0, positions)


# --- log-probabilities ------------------------------------------------------------------------------------------------


class ChosenLogprobs(torch.autograd.Function):
    """log softmax(logits) of one token a row, (N,) from logits (N, V) and tokens (N,). Any device, any model.

    Its gradient, g · (one-hot − softmax), is written at once; autograd would fill two more matrices of that size.
    """

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        logprobs = logits.log_softmax(-1)
        ctx.save_for_backward(logprobs, tokens)
        return logprobs.gather(1, tokens[:, None]).squeeze(1)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor):
        logprobs, tokens = ctx.saved_tensors
        d_logits = logprobs.exp().mul_(-grad[:, None])
        return d_logits.scatter_add_(1, tokens[:, None], grad[:, None]), None


chosen_logprobs = ChosenLogprobs.apply


# --- sampling ---------------------------------------------------------------------------------------------------------


class Decoder:
    """Writes replies token by token: keys and values of all earlier tokens lie in a cache of fixed size.

    Prompts stand on the left of the cache, padded on the left, so that all rows write into the same column. Always in
    float32.
    """

    def __init__(self, model: PreTrainedModel, prompts: list[list[int]], new_tokens: int) -> None:
        config = model.config
        self.heads, self.eps = config.num_attention_heads, config.rms_norm_eps
        trunk = model.base_model
        self.embedding = trunk.embed_tokens.weight
        self.matrices = [matrix for block in trunk.layers for matrix in folded(weights_of(block))]
        self.matrices.append((model.get_output_embeddings().weight * trunk.norm.weight).T)
        self.light = len(prompts) * sum(matrix.numel() for matrix in self.matrices) < LIGHT
        lengths = torch.tensor([len(ids) for ids in prompts])
        width = int(lengths.max())
        self.cos, self.sin = rotation(config, torch.arange(width + new_tokens))
        self.positions, self.column = lengths.clone(), width  # of the next token
        room, columns = (len(prompts), self.heads), width + new_tokens
        self.cache: list[torch.Tensor] = []  # of each block: keys (B, heads, head width, columns), then values
        for _ in trunk.layers:
            self.cache.append(torch.empty(*room, config.head_dim, columns))
            self.cache.append(torch.empty(*room, columns, config.head_dim))
        hidden = torch.arange(columns) < (width - lengths)[:, None]  # (B, columns): padding on the left
        mask = torch.zeros(hidden.shape).masked_fill_(hidden, -torch.inf)
        self.mask = mask[:, None, None].repeat(1, self.heads, 1, 1)
        with torch.autocast("cpu", enabled=False):
            self.logits = self._read(model, prompts, lengths)  # (B, V), of the next token

    def _read(self, model: PreTrainedModel, prompts: list[list[int]], lengths: torch.Tensor) -> torch.Tensor:
        """Takes the prompts in, all tokens at once, and gives the logits behind each."""
        width, layers = self.column, model.base_model.layers
        ids = torch.tensor([ids + [0] * (width - len(ids)) for ids in prompts])
        shape = shape_of(model, ids, lengths, torch.arange(len(ids)) * width + lengths - 1)
        x = self.embedding[gather(ids, shape).flatten()]
        to_the_right = (torch.arange(width) - (width - lengths)[:, None]).clamp(min=0)[:, None, :, None]
        for number, block in enumerate(layers):
            x, kept = block_forward(x, weights_of(block), shape, number == len(layers) - 1)
            _, _, _, _, k, v, *_ = kept
            self.cache[2 * number][..., :width] = k.gather(2, to_the_right.expand_as(k)).transpose(2, 3)
            self.cache[2 * number + 1][:, :, :width] = v.gather(2, to_the_right.expand_as(v))
        return normed(x, self.eps)[0] @ self.matrices[-1]

    def write(self, tokens: torch.Tensor) -> None:
        """Takes one more token a row (B,) in; `logits` are then those of the next."""
        x, cos, sin = self.embedding[tokens], self.cos[self.positions], self.sin[self.positions]
        with torch.autocast("cpu", enabled=False):
            self.logits = next_token(
                x, self.matrices, self.cache, self.mask, cos, sin, self.column, self.heads, self.eps
            )
        self.column, self.positions = self.column + 1, self.positions + 1

    def keep(self, rows: torch.Tensor) -> None:
        """Goes on with these rows only."""
        self.cache = [past[rows] for past in self.cache]
        self.mask, self.positions, self.logits = self.mask[rows], self.positions[rows], self.logits[rows]


def folded(weights: list[torch.Tensor]) -> list[torch.Tensor]:
    """A block's four matrices as `blocks.next_token` multiplies by them, from the right."""
    gain1, wq, wk, wv, wo, gain2, wgate, wup, wdown = weights
    matrices = torch.cat((wq, wk, wv)) * gain1, wo, torch.cat((wgate, wup)) * gain2, wdown
    return [matrix.T.contiguous() for matrix in matrices]
