"""The fast path: the lab's own Llama shape, written for a processor with few cores. Same weights, same numbers.

`models.hidden_states` and `sampling.sample_tokens` come here when the model allows it (`supported`); every other model
goes through transformers. Nothing is taught here and nothing is decided here: a test holds that states, gradients and
sampled tokens equal those of transformers' own class.

What makes it fast, in the order of what it saves:

- one autograd node for a whole block, with a backward pass written out: no graph of small operations, buffers reused;
- no padding: matrix products, norms and the MLP see real tokens only, and attention alone sees the padded shape;
- the last block's MLP runs only where somebody reads the result (`Layout.wanted`): replies, or one token a sequence;
- query, key and value are one product, gate and up another; RMSNorm's gain is folded into the weights behind it;
- sampling writes keys and values into a cache of fixed size instead of growing one token by token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, PreTrainedModel

aten = torch.ops.aten

LIGHT = 150_000_000  # multiplications a token for all rows: below that, one core writes as fast as two (measured)


def supported(model: PreTrainedModel) -> bool:
    """Whether this model may take the fast path: a plain Llama shape in float32 on the CPU, as the lab makes it."""
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
    return plain and weight.device.type == "cpu" and weight.dtype == torch.float32 and not hooked(model)


def hooked(model: PreTrainedModel) -> bool:
    """Whether somebody listens to, or has replaced, a part that the fast path would pass by."""
    return any(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or "forward" in vars(module)
        for module in model.base_model.modules()
    )


# --- where the tokens are ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layout:
    """Which places of a padded batch (B, T) hold real tokens, and which of these are read in the end.

    With `real` None every place is computed, padding too (there is little of it). `wanted` holds numbers of computed
    tokens, None for all.
    """

    rows: int
    width: int
    real: torch.Tensor | None  # (N,) places in the flattened batch
    wanted: torch.Tensor | None  # (M,)

    @property
    def positions(self) -> torch.Tensor:
        """The position of every computed token in its sequence, (N,)."""
        places = torch.arange(self.rows * self.width) if self.real is None else self.real
        return places % self.width

    def spread(self, x: torch.Tensor) -> torch.Tensor:
        """Computed tokens (N, d) in the padded shape (B, T, d), padding 0."""
        if self.real is not None:
            x = x.new_zeros(self.rows * self.width, x.shape[-1]).index_copy_(0, self.real, x)
        return x.view(self.rows, self.width, -1)

    def gather(self, x: torch.Tensor) -> torch.Tensor:
        """The computed tokens (N, d) of a padded (B, T, d)."""
        x = x.reshape(self.rows * self.width, -1)
        return x if self.real is None else x.index_select(0, self.real)


def layout_of(shape: torch.Size, lengths: torch.Tensor | None, wanted: torch.Tensor | None) -> Layout:
    """The layout of right-padded sequences (B, T) of these lengths (B,); `wanted` (M,) holds places in (B·T).

    Tokens are packed where at least a tenth of the batch is padding: below that, moving them costs more than it saves.
    """
    rows, width = shape
    if lengths is None or int(lengths.sum()) > 0.9 * rows * width:
        return Layout(rows, width, None, wanted)
    is_real = (torch.arange(width) < lengths[:, None]).flatten()
    if wanted is not None:
        wanted = (is_real.cumsum(0) - 1)[wanted]
    return Layout(rows, width, is_real.nonzero().squeeze(1), wanted)


# --- one block --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shape:
    """What a block needs to know beyond its weights: heads, epsilon, the rotation of every token, the layout."""

    heads: int
    eps: float
    cos: torch.Tensor  # (N, 1, head width / 2)
    sin: torch.Tensor
    layout: Layout
    last: bool  # the last block computes its MLP for wanted tokens only

    @property
    def wanted(self) -> torch.Tensor | None:
        return self.layout.wanted if self.last else None


def normed(x: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    """x / rms(x) without gain, (N, d), and 1 / rms(x), (N, 1)."""
    mean_square = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1])
    scale = mean_square.add_(eps).rsqrt_()
    return x * scale, scale


def normed_backward(grad: torch.Tensor, unit: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """The gradient through `normed`, written into `grad`: scale · (g − unit · mean(g · unit))."""
    along = (grad * unit).mean(-1, keepdim=True).neg_()
    return grad.addcmul_(unit, along).mul_(scale)


def rotate_(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> None:
    """Rotary embedding of x (N, heads, head width), in place: pairs (i, i + half) turn by their position's angle."""
    first, second = x.chunk(2, dim=-1)
    turned = first * cos
    turned.addcmul_(second, sin, value=-1)
    second.mul_(cos).addcmul_(first, sin)
    first.copy_(turned)


