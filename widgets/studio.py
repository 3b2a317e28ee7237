"""The Studio: give feedback in any form, watch the reward model learn your taste and PPO move the policy, and steer it.

    studio = Studio(loop)  # a rlhf_lab.live.LiveLoop, or anything that behaves like one
    studio

The Studio only listens and passes on: its callbacks validate, store and enqueue, the loop's one worker trains. Events
come on the worker's thread; what fails, here or there, is shown in the Studio: a notebook would show it nowhere.
"""

from __future__ import annotations

import math
import random
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations, product
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakValueDictionary

import anywidget
import ipywidgets
import traitlets

from rlhf_lab.errors import InputError
from rlhf_lab.records import (
    Answer,
    Effect,
    LiveEvent,
    LoopError,
    LoopState,
    Question,
    QuestionsReady,
    RewardUpdate,
    RolledBack,
    Rollout,
    StateChanged,
    StepStats,
    Taught,
    Vote,
    WinRate,
)

from .chat import ChatWidget
from .compare import CompareWidget, GradedCompareWidget
from .correction import CorrectionWidget
from .curves import STATIC, Coalescer, CurvesWidget, Panel, Series
from .feedback import FeedbackWidget
from .history import HistoryWidget, Label
from .ranking import RankingWidget
from .rating import RatingWidget
from .thumbs import ThumbsWidget

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SAMPLES_SHOWN = 3
EARLIER_SHOWN = 4
ERRORS_SHOWN = 3
SEARCHED = 20  # questions looked through for one that a form can ask

