"""Imports what the commands need once, and forks a process for every line that it reads.

A process that imports torch and transformers takes seconds; a fork of one that has imported them takes
milliseconds. Requests and answers are lines of JSON: {"start": {...}} answers with the process id, {"poll": id} with
the return code, or null while the process runs. The server ends, and kills what runs, when its input is closed.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import signal
import sys
import traceback
from typing import Any

IMPORTED = (
    *("accelerate", "sentence_transformers", "transformers.models.clip.modeling_clip", "train_tiny"),
    *(f"teachclip.pipeline.{name}" for name in ("distill", "evaluate", "precompute", "train_teacher", "export")),
    *(f"teachclip.cli.{name}" for name in ("distill", "evaluate", "precompute", "train_teacher", "main")),
    *("teachers.xpool", "teachers.xclip", "teachers.ts2net", "teachers.clip2video", "teachclip.models.student"),
)
OWN = (os.path.dirname(os.path.abspath(__file__)),)
"""What only the server imports from; a process imports from where its script is."""


def become(task: dict[str, Any]) -> None:
    """Run the task's script in this process, as the main program."""
    os.setsid()
    for descriptor, path, flags in (
        (0, os.devnull, os.O_RDONLY),
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


def serve() -> None:
    for name in IMPORTED:
        importlib.import_module(name)
    running: set[int] = set()
    codes: dict[int, int] = {}
    for line in sys.stdin:
        request = json.loads(line)
        if "start" in request:
            pid = os.fork()
            if pid == 0:
                become(request["start"])
            running.add(pid)
            answer: Any = pid
        else:
            pid = request["poll"]
            if pid in running:
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    running.remove(pid)
                    codes[pid] = os.waitstatus_to_exitcode(status)
            answer = codes.get(pid)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
    for pid in running:
        os.killpg(pid, signal.SIGKILL)


if __name__ == "__main__":
    serve()
