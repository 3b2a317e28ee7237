"""LiveLoop: a person's rankings in, reward updates and PPO steps in the background, events out.

A plain object that a widget, a script or a test can drive. One worker thread does all that takes time: it learns from
each ranking the moment it comes (even in the middle of a PPO step), writes new questions with the current policy, and
runs PPO steps while the loop is running. Everything else returns at once, on any thread.

    loop = LiveLoop.from_run(run, store="feedback.db", annotator="ada")
    unsubscribe = loop.subscribe(print)
    loop.start()
    question = loop.next_question()      # None until the policy has written one
    loop.submit(ranking)                 # stored durably when it returns

A label travels store → reward model → PPO's score. The store is the truth: a loop opened on it again starts with every
ranking that this annotator has given.
"""

from __future__ import annotations

import copy
import os
import queue
import random
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .annotators import SimulatedAnnotator, population
from .config import LiveConfig, SamplingConfig
from .errors import InputError
from .evaluation import win_rate
from .language import step_generator
from .models import Critic, frozen_copy
from .ppo import PPO, draw_prompts
from .records import (
    Candidate,
    Effect,
    LiveEvent,
    LoopError,
    LoopState,
    Question,
    QuestionsReady,
    Ranking,
    RewardUpdate,
    StateChanged,
    WinRate,
    new_id,
)
from .reward import TasteModel, features_of, fit_head, pairs_of_tiers, taste_prior, tier_indices
from .sampling import Sample, sample
from .store import FeedbackStore
from .text import encode_dialogues

if TYPE_CHECKING:
    from .runs import Run

Prior = tuple[torch.Tensor, torch.Tensor]  # mean (d,) and covariance (d, d) of the reward head
Learned = tuple[Question, Ranking, torch.Tensor]  # what the reward model has learned; features (k, d) of the replies

MESSAGES: dict[LoopState, str] = {
    "idle": "Ready: rank replies, and press Start when PPO should follow them.",
    "running": "PPO is moving the policy towards the reward model's idea of your taste.",
    "paused": "PPO rests; your rankings still teach the reward model.",
    "stopped": "The loop has ended; run the cell again for a new one.",
    "error": "The worker met a problem and waits; press Start to try again.",
}


