import json
import os
import pickle
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from video_files import cut_file, write_video

from teachclip.data.annotations import files
from teachclip.data.annotations.records import Video
from teachclip.data.frames import store as frames
from teachclip.data.frames.store import build_frame_store
from teachclip.data.video import workers
from teachclip.data.video.decode import decode_frames
from teachclip.data.video.sampling import FrameSampling
from teachclip.data.video.transform import FrameTransform
from teachclip.data.video.workers import Decoding, decode_file
from teachclip.errors import DataError, StoreError, VideoError
from teachclip.store.array_store import ArrayStore
from teachclip.store.files import file_hash

ROOT = Path(__file__).parents[3]
SAMPLING = FrameSampling("per_second", 4)
REAL_DECODE = decode_file


def logging_decode(path, *options):
    """Leave a line for every file that a worker decodes."""
    with open(Path(path).parent / "decoded.txt", "a") as file:
        file.write(Path(path).stem + "\n")
    return REAL_DECODE(path, *options)


def bad_decode(path, *options):
    """Hang or die at some files."""
    if Path(path).stem == "hang":
        time.sleep(1000)
    if Path(path).stem == "exits":
        os._exit(7)
    return REAL_DECODE(path, *options)


def slow_decode(path, *options):
    """Take long enough for a test to kill the run in the middle."""
    time.sleep(0.1)
    return logging_decode(path, *options)


@pytest.fixture
def videos(tmp_path):
    (tmp_path / "videos").mkdir()
    names = [f"video {number} é" for number in range(6)]
    return [
        Video(name, write_video(tmp_path / "videos" / f"{name}.mp4", frames=15 + 10 * number, seed=number))
        for number, name in enumerate(names)
    ]


def build(videos, tmp_path, **options):
    how = {"sampling": SAMPLING, "size": 32, "workers": 2, "time_limit": 30, **options}
    where = {name: how.pop(name) for name in ("path", "hashes", "view", "progress") if name in how}
    size = how.pop("size")
    transform = FrameTransform(size) if isinstance(size, int) else size
    return build_frame_store(
        videos, Decoding(transform=transform, **how), **{"path": tmp_path / "store", "progress": False, **where}
    )


def decoded(tmp_path):
    log = tmp_path / "videos" / "decoded.txt"
    return sorted(log.read_text().splitlines()) if log.exists() else []


def test_store_holds_the_frames_of_every_video(videos, tmp_path):
    store = build(videos, tmp_path)
    pixels, mask = store.read([5, 0])
    assert pixels.dtype == torch.uint8 and pixels.shape == (2, 4, 3, 32, 32)
    assert mask.tolist() == [[True] * 4, [True, True, False, False]]
    assert torch.equal(pixels[0], torch.from_numpy(decode_file(str(videos[5].path), SAMPLING, 32)))
    assert torch.equal(pixels[1, :2], torch.from_numpy(decode_file(str(videos[0].path), SAMPLING, 32)))
    assert not pixels[1, 2:].any()
    assert store.failures == {} and store.store.verify() == []


def test_another_transform_makes_another_store_and_shares_the_hashes(videos, tmp_path, monkeypatch):
    hashes = tmp_path / "hashes.json"
    build(videos, tmp_path, path=tmp_path / "cropped", hashes=hashes)
    monkeypatch.setattr(files, "file_hash", None)  # a second store of the same files reads none to hash it
    transform = FrameTransform(16, "stretch", "bilinear")
    store = build(videos, tmp_path, path=tmp_path / "stretched", hashes=hashes, size=transform)
    expected = transform(decode_frames(videos[5].path, SAMPLING))
    assert torch.equal(store.read([5])[0][0], expected)
    assert store.store.provenance["transform"] == "stretched by PIL bilinear"
    with pytest.raises(StoreError, match="transform"):
        build(videos, tmp_path, path=tmp_path / "stretched", hashes=hashes, size=16)


def test_videos_are_found_by_id(videos, tmp_path):
    store = build(videos, tmp_path)
    assert store.rows_of([videos[3].id, videos[1].id]).tolist() == [3, 1]
    with pytest.raises(StoreError, match="no frames of video 'other'"):
        store.rows_of(["other"])


