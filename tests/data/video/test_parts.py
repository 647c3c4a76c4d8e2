import numpy as np
import pytest
import torch
from video_files import cut_file, write_video

from teachclip.data.video.cutting import Cutting
from teachclip.data.video.decode import VideoSource, decode_frames
from teachclip.data.video.parts import decode_stretch, open_parts
from teachclip.data.video.sampling import FrameSampling
from teachclip.data.video.transform import FrameTransform
from teachclip.errors import DataError, VideoError

TRANSFORM = FrameTransform(32)
SAMPLINGS = [FrameSampling("per_second", 12), FrameSampling("intervals", 4), FrameSampling("clip2video", 6)]


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("film") / "film.mp4", frames=330, width=80, height=48)


@pytest.mark.parametrize(
    ("seconds", "parts"),
    [
        (4, [(0, 4)]),
        (10, [(0, 10)]),
        (12.4, [(0, 12.4)]),
        (12.5, [(0, 10), (5, 12.5)]),
        (15, [(0, 10), (5, 15)]),
        (17, [(0, 10), (5, 17)]),
        (18, [(0, 10), (5, 15), (10, 18)]),
    ],
)
def test_windows_cover_a_video_and_a_short_rest_joins_the_last_one(seconds, parts):
    assert Cutting().cut(seconds) == parts


def test_long_shots_are_cut_into_windows_and_short_ones_stay():
    assert Cutting("shots").cut(22, [(0, 3), (3, 18), (18, 22)]) == [(0, 3), (3, 13), (8, 18), (18, 22)]


@pytest.mark.parametrize("values", [("windows", 10, 11), ("windows", 0, 0), ("windows", 5, -1), ("scenes", 10, 5)])
def test_impossible_parts_are_refused(values):
    with pytest.raises(DataError, match=r"allowed: windows, shots|expected seconds above 0"):
        Cutting(*values)


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=lambda sampling: sampling.kind)
def test_parts_have_the_frames_that_decoding_each_alone_gives(film, sampling):
    opened = open_parts(str(film), sampling, TRANSFORM, Cutting())
    first = opened.first
    assert first.parts == [(0, 10), (5, 15), (10, 20), (15, 25), (20, 30), (25, 33)] and not opened.rest
    for (start, end), places in zip(first.parts, first.places, strict=True):
        alone = TRANSFORM(decode_frames(film, sampling, start=start, end=end))
        assert torch.equal(torch.from_numpy(first.frames[places]), alone)
        assert (first.times[places] >= start).all() and (first.times[places] < end + 1e-6).all()
    assert len(np.unique(first.times)) == len(first.times)
    if sampling.kind != "clip2video":  # whose frames are at other moments of each part
        assert len(first.frames) < sum(map(len, first.places)), "overlapping parts share frames"


def test_a_short_video_has_the_frames_of_the_whole_file(film):
    sampling = SAMPLINGS[0]
    first = open_parts(str(film), sampling, TRANSFORM, Cutting("windows", 60, 30)).first
    assert len(first.parts) == 1 and first.parts[0][0] == 0 and first.parts[0][1] == pytest.approx(33)
    assert torch.equal(torch.from_numpy(first.frames[first.places[0]]), TRANSFORM(decode_frames(film, sampling)))


def test_a_long_film_comes_in_stretches(film, monkeypatch):
    monkeypatch.setattr("teachclip.data.video.parts.PARTS_PER_STRETCH", 2)
    sampling = SAMPLINGS[0]
    opened = open_parts(str(film), sampling, TRANSFORM, Cutting())
    assert opened.rest == [[(10, 20), (15, 25)], [(20, 30), (25, 33)]]
    second = decode_stretch(opened.source, sampling, TRANSFORM, opened.rest[0])
    alone = TRANSFORM(decode_frames(film, sampling, start=15, end=25))
    assert torch.equal(torch.from_numpy(second.frames[second.places[1]]), alone)


def test_a_film_that_must_be_decoded_from_its_start_has_longer_stretches(tmp_path, monkeypatch):
    monkeypatch.setattr("teachclip.data.video.parts.PARTS_PER_STRETCH", 1)
    film = write_video(
        tmp_path / "film.avi", frames=250, codec="mpeg4", settings={"max_b_frames": 2}, options={"bf": "2"}
    )
    opened = open_parts(str(film), SAMPLINGS[0], TRANSFORM, Cutting())
    assert VideoSource.open(film).from_start and not opened.rest and len(opened.first.parts) == 4
    alone = TRANSFORM(decode_frames(film, SAMPLINGS[0], start=10, end=20))
    assert torch.equal(torch.from_numpy(opened.first.frames[opened.first.places[2]]), alone)


def test_damage_costs_the_parts_that_it_reaches(film, tmp_path):
    damaged = tmp_path / "damaged.mp4"
    content = bytearray(film.read_bytes())
    middle = len(content) * 2 // 3
    content[middle : middle + 300] = bytes(300)
    damaged.write_bytes(content)
    first = open_parts(str(damaged), SAMPLINGS[0], TRANSFORM, Cutting()).first
    bad = [number for number, error in enumerate(first.errors) if error]
    assert bad and len(bad) < len(first.parts)
    for number, places in enumerate(first.places):
        assert (len(places) == 0) == (number in bad)
        if number not in bad:
            alone = TRANSFORM(
                decode_frames(damaged, SAMPLINGS[0], start=first.parts[number][0], end=first.parts[number][1])
            )
            assert torch.equal(torch.from_numpy(first.frames[places]), alone)


def test_a_file_without_a_decodable_part_is_refused(film, tmp_path):
    with pytest.raises(VideoError, match=r"half.mp4: cannot be"):
        open_parts(str(cut_file(film, tmp_path / "half.mp4", share=0.5)), SAMPLINGS[0], TRANSFORM, Cutting())
