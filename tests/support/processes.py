"""Start scripts in processes of their own, one or several that train together, without waiting for their imports.

They are real processes, forked from a server that has imported the packages (`process_server.py`) and that all
workers of a test run share; several find each other by the variables that `accelerate launch` and `torchrun` set.
What only a launcher or a fresh interpreter can show is tested with those.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TextIO

from filelock import FileLock

SUPPORT = Path(__file__).parent
ROOT = SUPPORT.parents[1]
SMALL_SHARDS = SUPPORT / "small_shards.py"
SERVERS = ("whole", "fresh")


@dataclass
class Finished:
    returncode: int
    stdout: str
    stderr: str


class Started:
    """Processes that were started together; `pid` is the first one's, which is also its group's."""

    def __init__(self, server: str, pids: list[int], outputs: list[tuple[Path, Path]]) -> None:
        self.server, self.pids, self.pid, self.outputs = server, pids, pids[0], outputs

    def poll(self) -> int | None:
        """Return None while all run or end well, else the return code of one that failed, 0 when all ended."""
        codes = [self._code(pid) for pid in self.pids]
        failed = [code for code in codes if code]
        return failed[0] if failed else (None if None in codes else 0)

    def kill(self) -> None:
        """End the processes at once, and what they have started."""
        for pid in self.pids:
            if self._code(pid) is None:
                os.killpg(pid, signal.SIGKILL)
                while self._code(pid) is None:
                    time.sleep(0.005)

    def finish(self, timeout: float = 120) -> Finished:
        """Wait for all; one that fails takes the others along, as under a launcher."""
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > deadline:
                self.kill()
                raise TimeoutError(f"not finished after {timeout} s:\n{self._read(1)[-2000:]}")
            time.sleep(0.01)
        code = self.poll()
        assert code is not None
        self.kill()
        return Finished(code, self._read(0), self._read(1))

    def _code(self, pid: int) -> int | None:
        code: int | None = _ask(self.server, {"poll": pid})
        return code

    def _read(self, stream: int) -> str:
        return "".join(output[stream].read_text(encoding="utf-8") for output in self.outputs)


def start(
    script: Path,
    *arguments: object,
    processes: int = 1,
    paths: Iterable[Path] = (),
    environment: Mapping[str, str] | None = None,
    server: str = "whole",
) -> Started:
    """Start `script` in `processes` processes on the CPU; `paths` are importable in them."""
    return _start(script, arguments, processes, [*paths, ROOT], environment or {}, server, ROOT)


def run_fresh(code: str, *arguments: object, paths: Iterable[Path] = (ROOT,), stdin: str = "") -> Finished:
    """Run code in a process, outside the project's folder, that has imported the packages of others alone."""
    script = Path(tempfile.mkdtemp(dir=_folder())) / "code.py"
    script.write_text(code, encoding="utf-8")
    return _start(script, arguments, 1, paths, {}, "fresh", Path("/"), stdin).finish()


def _start(
    script: Path,
    arguments: Iterable[object],
    processes: int,
    paths: Iterable[Path],
    environment: Mapping[str, str],
    server: str,
    working_folder: Path,
    stdin: str = "",
) -> Started:
    folder = Path(tempfile.mkdtemp(dir=_folder()))
    (folder / "stdin").write_text(stdin, encoding="utf-8")
    common = {"ACCELERATE_USE_CPU": "true", **environment}
    port = str(_free_port()) if processes > 1 else ""
    pids, outputs = [], []
    for rank in range(processes):
        variables = dict(common)
        if processes > 1:
            variables.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(processes))
            variables.update(LOCAL_WORLD_SIZE=str(processes), MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
        output = (folder / f"{rank}.stdout", folder / f"{rank}.stderr")
        task = {
            "script": str(script),
            "arguments": [str(argument) for argument in arguments],
            "paths": [str(path) for path in paths],
            "environment": variables,
            "folder": str(working_folder),
            "stdin": str(folder / "stdin"),
            "stdout": str(output[0]),
            "stderr": str(output[1]),
        }
        pids.append(int(_ask(server, {"start": task})))
        outputs.append(output)
    return Started(server, pids, outputs)


def launch(processes: int, tool: str, *arguments: object, paths: Iterable[Path] = ()) -> Finished:
    """Run the command `tool` in `processes` processes, with stores cut into small shards."""
    return start(SMALL_SHARDS, tool, *arguments, processes=processes, paths=paths).finish()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@cache
def _folder() -> str:
    folder = tempfile.TemporaryDirectory(prefix="processes-")
    atexit.register(folder.cleanup)
    return folder.name


@cache
def _servers() -> dict[str, TextIO]:
    """Return connections to the servers of this test run; they are started if no other worker has done that."""
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID", f"{os.getpid()}")
    folder = Path(tempfile.gettempdir()) / f"process-server-{os.getuid()}-{run}"
    folder.mkdir(mode=0o700, exist_ok=True)
    with FileLock(folder / "lock"):
        try:
            return {name: _connect(folder / name) for name in SERVERS}
        except OSError:  # not started yet, or gone with the last worker that used them
            for name in SERVERS:
                (folder / name).unlink(missing_ok=True)
            _start_servers(folder)
        return {name: _connect(folder / name) for name in SERVERS}


def _start_servers(folder: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(SUPPORT)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # other workers may use it for longer than this one lives
        server = subprocess.Popen([sys.executable, str(SUPPORT / "process_server.py"), str(folder)], env=environment)
        while not all((folder / name).exists() for name in SERVERS):
            assert server.poll() is None, "the server of processes did not start"
            time.sleep(0.02)
        del server


def _connect(path: Path) -> TextIO:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(str(path))
    return connection.makefile("rw", encoding="utf-8")


def _ask(server: str, request: dict[str, Any]) -> Any:
    connection = _servers()[server]
    connection.write(json.dumps(request) + "\n")
    connection.flush()
    return json.loads(connection.readline())
