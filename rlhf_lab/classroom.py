"""`rlhf-lab classroom`: one command that opens a class, a labelling page a student, one trainer, the teacher's page.

The command makes or opens the class's store, enrols the students, fills the queue with questions of a run's models,
starts the web server (`rlhf_lab.classroom_server`) and the trainer (`rlhf_lab.class_trainer`), each in a process of its
own, prints the links and waits. Ctrl-C ends everything; the same command again goes on where the class was, with the
same links as long as DIR/links.csv is there. No torch here.
"""

from __future__ import annotations

import argparse
import csv
import errno
import ipaddress
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .assignments import Assignments
from .class_questions import CHECKABLE, Plan, scenario_guidelines
from .errors import InputError
from .store import FeedbackStore

LINKS = "links.csv"
TEACHER = "(teacher)"
MOST_STUDENTS = 500
RESTARTS = 5  # of a process that dies, within `RESTART_WINDOW` seconds
RESTART_WINDOW = 60.0
PATIENCE = 15.0  # seconds that a process has for ending in order


@dataclass(frozen=True)
class Settings:
    """What the command was asked for, checked."""

    plan: Plan
    students: tuple[str, ...]
    ip: str = "127.0.0.1"
    port: int = 8866
    lease: float = 1800.0
    guidelines: str | None = None
    trainer: bool = True

    def __post_init__(self) -> None:
        plan = self.plan
        if not 1 <= plan.overlap <= len(self.students):
            raise InputError(
                f"--overlap {plan.overlap}: each question goes to that many different students, 1 to "
                f"{len(self.students)} in this class"
            )
        if plan.questions < 1:
            raise InputError(f"--questions {plan.questions}: ask for at least 1")
        if not 0 <= plan.checks <= 0.5:
            raise InputError(f"--checks {plan.checks}: a share of the questions, from 0 to 0.5")
        if plan.checks and plan.form not in CHECKABLE:
            raise InputError(
                f"--checks {plan.checks}: a question of the form {plan.form} shows one reply and has no known answer; "
                "use --checks 0"
            )
        if not 0 <= self.port <= 65535:
            raise InputError(f"--port {self.port}: a number from 0 (any free port) to 65535")


# --- students and links -----------------------------------------------------------------------------------------------


def read_students(text: str) -> tuple[str, ...]:
    """Names from "Ada,Ben", from a file with a name a line, or from a number: "30" gives Student 01 to Student 30."""
    text = text.strip()
    if text.isdecimal():
        n = int(text)
        names = [f"Student {i:0{max(2, len(text))}d}" for i in range(1, min(n, MOST_STUDENTS + 1) + 1)]
    elif Path(text).is_file():
        try:
            names = Path(text).read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"--students {text}: cannot be read: {error}; a text file, UTF-8, a name a line") from None
    else:
        names = text.split(",")
    names = [" ".join(name.split()) for name in names if name.strip()]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"--students: {', '.join(twice)} stands there twice; each needs a name of their own")
    if TEACHER in names:
        raise InputError(f"--students: {TEACHER} is the teacher's own line in {LINKS}; name the student otherwise")
    if not 1 <= len(names) <= MOST_STUDENTS:
        raise InputError(f"--students {text[:60]!r}: name 1 to {MOST_STUDENTS}, a file with a name a line, or a number")
    return tuple(names)


def hand_out_keys(queue: Assignments, students: Sequence[str], path: Path) -> dict[str, str]:
    """Everybody's key by name, the teacher's under `TEACHER`: those of `path` that still hold, new ones for the rest.

    Only hashes are in the database, so a class whose links.csv is gone gets new keys, and all old links end, those of
    students who are no longer on the list too.
    """
    earlier, keys = _earlier_keys(path), {}
    if not earlier:
        for gone in set(queue.people()) - set(students):
            queue.enrol(gone)  # a key that nobody has
    for name in students:
        known = earlier.get(name, "")
        keys[name] = known if known and _opens(queue, known) == name else queue.enrol(name)
    known = earlier.get(TEACHER, "")
    keys[TEACHER] = known if known and queue.is_teacher(known) else queue.admit_teacher()
    return keys


def _opens(queue: Assignments, key: str) -> str | None:
    try:
        return queue.who(key)
    except InputError:
        return None


def _earlier_keys(path: Path) -> dict[str, str]:
    """Names and keys of an earlier links.csv; {} when there is none, or what is there cannot be read as one."""
    try:
        with open(path, encoding="utf-8", newline="") as file:
            rows = [row for row in csv.reader(file) if len(row) == 2]
    except (OSError, UnicodeDecodeError, csv.Error):
        return {}
    return {name: link.rpartition("key=")[2] for name, link in rows if "key=" in link}


