"""The eight ways in which a player turns and mirrors a stored picture."""

import math

import av
import numpy as np
import pytest
from video_files import TURNS, read_numbers, turn_file, write_video

from teachclip.data.video.decode import VideoSource, decode_frames
from teachclip.data.video.probe import probe_video
from teachclip.data.video.sampling import FrameSampling
from teachclip.data_check.checks import file_suspicions

FILTERS = {
    "as stored": [],
    "rotated by 90": [("transpose", "cclock")],
    "rotated by 180": [("hflip", None), ("vflip", None)],
    "rotated by 270": [("transpose", "clock")],
    "mirrored": [("hflip", None)],
    "upside down": [("vflip", None)],
    "rotated by 90, mirrored": [("transpose", "cclock"), ("hflip", None)],
    "rotated by 270, mirrored": [("transpose", "clock"), ("hflip", None)],
}
"""What FFmpeg's autorotation puts behind the decoder, written with its plain filters."""


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("turned") / "plain.mp4", width=96)


def filtered(path, filters):
    """The first frame of a file behind some of FFmpeg's filters: uint8 (height, width, 3)."""
    with av.open(str(path)) as container:
        frame, stream = next(container.decode(video=0)), container.streams.video[0]
    graph = av.filter.Graph()
    nodes = [graph.add_buffer(template=stream), *(graph.add(*item) for item in filters), graph.add("buffersink")]
    graph.link_nodes(*nodes).configure()
    graph.vpush(frame)
    return graph.vpull().to_ndarray(format="rgb24")


def moved(pixels, matrix):
    """Every pixel where the matrix puts it: (x, y) to (a x + c y, b x + d y), the corner of the result at (0, 0)."""
    a, b, c, d = matrix
    rows, columns = np.indices(pixels.shape[:2])
    across, down = a * columns + c * rows, b * columns + d * rows
    across, down = across - across.min(), down - down.min()
    shown = np.empty((down.max() + 1, across.max() + 1, 3), np.uint8)
    shown[down, across] = pixels
    return shown


@pytest.mark.parametrize("turn", TURNS)
def test_a_picture_is_turned_and_mirrored_as_ffmpeg_does(plain, tmp_path, turn):
    path = turn_file(plain, tmp_path / "a.mp4", turn)
    shown = VideoSource.open(path).take([0])[0]
    assert np.array_equal(shown, moved(VideoSource.open(plain).take([0])[0], TURNS[turn]))
    # FFmpeg flips before it converts colours; the chroma of half the size lands half a pixel off at edges
    difference = np.abs(shown.astype(int) - filtered(plain, FILTERS[turn]))
    assert shown.shape == filtered(plain, FILTERS[turn]).shape and difference.mean() < 3


@pytest.mark.parametrize("turn", TURNS)
def test_the_facts_name_the_turn_and_the_size_that_is_shown(plain, tmp_path, turn):
    path = turn_file(plain, tmp_path / "a.mp4", turn)
    facts, pixels = probe_video(path), VideoSource.open(path).take([0])[0]
    assert (facts.shown_height, facts.shown_width) == pixels.shape[:2]
    upright = np.rot90(VideoSource.open(plain).take([0])[0], k=facts.rotation // 90)
    assert np.array_equal(pixels, upright[:, ::-1] if facts.mirrored else upright)
    messages = [suspicion.message for suspicion in file_suspicions(facts, 3.0, 30, sampled=1)]
    assert (
        ("mirrored (applied)" in messages)
        == facts.mirrored
        == (math.prod(TURNS[turn][::3]) - math.prod(TURNS[turn][1:3]) < 0)
    )


def test_a_mirror_does_not_change_which_frames_are_taken(plain, tmp_path):
    path = turn_file(plain, tmp_path / "a.mp4", "mirrored")
    frames = decode_frames(path, FrameSampling("per_second", 3))
    assert read_numbers(frames.flip(-1)) == [0, 10, 20]
