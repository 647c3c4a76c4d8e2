import contextlib
import os
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from video_files import cut_file, read_numbers, write_cover, write_sound, write_video

from teachclip.data.video.decode import decode_frames
from teachclip.data.video.probe import probe_video
from teachclip.data.video.sampling import FrameSampling, sample_indices
from teachclip.errors import VideoError

PER_SECOND = FrameSampling("per_second", 12)
INTERVALS = FrameSampling("intervals", 12)
EVERY = FrameSampling("intervals", 60)
CODECS = {"a.mp4": "libx264", "a.mkv": "libx264", "a.webm": "libvpx-vp9", "a.avi": "mpeg4", "a.mov": "libx265"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("videos")


def whole_file(folder, name):
    """60 frames with a keyframe in ten, the index first."""
    path = folder / name
    faststart = name.endswith(("mp4", "mov"))
    return path if path.exists() else write_video(path, codec=CODECS[name], frames=60, faststart=faststart)


def refusal(path, sampling=PER_SECOND, **options):
    with pytest.raises(VideoError) as caught:
        decode_frames(path, sampling, **options)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message
    return message


def no_videos(folder):
    Image.new("RGB", (64, 64)).save(folder / "photo.mp4", "jpeg")
    Image.new("RGB", (64, 64)).save(folder / "photo.png")
    (folder / "page.mp4").write_text("\ufeff\n <!DOCTYPE html><title>404</title>" * 50)
    (folder / "pointer.mp4").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
    (folder / "junk.mp4").write_bytes(np.random.RandomState(0).bytes(5000))
    (folder / "text.mp4").write_text("no video\n" * 1000)
    (folder / "empty.mp4").touch()
    (folder / "link.mp4").symlink_to(folder / "gone.mp4")
    os.mkfifo(folder / "pipe.mp4")
    return {
        "photo.mp4": "is a still image",
        "photo.png": "is a still image",
        "page.mp4": "web page",
        "pointer.mp4": "Git LFS pointer",
        "junk.mp4": "cannot be opened as a video",
        "text.mp4": "cannot be opened as a video",
        "empty.mp4": "is empty",
        "link.mp4": "is a link to",
        "pipe.mp4": "a device or a pipe",
        "no.mp4": "does not exist",
        "": "is a folder",
        write_sound(folder / "sound.mp4").name: "has no video stream, only audio",
        write_cover(folder / "music.mp3").name: "only audio and a cover image",
        cut_file(
            write_video(folder / "late.mp4"), folder / "no index.mp4", share=0.5
        ).name: "cannot be opened as a video",
        "nul\0.mp4": "cannot be read",
    }


def test_a_file_that_is_not_a_video_is_named_with_the_error(tmp_path):
    for name, reason in no_videos(tmp_path).items():
        path = tmp_path / name if name else tmp_path
        for on_error in ("skip", "use_decodable"):
            assert reason in refusal(path, on_error=on_error), name
        with pytest.raises(VideoError, match=reason):
            probe_video(path)


def test_a_file_that_may_not_be_read_says_so(tmp_path):
    path = write_video(tmp_path / "a.mp4")
    path.chmod(0)
    tmp_path.chmod(0o711)
    with as_nobody(tmp_path):
        assert "cannot be read (Permission denied)" in refusal(path)


@contextlib.contextmanager
def as_nobody(folder):
    """Be another user where the tests run as root, who may read everything."""
    if os.geteuid() != 0:
        yield
        return
    for parent in folder.parents:  # pytest's folders are private
        if parent.stat().st_uid == 0 and "pytest" in parent.name:
            parent.chmod(0o711)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_the_ending_of_the_name_does_not_matter(tmp_path, folder):
    for name in CODECS:
        other = tmp_path / f"{name}.{'avi' if name.endswith('mp4') else 'mp4'}"
        other.write_bytes(whole_file(folder, name).read_bytes())
        assert read_numbers(decode_frames(other, PER_SECOND)) == [0, 10, 20, 30, 40, 50], name


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.8, 0.95])
def test_a_cut_file_is_refused_or_gives_its_decodable_frames(tmp_path, folder, name, share):
    cut = cut_file(whole_file(folder, name), tmp_path / name, share=share)
    if (name, share) == ("a.avi", 0.95):  # only the index is lost, the header says that all frames are there
        assert read_numbers(decode_frames(cut, EVERY)) == list(range(60))
        return
    refusal(cut, EVERY)
    try:
        numbers = read_numbers(decode_frames(cut, EVERY, on_error="use_decodable"))
    except VideoError as error:
        assert share <= 0.3 and "\n" not in str(error), error
        return
    kept = sorted(set(numbers))
    assert numbers == kept + kept[-1:] * (60 - len(kept)), "as the sampling does for a shorter video"
    assert len(kept) < 60 and kept[:-4] == list(range(len(kept) - 4))  # the last ones are stored in another order
    fewer = read_numbers(decode_frames(cut, PER_SECOND, on_error="use_decodable"))
    assert fewer == [kept[index] for index in sample_indices(PER_SECOND, len(kept), 10)]