def block_forward(x: torch.Tensor, weights: tuple[torch.Tensor, ...], shape: Shape) -> tuple[torch.Tensor, tuple]:
    """One transformer block: x (N, d) → (N or M, d), and what its backward pass needs."""
    gain1, wq, wk, wv, wo, gain2, wgate, wup, wdown = weights
    n, d = x.shape
    unit1, scale1 = normed(x, shape.eps)
    w_qkv = torch.cat((wq, wk, wv)).mul_(gain1)
    qkv = unit1 @ w_qkv.T  # (N, 3d)
    rotate_(qkv.view(n, 3 * shape.heads, -1)[:, : 2 * shape.heads], shape.cos, shape.sin)
    q, k, v = heads_of(shape.layout.spread(qkv), shape.heads)  # (B, heads, T, head width)
    mixed, logsumexp = aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, True)
    seen = shape.layout.gather(mixed.transpose(1, 2))  # (N, d)
    if shape.wanted is not None:
        x, seen = x.index_select(0, shape.wanted), seen.index_select(0, shape.wanted)
    middle = torch.addmm(x, seen, wo.T)
    unit2, scale2 = normed(middle, shape.eps)
    w_in = torch.cat((wgate, wup)).mul_(gain2)
    gate_up = unit2 @ w_in.T  # (M, 2m)
    gate, up = gate_up.chunk(2, dim=-1)
    inner = nn.functional.silu(gate).mul_(up)
    out = torch.addmm(middle, inner, wdown.T)
    return out, (unit1, scale1, w_qkv, q, k, v, mixed, logsumexp, seen, unit2, scale2, w_in, gate_up, inner)


