"""What the feedback widgets share: one question at a time, one atomic answer, saved before it is acknowledged.

The protocol between Python and the page is the traits of `FeedbackWidget`. JavaScript holds the draft and sends it when
the keys rest, at the latest with the answer: no answer waits behind the messages of its own keys. Each decision comes
as one value of `answer`; Python checks it, hands it to `on_answer` (which stores it) and only then sets `acknowledged`,
upon which the page says "Saved". Whatever fails is put into `error`, and the draft stays.

Callbacks run on whichever thread the kernel uses for messages, possibly while a worker thread calls `show`.
No lock is held while a callback runs, so a callback may take locks of its own. Nothing here imports torch.
"""

from __future__ import annotations

import hashlib
import math
import random
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import anywidget
import traitlets

from rlhf_lab.errors import InputError
from rlhf_lab.records import Answer, Question, Ranking
from rlhf_lab.store import FeedbackStore

STATIC = Path(__file__).parent / "static"

OnAnswer = Callable[[Answer], Any]  # returns the sequence number, the next Question, or None
OnUndo = Callable[[Answer], Any]  # returns the Question to show again, or anything else for the answer's own
NextQuestion = Callable[[], Question | None]
Shuffle = Literal["random", "fixed", "mirrored"]


class Screen(NamedTuple):
    """What stands on the screen, or waits to: a question, which of its targets are still to be asked, the draft.

    A target is "" for the whole question, or the id of a reply; the first is asked about now. () means: whichever
    are open.
    """

    question: Question | None = None
    targets: tuple[str, ...] = ()
    draft: dict[str, Any] = {}


def static_source(*names: str) -> str:
    """The named files of `static/`, joined: the shared part first, then a widget's own."""
    return "\n".join((STATIC / name).read_text(encoding="utf-8") for name in names)


