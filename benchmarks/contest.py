"""Contests: two or more programs that do the same work, timed in turns on the same machine.

Each contestant runs in a process of its own, with its own interpreter if need be, sets itself up, and then does one
round of work whenever it is told to. The parent lets them take turns (A B, B A, A B …), so that whatever else the
machine does falls on all of them alike, and reports medians over rounds: each contestant's speed, and the ratio of the
speeds within each round with a bootstrap interval. A contestant is a function `body(pace, **arguments)`:

    def body(pace, size):
        matrix = torch.rand(size, size)      # setting up is not timed
        pace.begin()
        while True:
            matrix @ matrix
            pace({"products": 1})            # what this round did; returns when the next round is due

With a `Busy` process beside, rounds (all, or the first few) are done twice, quiet and busy, and the slow-down is the
median of their ratio.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import os
import platform
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TextIO

HERE = Path(__file__).resolve().parent
PASSIVE = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}  # what `import rlhf_lab` sets
ACTIVE = dict.fromkeys(PASSIVE, "")  # as torch waits by itself
TRIAL_ROUNDS = 3  # that choose between a contestant's settings
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER_FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-breakpad"
)
GUARD = "import os, signal, sys; sys.stdin.read(); os.killpg(int(sys.argv[1]), signal.SIGKILL)"
PAGE = """<!doctype html><canvas id="c" width="900" height="600"></canvas><script>
const g = document.getElementById("c").getContext("2d"), next = new MessageChannel();
let n = 0;
next.port1.onmessage = () => {  // draws again as soon as it has drawn: a page that animates at full speed
  for (let i = 0; i < 400; i++, n++) {
    g.fillStyle = `hsl(${n % 360} 70% 50%)`;
    g.beginPath();
    g.arc(450 + 400 * Math.sin(n / 31), 300 + 280 * Math.cos(n / 17), 8 + (n % 23), 0, 7);
    g.fill();
  }
  next.port2.postMessage(0);
};
next.port2.postMessage(0);
</script>"""


@dataclass(frozen=True)
class Lap:
    """One round of one contestant: wall-clock and processor seconds, what it did, and what it says of it."""

    seconds: float
    cpu: float
    work: dict[str, float]
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Setting:
    """One way to run a contestant: environment variables ("" takes one away) and further arguments."""

    name: str
    environment: dict[str, str] = field(default_factory=dict)
    arguments: dict[str, Any] = field(default_factory=dict)


OURS = Setting("passive waiting", PASSIVE)
WAITING = (OURS, Setting("default waiting", ACTIVE))  # a rival is given both to choose from


@dataclass(frozen=True)
class Contestant:
    """A program: `target` is "module:function" in this folder. Of several `settings` a trial takes the fastest."""

    name: str
    target: str
    arguments: dict[str, Any] = field(default_factory=dict)
    python: str = sys.executable
    settings: tuple[Setting, ...] = (OURS,)


@dataclass(frozen=True)
class Contest:
    """Contestants, ours first, that are compared by `unit` a second."""

    title: str
    unit: str
    contestants: tuple[Contestant, ...]
    rounds: int = 12
    warmups: int = 2


# --- a contestant's process -------------------------------------------------------------------------------------------


class Pace:
    """A contestant's side of the conversation: lines of JSON to the parent, a line from it for each round."""

    def __init__(self, told: TextIO, tell: TextIO) -> None:
        self.told, self.tell = told, tell
        self.took: tuple[float, float] | None = None

    def begin(self, **facts: Any) -> None:
        """All is set up: says so, and waits for the first round."""
        self._say({"facts": versions() | facts})
        self._wait()

    def stop(self) -> None:
        """Stops the clock: what is done from here to the report is not timed."""
        self.took = time.perf_counter() - self.began, time.process_time() - self.cpu

    def __call__(self, work: dict[str, float], **facts: Any) -> None:
        """A round is done: reports it, and waits for the next one."""
        if self.took is None:
            self.stop()
        seconds, cpu = self.took
        self._say({"seconds": seconds, "cpu": cpu, "work": work, "facts": facts})
        self._wait()

    def _say(self, report: dict[str, Any]) -> None:
        self.tell.write(json.dumps(report) + "\n")
        self.tell.flush()

    def _wait(self) -> None:
        if not self.told.readline():  # the parent has closed the line: the contest is over
            os._exit(0)
        self.took = None
        self.began, self.cpu = time.perf_counter(), time.process_time()


