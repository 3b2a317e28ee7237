"""A batch divided among cores gives the whole batch's gradient, and leaves threads and errors as they should be."""

from __future__ import annotations

import threading

import pytest
import torch

from rlhf_lab.cores import SMALLEST, add_gradients, divided, one_core, side_by_side, weighted_means, with_gradients


@pytest.fixture(params=[2, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_every_row_goes_to_one_part_and_parts_are_of_like_size(threads):
    lengths = torch.randint(20, 200, (64,), generator=torch.Generator().manual_seed(0))
    parts = divided(lengths)
    assert len(parts) == threads
    assert sorted(torch.cat(parts).tolist()) == list(range(64))
    tokens = [int(lengths[part].sum()) for part in parts]
    assert max(tokens) - min(tokens) <= int(lengths.max())


def test_a_small_batch_or_one_thread_is_not_divided(threads):
    assert len(divided(torch.full((8,), SMALLEST // 8))) == 1
    assert len(divided(torch.tensor([10_000]))) == 1  # one row cannot be divided
    with one_core():
        assert len(divided(torch.full((64,), 100))) == 1


def test_parts_add_up_to_the_gradient_of_the_whole(threads):
    torch.manual_seed(0)
    layer, x = torch.nn.Linear(5, 3), torch.randn(60, 5)
    unused = torch.nn.Parameter(torch.zeros(2))

    def loss(part):
        value = layer(part).square().mean()
        return value, {"loss": value.detach()}

    whole, _ = loss(x)
    expected = torch.autograd.grad(whole, list(layer.parameters()))
    parts = [x[:10], x[10:35], x[35:]]
    shares = [len(part) / 60 for part in parts]
    for times in (1, 2):  # gradients are added to what is there
        told = add_gradients(loss, parts, shares, [*layer.parameters(), unused])
        for parameter, grad in zip(layer.parameters(), expected, strict=True):
            torch.testing.assert_close(parameter.grad, times * grad)
    assert unused.grad is None
    assert weighted_means(told, shares)["loss"] == pytest.approx(whole.item())


def test_results_keep_the_order_and_run_on_several_threads_with_one_core_each(threads):
    barrier = threading.Barrier(threads, timeout=20)

    def work(number):
        barrier.wait()  # passes only if as many run at a time as there are threads
        return number, torch.get_num_threads(), threading.get_ident()

    found = side_by_side(work, list(range(threads)))
    assert [number for number, *_ in found] == list(range(threads))
    assert {cores for _, cores, _ in found} == {1}
    assert len({ident for *_, ident in found}) == threads
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("grad", [True, False])
def test_the_callers_gradient_mode_holds_in_every_part(threads, grad):
    with torch.set_grad_enabled(grad):
        assert set(side_by_side(lambda part: torch.is_grad_enabled(), range(8))) == {grad}


def test_the_callers_autocast_holds_in_every_part(threads):
    def seen(part):
        return torch.is_autocast_enabled("cpu"), (torch.ones(1, 2) @ torch.ones(2, 1)).dtype

    assert set(side_by_side(seen, range(8))) == {(False, torch.float32)}
    with torch.autocast("cpu", torch.bfloat16):
        assert set(side_by_side(seen, range(8))) == {(True, torch.bfloat16)}


@pytest.mark.parametrize("bad", range(4))
def test_what_a_part_raises_is_raised_and_threads_are_as_before(threads, bad):
    def work(number):
        if number == bad:
            raise ValueError(f"part {number}")
        return number

    with pytest.raises(ValueError, match=f"part {bad}"):
        side_by_side(work, range(4))
    assert torch.get_num_threads() == threads


def test_parts_may_be_divided_again(threads):
    """The live loop scores inside a step that is divided already."""
    outer = side_by_side(lambda n: sum(side_by_side(lambda m: m, range(n))), range(1, 6))
    assert outer == [0, 1, 3, 6, 10]


def test_one_core_is_given_back(threads):
    with pytest.raises(RuntimeError), one_core():
        assert torch.get_num_threads() == 1
        raise RuntimeError
    assert torch.get_num_threads() == threads
    with one_core(False):
        assert torch.get_num_threads() == threads


def test_a_loss_over_all_parts_has_the_gradient_of_the_undivided_one(threads):
    """The loss is no mean over parts here; one parameter is in no part, and another in one part only."""
    torch.manual_seed(0)
    layer, extra, unused = torch.nn.Linear(5, 3), torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.zeros(2))
    parts = [torch.randn(n, 5) for n in (10, 25, 7)]
    trained = [*layer.parameters(), extra, unused]

    def function(part):
        return layer(part).sin() * (extra if len(part) == 25 else 1.0)

    def gradients(pieces):
        x = torch.cat(tuple(pieces))
        loss = (x.sum(1).softmax(0) * x.square().sum(1)).sum()
        return loss, torch.autograd.grad(loss, trained, allow_unused=True)

    expected, found = gradients(map(function, parts)), gradients(with_gradients(function, parts, trained))
    torch.testing.assert_close(found[0], expected[0])
    for a, b in zip(found[1], expected[1], strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b)
    with torch.no_grad():
        assert not any(piece.requires_grad for piece in with_gradients(function, parts, trained))
