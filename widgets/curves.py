"""A live small-multiples chart: points come from any thread and reach the page at most five times a second.

    curves = ppo_curves()
    display(curves)
    for stats in train_ppo(...):
        curves.add(stats)
    curves.figure()  # the same panels as a picture, for a notebook that is saved

Python keeps the whole history; the page is sent only what is new, as messages, and asks for everything when a view
opens. So a reload of the page, or a second view, shows the same.

`mark` notes what happened and when (a person's label); `cut` shows a stretch that was given up when training went back.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anywidget
import traitlets

from rlhf_lab.errors import InputError
from rlhf_lab.records import LossPoint, RewardPoint, StepStats

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STATIC = Path(__file__).parent / "static"
Point = tuple[float, float | None, float | None, float | None]  # x, y, low, high; None where there is no number
OnMark = Callable[[str], None]


@dataclass(frozen=True)
class Series:
    """One line (or, with `points`, one cloud of markers) in a panel that holds several."""

    key: str
    label: str
    points: bool = False


@dataclass(frozen=True)
class Panel:
    """One metric: its name, what it means in plain words, and how to draw it.

    Points of a panel without `series` are added under its `key`; of a panel with series, under "panel/series".
    `percent` shows shares in [0, 1] as per cent. `marks` says whether event marks (`CurvesWidget.mark`) belong here.
    `lead` is the series whose latest number stands in the head: by default the first that is a line.
    Panels that share an `xlabel` share the read-out's position and the stretches given up (`CurvesWidget.cut`).
    """

    key: str
    title: str
    explanation: str = ""
    unit: str = ""
    series: tuple[Series, ...] = ()
    percent: bool = False
    ymin: float | None = None
    ymax: float | None = None
    xlabel: str = "step"
    reference: float | None = None
    reference_label: str = ""
    marks: bool = True
    empty: str = "No points yet"
    lead: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "series", tuple(self.series))

    @property
    def keys(self) -> list[str]:
        """The keys under which points of this panel are added."""
        return [f"{self.key}/{series.key}" for series in self.series] or [self.key]


class Coalescer:
    """Calls `flush` at most once in `interval` seconds however often it is poked, and always once after the last poke.

    The first poke flushes at once, in the caller's thread; later ones in a timer's. `clock` and `timer` are for tests.
    """

    def __init__(
        self,
        flush: Callable[[], None],
        interval: float = 0.2,
        clock: Callable[[], float] = time.monotonic,
        timer: Callable[[float, Callable[[], None]], threading.Timer] = threading.Timer,
    ) -> None:
        self._flush, self._interval, self._clock, self._timer_class = flush, interval, clock, timer
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None
        self._last = -math.inf
        self._closed = False

    def poke(self) -> None:
        """Something is new: flush now, or as soon as the interval allows."""
        with self._lock:
            if self._timer is not None or self._closed:
                return
            wait = self._last + self._interval - self._clock()
            if wait > 0:
                self._timer = self._timer_class(wait, self._fire)
                self._timer.daemon = True
                self._timer.start()
                return
            self._last = self._clock()
        self._flush()

    def close(self) -> None:
        """Flush no more."""
        with self._lock:
            self._closed = True
            if self._timer is not None:
                self._timer.cancel()

    def _fire(self) -> None:
        with self._lock:
            self._timer = None
            if self._closed:
                return
            self._last = self._clock()
        self._flush()


@dataclass(frozen=True)
class Mark:
    """An event at `x`: `label` says what it was. `also` gives its place in panels with another xlabel, by xlabel:
    there it is read out with that point, not drawn. One that was `withdrawn` is drawn hollow."""

    x: float
    label: str
    id: str = ""
    withdrawn: bool = False
    also: dict[str, float] = field(default_factory=dict)

    def wire(self) -> list[Any]:
        return [self.x, self.label, self.id, self.withdrawn, self.also]


@dataclass(frozen=True)
class Cut:
    """The points with `start` < x ≤ `end` of the panels with that `xlabel` were given up: training went back."""

    xlabel: str
    start: float
    end: float
    label: str


@dataclass
class _Track:
    """The points of one series and how many of them the page has been sent."""

    points: list[Point] = field(default_factory=list)
    sent: int = 0


class CurvesWidget(anywidget.AnyWidget):
    """Panels of live curves. Every method is safe on any thread.

    `read` turns a record into `(key, x, y)` or `(key, x, y, low, high)` tuples, so that `add(record)` works too.
    `panel_width` is a panel's least width and `plot_height` its plot's height, in pixels; `mark_name` says what the
    marks are, such as "your labels". `on_mark` is called with a mark's id when the person chooses it.
    """

    _esm = STATIC / "curves.js"
    _css = STATIC / "curves.css"
    panels = traitlets.List(read_only=True).tag(sync=True)
    panel_width = traitlets.Int(230).tag(sync=True)
    plot_height = traitlets.Int(150).tag(sync=True)
    mark_name = traitlets.Unicode("events").tag(sync=True)

    def __init__(
        self,
        panels: Sequence[Panel],
        read: Callable[[Any], Iterable[tuple]] | None = None,
        interval: float = 0.2,
        on_mark: OnMark | None = None,
        **traits: Any,
    ) -> None:
        self._coalescer = Coalescer(self._send_new, interval)
        self._on_mark = on_mark
        keys = [key for panel in panels for key in panel.keys]
        if not keys or len(set(keys)) < len(keys):
            raise InputError(
                f"panels of a CurvesWidget have the keys {keys}; give at least one panel, and each its own key"
            )
        super().__init__(**traits)
        self._specs = tuple(panels)
        self._read = read
        self._lock = threading.RLock()
        self._tracks = {key: _Track() for key in keys}
        self._marks: list[Mark] = []
        self._marks_sent = 0
        self._place: dict[str, int] = {}  # of each mark that has an id
        self._changed: set[int] = set()  # marks that the page has, but not as they are now
        self._cuts: list[Cut] = []
        self._epoch = 0  # counts clear(): points of an older epoch are dropped by the page
        self._greeted = False  # until a page has said hello, everything is sent each time, lest it miss the start
        self.set_trait("panels", [asdict(panel) | {"keys": panel.keys} for panel in panels])
        self.on_msg(self._on_message)

    def add(
        self,
        what: Any,
        x: float | None = None,
        y: float | None = None,
        low: float | None = None,
        high: float | None = None,
    ) -> None:
        """Append one point to the series `what`, with its 95% band if `low` and `high` are given; or a whole record.

        A y that is not finite leaves a gap in the line. Raises InputError for a series that no panel has.
        """
        rows = [(what, x, y, low, high)] if isinstance(what, str) else self._rows(what)
        with self._lock:
            for key, *point in rows:
                self._append(key, *point)
        self._coalescer.poke()

    def mark(
        self, x: float, label: str, id: str = "", withdrawn: bool = False, also: dict[str, float] | None = None
    ) -> None:
        """Note an event at `x`: a tick in the panels that show marks, read out with its label (see `Mark`).

        A mark with the `id` of an earlier one takes its place.
        """
        mark = Mark(float(x), str(label), id, withdrawn, also or {})
        with self._lock:
            place = self._place.get(id) if id else None
            if place is not None:
                self._marks[place] = mark
                self._changed.add(place)
            else:
                self._place |= {id: len(self._marks)} if id else {}
                self._marks.append(mark)
        self._coalescer.poke()

    def cut(self, start: float, end: float, label: str, xlabel: str = "step") -> None:
        """Show that the points with `start` < x ≤ `end` were given up: dimmed and dashed, `label` at `end`."""
        with self._lock:
            self._cuts.append(Cut(xlabel, float(start), float(end), str(label)))
        self._coalescer.poke()

    def clear(self) -> None:
        """Forget all points, marks and cuts, here and on the page."""
        with self._lock:
            self._epoch += 1
            self._marks, self._marks_sent, self._place, self._changed = [], 0, {}, set()
            self._cuts = []
            self._tracks = {key: _Track() for key in self._tracks}
        self._coalescer.poke()

    def points(self, key: str) -> list[Point]:
        """All points of one series so far, as (x, y, low, high)."""
        with self._lock:
            return list(self._track(key).points)

    @property
    def marks(self) -> list[Mark]:
        """All events marked so far."""
        with self._lock:
            return list(self._marks)

    @property
    def cuts(self) -> list[Cut]:
        """All stretches given up so far."""
        with self._lock:
            return list(self._cuts)

    def flush(self) -> None:
        """Send what is new now, without waiting for the interval."""
        self._send_new()

    def figure(self, columns: int = 4) -> Figure:
        """The panels as they are now, as a static matplotlib figure."""
        from rlhf_lab.plots import small_multiples  # here, because a page that only labels needs no matplotlib

        with self._lock:
            charts = [self._chart(panel) for panel in self._specs]
            cuts = list(self._cuts)
        figure = small_multiples(charts, columns, width=3.1 * min(columns, len(charts)))
        for panel, axis in zip(self._specs, figure.axes, strict=False):
            for cut in (cut for cut in cuts if cut.xlabel == panel.xlabel):
                axis.axvspan(cut.start, cut.end, facecolor="none", edgecolor="0.75", hatch="///", linewidth=0, zorder=0)
                axis.axvline(cut.end, color="0.35", linewidth=1, linestyle="--", label=cut.label)
        return figure

    def close(self) -> None:
        """Close the widget; points added later are kept but shown nowhere."""
        self._coalescer.close()
        super().close()

    def _rows(self, record: Any) -> list[tuple]:
        if self._read is None:
            raise InputError(
                f"this chart cannot read a {type(record).__name__}; use add(key, x, y) with a key of {self._known}"
            )
        return list(self._read(record))

    @property
    def _known(self) -> str:
        return ", ".join(self._tracks)

    def _track(self, key: str) -> _Track:
        if key not in self._tracks:
            raise InputError(f"no series {key!r} in this chart; its series are {self._known}")
        return self._tracks[key]

    def _append(
        self, key: str, x: float | None, y: float | None, low: float | None = None, high: float | None = None
    ) -> None:
        track, where = self._track(key), _number(x)
        if where is None:
            raise InputError(f"x = {x!r} of a point of {key!r}: must be a finite number")
        track.points.append((where, _number(y), _number(low), _number(high)))

    def _send_new(self) -> None:
        # The lock is held while sending, so that two threads cannot swap the order of their messages.
        with self._lock:
            self.send(self._message(whole=not self._greeted))

    def _message(self, whole: bool) -> dict[str, Any]:
        """What the page lacks (or everything) and where it belongs; the page may get the same points twice."""
        series = {}
        for key, track in self._tracks.items():
            start = 0 if whole else track.sent
            if start < len(track.points):
                series[key] = {"start": start, "points": track.points[start:]}
            track.sent = len(track.points)
        start = 0 if whole else self._marks_sent
        changed = [[place, self._marks[place].wire()] for place in sorted(self._changed) if place < start]
        self._marks_sent, self._changed = len(self._marks), set()
        marks = {"start": start, "items": [mark.wire() for mark in self._marks[start:]], "changed": changed}
        cuts = [asdict(cut) for cut in self._cuts]  # few, so always all
        return {"type": "points", "epoch": self._epoch, "series": series, "marks": marks, "cuts": cuts}

    def _on_message(self, _widget: object, content: dict[str, Any], _buffers: object) -> None:
        if content.get("type") == "hello":
            with self._lock:
                self._greeted = True
                self.send(self._message(whole=True))
        elif content.get("type") == "mark" and self._on_mark is not None and content.get("id") in self._place:
            self._on_mark(content["id"])

    def _chart(self, panel: Panel) -> Any:
        from rlhf_lab.plots import Chart, Line

        lines = []
        for key, series in zip(panel.keys, panel.series or (Series("", ""),), strict=True):
            x, y, low, high = ([_nan(p[i]) for p in self._tracks[key].points] for i in range(4))
            band = (low, high) if any(map(math.isfinite, low)) else ((), ())
            lines.append(Line(series.label, x, y, *band, points=series.points))
        return Chart(
            panel.title, lines, panel.xlabel, panel.unit, panel.percent, panel.ymin, panel.ymax,
            panel.reference, panel.reference_label, [mark.x for mark in self._marks] if panel.marks else (),
        )  # fmt: skip


def ppo_curves(**traits: Any) -> CurvesWidget:
    """A live chart of PPO's seven metrics, each explained; `add` takes a `StepStats`."""
    from rlhf_lab.plots import PPO_METRICS

    panels = [
        Panel(
            m.key, m.title, m.explanation, m.unit, percent=m.percent, xlabel="PPO step",
            reference=m.reference, reference_label=m.reference_label, empty="Appears after the first PPO step",
        )
        for m in PPO_METRICS
    ]  # fmt: skip

    def read(stats: StepStats) -> list[tuple]:
        return [(metric.key, stats.step, getattr(stats, metric.key)) for metric in PPO_METRICS]

    return CurvesWidget(panels, read, **traits)


