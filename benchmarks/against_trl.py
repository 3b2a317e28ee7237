"""Our trainers against TRL's, in turns on the same machine.

    python benchmarks/against_trl.py all [--rounds 12] [--busy] [--trl-python /path/to/python]

PPO is compared with the PPOTrainer of trl 1.12.0, the last release that has one; it must be installed here (it is among
the tests' needs). The other trainers take part with the trl of --trl-python, an environment of its own made with

    python -m venv ELSEWHERE && ELSEWHERE/bin/pip install -r benchmarks/requirements-trl.txt

and without that option with the trl that is here. Both sides have the same weights, texts, batches and options (fp32,
no dropout, no gradient checkpointing). TRL's has besides what its public options offer to be fast, and both ways for
threads to wait; a short trial takes the fastest. A ratio is only given when the work of every round was the same on
both sides, and the loss of the very first batch too (where each side samples for itself: its mean score, entropy, KL
and value loss, within sampling error).
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from contest import TRIAL_ROUNDS, WAITING, Contest, Contestant, Outcome, Setting, add_options, run  # noqa: E402

EPISODES, REPLY = 64, 28


def ppo_contest(kit: Path, options: argparse.Namespace, shared: bool = False) -> Contest:
    work = size(kit, options)
    title = "PPO, value head on a shared trunk" if shared else "PPO, separate value model"
    ours = Contestant("rlhf_lab", "side_ours:ppo", work | {"shared": shared})
    theirs = Contestant("PPOTrainer", "side_trl:ppo", work, settings=WAITING)
    return Contest(title, "episodes", (ours, theirs), options.rounds, options.warmups)


def group_contest(kit: Path, options: argparse.Namespace, method: str) -> Contest:
    """Four replies to each prompt, one optimiser step on all of them."""
    work = size(kit, options) | {"method": method}
    trainer = f"{method.upper()}Trainer"
    ours = Contestant("rlhf_lab", "side_ours:group", work)
    theirs = Contestant(trainer, "side_trl:group", work, python=options.trl_python, settings=WAITING)
    return Contest(method.upper(), "episodes", (ours, theirs), options.rounds, options.warmups)


def size(kit: Path, options: argparse.Namespace) -> dict:
    return {"kit": str(kit)} | ({"episodes": 8, "reply": 6} if options.tiny else {"episodes": EPISODES, "reply": REPLY})


def step_contest(
    kit: Path, options: argparse.Namespace, title: str, unit: str, name: str, trainer: str, batch: int, steps: int,
    settings: tuple[Setting, ...] = WAITING,
) -> Contest:  # fmt: skip
    """A round is a number of optimiser steps, on batches that no round before has had."""
    batch, steps = (4, 2) if options.tiny else (batch, steps)
    rounds = options.rounds * (1 + options.busy) + options.warmups + TRIAL_ROUNDS + 1
    work = {"kit": str(kit), "batch": batch, "steps": steps, "items": batch * steps * rounds}
    ours = Contestant("rlhf_lab", f"side_ours:{name}", work)
    theirs = Contestant(trainer, f"side_trl:{name}", work, python=options.trl_python, settings=settings)
    return Contest(title, unit, (ours, theirs), options.rounds, options.warmups)


def sft_contest(kit: Path, options: argparse.Namespace) -> Contest:
    settings = tuple(
        Setting(f"{how.name}, loss_type={loss}", how.environment, {"loss_type": loss})
        for how in WAITING
        for loss in ("chunked_nll", "nll")
    )
    return step_contest(kit, options, "SFT", "tokens", "sft", "SFTTrainer", 32, 4, settings)


def reward_contest(kit: Path, options: argparse.Namespace) -> Contest:
    return step_contest(kit, options, "reward model", "pairs", "reward", "RewardTrainer", 16, 4)


CONTESTS: dict[str, Callable[[Path, argparse.Namespace], Contest]] = {
    "ppo": ppo_contest,
    "ppo-shared": lambda kit, options: ppo_contest(kit, options, shared=True),
    "sft": sft_contest,
    "reward": reward_contest,
    "dpo": lambda kit, options: step_contest(kit, options, "DPO", "pairs", "dpo", "DPOTrainer", 16, 4),
    "rloo": lambda kit, options: group_contest(kit, options, "rloo"),
    "grpo": lambda kit, options: group_contest(kit, options, "grpo"),
}
SAME = 1e-4  # relative difference of the first batch's loss, where both sides have the same batch
ALIKE = {"kl": (0.0, 1e-3), "entropy": (0.02, 0.0), "value_loss": (0.4, 0.0)}  # where each side samples for itself


def check(outcome: Outcome) -> None:
    """Ends the program unless both sides did the same work in every round and began from the same numbers."""
    ours, theirs = (c.name for c in outcome.contest.contestants)
    for laps in (outcome.quiet, outcome.busy):
        for number, (mine, other) in enumerate(zip(laps[ours], laps[theirs], strict=True)):
            if mine.work != other.work:
                raise SystemExit(f"{outcome.contest.title}, round {number}: {mine.work} is not {other.work}")
    mine, other = outcome.first[ours].facts, outcome.first[theirs].facts
    tolerances = {"loss": (SAME, 1e-5), "score": (0.0, 6 * mine.get("score_error", 0.0))} | ALIKE
    for name in tolerances.keys() & mine.keys() & other.keys():
        relative, absolute = tolerances[name]
        if not math.isclose(mine[name], other[name], rel_tol=relative, abs_tol=absolute):
            raise SystemExit(f"{outcome.contest.title}: {name} of the first batch is {mine[name]} and {other[name]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("contests", nargs="+", choices=[*CONTESTS, "all"])
    parser.add_argument("--trl-python", default=sys.executable, metavar="PATH", help="with a current trl, but for PPO")
    add_options(parser)
    options = parser.parse_args()
    from kit import TINY, make_kit

    names = list(CONTESTS) if "all" in options.contests else options.contests
    with tempfile.TemporaryDirectory() as folder:
        kit = make_kit(Path(folder), 8 if options.tiny else EPISODES, model=TINY if options.tiny else None)
        run([CONTESTS[name](kit, options) for name in names], options, check)


if __name__ == "__main__":
    main()
