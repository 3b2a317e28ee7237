"""Figures: what a reader would look at: the numbers drawn, the axes' meaning, one clear error for bad input."""

import math

import numpy as np
import pytest
from matplotlib.figure import Figure

from rlhf_lab import plots
from rlhf_lab.errors import InputError
from rlhf_lab.records import Interval, LossPoint, StepStats


def step(number, **values):
    names = ("reward", "kl", "objective", "beta", "entropy", "clipfrac", "approx_kl", "explained_variance")
    rest = dict.fromkeys((*names, "policy_loss", "value_loss", "reply_length", "truncated"), 0.0)
    return StepStats(step=number, **rest | values)


def drawn(axis, label=None):
    """The (x, y) of the axis's line with this label, or of its first line."""
    line = next(line for line in axis.lines if label is None or line.get_label() == label)
    return list(line.get_xdata()), list(line.get_ydata())


def test_loss_curve_draws_both_losses_over_tokens_and_reads_them_as_perplexity():
    points = [LossPoint(0, 0, 3.0), LossPoint(1, 640, 2.0, validation_loss=2.2), LossPoint(2, 1280, 1.0)]
    (axis,) = plots.loss_curve(points).axes
    assert drawn(axis, "training") == ([0, 640, 1280], [3.0, 2.0, 1.0])
    assert drawn(axis, "held out") == ([640], [2.2])
    (perplexity,) = axis.child_axes
    axis.figure.draw_without_rendering()
    low, high = axis.get_ylim()
    assert perplexity.get_ylim() == pytest.approx((math.exp(low), math.exp(high)))
    ticks = perplexity.get_yticks()
    assert len(ticks) >= 3 and all(low <= math.log(tick) <= high for tick in ticks)


def test_accuracy_curve_shows_the_interval_and_chance():
    points = [(0, Interval(0.5, 0.4, 0.6, 100)), (25, Interval(0.7, 0.6, 0.8, 100))]
    (axis,) = plots.accuracy_curve(points).axes
    assert drawn(axis) == ([0, 25], [0.5, 0.7])
    corners = axis.collections[0].get_paths()[0].vertices
    assert {(0.0, 0.4), (0.0, 0.6), (25.0, 0.6), (25.0, 0.8)} <= {tuple(corner) for corner in corners.tolist()}
    assert "chance" in [text.get_text() for text in axis.get_legend().get_texts()]


def test_several_curves_differ_in_more_than_colour():
    points = [(0, Interval(0.5, 0.4, 0.6, 100)), (25, Interval(0.7, 0.6, 0.8, 100))]
    (axis,) = plots.accuracy_curve({"cold start": points, "prior": points}).axes
    cold, prior = axis.lines[:2]
    assert (cold.get_marker(), cold.get_linestyle()) != (prior.get_marker(), prior.get_linestyle())
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["cold start", "prior", "chance"]


def test_reliability_diagram_bins_by_hand():
    # Two bins: predictions .2, .4 with outcomes 0, 1, and .9, .9 with outcomes 1, 1.
    figure = plots.reliability_diagram([0.2, 0.4, 0.9, 0.9], [0, 1, 1, 1], bins=2)
    axis = figure.axes[0]
    observed = axis.containers[0].lines[0]
    assert np.allclose(observed.get_xdata(), [0.3, 0.9]) and np.allclose(observed.get_ydata(), [0.5, 1.0])
    assert "15.0%" in axis.get_title(loc="left")  # (2·|.3 − .5| + 2·|.9 − 1|) / 4
    segments = axis.containers[0].lines[2][0].get_segments()
    assert np.allclose(segments[0][:, 1], [0.0945, 0.9055], atol=1e-4)  # Wilson interval of 1 in 2


@pytest.mark.parametrize(
    ("probabilities", "outcomes", "said"),
    [
        ([0.5, 0.5], [1], "2 probabilities and 1 outcomes"),
        ([1.7], [1], "outside"),
        ([math.nan], [1], "outside"),
        ([], [], "0 prob"),
    ],
)
def test_reliability_diagram_refuses(probabilities, outcomes, said):
    with pytest.raises(InputError, match=said):
        plots.reliability_diagram(probabilities, outcomes)


