"""How long does the live reward model take to learn one new ranking while PPO runs?

    python benchmarks/live_update.py RUN_FOLDER [--labels 60]

A live loop on a copy of the run (of `rlhf-lab run`) trains the policy with PPO in its worker. A simulated person ranks
the questions that it writes, at moments that have nothing to do with its steps. "update" is the reward model's work on
one ranking: reading the replies, the head's new weights, the scores shown before and after. "person" is the time from
`submit` to the event that says that it was learned: storing the label, waiting until the worker looks up between two
parts of a PPO step, and the update.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import rlhf_lab  # noqa: E402, F401  (before torch)

# isort: split
from contest import heading  # noqa: E402

from rlhf_lab.annotators import SimulatedAnnotator  # noqa: E402
from rlhf_lab.live import LiveLoop  # noqa: E402
from rlhf_lab.records import LoopError, RewardUpdate, StepStats  # noqa: E402
from rlhf_lab.runs import Run  # noqa: E402

AIM_MS = 150


def measure(folder: Path, labels: int) -> tuple[list[float], list[float], int]:
    """Milliseconds of each update, of each wait from `submit` to its event, and PPO steps meanwhile."""
    config = json.loads((folder / "config.json").read_text())
    run = Run(folder, config["scenario"], config["profile"]["name"], config["seed"], progress=None)
    person = SimulatedAnnotator(run.judge, noise=0.35, seed=7, name="me")
    loop = LiveLoop.from_run(run, folder / "live-update.db", annotator=person.name)
    learned, heard, steps = threading.Event(), [], []

    def listen(event) -> None:
        if isinstance(event, RewardUpdate):
            heard.append((time.perf_counter(), event))
            learned.set()
        elif isinstance(event, StepStats):
            steps.append(event.step)
        elif isinstance(event, LoopError):
            heard.append((time.perf_counter(), event))
            learned.set()

    loop.subscribe(listen)
    loop.start()
    updates, waits, moments = [], [], random.Random(0)
    while len(waits) < labels:
        time.sleep(moments.uniform(0.2, 1.2))
        if not steps or (question := loop.next_question()) is None:
            continue  # PPO is not under way, or no question is written yet
        ranking = person.rank(question)
        learned.clear()
        began = time.perf_counter()
        loop.submit(ranking)
        if not learned.wait(60) or not isinstance(heard[-1][1], RewardUpdate):
            raise SystemExit(f"the label was not learned: {heard[-1:]}")
        waits.append(1000 * (heard[-1][0] - began))
        updates.append(1000 * heard[-1][1].seconds)
    loop.stop()
    loop.join()
    return updates, waits, len(steps)


def quantiles(times: list[float]) -> str:
    """Median and 95th percentile."""
    if len(times) < 2:
        return f"{times[0]:.0f} | {times[0]:.0f}"
    return f"{statistics.median(times):.0f} | {statistics.quantiles(times, n=20, method='inclusive')[-1]:.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN_FOLDER")
    parser.add_argument("--labels", type=int, default=60)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        before = os.getloadavg()[0]
        updates, waits, steps = measure(Path(shutil.copytree(options.run, Path(scratch, "run"))), options.labels)
    print(heading() + "\n")
    print("| ms | update: median | 95% | person: median | 95% | labels | PPO steps meanwhile | load |")
    print("|" + " --- |" * 8)
    load = f"{before:.1f} → {os.getloadavg()[0]:.1f}"
    print(f"| one ranking | {quantiles(updates)} | {quantiles(waits)} | {len(waits)} | {steps} | {load} |")
    print(f"\nAim: {AIM_MS} ms median for the update.")


if __name__ == "__main__":
    main()