def test_a_truncated_file_is_read_where_the_sampled_frames_are_there(tmp_path, folder):
    whole = whole_file(folder, "a.mp4")
    cut = cut_file(whole, tmp_path / "cut.mp4", share=0.8)
    head = FrameSampling("per_second", 2, keep="head")
    assert torch.equal(decode_frames(cut, head), decode_frames(whole, head))
    assert read_numbers(decode_frames(cut, FrameSampling("intervals", 2), start=1, end=3)) == [14, 24]
    assert "truncated" in refusal(cut, INTERVALS) and probe_video(cut).truncated


def test_a_gap_is_closed_and_not_filled_with_repeats(tmp_path, folder):
    path = tmp_path / "hole.mp4"
    content = bytearray(whole_file(folder, "a.mp4").read_bytes())
    with av.open(str(folder / "a.mp4")) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        first, last = packets[22].pos, packets[24].pos  # in the third group of pictures
    content[first + 5 : last] = np.random.RandomState(0).bytes(last - first - 5)
    path.write_bytes(content)
    assert "of 60 cannot be decoded" in refusal(path, EVERY)
    numbers = read_numbers(decode_frames(path, EVERY, on_error="use_decodable"))
    kept = sorted(set(numbers))
    assert numbers == kept + kept[-1:] * (60 - len(kept))
    # packets 20 and 21 are frames 20 and 24; what follows up to the next keyframe is built on what is lost
    assert kept == [*range(20), 20, 24, *range(30, 60)]
    assert read_numbers(decode_frames(path, PER_SECOND)) == [0, 10, 20, 30, 40, 50], "none of them is damaged"
    halves = FrameSampling("per_second", 12, rate=2)  # 25 is
    by_half = decode_frames(path, halves, on_error="use_decodable")
    assert read_numbers(by_half) == [kept[index] for index in sample_indices(halves, len(kept), 10)]
    part = decode_frames(path, FrameSampling("intervals", 2), start=2, end=4, on_error="use_decodable")
    assert all(20 <= number < 40 and number in kept for number in read_numbers(part))


@pytest.mark.parametrize("name", ["a.mp4", "a.webm", "a.avi"])
def test_frames_before_the_first_keyframe_are_lost(tmp_path, folder, name):
    path = tmp_path / name
    with av.open(str(whole_file(folder, name))) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for place, packet in enumerate(source.demux(video=0)):
            if place and packet.size:
                packet.stream = stream
                target.mux(packet)
    refusal(path, PER_SECOND)
    refusal(path, FrameSampling("per_second", 1))
    numbers = read_numbers(decode_frames(path, EVERY, on_error="use_decodable"))
    assert sorted(set(numbers)) == list(range(10, 60))


def test_a_stream_without_any_keyframe_is_refused(tmp_path):
    path = tmp_path / "a.mp4"
    source = write_video(tmp_path / "whole.mp4", gop=250, frames=40)
    with av.open(str(source)) as reading, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(reading.streams.video[0])
        for place, packet in enumerate(reading.demux(video=0)):
            if place and packet.size:
                packet.stream = stream
                target.mux(packet)
    assert "is missing" in refusal(path, FrameSampling("per_second", 1))
    assert "and of its decodable frames: there is none" in refusal(path, on_error="use_decodable")


@pytest.mark.parametrize("name", CODECS)
def test_random_damage_gives_an_error_or_frames_and_never_a_crash(tmp_path, folder, name):
    content, path = whole_file(folder, name).read_bytes(), tmp_path / name
    shown = read_numbers(decode_frames(folder / name, EVERY))
    for seed in range(20):
        state = np.random.RandomState(seed)
        damaged = bytearray(content)
        for place in state.randint(0, len(content), size=1 + seed):
            damaged[place] ^= 1 << state.randint(8)
        path.write_bytes(damaged)
        for on_error in ("skip", "use_decodable"):
            with contextlib.suppress(VideoError):
                frames = decode_frames(path, INTERVALS, on_error=on_error)
                assert frames.dtype == torch.uint8 and len(frames) == 12 and frames.shape[1] == 3
                assert all(len(frame.unique()) > 1 for frame in frames), f"seed {seed}: a blank frame"
    assert shown == list(range(60))


