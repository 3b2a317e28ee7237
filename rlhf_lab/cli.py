"""The `rlhf-lab` command. Exit codes: 0 done, 2 bad input (one line on stderr), 130 interrupted (state is kept).

Nothing heavy is imported before a command needs it, so `--help` and input errors come at once.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from . import __version__
from .cli_classroom import add_classroom_command
from .cli_feedback import add_feedback_commands
from .config import PROFILES
from .errors import InputError

DONE, BAD_INPUT, INTERRUPTED = 0, 2, 130


class _Help(argparse.HelpFormatter):
    """Shows an option's default where it has one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        shown = action.option_strings and action.default not in (None, argparse.SUPPRESS)
        return f"{action.help} (default: %(default)s)" if shown else action.help


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, as every other input error."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see {self.prog} --help")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    again = "rlhf-lab --help"
    try:
        options = build_parser().parse_args(arguments)
        again = options.again
        options.command(options)
        return DONE
    except InputError as error:
        print(f"rlhf-lab: {' '.join(str(error).split())}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print(f"\nrlhf-lab: interrupted; {again}", file=sys.stderr)
        return INTERRUPTED


def build_parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    parser = _Parser(
        prog="rlhf-lab",
        description="Reinforcement learning from human feedback, from pretraining to PPO, on a laptop.",
        epilog="Exit codes: 0 done, 2 bad input, 130 interrupted (finished work is kept).",
    )
    parser.add_argument("--version", action="version", version=f"rlhf-lab {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_run(commands)
    _add_train_reward(commands)
    _add_scenario(commands)
    add_feedback_commands(commands, _command)
    add_classroom_command(commands)
    return parser


def _command(commands: Any, name: str, function: Callable, summary: str, again: str, more: str = "") -> _Parser:
    parser = commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}. {more}".strip(),
        formatter_class=_Help,
    )
    parser.set_defaults(command=function, again=again)
    return parser


# --- run --------------------------------------------------------------------------------------------------------------


def _add_run(commands: Any) -> None:
    parser = _command(
        commands,
        "run",
        _run,
        "run all five stages with the simulated annotator",
        "what was finished is kept: give the same command again, and it goes on from there",
        "Leaves models that transformers loads in DIR/base, sft, reward and policy, a line of metrics for every step "
        "in DIR/metrics, and the numbers in DIR/summary.json. A run that was killed or interrupted continues where it "
        "stopped when the same command is given again, to the same numbers.",
    )
    profiles = ", ".join(PROFILES)
    parser.add_argument("--out", metavar="DIR", required=True, help="folder of the run: a new one, or one to continue")
    parser.add_argument(
        "--profile", metavar="NAME",
        help=f"how much of everything: {profiles} (default: RLHF_LAB_PROFILE, or else default)",
    )  # fmt: skip
    parser.add_argument(
        "--scenario", metavar="NAME", default="help_desk", help="a scenario that ships with the lab, or a .yaml file"
    )
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="the same seed gives the same numbers")


def _run(options: argparse.Namespace) -> None:
    from .runs import Run

    run = Run(options.out, options.scenario, options.profile, options.seed)
    print(run_table(run.summary()))
    print(f"\nAll numbers: {run.folder / 'summary.json'}")


def run_table(summary: dict[str, Any]) -> str:
    """The summary of a run, for reading."""
    lines = ["", f"{'held-out prompts':<24}{'SFT':>8}{'PPO':>8}"]
    for key, name in (
        ("gold", "gold score"),
        ("right", "right or safe"),
        ("polite", "polite (−1 to 1)"),
        ("concise", "concise"),
        ("fluent", "fluent"),
        ("distinct2", "variety (distinct-2)"),
    ):
        lines.append(f"{name:<24}{summary[key]['sft']:>8.3f}{summary[key]['ppo']:>8.3f}")
    lines.append("")
    for key, name in (
        ("win_rate", "PPO wins over SFT"),
        ("reward_accuracy", "reward model accuracy"),
        ("kl", "KL to SFT, nats a reply"),
    ):
        interval = summary[f"{key}_interval"]
        lines.append(f"{name:<24}{summary[key]:>8.3f}  95% [{interval['low']:.3f}, {interval['high']:.3f}]")
    lines += ["", "  ".join(f"{name} {seconds:.0f} s" for name, seconds in summary["seconds"].items())]
    return "\n".join(lines)


# --- train-reward -----------------------------------------------------------------------------------------------------