def test_unreadable_videos_are_named_and_never_read_as_zeros(videos, tmp_path):
    folder = tmp_path / "videos"
    (folder / "junk.mp4").write_bytes(b"junk" * 100)
    (folder / "empty.mp4").touch()
    cut_file(write_video(folder / "whole.mp4", frames=60, faststart=True), folder / "cut.mp4", share=0.5)
    bad = [Video(name, folder / f"{name}.mp4") for name in ("junk", "empty", "cut", "vanished")]
    store = build([videos[0], *bad, videos[1]], tmp_path)
    assert list(store.failures) == ["junk", "empty", "cut", "vanished"]
    errors = {"junk": "cannot be opened", "empty": "0 bytes", "cut": "is truncated", "vanished": "does not exist"}
    for name, error in errors.items():
        assert error in store.failures[name] and f"{name}.mp4" in store.failures[name]
    assert store.read([0, 5])[1].any(dim=1).all()
    with pytest.raises(StoreError, match=r"row 2 .*empty\.mp4"):
        store.read([0, 2])


def test_a_hang_or_crash_costs_one_video(videos, tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "decode_file", bad_decode)
    folder = tmp_path / "videos"
    bad = [Video(name, write_video(folder / f"{name}.mp4", seed=50 + len(name))) for name in ("hang", "exits")]
    store = build([*bad, *videos], tmp_path, time_limit=6)
    assert store.failures == {"hang": "took longer than 6 seconds", "exits": "its process died (exit status 7)"}
    assert store.read(store.rows_of(video.id for video in videos))[1].any(dim=1).all()


def test_second_run_decodes_and_hashes_nothing(videos, tmp_path, monkeypatch):
    first = build(videos, tmp_path)
    monkeypatch.setattr(workers, "guarded_map", None)
    monkeypatch.setattr(files, "file_hash", None)
    assert torch.equal(build(videos, tmp_path).read([1])[0], first.read([1])[0])


def test_interrupted_run_goes_on_where_it_stopped(videos, tmp_path, monkeypatch):
    monkeypatch.setattr(frames, "SHARD_ROWS", 2)
    monkeypatch.setattr(workers, "decode_file", logging_decode)
    write_shard = ArrayStore.write_shard

    def interrupt(self, shard, *arguments, **options):
        if shard == 1:
            raise KeyboardInterrupt
        write_shard(self, shard, *arguments, **options)

    monkeypatch.setattr(ArrayStore, "write_shard", interrupt)
    with pytest.raises(KeyboardInterrupt):
        build(videos, tmp_path)
    with pytest.raises(StoreError, match="2 of 3 shards are missing"):
        ArrayStore.open(tmp_path / "store")
    (tmp_path / "videos" / "decoded.txt").unlink()
    monkeypatch.setattr(ArrayStore, "write_shard", write_shard)
    store = build(videos, tmp_path)
    assert decoded(tmp_path) == [video.id for video in videos[2:]]
    for row, video in enumerate(videos):
        found = torch.from_numpy(decode_file(str(video.path), SAMPLING, 32))
        assert torch.equal(store.read([row])[0][0, : len(found)], found)


KILLED = """
import sys
from pathlib import Path
import test_frames
from teachclip.data.video import workers
from teachclip.data.frames import store as frames
if __name__ == "__main__":
    frames.SHARD_ROWS, workers.decode_file = 1, test_frames.slow_decode
    folder = Path(sys.argv[1])
    videos = [frames.Video(path.stem, path) for path in sorted((folder / "videos").glob("*.mp4"))]
    test_frames.build(videos, folder, workers=1)
"""