class FeedbackWidget(anywidget.AnyWidget):
    """Base of the widgets that ask a person about replies.

    The page never learns which model wrote a reply: it gets the texts, in shuffled order, and answers with their
    numbers on the screen (1 … k). The shuffle depends on `seed` and the question's id only, so a question that comes
    back looks the same.

    question       the first question, or None to show `wait_text` until `show` or `refresh` brings one
    on_answer      called with each answer, a record of the class `record`; must store it before it returns (typically
                   `FeedbackStore.append`) and must be quick: it validates, stores and enqueues, it never trains or
                   plots. It may return the sequence number, or the next `Question`
    on_undo        called with the answer that the person takes back (typically withdraws it in the store); may
                   return the question to show instead of that answer's own. Without it there is no undo
    next_question  called after each answered question for the one to show next; None means that none is ready yet.
                   Must be quick
    annotator      who answers
    total          how many questions there are, for "3 of 10"
    history        (question, answer) pairs answered earlier, oldest first: they count as done and can be undone
    guidelines     what the person should judge by, shown beside the task: text (blank lines part paragraphs, "- "
                   begins a bullet, **words** stand out), or {"id": …, "text": …}; without an id, one is made from it
    shuffle        "random": in an order drawn from `seed` and the question's id; "fixed": as the question has them;
                   "mirrored": the reverse of "random", for asking a question again to measure position bias

    Each answer's `displayed` says in which order the replies were shown, and its `context` how the question was put:
    {"widget": the class, "guidelines": their id, where there are any}.
    """

    record: ClassVar[type[Answer]]  # what one answer becomes

    shown = traitlets.Dict().tag(sync=True)  # {"id", "prompt", "replies": [text, …]}; {} while waiting
    draft = traitlets.Dict().tag(sync=True)  # {"question", …}: the page's (each widget's own fields), kept here
    answer = traitlets.Dict().tag(sync=True)  # {"id", "question", "status", "seconds", "attempt", …}: one decision
    acknowledged = traitlets.Dict().tag(sync=True)  # {"id", "seq"}: this answer is in the database
    undo = traitlets.Dict().tag(sync=True)  # {"id"}: the person asks for the last answer back
    undone = traitlets.Dict().tag(sync=True)  # {"id"}: it was taken back
    error = traitlets.Unicode().tag(sync=True)  # shown in the widget until the next attempt
    progress = traitlets.Dict().tag(sync=True)  # {"done", "total"}
    can_undo = traitlets.Bool().tag(sync=True)
    wait_text = traitlets.Unicode().tag(sync=True)  # shown while there is no question; "…" at its end animates it
    guidelines = traitlets.Dict().tag(sync=True)  # {"id", "text"}, or {}
    guidelines_open = traitlets.Bool(True).tag(sync=True)

    _left_open: ClassVar[dict[str, bool]] = {}  # by id of guidelines: a cell that runs again shows them as they were

    def __init__(
        self,
        question: Question | None = None,
        on_answer: OnAnswer | None = None,
        annotator: str = "me",
        *,
        on_undo: OnUndo | None = None,
        next_question: NextQuestion | None = None,
        seed: int = 0,
        total: int | None = None,
        wait_text: str = "Waiting for the next question…",
        history: Iterable[tuple[Question, Answer]] = (),
        guidelines: str | dict[str, str] | None = None,
        shuffle: Shuffle = "random",
    ) -> None:
        if shuffle not in get_args(Shuffle):
            raise InputError(f"shuffle={shuffle!r}: must be one of {', '.join(get_args(Shuffle))}")
        self._lock = threading.RLock()
        self._on_answer, self._on_undo, self._next_question = on_answer, on_undo, next_question
        self._annotator, self._seed, self._total, self._shuffle = annotator, seed, total, shuffle
        self._screen = Screen()
        self._asked: dict[str, Question] = {}  # everything shown: a late answer still counts
        self._queue: deque[Screen] = deque()  # to be shown before `next_question` is asked
        self._history = list(history)
        self._receipts: dict[str, dict] = {}
        self._in_hand: set[str] = set()
        rules = _guidelines(guidelines)
        super().__init__(
            wait_text=wait_text, guidelines=rules, guidelines_open=self._left_open.get(rules.get("id", ""), True)
        )
        self._count()
        if question is not None:
            self.show(question)
        else:
            self.refresh()

    @classmethod
    def for_store(
        cls, questions: Iterable[Question], store: FeedbackStore, annotator: str = "me", **options: Any
    ) -> FeedbackWidget:
        """A widget that walks through `questions` and keeps the answers in `store`.

        Questions that `annotator` has already answered in this form (ranked, rated, …) are left out, so that running
        the cell again goes on where the person was; they can still be undone. With shuffle="mirrored" only those
        count that were answered in the mirrored order. `options` are the constructor's (seed, guidelines …).
        """
        by_id = {question.id: question for question in questions}
        store.add_questions(by_id.values())
        widget = cls(
            None,
            store.append,
            annotator,
            on_undo=lambda answer: store.withdraw(answer.id, annotator),
            total=len(by_id),
            **{"wait_text": "Every question is answered. Thank you!"} | options,
        )
        given = store.answers(annotator, kinds=(cls.record.kind,))
        widget._resume([(by_id[answer.question_id], answer) for answer in given if answer.question_id in by_id])
        left = iter([question for question in by_id.values() if not widget._is_done(question)])
        widget._next_question = lambda: next(left, None)
        widget.refresh()
        return widget

    # --- for the caller ---

    @property
    def question(self) -> Question | None:
        """The question on the screen, or None while the widget waits."""
        return self._screen.question

    @property
    def answers(self) -> list[Answer]:
        """The answers given so far and not taken back, oldest first."""
        with self._lock:
            return [answer for _, answer in self._history]

    @property
    def rankings(self) -> list[Ranking]:
        """The rankings among `answers`."""
        return [answer for answer in self.answers if isinstance(answer, Ranking)]

    def show(self, question: Question | None, answer: Answer | None = None) -> None:
        """Put `question` on the screen now, in place of what is there; None shows `wait_text`. From any thread.

        With `answer`, one given earlier, what was decided then stands there for the person to change. InputError when
        this widget cannot ask the question (a ranking of one reply).
        """
        if question is not None:
            self._check(question)
        screen = Screen(question)
        if question is not None and answer is not None and answer.question_id == question.id:
            screen = Screen(question, (answer.target,), self._draft_of(question, answer))
        with self._lock, self.hold_sync():
            self._put(screen)
            self.error = ""

    def forget(self, answer_ids: Iterable[str]) -> None:
        """These answers were taken back elsewhere: they count as done no more, and Undo passes them by."""
        gone = set(answer_ids)
        with self._lock, self.hold_sync():
            self._history = [(question, answer) for question, answer in self._history if answer.id not in gone]
            self._count()

    def refresh(self) -> None:
        """Ask for the next question if none is on the screen: call it when new ones are ready. From any thread."""
        if self.question is not None:
            return
        upcoming, error = self._upcoming()
        with self._lock, self.hold_sync():
            if self.question is None:
                self._put(upcoming)
                self.error = error
            elif upcoming.question is not None:
                self._queue.append(upcoming)

    def __repr__(self) -> str:
        total = f" of {self._total}" if self._total else ""
        return f"<{type(self).__name__}: {self._done_count()}{total} questions answered>"

    # --- what the page sends ---

    @traitlets.observe("answer")
    def _receive_answer(self, change: dict) -> None:
        self._handle(change["new"], self._take_answer)

    @traitlets.observe("undo")
    def _receive_undo(self, change: dict) -> None:
        self._handle(change["new"], self._take_back)

    def _handle(self, request: dict, handler: Callable[[str, dict], None]) -> None:
        """Run `handler` once for one request; what it raises is shown in the widget, where the person looks."""
        if not request:
            return
        request_id = request.get("id")
        try:
            if not isinstance(request_id, str) or not 0 < len(request_id) <= 64:
                raise InputError(f"a request needs an id of 1 to 64 characters, not {request_id!r}")
            with self._lock:
                if request_id in self._in_hand:
                    return
                self._in_hand.add(request_id)
            handler(request_id, request)
        except Exception as error:  # the kernel would swallow it
            self.error = f"Not saved: {_words(error)}"
        finally:
            self._in_hand.discard(request_id)

    def _take_answer(self, answer_id: str, answer: dict) -> None:
        if answer_id in self._receipts:  # sent again because the first acknowledgement was lost
            self.acknowledged = dict(self._receipts[answer_id])
            return
        question, given = self._read(answer)
        returned = self._on_answer(given) if self._on_answer else None
        if isinstance(returned, Question):
            self._queue.append(Screen(returned))
        seq = returned if isinstance(returned, int) else None
        left = self._left_after(question, given)
        more = Screen(question, left) if left else Screen()
        upcoming, error = self._upcoming(saved=True) if left == () else (more, "")
        with self._lock, self.hold_sync():
            self._history.append((question, given))
            self._receipts[answer_id] = self.acknowledged = {"id": answer_id, "seq": seq}
            self.error = error
            self._count()
            if self.question is not None and self.question.id == question.id:
                self._put(upcoming)
            elif upcoming.question is not None:  # another thread showed a question meanwhile
                self._queue.appendleft(upcoming)

    def _left_after(self, question: Question, answer: Answer) -> tuple[str, ...] | None:
        """Which targets of the question on the screen `answer` leaves open; None for a question that is not there."""
        with self._lock:
            if self.question is None or self.question.id != question.id:
                return None
            return tuple(target for target in self._screen.targets if target != answer.target)

    def _take_back(self, request_id: str, _request: dict) -> None:
        with self._lock:
            if self._on_undo is None or not self._history:
                raise InputError("there is no answer of yours to take back")
            question, answer = self._history[-1]
        returned = self._on_undo(answer)
        with self._lock, self.hold_sync():
            self._history.remove((question, answer))
            if self.question is not None:
                self._queue.appendleft(self._screen._replace(draft=self._current_draft()))
            again = returned if isinstance(returned, Question) else question
            same = again.id == answer.question_id
            self._put(Screen(again, (answer.target,), self._draft_of(again, answer)) if same else Screen(again))
            self.undone, self.answer, self.acknowledged, self.error = {"id": request_id}, {}, {}, ""
            self._count()

    def _current_draft(self) -> dict:
        mine = {name: self.shown[name] for name in ("id", "reply") if name in self.shown}
        theirs = {"id": self.draft.get("question")} | {k: v for k, v in self.draft.items() if k == "reply"}
        return dict(self.draft) if mine == theirs else {}

    def _read(self, answer: dict) -> tuple[Question, Answer]:
        """The answered question and the record; InputError when the page sent something that is neither."""
        question = self._asked.get(answer.get("question"))
        if question is None:
            raise InputError(f"this widget did not ask question {answer.get('question')!r}")
        try:
            seconds = float(answer.get("seconds", 0.0))
        except (TypeError, ValueError):
            raise InputError(f"seconds are a number, not {answer.get('seconds')!r}") from None
        record = self.record(
            question_id=question.id,
            **self._decision(question, answer),
            annotator=self._annotator,
            displayed=self._shown_order(question),
            seconds=round(seconds, 3) if math.isfinite(seconds) and seconds > 0 else 0.0,
            status=answer.get("status", self.record.GIVEN),
            id=answer["id"],
            context=self._context(answer),
        )
        return question, record.check(question)

    def _decision(self, question: Question, answer: dict) -> dict[str, Any]:
        """The fields of `record` that say what was decided, read from the page's `answer`; InputError for nonsense."""
        raise NotImplementedError

    def _context(self, _answer: dict) -> dict[str, str]:
        """How the question was put."""
        rules = {"guidelines": self.guidelines["id"]} if self.guidelines else {}
        return {"widget": type(self).__name__} | rules

    @traitlets.observe("guidelines_open")
    def _remember_open(self, change: dict) -> None:
        if self.guidelines:
            self._left_open[self.guidelines["id"]] = change["new"]

    # --- what the page is shown ---

    def _upcoming(self, saved: bool = False) -> tuple[Screen, str]:
        """What to show next, and what to tell the person (whose answer was just `saved`) when it could not be had."""
        try:
            with self._lock:
                screen = self._queue.popleft() if self._queue else None
            if screen is None:
                screen = Screen(self._next_question() if self._next_question else None)
            if screen.question is not None:
                self._check(screen.question)
            return screen, ""
        except Exception as error:
            return (
                Screen(),
                f"{'Saved, but the' if saved else 'The'} next question could not be fetched: {_words(error)}",
            )

    def _put(self, screen: Screen) -> None:
        question = screen.question
        if question is not None:
            self._asked[question.id] = question
            screen = screen._replace(targets=screen.targets or self._open_targets(question))
        self._screen = screen
        self.draft = screen.draft
        self.shown = {} if question is None else self._wire(screen)

    def _check(self, question: Question) -> None:
        """InputError when this widget cannot ask `question`."""

    def _wire(self, screen: Screen) -> dict:
        """What the page may know of a question: texts in displayed order; no candidate ids, no models."""
        question = screen.question
        replies = [_sendable(question.texts[candidate]) for candidate in self._displayed(question)]
        return {"id": question.id, "prompt": _sendable(question.prompt), "replies": replies}

    def _displayed(self, question: Question) -> tuple[str, ...]:
        """The candidates' ids in the order of the screen."""
        ids = [candidate.id for candidate in question.candidates]
        if self._shuffle != "fixed":
            random.Random(f"{self._seed}/{question.id}").shuffle(ids)
        return tuple(reversed(ids) if self._shuffle == "mirrored" else ids)

    def _shown_order(self, question: Question) -> tuple[str, ...]:
        """What an answer records as `displayed`."""
        return self._displayed(question)

    def _draft_of(self, question: Question, answer: Answer) -> dict:
        """The draft that shows `answer` again, for the person to change; {} shows the question afresh."""
        return {}

    # --- what is done ---

    def _targets_of(self, question: Question) -> tuple[str, ...]:
        """What a question takes an answer for, in order: itself (""), unless a widget asks about each reply."""
        return ("",)

    def _open_targets(self, question: Question) -> tuple[str, ...]:
        """The targets that have no answer yet; all of them when the question is asked once more."""
        given = {answer.target for asked, answer in self._history if asked.id == question.id}
        targets = self._targets_of(question)
        return tuple(target for target in targets if target not in given) or targets

    def _is_done(self, question: Question) -> bool:
        given = {answer.target for asked, answer in self._history if asked.id == question.id}
        return given.issuperset(self._targets_of(question))

    def _resume(self, history: list[tuple[Question, Answer]]) -> None:
        """Count earlier answers as this widget's own, where it would have asked for them just so."""
        mirrored = self._shuffle == "mirrored"
        self._history = [
            (question, answer)
            for question, answer in history
            if answer.target in self._targets_of(question)
            and not (mirrored and answer.displayed != self._shown_order(question))
        ]
        self._count()

    def _done_count(self) -> int:
        """How many questions were answered for all their targets."""
        with self._lock:
            given = Counter((question.id, answer.target) for question, answer in self._history)
            asked = {question.id: question for question, _ in self._history}
        return sum(min(given[name, target] for target in self._targets_of(asked[name])) for name in asked)

    def _count(self) -> None:
        self.progress = {"done": self._done_count(), "total": self._total}
        self.can_undo = self._on_undo is not None and bool(self._history)


