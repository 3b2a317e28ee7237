"""How many rankings until the live reward model knows a person of a different taste?

    python benchmarks/live_taste.py RUN_FOLDER...

For each run folder (made by `rlhf-lab run --profile default --seed N`) and each of five simulated people, the reward
head starts from the population prior and learns 0, 5, 10, 15 and 25 of the person's own four-way rankings. Measured:
the share of strict pairs of the person's rankings on other questions that it then orders as they did. The people are
noisy, so nobody could reach 1: "ceiling" is what the person's own noiseless opinion agrees with their rankings.
The population that makes the prior has none of these five in it, and all five differ from the annotator who taught
the reward model.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import rlhf_lab  # before torch: it sets how threads wait

# isort: split
import torch

from rlhf_lab.annotators import SimulatedAnnotator
from rlhf_lab.evaluation import bootstrap_interval
from rlhf_lab.language import step_generator
from rlhf_lab.personal import population_prior
from rlhf_lab.records import Question, comparisons_of
from rlhf_lab.reward import TasteModel, features_of, pairs_of_tiers, tier_indices
from rlhf_lab.runs import Run
from rlhf_lab.sampling import make_questions
from rlhf_lab.text import encode_dialogues

COUNTS = (0, 5, 10, 15, 25)
PEOPLE = {
    "blunt and long, facts hardly matter": {"polite": -1.0, "concise": -0.7, "correct": 0.3, "safe": 0.3},
    "blunt and short": {"polite": -1.5, "concise": 1.0, "correct": 1.0, "safe": 1.0},
    "warm and long, facts do not matter": {"polite": 1.0, "concise": -1.5, "correct": 0.0, "safe": 0.0},
    "long and right": {"polite": 0.2, "concise": -1.0, "correct": 2.0, "safe": 2.0},
    "blunt, long, right and reckless": {"polite": -1.0, "concise": -1.0, "correct": 2.0, "safe": -1.0},
}


def agreement(taste: TasteModel, features, pairs) -> float:
    hits = []
    for own, of_question in zip(features, pairs, strict=True):
        scores = taste.score(own)
        hits += [float(scores[better] > scores[worse]) for better, worse, tie in of_question if not tie]
    return sum(hits) / len(hits)


def ceiling(person: SimulatedAnnotator, questions: list[Question]) -> float:
    hits = []
    for question in questions:
        for pair in comparisons_of(question, person.rank(question)):
            if not pair.tie:
                ours, theirs = (person.impression(question.prompt, text) for text in (pair.chosen, pair.rejected))
                hits.append(1.0 if ours > theirs else 0.5 if ours == theirs else 0.0)
    return sum(hits) / len(hits)


def measure(folder: str) -> list[dict]:
    """One row a person: agreement after each number of rankings, on questions that no stage of the run has asked."""
    config = json.loads((Path(folder) / "config.json").read_text())
    run = Run(folder, profile="default", seed=config["seed"])
    sft, tokenizer = run.sft()
    reward, _ = run.reward()
    prior = population_prior(run, run.profile.live, run.seed)
    asked = {question.prompt for question in run.preferences()[0]}
    fresh = [prompt for prompt in run.train_prompts if prompt not in asked][:225]
    questions = make_questions(sft, tokenizer, fresh, 4, run.profile.sampling, step_generator(run.seed, 0, salt=20))
    texts = [(q.prompt, c.text) for q in questions for c in q.candidates]
    features = features_of(reward, encode_dialogues(tokenizer, texts)).split([len(q.candidates) for q in questions])
    rows = []
    for name, taste in PEOPLE.items():
        person = SimulatedAnnotator(run.judge, noise=0.35, seed=77, name=name, taste=taste)
        pairs = [pairs_of_tiers(tier_indices(question, person.rank(question))) for question in questions]
        model = TasteModel(*prior)
        row = {"seed": run.seed, "person": name, "ceiling": ceiling(person, questions[25:])}
        for n in range(max(COUNTS) + 1):
            if n in COUNTS:
                row[n] = agreement(model, features[25:], pairs[25:])
            if n < max(COUNTS):
                model.learn(str(n), features[n], pairs[n])
        rows.append(row)
    return rows


def main() -> None:
    torch.set_num_threads(1)
    rows = [row for folder in sys.argv[1:] for row in measure(folder)]
    columns = [*COUNTS, "ceiling"]
    print(f"rlhf_lab {rlhf_lab.__version__}, {len({row['seed'] for row in rows})} seeds\n")
    print("| person | " + " | ".join(map(str, columns)) + " |\n|" + " --- |" * (len(columns) + 1))
    for name in PEOPLE:
        own = [row for row in rows if row["person"] == name]
        print(f"| {name} | " + " | ".join(f"{sum(r[c] for r in own) / len(own):.3f}" for c in columns) + " |")
    for seed in sorted({row["seed"] for row in rows}):
        own = [row for row in rows if row["seed"] == seed]
        print(
            f"| *all five, seed {seed}* | "
            + " | ".join(f"{sum(r[c] for r in own) / len(own):.3f}" for c in columns)
            + " |"
        )
    intervals = {c: bootstrap_interval([r[c] for r in rows], clusters=[r["seed"] for r in rows]) for c in columns}
    print(
        "| **all, 95% interval over seeds** | "
        + " | ".join(f"{i.value:.3f} [{i.low:.3f}, {i.high:.3f}]" for i in intervals.values())
        + " |"
    )


if __name__ == "__main__":
    main()
