"""Figures from records and metrics: static matplotlib, for reading and for committed notebooks.

Every function takes plain records or numbers and returns a closed `Figure`: a notebook shows it once, as a picture,
when it is the last value of a cell. The background is opaque, so the same picture is readable in light and dark
notebooks; series differ in dash and marker as well as in colour (after Okabe and Ito, for colour-blind readers).
The live counterpart is `widgets.curves`, which shares `PPO_METRICS`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator, PercentFormatter

from .errors import InputError
from .records import Interval, LossPoint, StepStats

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#B0568C", "#8C6D00")
DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)), "-")
MARKERS = ("o", "s", "^", "D", "v")
HATCHES = ("", "///", "...", "xxx", "\\\\\\")
INK, MUTED, RULE = "#1f2328", "#59636e", "#d1d9e0"
STYLE = {
    "figure.facecolor": "white", "axes.facecolor": "white", "savefig.facecolor": "white",
    "text.color": INK, "axes.labelcolor": MUTED, "axes.edgecolor": RULE, "axes.titlecolor": INK,
    "xtick.color": MUTED, "ytick.color": MUTED, "grid.color": RULE, "grid.linewidth": 0.6,
    "axes.grid": True, "axes.axisbelow": True, "axes.spines.top": False, "axes.spines.right": False,
    "axes.titlelocation": "left", "axes.titlesize": 10.5, "axes.titleweight": "bold", "axes.labelsize": 9,
    "xtick.labelsize": 8.5, "ytick.labelsize": 8.5, "legend.fontsize": 8.5, "legend.frameon": False,
    "font.size": 9.5, "lines.linewidth": 1.7, "lines.markersize": 4, "figure.dpi": 100, "hatch.linewidth": 0.6,
    "figure.constrained_layout.w_pad": 0.1, "figure.constrained_layout.h_pad": 0.1,
}  # fmt: skip


@dataclass(frozen=True)
class Metric:
    """How one number is shown wherever it is plotted: its name, its unit, and what it means in plain words."""

    key: str
    title: str
    explanation: str  # one line: what it is, and what good looks like
    unit: str = ""
    percent: bool = False  # a share in [0, 1], shown in per cent
    reference: float | None = None  # a level worth comparing with, drawn as a dotted line
    reference_label: str = ""


PPO_METRICS = (
    Metric(
        "reward", "Reward",
        "Mean reward-model score of the replies. Should rise, then level off; it is not the truth, only its model.",
    ),
    Metric(
        "kl", "KL to SFT",
        "How far the policy has drifted. It grows from 0; far above 10–20, replies often get odd while reward rises.",
        unit="nats/reply",
    ),
    Metric(
        "entropy", "Entropy",
        "How undecided the policy is at each token. A slow fall is normal; near 0 it says one thing only.",
        unit="nats/token",
    ),
    Metric(
        "clipfrac", "Clip fraction",
        "Share of tokens whose probability changed by more than the clip allows. Good: above 0, below about 20%.",
        percent=True,
    ),
    Metric(
        "explained_variance", "Explained variance",
        "How well the value head foresaw the returns: 1 is perfect, 0 no better than their mean. Should rise.",
        reference=0.0, reference_label="no better than the mean",
    ),
    Metric(
        "approx_kl", "Approximate KL",
        "How much this one step changed the policy. Small and steady is good; a spike means too large a step.",
        unit="nats/token",
    ),
    Metric(
        "reply_length", "Reply length",
        "Mean length of the replies. Should stay about the same; a steady climb or fall is often reward hacking.",
        unit="tokens",
    ),
)  # fmt: skip


# What tells a broken PPO from the right one (`rlhf_lab.ablations`).
ABLATION_METRICS = {
    metric.key: metric
    for metric in (
        Metric(
            "true_reward", "Reward, rightly measured",
            "Mean score of the replies, read as it should be. It should rise; flat means that nothing is learned.",
        ),
        Metric(
            "logged_kl", "KL as logged (k1)",
            "Mean of log π − log π_ref, as most code logs it. Below 0 by more than noise, something is wrong.",
            unit="nats/reply", reference=0.0, reference_label="a true KL is never below 0",
        ),
        Metric(
            "distinct", "Different replies",
            "Share of a step's replies that differ from each other. Near 0 the policy says one thing to everybody.",
            percent=True,
        ),
        Metric(
            "value_loss", "Value loss",
            "How wrong the critic is, squared. It should fall; its size follows the reward's.",
        ),
        Metric(
            "truncated", "Cut off",
            "Share of replies that ran into the token limit without an end token. Should be near 0.",
            percent=True,
        ),
        *PPO_METRICS,
    )
}  # fmt: skip


@dataclass(frozen=True)
class Line:
    """One series: y over x, with an optional 95% band. `points` draws the markers only. NaN leaves a gap."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    points: bool = False


