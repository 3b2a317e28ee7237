"""The `rlhf-lab` command: what it prints, what it leaves, and its exit codes."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rlhf_lab.cli import main
from rlhf_lab.errors import InputError
from rlhf_lab.formats import read_pairs
from rlhf_lab.records import Comparison
from rlhf_lab.reward_from_pairs import PairOptions, opening, split_by_conversation, train_on_pairs
from rlhf_lab.runs import Run
from rlhf_lab.store import FeedbackStore

ROOT = Path(__file__).resolve().parents[1]
SCENARIO = ROOT / "rlhf_lab" / "scenarios" / "help_desk.yaml"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    Run(folder, profile="quick", progress=None).summary()
    return folder


def refused(capsys, *arguments) -> str:
    """The one line on stderr of a command that must exit with 2 and print nothing else."""
    assert main([str(a) for a in arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("rlhf-lab: ") and err.count("\n") == 1 and "Traceback" not in err
    return err


# --- run ---


def test_run_prints_a_table_and_leaves_the_summary(finished, capsys):
    assert main(["run", "--out", str(finished), "--profile", "quick"]) == 0
    out = capsys.readouterr().out
    summary = json.loads((finished / "summary.json").read_text())
    gold = next(line for line in out.splitlines() if line.startswith("gold score"))
    assert gold.split()[-2:] == [f"{summary['gold'][name]:.3f}" for name in ("sft", "ppo")]
    assert f"{summary['win_rate']:.3f}  95% [" in out and "summary.json" in out


def test_run_from_nothing_as_a_command(tmp_path):
    """Once for real, in its own process, with its bars."""
    command = [sys.executable, "-m", "rlhf_lab.cli", "run", "--profile", "quick", "--out", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    for title in ("1/5 Pretraining", "2/5 SFT", "3/5 Preferences", "4/5 Reward model", "5/5 PPO"):
        assert title in done.stderr
    assert "Loading weights" not in done.stderr and "Warning" not in done.stderr
    assert (tmp_path / "run" / "summary.json").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--profile", "quik"], "profile 'quik' does not exist; use one of quick"),
        (["--scenario", "moon"], "scenario 'moon' does not exist; use one of help_desk"),
        (["--scenario", "no/such.yaml"], "no/such.yaml: cannot be read: No such file"),
        (["--seed", "one"], "argument --seed: invalid int value: 'one'"),
        (["--colour", "red"], "unrecognized arguments: --colour red"),
    ],
)
def test_run_refuses_bad_options_before_making_anything(capsys, tmp_path, options, words):
    assert words in refused(capsys, "run", "--out", tmp_path / "run", *options)
    assert not (tmp_path / "run").exists()


def test_run_refuses_a_scenario_with_a_wrong_field(capsys, tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text(SCENARIO.read_text(encoding="utf-8").replace("\nfillers:", "\nfilers:"), encoding="utf-8")
    error = refused(capsys, "run", "--out", tmp_path / "run", "--scenario", mine, "--profile", "quick")
    assert "mine.yaml" in error and "'fillers' is missing" in error


def test_run_refuses_a_folder_that_is_a_file_or_another_run(capsys, tmp_path, finished):
    (tmp_path / "file").write_text("")
    assert "is a file" in refused(capsys, "run", "--out", tmp_path / "file", "--profile", "quick")
    assert "seed 0, not 1" in refused(capsys, "run", "--out", finished, "--profile", "quick", "--seed", 1)


def test_an_interrupted_run_says_how_to_go_on(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(Run, "summary", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
    assert main(["run", "--out", str(tmp_path / "run"), "--profile", "quick"]) == 130
    assert "give the same command again" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command", [[], ["run"], ["train-reward"], ["scenario"], ["scenario", "check"], ["export"], ["import"], ["audit"]]
)
def test_help_and_missing_arguments(capsys, command):
    with pytest.raises(SystemExit) as done:
        main([*command, "--help"])
    assert done.value.code == 0 and "usage: rlhf-lab" in capsys.readouterr().out
    assert "--help" in refused(capsys, *command)


def test_help_comes_without_torch():
    code = (
        "import sys, rlhf_lab.cli as c\ntry: c.main(['run', '--help'])\nexcept SystemExit: pass\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True).returncode == 0


# --- scenario check ---


def test_scenario_check_counts_and_shows(capsys):
    assert main(["scenario", "check", str(SCENARIO)]) == 0
    out = capsys.readouterr().out
    assert "24 subjects, 4 attributes" in out and "held out" in out and "Visitor: " in out
    read, total = (int(word) for word in out.split("gold judge reads ")[1].split()[:3:2])
    assert total == 600 and read > 0.95 * total


def test_scenario_check_shows_what_the_judge_cannot_read(capsys, tmp_path):
    broken = tmp_path / "broken.yaml"
    lines = SCENARIO.read_text(encoding="utf-8").splitlines()
    at = next(i for i, line in enumerate(lines) if line.strip().startswith("cues:"))
    lines[at] = lines[at].split("cues:")[0] + 'cues: ["zzz"]'
    while lines[at + 1].strip().startswith("- "):
        del lines[at + 1]
    broken.write_text("\n".join(lines), encoding="utf-8")
    assert main(["scenario", "check", str(broken)]) == 0
    out = capsys.readouterr().out
    assert "right answer misread" in out and "Check the cues" in out


def test_scenario_check_names_the_wrong_field(capsys, tmp_path):
    bad = tmp_path / "bad.yaml"
    bad.write_text("name: x\ntitle: [", encoding="utf-8")
    assert "bad.yaml: line" in refused(capsys, "scenario", "check", bad)


# --- train-reward ---


def secret_pairs(path: Path, n: int = 60) -> Path:
    """Pairs that anybody can learn: the chosen reply is the one that helps."""
    with open(path, "w", encoding="utf-8") as file:
        for i in range(n):
            prompt = f"\n\nHuman: SECRET question {i}, please?\n\nAssistant: "
            line = {"chosen": f"{prompt}Gladly, here is number {i}.", "rejected": f"{prompt}Go away, pest {i % 7}."}
            file.write(json.dumps(line) + "\n")
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    options = PairOptions(pretraining_steps=30, epochs=4, max_tokens=48, learning_rate=2e-3)
    report = train_on_pairs(secret_pairs(folder / "pairs.jsonl"), folder / "out", options, progress=None)
    return folder / "out", report


def test_a_plain_preference_is_learned_and_measured_on_held_out_pairs(trained):
    folder, report = trained
    assert report["pairs"] == {"train": 48, "held_out": 12} and report["accuracy"]["n"] == 12
    assert report["accuracy"]["value"] > 0.9
    longer, shorter = report["baselines"]["longer"], report["baselines"]["shorter"]
    assert longer["value"] + shorter["value"] == pytest.approx(1) and longer["value"] == 1.0
    assert json.loads((folder / "reward.json").read_text()) == report


def test_the_reward_model_loads_in_transformers_and_prefers_what_people_preferred(trained):
    model = AutoModelForSequenceClassification.from_pretrained(trained[0] / "reward", num_labels=1).eval()
    tokenizer = AutoTokenizer.from_pretrained(trained[0] / "reward")

    def score(reply):
        messages = [{"role": "user", "content": "SECRET question 99, please?"}, {"role": "assistant", "content": reply}]
        text = tokenizer.apply_chat_template(messages, tokenize=False)
        return model(**tokenizer(text, return_tensors="pt", add_special_tokens=False)).logits.item()

    assert score("Gladly, here is number 99.") > score("Go away, pest 3.")


def test_train_reward_prints_numbers_and_no_text(tmp_path, capsys):
    pairs = secret_pairs(tmp_path / "pairs.jsonl", 24)
    small = ["--pretraining-steps", "3", "--max-tokens", "32", "--epochs", "1"]
    assert main(["train-reward", "--pairs", str(pairs), "--out", str(tmp_path / "out"), *small]) == 0
    out, err = capsys.readouterr()
    assert "reward model" in out and "always the longer reply" in out and "95% [" in out
    assert "SECRET" not in out + err and "pest" not in out + err
    written = [p for p in (tmp_path / "out").rglob("*.json*") if p.parent.name != "reward"]
    assert written and all("SECRET" not in p.read_text(encoding="utf-8") for p in written)


def test_a_model_of_your_own(finished, tmp_path):
    options = PairOptions(model=str(finished / "sft"), epochs=1, max_tokens=64)
    report = train_on_pairs(secret_pairs(tmp_path / "p.jsonl", 20), tmp_path / "out", options, progress=None)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out" / "reward")
    assert report["options"]["model"] and model.config.num_hidden_layers == 2  # last-token pooling: no block added
    assert not (tmp_path / "out" / "metrics" / "pretrain.jsonl").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--held-out", "1.5"], "held-out is 1.5; it must be a share"),
        (["--epochs", "0"], "epochs is 0; it must be greater than 0"),
        (["--max-tokens", "3"], "max-tokens is 3"),
        (["--model", "no/such/folder"], "no/such/folder: cannot be loaded"),
    ],
)
def test_train_reward_refuses_bad_options(capsys, tmp_path, options, words):
    pairs = secret_pairs(tmp_path / "pairs.jsonl", 12)
    assert words in refused(capsys, "train-reward", "--pairs", pairs, "--out", tmp_path / "out", *options)


def test_train_reward_refuses_files_that_hold_no_pairs(capsys, tmp_path):
    out = tmp_path / "out"
    assert "missing.jsonl" in refused(capsys, "train-reward", "--pairs", tmp_path / "missing.jsonl", "--out", out)
    (tmp_path / "bad.jsonl").write_text('{"chosen": "a"}\n')
    assert "line 1" in refused(capsys, "train-reward", "--pairs", tmp_path / "bad.jsonl", "--out", out)
    one = secret_pairs(tmp_path / "one.jsonl", 1)
    assert "cannot be split" in refused(capsys, "train-reward", "--pairs", one, "--out", out)
    assert not out.exists()
    out.mkdir()
    (out / "mine").write_text("")
    assert "not an empty folder" in refused(capsys, "train-reward", "--pairs", one, "--out", out)


def test_pairs_of_one_conversation_stay_together():
    def pair(conversation, turn):
        first = f"Question {conversation}"
        later = f"\n\nHuman: {first}\n\nAssistant: Answer {turn}\n\nHuman: And {turn}?"
        return Comparison(later if turn else first, "good", "bad")

    pairs = [pair(conversation, turn) for conversation in range(20) for turn in range(3)]
    train, held_out = split_by_conversation(pairs, 0.25, seed=1)
    assert len(held_out) == 15 and len(train) == 45
    assert {opening(p.prompt) for p in train}.isdisjoint(opening(p.prompt) for p in held_out)
    assert split_by_conversation(pairs, 0.25, seed=1) == (train, held_out)
    assert split_by_conversation(pairs, 0.25, seed=2)[1] != held_out
    with pytest.raises(InputError, match="cannot be split"):
        split_by_conversation(pairs[:3], 0.5)


# --- export ---


def test_exported_pairs_read_back_as_the_rankings_comparisons(finished, tmp_path, capsys):
    target = tmp_path / "pairs.jsonl"
    assert main(["export", "--store", str(finished / "feedback.db"), "--format", "trl", str(target)]) == 0
    with Run(finished, profile="quick").store() as store:
        expected = [pair for pair in store.comparisons() if not pair.tie]
    assert read_pairs(target) == expected
    assert f"{len(expected)} pairs written" in capsys.readouterr().out


def test_export_refuses_a_store_that_is_not_there_and_an_empty_choice(finished, tmp_path, capsys):
    missing = tmp_path / "none.db"
    assert "does not exist" in refused(capsys, "export", "--store", missing, tmp_path / "x.jsonl")
    assert not missing.exists()
    copy = shutil.copy(finished / "feedback.db", tmp_path / "copy.db")
    target = tmp_path / "x.jsonl"
    assert "nothing to write" in refused(capsys, "export", "--store", copy, "--annotator", "nobody", target)
    assert "cannot be written; use one of" in refused(capsys, "export", "--store", copy, "--format", "arena", target)
    assert "only jsonl and parquet" in refused(capsys, "export", "--store", copy, "--everything", target)
    assert not target.exists()


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_export_and_import_say_what_they_did_and_copy_a_store(finished, tmp_path, capsys, form):
    source, copy, file = finished / "feedback.db", tmp_path / "copy.db", tmp_path / f"all.{form}"
    assert main(["export", "--store", str(source), "--everything", "--format", form, str(file)]) == 0
    assert f"records written to {file} as {form}" in capsys.readouterr().out
    for new in ("new in the store", "nothing new in the store"):
        assert main(["import", "--store", str(copy), str(file)]) == 0
        assert new in capsys.readouterr().out
    with FeedbackStore(source) as one, FeedbackStore(copy) as other:
        assert one.answers() == other.answers() and one.questions() == other.questions()


def test_import_names_the_annotator_and_what_it_leaves_out(tmp_path, capsys):
    summaries = [{"text": text, "policy": "sft", "note": "short"} for text in ("one", "two")]
    record = {"info": {"id": "x", "post": "Post."}, "summaries": summaries, "choice": 0}
    (tmp_path / "theirs.json").write_text(json.dumps([record]))
    store = tmp_path / "new.db"
    assert main(["import", "--store", str(store), "--annotator", "crowd", str(tmp_path / "theirs.json")]) == 0
    out = capsys.readouterr().out
    assert "1 question, 1 ranking read" in out and "as summarize; 1 new" in out and "  2 notes on a summary left" in out
    with FeedbackStore(store) as opened:
        assert [answer.annotator for answer in opened.answers()] == ["crowd"]


def test_import_of_a_malformed_file_makes_no_store(tmp_path, capsys):
    (tmp_path / "bad.jsonl").write_text(
        '{"prompt": "p", "chosen": "a", "rejected": "b"}\n{"prompt": "p", "chosen": 3}\n'
    )
    error = refused(capsys, "import", "--store", tmp_path / "new.db", tmp_path / "bad.jsonl")
    assert "line 2: field 'rejected' is missing" in error and not (tmp_path / "new.db").exists()
    assert "format 'x' is unknown" in refused(
        capsys, "import", "--store", tmp_path / "new.db", "--format", "x", tmp_path / "bad.jsonl"
    )


def test_audit_writes_and_verifies(finished, tmp_path, capsys):
    file = tmp_path / "audit.html"
    assert main(["audit", "--store", str(finished / "feedback.db"), str(file)]) == 0
    said = capsys.readouterr().out
    assert main(["audit", "--verify", str(file)]) == 0
    verified = capsys.readouterr().out
    assert "is whole and unchanged" in verified and verified.split()[-1] == said.split()[-1]
    file.write_text(file.read_text().replace("best first: reply 1", "best first: reply 2", 1))
    assert "was changed after the export" in refused(capsys, "audit", "--verify", file)
    assert "does not exist" in refused(capsys, "audit", "--store", tmp_path / "none.db", file)
    assert "one of the arguments --store --verify is required" in refused(capsys, "audit", file)
