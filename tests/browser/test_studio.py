"""The Studio in a real JupyterLab: controls, live curves, reload, errors, keys, hostile text."""

import ast
from pathlib import Path

from playwright.sync_api import expect

from .axe import serious_violations

TESTS = Path(__file__).resolve().parents[1]
SETUP = f"""
import sys, threading, time
sys.path.insert(0, {str(TESTS)!r})
from fake_loop import DemoLoop, FakeLoop, InputError, make_question, make_stats
from rlhf_lab.records import *
from widgets.studio import Studio
"""
FAKE = """
loop = FakeLoop([make_question("q1"), make_question("q2")])
studio = Studio(loop)
studio
"""
HOSTILE = "<img src=x onerror='window.hacked=1'><script>window.hacked=1</script><b>bold</b>"


def ask(notebook, expression: str):
    """The value of a Python expression in the notebook's kernel."""
    script = """expression => jupyterapp.shell.currentWidget.sessionContext.session.kernel.requestExecute(
        {code: '', user_expressions: {value: expression}}).done.then(reply => reply.content.user_expressions.value)"""
    value = notebook.page.evaluate(script, expression)
    assert value["status"] == "ok", value
    return ast.literal_eval(value["data"]["text/plain"])


def do(notebook, code: str) -> None:
    """Run Python code in the notebook's kernel, outside its cells, to the end."""
    script = """code => jupyterapp.shell.currentWidget.sessionContext.session.kernel.requestExecute({code})
        .done.then(reply => reply.content.status === 'ok' ? '' : reply.content.evalue)"""
    assert notebook.page.evaluate(script, code) == ""


def panel(notebook, key: str):
    return notebook.page.locator(f".rlhf-curves-panel[data-panel={key}]")


def curve(notebook, key: str) -> str:
    """The drawn line of a series, as SVG path data."""
    return notebook.page.locator(f"[data-series='{key}'] .rlhf-curves-line").first.get_attribute("d")


def expect_points(notebook, key: str, count: int) -> None:
    expect(notebook.page.locator(f"[data-series='{key}']").first).to_have_attribute("data-count", str(count))


def test_controls_reach_the_loop_by_click_and_by_key(notebook):
    page = notebook.page
    notebook.run(SETUP, FAKE, "'a cell that no key may cut'")
    before = notebook.cells()
    bar = page.get_by_role("toolbar", name="PPO controls")
    status = page.locator(".rlhf-studio-bar-part")

    bar.get_by_role("button", name="Start").focus()
    page.keyboard.press("r")
    expect(status).to_contain_text("Running")
    page.keyboard.press("p")
    expect(status).to_contain_text("Paused")
    bar.get_by_role("button", name="Step").click()
    page.keyboard.press("n")
    page.keyboard.press("d")
    page.keyboard.press("d")  # would delete the cell, if JupyterLab saw it
    page.keyboard.press("x")
    expect(status).to_contain_text("Stopped")
    bar.get_by_role("button", name="Pause").click(force=True)  # off while stopped: nothing happens
    bar.get_by_role("button", name="Ask me again").click()
    expect(status).to_contain_text("nothing to ask again")

    calls = [call for call in ask(notebook, "loop.calls") if call not in ("next_question", "submit")]
    assert calls == ["start", "pause", "step", "step", "stop", "ask_again"]
    assert notebook.cells() == before


def test_curves_follow_a_worker_thread_and_a_reload_or_second_view_shows_the_same(notebook):
    notebook.run(SETUP, FAKE)
    expect(panel(notebook, "reward")).to_contain_text("Appears after the first PPO step")
    work = """
def work(first, last):
    for step in range(first, last):
        loop.emit(make_stats(step, reward=step / 10, kl=float(step)))
        if step == 5:
            loop.emit(RewardUpdate(1, "r", 0.5, 0.75, 10))
            loop.emit(WinRate(step, Interval(0.6, 0.5, 0.7, 64)))
        time.sleep(0.02)
thread = threading.Thread(target=work, args=(1, 21)); thread.start(); thread.join()
"""
    do(notebook, work)
    expect_points(notebook, "reward", 20)
    expect(panel(notebook, "reward").locator(".rlhf-curves-value")).to_have_text("2.00")
    expect(panel(notebook, "agreement").locator(".rlhf-curves-value")).to_have_text("75%")
    expect(panel(notebook, "reward").locator("[data-mark='label 1']")).to_have_count(1)
    first = curve(notebook, "reward")

    do(notebook, "thread = threading.Thread(target=work, args=(21, 31)); thread.start(); thread.join()")
    expect_points(notebook, "reward", 30)
    drawn = curve(notebook, "reward")
    assert drawn != first

    notebook.reload()
    expect_points(notebook, "reward", 30)
    expect_points(notebook, "agreement/one", 1)
    assert curve(notebook, "reward") == drawn
    expect(notebook.page.locator(".rlhf-studio-counter", has_text="PPO steps")).to_contain_text("30")

    do(notebook, "loop.emit(make_stats(31, reward=9.0))")  # messages still arrive after the reload
    expect_points(notebook, "reward", 31)


