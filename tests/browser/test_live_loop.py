"""Notebook 06 in a real JupyterLab, from the top, by a person with a mouse and then with a keyboard only.

The person's rule is "the shortest reply first". The quick profile's model writes little sense, but all that happens to
a label is the real thing: store, reward model, PPO, new questions, curves.
"""

from __future__ import annotations

import ast
import json
import shutil
from pathlib import Path

import pytest
from playwright.sync_api import expect

from rlhf_lab.records import Ranking
from rlhf_lab.store import FeedbackStore

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
NAME = "06_live_loop.ipynb"
PATIENCE_MS = 300_000  # the first run trains all five stages of the quick profile; spent on failure only
ENVIRONMENT = """import os
os.environ["RLHF_LAB_PROFILE"] = "quick"
os.environ["RLHF_LAB_RUNS"] = {runs!r}
os.environ.pop("RLHF_LAB_ANNOTATOR", None)  # a person answers here"""

MARGIN = """def margin(effect, scores):  # by how much the person's better replies are ahead of their worse ones
    score = dict(zip((c.id for c in effect.question.candidates), scores))
    tiers = list(enumerate(effect.order))
    return sum(score[a] - score[b] for i, up in tiers for j, low in tiers if i < j for a in up for b in low)"""


class Session:
    """Notebook 06 opened and run, and the person in front of it."""

    def __init__(self, notebook, folder: Path) -> None:
        self.notebook, self.page, self.folder = notebook, notebook.page, folder
        self.page.set_default_timeout(PATIENCE_MS)

    def run_from_the_top(self) -> None:
        name = f"{self.folder.name}-{NAME}"
        content = json.loads((NOTEBOOKS / NAME).read_text())
        first = {"cell_type": "code", "id": "environment", "metadata": {}, "outputs": [], "execution_count": None}
        content["cells"].insert(0, first | {"source": ENVIRONMENT.format(runs=str(self.folder / "runs"))})
        self.notebook.lab.path(name).write_text(json.dumps(content))
        shutil.copytree(NOTEBOOKS / "images", self.notebook.lab.path("images"), dirs_exist_ok=True)
        self.notebook.open(name)
        self.notebook.run_all()
        self.studio.scroll_into_view_if_needed()
        self.expect_question()

    # --- what is on the screen ---

    @property
    def studio(self):
        return self.page.locator(".rlhf-studio").first

    @property
    def ranking(self):
        return self.studio.locator(".rlhf-ranking")

    def expect_question(self) -> None:
        expect(self.ranking.locator(".rlhf-card").first).to_be_visible(timeout=PATIENCE_MS)

    def counter(self, name: str):
        return self.studio.locator(".rlhf-studio-counter", has_text=name)

    def curve(self, series: str):
        return self.studio.locator(f"[data-series='{series}']").first

    def drawn(self) -> dict[str, str | None]:
        """The path of each curve that has one."""
        lines = {key: self.curve(key).locator(".rlhf-curves-line") for key in ("reward", "kl", "agreement/running")}
        return {key: line.first.get_attribute("d") for key, line in lines.items() if line.count()}

    def outputs(self) -> str:
        """What the cells printed."""
        cells = self.notebook.content()["cells"]
        printed = [output.get("text", "") for cell in cells for output in cell.get("outputs", [])]
        return "\n".join("".join(text) for text in printed)

    # --- what the person does ---

    def shortest_first(self) -> list[str]:
        """The numbers on the screen of the replies, in this person's order."""
        cards = [
            (len(card.locator(".rlhf-text").inner_text()), card.get_attribute("aria-keyshortcuts"))
            for card in self.ranking.locator(".rlhf-card").all()
        ]
        return [number for _, number in sorted(cards)]

    def rank(self, by_keys: bool) -> None:
        """Answer the question on the screen and wait for its acknowledgement."""
        self.expect_question()
        labels = self.labels()
        for number in self.shortest_first():
            if by_keys:
                self.page.keyboard.press(number)
            else:
                self.ranking.locator(f".rlhf-card[aria-keyshortcuts='{number}']").click()
        if by_keys:
            self.page.keyboard.press("Enter")
        else:
            self.ranking.get_by_role("button", name="Confirm").click()
        expect(self.ranking.get_by_role("status")).to_contain_text("Saved", timeout=PATIENCE_MS)
        expect(self.counter("your labels")).to_contain_text(str(labels + 1), timeout=PATIENCE_MS)
        expect(self.curve("agreement/one")).to_have_attribute("data-count", str(labels + 1), timeout=PATIENCE_MS)

    def tab_into_the_ranking(self) -> None:
        """Reach the ranking widget without the mouse."""
        self.page.evaluate("document.activeElement.blur()")
        for _ in range(300):
            self.page.keyboard.press("Tab")
            if self.ranking.evaluate("root => root.contains(document.activeElement)"):
                return
        pytest.fail("Tab never reached the ranking widget")

    # --- what is true behind the screen ---

    def ask(self, expression: str):
        """The value of a Python expression in the notebook's kernel."""
        value = self.page.evaluate(
            """expression => jupyterapp.shell.currentWidget.sessionContext.session.kernel
                .requestExecute({code: '', user_expressions: {value: expression}}).done
                .then(reply => reply.content.user_expressions.value)""",
            expression,
        )
        assert value["status"] == "ok", value
        return ast.literal_eval(value["data"]["text/plain"])

    def do(self, code: str) -> None:
        """Run code in the notebook's kernel, outside its cells."""
        self.page.evaluate(
            """code => jupyterapp.shell.currentWidget.sessionContext.session.kernel
                .requestExecute({code}).done.then(() => null)""",
            code,
        )

    def labels(self) -> int:
        return int("".join(filter(str.isdigit, self.counter("your labels").inner_text())))

    def stored(self) -> list[tuple[Ranking, dict[str, str]]]:
        """The rankings in the database, each with its replies' texts."""
        [db] = self.folder.glob("runs/*/live.db")
        with FeedbackStore(db) as store:
            return [(ranking, store.question(ranking.question_id).texts) for ranking in store.rankings("me")]


