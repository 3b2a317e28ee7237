"""A run: one folder in which the five stages are made once, kept, and resumed after an interruption.

    config.json          scenario (and a digest of it), profile, seed, threads, versions
    tokenizer/ base/ sft/ reward/ policy/     models, as transformers loads them
    feedback.db          questions and the simulated annotator's rankings: what the reward model learns from
    held_out.db          held-out questions with rankings free of noise: for measuring, never for training
    metrics/*.jsonl      one line a training step
    stages/*.json        how long each finished stage took; a stage without this file is not finished
    checkpoints/         training state of the stage that is being made
    replies.jsonl        the replies that the last evaluation judged
    summary.json         the numbers at the end

Each method loads what is there and makes what is not, earlier stages first. Batches are drawn from (seed, step) and a
checkpoint holds weights, moments and counters, so a run that was killed ends with the same numbers as an unbroken one
(on the same machine and number of threads, which the run remembers).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import shutil
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import tokenizers
import torch
import transformers
from torch import nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from . import __version__
from .annotators import SimulatedAnnotator
from .checkpoints import (
    load_training_state,
    publish,
    publish_model,
    read_json,
    save_training_state,
    write_json,
    write_text,
    writing,
)
from .config import Profile
from .config import profile as profile_named
from .errors import InputError
from .evaluation import distinct_n, gold_report, kl_per_reply, reward_accuracy, win_rate
from .judge import GoldJudge
from .language import make_optimizer, pretrain, step_generator, train_sft
from .models import (
    Critic,
    frozen_copy,
    load_language_model,
    load_reward_model,
    load_tokenizer,
    new_language_model,
    new_reward_model,
)
from .ppo import PPO, train_ppo
from .records import Interval, LossPoint, Question, Ranking, RewardPoint, StepStats
from .reward import encode_rankings, normalise, reward_score, train_reward_model
from .sampling import Sample, make_questions, sample
from .scenario import Scenario, load_scenario
from .store import FeedbackStore
from .text import encode_dialogues, encode_documents, train_tokenizer

Point = LossPoint | RewardPoint | StepStats
Record = TypeVar("Record", LossPoint, RewardPoint, StepStats)
Model = tuple[PreTrainedModel, PreTrainedTokenizerBase]

TOKENIZER_DOCUMENTS = 4_000  # enough text for a thousand merges
PROMPTS_PER_QUESTION = 2  # PPO practises on twice as many prompts as were ranked
QUESTION_CHUNK = 64  # prompts whose replies are sampled together
NORMALISING_REPLIES = 512
REPLIES_PER_PROMPT = 2  # in the evaluation
CHECKPOINTS = 20  # of each stage
HELD_OUT_ANNOTATOR = "simulated without noise"
BEFORE = {"bf16": False}  # options that a run of an earlier version does not know, and what it did
_SALT = {"train": 6, "held_out": 7, "sft": 8, "policy": 9}  # the trainers use 0 to 5


@dataclass(frozen=True)
class Stage:
    """One stage of a run: its bar's title, the stage before it, and the file or folder that it leaves."""

    name: str
    title: str
    needs: str | None
    leaves: str


STAGES = {
    stage.name: stage
    for stage in (
        Stage("pretrain", "1/5 Pretraining", None, "base"),
        Stage("sft", "2/5 SFT", "pretrain", "sft"),
        Stage("preferences", "3/5 Preferences", "sft", "feedback.db"),
        Stage("reward_model", "4/5 Reward model", "preferences", "reward"),
        Stage("ppo", "5/5 PPO", "reward_model", "policy"),
        Stage("evaluation", "Evaluation", "ppo", "summary.json"),
    )
}


