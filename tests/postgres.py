"""A real PostgreSQL server for tests: with a data folder and a port of its own, gone afterwards.

`Server` can be killed and started again, for tests of crashes. The fixtures `postgres_server` and `postgres` (the URL
of a fresh, empty database) are in conftest.py. Without PostgreSQL their tests are skipped, except in CI (env CI set).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from pathlib import Path

import psutil
import psycopg


def find_programs() -> Path | None:
    """The folder with `initdb` and `postgres`: on the PATH, or where Debian puts them (the newest)."""
    found = shutil.which("initdb")
    if found:
        return Path(found).resolve().parent
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    return versions[-1].parent if versions else None


class Server:
    """One PostgreSQL server. It refuses to run as root, so root starts it as the user `postgres` (or `nobody`)."""

    def __init__(self, programs: Path) -> None:
        self.programs = programs
        self.folder = Path(tempfile.mkdtemp(prefix="rlhf-lab-postgres-"))
        self.data = self.folder / "data"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.user = _unprivileged_user()
        if self.user is not None:
            shutil.chown(self.folder, self.user)
        self._run("initdb", "--pgdata", str(self.data), "--auth=trust", "--username=postgres", "--no-sync")
        self.process: subprocess.Popen | None = None
        self.start()

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [self.programs / program, *arguments],
            user=self.user, cwd=self.folder, check=True, capture_output=True, env=_environment(),
        )  # fmt: skip

    def start(self) -> None:
        """Start it, and wait until it answers. After a crash it first recovers what was committed."""
        command = [self.programs / "postgres", "-D", self.data, "-h", "127.0.0.1", "-p", str(self.port)]
        command += ["-k", self.folder, "-c", "max_connections=150"]
        log = (self.folder / "log").open("ab")
        self.process = subprocess.Popen(
            command, user=self.user, cwd=self.folder, stdout=log, stderr=log, env=_environment(), start_new_session=True
        )
        deadline = time.monotonic() + 60
        while True:
            try:
                psycopg.connect(self._dsn("postgres"), connect_timeout=2).close()
                return
            except psycopg.OperationalError:
                if time.monotonic() > deadline or self.process.poll() is not None:
                    raise RuntimeError((self.folder / "log").read_text()[-3000:]) from None
                time.sleep(0.05)

    def kill(self) -> None:
        """kill -9 of the server and of everything that it started, as if the power had gone."""
        started = psutil.Process(self.process.pid).children(recursive=True)  # each in a process group of its own
        self.process.kill()
        for child in started:
            with contextlib.suppress(psutil.NoSuchProcess):  # many end by themselves with their parent
                child.kill()
        self.process.wait()
        psutil.wait_procs(started)

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)  # a fast shutdown
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def new_database(self) -> str:
        """The URL of a database of its own, empty."""
        name = f"lab_{uuid.uuid4().hex[:12]}"
        with psycopg.connect(self._dsn("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return f"postgresql+psycopg://postgres@127.0.0.1:{self.port}/{name}"

    def _dsn(self, database: str) -> str:
        return f"host=127.0.0.1 port={self.port} user=postgres dbname={database}"


def _unprivileged_user() -> str | None:
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return None
    import pwd

    names = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"


def _environment() -> dict[str, str]:
    return os.environ | {"LC_ALL": "C.UTF-8", "TZ": "UTC"}
