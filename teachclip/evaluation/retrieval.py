"""Ranks of text-to-video and video-to-text retrieval, computed block by block.

The protocol is that of CLIP4Clip (section 4.2) and TeachCLIP (section 4.1), with one or several captions per video:

- text to video: each caption is a query, all videos are candidates, its own video is the match;
- video to text: each video that has captions is a query; the captions of one video are one candidate, with the
  highest of their scores.

The rank of the match is 1 + the number of OTHER candidates that score at least as high: a tie never adds a hit. The
official code gives each tied caption all of its tied ranks at once, and so counts it several times.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from teachclip.errors import DataError
from teachclip.evaluation.metrics import rank_metrics, sum_of_recalls
from teachclip.scorer import Scorer, Tokens, select_tokens
from teachclip.store.scratch import Growing, blocks, scratch_array


class Ranks(NamedTuple):
    """Ranks from 1, and the scores of the matches. `t2v`: (captions,); `v2t`: (videos with captions,), in order."""

    t2v: np.ndarray
    v2t: np.ndarray
    t2v_scores: np.ndarray
    v2t_scores: np.ndarray


class Span(NamedTuple):
    """Items `first` to `stop` - 1. They are scored together with the preceding items from `start` on."""

    start: int
    first: int
    stop: int


ScoreBlock = Callable[[Span, Span], Tensor]


def retrieval_ranks(
    scorer: Scorer,
    texts: Tokens,
    videos: Tokens,
    caption_videos: np.ndarray,
    *,
    text_block: int = 128,
    video_block: int = 128,
    progress: bool = False,
) -> Ranks:
    """Return the ranks of all captions and videos under `scorer`, which should be in evaluation mode.

    `caption_videos`: (captions,), the row of each caption's video, in any order. At most `text_block` texts are
    scored against `video_block` videos at once; besides one such block only a few numbers per item are kept. Raises
    DataError if the tokens and `caption_videos` do not fit together or scores are NaN.
    """
    owners, order = _sorted_owners(caption_videos, _items(texts), _items(videos))
    ascends = _ascends(order.numpy())

    def score_block(text: Span, video: Span) -> Tensor:
        block = select_tokens(videos, slice(video.start, video.stop))
        rows = slice(text.start, text.stop)
        scores = scorer.score(select_tokens(texts, rows if ascends else order[rows]), block)
        expected = (text.stop - text.start, video.stop - video.start)
        if tuple(scores.shape) != expected:
            got = tuple(scores.shape)
            raise DataError(f"{type(scorer).__name__}.score must be (texts, videos) = {expected}, got {got}")
        return scores[text.first - text.start :, video.first - video.start :]

    spans = list(spans_of(_items(texts), text_block)), list(spans_of(_items(videos), video_block))
    return _ranks(score_block, owners, order, *spans, progress=progress)


def ranks_from_matrix(scores: np.ndarray | Tensor, caption_videos: np.ndarray) -> Ranks:
    """Return the ranks of a whole matrix of scores (captions, videos). Raises DataError as `retrieval_ranks`."""
    matrix = torch.as_tensor(scores)
    if matrix.ndim != 2:
        raise DataError(f"scores must be (captions, videos), got {tuple(matrix.shape)}")
    owners, order = _sorted_owners(caption_videos, *matrix.shape)

    def score_block(text: Span, video: Span) -> Tensor:
        rows = order[text.first : text.stop].to(matrix.device)
        return matrix[rows, video.first : video.stop]

    spans = [list(spans_of(size, 1024)) for size in matrix.shape]
    return _ranks(score_block, owners, order, *spans, progress=False)


def evaluate_retrieval(
    scorer: Scorer,
    texts: Tokens,
    videos: Tokens,
    caption_videos: np.ndarray,
    *,
    text_block: int = 128,
    video_block: int = 128,
    progress: bool = False,
) -> dict[str, Any]:
    """Return {"t2v": metrics, "v2t": metrics, "sum_of_recalls": percent}; see `retrieval_ranks`, `rank_metrics`."""
    return metrics_of(
        retrieval_ranks(
            scorer, texts, videos, caption_videos, text_block=text_block, video_block=video_block, progress=progress
        )
    )


def metrics_of(ranks: Ranks) -> dict[str, Any]:
    """Return {"t2v": metrics, "v2t": metrics, "sum_of_recalls": percent}; see `rank_metrics`."""
    t2v, v2t = rank_metrics(ranks.t2v), rank_metrics(ranks.v2t)
    return {"t2v": t2v, "v2t": v2t, "sum_of_recalls": sum_of_recalls(t2v, v2t)}


def _items(tokens: Tokens) -> int:
    sizes = {name: len(tensor) for name, tensor in tokens.items()}
    if len(set(sizes.values())) != 1:
        raise DataError(f"all tokens must have the same number of items, got {sizes}")
    return next(iter(sizes.values()))


def _sorted_owners(caption_videos: np.ndarray, captions: int, videos: int) -> tuple[Tensor, Tensor]:
    """Return the video row of each caption, in ascending order, and the captions in that order: (captions,) both."""
    rows = np.asarray(caption_videos)
    if rows.shape != (captions,) or not captions or rows.dtype.kind not in "iu":
        raise DataError(
            f"caption_videos must hold one row for each of {captions} captions, got {rows.dtype} {rows.shape}"
        )
    if rows.min() < 0 or rows.max() >= videos:
        raise DataError(f"caption_videos names rows {rows.min()} to {rows.max()}, but there are {videos} videos")
    order, owners = scratch_array(captions, np.int64), scratch_array(captions, np.int64)
    if _ascends(rows):
        for some in blocks(captions):
            order[some] = np.arange(some.start, some.stop)
    else:
        order[:] = np.argsort(rows, kind="stable")
    for some in blocks(captions):
        owners[some] = rows[order[some]]
    return torch.from_numpy(owners), torch.from_numpy(order)


def _ascends(numbers: np.ndarray) -> bool:
    return all((np.diff(numbers[some.start : some.stop + 1]) >= 0).all() for some in blocks(len(numbers)))


def _zeros(count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return zeros (count,), which on a CPU are a scratch array if there are many."""
    if device.type != "cpu":
        return torch.zeros(count, dtype=dtype, device=device)
    return torch.from_numpy(scratch_array(count, torch.empty(0, dtype=dtype).numpy().dtype))


