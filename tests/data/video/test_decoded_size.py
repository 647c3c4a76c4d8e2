"""Frames that FFmpeg makes smaller while it decodes."""

import numpy as np
import pytest
import torch
from video_files import write_video

from teachclip.data.video.cutting import Cutting
from teachclip.data.video.decode import decode_frames
from teachclip.data.video.parts import open_parts
from teachclip.data.video.sampling import FrameSampling
from teachclip.data.video.transform import FrameTransform
from teachclip.data.video.workers import Decoding
from teachclip.data.video.writing import encode_mp4
from teachclip.data_check.synthetic import panned_image
from teachclip.errors import DataError

EXACT = FrameSampling("intervals", 4)
SMALL = FrameSampling("intervals", 4, decoded_size=60)


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """Two seconds of 320 x 240 pixels with detail at several sizes."""
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    encode_mp4(panned_image(0, 16), path)
    return path


def test_the_short_side_gets_the_size_and_the_picture_stays(film):
    exact, small = decode_frames(film, EXACT), decode_frames(film, SMALL)
    assert exact.shape[2:] == (240, 320) and small.shape[2:] == (60, 80)
    usual = FrameTransform(60)(exact).float()
    cropped = small[..., 10:70]
    assert (cropped - usual).abs().mean() < 4 < 20 < (cropped - usual.flip(-1)).abs().mean()


def test_frames_that_are_small_already_stay_as_they_are(film):
    large = FrameSampling("intervals", 4, decoded_size=240)
    assert torch.equal(decode_frames(film, large), decode_frames(film, EXACT))


def test_the_short_side_of_an_upright_film_is_its_width(tmp_path):
    path = write_video(tmp_path / "upright.mp4", frames=8, width=64, height=96)
    assert decode_frames(path, FrameSampling("intervals", 2, decoded_size=32)).shape[2:] == (48, 32)


def test_parts_of_a_film_are_decoded_as_the_whole_is(film):
    transform = FrameTransform(64)
    first = open_parts(str(film), SMALL, transform, Cutting("windows", 6, 2)).first
    assert np.array_equal(first.frames[first.places[0]], transform(decode_frames(film, SMALL)).numpy())


def test_what_stores_were_made_from_says_the_size_only_where_it_is_used():
    exact, small = (Decoding(sampling, FrameTransform(32)).provenance()["sampling"] for sampling in (EXACT, SMALL))
    assert "decoded_size" not in exact and small == {**exact, "decoded_size": 60}


def test_no_size_at_all_is_refused():
    with pytest.raises(DataError, match="decoded_size is 0; allowed: 1 or more"):
        FrameSampling("intervals", 4, decoded_size=0)