def heads_of(qkv: torch.Tensor, heads: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Query, key and value (B, heads, T, head width) each, as views of (B, T, 3d)."""
    b, t, _ = qkv.shape
    q, k, v = qkv.view(b, t, 3, heads, -1).permute(2, 0, 3, 1, 4)
    return q, k, v


class Block(torch.autograd.Function):
    """`block_forward` with its backward pass written out."""

    @staticmethod
    def forward(ctx: Any, shape: Shape, x: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
        out, saved = block_forward(x, weights, shape)
        ctx.shape = shape
        ctx.save_for_backward(*weights, *saved)
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor):
        gain1, wq, wk, wv, wo, gain2, wgate, wup, wdown, *saved = ctx.saved_tensors
        unit1, scale1, w_qkv, q, k, v, mixed, logsumexp, seen, unit2, scale2, w_in, gate_up, inner = saved
        shape, layout = ctx.shape, ctx.shape.layout
        # the MLP
        d_inner = grad @ wdown
        d_down = grad.T @ inner
        d_gate_up = silu_times_backward(d_inner, gate_up)
        d_in = d_gate_up.T @ unit2
        d_middle = normed_backward(d_gate_up @ w_in, unit2, scale2).add_(grad)
        # attention
        d_seen = d_middle @ wo
        d_out = d_middle.T @ seen
        if shape.wanted is not None:
            d_middle = d_middle.new_zeros(unit1.shape).index_copy_(0, shape.wanted, d_middle)
            d_seen = d_seen.new_zeros(unit1.shape).index_copy_(0, shape.wanted, d_seen)
        d_mixed = layout.spread(d_seen).view(layout.rows, layout.width, shape.heads, -1).transpose(1, 2)
        d_q, d_k, d_v = aten._scaled_dot_product_flash_attention_for_cpu_backward(
            d_mixed, q, k, v, mixed, logsumexp, 0.0, True
        )
        d_qkv = torch.cat([layout.gather(d.transpose(1, 2)) for d in (d_q, d_k, d_v)], dim=-1)  # (N, 3d)
        turned = d_qkv.view(len(d_qkv), 3 * shape.heads, -1)[:, : 2 * shape.heads]
        rotate_(turned, shape.cos, -shape.sin)
        d_weight = d_qkv.T @ unit1
        d_x = normed_backward(d_qkv @ w_qkv, unit1, scale1).add_(d_middle)
        # the gains were folded into the weights behind them
        d_gain1 = sum((d * w).sum(0) for d, w in zip(d_weight.chunk(3), (wq, wk, wv), strict=True))
        d_gain2 = sum((d * w).sum(0) for d, w in zip(d_in.chunk(2), (wgate, wup), strict=True))
        d_wq, d_wk, d_wv = d_weight.mul_(gain1).chunk(3)
        d_wgate, d_wup = d_in.mul_(gain2).chunk(2)
        return None, d_x, d_gain1, d_wq, d_wk, d_wv, d_out, d_gain2, d_wgate, d_wup, d_down


def silu_times_backward(grad: torch.Tensor, gate_up: torch.Tensor) -> torch.Tensor:
    """The gradient (M, 2m) of silu(gate)·up with respect to gate and up, side by side in (M, 2m)."""
    gate, up = gate_up.chunk(2, dim=-1)
    result = torch.empty_like(gate_up)
    d_gate, d_up = result.chunk(2, dim=-1)
    torch.mul(nn.functional.silu(gate), grad, out=d_up)
    aten.silu_backward.grad_input(grad.mul_(up), gate, grad_input=d_gate)
    return result


# --- the model --------------------------------------------------------------------------------------------------------


def weights_of(block: nn.Module) -> tuple[torch.Tensor, ...]:
    """A block's weights in the order that `block_forward` takes them."""
    attention, mlp = block.self_attn, block.mlp
    return (
        block.input_layernorm.weight,
        attention.q_proj.weight,
        attention.k_proj.weight,
        attention.v_proj.weight,
        attention.o_proj.weight,
        block.post_attention_layernorm.weight,
        mlp.gate_proj.weight,
        mlp.up_proj.weight,
        mlp.down_proj.weight,
    )


def rotation(config: LlamaConfig, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine of the rotary angles, (N, 1, head width / 2), of positions (N,) (Su et al., arXiv:2104.09864)."""
    half = config.head_dim // 2
    frequency = config.rope_parameters["rope_theta"] ** -(torch.arange(half, dtype=torch.float32) / half)
    angle = (torch.arange(int(positions.max()) + 1, dtype=torch.float32)[:, None] * frequency)[:, None]
    return angle.cos().index_select(0, positions), angle.sin().index_select(0, positions)


def states(
    model: PreTrainedModel,
    ids: torch.Tensor,
    lengths: torch.Tensor | None = None,
    wanted: torch.Tensor | None = None,
) -> torch.Tensor:
    """Final hidden states (M, d) of right-padded ids (B, T) at the `wanted` places (M,) of (B·T).

    Without `wanted`: of every place, (B·T, d). `lengths` (B,) tells padding from tokens, so that it costs nothing.
    """
    trunk, config = model.base_model, model.config
    layout = layout_of(ids.shape, lengths if wanted is not None else None, wanted)
    cos, sin = rotation(config, layout.positions)
    x = trunk.embed_tokens(layout.gather(ids).flatten())
    grad = torch.is_grad_enabled()
    for number, block in enumerate(trunk.layers):
        last = number == len(trunk.layers) - 1
        shape = Shape(config.num_attention_heads, config.rms_norm_eps, cos, sin, layout, last)
        x = Block.apply(shape, x, *weights_of(block)) if grad else block_forward(x, weights_of(block), shape)[0]
    return trunk.norm(x)


# --- sampling ---------------------------------------------------------------------------------------------------------


class Decoder:
    """Writes replies token by token: keys and values of all earlier tokens lie in a cache of fixed size.

    Prompts stand on the left of the cache, padded on the left, so that all rows write into the same column.
    """

    def __init__(self, model: PreTrainedModel, prompts: list[list[int]], new_tokens: int) -> None:
        config = model.config
        self.heads, self.eps = config.num_attention_heads, config.rms_norm_eps
        trunk = model.base_model
        self.embedding = trunk.embed_tokens.weight
        self.head = (model.get_output_embeddings().weight * trunk.norm.weight).T
        self.blocks = [_folded(weights_of(block)) for block in trunk.layers]
        size = self.head.numel() + sum(w.numel() for block in self.blocks for w in block)
        self.light = len(prompts) * size < LIGHT
        lengths = torch.tensor([len(ids) for ids in prompts])
        width = int(lengths.max())
        self.cos, self.sin = rotation(config, torch.arange(width + new_tokens))
        self.positions, self.column = lengths.clone(), width  # of the next token
        room, columns = (len(prompts), self.heads), width + new_tokens
        self.cache = [  # keys (B, heads, head width, columns), values (B, heads, columns, head width)
            (torch.empty(*room, config.head_dim, columns), torch.empty(*room, columns, config.head_dim))
            for _ in self.blocks
        ]
        hidden = torch.arange(columns) < (width - lengths)[:, None]  # (B, columns): padding on the left
        mask = torch.zeros(hidden.shape).masked_fill_(hidden, -torch.inf)
        self.mask = mask[:, None, None].repeat(1, self.heads, 1, 1)
        self.logits = self._read(model, prompts, lengths)  # (B, V), of the next token

    def _read(self, model: PreTrainedModel, prompts: list[list[int]], lengths: torch.Tensor) -> torch.Tensor:
        """Takes the prompts in, all tokens at once, and gives the logits behind each."""
        width = self.column
        ids = torch.tensor([ids + [0] * (width - len(ids)) for ids in prompts])
        last = torch.arange(len(ids)) * width + lengths - 1
        layout = layout_of(ids.shape, lengths, last)
        cos, sin = (table.index_select(0, layout.positions) for table in (self.cos, self.sin))
        x = self.embedding[layout.gather(ids).flatten()]
        to_the_right = (torch.arange(width) - (width - lengths)[:, None]).clamp(min=0)[:, None, :, None]
        for block, (keys, values) in zip(model.base_model.layers, self.cache, strict=True):
            shape = Shape(self.heads, self.eps, cos, sin, layout, block is model.base_model.layers[-1])
            x, (_, _, _, _, k, v, *_) = block_forward(x, weights_of(block), shape)
            keys[..., :width] = k.gather(2, to_the_right.expand_as(k)).transpose(2, 3)
            values[:, :, :width] = v.gather(2, to_the_right.expand_as(v))
        return normed(x, self.eps)[0] @ self.head

    def write(self, tokens: torch.Tensor) -> None:
        """Takes one more token a row (B,) in; `logits` are then those of the next."""
        at, x = self.column, self.embedding[tokens]  # (B, d)
        cos, sin = self.cos[self.positions], self.sin[self.positions]
        mask = self.mask[..., : at + 1].flatten(0, 1)  # (B · heads, 1, columns so far)
        for (w_qkv, wo, w_in, wdown), (keys, values) in zip(self.blocks, self.cache, strict=True):
            qkv = (normed(x, self.eps)[0] @ w_qkv).view(len(x), 3 * self.heads, -1)
            rotate_(qkv[:, : 2 * self.heads], cos, sin)
            q, keys[..., at], values[:, :, at] = qkv.chunk(3, dim=1)
            q, keys, values = q.reshape(len(mask), 1, -1), keys.flatten(0, 1), values.flatten(0, 1)
            weights = torch.baddbmm(mask, q, keys[..., : at + 1], alpha=q.shape[-1] ** -0.5).softmax(-1)
            seen = torch.bmm(weights, values[:, : at + 1])
            x = torch.addmm(x, seen.view(len(x), -1), wo)
            gate, up = (normed(x, self.eps)[0] @ w_in).chunk(2, dim=-1)
            x = torch.addmm(x, nn.functional.silu(gate).mul_(up), wdown)
        self.column, self.positions = at + 1, self.positions + 1
        self.logits = normed(x, self.eps)[0] @ self.head

    def keep(self, rows: torch.Tensor) -> None:
        """Goes on with these rows only."""
        self.cache = [(keys[rows], values[rows]) for keys, values in self.cache]
        self.mask, self.positions, self.logits = self.mask[rows], self.positions[rows], self.logits[rows]


def _folded(weights: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """A block's four matrices as `Decoder.write` multiplies by them, from the right."""
    gain1, wq, wk, wv, wo, gain2, wgate, wup, wdown = weights
    matrices = torch.cat((wq, wk, wv)) * gain1, wo, torch.cat((wgate, wup)) * gain2, wdown
    return tuple(matrix.T.contiguous() for matrix in matrices)
