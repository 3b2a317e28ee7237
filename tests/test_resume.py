"""A run that is killed, interrupted or out of disk ends with the same numbers as an unbroken one."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from rlhf_lab import checkpoints
from rlhf_lab.errors import InputError
from rlhf_lab.runs import STAGES, Run
from rlhf_lab.store import FeedbackStore

METRICS = ("pretrain", "sft", "reward_model", "ppo")

# One process imports everything, then forks a child for every attempt: the last one is left to finish.
KILLER = """
import os, random, signal, sys, time
from rlhf_lab.runs import Run

def attempt(folder, seconds=None):
    child = os.fork()
    if child == 0:
        Run(folder, profile="quick", progress=None).summary()
        os._exit(0)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

rng = random.Random(7)
codes = [attempt(sys.argv[1], rng.uniform(0.05, 1.0)) for _ in range(int(sys.argv[2]))]
assert attempt(sys.argv[1]) == 0
print(codes.count(-signal.SIGKILL))
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """An unbroken run and one that was killed (SIGKILL) at random moments, with how often."""
    if not hasattr(os, "fork"):
        pytest.skip("needs fork")
    place = tmp_path_factory.mktemp("runs")
    unbroken, killed = place / "unbroken", place / "killed"
    kills = []
    for hash_seed, (folder, rounds) in enumerate([(unbroken, 0), (killed, 9)]):
        # Texts hash differently in every process: no number may depend on the order of a set.
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": str(hash_seed)}
        command = [sys.executable, "-c", KILLER, str(folder), str(rounds)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        kills.append(int(done.stdout))
    return unbroken, killed, kills[1]


def without_seconds(data):
    return {key: value for key, value in data.items() if key != "seconds"}


def summary_of(folder: Path) -> dict:
    return without_seconds(json.loads((folder / "summary.json").read_text()))


def metrics_of(folder: Path) -> dict[str, list[dict]]:
    return {
        name: [without_seconds(json.loads(line)) for line in (folder / "metrics" / f"{name}.jsonl").open()]
        for name in METRICS
    }


def test_a_killed_run_ends_with_the_same_summary(folders):
    unbroken, killed, kills = folders
    assert kills >= 2
    assert summary_of(killed) == summary_of(unbroken)


def test_a_killed_run_has_the_same_metrics_but_for_times(folders):
    unbroken, killed, _ = folders
    assert metrics_of(killed) == metrics_of(unbroken)
    assert [len(points) for points in metrics_of(killed).values()] == [60, 20, 6, 4]


def test_a_killed_run_has_the_same_weights(folders):
    for name in ("base", "sft", "reward", "policy"):
        one, other = ((folder / name / "model.safetensors").read_bytes() for folder in folders[:2])
        assert one == other, name


def test_a_killed_run_stored_every_question_and_ranking_once(folders):
    def content(folder, file):
        with FeedbackStore(folder / file) as store:
            return store.questions(), [(e.id, e.question_id, e.payload["order"]) for e in store.events()]

    for file in ("feedback.db", "held_out.db"):
        assert content(folders[0], file) == content(folders[1], file)


def test_a_finished_run_leaves_nothing_half_done(folders):
    left = {path.name for path in folders[1].rglob("*")}
    assert "checkpoints" not in left and not any(name.endswith(".tmp") for name in left)


# --- interrupted at a chosen step ---


class Interrupted:
    """A progress bar that stops the run, as Ctrl-C does, after some steps of one stage."""

    def __init__(self, title: str, steps: int):
        self.title, self.steps = title, steps

    def __call__(self, desc: str, **_):
        self.mine = desc.strip() == STAGES[self.title].title
        return self

    def update(self, n: int = 1):
        self.steps -= n * self.mine
        if self.mine and self.steps <= 0:
            raise KeyboardInterrupt

    def close(self): ...
    def refresh(self): ...
    def set_postfix(self, *_, **__): ...


def unmade(finished: Path, folder: Path, stage: str) -> Path:
    """A copy of a finished run in which `stage` and all after it are still to be made."""
    shutil.copytree(finished, folder)
    for later in list(STAGES.values())[list(STAGES).index(stage) :]:
        (folder / "stages" / f"{later.name}.json").unlink()
        left = folder / later.leaves
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    return folder


@pytest.fixture
def interrupted(folders, tmp_path):
    """interrupted(stage, steps) → the folder of a run that was stopped there, with its checkpoint."""

    def make(stage: str, steps: int) -> Path:
        folder = unmade(folders[0], tmp_path / stage, stage)
        with pytest.raises(KeyboardInterrupt):
            Run(folder, profile="quick", progress=Interrupted(stage, steps)).summary()
        return folder

    return make


@pytest.mark.parametrize(("stage", "steps"), [("pretrain", 31), ("reward_model", 3), ("ppo", 2)])
def test_a_stage_goes_on_from_its_checkpoint(folders, interrupted, stage, steps):
    folder = interrupted(stage, steps)
    assert (folder / "checkpoints" / f"{stage}.safetensors").exists()
    start = []

    class Watched(Interrupted):
        def update(self, n=1):
            if self.mine:
                start.append(n)

    Run(folder, profile="quick", progress=Watched(stage, 10**9)).summary()
    assert 0 < start[0] < steps + 1  # the bar began where the checkpoint stood, not at zero
    assert summary_of(folder) == summary_of(folders[0]) and metrics_of(folder) == metrics_of(folders[0])


# --- damaged files ---


def quick(folder):
    return Run(folder, profile="quick", progress=None)


def truncate(path: Path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def spoil_counters(path: Path):
    save_file(load_file(path), path, {"counters": "{not JSON"})


def other_model(path: Path):
    save_file({name: tensor[:1].clone() for name, tensor in load_file(path).items() if tensor.dim()}, path,
              {"counters": '{"step": 2, "seconds": 1.0}'})  # fmt: skip


@pytest.mark.parametrize("damage", [truncate, spoil_counters, other_model, lambda path: path.write_bytes(b"")])
def test_a_damaged_checkpoint_is_named_and_deleting_it_helps(folders, interrupted, damage):
    folder = interrupted("ppo", 2)
    checkpoint = folder / "checkpoints" / "ppo.safetensors"
    damage(checkpoint)
    with pytest.raises(InputError) as error:
        quick(folder).summary()
    assert str(checkpoint) in str(error.value) and "delete it" in str(error.value)
    checkpoint.unlink()
    quick(folder).summary()
    assert summary_of(folder) == summary_of(folders[0])


def test_metrics_that_end_before_the_checkpoint_are_named(interrupted):
    folder = interrupted("ppo", 3)
    (folder / "metrics" / "ppo.jsonl").write_text("")
    with pytest.raises(InputError, match=r"ppo.jsonl: ends before line 2.*delete .*checkpoints"):
        quick(folder).summary()


def test_a_damaged_model_is_named_and_made_again_once_deleted(folders, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(folders[0], folder)
    truncate(folder / "sft" / "model.safetensors")
    with pytest.raises(InputError, match=r"sft.*or delete .*sft, and it is made again"):
        quick(folder).sft()
    shutil.rmtree(folder / "sft")
    quick(folder).sft()
    assert (folder / "sft" / "model.safetensors").read_bytes() == (
        folders[0] / "sft" / "model.safetensors"
    ).read_bytes()


@pytest.mark.parametrize(("file", "words"), [("summary.json", "delete it"), ("config.json", "cannot be read")])
def test_a_damaged_json_file_is_named(folders, tmp_path, file, words):
    folder = tmp_path / "run"
    shutil.copytree(folders[0], folder)
    truncate(folder / file)
    with pytest.raises(InputError, match=rf"{file}.*{words}"):
        quick(folder).summary()


# --- a full disk ---


@pytest.mark.parametrize("writes", [0, 2, 5])
def test_a_full_disk_is_one_clear_error_and_loses_nothing(folders, tmp_path, monkeypatch, writes):
    folder = unmade(folders[0], tmp_path / "run", "ppo")
    left = [writes]

    def full(*_):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.os, "fsync", full)
        with pytest.raises(InputError, match="No space left on device.*make room.*is kept"):
            quick(folder).summary()
    quick(folder).summary()
    assert summary_of(folder) == summary_of(folders[0])


def test_a_file_too_large_for_the_disk_stops_a_real_process_cleanly(folders, tmp_path):
    """The kernel itself refuses to write more than 40 kB: weights do not fit."""
    pytest.importorskip("resource")
    folder = unmade(folders[0], tmp_path / "run", "sft")
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000));"
        "from rlhf_lab.cli import main; sys.exit(main(['run', '--profile', 'quick', '--out', sys.argv[1]]))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 2 and last.startswith("rlhf-lab: ") and "cannot be written" in last
    assert "Traceback" not in done.stderr
    quick(folder).summary()
    assert summary_of(folder) == summary_of(folders[0])