def _add_train_reward(commands: Any) -> None:
    parser = _command(
        commands,
        "train-reward",
        _train_reward,
        "train a reward model on human preference pairs",
        "nothing was left in --out but metrics; delete it and give the command again",
        "FILE holds one JSON object a line, {chosen, rejected} as HH-RLHF writes them or {prompt, chosen, rejected} as "
        "TRL does. Pairs of one conversation are kept together when some are held out, and the accuracy on those is "
        "reported with its interval, next to what choosing the longer or the shorter reply would reach. "
        "The texts are never printed. Leaves DIR/reward, which transformers loads, and DIR/reward.json.",
    )
    parser.add_argument("--pairs", metavar="FILE", required=True, help="the preference pairs, JSON Lines")
    parser.add_argument("--out", metavar="DIR", required=True, help="a new folder")
    parser.add_argument(
        "--model", metavar="NAME", help="folder or Hugging Face name of a causal language model to start from "
        "(default: a small one, trained on the pairs' own text)"
    )  # fmt: skip
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="of the split and the training")
    parser.add_argument("--held-out", metavar="SHARE", type=float, default=0.2, help="share of the pairs held out")
    parser.add_argument("--epochs", metavar="N", type=int, default=2, help="passes over the training pairs")
    parser.add_argument("--max-tokens", metavar="N", type=int, default=256, help="longer prompts lose their beginning")
    parser.add_argument(
        "--learning-rate", metavar="X", type=float, help="(default: 5e-4 for the small model, 2e-5 for yours)"
    )
    parser.add_argument("--batch-size", metavar="N", type=int, default=16, help="pairs a step")
    parser.add_argument(
        "--pooling",
        choices=("mean", "last"),
        help="what the score is read from (default: mean for the small model, last for yours)",
    )
    parser.add_argument("--pretraining-steps", metavar="N", type=int, default=400, help="of the small model")


def _train_reward(options: argparse.Namespace) -> None:
    from .reward_from_pairs import PairOptions, train_on_pairs

    chosen = {name: getattr(options, name) for name in PairOptions.__dataclass_fields__}
    print(reward_table(train_on_pairs(options.pairs, options.out, PairOptions(**chosen))))
    print(f"\nReward model: {Path(options.out) / 'reward'}")


def reward_table(report: dict[str, Any]) -> str:
    """What `train_on_pairs` reports, for reading."""
    pairs = report["pairs"]
    rows = [("reward model", report["accuracy"])]
    rows += [(f"always the {name} reply", interval) for name, interval in report["baselines"].items()]
    lines = ["", f"{pairs['train']} pairs to train on, {pairs['held_out']} held out; accuracy on the latter:"]
    lines += [f"  {name:<26}{i['value']:.3f}  95% [{i['low']:.3f}, {i['high']:.3f}]" for name, i in rows]
    if report["accuracy"]["low"] <= 0.5:
        lines.append("The interval reaches down to 0.5: on these pairs the model cannot be told from a coin.")
    return "\n".join([*lines, f"{report['seconds']:.0f} s"])


# --- scenario check ---------------------------------------------------------------------------------------------------


def _add_scenario(commands: Any) -> None:
    parser = commands.add_parser("scenario", help="check a scenario file", description="Work with scenario files.")
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    check = _command(
        actions,
        "check",
        _check_scenario,
        "read a scenario, count what it makes, show examples, and see whether its gold judge understands it",
        "nothing was changed",
    )
    check.add_argument("file", metavar="FILE", help="a .yaml file, or the name of a scenario that ships with the lab")
    check.add_argument("--seed", metavar="N", type=int, default=0, help="of the examples")


def _check_scenario(options: argparse.Namespace) -> None:
    from .scenario import load_scenario

    scenario = load_scenario(options.file)
    train, held_out = scenario.prompts("train", seed=options.seed), scenario.prompts("held_out", seed=options.seed)
    facts = sum(len(subject.facts) for subject in scenario.subjects)
    print(f"{scenario.name}: {scenario.title}")
    print(f"  {len(scenario.subjects)} subjects, {len(scenario.attributes)} attributes, {facts} facts, "
          f"{len(scenario.hazards)} hazards")  # fmt: skip
    print(f"  {len(train)} prompts to train on, {len(held_out)} held out")
    print("\nPretraining text:")
    for document in scenario.corpus(3, options.seed):
        print("  " + document.replace("\n", "\n  ") + "\n")
    print("Demonstrations:")
    for demonstration in scenario.demonstrations(3, options.seed):
        print(f"  {demonstration.prompt}\n    {demonstration.reply}")
    print("\nHeld-out prompts:")
    print("\n".join(f"  {prompt}" for prompt in held_out[:3]))
    print(f"\n{judge_report(scenario, options.seed)}")


def judge_report(scenario: Any, seed: int = 0, n: int = 300) -> str:
    """Whether the gold judge reads the scenario's own right answers as right and its wrong ones as wrong."""
    import random

    from .judge import GoldJudge

    judge, rng = GoldJudge(scenario), random.Random(f"check {seed}")
    prompts = [*scenario.prompts("train", n // 2, seed), *scenario.prompts("held_out", n // 2, seed)]
    misread = []
    for prompt in prompts:
        for good in (True, False):
            answer = scenario.core(scenario.asked(prompt), good, rng)
            if judge.verdict(prompt, answer).right != float(good):
                misread.append(f"  {'right' if good else 'wrong'} answer misread: {prompt} → {answer}")
    total = 2 * len(prompts)
    report = [f"The gold judge reads {total - len(misread)} of {total} of the scenario's own answers correctly."]
    if misread:
        report += [*misread[:3], "  Check the cues, claims and values of these attributes."]
    return "\n".join(report)


if __name__ == "__main__":
    sys.exit(main())