def _groups(owners: Tensor) -> tuple[Tensor, Tensor]:
    """Return the distinct numbers of ascending ones, (groups,), and of which group each is, (captions,): int64."""
    group, distinct = _zeros(len(owners), torch.int64, owners.device), Growing(np.int64)
    before = owners[:1] - 1
    for some in blocks(len(owners)):
        part = owners[some]
        begins = part != torch.cat([before, part[:-1]])
        last = int(group[some.start - 1]) if some.start else -1
        group[some] = last + begins.cumsum(0)
        distinct.append(part[begins].numpy())
        before = part[-1:]
    return torch.from_numpy(distinct.array()), group


def spans_of(items: int, size: int) -> Iterator[Span]:
    """Split items into blocks that are all scored in the same shape.

    The last block is filled with the items before it: a matrix product of another shape may sum in another order, and
    two equal videos would then differ in the last bit, so that chance would break their tie.
    """
    if size < 1:
        raise DataError(f"a block must have at least 1 item, got {size}")
    for first in range(0, items, size):
        stop = min(first + size, items)
        yield Span(max(0, stop - size), first, stop)


@torch.no_grad()
def _ranks(
    score_block: ScoreBlock, owners: Tensor, order: Tensor, texts: list[Span], videos: list[Span], *, progress: bool
) -> Ranks:
    """Compare every candidate with the match. The captions are sorted by video: `owners` ascends."""
    match_scores = _match_scores(score_block, owners, texts, videos)
    queries, group = _groups(owners)
    device = match_scores.device
    best_matches = _zeros(videos[-1].stop, match_scores.dtype, device).fill_(-torch.inf)
    best_matches.scatter_reduce_(0, owners.to(device), match_scores, "amax")
    captions_above = _zeros(len(owners), torch.int64, device)
    videos_above = _zeros(videos[-1].stop, torch.int64, device)
    nan_scores = captions_above.new_zeros(())
    carry: Tensor | None = None
    both = product(videos, texts)
    for video, text in tqdm(both, "ranks", len(videos) * len(texts), unit="block", disable=not progress):
        scores = _as_float(score_block(text, video))
        nan_scores += scores.isnan().sum()
        rows, columns = slice(text.first, text.stop), slice(video.first, video.stop)
        captions_above[rows] += _others_above(scores, match_scores[rows, None], owners[rows], video).sum(dim=1)

        best = _best_of_groups(scores, group[rows] - group[text.first])
        if carry is not None:  # the first video has captions in the block before
            best = torch.cat([torch.maximum(best[:1], carry), best[1:]])
        continues = text.stop < len(owners) and bool(group[text.stop] == group[text.stop - 1])
        carry, best = (best[-1:], best[:-1]) if continues else (None, best)
        candidates = queries[group[text.first] :][: len(best)]
        videos_above[columns] += _others_above(best, best_matches[columns], candidates, video).sum(dim=0)
    if nan_scores:
        total = len(owners) * videos[-1].stop
        raise DataError(f"{int(nan_scores)} of {total} scores are NaN; check the checkpoint and the precision")
    t2v, v2t = (scratch_array(len(items), np.int64) for items in (owners, queries))
    t2v_scores, v2t_scores = (scratch_array(len(items), np.float64) for items in (owners, queries))
    for some in blocks(len(owners)):
        t2v[order[some].numpy()] = 1 + captions_above[some].cpu().numpy()
        t2v_scores[order[some].numpy()] = match_scores[some].cpu().numpy()
    for some in blocks(len(queries)):
        of_queries = queries[some].to(device)
        v2t[some] = 1 + videos_above[of_queries].cpu().numpy()
        v2t_scores[some] = best_matches[of_queries].cpu().numpy()
    return Ranks(t2v, v2t, t2v_scores, v2t_scores)