@dataclass(frozen=True)
class Chart:
    """One panel of small multiples: its lines, and what their axes mean."""

    title: str
    lines: Sequence[Line]
    xlabel: str = ""
    ylabel: str = ""
    percent: bool = False
    ymin: float | None = None
    ymax: float | None = None
    reference: float | None = None
    reference_label: str = ""
    marks: Sequence[float] = ()  # x of events, drawn as ticks along the bottom


def small_multiples(charts: Sequence[Chart], columns: int = 3, width: float = 10.0, height: float = 2.5) -> Figure:
    """All `charts` in a grid. `width` is the figure's and `height` each row's, in inches."""
    if not charts:
        raise InputError("no charts to draw: small_multiples needs at least one")
    columns = max(1, min(columns, len(charts)))
    rows = math.ceil(len(charts) / columns)
    with plt.rc_context(STYLE):
        figure, grid = plt.subplots(rows, columns, figsize=(width, height * rows), squeeze=False, layout="constrained")
        axes = grid.ravel()
        for axis, chart in zip(axes, charts, strict=False):
            _draw(axis, chart)
        for axis in axes[len(charts) :]:
            axis.set_visible(False)
    return _done(figure)


def loss_curve(points: Sequence[LossPoint], title: str = "Next-token loss") -> Figure:
    """Training and validation loss in nats a token over tokens seen; the right axis reads it as perplexity = e^loss."""
    points = _some(points, "loss_curve", "LossPoint")
    tokens = [point.tokens for point in points]
    held_out = [(point.tokens, point.validation_loss) for point in points if point.validation_loss is not None]
    lines = [Line("training", tokens, [point.loss for point in points])]
    if held_out:
        lines.append(Line("held out", *zip(*held_out, strict=True)))
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(6.8, 3.2), layout="constrained")
        _draw(axis, Chart(title, lines, "tokens seen", "loss (nats per token)"))
        axis.spines["right"].set_visible(True)
        right = axis.secondary_yaxis("right", functions=(np.exp, lambda p: np.log(np.maximum(p, 1e-9))))
        right.yaxis.set_major_locator(FixedLocator(_round_perplexities(*axis.get_ylim())))
        right.yaxis.set_minor_locator(NullLocator())
        right.yaxis.set_major_formatter(_plain_numbers(4))
        right.set_ylabel("perplexity (tokens to choose from)")
    return _done(figure)


def accuracy_curve(
    curves: Sequence[tuple[int, Interval]] | Mapping[str, Sequence[tuple[int, Interval]]],
    title: str = "Reward-model accuracy on held-out pairs",
    xlabel: str = "labels",
) -> Figure:
    """Accuracy against number of labels with its 95% interval; a mapping draws one line for each of its names."""
    named = curves if isinstance(curves, Mapping) else {"accuracy, 95% interval": curves}
    lines = []
    for name, points in named.items():
        points = _some(points, "accuracy_curve", "(number of labels, Interval)")
        counts, intervals = zip(*points, strict=True)
        values, low, high = zip(*((i.value, i.low, i.high) for i in intervals), strict=True)
        lines.append(Line(name, counts, values, low, high))
    chart = Chart(
        title, lines, xlabel, "pairs ordered as the person did", percent=True, reference=0.5, reference_label="chance"
    )
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(6.8, 3.2), layout="constrained")
        _draw(axis, chart)
        axis.legend(loc="best")
    return _done(figure)


