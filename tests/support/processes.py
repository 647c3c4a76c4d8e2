"""Start scripts in processes of their own, one or several that train together, without waiting for their imports.

They are real processes, forked from a server that has imported the packages (`process_server.py`); several find each
other by the variables that `accelerate launch` and `torchrun` set. What only a launcher or a fresh interpreter can
show is tested with those.
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
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

SUPPORT = Path(__file__).parent
ROOT = SUPPORT.parents[1]
SMALL_SHARDS = SUPPORT / "small_shards.py"


@dataclass
class Finished:
    returncode: int
    stdout: str
    stderr: str


class Started:
    """Processes that were started together; `pid` is the first one's, which is also its group's."""

    def __init__(self, pids: list[int], outputs: list[tuple[Path, Path]]) -> None:
        self.pids, self.pid, self.outputs = pids, pids[0], outputs

    def poll(self) -> int | None:
        """Return None while all run or end well, else the return code of one that failed, 0 when all ended."""
        codes = [_ask({"poll": pid}) for pid in self.pids]
        failed = [code for code in codes if code]
        return failed[0] if failed else (None if None in codes else 0)

    def kill(self) -> None:
        """End the processes at once, and what they have started."""
        for pid in self.pids:
            if _ask({"poll": pid}) is None:
                os.killpg(pid, signal.SIGKILL)
                while _ask({"poll": pid}) is None:
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

    def _read(self, stream: int) -> str:
        return "".join(output[stream].read_text(encoding="utf-8") for output in self.outputs)


def start(
    script: Path,
    *arguments: object,
    processes: int = 1,
    paths: Iterable[Path] = (),
    environment: Mapping[str, str] | None = None,
) -> Started:
    """Start `script` in `processes` processes on the CPU; `paths` are importable in them."""
    folder = Path(tempfile.mkdtemp(dir=_folder()))
    common = {"ACCELERATE_USE_CPU": "true", **(environment or {})}
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
            "paths": [str(path) for path in (*paths, ROOT)],
            "environment": variables,
            "folder": str(ROOT),
            "stdout": str(output[0]),
            "stderr": str(output[1]),
        }
        pids.append(int(_ask({"start": task})))
        outputs.append(output)
    return Started(pids, outputs)


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
def _server() -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(SUPPORT)])
    server = subprocess.Popen(
        [sys.executable, str(SUPPORT / "process_server.py")],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdin is not None
    atexit.register(server.stdin.close)
    return server


def _ask(request: dict[str, Any]) -> Any:
    server = _server()
    assert server.stdin is not None and server.stdout is not None
    server.stdin.write(json.dumps(request) + "\n")
    server.stdin.flush()
    return json.loads(server.stdout.readline())
