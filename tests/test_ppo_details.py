"""docs/ppo_details.md names tests, config fields, functions and switches: all exist, with the defaults stated."""

import ast
import importlib
import re
from dataclasses import fields
from pathlib import Path

import pytest

from rlhf_lab import config
from rlhf_lab.ablations import SWITCHES

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "ppo_details.md").read_text(encoding="utf-8")
SECTIONS = {
    int(number): text for number, text in re.findall(r"^### (\d+)\. (.*?)(?=^##|\Z)", PAGE, re.MULTILINE | re.DOTALL)
}


def defined_in(path: Path) -> set[str]:
    return {node.name for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.FunctionDef)}


def test_every_test_that_the_page_names_exists():
    named = re.findall(r"`(tests/\w+\.py)(?:::(\w+))?`", PAGE)
    assert len(named) > 50
    for path, name in named:
        assert (ROOT / path).exists(), path
        assert not name or name in defined_in(ROOT / path), f"{path}::{name}"


def test_every_config_field_exists_and_has_the_default_that_the_page_states():
    named = re.findall(r"`(\w+Config)\.(\w+) = ([^`]+)`", PAGE)
    assert len(named) > 20 and len(named) == len(re.findall(r"`\w+Config\.", PAGE))
    for owner, name, stated in named:
        defaults = {field.name: field.default for field in fields(getattr(config, owner))}
        assert defaults[name] == ast.literal_eval(stated), f"{owner}.{name}"


def test_every_function_that_the_page_names_exists():
    named = set(re.findall(r"`rlhf_lab\.(\w+)((?:\.\w+)*)", PAGE))
    assert len(named) > 15
    for module, path in named:
        found = importlib.import_module(f"rlhf_lab.{module}")
        for part in path.split(".")[1:]:
            found = getattr(found, part)


def test_every_switch_is_on_the_page_and_every_one_on_the_page_is_a_switch():
    named = set()
    for listed in re.findall(r"switch(?:es)?\s+((?:`\w+`(?:,\s+)?)+)", PAGE):
        named |= set(re.findall(r"`(\w+)`", listed))
    assert named == set(SWITCHES)


def test_the_numbers_run_and_each_detail_has_what_the_page_promises():
    assert sorted(SECTIONS) == list(range(1, 23))
    for number, text in SECTIONS.items():
        assert "- **Ours:**" in text and "**Held by:** `tests/" in text, number
        if number <= 19:
            assert "- **Source:**" in text and "- **Without it" in text, number


@pytest.mark.parametrize("anchor", re.findall(r"\(#([\w-]+)\)", PAGE))
def test_links_within_the_page_lead_somewhere(anchor):
    headings = re.findall(r"^#+ (.+)$", PAGE, re.MULTILINE)
    assert anchor in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
