"""Kernels for a room: forked from one process that has imported everything, instead of started one by one.

Thirty students open their pages in the same minute. A kernel started in the ordinary way spends a second or two of
processor time on imports and keeps some 80 MiB to itself; one that is forked from a process that has done the imports
is there in a few milliseconds and shares that memory. `install` makes jupyter_client launch Python kernels so, where
the system can (Linux); elsewhere kernels start as usual.

The forking process has no threads, no sockets and no database connection, so nothing unsafe crosses a fork. When the
server dies, its end of the pipe closes, the forking process ends, and the kernels notice that their parent is gone.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, NoReturn

LAUNCHER = ["-m", "ipykernel_launcher"]
ALWAYS = ("ipykernel.kernelapp", "ipykernel.ipkernel", "ipykernel.zmqshell")


def install(modules: Sequence[str]) -> Nursery | None:
    """From now on kernels of this process are forked with `modules` imported; None where that is not possible.

    The environment variable RLHF_LAB_PLAIN_KERNELS, when set, keeps the ordinary way.
    """
    if not hasattr(os, "pidfd_open") or os.environ.get("RLHF_LAB_PLAIN_KERNELS"):
        return None
    from jupyter_client.provisioning import KernelProvisionerFactory, LocalProvisioner

    nursery = Nursery(modules)

    class ForkingProvisioner(LocalProvisioner):
        """Launches `python -m ipykernel_launcher …` by a fork, and anything else as usual."""

        async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> dict[str, Any]:
            if cmd[1:3] != LAUNCHER or not nursery.alive:
                return await super().launch_kernel(cmd, **kwargs)
            self.process = nursery.fork(cmd[3:], kwargs.get("env") or dict(os.environ), kwargs.get("cwd"))
            self.pid = self.pgid = self.process.pid
            self.cwd = kwargs.get("cwd")
            return self.connection_info

    factory = KernelProvisionerFactory.instance()
    factory.provisioners["local-provisioner"] = SimpleNamespace(load=lambda: ForkingProvisioner)
    return nursery


class Nursery:
    """The forking process, seen from the server."""

    def __init__(self, modules: Sequence[str]) -> None:
        command = [sys.executable, "-m", "rlhf_lab.kernel_forks", *modules]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        self._lock = threading.Lock()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def fork(self, arguments: list[str], env: dict[str, str], cwd: str | None) -> Forked:
        """A kernel with these command line arguments. Raises OSError when the forking process has died."""
        with self._lock:
            request = {"arguments": arguments, "env": env, "cwd": str(cwd or os.getcwd())}
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            reply = self._process.stdout.readline()
        if not reply:
            raise OSError("the process that kernels are forked from has died")
        return Forked(json.loads(reply)["pid"])

    def close(self) -> None:
        self._process.stdin.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()


class Forked:
    """What jupyter_client needs of `subprocess.Popen`, for a process that is not our child."""

    stdin = stdout = stderr = None

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        try:
            self._handle = os.pidfd_open(pid)
        except ProcessLookupError:
            self.returncode = 0

    def poll(self) -> int | None:
        """None while it runs, then 0: the true exit status is known to its parent only."""
        return self._wait(0)

    def wait(self, timeout: float | None = None) -> int:
        if self._wait(timeout) is None:
            raise subprocess.TimeoutExpired(f"kernel {self.pid}", timeout)
        return 0

    def _wait(self, timeout: float | None) -> int | None:
        if self.returncode is None:
            poller = select.poll()
            poller.register(self._handle, select.POLLIN)
            if poller.poll(None if timeout is None else timeout * 1000):
                self.returncode = 0
                os.close(self._handle)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            signal.pidfd_send_signal(self._handle, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


# --- the forking process itself ---------------------------------------------------------------------------------------


def main(modules: Sequence[str]) -> None:
    """Import, then fork a kernel for each line on stdin and answer with its process id, until stdin ends."""
    for name in (*ALWAYS, *modules):
        importlib.import_module(name)
    if threading.active_count() > 1:
        raise RuntimeError(f"{', '.join(modules)} must not start threads when imported: they do not survive a fork")
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the system clears ended kernels away
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.collect()
    gc.freeze()  # the collector must not touch, and so copy, what the kernels share
    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _become_kernel(request)
        print(json.dumps({"pid": pid}), flush=True)


def _become_kernel(request: dict[str, Any]) -> NoReturn:
    parent = os.getppid()
    os.setsid()
    for number in (signal.SIGCHLD, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL if number == signal.SIGCHLD else signal.default_int_handler)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(2, 1)
    sys.stdin = open(0, closefd=False)
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    # the kernel ends when its parent does; it keeps no history of what was executed
    options = [f"--IPKernelApp.parent_handle={parent}", "--HistoryManager.enabled=False"]
    sys.argv = ["ipykernel_launcher", *request["arguments"], *options]
    try:
        from ipykernel.kernelapp import launch_new_instance

        launch_new_instance(sys.argv[1:])
    finally:
        os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
