"""PersonalReward: what the live reward model has learned of one person, and what each answer did to it.

The reward model's trunk stays as it is; `TasteModel` learns a head for this person on its features. Scores are on a
scale where the SFT model's replies have mean 0 and standard deviation 1 (the anchor), whatever the head.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .annotators import SimulatedAnnotator, population
from .config import LiveConfig
from .records import Answer, Candidate, Correction, Effect, Question, RewardUpdate, Vote, order_of
from .reward import (
    PairEvidence,
    TasteModel,
    features_of,
    fit_head,
    pair_evidence,
    pairs_of_tiers,
    stated_order,
    taste_prior,
    tier_indices,
)
from .sampling import Sample
from .text import encode_dialogues

if TYPE_CHECKING:
    from .runs import Run

Prior = tuple[torch.Tensor, torch.Tensor]  # mean (d,) and covariance (d, d) of the reward head
Key = tuple[str, str, str]  # kind, question id, target: a later answer with the same replaces the earlier


def key_of(answer: Answer) -> Key:
    return answer.kind, answer.question_id, answer.target


class Learned(NamedTuple):
    """One answer as the reward model took it in. `shown` is the question that its effect is told of."""

    shown: Question
    answer: Answer
    features: torch.Tensor  # (k, d) of the shown replies
    evidence: PairEvidence

    @property
    def order(self) -> tuple[tuple[str, ...], ...]:
        if isinstance(self.answer, Correction):
            return tuple((candidate.id,) for candidate in self.shown.candidates)
        return order_of(self.answer)


class PersonalReward:
    """The reward of one person: learns answers, takes them back, scores replies.

    `anchor` holds the features (n, d) of SFT replies that fix the scale; `config` says how many earlier questions'
    effects are told (`effects`) and over how many answers the agreement is averaged (`window`).
    """

    def __init__(
        self,
        reward_model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        prior: Prior,
        anchor: torch.Tensor,
        config: LiveConfig,
    ) -> None:
        self.reward_model, self.tokenizer, self.anchor, self.config = reward_model, tokenizer, anchor, config
        self.taste = TasteModel(*prior)
        self._learned: dict[Key, Learned] = {}
        self._agreements: dict[str, float] = {}  # answer id → agreement before it was learned

    # --- learning ---

    @property
    def answers(self) -> list[Answer]:
        """The answers that it has learned and not taken back, the latest last."""
        return [entry.answer for entry in self._learned.values()]

    def learn(self, question: Question, answer: Answer) -> RewardUpdate:
        """Learns one answer, in place of an earlier one to the same question, and says what that did."""
        began = time.perf_counter()
        learned = self.read(question, answer)
        shown = self._shown(learned)
        before = [self.scores(entry.features) for entry in shown]
        self._unlearn(learned)
        agreement = _agreement(learned.evidence, self.taste.weight)  # of a model that does not know the answer yet
        if agreement is not None:
            self._agreements[answer.id] = agreement
        self.taste.learn_all({answer.id: learned.evidence})
        self._learned[key_of(answer)] = learned
        return self._update(answer, agreement, shown, before, began)

    def forget(self, answer: Answer, back: tuple[Question, Answer] | None = None) -> RewardUpdate | None:
        """Takes an answer back, as if it had never been given; `back` is the earlier one that is in force again.

        An `answer` that decides nothing takes back whatever was learned of its question. None when nothing changes,
        for a later answer has taken its place.
        """
        began = time.perf_counter()
        latest, again = self._learned.get(key_of(answer)), self.read(*back) if back is not None else None
        told = latest or again
        if told is None or (latest is not None and answer.given and latest.answer.id != answer.id):
            return None
        shown = self._shown(told)
        before = [self.scores(entry.features) for entry in shown]
        self._unlearn(told)
        if again is not None:
            self._learned[key_of(answer)] = again
            self.taste.learn_all({again.answer.id: again.evidence})
        return self._update(answer, None, shown, before, began)

    def _unlearn(self, entry: Learned) -> None:
        """Takes back what was learned of this entry's question, if anything was."""
        earlier = self._learned.pop(key_of(entry.answer), None)
        if earlier is not None:
            self.taste.forget(earlier.answer.id)
            self._agreements.pop(earlier.answer.id, None)

    def relearn(self, given: Iterable[tuple[Question, Answer]]) -> None:
        """Starts from the prior again and learns these answers at once."""
        kept = {entry.answer.id: entry for entry in self._learned.values()}
        entries = [kept.get(answer.id) or self.read(question, answer) for question, answer in given]
        self._learned = {key_of(entry.answer): entry for entry in entries}
        known = {entry.answer.id for entry in entries}
        self._agreements = {key: value for key, value in self._agreements.items() if key in known}
        self.taste.forget_all()
        if entries:
            self.taste.learn_all({entry.answer.id: entry.evidence for entry in entries})

    def read(self, question: Question, answer: Answer) -> Learned:
        """What one answer says to the reward model (the module `rlhf_lab.live` lists it by form)."""
        if isinstance(answer, Vote):
            (candidate,) = (c for c in question.candidates if c.id == answer.candidate)
            shown = Question(question.id, question.prompt, (candidate,))
            features = self.features(shown)
            average = self.anchor.mean(0, keepdim=True)
            pair = (0, 1, False) if answer.up else (1, 0, False)
            return Learned(shown, answer, features, pair_evidence(torch.cat([features, average]), [pair]))
        *_, tiers, margin = stated_order(question, answer)
        if isinstance(answer, Correction):
            original = next(c for c in question.candidates if c.id == answer.candidate)
            question = replace(question, candidates=(Candidate(answer.id, answer.text, "you"), original))
        features = self.features(question)
        return Learned(question, answer, features, pair_evidence(features, pairs_of_tiers(tiers), margin))

    def _shown(self, learned: Learned) -> list[Learned]:
        """This answer and the last few before it: those whose change of scores is told."""
        others = [entry for key, entry in self._learned.items() if key != key_of(learned.answer)]
        return [learned, *reversed(others[max(0, len(others) - self.config.effects) :])]

    def _update(
        self,
        answer: Answer,
        agreement: float | None,
        shown: Sequence[Learned],
        before: Sequence[tuple[float, ...]],
        began: float,
    ) -> RewardUpdate:
        window = list(self._agreements.values())[-self.config.window :]
        return RewardUpdate(
            len(self._learned),
            answer.id,
            agreement,
            sum(window) / len(window) if window else None,
            self.config.window,
            tuple(Effect(e.shown, e.order, b, self.scores(e.features)) for e, b in zip(shown, before, strict=True)),
            time.perf_counter() - began,
            answer.kind,
        )

    # --- scoring ---

    def score(self, samples: Sequence[Sample]) -> torch.Tensor:
        """Scores (N,) of replies: what PPO climbs."""
        return self.scaled(features_of(self.reward_model, [s.dialogue for s in samples]))

    def scores(self, features: torch.Tensor) -> tuple[float, ...]:
        """Scores from features (k, d), as plain numbers."""
        return tuple(self.scaled(features).tolist())

    def scaled(self, features: torch.Tensor) -> torch.Tensor:
        """Scores (k,) from features (k, d), on the anchor's scale."""
        anchor = self.taste.score(self.anchor)
        return (self.taste.score(features) - anchor.mean()) / (anchor.std() + 1e-6)

    def features(self, question: Question) -> torch.Tensor:
        """What the reward head reads of each reply, (k, d)."""
        pairs = [(question.prompt, candidate.text) for candidate in question.candidates]
        room = self.reward_model.config.max_position_embeddings
        return features_of(self.reward_model, encode_dialogues(self.tokenizer, pairs, room))


def _agreement(evidence: PairEvidence, weight: torch.Tensor) -> float | None:
    """The share of strict pairs that a head orders as the person did; None when there is none."""
    strict = evidence.differences[evidence.targets == 1]
    return (strict @ weight > 0).double().mean().item() if len(strict) else None


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
