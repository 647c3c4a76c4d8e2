"""The end of the demo: its videos become searchable with its best student."""

from __future__ import annotations

import importlib.util
import json
import time
from pathlib import Path

from teachclip.console import log
from teachclip.demo.plan import VARIANTS, Demo

QUERY = "a big red circle at the top"


def index_videos(demo: Demo) -> None:
    """Bring an index of the demo's videos up to date, and say which commands search it; or how to install it."""
    command = f'teachclip search {demo.folder / "index"} "{QUERY}"'
    if importlib.util.find_spec("lancedb") is None:
        log(f"to search the videos: pip install '.[search]', then run this again, then {command}")
        return
    from teachclip.search.limits import Limits
    from teachclip.search.update import Wanted, update_index

    started = time.monotonic()
    student = best_student(demo)
    log(f"[search] the videos are indexed with {student}")
    videos, limits = demo.stages["shapes"].outputs[3], Limits(workers=demo.threads)
    report = update_index(demo.folder / "index", [videos], Wanted(str(student)), limits=limits)
    log(f"[search] {report.encoded:,} videos encoded in {time.monotonic() - started:.0f} s")
    log(f"search them: {command}")
    log(f"or in a browser: teachclip serve {demo.folder / 'index'}")


def best_student(demo: Demo) -> Path:
    """Return the student of the first seed with the best validation."""
    seed = demo.seeds[0]
    folders = [demo.folder / f"{variant}-{seed}" for variant in VARIANTS]

    def validation(folder: Path) -> float:
        results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        return float(results["validation"]["sum_of_recalls"])

    return max(folders, key=validation) / "student"
