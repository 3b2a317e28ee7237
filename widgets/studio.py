"""The Studio: rank replies, watch the reward model learn your taste and PPO move the policy, and steer it.

    studio = Studio(loop)  # a rlhf_lab.live.LiveLoop, or anything that behaves like one
    studio

The Studio only listens and passes on: its callbacks validate, store and enqueue, the loop's one worker trains. Events
come on the worker's thread; what fails, here or there, is shown in the Studio: a notebook would show it nowhere.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import combinations, product
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakValueDictionary

import anywidget
import ipywidgets
import traitlets

from rlhf_lab.errors import InputError
from rlhf_lab.records import (
    Effect,
    LiveEvent,
    LoopError,
    LoopState,
    Question,
    QuestionsReady,
    Ranking,
    RewardUpdate,
    Rollout,
    StateChanged,
    StepStats,
    WinRate,
)

from .curves import STATIC, Coalescer, CurvesWidget, Panel, Series
from .ranking import RankingWidget

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SAMPLES_SHOWN = 3
EARLIER_SHOWN = 4
ERRORS_SHOWN = 3

STATE_MESSAGES: dict[str, str] = {
    "idle": "Press Start: PPO begins, and you can rank while it runs.",
    "running": "PPO is training the policy towards what the reward model has learned from you.",
    "paused": "PPO waits. You can go on ranking; press Start to let it continue.",
    "stopped": "The worker has stopped. All your labels are stored.",
    "error": "The worker stopped at an error. All your labels are stored.",
}
REQUESTED = {
    "start": "Starting …",
    "pause": "Pausing after the step in hand …",
    "step": "One PPO step …",
    "stop": "Stopping after the step in hand …",
}
WAITING = "The policy is writing new replies for you…"
WAITING_FOR_START = "No replies wait for you now. Press Start or Step, and the policy writes new ones."

PANELS = (
    Panel(
        "reward", "Reward",
        "Mean score the reward model gives the policy's replies. It should rise, then level off.",
        xlabel="PPO step", empty="Appears after the first PPO step",
    ),
    Panel(
        "kl", "KL to SFT",
        "How far the policy has moved. Growth is normal; past 20, check that the replies still read well.",
        "nats/reply", xlabel="PPO step", empty="Appears after the first PPO step",
    ),
    Panel(
        "agreement", "Agreement with you",
        "Share of a new ranking's pairs that the reward model ordered like you, before learning them. Should rise.",
        series=(Series("running", "average"), Series("one", "each ranking", points=True)),
        percent=True, ymin=0.0, ymax=1.0, xlabel="your label", reference=0.5, reference_label="coin flip",
        marks=False, empty="Appears after your first ranking",
    ),
    Panel(
        "win_rate", "Win rate against SFT",
        "How often the reward model prefers the policy's reply to the SFT model's, on prompts kept aside. Band: 95%.",
        percent=True, ymin=0.0, ymax=1.0, xlabel="PPO step", reference=0.5, reference_label="no better than SFT",
        empty="Appears when first measured",
    ),
)  # fmt: skip


class Loop(Protocol):
    """What the Studio needs of a live loop (`rlhf_lab.live.LiveLoop`). No method blocks; any thread may call."""

    annotator: str

    @property
    def state(self) -> LoopState: ...
    @property
    def labels(self) -> int: ...
    @property
    def history(self) -> list[LiveEvent]: ...
    def start(self) -> None: ...
    def pause(self) -> None: ...
    def step(self, n: int = 1) -> None: ...
    def stop(self) -> None: ...
    def next_question(self) -> Question | None: ...
    def submit(self, ranking: Ranking) -> int: ...
    def undo(self) -> Question | None: ...
    def ask_again(self) -> Question | None: ...
    def subscribe(self, callback: Callable[[LiveEvent], None]) -> Callable[[], None]: ...


class StudioPart(anywidget.AnyWidget):
    """One region of the Studio, "bar", "effect" or "samples", drawn from the plain data that Python puts in `data`."""

    _esm = STATIC / "studio.js"
    _css = STATIC / "studio.css"
    part = traitlets.Unicode().tag(sync=True)
    data = traitlets.Dict().tag(sync=True)


class Studio(ipywidgets.VBox):
    """Ranking, controls, the effect of the latest label, live curves and the policy's latest replies, on one loop.

    A loop has one Studio: making another closes the first, so that running the cell again leaves one subscription.
    Showing one Studio twice, or reloading the page, shows the same.
    """

    _of_loop: WeakValueDictionary[int, Studio] = WeakValueDictionary()

    def __init__(self, loop: Loop, interval: float = 0.2) -> None:
        previous = Studio._of_loop.get(id(loop))
        if previous is not None:
            previous.close()
        self.loop = loop
        self._lock = threading.RLock()  # guards the data below; never held while the loop is called
        self._closed = False
        self._replaying: list[LiveEvent] | None = []
        self._questions: dict[str, Question] = {}  # all that were asked, by id
        self._set_aside: deque[Question] = deque()  # to be asked before the loop's next
        self._step = self._learned = 0
        self._errors: list[dict[str, str]] = []
        self._data: dict[str, dict[str, Any]] = {"bar": {}, "effect": {}, "samples": {}}
        self._parts = {name: StudioPart(part=name) for name in self._data}
        self._coalescer = Coalescer(self._show, interval)
        self.curves = CurvesWidget(PANELS, interval=interval, mark_name="your labels")
        self.ranking = self._make_ranking(previous)
        row = ipywidgets.Box([self.ranking, self._parts["effect"]])
        row.add_class("rlhf-studio-row")
        super().__init__([self._parts["bar"], row, self.curves, self._parts["samples"]])
        self.add_class("rlhf-studio")
        self._parts["bar"].on_msg(self._on_message)
        Studio._of_loop[id(loop)] = self
        self._listen()

    def _make_ranking(self, previous: Studio | None) -> RankingWidget:
        """The ranking widget; it goes on where the loop's previous Studio was, undo included."""
        history: list[tuple[Question, Ranking]] = []
        if previous is not None:
            self._questions, self._set_aside = previous._questions, previous._set_aside
            if previous.ranking.question is not None:
                self._set_aside.appendleft(previous.ranking.question)
            history = [(self._questions[ranking.question_id], ranking) for ranking in previous.ranking.rankings]
        widget = RankingWidget(
            None,
            self._answer,
            self.loop.annotator,
            on_undo=self._undo,
            next_question=self._next_question,
            wait_text=WAITING_FOR_START,
            history=history,
        )
        widget.observe(self._on_shown, "shown")
        return widget

    # --- for the person's own code ---

    def figure(self) -> Figure:
        """The curves as they are now, as a static picture for a notebook that is saved."""
        return self.curves.figure()

    def close(self) -> None:
        """Stop listening to the loop and close the view. The loop itself goes on."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._unsubscribe()
        self._coalescer.close()
        for widget in (*self._parts.values(), self.curves, self.ranking, self.children[1]):
            widget.close()
        super().close()

    def __repr__(self) -> str:
        return f"<Studio: {self.loop.state}, {self.loop.labels} labels, PPO step {self._step}>"

    # --- what the loop says ---

    def _listen(self) -> None:
        """Subscribe, then replay the history; an event that comes meanwhile waits, and is not taken twice."""
        self._note_state(self.loop.state, "")
        self._unsubscribe = self.loop.subscribe(self._on_event)
        history = list(self.loop.history)
        labels = self.loop.labels
        with self._lock:
            known = {id(event) for event in history}
            for event in [*history, *(late for late in self._replaying or [] if id(late) not in known)]:
                self._take(event)
            self._replaying = None
            self._data["bar"] |= {"labels": labels, "annotator": self.loop.annotator}
        self._coalescer.poke()

    def _on_event(self, event: LiveEvent) -> None:
        """Called on the worker's thread. Nothing raised here may reach it."""
        with self._errors_shown("The Studio"):
            labels = self.loop.labels
            with self._lock:
                if self._closed:
                    return
                if self._replaying is not None:
                    self._replaying.append(event)
                    return
                self._data["bar"]["labels"] = labels
                self._take(event)
            if isinstance(event, QuestionsReady):
                self._refresh_soon()
        self._coalescer.poke()

    def _take(self, event: LiveEvent) -> None:
        match event:
            case StepStats():
                self._take_step(event)
            case RewardUpdate():
                self._take_update(event)
            case WinRate(step, interval):
                self.curves.add("win_rate", step, interval.value, interval.low, interval.high)
            case QuestionsReady(count, _):
                self._data["bar"]["waiting"] = count
            case StateChanged(state, message):
                self._note_state(state, message)
            case LoopError(where, message):
                self._note_error(where, message)

    def _take_step(self, stats: StepStats) -> None:
        self._step = stats.step
        self._data["bar"]["step"] = stats.step
        self.curves.add("reward", stats.step, stats.reward)
        self.curves.add("kl", stats.step, stats.kl)
        if stats.samples:
            samples = [sample_view(rollout) for rollout in stats.samples[:SAMPLES_SHOWN]]
            self._data["samples"] = {"step": stats.step, "items": samples}

    def _take_update(self, update: RewardUpdate) -> None:
        label = f"your label {update.labels}"
        self.curves.mark(self._step, label)
        if update.agreement is not None:
            self.curves.add("agreement/one", update.labels, update.agreement)
        if update.running_agreement is not None:
            self.curves.add("agreement/running", update.labels, update.running_agreement)
        if update.effects:
            latest, *earlier = [effect_view(effect) for effect in update.effects[: EARLIER_SHOWN + 1]]
            self._data["effect"] |= {"label": update.labels, "latest": latest, "earlier": earlier}
        self._learned = update.labels
        if self._data["effect"].get("pending", 0) <= update.labels:
            self._pend(0)

    def _note_state(self, state: LoopState, message: str) -> None:
        with self._lock:
            if state == "running":
                self._errors = []
            self.ranking.wait_text = WAITING if state == "running" else WAITING_FOR_START
            self._data["bar"] |= {
                "state": state,
                "message": message or STATE_MESSAGES.get(state, ""),
                "errors": list(self._errors),
            }

    def _note_error(self, where: str, message: str) -> None:
        with self._lock:
            error = {"where": where, "message": message}
            self._errors = [error, *(old for old in self._errors if old != error)][:ERRORS_SHOWN]
            self._data["bar"]["errors"] = list(self._errors)

    def _show(self) -> None:
        """Hand each region its data; a region whose data is the same sends nothing."""
        with self._lock:
            if not self._closed:
                for name, data in self._data.items():
                    self._parts[name].data = dict(data)

    @contextmanager
    def _errors_shown(self, where: str) -> Iterator[None]:
        """A notebook shows an exception of a callback nowhere; the Studio shows it in place."""
        try:
            yield
        except InputError as error:
            self._note_error(where, str(error))
        except Exception as error:
            self._note_error(where, f"{type(error).__name__}: {error}")
        self._coalescer.poke()

    # --- what the person does ---

    def _on_message(self, _part: object, content: dict[str, Any], _buffers: object) -> None:
        action = content.get("action")
        actions: dict[str | None, Callable[[], Any]] = {
            "start": self.loop.start,
            "pause": self.loop.pause,
            "step": self.loop.step,
            "stop": self.loop.stop,
            "again": self._ask_again,
            "dismiss": self._dismiss,
        }
        if action not in actions:
            return
        with self._errors_shown(f"Button “{action}”"):
            if action in REQUESTED:
                with self._lock:
                    self._data["bar"]["message"] = REQUESTED[action]
            actions[action]()

    def _dismiss(self) -> None:
        with self._lock:
            self._errors = []
            self._data["bar"]["errors"] = []

    def _answer(self, ranking: Ranking) -> int:
        """Store a ranking. What `submit` raises goes back to the ranking widget, which keeps the draft and shows it."""
        number, labels = self.loop.submit(ranking), self.loop.labels
        with self._lock:
            self._data["bar"]["labels"] = labels
            if ranking.status == "ranked" and labels > self._learned:  # the worker may have been faster
                self._pend(labels)
        self._coalescer.poke()
        return number

    def _pend(self, label: int) -> None:
        self._data["effect"] = self._data["effect"] | {"pending": label}

    def _undo(self, _ranking: Ranking) -> Question:
        """Withdraw the last ranking; its question comes back."""
        question, labels = self.loop.undo(), self.loop.labels
        if question is None:
            raise InputError("the loop has no ranking of yours to take back")
        with self._lock:
            self._data["bar"]["labels"] = labels
            self._pend(0)
        self._coalescer.poke()
        return self._remember(question)

    def _ask_again(self) -> None:
        question = self.loop.ask_again()
        if question is None:
            with self._lock:
                self._data["bar"]["message"] = "There is nothing to ask again yet: rank a question first."
            return
        shown = self.ranking.question
        if shown is not None and shown.id != question.id:
            self._set_aside.append(shown)
        self.ranking.show(self._remember(question))

    def _next_question(self) -> Question | None:
        with self._lock:
            if self._set_aside:
                return self._set_aside.popleft()
        return self._remember(self.loop.next_question())

    def _remember(self, question: Question | None) -> Question | None:
        if question is not None:
            self._questions[question.id] = question
        return question

    def _on_shown(self, change: dict[str, Any]) -> None:
        """The ranking widget has just run out: look once more, lest questions came in between."""
        if not change["new"]:
            self._refresh_soon()

    def _refresh_soon(self) -> None:
        # On a thread of its own: neither the worker nor a callback waits for the loop's or the ranking widget's locks.
        threading.Thread(target=self._refresh, daemon=True).start()

    def _refresh(self) -> None:
        with self._errors_shown("The next question"):
            if not self._closed:
                self.ranking.refresh()


