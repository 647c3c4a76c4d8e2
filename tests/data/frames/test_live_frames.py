import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
import view_decoder
from video_files import write_video
from view_decoder import decoded

from teachclip.data.annotations.files import file_facts
from teachclip.data.annotations.records import Video
from teachclip.data.frames.live import LiveFrames
from teachclip.data.frames.views import build_frame_views
from teachclip.data.video import workers
from teachclip.data.video.sampling import FrameSampling
from teachclip.data.video.transform import FrameTransform
from teachclip.data.video.workers import Decoding
from teachclip.errors import DataError

HOW = Decoding(FrameSampling("per_second", 3), FrameTransform(16), workers=1)


@pytest.fixture
def videos(tmp_path):
    (tmp_path / "videos").mkdir()
    return [
        Video(f"v{number}", write_video(tmp_path / "videos" / f"v{number}.mp4", frames=8 + 8 * number, seed=number))
        for number in range(4)
    ]


def live(videos, tmp_path, how=HOW):
    return LiveFrames(videos, how, file_facts(videos, tmp_path / "hashes.json", progress=False))


def test_live_frames_are_those_of_the_store(videos, tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "decode_file", view_decoder.augmented)
    stored = build_frame_views(videos, videos, HOW, path=tmp_path / "frames", views=3, progress=False)
    decodes = live(videos, tmp_path)
    ids = ["v3", "v0", "v2"]
    rows, places = stored.rows_of(ids, 3), decodes.rows_of(ids, 3)
    for one, other in zip(stored.read(rows), decodes.read(places), strict=True):
        assert torch.equal(one, other)
    assert decodes.rows_of(["v1"], 2).tolist() == [1, 5]
    for views in (1, 3):
        assert decodes.provenance_of(ids, views) == stored.provenance_of(ids, views)
    assert decodes.verify() == [] and decodes.failures == {}
    with pytest.raises(DataError, match="no video 'other'"):
        decodes.rows_of(["other"])


def test_a_repeated_row_is_decoded_once(videos, tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "decode_file", view_decoder.augmented)
    frames, mask = live(videos, tmp_path).read([2, 0, 2, 2])
    assert decoded(tmp_path / "videos") == ["v0 0", "v2 0"]
    assert torch.equal(frames[0], frames[2]) and not torch.equal(frames[0], frames[1])
    assert mask.sum(dim=1).tolist() == [3, 1, 3, 3]


def test_coming_batches_are_decoded_before_they_are_read(videos, tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "decode_file", view_decoder.augmented)
    frames = live(videos, tmp_path)
    order = [np.array(rows) for rows in ([3, 1], [0, 3, 3], [2], [1, 0])]
    plain = [frames.read(rows) for rows in order]
    decoded(tmp_path / "videos")
    threads = threading.active_count()
    with frames.prefetch(iter(order)):
        wait_for(lambda: (tmp_path / "videos" / "decoded.txt").exists())
        wait_for(lambda: len((tmp_path / "videos" / "decoded.txt").read_text().splitlines()) == 7)
        for rows, (pixels, mask) in zip(order, plain, strict=True):
            found = frames.read(rows)
            assert torch.equal(found[0], pixels) and torch.equal(found[1], mask)
        assert len(decoded(tmp_path / "videos")) == 7  # reading decoded nothing more
        frames.read([2])  # nor is reading something else forbidden, or reading on
        assert decoded(tmp_path / "videos") == ["v2 0"]
    assert threading.active_count() == threads


def test_something_else_may_be_read_in_between(videos, tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "decode_file", view_decoder.augmented)
    frames = live(videos, tmp_path)
    with frames.prefetch([np.array([0]), np.array([1])]):
        assert torch.equal(frames.read([0])[0], frames.read([0])[0])
        with frames.prefetch([np.array([3]), np.array([2])]):  # as validation does in the middle of training
            inner = frames.read([3])[0]
        outer = frames.read([1])[0]
        lines = decoded(tmp_path / "videos")
        assert lines.count("v1 0") == 1 and lines.count("v3 0") == 1 and lines.count("v0 0") == 2
    assert torch.equal(inner, frames.read([3])[0]) and torch.equal(outer, frames.read([1])[0])


def test_leaving_early_stops_the_decoders(videos, tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "decode_file", view_decoder.augmented)
    frames = live(videos, tmp_path)
    endless = (np.array([number % 4]) for number in iter(int, 1))
    with pytest.raises(KeyboardInterrupt), frames.prefetch(endless):
        frames.read([0])
        raise KeyboardInterrupt
    decoded(tmp_path / "videos")
    time.sleep(0.2)
    assert decoded(tmp_path / "videos") == [] and not frames._prefetchers


@pytest.mark.parametrize("announced", [False, True])
@pytest.mark.parametrize(
    ("name", "error", "hint"),
    [
        ("bad", "bad.mp4: is not a video", "fix the file"),
        ("dies", "its process died", "frames.memory_limit"),
        ("slow", "took longer than 1", "frames.time_limit"),
    ],
)
def test_a_video_that_fails_stops_with_one_line_that_names_it(tmp_path, monkeypatch, name, error, hint, announced):
    monkeypatch.setattr(workers, "decode_file", view_decoder.failing)
    (tmp_path / f"{name}.mp4").write_bytes(b"x")
    (tmp_path / "good.mp4").write_bytes(b"x")
    videos = [Video("one", tmp_path / "good.mp4"), Video("two", tmp_path / f"{name}.mp4")]
    frames = live(videos, tmp_path, replace(HOW, time_limit=1))
    with frames.prefetch([np.array([0]), np.array([0, 1])] if announced else []):
        assert frames.read([0])[0].eq(7).all()
        with pytest.raises(DataError) as caught:
            frames.read([0, 1])
    message = str(caught.value)
    assert message.startswith(f"video 'two': {tmp_path / name}.mp4: ") and error in message and hint in message
    assert "frames.store=disk" in message and "data.max_missing" in message and "\n" not in message


def test_a_transient_failure_is_retried_once(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "decode_file", view_decoder.failing)
    (tmp_path / "once.mp4").write_bytes(b"x")
    assert live([Video("one", tmp_path / "once.mp4")], tmp_path).read([0])[0].eq(7).all()


def test_a_partially_decoded_video_is_logged_once(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(workers, "decode_file", view_decoder.failing)
    (tmp_path / "half.mp4").write_bytes(b"x")
    frames = live([Video("one", tmp_path / "half.mp4")], tmp_path, replace(HOW, on_error="use_decodable"))
    with caplog.at_level("INFO"):
        for _ in range(2):
            assert frames.read([0])[1].tolist() == [[True, False, False]]
    assert len(caplog.messages) == 1 and "one is partially decoded" in caplog.messages[0]


def test_an_error_in_the_prefetched_batches_reaches_the_reader(videos, tmp_path):
    def broken():
        yield np.array([0])
        raise DataError("no more batches")

    frames = live(videos, tmp_path)
    with frames.prefetch(broken()), pytest.raises(DataError, match="no more batches"):
        frames.read([0])
        frames.read([1])


def wait_for(condition):
    end = time.monotonic() + 20
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    assert condition()


def test_a_file_that_is_replaced_during_a_run_is_noticed(videos, tmp_path):
    decodes = live(videos, tmp_path)
    assert decodes.read([1])[1].any()
    write_video(videos[1].path, frames=30, seed=9)
    assert decodes.read([0])[1].any()
    with pytest.raises(DataError, match=r"video 'v1': .*v1\.mp4 changed since this run began"):
        decodes.read([1])
