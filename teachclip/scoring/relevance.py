"""A teacher's relevance: computed from its stored tokens, and computed again from pixels to check what is stored."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch

from teachclip.errors import DataError
from teachclip.scorer import Teacher, Tokens, encoding_in, gives_frame_relevance, in_float32, select_tokens
from teachclip.scoring.inputs import Inputs, encode_text_batch, encode_video_batch, to_device
from teachclip.scoring.token_store import read_tokens
from teachclip.store.scratch import blocks, scratch_array
from teachclip.store.stored_items import StoredItems

SUM_TOLERANCE = 0.02
"""How far from 1 the frame relevance of a pair may sum: half precision rounds each of its numbers."""


KEPT_BYTES = 2**31


class VideoTokens:
    """A teacher's stored tokens of videos, for all of which captions are scored again and again.

    They stay on the device after the first reading if all take at most `kept_bytes` there.
    """

    def __init__(self, stored: StoredItems, device: torch.device | str, *, kept_bytes: int = KEPT_BYTES) -> None:
        self.stored, self.device, self.count = stored, device, stored.rows
        self._keeps = stored.nbytes <= kept_bytes
        self._kept: Tokens | None = None

    def read(self, rows: slice | np.ndarray) -> Tokens:
        """Return the tokens of some videos."""
        if not self._keeps:
            return read_tokens(self.stored, rows, self.device)
        if self._kept is None:
            self._kept = read_tokens(self.stored, slice(None), self.device)
        return select_tokens(self._kept, rows if isinstance(rows, slice) else torch.from_numpy(rows))


@torch.no_grad()
def relevance_rows(
    teacher: Teacher,
    texts: StoredItems,
    videos: VideoTokens,
    caption_videos: np.ndarray,
    rows: np.ndarray,
    columns: np.ndarray | None = None,
    *,
    with_frames: bool = True,
    views: int = 1,
    video_block: int = 1024,
    device: torch.device | str,
) -> dict[str, np.ndarray]:
    """Return `video_text` (rows, videos) of some captions and, if it is given, `frame_text` (rows, frames), float32.

    `texts` and `videos` are the teacher's tokens. `columns`: the videos to score, None: all. `with_frames`:
    whether `frame_text` is wanted. With several `views` there is a column for each view of each
    video, all of view 0 first, and `frame_text` is (rows, views, frames).
    """
    text_tokens = read_tokens(texts, rows, device)
    count = videos.count if columns is None else len(columns)
    video_text = scratch_array((len(rows), count), np.float32)
    for some in blocks(count, video_block):
        block = videos.read(some if columns is None else columns[some])
        scores = teacher.score(text_tokens, block).float().cpu()
        expected = len(rows), len(next(iter(block.values())))
        if scores.shape != expected:
            raise DataError(
                f"{type(teacher).__name__}.score returned {tuple(scores.shape)} for {expected[0]} texts and "
                f"{expected[1]} videos; allowed: (texts, videos)"
            )
        video_text[:, some] = scores.numpy()
    relevance = {"video_text": video_text}
    if with_frames and gives_frame_relevance(teacher):
        relevance["frame_text"] = _frame_text(
            teacher,
            text_tokens,
            lambda view: videos.read(view * (videos.count // views) + caption_videos[rows]),
            views,
        )
    return relevance


@torch.no_grad()
def pair_frames(
    teacher: Teacher,
    texts: StoredItems,
    videos: StoredItems,
    text_rows: np.ndarray,
    video_rows: np.ndarray,
    *,
    device: torch.device | str,
) -> torch.Tensor:
    """Return the frame relevance (pairs, frames), float32, of pairs of any text and any video, from stored tokens."""
    tokens = read_tokens(texts, text_rows, device)
    return torch.from_numpy(_frame_text(teacher, tokens, lambda view: read_tokens(videos, video_rows, device), 1))


def _frame_text(teacher: Teacher, texts: Tokens, own_videos: Callable[[int], Tokens], views: int) -> np.ndarray:
    """Return the frame relevance of captions for every view of their own video, as `relevance_rows` does."""
    parts = [teacher.frame_relevance(texts, own_videos(view)).float().cpu().numpy() for view in range(views)]
    for relevance in parts:
        check_frame_relevance(relevance, type(teacher).__name__)
    return parts[0] if views == 1 else np.stack(parts, axis=1)


def check_frame_relevance(relevance: np.ndarray, name: str) -> None:
    """Raise DataError unless the rows (pairs, frames) are shares: no number below 0, and a sum of 1."""
    if relevance.ndim != 2:
        raise DataError(f"{name}.frame_relevance returned shape {relevance.shape}; allowed: (pairs, frames)")
    wrong = ~((relevance >= 0).all(axis=1) & (np.abs(relevance.sum(axis=1) - 1) < SUM_TOLERANCE))
    if wrong.any():
        row = relevance[np.flatnonzero(wrong)[0]]
        raise DataError(
            f"{name}.frame_relevance returned rows from {row.min():.3g} to {row.max():.3g} that sum to "
            f"{row.sum():.3g}; allowed: numbers of 0 or more that sum to 1, as softmax gives them"
        )


@torch.no_grad()
def recompute(
    teacher: Teacher,
    inputs: Inputs,
    caption_videos: np.ndarray,
    rows: np.ndarray,
    columns: np.ndarray,
    *,
    views: int = 1,
    with_frames: bool = True,
    device: torch.device | str,
    precision: str = "float32",
) -> dict[str, np.ndarray]:
    """Compute relevance from pixels and token ids: of captions `rows` with videos `columns` (ascending)."""
    with encoding_in(precision, device):
        texts = in_float32(encode_text_batch(teacher, to_device(inputs.texts(rows), device)))
        videos = in_float32(encode_video_batch(teacher, to_device(inputs.videos(columns), device)))
    again = {"video_text": teacher.score(texts, videos).float().cpu().numpy()}
    if with_frames and gives_frame_relevance(teacher):

        def own_videos(view: int) -> Tokens:
            wanted = view * (inputs.video_count // views) + caption_videos[rows]
            return select_tokens(videos, torch.from_numpy(np.searchsorted(columns, wanted)).to(device))

        again["frame_text"] = _frame_text(teacher, texts, own_videos, views)
    return again


def verify_relevance(
    store: StoredItems,
    again: Mapping[str, np.ndarray],
    rows: np.ndarray,
    columns: np.ndarray,
    *,
    label: str,
    spread: float = 0.0,
) -> list[str]:
    """Compare stored relevance of captions `rows` and videos `columns` with `again`. Returns a line per difference.

    The tolerance is a float16 rounding (2^-10 relative) where the store is float16, and 1e-4 otherwise. Added to it
    is `spread` times the standard deviation of the values: encoders in bfloat16 round otherwise in another batch.
    """
    half = store.arrays["video_text"].dtype == "float16"
    problems = []
    for name, values in again.items():
        kept = np.asarray(store.read(name, rows), dtype=np.float32)
        kept = kept[:, columns] if name == "video_text" else kept
        allowed = 1e-4 + (2.0**-10 if half else 1e-5) * np.abs(values) + spread * float(np.std(values))
        worst = float(np.max(np.abs(kept - values) - allowed))
        if worst > 0:
            problems.append(f"{store.path}: {label} {name}: stored and recomputed differ by {worst:.2e} too much")
    return problems
