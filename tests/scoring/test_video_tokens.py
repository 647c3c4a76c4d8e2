"""Relevance from stored tokens: the same whether the tokens of videos stay in memory or are read again."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from teachclip.processes import Processes
from teachclip.scoring import relevance
from teachclip.scoring.relevance import VideoTokens, relevance_rows
from teachclip.scoring.token_store import store_tokens
from teachclip.store.row_plan import row_keys

FRAMES, DIM, VIEWS = 3, 4, 2


class Cosines:
    """Scores by the best frame; relevance over the frames by a softmax."""

    has_frame_relevance = True

    def score(self, texts, videos):
        return torch.einsum("td,vfd->tvf", texts["text"], videos["frames"]).amax(2)

    def frame_relevance(self, texts, videos):
        return torch.einsum("pd,pfd->pf", texts["text"], videos["frames"]).softmax(1)


def stored(path, name, values):
    return store_tokens(
        path / name,
        keys=row_keys(range(len(values))),
        encode=lambda rows: {name: values[rows]},
        provenance={"of": name},
        batch_size=2,
        rows_per_shard=3,
        processes=Processes(),
        label=name,
    )


@pytest.mark.parametrize("kept_bytes", [relevance.KEPT_BYTES, 0])
@pytest.mark.parametrize("columns", [None, np.array([5, 0, 3])])
def test_relevance_is_of_every_pair_and_of_each_view_of_the_own_video(tmp_path, monkeypatch, kept_bytes, columns):
    torch.manual_seed(0)
    texts, frames = torch.randn(5, DIM), torch.randn(VIEWS * 3, FRAMES, DIM)
    own = np.array([0, 0, 1, 2, 2])
    videos = VideoTokens(stored(tmp_path, "frames", frames), "cpu", kept_bytes=kept_bytes)
    reads = []
    read_tokens = relevance.read_tokens
    monkeypatch.setattr(relevance, "read_tokens", lambda *of: reads.append(of[0]) or read_tokens(*of))
    rows = np.array([4, 1, 2])
    for _ in range(2):
        found = relevance_rows(
            Cosines(),
            stored(tmp_path, "text", texts),
            videos,
            own,
            rows,
            columns,
            views=VIEWS,
            video_block=4,
            device="cpu",
        )
    wanted = torch.einsum("td,vfd->tvf", texts[rows], frames)
    by_video = wanted.amax(2) if columns is None else wanted.amax(2)[:, columns]
    assert_close(torch.from_numpy(found["video_text"]), by_video)
    for view in range(VIEWS):
        pairs = wanted[torch.arange(3), view * 3 + own[rows]].softmax(1)
        assert_close(torch.from_numpy(found["frame_text"][:, view]), pairs)
    of_videos = sum(store is videos.stored for store in reads)
    assert of_videos == (1 if kept_bytes else 2 * ((2 if columns is None else 1) + VIEWS))
