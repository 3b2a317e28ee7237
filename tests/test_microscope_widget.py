"""The microscope's widget and the panel of switches, from Python: traits, messages, the worker, what is sent."""

import json
import threading

import pytest
from taught import taught_model
from test_microscope import trainer
from tiny import PROMPTS, reward_model, tokenizer

from rlhf_lab.ablations import SWITCHES, Setup, run_arm
from rlhf_lab.config import PPOConfig, SamplingConfig
from rlhf_lab.errors import InputError
from rlhf_lab.microscope import QUANTITIES, look
from widgets.ablations import AblationPanel
from widgets.microscope import COLOURS, MicroscopeWidget

CONFIG = PPOConfig(
    steps=2, batch_size=4, minibatches=2, epochs=1, learning_rate=3e-3, sampling=SamplingConfig(max_new_tokens=40)
)


def setup() -> Setup:
    return Setup(taught_model(), reward_model(), tokenizer(), PROMPTS, CONFIG)


@pytest.fixture(scope="module")
def step():
    return look(trainer(), PROMPTS)[1]


@pytest.fixture
def panel():
    made = AblationPanel(setup())
    yield made
    made.close()


def shown(panel: AblationPanel) -> dict:
    """What the page of the upper region is told."""
    return panel.parts["choose"].data


def outcome(panel: AblationPanel) -> dict:
    return panel.parts["outcome"].data


def press(panel: AblationPanel, action: str, name: str = "kl_sign", seed: int = 0) -> None:
    panel.parts["choose"]._handle_custom_msg({"action": action, "name": name, "seed": seed}, [])


# --- the microscope ---


def test_the_page_is_given_the_step_as_plain_data_and_what_each_number_is(step):
    widget = MicroscopeWidget(step)
    assert json.loads(json.dumps(widget.get_state()["data"], allow_nan=False)) == step.to_dict()
    assert [quantity["key"] for quantity in widget.quantities] == [quantity.key for quantity in QUANTITIES]
    assert set(COLOURS) <= {quantity["key"] for quantity in widget.quantities}
    assert all(quantity["explanation"] for quantity in widget.quantities)


def test_another_step_can_be_shown_from_one_of_its_replies_on(step):
    widget = MicroscopeWidget()
    assert widget.data == {}
    widget.show(step, reply=2, token=1)
    assert (widget.reply, widget.token, widget.view) == (2, 1, step.replies[2])
    widget.reply = 99  # from a page that is behind: the last reply
    assert widget.view == step.replies[-1]


def test_a_reply_that_does_not_exist_is_refused(step):
    with pytest.raises(InputError, match="replies 0 to 3"):
        MicroscopeWidget().show(step, reply=4)


def test_before_the_first_step_there_is_nothing_to_see():
    with pytest.raises(InputError, match="nothing yet"):
        MicroscopeWidget().view  # noqa: B018


def test_a_static_picture_has_the_reply_s_tokens(step):
    figure = MicroscopeWidget(step, reply=1).figure()
    [above] = figure.axes[0].child_axes
    assert len(above.get_xticks()) == len(step.replies[1].tokens)


# --- the panel ---


def test_a_switch_runs_to_its_end_and_the_page_is_told(panel):
    assert shown(panel)["state"] == "idle" and outcome(panel)["step"] == 0
    press(panel, "run", "no_kl")
    assert panel.wait(60)
    told = shown(panel)
    assert (told["selected"], told["state"], told["step"], told["steps"], told["done"]) == (
        "no_kl", "idle", 2, 2, ["no_kl"],
    )  # fmt: skip
    steps = panel.results["no_kl", 0]
    assert [s.arm for s in steps] == ["right", "broken"] * 2
    assert outcome(panel)["step"] == 2 and len(outcome(panel)["replies"]) == 2
    json.dumps([told, outcome(panel)], allow_nan=False)


def test_the_numbers_are_those_of_the_library(panel):
    panel.run("kl_sign")
    assert panel.wait(60)
    alone = list(run_arm(setup(), SWITCHES["kl_sign"], "broken"))
    assert [s.logged_kl for s in panel.results["kl_sign", 0] if s.arm == "broken"] == [s.logged_kl for s in alone]


def test_the_right_arm_is_run_once_for_switches_that_share_it(panel, monkeypatch):
    asked = []
    compare = __import__("widgets.ablations", fromlist=["compare"]).compare
    monkeypatch.setattr("widgets.ablations.compare", lambda *args: asked.append(args[2]) or compare(*args))
    for name in ("kl_sign", "no_kl", "no_end_penalty"):  # the last has both arms sample otherwise
        panel.run(name)
        assert panel.wait(60)
    assert [known is not None for known in asked] == [False, True, False]
    rights = [[s for s in panel.results[name, 0] if s.arm == "right"] for name in ("kl_sign", "no_kl")]
    assert rights[0] == rights[1]


