"""Keeps the committed notebooks as they should be: executed, with outputs, and free of what belongs to one machine.

    python tools/notebooks.py execute FILE…   run in place from top to bottom, keep the outputs, clean
    python tools/notebooks.py clean FILE…     clean only
    python tools/notebooks.py check FILE…     say what is not clean or not executed; exit code 1 if anything is

`execute` runs in the default profile with simulated answers (set RLHF_LAB_RUNS to reuse trained models, --profile for
another profile) and writes a file only when every cell succeeded. Clean means: metadata of one form, no widget state,
no timings, no progress bars or warnings (stderr), pieces of printed text joined, "<Figure>" for a figure's text.
A live widget cannot be committed: where a cell has the tag picture-NAME, notebooks/images/NAME.png stands in for it.
"""

from __future__ import annotations

import argparse
import base64
import os
import re
import sys
import time
from pathlib import Path

import nbformat
from nbformat import NotebookNode

METADATA = {
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
WIDGET = "application/vnd.jupyter.widget-view+json"
# What would differ on another machine: folders, addresses of objects, ports of servers.
LOCAL = re.compile(
    r"(?<![\w.])/(?:home|root|tmp|Users|work|mnt|var/folders)/\S*|\b0x[0-9a-f]{6,}|\b(?:127\.0\.0\.1|localhost):\d+"
)


def execute(path: Path, profile: str = "", timeout: int = 1200) -> float:
    """Run a notebook in place and clean it; returns the seconds that it took. The file is untouched if a cell fails."""
    from nbclient import NotebookClient

    os.environ["RLHF_LAB_ANNOTATOR"] = "simulated"
    os.environ.pop("RLHF_LAB_PROFILE", None)
    if profile:
        os.environ["RLHF_LAB_PROFILE"] = profile
    notebook = nbformat.read(path, as_version=4)
    started = time.monotonic()
    folder = {"metadata": {"path": str(path.parent)}}
    NotebookClient(
        notebook, timeout=timeout, kernel_name="python3", store_widget_state=False, resources=folder
    ).execute()
    write(clean(notebook, path.parent), path)
    return time.monotonic() - started


def clean(notebook: NotebookNode, folder: Path) -> NotebookNode:
    """The notebook without what belongs to one run; `folder` is the notebook's, for its pictures."""
    notebook.metadata = nbformat.from_dict(METADATA)
    for cell in notebook.cells:
        tags = cell.metadata.get("tags", [])
        cell.metadata = nbformat.from_dict({"tags": tags} if tags else {})
        if cell.cell_type == "code":
            pictures = [_picture(tag.removeprefix("picture-"), folder) for tag in tags if tag.startswith("picture-")]
            cell.outputs = _joined([kept for output in cell.outputs for kept in _kept(output, pictures)])
    return notebook


def _kept(output: NotebookNode, pictures: list[NotebookNode]) -> list[NotebookNode]:
    """What stands in a clean notebook for one output: itself, nothing, or a widget's picture."""
    if output.output_type == "stream" and output.name == "stderr":
        return []
    data = output.get("data", {})
    if WIDGET in data:
        return pictures
    if "image/png" in data and data.get("text/plain", "").startswith("<Figure"):
        data["text/plain"] = "<Figure>"
        output.metadata = nbformat.from_dict({})
    return [output]


def _joined(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """Printed text that arrived in pieces as one output."""
    joined: list[NotebookNode] = []
    for output in outputs:
        if joined and output.output_type == joined[-1].output_type == "stream":
            joined[-1].text += output.text
        else:
            joined.append(output)
    return joined


def _picture(name: str, folder: Path) -> NotebookNode:
    images = folder.parent / "images" if folder.name == "solutions" else folder / "images"
    data = {
        "image/png": base64.b64encode((images / f"{name}.png").read_bytes()).decode(),
        "text/plain": "<a picture of the live widget>",
    }
    return nbformat.v4.new_output("display_data", data=data)


def problems(path: Path) -> list[str]:
    """What keeps a notebook from being committed, a sentence each."""
    notebook = nbformat.read(path, as_version=4)
    found = [problem for number, cell in enumerate(notebook.cells) for problem in _problems_of(cell, number)]
    if notebook.metadata != METADATA:
        found.append("its metadata is not the usual; run `clean`")
    if not found and clean(nbformat.read(path, as_version=4), path.parent) != notebook:
        found.append("`clean` would change it")
    return found


def _problems_of(cell: NotebookNode, number: int) -> list[str]:
    found = []
    if set(cell.metadata) - {"tags"}:
        found.append(f"cell {number} has metadata {sorted(set(cell.metadata) - {'tags'})}; run `clean`")
    if cell.cell_type != "code":
        return found
    if cell.execution_count is None and cell.source.strip():
        found.append(f"cell {number} was not executed")
    for output in cell.outputs:
        data = output.get("data", {})
        text = output.get("text", "") + "".join(str(value) for kind, value in data.items() if "image" not in kind)
        if output.output_type == "error":
            found.append(f"cell {number} failed: {output.ename}: {output.evalue}")
        if output.get("name") == "stderr" or WIDGET in data:
            found.append(f"cell {number} has output that belongs to one run (stderr or a live widget); run `clean`")
        if local := LOCAL.search(text):
            found.append(f"cell {number} shows {local.group()!r}, which is of one machine; change what it prints")
    return found


def write(notebook: NotebookNode, path: Path) -> None:
    """Replaces the file in one step, so that an interruption leaves the old one."""
    nbformat.validate(notebook)
    fresh = path.with_suffix(".ipynb.new")
    nbformat.write(notebook, fresh)
    fresh.replace(path)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("execute", "clean", "check"))
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--profile", default="", help="profile to execute in (default: the lab's default)")
    options = parser.parse_args(arguments)
    failed = False
    for path in options.files:
        if options.action == "execute":
            print(f"{path}: {execute(path, options.profile):.0f} s", flush=True)
        elif options.action == "clean":
            write(clean(nbformat.read(path, as_version=4), path.parent), path)
        for problem in problems(path):
            failed = True
            print(f"{path}: {problem}", file=sys.stderr)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
