"""How many students does one machine hold? Memory of a labelling kernel, time to open a page, time to save an answer.

    python benchmarks/classroom.py RUN_FOLDER [--students 5 15 30] [--store URL] [--seconds 40] [--plain]

Opens a real class (`rlhf-lab classroom`, trainer included) on a copy of the run, and lets n students label at one
answer every five seconds, more or less, each over a kernel websocket of their own as a browser would: an answer's
latency runs from sending it until the message that acknowledges it, which comes after the commit. Pages are opened one
after another with a fifth of a second between, as when a room begins; the time is until the whole page has come. No
browser runs, so the figures are the server's side only. Memory is read from /proc (PSS counts shared pages by their
share). `--plain` starts kernels in the ordinary way, for comparison with forking them.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from http.cookiejar import CookieJar
from pathlib import Path

import websockets

EVERY = 5.0  # seconds between a student's answers, on average


class Student:
    """A student without a browser: opens the page, then answers over the kernel's websocket."""

    def __init__(self, link: str) -> None:
        self.link, self.base = link, link.partition("/label")[0]
        self.latencies: list[float] = []
        self.opened = 0.0

    def open(self) -> None:
        jar = CookieJar()
        began = time.perf_counter()
        opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(jar))
        page = opener.open(self.link, timeout=120).read().decode()
        self.opened = time.perf_counter() - began
        self.kernel = re.search(r'"kernelId": "([0-9a-f-]+)"', page)[1]
        self.cookie = "; ".join(f"{cookie.name}={cookie.value}" for cookie in jar)

    async def label(self, until: float) -> None:
        url = f"{self.base.replace('http', 'ws')}/api/kernels/{self.kernel}/channels?session_id={uuid.uuid4().hex}"
        async with websockets.connect(url, additional_headers={"Cookie": self.cookie}, max_size=None) as channel:
            comm, state = await self._widget(channel)
            rng = random.Random(self.link)
            await asyncio.sleep(rng.uniform(0, EVERY))
            while time.monotonic() < until and state.get("shown"):
                answer = {"id": uuid.uuid4().hex, "question": state["shown"]["id"], "order": [[1], [2]]}
                answer |= {"status": "ranked", "seconds": EVERY, "attempt": 1}
                began = time.perf_counter()
                await channel.send(_message("comm_msg", {"comm_id": comm, "data": _update({"answer": answer})}))
                await self._acknowledged(channel, comm, state, answer["id"])
                self.latencies.append(time.perf_counter() - began)
                await asyncio.sleep(rng.uniform(0.5, 1.5) * EVERY)

    async def _widget(self, channel) -> tuple[str, dict]:
        """The comm of the widget that asks, and its state, as the page would ask for them."""
        control = uuid.uuid4().hex
        while True:  # the server drops what comes before its own connection to the kernel stands: ask again
            content = {"comm_id": control, "target_name": "jupyter.widget.control", "data": {}}
            await channel.send(_message("comm_open", content, {"version": "1.0.0"}))
            await channel.send(_message("comm_msg", {"comm_id": control, "data": {"method": "request_states"}}))
            try:
                while True:
                    data = _content(await asyncio.wait_for(channel.recv(), 1.0)).get("data", {})
                    for model, found in data.get("states", {}).items():
                        if "shown" in found["state"]:
                            return model, dict(found["state"])
            except TimeoutError:
                continue

    async def _acknowledged(self, channel, comm: str, state: dict, answer: str) -> None:
        """Until the answer is acknowledged and the next question is there."""
        while state.get("acknowledged", {}).get("id") != answer:
            content = _content(await asyncio.wait_for(channel.recv(), 60))
            if content.get("comm_id") == comm and content["data"].get("method") == "update":
                state.update(content["data"]["state"])
                if state.get("error"):
                    raise RuntimeError(state["error"])


def _message(kind: str, content: dict, metadata: dict | None = None) -> str:
    header = {"msg_id": uuid.uuid4().hex, "msg_type": kind, "username": "", "session": "b", "version": "5.3"}
    message = {"header": header, "parent_header": {}, "metadata": metadata or {}, "content": content}
    return json.dumps(message | {"channel": "shell"})


def _update(state: dict) -> dict:
    return {"method": "update", "state": state, "buffer_paths": []}


def _content(message: str | bytes) -> dict:
    return json.loads(message).get("content", {}) if isinstance(message, str) else {}


