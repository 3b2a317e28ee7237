"""The panel of switches: break one implementation detail of PPO, and watch it fail beside the right one.

    panel = AblationPanel(Setup(sft, reward_model, tokenizer, prompts, config))  # rlhf_lab.ablations
    panel

The panel's callbacks validate and enqueue; one worker thread trains both arms, a step of each in turn. Making a panel
stops the worker of the one before it. What fails is shown in the panel: a notebook would show it nowhere.
"""

from __future__ import annotations

import os
import threading
import traceback
import weakref
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal

import anywidget
import ipywidgets
import torch
import traitlets

from rlhf_lab.ablations import ARMS, MEASURED, SWITCHES, ArmStep, Setup, Switch, compare, switch_named, symptoms
from rlhf_lab.errors import InputError
from rlhf_lab.plots import ABLATION_METRICS, ablation_curves

from .curves import STATIC, CurvesWidget, Panel, Series

if TYPE_CHECKING:
    from matplotlib.figure import Figure

State = Literal["idle", "running", "stopping", "error", "closed"]
Key = tuple[str, int]  # a switch's name and a seed
SEEDS = 5
SAMPLES = 2  # replies of each arm that are shown
OF_SWITCH = ("name", "title", "family", "purpose", "failure", "right", "wrong", "source", "measured")


class AblationPart(anywidget.AnyWidget):
    """One region, "choose" or "outcome", drawn from the plain data that Python puts in `data`."""

    _esm = STATIC / "ablations.js"
    _css = STATIC / "ablations.css"
    part = traitlets.Unicode().tag(sync=True)
    switches = traitlets.List().tag(sync=True)
    measured_in = traitlets.Unicode(MEASURED).tag(sync=True)
    data = traitlets.Dict().tag(sync=True)


class AblationPanel(ipywidgets.VBox):
    """Switches, two growing curves, symptoms in words, and replies of both arms. Methods are safe on any thread.

    `results` holds the steps of every comparison so far, by (switch's name, seed).
    """

    _latest: weakref.ref[AblationPanel] | None = None

    def __init__(self, setup: Setup, select: str = "kl_sign", switches: Sequence[str] = tuple(SWITCHES)) -> None:
        self.setup = setup
        self.switches = {name: switch_named(name) for name in switches}
        if select not in self.switches:
            raise InputError(f"switch {select!r} is not in this panel; it has {', '.join(self.switches)}")
        previous = AblationPanel._latest() if AblationPanel._latest else None
        if previous is not None:
            previous.end()
        self.selected: Key = (select, setup.seed)
        self.results: dict[Key, list[ArmStep]] = {}
        self.state: State = "idle"
        self.error = ""
        self._rights: dict[tuple[int, str], list[ArmStep]] = {}  # right arms that are done, by seed and config
        self._lock = threading.RLock()
        self._wanted: Key | None = None
        self._running: Key | None = None
        self._wake, self._stop, self._ending, self._idle = (threading.Event() for _ in range(4))
        self._idle.set()
        described = [{field: getattr(switch, field) for field in OF_SWITCH} for switch in self.switches.values()]
        self.parts = {
            "choose": AblationPart(part="choose", switches=described),
            "outcome": AblationPart(part="outcome"),
        }
        self.parts["choose"].on_msg(self._on_message)
        self.curves = self._new_curves()
        super().__init__([self.parts["choose"], self.curves, self.parts["outcome"]])
        self.add_class("rlhf-ablations")
        self._show()
        self._thread = threading.Thread(target=self._work, name="rlhf-lab ablations", daemon=True)
        self._thread.start()
        AblationPanel._latest = weakref.ref(self)

    # --- what the screen and scripts call: returns at once (`wait` and `end` aside) ---

    def select(self, name: str, seed: int | None = None) -> None:
        """Show a switch, with its curves if it has run."""
        if name not in self.switches:
            raise InputError(f"no switch {name!r} in this panel; it has {', '.join(self.switches)}")
        with self._lock:
            self.selected = (name, self.selected[1] if seed is None else int(seed))
            self._replace_curves()
            self._show()

    def run(self, name: str | None = None, seed: int | None = None) -> None:
        """Compare both arms of a switch (else of the one that is shown). A comparison in hand is given up."""
        if self._ending.is_set():
            raise InputError("this panel has ended; run the cell again for a new one")
        self.select(name or self.selected[0], seed)
        with self._lock:
            self._wanted, self.error = self.selected, ""
            self._idle.clear()
            self._stop.set()
            self._wake.set()
            self._say("running")

    def stop(self) -> None:
        """End the comparison in hand after the step it is in."""
        with self._lock:
            was_wanted, self._wanted = self._wanted, None
            if self._running is not None:
                self._stop.set()
                self._say("stopping")
            elif was_wanted is not None:  # the worker had not begun it yet
                self._say("idle")

    def wait(self, timeout: float = 600.0) -> bool:
        """Wait until nothing runs; False on time-out. For scripts and tests: a screen never waits."""
        return self._idle.wait(timeout)

    def end(self, timeout: float = 30.0) -> bool:
        """Stop the worker for good; True when it has ended."""
        self._ending.set()
        self._stop.set()
        self._wake.set()
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def close(self) -> None:
        """Stop the worker and close the view."""
        if "_thread" not in vars(self):  # it was never made: its arguments were wrong
            return
        self.end()
        for widget in (*self.parts.values(), self.curves):
            widget.close()
        super().close()

    def figure(self) -> Figure:
        """The curves of the switch that is shown as a static picture, for a notebook that is saved."""
        switch = self.switches[self.selected[0]]
        return ablation_curves(self.results.get(self.selected, []), _watched(switch), switch.title)

    def __repr__(self) -> str:
        return f"<AblationPanel: {len(self.switches)} switches, {len(self.results)} compared>"

    # --- the worker ---

    def _work(self) -> None:
        torch.set_num_threads(max(1, (os.cpu_count() or 2) - 1))  # the kernel, the browser and the person need a core
        while not self._ending.is_set():
            self._wake.wait()
            with self._lock:
                self._wake.clear()
                self._stop.clear()
                self._running, self._wanted = self._wanted, None
                key = self._running
            try:
                if key is not None and not self._ending.is_set():
                    self._say("running")
                    self._compare(key)
                    self._say("idle")
            except Exception as error:  # whatever it is, a person must see it
                self._fail(error)
            with self._lock:
                self._running = None
                if self._wanted is None:
                    self._idle.set()
        self._say("closed")
        self._idle.set()

    def _compare(self, key: Key) -> None:
        name, seed = key
        switch, setup = self.switches[name], _seeded(self.setup, seed)
        config = (seed, repr(switch.right_config(setup.config)))
        steps: list[ArmStep] = []
        with self._lock:
            self.results[key] = steps
            self._replace_curves()
            self._show()
        for step in compare(setup, switch, self._rights.get(config)):
            if self._stop.is_set():
                return
            with self._lock:
                steps.append(step)
                if self.selected == key:
                    self._draw(step)
                if step.arm == "broken":
                    self._show()
        self._rights[config] = [step for step in steps if step.arm == "right"]

    def _fail(self, error: Exception) -> None:
        known = isinstance(error, InputError)
        if not known:
            traceback.print_exception(error)
        with self._lock:
            self.error = str(error) if known else f"{type(error).__name__}: {error}"
            self._say("error")

    # --- the screen ---

    def _on_message(self, _part: object, content: dict[str, Any], _buffers: object) -> None:
        action, name, seed = content.get("action"), content.get("name"), content.get("seed")
        known = name in self.switches and isinstance(seed, int) and 0 <= seed < SEEDS + self.setup.seed
        try:
            if action == "select" and known:
                self.select(name, seed)
            elif action == "run" and known:
                self.run(name, seed)
            elif action == "stop":
                self.stop()
        except InputError as error:
            self._fail(error)

    def _say(self, state: State) -> None:
        with self._lock:
            if self.state != "closed":
                self.state = state
            self._show()

    def _new_curves(self) -> CurvesWidget:
        panels = [_panel(key) for key in _watched(self.switches[self.selected[0]])]
        return CurvesWidget(panels, panel_width=210, plot_height=150)

    def _replace_curves(self) -> None:
        """A chart of what tells for the switch that is shown, with the steps that it has so far."""
        old, self.curves = self.curves, self._new_curves()
        self.children = [self.parts["choose"], self.curves, self.parts["outcome"]]
        old.close()
        for step in self.results.get(self.selected, []):
            self._draw(step)

    def _draw(self, step: ArmStep) -> None:
        for key in _watched(self.switches[self.selected[0]]):
            self.curves.add(f"{key}/{step.arm}", step.stats.step, step.metric(key))

    def _show(self) -> None:
        with self._lock:
            name, seed = self.selected
            steps = self.results.get(self.selected, [])
            total = self.switches[name].right_config(self.setup.config).steps
            done = sum(step.arm == "broken" for step in steps)
            self.parts["choose"].data = {
                "selected": name,
                "seed": seed,
                "seeds": [self.setup.seed + i for i in range(SEEDS)],
                "state": self.state,
                "running": self._running[0] if self._running and self.state in ("running", "stopping") else "",
                "step": done,
                "steps": total,
                "error": self.error,
                "done": sorted({key[0] for key, found in self.results.items() if found}),
            }
            self.parts["outcome"].data = _outcome(steps, done, total)


