"""ChatWidget: talk with a checkpoint, and mark, rank or correct what it says.

The conversation lives in Python, so that a reload of the page or a second view shows all of it. The page sends
requests, each with an id, and Python does each once; a label is shown only after `on_answer` has stored it. Replies are
written on one worker thread of the widget's own: callbacks validate, store and enqueue. Nothing here imports torch.
"""

from __future__ import annotations

import queue
import random
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import anywidget
import traitlets

from rlhf_lab.errors import InputError
from rlhf_lab.records import Answer, Candidate, Correction, Question, Ranking, Vote, new_id
from rlhf_lab.store import FeedbackStore

from .feedback import OnAnswer, OnUndo, _guidelines, _sendable, _words, static_source

Reply = Callable[..., Question]  # (turns, k, checkpoint) → a question with up to k replies; may take its time
LONGEST = 4000  # characters of a message
REMEMBERED = 50  # requests whose ids the page is told of


@dataclass
class Version:
    """One reply that stands, or could stand, at its place in the conversation."""

    question: Question
    candidate: Candidate
    checkpoint: str
    corrected: str = ""  # the person's wording of it
    up: bool | None = None  # the person's thumb
    place: int = 0  # in the ranking that it was part of, 1 for the best

    @property
    def text(self) -> str:
        return self.corrected or self.candidate.text

    def wire(self) -> dict[str, Any]:
        original = _sendable(self.candidate.text) if self.corrected else ""
        return {
            "text": _sendable(self.text),
            "original": original,
            "checkpoint": self.checkpoint,
            "model": _sendable(self.candidate.model),
            "up": self.up,
            "place": self.place,
            "of": len(self.question.candidates),
        }


@dataclass
class Turn:
    """What the user said, or what a checkpoint answered: then one or more versions, of which one is chosen."""

    role: str
    text: str = ""
    versions: list[Version] = field(default_factory=list)
    chosen: int = 0
    choices: Question | None = None  # replies that wait to be ranked
    wanted: int = 0  # replies that are being written for this turn
    checkpoint: str = ""  # who was asked last
    error: str = ""
    since: float = field(default_factory=time.monotonic)  # when what is to be judged was first shown
    id: str = field(default_factory=new_id)

    def spoken(self) -> tuple[str, str]:
        """The turn as a model is given it."""
        return (self.role, self.versions[self.chosen].text if self.role == "assistant" else self.text)


