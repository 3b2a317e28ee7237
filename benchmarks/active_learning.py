"""How many labels until the reward model knows a new person, when questions are chosen instead of drawn by chance?

    python benchmarks/active_learning.py RUN_FOLDER... [--people 24] [--labels 60] [--replies 2] [--json FILE]

For each run folder (made by `rlhf-lab run --profile default --seed N`) and each simulated person (a taste drawn as
`rlhf_lab.annotators.population` draws it, noise as in the preference stage): 400 of the run's questions wait, the
reward head starts from the live loop's prior, and each strategy of `rlhf_lab.selection` asks one question after
another. Measured after each label: the share of held-out pairs in the order of the person's own noiseless opinion
(pairs that they think equal left out). "Labels to 80%" counts the labels until that share is 80% and stays so for
three labels; it is only defined for people whom the head reaches 80% for when it has learned all 400 answers, and is
the number of labels asked plus one where that did not happen. Intervals: bootstrap over people.
"""

from __future__ import annotations

import argparse
import json
import random
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch

import rlhf_lab
from rlhf_lab.annotators import SimulatedAnnotator, population
from rlhf_lab.evaluation import bootstrap_interval
from rlhf_lab.personal import Prior, population_prior
from rlhf_lab.records import Question
from rlhf_lab.reward import TasteModel, features_of, pair_evidence, pairs_of_tiers, tier_indices
from rlhf_lab.runs import Run
from rlhf_lab.selection import STRATEGIES, learning_curve
from rlhf_lab.text import encode_dialogues

WAITING, TARGET = 400, 0.80
SHOWN = (0, 3, 5, 10, 20, 40, 60)
Pairs = list[tuple[tuple[int, int, bool], ...]]


def features(run: Run, questions: list[Question]) -> list[torch.Tensor]:
    """What the run's reward head reads of each question's replies."""
    reward, tokenizer = run.reward()
    texts = [(question.prompt, c.text) for question in questions for c in question.candidates]
    split = [len(question.candidates) for question in questions]
    return list(features_of(reward, encode_dialogues(tokenizer, texts)).split(split))


def answers(person: SimulatedAnnotator, questions: list[Question]) -> Pairs:
    return [pairs_of_tiers(tier_indices(question, person.rank(question))) for question in questions]


def strict_differences(own: list[torch.Tensor], pairs: Pairs) -> torch.Tensor:
    """Feature differences (n, d) of all strict pairs, the better reply first."""
    strict = [[pair for pair in each if not pair[2]] for each in pairs]
    return torch.cat([pair_evidence(f, p).differences for f, p in zip(own, strict, strict=True) if p])


def one_person(
    person: SimulatedAnnotator,
    asked: tuple[list[Question], list[torch.Tensor]],
    held_out: tuple[list[Question], list[torch.Tensor]],
    prior: Prior,
    labels: int,
    seed: int,
) -> dict:
    """The accuracy after 0 … labels answers under each strategy, and with all answers."""
    noiseless = replace(person, noise=0.0, tie_below=1e-9)
    test = strict_differences(held_out[1], answers(noiseless, held_out[0]))
    given = answers(person, asked[0])
    everything = TasteModel(*prior)
    everything.learn_all({str(i): pair_evidence(f, p) for i, (f, p) in enumerate(zip(asked[1], given, strict=True))})
    row = {"all": float((test @ everything.weight > 0).double().mean())}
    for strategy in STRATEGIES:
        generator = torch.Generator().manual_seed(seed)
        row[strategy] = learning_curve(strategy, TasteModel(*prior), asked[1], given, test, labels, generator)
    return row


def measure(folder: str, people: int, labels: int, replies: int) -> list[dict]:
    config = json.loads((Path(folder) / "config.json").read_text())
    run = Run(folder, profile="default", seed=config["seed"])
    prior = population_prior(run, run.profile.live, run.seed)
    cut = [replace(q, candidates=q.candidates[:replies]) for q in run.preferences()[0] if len(q.candidates) >= replies]
    questions, held_out = cut, run.held_out_preferences()[0]
    own, theirs = features(run, questions), features(run, held_out)
    rows = []
    for number in range(people):
        seed = 1_000 * (run.seed + 1) + number
        waiting = random.Random(seed).sample(range(len(questions)), WAITING)
        asked = [questions[i] for i in waiting], [own[i] for i in waiting]
        (person, _) = population(run.judge, 2, seed=50_000 + seed)
        rows.append({"seed": seed} | one_person(person, asked, (held_out, theirs), prior, labels, seed))
    return rows


def labels_to(curve: list[float], target: float = TARGET) -> int:
    return next((n for n in range(len(curve) - 2) if min(curve[n : n + 3]) >= target), len(curve))


def report(rows: list[dict], labels: int) -> str:
    shown = [n for n in SHOWN if n <= labels]
    lines = [f"{len(rows)} people. Accuracy after n labels:", "", "| strategy | " + " | ".join(map(str, shown)) + " |"]
    lines.append("|" + " --- |" * (len(shown) + 1))
    for strategy in STRATEGIES:
        means = [sum(row[strategy][n] for row in rows) / len(rows) for n in shown]
        lines.append(f"| {strategy} | " + " | ".join(f"{mean:.3f}" for mean in means) + " |")
    able = [row for row in rows if row["all"] >= TARGET]
    lines += ["", f"Labels to {TARGET:.0%} for the {len(able)} people who reach it with all {WAITING} answers:", ""]
    lines += ["| strategy | median | mean | saved against random (mean, 95%) |", "| --- | --- | --- | --- |"]
    chance = [labels_to(row["random"]) for row in able]
    for strategy in STRATEGIES:
        needed = [labels_to(row[strategy]) for row in able]
        saved = bootstrap_interval([a - b for a, b in zip(chance, needed, strict=True)])
        text = "" if strategy == "random" else f"{saved.value:.1f} [{saved.low:.1f}, {saved.high:.1f}]"
        lines.append(f"| {strategy} | {median(needed):g} | {sum(needed) / len(needed):.1f} | {text} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", metavar="RUN_FOLDER")
    parser.add_argument("--people", type=int, default=24, help="for each run")
    parser.add_argument("--labels", type=int, default=60)
    parser.add_argument("--replies", type=int, default=2, help="in a question: 2 for pairs, 4 for rankings")
    parser.add_argument("--json", metavar="FILE", help="keep all curves")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [r for f in options.folders for r in measure(f, options.people, options.labels, options.replies)]
    if options.json:
        Path(options.json).write_text(json.dumps(rows))
    print(f"rlhf_lab {rlhf_lab.__version__}, {len(options.folders)} runs, {options.replies} replies a question.")
    print(report(rows, options.labels))


if __name__ == "__main__":
    main()
