import numpy as np
import pytest
import torch
import view_decoder
from video_files import write_video
from view_decoder import decoded

from teachclip.data.annotations.records import Video
from teachclip.data.frames import store as frames
from teachclip.data.frames.store import build_frame_store
from teachclip.data.frames.views import build_frame_views
from teachclip.data.video import workers
from teachclip.data.video.sampling import FrameSampling
from teachclip.data.video.transform import FrameTransform
from teachclip.data.video.workers import Decoding, decode_file
from teachclip.errors import StoreError
from teachclip.store.array_store import ArrayStore

HOW = Decoding(FrameSampling("intervals", 3), FrameTransform(16), workers=2)


@pytest.fixture
def videos(tmp_path):
    (tmp_path / "videos").mkdir()
    return [
        Video(f"v{number}", write_video(tmp_path / "videos" / f"v{number}.mp4", frames=12, seed=number))
        for number in range(4)
    ]


@pytest.fixture(autouse=True)
def augmentation(monkeypatch):
    monkeypatch.setattr(workers, "decode_file", view_decoder.augmented)


def build(videos, tmp_path, views, how=HOW, training=3):
    return build_frame_views(videos, videos[:training], how, path=tmp_path / "frames", views=views, progress=False)


def expected(video, view):
    if view == 0:
        return torch.from_numpy(decode_file(str(video.path), HOW.sampling, 16))
    fine = torch.from_numpy(decode_file(str(video.path), FrameSampling("intervals", 6), 16))
    return fine[(view + 1) % 2 :: 2][: 3 - (view == 2)]


def test_every_training_video_has_a_row_for_each_view(videos, tmp_path):
    frames = build(videos, tmp_path, 3)
    rows = frames.rows_of(["v2", "v0"], 3)
    assert rows.tolist() == [2, 0, 4 + 2, 4 + 0, 7 + 2, 7 + 0]
    pixels, mask = frames.read(rows[[5, 0, 3, 2, 1, 4, 4]])
    seen = [("v0", 2), ("v2", 0), ("v0", 1), ("v2", 1), ("v0", 0), ("v2", 2), ("v2", 2)]
    for video, valid, (name, view) in zip(pixels, mask, seen, strict=True):
        wanted = expected(videos[int(name[1])], view)
        assert torch.equal(video[: len(wanted)], wanted) and valid.tolist() == [True] * 2 + [view != 2]
    assert not torch.equal(expected(videos[0], 0), expected(videos[0], 1))
    assert frames.read(np.array([1, 3]))[0].shape == (2, 3, 3, 16, 16)
    assert frames.failures == {} and frames.verify() == []


def test_videos_that_do_not_train_have_view_0_alone(videos, tmp_path):
    frames = build(videos, tmp_path, 2)
    assert frames.rows_of(["v3"]).tolist() == [3]
    assert "v3 1" not in decoded(tmp_path / "videos")
    with pytest.raises(StoreError, match="no frames of video 'v3'"):
        frames.rows_of(["v3"], 2)


def test_more_views_need_no_more_of_those_that_are_there(videos, tmp_path):
    alone = build_frame_store(videos, HOW, path=tmp_path / "frames", progress=False)
    before = {path.name: path.read_bytes() for path in (tmp_path / "frames").iterdir()}
    decoded(tmp_path / "videos")
    two = build(videos, tmp_path, 2)
    assert decoded(tmp_path / "videos") == ["v0 1", "v1 1", "v2 1"]
    build(videos, tmp_path, 3)
    assert decoded(tmp_path / "videos") == ["v0 2", "v1 2", "v2 2"]
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "frames").iterdir()}
    ids = ["v0", "v1"]
    assert two.provenance_of(ids) == alone.provenance_of(ids)
    plain, augmented = two.provenance_of(ids), two.provenance_of(ids, 2)
    assert [fact.pop("name") for fact in augmented["videos"].values()] == ["v0.mp4", "v1.mp4"]
    assert augmented == {**plain, "views": 2, "augmentation_seed": 0}
    for view in (1, 2):
        held = ArrayStore.open(tmp_path / f"frames-view{view}").provenance
        assert held["view"] == view and "augmentation_seed" in held and "augmentation_seed" not in held["sampling"]


def test_a_renamed_file_is_augmented_differently(videos, tmp_path):
    build(videos, tmp_path, 2)
    decoded(tmp_path / "videos")
    moved = videos[1].path.rename(tmp_path / "videos" / "other.mp4")
    frames = build([videos[0], Video("v1", moved), *videos[2:]], tmp_path, 2)
    assert decoded(tmp_path / "videos") == ["other 1"]  # its view 0 does not depend on the name
    assert frames.rows_of(["v0", "v1"], 2).tolist() == [0, 1, 4 + 0, 4 + 3]


def test_a_video_that_fails_in_one_view_is_a_failure(videos, tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "decode_file", fails_in_view_1)
    frames = build(videos, tmp_path, 2)
    assert list(frames.failures) == ["v1"] and "view 1 of" in frames.failures["v1"]


def fails_in_view_1(path, sampling, size, start, end, on_error, view):
    if view == 1 and "v1" in path:
        raise view_decoder.VideoError(f"view 1 of {path}")
    return view_decoder.augmented(path, sampling, size, start, end, on_error, view)


def test_room_for_all_views_is_asked_for_before_the_first_is_decoded(videos, tmp_path, monkeypatch, caplog):
    row = 3 * 3 * 16 * 16 + 2
    free = [10 * row - 1]
    monkeypatch.setattr(frames.shutil, "disk_usage", lambda path: type("Usage", (), {"free": free[0]}))
    what = "4 videos and 2 more views of 3 x 3 frames x 16^2"
    with pytest.raises(StoreError, match=f"frames of {what.replace('^', '.')} need 23.1 kB, but"):
        build(videos, tmp_path, 3)
    assert decoded(tmp_path / "videos") == []
    free[0] += 1
    with caplog.at_level("INFO"):
        build(videos, tmp_path, 3)
    assert caplog.messages[0].startswith(f"frame store: {what}: 23.1 kB, 23.1 kB free at")
    caplog.clear()
    with caplog.at_level("INFO"):
        build(videos, tmp_path, 3)
    assert caplog.messages == []