def links_of(keys: dict[str, str], host: str, port: int) -> dict[str, str]:
    """Each person's link."""
    at = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    return {name: f"{at}/{'teacher' if name == TEACHER else 'label'}?key={key}" for name, key in keys.items()}


def write_links(path: Path, links: dict[str, str]) -> None:
    """links.csv, which only its owner may read: whoever has a link is that person."""
    temporary = path.with_suffix(".new")
    temporary.unlink(missing_ok=True)  # one that is there already would keep its own permissions
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8", newline="") as f:
        csv.writer(f).writerows([("name", "link"), *links.items()])
    os.replace(temporary, path)


# --- where the class is reached ---------------------------------------------------------------------------------------


def free_port(ip: str, port: int) -> int:
    """`port`, or any free one for 0; InputError when it cannot be had."""
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((ip, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise InputError(f"--port {port} is in use; end what uses it, or choose another: --port 0") from None
            if error.errno == errno.EACCES:
                raise InputError(f"--port {port} may not be used by this user; choose one above 1023") from None
            raise InputError(
                f"--ip {ip}: cannot be listened on: {error}; an address of this machine is wanted"
            ) from None
        return probe.getsockname()[1]


def is_loopback(ip: str) -> bool:
    """Whether only this machine can reach `ip`."""
    try:
        return ipaddress.ip_address(ip).is_loopback
    except ValueError:
        return ip == "localhost"


def host_of(ip: str) -> str:
    """What stands in a link for the address that is listened on."""
    if ip not in ("0.0.0.0", "::"):
        return ip
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing: asks which of our addresses would be used
            return probe.getsockname()[0]
        except OSError:
            return socket.gethostname()


def warning_of(ip: str) -> str:
    """What a teacher must know before others can reach the class; "" on loopback."""
    if is_loopback(ip):
        return ""
    return (
        f"Warning: listening on {ip}, so everybody on this network can reach the class, and what they send and read is "
        "not encrypted: whoever listens in sees answers and links. Use it on a network you trust."
    )


# --- the processes ----------------------------------------------------------------------------------------------------


class Worker:
    """One process of the class, started with its settings on standard input; started again when it dies."""

    def __init__(self, name: str, module: str, settings: dict[str, Any]) -> None:
        self.name, self.module, self.settings = name, module, settings
        self.deaths: list[float] = []
        self.process: subprocess.Popen | None = None
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", self.module]
        # a session of its own: Ctrl-C in the terminal reaches the command, which ends its workers in order
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, text=True, start_new_session=True)
        self.process.stdin.write(json.dumps(self.settings) + "\n")
        self.process.stdin.flush()

    def watch(self) -> str:
        """Start it again if it has died; returns what to tell the teacher. InputError when it will not stay up."""
        code = self.process.poll()
        if code is None or code == 2 and self.name == "trainer":  # it has said what is wrong; the class goes on
            return ""
        now = time.monotonic()
        self.deaths = [death for death in self.deaths if now - death < RESTART_WINDOW] + [now]
        if len(self.deaths) > RESTARTS:
            raise InputError(f"the {self.name} does not stay up (it ended with {code}); its messages are above")
        self.start()
        return f"The {self.name} had ended ({code}) and was started again; nothing is lost, students reload their page."

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)

    def join(self) -> None:
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def hold_class(settings: Settings, say: Callable[[str], None] = print) -> None:
    """Prepare the class, start it, print its links, and wait until interrupted."""
    plan, folder = settings.plan, Path(settings.plan.out)
    port = free_port(settings.ip, settings.port)
    prepare(plan)
    with FeedbackStore(plan.store) as store:
        queue = Assignments(store)
        keep_guidelines(store, settings)
        keys = hand_out_keys(queue, settings.students, folder / LINKS)
        links = links_of(keys, host_of(settings.ip), port)
        write_links(folder / LINKS, links)
        state = queue.state()
    serve = {"store": plan.store, "ip": settings.ip, "port": port, "form": plan.form, "lease": settings.lease}
    workers = [Worker("server", "rlhf_lab.classroom_server", serve)]
    try:
        _wait_until_up(workers[0], settings.ip, port)
        if settings.trainer:
            workers.append(Worker("trainer", "rlhf_lab.class_trainer", asdict(plan)))
        say(announcement(settings, links, state.questions, state.places))
        while True:
            for message in filter(None, [worker.watch() for worker in workers]):
                say(message)
            time.sleep(0.5)
    finally:
        for worker in workers:
            worker.stop()
        for worker in workers:
            worker.join()


