"""Every method on equal labels and equal compute: gold score against KL to the SFT model, over several trainings.

    python benchmarks/beyond_ppo.py RUN_FOLDER... [--seeds 0 1 2] [--labels 300] [--passes 50] [--methods dpo ppo]

For each run folder (made by `rlhf-lab run --profile default --seed N`) and each seed, every method starts from the SFT
model, learns from the first `--labels` rankings of the run, and may spend `--passes` passes a label (a pass: one reply
read by one network; `rlhf_lab.methods.passes`). A method that needs a reward model pays for its training first, on the
same rankings. Best-of-n trains nothing else, and pays at every reply that it gives. Then the method writes two replies
to every held-out prompt, which the gold judge scores.

Intervals are 95%, by resampling held-out prompts (a prompt's replies of all trainings together): they do not say what
another training would give, so the lowest and highest training stand beside them. "Less PPO's" is paired by training
and prompt.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import rlhf_lab  # before torch: it sets how threads wait

# isort: split
import torch
from contest import heading

from rlhf_lab.config import BestOfNConfig, DirectConfig, GroupConfig
from rlhf_lab.evaluation import bootstrap_interval, kl_per_reply
from rlhf_lab.judge import Verdict
from rlhf_lab.methods import (
    METHODS,
    Config,
    Feedback,
    Start,
    method_named,
    options,
    passes,
    reward_passes,
    train,
    within,
    write,
)
from rlhf_lab.models import new_reward_model
from rlhf_lab.reward import normalise, train_reward_model
from rlhf_lab.runs import Run
from rlhf_lab.sampling import best_of_n_kl, sample

REPLIES = 2  # to each held-out prompt
DIRECT = {"dpo": DirectConfig(beta=0.2), "cdpo": DirectConfig(beta=0.2, label_smoothing=0.1)}
SFT = "*SFT*"


@dataclass(frozen=True)
class Outcome:
    """One method after one training: what it spent, and what the judge says of its replies, prompt by prompt."""

    method: str
    passes: float
    seconds: float
    kl: float  # nats a reply; best-of-n's upper bound
    verdicts: Sequence[Verdict]

    @property
    def gold(self) -> list[float]:
        return [verdict.score for verdict in self.verdicts]


def options_of(name: str, run: Run) -> Config:
    """The options that the comparison gives a method, sampling as the run does. The same batch for all who practise."""
    chosen = {"ppo": replace(run.profile.ppo, epochs=1, learning_rate=1e-3), **DIRECT}.get(name, options(name))
    if isinstance(chosen, GroupConfig):
        chosen = replace(chosen, batch_size=run.profile.ppo.batch_size, minibatches=run.profile.ppo.minibatches)
    return replace(chosen, sampling=run.profile.sampling) if hasattr(chosen, "sampling") else chosen


def begin(run: Run, labels: int, seed: int) -> tuple[Start, Feedback]:
    """What all methods share: the SFT model, the first rankings, and a reward model trained on these and no others."""
    sft, tokenizer = run.sft()
    questions, rankings = (part[:labels] for part in run.preferences())
    feedback = Feedback.of(tokenizer, questions, rankings, run.profile.model.context)
    model = new_reward_model(sft, run.profile.reward.pooling, seed)
    for _ in train_reward_model(model, feedback.rankings, run.profile.reward, seed):
        pass
    normalise(model, [dialogue for item in feedback.rankings for dialogue in item.dialogues])
    return Start(sft, tokenizer, run.train_prompts, reward_model=model), feedback


def measure(run: Run, name: str, start: Start, feedback: Feedback, budget: float, seed: int) -> Outcome:
    """Trains one method within the budget and judges its replies to the held-out prompts."""
    policy, config = start.policy(), options_of(name, run)
    first = 0.0 if method_named(name).learns_from == "labels" else reward_passes(run.profile.reward, feedback)
    config = within(config, budget - first, feedback)
    began = time.perf_counter()
    for _ in train(name, policy, start, feedback, config, seed):
        pass
    seconds = time.perf_counter() - began
    prompts, generator = run.held_out_prompts * REPLIES, torch.Generator().manual_seed(seed)
    written = write(name, policy, start, prompts, config, generator)
    if isinstance(config, BestOfNConfig):
        kl = best_of_n_kl(config.n)
    else:
        kl = kl_per_reply(policy, start.reference, written, run.profile.sampling.temperature).value
    verdicts = [run.judge.verdict(s.prompt, s.text) for s in written]
    return Outcome(name, first + passes(config, feedback), seconds, kl, verdicts)


def before(run: Run, start: Start, seed: int) -> Outcome:
    """The SFT model itself."""
    prompts, generator = run.held_out_prompts * REPLIES, torch.Generator().manual_seed(seed)
    written = sample(start.reference, start.tokenizer, prompts, run.profile.sampling, generator)
    return Outcome(SFT, 0.0, 0.0, 0.0, [run.judge.verdict(s.prompt, s.text) for s in written])


COLUMNS = (
    "method", "passes", "seconds", "gold", "lowest – highest", "less PPO's", "KL", "facts right", "polite",
)  # fmt: skip


def row(name: str, outcomes: Sequence[Outcome], rivals: Sequence[Outcome], prompts: Sequence[str]) -> str:
    """One line of the table: all trainings of one method, and PPO's of the same folders and seeds."""
    clusters = list(prompts) * len(outcomes)
    gold = bootstrap_interval([score for o in outcomes for score in o.gold], clusters=clusters)
    each = [statistics.mean(o.gold) for o in outcomes]
    less = ""
    if rivals and name != "ppo":
        differences = [
            a - b for o, r in zip(outcomes, rivals, strict=True) for a, b in zip(o.gold, r.gold, strict=True)
        ]
        interval = bootstrap_interval(differences, clusters=clusters)
        less = f"{interval.value:+.2f} [{interval.low:+.2f}, {interval.high:+.2f}]"
    kl = [o.kl for o in outcomes]
    verdicts = [verdict for o in outcomes for verdict in o.verdicts]
    cells = (
        name,
        f"{outcomes[0].passes:,.0f}",
        f"{statistics.median(o.seconds for o in outcomes):.0f}",
        f"{gold.value:.2f} [{gold.low:.2f}, {gold.high:.2f}]",
        f"{min(each):.2f} – {max(each):.2f}",
        less,
        f"{'≤ ' if name == 'best-of-n' else ''}{statistics.mean(kl):.2f} ({min(kl):.2f} – {max(kl):.2f})",
        f"{statistics.mean(v.right for v in verdicts):.2f}",
        f"{statistics.mean(v.polite for v in verdicts):.2f}",
    )
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--labels", type=int, default=300)
    parser.add_argument("--passes", type=float, default=50, help="passes a label")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    outcomes: dict[str, list[Outcome]] = {name: [] for name in (SFT, *chosen.methods)}
    for folder in chosen.folders:
        config = json.loads((folder / "config.json").read_text())
        run = Run(folder, config["scenario"], config["profile"]["name"], config["seed"], progress=None)
        for seed in chosen.seeds:
            start, feedback = begin(run, chosen.labels, seed)
            outcomes[SFT].append(before(run, start, seed))
            for name in chosen.methods:
                outcomes[name].append(measure(run, name, start, feedback, chosen.passes * chosen.labels, seed))
                print(f"{folder.name}, seed {seed}: {name}", file=sys.stderr, flush=True)
    trainings = len(chosen.folders) * len(chosen.seeds)
    print(f"{heading()}; rlhf_lab {rlhf_lab.__version__}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    print(f"{chosen.labels} rankings, {chosen.passes * chosen.labels:,.0f} passes; {trainings} trainings a method\n")
    print("| " + " | ".join(COLUMNS) + " |\n|" + " --- |" * len(COLUMNS))
    for name, of_method in outcomes.items():
        print(row(name, of_method, outcomes.get("ppo", []), run.held_out_prompts * REPLIES))


if __name__ == "__main__":
    main()
