import json
import os
import pickle
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from video_files import cut_file, write_video

from teachclip.data import file_facts, frames
from teachclip.data.catalog import Video
from teachclip.data.frame_plans import FramePlan
from teachclip.data.frames import FrameStore, build_frame_store, decode_file
from teachclip.data.transform import FrameTransform
from teachclip.data.video import decode_frames
from teachclip.errors import DataError, StoreError
from teachclip.store import ArrayStore

PLAN = FramePlan("per_second", 4)
REAL_DECODE = decode_file


def logging_decode(path, plan, size):
    """Leave a line for every file that a worker decodes."""
    with open(Path(path).parent / "decoded.txt", "a") as file:
        file.write(Path(path).stem + "\n")
    return REAL_DECODE(path, plan, size)


def bad_decode(path, plan, size):
    """Hang or die at some files."""
    if Path(path).stem == "hang":
        time.sleep(1000)
    if Path(path).stem == "exit":
        os._exit(7)
    return REAL_DECODE(path, plan, size)


def slow_decode(path, plan, size):
    """Take long enough for a test to kill the run in the middle."""
    time.sleep(0.1)
    return logging_decode(path, plan, size)


@pytest.fixture
def videos(tmp_path):
    (tmp_path / "videos").mkdir()
    names = [f"video {number} é" for number in range(6)]
    return [
        Video(name, write_video(tmp_path / "videos" / f"{name}.mp4", frames=15 + 10 * number, seed=number))
        for number, name in enumerate(names)
    ]


def build(videos, tmp_path, **options):
    settings = {"plan": PLAN, "size": 32, "workers": 2, "time_limit": 30, "progress": False, **options}
    return build_frame_store(videos, **{"path": tmp_path / "store", **settings})


def decoded(tmp_path):
    log = tmp_path / "videos" / "decoded.txt"
    return sorted(log.read_text().splitlines()) if log.exists() else []


def test_store_holds_the_frames_of_every_video(videos, tmp_path):
    store = build(videos, tmp_path)
    pictures, mask = store.read([5, 0])
    assert pictures.dtype == torch.uint8 and pictures.shape == (2, 4, 3, 32, 32)
    assert mask.tolist() == [[True] * 4, [True, True, False, False]]
    assert torch.equal(pictures[0], torch.from_numpy(decode_file(str(videos[5].path), PLAN, 32)))
    assert torch.equal(pictures[1, :2], torch.from_numpy(decode_file(str(videos[0].path), PLAN, 32)))
    assert not pictures[1, 2:].any()
    assert store.failures == {} and store.store.verify() == []


def test_another_transform_makes_another_store_and_shares_the_hashes(videos, tmp_path, monkeypatch):
    hashes = tmp_path / "hashes.json"
    build(videos, tmp_path, path=tmp_path / "cropped", hashes=hashes)
    monkeypatch.setattr(file_facts, "file_hash", None)  # a second store of the same files reads none to hash it
    transform = FrameTransform(16, "stretch", "bilinear")
    store = build(videos, tmp_path, path=tmp_path / "stretched", hashes=hashes, size=transform)
    expected = transform(decode_frames(videos[5].path, PLAN))
    assert torch.equal(store.read([5])[0][0], expected)
    assert store.store.circumstances["transform"] == "stretched by PIL bilinear"
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
    for name, reason in [("junk", "no video"), ("empty", "0 bytes"), ("cut", "PyAV"), ("vanished", "does not exist")]:
        assert reason in store.failures[name] and f"{name}.mp4" in store.failures[name]
    assert store.read([0, 5])[1].any(dim=1).all()
    with pytest.raises(StoreError, match=r"row 2 .*empty\.mp4"):
        store.read([0, 2])


def test_a_hang_or_crash_costs_one_video(videos, tmp_path, monkeypatch):
    monkeypatch.setattr(frames, "decode_file", bad_decode)
    folder = tmp_path / "videos"
    bad = [Video(name, write_video(folder / f"{name}.mp4")) for name in ("hang", "exit")]
    store = build([*bad, *videos], tmp_path, time_limit=6)
    assert store.failures == {"hang": "took longer than 6 seconds", "exit": "its process died (exit status 7)"}
    assert store.read(store.rows_of(video.id for video in videos))[1].any(dim=1).all()


def test_second_run_decodes_and_hashes_nothing(videos, tmp_path, monkeypatch):
    first = build(videos, tmp_path)
    monkeypatch.setattr(frames, "guarded_map", None)
    monkeypatch.setattr(file_facts, "file_hash", None)
    assert torch.equal(build(videos, tmp_path).read([1])[0], first.read([1])[0])


