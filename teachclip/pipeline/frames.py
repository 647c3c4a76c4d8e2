"""Where the frames of a recipe's videos come from: a store on the disk, or the files themselves at every reading."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from teachclip.data.annotations.files import file_facts
from teachclip.data.annotations.records import Video
from teachclip.data.frames.live import LiveFrames
from teachclip.data.frames.views import Frames, build_frame_views
from teachclip.data.video.transform import FrameTransform
from teachclip.data.video.workers import Decoding
from teachclip.pipeline.build import build_frame_sampling
from teachclip.processes import Processes, usable_cores
from teachclip.recipe.schema import Recipe
from teachclip.store.files import occupied_folder


def build_frames(
    recipe: Recipe,
    processes: Processes,
    videos: Sequence[Video],
    training: Sequence[Video],
    transform: FrameTransform,
    name: str,
) -> Frames:
    """Return the frames of `videos`, and of `training` in all views, as the recipe wants them.

    What is to be stored is decoded first, by the main process, into folders called `name`; the others wait for it.
    """
    hashes = hashes_file(recipe)
    if recipe.frames.store == "none":
        decoding = build_decoding(recipe, transform, processes=int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
        limit = recipe.frames.time_limit
        return processes.main_first(
            lambda: LiveFrames(
                videos, decoding, file_facts(videos, hashes, progress=processes.is_main, time_limit=limit)
            )
        )

    def build() -> Frames:
        path = recipe.stores / name
        with occupied_folder(path, wait=True):  # another run that decodes the same videos is waited for
            return build_frame_views(
                videos,
                training,
                build_decoding(recipe, transform),
                path=path,
                views=recipe.frames.temporal_augmentation,
                hashes=hashes,
                progress=processes.is_main,
            )

    return processes.main_first(build)


def hashes_file(recipe: Recipe) -> Path:
    """Return the file that remembers the hashes of the videos."""
    return recipe.stores / "frames" / "file-hashes.json"


def build_decoding(recipe: Recipe, transform: FrameTransform, *, processes: int = 1) -> Decoding:
    """Return how videos are decoded, by each of the `processes` of this machine that decode at the same time."""
    frames = recipe.frames
    return Decoding(
        build_frame_sampling(recipe),
        transform,
        on_error=frames.on_error,
        workers=frames.workers or max(1, usable_cores() // processes),
        time_limit=frames.time_limit,
        memory_limit=int(frames.memory_limit * 1e9),
    )


def frames_folder(transform: FrameTransform) -> str:
    """Return the name of a store of frames, such as frames-384-stretch; the student's is called frames."""
    parts = ["frames", str(transform.size), transform.resize]
    parts += [transform.resample] if transform.resample != "bicubic" else []
    parts += [f"of-{transform.scale_to}"] if transform.scale_to not in (None, transform.size) else []
    return "-".join(parts)
