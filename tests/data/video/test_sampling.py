import math
from dataclasses import replace

import numpy as np
import pytest
from golden import load_golden

from teachclip.data.video.sampling import FrameSampling, augmentation_generator, choose_frames, sample_indices
from teachclip.data.video.timeline import Timeline, find_span
from teachclip.errors import DataError, VideoError

PER_SECOND = FrameSampling("per_second", 12)
INTERVALS = FrameSampling("intervals", 12)
CLIP2VIDEO = FrameSampling("clip2video", 12)
ROWS = load_golden("08_sampling")[0]["rows"]
INTERVAL_ROWS = load_golden("08_sampling")[0]["xpool_uniform"]
KEEP = {0: "head", 1: "tail", 2: "even"}

# Which of 200 (151, 30, ...) frames `ffmpeg -i FILE -r 5` wrote, ffmpeg 9.0.
EXTRACTED = {
    (10, 16): [0, 1, 2, 3, 5, 7, 9, 11, 13, 15],
    (25, 60): [0, 1, 4, 9, 14, 19, 24, 29, 34, 39, 44, 49, 54, 59],
    (30, 48): [0, 1, 5, 11, 17, 23, 29, 35, 41, 47],
    (24, 67): [0, 1, 4, 9, 13, 18, 23, 28, 33, 37, 42, 47, 52, 57, 61, 66],
    (3, 12): [0, 0, 1, 2, 2, 3, 3, 4, 5, 5, 6, 6, 7, 8, 8, 9, 9, 10, 11, 11],
    (5, 6): [0, 1, 2, 3, 4, 5],
}


def golden_sampling(row):
    rate = row["feature_framerate"] or int(row["fps"])  # the recorded 0 means every frame
    return FrameSampling("per_second", row["max_frames"], rate=rate, keep=KEEP[row["slice_framepos"]])


def chosen(sampling, timeline, *, start=None, end=None, view=0, name="a.mp4"):
    part = find_span(timeline, start, end)
    return choose_frames(sampling, timeline, part, augmentation_generator(sampling, view, name, start))


def varying(*steps):
    """A timeline of frames that are shown for so many seconds each."""
    ends = np.cumsum(steps)
    return Timeline(ends - steps, float(ends[-1]), len(steps) / float(ends[-1]), True)


@pytest.mark.parametrize("row", [row for row in ROWS if row.get("indices")])
def test_per_second_plan_equals_the_official_sampler(row):
    found = sample_indices(golden_sampling(row), row["n_frames"], row["fps"], start=row["start"], end=row["end"])
    reverse = row["frame_order"] == 1  # recorded, but no published recipe turns the order of the frames round
    assert found == (row["indices"][::-1] if reverse else row["indices"])


@pytest.mark.parametrize("row", [row for row in ROWS if row.get("indices") and row["frame_order"] == 0])
def test_frames_chosen_of_a_file_equal_the_official_sampler(row):
    timeline = Timeline.constant(row["n_frames"], row["fps"])
    sampling = golden_sampling(row)
    assert chosen(sampling, timeline, start=row["start"], end=row["end"]) == row["indices"]


@pytest.mark.parametrize("row", [row for row in ROWS if not row.get("indices")])
def test_per_second_plan_refuses_where_the_official_sampler_fails_or_finds_nothing(row):
    with pytest.raises(VideoError):
        sample_indices(golden_sampling(row), row["n_frames"], row["fps"], start=row["start"], end=row["end"])


@pytest.mark.parametrize("row", INTERVAL_ROWS)
def test_intervals_plan_equals_the_official_sampler(row):
    found = sample_indices(FrameSampling("intervals", row["num_frames"]), row["n_frames"], 25.0)
    assert found == row["frames_returned"]


@pytest.mark.parametrize("rate", [(10, 16), (25, 60), (30, 48), (24, 67), (3, 12), (5, 6)])
def test_clip2video_uses_the_frames_that_ffmpeg_extracts(rate):
    fps, frames = rate
    assert sample_indices(FrameSampling("clip2video", 100), frames, fps) == EXTRACTED[rate]


