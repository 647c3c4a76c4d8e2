"""Videos as people give them (files, parts of files, arrays), and their frames, decoded in guarded processes."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Generator, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor
from tqdm.auto import tqdm

from teachclip.background import made_ahead
from teachclip.data.annotations.records import Video
from teachclip.data.video.sampling import FrameSampling
from teachclip.data.video.transform import FrameTransform
from teachclip.errors import DataError, VideoError

if TYPE_CHECKING:
    from teachclip.data.video.workers import Decoded, Failure

OnError = Literal["raise", "skip", "use_decodable"]
"""What a video that cannot be read gives: an error, nothing, or what can be decoded of it."""

Part = tuple[str | os.PathLike[str], float | None, float | None]
"""A file and the seconds at which a part of it starts and ends; None: its beginning, its end."""


class EncodedVideos(NamedTuple):
    """The embeddings of the videos that could be read, and what happened to the others.

    embeddings: (kept videos, dim), on the CPU, L2-normalised; a tensor, of an ONNX student a numpy array. kept: the
    place of each of them among the given videos.
    failures: why the others could not be read, by place. partial: of which kept videos a part is missing, and why.
    """

    embeddings: Any
    kept: list[int]
    failures: dict[int, str]
    partial: dict[int, str]


def list_videos(videos: Any) -> list[Any]:
    """Return the videos of a call as a list: a path, a part, an array or a list of frames alone is a list of one."""
    if part_of(videos) is not None or getattr(videos, "ndim", None) == 4:
        return [videos]
    videos = list(videos)
    if videos and all(map(_is_frame, videos)):
        return [videos]
    for number, video in enumerate(videos):  # Sentence Transformers gives the videos of each item, one here
        if isinstance(video, list | tuple) and len(video) == 1 and not _is_frame(video[0]):
            videos[number] = video[0]
    return videos


def _is_frame(value: Any) -> bool:
    return isinstance(value, Image) or (isinstance(value, np.ndarray | Tensor) and value.ndim == 3)


def part_of(video: Any) -> Part | None:
    """Return a path, or a tuple of a path, a start and an end, as a part; None for anything else."""
    if isinstance(video, str | os.PathLike):
        return video, None, None
    if isinstance(video, tuple) and len(video) == 3 and isinstance(video[0], str | os.PathLike):
        numbers = all(value is None or isinstance(value, int | float) for value in video[1:])
        return video if numbers else None
    return None


def frames_of(video: Any) -> Tensor:
    """Return an array, or a list of frames, as uint8 (frames, 3, height, width). Raises VideoError for others."""
    if isinstance(video, list | tuple) and video and all(map(_is_frame, video)):
        pictures = [np.array(frame.convert("RGB") if isinstance(frame, Image) else frame) for frame in video]
        shapes = sorted({picture.shape for picture in pictures})
        if len(shapes) > 1:
            raise VideoError(f"a video has frames of several shapes: {', '.join(map(str, shapes[:3]))}")
        return frames_of(np.stack(pictures))
    if isinstance(video, np.ndarray):
        # a copy: torch takes neither negative strides (flipped arrays) nor arrays that may not be written
        video = torch.from_numpy(np.array(video)) if video.dtype == np.uint8 else torch.as_tensor(np.array(video))
    frames = video if isinstance(video, Tensor) else None
    if frames is None or frames.ndim != 4 or not frames.numel() or frames.dtype != torch.uint8:
        kind = type(video).__name__ if frames is None else f"{frames.dtype} {tuple(frames.shape)}"
        raise VideoError(
            f"a video is a {kind}, expected a path, (path, start, end) or a uint8 array (frames, 3, height, width)"
        )
    if frames.shape[1] == 3:
        return frames
    if frames.shape[3] == 3:
        return frames.permute(0, 3, 1, 2)
    raise VideoError(f"a video has shape {tuple(frames.shape)}, expected 3 channels in axis 1 or in the last axis")


def thin(frames: Tensor, count: int) -> Tensor:
    """Return `count` evenly spread frames of an array that has more, as published."""
    if len(frames) <= count:
        return frames
    return frames[np.linspace(0, len(frames) - 1, count, dtype=int)]


def read_videos(
    videos: Sequence[Any],
    sampling: FrameSampling,
    transform: FrameTransform,
    *,
    on_error: OnError,
    workers: int,
    time_limit: float,
    memory_limit: float,
) -> Generator[Decoded | Failure, None, None]:
    """Yield the frames of each video, or why there are none, in order. Files are decoded by worker processes.

    `workers`: 0 for one per core. `time_limit`: seconds per file. `memory_limit`: GB per process. Raises DataError
    for other values.
    """
    from teachclip.data.video.workers import Decoded, Decoding, Failure, usable_cores

    if on_error not in ("raise", "skip", "use_decodable"):
        raise DataError(f"on_error is {on_error!r}; allowed: raise, skip, use_decodable")
    if workers < 0 or not time_limit > 0 or not memory_limit > 0:
        limits = f"workers is {workers}, time_limit {time_limit}, memory_limit {memory_limit}"
        raise DataError(f"{limits}; expected 0 or more processes, and seconds and GB above 0")
    parts = [part for part in map(part_of, videos) if part is not None]
    decoding = Decoding(
        sampling,
        transform,
        "use_decodable" if on_error == "use_decodable" else "skip",
        workers=max(1, min(workers or usable_cores(), len(parts))),
        time_limit=time_limit,
        memory_limit=int(memory_limit * 1e9),
    )
    files = ((Video(str(path), Path(path), start, end), 0) for path, start, end in parts)
    with contextlib.closing(decoding.run(files)) as decoded:
        for video in videos:
            part = part_of(video)
            outcome: Decoded | Failure
            if part is not None:
                outcome = next(decoded)
                if isinstance(outcome, Failure) and str(part[0]) not in outcome.error:
                    outcome = Failure(f"{part[0]}: {outcome.error}")
            else:
                try:
                    outcome = Decoded(transform(thin(frames_of(video), sampling.count)).numpy())
                except VideoError as error:
                    outcome = Failure(str(error))
            yield outcome


def encode_in_batches(
    outcomes: Iterable[Decoded | Failure],
    total: int,
    encode: Callable[[list[Tensor]], Any],
    *,
    on_error: OnError,
    batch_size: int,
    progress: bool,
) -> EncodedVideos:
    """Encode what `read_videos` yields for `total` videos, `batch_size` at a time, and close it.

    `encode` gets the frames of some videos, each uint8 (frames, 3, size, size). Returns an `EncodedVideos` whose
    embeddings are the list of what it returned, to be joined. Raises VideoError for the first video that cannot be
    read if `on_error` is "raise".
    """
    result = EncodedVideos([], [], {}, {})
    waiting: list[Tensor] = []
    # a thread takes them from the decoders, which otherwise stop when a few results wait
    coming = made_ahead(outcomes, batch_size)
    with contextlib.closing(coming), tqdm(total=total, unit="video", desc="videos", disable=not progress) as bar:
        for place, outcome in enumerate(coming):
            if isinstance(outcome, tuple):
                waiting.append(torch.from_numpy(outcome.frames))
                result.kept.append(place)
                if outcome.error:
                    result.partial[place] = outcome.error
            elif on_error == "raise":
                raise VideoError(f'{outcome.error}; on_error="skip" leaves such videos out and names them')
            else:
                result.failures[place] = outcome.error
            if waiting and (len(waiting) == batch_size or place == total - 1):
                result.embeddings.append(encode(waiting))
                waiting = []
            bar.update()
    return result
