"""One part of a batch for each core: gradients and scores computed side by side.

A small model's operations are too short to be split: two OpenMP threads wait for each other after every one of them,
and where another program (a browser) takes a core for a moment, both wait for it each time. So the lab splits the batch
instead: each thread takes some rows through the whole model and meets the others once a step. The gradient of a mean is
the weighted sum of the parts' gradients, so the numbers are those of the undivided batch, up to rounding. What is done
once a step, clipping and the optimiser's step, one core does (`step_on_one_core`).

The number of parts follows `torch.get_num_threads()`: 1 (as in the live loop's worker) means no division.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from typing import Any, TypeVar

import torch

P = TypeVar("P")
R = TypeVar("R")

SMALLEST = 192  # tokens: below this a part costs more in overhead than it saves
LARGE = 20_000_000  # parameters: up to here one core clips and steps faster than two (measured up to 11 million)


def divided(lengths: torch.Tensor, beside: int = 1) -> list[torch.Tensor]:
    """Numbers of the rows that each core takes, of a batch whose rows have these lengths (B,) in tokens.

    Every part gets rows of like lengths, so that all take about as long. One part only on a GPU, and for small batches.
    With `beside` models computed at a time, each gets its share of the cores.
    """
    parts = 1
    if lengths.device.type == "cpu":
        parts = max(1, min(torch.get_num_threads() // beside, len(lengths), int(lengths.sum()) // SMALLEST))
    if parts == 1:
        return [torch.arange(len(lengths), device=lengths.device)]
    order = lengths.argsort(descending=True, stable=True)
    return [order[part::parts].sort().values for part in range(parts)]


def side_by_side(function: Callable[[P], R], parts: Sequence[P]) -> list[R]:
    """function(part) for every part, as many at a time as there are threads; results in the order of the parts.

    Each thread computes with one core. What a part raises is raised here, after the other threads have ended.
    """
    workers, grad = min(torch.get_num_threads(), len(parts)), torch.is_grad_enabled()
    rounds, precision = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")
    if workers <= 1:
        return [function(part) for part in parts]
    numbers, results = iter(range(len(parts))), {}

    def work() -> None:
        with torch.set_grad_enabled(grad), torch.autocast("cpu", precision, enabled=rounds):  # both belong to a thread
            while (number := next(numbers, None)) is not None:
                results[number] = function(parts[number])

    with one_core():
        others = [_pool().submit(work) for _ in range(workers - 1)]
        try:
            work()
        finally:
            wait(others)
        for other in others:
            other.result()
        return [results[number] for number in range(len(parts))]


@contextmanager
def one_core(wanted: bool = True) -> Iterator[None]:
    """Inside, this thread computes with one core (if `wanted`)."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if wanted else threads)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def step_on_one_core(parameters: Iterable[torch.Tensor]) -> AbstractContextManager[None]:
    """Inside, one core adds up gradients, clips them or takes the optimiser's step, unless the model is large.

    It goes over the parameters tensor by tensor; calling the other core each time would take longer than the work.
    """
    return one_core(sum(p.numel() for p in parameters) < LARGE)


@cache
def _pool() -> ThreadPoolExecutor:
    """Threads for all who compute side by side: as many as they ask for together, made when they are first needed."""
    return ThreadPoolExecutor(256, "rlhf-lab core", initializer=torch.set_num_threads, initargs=(1,))


def with_gradients(
    function: Callable[[P], torch.Tensor], parts: Sequence[P], parameters: Iterable[torch.Tensor]
) -> tuple[torch.Tensor, ...]:
    """function(part) for every part, computed side by side; where the caller's loss goes back through them to
    `parameters` (all that `function` trains), so are their gradients. For losses that are no mean over parts."""
    if len(parts) == 1 or not torch.is_grad_enabled():
        return tuple(side_by_side(function, parts))
    trained = [p for p in parameters if p.requires_grad]
    return _SideBySide.apply(function, parts, *trained)


class _SideBySide(torch.autograd.Function):
    """Each part has a graph of its own, which its own thread walks back."""

    @staticmethod
    def forward(ctx: Any, function: Callable[[P], torch.Tensor], parts: Sequence[P], *trained: torch.Tensor):
        with torch.enable_grad():
            ctx.results, ctx.trained = side_by_side(function, parts), trained
        return tuple(result.detach() for result in ctx.results)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor):
        def back(job: tuple[torch.Tensor, torch.Tensor]) -> Sequence[torch.Tensor | None]:
            return torch.autograd.grad(job[0], ctx.trained, job[1], allow_unused=True)

        found = side_by_side(back, list(zip(ctx.results, grads, strict=True)))
        return None, None, *_added(found, ctx.trained)


def _added(
    parts: Sequence[Sequence[torch.Tensor | None]], parameters: Sequence[torch.Tensor]
) -> list[torch.Tensor | None]:
    """Each parameter's gradients of all parts, added up in place; None where no part has one."""
    total, *others = map(list, parts)
    with step_on_one_core(parameters):
        for more in others:
            total = [a if b is None else b if a is None else a.add_(b) for a, b in zip(total, more, strict=True)]
    return total


def add_gradients(
    loss: Callable[[P], tuple[torch.Tensor, R]],
    parts: Sequence[P],
    shares: Sequence[float],
    parameters: Iterable[torch.Tensor],
) -> list[R]:
    """Adds the gradient of Σ share · loss(part) to every parameter's `.grad`; returns what else `loss` gave, by part.

    `loss(part)` gives a scalar, the mean over the part, and anything to be reported; `shares` are the parts' weights in
    the whole batch and add up to 1.
    """
    trained = [p for p in parameters if p.requires_grad]

    def gradients(job: tuple[P, float]) -> tuple[R, Sequence[torch.Tensor | None]]:
        part, share = job
        value, told = loss(part)
        return told, torch.autograd.grad(value * share, trained, allow_unused=True)

    results = side_by_side(gradients, list(zip(parts, shares, strict=True)))
    for parameter, grad in zip(trained, _added([grads for _, grads in results], trained), strict=True):
        if grad is not None:
            parameter.grad = grad if parameter.grad is None else parameter.grad.add_(grad)
    return [told for told, _ in results]


def weighted_means(figures: Sequence[dict[str, torch.Tensor]], shares: Sequence[float]) -> dict[str, float]:
    """Means over the whole batch from those of its parts; a part may tell of some figures only."""
    means: dict[str, float] = {}
    for part, share in zip(figures, shares, strict=True):
        for name, value in part.items():
            means[name] = means.get(name, 0.0) + share * value.item()
    return means
