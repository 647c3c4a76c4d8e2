"""A program that writes a store; the tests of the store start it as a process and kill it."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np

from teachclip.store.array_store import ArraySpec, ArrayStore

PROVENANCE = {"teacher": {"name": "xpool", "seed": 1}}


def rows_of(store: ArrayStore, shard: int) -> dict[str, np.ndarray]:
    """Return what belongs into a shard: a function of its rows alone."""
    rows = np.asarray(store.shard_rows(shard), dtype=np.float64)
    columns = np.arange(store.arrays["scores"].shape[0])
    return {"scores": np.sin(rows[:, None] + columns).astype(np.float32), "count": (rows % 120).astype(np.int16)}


def die_at(call: int) -> None:
    """Kill this process with SIGKILL just before or just after its n-th flush, rename or deletion."""
    state = {"left": call}

    def deadly(work):  # type: ignore[no-untyped-def]
        def run(*args, **options):  # type: ignore[no-untyped-def]
            for moment in ("before", "after"):
                state["left"] -= 1
                if state["left"] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                if moment == "before":
                    result = work(*args, **options)
            return result

        return run

    os.fsync, os.replace, os.unlink = deadly(os.fsync), deadly(os.replace), deadly(os.unlink)


def main() -> None:
    """Run with one JSON argument: path, rows, columns, per_shard, index, count, die_at, start."""
    task = json.loads(sys.argv[1])
    if task.get("die_at"):
        die_at(task["die_at"])
    while "start" in task and not Path(task["start"]).exists():
        time.sleep(0.001)
    store = ArrayStore.open_or_create(
        task["path"],
        provenance=PROVENANCE,
        arrays={"scores": ArraySpec("float32", (task["columns"],)), "count": ArraySpec("int16", ())},
        rows=task["rows"],
        rows_per_shard=task["per_shard"],
    )
    for shard in store.missing_shards(task.get("index", 0), task.get("count", 1)):
        store.write_shard(shard, rows_of(store, shard))


if __name__ == "__main__":
    main()
