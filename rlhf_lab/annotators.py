"""Simulated people: they read the gold judge's verdict, with a taste of their own, noise and stated biases, and rank.

Only their rankings leave this module for training. A simulated person stands in for a real one in headless runs, and
lets a lesson ask what a reward model makes of people who disagree, tire or fall for length.
"""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .errors import InputError
from .judge import GoldJudge
from .records import Question, Ranking

if TYPE_CHECKING:
    from .store import FeedbackStore


@dataclass
class SimulatedAnnotator:
    """Ranks by gold verdict × taste + biases + noise, all in units of the gold score.

    `taste` replaces the judge's weights of some attributes (correct, safe, polite, concise, fluent; negative for a
    person who dislikes it). `noise` is the standard deviation of the error of each impression; replies whose
    impressions differ by less than `tie_below` are tied. `length_bias` is added for every ten words, `position_bias`
    for the reply shown first.
    """

    judge: GoldJudge
    noise: float = 0.35
    seed: int = 0
    name: str = "simulated"
    taste: dict[str, float] = field(default_factory=dict)
    tie_below: float = 0.05
    length_bias: float = 0.0
    position_bias: float = 0.0

    def __post_init__(self) -> None:
        unknown = set(self.taste) - set(self.judge.weights)
        if unknown:
            raise InputError(
                f"taste {sorted(unknown)} of {self.name!r}: the attributes are {', '.join(self.judge.weights)}"
            )
        if self.noise < 0 or self.tie_below < 0:
            raise InputError(f"annotator {self.name!r}: noise and tie_below must be 0 or more")

    def impression(self, prompt: str, reply: str) -> float:
        """What this person thinks of a reply, before noise."""
        verdict, weights = self.judge.verdict(prompt, reply), self.judge.weights | self.taste
        value = weights["correct"] * (verdict.correct or 0.0) + weights["safe"] * (verdict.safe or 0.0)
        value += weights["fluent"] * verdict.fluent
        if verdict.addressed or verdict.polite < 0:
            value += weights["polite"] * verdict.polite
        if verdict.addressed:
            value += weights["concise"] * verdict.concise
        return value + self.length_bias * len(reply.split()) / 10

    def rank(self, question: Question) -> Ranking:
        """This person's ranking of the question: the same for the same seed, prompt and replies."""
        rng = random.Random(f"{self.seed} {question.prompt} {[c.text for c in question.candidates]}")
        shown = rng.sample(question.candidates, len(question.candidates))
        felt = {
            candidate.id: self.impression(question.prompt, candidate.text)
            + rng.gauss(0, self.noise)
            + (self.position_bias if candidate is shown[0] else 0.0)
            for candidate in shown
        }
        return Ranking(
            question.id,
            tiers(felt, self.tie_below),
            self.name,
            tuple(candidate.id for candidate in shown),
            seconds=round(rng.uniform(3, 20), 1),
        )

    def rank_all(self, questions: Sequence[Question]) -> list[Ranking]:
        """One ranking a question."""
        return [self.rank(question) for question in questions]


def tiers(values: dict[str, float], tie_below: float = 0.0) -> tuple[tuple[str, ...], ...]:
    """Keys in order of their values, best first; neighbours closer than `tie_below` share a tier."""
    ordered = sorted(values, key=values.__getitem__, reverse=True)
    result: list[list[str]] = []
    for key in ordered:
        if result and values[result[-1][-1]] - values[key] < tie_below:
            result[-1].append(key)
        else:
            result.append([key])
    return tuple(tuple(tier) for tier in result)


TASTES = {  # what simulated people want of each attribute, from the least to the most
    "correct": (-0.5, 2.5),
    "safe": (-0.5, 2.5),
    "polite": (-1.5, 1.5),
    "concise": (-1.5, 1.5),
    "fluent": (0.0, 1.5),
}


def population(judge: GoldJudge, n: int, noise: float = 0.35, seed: int = 0) -> list[SimulatedAnnotator]:
    """n simulated people of different tastes: what each wants of every attribute is drawn from `TASTES`.

    They stand for "people in general" in the live loop's prior. Most want facts, some do not care; they disagree
    about manners and length as people do. Every second one is the opposite of the one before, so that the group as a
    whole leans to neither side by the luck of a draw.
    """
    rng = random.Random(f"population {seed}")
    tastes: list[dict[str, float]] = []
    for i in range(n):
        if i % 2:
            tastes.append({name: sum(TASTES[name]) - wanted for name, wanted in tastes[-1].items()})
        else:
            tastes.append({name: rng.uniform(*between) for name, between in TASTES.items()})
    return [SimulatedAnnotator(judge, noise, seed * 1_000 + i, f"person {i + 1}", t) for i, t in enumerate(tastes)]


def answer_as_configured(
    questions: Sequence[Question], store: FeedbackStore, annotator: str, simulated: SimulatedAnnotator
) -> str:
    """Who answers `questions` in a notebook: `annotator`, a person, unless RLHF_LAB_ANNOTATOR=simulated.

    Then `simulated` answers at once those that it has not, under its own name, so that its labels are never taken for a
    person's. Returns the name under which the answers stand in `store`. Raises InputError for another value.
    """
    configured = os.environ.get("RLHF_LAB_ANNOTATOR", "")
    if not configured:
        return annotator
    if configured != "simulated":
        raise InputError(
            f"RLHF_LAB_ANNOTATOR is {configured!r}; set it to 'simulated', or leave it out to answer yourself"
        )
    answered = store.answered(simulated.name)
    for question in questions:
        store.add_question(question)
        if question.id not in answered:
            store.append(simulated.rank(question))
    return simulated.name