@pytest.fixture
def session(new_notebook, tmp_path) -> Session:
    made = Session(new_notebook(viewport={"width": 1300, "height": 1400}), tmp_path)
    yield made
    if not made.page.is_closed():
        made.page.evaluate("() => jupyterapp.shell.currentWidget?.sessionContext?.shutdown()")


def test_a_person_ranks_by_clicks_then_by_keys_and_everything_moves(session):
    session.run_from_the_top()
    assert "Nothing is ranked yet" in session.outputs()  # the cells that read the record say what to do

    session.studio.get_by_role("button", name="Start").click()
    expect(session.curve("reward")).not_to_have_attribute("data-count", "0", timeout=PATIENCE_MS)
    for _ in range(5):
        session.rank(by_keys=False)
    halfway, steps = session.drawn(), session.ask("loop.ppo.steps_done")

    session.tab_into_the_ranking()
    for _ in range(5):
        session.rank(by_keys=True)
    expect(session.curve("reward")).not_to_have_attribute("data-count", str(steps), timeout=PATIENCE_MS)

    stored = session.stored()
    assert len(stored) == 10
    for ranking, texts in stored:  # every label is in the database, as it was given
        lengths = [len(texts[reply]) for tier in ranking.order for reply in tier]
        assert ranking.status == "ranked" and lengths == sorted(lengths) and len(lengths) == len(texts)

    session.do("from rlhf_lab.records import RewardUpdate")
    session.do(MARGIN)
    margins = "sum(margin(e.effects[0], e.effects[0].{}) for e in updates)"
    session.do("updates = [e for e in loop.history if isinstance(e, RewardUpdate)]")
    assert session.ask("len(updates)") == 10
    before, after = (session.ask(margins.format(when)) for when in ("before", "after"))
    assert after > before  # the reward model's scores moved towards the labels
    assert session.ask("all(e.effects[0].before != e.effects[0].after for e in updates)")

    assert session.ask("loop.ppo.steps_done") > steps  # PPO went on while the person ranked
    moved = "any((a != b).any().item() for a, b in zip(loop.policy.parameters(), loop.reference.parameters()))"
    assert session.ask(moved)
    drawn = session.drawn()
    assert {"reward", "kl", "agreement/running"} <= set(drawn)
    assert all(drawn[key] != halfway[key] for key in halfway)  # the curves on the screen changed

    session.notebook.run_all()  # the cells below now read a record; the set-up cells go on from it
    assert "10 rankings hold" in session.outputs() and "Nothing is ranked yet" not in session.outputs()