def test_killed_run_leaves_a_store_that_a_second_run_completes(videos, tmp_path):
    (tmp_path / "run.py").write_text(KILLED)
    paths = [str(place) for place in (Path(__file__).parent, ROOT / "tests" / "support", ROOT)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    run = subprocess.Popen([sys.executable, tmp_path / "run.py", tmp_path], env=environment, stderr=subprocess.PIPE)
    end = time.monotonic() + 40
    while len(decoded(tmp_path)) < 3 and time.monotonic() < end and run.poll() is None:
        time.sleep(0.02)
    run.send_signal(signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL, run.stderr.read()
    started = len(decoded(tmp_path))
    assert 3 <= started < len(videos)
    store = build(videos, tmp_path)
    assert store.store.verify() == [] and len(ArrayStore.open(tmp_path / "store").missing_shards()) == 0
    for row, video in enumerate(videos):
        found = torch.from_numpy(decode_file(str(video.path), SAMPLING, 32))
        assert torch.equal(store.read([row])[0][0, : len(found)], found)


def test_a_replaced_video_is_decoded_again_alone(videos, tmp_path, monkeypatch, caplog):
    first = build(videos, tmp_path)
    ids = [video.id for video in videos if video != videos[2]]
    kept = first.read(first.rows_of(ids))[0]
    original = videos[2].path.read_bytes()
    content = bytearray(original)
    content[-1] ^= 255  # of the same size
    videos[2].path.write_bytes(content)
    monkeypatch.setattr(workers, "decode_file", logging_decode)
    with caplog.at_level("INFO"):
        store = build(videos, tmp_path)
    assert decoded(tmp_path) == [videos[2].id]
    assert f"{tmp_path / 'store'}: 1 videos are new, 1 left, 5 kept" in caplog.messages
    assert torch.equal(store.read(store.rows_of(ids))[0], kept)
    assert store.rows_of([videos[2].id]).tolist() == [6] and store.store.verify() == []
    videos[2].path.write_bytes(original)
    assert build(videos, tmp_path).rows_of([videos[2].id]).tolist() == [2]  # as it was: its row is still there
    assert decoded(tmp_path) == [videos[2].id]


def test_a_vanished_video_is_a_failure(videos, tmp_path):
    build(videos, tmp_path)
    videos[4].path.unlink()
    store = build(videos, tmp_path)
    assert list(store.failures) == [videos[4].id] and "does not exist" in store.failures[videos[4].id]


def test_touched_moved_or_copied_videos_are_the_same(videos, tmp_path):
    build(videos, tmp_path)
    os.utime(videos[0].path, (1, 1))
    (tmp_path / "videos").rename(tmp_path / "moved")
    build([Video(video.id, tmp_path / "moved" / video.path.name) for video in videos], tmp_path)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"sampling": FrameSampling("intervals", 4)}, "sampling.kind"),
        ({"sampling": FrameSampling("per_second", 3)}, "sampling.count"),
        ({"size": 16}, "size"),
    ],
    ids=["kind", "count", "size"],
)
def test_other_settings_are_refused_by_name(videos, tmp_path, options, named):
    build(videos[:1], tmp_path)
    with pytest.raises(StoreError, match=named):
        build(videos[:1], tmp_path, **options)


def test_new_videos_are_decoded_alone(videos, tmp_path, monkeypatch, caplog):
    first = build(videos[:4], tmp_path)
    before = {path.name: path.read_bytes() for path in (tmp_path / "store").glob("*-00000.*")}
    monkeypatch.setattr(workers, "decode_file", logging_decode)
    with caplog.at_level("INFO"):
        store = build([videos[5], *videos[1:5]], tmp_path)
    assert decoded(tmp_path) == [videos[4].id, videos[5].id]
    assert f"{tmp_path / 'store'}: 2 videos are new, 1 left, 3 kept" in caplog.messages
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "store").glob("*-00000.*")}
    assert store.store.verify() == [] and store.failures == {}
    for video in [videos[5], *videos[1:5]]:
        found = torch.from_numpy(decode_file(str(video.path), SAMPLING, 32))
        assert torch.equal(store.read(store.rows_of([video.id]))[0][0, : len(found)], found)
    assert torch.equal(first.read([0])[0], build(videos[:1], tmp_path).read([0])[0])  # and it is back
    with pytest.raises(StoreError, match="no frames of video"):
        store.rows_of([videos[0].id])


