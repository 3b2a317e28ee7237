"""What the feedback widgets share: one question at a time, one atomic answer, saved before it is acknowledged.

The protocol between Python and the page is the traits of `FeedbackWidget`. JavaScript holds the draft and sends each
decision as one value of `answer`; Python checks it, hands it to `on_answer` (which stores it) and only then sets
`acknowledged`, upon which the page says "Saved". Whatever fails is put into `error`, and the draft stays.

Callbacks run on whichever thread the kernel uses for messages, possibly while a worker thread calls `show`.
No lock is held while a callback runs, so a callback may take locks of its own. Nothing here imports torch.
"""

from __future__ import annotations

import math
import random
import threading
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import anywidget
import traitlets

from rlhf_lab.errors import InputError
from rlhf_lab.records import Question, Ranking
from rlhf_lab.store import FeedbackStore

STATIC = Path(__file__).parent / "static"

OnAnswer = Callable[[Ranking], Any]  # returns the sequence number, the next Question, or None
OnUndo = Callable[[Ranking], Any]  # returns the Question to show again, or anything else for the answer's own
NextQuestion = Callable[[], Question | None]


def static_source(*names: str) -> str:
    """The named files of `static/`, joined: the shared part first, then a widget's own."""
    return "\n".join((STATIC / name).read_text(encoding="utf-8") for name in names)


