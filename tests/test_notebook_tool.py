"""The tool that keeps committed notebooks clean, and that they are."""

import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))

import notebooks  # noqa: E402

COMMITTED = sorted((ROOT / "notebooks").rglob("*.ipynb"))


def saved(folder: Path, *cells, **metadata) -> Path:
    path = folder / "notebook.ipynb"
    nbformat.write(new_notebook(cells=list(cells), metadata=metadata), path)
    return path


def ran(source: str, *outputs, **metadata):
    return new_code_cell(source, outputs=list(outputs), execution_count=1, metadata=metadata)


def printed(text: str, name: str = "stdout"):
    return new_output("stream", name=name, text=text)


@pytest.mark.parametrize("path", [p for p in COMMITTED if ".ipynb_checkpoints" not in p.parts], ids=lambda p: p.stem)
def test_committed_notebooks_are_clean_and_executed(path):
    assert notebooks.problems(path) == []


def test_cleaning_takes_away_what_belongs_to_one_run_and_nothing_else(tmp_path):
    figure = new_output("display_data", data={"image/png": "aGk=", "text/plain": "<Figure size 670x320 with 1 Axes>"})
    cell = ran("work()", printed("a\n"), printed("10%|█ it/s", "stderr"), printed("b\n"), figure,
               execution={"iopub.status.busy": "now"}, tags=["keep"])  # fmt: skip
    path = saved(tmp_path, new_markdown_cell("# Hello"), cell, widgets={"state": {}}, language_info={"name": "python"})
    assert notebooks.main(["check", str(path)]) == 1
    assert notebooks.main(["clean", str(path)]) == 0 == notebooks.main(["check", str(path)])
    text, code = nbformat.read(path, 4).cells
    assert text.source == "# Hello" and code.source == "work()" and code.metadata == {"tags": ["keep"]}
    assert [output.get("text") for output in code.outputs] == ["a\nb\n", None]
    assert code.outputs[1].data == {"image/png": "aGk=", "text/plain": "<Figure>"}


def test_a_live_widget_is_replaced_by_its_picture(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "ranking.png").write_bytes(b"hi")
    widget = new_output("display_data", data={notebooks.WIDGET: {"model_id": "7"}, "text/plain": "Widget()"})
    path = saved(tmp_path, ran("widget", widget, tags=["picture-ranking"]), ran("other", widget))
    notebooks.main(["clean", str(path)])
    first, second = nbformat.read(path, 4).cells
    assert first.outputs[0].data["image/png"] == "aGk=" and second.outputs == []


@pytest.mark.parametrize(
    "cell, words",
    [
        (ran("x", printed("saved in /home/ada/runs\n")), "'/home/ada/runs'"),
        (ran("x", printed("<object at 0x7f12ab34cd>")), "0x7f12ab34cd"),
        (ran("x", printed("http://127.0.0.1:8888/lab")), "127.0.0.1:8888"),
        (ran("x", new_output("error", ename="KeyError", evalue="'a'", traceback=[])), "failed: KeyError"),
        (new_code_cell("x = 1"), "was not executed"),
    ],
)
def test_what_cleaning_cannot_mend_is_named(tmp_path, capsys, cell, words):
    path = saved(tmp_path, cell)
    assert notebooks.main(["clean", str(path)]) == 1
    assert words in capsys.readouterr().err


def test_executing_keeps_outputs_and_a_failure_leaves_the_file(tmp_path, monkeypatch):
    monkeypatch.setenv("RLHF_LAB_PROFILE", "quick")
    monkeypatch.setenv("RLHF_LAB_ANNOTATOR", "")
    path = saved(tmp_path, new_code_cell("import os\nprint(1 + 1, os.environ.get('RLHF_LAB_PROFILE'))"))
    assert notebooks.main(["execute", str(path)]) == 0
    assert nbformat.read(path, 4).cells[0].outputs[0].text == "2 None\n"
    before = saved(tmp_path, new_code_cell("1 / 0")).read_bytes()
    with pytest.raises(Exception, match="ZeroDivisionError"):
        notebooks.main(["execute", str(path)])
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
