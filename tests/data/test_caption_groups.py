"""Batches in which captions of a video stand side by side."""

import pickle

import numpy as np
import pytest

from teachclip.data.batches import BatchSampler
from teachclip.data.caption_groups import CaptionGroups
from teachclip.errors import DataError, LaunchError

UNEVEN = np.repeat(np.arange(30), np.random.RandomState(0).randint(1, 12, 30))  # 1 to 11 captions per video
EVEN = np.repeat(np.arange(12), 20)


def sampler(videos, size, batch_size=12, **options):
    return BatchSampler(len(videos), batch_size, 5, groups=CaptionGroups(videos, size), **options)


def epoch(plan, number=0):
    return range(number * plan.batches_per_epoch, (number + 1) * plan.batches_per_epoch)


@pytest.mark.parametrize("videos", [EVEN, UNEVEN])
@pytest.mark.parametrize("size", [2, 3, 4, 6])
def test_every_caption_comes_once_and_captions_side_by_side_are_of_one_video(videos, size):
    plan = sampler(videos, size)
    rows = [plan.rows(step) for step in epoch(plan)]
    seen = np.concatenate(rows)
    assert len(rows) == len(videos) // 12 and all(len(each) == 12 for each in rows)
    assert len(set(seen.tolist())) == len(seen) > len(videos) - 12
    sizes = [plan.captions_together(step) for step in epoch(plan)]
    for each, together in zip(rows, sizes, strict=True):
        assert size % together == 0
        assert (np.ptp(videos[each].reshape(-1, together), axis=1) == 0).all()
    if videos is EVEN and 20 % size == 0:
        assert set(sizes) == {size}
    if videos is UNEVEN:
        assert min(sizes) < size and size in sizes


def test_epochs_put_other_captions_side_by_side_and_the_seed_decides():
    plan, again = sampler(EVEN, 4), sampler(EVEN.copy(), 4)
    assert np.array_equal(plan.rows(3), again.rows(3))
    assert np.array_equal(plan.rows(3), pickle.loads(pickle.dumps(plan)).rows(3))  # in a loading process
    other = BatchSampler(len(EVEN), 12, 6, groups=plan.groups)
    assert plan.rows(3).tolist() != other.rows(3).tolist()

    def together(number):
        return {frozenset(group) for step in epoch(plan, number) for group in plan.rows(step).reshape(-1, 4).tolist()}

    assert len(together(0) & together(1)) < 10


def test_captions_are_of_the_groups_that_were_given():
    one, other = sampler(EVEN, 2), sampler(EVEN[::-1].copy(), 2)
    assert one.rows(0).tolist() != other.rows(0).tolist()


def test_processes_share_out_whole_videos():
    plan = sampler(EVEN, 4)
    for step in epoch(plan):
        parts = [plan.local(step, index, 3) for index in range(3)]
        assert np.array_equal(np.concatenate(parts), plan.rows(step))
    with pytest.raises(LaunchError, match=r"12 is not divisible by 2 processes x 4 captions per video"):
        plan.local(0, 0, 2)


def test_captions_that_share_a_video_share_its_view_and_use_all_views_in_turn():
    plan = sampler(EVEN, 4, views=3)
    for step in (0, 7, 13):
        rows = plan.rows(step)
        assert (np.ptp(plan.views_of(step, rows).reshape(-1, 4), axis=1) == 0).all()
    steps = [number * plan.batches_per_epoch for number in range(3)]
    assert (np.sort([plan.views_of(step, np.arange(len(EVEN))) for step in steps], axis=0).T == [0, 1, 2]).all()


def test_groups_that_cannot_be_are_refused():
    with pytest.raises(DataError, match="captions_per_video is 21, but no video has more than 20 training captions"):
        CaptionGroups(EVEN, 21)
    with pytest.raises(DataError, match="batch size is 12; allowed: a multiple of captions_per_video, 5"):
        sampler(EVEN, 5)
