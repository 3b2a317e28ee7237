"""Live loops without torch, for tests of the Studio: one that a test drives by hand, and one that plays itself."""

from __future__ import annotations

import math
import random
import threading
from collections.abc import Callable, Sequence

from rlhf_lab.errors import InputError
from rlhf_lab.records import (
    Answer,
    Candidate,
    Correction,
    Effect,
    Interval,
    LiveEvent,
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
    comparisons_of,
    order_of,
)


def make_question(name: str = "q1", k: int = 3) -> Question:
    return Question(name, f"prompt of {name}", tuple(Candidate(f"{name}-{i}", f"reply {i}") for i in range(k)))


def make_stats(step: int, **values: float | tuple) -> StepStats:
    names = ("reward", "kl", "objective", "beta", "entropy", "clipfrac", "approx_kl", "explained_variance")
    rest = dict.fromkeys((*names, "policy_loss", "value_loss", "reply_length", "truncated"), 0.0)
    return StepStats(step=step, **rest | values)


class FakeLoop:
    """Does the least that `LiveLoop` promises; `calls` holds what was asked of it, `emit` says an event."""

    annotator = "ada"
    checkpoints = ("policy", "sft")

    def __init__(self, questions: list[Question] | None = None) -> None:
        self.questions = list(questions or [])
        self.state = "idle"
        self.calls: list[str] = []
        self.log: list[Answer] = []
        self.withdrawn: set[str] = set()
        self.history: list[LiveEvent] = []
        self.callbacks: list[Callable[[LiveEvent], None]] = []
        self.failing: dict[str, Exception] = {}
        self.replying = threading.Event()  # cleared: `reply` waits
        self.replying.set()
        self.known: dict[str, Question] = {}  # the store's questions
        self.ppo_step = 0
        self._step_of: dict[str, int] = {}  # answer id → the PPO step at which it was given

    @property
    def answers(self) -> list[Answer]:
        return [answer for answer in self.log if answer.id not in self.withdrawn]

    @property
    def labels(self) -> int:
        return sum(answer.given for answer in self.answers)

    def given(self) -> list[tuple[Question, Answer, bool]]:
        return [(self.known[answer.question_id], answer, answer.id not in self.withdrawn) for answer in self.log]

    def _called(self, name: str) -> None:
        self.calls.append(name)
        if name in self.failing:
            raise self.failing[name]

    def start(self) -> None:
        self._called("start")
        self.enter("running")

    def pause(self) -> None:
        self._called("pause")
        self.enter("paused")

    def step(self, n: int = 1) -> None:
        self._called("step")

    def stop(self) -> None:
        self._called("stop")
        self.enter("stopped")

    def next_question(self) -> Question | None:
        self._called("next_question")
        if not self.questions:
            return None
        question = self.questions.pop(0)
        self.known[question.id] = question
        return question

    def ask(self, question: Question) -> Question:
        self._called("ask")
        return self.known.setdefault(question.id, question)

    def submit(self, answer: Answer) -> int:
        self._called("submit")
        if answer.question_id not in self.known:
            raise InputError(f"no question {answer.question_id!r}; ask it before its answers")
        answer.check(self.known[answer.question_id])
        self.log.append(answer)
        self._step_of[answer.id] = self.ppo_step
        return len(self.log)

    def undo(self) -> Question | None:
        self._called("undo")
        return self._take_back(self.answers[-1]) if self.answers else None

    def withdraw(self, answer_id: str) -> Question:
        self._called("withdraw")
        return self._take_back(self._answer(answer_id))

    def rollback(self, answer_id: str) -> int:
        self._called("rollback")
        first = self.log.index(self._answer(answer_id))
        gone = [answer for answer in self.log[first:] if answer.id not in self.withdrawn]
        self.withdrawn |= {answer.id for answer in gone}
        self._restore(answer_id, len(gone))
        return len(gone)

    def ask_again(self) -> Question | None:
        self._called("ask_again")
        return self.known[self.answers[0].question_id] if self.answers else None

    def reply(self, turns: Sequence[tuple[str, str]], k: int = 1, checkpoint: str = "policy") -> Question:
        self._called(f"reply {k} {checkpoint}")
        self.replying.wait()
        if not turns or turns[-1][0] != "user":
            raise InputError("the last turn must be the user's")
        question = self._replies(turns[-1][1], k, checkpoint)
        self.known[question.id] = question
        return question

    def _replies(self, prompt: str, k: int, checkpoint: str) -> Question:
        name = f"chat-{len(self.known)}"
        texts = [f"{checkpoint} says {name}-{i} to {prompt}" for i in range(k)]
        return Question(name, prompt, tuple(Candidate(f"{name}-{i}", t, checkpoint) for i, t in enumerate(texts)))

    def _answer(self, answer_id: str) -> Answer:
        found = next((answer for answer in self.log if answer.id == answer_id), None)
        if found is None:
            raise InputError(f"there is no answer {answer_id!r} of yours")
        return found

    def _take_back(self, answer: Answer) -> Question:
        self.withdrawn.add(answer.id)
        return self.known[answer.question_id]

    def _restore(self, answer_id: str, withdrawn: int) -> None:
        self.emit(RolledBack(self.ppo_step, self._step_of[answer_id], answer_id, withdrawn, self.labels))

    def subscribe(self, callback: Callable[[LiveEvent], None]) -> Callable[[], None]:
        self.callbacks.append(callback)
        return lambda: self.callbacks.remove(callback)

    def enter(self, state: str, message: str = "") -> None:
        self.state = state
        self.emit(StateChanged(state, message))

    def emit(self, event: LiveEvent) -> None:
        if isinstance(event, StepStats):
            self.ppo_step = event.step
        self.history.append(event)
        for callback in list(self.callbacks):
            callback(event)


