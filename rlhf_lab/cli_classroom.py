"""The command `rlhf-lab classroom`: its options. What it does is in `rlhf_lab.classroom`, imported when it runs."""

from __future__ import annotations

import argparse
from typing import Any

# `rlhf_lab.class_questions.REPLIES` and `rlhf_lab.selection.STRATEGIES`, whose imports would make --help wait
FORMS = ("rank", "compare", "grade", "rate", "thumbs", "correct")
STRATEGIES = ("random", "disagreement", "information", "coverage")


def add_classroom_command(commands: Any) -> None:
    """Put `classroom` among the commands of `rlhf-lab`."""
    summary = "open a class: a labelling page for each student, one trainer, the teacher's dashboard"
    parser = commands.add_parser(
        "classroom", help=summary, description=f"{summary[0].upper()}{summary[1:]}. See docs/classroom.md.",
        epilog="Ctrl-C ends the class; the same command again goes on where it was, with the same links.",
    )  # fmt: skip
    parser.set_defaults(command=_open_class, again="all labels are kept: the same command opens the class again")
    add = parser.add_argument
    add(
        "--out",
        metavar="DIR",
        required=True,
        help="folder of the run and of the class: a new one, or one to go on with",
    )
    add("--students", metavar="WHO", required=True, help='"Ada,Ben", a file with a name a line, or a number')
    add(
        "--store",
        metavar="URL",
        help="where answers are kept (default: DIR/class.db; a class of 8 or more: PostgreSQL)",
    )
    add("--form", choices=FORMS, default="compare", help="what students do (default: compare)")
    add("--questions", metavar="N", type=int, default=60, help="how many questions (default: 60)")
    add("--overlap", metavar="N", type=int, help="how many students answer each question (default: 3, or all of fewer)")
    add("--checks", metavar="SHARE", type=float, help="share of questions with a known answer (default: 0.1)")
    add(
        "--ask",
        choices=STRATEGIES,
        default="coverage",
        help="which question comes next: in the order of arrival (random), or the one whose answer teaches the class "
        "model most about its own doubts (information, disagreement) or about the replies that the models write "
        "(default: coverage)",
    )
    add("--guidelines", metavar="FILE", help="what to judge by: a text file (default: made from the scenario)")
    add("--ip", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine only)")
    add("--port", metavar="N", type=int, default=8866, help="port to listen on; 0: any free one (default: 8866)")
    add("--lease", metavar="MIN", type=float, default=30.0, help="minutes until an unanswered place is free again")
    add("--no-trainer", action="store_true", help="collect answers only")
    add(
        "--profile", metavar="NAME", help="of the run: quick, default, thorough (default: RLHF_LAB_PROFILE, or default)"
    )
    add("--scenario", metavar="NAME", default="help_desk", help="of the run: a shipped scenario, or a .yaml file")
    add("--seed", metavar="N", type=int, default=0, help="of the run (default: 0)")


def _open_class(options: argparse.Namespace) -> None:
    from .classroom import run

    run(options)