class ChatWidget(anywidget.AnyWidget):
    """A conversation with any checkpoint, every turn of which can become a label.

    reply         called as reply(turns, k, checkpoint) on the widget's own thread; turns are ("user"|"assistant",
                  text), the last one the user's; returns a `Question` with up to k replies (`LiveLoop.reply`,
                  `rlhf_lab.chat.ChatPartner.reply`)
    on_answer     called with each answer (`Vote`, `Ranking` or `Correction`); must store it before it returns; or a
                  `FeedbackStore`, which then keeps the questions too
    annotator     who is talking
    checkpoints   whom they can talk with
    on_undo       called with the answer that the person takes back; a store needs none
    alternatives  how many replies are shown to be ranked
    conversation  turns to go on from: another ChatWidget's `conversation`
    guidelines    what the person should judge by: plain text, or {"id": …, "text": …}

    Keys: Enter sends, Shift+Enter begins a line. On a reply: Y thumb up, N thumb down, A another reply, R replies to
    rank (then 1 … 9, = for a tie, Enter), E correct (then Ctrl+Enter), arrows walk through the turns, U takes the last
    label back.
    """

    _esm = static_source("feedback.js", "chat.js")
    _css = static_source("feedback.css", "chat.css")

    turns = traitlets.List().tag(sync=True)  # as `_wire` makes them
    checkpoints = traitlets.List().tag(sync=True)
    checkpoint = traitlets.Unicode().tag(sync=True)  # chosen in the page's menu
    alternatives = traitlets.Int(4).tag(sync=True)
    draft = traitlets.Dict().tag(sync=True)  # the page's: {"text", "edit": {turn, text}, "order": {turn, tiers}}
    handled = traitlets.List().tag(sync=True)  # ids of the latest requests that were dealt with
    error = traitlets.Unicode().tag(sync=True)
    can_undo = traitlets.Bool().tag(sync=True)
    guidelines = traitlets.Dict().tag(sync=True)

    def __init__(
        self,
        reply: Reply,
        on_answer: OnAnswer | FeedbackStore,
        annotator: str = "me",
        checkpoints: Sequence[str] = ("policy", "sft"),
        *,
        on_undo: OnUndo | None = None,
        alternatives: int = 4,
        conversation: Iterable[Turn] = (),
        guidelines: str | dict[str, str] | None = None,
    ) -> None:
        if isinstance(checkpoints, str) or not checkpoints:
            raise InputError(f"checkpoints {checkpoints!r}: a list of one or more names is wanted")
        if not 2 <= alternatives <= 9:
            raise InputError(f"alternatives={alternatives}: 2 to 9 replies can be ranked")
        self._lock = threading.RLock()  # guards the conversation; never held while a callback runs
        self._reply, self._annotator = reply, annotator
        self._store = on_answer if isinstance(on_answer, FeedbackStore) else None
        self._on_answer = self._append if self._store else on_answer
        self._on_undo = self._take_back if self._store else on_undo
        self._turns = list(conversation)
        self._given: list[tuple[str, Answer]] = []  # (turn's id, label), oldest first: what Undo takes back
        self._jobs: queue.SimpleQueue[tuple[Turn, list[tuple[str, str]], int, str] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._closed = False
        super().__init__(
            checkpoints=list(checkpoints),
            checkpoint=checkpoints[0],
            alternatives=alternatives,
            guidelines=_guidelines(guidelines),
        )
        for turn in self._turns:
            turn.wanted = 0  # whoever was writing has gone
        self._show()
        self.on_msg(self._on_message)

    # --- for the caller ---

    @property
    def conversation(self) -> list[Turn]:
        """The turns so far."""
        with self._lock:
            return list(self._turns)

    @property
    def answers(self) -> list[Answer]:
        """The labels given here and not taken back, oldest first."""
        with self._lock:
            return [answer for _, answer in self._given]

    def forget(self, answer_ids: Iterable[str]) -> None:
        """These labels were taken back elsewhere: they are shown here no more."""
        gone = set(answer_ids)
        with self._lock:
            for name, answer in [entry for entry in self._given if entry[1].id in gone]:
                self._given.remove((name, answer))
                self._unmark(name, answer)
        self._show()

    def close(self) -> None:
        """Close the widget and end its thread after what it is writing."""
        self._closed = True
        self._jobs.put(None)
        super().close()

    def __repr__(self) -> str:
        return f"<ChatWidget: {len(self._turns)} turns, {len(self._given)} labels>"

    # --- what the page asks for ---

    def _on_message(self, _widget: object, content: dict[str, Any], _buffers: object) -> None:
        """Do what one request asks, once; what that raises is shown in the widget, where the person looks."""
        request_id = content.get("id")
        if not isinstance(request_id, str) or not 0 < len(request_id) <= 64 or request_id in self.handled:
            return
        handlers = {
            "send": self._say,
            "again": self._again,
            "stop": self._stop,
            "choose": self._choose,
            "vote": self._vote,
            "rank": self._rank,
            "keep": self._keep,
            "correct": self._correct,
            "undo": self._undo_last,
            "clear": self._clear,
        }
        try:
            if content.get("action") not in handlers:
                raise InputError(f"a chat knows no action {content.get('action')!r}")
            handlers[content["action"]](content)
            error = ""
        except Exception as problem:  # the kernel would swallow it
            error = _words(problem)
        with self._lock, self.hold_sync():
            self.error = error
            self.handled = [*self.handled, request_id][-REMEMBERED:]
            self._show()

    def _say(self, content: dict[str, Any]) -> None:
        text = content.get("text")
        if not isinstance(text, str) or not text.strip():
            raise InputError("the message is empty; write something")
        if len(text) > LONGEST:
            raise InputError(f"the message has {len(text)} characters; {LONGEST} are allowed")
        with self._lock:
            self._check_idle()
            if self._turns and self._turns[-1].role == "assistant" and not self._turns[-1].versions:
                self._turns.pop()  # it failed or was stopped; what the user said before stands
            turn = Turn("assistant")
            self._turns += [Turn("user", _sendable(text.strip())), turn]
        self._ask(turn, 1)

    def _again(self, content: dict[str, Any]) -> None:
        """Further replies at a turn's place: one, or several to rank. Also how a failed turn is tried again."""
        k = content.get("k", 1)
        if k not in (1, self.alternatives):
            raise InputError(f"{k!r} replies: one more, or {self.alternatives} to rank")
        with self._lock:
            self._check_idle()
            turn = self._turn(content)
        self._ask(turn, k)

    def _ask(self, turn: Turn, k: int) -> None:
        if self.checkpoint not in self.checkpoints:
            raise InputError(f"checkpoint {self.checkpoint!r}: there are {', '.join(self.checkpoints)}")
        with self._lock:
            before = [each.spoken() for each in self._turns[: self._turns.index(turn)] if each.text or each.versions]
            turn.wanted, turn.error, turn.checkpoint = k, "", self.checkpoint
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="rlhf-lab chat", daemon=True)
                self._thread.start()
        self._jobs.put((turn, before, k, self.checkpoint))

    def _stop(self, content: dict[str, Any]) -> None:
        """Wait no longer: what is still written for this turn will be thrown away."""
        with self._lock:
            turn = self._turn(content)
            if turn.wanted:
                turn.wanted = 0
                turn.error = "" if turn.versions else "Stopped."
                # The job in hand knows its turn by identity: another object in its place is not written into.
                self._turns[self._turns.index(turn)] = Turn(**{name: getattr(turn, name) for name in vars(turn)})

    def _choose(self, content: dict[str, Any]) -> None:
        with self._lock:
            turn, _ = self._version(content)
            turn.chosen = content["version"]

    def _keep(self, content: dict[str, Any]) -> None:
        """Rank nothing: the turn stays as it was, or takes the first of the replies."""
        with self._lock:
            turn = self._turn(content)
            question, turn.choices = turn.choices, None
            if question is not None and not turn.versions:
                self._take(turn, question, question.candidates[:1])

    def _clear(self, _content: dict[str, Any]) -> None:
        with self._lock:
            self._turns = []

    # --- labels ---

    def _vote(self, content: dict[str, Any]) -> None:
        """A thumb for a reply; the same thumb again takes it back."""
        with self._lock:
            turn, version = self._version(content)
            up = content.get("up")
            if not isinstance(up, bool) or version.corrected:
                raise InputError("a vote is true (up) or false (down), for a reply as the model wrote it")
            given = self._label(turn, Vote, version) if version.up == up else None
        if given is not None:
            return self._withdraw(turn.id, given)
        vote = Vote(version.question.id, version.candidate.id, up, **self._common(content, turn, version.question))
        self._submit(turn, version.question, vote)
        version.up = up

    def _rank(self, content: dict[str, Any]) -> None:
        """An order of the replies that were shown; the best one stands in the conversation from now on."""
        with self._lock:
            turn = self._turn(content)
            question = turn.choices
        if question is None:
            raise InputError("there are no replies to rank at this turn")
        numbers = dict(enumerate(self._displayed(question), start=1))
        try:
            order = tuple(tuple(numbers[n] for n in tier) for tier in content["order"])
        except (KeyError, TypeError):
            raise InputError(f"an order lists tiers of the numbers 1 to {len(numbers)}") from None
        self._submit(turn, question, Ranking(question.id, order, **self._common(content, turn, question)))
        with self._lock:
            turn.choices = None
            candidates = {candidate.id: candidate for candidate in question.candidates}
            self._take(turn, question, [candidates[name] for tier in order for name in tier])
            for version in turn.versions:
                if version.question.id == question.id:
                    version.place = next(i for i, tier in enumerate(order, 1) if version.candidate.id in tier)

    def _correct(self, content: dict[str, Any]) -> None:
        """The person's wording of a reply; the conversation goes on from it."""
        with self._lock:
            turn, version = self._version(content)
        text = content.get("text")
        if not isinstance(text, str) or not text.strip():
            raise InputError("the correction is empty; write what the reply should have been")
        common, text = self._common(content, turn, version.question), _sendable(text.strip())
        self._submit(turn, version.question, Correction(version.question.id, version.candidate.id, text, **common))
        version.corrected = text

    def _common(self, content: dict[str, Any], turn: Turn, question: Question) -> dict[str, Any]:
        """The fields that all answers share."""
        rules = {"guidelines": self.guidelines["id"]} if self.guidelines else {}
        return {
            "annotator": self._annotator,
            "displayed": self._displayed(question),
            "seconds": round(time.monotonic() - turn.since, 3),
            "id": content["id"],
            "context": {"widget": type(self).__name__, "turn": str(self._turns.index(turn) + 1)} | rules,
        }

    def _submit(self, turn: Turn, question: Question, answer: Answer) -> None:
        """Have an answer stored; only then is it the turn's label."""
        answer.check(question)
        self._on_answer(answer)
        with self._lock:
            same = (answer.kind, answer.question_id, answer.target)
            self._given = [  # an earlier one to the same is replaced
                (name, old) for name, old in self._given if (old.kind, old.question_id, old.target) != same
            ]
            self._given.append((turn.id, answer))

    def _undo_last(self, _content: dict[str, Any]) -> None:
        with self._lock:
            if self._on_undo is None or not self._given:
                raise InputError("there is no label of yours to take back")
            name, answer = self._given[-1]
        self._withdraw(name, answer)
        with self._lock:
            turn = next((turn for turn in self._turns if turn.id == name), None)
            if turn is not None and isinstance(answer, Ranking):  # its replies are to be ranked again
                gone = [version for version in turn.versions if version.question.id == answer.question_id]
                turn.versions = [version for version in turn.versions if version not in gone]
                turn.chosen = max(0, len(turn.versions) - 1)
                turn.choices = gone[0].question if gone else None

    def _withdraw(self, name: str, answer: Answer) -> None:
        if self._on_undo is None:
            raise InputError("labels cannot be taken back here")
        self._on_undo(answer)
        with self._lock:
            self._given.remove((name, answer))
            self._unmark(name, answer)

    def _unmark(self, name: str, answer: Answer) -> None:
        """The turn shows that label no more."""
        turn = next((turn for turn in self._turns if turn.id == name), None)
        for version in turn.versions if turn else ():
            if version.question.id != answer.question_id or answer.target not in ("", version.candidate.id):
                continue
            match answer:
                case Vote():
                    version.up = None
                case Correction():
                    version.corrected = ""
                case Ranking():
                    version.place = 0

    def _label(self, turn: Turn, kind: type[Answer], version: Version) -> Answer | None:
        about = (turn.id, version.question.id, version.candidate.id)
        found = [a for name, a in self._given if isinstance(a, kind) and (name, a.question_id, a.target) == about]
        return found[-1] if found else None

    def _append(self, answer: Answer) -> int:
        return self._store.append(answer)

    def _take_back(self, answer: Answer) -> None:
        self._store.withdraw(answer.id, self._annotator)

    # --- the worker ---

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            turn, before, k, checkpoint = job
            if not self._awaited(turn):
                continue
            try:
                question, error = self._reply(before, k, checkpoint), ""
                if self._store is not None:
                    self._store.add_question(question)
            except Exception as problem:  # nobody sees what a thread raises
                question, error = None, _words(problem)
            with self._lock:
                if self._awaited(turn):
                    self._receive(turn, question, k, error)
            self._show()

    def _awaited(self, turn: Turn) -> bool:
        return not self._closed and any(turn is each for each in self._turns)

    def _receive(self, turn: Turn, question: Question | None, k: int, error: str) -> None:
        turn.wanted, turn.error, turn.since = 0, error, time.monotonic()
        if question is None:
            return
        if k > 1 and len(question.candidates) > 1:
            turn.choices = question
        else:
            self._take(turn, question, question.candidates)

    @staticmethod
    def _take(turn: Turn, question: Question, candidates: Sequence[Candidate]) -> None:
        """The replies become versions of the turn, the first of them the one that stands."""
        turn.chosen = len(turn.versions)
        turn.versions += [Version(question, candidate, turn.checkpoint) for candidate in candidates]

    # --- what the page is shown ---

    def _check_idle(self) -> None:
        if any(turn.wanted for turn in self._turns):
            raise InputError("a reply is still being written; wait for it, or stop it")

    def _turn(self, content: dict[str, Any]) -> Turn:
        found = next((t for t in self._turns if t.id == content.get("turn") and t.role == "assistant"), None)
        if found is None:
            raise InputError("that turn is no longer part of the conversation")
        return found

    def _version(self, content: dict[str, Any]) -> tuple[Turn, Version]:
        turn, number = self._turn(content), content.get("version")
        if type(number) is not int or not 0 <= number < len(turn.versions):
            raise InputError(f"version {number!r}: that turn has {len(turn.versions)}")
        return turn, turn.versions[number]

    def _displayed(self, question: Question) -> tuple[str, ...]:
        """The replies' ids in the order of the screen; it depends on the question's id only."""
        ids = [candidate.id for candidate in question.candidates]
        random.Random(question.id).shuffle(ids)
        return tuple(ids)

    def _show(self) -> None:
        with self._lock, self.hold_sync():
            self.turns = [self._wire(turn) for turn in self._turns]
            self.can_undo = self._on_undo is not None and bool(self._given)

    def _wire(self, turn: Turn) -> dict[str, Any]:
        if turn.role == "user":
            return {"id": turn.id, "role": "user", "text": turn.text}
        choices = [] if turn.choices is None else self._displayed(turn.choices)
        return {
            "id": turn.id,
            "role": "assistant",
            "checkpoint": turn.checkpoint,
            "versions": [version.wire() for version in turn.versions],
            "chosen": turn.chosen,
            "choices": [_sendable(turn.choices.texts[name]) for name in choices],
            "wanted": turn.wanted,
            "error": turn.error,
        }