def loss_curves(**traits: Any) -> CurvesWidget:
    """A live chart of next-token training: loss and perplexity; `add` takes a `LossPoint`."""
    both = (Series("training", "training"), Series("held_out", "held out"))
    panels = [
        Panel(
            "loss", "Loss", "Surprise at each next token: lower is better. Held out far above training: overfitting.",
            "nats/token", both, xlabel="tokens seen",
        ),
        Panel(
            "perplexity", "Perplexity", "e to the loss: among how many equally likely tokens the model hesitates.",
            "tokens", both, xlabel="tokens seen",
        ),
    ]  # fmt: skip

    def read(point: LossPoint) -> list[tuple]:
        losses = {"training": point.loss, "held_out": point.validation_loss}
        known = {name: loss for name, loss in losses.items() if loss is not None}
        rows = [(f"loss/{name}", point.tokens, loss) for name, loss in known.items()]
        return rows + [(f"perplexity/{name}", point.tokens, math.exp(min(loss, 700))) for name, loss in known.items()]

    return CurvesWidget(panels, read, **{"panel_width": 300} | traits)


def reward_curves(**traits: Any) -> CurvesWidget:
    """A live chart of a reward model's training; `add` takes a `RewardPoint`."""
    panels = [
        Panel(
            "loss", "Loss", "Bradley–Terry loss: 0.69 is a coin flip, lower is better; near 0 it is memorising.",
            "nats/pair", xlabel="pairs seen", reference=math.log(2), reference_label="coin flip",
        ),
        Panel(
            "accuracy", "Accuracy", "Share of pairs ordered as the person did. 50% is chance; people reach about 75%.",
            percent=True, xlabel="pairs seen", reference=0.5, reference_label="chance",
        ),
    ]  # fmt: skip

    def read(point: RewardPoint) -> list[tuple]:
        return [("loss", point.pairs, point.loss), ("accuracy", point.pairs, point.accuracy)]

    return CurvesWidget(panels, read, **{"panel_width": 300} | traits)


def _number(value: Any) -> float | None:
    """`value` as a float, or None where it is not a finite number (JSON knows no NaN)."""
    if value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise InputError(f"{value!r} is not a number; a point's x, y, low and high are numbers") from None
    return number if math.isfinite(number) else None


def _nan(value: float | None) -> float:
    return math.nan if value is None else value
