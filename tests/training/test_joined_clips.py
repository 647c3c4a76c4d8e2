"""Videos joined from two clips, with captions "A then B"."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import CAPTIONS, FRAMES, VIDEOS, TinyPixels, tiny_batches, tiny_student
from torch.testing import assert_close

from teachclip.errors import LaunchError
from teachclip.training.joined_clips import JOINED, JoinedClips, joined_logits, joined_videos
from teachclip.training.task import DistillationTask, DistillationTerms, Term, pairs_loss

PAIRS = 10


def numbered(videos: int, frames: int, valid: list[int], start: int) -> dict[str, torch.Tensor]:
    """Frames that are numbers, from `start` on in each video."""
    mask = torch.arange(frames)[None] < torch.tensor(valid)[:, None]
    numbers = start + torch.arange(frames, dtype=torch.float32).expand(videos, frames)
    return {"frame_features": numbers.unsqueeze(-1).clone(), "frame_mask": mask}


def test_the_first_half_shows_the_first_clip_and_the_second_the_other() -> None:
    one, other = numbered(2, 6, [6, 2], 0), numbered(2, 6, [6, 4], 100)
    found = joined_videos(one, other)
    assert found["frame_mask"].all() and found["frame_features"].shape == (2, 6, 1)
    assert found["frame_features"][0, :, 0].tolist() == [1, 3, 5, 101, 103, 105]
    assert found["frame_features"][1, :, 0].tolist() == [0, 1, 1, 100, 102, 103]


def test_an_odd_number_of_frames_and_the_normalisation_stay() -> None:
    one = {**numbered(1, 3, [3], 0), "mean": torch.ones(3)}
    found = joined_videos(one, numbered(1, 3, [3], 100))
    assert found["frame_features"][0, :, 0].tolist() == [1, 100, 102]
    assert torch.equal(found["mean"], torch.ones(3))


class Texts:
    """Token ids of the pairs; those of "B then A" are others."""

    def __init__(self) -> None:
        ids = TinyPixels.make().ids
        self.ids = torch.cat([ids[:PAIRS], ids[PAIRS : 2 * PAIRS]])

    text_count, video_count = 2 * PAIRS, 0

    def texts(self, rows: np.ndarray) -> dict[str, torch.Tensor]:
        return {"input_ids": self.ids[rows], "attention_mask": torch.ones_like(self.ids[rows])}

    def videos(self, rows: np.ndarray) -> dict[str, torch.Tensor]:
        return {}


def clips(count: int = 6) -> JoinedClips:
    rows = np.stack([np.arange(PAIRS) % VIDEOS, (np.arange(PAIRS) + 3) % VIDEOS], axis=1)
    return JoinedClips(TinyPixels.make(), Texts(), rows, count, seed=0)


def test_a_step_is_the_same_however_many_processes_share_it() -> None:
    whole = clips().batch(5)
    parts = [clips().batch(5, index, 2) for index in range(2)]
    for name, tensor in whole.items():
        if tensor.ndim > 1:
            assert torch.equal(torch.cat([part[name] for part in parts]), tensor), name
    assert len(whole[f"{JOINED}input_ids"]) == 6
    assert not torch.equal(whole[f"{JOINED}input_ids"], clips().batch(6)[f"{JOINED}input_ids"])
    with pytest.raises(LaunchError, match=r"losses\.joined_clips\.count is 5, not a multiple of 2"):
        clips(5).batch(0, 0, 2)


@pytest.mark.parametrize("alike", [False, True])
def test_the_term_is_the_contrast_of_the_joined_clips_with_swapped_captions_as_negatives(alike: bool) -> None:
    """Where pairs of captions are of the same two clips, in the same order, each of them is true of all."""
    batches = tiny_batches(stored=False)
    batches.joined = clips()
    if alike:
        batches.joined.clips[:] = [[0, 1], [1, 0], [2, 3], [0, 1], [0, 3]] * 2
    rows = np.random.default_rng([0, 0, 0, 3]).permutation(PAIRS)[:6]
    shown = batches.joined.clips[rows].tolist()
    terms = DistillationTerms(contrastive=Term(0.3), joined_clips=Term(0.5))
    task, batch = DistillationTask(tiny_student(), terms), batches[0]
    losses = task(batch)
    assert losses["loss"].item() == pytest.approx(
        0.3 * losses["contrastive"].item() + 0.5 * losses["joined_clips"].item(), rel=1e-5
    )
    student = task.student
    part = {name.removeprefix(JOINED): tensor for name, tensor in batch.items() if name.startswith(JOINED)}
    pixels = (part["frames"].float() / 255 - 0.5) / 0.5
    out = student(part["input_ids"], part["attention_mask"], pixels, part["frame_mask"])
    other = student.encode_texts(part["swapped.input_ids"], part["swapped.attention_mask"])
    same = torch.tensor([[one == other for other in shown] for one in shown])
    assert same.sum() == (10 if alike else 6)
    expected = pairs_loss(
        out.logits_per_text,
        same,
        swapped=student.score(other, {"embeds": out.video_embeds}),
    )
    assert_close(losses["joined_clips"], expected, rtol=1e-4, atol=1e-4)
    losses["loss"].backward()
    assert student.temporal.layers[0].attention.qkv_proj.weight.grad.abs().max() > 0
    assert joined_logits(student, {"frame_mask": torch.ones(1, FRAMES)}) is None
    assert CAPTIONS * VIDEOS >= 2 * PAIRS
