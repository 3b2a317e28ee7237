"""Notebook 05 in a real JupyterLab, from the top: the microscope and the panel of switches by mouse and keyboard."""

from __future__ import annotations

import json
import re
from pathlib import Path

from playwright.sync_api import expect

NAME = "05_ppo.ipynb"
NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
PATIENCE_MS = 300_000  # the first run trains the stages of the quick profile; spent on failure only
ENVIRONMENT = """import os
os.environ["RLHF_LAB_PROFILE"] = {profile!r}
os.environ["RLHF_LAB_RUNS"] = {runs!r}"""


def open_and_run(notebook, runs: Path, profile: str = "quick") -> None:
    """Notebook 05 with a first cell that chooses the profile, run from the top."""
    content = json.loads((NOTEBOOKS / NAME).read_text())
    first = {"cell_type": "code", "id": "environment", "metadata": {}, "outputs": [], "execution_count": None}
    content["cells"].insert(0, first | {"source": ENVIRONMENT.format(profile=profile, runs=str(runs))})
    notebook.lab.path(NAME).write_text(json.dumps(content))
    notebook.page.set_default_timeout(PATIENCE_MS)
    notebook.open(NAME)
    notebook.run_all()


def test_the_microscope_and_the_switches_of_notebook_05(notebook, tmp_path):
    open_and_run(notebook, tmp_path / "runs")
    page = notebook.page

    scope = page.get_by_role("region", name="PPO microscope").first
    scope.scroll_into_view_if_needed()
    which, tokens = scope.locator(".rlhf-scope-which"), scope.get_by_role("option")
    tokens.first.click()
    expect(scope).to_contain_text(f"token 1 of {tokens.count()}")
    page.keyboard.press("ArrowRight")
    expect(scope).to_contain_text(f"token 2 of {tokens.count()}")
    second = which.inner_text()
    tokens.nth(3).hover()  # the mouse looks, the chosen token stays
    expect(scope).to_contain_text(f"token 4 of {tokens.count()}")
    page.mouse.move(0, 0)
    expect(which).to_have_text(second)
    for name in ("KL", "Reward", "Value", "Return", "Advantage", "Ratio", "Log-probability", "Reference"):
        expect(scope.locator(".rlhf-scope-name", has_text=name).first).to_be_visible()
    prompt, place = scope.locator(".rlhf-scope-prompt"), scope.locator(".rlhf-scope-place")
    was = place.inner_text()
    page.keyboard.press("n")
    expect(place).not_to_have_text(was)
    expect(prompt).not_to_be_empty()

    panel = page.locator(".rlhf-ablations").first
    chips = panel.get_by_role("radio")
    chips.and_(panel.locator("[data-name='whiten_before_returns']")).click()
    expect(panel.locator(".rlhf-abl-title").first).to_have_text("Returns before whitening")
    page.keyboard.press("r")  # Run both
    for arm in ("right", "broken"):
        line = panel.locator(f"[data-series$='/{arm}'] .rlhf-curves-line").first
        expect(line).to_have_attribute("d", re.compile("L|,.*,"), timeout=PATIENCE_MS)
    expect(panel.get_by_role("region", name="Outcome")).to_contain_text("broken", timeout=PATIENCE_MS)
