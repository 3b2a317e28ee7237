"""The blocks of a Llama model, written out: forward, backward, and one more token of a reply.

Plain functions of tensors for `rlhf_lab.fast`, which knows when they may be used. Each of the three at the end is one
TorchScript call where torch has that (`Compiled`): it holds Python's lock once and not for every operation, so that two
threads of one Python really compute side by side. Without TorchScript they run as they stand, with the same numbers.

(No `from __future__ import annotations` here: TorchScript wants the types of a NamedTuple themselves.)

Letters: N computed tokens, M of them wanted in the end, d the model's width, m the MLP's, B rows of T places.
"""

import sys
import threading
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

WEIGHTS = 9  # of a block: gain1, wq, wk, wv, wo, gain2, wgate, wup, wdown (TorchScript reads no constant: 9 below)


class Shape(NamedTuple):
    """What the blocks need to know beyond weights: heads, epsilon, the rotation of every token, where the tokens are.

    With `bf16`, matrix products are of bfloat16 numbers (the processor adds them up in float32); all else is float32.

    `real` (N,) holds the places of computed tokens in the flattened batch (B·T), None when all are computed; `wanted`
    (M,) the numbers of those computed tokens that somebody reads in the end, None for all.
    """

    heads: int
    eps: float
    cos: torch.Tensor  # (N, 1, head width / 2)
    sin: torch.Tensor
    rows: int
    width: int
    real: torch.Tensor | None
    wanted: torch.Tensor | None
    bf16: bool = False


class Compiled:
    """A function that becomes one TorchScript call when it is first used; itself where torch cannot."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.lock = function, threading.Lock()
        self.ready: Callable[..., Any] | None = None

    def __call__(self, *arguments: Any) -> Any:
        if self.ready is None:
            with self.lock:
                self.ready = self.ready or scripted(self.function)
        return self.ready(*arguments)


def scripted(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function as TorchScript, or the function: where torch has none for this Python (3.14 on) or no more."""
    if sys.version_info >= (3, 14):
        return function
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch would have us use a C++ compiler instead
        try:
            return torch.jit.script(function)
        except Exception:  # its frontend has errors of its own, and source code may be out of reach
            return function


# --- the parts --------------------------------------------------------------------------------------------------------


def product(a: torch.Tensor, b: torch.Tensor, bf16: bool) -> torch.Tensor:
    """a @ b in float32; with `bf16` of both rounded to bfloat16, as autocast would."""
    if bf16:
        return (a.to(torch.bfloat16) @ b.to(torch.bfloat16)).float()
    return a @ b


def product_added(x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, bf16: bool) -> torch.Tensor:
    """x + `product`."""
    if bf16:
        return product(a, b, bf16).add_(x)
    return torch.addmm(x, a, b)


def spread(x: torch.Tensor, shape: Shape) -> torch.Tensor:
    """Computed tokens (N, d) in the padded shape (B, T, d), padding 0."""
    real = shape.real
    if real is not None:
        x = x.new_zeros([shape.rows * shape.width, x.shape[-1]]).index_copy_(0, real, x)
    return x.view(shape.rows, shape.width, -1)


def gather(x: torch.Tensor, shape: Shape) -> torch.Tensor:
    """The computed tokens (N, d) of a padded (B, T, …)."""
    x = x.reshape(shape.rows * shape.width, -1)
    real = shape.real
    return x if real is None else x.index_select(0, real)


def normed(x: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    """x / rms(x) without gain, (N, d), and 1 / rms(x), (N, 1)."""
    mean_square = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1])
    scale = mean_square.add_(eps).rsqrt_()
    return x * scale, scale