def _seeded(setup: Setup, seed: int) -> Setup:
    return Setup(setup.policy, setup.reward_model, setup.tokenizer, setup.prompts, setup.config, seed)


def _watched(switch: Switch) -> list[str]:
    """The three metrics that are drawn: those that tell, and the reward."""
    keys = ["true_reward" if key == "reward" else key for key in switch.watch]
    return list(dict.fromkeys([*keys, "true_reward", "kl"]))[:3]


def _panel(key: str) -> Panel:
    metric = ABLATION_METRICS[key]
    return Panel(
        key, metric.title, metric.explanation, f"{metric.unit}, broken" if metric.unit else "broken",
        series=(Series("right", "right"), Series("broken", "broken")), percent=metric.percent, xlabel="PPO step",
        reference=metric.reference, reference_label=metric.reference_label, marks=False, lead=1,
        empty="Press Run both",
    )  # fmt: skip


def _outcome(steps: Sequence[ArmStep], done: int, total: int) -> dict[str, Any]:
    """Symptoms so far, and the same questions answered by both arms."""
    latest = {arm: next((step for step in reversed(steps) if step.arm == arm), None) for arm in ARMS}
    if done == 0 or None in latest.values():
        return {"step": 0, "steps": total, "symptoms": [], "replies": []}
    at = latest["broken"].stats.step
    right = next(step for step in steps if step.arm == "right" and step.stats.step == at)
    pairs = zip(right.stats.samples, latest["broken"].stats.samples, strict=True)
    replies = [{"prompt": r.prompt, "right": _reply(r), "broken": _reply(b)} for r, b in list(pairs)[:SAMPLES]]
    found = [asdict(symptom) for symptom in symptoms(steps)]
    return {"step": at, "steps": total, "symptoms": found, "replies": replies}


def _reply(rollout: Any) -> dict[str, Any]:
    return {"text": rollout.reply, "score": round(rollout.score, 2), "truncated": rollout.truncated}