def test_a_cell_that_is_run_again_leaves_one_subscription_and_one_studio(notebook):
    notebook.run(SETUP, "loop = FakeLoop([make_question('q1')])", "studio = Studio(loop)\nstudio")
    do(notebook, "for step in range(1, 6): loop.emit(make_stats(step, reward=1.0))")
    notebook.page.evaluate("() => { jupyterapp.shell.currentWidget.content.activeCellIndex = 2 }")
    notebook.command("notebook:run-cell")
    notebook.wait_until_idle()
    expect_points(notebook, "reward", 5)
    expect(notebook.page.locator(".rlhf-studio")).to_have_count(1)
    assert ask(notebook, "len(loop.callbacks)") == 1
    assert ask(notebook, "studio.widget.question.id") == "q1"


def test_errors_of_the_worker_and_of_callbacks_are_shown_as_text(notebook):
    page = notebook.page
    notebook.run(SETUP, FAKE)
    do(notebook, f"loop.emit(LoopError('PPO', {HOSTILE!r}))")
    alert = page.get_by_role("alert").filter(has_text="PPO")
    expect(alert).to_contain_text(HOSTILE)
    do(notebook, "loop.failing['start'] = RuntimeError('no thread could be started')")
    page.get_by_role("button", name="Start", exact=True).click()
    expect(alert).to_contain_text("RuntimeError: no thread could be started")
    page.get_by_role("button", name="Dismiss").click()
    expect(alert).to_have_count(0)

    do(notebook, "loop.failing['submit'] = RuntimeError('the disk is full')")
    page.get_by_text("Rank the replies").click()
    for key in ("1", "2", "3", "Enter"):
        page.keyboard.press(key)
    expect(page.locator(".rlhf-studio")).to_contain_text("the disk is full")
    assert ask(notebook, "len(loop.answers)") == 0
    assert page.evaluate("() => window.hacked") is None


def test_a_ranking_by_keys_moves_the_reward_model_and_its_effect_is_drawn(notebook):
    page = notebook.page
    notebook.run(SETUP, "loop = DemoLoop(seconds=0.05)\nstudio = Studio(loop)\nstudio")
    page.get_by_role("button", name="Start", exact=True).click()
    weights = ask(notebook, "list(loop._weights)")
    page.get_by_text("Rank the replies").click()
    for key in ("4", "2", "3", "Enter"):
        page.keyboard.press(key)
    effect = page.locator(".rlhf-studio-effect-part")
    expect(effect).to_contain_text("Label 1: reward model's order")
    expect(effect.locator(".rlhf-studio-row-reply")).to_have_count(4)
    expect(effect).to_contain_text("pairs as you did")
    expect(page.locator(".rlhf-studio-samples figure")).to_have_count(3)
    assert ask(notebook, "list(loop._weights)") != weights
    assert ask(notebook, "len(loop.answers)") == 1
    do(notebook, "loop.stop()")