class ReplyWidget(FeedbackWidget):
    """Base of the widgets that ask about one reply at a time.

    candidate  which of a question's replies to ask about, counted from 0 as the question has them; None asks about
               all in turn, one answer for each, and a question is done when all are answered

    The other arguments are `FeedbackWidget`'s.
    """

    def __init__(self, question: Question | None = None, *args: Any, candidate: int | None = None, **options: Any):
        if candidate is not None and (type(candidate) is not int or candidate < 0):
            raise InputError(f"candidate={candidate!r}: the number of a reply, counted from 0, or None for all in turn")
        self._candidate = candidate
        super().__init__(question, *args, **options)

    def _check(self, question: Question) -> None:
        if self._candidate is not None and self._candidate >= (k := len(question.candidates)):
            raise InputError(
                f"question {question.id!r} has {k} replies; candidate={self._candidate} is not one of them"
            )

    def _targets_of(self, question: Question) -> tuple[str, ...]:
        if self._candidate is None:
            return self._displayed(question)
        return (question.candidates[self._candidate].id,)

    def _shown_order(self, question: Question) -> tuple[str, ...]:
        targets = self._targets_of(question)
        return targets if len(targets) == len(question.candidates) else ()  # of several, one alone was shown

    def _wire(self, screen: Screen) -> dict:
        """The one reply that is asked about, and its number among those that are."""
        question, target = screen.question, screen.targets[0]
        place = {"reply": self._targets_of(question).index(target) + 1, "of": len(self._targets_of(question))}
        return {
            "id": question.id,
            "prompt": _sendable(question.prompt),
            "replies": [_sendable(question.texts[target])],
        } | place

    def _target(self, question: Question, answer: dict) -> str:
        """The id of the reply that the page's `answer` is about."""
        targets, number = self._targets_of(question), answer.get("reply")
        if type(number) is not int or not 1 <= number <= len(targets):
            raise InputError(f"reply {number!r} was not asked about; a number from 1 to {len(targets)} is wanted")
        return targets[number - 1]

    def _place(self, question: Question, answer: Answer) -> dict:
        """The part of a draft that says which reply it is about."""
        return {"question": question.id, "reply": self._targets_of(question).index(answer.target) + 1}


def _guidelines(given: str | dict[str, str] | None) -> dict[str, str]:
    """{"id", "text"} of guidelines, or {} without any; InputError when they are neither text nor that."""
    if isinstance(given, str):
        given = {"id": hashlib.sha256(given.encode("utf-8", "replace")).hexdigest()[:12], "text": given}
    if not given:
        return {}
    texts = given.values() if isinstance(given, dict) and set(given) == {"id", "text"} else [None]
    if not all(isinstance(text, str) for text in texts):
        raise InputError(f'guidelines are text, or {{"id": …, "text": …}}, not {given!r}')
    return {"id": given["id"], "text": _sendable(given["text"])} if given["text"].strip() else {}


def _words(error: Exception) -> str:
    """An error as a person should read it: ours speak for themselves, others are named."""
    return str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"


def _sendable(text: str) -> str:
    """`text` without lone surrogates, which no message can carry."""
    return text.encode("utf-8", "replace").decode("utf-8")
