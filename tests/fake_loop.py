"""Live loops without torch, for tests of the Studio: one that a test drives by hand, and one that plays itself."""

from __future__ import annotations

import math
import random
import threading
from collections.abc import Callable

from rlhf_lab.errors import InputError
from rlhf_lab.records import (
    Candidate,
    Effect,
    Interval,
    LiveEvent,
    Question,
    QuestionsReady,
    Ranking,
    RewardUpdate,
    Rollout,
    StateChanged,
    StepStats,
    WinRate,
    comparisons_of,
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

    def __init__(self, questions: list[Question] | None = None) -> None:
        self.questions = list(questions or [])
        self.state = "idle"
        self.calls: list[str] = []
        self.rankings: list[Ranking] = []
        self.history: list[LiveEvent] = []
        self.callbacks: list[Callable[[LiveEvent], None]] = []
        self.failing: dict[str, Exception] = {}
        self._given: dict[str, Question] = {}

    @property
    def labels(self) -> int:
        return len(self.rankings)

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
        self._given[question.id] = question
        return question

    def submit(self, ranking: Ranking) -> int:
        self._called("submit")
        self.rankings.append(ranking)
        return self.labels

    def undo(self) -> Question | None:
        self._called("undo")
        return self._given[self.rankings.pop().question_id] if self.rankings else None

    def ask_again(self) -> Question | None:
        self._called("ask_again")
        return self._given[self.rankings[0].question_id] if self.rankings else None

    def subscribe(self, callback: Callable[[LiveEvent], None]) -> Callable[[], None]:
        self.callbacks.append(callback)
        return lambda: self.callbacks.remove(callback)

    def enter(self, state: str, message: str = "") -> None:
        self.state = state
        self.emit(StateChanged(state, message))

    def emit(self, event: LiveEvent) -> None:
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
    rankings, and the policy is the closed-form optimum p ∝ p₀·exp(score/β), approached step by step."""

    annotator = "you"

    def __init__(self, seconds: float = 0.25, seed: int = 0) -> None:
        super().__init__()
        self._random = random.Random(seed)
        self._seconds, self._number = seconds, 0
        self._weights = [-0.5, 0.2, 0.8, 0.6]
        self._features: dict[str, Features] = {}
        self._asked: list[tuple[Question, Ranking]] = []
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

    def submit(self, ranking: Ranking) -> int:
        question = self._given.get(ranking.question_id)
        if question is None:
            raise InputError(f"question {ranking.question_id!r} was never asked")
        ranking.check(question)
        with self._lock:
            number = super().submit(ranking)
            if ranking.status == "ranked":
                self._asked.append((question, ranking))
                threading.Thread(target=self._learn, args=(question, ranking, number), daemon=True).start()
        return number

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
        drafts = []
        for opening in OPENINGS:
            for right, body in ((1.0, fact[1]), (0.0, fact[2])):
                for closing in CLOSINGS:
                    polite = {OPENINGS[0]: 1.0, OPENINGS[1]: 1.0, OPENINGS[3]: -1.0}.get(opening, 0.0)
                    rude = float(closing == CLOSINGS[2])
                    text = f"{opening}{body}{closing}"
                    self._features[text] = (polite, right, rude, len(text) / 100)
                    drafts.append(text)
        weights = [math.exp(sharpness * self._score(text)) for text in drafts]
        reply = self._random.choices(drafts, weights)[0]
        return reply, self._score(reply)

    def _score(self, text: str) -> float:
        return sum(weight * feature for weight, feature in zip(self._weights, self._features[text], strict=True))

    def _write_questions(self) -> None:
        with self._lock:
            while len(self.questions) < 2:
                fact = self._random.choice(FACTS)
                texts: list[str] = []
                while len(texts) < 4:
                    reply, _ = self._write(fact, self._sharpness() * 0.2)
                    texts += [reply] * (reply not in texts)
                name = f"question-{len(self._given) + len(self.questions)}"
                candidates = tuple(Candidate(f"{name}-{i}", text, "policy") for i, text in enumerate(texts))
                self.questions.append(Question(name, fact[0], candidates))
        self.emit(QuestionsReady(len(self.questions), self._number))

    def _sharpness(self) -> float:
        return 3.0 * (1 - math.exp(-self._number / 40))

    def _ppo_step(self) -> None:
        with self._lock:
            self._number += 1
            kl = 9.0 * (1 - math.exp(-self._number / 45)) + self._random.gauss(0, 0.15)
            facts = self._random.choices(FACTS, k=24)
            rollouts = [
                Rollout(f[0], *self._write(f, self._sharpness()), abs(self._random.gauss(kl, 1))) for f in facts
            ]
        reward = sum(rollout.score for rollout in rollouts) / len(rollouts)
        self.emit(make_stats(self._number, reward=reward, kl=max(0.0, kl), samples=tuple(rollouts)))
        if self._number % 5 == 0:
            rate = 0.5 + 0.36 * (1 - math.exp(-self._number / 35)) + self._random.gauss(0, 0.015)
            half = 1.96 * math.sqrt(rate * (1 - rate) / 64)
            self.emit(WinRate(self._number, Interval(rate, rate - half, min(1.0, rate + half), 64)))
        if len(self.questions) < 2:
            self._write_questions()

    def _learn(self, question: Question, ranking: Ranking, number: int) -> None:
        """Bradley–Terry on this ranking's pairs, by gradient ascent on the four weights."""
        latest = [*reversed(self._asked[-4:])]
        before = [tuple(self._score(c.text) for c in q.candidates) for q, _ in latest]
        pairs = [pair for pair in comparisons_of(question, ranking) if not pair.tie]
        right = [self._score(pair.chosen) > self._score(pair.rejected) for pair in pairs]
        for _ in range(30):
            for pair in pairs:
                chosen, rejected = self._features[pair.chosen], self._features[pair.rejected]
                push = 0.02 / (1 + math.exp(self._score(pair.chosen) - self._score(pair.rejected)))
                self._weights = [w + push * (c - r) for w, c, r in zip(self._weights, chosen, rejected, strict=True)]
        effects = tuple(
            Effect(q, r.order, scores, tuple(self._score(c.text) for c in q.candidates))
            for (q, r), scores in zip(latest, before, strict=True)
        )
        agreement = sum(right) / len(right) if right else None
        self._agreements += [agreement] * (agreement is not None)
        window = self._agreements[-10:]
        running = sum(window) / len(window) if window else None
        self.emit(RewardUpdate(number, ranking.id, agreement, running, 10, effects))

    def rank_like_a_person(self, question: Question) -> tuple[tuple[str, ...], ...]:
        """An order by a person's taste: right and polite first."""
        taste = {
            c.id: sum(w * f for w, f in zip((1.2, 2.0, -1.0, -0.2), self._features[c.text], strict=True))
            for c in question.candidates
        }
        return tuple((c,) for c in sorted(taste, key=lambda c: -taste[c]))