def test_equal_files_share_a_row(videos, tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "decode_file", logging_decode)
    copy = Video("copy", tmp_path / "videos" / "copy.mp4")
    copy.path.write_bytes(videos[1].path.read_bytes())
    store = build([*videos[:2], copy], tmp_path)
    assert store.rows_of(["copy", videos[1].id]).tolist() == [1, 1] and len(decoded(tmp_path)) == 2
    for path in (copy.path, videos[1].path):
        path.write_bytes(b"junk" * 100)
    assert list(build([*videos[:2], copy], tmp_path).failures) == [videos[1].id, "copy"]


def test_a_complete_store_serves_fewer_videos_in_any_order_and_decodes_nothing(videos, tmp_path, monkeypatch):
    whole = build(videos, tmp_path)
    monkeypatch.setattr(workers, "decode_file", logging_decode)
    kept = [videos[2], videos[0]]
    videos[1].path.unlink()  # neither listed nor there any more
    fewer = build(kept, tmp_path)
    rows = fewer.rows_of([video.id for video in kept])
    for row, video in zip(rows, kept, strict=True):
        assert torch.equal(fewer.read([row])[0], whole.read(whole.rows_of([video.id]))[0])
    ids = [video.id for video in kept]
    assert fewer.provenance_of(ids) == whole.provenance_of(ids)
    assert decoded(tmp_path) == []


def test_a_complete_store_of_augmented_views_serves_fewer_videos(videos, tmp_path):
    whole, fewer = build(videos, tmp_path, view=1), build(videos[::2], tmp_path, view=1)
    row = fewer.rows_of([videos[2].id])
    assert torch.equal(fewer.read(row)[0], whole.read(row)[0])


def test_what_an_interrupted_run_did_not_decode_is_planned_anew(videos, tmp_path, monkeypatch):
    monkeypatch.setattr(frames, "SHARD_ROWS", 1)
    whole = build(videos, tmp_path)
    pixels = whole.read(slice(None))[0]
    for shard in (1, 4, 5):
        whole.store.discard(shard)
    monkeypatch.setattr(workers, "decode_file", logging_decode)
    store = build([videos[0], videos[2]], tmp_path)  # the shard between those that are there is of one of these now
    assert store.store.rows == 4 and store.store.verify() == []
    assert set(decoded(tmp_path)) <= {videos[0].id, videos[2].id}
    assert torch.equal(store.read(store.rows_of([videos[2].id]))[0], pixels[2:3])
    again = build(videos, tmp_path)
    assert {videos[number].id for number in (1, 4, 5)} <= set(decoded(tmp_path))
    for row, video in enumerate(videos):
        assert torch.equal(again.read(again.rows_of([video.id]))[0], pixels[row : row + 1])


def test_damaged_or_useless_cache_of_hashes_is_no_error(videos, tmp_path):
    build(videos, tmp_path)
    for content in (b"{", b"[1]", json.dumps({str(videos[0].path): "x"}).encode()):
        (tmp_path / "store" / "file-hashes.json").write_bytes(content)
        build(videos, tmp_path)


def test_several_runs_at_once_do_not_harm_the_store(videos, tmp_path, monkeypatch):
    monkeypatch.setattr(frames, "SHARD_ROWS", 1)
    with ThreadPoolExecutor(3) as executor:
        stores = list(executor.map(lambda _: build(videos, tmp_path, workers=1), range(3)))
    assert stores[0].store.verify() == []
    for row, video in enumerate(videos):
        found = torch.from_numpy(decode_file(str(video.path), SAMPLING, 32))
        assert torch.equal(stores[0].read([row])[0][0, : len(found)], found)


def test_circumstances_of_some_videos_do_not_depend_on_the_others(videos, tmp_path):
    ids = [video.id for video in videos]
    few = build(videos[1:3], tmp_path / "few")
    every = build(videos, tmp_path / "every")
    assert few.provenance_of(ids[1:3]) == every.provenance_of(ids[1:3])
    assert every.provenance_of(ids[1:3]) != every.provenance_of(ids[2:0:-1])
    assert json.dumps(every.provenance_of(ids))


def test_store_travels_to_other_processes(videos, tmp_path):
    store = build(videos[:2], tmp_path)
    assert torch.equal(pickle.loads(pickle.dumps(store)).read([1])[0], store.read([1])[0])


