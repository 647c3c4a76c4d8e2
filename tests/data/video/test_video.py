import math
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from video_files import read_number, read_numbers, write_video

from teachclip.data.video.decode import VideoSource, decode_frames
from teachclip.data.video.probe import probe_video
from teachclip.data.video.sampling import FrameSampling, sample_indices
from teachclip.errors import VideoError

PER_SECOND = FrameSampling("per_second", 12)
INTERVALS = FrameSampling("intervals", 12)
CLIP2VIDEO = FrameSampling("clip2video", 12)
SAMPLINGS = [PER_SECOND, INTERVALS, CLIP2VIDEO]

# name: the options of write_video. Each is written once, 64 frames.
FILES = {
    "h264.mp4": {"codec": "libx264"},
    "h264.mkv": {"codec": "libx264"},
    "h264.mov": {"codec": "libx264"},
    "vp9.webm": {"codec": "libvpx-vp9"},
    "mpeg4.avi": {"codec": "mpeg4"},
    "mjpeg.mov": {"codec": "mjpeg", "pixels": "yuvj420p"},
    "mjpeg.avi": {"codec": "mjpeg", "pixels": "yuvj420p"},
    "10 bit.mp4": {"codec": "libx264", "pixels": "yuv420p10le"},
    "10 bit hevc.mkv": {"codec": "libx265", "pixels": "yuv420p10le"},
    "odd.webm": {"codec": "libvpx-vp9", "width": 65, "height": 51},
    "444.mp4": {"codec": "libx264", "pixels": "yuv444p", "width": 66, "height": 50},
    "alpha.mov": {"codec": "qtrle", "pixels": "argb"},
    "alpha.webm": {"codec": "libvpx-vp9", "pixels": "yuva420p"},
    "long groups.mp4": {"codec": "libx264", "gop": 250},
    # Frames out of order before the first keyframe of a group, without time stamps, or both.
    "h264.avi": {"codec": "libx264"},
    "hevc.mp4": {"codec": "libx265"},
    "h264.ts": {"codec": "libx264"},
    "av1.mp4": {"codec": "libsvtav1"},
    "av1.webm": {"codec": "libsvtav1"},
}
VARYING = [number if number < 30 else 30 + 5 * (number - 30) for number in range(64)]  # 10 and then 2 a second
HELD = {"vfr.mp4": "libx264", "vfr.mkv": "libx264", "vfr.webm": "libvpx-vp9", "vfr av1.mp4": "libsvtav1"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("videos")


def write_once(folder, name, **options):
    path = folder / name
    return path if path.exists() else write_video(path, **{"frames": 64, "fps": 10, **options})


def taken(path, numbers):
    """The frames of some numbers, uint8 (frames, height, width, 3)."""
    return VideoSource.open(path).take(numbers)


@pytest.mark.parametrize("name", FILES)
def test_decoded_frames_are_exactly_those_of_the_sampling(folder, name):
    path = write_once(folder, name, **FILES[name])
    for sampling in [*SAMPLINGS, FrameSampling("intervals", 5), FrameSampling("per_second", 20, rate=3)]:
        assert read_numbers(decode_frames(path, sampling)) == sample_indices(sampling, 64, 10), sampling
    assert read_numbers(decode_frames(path, PER_SECOND, start=2, end=4)) == [20, 30, 40]
    assert read_numbers(decode_frames(path, FrameSampling("intervals", 2), start=2, end=4)) == [24, 34]


CONTAINERS = {
    "a.mts": {},
    "a.m2ts": {},
    "a.vob": {"codec": "mpeg2video", "fps": 25},
    "a.mpg": {"codec": "mpeg1video", "fps": 25},
    "a.ts": {"codec": "mpeg2video", "fps": 25},
    "a.ogv": {"codec": "libvpx"},
    "a.ogg": {"codec": "libvpx"},
    "a.gif": {"codec": "gif", "pixels": "rgb8"},
    "a.wmv": {"codec": "wmv2"},
    "a.flv": {},
    "a.3gp": {"codec": "mpeg4"},
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_other_containers_are_read(folder, name):
    options = {"fps": 10, **CONTAINERS[name]}
    path = write_once(folder, name, **options)
    for sampling in SAMPLINGS:
        assert read_numbers(decode_frames(path, sampling)) == sample_indices(sampling, 64, options["fps"]), sampling


def test_a_gif_that_does_not_move_is_a_picture(tmp_path):
    with pytest.raises(VideoError, match="is a still image"):
        decode_frames(write_video(tmp_path / "a.gif", codec="gif", pixels="rgb8", frames=1), PER_SECOND)


@pytest.mark.parametrize("name", HELD)
def test_time_stamps_decide_where_the_rate_varies(folder, name):
    path = write_once(folder, name, codec=HELD[name], times=VARYING)
    # second 0, 1, 2, 3, ... of 20 seconds: ten frames a second, then two
    assert read_numbers(decode_frames(path, FrameSampling("per_second", 99))) == [0, 10, 20, *range(30, 64, 2)]
    assert read_numbers(decode_frames(path, FrameSampling("intervals", 4))) == [
        24,
        38,
        48,
        58,
    ]  # of 19.6 s
    assert read_numbers(decode_frames(path, PER_SECOND, start=5, end=8)) == [34, 36, 38, 40]


@pytest.mark.parametrize("options", [{}, {"options": {"bf": "2"}}], ids=["in order", "with B-frames"])
def test_frames_that_an_avi_dropped_leave_their_time(tmp_path, options):
    shown = [number for number in range(120) if not (10 < number < 40 or 46 <= number < 80)]
    path = write_video(tmp_path / "drop.avi", codec="mpeg4", frames=len(shown), times=shown, **options)
    facts = probe_video(path)
    assert facts.varies and not facts.truncated and facts.duration == pytest.approx(12, abs=0.2)
    assert (facts.frames, facts.fps) == (len(shown), 10)
    seconds = [shown[number] for number in read_numbers(decode_frames(path, PER_SECOND))]
    wanted = [max(time for time in shown if time <= 10 * second) for second in range(12)]
    assert seconds == wanted
    assert decode_frames(path, PER_SECOND, start=9, end=11).shape[0] == 3


@pytest.mark.parametrize("fps", [24, Fraction(30000, 1001), 60], ids=["24", "29.97", "60"])
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_usual_rates_are_constant_and_follow_the_published_formula(folder, fps, suffix):
    path = write_once(folder, f"{float(fps):.0f} fps.{suffix}", frames=150, fps=fps)
    assert not probe_video(path).varies
    for sampling in SAMPLINGS:
        assert read_numbers(decode_frames(path, sampling)) == sample_indices(sampling, 150, float(fps)), sampling


def test_tagged_colour_matrices_and_full_range_are_honoured(tmp_path):
    plain = write_video(tmp_path / "601.mp4", frames=2, options={"qp": "1"})
    tagged = write_video(tmp_path / "709.mp4", frames=2, options={"qp": "1"}, settings={"colorspace": 1})
    full = write_video(tmp_path / "full.mp4", frames=2, options={"qp": "1"}, pixels="yuvj420p")
    first, second, third = (decode_frames(path, INTERVALS)[0].float() for path in (plain, tagged, full))
    # The writer converts by BT.601 whatever the tag says: read by BT.709, red and green must move apart.
    assert (first - second).abs().mean() > 3 and (first - third).abs().mean() < 2


def test_wide_and_tall_pixels_are_shown_square(tmp_path):
    for name, aspect, shape in [
        ("wide", (4, 3), (64, 128)),
        ("tall", (2, 3), (96, 96)),
        ("near", (1001, 1000), None),
    ]:
        path = write_video(tmp_path / f"{name}.mp4", width=96, settings={"sample_aspect_ratio": Fraction(*aspect)})
        frames, facts = decode_frames(path, INTERVALS), probe_video(path)
        assert frames.shape[2:] == (shape or (64, 96)) == (facts.shown_height, facts.shown_width), name
        assert facts.pixel_aspect == pytest.approx(aspect[0] / aspect[1])
    wide = decode_frames(tmp_path / "wide.mp4", INTERVALS)
    squashed = torch.nn.functional.interpolate(wide.float(), size=(64, 96), mode="area").byte()
    assert read_numbers(squashed) == sample_indices(INTERVALS, 30, 10)


def test_interlaced_fields_are_joined(tmp_path):
    interlaced = write_video(tmp_path / "i.mp4", frames=40, options={"x264-params": "tff=1"})
    whole = write_video(tmp_path / "p.mp4", frames=40)
    assert probe_video(interlaced).interlaced and not probe_video(whole).interlaced
    frames = decode_frames(interlaced, FrameSampling("per_second", 12, rate=2))
    assert read_numbers(frames) == [0, 5, 10, 15, 20, 25, 30, 35]
    # rows of one field are filled in from the other's neighbours: rough patterns lose their finest detail
    plain = taken(whole, [5])[0]
    assert 0 < np.abs(frames[1].permute(1, 2, 0).numpy().astype(int) - plain).mean() < 12


def test_mpeg2_that_is_interlaced_is_recognised_by_its_frames(tmp_path):
    path = write_video(tmp_path / "a.mp4", codec="mpeg4", options={"flags": "+ilme+ildct"})
    assert probe_video(path).interlaced
    assert read_numbers(decode_frames(path, PER_SECOND)) == [0, 10, 20]


@pytest.mark.parametrize("sampling", [PER_SECOND, INTERVALS], ids=["per_second", "intervals"])
def test_frames_hidden_by_an_edit_list_do_not_count(tmp_path, sampling):
    path = write_video(tmp_path / "a.mp4", frames=120, fps=20, start=-13)
    assert read_numbers(decode_frames(path, sampling)) == [13 + index for index in sample_indices(sampling, 107, 20)]


@pytest.mark.parametrize("name", ["h264.mp4", "vp9.webm", "vfr.mkv"])
def test_frames_are_found_by_number(folder, name):
    path = write_once(folder, name, **FILES.get(name, {"times": VARYING}))
    assert list(map(read_number, taken(path, [4, 14, 24, 34, 63]))) == [4, 14, 24, 34, 63]


@pytest.mark.parametrize(
    "name", ["with spaces.mp4", "видео №1 – фильм.mp4", "a:b'c\"d.mp4", "-dash.mp4", "100%d.mp4", "h264 in.avi.jpg"]
)
def test_unusual_file_names_are_read(folder, name):
    path = folder / name
    path.write_bytes(write_once(folder, "h264.mp4", **FILES["h264.mp4"]).read_bytes())
    frames = decode_frames(path, PER_SECOND)
    assert frames.shape == (7, 3, 64, 64) and frames.dtype == torch.uint8


def test_relative_path_with_a_colon_is_a_file_and_no_protocol(tmp_path, monkeypatch):
    write_video(tmp_path / "clip:1.mp4")
    monkeypatch.chdir(tmp_path)
    assert len(decode_frames("clip:1.mp4", PER_SECOND)) == 3


def test_short_video_gives_fewer_frames_or_repeats_its_last(tmp_path):
    path = write_video(tmp_path / "a.mp4", frames=5)
    assert len(decode_frames(path, PER_SECOND)) == 1
    frames = decode_frames(path, INTERVALS)
    assert len(frames) == 12
    assert torch.equal(frames[4:], frames[4:5].expand(8, -1, -1, -1))


@pytest.mark.parametrize(("frames", "fps"), [(1, 25), (7, 24)], ids=["one frame", "0.3 seconds"])
@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.avi"])
def test_the_shortest_videos_are_read(tmp_path, name, frames, fps):
    path = write_video(tmp_path / name, frames=frames, fps=fps, codec="mpeg4")
    for sampling in SAMPLINGS:
        assert read_numbers(decode_frames(path, sampling)) == sample_indices(sampling, frames, fps), sampling


def test_three_minutes_are_read_to_the_end(tmp_path):
    path = write_video(tmp_path / "a.mp4", frames=1800, width=96, height=32, gop=250)
    assert read_numbers(decode_frames(path, PER_SECOND)) == sample_indices(PER_SECOND, 1800, 10)
    assert read_numbers(decode_frames(path, PER_SECOND, start=171.25, end=174)) == [1712, 1722, 1732]
    assert math.isclose(probe_video(path).duration, 180)


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=lambda sampling: sampling.kind)
def test_views_are_augmented_by_file_name_and_view_zero_is_the_sampling(folder, sampling):
    path = write_once(folder, "h264.mp4", **FILES["h264.mp4"])
    plain, first = decode_frames(path, sampling), decode_frames(path, sampling, view=1)
    assert torch.equal(plain, decode_frames(path, sampling, view=0))
    assert torch.equal(first, decode_frames(path, sampling, view=1))
    # 64 frames at 10 a second: CLIP2Video moves frames only where they are at least 6 apart
    assert (read_numbers(first) != read_numbers(plain)) == (sampling.kind != "clip2video")


def test_frames_of_vp8_that_are_not_shown_do_not_count(tmp_path):
    source = write_video(tmp_path / "a.webm", codec="libvpx", frames=40, gop=40)
    path = tmp_path / "b.webm"
    with av.open(str(source)) as reading, av.open(str(path), "w") as writing:
        stream = writing.add_stream_from_template(reading.streams.video[0])
        for number, packet in enumerate(reading.demux(video=0)):
            if packet.size:
                content = bytearray(bytes(packet))
                content[0] &= 0xEF if number in (7, 23) else 0xFF
                hidden = av.Packet(bytes(content))
                hidden.pts, hidden.dts, hidden.time_base = packet.pts, packet.dts, packet.time_base
                hidden.is_keyframe, hidden.stream = packet.is_keyframe, stream
                writing.mux(hidden)
    shown = [number for number in range(40) if number not in (7, 23)]
    assert probe_video(path).frames == 38
    assert read_numbers(decode_frames(path, FrameSampling("intervals", 38))) == shown