class FeedbackWidget(anywidget.AnyWidget):
    """Base of the widgets that ask a person about replies.

    The page never learns which model wrote a reply: it gets the texts, in shuffled order, and answers with their
    numbers on the screen (1 … k). The shuffle depends on `seed` and the question's id only, so a question that comes
    back looks the same.

    question       the first question, or None to show `wait_text` until `show` or `refresh` brings one
    on_answer      called with each `Ranking`; must store it before it returns (typically `FeedbackStore.append`) and
                   must be quick: it validates, stores and enqueues, it never trains or plots. It may return the
                   sequence number, or the next `Question`
    on_undo        called with the ranking that the person takes back (typically withdraws it in the store); may
                   return the question to show instead of that ranking's own. Without it there is no undo
    next_question  called after each answer for the question to show next; None means that none is ready yet. Must
                   be quick
    annotator      who answers
    total          how many questions there are, for "3 of 10"
    history        (question, ranking) pairs answered earlier, oldest first: they count as done and can be undone
    """

    shown = traitlets.Dict().tag(sync=True)  # {"id", "prompt", "replies": [text, …]}; {} while waiting
    draft = traitlets.Dict().tag(sync=True)  # {"question", "tiers": [[number, …], …], …}: the page's, kept here
    answer = traitlets.Dict().tag(sync=True)  # {"id", "question", "order", "status", "seconds", "attempt"}
    acknowledged = traitlets.Dict().tag(sync=True)  # {"id", "seq"}: this answer is in the database
    undo = traitlets.Dict().tag(sync=True)  # {"id"}: the person asks for the last answer back
    undone = traitlets.Dict().tag(sync=True)  # {"id"}: it was taken back
    error = traitlets.Unicode().tag(sync=True)  # shown in the widget until the next attempt
    progress = traitlets.Dict().tag(sync=True)  # {"done", "total"}
    can_undo = traitlets.Bool().tag(sync=True)
    wait_text = traitlets.Unicode().tag(sync=True)  # shown while there is no question; "…" at its end animates it

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
        history: Iterable[tuple[Question, Ranking]] = (),
    ) -> None:
        self._lock = threading.RLock()
        self._on_answer, self._on_undo, self._next_question = on_answer, on_undo, next_question
        self._annotator, self._seed, self._total = annotator, seed, total
        self._question: Question | None = None
        self._asked: dict[str, Question] = {}  # everything shown: a late answer still counts
        self._queue: deque[tuple[Question, dict]] = deque()  # to be shown before `next_question` is asked
        self._history = list(history)
        self._receipts: dict[str, dict] = {}
        self._in_hand: set[str] = set()
        super().__init__(wait_text=wait_text)
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

        Questions that `annotator` has dealt with already are left out, so that running the cell again goes on where
        the person was; they can still be undone. `options` are the constructor's (seed, wait_text …).
        """
        questions = list(questions)
        for question in questions:
            store.add_question(question)
        by_id = {question.id: question for question in questions}
        given = [ranking for ranking in store.rankings(annotator) if ranking.question_id in by_id]
        answered = {ranking.question_id for ranking in given}
        left = iter([question for question in by_id.values() if question.id not in answered])
        text = "Every question is answered. Thank you!"
        return cls(
            None,
            store.append,
            annotator,
            on_undo=lambda ranking: store.withdraw(ranking.id, annotator),
            next_question=lambda: next(left, None),
            total=len(by_id),
            history=[(by_id[ranking.question_id], ranking) for ranking in given],
            **{"wait_text": text} | options,
        )

    # --- for the caller ---

    @property
    def question(self) -> Question | None:
        """The question on the screen, or None while the widget waits."""
        return self._question

    @property
    def rankings(self) -> list[Ranking]:
        """The answers given so far and not taken back, oldest first."""
        with self._lock:
            return [ranking for _, ranking in self._history]

    def show(self, question: Question | None) -> None:
        """Put `question` on the screen now, in place of what is there; None shows `wait_text`. From any thread."""
        with self._lock, self.hold_sync():
            self._put(question, {})
            self.error = ""

    def refresh(self) -> None:
        """Ask for the next question if none is on the screen: call it when new ones are ready. From any thread."""
        if self._question is not None:
            return
        upcoming, error = self._upcoming()
        with self._lock, self.hold_sync():
            if self._question is None:
                self._put(*upcoming)
                self.error = error
            elif upcoming[0] is not None:
                self._queue.append(upcoming)

    def __repr__(self) -> str:
        total = f" of {self._total}" if self._total else ""
        return f"<{type(self).__name__}: {len(self._history)}{total} questions answered>"

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
        question, ranking = self._read(answer)
        returned = self._on_answer(ranking) if self._on_answer else None
        if isinstance(returned, Question):
            self._queue.append((returned, {}))
        seq = returned if isinstance(returned, int) else None
        is_current = self._question is not None and self._question.id == question.id
        upcoming, error = self._upcoming() if is_current else ((None, {}), "")
        with self._lock, self.hold_sync():
            self._history.append((question, ranking))
            self._receipts[answer_id] = self.acknowledged = {"id": answer_id, "seq": seq}
            self.error = error
            self._count()
            if self._question is not None and self._question.id == question.id:
                self._put(*upcoming)
            elif upcoming[0] is not None:  # another thread showed a question meanwhile
                self._queue.appendleft(upcoming)

    def _take_back(self, request_id: str, _request: dict) -> None:
        with self._lock:
            if self._on_undo is None or not self._history:
                raise InputError("there is no answer of yours to take back")
            question, ranking = self._history[-1]
        returned = self._on_undo(ranking)
        with self._lock, self.hold_sync():
            self._history.remove((question, ranking))
            if self._question is not None:
                mine = self.draft if self.draft.get("question") == self._question.id else {}
                self._queue.appendleft((self._question, dict(mine)))
            again = returned if isinstance(returned, Question) else question
            self._put(again, self._draft_of(again, ranking))
            self.undone, self.answer, self.acknowledged, self.error = {"id": request_id}, {}, {}, ""
            self._count()

    def _read(self, answer: dict) -> tuple[Question, Ranking]:
        """The answered question and the ranking; InputError when the page sent something that is neither."""
        question = self._asked.get(answer.get("question"))
        if question is None:
            raise InputError(f"this widget did not ask question {answer.get('question')!r}")
        displayed = self._displayed(question)
        numbers = dict(enumerate(displayed, start=1))
        try:
            order = tuple(tuple(numbers[n] for n in tier) for tier in answer["order"])
            seconds = float(answer.get("seconds", 0.0))
        except (KeyError, TypeError, ValueError):
            raise InputError(f"an order lists tiers of the numbers 1 to {len(numbers)}, not {answer!r}") from None
        seconds = round(seconds, 3) if math.isfinite(seconds) and seconds > 0 else 0.0
        status = answer.get("status", "ranked")
        ranking = Ranking(question.id, order, self._annotator, displayed, seconds, status, id=answer["id"])
        return question, ranking.check(question)

    # --- what the page is shown ---

    def _upcoming(self) -> tuple[tuple[Question | None, dict], str]:
        """The next question with its draft, and what to tell the person when it could not be had."""
        with self._lock:
            if self._queue:
                return self._queue.popleft(), ""
        try:
            return (self._next_question() if self._next_question else None, {}), ""
        except Exception as error:
            return (None, {}), f"Saved, but the next question could not be fetched: {_words(error)}"

    def _put(self, question: Question | None, draft: dict) -> None:
        if question is not None:
            self._check(question)
            self._asked[question.id] = question
        self._question = question
        self.draft = draft
        self.shown = {} if question is None else self._wire(question)

    def _check(self, question: Question) -> None:
        """InputError when this widget cannot ask `question`."""

    def _wire(self, question: Question) -> dict:
        """What the page may know of `question`: texts in displayed order; no candidate ids, no models."""
        replies = [_sendable(question.texts[candidate]) for candidate in self._displayed(question)]
        return {"id": question.id, "prompt": _sendable(question.prompt), "replies": replies}

    def _displayed(self, question: Question) -> tuple[str, ...]:
        """The candidates' ids in the order of the screen."""
        ids = [candidate.id for candidate in question.candidates]
        random.Random(f"{self._seed}/{question.id}").shuffle(ids)
        return tuple(ids)

    def _draft_of(self, question: Question, ranking: Ranking) -> dict:
        """The draft that shows `ranking` again, for the person to change."""
        numbers = {candidate: n for n, candidate in enumerate(self._displayed(question), start=1)}
        if ranking.question_id != question.id:
            return {}
        return {
            "question": question.id,
            "tiers": [[numbers[candidate] for candidate in tier] for tier in ranking.order],
        }

    def _count(self) -> None:
        self.progress = {"done": len(self._history), "total": self._total}
        self.can_undo = self._on_undo is not None and bool(self._history)


def _words(error: Exception) -> str:
    """An error as a person should read it: ours speak for themselves, others are named."""
    return str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"


def _sendable(text: str) -> str:
    """`text` without lone surrogates, which no message can carry."""
    return text.encode("utf-8", "replace").decode("utf-8")
