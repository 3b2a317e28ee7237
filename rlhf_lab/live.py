"""LiveLoop: a person's feedback in, reward updates and PPO steps in the background, events out.

A plain object that a widget, a script or a test can drive. One worker thread does all that takes time: it learns from
each answer the moment it comes (even in the middle of a PPO step), writes new questions with the current policy, and
runs PPO steps while the loop is running. Everything else returns at once, on any thread (`reply` aside, which waits).

    loop = LiveLoop.from_run(run, store="feedback.db", annotator="ada")
    unsubscribe = loop.subscribe(print)
    loop.start()
    question = loop.next_question()      # None until the policy has written one
    loop.submit(ranking)                 # stored durably when it returns

What each form of feedback does:

- a **ranking** (of two or more) and a **rating** (by mean mark) train the reward model on their pairs; a grade asks
  for a margin between the two scores (Llama 2, arXiv:2307.09288);
- a **vote** says that a reply is better (or worse) than the SFT model's average reply;
- a **correction** puts the corrected text above the original, and the policy learns the text in a few SFT steps.

`LiveConfig.method` names what moves the policy: PPO, RLOO or GRPO by the reward model's scores, or online DPO, which
learns from the person's own rankings, ratings and corrections directly, beside pairs that the reward model orders.

A label travels store → reward model → PPO's score. The store is the truth: a loop opened on it again starts with every
answer that this annotator has given. Any label can be taken back (`undo`, `withdraw`), changed (by answering again), or
used as the point to go back to (`rollback`); each is a new event in the store, and nothing is deleted.
"""

from __future__ import annotations

import copy
import os
import queue
import random
import threading
import traceback
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .chat import Turn, conversation_prompt, write_replies
from .config import LanguageConfig, LiveConfig, OnlineMethod, SamplingConfig
from .errors import InputError
from .evaluation import win_rate
from .language import Batch, language_loss, step_generator, train_language
from .methods import Config, Start, online_trainer, options_like
from .models import frozen_copy
from .personal import Key, PersonalReward, Prior, key_of, population_prior
from .ppo import draw_prompts
from .records import (
    ANSWERS,
    Answer,
    Candidate,
    Correction,
    LiveEvent,
    LoopError,
    LoopState,
    Question,
    QuestionsReady,
    RolledBack,
    StateChanged,
    Taught,
    Vote,
    WinRate,
    answer_from_dict,
    new_id,
)
from .reward import RankedReplies, TasteModel, encode_rankings, features_of
from .sampling import made_with_of, sample
from .selection import next_questions
from .snapshots import Snapshot, Snapshots
from .store import FeedbackStore
from .text import encode_dialogues, language_batch

if TYPE_CHECKING:
    from .runs import Run

MESSAGES: dict[LoopState, str] = {
    "idle": "Ready: rank replies, and press Start when {method} should follow them.",
    "running": "{method} is moving the policy towards the reward model's idea of your taste.",
    "paused": "{method} rests; your rankings still teach the reward model.",
    "stopped": "The loop has ended; run the cell again for a new one.",
    "error": "The worker met a problem and waits; press Start to try again.",
}

TITLES: dict[OnlineMethod, str] = {"ppo": "PPO", "rloo": "RLOO", "grpo": "GRPO", "online-dpo": "Online DPO"}


# What the screen hands to the worker.


@dataclass(frozen=True)
class _Learn:
    question: Question
    answer: Answer


@dataclass(frozen=True)
class _Forget:
    answer: Answer


@dataclass(frozen=True)
class _RollBack:
    answer_id: str
    withdrawn: int


@dataclass(frozen=True)
class _Reply:
    prompt: str
    k: int
    checkpoint: str
    question: Future[Question]