STATE_MESSAGES: dict[str, str] = {
    "idle": "Press Start: PPO begins, and you can give feedback while it runs.",
    "running": "PPO is training the policy towards what the reward model has learned from you.",
    "paused": "PPO waits. You can go on giving feedback; press Start to let it continue.",
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
PPO_AXIS, LABEL_AXIS = "PPO step", "your label"

PANELS = (
    Panel(
        "reward", "Reward",
        "Mean score the reward model gives the policy's replies. It should rise, then level off.",
        xlabel=PPO_AXIS, empty="Appears after the first PPO step",
    ),
    Panel(
        "kl", "KL to SFT",
        "How far the policy has moved. Growth is normal; past 20, check that the replies still read well.",
        "nats/reply", xlabel=PPO_AXIS, empty="Appears after the first PPO step",
    ),
    Panel(
        "agreement", "Agreement with you",
        "Share of a new label's pairs that the reward model ordered like you, before learning them. Should rise.",
        series=(Series("running", "average"), Series("one", "each label", points=True)),
        percent=True, ymin=0.0, ymax=1.0, xlabel=LABEL_AXIS, reference=0.5, reference_label="coin flip",
        marks=False, empty="Appears after your first label",
    ),
    Panel(
        "win_rate", "Win rate against SFT",
        "How often the reward model prefers the policy's reply to the SFT model's, on prompts kept aside. Band: 95%.",
        percent=True, ymin=0.0, ymax=1.0, xlabel=PPO_AXIS, reference=0.5, reference_label="no better than SFT",
        empty="Appears when first measured",
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Form:
    """One way of giving feedback: its tab, the widget, and how many replies a question needs for it."""

    label: str
    hint: str
    widget: type[FeedbackWidget] | None  # None: the chat, which asks no question
    replies: int = 1
    pair: bool = False  # asks about two replies; of a longer question, two are drawn

    @property
    def name(self) -> str:
        return self.widget.__name__ if self.widget else ChatWidget.__name__


FORMS = {
    "rank": Form("Rank", "Put all replies in order, best first", RankingWidget, 2),
    "compare": Form("Compare", "Which of two replies is better?", CompareWidget, 2, pair=True),
    "grade": Form("Grade", "Which of two replies is better, and by how much?", GradedCompareWidget, 2, pair=True),
    "rate": Form("Rate", "Mark every reply from 1 to 5: helpful, correct, polite, safe", RatingWidget),
    "thumbs": Form("Thumbs", "Good or not? One reply at a time", ThumbsWidget),
    "correct": Form("Correct", "Edit a reply into the one that you want", CorrectionWidget),
    "chat": Form("Chat", "Talk with a checkpoint; mark, rank and correct what it says", None),
}


class Loop(Protocol):
    """What the Studio needs of a live loop (`rlhf_lab.live.LiveLoop`). Any thread may call; only `reply` may block."""

    annotator: str
    checkpoints: Sequence[str]  # whom `reply` can ask

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
    def ask(self, question: Question) -> Question:
        """Keeps a question that the loop did not write, so that it can be answered."""
        ...

    def submit(self, answer: Answer) -> int: ...
    def given(self) -> list[tuple[Question, Answer, bool]]:
        """All answers of the annotator, oldest first, each with its question and whether it was not withdrawn."""
        ...

    def withdraw(self, answer_id: str) -> Question: ...
    def rollback(self, answer_id: str) -> int: ...
    def ask_again(self) -> Question | None: ...
    def reply(self, turns: Sequence[tuple[str, str]], k: int = 1, checkpoint: str = "policy") -> Question: ...
    def subscribe(self, callback: Callable[[LiveEvent], None]) -> Callable[[], None]: ...


class StudioPart(anywidget.AnyWidget):
    """One region of the Studio ("bar", "forms", "effect" or "samples"), drawn from what Python puts in `data`."""

    _esm = STATIC / "studio.js"
    _css = STATIC / "studio.css"
    part = traitlets.Unicode().tag(sync=True)
    data = traitlets.Dict().tag(sync=True)


class Studio(ipywidgets.VBox):
    """Feedback in the form that you choose, controls, what the latest label changed, live curves, history, replies.

    `forms` are the ways of giving feedback that are offered, of `FORMS`, the first one shown first; `guidelines` are
    what to judge by, shown beside the task. A question waits until it is answered, whichever form shows it.

    A loop has one Studio: making another closes the first, so that running the cell again leaves one subscription.
    Showing one Studio twice, or reloading the page, shows the same.
    """

    _of_loop: WeakValueDictionary[int, Studio] = WeakValueDictionary()
    _closed = True  # until it is made

    def __init__(
        self,
        loop: Loop,
        forms: Sequence[str] = tuple(FORMS),
        guidelines: str | dict[str, str] | None = None,
        interval: float = 0.2,
    ) -> None:
        self._forms = known_forms(forms)
        previous = Studio._of_loop.get(id(loop))
        if previous is not None:
            previous.close()
        self.loop, self._guidelines = loop, guidelines
        self._lock = threading.RLock()  # guards the data below; never held while the loop is called
        self._closed = False
        self._replaying: list[LiveEvent] | None = []
        self._step = 0
        self._errors: list[dict[str, str]] = []
        self._submitting: dict[str, list[LiveEvent]] = {}  # answers on their way, and what came of them meanwhile
        self._data: dict[str, dict[str, Any]] = {"bar": {}, "forms": {}, "effect": {}, "samples": {}}
        self._parts = {name: StudioPart(part=name) for name in self._data}
        self._coalescer = Coalescer(self._show, interval)
        self.curves = CurvesWidget(PANELS, interval=interval, on_mark=self._open_mark, mark_name="your labels")
        self.history = HistoryWidget(self._on_history, self._can_change, interval)
        self._take_over(previous)
        self._read_labels()
        self._row = ipywidgets.Box([])
        self._row.add_class("rlhf-studio-row")
        parts = self._parts
        super().__init__([parts["bar"], parts["forms"], self._row, self.curves, self.history, parts["samples"]])
        self.add_class("rlhf-studio")
        for name in ("bar", "forms"):
            parts[name].on_msg(self._on_message)
        self._widgets: dict[str, FeedbackWidget | ChatWidget] = {}
        self._enter(self._form)
        Studio._of_loop[id(loop)] = self
        self._listen()

    def _take_over(self, previous: Studio | None) -> None:
        """Go on where the loop's previous Studio was."""
        self._form = self._forms[0]
        self._questions: dict[str, Question] = {}  # all that were asked or may be answered, by id
        self._origins: dict[str, Question] = {}  # id of a pair drawn from a question → that question
        self._waiting: Question | None = None  # what the form that is left showed, for the one that is entered
        self._set_aside: deque[Question] = deque()  # to be asked before the loop's next
        self._drafts: dict[tuple[str, str], dict[str, Any]] = {}  # (form, question id) → what was begun
        self._conversation: list[dict[str, Any]] = []
        if previous is None:
            return
        previous._leave()
        self._questions, self._origins, self._drafts = previous._questions, previous._origins, previous._drafts
        self._waiting, self._set_aside = previous._waiting, previous._set_aside
        self._form = previous._form if previous._form in self._forms else self._form
        self._conversation = previous._conversation

    def _read_labels(self) -> None:
        for question, answer, stands in self.loop.given():
            self._remember(question)
            self.history.add(question, answer, None, "" if stands else "withdrawn")

    # --- for the person's own code ---

    @property
    def form(self) -> str:
        """The form that is shown, one of `FORMS`."""
        return self._form

    @property
    def widget(self) -> FeedbackWidget | ChatWidget:
        """The widget of the form that is shown."""
        return self._widgets[self._form]

    def choose(self, form: str) -> None:
        """Show the waiting question in another form."""
        if form not in self._forms:
            raise InputError(f"form {form!r}: this Studio offers {', '.join(self._forms)}")
        if form != self._form:
            self._leave()
            self._form = form
            self._enter(form)

    def figure(self) -> Figure:
        """The curves as they are now, as a static picture for a notebook that is saved."""
        return self.curves.figure()

    def close(self) -> None:
        """Stop listening to the loop and close the view. The loop itself goes on."""
        if self._closed:
            return
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._unsubscribe()
        self._coalescer.close()
        for widget in (*self._parts.values(), *self._widgets.values(), self.curves, self.history, self._row):
            widget.close()
        super().close()

    def __repr__(self) -> str:
        return f"<Studio: {self.loop.state}, {self.loop.labels} labels, PPO step {self._step}>"

    # --- the forms ---

    def _leave(self) -> None:
        """Remember the question that the present form shows, and what was begun there."""
        widget = self.widget
        if isinstance(widget, ChatWidget):
            self._conversation = widget.conversation
        else:
            self._waiting = self._origin(widget.question)
            self._keep_draft()

    def _enter(self, form: str) -> None:
        """Show a form; the question that waits is asked there."""
        if form not in self._widgets:
            self._widgets[form] = self._make(form)  # which asks for its question itself
            self._restore_draft(form)
        elif form != "chat":
            waiting, self._waiting = self._waiting, None
            asked = self._asked_as(form, waiting) if waiting else None
            if asked is None:
                self._set_aside.extendleft([waiting] if waiting else [])
                self.widget.show(None)
                self.widget.refresh()
            elif self.widget.question is None or self.widget.question.id != asked.id:
                self.widget.show(asked)
        self._row.children = [self.widget, self._parts["effect"]]
        with self._lock:
            tabs = [{"key": key, "label": FORMS[key].label, "hint": FORMS[key].hint} for key in self._forms]
            self._data["forms"] = {"forms": tabs, "form": form}
        self._coalescer.poke()

    def _make(self, form: str) -> FeedbackWidget | ChatWidget:
        if form == "chat":
            widget = ChatWidget(
                self._reply,
                self._answer,
                self.loop.annotator,
                self.loop.checkpoints,
                on_undo=self._undo,
                conversation=self._conversation,
                guidelines=self._guidelines,
            )
        else:
            widget = FORMS[form].widget(
                None,
                self._answer,
                self.loop.annotator,
                on_undo=self._undo,
                next_question=lambda: self._next_question(form),
                wait_text=self._wait_text(),
                history=self._given_in(form),
                guidelines=self._guidelines,
            )
            widget.observe(lambda change: self._on_shown(form, change), "shown")
        widget.add_class(f"rlhf-form-{form}")
        return widget

    def _given_in(self, form: str) -> list[tuple[Question, Answer]]:
        """What was answered in that form and stands, for its Undo."""
        name = FORMS[form].name
        labels = (label for label in self.history.labels if not label.taken_back)
        return [(label.question, label.answer) for label in labels if label.answer.context.get("widget") == name]

    def _asked_as(self, form: str, question: Question) -> Question | None:
        """`question` as that form asks it; None where it cannot (one reply to be put in order)."""
        kind = FORMS[form]
        if len(question.candidates) < kind.replies:
            return None
        if not kind.pair or len(question.candidates) == 2:
            return question
        drawn = random.Random(question.id).sample(range(len(question.candidates)), 2)
        pair = Question(f"{question.id}.pair", question.prompt, tuple(question.candidates[i] for i in sorted(drawn)))
        self._origins[pair.id] = self._remember(question)
        return self._remember(pair)

    def _origin(self, question: Question | None) -> Question | None:
        """The question that a pair was drawn from; any other question itself."""
        return None if question is None else self._origins.get(question.id, question)

    def _keep_draft(self) -> None:
        question, draft = self.widget.question, self.widget.draft
        if question is not None and draft.get("question") == question.id:
            self._drafts[self._form, question.id] = dict(draft)

    def _on_shown(self, form: str, change: dict[str, Any]) -> None:
        """A form shows another question: what was begun there comes back; if it has run out, look once more."""
        if not change["new"]:
            self._refresh_soon()  # lest questions came in between
            return
        self._restore_draft(form)

    def _restore_draft(self, form: str) -> None:
        widget = self._widgets.get(form)
        if isinstance(widget, FeedbackWidget) and widget.question is not None and not widget.draft:
            widget.draft = self._drafts.pop((form, widget.question.id), {})

    def _next_question(self, form: str) -> Question | None:
        """What a form asks next. One that is not shown asks nothing: its answer came late."""
        unfit: list[Question] = []  # questions that only another form can ask: they wait for it
        asked = None
        while form == self._form and asked is None and len(unfit) < SEARCHED:
            with self._lock:
                question, self._waiting = self._waiting, None
                if question is None and self._set_aside:
                    question = self._set_aside.popleft()
            question = question or self._remember(self.loop.next_question())
            if question is None:
                break
            asked = self._asked_as(form, question)
            unfit += [question] if asked is None else []
        with self._lock:
            self._set_aside.extendleft(reversed(unfit))
        return asked

    def _remember(self, question: Question | None) -> Question | None:
        if question is not None:
            self._questions[question.id] = question
        return question

    def _reply(self, turns: Sequence[tuple[str, str]], k: int = 1, checkpoint: str = "policy") -> Question:
        """What the chat is answered; on the chat's own thread."""
        return self._remember(self.loop.reply(turns, k, checkpoint))

    def _wait_text(self) -> str:
        return WAITING if self.loop.state == "running" else WAITING_FOR_START

    def _refresh_soon(self) -> None:
        # On a thread of its own: neither the worker nor a callback waits for the loop's or a form's locks.
        threading.Thread(target=self._refresh, daemon=True).start()

    def _refresh(self) -> None:
        with self._errors_shown("The next question"):
            widget = self._widgets.get(self._form)
            if not self._closed and isinstance(widget, FeedbackWidget):
                widget.refresh()

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
            if isinstance(event, RewardUpdate) and not self._knows(event.ranking_id):
                self._read_labels()  # a script of yours answered
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

    def _knows(self, answer_id: str) -> bool:
        return answer_id in self._submitting or answer_id in self.history

    def _take(self, event: LiveEvent) -> None:
        match event:
            case StepStats():
                self._take_step(event)
            case RewardUpdate(ranking_id=answer_id) if answer_id in self._submitting:
                self._submitting[answer_id].append(event)  # the worker was faster than `submit`: taken with the label
            case Taught() if any(self._submitting.values()):
                next(filter(None, self._submitting.values())).append(event)
            case RewardUpdate():
                self._take_update(event)
            case WinRate(step, interval):
                self.curves.add("win_rate", step, interval.value, interval.low, interval.high)
            case Taught():
                self._take_taught(event)
            case RolledBack():
                self._take_rollback(event)
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
        """The reward model has learned a label, or unlearned one that it knew."""
        label = self.history.get(update.ranking_id)
        if label is not None and not label.answer.given:
            return self._pend(0)  # "can't decide" in place of a decision, or that taken back: no label of its own
        number = label.number if label else update.labels
        unlearned = label is not None and label.learned
        if update.effects:
            latest = effect_view(update.effects[0], label.answer if label else None)
            earlier = [effect_view(effect) for effect in update.effects[1 : EARLIER_SHOWN + 1]]
            shown = {"label": number, "taken_back": unlearned, "latest": latest, "earlier": earlier, "taught": ""}
            self._data["effect"] = self._data["effect"] | shown
        if self._data["effect"].get("pending", 0) <= number:
            self._pend(0)
        if unlearned:
            if not label.taken_back:  # by a script of yours
                self.history.take_back(update.ranking_id)
                self._mark(label, number)
            return
        if label is not None:
            self.history.learned(update.ranking_id, effect_words(update), self._step)
        self._mark(label, number)
        if update.agreement is not None:
            self.curves.add("agreement/one", number, update.agreement)
        if update.running_agreement is not None:
            self.curves.add("agreement/running", number, update.running_agreement)

    def _mark(self, label: Label | None, number: int) -> None:
        """The label on the curves, where the reward model learned it."""
        if label is None:
            self.curves.mark(self._step, f"label {number}", also={LABEL_AXIS: number})
            return
        words = f"{label.name} ({label.taken_back})" if label.taken_back else label.name
        step = self._step if label.step is None else label.step
        self.curves.mark(step, words, label.answer.id, bool(label.taken_back), {LABEL_AXIS: number})

    def _take_taught(self, event: Taught) -> None:
        """The policy has learned corrections: said beside the effect, and at the newest one in the history."""
        self._data["effect"] = self._data["effect"] | {"taught": taught_words(event)}
        known = (label for label in self.history.labels if label.learned and label.answer.kind == "correction")
        newest = next((label for label in reversed([*known]) if not label.taken_back), None)
        if newest is not None:
            self.history.learned(newest.answer.id, f"{newest.effect}; policy: {likelier(event)}")

    def _take_rollback(self, event: RolledBack) -> None:
        span = self.history.rolled_back(event)
        self.curves.cut(event.to_step, event.step, f"↩ back to {event.to_step}", PPO_AXIS)
        if span is not None:
            self.curves.cut(span[0] - 1, span[1], f"↩ back to {span[0] - 1}", LABEL_AXIS)
            for label in self.history.labels:
                if label.learned and span[0] <= label.number <= span[1]:
                    self._mark(label, label.number)
        self._data["effect"] = {}
        words = f"Back to before label {span[0]}" if span else "Rolled back"
        self._data["bar"]["message"] = (
            f"{words}: the policy is again as it was after PPO step {event.to_step}; {event.withdrawn} withdrawn."
        )

    def _note_state(self, state: LoopState, message: str) -> None:
        with self._lock:
            if state == "running":
                self._errors = []
            for widget in self._widgets.values():
                if isinstance(widget, FeedbackWidget):
                    widget.wait_text = WAITING if state == "running" else WAITING_FOR_START
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
                self.history.step = self._step

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
            "form": lambda: self.choose(content.get("form", "")),
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

    def _answer(self, answer: Answer) -> int:
        """Store an answer. What `submit` raises goes back to the widget, which keeps the draft and shows it."""
        question = self._questions[answer.question_id]
        if question.id in self._origins:
            self.loop.ask(question)
        self._submitting[answer.id] = []
        try:
            place = self.loop.submit(answer)
            label, labels = self.history.add(question, answer, self._step), self.loop.labels
        finally:
            early = self._submitting.pop(answer.id)
        with self._lock:
            self._data["bar"]["labels"] = labels
            for event in early:
                self._take(event)
            if answer.given and not label.learned:
                self._pend(label.number)
        self._coalescer.poke()
        return place

    def _pend(self, label: int) -> None:
        self._data["effect"] = self._data["effect"] | {"pending": label}

    def _undo(self, answer: Answer) -> Question:
        """Withdraw an answer; its question comes back."""
        question, labels = self.loop.withdraw(answer.id), self.loop.labels
        self.history.take_back(answer.id)
        label = self.history.get(answer.id)
        with self._lock:
            self._data["bar"]["labels"] = labels
            self._pend(0)
            if label is not None and label.learned:
                self._mark(label, label.number)
        self._coalescer.poke()
        return self._remember(question)

    def _ask_again(self) -> None:
        question = self.loop.ask_again()
        if question is None:
            with self._lock:
                self._data["bar"]["message"] = "There is nothing to ask again yet: answer a question first."
            return
        if self._form == "chat" or self._asked_as(self._form, question) is None:
            self.choose(self._form_for(question, None) or self._form)
        self._put_first(self._remember(question))

    def _put_first(self, question: Question, answer: Answer | None = None) -> None:
        """Ask `question` now, with the decision of an earlier answer to be changed; the one shown waits meanwhile."""
        shown, asked = self._origin(self.widget.question), self._asked_as(self._form, question)
        if asked is None:
            raise InputError(f"question {question.id!r} cannot be asked in the form {FORMS[self._form].label!r}")
        if shown is not None and shown.id != question.id:
            self._keep_draft()
            self._set_aside.appendleft(shown)
        self.widget.show(asked, answer)

    # --- time travel ---

    def _form_for(self, question: Question, answer: Answer | None) -> str | None:
        """The offered form in which an answer can be given once more: the one that it was given in, where there is."""
        fits = [
            form
            for form in self._forms
            if (widget := FORMS[form].widget) is not None
            and len(question.candidates) >= FORMS[form].replies
            and not (FORMS[form].pair and len(question.candidates) > 2)
            and (answer is None or widget.record.kind == answer.kind)
        ]
        same = [form for form in fits if answer and FORMS[form].name == answer.context.get("widget")]
        return next(iter([*same, *fits]), None)

    def _can_change(self, question: Question, answer: Answer) -> bool:
        return self._form_for(question, answer) is not None

    def _on_history(self, action: str, answer_id: str) -> None:
        actions = {"withdraw": self._withdraw, "change": self._change, "rollback": self._roll_back}
        with self._errors_shown(f"History, “{action}”"):
            actions[action](self.history[answer_id])

    def _withdraw(self, label: Label) -> None:
        self._undo(label.answer)
        self._forget([label])

    def _change(self, label: Label) -> None:
        """Show the question again in the form of its answer; a new answer takes the old one's place."""
        form = self._form_for(label.question, label.answer)
        if form is None:
            raise InputError(f"none of the forms offered here gives a {label.answer.kind}")
        self.choose(form)
        self._put_first(label.question, label.answer)

    def _roll_back(self, label: Label) -> None:
        """Go back to before a label; the worker puts the models back and then says `RolledBack`."""
        gone = self.history.standing_from(label.answer.id)
        with self._lock:  # now, for the worker may say that it is done before `rollback` returns
            bar, message = self._data["bar"], self._data["bar"].get("message", "")
            bar["message"] = f"Going back to before label {label.number} …"
        try:
            self.loop.rollback(label.answer.id)
        except Exception:
            bar["message"] = message
            raise
        for each in gone:
            self.history.take_back(each.answer.id, "rolled back")
        self._forget(gone)
        labels = self.loop.labels
        with self._lock:
            bar["labels"] = labels
            self._pend(0)
        self._coalescer.poke()

    def _forget(self, labels: Sequence[Label]) -> None:
        """No form counts these answers any more, nor takes them back."""
        for widget in self._widgets.values():
            widget.forget([label.answer.id for label in labels])

    def _open_mark(self, answer_id: str) -> None:
        self.history.reveal(answer_id)


def known_forms(forms: Sequence[str]) -> tuple[str, ...]:
    """The forms, if each is one of `FORMS`, once; InputError otherwise."""
    forms = (forms,) if isinstance(forms, str) else tuple(forms)
    if not forms or len(set(forms)) < len(forms) or not set(forms) <= set(FORMS):
        raise InputError(f"forms {forms}: one or more of {', '.join(FORMS)}, each once, are wanted")
    return forms


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


def effect_view(effect: Effect, answer: Answer | None = None) -> dict[str, Any]:
    """An `Effect` as the page draws it: replies in the reward model's new order, with places before and after.

    A correction's text stands above the original, whichever scores higher.
    """
    candidates = effect.question.candidates
    tiers = {candidate: number for number, tier in enumerate(effect.order, 1) for candidate in tier}
    places = places_given(effect.order)
    before, after = ranks(effect.before), ranks(effect.after)
    corrected = answer is not None and answer.kind == "correction"
    thumb = {answer.candidate: answer.up} if isinstance(answer, Vote) else {}
    rows = [
        {
            "text": candidate.text,
            "you": {True: "👍", False: "👎"}.get(thumb.get(candidate.id), tiers.get(candidate.id)),
            "who": ("your text" if tiers.get(candidate.id) == 1 else "the original") if corrected else "",
            "agrees": after[i] in places.get(candidate.id, ())
            or (candidate.id in thumb and thumb[candidate.id] == (effect.after[i] > effect.before[i])),
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
        "rows": sorted(rows, key=lambda row: row["you"] if corrected else row["rank_after"]),
        "pairs": pairs,
        "agreed_before": agreed_before,
        "agreed_after": agreed_after,
        "verdict": vote_verdict(effect, answer)
        if isinstance(answer, Vote)
        else correction_verdict(effect)
        if corrected and len(candidates) == 2
        else verdict(agreed_before, agreed_after, pairs),
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


def correction_verdict(effect: Effect) -> str:
    """One sentence: does the reward model put the corrected text (the first) above the original, and by how much?"""
    before, after = (scores[0] - scores[1] for scores in (effect.before, effect.after))
    if after > 0:
        was = f"by {before:.2f}" if before > 0 else f"the original was ahead by {-before:.2f}"
        return f"The reward model now puts your text above the original by {after:.2f} (before: {was})."
    return f"The reward model still puts the original ahead, by {-after:.2f} (before: {signed(-before)})."


def vote_verdict(effect: Effect, vote: Vote) -> str:
    """One sentence: did the reply's score go the way of the thumb?"""
    place = next((i for i, c in enumerate(effect.question.candidates) if c.id == vote.candidate), 0)
    moved = effect.after[place] - effect.before[place]
    thumb, way = ("up", moved > 0) if vote.up else ("down", moved < 0)
    went = "rose" if moved > 0 else "fell" if moved < 0 else "stayed"
    return f"Your thumb went {thumb}, and the reply's score {went}{' with it' if way else ''}."


def effect_words(update: RewardUpdate) -> str:
    """What a label did to the reward model, in a few words."""
    if not update.effects:
        return ""
    effect = update.effects[0]
    if update.kind == "correction" and len(effect.after) == 2:
        return f"your text {signed(effect.after[0])}, the original {signed(effect.after[1])}"
    (before, pairs), (after, _) = pairs_agreed(effect, effect.before), pairs_agreed(effect, effect.after)
    if pairs:
        return f"{before} → {after} of {pairs} pair{'' if pairs == 1 else 's'} in your order"
    return f"score {signed(effect.before[0])} → {signed(effect.after[0])}"


def taught_words(taught: Taught) -> str:
    """What SFT on corrections did to the policy."""
    loss = f"loss {taught.before:.2f} → {taught.after:.2f} nats a token"
    return f"The policy has learned your correction: each of its tokens became {likelier(taught)} on average ({loss})."


def likelier(taught: Taught) -> str:
    """How much likelier each token of the newest correction became (geometric mean): e to the fall of the loss."""
    factor = math.exp(min(50.0, abs(taught.before - taught.after)))
    return f"{factor:.1f}× {'likelier' if taught.after <= taught.before else 'less likely'}"


def signed(value: float) -> str:
    """A score with its sign, two decimals."""
    return f"{value:+.2f}".replace("-", "\N{MINUS SIGN}")


def sample_view(rollout: Rollout) -> dict[str, Any]:
    """A `Rollout` as the page draws it."""
    return {
        "prompt": rollout.prompt,
        "reply": rollout.reply,
        "score": rollout.score,
        "kl": rollout.kl,
        "truncated": rollout.truncated,
    }