class LiveLoop:
    """The loop that a person is in. See the module's docstring; make one with `from_run` or from its parts.

    `prior` is the Gaussian belief about a new person's reward head (`population_prior`); its mean scores until the
    first ranking. Making a loop stops the one made before it in this process: only one worker trains at a time.
    """

    _latest: weakref.ref[LiveLoop] | None = None

    def __init__(
        self,
        policy: PreTrainedModel,
        reward_model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[str],
        store: FeedbackStore | str | os.PathLike[str],
        prior: Prior,
        annotator: str = "me",
        config: LiveConfig | None = None,
        sampling: SamplingConfig | None = None,
        seed: int = 0,
    ) -> None:
        if not prompts:
            raise InputError("the live loop needs at least one prompt")
        previous = LiveLoop._latest() if LiveLoop._latest else None
        if previous is not None:
            previous.stop()
            previous.join()
        self.config = config or LiveConfig()
        self.store = store if isinstance(store, FeedbackStore) else FeedbackStore(store)
        self.annotator, self.seed, self.tokenizer = annotator, seed, tokenizer
        self.reward_model = frozen_copy(reward_model)
        self.reference = frozen_copy(policy)
        self.policy = copy.deepcopy(policy)
        self.taste = TasteModel(*prior)
        self._prompts, self._aside = _split(prompts, self.config.win_rate_prompts, seed)
        self._sampling = sampling or self.config.ppo.sampling
        self.ppo = PPO(
            self.policy,
            self.reference,
            Critic(reward_model),
            self._score,
            tokenizer,
            replace(self.config.ppo, sampling=self._sampling),
            seed,
        )
        self.ppo.pulse = self._attend
        self.history: list[LiveEvent] = []
        self._lock = threading.RLock()  # guards state, history, callbacks and the steps wanted
        self._callbacks: list[Callable[[LiveEvent], None]] = []
        self._state: LoopState = "idle"
        self._steps_wanted = 0
        self._inbox: queue.SimpleQueue[tuple[str, Question, Ranking]] = queue.SimpleQueue()
        self._questions: queue.SimpleQueue[Question] = queue.SimpleQueue()
        self._wake = threading.Event()
        self._idle = threading.Event()
        self._ending = False
        self._written = len(self.store.questions())  # so far, in earlier loops too: each has its own random source
        self._agreements: dict[str, float] = {}  # ranking id → agreement before it was learned
        self._learned: dict[str, Learned] = {}  # question id → what was learned last
        self._learn_so_far()
        self._thread = threading.Thread(target=self._work, name="rlhf-lab live loop", daemon=True)
        self._thread.start()
        LiveLoop._latest = weakref.ref(self)

    @classmethod
    def from_run(
        cls,
        run: Run,
        store: FeedbackStore | str | os.PathLike[str] | None = None,
        annotator: str = "me",
        config: LiveConfig | None = None,
        seed: int = 0,
    ) -> LiveLoop:
        """A loop on a run's SFT and reward model (made if need be), with a prior from simulated people of many tastes.

        Without `store`, labels go to live.db in the run's folder.
        """
        config = config or run.profile.live
        sft, tokenizer = run.sft()
        reward, _ = run.reward()
        prior = population_prior(run, config, seed)
        store = store if store is not None else Path(run.folder) / "live.db"
        return cls(
            sft, reward, tokenizer, run.train_prompts, store, prior, annotator, config, run.profile.sampling, seed
        )

    # --- what the screen calls: returns at once, any thread ---

    @property
    def state(self) -> LoopState:
        """idle, running, paused, stopped or error."""
        return self._state

    @property
    def labels(self) -> int:
        """How many rankings of this annotator are in force; skipped and undecided questions do not count."""
        return sum(ranking.status == "ranked" for ranking in self.store.rankings(self.annotator))

    def start(self) -> None:
        """PPO runs until `pause` or `stop`."""
        self._change("running")

    def pause(self) -> None:
        """PPO ends after the step it is in; rankings are still learned."""
        self._change("paused")

    def step(self, n: int = 1) -> None:
        """n PPO steps, whatever the state, then as before."""
        if n < 1:
            raise InputError(f"step({n}): the number of steps must be 1 or more")
        self._check_alive()
        with self._lock:
            self._steps_wanted += n
        self._stir()

    def stop(self) -> None:
        """Ends the worker after what it is doing. Nothing is lost: labels are in the store."""
        with self._lock:
            if self._ending:
                return
            self._ending = True
        self._stir()
        self._change("stopped")

    def join(self, timeout: float | None = 30.0) -> bool:
        """Waits for the worker to end, after `stop`; True when it has."""
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def wait_idle(self, timeout: float = 60.0) -> bool:
        """Waits until no label, question or single step is due (a running loop's own steps aside); False on time-out.

        For scripts and tests: a screen never waits.
        """
        return self._idle.wait(timeout)

    def next_question(self) -> Question | None:
        """A question that waits to be ranked; None when none is written yet (QuestionsReady follows)."""
        try:
            question = self._questions.get_nowait()
        except queue.Empty:
            question = None
        self._stir()
        return question

    def ask_again(self) -> Question | None:
        """A question that this person ranked before, the one longest ago, to be ranked once more: are they consistent?

        Without an earlier one, a fresh question. The second answer replaces the first.
        """
        ranked = [r for r in self.store.rankings(self.annotator) if r.status == "ranked"]
        return self.store.question(ranked[0].question_id) if ranked else self.next_question()

    def submit(self, ranking: Ranking) -> int:
        """Stores a ranking durably, then hands it to the worker. Returns its place in the store.

        Raises InputError, and learns nothing, when it cannot be stored.
        """
        if ranking.annotator != self.annotator:
            raise InputError(f"ranking {ranking.id!r} is {ranking.annotator!r}'s; this loop is {self.annotator!r}'s")
        question = self.store.question(ranking.question_id)
        place = self.store.append(ranking)
        if ranking.status == "ranked" and not self._ending:
            self._inbox.put(("learn", question, ranking))
            self._stir()
        return place

    def undo(self) -> Question | None:
        """Withdraws this person's latest answer (as a new event) and returns its question; None when there is none."""
        rankings = self.store.rankings(self.annotator)
        if not rankings:
            return None
        ranking = rankings[-1]
        question = self.store.question(ranking.question_id)
        self.store.withdraw(ranking.id, self.annotator)
        if ranking.status == "ranked" and not self._ending:
            self._inbox.put(("forget", question, ranking))
            self._stir()
        return question

    def subscribe(self, callback: Callable[[LiveEvent], None]) -> Callable[[], None]:
        """Calls `callback(event)` on the worker's thread for every event from now on; returns what ends that."""
        with self._lock:
            self._callbacks.append(callback)

        def unsubscribe() -> None:
            with self._lock:
                if callback in self._callbacks:
                    self._callbacks.remove(callback)

        return unsubscribe

    # --- the worker ---

    def _work(self) -> None:
        torch.set_num_threads(max(1, (os.cpu_count() or 2) - 1))  # the kernel, the browser and the person need a core
        while not self._ending:
            self._wake.clear()
            try:
                busy = self._turn()
            except Exception as error:  # whatever it is, a person must see it; the loop waits for them
                self._fail("the live loop's worker", error)
                busy = False
            if not busy:
                if not self._wake.is_set():
                    self._idle.set()
                self._wake.wait()
        self._idle.set()

    def _turn(self) -> bool:
        """One round of the worker's duties, the most urgent first. False when there was nothing to do."""
        self._attend()
        if self._state != "error" and self._questions.qsize() < self.config.buffer:
            self._write_question()
            return True
        with self._lock:
            single = self._steps_wanted > 0
            self._steps_wanted -= single
        if single or self._state == "running":
            self._ppo_step()
            if self._state == "running" and self._inbox.empty() and not self._steps_wanted:
                self._idle.set()
            return True
        return not self._inbox.empty()

    def _attend(self) -> None:
        """Learns whatever rankings have come in."""
        while not self._inbox.empty():
            kind, question, ranking = self._inbox.get()
            if kind == "learn":
                self._learn(question, ranking)
            else:
                self._forget(question, ranking)

    def _ppo_step(self) -> None:
        prompts = draw_prompts(self._prompts, self.config.ppo.batch_size, self.ppo.generator(salt=5))
        stats = self.ppo.step(prompts)
        self._say(stats)
        if stats.step % self.config.win_rate_every == 0:
            self._say(self._win_rate(stats.step))

    def _write_question(self) -> None:
        """One question: a prompt, replies of the current policy and of the SFT model, all different."""
        generator = step_generator(self.seed, self._written, salt=10)
        prompt = draw_prompts(self._prompts, 1, generator)[0]
        hot = replace(self._sampling, temperature=self.config.question_temperature)
        k, from_sft = self.config.candidates, self.config.sft_candidates
        wanted = {"sft": from_sft, f"policy-step{self.ppo.steps_done}": k - from_sft}
        found: dict[str, str] = {}  # text → model
        for round_ in range(3):
            for name, count in wanted.items():
                missing = count - sum(model == name for model in found.values()) if round_ < 2 else k - len(found)
                writer = self.reference if name == "sft" else self.policy
                for drawn in sample(writer, self.tokenizer, [prompt] * max(0, missing), hot, generator):
                    if drawn.text and len(found) < k:
                        found.setdefault(drawn.text, name)
        if len(found) < 2:
            raise InputError(f"the policy gives one and the same reply to {prompt!r}; raise question_temperature")
        question = Question(new_id(), prompt, tuple(Candidate(new_id(), text, model) for text, model in found.items()))
        self.store.add_question(question)
        self._written += 1
        self._questions.put(question)
        self._say(QuestionsReady(self._questions.qsize(), self.ppo.steps_done))

    def _learn(self, question: Question, ranking: Ranking) -> None:
        began = time.perf_counter()
        features = self._features(question)
        pairs = pairs_of_tiers(tier_indices(question, ranking))
        agreement = _agreement(self.taste.score(features), pairs)
        if agreement is not None:
            self._agreements[ranking.id] = agreement
        shown = self._shown(question, ranking, features)
        before = [self._scores(f) for _, _, f in shown]
        earlier = self._learned.pop(question.id, None)
        if earlier is not None:
            self.taste.forget(earlier[1].id)
        self.taste.learn(ranking.id, features, pairs)
        self._learned[question.id] = (question, ranking, features)
        self._say_update(ranking, agreement, shown, before, began)

    def _forget(self, question: Question, ranking: Ranking) -> None:
        began = time.perf_counter()
        latest = self._learned.get(question.id)
        if latest is None or latest[1].id != ranking.id:
            return
        shown = self._shown(*latest)
        before = [self._scores(f) for _, _, f in shown]
        self._learned.pop(question.id)
        self.taste.forget(ranking.id)
        self._agreements.pop(ranking.id, None)
        for back in self.store.rankings(self.annotator):  # withdrawing a second answer brings the first back
            if back.question_id == question.id and back.status == "ranked":
                self.taste.learn(back.id, latest[2], pairs_of_tiers(tier_indices(question, back)))
                self._learned[question.id] = (question, back, latest[2])
        self._say_update(ranking, None, shown, before, began)

    def _shown(self, question: Question, ranking: Ranking, features: torch.Tensor) -> list[Learned]:
        """This question and the last few before it: those whose change of scores is shown."""
        others = [entry for key, entry in self._learned.items() if key != question.id]
        return [(question, ranking, features), *reversed(others[max(0, len(others) - self.config.effects) :])]

    def _say_update(
        self,
        ranking: Ranking,
        agreement: float | None,
        shown: Sequence[Learned],
        before: Sequence[tuple[float, ...]],
        began: float,
    ) -> None:
        window = list(self._agreements.values())[-self.config.window :]
        effects = tuple(Effect(q, r.order, b, self._scores(f)) for (q, r, f), b in zip(shown, before, strict=True))
        self._say(
            RewardUpdate(
                self.labels,
                ranking.id,
                agreement,
                sum(window) / len(window) if window else None,
                self.config.window,
                effects,
                time.perf_counter() - began,
            )
        )

    # --- scores: the person's reward, on a scale where the SFT model's replies have mean 0 and standard deviation 1 ---

    def _score(self, samples: Sequence[Sample]) -> torch.Tensor:
        return self._scaled(features_of(self.reward_model, [s.dialogue for s in samples]))

    def _scores(self, features: torch.Tensor) -> tuple[float, ...]:
        return tuple(self._scaled(features).tolist())

    def _scaled(self, features: torch.Tensor) -> torch.Tensor:
        anchor = self.taste.score(self._anchor)
        return (self.taste.score(features) - anchor.mean()) / (anchor.std() + 1e-6)

    def _features(self, question: Question) -> torch.Tensor:
        pairs = [(question.prompt, candidate.text) for candidate in question.candidates]
        room = self.reward_model.config.max_position_embeddings
        return features_of(self.reward_model, encode_dialogues(self.tokenizer, pairs, room))

    def _win_rate(self, step: int) -> WinRate:
        """The policy against the SFT model on prompts kept aside, in the eyes of the live reward model."""
        generator = step_generator(self.seed, step, salt=11)
        written = sample(self.policy, self.tokenizer, self._aside, self._sampling, generator)
        ours = self._score(written).tolist()
        theirs = self._scaled(self._anchor[: len(self._aside)]).tolist()
        return WinRate(step, win_rate(ours, theirs))

    def _learn_so_far(self) -> None:
        """The SFT model's replies that anchor the scale, and every ranking that is already in the store."""
        generator = step_generator(self.seed, 0, salt=12)
        prompts = [*self._aside, *self._prompts[:160]]
        written = sample(self.reference, self.tokenizer, prompts, self._sampling, generator)
        self._anchor = features_of(self.reward_model, [s.dialogue for s in written])
        for ranking in self.store.rankings(self.annotator):
            if ranking.status == "ranked":
                question = self.store.question(ranking.question_id)
                features = self._features(question)
                self.taste.learn(ranking.id, features, pairs_of_tiers(tier_indices(question, ranking)))
                self._learned[question.id] = (question, ranking, features)

    # --- state and events ---

    def _change(self, state: LoopState) -> None:
        with self._lock:
            if self._state == "stopped" or (self._ending and state != "stopped"):
                raise InputError("this loop has ended; make a new one (run the cell again)")
            self._state = state
        self._say(StateChanged(state, MESSAGES[state]))
        self._stir()

    def _check_alive(self) -> None:
        if self._ending:
            raise InputError("this loop has ended; make a new one (run the cell again)")

    def _stir(self) -> None:
        self._idle.clear()
        self._wake.set()

    def _fail(self, where: str, error: Exception) -> None:
        known = isinstance(error, InputError)
        message = str(error) if known else f"{type(error).__name__}: {error}"
        if not known:
            traceback.print_exception(error)
        with self._lock:
            self._steps_wanted = 0
            if not self._ending:
                self._state = "error"
        self._say(LoopError(where, message))
        self._say(StateChanged(self._state, MESSAGES[self._state]))

    def _say(self, event: LiveEvent) -> None:
        with self._lock:
            self.history.append(event)
            callbacks = list(self._callbacks)
        for callback in callbacks:
            try:
                callback(event)
            except Exception as error:  # a broken listener must not end the training of the others
                traceback.print_exception(error)


