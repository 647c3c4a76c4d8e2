"""A page that shows what is taught without captions: some videos, and the texts that a teacher is surest of."""

from __future__ import annotations

from typing import Any

import numpy as np

from teachclip.console import log
from teachclip.pipeline.relevance import teacher_relevance
from teachclip.pipeline.uncaptioned import sure_pairs
from teachclip.pipeline.workspace import Workspace
from teachclip.reports.pages import encode_jpeg, jpeg_uri, render_page
from teachclip.store.files import write_atomic

SHOWN, HEIGHT = 20, 72
"""Videos on the page, spread over all, and the pixels of their frames' height."""


def write_taught(work: Workspace) -> None:
    """Write `output/taught.html`, for a person to see whether a teacher's texts fit the videos."""
    handle = next(iter(work.teachers.values()))
    split, pairs = work.catalog.train, sure_pairs(work, teacher_relevance(work, handle))
    captioned = set(split.caption_videos[: split.pairs].tolist())
    lonely = [row for row in range(len(split.videos)) if row not in captioned]
    chosen = [lonely[at * len(lonely) // min(SHOWN, len(lonely))] for at in range(min(SHOWN, len(lonely)))]
    videos: list[dict[str, Any]] = []
    rows = work.frames.rows_of([split.videos[row].id for row in chosen])
    for row, frame_row in zip(chosen, rows, strict=True):
        frames, mask = work.frames.read(np.array([frame_row]))
        strip = np.concatenate(list(frames[0][mask[0]].permute(0, 2, 3, 1).numpy()), axis=1)
        mine = np.flatnonzero(pairs.videos == row)
        mine = mine[np.argsort(-pairs.confidence[mine], kind="stable")]
        texts = [f"{split.captions[pairs.texts[k]].text} ({100 * pairs.confidence[k]:.0f} %)" for k in mine]
        videos.append(
            {
                "name": split.videos[row].id,
                "caption": "; ".join(texts),
                "alt": f"{int(mask.sum())} frames of {split.videos[row].id}",
                "image": jpeg_uri(encode_jpeg(strip, max_height=HEIGHT)),
            }
        )
    notes = [
        f"{len(videos)} of {len(lonely)} videos without captions, each with the texts of which {handle.label} is "
        "surest: in brackets how surely it finds the video by that text among all videos for training.",
        "Where these texts are wrong for many videos, so is what the student learns: give better texts (data.texts) "
        "or a better teacher.",
    ]
    if work.processes.is_main:
        path = work.recipe.output / "taught.html"
        page = render_page("taught.html", title=f"What {work.recipe.name} is taught", notes=notes, videos=videos)
        write_atomic(path, page.encode())
        log(f"taught: {path} shows texts that stand for captions")