class LiveLoop:
    """The loop that a person is in. See the module's docstring; make one with `from_run` or from its parts.

    `prior` is the Gaussian belief about a new person's reward head (`population_prior`); its mean scores until the
    first answer. Making a loop stops the one made before it in this process: only one worker trains at a time.
    """

    checkpoints = ("policy", "sft")  # whom `reply` can answer as
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
        self.reference = frozen_copy(policy)
        self.policy = copy.deepcopy(policy)
        self._prompts, self._aside = _split(prompts, self.config.win_rate_prompts, seed)
        self._sampling = sampling or self.config.ppo.sampling
        self._hot = replace(self._sampling, temperature=self.config.question_temperature)
        self._sft_made_with = made_with_of(self.reference, self._hot)  # its weights stay: hashed once
        self.reward = PersonalReward(
            frozen_copy(reward_model), tokenizer, prior, self._anchor(reward_model), self.config
        )
        self._pairs: dict[str, RankedReplies] = {}  # answer id → what it says of replies, as tokens
        start = Start(self.reference, tokenizer, self._prompts, reward_model, self.reward.score)
        self.ppo = online_trainer(  # PPO, or another with its face
            self.config.method, self.policy, start, self._options(), seed, self._answered
        )
        self.ppo.pulse = self._pulse
        self.history: list[LiveEvent] = []
        self._lock = threading.RLock()  # guards state, history, callbacks, labels and the steps wanted
        self._callbacks: list[Callable[[LiveEvent], None]] = []
        self._state: LoopState = "idle"
        self._steps_wanted = 0
        self._inbox: deque[_Learn | _Forget | _RollBack | _Reply] = deque()
        self._questions: queue.SimpleQueue[Question] = queue.SimpleQueue()
        self._wake = threading.Event()
        self._idle = threading.Event()
        self._ending = False
        self._written = len(self.store.questions())  # so far, in earlier loops too: each has its own random source
        self._given: dict[Key, Answer] = {}  # this person's answers in force
        self._to_teach: list[Correction] = []
        critic = {} if self.ppo.critic is None else {"critic": self.ppo.critic}
        self._snapshots = Snapshots({"policy": self.policy} | critic, self.config.snapshots)
        self._now = self._start = self._snapshots.take(0, self.ppo.beta)
        self._changed = False  # policy or critic, since that snapshot
        self._before: dict[str, Snapshot] = {}  # answer id → the weights just before it
        self.reward.relearn(self._reread())
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

    # --- what the screen calls: returns at once (`reply` aside), any thread ---

    @property
    def state(self) -> LoopState:
        """idle, running, paused, stopped or error."""
        return self._state

    @property
    def labels(self) -> int:
        """How many answers of this annotator are in force; skipped and undecided questions do not count."""
        with self._lock:
            return sum(answer.given for answer in self._given.values())

    @property
    def taste(self) -> TasteModel:
        """The reward head that has learned this person's answers."""
        return self.reward.taste

    @property
    def reward_model(self) -> PreTrainedModel:
        """The reward model whose features the head reads; it does not change."""
        return self.reward.reward_model

    def start(self) -> None:
        """PPO runs until `pause` or `stop`."""
        self._change("running")

    def pause(self) -> None:
        """PPO ends after the step it is in; answers are still learned."""
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
        """A question that waits to be answered; None when none is written yet (QuestionsReady follows)."""
        try:
            question = self._questions.get_nowait()
        except queue.Empty:
            question = None
        self._stir()
        return question

    def ask(self, question: Question) -> Question:
        """Keeps a question of yours in the store, so that it can be answered; returns it."""
        self.store.add_question(question)
        return question

    def ask_again(self) -> Question | None:
        """A question that this person ranked before, the one longest ago, to be ranked once more: are they consistent?

        Without an earlier one, a fresh question. The second answer replaces the first.
        """
        with self._lock:
            ranked = [answer for answer in self._given.values() if answer.kind == "ranking" and answer.given]
        return self.store.question(ranked[0].question_id) if ranked else self.next_question()

    def reply(self, turns: Sequence[Turn], k: int = 1, checkpoint: str = "policy") -> Question:
        """What "policy" or "sft" answers to a conversation: a question with up to k different replies, in the store.

        Waits until the worker has written it, a second or so: call it on a thread of your own.
        """
        if checkpoint not in self.checkpoints:
            raise InputError(f"checkpoint {checkpoint!r}: there are {', '.join(self.checkpoints)}")
        request = _Reply(conversation_prompt(turns, self.config.chat_memory), k, checkpoint, Future())
        self._hand_over(request)
        return request.question.result()

    def given(self) -> list[tuple[Question, Answer, bool]]:
        """Every answer of this annotator, oldest first: its question, itself, and whether it was not withdrawn."""
        events = [event for event in self.store.events() if event.annotator == self.annotator]
        gone = {event.withdraws for event in events}
        answers = [answer_from_dict(event.kind, event.payload) for event in events if event.kind in ANSWERS]
        asked = {question.id: question for question in self.store.questions({a.question_id for a in answers})}
        return [(asked[answer.question_id], answer, answer.id not in gone) for answer in answers]

    def submit(self, answer: Answer) -> int:
        """Stores an answer durably, then hands it to the worker. Returns its place in the store.

        Raises InputError, and learns nothing, when it cannot be stored.
        """
        if answer.annotator != self.annotator:
            raise InputError(
                f"{answer.kind} {answer.id!r} is {answer.annotator!r}'s; this loop is {self.annotator!r}'s"
            )
        question = self.store.question(answer.question_id)
        place = self.store.append(answer)
        with self._lock:
            replaced = self._given.pop(key_of(answer), None)  # the newest stands last
            self._given[key_of(answer)] = answer
        if answer.given and not self._ending:
            self._hand_over(_Learn(question, answer))
        elif replaced is not None and replaced.given and not self._ending:
            self._hand_over(_Forget(answer))  # who can't decide any more has taken the earlier decision back
        return place

    def undo(self) -> Question | None:
        """Withdraws this person's latest answer (as a new event) and returns its question; None when there is none."""
        latest = self.store.latest(self.annotator)
        return None if latest is None else self.withdraw(latest.id)

    def withdraw(self, answer_id: str) -> Question:
        """Withdraws any answer of this person, however old, as a new event; returns its question.

        The reward model unlearns it at once. The policy keeps what it has learned meanwhile: `rollback` undoes that.
        """
        self.store.withdraw(answer_id, self.annotator)
        with self._lock:
            answer = next((given for given in self._given.values() if given.id == answer_id), None)
        self._reread()
        if answer is None:  # it had been replaced: nothing that counts has changed
            event = next(event for event in self.store.events() if event.id == answer_id)
            return self.store.question(event.question_id)
        with self._lock:
            back = self._given.get(key_of(answer))
        if (answer.given or (back is not None and back.given)) and not self._ending:
            self._hand_over(_Forget(answer))
        return self.store.question(answer.question_id)

    def rollback(self, answer_id: str) -> int:
        """Goes back to just before an answer: withdraws it and all later ones of this person (as new events), and has
        the worker put policy, critic and reward model back. Returns how many answers were withdrawn.
        """
        withdrawn = self.store.withdraw_from(answer_id, self.annotator)
        self._reread()
        if not self._ending:
            self._hand_over(_RollBack(answer_id, len(withdrawn)))
        return len(withdrawn)

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
                busy = bool(self._inbox)  # what came behind is due all the same
            if not busy:
                with self._lock:
                    if not self._wake.is_set():
                        self._idle.set()
                self._wake.wait()
        self._turn_away()
        self._snapshots.close()
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
            with self._lock:
                if self._state == "running" and not self._inbox and not self._steps_wanted:
                    self._idle.set()
            return True
        return bool(self._inbox)

    def _attend(self, between_steps: bool = True) -> None:
        """Does what has come in. Inside a PPO step the policy must stay PPO's: going back and teaching wait."""
        while self._inbox and (between_steps or not isinstance(self._inbox[0], _RollBack)):
            match self._inbox.popleft():
                case _Learn(question, answer):
                    self._learn(question, answer)
                case _Forget(answer):
                    self._forget(answer)
                case _Reply() as request:
                    self._write_reply(request)
                case _RollBack(answer_id, withdrawn):
                    self._roll_back(answer_id, withdrawn)
        if between_steps and self._to_teach:
            self._teach()

    def _pulse(self) -> None:
        self._attend(between_steps=False)
        self._changed = True  # the step goes on: the next label needs a snapshot of its own

    def _ppo_step(self) -> None:
        prompts = draw_prompts(self._prompts, self.ppo.config.prompts_per_step, self.ppo.generator(salt=5))
        self._changed = True
        stats = self.ppo.step(prompts)
        self._say(stats)
        if stats.step % self.config.win_rate_every == 0:
            self._say(self._win_rate(stats.step))

    def _write_question(self) -> None:
        """Writes a few questions and keeps the one whose answer is worth most (`LiveConfig.ask`)."""
        generator = step_generator(self.seed, self._written, salt=10)
        self._written += 1  # now: after a failure the next attempt must not draw the same again
        prompts = draw_prompts(self._prompts, self.config.ask_among, generator)
        replies = [found for found in self._write_replies(prompts, generator) if len(found[1]) > 1]
        if not replies:
            raise InputError(f"the policy gives one and the same reply to {prompts[0]!r}; raise question_temperature")
        made_with = {"sft": self._sft_made_with, self._policy_name: made_with_of(self.policy, self._hot)}
        waiting = [
            Question(
                new_id(), prompt, tuple(Candidate(new_id(), text, by, made_with[by]) for text, by in found.items())
            )
            for prompt, found in replies
        ]
        features = [self.reward.features(question) for question in waiting]
        question = waiting[next_questions(self.config.ask, self.taste, features, generator)[0]]
        self.store.add_question(question)
        self._questions.put(question)
        self._say(QuestionsReady(self._questions.qsize(), self.ppo.steps_done))

    def _write_replies(self, prompts: Sequence[str], generator: torch.Generator) -> list[tuple[str, dict[str, str]]]:
        """To each prompt, different replies of the current policy and of the SFT model: text → who wrote it."""
        k, from_sft = self.config.candidates, self.config.sft_candidates
        wanted = {"sft": from_sft, self._policy_name: k - from_sft}
        found: list[tuple[str, dict[str, str]]] = [(prompt, {}) for prompt in prompts]
        for round_ in range(3):
            for name, count in wanted.items():
                short = []
                for number, (_, texts) in enumerate(found):
                    own = sum(model == name for model in texts.values())
                    short += [number] * (count - own if round_ < 2 else k - len(texts))
                writer = self.reference if name == "sft" else self.policy
                drawn = sample(writer, self.tokenizer, [prompts[i] for i in short], self._hot, generator)
                for number, reply in zip(short, drawn, strict=True):
                    texts = found[number][1]
                    if reply.text and len(texts) < k:
                        texts.setdefault(reply.text, name)
        return found

    @property
    def _policy_name(self) -> str:
        return f"policy-step{self.ppo.steps_done}"

    def _write_reply(self, request: _Reply) -> None:
        """A conversation's next turn. What fails is told to who asked, not to the loop."""
        writer = self.policy if request.checkpoint == "policy" else self.reference
        name = self._policy_name if request.checkpoint == "policy" else "sft"
        generator = step_generator(self.seed, self._written, salt=13)
        self._written += 1
        try:
            question = write_replies(writer, self.tokenizer, request.prompt, request.k, self._hot, generator, name)
            request.question.set_result(self.ask(question))
        except Exception as error:
            request.question.set_exception(error)

    def _learn(self, question: Question, answer: Answer) -> None:
        self._before[answer.id] = self._now  # this one serves where a new one cannot be written
        self._say(replace(self.reward.learn(question, answer), labels=self.labels))
        if isinstance(answer, Correction) and self.config.correction_steps:
            self._to_teach.append(answer)
        if self._changed:  # the reward model has learned; policy and critic are still as they were before the answer
            self._now, self._changed = self._snapshots.take(self.ppo.steps_done, self.ppo.beta), False
            self._before[answer.id] = self._now

    def _forget(self, answer: Answer) -> None:
        self._to_teach = [due for due in self._to_teach if due.id != answer.id]
        with self._lock:  # withdrawing a second answer brings the first back
            back = self._given.get(key_of(answer))
        known = (self.store.question(back.question_id), back) if back is not None and back.given else None
        update = self.reward.forget(answer, known)
        if update is not None:
            self._say(replace(update, labels=self.labels))

    def _teach(self) -> None:
        """SFT steps of the policy on the latest corrections, among replies of the SFT model: alone, a few texts in a
        new style would cost a small model its facts (replay, as InstructGPT's mix of pretraining text; section 3.5)."""
        self._to_teach, newest = [], self._to_teach[-1]
        with self._lock:
            given = [a for a in self._given.values() if isinstance(a, Correction) and a.given and a.id != newest.id]
        latest = [*given, newest][-self.config.correction_batch :]
        asked = {question.id: question for question in self.store.questions({a.question_id for a in latest})}
        texts = [(asked[a.question_id].prompt, a.text) for a in latest]
        dialogues = encode_dialogues(self.tokenizer, texts, self.policy.config.max_position_embeddings)
        pad = self.policy.config.pad_token_id
        probe = language_batch(dialogues[-1:], pad)
        before = self._loss(probe)
        replay = random.Random(f"{self.seed} {newest.id}").sample(self._replay, len(self._replay))
        config = LanguageConfig(
            steps=self.config.correction_steps,
            learning_rate=self.config.correction_learning_rate,
            warmup=0.0,
            weight_decay=0.0,
        )
        share = self.config.correction_replay

        def batch_at(step: int) -> Batch:
            mixed = [replay[i % len(replay)] for i in range(step * share, (step + 1) * share)]
            return language_batch([*dialogues, *mixed], pad)

        self._changed = True
        for _ in train_language(self.policy, batch_at, config):
            pass
        self._say(Taught(self.ppo.steps_done, len(dialogues), before, self._loss(probe)))

    @torch.no_grad()
    def _loss(self, batch: Batch) -> float:
        device = next(self.policy.parameters()).device
        return language_loss(self.policy, *(tensor.to(device) for tensor in batch)).item()

    def _roll_back(self, answer_id: str, withdrawn: int) -> None:
        used = self._snapshots.restore(self._before.get(answer_id, self._start))
        self.ppo.beta = used.beta
        self.ppo.optimizer.state.clear()  # its moments belong to the steps that were undone
        self._now, self._changed = used, False
        given = self._reread()
        self.reward.relearn(given)
        self._to_teach = [due for due in self._to_teach if any(answer.id == due.id for _, answer in given)]
        with suppress(queue.Empty):  # the screen may take one meanwhile
            while True:  # they were written by the policy that is no more
                self._questions.get_nowait()
        self._say(RolledBack(self.ppo.steps_done, used.step, answer_id, withdrawn, self.labels))

    def _win_rate(self, step: int) -> WinRate:
        """The policy against the SFT model on prompts kept aside, in the eyes of the live reward model."""
        generator = step_generator(self.seed, step, salt=11)
        written = sample(self.policy, self.tokenizer, self._aside, self._sampling, generator)
        theirs = self.reward.scores(self.reward.anchor[: len(self._aside)])
        return WinRate(step, win_rate(self.reward.score(written).tolist(), list(theirs)))

    def _anchor(self, reward_model: PreTrainedModel) -> torch.Tensor:
        """Features of the SFT model's replies, which anchor the scale of scores; first those on the prompts aside.

        The replies are kept too: corrections are taught among them.
        """
        generator = step_generator(self.seed, 0, salt=12)
        prompts = [*self._aside, *self._prompts[:160]]
        written = sample(self.reference, self.tokenizer, prompts, self._sampling, generator)
        self._replay = [s.dialogue for s in written if not s.truncated] or [s.dialogue for s in written]
        return features_of(reward_model, [s.dialogue for s in written])

    def _options(self) -> Config:
        """The method's options, with the loop's sampling."""
        if self.config.group is not None:
            return replace(self.config.group, sampling=self._sampling)
        method, ppo = self.config.method, replace(self.config.ppo, sampling=self._sampling)
        steered = {"kl_target": ppo.kl_target, "kl_horizon": ppo.kl_horizon}  # DPO's β is no brake to steer
        return options_like(method, ppo, **({} if method == "online-dpo" else steered))

    # --- labels, state and events ---

    def _answered(self) -> list[RankedReplies]:
        """What the answers that the worker has taken in say of replies: what online DPO learns from directly."""
        given = [answer for answer in self.reward.answers if not isinstance(answer, Vote)]
        if new := [answer for answer in given if answer.id not in self._pairs]:
            asked = self.store.questions({answer.question_id for answer in new})
            read = encode_rankings(self.tokenizer, asked, new, self.policy.config.max_position_embeddings)
            self._pairs |= zip((answer.id for answer in new), read, strict=True)
        return [self._pairs[answer.id] for answer in given]

    def _reread(self) -> list[tuple[Question, Answer]]:
        """This person's answers in force, from the store; those that decide something, with their questions."""
        with self._lock:
            answers = self.store.answers(self.annotator)
            self._given = {key_of(answer): answer for answer in answers}
        given = [answer for answer in answers if answer.given]
        asked = {question.id: question for question in self.store.questions({a.question_id for a in given})}
        return [(asked[answer.question_id], answer) for answer in given]

    def _hand_over(self, request: _Learn | _Forget | _RollBack | _Reply) -> None:
        self._inbox.append(request)
        self._stir()
        if self._ending:  # it may have ended before it could look
            self._turn_away()

    def _turn_away(self) -> None:
        """Who still waits for a reply is told that none comes."""
        while self._inbox:
            request = self._inbox.popleft()
            if isinstance(request, _Reply):
                request.question.set_exception(InputError("this loop has ended; make a new one (run the cell again)"))

    def _change(self, state: LoopState) -> None:
        with self._lock:
            if self._state == "stopped" or (self._ending and state != "stopped"):
                raise InputError("this loop has ended; make a new one (run the cell again)")
            self._state = state
        self._say(StateChanged(state, self._message(state)))
        self._stir()

    def _message(self, state: LoopState) -> str:
        return MESSAGES[state].format(method=TITLES[self.config.method])

    def _check_alive(self) -> None:
        if self._ending:
            raise InputError("this loop has ended; make a new one (run the cell again)")

    def _stir(self) -> None:
        with self._lock:  # the worker must not say that it is idle in between
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
        self._say(StateChanged(self._state, self._message(self._state)))

    def _say(self, event: LiveEvent) -> None:
        with self._lock:
            self.history.append(event)
            callbacks = list(self._callbacks)
        for callback in callbacks:
            try:
                callback(event)
            except Exception as error:  # a broken listener must not end the training of the others
                traceback.print_exception(error)


def _split(prompts: Sequence[str], aside: int, seed: int) -> tuple[list[str], list[str]]:
    """Prompts to train and ask on, and at most a quarter of them (`aside`) to measure the win rate on."""
    shuffled = list(dict.fromkeys(prompts))
    random.Random(f"live {seed}").shuffle(shuffled)
    n = min(aside, len(shuffled) // 4) if len(shuffled) > 3 else 0
    return shuffled[n:], shuffled[:n] or shuffled