def test_progress_goes_to_stderr_or_nowhere(videos, tmp_path, capfd):
    (tmp_path / "videos" / "junk.mp4").write_bytes(b"junk" * 100)
    bad = [Video("junk", tmp_path / "videos" / "junk.mp4")]
    build([*videos[:2], *bad], tmp_path / "quiet")
    assert capfd.readouterr() == ("", "")
    build([*videos[:2], *bad], tmp_path / "shown", progress=True)
    output, errors = capfd.readouterr()
    assert output == "" and "decode" in errors and "3/3" in errors and "ERROR" not in errors


def test_no_videos_are_refused(tmp_path):
    with pytest.raises(DataError, match="no videos to decode"):
        build([], tmp_path)


def damaged_decode(path, sampling, size, start, end, on_error, view):
    """A decoder that decodes two frames of a video called half and none of one called lost."""
    with open(Path(path).parent / "decoded.txt", "a") as file:
        file.write(f"{Path(path).stem} {on_error}\n")
    if Path(path).stem == "lost":
        raise VideoError(f"{path}: is no video")
    if Path(path).stem == "half":
        if on_error == "skip":
            raise VideoError(f"{path}: decoding stops after frame 7")
        return REAL_DECODE(path, sampling, size)[:2]
    return REAL_DECODE(path, sampling, size)


def span_decode(path, sampling, size, start, end, on_error, view):
    """A decoder whose pixels encode the requested span."""
    return np.full((sampling.count, 3, size.size, size.size), 10 * start + end, np.uint8)


def test_a_repaired_video_is_decoded_again_and_no_other(videos, tmp_path, monkeypatch):
    monkeypatch.setattr(frames, "SHARD_ROWS", 3)
    good = videos[2].path.read_bytes()
    for number in (2, 5):
        videos[number].path.write_bytes(b"junk" * (100 + number))
    first = build(videos, tmp_path)
    assert list(first.failures) == [videos[2].id, videos[5].id]
    kept = first.read([0, 1, 3, 4])[0]
    videos[2].path.write_bytes(good)
    monkeypatch.setattr(workers, "decode_file", logging_decode)
    store = build(videos, tmp_path)
    assert decoded(tmp_path) == [videos[2].id]
    assert list(store.failures) == [videos[5].id] and store.store.verify() == []
    assert torch.equal(store.read([0, 1, 3, 4])[0], kept)
    found = torch.from_numpy(decode_file(str(videos[2].path), SAMPLING, 32))
    assert torch.equal(store.read(store.rows_of([videos[2].id]))[0][0, : len(found)], found)
    fact = store.provenance_of([videos[2].id])["videos"][videos[2].id]
    assert fact["bytes"] == len(good) and fact["sha256"] == file_hash(videos[2].path)
    build(videos, tmp_path)
    assert decoded(tmp_path) == [videos[2].id]


def test_a_video_that_becomes_unreadable_in_another_way_stays_a_failure(videos, tmp_path):
    videos[1].path.write_bytes(b"junk" * 100)
    build(videos, tmp_path)
    videos[1].path.write_bytes(b"")
    assert "0 bytes" in build(videos, tmp_path).failures[videos[1].id]


def test_a_crash_while_a_retried_video_is_written_loses_only_that_shard(videos, tmp_path, monkeypatch):
    monkeypatch.setattr(frames, "SHARD_ROWS", 3)
    monkeypatch.setattr(workers, "decode_file", bad_decode)
    rows = [*videos[:5], Video("exits", write_video(tmp_path / "videos" / "exits.mp4", seed=50))]
    assert list(build(rows, tmp_path).failures) == ["exits"]
    monkeypatch.setattr(workers, "decode_file", logging_decode)
    write_shard = ArrayStore.write_shard
    monkeypatch.setattr(ArrayStore, "write_shard", lambda *arguments, **options: (_ for _ in ()).throw(MemoryError))
    with pytest.raises(MemoryError):
        build(rows, tmp_path)
    monkeypatch.setattr(ArrayStore, "write_shard", write_shard)
    (tmp_path / "videos" / "decoded.txt").unlink()
    store = build(rows, tmp_path)
    assert decoded(tmp_path) == sorted(video.id for video in rows[3:])
    assert store.failures == {} and store.store.verify() == []