def test_interlaced_fields_are_joined_in_a_damaged_file_too(tmp_path):
    options = {"x264-params": "tff=1"}
    whole = write_video(tmp_path / "i.mp4", frames=60, faststart=True, options=options)
    cut = cut_file(whole, tmp_path / "cut.mp4", share=0.7)
    numbers = read_numbers(decode_frames(cut, EVERY, on_error="use_decodable"))
    kept = sorted(set(numbers))
    assert 20 < len(kept) < 60 and numbers == kept + kept[-1:] * (60 - len(kept))
    assert set(read_numbers(decode_frames(cut, EVERY, start=1, end=2, on_error="use_decodable"))) == set(
        range(10, 20)
    )


@pytest.mark.parametrize("count", [0, 3, 59, 2_000_000_000])
def test_a_wrong_number_of_frames_in_the_header_of_a_whole_file_does_not_matter(tmp_path, folder, count):
    content = bytearray(whole_file(folder, "a.avi").read_bytes())
    place = content.index(b"strh") + 8 + 32  # dwLength of the stream
    content[place : place + 4] = count.to_bytes(4, "little")
    place = content.index(b"avih") + 8 + 16  # dwTotalFrames of the file
    content[place : place + 4] = count.to_bytes(4, "little")
    path = tmp_path / "a.avi"
    path.write_bytes(content)
    assert read_numbers(decode_frames(path, PER_SECOND)) == [0, 10, 20, 30, 40, 50]
    facts = probe_video(path)
    assert facts.frames == 60 and (facts.declared_frames == count or count in (0, 2_000_000_000))


def test_paths_may_be_text_or_paths(folder):
    path = whole_file(folder, "a.mp4")
    assert torch.equal(decode_frames(str(path), PER_SECOND), decode_frames(Path(path), PER_SECOND))


def test_an_empty_sample_that_shows_the_last_frame_on_is_no_loss(tmp_path):
    content = bytearray(write_video(tmp_path / "a.mp4", codec="mpeg4").read_bytes())
    table = content.index(b"stsz") + 4 + 4  # behind flags: a common size, the number of samples, the sizes
    count = int.from_bytes(content[table + 4 : table + 8], "big")
    last = table + 8 + 4 * (count - 1)
    content[last : last + 4] = bytes(4)
    path = tmp_path / "empty.mp4"
    path.write_bytes(content)
    assert read_numbers(decode_frames(path, PER_SECOND)) == [0, 10, 20]
    assert count == 30 and probe_video(path).frames == 29 and not probe_video(path).truncated


def transport_stream(path, codec):
    """Write 20 frames of noise, each a keyframe, as MPEG-TS."""
    noise = np.random.default_rng(0)
    with av.open(str(path), "w", format="mpegts") as container:
        stream = container.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt, stream.options = 64, 48, "yuv420p", {"g": "1", "bf": "0"}
        for number in range(20):
            frame = av.VideoFrame.from_ndarray(noise.integers(0, 255, (48, 64, 3), dtype=np.uint8), format="rgb24")
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


@pytest.mark.parametrize("codec", ["mpeg2video", "libx264", "mpeg4"])
def test_frames_of_packets_that_are_marked_corrupt_are_never_used(tmp_path, codec):
    path, whole = tmp_path / "lost.ts", tmp_path / "whole.ts"
    transport_stream(whole, codec)
    content, every = whole.read_bytes(), FrameSampling("intervals", 20)
    frames = decode_frames(whole, every)
    tried = 0
    for lost in range(len(content) // 376, len(content) // 376 + 12):
        path.write_bytes(content[: lost * 188] + content[(lost + 1) * 188 :])
        with av.open(str(path)) as container:
            if not any(packet.is_corrupt for packet in container.demux(video=0)):
                continue
        tried += 1
        assert probe_video(path).truncated
        with pytest.raises(VideoError):
            decode_frames(path, every)
        kept = decode_frames(path, every, on_error="use_decodable")
        distances = (kept[:, None].float() - frames[None].float()).abs().flatten(2).amax(-1)
        assert distances.amin(-1).max() == 0, "a frame of the damaged file is none of the whole one's"
        assert len(set(distances.argmin(-1).tolist())) < 20, "the frame of the corrupt packet is used"
    assert tried >= 6
