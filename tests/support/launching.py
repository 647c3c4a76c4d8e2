"""Start a command as a user does, in one or several processes, with stores cut into small shards."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SMALL_SHARDS = Path(__file__).parent / "small_shards.py"


def launch(processes, tool, *arguments, paths=()):
    """Run `tool` under Accelerate on the CPU; `paths` are importable in the processes. Returns what it printed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    if paths:
        environment["PYTHONPATH"] = os.pathsep.join(map(str, paths))
    launcher = [sys.executable]  # one process needs no launcher, which takes seconds to import
    if processes > 1:
        launcher += ["-m", "accelerate.commands.launch", "--num_processes", str(processes)]
        launcher += ["--multi_gpu", "--main_process_port", "0"]
    command = [*launcher, SMALL_SHARDS, tool, *arguments]
    return subprocess.run([str(part) for part in command], env=environment, capture_output=True, text=True)