def test_the_decodable_frames_of_a_damaged_video_are_used_only_on_request(videos, tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "decode_file", damaged_decode)
    folder = tmp_path / "videos"
    bad = [
        Video(name, write_video(folder / f"{name}.mp4", frames=40, seed=ord(name[0]))) for name in ("half", "lost")
    ]
    rows = [*bad, videos[3]]
    store = build(rows, tmp_path)
    assert sorted(store.failures) == ["half", "lost"] and store.partially_decoded == {}
    (folder / "decoded.txt").unlink()
    store = build(rows, tmp_path, on_error="use_decodable")
    assert decoded(tmp_path) == ["half skip", "half use_decodable", "lost skip", "lost use_decodable"]
    assert list(store.failures) == ["lost"]
    assert (
        list(store.partially_decoded) == ["half"]
        and "decoding stops after frame 7" in store.partially_decoded["half"]
    )
    taken, mask = store.read([0])
    assert mask.tolist() == [[True, True, False, False]]
    assert torch.equal(taken[0, :2], torch.from_numpy(decode_file(str(bad[0].path), SAMPLING, 32))[:2])
    (folder / "decoded.txt").unlink()
    assert build(rows, tmp_path, on_error="use_decodable").partially_decoded == store.partially_decoded
    again = build(rows, tmp_path)
    assert decoded(tmp_path) == []  # known by now, in both ways
    assert sorted(again.failures) == ["half", "lost"] and again.partially_decoded == {}
    with pytest.raises(StoreError, match=r"row 0 is a damaged video: .*decoding stops after frame 7"):
        again.read([0])
    write_video(bad[0].path, frames=41)  # repaired, as far as the store knows
    build(rows, tmp_path, on_error="use_decodable")
    assert decoded(tmp_path) == ["half skip", "half use_decodable"]


def test_parts_of_one_file_are_videos_of_their_own(videos, tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "decode_file", span_decode)
    hashed = []
    monkeypatch.setattr(files, "file_hash", lambda path, **limit: hashed.append(path) or file_hash(path))
    parts = [Video("a", videos[3].path, 1.0, 2.0), Video("b", videos[3].path, 2.0, 3.5)]
    store = build(parts, tmp_path)
    assert store.read([0, 1])[0][:, 0, 0, 0, 0].tolist() == [12, 23]
    assert len(hashed) == 1
    facts = store.provenance_of(["a", "b"])["videos"]
    assert facts["a"]["end"] == facts["b"]["start"] == 2.0 and facts["a"]["sha256"] == facts["b"]["sha256"]
    build(parts, tmp_path)
    longer = build([parts[0], Video("b", videos[3].path, 2.0, 4.0)], tmp_path)
    assert longer.read(longer.rows_of(["a", "b"]))[0][:, 0, 0, 0, 0].tolist() == [12, 24]
    whole = build([Video("a", videos[3].path, 0.0, 1.0)], tmp_path / "other").provenance_of(["a"])
    assert whole["videos"]["a"]["start"] == 0.0


def test_limits_reach_the_workers(videos, tmp_path, monkeypatch):
    options_used = {}
    real = workers.guarded_map

    def spy(function, items, *, memory_limit, **options):
        options_used.update(options, memory_limit=memory_limit)
        return real(function, items, **options)

    monkeypatch.setattr(workers, "guarded_map", spy)
    build(videos[:1], tmp_path, time_limit=17, memory_limit=10**9)
    assert options_used == {"workers": 2, "time_limit": 17, "memory_limit": 10**9}


