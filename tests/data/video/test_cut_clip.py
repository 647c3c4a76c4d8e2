"""Clips: the seconds that were asked for, with their sound, of files as people have them."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
import pytest
from video_files import write_video

from teachclip import decode_frames
from teachclip.data.video.clip import cut_clip
from teachclip.data.video.sampling import FrameSampling
from teachclip.errors import DataError, VideoError


def write_film(path, *, seconds, sound, first="sound"):
    """Write a film of 64 x 48, 10 frames a second; a tone is stored before or after its pictures."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=10)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        audio = container.add_stream("aac", rate=44_100) if sound else None

        def pictures():
            for number in range(10 * seconds):
                image = np.full((48, 64, 3), 10 + 2 * number, np.uint8)
                container.mux(video.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))

        def tone():
            samples = np.sin(np.arange(44_100 * seconds) / 20).astype(np.float32)[None]
            for start in range(0, samples.shape[1], 1024):
                frame = av.AudioFrame.from_ndarray(samples[:, start : start + 1024], format="fltp", layout="mono")
                frame.rate, frame.pts, frame.time_base = 44_100, start, Fraction(1, 44_100)
                container.mux(audio.encode(frame))

        for part in (tone, pictures) if sound and first == "sound" else (pictures, tone) if sound else (pictures,):
            part()
        for stream in (video, audio):
            if stream is not None:
                container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("first", ["sound", "pictures"])
@pytest.mark.parametrize("sound", [True, False])
def test_a_clip_shows_and_sounds_as_the_film_does_there(tmp_path, sound, first):
    film = write_film(tmp_path / "film.mp4", seconds=6, sound=sound, first=first)
    cut_clip(film, 2.0, 4.0, tmp_path / "clip.mp4")
    with av.open(str(tmp_path / "clip.mp4")) as clip:
        assert float(clip.duration / av.time_base) == pytest.approx(2.0, abs=0.1)
        assert len(clip.streams.audio) == sound
        if sound:
            heard = sum(frame.samples for frame in clip.decode(audio=0)) / 44_100
            assert heard == pytest.approx(2.0, abs=0.1)
    plan = FrameSampling("intervals", 4)
    shown, expected = decode_frames(tmp_path / "clip.mp4", plan), decode_frames(film, plan, start=2.0, end=4.0)
    assert (shown.float() - expected.float()).abs().max() <= 8


@pytest.mark.parametrize(("name", "codec"), [("film.avi", "mpeg4"), ("film.webm", "libvpx"), ("film.mkv", "libx264")])
def test_clips_of_other_containers(tmp_path, name, codec):
    film = write_video(tmp_path / name, frames=40, codec=codec)
    cut_clip(film, 1.0, 2.5, tmp_path / "clip.mp4")
    with av.open(str(tmp_path / "clip.mp4")) as clip:
        assert sum(1 for _ in clip.decode(video=0)) == 15


def test_mistakes_leave_no_file(tmp_path):
    film = write_film(tmp_path / "film.mp4", seconds=2, sound=True)
    for options, part in (
        ((0.0, 1.0, tmp_path / "clip.avi"), r"a clip is an mp4 file"),
        ((1.0, 1.0, tmp_path / "clip.mp4"), r"from 1 to 1 seconds is empty"),
        ((9.0, 10.0, tmp_path / "clip.mp4"), r"ends at 2 seconds"),
        ((0.0, 1.0, tmp_path / "none" / "clip.mp4"), r"its folder does not exist"),
    ):
        with pytest.raises((DataError, VideoError), match=part):
            cut_clip(film, *options)
    assert [path.name for path in tmp_path.iterdir()] == ["film.mp4"]