def processes(pid: int) -> dict[int, tuple[int, str]]:
    """All descendants of a process: their depth below it, and their command."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                parents[int(entry.name)] = parent, (entry / "cmdline").read_text().replace("\0", " ")
            except OSError:
                continue
    found = {pid: (0, "")}
    for _ in range(4):
        found |= {p: (found[up][0] + 1, command) for p, (up, command) in parents.items() if up in found}
    return found


def memory(pid: int) -> tuple[float, float]:
    """RSS and PSS of a process, MiB."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return tuple(int(re.search(rf"^{name}:\s+(\d+)", text, re.M)[1]) / 1024 for name in ("Rss", "Pss"))


def measure(run: Path, n: int, store: str | None, seconds: float) -> dict:
    folder = Path(tempfile.mkdtemp(prefix="classroom-")) / "run"
    shutil.copytree(run, folder, ignore=shutil.ignore_patterns("*.lock.db"))
    config = json.loads((folder / "config.json").read_text())
    command = [sys.executable, "-m", "rlhf_lab.cli", "classroom", "--out", str(folder), "--students", str(n)]
    command += ["--port", "0", "--questions", str(max(60, round(n * seconds / EVERY))), "--seed", str(config["seed"])]
    command += ["--profile", config["profile"]["name"], *(["--store", store] if store else [])]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        for line in process.stdout:
            if "Ctrl-C ends" in line:
                break
        links = dict(csv.reader((folder / "links.csv").open(newline="")))
        students = [Student(link) for name, link in links.items() if name.startswith("Student")]
        urllib.request.build_opener(urllib.request.HTTPCookieProcessor(CookieJar())).open(links["(teacher)"]).read()
        for student in students:
            student.open()
            time.sleep(0.2)
        asyncio.run(_label(students, time.monotonic() + seconds))
        return report(n, students, process.pid)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)
        shutil.rmtree(folder.parent, ignore_errors=True)


async def _label(students: list[Student], until: float) -> None:
    await asyncio.gather(*(student.label(until) for student in students))


def report(n: int, students: list[Student], pid: int) -> dict:
    found = processes(pid)
    sizes = {p: memory(p) for p in found}
    kernels = [p for p, (depth, _) in found.items() if depth == 3]
    heavy = [p for p, (_, command) in found.items() if "class_trainer" in command]
    kernels.sort(key=lambda p: sizes[p][0])
    of_students = kernels[: len(students)]  # the teacher's, with numpy, is the largest
    latencies = sorted(latency for student in students for latency in student.latencies)
    opened = sorted(student.opened for student in students)
    return {
        "students": n,
        "answers": len(latencies),
        "open p50 s": opened[len(opened) // 2],
        "open max s": opened[-1],
        "answer p50 ms": 1000 * latencies[len(latencies) // 2],
        "answer p95 ms": 1000 * latencies[int(len(latencies) * 0.95)],
        "kernel RSS MiB": max(sizes[p][0] for p in of_students),
        "kernel PSS MiB": sum(sizes[p][1] for p in of_students) / len(of_students),
        "trainer PSS MiB": sum(sizes[p][1] for p in heavy),
        "all PSS MiB": sum(pss for _, pss in sizes.values()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--students", type=int, nargs="+", default=[5, 15, 30])
    parser.add_argument("--store", help="URL of an empty PostgreSQL database for each n, comma-separated")
    parser.add_argument("--seconds", type=float, default=40.0)
    parser.add_argument("--plain", action="store_true", help="kernels started in the ordinary way")
    options = parser.parse_args()
    if options.plain:
        os.environ["RLHF_LAB_PLAIN_KERNELS"] = "1"
    stores = options.store.split(",") if options.store else [None] * len(options.students)
    print(f"load average before: {os.getloadavg()[0]:.2f}, cores: {os.cpu_count()}", flush=True)
    rows = []
    for n, store in zip(options.students, stores, strict=True):
        rows.append(measure(options.run, n, store, options.seconds))
        if len(rows) == 1:
            print("| " + " | ".join(rows[0]) + " |\n" + "| --- " * len(rows[0]) + "|")
        print("| " + " | ".join(f"{v:.2f}" if k.endswith(" s") else f"{v:.0f}" for k, v in rows[-1].items()) + " |",
              flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