def ranks(scores: tuple[float, ...]) -> list[int]:
    """The place of each score, 1 for the highest; equal scores keep their order."""
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    return [order.index(i) + 1 for i in range(len(scores))]


def places_given(order: tuple[tuple[str, ...], ...]) -> dict[str, range]:
    """The places that an order allows each reply, counted from 1: tied replies share those of their tier."""
    places, start = {}, 1
    for tier in order:
        places |= dict.fromkeys(tier, range(start, start + len(tier)))
        start += len(tier)
    return places


def pairs_agreed(effect: Effect, scores: tuple[float, ...]) -> tuple[int, int]:
    """How many of the person's strict pairs `scores` put in the same order, and how many there are."""
    score = dict(zip((c.id for c in effect.question.candidates), scores, strict=True))
    pairs = [pair for above, below in combinations(effect.order, 2) for pair in product(above, below)]
    return sum(score[better] > score[worse] for better, worse in pairs), len(pairs)


def effect_view(effect: Effect) -> dict[str, Any]:
    """An `Effect` as the page draws it: replies in the reward model's new order, with places before and after."""
    candidates = effect.question.candidates
    tiers = {candidate: number for number, tier in enumerate(effect.order, 1) for candidate in tier}
    places = places_given(effect.order)
    before, after = ranks(effect.before), ranks(effect.after)
    rows = [
        {
            "text": candidate.text,
            "you": tiers.get(candidate.id),
            "agrees": after[i] in places.get(candidate.id, ()),
            "rank_before": before[i],
            "rank_after": after[i],
            "before": effect.before[i],
            "after": effect.after[i],
        }
        for i, candidate in enumerate(candidates)
    ]
    (agreed_before, pairs), (agreed_after, _) = pairs_agreed(effect, effect.before), pairs_agreed(effect, effect.after)
    return {
        "prompt": effect.question.prompt,
        "rows": sorted(rows, key=lambda row: row["rank_after"]),
        "pairs": pairs,
        "agreed_before": agreed_before,
        "agreed_after": agreed_after,
        "verdict": verdict(agreed_before, agreed_after, pairs),
    }


def verdict(before: int, after: int, pairs: int) -> str:
    """One sentence: does the reward model order these replies as the person did, and did the label change that?"""
    if pairs == 0:
        return "You ordered no pair here, so there is nothing to agree about."
    if after == pairs:
        was = "as it did before" if before == pairs else f"before your label: {before} of {pairs} pairs"
        return f"The reward model now agrees with you completely ({was})."
    move = "up from" if after > before else "down from" if after < before else "as before:"
    return f"The reward model now orders {after} of {pairs} pairs as you did ({move} {before})."


def sample_view(rollout: Rollout) -> dict[str, Any]:
    """A `Rollout` as the page draws it."""
    return {
        "prompt": rollout.prompt,
        "reply": rollout.reply,
        "score": rollout.score,
        "kl": rollout.kl,
        "truncated": rollout.truncated,
    }