def reliability_diagram(probabilities: Sequence[float], outcomes: Sequence[float], bins: int = 10) -> Figure:
    """How often the model was right when it said it was p sure (DeGroot and Fienberg, 1983).

    `probabilities` are the model's P(first reply preferred) = σ(score difference), each in [0, 1]; `outcomes` are 1
    where the person preferred the first, 0 where not. Bars around points are Wilson 95% intervals; the title carries
    the expected calibration error: the mean distance from the diagonal, weighted by the number of pairs.
    """
    predicted, observed, low, high, count = _calibration(probabilities, outcomes, bins)
    error = float(np.sum(count * np.abs(predicted - observed)) / count.sum())
    with plt.rc_context(STYLE):
        figure, (axis, below) = plt.subplots(
            2, 1, figsize=(4.6, 4.9), layout="constrained", sharex=True, height_ratios=(4, 1)
        )
        axis.plot([0, 1], [0, 1], color=MUTED, linestyle=":", linewidth=1.2, label="perfect calibration")
        spread = np.clip([observed - low, high - observed], 0, None)
        axis.errorbar(
            predicted, observed, spread, color=PALETTE[0], marker="o", capsize=2.5, label="observed, 95% interval"
        )
        axis.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), ylabel="share the person preferred")
        axis.set_title(f"Calibration: expected error {error:.1%} over {int(count.sum()):,} pairs")
        axis.legend(loc="upper left")
        below.bar(predicted, count, width=0.8 / bins, color=PALETTE[0], alpha=0.55)
        below.set(xlabel="predicted probability of being preferred", ylabel="pairs")
        below.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    return _done(figure)


def ppo_panels(stats: Sequence[StepStats] | Mapping[str, Sequence[StepStats]], columns: int = 4) -> Figure:
    """The seven metrics of `PPO_METRICS` over PPO steps; a mapping overlays one line for each of its runs."""
    runs = stats if isinstance(stats, Mapping) else {"": stats}
    for name in runs:
        _some(runs[name], "ppo_panels", "StepStats")
    charts = []
    for metric in PPO_METRICS:
        lines = [Line(name, [s.step for s in run], [getattr(s, metric.key) for s in run]) for name, run in runs.items()]
        charts.append(
            Chart(
                metric.title, lines, "PPO step", metric.unit, metric.percent,
                reference=metric.reference, reference_label=metric.reference_label,
            )
        )  # fmt: skip
    return small_multiples(charts, columns, width=12, height=2.5)


def reward_against_kl(
    kl: Sequence[float], rewards: Mapping[str, Sequence[float]], title: str = "Reward bought with KL", sqrt: bool = True
) -> Figure:
    """Each of `rewards` (such as "gold" and "learned reward") against the KL in nats a reply at which it was measured.

    The horizontal axis is d = √KL, in which best-of-n and PPO have simple forms (Gao et al., arXiv:2210.10760);
    a learned reward that goes on rising while gold falls is over-optimisation. `sqrt=False` gives plain KL.
    """
    kl = _some(kl, "reward_against_kl", "KL")
    for name, values in rewards.items():
        if len(values) != len(kl):
            raise InputError(
                f"reward_against_kl: {name!r} has {len(values)} values for {len(kl)} of KL; give one for each"
            )
    x = np.sqrt(np.maximum(kl, 0.0)) if sqrt else np.asarray(kl, dtype=float)
    order = np.argsort(x, kind="stable")
    lines = [Line(name, x[order], np.asarray(values, dtype=float)[order]) for name, values in rewards.items()]
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(6.8, 3.4), layout="constrained")
        _draw(
            axis,
            Chart(title, lines, "√KL to the SFT model (√nats per reply)" if sqrt else "KL (nats per reply)", "score"),
        )
        axis.legend(loc="best")
    return _done(figure)