# --- the prior --------------------------------------------------------------------------------------------------------


def population_prior(run: Run, config: LiveConfig, seed: int = 0) -> Prior:
    """What to expect of a new person: heads fitted to simulated people of many tastes, on the run's reward features.

    Their mean and covariance (`reward.taste_prior`). The questions are those of the run's preference stage.
    """
    asked, _ = run.preferences()
    reward, tokenizer = run.reward()
    questions = random.Random(f"prior {seed}").sample(asked, min(config.prior_questions, len(asked)))
    room = reward.config.max_position_embeddings
    texts = [(question.prompt, candidate.text) for question in questions for candidate in question.candidates]
    features = features_of(reward, encode_dialogues(tokenizer, texts, room))
    own = features.split([len(question.candidates) for question in questions])
    heads = [person_head(person, questions, own) for person in population(run.judge, config.population, seed=seed)]
    return taste_prior(torch.stack(heads), floor=1e-2)


def person_head(
    person: SimulatedAnnotator, questions: Sequence[Question], features: Sequence[torch.Tensor]
) -> torch.Tensor:
    """The reward head (d,) that best explains one simulated person's rankings; `features` holds (k, d) a question."""
    differences, targets = [], []
    for question, own in zip(questions, features, strict=True):
        for better, worse, tie in pairs_of_tiers(tier_indices(question, person.rank(question))):
            differences.append(own[better] - own[worse])
            targets.append(0.5 if tie else 1.0)
    return fit_head(torch.stack(differences), torch.tensor(targets), ridge=5.0)


def _agreement(scores: torch.Tensor, pairs: Sequence[tuple[int, int, bool]]) -> float | None:
    """The share of strict pairs that the scores order as the person did."""
    strict = [(better, worse) for better, worse, tie in pairs if not tie]
    return sum(float(scores[b] > scores[w]) for b, w in strict) / len(strict) if strict else None


def _split(prompts: Sequence[str], aside: int, seed: int) -> tuple[list[str], list[str]]:
    """Prompts to train and ask on, and at most a quarter of them (`aside`) to measure the win rate on."""
    shuffled = list(dict.fromkeys(prompts))
    random.Random(f"live {seed}").shuffle(shuffled)
    n = min(aside, len(shuffled) // 4) if len(shuffled) > 3 else 0
    return shuffled[n:], shuffled[:n] or shuffled