def test_another_seed_is_another_comparison(panel):
    for seed in (0, 1):
        press(panel, "run", "kl_sign", seed)
        assert panel.wait(60)
    first, second = panel.results["kl_sign", 0], panel.results["kl_sign", 1]
    assert [s.stats.samples for s in first] != [s.stats.samples for s in second]
    press(panel, "select", "kl_sign", 0)
    assert (shown(panel)["seed"], shown(panel)["step"]) == (0, 2)


class Gate:
    """Holds the worker before each step, so that a test can act in between."""

    def __init__(self, monkeypatch) -> None:
        self.at, self.go = threading.Event(), threading.Event()
        compare = __import__("widgets.ablations", fromlist=["compare"]).compare

        def slow(*args):
            for made in compare(*args):
                self.at.set()
                assert self.go.wait(60)
                yield made

        monkeypatch.setattr("widgets.ablations.compare", slow)


def test_stop_ends_the_comparison_after_the_step_in_hand(panel, monkeypatch):
    gate = Gate(monkeypatch)
    panel.run("kl_sign")
    assert gate.at.wait(60) and shown(panel)["state"] == "running" and shown(panel)["running"] == "kl_sign"
    press(panel, "stop")
    assert shown(panel)["state"] == "stopping"
    gate.go.set()
    assert panel.wait(60)
    assert shown(panel)["state"] == "idle" and panel.results["kl_sign", 0] == []
    panel.run("kl_sign")
    assert panel.wait(60) and len(panel.results["kl_sign", 0]) == 4  # and it can be run again


def test_a_second_run_takes_the_place_of_the_first(panel, monkeypatch):
    gate = Gate(monkeypatch)
    panel.run("kl_sign")
    assert gate.at.wait(60)
    panel.run("no_kl")
    states = []
    panel.parts["choose"].observe(lambda change: states.append((change.new["running"], change.new["state"])), "data")
    gate.go.set()
    assert panel.wait(60)
    assert panel.results["kl_sign", 0] == [] and len(panel.results["no_kl", 0]) == 4
    assert ("no_kl", "running") in states and shown(panel)["state"] == "idle"


def test_stop_before_the_worker_has_begun_leaves_nothing_running(panel):
    with panel._lock:  # the worker cannot begin
        panel.run("kl_sign")
        panel.stop()
        assert shown(panel)["state"] == "idle"
    assert panel.wait(60) and panel.results == {}


def test_an_error_is_shown_in_the_panel_and_the_next_run_works(panel, monkeypatch, capsys):
    def fails(*args):
        raise RuntimeError("the disk is on fire")
        yield

    with monkeypatch.context() as patch:
        patch.setattr("widgets.ablations.compare", fails)
        panel.run("kl_sign")
        assert panel.wait(60)
    assert (shown(panel)["state"], shown(panel)["error"]) == ("error", "RuntimeError: the disk is on fire")
    assert "the disk is on fire" in capsys.readouterr().err  # an unexpected one has its traceback in the log
    panel.run("kl_sign")
    assert panel.wait(60) and (shown(panel)["state"], shown(panel)["error"]) == ("idle", "")


@pytest.mark.parametrize(
    "message",
    [
        {},
        {"action": "run"},
        {"action": "run", "name": "rm -rf", "seed": 0},
        {"action": "run", "name": "kl_sign", "seed": -1},
        {"action": "run", "name": "kl_sign", "seed": 10**9},
        {"action": "run", "name": "kl_sign", "seed": "0"},
        {"action": "run", "name": ["kl_sign"], "seed": 0},
        {"action": "explode", "name": "kl_sign", "seed": 0},
    ],
)
def test_a_message_that_makes_no_sense_is_passed_over(panel, message):
    panel.parts["choose"]._handle_custom_msg(message, [])
    assert panel.results == {} and shown(panel)["state"] == "idle"


def test_a_new_panel_stops_the_worker_of_the_one_before(panel):
    other = AblationPanel(setup(), switches=["kl_sign", "dropout"], select="dropout")
    try:
        assert not panel._thread.is_alive() and shown(panel)["state"] == "closed"
        assert [switch["name"] for switch in other.parts["choose"].switches] == ["kl_sign", "dropout"]
        with pytest.raises(InputError, match="has ended"):
            panel.run()
    finally:
        other.close()


def test_unknown_switches_are_refused():
    with pytest.raises(InputError, match="no switch 'dropuot'"):
        AblationPanel(setup(), switches=["dropuot"])
    with pytest.raises(InputError, match="'kl_sign' is not in this panel; it has dropout"):
        AblationPanel(setup(), switches=["dropout"])


def test_a_panel_says_how_much_it_has_done_and_draws_it(panel):
    panel.run("no_anneal")
    assert panel.wait(60)
    assert repr(panel) == "<AblationPanel: 23 switches, 1 compared>"
    assert [axis.get_title(loc="left") for axis in panel.figure().axes] == [
        "Approximate KL", "KL to SFT", "Reward, rightly measured",
    ]  # fmt: skip