def test_a_curve_is_read_by_arrow_keys_and_the_notebook_does_not_see_them(notebook):
    page = notebook.page
    notebook.run(SETUP, FAKE, "1 + 1")
    before = notebook.cells()
    do(notebook, "for step in range(1, 6): loop.emit(make_stats(step, reward=step / 10, kl=step * 2.0))")
    do(notebook, "loop.emit(RewardUpdate(7, 'r', None, None, 10))")
    expect_points(notebook, "reward", 5)
    panel(notebook, "reward").focus()
    page.keyboard.press("ArrowLeft")
    readout = panel(notebook, "reward").locator(".rlhf-curves-readout")
    expect(readout).to_have_text("PPO step 5 · 0.50 · label 7")
    page.keyboard.press("Home")
    expect(readout).to_have_text("PPO step 1 · 0.10")
    expect(panel(notebook, "kl").locator(".rlhf-curves-readout")).to_have_text("PPO step 1 · 2.00")
    for key in ("x", "d", "d", "a", "Enter", "ArrowDown"):
        page.keyboard.press(key)
    page.keyboard.press("Tab")
    expect(panel(notebook, "kl")).to_be_focused()
    assert notebook.cells() == before


def test_text_of_models_is_inert(notebook):
    page = notebook.page
    hostile = f"""
bad = {HOSTILE!r}
question = Question("h", bad, (Candidate("a", bad), Candidate("b", "x" * 3000), Candidate("c", chr(0x202E) + "rtl")))
loop.emit(make_stats(1, samples=(Rollout(bad, bad, 1.0, 2.0), Rollout("x" * 3000, "y" * 3000, 1.0, 2.0))))
effect = Effect(question, (("a",), ("b",), ("c",)), (1.0, 2.0, 3.0), (3.0, 2.0, 1.0))
loop.emit(RewardUpdate(1, "r", 1.0, 1.0, 10, (effect,)))
"""
    notebook.run(SETUP, FAKE)
    do(notebook, hostile)
    expect(page.locator(".rlhf-studio-samples figure").first.locator("blockquote")).to_have_text(HOSTILE)
    expect(page.locator(".rlhf-studio-reply").first).to_have_text(HOSTILE)
    assert page.evaluate("() => window.hacked") is None
    assert page.locator(".rlhf-studio img, .rlhf-studio script").count() == 0
    overflow = "() => { const s = document.querySelector('.rlhf-studio'); return s.scrollWidth - s.clientWidth }"
    assert page.evaluate(overflow) <= 1  # long words wrap instead of widening the page


# --- forms, history, rollback ---

LABELLED = """
loop = FakeLoop([make_question("q4", 2), make_question("q5", 2)])
studio = Studio(loop)
for n in (1, 2, 3):
    studio._remember(loop.ask(make_question(f"q{n}", 2)))
    loop.emit(make_stats(10 * n, reward=n / 10, kl=float(n)))
    studio._answer(Ranking(f"q{n}", ((f"q{n}-0",), (f"q{n}-1",)), "ada", id=f"a{n}"))
    effect = Effect(loop.known[f"q{n}"], ((f"q{n}-0",), (f"q{n}-1",)), (0.0, 1.0), (1.0, 0.0))
    loop.emit(RewardUpdate(n, f"a{n}", 0.5, 0.5, 10, (effect,)))
loop.emit(make_stats(40, reward=0.9, kl=9.0))
studio
"""


def form_tab(notebook, name: str):
    return notebook.page.get_by_role("tab", name=name)


def test_forms_are_switched_by_click_and_key_and_a_draft_survives(notebook):
    page = notebook.page
    notebook.run(
        SETUP, "loop = FakeLoop([make_question('q1', 4), make_question('q2', 4)])\nstudio = Studio(loop)\nstudio", "1"
    )
    before = notebook.cells()
    row = page.locator(".rlhf-studio-row")
    row.locator(".rlhf-card").nth(2).click()
    expect(row).to_contain_text("1st")
    form_tab(notebook, "Thumbs").click()
    expect(row.locator(".rlhf-thumbs")).to_be_focused()
    page.keyboard.press("y")
    expect(row.get_by_role("status")).to_contain_text("Saved")
    page.keyboard.press("Alt+6")
    expect(row.locator(".rlhf-correction")).to_be_focused()
    expect(form_tab(notebook, "Correct")).to_have_attribute("aria-selected", "true")
    form_tab(notebook, "Correct").focus()
    page.keyboard.press("ArrowRight")
    expect(row.locator(".rlhf-chat")).to_be_visible()
    page.get_by_role("textbox", name="Your message").fill("not a shortcut")
    page.keyboard.press("Alt+1")
    expect(row).to_contain_text("1st")  # the ranking that was begun
    notebook.reload()
    expect(row).to_contain_text("1st")
    assert ask(notebook, "[(a.kind, a.question_id) for a in loop.answers]") == [("vote", "q1")]
    assert notebook.cells() == before


