from fractions import Fraction

import av
import numpy as np
import pytest
from video_files import write_video

from teachclip.data.video.probe import probe_video
from teachclip.data.video.video_file import declared_bytes


def test_facts_of_a_plain_file(tmp_path):
    facts = probe_video(write_video(tmp_path / "a.mp4", frames=60, fps=Fraction(30000, 1001), width=96))
    assert (facts.codec, facts.pixel_format, facts.bit_depth) == ("h264", "yuv420p", 8)
    assert (facts.width, facts.height, facts.shown_width, facts.shown_height) == (96, 64, 96, 64)
    assert facts.fps == pytest.approx(29.97, abs=1e-3) and facts.duration == pytest.approx(2.002, abs=1e-3)
    assert (facts.frames, facts.declared_frames, facts.rotation, facts.pixel_aspect) == (60, 60, 0, 1)
    assert not (facts.varies or facts.truncated or facts.interlaced or facts.has_audio)
    assert np.allclose(facts.timeline.times, np.arange(60) * 1.001 / 30, atol=1e-3)


def test_a_video_with_audio_has_both(tmp_path):
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        video, audio = container.add_stream("mpeg4", rate=10), container.add_stream("aac", rate=16000)
        video.width, video.height, video.pix_fmt = 64, 64, "yuv420p"
        for number in range(10):
            frame = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 10)
            samples = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            samples.sample_rate, samples.pts = 16000, 1024 * number
            container.mux([*video.encode(frame), *audio.encode(samples)])
        container.mux([*video.encode(), *audio.encode()])
    facts = probe_video(path)
    assert facts.has_audio and facts.frames == 10


@pytest.mark.parametrize("steps", [1, 3], ids=["one late frame", "a pause of three"])
def test_a_rate_varies_where_a_frame_is_more_than_one_step_off(tmp_path, steps):
    times = [number + steps * (number > 20) for number in range(40)]
    facts = probe_video(write_video(tmp_path / "a.mkv", frames=40, times=times))
    assert facts.varies == (steps > 1)


def test_the_length_that_a_header_promises(tmp_path):
    for name in ("a.avi", "a.mkv", "a.webm"):
        content = write_video(tmp_path / name, codec="libvpx-vp9" if "w" in name else "mpeg4").read_bytes()
        assert declared_bytes(content[:4096]) == len(content), name
    for short in (b"", b"RIF", b"\x1a\x45\xdf\xa3\x18\x53\x80\x67"):
        assert declared_bytes(short) == 0
    live = b"\x1a\x45\xdf\xa3" + b"\x18\x53\x80\x67\x01" + b"\xff" * 7 + bytes(8)
    assert declared_bytes(live) == 0, "a live recording does not know its length"
