"""How long a label takes: from the click to "Saved" on the screen, in real JupyterLab and Chromium.

    python benchmarks/label_latency.py [RUN_FOLDER] [--labels 100] [--forms pair ranking] [--quick] [--postgresql URL]

A pair takes one click; a ranking of four takes four keys and Enter, and its time is counted from Enter. "screen" is
from the browser's event to the frame that shows "Saved"; "commit" is the part inside Python, from the widget's call of
`on_answer` to its return, after the database has committed. Idle is a kernel that only labels. With RUN_FOLDER (of
`rlhf-lab run`; a copy is used), the same while the live loop's worker trains the policy with PPO in the same kernel and
learns every label. With --postgresql (the URL of an empty database) idle on PostgreSQL too.
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
from pathlib import Path

KEY_PAUSE_MS = 60  # somebody who types fast
ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from browser.conftest import CHROMIUM_FLAGS, Lab, Notebook, find_chromium, start_lab, stop_lab  # noqa: E402
from playwright.sync_api import sync_playwright  # noqa: E402

WIDGET = """
import rlhf_lab, json, time
from rlhf_lab.records import Candidate, Question, new_id
from rlhf_lab.store import FeedbackStore
from widgets import CompareWidget, RankingWidget

store, replies, count = FeedbackStore({url!r}), {replies}, {count}
candidates = tuple(Candidate(f"c{{i}}", f"Reply {{i}}: you can send it back. " * 3) for i in range(replies))
questions = [Question(new_id(), f"How do I send back order {{n}}?", candidates) for n in range(count)]
store.add_questions(questions)
steps, save = [], store.append
{training}
commits, left = [], iter(questions)

def on_answer(answer):
    began = time.perf_counter()
    place = save(answer)
    commits.append(1000 * (time.perf_counter() - began))
    return place

widget = (CompareWidget if replies == 2 else RankingWidget)(
    None, on_answer, on_undo=lambda answer: None, next_question=lambda: next(left, None), total=count)
