"""Imports packages once for all workers of a test run, and forks a process for every task that it gets.

A process that imports torch and transformers takes seconds; a fork of one that has imported them takes
milliseconds. `process_server.py FOLDER` listens on two sockets there: behind `fresh` the packages of others are
imported and nothing of this project, behind `whole` the commands and teachers too. Requests and answers are lines of
JSON: {"start": {...}} answers with the process id, {"poll": id} with the return code, or null while the process
runs. What a client started is killed when it disconnects; the server ends when no client is left.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import selectors
import shutil
import signal
import socket
import sys
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PACKAGES = ("accelerate", "sentence_transformers", "transformers.models.clip.modeling_clip")
PROJECT = (
    "train_tiny",
    *(f"teachclip.pipeline.{name}" for name in ("distill", "evaluate", "precompute", "train_teacher", "export")),
    *(f"teachclip.cli.{name}" for name in ("distill", "evaluate", "precompute", "train_teacher", "main")),
    *("teachers.xpool", "teachers.xclip", "teachers.ts2net", "teachers.clip2video", "teachclip.models.student"),
)
OWN = (os.path.dirname(os.path.abspath(__file__)), str(Path(__file__).parents[2]))
"""What only the server imports from; a process imports from where its script is."""
FIRST_CLIENT = 120
"""Seconds to wait for it."""


def become(task: dict[str, Any]) -> None:
    """Run the task's script in this process, as the main program."""
    os.setsid()
    for descriptor, path, flags in (
        (0, task["stdin"], os.O_RDONLY),
        (1, task["stdout"], os.O_WRONLY | os.O_CREAT),
        (2, task["stderr"], os.O_WRONLY | os.O_CREAT),
    ):
        os.dup2(os.open(path, flags, 0o644), descriptor)
    os.environ.update(task["environment"])
    os.chdir(task["folder"])
    sys.argv = [task["script"], *task["arguments"]]
    sys.path = [os.path.dirname(task["script"]), *task["paths"], *(path for path in sys.path if path not in OWN)]
    importlib.invalidate_caches()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    code: Any = 0
    try:
        runpy.run_path(task["script"], run_name="__main__")
    except SystemExit as stop:
        code = stop.code
        if isinstance(code, str):
            print(code, file=sys.stderr)
            code = 1
    except BaseException:  # what the interpreter does at its top
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)


@dataclass
class Client:
    """A worker of the test run, and the processes that it started: None while they run, then their return codes."""

    connection: socket.socket
    received: bytes = b""
    codes: dict[int, int | None] = field(default_factory=dict)

    def answer(self, request: dict[str, Any], sockets: list[socket.socket]) -> Any:
        if "start" in request:
            pid = os.fork()
            if pid == 0:
                for each in sockets:
                    each.close()
                become(request["start"])
            self.codes[pid] = None
            return pid
        pid = request["poll"]
        if self.codes[pid] is None:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                self.codes[pid] = os.waitstatus_to_exitcode(status)
        return self.codes[pid]

    def leave(self) -> None:
        self.connection.close()
        for pid in (pid for pid, code in self.codes.items() if code is None):
            os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def serve(listener: socket.socket) -> None:
    """Answer all clients, until the last one is gone."""
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        clients: dict[Any, Client] = {}
        while True:
            events = selector.select(None if clients else FIRST_CLIENT)
            if not events:
                return
            for key, _ in events:
                if key.fileobj is listener:
                    connection, _ = listener.accept()
                    clients[connection] = Client(connection)
                    selector.register(connection, selectors.EVENT_READ)
                    continue
                client = clients[key.fileobj]
                data = client.connection.recv(1 << 16)
                if not data:
                    selector.unregister(client.connection)
                    clients.pop(client.connection).leave()
                    if not clients:
                        return
                client.received += data
                while b"\n" in client.received:
                    line, client.received = client.received.split(b"\n", 1)
                    answer = client.answer(json.loads(line), [listener, *clients])
                    client.connection.sendall(json.dumps(answer).encode() + b"\n")


def listen(path: Path) -> socket.socket:
    """Return a socket at `path`, which appears once it can be connected to."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{path}.new")
    listener.listen()
    os.rename(f"{path}.new", path)
    return listener


def main(folder: Path) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: the workers go, and then the server
    for name in PACKAGES:
        importlib.import_module(name)
    fresh = os.fork()
    if fresh == 0:
        serve(listen(folder / "fresh"))
        os._exit(0)
    for name in PROJECT:
        importlib.import_module(name)
    serve(listen(folder / "whole"))
    os.waitpid(fresh, 0)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
