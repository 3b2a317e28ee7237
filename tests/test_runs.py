"""A run's folder: what it holds, that it is loaded and not made twice, and what it refuses."""

import ast
import json
import sqlite3
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from rlhf_lab import runs
from rlhf_lab.config import profile
from rlhf_lab.errors import InputError
from rlhf_lab.records import Interval, LossPoint, RewardPoint, StepStats
from rlhf_lab.reward import score_many
from rlhf_lab.runs import Run
from rlhf_lab.store import FeedbackStore
from rlhf_lab.text import encode_dialogues

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished quick run."""
    run = Run(tmp_path_factory.mktemp("runs") / "run", profile="quick", progress=None)
    run.summary()
    return run


def forbidden(**_):
    raise AssertionError("a stage was made although it was there")


# --- what it holds ---


def test_the_summary_has_the_documented_numbers(run):
    summary = json.loads((run.folder / "summary.json").read_text())
    stages = {"pretrain", "sft", "preferences", "reward_model", "ppo", "total"}
    assert stages <= set(summary["seconds"]) and set(summary["gold"]) == {"sft", "ppo"}
    numbers = [summary[k] for k in ("pretrain_loss", "sft_loss", "reward_accuracy", "win_rate", "kl")]
    assert all(isinstance(number, float) for number in numbers)
    parts = [seconds for name, seconds in summary["seconds"].items() if name != "total"]
    assert summary["seconds"]["total"] == pytest.approx(sum(parts))
    for name in ("win_rate", "reward_accuracy", "kl"):
        interval = Interval(**summary[f"{name}_interval"])
        assert interval.low <= interval.value == summary[name] <= interval.high
    assert run.summary() == summary


def test_the_win_rate_can_be_counted_from_the_replies(run):
    lines = [json.loads(line) for line in (run.folder / "replies.jsonl").open(encoding="utf-8")]
    sft, ppo = ([line for line in lines if line["model"] == name] for name in ("sft", "ppo"))
    assert [line["prompt"] for line in sft] == [line["prompt"] for line in ppo]
    assert set(line["prompt"] for line in sft) == set(run.scenario.prompts("held_out"))
    wins = [(p["gold"] > s["gold"]) + 0.5 * (p["gold"] == s["gold"]) for p, s in zip(ppo, sft, strict=True)]
    summary = run.summary()
    assert summary["win_rate"] == pytest.approx(sum(wins) / len(wins))
    assert summary["gold"]["ppo"] == pytest.approx(sum(line["gold"] for line in ppo) / len(ppo))
    assert all(line["gold"] == run.judge.score(line["prompt"], line["reply"]) for line in lines)


@pytest.mark.parametrize("name", ["base", "sft", "policy"])
def test_transformers_loads_the_language_models(run, name):
    model = AutoModelForCausalLM.from_pretrained(run.folder / name)
    tokenizer = AutoTokenizer.from_pretrained(run.folder / name)
    ids = tokenizer("Where is the choir?", return_tensors="pt").input_ids
    assert model(ids).logits.shape == (1, ids.shape[1], len(tokenizer))


def test_transformers_scores_as_the_lab_does(run):
    model, tokenizer = run.reward()
    theirs = AutoModelForSequenceClassification.from_pretrained(run.folder / "reward", num_labels=1)
    dialogues = encode_dialogues(tokenizer, [("Where is the choir?", "In the hall."), ("When?", "On Monday, I think.")])
    ours = score_many(model, dialogues)
    for dialogue, score in zip(dialogues, ours, strict=True):
        assert theirs(torch.tensor([dialogue.ids])).logits.item() == pytest.approx(score.item(), abs=1e-5)


def test_each_stage_moved_its_model(run):
    weights = [run.base()[0], run.sft()[0], run.policy()[0]]
    norms = [sum(p.double().sum().item() for p in model.parameters()) for model in weights]
    assert len(set(norms)) == 3
    losses = [point.loss for point in run.losses("pretrain")]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def test_metrics_are_records_a_point_a_step(run):
    assert [type(run.losses("sft")[0]), type(run.reward_points()[0]), type(run.ppo_stats()[0])] == [
        LossPoint,
        RewardPoint,
        StepStats,
    ]
    assert [p.step for p in run.losses("pretrain")] == list(range(1, 61))
    assert [s.step for s in run.ppo_stats()] == [1, 2, 3, 4] and run.ppo_stats()[0].samples == ()
    with pytest.raises(InputError, match="'pretrain' or 'sft'"):
        run.losses("ppo")


def test_preferences_say_who_wrote_and_who_ranked(run):
    questions, rankings = run.preferences()
    assert len(questions) == len(rankings) > 10
    assert {r.question_id for r in rankings} == {q.id for q in questions}
    assert {c.model for q in questions for c in q.candidates} == {"help_desk-quick-seed0/sft"}
    assert {r.annotator for r in rankings} == {"simulated"}
    assert {q.prompt for q in questions} <= set(run.train_prompts)


def test_held_out_questions_are_kept_apart(run):
    held_out, rankings = run.held_out_preferences()
    prompts = {q.prompt for q in held_out}
    assert prompts <= set(run.held_out_prompts) and prompts.isdisjoint(run.train_prompts)
    with run.store() as store:
        assert prompts.isdisjoint(q.prompt for q in store.questions())
        assert {r.annotator for r in store.rankings()}.isdisjoint({r.annotator for r in rankings})


def test_a_persons_rankings_in_the_store_are_not_taken_for_simulated_ones(run):
    questions, rankings = run.preferences()
    with run.store() as store:
        store.append(replace(rankings[0], id="by hand", annotator="Ada"))
        try:
            assert run.preferences() == (questions, rankings)
        finally:
            store.withdraw("by hand", "Ada")


def test_the_gold_judge_is_out_of_reach_of_training():
    for name in ("language", "sampling", "reward", "ppo", "models", "text"):
        tree = ast.parse((ROOT / "rlhf_lab" / f"{name}.py").read_text(encoding="utf-8"))
        imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert imported.isdisjoint({"judge", "annotators", "scenario", "evaluation"}), name


# --- loading and making ---


def test_what_is_there_is_loaded_not_made(run):
    again = Run(run.folder, profile="quick", progress=forbidden)
    assert again.summary() == run.summary()
    assert again.policy()[0].config.vocab_size == 512 and again.reward_points() == run.reward_points()


def test_a_stage_makes_those_before_it_with_a_bar_each(tmp_path):
    titles = []

    class Bar:
        def __init__(self, desc, **_):
            titles.append(desc.strip())

        def update(self, *_): ...
        def refresh(self): ...
        def close(self): ...
        def set_postfix(self, *_, **__): ...

    Run(tmp_path / "run", profile="quick", progress=Bar).sft()
    assert titles == ["1/5 Pretraining", "2/5 SFT"]
    assert not (tmp_path / "run" / "policy").exists()


def test_a_models_copy_is_the_callers_own(run):
    first = run.sft()[0]
    with torch.no_grad():
        next(first.parameters()).zero_()
    assert next(run.sft()[0].parameters()).abs().sum() > 0


def test_another_seed_gives_other_numbers(run, tmp_path):
    other = Run(tmp_path / "run", profile="quick", seed=1, progress=None)
    assert other.losses("pretrain")[0].loss != run.losses("pretrain")[0].loss


def test_the_number_of_threads_is_remembered_and_given_back(run, tmp_path, monkeypatch):
    before = torch.get_num_threads()
    seen = []
    path = tmp_path / "run"
    Run(path, profile="quick")
    config = json.loads((path / "config.json").read_text()) | {"threads": before + 1}
    (path / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr(Run, "_make_pretrain", lambda *_: seen.append(torch.get_num_threads()))
    Run(path, profile="quick", progress=None)._make("pretrain")
    assert seen == [before + 1] and torch.get_num_threads() == before


def test_the_default_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RLHF_LAB_PROFILE", "quick")
    monkeypatch.delenv("RLHF_LAB_RUNS", raising=False)
    assert Run.default().folder == Path("runs/help_desk-quick-seed0")
    monkeypatch.setenv("RLHF_LAB_RUNS", str(tmp_path / "elsewhere"))
    assert Run.default(seed=3).folder == tmp_path / "elsewhere" / "help_desk-quick-seed3"


# --- what it refuses ---


def test_a_folder_of_another_run_is_refused(run, tmp_path):
    other = replace(profile("quick"), ppo=replace(profile("quick").ppo, steps=9))
    for options, words in (
        ({"profile": "default"}, "profile.name 'quick', not 'default'"),
        ({"profile": other}, "profile.ppo.steps 4, not 9"),
        ({"profile": "quick", "seed": 5}, "seed 0, not 5"),
    ):
        with pytest.raises(InputError, match=words):
            Run(run.folder, **options)


def test_a_run_from_before_an_option_existed_goes_on_as_it_was(tmp_path):
    Run(tmp_path / "run", profile="quick")
    path = tmp_path / "run" / "config.json"
    config = json.loads(path.read_text())
    for stage in ("pretraining", "sft"):
        assert config["profile"][stage].pop("bf16") is False
    path.write_text(json.dumps(config))
    Run(tmp_path / "run", profile="quick")
    rounded = replace(profile("quick"), sft=replace(profile("quick").sft, bf16=True))
    with pytest.raises(InputError, match="profile.sft.bf16 False, not True"):
        Run(tmp_path / "run", profile=rounded)


def test_a_scenario_whose_text_changed_is_refused_but_a_comment_may_change(tmp_path):
    text = (ROOT / "rlhf_lab" / "scenarios" / "help_desk.yaml").read_text(encoding="utf-8")
    mine = tmp_path / "mine.yaml"
    mine.write_text(text, encoding="utf-8")
    Run(tmp_path / "run", mine, "quick")
    mine.write_text("# a comment\n" + text, encoding="utf-8")
    Run(tmp_path / "run", mine, "quick")
    mine.write_text(text.replace("title: ", "title: New ", 1), encoding="utf-8")
    with pytest.raises(InputError, match="the text of scenario 'help_desk' was another"):
        Run(tmp_path / "run", mine, "quick")


def test_a_folder_that_is_none_of_ours_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="neither empty nor the folder of a run"):
        Run(tmp_path, profile="quick")
    with pytest.raises(InputError, match="is a file"):
        Run(tmp_path / "thesis.txt", profile="quick")
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_two_processes_do_not_make_one_stage_at_once(tmp_path):
    run = Run(tmp_path / "run", profile="quick", progress=None)
    other = sqlite3.connect(run.folder / ".lock.db", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(InputError, match="another process is making a stage there"):
        run.base()
    other.close()
    assert run.tokenizer().eos_token_id is not None


@pytest.mark.parametrize("trouble", ["locked", "not a database"])
def test_a_store_that_cannot_be_used_is_one_error_and_the_run_goes_on_after(run, tmp_path, monkeypatch, trouble):
    monkeypatch.setattr(runs, "FeedbackStore", partial(FeedbackStore, timeout=0.1))
    mine = Run(tmp_path / "run", profile="quick", progress=None)
    mine.sft()
    database = mine.folder / "feedback.db"
    if trouble == "locked":
        holder = sqlite3.connect(database, isolation_level=None)
        holder.execute("BEGIN EXCLUSIVE")
    else:
        database.write_bytes(b"not SQLite at all, by any means" * 100)
    with pytest.raises(InputError, match=r"feedback.db.*(is locked|is not a SQLite database)"):
        mine.preferences()
    holder.close() if trouble == "locked" else database.unlink()
    assert mine.preferences()[0] == run.preferences()[0]