widget
"""
TRAINING = """
from rlhf_lab.live import LiveLoop
from rlhf_lab.records import StepStats
from rlhf_lab.runs import Run
loop = LiveLoop.from_run(Run({run!r}, profile="default", seed={seed}), store)
loop.subscribe(lambda event: isinstance(event, StepStats) and steps.append(event.step))
loop.start()
save = loop.submit
"""
REPORT = "open({to!r}, 'w').write(json.dumps({{'commits': commits, 'steps': len(steps), 'stored': store.count()}}))"
# In the page: when the event came, and the frame in which "Saved" stands there for it.
WATCH = """
() => {
  const saved = document.querySelector(".rlhf-feedback .rlhf-saved");
  window.labelTimes = [];
  let began = null;
  const begin = (event) => {
    if (event.type === "click" ? event.target.closest(".rlhf-card") : event.key === "Enter") began = event.timeStamp;
  };
  if (REPLIES === 2) document.addEventListener("click", begin, true);
  else document.addEventListener("keydown", begin, true);
  new MutationObserver(() => {
    if (began === null || !saved.textContent.includes("Saved")) return;
    const from = began;
    began = null;
    requestAnimationFrame(() => window.labelTimes.push(performance.now() - from));
  }).observe(saved, { childList: true, characterData: true, subtree: true });
}
"""
FORMS = {"pair": (2, "pair, one click"), "ranking": (4, "ranking, 4 keys + Enter")}
DONE = "n => window.labelTimes.length >= n"


def label(notebook: Notebook, replies: int, count: int) -> list[float]:
    """Give `count` labels as a person would, with pauses; the milliseconds of each."""
    page, pauses = notebook.page, random.Random(0)
    root = page.locator(".rlhf-feedback").first
    root.wait_for()
    root.click(position={"x": 8, "y": 8})
    page.evaluate(WATCH.replace("REPLIES", str(replies)))
    for number in range(1, count + 1):
        page.wait_for_timeout(pauses.uniform(100, 400))
        if replies == 2:
            root.locator(".rlhf-card").nth(pauses.randrange(2)).click()
        else:
            for key in pauses.sample("1234", 4):
                page.keyboard.press(key)
                page.wait_for_timeout(KEY_PAUSE_MS)
            page.keyboard.press("Enter")
        page.wait_for_function(DONE, arg=number)
    return page.evaluate("window.labelTimes")


def measure(notebook: Notebook, folder: Path, url: str, replies: int, count: int, run: Path | None) -> dict:
    """One row of the table."""
    training = ""
    if run is not None:
        seed = json.loads((run / "config.json").read_text())["seed"]
        training = TRAINING.format(run=str(run), seed=seed)
    notebook.page.set_default_timeout(300_000)
    notebook.run(WIDGET.format(url=url, replies=replies, count=count + 1, training=training))
    if run is not None:
        notebook.page.wait_for_timeout(5000)  # PPO is under way
    times = label(notebook, replies, count)
    report = folder / "report.json"
    report.unlink(missing_ok=True)
    code = REPORT.format(to=str(report))
    notebook.page.evaluate(
        """code => jupyterapp.shell.currentWidget.sessionContext.session.kernel
           .requestExecute({ code }).done.then(() => null)""",
        code,
    )
    measured = json.loads(report.read_text())
    if measured["stored"] < count or (run is not None and not measured["steps"]):
        raise RuntimeError(f"not what was to be measured: {measured['stored']} labels, {measured['steps']} PPO steps")
    notebook.page.evaluate("jupyterapp.shell.currentWidget.sessionContext.shutdown().then(() => null)")
    return {"times": times, "commits": measured["commits"], "steps": measured["steps"]}


def quantiles(times: list[float]) -> str:
    """Median and 95th percentile, in milliseconds."""
    return f"{statistics.median(times):.0f} | {statistics.quantiles(times, n=20, method='inclusive')[-1]:.0f}"


def scenarios(
    forms: list[str], run: Path | None, postgresql: str | None, folder: Path
) -> list[tuple[str, str, Path | None, int]]:
    """(name, URL, run that trains, replies) of every row."""
    rows = []
    for replies, what in (FORMS[form] for form in forms):
        rows.append((f"{what}, idle, SQLite", f"sqlite:///{folder / f'idle{replies}.db'}", None, replies))
        if postgresql:
            rows.append((f"{what}, idle, PostgreSQL", postgresql, None, replies))
        if run:
            rows.append((f"{what}, PPO trains, SQLite", f"sqlite:///{folder / f'ppo{replies}.db'}", run, replies))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", type=Path, metavar="RUN_FOLDER")
    parser.add_argument("--labels", type=int, default=100)
    parser.add_argument("--postgresql", metavar="URL")
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS))
    parser.add_argument("--quick", action="store_true", help="10 labels each, to see that it works")
    chosen = parser.parse_args()
    count = 10 if chosen.quick else chosen.labels
    os.environ |= {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    with tempfile.TemporaryDirectory() as scratch, sync_playwright() as playwright:
        folder, home, served = (Path(scratch) / name for name in ("stores", "home", "served"))
        for each in (folder, home, served):
            each.mkdir()
        run = Path(shutil.copytree(chosen.run, Path(scratch) / "run")) if chosen.run else None
        lab, server = start_lab(home, served)
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=CHROMIUM_FLAGS)
        try:
            print("| | screen: median | 95% | commit: median | 95% | labels | PPO steps meanwhile | load |")
            print("|" + " --- |" * 8, flush=True)
            for name, url, trains, replies in scenarios(chosen.forms, run, chosen.postgresql, folder):
                print(row(name, one_page(browser, lab, folder, url, replies, count, trains)), flush=True)
        finally:
            browser.close()
            stop_lab(server)


def one_page(browser, lab: Lab, folder: Path, url: str, replies: int, count: int, run: Path | None) -> dict:
    context = browser.new_context(viewport={"width": 1200, "height": 1000})
    try:
        return measure(Notebook(context.new_page(), lab), folder, url, replies, count, run)
    finally:
        context.close()


def row(name: str, measured: dict) -> str:
    figures = [quantiles(measured["times"]), quantiles(measured["commits"]), len(measured["times"]), measured["steps"]]
    return f"| {name} | " + " | ".join(map(str, figures)) + f" | {os.getloadavg()[0]:.1f} |"


if __name__ == "__main__":
    main()