OPENINGS = ["Happy to help! ", "Thank you for asking. ", "", "Look it up. "]
FACTS = [
    ("When does the library open on Sunday?", "The library opens at ten on Sunday.", "The library is open all night."),
    ("How do I renew my library card?", "Bring your card and an ID to the front desk.", "Cards cannot be renewed."),
    (
        "Where can I print a document?",
        "The printers stand on the second floor, by the stairs.",
        "Nobody prints any more.",
    ),
    ("Who repairs a broken bicycle lamp?", "The workshop behind gate four does, until six.", "Throw the lamp away."),
    (
        "Is there a fee for a late book?",
        "Yes: twenty cents a day, at most five euros.",
        "A late book costs ninety euros.",
    ),
]
CLOSINGS = ["", " Tell me if anything is unclear.", " Whatever."]
Features = tuple[float, float, float, float]


class DemoLoop(FakeLoop):
    """Plays the whole loop in pure Python: a linear reward model on four hand-made features really learns from the
    answers, and the policy is the closed-form optimum p ∝ p₀·exp(score/β), approached step by step."""

    annotator = "you"

    def __init__(self, seconds: float = 0.25, seed: int = 0) -> None:
        super().__init__()
        self._random = random.Random(seed)
        self._seconds, self._age = seconds, 0  # the age counts the policy's PPO steps; a rollback takes them back
        self._weights = [-0.5, 0.2, 0.8, 0.6]
        self._before: dict[str, tuple[list[float], int]] = {}  # answer id → weights and age just before it
        self._asked: list[tuple[Question, Answer]] = []
        self._agreements: list[float] = []
        self._lock = threading.RLock()
        self._go, self._end, self._once = threading.Event(), threading.Event(), 0
        self._thread: threading.Thread | None = None
        self._write_questions()

    def start(self) -> None:
        super().start()
        self._go.set()
        self._work()

    def pause(self) -> None:
        self._go.clear()
        super().pause()

    def step(self, n: int = 1) -> None:
        super().step(n)
        self._once += n
        self._work()

    def stop(self) -> None:
        self._end.set()
        super().stop()

    def next_question(self) -> Question | None:
        with self._lock:
            return super().next_question()

    def submit(self, answer: Answer) -> int:
        with self._lock:
            number = super().submit(answer)
            self._before[answer.id] = (list(self._weights), self._age)
        if answer.given:
            threading.Thread(target=self._learn, args=(self.known[answer.question_id], answer), daemon=True).start()
        return number

    def reply(self, turns: Sequence[tuple[str, str]], k: int = 1, checkpoint: str = "policy") -> Question:
        threading.Event().wait(self._seconds)
        return super().reply(turns, k, checkpoint)

    def _replies(self, prompt: str, k: int, checkpoint: str) -> Question:
        with self._lock:
            asked = set(prompt.lower().split())
            fact = max(FACTS, key=lambda fact: len(asked & set(fact[0].lower().split())))
            sharpness = self._sharpness() if checkpoint == "policy" else 0.0
            texts = dict.fromkeys(self._write(fact, sharpness)[0] for _ in range(6 * k))
            name = f"chat-{len(self.known)}"
            model = f"policy-step{self.ppo_step}" if checkpoint == "policy" else checkpoint
            candidates = [Candidate(f"{name}-{i}", text, model) for i, text in enumerate(list(texts)[:k])]
            return Question(name, prompt, tuple(candidates))

    def _restore(self, answer_id: str, withdrawn: int) -> None:
        def work() -> None:
            with self._lock:
                self._weights, self._age = self._before[answer_id]
                self._asked = [(q, a) for q, a in self._asked if a.id not in self.withdrawn]
            super(DemoLoop, self)._restore(answer_id, withdrawn)

        threading.Thread(target=work, daemon=True).start()

    def _work(self) -> None:
        if self._thread is None or not self._thread.is_alive():
            self._end.clear()
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while not self._end.wait(self._seconds):
            if self._go.is_set() or self._once:
                self._once = max(0, self._once - 1)
                self._ppo_step()

    def _write(self, fact: tuple[str, str, str], sharpness: float) -> tuple[str, float]:
        """A reply of the policy, whose taste for the reward grows with `sharpness`; and its score."""
        drafts = [
            (opening, body, closing) for opening in OPENINGS for body in (fact[1], fact[2]) for closing in CLOSINGS
        ]
        texts = ["".join(draft) for draft in drafts]
        weights = [math.exp(sharpness * self._score(text)) for text in texts]
        reply = self._random.choices(texts, weights)[0]
        return reply, self._score(reply)

    def _features_of(self, text: str) -> Features:
        """How polite, right, rude and long a text is, read off it."""
        polite = sum(opening in text for opening in OPENINGS[:2]) - (OPENINGS[3] in text)
        right = any(fact[1] in text for fact in FACTS)
        return (float(polite), float(right), float(CLOSINGS[2] in text), len(text) / 100)

    def _score(self, text: str) -> float:
        return sum(weight * feature for weight, feature in zip(self._weights, self._features_of(text), strict=True))

    def _write_questions(self) -> None:
        with self._lock:
            while len(self.questions) < 2:
                fact = self._random.choice(FACTS)
                texts: list[str] = []
                while len(texts) < 4:
                    reply, _ = self._write(fact, self._sharpness() * 0.2)
                    texts += [reply] * (reply not in texts)
                name = f"question-{len(self.known) + len(self.questions)}"
                candidates = tuple(Candidate(f"{name}-{i}", text, "policy") for i, text in enumerate(texts))
                self.questions.append(Question(name, fact[0], candidates))
        self.emit(QuestionsReady(len(self.questions), self.ppo_step))

    def _sharpness(self) -> float:
        return 3.0 * (1 - math.exp(-self._age / 40))

    def _ppo_step(self) -> None:
        with self._lock:
            self._age += 1
            kl = 9.0 * (1 - math.exp(-self._age / 45)) + self._random.gauss(0, 0.15)
            facts = self._random.choices(FACTS, k=24)
            rollouts = [
                Rollout(f[0], *self._write(f, self._sharpness()), abs(self._random.gauss(kl, 1))) for f in facts
            ]
            number = self.ppo_step + 1
        reward = sum(rollout.score for rollout in rollouts) / len(rollouts)
        self.emit(make_stats(number, reward=reward, kl=max(0.0, kl), samples=tuple(rollouts)))
        if number % 5 == 0:
            rate = 0.5 + 0.36 * (1 - math.exp(-self._age / 35)) + self._random.gauss(0, 0.015)
            half = 1.96 * math.sqrt(rate * (1 - rate) / 64)
            self.emit(WinRate(number, Interval(rate, rate - half, min(1.0, rate + half), 64)))
        if len(self.questions) < 2:
            self._write_questions()

    def _learn(self, question: Question, answer: Answer) -> None:
        """Bradley–Terry on this answer's pairs, by gradient ascent on the four weights."""
        with self._lock:
            self._asked.append((question, answer))
            latest = [(self._judged(q, a), self._order(a)) for q, a in reversed(self._asked[-5:])]
            before = [self._scores(q) for q, _ in latest]
            pairs = self._pairs(question, answer)
            right = [self._score(chosen) > self._score(rejected) for chosen, rejected in pairs]
            for _ in range(30):
                for chosen, rejected in pairs:
                    push = 0.02 / (1 + math.exp(self._score(chosen) - self._score(rejected)))
                    both = zip(self._weights, self._features_of(chosen), self._features_of(rejected), strict=True)
                    self._weights = [w + push * (c - r) for w, c, r in both]
            effects = tuple(
                Effect(q, order, scores, self._scores(q)) for (q, order), scores in zip(latest, before, strict=True)
            )
            agreement = sum(right) / len(right) if right and answer.kind != "vote" else None
            self._agreements += [agreement] * (agreement is not None)
            window = self._agreements[-10:]
            running = sum(window) / len(window) if window else None
        self.emit(RewardUpdate(self.labels, answer.id, agreement, running, 10, effects, kind=answer.kind))
        if isinstance(answer, Correction):
            self.emit(Taught(self.ppo_step, 1, 1.31, 0.21))

    def _scores(self, question: Question) -> tuple[float, ...]:
        return tuple(self._score(candidate.text) for candidate in question.candidates)

    @staticmethod
    def _judged(question: Question, answer: Answer) -> Question:
        """The question as the effect shows it: the reply voted on; the corrected text, then the original."""
        if answer.kind not in ("vote", "correction"):
            return question
        shown = [candidate for candidate in question.candidates if candidate.id == answer.target]
        if isinstance(answer, Correction):
            shown = [Candidate(answer.id, answer.text, "you"), *shown]
        return Question(question.id, question.prompt, tuple(shown))

    @staticmethod
    def _order(answer: Answer) -> tuple[tuple[str, ...], ...]:
        return ((answer.id,), (answer.candidate,)) if isinstance(answer, Correction) else order_of(answer)

    def _pairs(self, question: Question, answer: Answer) -> list[tuple[str, str]]:
        """(better, worse) texts; a vote compares with a reply that is neither polite nor right."""
        if isinstance(answer, Vote):
            text = question.texts[answer.candidate]
            return [(text, OPENINGS[3])] if answer.up else [(OPENINGS[0], text)]
        return [(pair.chosen, pair.rejected) for pair in comparisons_of(question, answer) if not pair.tie]

    def rank_like_a_person(self, question: Question) -> tuple[tuple[str, ...], ...]:
        """An order by a person's taste: right and polite first."""
        taste = {
            c.id: sum(w * f for w, f in zip((1.2, 2.0, -1.0, -0.2), self._features_of(c.text), strict=True))
            for c in question.candidates
        }
        return tuple((c,) for c in sorted(taste, key=lambda c: -taste[c]))
