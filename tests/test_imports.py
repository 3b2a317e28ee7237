"""Which module may import which: read from the source, and seen in a fresh interpreter."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Imports run one way: a module imports from its own layer and from those before it.
LAYERS = [
    {"errors", "records", "config", "kernel_forks", "cores", "blocks", "fast"},
    {"database"},
    {"scenario", "text", "store", "plots", "exercises"},
    {"assignments", "formats", "agreement", "aggregation", "quality", "class_report"},
    {"judge"},
    {"annotators"},
    {"models", "sampling"},
    {"language", "checkpoints", "replies"},
    {"reward"},
    {"ppo", "direct", "group", "selection"},
    {"evaluation"},
    {"methods", "microscope", "ablations"},
    {"runs", "reward_from_pairs", "chat", "snapshots"},
    {"personal"},
    {"live", "class_questions", "class_trainer", "classroom_server", "classroom"},
    {"cli", "cli_feedback", "cli_classroom"},
]
# What trains a model sees comparisons and nothing of the truth behind them.
TRAINING = ["text", "models", "language", "sampling", "replies", "reward", "ppo"]
TRUTH = {"judge", "annotators"}
# Labelling is light: these work without torch, so that a class of annotators needs no gigabytes.
TORCH_FREE = [
    *("rlhf_lab.records", "rlhf_lab.errors", "rlhf_lab.config", "rlhf_lab.store", "rlhf_lab.formats"),
    *("rlhf_lab.agreement", "widgets.ranking", "widgets.compare"),
]


def imported_modules(path: Path) -> set[str]:
    """Absolute dotted names of all that a file imports, inside functions too, `from a import b` as "a" and "a.b"."""
    package = path.relative_to(ROOT).parent.parts
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join([*package[: len(package) - node.level + 1] * bool(node.level), node.module or ""]).strip(
                "."
            )
            names |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return names


def helper_imports() -> dict[str, set[str]]:
    """For each module of rlhf_lab, which other modules of rlhf_lab it imports."""
    files = {path.stem: [path] for path in (ROOT / "rlhf_lab").glob("*.py") if path.stem != "__init__"}
    files["formats"] = sorted((ROOT / "rlhf_lab" / "formats").glob("*.py"))  # a package, one module to the others
    graph = {}
    for name, paths in files.items():
        dotted = [module.split(".") for path in paths for module in imported_modules(path)]
        graph[name] = {parts[1] for parts in dotted if parts[0] == "rlhf_lab" and parts[1:2] and parts[1] in files}
        graph[name].discard(name)
    return graph


def test_the_helper_package_never_imports_the_screen():
    files = list((ROOT / "rlhf_lab").rglob("*.py"))
    offenders = [
        str(path.relative_to(ROOT)) for path in files for name in imported_modules(path) if name[:7] == "widgets"
    ]
    assert files and not offenders


def test_imports_run_one_way():
    layer = {module: number for number, modules in enumerate(LAYERS) for module in modules}
    wrong = [
        f"{module} imports {other}"
        for module, others in helper_imports().items()
        for other in others
        if module in layer and layer.get(other, 0) > layer[module]
    ]
    assert not wrong


def test_every_module_has_its_layer():
    placed = [module for modules in LAYERS for module in modules]
    assert len(placed) == len(set(placed)) and not set(helper_imports()) - set(placed)


@pytest.mark.parametrize("module", TRAINING)
def test_what_trains_a_model_does_not_import_the_gold_judge(module):
    """In its source, at any remove, inside functions too."""
    graph, reached, ahead = helper_imports(), set(), [module]
    while ahead:
        name = ahead.pop()
        reached.add(name)
        ahead += graph[name] - reached
    assert not reached & TRUTH


def test_what_trains_a_model_does_not_load_the_gold_judge():
    """All training modules together, in a fresh interpreter."""
    modules = [f"rlhf_lab.{name}" for name in TRAINING]
    code = f"import sys, {', '.join(modules)}; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    loaded = set(result.stdout.split())
    assert set(modules) <= loaded, result.stderr
    assert not loaded & {f"rlhf_lab.{name}" for name in TRUTH}


def test_no_circle_of_imports():
    assert list(TopologicalSorter(helper_imports()).static_order())  # raises CycleError naming the circle


@pytest.mark.parametrize("module", TORCH_FREE)
def test_labelling_needs_no_torch(module):
    place = ROOT / module.replace(".", "/")
    if not place.with_suffix(".py").exists() and not (place / "__init__.py").exists():
        pytest.skip(f"{module} does not exist")
    code = f"import sys, {module}; print(sorted({{'torch', 'transformers'}} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.stdout.strip() == "[]", result.stdout + result.stderr


def test_relative_and_absolute_imports_are_both_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    source = tmp_path / "rlhf_lab" / "a.py"
    source.parent.mkdir()
    source.write_text("import x.y\nfrom . import b\ndef f():\n    from .c import d\n    from rlhf_lab import e\n")
    assert {"x.y", "rlhf_lab.b", "rlhf_lab.c", "rlhf_lab.e"} <= imported_modules(source)
