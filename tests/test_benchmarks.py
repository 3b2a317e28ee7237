"""The benchmarks' commands, at toy sizes: they run, they measure what they say, and they take no wrong argument."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
COMMANDS = sorted(path.name for path in BENCHMARKS.glob("*.py") if "ArgumentParser(description" in path.read_text())


@pytest.fixture
def contest(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import contest

    return contest


def command(name: str, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(BENCHMARKS / name), *arguments], capture_output=True, text=True, timeout=300, check=False
    )


def rows(output: str) -> list[list[str]]:
    """The cells of a Markdown table's rows, without its head."""
    lines = [line for line in output.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


@pytest.mark.parametrize("name", COMMANDS)
def test_an_argument_that_does_not_exist_ends_every_benchmark_with_2_and_one_clear_line(name):
    ended = command(name, "--no-such-option")
    assert ended.returncode == 2
    assert ended.stderr.strip().splitlines()[-1].startswith(f"{name}: error: ")
    assert not ended.stdout


def test_scaling_measures_each_step_and_its_memory():
    ended = command("scaling.py", "--tiny", "--rounds", "1", "--threads", "1")
    assert ended.returncode == 0, ended.stderr
    table = rows(ended.stdout)
    assert [row[0] for row in table] == [
        title for title in ("sampling", "PPO step, separate critic", "pretraining step") for _ in range(2)
    ]
    assert all(float(row[4]) >= 0 and float(row[5].replace(",", "")) > 50 for row in table)


def test_the_benchmark_for_a_gpu_runs_on_a_cpu_at_a_toy_size():
    ended = command("gpu.py", "--tiny", "--device", "cpu")
    assert ended.returncode == 0, ended.stderr
    assert {(row[1], row[2]) for row in rows(ended.stdout)} == {
        (work, precision)
        for work in ("sampling", "`generate`", "PPO, separate critic", "PPO, value head")
        for precision in ("bf16", "fp32")
    }


def test_a_ratio_is_the_median_of_the_rounds_and_its_interval_covers_them(contest):
    ratio = contest.median_ratio([1.0, 2.0, 9.0])
    assert (ratio.value, ratio.low, ratio.high) == (2.0, 1.0, 9.0)
    assert contest.median_ratio([1.5] * 4) == contest.Ratio(1.5, 1.5, 1.5)


def test_each_contestant_goes_first_in_every_other_round(contest):
    assert [contest.order_of("AB", number) for number in range(3)] == [["A", "B"], ["B", "A"], ["A", "B"]]


def test_ours_over_rival_is_a_ratio_of_speeds_round_by_round(contest):
    def laps(*seconds):
        return [contest.Lap(s, s, {"tokens": 10.0}) for s in seconds]

    what = SimpleNamespace(unit="tokens", contestants=(SimpleNamespace(name="ours"), SimpleNamespace(name="rival")))
    both = {"ours": laps(1.0, 2.0, 4.0), "rival": laps(2.0, 4.0, 8.0)}
    outcome = contest.Outcome(what, both, {"ours": [], "rival": []}, {}, {}, (0.0, 0.0))
    assert outcome.ratio("rival").value == pytest.approx(2.0)
    assert outcome.rate("ours") == pytest.approx(5.0)


def test_the_slow_down_is_of_the_rounds_that_were_busy_too(contest):
    def laps(*seconds):
        return [contest.Lap(s, s, {"tokens": 10.0}) for s in seconds]

    what = SimpleNamespace(unit="tokens", contestants=(SimpleNamespace(name="ours"),))
    outcome = contest.Outcome(what, {"ours": laps(1.0, 2.0, 9.0)}, {"ours": laps(3.0, 6.0)}, {}, {}, (0.0, 0.0))
    assert outcome.slowdown("ours").value == pytest.approx(3.0)


def test_ours_alone_beside_a_busy_process_in_the_first_rounds_only(tmp_path):
    ended = command(
        "sampling.py", "--tiny", "--alone", "--busy", "--busy-rounds", "1", "--rounds", "2", "--warmups", "0",
        "--batches", "4", "--json", str(tmp_path / "laps.json"),
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    (row,) = rows(ended.stdout)
    assert row[3] == row[5] == "" and float(row[9].split()[0]) > 0
    (contest,) = json.loads((tmp_path / "laps.json").read_text())
    assert set(contest["contestants"]) == {"rlhf_lab"}
    assert (len(contest["quiet"]["rlhf_lab"]), len(contest["busy"]["rlhf_lab"])) == (2, 1)
