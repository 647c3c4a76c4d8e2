"""Frame sampling that takes keyframes alone: the nearest ones, without decoding what lies between."""

import numpy as np
import pytest
from video_files import read_numbers, write_video

from teachclip.data.video.cutting import Cutting
from teachclip.data.video.decode import VideoSource, decode_frames
from teachclip.data.video.decoder import decode_packets
from teachclip.data.video.parts import open_parts
from teachclip.data.video.sampling import FrameSampling
from teachclip.data.video.transform import FrameTransform
from teachclip.data.video.workers import Decoding

EXACT = FrameSampling("intervals", 4)
KEYS = FrameSampling("intervals", 4, keyframes=True)


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """Ten seconds of ten frames each; keyframes, among frames that are stored out of order, at 0, 16, 32, ..., 96."""
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    options = {"bf": "2", "sc_threshold": "0"}
    return write_video(path, frames=100, gop=16, options=options, settings={"max_b_frames": 2})


def test_each_frame_is_the_nearest_keyframe(film):
    assert read_numbers(decode_frames(film, EXACT)) == [12, 37, 62, 87]
    assert read_numbers(decode_frames(film, KEYS)) == [16, 32, 64, 80]


def test_only_keyframes_are_decoded(film, monkeypatch):
    runs = []

    def recorded(path, packets, wanted, *rest):
        runs.extend(wanted)
        return decode_packets(path, packets, wanted, *rest)

    monkeypatch.setattr("teachclip.data.video.decode.decode_packets", recorded)
    VideoSource.open(film).take([16, 64])
    assert [stop - start for start, stop in runs] == [1, 1]


def test_only_keyframes_of_the_span_count_and_without_any_the_frames_themselves(film):
    assert read_numbers(decode_frames(film, KEYS, start=3, end=5)) == [32, 32, 48, 48]
    assert read_numbers(decode_frames(film, KEYS, start=1.8, end=3)) == read_numbers(
        decode_frames(film, EXACT, start=1.8, end=3)
    )


def test_views_are_augmented_before(film):
    numbers = read_numbers(decode_frames(film, KEYS, view=1))
    assert set(numbers) <= set(range(0, 100, 16)) and numbers == sorted(numbers)


def test_parts_of_a_film_share_keyframes(film):
    transform = FrameTransform(64)
    first = open_parts(str(film), KEYS, transform, Cutting("windows", 6, 2)).first
    assert np.round(first.times * 10).astype(int).tolist() == list(range(0, 112, 16))
    alone = transform(decode_frames(film, KEYS, start=2, end=8)).numpy()
    assert np.array_equal(first.frames[first.places[1]], alone)


def test_what_stores_were_made_from_says_keyframes_only_where_they_are_used():
    exact, keys = (Decoding(sampling, FrameTransform(32)).provenance()["sampling"] for sampling in (EXACT, KEYS))
    assert "keyframes" not in exact and keys == {**exact, "keyframes": True}