def test_the_history_is_walked_by_keyboard_and_a_rollback_asks_first(notebook):
    page = notebook.page
    notebook.run(SETUP, LABELLED, "1")
    before = notebook.cells()
    page.locator(".rlhf-history summary").focus()
    page.keyboard.press("Enter")
    rows = page.locator(".rlhf-history-row")
    expect(rows).to_have_count(3)
    page.keyboard.press("Tab")  # the scrolling list's current row
    expect(rows.nth(0)).to_be_focused()
    expect(rows.nth(0)).to_contain_text("Label 3")
    page.keyboard.press("ArrowDown")
    expect(rows.nth(1)).to_be_focused()
    page.keyboard.press("b")
    sure = page.get_by_role(
        "group", name="Withdraw this label and 1 later one, and take the policy from PPO step 40 back to PPO step 20?"
    )
    expect(sure.get_by_role("button", name="Roll back")).to_be_focused()
    page.keyboard.press("Escape")
    expect(sure).to_have_count(0)
    assert ask(notebook, "len(loop.answers)") == 3
    page.keyboard.press("b")
    page.keyboard.press("Enter")
    expect(page.locator(".rlhf-history-rollback")).to_contain_text(
        "before label 2: 2 labels withdrawn, policy of PPO step 20"
    )
    expect(page.locator(".rlhf-history-gone")).to_have_count(2)
    expect(page.locator(".rlhf-history-gone").first).to_contain_text("rolled back")
    assert ask(notebook, "[a.id for a in loop.answers]") == ["a1"]
    expect(panel(notebook, "reward").locator(".rlhf-curves-cut-label")).to_have_text("↩ back to 20")
    expect(panel(notebook, "reward").locator(".rlhf-curves-given-up")).to_have_count(1)

    page.locator(".rlhf-history-row[data-id=a1]").focus()
    page.keyboard.press("c")
    expect(page.locator(".rlhf-studio-row")).to_contain_text("prompt of q1")
    page.locator(".rlhf-history-row[data-id=a1]").focus()
    page.keyboard.press("w")
    expect(page.locator(".rlhf-history-row[data-id=a1]")).to_contain_text("withdrawn")
    for key in ("x", "d", "d", "a"):
        page.keyboard.press(key)
    assert notebook.cells() == before
    notebook.reload()
    expect(page.locator(".rlhf-history-gone")).to_have_count(3)
    expect(panel(notebook, "reward").locator(".rlhf-curves-cut-label")).to_have_text("↩ back to 20")


def test_a_mark_says_what_it_was_by_keyboard_and_by_mouse_and_leads_to_the_history(notebook):
    page = notebook.page
    notebook.run(SETUP, LABELLED)
    reward = panel(notebook, "reward")
    reward.focus()
    page.keyboard.press("Shift+ArrowRight")
    tip = reward.locator(".rlhf-curves-tip")
    expect(tip).to_have_text("label 1: ranking of “prompt of q1”")
    page.keyboard.press("Shift+ArrowRight")
    expect(tip).to_have_text("label 2: ranking of “prompt of q2”")
    page.keyboard.press("Escape")
    expect(tip).to_have_text("")
    box = reward.locator(".rlhf-curves-mark").nth(2).bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 40)
    expect(tip).to_have_text("label 3: ranking of “prompt of q3”")
    page.mouse.down()
    page.mouse.up()
    expect(page.locator(".rlhf-history-row[data-id=a3]")).to_be_focused()


def test_axe_finds_nothing_serious_in_any_form_light_or_dark(notebook):
    notebook.run(SETUP, LABELLED)
    do(notebook, "studio._on_history('rollback', 'a3'); studio.history.opened = True")
    expect(notebook.page.locator(".rlhf-history-gone")).to_have_count(1)
    for dark in (False, True):
        notebook.dark(dark)
        for name in ("Rank", "Grade", "Chat"):
            form_tab(notebook, name).click()
            expect(form_tab(notebook, name)).to_have_attribute("aria-selected", "true")
            assert serious_violations(notebook.page, ".rlhf-studio") == []
