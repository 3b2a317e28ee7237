"""The set-up: pins, conda environment, Makefile and CI agree, and an installation that failed is not taken for one."""

import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import rlhf_lab

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
TARGETS = ["help", "lab", "test", "lint", "constraints", "clean"]


def pins() -> dict[str, str]:
    """Version by canonical package name, from constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    found = {canonicalize_name(name): version for name, version in pairs}
    assert len(found) == len(pairs), "a package is pinned twice"
    return found


def direct_requirements() -> list[Requirement]:
    extras = PROJECT["optional-dependencies"].values()
    found = [Requirement(text) for text in [*PROJECT["dependencies"], *(text for extra in extras for text in extra)]]
    return [requirement for requirement in found if requirement.name != PROJECT["name"]]  # an extra made of extras


# --- pins and environments ---


@pytest.mark.parametrize("requirement", direct_requirements(), ids=lambda requirement: requirement.name)
def test_a_direct_dependency_is_pinned_inside_its_range(requirement):
    version = pins().get(canonicalize_name(requirement.name))
    assert version and requirement.specifier.contains(version), f"{requirement} and pin {version}"


def test_pins_hold_on_every_platform():
    """No local version such as 2.13.0+cpu, which only one index has; torch's CUDA packages stay torch's business."""
    assert all(re.fullmatch(r"\d+(\.\d+)*((a|b|rc|\.post)\d+)?", version) for version in pins().values())
    assert not [name for name in pins() if name.startswith(("nvidia", "cuda", "triton"))]


def test_indirect_dependencies_are_pinned():
    pinned, seen = pins(), set()
    queue = [(requirement.name, requirement.extras) for requirement in direct_requirements()]
    while queue:
        name, extras = queue.pop()
        if (canonicalize_name(name), *extras) in seen:
            continue
        seen.add((canonicalize_name(name), *extras))
        try:
            needed = map(Requirement, requires(name) or [])
        except PackageNotFoundError:
            continue  # an option of a package that is not installed here
        for item in needed:
            if not item.marker or any(item.marker.evaluate({"extra": extra}) for extra in extras or {""}):
                queue.append((item.name, item.extras))
    missing = {name for name, *_ in seen} - set(pinned)
    assert not {name for name in missing if not name.startswith(("nvidia", "cuda", "triton"))}


def test_the_conda_environment_is_this_project():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    python, pip, section = environment["dependencies"]
    assert pip == "pip" and section == {"pip": ["-c constraints.txt", "-e .[all]"]}
    allowed, supported = SpecifierSet(python.removeprefix("python")), SpecifierSet(PROJECT["requires-python"])
    versions = {f"3.{minor}" for minor in range(30)}
    assert "3.11" in set(allowed.filter(versions)) <= set(supported.filter(versions))


def test_one_torch_version_everywhere():
    assert pins()["torch"] == "2.13.0"
    names = ["README.md", "Makefile", "environment.yml", "pyproject.toml", ".ci/run"]
    texts = [(ROOT / name).read_text(encoding="utf-8") for name in names]
    assert {version for text in texts for version in re.findall(r"torch==([\w.+]+)", text)} <= {"2.13.0"}


def test_the_version_is_stated_once():
    assert PROJECT["version"] == rlhf_lab.__version__


# --- Makefile, driven with a stand-in for .venv/bin/python that writes down its arguments ---


class Clone:
    """A folder with the project's set-up files and a Python that only takes notes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.log = path.with_name("python.log")
        for name in ("Makefile", "pyproject.toml", "constraints.txt"):
            shutil.copy(ROOT / name, path)
        past = time.time() - 100
        for name in ("pyproject.toml", "constraints.txt"):
            os.utime(path / name, (past, past))

    def add_python(self, answers_to_pip: int = 0) -> None:
        python = self.path / ".venv" / "bin" / "python"
        python.parent.mkdir(parents=True, exist_ok=True)
        script = f'pwd >> "{self.log}"; echo "$@" >> "{self.log}"'
        script += f'\ncase "$*" in *"pip install"*) exit {answers_to_pip};; esac\n'
        python.write_text("#!/bin/sh\n" + script)
        python.chmod(0o755)

    def make(self, *arguments: str) -> subprocess.CompletedProcess:
        """Run make without what an outer `make test` has put into the environment."""
        environment = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/")}
        return subprocess.run(["make", *arguments], cwd=self.path, env=environment, capture_output=True, text=True)

    def take_notes(self) -> str:
        """What the stand-in was called with since the last look."""
        text = self.log.read_text() if self.log.exists() else ""
        self.log.unlink(missing_ok=True)
        return text


@pytest.fixture
def clone(tmp_path):
    (tmp_path / "clone").mkdir()
    return Clone(tmp_path / "clone")


def test_stated_targets_exist(clone):
    listed = clone.make("help").stdout
    for target in TARGETS:
        assert f"make {target} " in listed
        assert clone.make("--dry-run", target).returncode == 0
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    code = "".join(readme.split("```")[1::2])
    stated = re.findall(r"`make ([a-z]+)", readme) + re.findall(r"^\s*make ([a-z]+)", code, re.MULTILINE)
    assert set(stated) <= set(TARGETS)


def test_lab_installs_once_and_passes_arguments_on(clone):
    clone.add_python()
    arguments = "--no-browser --port 8899 --ServerApp.token=x"
    assert clone.make("lab", f"LAB_ARGS={arguments}").returncode == 0
    notes = clone.take_notes()
    assert "pip install" in notes and "--constraint constraints.txt --editable .[all]\n" in notes
    assert f"{clone.path}/notebooks\n-m jupyterlab" in notes and f" {arguments}\n" in notes
    assert clone.make("lab").returncode == 0
    assert "pip install" not in clone.take_notes()