def test_interrupted_run_goes_on_where_it_stopped(videos, tmp_path, monkeypatch):
    monkeypatch.setattr(frames, "SHARD_ROWS", 2)
    monkeypatch.setattr(frames, "decode_file", logging_decode)
    write_shard = ArrayStore.write_shard

    def interrupt(self, shard, *arguments, **options):
        if shard == 1:
            raise KeyboardInterrupt
        write_shard(self, shard, *arguments, **options)

    monkeypatch.setattr(ArrayStore, "write_shard", interrupt)
    with pytest.raises(KeyboardInterrupt):
        build(videos, tmp_path)
    with pytest.raises(StoreError, match="2 of 3 shards are missing"):
        FrameStore.open(tmp_path / "store", videos)
    (tmp_path / "videos" / "decoded.txt").unlink()
    monkeypatch.setattr(ArrayStore, "write_shard", write_shard)
    store = build(videos, tmp_path)
    assert decoded(tmp_path) == [video.id for video in videos[2:]]
    for row, video in enumerate(videos):
        found = torch.from_numpy(decode_file(str(video.path), PLAN, 32))
        assert torch.equal(store.read([row])[0][0, : len(found)], found)


KILLED = """
import sys
from pathlib import Path
import test_frames
from teachclip.data import frames
if __name__ == "__main__":
    frames.SHARD_ROWS, frames.decode_file = 1, test_frames.slow_decode
    folder = Path(sys.argv[1])
    videos = [frames.Video(path.stem, path) for path in sorted((folder / "videos").glob("*.mp4"))]
    test_frames.build(videos, folder, workers=1)
"""


def test_killed_run_leaves_a_store_that_a_second_run_completes(videos, tmp_path):
    (tmp_path / "run.py").write_text(KILLED)
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]
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
        found = torch.from_numpy(decode_file(str(video.path), PLAN, 32))
        assert torch.equal(store.read([row])[0][0, : len(found)], found)


def test_changed_video_is_refused_by_name(videos, tmp_path):
    build(videos, tmp_path)
    write_video(videos[2].path, frames=35, seed=99)
    with pytest.raises(StoreError, match=rf"videos\.{videos[2].id}\.(bytes|sha256)") as caught:
        build(videos, tmp_path)
    assert videos[1].id not in str(caught.value)


def test_changed_content_of_the_same_size_is_noticed(videos, tmp_path):
    build(videos, tmp_path)
    content = bytearray(videos[2].path.read_bytes())
    content[-1] ^= 255
    videos[2].path.write_bytes(content)
    with pytest.raises(StoreError, match=rf"videos\.{videos[2].id}\.sha256"):
        build(videos, tmp_path)


def test_touched_moved_or_copied_videos_are_the_same(videos, tmp_path):
    build(videos, tmp_path)
    os.utime(videos[0].path, (1, 1))
    (tmp_path / "videos").rename(tmp_path / "moved")
    build([Video(video.id, tmp_path / "moved" / video.path.name) for video in videos], tmp_path)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"plan": FramePlan("intervals", 4)}, "plan.kind"),
        ({"plan": FramePlan("per_second", 3)}, "plan.count"),
        ({"size": 16}, "size"),
    ],
    ids=["kind", "count", "size"],
)
def test_other_settings_are_refused_by_name(videos, tmp_path, options, named):
    build(videos[:1], tmp_path)
    with pytest.raises(StoreError, match=named):
        build(videos[:1], tmp_path, **options)


def test_other_videos_or_another_order_are_refused(videos, tmp_path):
    build(videos[:2], tmp_path)
    with pytest.raises(StoreError, match="made under other circumstances"):
        build(videos[:3], tmp_path)
    with pytest.raises(StoreError, match="row"):
        build(videos[1::-1], tmp_path)
    with pytest.raises(StoreError, match="other videos"):
        FrameStore.open(tmp_path / "store", videos[1::-1])
    assert FrameStore.open(tmp_path / "store", videos[:2]).rows_of([videos[1].id]).tolist() == [1]


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
        found = torch.from_numpy(decode_file(str(video.path), PLAN, 32))
        assert torch.equal(stores[0].read([row])[0][0, : len(found)], found)


def test_circumstances_of_some_videos_do_not_depend_on_the_others(videos, tmp_path):
    ids = [video.id for video in videos]
    few = build(videos[1:3], tmp_path / "few")
    every = build(videos, tmp_path / "every")
    assert few.circumstances_of(ids[1:3]) == every.circumstances_of(ids[1:3])
    assert every.circumstances_of(ids[1:3]) != every.circumstances_of(ids[2:0:-1])
    assert json.dumps(every.circumstances_of(ids))


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