def normed_backward(grad: torch.Tensor, unit: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """The gradient through `normed`, written into `grad`: scale · (g − unit · mean(g · unit))."""
    along = (grad * unit).mean(-1, keepdim=True).neg_()
    return grad.addcmul_(unit, along).mul_(scale)


def rotate_(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary embedding of x (N, heads, head width), in place: pairs (i, i + half) turn by their position's angle."""
    first, second = x.chunk(2, dim=-1)
    turned = first * cos
    turned.addcmul_(second, sin, value=-1)
    second.mul_(cos).addcmul_(first, sin)
    first.copy_(turned)
    return x


def silu_times_backward(grad: torch.Tensor, gate_up: torch.Tensor) -> torch.Tensor:
    """The gradient (M, 2m) of silu(gate)·up with respect to gate and up, side by side; `grad` is used up."""
    gate, up = gate_up.chunk(2, dim=-1)
    result = torch.empty_like(gate_up)
    d_gate, d_up = result.chunk(2, dim=-1)
    torch.mul(torch.nn.functional.silu(gate), grad, out=d_up)
    torch.ops.aten.silu_backward(grad.mul_(up), gate, grad_input=d_gate)
    return result


# --- one block --------------------------------------------------------------------------------------------------------


def block_forward(
    x: torch.Tensor, weights: list[torch.Tensor], shape: Shape, last: bool
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """One block: x (N, d) → (N, d), the last one's (M, d) for wanted tokens; and what its backward pass needs."""
    gain1, wq, wk, wv, wo, gain2, wgate, wup, wdown = weights
    unit1, scale1 = normed(x, shape.eps)
    w_qkv = torch.cat((wq, wk, wv)).mul_(gain1)
    qkv = product(unit1, w_qkv.t(), shape.bf16)  # (N, 3d)
    rotate_(qkv.view(x.shape[0], 3 * shape.heads, -1)[:, : 2 * shape.heads], shape.cos, shape.sin)
    apart = spread(qkv, shape).view(shape.rows, shape.width, 3, shape.heads, -1).permute(2, 0, 3, 1, 4)
    q, k, v = apart[0], apart[1], apart[2]  # (B, heads, T, head width)
    mixed, logsumexp = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, True)
    seen = gather(mixed.transpose(1, 2), shape)  # (N, d)
    wanted = shape.wanted
    if last and wanted is not None:
        x, seen = x.index_select(0, wanted), seen.index_select(0, wanted)
    middle = product_added(x, seen, wo.t(), shape.bf16)
    unit2, scale2 = normed(middle, shape.eps)
    w_in = torch.cat((wgate, wup)).mul_(gain2)
    gate_up = product(unit2, w_in.t(), shape.bf16)  # (M, 2m)
    gate, up = gate_up.chunk(2, dim=-1)
    inner = torch.nn.functional.silu(gate).mul_(up)
    out = product_added(middle, inner, wdown.t(), shape.bf16)
    return out, [unit1, scale1, w_qkv, q, k, v, mixed, logsumexp, seen, unit2, scale2, w_in, gate_up, inner]


def block_backward(
    grad: torch.Tensor, weights: list[torch.Tensor], kept: list[torch.Tensor], shape: Shape, last: bool
) -> list[torch.Tensor]:
    """The gradients of x and of the nine weights, from that of the block's result."""
    gain1, wq, wk, wv, wo, gain2, wgate, wup, wdown = weights
    unit1, scale1, w_qkv, q, k, v, mixed, logsumexp, seen, unit2, scale2, w_in, gate_up, inner = kept
    # the MLP
    d_inner = product(grad, wdown, shape.bf16)
    d_down = product(grad.t(), inner, shape.bf16)
    d_gate_up = silu_times_backward(d_inner, gate_up)
    d_in = product(d_gate_up.t(), unit2, shape.bf16)
    d_middle = normed_backward(product(d_gate_up, w_in, shape.bf16), unit2, scale2).add_(grad)
    # attention
    d_seen = product(d_middle, wo, shape.bf16)
    d_out = product(d_middle.t(), seen, shape.bf16)
    wanted = shape.wanted
    if last and wanted is not None:
        d_middle = torch.zeros_like(unit1).index_copy_(0, wanted, d_middle)
        d_seen = torch.zeros_like(unit1).index_copy_(0, wanted, d_seen)
    d_mixed = spread(d_seen, shape).view(shape.rows, shape.width, shape.heads, -1).transpose(1, 2)
    d_q, d_k, d_v = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        d_mixed, q, k, v, mixed, logsumexp, 0.0, True
    )
    d_qkv = torch.cat([gather(d.transpose(1, 2), shape) for d in [d_q, d_k, d_v]], dim=-1)  # (N, 3d)
    rotate_(d_qkv.view(d_qkv.shape[0], 3 * shape.heads, -1)[:, : 2 * shape.heads], shape.cos, -shape.sin)
    d_weight = product(d_qkv.t(), unit1, shape.bf16)
    d_x = normed_backward(product(d_qkv, w_qkv, shape.bf16), unit1, scale1).add_(d_middle)
    # the gains were folded into the weights behind them
    d_wq, d_wk, d_wv = d_weight.chunk(3)
    d_wgate, d_wup = d_in.chunk(2)
    d_gain1 = (d_wq * wq).sum(0) + (d_wk * wk).sum(0) + (d_wv * wv).sum(0)
    d_gain2 = (d_wgate * wgate).sum(0) + (d_wup * wup).sum(0)
    d_weight.mul_(gain1)
    d_in.mul_(gain2)
    return [d_x, d_gain1, d_wq, d_wk, d_wv, d_out, d_gain2, d_wgate, d_wup, d_down]


# --- all blocks -------------------------------------------------------------------------------------------------------


def _trunk_forward(
    x: torch.Tensor, weights: list[torch.Tensor], shape: Shape, keep: bool
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """All blocks: embedded tokens x (N, d) → (M, d), and with `keep` what the backward pass needs, block by block."""
    kept: list[torch.Tensor] = []
    for start in range(0, len(weights), 9):
        x, own = block_forward(x, weights[start : start + 9], shape, start + 9 == len(weights))
        if keep:
            kept.extend(own)
    return x, kept


def _trunk_backward(
    grad: torch.Tensor, weights: list[torch.Tensor], kept: list[torch.Tensor], shape: Shape, lowest: int
) -> list[torch.Tensor]:
    """The gradients of x and of the weights of all blocks from number `lowest` on (those below are not trained)."""
    found: list[torch.Tensor] = []
    blocks = len(weights) // 9
    for number in range(blocks - 1, lowest - 1, -1):
        own = weights[9 * number : 9 * number + 9]
        saved = kept[14 * number : 14 * number + 14]  # as many tensors as `block_forward` keeps
        grads = block_backward(grad, own, saved, shape, number == blocks - 1)
        grad = grads[0]
        found = grads[1:] + found
    return [grad] + found


def _next_token(
    x: torch.Tensor,
    matrices: list[torch.Tensor],
    cache: list[torch.Tensor],
    mask: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    column: int,
    heads: int,
    eps: float,
) -> torch.Tensor:
    """One embedded token a row, x (B, d), through all blocks → logits (B, V) of the token that follows it.

    `matrices`: four a block as `fast.folded` makes them, then the output matrix. `cache`: keys (B, heads, head width,
    columns) and values (B, heads, columns, head width) of each block, into which `column` is written. `mask` (B, heads,
    1, columns) is −∞ at padding, else 0.
    """
    rows, d = x.shape[0], x.shape[1]
    seen_mask = mask[..., : column + 1].flatten(0, 1)  # (B · heads, 1, columns so far)
    scale = (d // heads) ** -0.5
    for block in range(len(cache) // 2):
        w_qkv, wo, w_in, wdown = matrices[4 * block : 4 * block + 4]
        keys, values = cache[2 * block : 2 * block + 2]
        qkv = (normed(x, eps)[0] @ w_qkv).view(rows, 3 * heads, -1)
        rotate_(qkv[:, : 2 * heads], cos, sin)
        q, k, v = qkv.chunk(3, dim=1)
        keys.select(3, column).copy_(k)
        values.select(2, column).copy_(v)
        past = keys.flatten(0, 1)[:, :, : column + 1]
        weights = torch.baddbmm(seen_mask, q.reshape(rows * heads, 1, -1), past, alpha=scale).softmax(-1)
        seen = torch.bmm(weights, values.flatten(0, 1)[:, : column + 1])
        x = torch.addmm(x, seen.view(rows, d), wo)
        gate, up = (normed(x, eps)[0] @ w_in).chunk(2, dim=-1)
        x = torch.addmm(x, torch.nn.functional.silu(gate).mul_(up), wdown)
    return normed(x, eps)[0] @ matrices[-1]


trunk_forward, trunk_backward, next_token = Compiled(_trunk_forward), Compiled(_trunk_backward), Compiled(_next_token)