def prepare(plan: Plan) -> None:
    """Make the run and the questions that are missing, in a process of its own, which has said what went wrong."""
    if _is_prepared(plan):
        return
    command = [sys.executable, "-m", "rlhf_lab.class_questions"]
    done = subprocess.run(command, input=json.dumps(asdict(plan)), text=True)
    if done.returncode == 130 or done.returncode == -signal.SIGINT:
        raise KeyboardInterrupt
    if done.returncode:
        raise SystemExit(done.returncode if done.returncode > 0 else 1)


def _is_prepared(plan: Plan) -> bool:
    """Whether the folder is a run's, and the queue is full, so that torch need not be imported."""
    file = Path(plan.store.removeprefix("sqlite:///")) if plan.store.startswith("sqlite:///") else None
    if not Path(plan.out, "config.json").exists() or (file and not file.exists()):
        return False
    with FeedbackStore(plan.store) as store:
        return Assignments(store).state().questions >= plan.questions


def keep_guidelines(store: FeedbackStore, settings: Settings) -> None:
    """The teacher's guidelines, or the scenario's own, kept as a note when they are not the ones in force."""
    in_force = store.note("guidelines")
    text = settings.guidelines
    if text is None:
        text = in_force["text"] if in_force else scenario_guidelines(settings.plan.scenario)
    if in_force is None or in_force["text"] != text:
        store.add_note("guidelines", {"text": text})


def _wait_until_up(worker: Worker, ip: str, port: int) -> None:
    address = ("127.0.0.1" if ip == "0.0.0.0" else "::1" if ip == "::" else ip, port)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if worker.process.poll() is not None:
            raise InputError("the web server could not be started; its messages are above")
        try:
            socket.create_connection(address, 1).close()
            return
        except OSError:
            time.sleep(0.05)
    raise InputError(f"the web server did not answer on port {port} within a minute")


def announcement(settings: Settings, links: dict[str, str], questions: int, places: int) -> str:
    """What the teacher reads when the class is open."""
    plan, width = settings.plan, max(map(len, links))
    lines = [
        "",
        f"The class is open: {len(settings.students)} students, {questions} questions, {places} answers wanted "
        f"({plan.overlap} for each question, form: {plan.form}).",
        "",
        *(f"  {name:<{width}}  {link}" for name, link in links.items() if name != TEACHER),
        "",
        f"  {'Teacher':<{width}}  {links[TEACHER]}",
        "",
        f"Each link is for one person; {Path(plan.out) / LINKS} has them too. Answers go to {_shown(plan.store)}.",
        *filter(None, [warning_of(settings.ip)]),
        "Ctrl-C ends the class. The same command goes on where it was, with the same links.",
    ]
    return "\n".join(lines)


def _shown(store: str) -> str:
    import sqlalchemy as sa

    return sa.make_url(store).render_as_string(hide_password=True) if "://" in store else store


# --- the command ------------------------------------------------------------------------------------------------------


def run(options: argparse.Namespace) -> None:
    """The command. Raises InputError for bad input and KeyboardInterrupt when the teacher ends the class."""
    settings = settings_of(options)
    _need_voila()

    def end(*_: object) -> None:
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):  # a shell's background job would ignore the first
        signal.signal(number, end)
    hold_class(settings, lambda text: print(text, flush=True))


def settings_of(options: argparse.Namespace) -> Settings:
    """The options, checked; InputError names the one that is wrong."""
    students = read_students(options.students)
    overlap = min(3, len(students)) if options.overlap is None else options.overlap
    checks = (0.1 if options.form in CHECKABLE else 0.0) if options.checks is None else options.checks
    if not options.lease > 0:
        raise InputError(f"--lease {options.lease}: minutes, greater than 0")
    store = options.store or f"sqlite:///{Path(options.out).absolute() / 'class.db'}"
    store = store if "://" in store else f"sqlite:///{Path(store).absolute()}"
    plan = Plan(
        options.out, store, options.form, options.questions, overlap, checks, options.scenario, options.profile,
        options.seed, options.ask,
    )  # fmt: skip
    guidelines = _read_guidelines(options.guidelines) if options.guidelines else None
    return Settings(
        plan, students, options.ip, options.port, options.lease * 60, guidelines, not options.no_trainer
    )  # fmt: skip


def _read_guidelines(path: str) -> str:
    try:
        text = Path(path).read_text(encoding="utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--guidelines {path}: cannot be read: {error}; a text file, UTF-8") from None
    if not text or "\x00" in text or len(text) > 20_000:
        raise InputError(f"--guidelines {path}: 1 to 20,000 characters of text are wanted")
    return text


def _need_voila() -> None:
    from importlib.util import find_spec

    if find_spec("voila") is None:
        raise InputError("a class needs the package voila; install it: pip install 'rlhf-lab[classroom]'")