def test_tests_need_more_than_the_lab(clone):
    clone.add_python()
    clone.make("lab")
    clone.take_notes()
    assert clone.make("test", "TEST_ARGS=-k store").returncode == 0
    notes = clone.take_notes()
    assert "--editable .[test]\n" in notes and re.search(r"-m pytest .*-k store\n", notes)
    clone.make("lab")
    clone.make("test")
    assert "pip install" not in clone.take_notes()


def test_a_failed_installation_is_tried_again(clone):
    clone.add_python(answers_to_pip=1)
    assert clone.make("lab").returncode != 0
    assert "jupyterlab" not in clone.take_notes()
    clone.add_python()
    assert clone.make("lab").returncode == 0
    assert "pip install" in clone.take_notes()


@pytest.mark.parametrize("target", ["lab", "test"])
def test_a_changed_pin_or_a_moved_folder_installs_again(clone, target):
    clone.add_python()
    clone.make(target)
    stamp, past = clone.path / ".venv" / f".{target}", time.time() - 50
    os.utime(stamp, (past, past))
    clone.take_notes()
    (clone.path / "constraints.txt").touch()
    clone.make(target)
    assert "pip install" in clone.take_notes()
    clone.path = clone.path.rename(clone.path.with_name("a folder with spaces"))
    assert clone.make(target).returncode == 0
    assert "pip install" in clone.take_notes()


def test_an_index_for_torch_can_be_named(clone):
    clone.add_python()
    clone.make("lab", "TORCH_INDEX=https://download.pytorch.org/whl/cpu")
    assert "--extra-index-url https://download.pytorch.org/whl/cpu --constraint" in clone.take_notes()


def test_an_old_python_is_one_clear_line(clone):
    result = clone.make("lab", "PYTHON=false no-such-python")
    assert result.returncode != 0 and not (clone.path / ".venv").exists()
    assert "error: Python 3.11 or newer is needed and was not found as: false no-such-python" in result.stderr


def test_a_python_without_venv_is_one_clear_line(clone):
    python = clone.path / "python-without-venv"
    python.write_text('#!/bin/sh\ncase "$*" in *ensurepip*) exit 1;; esac\n')
    python.chmod(0o755)
    result = clone.make("lab", f"PYTHON={python}")
    assert result.returncode != 0 and not (clone.path / ".venv").exists()
    assert f"error: {python} has no venv module" in result.stderr


# --- CI ---


@pytest.fixture
def machine(tmp_path):
    """A PATH with stand-ins, and what they were called with."""

    def run(*, chromium: bool, uid: int = 0, make_answers: int = 0):
        folder, log = tmp_path / "bin", tmp_path / "log"
        folder.mkdir()
        answers = {"make": make_answers, "apt-get": 0, "dpkg-query": 1, "python3": 0}
        if chromium:
            answers["chromium"] = 0
        for name, code in answers.items():
            (folder / name).write_text(f'#!/bin/sh\necho "{name} $* CI=$CI" >> {log}\nexit {code}\n')
        (folder / "id").write_text(f"#!/bin/sh\necho {uid}\n")
        for tool in folder.iterdir():
            tool.chmod(0o755)
        for name in ("bash", "dirname", "grep"):
            (folder / name).symlink_to(shutil.which(name))
        result = subprocess.run(
            [folder / "bash", ROOT / ".ci" / "run"], env={"PATH": str(folder)}, capture_output=True, text=True
        )
        return result, log.read_text()

    return run


@pytest.mark.parametrize("code", [0, 2])
def test_ci_answers_as_the_tests_do(machine, code):
    result, log = machine(chromium=True, make_answers=code)
    assert result.returncode == code
    assert log.splitlines()[-1] == "make test CI=true"
    assert "install -q -y --no-install-recommends chromium" not in log


def test_ci_installs_a_browser_where_there_is_none(machine):
    result, log = machine(chromium=False)
    assert result.returncode == 0
    assert log.index("--no-install-recommends chromium") < log.index("make test")


def test_ci_says_what_is_missing_when_it_may_not_install(machine):
    result, log = machine(chromium=False, uid=1000)
    assert result.returncode != 0 and "make test" not in log
    assert "error: missing chromium" in result.stderr


# --- sharing the tests among workers ---


def test_browser_tests_come_first_and_on_one_worker(tmp_path):
    shutil.copy(ROOT / "conftest.py", tmp_path)
    log = tmp_path / "log"
    for name in ("test_a", "test_b", "test_browser_one", "test_browser_two", "test_browser_three"):
        note = f"open({str(log)!r}, 'a').write('{name} ' + os.environ['PYTEST_XDIST_WORKER'] + '\\n')"
        (tmp_path / f"{name}.py").write_text(f"import os\ndef test_it():\n    {note}\n")
    command = [sys.executable, "-m", "pytest", "-q", "-n", "2", "--dist", "loadfile", "-p", "no:cacheprovider"]
    result = subprocess.run([*command, "--rootdir", tmp_path, tmp_path], capture_output=True, text=True)
    assert "5 passed" in result.stdout, result.stdout + result.stderr
    worker_of = dict(line.split() for line in log.read_text().splitlines())
    assert len({worker for name, worker in worker_of.items() if "browser" in name}) == 1