def test_the_disk_space_is_logged_and_refused_if_it_is_not_free(videos, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(frames, "SHARD_ROWS", 2)
    row = 4 * 3 * 32 * 32 + 2
    free = [5 * row]
    monkeypatch.setattr(frames.shutil, "disk_usage", lambda path: SimpleNamespace(free=free[0]))
    with caplog.at_level("INFO"), pytest.raises(StoreError) as caught:
        build(videos, tmp_path)
    assert str(caught.value) == (
        f"{tmp_path / 'store'}: frames of 6 videos x 4 frames x 32^2 need 73.7 kB, but 61.5 kB are free there; free "
        "some space, choose fewer or smaller frames (frames.count, frames.size) or another folder (stores), or "
        "decode them whenever they are read (frames.store=none)"
    )
    assert not (tmp_path / "store" / "manifest.json").exists() and not caplog.messages
    free[0] = 6 * row
    with caplog.at_level("INFO"):
        build(videos, tmp_path)
    content = "frame store: 6 videos x 4 frames x 32^2: 73.7 kB"
    assert caplog.messages == [f"{content}, 73.7 kB free at {tmp_path / 'store'}"]
    ArrayStore.open(tmp_path / "store").discard(2)
    free[0] = 2 * row  # enough for what is missing
    caplog.clear()
    with caplog.at_level("INFO"):
        build(videos, tmp_path)
    assert caplog.messages == [f"{content} (24.6 kB of it still to write), 24.6 kB free at {tmp_path / 'store'}"]
    free[0] = 0
    caplog.clear()
    with caplog.at_level("INFO"):
        build(videos, tmp_path)
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("size", "text"),
    [(18_063_360_000, "18.1 GB"), (512 * 10**9, "512 GB"), (1234 * 10**9, "1,234 GB"), (160_000, "160 kB")],
)
def test_sizes_are_written_for_a_person(size, text):
    assert frames.size_text(size) == text


def replacing_decode(path, *options):
    """Another program replaces a file while it is decoded."""
    found = REAL_DECODE(path, *options)
    if Path(path).stem.endswith("1 é"):
        write_video(Path(path), frames=30, seed=50)
    return found


def test_a_video_that_is_replaced_between_hashing_and_decoding_is_noticed(videos, tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "decode_file", replacing_decode)
    store = build(videos[:3], tmp_path)
    assert (
        list(store.failures) == [videos[1].id]
        and "the file changed while it was decoded" in store.failures[videos[1].id]
    )
    monkeypatch.setattr(workers, "decode_file", REAL_DECODE)
    again = build(videos[:3], tmp_path)
    assert not again.failures, "the next run tries it again"
    assert again.provenance_of([videos[1].id])["videos"][videos[1].id]["sha256"] == file_hash(videos[1].path)


def special_files(folder):
    folder.mkdir()
    os.mkfifo(folder / "pipe.mp4")
    (folder / "zero.mp4").symlink_to("/dev/zero")
    (folder / "messages.mp4").symlink_to("/proc/kmsg")
    for name, size in (("huge.mp4", 1 << 40), ("hole.mp4", 1 << 33)):
        with open(folder / name, "wb") as file:
            file.truncate(size)
    return {
        "pipe": "is a device or a pipe",
        "zero": "is a device or a pipe",
        "messages": "is empty" if os.path.exists("/proc/kmsg") else "which does not exist",
        "huge": "has 1,100 GB, a video at most 275",
        "hole": "has 9 GB, of which next to nothing is stored",
    }


def test_special_files_are_refused_at_once(videos, tmp_path):
    errors = special_files(tmp_path / "special")
    special = [Video(name, tmp_path / "special" / f"{name}.mp4") for name in errors]
    started = time.monotonic()
    store = build([videos[0], *special], tmp_path)
    assert time.monotonic() - started < 20
    assert store.failures.keys() == errors.keys()
    for name, error in errors.items():
        assert error in store.failures[name]


def test_a_file_that_cannot_be_hashed_in_time_is_not_used(videos, tmp_path, monkeypatch):
    def slow(path, *, time_limit):
        assert time_limit == 30
        raise StoreError(f"{path} cannot be read in {time_limit:g} seconds")

    monkeypatch.setattr(files, "file_hash", slow)
    store = build(videos[:1], tmp_path)
    assert store.failures[videos[0].id] == "took longer than frames.time_limit to hash"
    monkeypatch.setattr(files, "file_hash", file_hash)
    assert not build(videos[:1], tmp_path).failures


def test_hashing_has_a_time_limit(videos):
    with pytest.raises(StoreError, match="cannot be read in 0 seconds"):
        file_hash(videos[0].path, time_limit=0)