def gold_against_kl(
    paths: Mapping[str, Sequence[tuple[Interval, Interval]]], start: Interval | None = None, title: str = ""
) -> Figure:
    """What each method reached: gold score against KL, both as intervals, a path a method in order of training.

    The last point of a path bears its 95% intervals, the earlier ones are small. `start` is the SFT model's gold
    score, at KL 0, where every path begins. The KL axis is spaced by √KL (Gao et al., arXiv:2210.10760).
    """
    for name in _some(list(paths), "gold_against_kl", "path"):
        _some(paths[name], f"gold_against_kl: {name!r}", "(KL, gold)")
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(8.6, 4.4), layout="constrained")
        axis.set_xscale("function", functions=(lambda x: np.sqrt(np.maximum(x, 0.0)), np.square))
        for i, (name, path) in enumerate(paths.items()):
            _path(axis, i, name, path, start)
        if start is not None:
            axis.axhline(start.value, color=MUTED, linestyle=":", linewidth=1.2)
            axis.errorbar(0, start.value, [[start.value - start.low], [start.high - start.value]], color=INK,
                          marker="P", markersize=7, capsize=3, label="SFT model", clip_on=False, zorder=5)  # fmt: skip
        furthest = max(kl.high for path in paths.values() for kl, _ in path)
        axis.set_xlim(0, max(furthest * 1.05, 0.1))
        axis.xaxis.set_major_locator(FixedLocator([x for x in KL_TICKS if x <= axis.get_xlim()[1]]))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.xaxis.set_major_formatter(_plain_numbers())
        axis.set(title=title, xlabel="KL to the SFT model (nats per reply; spaced by √KL)", ylabel="gold score")
        axis.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    return _done(figure)


KL_TICKS = (0, 0.1, 0.5, 1, 2, 3, 5, 8, 12, 20, 30, 50, 100, 200, 500, 1000)