def test_clip2video_keeps_one_frame_in_rate_and_then_count():
    extracted = EXTRACTED[24, 67]  # 16
    half = [extracted[place] for place in (0, 2, 4, 6, 8, 10, 12, 15)]  # linspace(0, 15, 8), cut to whole numbers
    assert sample_indices(replace(CLIP2VIDEO, rate=2), 67, 24) == half
    assert sample_indices(FrameSampling("clip2video", 3, rate=2), 67, 24) == [half[0], half[3], half[7]]
    assert sample_indices(replace(CLIP2VIDEO, rate=2), 1, 24) == [0], "a single frame is kept, not replaced by zeros"


@pytest.mark.parametrize("fps", [0.0, 0.5, float("nan"), float("inf")])
def test_per_second_plan_refuses_a_rate_below_one(fps):
    with pytest.raises(VideoError, match="frames per second"):
        sample_indices(PER_SECOND, 100, fps)


@pytest.mark.parametrize(
    "options", [{"kind": "uniform"}, {"count": 0}, {"rate": 0}, {"keep": "middle"}], ids=lambda item: next(iter(item))
)
def test_frame_plan_names_a_wrong_setting(options):
    with pytest.raises(DataError, match=next(iter(options))):
        FrameSampling(**{"kind": "per_second", "count": 12, **options})


def test_where_the_rate_varies_the_frame_shown_at_the_moment_counts():
    timeline = varying(0.5, 0.5, 3.0, 0.25, 0.25, 0.5)  # frames begin at 0, 0.5, 1, 4, 4.25, 4.5; the end is at 5
    assert chosen(PER_SECOND, timeline) == [0, 2, 2, 2, 3]
    assert chosen(replace(PER_SECOND, rate=2), timeline) == [0, 1, 2, 2, 2, 2, 2, 2, 3, 5]
    assert chosen(FrameSampling("intervals", 5), timeline) == [1, 2, 2, 2, 5]  # at 0.5, 1.5, 2.5, 3.5 and 4.5 seconds
    assert chosen(FrameSampling("intervals", 8), timeline)[-2:] == [5, 5], "too few frames: the last one is repeated"
    assert set(chosen(FrameSampling("clip2video", 100), timeline)) == set(range(6))


@pytest.mark.parametrize("sampling", [PER_SECOND, INTERVALS, CLIP2VIDEO], ids=lambda sampling: sampling.kind)
def test_a_constant_rate_looks_the_same_by_time_and_by_formula(sampling):
    constant = Timeline.constant(330, 30.0)
    by_time, by_formula = chosen(sampling, constant._replace(varies=True)), chosen(sampling, constant)
    assert len(by_time) == len(by_formula)
    assert max(abs(a - b) for a, b in zip(by_time, by_formula, strict=True)) <= 1, "the middle may round otherwise"


def test_a_part_is_read_by_its_seconds():
    timeline = Timeline.constant(3000, 29.97)
    assert chosen(PER_SECOND, timeline, start=90.0, end=92.5) == [2698 - 1, 2727, 2757]  # 90 s are 2697.3 frames
    found = chosen(FrameSampling("intervals", 4), timeline, start=90.0, end=92.0)
    assert found == [2704, 2719, 2734, 2749]  # the middles of a quarter each of frames 2697 to 2757
    assert chosen(PER_SECOND, timeline, start=99.5, end=1000)[0] == 2982, "what lies after the end does not count"


@pytest.mark.parametrize("sampling", [PER_SECOND, INTERVALS, CLIP2VIDEO], ids=lambda sampling: sampling.kind)
def test_every_plan_stays_in_its_part(sampling):
    timeline = Timeline.constant(250, 25.0)
    for view in range(5):
        found = chosen(sampling, timeline, start=2, end=6, view=view)
        assert found == sorted(found)
        assert min(found) >= 50 and max(found) <= (150 if sampling.kind == "per_second" else 149), (view, found)