def test_ppo_panels_draw_every_metric_with_its_unit():
    stats = [step(1, reward=0.5, kl=1.0, clipfrac=0.1), step(2, reward=0.9, kl=2.0, clipfrac=0.2)]
    axes = {axis.get_title(loc="left"): axis for axis in plots.ppo_panels(stats).axes if axis.get_visible()}
    assert len(axes) == 7
    assert drawn(axes["Reward"]) == ([1, 2], [0.5, 0.9])
    assert axes["KL to SFT"].get_ylabel() == "nats/reply"
    clipfrac = axes["Clip fraction"]
    assert clipfrac.yaxis.get_major_formatter()(0.2) == "20%"


def test_ppo_panels_overlay_runs_by_name():
    figure = plots.ppo_panels({"β = 0": [step(1, reward=3.0)], "β = 0.1": [step(1, reward=1.0)]})
    assert drawn(figure.axes[0], "β = 0") == ([1], [3.0])
    assert drawn(figure.axes[0], "β = 0.1") == ([1], [1.0])


def test_reward_against_kl_uses_the_square_root_and_sorts():
    figure = plots.reward_against_kl([9.0, 0.0, 4.0], {"gold": [1.5, 0.0, 1.8], "learned": [3.0, 0.0, 2.0]})
    assert drawn(figure.axes[0], "gold") == ([0.0, 2.0, 3.0], [0.0, 1.8, 1.5])
    with pytest.raises(InputError, match="'gold' has 1 values for 2"):
        plots.reward_against_kl([0.0, 1.0], {"gold": [1.0]})


def test_gold_against_kl_draws_a_path_a_method_from_the_sft_model_to_its_intervals():
    kl, gold = Interval(1.0, 0.8, 1.5, 90), Interval(3.5, 3.4, 3.7, 90)
    paths = {"DPO": [(Interval(0.25, 0.2, 0.3, 90), Interval(3.2, 3.1, 3.3, 90)), (kl, gold)], "PPO": [(kl, gold)]}
    (axis,) = plots.gold_against_kl(paths, Interval(3.0, 2.9, 3.1, 90), "Bought").axes
    dpo, ppo = (line for line in axis.lines if len(line.get_xdata()) > 1 and line.get_marker() in "os")
    assert (list(dpo.get_xdata()), list(dpo.get_ydata())) == ([0.0, 0.25, 1.0], [3.0, 3.2, 3.5])
    assert list(ppo.get_xdata()) == [0.0, 1.0] and ppo.get_marker() != dpo.get_marker()
    bars = [c.get_segments()[0].tolist() for c in axis.collections][:2]
    assert np.allclose(bars, [[[0.8, 3.5], [1.5, 3.5]], [[1.0, 3.4], [1.0, 3.7]]])
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["DPO", "PPO", "SFT model"]
    left, middle, right = axis.transData.transform([(0, 3), (0.25, 3), (1, 3)])[:, 0]
    assert middle - left == pytest.approx(right - middle)  # spaced by the square root


def test_gold_against_kl_refuses_an_empty_path():
    with pytest.raises(InputError, match="'DPO'.*at least one"):
        plots.gold_against_kl({"DPO": []})


def test_bars_stand_side_by_side_with_their_intervals():
    figure = plots.bars({"SFT": {"polite": Interval(0.4, 0.3, 0.5, 90)}, "PPO": {"polite": 0.9}}, percent=True)
    (axis,) = figure.axes
    sft, ppo = (container.patches[0] for container in axis.containers if hasattr(container, "patches"))
    assert (sft.get_height(), ppo.get_height()) == (0.4, 0.9)
    assert sft.get_x() + sft.get_width() <= ppo.get_x()
    assert sft.get_hatch() != ppo.get_hatch()
    bar = next(c for c in axis.collections)
    assert np.allclose(bar.get_segments()[0][:, 1], [0.3, 0.5])
    assert {"40%", "90%"} <= {text.get_text() for text in axis.texts}


@pytest.mark.parametrize(
    "draw", [plots.loss_curve, plots.accuracy_curve, plots.ppo_panels, plots.small_multiples, plots.gold_against_kl]
)
def test_nothing_to_draw_is_said(draw):
    with pytest.raises(InputError, match="at least one"):
        draw([])


def test_a_figure_is_opaque_and_shown_once():
    import matplotlib.pyplot as plt

    figure = plots.loss_curve([LossPoint(0, 0, 3.0), LossPoint(1, 64, 2.0)])
    assert isinstance(figure, Figure)
    assert figure.get_facecolor() == (1.0, 1.0, 1.0, 1.0)
    assert not plt.get_fignums()  # an open figure would be shown a second time by the inline backend