def versions() -> dict[str, Any]:
    """Of the interpreter and of those libraries that this process has imported; torch's threads."""
    names = [name for name in ("torch", "transformers", "trl") if name in sys.modules]
    facts = {"python": platform.python_version()} | {name: sys.modules[name].__version__ for name in names}
    return facts | ({"threads": sys.modules["torch"].get_num_threads()} if "torch" in names else {})


def work(target: str, arguments: dict[str, Any]) -> None:
    """What a contestant's process does: its standard output is the line to the parent, all else goes to the log."""
    tell = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    module, _, name = target.partition(":")
    body: Callable[..., None] = getattr(importlib.import_module(module), name)
    body(Pace(sys.stdin, tell), **arguments)


class Runner:
    """The parent's side: a contestant's process, told to do one round at a time."""

    def __init__(self, contestant: Contestant, setting: Setting) -> None:
        self.contestant, self.setting = contestant, setting
        self.log = tempfile.TemporaryFile("w+")
        path = os.pathsep.join([str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")])
        environment = os.environ | setting.environment | {"PYTHONPATH": path, "TRL_EXPERIMENTAL_SILENCE": "1"}
        arguments = json.dumps(contestant.arguments | setting.arguments)
        self.process = subprocess.Popen(
            [contestant.python, __file__, "work", contestant.target, arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env={name: value for name, value in environment.items() if value},
        )
        self.facts: dict[str, Any] = {}
        self.first: Lap | None = None
        self.trial: list[float] = []

    def begin(self) -> Runner:
        """Waits until the contestant has set itself up."""
        self.facts = self._heard()["facts"]
        return self

    def lap(self) -> Lap:
        """One round."""
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        lap = Lap(**self._heard())
        self.first = self.first or lap
        return lap

    def end(self) -> None:
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()
        self.log.close()

    def _heard(self) -> dict[str, Any]:
        if line := self.process.stdout.readline():
            return json.loads(line)
        self.log.seek(0)
        raise SystemExit(f"{self.contestant.name} ended unasked:\n{self.log.read()[-3000:]}")


# --- the contest ------------------------------------------------------------------------------------------------------


class Busy:
    """One other busy process: a browser with a page that draws at full speed, or a Python loop where there is none.

    It stands still (SIGSTOP) until `beside(True)`. A guard ends it when this program ends, however that comes about.
    """

    def __init__(self, browser: bool = True) -> None:
        self.folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        chromium = next(filter(None, map(shutil.which, BROWSERS)), None) if browser else None
        command = [sys.executable, "-c", "while True: sum(range(1000))"]
        if chromium:
            page = Path(self.folder.name, "page.html")
            page.write_text(PAGE)
            command = [chromium, *BROWSER_FLAGS.split(), f"--user-data-dir={self.folder.name}/profile", page.as_uri()]
        self.name = Path(chromium or "Python loop").name
        self.process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        self.guard = subprocess.Popen(
            [sys.executable, "-c", GUARD, str(self.process.pid)], stdin=subprocess.PIPE, start_new_session=True
        )
        time.sleep(4 if chromium else 0.2)  # a browser takes a while until the page is on
        self.beside(False)

    def beside(self, on: bool) -> None:
        os.killpg(self.process.pid, signal.SIGCONT if on else signal.SIGSTOP)
        time.sleep(0.05)

    def end(self) -> None:
        self.guard.stdin.close()
        self.guard.wait()
        self.process.wait()
        self.folder.cleanup()


@dataclass(frozen=True)
class Ratio:
    """The median over rounds and its 95% bootstrap interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        digits = 2 if self.value >= 0.1 else 3
        return "{:.{d}f} [{:.{d}f}, {:.{d}f}]".format(self.value, self.low, self.high, d=digits)


def median_ratio(ratios: Sequence[float], draws: int = 2000) -> Ratio:
    """The median of the ratios of the rounds, with the interval that resampling the rounds gives."""
    rng = random.Random(0)
    medians = sorted(statistics.median(rng.choices(ratios, k=len(ratios))) for _ in range(draws))
    return Ratio(statistics.median(ratios), medians[int(0.025 * draws)], medians[int(0.975 * draws)])


@dataclass(frozen=True)
class Outcome:
    """What a contest gave: laps of each contestant, quiet and (with another process beside) busy, round by round."""

    contest: Contest
    quiet: dict[str, list[Lap]]
    busy: dict[str, list[Lap]]
    first: dict[str, Lap]  # each contestant's very first round, before the warm-up: on the weights as they were given
    facts: dict[str, dict[str, Any]]
    load: tuple[float, float]  # of one minute, before and after

    def rate(self, name: str, busy: bool = False) -> float:
        """Median of the unit a second."""
        return statistics.median(lap.work[self.contest.unit] / lap.seconds for lap in self._laps(busy)[name])

    def ratio(self, rival: str, busy: bool = False, clock: str = "seconds") -> Ratio:
        """How many times as fast as `rival` ours (the first) is; `clock="cpu"` counts processor time."""
        unit, laps = self.contest.unit, self._laps(busy)
        ours = laps[self.contest.contestants[0].name]
        return median_ratio(
            [
                (a.work[unit] / getattr(a, clock)) / (b.work[unit] / getattr(b, clock))
                for a, b in zip(ours, laps[rival], strict=True)
            ]
        )

    def slowdown(self, name: str) -> Ratio:
        """Busy time over quiet time of the same work."""
        unit = self.contest.unit
        busy = self.busy[name]
        pairs = zip(busy, self.quiet[name][: len(busy)], strict=True)
        return median_ratio([(b.seconds / b.work[unit]) / (q.seconds / q.work[unit]) for b, q in pairs])

    def _laps(self, busy: bool) -> dict[str, list[Lap]]:
        return self.busy if busy else self.quiet


def play(contest: Contest, beside: Busy | None = None, busy_rounds: int | None = None) -> Outcome:
    """The whole contest: set up, choose settings, warm up, and take turns; at most `busy_rounds` of them also busy."""
    before = os.getloadavg()[0]
    runners = [chosen(contestant) for contestant in contest.contestants]
    quiet: dict[str, list[Lap]] = {c.name: [] for c in contest.contestants}
    busy: dict[str, list[Lap]] = {c.name: [] for c in contest.contestants}
    try:
        for runner in runners:
            for _ in range(contest.warmups):
                runner.lap()
        for number in range(contest.rounds):
            for runner in order_of(runners, number):
                quiet[runner.contestant.name].append(runner.lap())
            if beside and (busy_rounds is None or number < busy_rounds):
                beside.beside(True)
                for runner in order_of(runners, number):
                    busy[runner.contestant.name].append(runner.lap())
                beside.beside(False)
    finally:
        for runner in runners:
            runner.end()
    facts = {r.contestant.name: r.facts | {"setting": r.setting.name} for r in runners}
    first = {r.contestant.name: r.first for r in runners}
    return Outcome(contest, quiet, busy, first, facts, (before, os.getloadavg()[0]))


def order_of(runners: Sequence[Any], number: int) -> list[Any]:
    """Whose turn it is in round `number`: from the first to the last, then from the last to the first."""
    return list(runners) if number % 2 == 0 else list(reversed(runners))


def chosen(contestant: Contestant) -> Runner:
    """The contestant with its fastest setting, by the medians of a trial in turns; ready, the others ended.

    One with a single setting does the same rounds, so that all contestants have done the same work when it begins.
    """
    runners = [runner.begin() for runner in [Runner(contestant, setting) for setting in contestant.settings]]
    for runner in runners:
        runner.lap()
    for number in range(TRIAL_ROUNDS):
        for runner in order_of(runners, number):
            runner.trial.append(runner.lap().seconds)
    runners.sort(key=lambda runner: statistics.median(runner.trial))
    for slower in runners[1:]:
        slower.end()
    return runners[0]


# --- the report -------------------------------------------------------------------------------------------------------


def machine() -> dict[str, Any]:
    """Processor, cores that may be used, system, and the date."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    today = datetime.date.today().isoformat()
    return {
        "processor": name or platform.processor(),
        "cores": cores,
        "system": f"{platform.system()} {platform.machine()}",
        "date": today,
    }


def heading(beside: Busy | None = None) -> str:
    """The line above a table: where and when, and what the columns are."""
    facts = machine()
    line = f"{facts['date']}, {facts['processor']}, {facts['cores']} cores, {facts['system']}"
    return f"{line}; busy: {beside.name} beside" if beside else line


COLUMNS = ("contest", "unit", "ours /s", "rival", "rival /s", "ours ÷ rival [95%]", "by processor time", "load")
BUSY_COLUMNS = ("busy: ours ÷ rival [95%]", "ours slower × [95%]", "rival slower ×")


def table_head(busy: bool = False) -> str:
    columns = COLUMNS + (BUSY_COLUMNS if busy else ())
    return "| " + " | ".join(columns) + " |\n|" + " --- |" * len(columns)


def table_rows(outcome: Outcome) -> str:
    """A row for each rival; one row where ours runs alone."""
    ours, *rivals = [c.name for c in outcome.contest.contestants]
    return "\n".join(_row(outcome, ours, rival) for rival in rivals or [None])


def _row(outcome: Outcome, ours: str, rival: str | None) -> str:
    load = "{:.1f} → {:.1f}".format(*outcome.load)
    against = ["", "", "", ""]
    if rival:
        ratios = [str(outcome.ratio(rival)), f"{outcome.ratio(rival, clock='cpu').value:.2f}"]
        against = [rival, f"{outcome.rate(rival):.4g}", *ratios]
    cells = [outcome.contest.title, outcome.contest.unit, f"{outcome.rate(ours):.4g}", *against, load]
    if outcome.busy[ours]:
        cells += [str(outcome.ratio(rival, busy=True)) if rival else "", str(outcome.slowdown(ours))]
        cells += [f"{outcome.slowdown(rival).value:.2f}" if rival else ""]
    return "| " + " | ".join(cells) + " |"


def as_json(outcome: Outcome) -> dict[str, Any]:
    """Everything that was measured, for a file."""

    def laps(of: dict[str, list[Lap]]) -> dict[str, list[dict[str, Any]]]:
        return {name: [vars(lap) for lap in own] for name, own in of.items()}

    return {
        "title": outcome.contest.title,
        "unit": outcome.contest.unit,
        "machine": machine(),
        "load": outcome.load,
        "contestants": outcome.facts,
        "quiet": laps(outcome.quiet),
        "busy": laps(outcome.busy),
    }


def add_options(parser: argparse.ArgumentParser, rounds: int = 12) -> None:
    """The options that all scripts with contests share."""
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--warmups", type=int, default=2)
    parser.add_argument("--busy", action="store_true", help="each round also with a busy browser beside")
    parser.add_argument(
        "--busy-rounds", type=int, metavar="N", help="only the first N rounds also busy: rivals may crawl"
    )
    parser.add_argument("--alone", action="store_true", help="no rivals: how fast, and how much slower when busy")
    parser.add_argument("--threads", type=int, help="of every contestant; torch's own choice otherwise")
    parser.add_argument("--tiny", action="store_true", help="a toy size, to see that it works")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured there")


def run(contests: Sequence[Contest], options: argparse.Namespace, check=lambda outcome: None) -> list[Outcome]:
    """Plays the contests and prints the table, a row as it comes; `check(outcome)` may end it with a complaint."""
    if options.threads:
        os.environ["OMP_NUM_THREADS"] = str(options.threads)
    if options.alone:
        contests = [replace(contest, contestants=contest.contestants[:1]) for contest in contests]
    beside = Busy() if options.busy else None
    outcomes = []
    try:
        print(heading(beside) + "\n\n" + table_head(options.busy), flush=True)
        for contest in contests:
            outcomes.append(play(contest, beside, options.busy_rounds))
            if not options.alone:
                check(outcomes[-1])
            print(table_rows(outcomes[-1]), flush=True)
    finally:
        if beside:
            beside.end()
    print("\n" + footnotes(outcomes))
    if options.json:
        options.json.write_text(json.dumps([as_json(outcome) for outcome in outcomes], indent=1) + "\n")
    return outcomes


def footnotes(outcomes: Sequence[Outcome]) -> str:
    """The versions, threads and waiting of each contestant, once each."""
    lines = {}
    for outcome in outcomes:
        for name, facts in outcome.facts.items():
            lines[f"{footnote(name, facts)}; {len(outcome.quiet[name])} rounds"] = None
    return "\n".join(lines)


def footnote(name: str, facts: dict[str, Any]) -> str:
    """What a contestant ran with."""
    told = ", ".join(f"{key} {value}" for key, value in facts.items() if key != "setting")
    return f"- {name}: {told}; {facts['setting']}"


if __name__ == "__main__":
    if sys.argv[1:2] != ["work"]:
        raise SystemExit("this is the engine; run against_trl.py, sampling.py or pretraining.py")
    work(sys.argv[2], json.loads(sys.argv[3]))