def test_a_reversed_part_is_turned_round_and_an_empty_one_is_a_second_long():
    timeline = Timeline.constant(250, 25.0)
    assert chosen(PER_SECOND, timeline, start=6, end=2) == chosen(PER_SECOND, timeline, start=2, end=6)
    assert chosen(PER_SECOND, timeline, start=3, end=3) == [75, 100]


@pytest.mark.parametrize("span", [(10, 12), (11, None), (-1, 3), (math.nan, 3), (0, math.nan), (math.inf, None)])
def test_a_span_outside_of_the_video_is_refused(span):
    with pytest.raises(VideoError, match="span"):
        find_span(Timeline.constant(100, 10.0), *span)


@pytest.mark.parametrize("varies", [False, True], ids=["constant", "varying"])
@pytest.mark.parametrize("sampling", [PER_SECOND, INTERVALS, CLIP2VIDEO], ids=lambda sampling: sampling.kind)
def test_augmentation_depends_on_seed_view_name_and_start_alone(sampling, varies):
    timeline = Timeline.constant(1500, 25.0)._replace(varies=varies)
    first = chosen(sampling, timeline, view=1)
    assert first == chosen(sampling, timeline, view=1) != chosen(sampling, timeline)
    others = [
        chosen(sampling, timeline, view=2),
        chosen(sampling, timeline, view=1, name="b.mp4"),
        chosen(sampling, timeline, view=1, start=0.0),
        chosen(replace(sampling, augmentation_seed=1), timeline, view=1),
    ]
    assert first not in others
    with pytest.raises(DataError, match="view is -1"):
        augmentation_generator(sampling, -1, "a.mp4", None)


def test_augmented_intervals_draw_every_frame_of_its_interval_and_no_other():
    timeline, sampling = Timeline.constant(40, 10.0), FrameSampling("intervals", 4)
    drawn = np.array([chosen(sampling, timeline, view=view) for view in range(1, 400)])
    for place in range(4):
        assert set(drawn[:, place]) == set(range(10 * place, 10 * place + 10)), place


@pytest.mark.parametrize("varies", [False, True], ids=["constant", "varying"])
def test_augmented_per_second_frames_stay_within_their_second(varies):
    timeline = Timeline.constant(45, 10.0)._replace(varies=varies)
    drawn = np.array([chosen(PER_SECOND, timeline, view=view) for view in range(1, 300)])
    for second, width in enumerate([10, 10, 10, 10, 5]):
        assert set(drawn[:, second]) == set(range(10 * second, 10 * second + width)), second


def test_augmented_clip2video_moves_inner_frames_by_at_most_half_a_gap():
    timeline, sampling = (
        Timeline.constant(301, 5.0),
        FrameSampling("clip2video", 5),
    )  # every frame is extracted; the gap is 75
    drawn = np.array([chosen(sampling, timeline, view=view) for view in range(1, 500)])
    moved = drawn - np.array(chosen(sampling, timeline))
    assert not moved[:, [0, -1]].any(), "the first and the last frame stay"
    assert moved[:, 1:-1].min() == -37 and moved[:, 1:-1].max() == 36
    near = FrameSampling("clip2video", 50)  # a gap of 6 gives a step of 3, one of 5 only 2: too near to be moved
    assert chosen(near, Timeline.constant(260, 5.0), view=1) == chosen(near, Timeline.constant(260, 5.0))


def test_gaps_are_closed_in_the_timeline_of_the_remaining_frames():
    timeline = varying(1, 1, 2, 1, 1)
    remaining = timeline.without_gaps(np.array([0, 2, 4]))
    assert remaining.times.tolist() == [0, 1, 3] and remaining.duration == 4


def test_a_video_of_less_than_a_frame_per_second_is_read_by_time():
    timeline = Timeline.constant(4, 0.5)
    assert choose_frames(FrameSampling("per_second", 12), timeline, find_span(timeline, None, None), None) == [
        *(0, 0, 1, 1, 2, 2, 3, 3)
    ]
