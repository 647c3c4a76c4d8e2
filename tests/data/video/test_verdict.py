"""Whether a damaged file is accepted: by its bytes alone, and by what a player shows of it."""

import errno
import gc
import io
import os
import threading
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image
from video_files import cut_file, read_number, read_numbers, write_video

from teachclip.data.video.clip import cut_clip
from teachclip.data.video.decode import VideoSource, decode_frames
from teachclip.data.video.decoder import Found, Run, damaged, decode_packets, runs_for
from teachclip.data.video.matroska import first_gap
from teachclip.data.video.picture import picture_of
from teachclip.data.video.probe import Packets, probe_video
from teachclip.data.video.sampling import FrameSampling
from teachclip.data.video.video_file import is_transient
from teachclip.errors import VideoError

PER_SECOND = FrameSampling("per_second", 12)
CODECS = {"a.mp4": "libx264", "a.mkv": "libx265", "a.webm": "libvpx-vp9", "a.avi": "mpeg4", "a.mov": "mjpeg"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("videos")


def whole(folder, name):
    path = folder / name
    pixels = {"pixels": "yuvj420p"} if CODECS[name] == "mjpeg" else {}
    return path if path.exists() else write_video(path, codec=CODECS[name], frames=60, **pixels)


def packets_of(path):
    with av.open(str(path)) as container:
        return [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]


def flipped(source, path, seed, bits=3):
    """Flip bits of the pictures."""
    state, content, places = np.random.RandomState(seed), bytearray(source.read_bytes()), packets_of(source)
    for _ in range(bits):
        start, size = places[state.randint(len(places))]
        content[start + state.randint(size)] ^= 1 << state.randint(8)
    path.write_bytes(content)
    return path


def verdict(path, sampling=PER_SECOND, on_error="skip"):
    try:
        return decode_frames(path, sampling, on_error=on_error).numpy().tobytes()
    except VideoError as error:
        return str(error)


@pytest.mark.parametrize("name", CODECS)
def test_a_verdict_is_the_same_every_time_also_while_others_decode(folder, tmp_path, name):
    paths = [flipped(whole(folder, name), tmp_path / f"{seed}{name}", seed) for seed in range(6)]
    first = [verdict(path, on_error="use_decodable") for path in paths]
    busy = [threading.Thread(target=lambda: [verdict(path) for path in paths]) for _ in range(3)]
    for thread in busy:
        thread.start()
    for _ in range(3):
        assert [verdict(path, on_error="use_decodable") for path in paths] == first
    for thread in busy:
        thread.join()


def test_standard_error_belongs_to_the_application(folder, tmp_path, capfd):
    damaged_file = flipped(whole(folder, "a.mp4"), tmp_path / "a.mp4", 0)
    before, stop, lines = os.fstat(2), threading.Event(), []

    def log():
        while not stop.is_set():
            lines.append(f"line {len(lines)}\n")
            os.write(2, lines[-1].encode())
            assert os.path.samestat(os.fstat(2), before)

    thread = threading.Thread(target=log)
    thread.start()
    for _ in range(5):
        assert read_numbers(decode_frames(whole(folder, "a.mp4"), PER_SECOND)) == [0, 10, 20, 30, 40, 50]
        verdict(damaged_file)
    stop.set()
    thread.join()
    assert capfd.readouterr().err == "".join(lines) and lines


@pytest.mark.parametrize("seed", range(12))
def test_no_frame_that_ffmpeg_marks_as_corrupt_is_used_unnamed(folder, tmp_path, seed):
    path = flipped(whole(folder, "a.mp4"), tmp_path / "a.mp4", seed, bits=1)
    with av.open(str(path)) as container:
        container.streams.video[0].codec_context.thread_count = 1
        try:
            marked = [number for number, frame in enumerate(container.decode(video=0)) if frame.is_corrupt]
        except av.FFmpegError:
            return
    source = VideoSource.open(path)
    for number in marked:
        with pytest.raises(VideoError, match=f"frame {number} of 60 cannot be decoded .FFmpeg marks it as corrupt"):
            source.take([number])
    if marked:
        every = verdict(path, FrameSampling("intervals", 60))
        assert "frames.on_error" in every, "the refusal names the key that decides"


def test_a_film_that_ends_long_before_the_duration_in_its_header_is_not_a_short_film(folder, tmp_path):
    path = tmp_path / "a.webm"
    content, places = whole(folder, "a.webm").read_bytes(), packets_of(whole(folder, "a.webm"))
    hole = places[5][0]
    path.write_bytes(content[:hole] + bytes(len(content) - hole - 400) + content[-400:])
    facts = probe_video(path)
    assert facts.truncated and facts.frames < 10 and len(facts.timeline.times) == 60
    assert "of 60 is missing" in verdict(path)
    assert decode_frames(path, PER_SECOND, on_error="use_decodable").shape[0] == 1


def webm_of_clusters(path):
    """Six seconds, a cluster in each."""
    with av.open(str(path), "w", options={"cluster_time_limit": "900"}) as container:
        stream = container.add_stream("libvpx", rate=10)
        stream.width, stream.height, stream.gop_size = 64, 64, 10
        noise = np.random.RandomState(0)
        for _ in range(60):
            frame = av.VideoFrame.from_ndarray(noise.randint(0, 255, (64, 64, 3)).astype(np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def test_frames_that_are_lost_in_the_middle_of_a_webm_file_are_counted(tmp_path):
    source, path = webm_of_clusters(tmp_path / "whole.webm"), tmp_path / "a.webm"
    content, places = bytearray(source.read_bytes()), packets_of(source)
    assert first_gap(source) is None and not probe_video(source).truncated
    start, stop = places[22][0], places[27][0]
    content[start - 20 : stop] = bytes(stop - start + 20)
    path.write_bytes(content)
    facts = probe_video(path)
    assert facts.truncated and 40 < facts.frames < 58 and facts.declared_frames == 60
    assert f"damaged: it has {facts.frames} frames of 60; frames.on_error" in verdict(path)
    assert len(decode_frames(path, PER_SECOND, on_error="use_decodable")) >= 5


@pytest.mark.parametrize("codec", ["libx264", "libvpx-vp9"])
def test_every_whole_matroska_file_is_without_a_gap_and_a_cut_one_is_not(tmp_path, codec):
    path = write_video(tmp_path / "a.mkv", codec=codec)
    assert first_gap(path) is None
    for share in (0.3, 0.9):
        assert first_gap(cut_file(path, tmp_path / "cut.mkv", share=share)) is not None
    path.write_bytes(b"\x1a\x45\xdf\xa3")
    assert first_gap(path) is None, "an element without a size: FFmpeg says what is wrong"


def remux(source, path, change):
    """Copy a film, each packet after `change(number, packet)`."""
    with av.open(str(source)) as reading, av.open(str(path), "w") as writing:
        stream = writing.add_stream_from_template(reading.streams.video[0])
        for number, packet in enumerate(reading.demux(video=0)):
            if packet.size:
                packet = change(number, packet)
                packet.stream = stream
                writing.mux(packet)
    return path


def test_harmless_nonsense_in_the_first_packet_does_not_cost_the_film(folder, tmp_path):
    def note_as_slice(number, packet):
        content = bytearray(bytes(packet))
        if not number:
            assert content[4] == 6, "the encoder's note"
            content[4] = 5  # a part of a keyframe
        odd = av.Packet(bytes(content))
        odd.pts, odd.dts, odd.duration = packet.pts, packet.dts, packet.duration
        odd.time_base, odd.is_keyframe = packet.time_base, packet.is_keyframe
        return odd

    path = remux(whole(folder, "a.mp4"), tmp_path / "odd.mp4", note_as_slice)
    assert read_numbers(decode_frames(path, PER_SECOND)) == [0, 10, 20, 30, 40, 50]


def test_time_stamps_in_the_order_of_decoding_do_not_shuffle_frames(folder, tmp_path):
    def in_storage_order(number, packet):
        packet.dts = packet.dts + 2048
        packet.pts = packet.dts
        return packet

    path = remux(whole(folder, "a.mp4"), tmp_path / "a.mp4", in_storage_order)
    assert list(map(read_number, VideoSource.open(path).take(list(range(60))))) == list(range(60))
    assert read_numbers(decode_frames(path, FrameSampling("per_second", 18, rate=3)))[:6] == [0, 3, 6, 10, 13, 16]


def packets(stamps, keys):
    return Packets(stamps, keys, frozenset(), sorted(stamps), True, 1, 0, False)


def test_each_frame_is_decoded_from_the_keyframe_before_it():
    closed = packets([0, 3, 1, 2, 4, 7, 5, 6, 8, 9], [0, 4, 8])
    assert runs_for(closed, [2]) == [Run(0, 3)]
    assert runs_for(closed, [1, 6, 9]) == [Run(0, 2), Run(4, 7), Run(8, 10)]
    opened = packets([0, 3, 1, 2, 6, 4, 5, 9, 7, 8], [0, 4])
    assert runs_for(opened, [5]) == [Run(0, 6)], "4 is shown before the keyframe that is stored before it"
    assert runs_for(opened, [7]) == [Run(4, 8)]
    assert runs_for(packets([0, 1, 2], []), [2]) == [Run(0, 3)]


def test_damage_reaches_to_the_next_keyframe_and_to_what_is_shown_before_it():
    opened = packets([0, 3, 1, 2, 6, 4, 5, 9, 7, 8], [0, 4])
    found = Found(fed=list(range(10)), shown=[0, 2, 3, 1, 5, 6, 4, 8, 9, 7], keys={0, 4}, broken={2: "x"})
    assert damaged(opened, found) == {2, 3, 5, 6}
    found.broken = {4: "x"}
    assert damaged(opened, found) == {4, 5, 6, 7, 8, 9}
    found.broken = {}
    assert damaged(opened, found) == set()
    assert damaged(opened._replace(keys=[4]), found) == {0, 1, 2, 3, 5, 6}, "it starts without a keyframe"


def test_leaving_out_packets_changes_no_picture(folder):
    for name in ("a.mp4", "a.mkv", "a.webm", "a.mov"):
        source = VideoSource.open(whole(folder, name))
        every = source._by_packet(list(range(60)), only_needed=False)
        for numbers in ([0], [59], [7, 8], [9, 10, 11, 33], list(range(1, 60, 7))):
            some = source._by_packet(numbers, only_needed=True)
            assert some is not None and np.array_equal(some, every[numbers]), (name, numbers)


def test_packets_that_no_frame_needs_are_not_decoded(folder):
    source, found = VideoSource.open(whole(folder, "a.mp4")), Found()
    wanted = source._packets_of([55])
    assert [number for number, _ in decode_packets(str(source.file), source.packets, [Run(50, 58)], found, wanted)]
    assert min(found.fed) == 50 and len(found.shown) < len(found.fed), "frames that none depends on are skipped"


@pytest.mark.parametrize("module", ["probe", "decode"])
def test_a_failing_machine_is_no_verdict_on_the_file(folder, monkeypatch, module):
    def fails(*_, **__):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    path = whole(folder, "a.mp4")
    name = {"probe": "probe.av.open", "decode": "decode.decode_packets"}[module]
    monkeypatch.setattr(f"teachclip.data.video.{name}", fails)
    for on_error in ("skip", "use_decodable"):
        error = verdict(path, on_error=on_error)
        assert error == f"the machine could not read {path}: Too many open files" and is_transient(error)


def test_the_memory_of_a_picture_is_free_as_soon_as_it_was_used(folder):
    # a decoder takes it for later pictures, and where damage leaves holes in these the old one shows through: if it
    # waited for Python's garbage collection, the pixels of a damaged film would depend on what ran before
    path = str(whole(folder, "a.webm"))
    decode_frames(path, PER_SECOND)
    gc.collect()
    gc.disable()
    try:
        for on_error in ("skip", "use_decodable"):
            decode_frames(path, PER_SECOND, on_error=on_error)
            waiting = [
                kind for kind in map(type, gc_found()) if "ideData" in kind.__name__ or "Frame" in kind.__name__
            ]
            assert not waiting
    finally:
        gc.enable()


def gc_found():
    """Return what only garbage collection frees."""
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        gc.collect()
        return list(gc.garbage)
    finally:
        gc.set_debug(0)
        gc.garbage.clear()


def test_a_stream_that_begins_in_the_middle_of_a_file_is_passed_over(tmp_path):
    """FFmpeg reads the beginning and the end of a transport stream to find what is in it."""
    film = write_video(tmp_path / "film.ts", frames=400, codec="mpeg2video", width=320, height=320).read_bytes()
    with av.open(str(tmp_path / "sound.ts"), "w") as container:
        video, audio = container.add_stream("mpeg2video", rate=10), container.add_stream("mp2", rate=44_100)
        video.width, video.height, video.pix_fmt = 64, 64, "yuv420p"
        container.mux(video.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")))
        for start in range(0, 44_100, 1152):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1152), np.int16), format="s16", layout="mono")
            frame.rate, frame.pts, frame.time_base = 44_100, start, Fraction(1, 44_100)
            container.mux(audio.encode(frame))
        container.mux([*video.encode(None), *audio.encode(None)])
    path = tmp_path / "joined.ts"
    sound = (tmp_path / "sound.ts").read_bytes()
    path.write_bytes(film + sound + film + film)
    with av.open(str(path)) as container, pytest.raises(IndexError):
        list(container.demux(container.streams.video[0]))
    plan = FrameSampling("intervals", 4)
    with pytest.raises(VideoError, match="truncated or damaged"):  # its times begin anew in the middle
        decode_frames(path, plan)
    assert decode_frames(path, plan, on_error="use_decodable").shape == (4, 3, 320, 320)
    assert Image.open(io.BytesIO(picture_of(path, 1.0, 64))).size == (64, 64)
    cut_clip(path, 1.0, 2.0, tmp_path / "clip.mp4")