def _match_scores(score_block: ScoreBlock, owners: Tensor, texts: list[Span], videos: list[Span]) -> Tensor:
    """Return the score of each caption with its own video (captions,), from the same blocks that are ranked.

    Computed in any other way it could differ in the last bit from the score that it is compared with.
    """
    found: Tensor | None = None
    filled = 0
    for text in texts:
        block_owners = owners[text.first : text.stop]
        for video in videos:
            inside = (block_owners >= video.first) & (block_owners < video.stop)
            if inside.any():
                scores = _as_float(score_block(text, video))
                row, column = inside.nonzero()[:, 0], block_owners[inside] - video.first
                own = scores[row.to(scores.device), column.to(scores.device)]
                found = _zeros(len(owners), own.dtype, own.device) if found is None else found
                found[filled : filled + len(own)] = own
                filled += len(own)
    assert found is not None, "there is a caption, and each has a video"
    return found


def _others_above(scores: Tensor, match_scores: Tensor, rows_video: Tensor, columns: Span) -> Tensor:
    """Return which scores of other videos than the row's own are at least `match_scores`: (rows, columns)."""
    same = rows_video[:, None] == torch.arange(columns.first, columns.stop)
    return (scores >= match_scores) & ~same.to(scores.device)


def _best_of_groups(scores: Tensor, group: Tensor) -> Tensor:
    """Return the highest score over the texts of each group, (groups, videos); `group` ascends from 0 by 0 or 1."""
    groups = int(group[-1]) + 1
    if groups == len(scores):
        return scores
    best = scores.new_full((groups, scores.shape[1]), -torch.inf)
    return best.scatter_reduce(0, group[:, None].to(scores.device).expand_as(scores), scores, "amax")


def _as_float(scores: Tensor) -> Tensor:
    return scores if scores.dtype == torch.float64 else scores.float()
