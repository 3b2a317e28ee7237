"""Browser tests: real JupyterLab, real Chromium, found by role.

`lab` starts one server for the session; `notebook` gives each test its own browser page and writes, opens and runs
notebooks on that server. Without Chromium these tests are skipped, except in CI (env CI set), where that is a failure.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

TOKEN = "browser-tests"
PATIENCE_MS = 60_000  # two slow cores, a kernel that starts: generous, and only spent on failure
CHROMIUM_FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync"
).split()
QUIET = {"fetchNews": "false", "checkForUpdates": False}

# Everything that runs in the page talks to the notebook in front.
_FRONT = "const panel = jupyterapp.shell.currentWidget;"
_READY = "() => window.jupyterapp?.shell.currentWidget?.context?.isReady && jupyterapp.shell.currentWidget.revealed"
_IDLE = "() => jupyterapp.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'"


@dataclass(frozen=True)
class Lab:
    """A running JupyterLab: its address and the folder that it serves."""

    url: str
    folder: Path

    def path(self, name: str) -> Path:
        return self.folder / name


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _environment(home: Path) -> dict[str, str]:
    """The environment with every Jupyter folder inside `home`, the news switched off."""
    folders = ("CONFIG_DIR", "DATA_DIR", "RUNTIME_DIR")
    settings = home / "settings"
    news = settings / "@jupyterlab" / "apputils-extension" / "notification.jupyterlab-settings"
    news.parent.mkdir(parents=True, exist_ok=True)
    news.write_text(json.dumps(QUIET))
    return (
        os.environ
        | {f"JUPYTER_{name}": str(home / name.lower()) for name in folders}
        | {"JUPYTERLAB_SETTINGS_DIR": str(settings), "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces")}
        | {"IPYTHONDIR": str(home / "ipython")}
    )


def _wait_until_up(server: subprocess.Popen, url: str, log: Path) -> None:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and server.poll() is None:
        try:
            urllib.request.urlopen(f"{url}/api/status?token={TOKEN}", timeout=5).close()
            return
        except OSError:
            time.sleep(0.2)
    pytest.fail(f"JupyterLab did not start:\n{log.read_text()[-3000:]}")


def start_lab(home: Path, folder: Path, port: int | None = None) -> tuple[Lab, subprocess.Popen]:
    """JupyterLab on a free port (or on `port`, again), serving `folder`; its own files are in `home`."""
    port, log = port or _free_port(), home / "server.log"
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", f"--port={port}"]
    command += [f"--ServerApp.root_dir={folder}", "--ServerApp.port_retries=0", f"--IdentityProvider.token={TOKEN}"]
    command += ["--LabApp.expose_app_in_browser=True"]
    command += ["--allow-root"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    with log.open("a") as output:
        server = subprocess.Popen(command, env=_environment(home), stdout=output, stderr=output, cwd=folder)
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_until_up(server, url, log)
    except BaseException:
        stop_lab(server)
        raise
    return Lab(url, folder), server


def stop_lab(server: subprocess.Popen) -> None:
    """Ask it to end, with its kernels; after 20 seconds it is killed."""
    server.terminate()
    try:
        server.wait(20)
    except subprocess.TimeoutExpired:
        server.kill()


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """One JupyterLab for the session, on a free port, serving an empty folder."""
    lab, server = start_lab(tmp_path_factory.mktemp("jupyter-home"), tmp_path_factory.mktemp("jupyter-work"))
    yield lab
    stop_lab(server)


def find_chromium() -> str | None:
    """Chromium or Chrome: from $CHROMIUM, or as installed."""
    names = ("chromium", "chromium-browser", "google-chrome")
    paths = ["/usr/bin/chromium", *(shutil.which(name) for name in names)]
    return os.environ.get("CHROMIUM") or next((path for path in paths if path and Path(path).exists()), None)


@pytest.fixture(scope="session")
def browser():
    """Chromium, headless."""
    found = find_chromium()
    if found is None:
        message = "no Chromium: install it (Debian: apt install chromium) or set CHROMIUM to its path"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=found, args=CHROMIUM_FLAGS)
        yield chromium
        chromium.close()


class Notebook:
    """One browser page on JupyterLab, with one notebook open in it.

    `page` is Playwright's page, for finding things by role; the methods do what a person does in JupyterLab.
    """

    def __init__(self, page, lab: Lab) -> None:
        self.page, self.lab = page, lab
        self.workspace = uuid.uuid4().hex[:8]
        page.set_default_timeout(PATIENCE_MS)

    def write(self, *cells: str, name: str | None = None) -> str:
        """A notebook of code cells in the served folder; returns its name."""
        name = name or f"test-{uuid.uuid4().hex[:8]}.ipynb"
        code = {"cell_type": "code", "metadata": {}, "outputs": [], "execution_count": None}
        kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
        content = {
            "cells": [code | {"id": f"cell-{i}", "source": cell} for i, cell in enumerate(cells)],
            "metadata": {"kernelspec": kernel},
            "nbformat": 4,
            "nbformat_minor": 5,
        }
        self.lab.path(name).write_text(json.dumps(content))
        return name

    def open(self, name: str) -> None:
        """Show the notebook `name` (relative to the served folder) and wait for its kernel."""
        self.page.goto(f"{self.lab.url}/lab/workspaces/{self.workspace}/tree/{name}?token={TOKEN}")
        self.wait_until_ready()

    def reload(self) -> None:
        """Save, then reload the page as a person would."""
        self.save()
        self.page.reload()
        self.wait_until_ready()

    def wait_until_ready(self) -> None:
        self.page.wait_for_function(_READY)
        self.wait_until_idle()

    def wait_until_idle(self) -> None:
        """Until the notebook's kernel has nothing to do."""
        self.page.wait_for_function(_IDLE)

    def run_all(self, fail_on_error: bool = True) -> None:
        """Run every cell, wait for the end; an error output fails the test."""
        self.command("notebook:run-all-cells")
        self.wait_until_idle()
        if fail_on_error:
            assert not self.errors(), self.errors()

    def run(self, *cells: str) -> None:
        """Write a notebook of these cells, open it and run it."""
        self.open(self.write(*cells))
        self.run_all()

    def command(self, name: str, **arguments) -> None:
        """A JupyterLab command, to its end."""
        self.page.evaluate(
            "([name, args]) => jupyterapp.commands.execute(name, args).then(() => null)", [name, arguments]
        )

    def save(self) -> None:
        self.command("docmanager:save")

    def content(self) -> dict:
        """The notebook as JSON, outputs included, as it is in the page now."""
        return self.page.evaluate(f"() => {{ {_FRONT} return panel.context.model.toJSON(); }}")

    def cells(self) -> list[tuple[str, str]]:
        """(type, source) of each cell."""
        return [(cell["cell_type"], "".join(cell["source"])) for cell in self.content()["cells"]]

    def mode(self) -> tuple[str, int]:
        """("command" or "edit", index of the active cell)."""
        return tuple(
            self.page.evaluate(f"() => {{ {_FRONT} return [panel.content.mode, panel.content.activeCellIndex]; }}")
        )

    def errors(self) -> list[str]:
        """What the cells' error outputs say."""
        outputs = [output for cell in self.content()["cells"] for output in cell.get("outputs", [])]
        return [f"{o['ename']}: {o['evalue']}" for o in outputs if o["output_type"] == "error"]

    def dark(self, dark: bool = True) -> None:
        """Switch JupyterLab's theme."""
        self.command("apputils:change-theme", theme="JupyterLab Dark" if dark else "JupyterLab Light")
        self.page.wait_for_selector(f"body[data-jp-theme-light={'false' if dark else 'true'}]", state="attached")
        self.page.wait_for_timeout(300)  # the theme's style sheet is painted

    def screenshot(self, path: Path | str, locator=None) -> Path:
        """A picture of the page, or of one element."""
        (locator or self.page).screenshot(path=str(path))
        return Path(path)


@pytest.fixture
def new_notebook(lab, browser):
    """Makes `Notebook`s, each in a browser of its own (another person); takes Playwright's context options."""
    contexts = []

    def make(**options) -> Notebook:
        contexts.append(browser.new_context(**{"viewport": {"width": 1200, "height": 1000}} | options))
        return Notebook(contexts[-1].new_page(), lab)

    yield make
    for context in contexts:
        context.close()


@pytest.fixture
def notebook(new_notebook) -> Notebook:
    """A browser page of the test's own."""
    return new_notebook()