def _path(axis: Axes, i: int, name: str, path: Sequence[tuple[Interval, Interval]], start: Interval | None) -> None:
    color, marker = PALETTE[i % len(PALETTE)], MARKERS[(i + i // len(PALETTE)) % len(MARKERS)]
    first = [(0.0, start.value)] if start is not None else []
    x, y = zip(*first, *((kl.value, gold.value) for kl, gold in path), strict=True)
    dash = DASHES[(i // len(PALETTE)) % len(DASHES)]
    axis.plot(x, y, color=color, linestyle=dash, linewidth=1, alpha=0.55, marker=marker, markersize=2.5)
    kl, gold = path[-1]
    spread = ([[v.value - v.low], [v.high - v.value]] for v in (gold, kl))
    axis.errorbar(kl.value, gold.value, *spread, color=color, marker=marker, markersize=7, elinewidth=0.9,
                  capsize=2, linestyle="none", label=name)  # fmt: skip


def ablation_curves(steps: Sequence[Any], metrics: Sequence[str], title: str = "", columns: int = 4) -> Figure:
    """The right and the broken arm of `rlhf_lab.ablations.compare`, one panel for each of `metrics` by name."""
    steps = _some(steps, "ablation_curves", "ArmStep")
    unknown = [key for key in metrics if key not in ABLATION_METRICS]
    if unknown:
        raise InputError(f"ablation_curves: no metric {unknown[0]!r}; there are {', '.join(ABLATION_METRICS)}")
    charts = []
    for key in metrics:
        metric = ABLATION_METRICS[key]
        arms = {arm: [step for step in steps if step.arm == arm] for arm in ("right", "broken")}
        lines = [Line(arm, [s.stats.step for s in run], [s.metric(key) for s in run]) for arm, run in arms.items()]
        reference = metric.reference if key != "logged_kl" or min(s.metric(key) for s in steps) < 0 else None
        charts.append(Chart(metric.title, lines, "PPO step", metric.unit, metric.percent, reference=reference))
    figure = small_multiples(charts, columns, width=3.1 * min(columns, len(charts)))
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontweight="bold", color=INK)
    return figure


STRIP = (("kl_after", "KL"), ("reward", "reward"), ("value", "value"), ("advantage", "advantage"), ("ratio", "ratio"))


def token_strip(reply: Any, title: str = "", width: float = 10.0) -> Figure:
    """One reply under the microscope (a `rlhf_lab.microscope.ReplyView`): its tokens, and under each its numbers.

    KL is after the update. The value's track has a line where the return is: the critic's error. A clipped token's
    ratio is hatched. `width` is in inches.
    """
    tokens = _some(reply.tokens, "token_strip", "token")
    places = np.arange(len(tokens))
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            len(STRIP), 1, figsize=(width, 0.62 * len(STRIP) + 1.1), sharex=True, layout="constrained"
        )
        for axis, (key, name) in zip(axes, STRIP, strict=True):
            _track(axis, tokens, key, name)
        axes[0].set_title(title or f"{reply.prompt}   score {reply.score:+.2f}", pad=30)
        above = axes[0].secondary_xaxis("top")
        texts = ["end" if token.end else token.text.strip() or "·" for token in tokens]
        above.set_xticks(places, texts, rotation=35, ha="left", color=INK)
        above.tick_params(length=0)
        above.spines["top"].set_visible(False)
        axes[-1].set_xticks(places, [str(i + 1) for i in places])
        axes[-1].set_xlabel("token")
    return _done(figure)


def _track(axis: Axes, tokens: Sequence[Any], key: str, name: str) -> None:
    neutral = 1.0 if key == "ratio" else 0.0
    heights = [getattr(token, key) - neutral for token in tokens]
    colors = [PALETTE[1] if height > 0 else PALETTE[0] for height in heights]
    bars = axis.bar(range(len(tokens)), heights, 0.72, bottom=neutral, color=colors, edgecolor="white", linewidth=0.4)
    for bar, token in zip(bars, tokens, strict=True):
        if key == "ratio" and token.clipped:
            bar.set_hatch("////")
    if key == "value":
        for place, token in enumerate(tokens):
            axis.plot([place - 0.42, place + 0.42], [token.return_] * 2, color=INK, linewidth=1.3)
    axis.axhline(neutral, color=MUTED, linewidth=0.8)
    axis.set_ylabel(name, rotation=0, ha="right", va="center")
    axis.yaxis.set_major_locator(MaxNLocator(2))
    axis.grid(visible=False, axis="x")
    axis.margins(x=0.01, y=0.15)


def bars(
    groups: Mapping[str, Mapping[str, Interval | float]],
    title: str = "",
    ylabel: str = "",
    percent: bool = False,
    reference: float | None = None,
) -> Figure:
    """Side-by-side bars with 95% intervals: `groups["SFT"]["politeness"]` is the bar of SFT at politeness."""
    series = _some(list(groups), "bars", "series")
    places = list(dict.fromkeys(place for values in groups.values() for place in values))
    width = 0.8 / len(series)
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(max(4.5, 1.3 * len(places) + 1.5), 3.2), layout="constrained")
        for i, name in enumerate(series):
            at = [p + (i - (len(series) - 1) / 2) * width for p, place in enumerate(places) if place in groups[name]]
            values = [groups[name][place] for place in places if place in groups[name]]
            _bar_series(axis, i, name, at, values, width, percent)
        if reference is not None:
            axis.axhline(reference, color=MUTED, linestyle=":", linewidth=1.2)
        axis.axhline(0, color=MUTED, linewidth=0.8)
        axis.set_xticks(range(len(places)), places, color=INK)
        axis.grid(visible=False, axis="x")
        axis.set(title=title, ylabel=ylabel)
        axis.margins(y=0.15)
        if percent:
            axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        if len(series) > 1:
            axis.legend(loc="best")
    return _done(figure)


def _some(values: Sequence, function: str, what: str) -> Sequence:
    values = list(values)
    if not values:
        raise InputError(f"{function}: nothing to draw; it needs at least one {what}")
    return values


def _done(figure: Figure) -> Figure:
    plt.close(figure)  # otherwise a notebook's inline backend would show it a second time
    return figure


def _draw(axis: Axes, chart: Chart) -> None:
    for i, line in enumerate(chart.lines):
        _draw_line(axis, line, i)
    if chart.reference is not None:
        axis.axhline(chart.reference, color=MUTED, linestyle=":", linewidth=1.2, label=chart.reference_label or None)
    for x in chart.marks:
        axis.axvline(x, ymax=0.07, color=INK, linewidth=1.2)
    axis.set(title=chart.title, xlabel=chart.xlabel, ylabel=chart.ylabel)
    axis.margins(x=0.03, y=0.1)
    if chart.ymin is not None or chart.ymax is not None:
        axis.set_ylim(chart.ymin, chart.ymax)
    if chart.percent:
        axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axis.xaxis.set_major_locator(MaxNLocator(5))
    axis.yaxis.set_major_locator(MaxNLocator(5))
    axis.xaxis.set_major_formatter(_plain_numbers())
    if sum(bool(line.label) for line in chart.lines) > 1:
        axis.legend(loc="best")


def _draw_line(axis: Axes, line: Line, i: int) -> None:
    color, marker = PALETTE[i % len(PALETTE)], MARKERS[i % len(MARKERS)]
    dash = "none" if line.points else DASHES[i % len(DASHES)]
    every = max(1, len(line.x) // 12)
    label = line.label or None
    axis.plot(
        line.x, line.y, color=color, linestyle=dash, marker=marker, markevery=1 if line.points else every, label=label,
        alpha=0.7 if line.points else 1.0,
    )  # fmt: skip
    if len(line.low):
        axis.fill_between(line.x, line.low, line.high, color=color, alpha=0.16, linewidth=0)


def _plain_numbers(digits: int = 6) -> FuncFormatter:
    """Ticks as plain numbers with thousands separated, never in powers of ten."""
    return FuncFormatter(lambda value, _: f"{value:,.{digits}g}")


def _round_perplexities(low: float, high: float) -> list[float]:
    """Round perplexities whose loss lies between `low` and `high`, about six of them."""
    for steps in ((1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
        ticks = [s * 10**power for power in range(0, 9) for s in steps if low <= math.log(s * 10**power) <= high]
        if len(ticks) <= 7:
            break
    return ticks


def _calibration(probabilities: Sequence[float], outcomes: Sequence[float], bins: int) -> tuple[np.ndarray, ...]:
    """Mean prediction, observed share, its Wilson 95% bounds, and count, of every bin that holds a pair."""
    p, won = np.asarray(probabilities, dtype=float), np.asarray(outcomes, dtype=float)
    if p.shape != won.shape or p.ndim != 1 or p.size == 0:
        raise InputError(
            f"reliability_diagram: {p.size} probabilities and {won.size} outcomes; give one outcome for each"
        )
    if not np.all((p >= 0) & (p <= 1)):  # also false for NaN
        raise InputError("reliability_diagram: a probability lies outside 0 … 1; pass σ(score difference), not scores")
    bin_of = np.minimum((p * bins).astype(int), bins - 1)
    count = np.bincount(bin_of, minlength=bins)
    held = count > 0
    n = count[held]
    predicted = np.bincount(bin_of, p, bins)[held] / n
    observed = np.bincount(bin_of, won, bins)[held] / n
    z = 1.96
    centre = (observed + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * np.sqrt(observed * (1 - observed) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    return predicted, observed, centre - half, centre + half, n


def _bar_series(
    axis: Axes, i: int, name: str, at: list[float], values: list[Interval | float], width: float, percent: bool
) -> None:
    heights = [v.value if isinstance(v, Interval) else v for v in values]
    axis.bar(
        at, heights, width * 0.92, color=PALETTE[i % len(PALETTE)], hatch=HATCHES[i % len(HATCHES)],
        edgecolor="white", linewidth=0.4, label=name,
    )  # fmt: skip
    for x, value, height in zip(at, values, heights, strict=True):
        low, high = (value.low, value.high) if isinstance(value, Interval) else (height, height)
        if high > low:
            axis.errorbar(x, height, [[height - low], [high - height]], color=INK, capsize=3, linewidth=1.1)
        text = f"{height:.0%}" if percent else f"{height:.2f}"
        axis.annotate(
            text, (x, max(high, 0)), xytext=(0, 3), textcoords="offset points", ha="center", fontsize=8, color=INK
        )