class Run:
    """The folder of one run. Opening it makes the folder; the methods load each stage, or make it on the spot.

    `scenario` is the name of a shipped scenario or the path of a YAML file; `profile` a name, a `Profile`, or None for
    RLHF_LAB_PROFILE or "default"; `progress` any function with tqdm's arguments, or None for no bars. Raises InputError
    when the folder belongs to another scenario, profile or seed, or cannot be used.
    """

    def __init__(
        self,
        folder: str | Path,
        scenario: str | Path = "help_desk",
        profile: str | Profile | None = None,
        seed: int = 0,
        progress: Callable[..., Any] | None = tqdm,
    ) -> None:
        self.folder = Path(folder)
        self.scenario: Scenario = load_scenario(scenario)
        self.profile = profile if isinstance(profile, Profile) else profile_named(profile)
        self.seed = seed
        self._progress = progress or partial(tqdm, disable=True)
        self.config = self._open()

    @classmethod
    def default(
        cls, scenario: str | Path = "help_desk", profile: str | Profile | None = None, seed: int = 0, **options: Any
    ) -> Run:
        """The run that notebooks share: runs/<scenario>-<profile>-seed<seed> below the current folder.

        The environment variable RLHF_LAB_RUNS names another folder for `runs`.
        """
        chosen = profile if isinstance(profile, Profile) else profile_named(profile)
        name = f"{Path(scenario).stem}-{chosen.name}-seed{seed}"
        return cls(Path(os.environ.get("RLHF_LAB_RUNS") or "runs") / name, scenario, chosen, seed, **options)

    def __repr__(self) -> str:
        return f"<Run {self.folder}: {self.scenario.name}, {self.profile.name}, seed {self.seed}>"

    # --- the stages: load or make ---

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The byte-level BPE tokenizer of the scenario's text."""
        if not (self.folder / "tokenizer").exists():
            with self._alone(), writing(self.folder):
                self._make_tokenizer()
        return load_tokenizer(self.folder / "tokenizer")

    def base(self) -> Model:
        """The pretrained language model and its tokenizer: a fresh copy, yours to train."""
        return self._model("pretrain", load_language_model)

    def sft(self) -> Model:
        """The model after supervised fine-tuning, and its tokenizer: a fresh copy."""
        return self._model("sft", load_language_model)

    def preferences(self) -> tuple[list[Question], list[Ranking]]:
        """The questions that the simulated annotator ranked, and the rankings."""
        self._make("preferences")
        return self._ranked("feedback.db", self.annotator.name)

    def held_out_preferences(self) -> tuple[list[Question], list[Ranking]]:
        """Held-out questions ranked without noise, for measuring a reward model. Never train on them."""
        self._make("preferences")
        return self._ranked("held_out.db", HELD_OUT_ANNOTATOR)

    def reward(self) -> Model:
        """The reward model (a sequence classifier with one label) and its tokenizer: a fresh copy."""
        return self._model("reward_model", load_reward_model)

    def policy(self) -> Model:
        """The model after PPO, and its tokenizer: a fresh copy."""
        return self._model("ppo", load_language_model)

    def summary(self) -> dict[str, Any]:
        """The numbers of summary.json; all that is missing is made first."""
        self._make("evaluation")
        return read_json(self.folder / "summary.json")

    # --- metrics, as records ---

    def losses(self, stage: Literal["pretrain", "sft"]) -> list[LossPoint]:
        """The training curve of pretraining or SFT, a point a step."""
        if stage not in ("pretrain", "sft"):
            raise InputError(f"stage {stage!r} has no loss curve; use 'pretrain' or 'sft'")
        return self._points(stage, LossPoint)

    def reward_points(self) -> list[RewardPoint]:
        """The reward model's training curve, a point a step."""
        return self._points("reward_model", RewardPoint)

    def ppo_stats(self) -> list[StepStats]:
        """What each PPO step did, without its samples."""
        return self._points("ppo", StepStats)

    # --- the pieces ---

    @cached_property
    def judge(self) -> GoldJudge:
        """The gold judge: for evaluation and for simulated people, never for training."""
        return GoldJudge(self.scenario)

    @cached_property
    def annotator(self) -> SimulatedAnnotator:
        """The simulated person whose rankings the reward model learns from."""
        return SimulatedAnnotator(self.judge, noise=self.profile.preferences.noise, seed=self.seed)

    @cached_property
    def train_prompts(self) -> list[str]:
        """The prompts that PPO practises on; the first `profile.preferences.questions` are also the ranked ones."""
        n = PROMPTS_PER_QUESTION * self.profile.preferences.questions
        return self.scenario.prompts("train", n, self.seed)

    @cached_property
    def held_out_prompts(self) -> list[str]:
        """Every held-out prompt, the same for every seed."""
        return self.scenario.prompts("held_out", seed=0)

    def store(self) -> FeedbackStore:
        """The run's feedback store; a person's rankings may stand there beside the simulated annotator's."""
        return FeedbackStore(self.folder / "feedback.db")

    # --- making ---

    def _make(self, name: str) -> None:
        stage = STAGES[name]
        if self._done(stage):
            return
        if stage.needs:
            self._make(stage.needs)
        with self._alone(), _threads(self.config["threads"]), writing(self.folder):
            if not self._done(stage):  # another process may have finished it in the meantime
                with _Job(self, stage) as job:
                    getattr(self, f"_make_{name}")(job)

    def _make_tokenizer(self) -> None:
        if not (self.folder / "tokenizer").exists():
            texts = self.scenario.corpus(min(TOKENIZER_DOCUMENTS, self.profile.documents), self.seed)
            tokenizer = train_tokenizer(texts, self.profile.model.vocab_size)
            publish(self.folder / "tokenizer", lambda path: tokenizer.save_pretrained(path))

    def _make_pretrain(self, job: _Job) -> None:
        self._make_tokenizer()
        tokenizer, config = self.tokenizer(), self.profile.pretraining
        stream = encode_documents(tokenizer, self.scenario.corpus(self.profile.documents, self.seed))
        model = new_language_model(self.profile.model, tokenizer, self.seed)
        optimizer = make_optimizer(model, config.learning_rate, config.weight_decay)
        job.train(
            {"model": model}, optimizer, config.steps,
            lambda state: pretrain(model, stream, config, self.seed, optimizer, state["step"]),
        )  # fmt: skip
        publish_model(model, tokenizer, self.folder / "base")

    def _make_sft(self, job: _Job) -> None:
        (model, tokenizer), config = self.base(), self.profile.sft
        pairs = [(d.prompt, d.reply) for d in self.scenario.demonstrations(self.profile.demonstrations, self.seed)]
        dialogues = encode_dialogues(tokenizer, pairs, self.profile.model.context)
        optimizer = make_optimizer(model, config.learning_rate, config.weight_decay)
        job.train(
            {"model": model}, optimizer, config.steps,
            lambda state: train_sft(
                model, dialogues, tokenizer.pad_token_id, config, self.seed, optimizer, state["step"]
            ),
        )  # fmt: skip
        publish_model(model, tokenizer, self.folder / "sft")

    def _make_preferences(self, job: _Job) -> None:
        config = self.profile.preferences
        ranked = self.train_prompts[: config.questions]
        held_out = self.held_out_prompts[: config.held_out_questions]
        noiseless = SimulatedAnnotator(self.judge, noise=0.0, seed=self.seed, name=HELD_OUT_ANNOTATOR)
        job.expect(len(ranked) + len(held_out))
        self._collect(job, "train", "feedback.db", ranked, self.annotator)
        self._collect(job, "held_out", "held_out.db", held_out, noiseless)

    def _make_reward_model(self, job: _Job) -> None:
        (sft, tokenizer), config = self.sft(), self.profile.reward
        data = encode_rankings(tokenizer, *self.preferences(), self.profile.model.context)
        model = new_reward_model(sft, config.pooling, self.seed)
        optimizer = make_optimizer(model, config.learning_rate, config.weight_decay)
        total = config.epochs * math.ceil(len(data) / config.questions_per_batch)
        job.train(
            {"model": model}, optimizer, total,
            lambda state: train_reward_model(model, data, config, self.seed, optimizer, state["step"]),
        )  # fmt: skip
        normalise(model, [d for item in data for d in item.dialogues][:NORMALISING_REPLIES])
        publish_model(model, tokenizer, self.folder / "reward")

    def _make_ppo(self, job: _Job) -> None:
        (policy, tokenizer), (reward, _) = self.sft(), self.reward()
        trainer = PPO(
            policy, frozen_copy(policy), Critic(reward), reward_score(reward), tokenizer, self.profile.ppo, self.seed
        )

        def steps(state: Mapping[str, Any]) -> Iterator[StepStats]:
            trainer.steps_done, trainer.beta = state["step"], state.get("beta", trainer.beta)
            return train_ppo(trainer, self.train_prompts)

        modules = {"policy": trainer.policy, "critic": trainer.critic}
        job.train(modules, trainer.optimizer, self.profile.ppo.steps, steps, lambda: {"beta": trainer.beta})
        publish_model(policy, tokenizer, self.folder / "policy")

    def _make_evaluation(self, job: _Job) -> None:
        (sft, tokenizer), (policy, _), (reward, _) = self.sft(), self.policy(), self.reward()
        job.expect(3)
        written = {"sft": self._evaluation_replies("sft", sft, tokenizer)}
        job.advance()
        written["ppo"] = self._evaluation_replies("policy", policy, tokenizer)
        job.advance()
        temperature = self.profile.sampling.temperature or 1.0
        kl = kl_per_reply(policy, sft, written["ppo"], temperature)
        held_out = encode_rankings(tokenizer, *self.held_out_preferences(), self.profile.model.context)
        numbers = self._numbers(written, reward_accuracy(reward, held_out), kl)
        job.advance()
        seconds = {name: read_json(self._marker(name))["seconds"] for name in STAGES if name != "evaluation"}
        seconds["evaluation"] = job.seconds
        write_json(self.folder / "summary.json", {"seconds": seconds | {"total": sum(seconds.values())}} | numbers)
        shutil.rmtree(self.folder / "checkpoints", ignore_errors=True)

    def _collect(self, job: _Job, split: str, file: str, prompts: Sequence[str], annotator: SimulatedAnnotator) -> None:
        """Samples the SFT model's replies to each prompt and stores them with the annotator's ranking.

        Identifiers depend on the run and the place alone, so doing an interrupted stage again adds nothing twice.
        """
        (model, tokenizer), writer = self.sft(), f"{self._label}/sft"
        with FeedbackStore(self.folder / file) as store:
            for chunk, start in enumerate(range(0, len(prompts), QUESTION_CHUNK)):
                part = prompts[start : start + QUESTION_CHUNK]
                ids = self._ids(f"{split} {chunk}")
                generator = step_generator(self.seed, chunk, _SALT[split])
                k, sampling = self.profile.preferences.candidates, self.profile.sampling
                for question in make_questions(model, tokenizer, part, k, sampling, generator, writer, ids):
                    store.add_question(question)
                    store.append(replace(annotator.rank(question), id=ids()))
                job.advance(len(part))

    def _ids(self, label: str) -> Callable[[], str]:
        """A source of identifiers that depend on this run's settings and `label` alone."""
        settings = {key: self.config[key] for key in ("scenario_sha256", "profile", "seed")}
        space = uuid.uuid5(uuid.NAMESPACE_OID, f"{json.dumps(settings, sort_keys=True)} {label}")
        numbers = iter(range(10**9))
        return lambda: uuid.uuid5(space, str(next(numbers))).hex

    def _evaluation_replies(
        self, name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
    ) -> list[Sample]:
        prompts = self.held_out_prompts * REPLIES_PER_PROMPT
        return sample(model, tokenizer, prompts, self.profile.sampling, step_generator(self.seed, 0, _SALT[name]))

    def _numbers(self, written: Mapping[str, list[Sample]], accuracy: Interval, kl: Interval) -> dict[str, Any]:
        """The summary's numbers; leaves the judged replies in replies.jsonl."""
        reports = {name: gold_report(self.judge, samples) for name, samples in written.items()}
        scores = {name: [self.judge.score(s.prompt, s.text) for s in samples] for name, samples in written.items()}
        wins = win_rate(scores["ppo"], scores["sft"], [s.prompt for s in written["sft"]])
        lines = [
            {"prompt": s.prompt, "model": name, "reply": s.text, "gold": score}
            for name, samples in written.items()
            for s, score in zip(samples, scores[name], strict=True)
        ]
        write_text(
            self.folder / "replies.jsonl", "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        )
        attributes = ("right", "polite", "concise", "fluent", "addressed", "truncated")
        return {
            "pretrain_loss": _final_loss(self.losses("pretrain")),
            "sft_loss": _final_loss(self.losses("sft")),
            "reward_accuracy": accuracy.value,
            "gold": {name: report["score"] for name, report in reports.items()},
            "win_rate": wins.value,
            "kl": kl.value,
            **{key: {name: report[key] for name, report in reports.items()} for key in attributes},
            "distinct2": {name: distinct_n([s.text for s in samples]) for name, samples in written.items()},
            "reward_accuracy_interval": asdict(accuracy),
            "win_rate_interval": asdict(wins),
            "kl_interval": asdict(kl),
        }

    # --- files ---

    @property
    def _label(self) -> str:
        return f"{self.scenario.name}-{self.profile.name}-seed{self.seed}"

    def _marker(self, name: str) -> Path:
        return self.folder / "stages" / f"{name}.json"

    def _done(self, stage: Stage) -> bool:
        return self._marker(stage.name).exists() and (self.folder / stage.leaves).exists()

    def _model(self, name: str, load: Callable[[Path], Model]) -> Model:
        self._make(name)
        folder = self.folder / STAGES[name].leaves
        try:
            return load(folder)
        except InputError as error:
            raise InputError(f"{error}; or delete {folder}, and it is made again") from None

    def _ranked(self, file: str, annotator: str) -> tuple[list[Question], list[Ranking]]:
        with FeedbackStore(self.folder / file) as store:
            rankings = store.rankings(annotator)
            asked = {ranking.question_id for ranking in rankings}
            return [question for question in store.questions() if question.id in asked], rankings

    def _points(self, name: str, record: type[Record]) -> list[Record]:
        self._make(name)
        return _read_metrics(self.folder / "metrics" / f"{name}.jsonl", record)

    def _open(self) -> dict[str, Any]:
        """Makes the folder and its config.json, or compares with the one that is there."""
        path, wanted = self.folder / "config.json", self._settings()
        with writing(self.folder):
            if self.folder.exists() and not self.folder.is_dir():
                raise InputError(f"{self.folder}: is a file; name a folder for the run")
            self.folder.mkdir(parents=True, exist_ok=True)
            if path.exists():
                return _compared(path, read_json(path), wanted)
            if any(not item.name.startswith(".") for item in self.folder.iterdir()):
                raise InputError(f"{self.folder}: is neither empty nor the folder of a run; name a new folder")
            for name in ("metrics", "stages"):
                (self.folder / name).mkdir(exist_ok=True)
        write_json(path, wanted)
        return wanted

    def _settings(self) -> dict[str, Any]:
        text = json.dumps(asdict(self.scenario), default=sorted)  # comments and layout of the file do not matter
        # the live loop starts where a run ends: its options change no stage
        return {
            "scenario": self.scenario.name,
            "scenario_sha256": hashlib.sha256(text.encode()).hexdigest(),
            "profile": {name: value for name, value in asdict(self.profile).items() if name != "live"},
            "seed": self.seed,
            "threads": torch.get_num_threads(),
            "versions": {
                "python": platform.python_version(),
                "rlhf_lab": __version__,
                "tokenizers": tokenizers.__version__,
                "torch": torch.__version__,
                "transformers": transformers.__version__,
            },
        }

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Only one process at a time makes a stage here. The lock is SQLite's, so it dies with its process."""
        with closing(self._lock()):
            yield

    def _lock(self) -> sqlite3.Connection:
        try:
            connection = sqlite3.connect(self.folder / ".lock.db", timeout=0, isolation_level=None)
            connection.execute("BEGIN EXCLUSIVE")
            return connection
        except sqlite3.OperationalError as error:
            busy = "another process is making a stage there; wait for it, or stop it"
            problem = busy if "locked" in str(error) else f"cannot be written: {error}; make it writable or make room"
            raise InputError(f"{self.folder}: {problem}") from None


class _Job:
    """One stage being made: its bar, its clock, its training loop with metrics and checkpoints."""

    def __init__(self, run: Run, stage: Stage) -> None:
        self.run, self.stage = run, stage
        self._began, self._earlier = time.perf_counter(), 0.0
        self._metrics = run.folder / "metrics" / f"{stage.name}.jsonl"
        self._checkpoint = run.folder / "checkpoints" / f"{stage.name}.safetensors"

    def __enter__(self) -> _Job:
        self.bar = self.run._progress(desc=f"{self.stage.title:<16}", total=None, unit="step", mininterval=0.5)
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        self.bar.close()
        if kind is None:
            write_json(self.run._marker(self.stage.name), {"seconds": self.seconds})
            self._checkpoint.unlink(missing_ok=True)

    @property
    def seconds(self) -> float:
        """Spent on this stage, in earlier sittings too (up to their last checkpoint)."""
        return self._earlier + time.perf_counter() - self._began

    def expect(self, total: int, done: int = 0) -> None:
        self.bar.total = total
        self.bar.update(done)
        self.bar.refresh()

    def advance(self, n: int = 1) -> None:
        self.bar.update(n)

    def train(
        self,
        modules: Mapping[str, nn.Module],
        optimizer: torch.optim.Optimizer,
        total: int,
        steps: Callable[[Mapping[str, Any]], Iterator[Point]],
        counters: Callable[[], dict[str, Any]] = dict,
    ) -> None:
        """Runs `steps(state)` from the last checkpoint to its end, with a line of metrics a step."""
        state = load_training_state(self._checkpoint, modules, optimizer) or {"step": 0, "seconds": 0.0}
        self._earlier = state["seconds"]
        _cut_metrics(self._metrics, state["step"])
        self.expect(total, state["step"])
        every = max(1, total // CHECKPOINTS)
        with open(self._metrics, "a", encoding="utf-8") as file:
            for point in steps(state):
                file.write(json.dumps(_as_json(point, self._earlier), ensure_ascii=False) + "\n")
                self._show(point)
                if point.step % every == 0 or point.step == total:
                    file.flush()
                    os.fsync(file.fileno())
                    saved = counters() | {"step": point.step, "seconds": self.seconds}
                    save_training_state(self._checkpoint, modules, optimizer, saved)

    def _show(self, point: Point) -> None:
        shown = {"reward": point.reward, "kl": point.kl} if isinstance(point, StepStats) else {"loss": point.loss}
        self.bar.set_postfix({name: f"{value:.2f}" for name, value in shown.items()}, refresh=False)
        self.bar.update(1)


# --- small things -----------------------------------------------------------------------------------------------------


@contextmanager
def _threads(n: int) -> Iterator[None]:
    """Computes with n threads: sums depend on how they are split, so a run keeps the number it began with."""
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _compared(path: Path, found: Any, wanted: dict[str, Any]) -> dict[str, Any]:
    """The config that was found, if it is of the wanted run; InputError naming the first difference otherwise."""
    if not isinstance(found, dict) or set(found) != set(wanted) or not isinstance(found["threads"], int):
        raise InputError(f"{path}: is not the config of a run; name a new folder")
    for key in ("scenario", "scenario_sha256", "profile", "seed"):
        for name, there, here in _differences(key, found[key], wanted[key]):
            if key == "scenario_sha256":
                raise InputError(f"{path}: the text of scenario {found['scenario']!r} was another; name a new folder")
            raise InputError(
                f"{path}: the run there has {name} {there!r}, not {here!r}; name another folder for this one"
            )
    return found


def _differences(name: str, there: Any, here: Any) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(there, dict) and isinstance(here, dict):
        for key in dict.fromkeys((*there, *here)):
            yield from _differences(f"{name}.{key}", there.get(key, BEFORE.get(key)), here.get(key))
    elif there != here:
        yield name, there, here


def _as_json(point: Point, earlier: float) -> dict[str, Any]:
    """A point as JSON data. Trainers' clocks start when they do; `earlier` seconds had passed before."""
    if isinstance(point, LossPoint):
        point = replace(point, seconds=point.seconds + earlier)
    data = {name: value for name, value in vars(point).items() if name != "samples"}
    return {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in data.items()}


def _cut_metrics(path: Path, steps: int) -> None:
    """Leaves the first `steps` lines of a metrics file: those that a checkpoint stands behind."""
    if steps == 0:
        return path.unlink(missing_ok=True)
    lines = path.read_text(encoding="utf-8").splitlines()[:steps] if path.exists() else []
    if len(lines) < steps:
        fix = f"delete {path.parents[1] / 'checkpoints'}, and the stage is made again"
        raise InputError(f"{path}: ends before line {steps}, from which the checkpoint goes on; {fix}")
    write_text(path, "".join(f"{line}\n" for line in lines))


def _read_metrics(path: Path, record: type[Record]) -> list[Record]:
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return [
            record(**{k: math.nan if v is None and k != "validation_loss" else v for k, v in r.items()}) for r in rows
        ]
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise InputError(f"metrics {path}: cannot be read: {error}; delete the run's folder to make it again") from None


def _final_loss(points: Sequence[LossPoint]) -> float:
    """The mean loss of the last tenth of the steps: one batch alone says little."""
    last = points[-max(1, len(points) // 10) :]
    return sum(point.loss for point in last) / len(last)
