"""The commands of `rlhf-lab` about feedback: export, import and audit."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .errors import InputError

STORE = "feedback store: a file, or a database URL"


def add_feedback_commands(commands: Any, command: Callable[..., Any]) -> None:
    """Add them to the parser; `command` makes one, as `rlhf_lab.cli` does."""
    _add_export(commands, command)
    _add_import(commands, command)
    _add_audit(commands, command)


def _existing(where: str) -> str:
    """`where`, unless it is a file that is not there: a store that is only read must exist."""
    if "://" not in where and not Path(where).exists():
        raise InputError(f"feedback store {where} does not exist; name the .db file of a run or of a class")
    return where


# --- export -----------------------------------------------------------------------------------------------------------


def _add_export(commands: Any, command: Callable[..., Any]) -> None:
    parser = command(
        commands,
        "export",
        _export,
        "write collected feedback in a format that others read",
        "the file was not written",
        "Writes the answers in force and says what the format has no place for. Formats: trl (prompt, chosen, "
        "rejected), trl-chat (the same as messages), trl-implicit (whole dialogues as messages), trl-unpaired "
        "(thumbs), trl-sft (corrections), hh, summarize, ultrafeedback, argilla, label-studio, jsonl and parquet. The "
        "last two lose nothing.",
    )
    parser.add_argument("--store", metavar="URL", required=True, help=STORE)
    parser.add_argument("--format", metavar="NAME", default="trl", help="one of the formats above")
    parser.add_argument("--annotator", metavar="NAME", help="only this person's answers (default: everybody's)")
    parser.add_argument(
        "--everything", action="store_true", help="withdrawn and replaced answers too (jsonl and parquet only)"
    )
    parser.add_argument("file", metavar="FILE", help="file to write")


def _export(options: argparse.Namespace) -> None:
    from .formats import FORMATS, WRITTEN, feedback_of, write_feedback
    from .store import FeedbackStore

    if options.format not in WRITTEN:
        raise InputError(f"argument --format: {options.format!r} cannot be written; use one of {', '.join(WRITTEN)}")
    if options.everything and not FORMATS[options.format].lossless:
        raise InputError("argument --everything: only jsonl and parquet can say that an answer was withdrawn")
    with FeedbackStore(_existing(options.store)) as store:
        feedback = feedback_of(store, options.annotator, options.everything)
    print(write_feedback(options.file, feedback, options.format))


# --- import -----------------------------------------------------------------------------------------------------------


def _add_import(commands: Any, command: Callable[..., Any]) -> None:
    parser = command(
        commands,
        "import",
        _import,
        "read feedback from a file into a store",
        "nothing was added to the store",
        "All of the file or nothing; reading the same file again adds nothing. A SQLite store that does not exist is "
        "made. Formats: those of export, and arena.",
    )
    parser.add_argument("--store", metavar="URL", required=True, help=STORE)
    parser.add_argument("--format", metavar="NAME", help="format of the file (default: guessed from its first record)")
    parser.add_argument(
        "--annotator", metavar="NAME", default="imported", help="who answered, where the file names nobody"
    )
    parser.add_argument("file", metavar="FILE", help="file to read, or a folder that datasets saved")


def _import(options: argparse.Namespace) -> None:
    from .formats import detect_format, import_into, read_feedback
    from .store import FeedbackStore

    form = options.format or detect_format(options.file)
    feedback = read_feedback(options.file, form, options.annotator)
    with FeedbackStore(options.store) as store:
        new = import_into(store, feedback)
    print(f"{feedback} read from {options.file} as {form}; {new or 'nothing'} new in the store")
    print("".join(f"  {words}\n" for words in feedback.left_out), end="")


# --- audit ------------------------------------------------------------------------------------------------------------


def _add_audit(commands: Any, command: Callable[..., Any]) -> None:
    parser = command(
        commands,
        "audit",
        _audit,
        "write every event of a store for a person to read, or check such a file",
        "the file was not written",
        "Who decided what and when, which replies they saw in which order, and whether it still counts. The entries "
        "are chained by SHA-256: keep the last hash, and no entry can be changed without --verify or a new export "
        "showing it.",
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--store", metavar="URL", help=STORE)
    what.add_argument("--verify", action="store_true", help="check FILE instead of writing it")
    parser.add_argument("file", metavar="FILE", help="a .csv, .html or .jsonl file")


def _audit(options: argparse.Namespace) -> None:
    from .formats.audit import verify_audit, write_audit
    from .store import FeedbackStore

    if options.verify:
        print(f"{options.file} is whole and unchanged; last SHA-256 {verify_audit(options.file)}")
        return
    with FeedbackStore(_existing(options.store)) as store:
        print(write_audit(store, options.file))
