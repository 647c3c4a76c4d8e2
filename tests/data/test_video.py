from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from golden import load_golden
from video_files import cut_file, read_number, turn_file, write_sound, write_video

from teachclip.data import video
from teachclip.data.video import FramePlan, decode_frames, plan_indices
from teachclip.errors import DataError, VideoError

PER_SECOND = FramePlan("per_second", 12)
INTERVALS = FramePlan("intervals", 12)
ROWS = load_golden("08_sampling")[0]["rows"]
INTERVAL_ROWS = load_golden("08_sampling")[0]["xpool_uniform"]
KEEP = {0: "head", 1: "tail", 2: "even"}


def golden_plan(row):
    rate = row["feature_framerate"] or int(row["fps"])  # the recorded 0 means every frame
    return FramePlan("per_second", row["max_frames"], rate=rate, keep=KEEP[row["slice_framepos"]])


@pytest.mark.parametrize("row", [row for row in ROWS if row.get("indices")])
def test_per_second_plan_equals_the_official_sampler(row):
    found = plan_indices(golden_plan(row), row["n_frames"], row["fps"], start=row["start"], end=row["end"])
    reverse = row["frame_order"] == 1  # recorded, but no published recipe turns the order of the frames round
    assert found == (row["indices"][::-1] if reverse else row["indices"])


@pytest.mark.parametrize("row", [row for row in ROWS if not row.get("indices")])
def test_per_second_plan_refuses_where_the_official_sampler_fails_or_finds_nothing(row):
    with pytest.raises(VideoError):
        plan_indices(golden_plan(row), row["n_frames"], row["fps"], start=row["start"], end=row["end"])


@pytest.mark.parametrize("row", INTERVAL_ROWS)
def test_intervals_plan_equals_the_official_sampler(row):
    found = plan_indices(FramePlan("intervals", row["num_frames"]), row["n_frames"], 25.0)
    assert found == row["frames_returned"]


@pytest.mark.parametrize("fps", [0.0, 0.5, float("nan"), float("inf")])
def test_per_second_plan_refuses_a_rate_below_one(fps):
    with pytest.raises(VideoError, match="frames per second"):
        plan_indices(PER_SECOND, 100, fps)


@pytest.mark.parametrize(
    "options", [{"kind": "uniform"}, {"count": 0}, {"rate": 0}, {"keep": "middle"}], ids=lambda item: next(iter(item))
)
def test_frame_plan_names_a_wrong_setting(options):
    with pytest.raises(DataError, match=next(iter(options))):
        FramePlan(**{"kind": "per_second", "count": 12, **options})


@pytest.mark.parametrize("fps", [8, 25, Fraction(30000, 1001)])
@pytest.mark.parametrize("plan", [PER_SECOND, INTERVALS], ids=["per_second", "intervals"])
def test_both_decoders_give_the_same_frames(tmp_path, fps, plan):
    path = str(write_video(tmp_path / "a.mp4", frames=100, fps=fps, width=96))
    first, second = video._decode_decord(path, plan), video._decode_pyav(path, plan)
    assert first.shape == second.shape == (min(12, len(plan_indices(plan, 100, float(fps)))), 64, 96, 3)
    # Both convert YUV to RGB with FFmpeg, of different versions: one step of 255 is allowed.
    assert np.abs(first.astype(int) - second).max() <= 1


@pytest.mark.parametrize("plan", [PER_SECOND, INTERVALS, FramePlan("intervals", 5)], ids=["second", "many", "few"])
@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("a.mp4", "libx264"),
        ("a.mkv", "libx264"),
        ("a.webm", "libvpx-vp9"),
        ("a.avi", "mpeg4"),
        # In these decord's seeking returns other frames than asked for, without an error.
        ("a.avi", "libx264"),
        ("a.mp4", "libx265"),
        ("a.ts", "libx264"),
    ],
)
def test_decoded_frames_are_exactly_those_of_the_plan(tmp_path, name, codec, plan):
    path = write_video(tmp_path / name, codec=codec, frames=200, fps=20)
    frames = decode_frames(path, plan).permute(0, 2, 3, 1).numpy()
    assert [read_number(frame) for frame in frames] == plan_indices(plan, 200, 20)


@pytest.mark.parametrize("plan", [PER_SECOND, INTERVALS], ids=["per_second", "intervals"])
def test_frames_hidden_by_an_edit_list_do_not_count(tmp_path, plan):
    path = write_video(tmp_path / "a.mp4", frames=120, fps=20, start=-13)
    frames = decode_frames(path, plan).permute(0, 2, 3, 1).numpy()
    assert [read_number(frame) for frame in frames] == [13 + index for index in plan_indices(plan, 107, 20)]


@pytest.mark.parametrize("decode", [video._decode_decord, video._decode_pyav], ids=["decord", "PyAV"])
def test_each_decoder_alone_finds_the_frames_of_the_plan(tmp_path, decode):
    path = str(write_video(tmp_path / "a.mp4", frames=40))
    assert [read_number(frame) for frame in decode(path, FramePlan("intervals", 4))] == [4, 14, 24, 34]
    assert [read_number(frame) for frame in decode(path, PER_SECOND)] == [0, 10, 20, 30]


def test_a_rate_of_29_97_counts_as_29(tmp_path):
    path = write_video(tmp_path / "a.mp4", frames=60, fps=Fraction(30000, 1001))
    frames = decode_frames(path, PER_SECOND).permute(0, 2, 3, 1).numpy()
    assert [read_number(frame) for frame in frames] == [0, 29, 58]


@pytest.mark.parametrize("name", ["with spaces.mp4", "видео №1 – фильм.mp4", "a:b'c\"d.mp4", "-dash.mp4"])
def test_odd_file_names_are_read(tmp_path, name):
    frames = decode_frames(write_video(tmp_path / name), PER_SECOND)
    assert frames.shape == (3, 3, 64, 64) and frames.dtype == torch.uint8


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


@pytest.mark.parametrize("decode", [video._decode_decord, video._decode_pyav], ids=["decord", "PyAV"])
def test_webm_without_a_frame_count_in_its_header_is_read(tmp_path, decode):
    path = str(write_video(tmp_path / "a.webm", codec="libvpx-vp9", frames=20))
    assert len(decode(path, FramePlan("intervals", 20))) == 20


@pytest.mark.parametrize("decode", [video._decode_decord, video._decode_pyav], ids=["decord", "PyAV"])
def test_film_of_a_telephone_is_turned_upright(tmp_path, decode):
    source = write_video(tmp_path / "flat.mp4", width=96)
    turned = turn_file(source, tmp_path / "turned.mp4", width=96)
    assert np.array_equal(decode(str(turned), PER_SECOND), np.rot90(decode(str(source), PER_SECOND), axes=(1, 2)))


def test_pyav_alone_is_enough(tmp_path, monkeypatch):
    path = write_video(tmp_path / "a.mp4")
    both = decode_frames(path, PER_SECOND)
    monkeypatch.setattr(video, "_decord", lambda: None)
    assert torch.equal(decode_frames(path, PER_SECOND), both)
    (tmp_path / "junk.mp4").write_bytes(b"no video" * 100)
    with pytest.raises(VideoError, match=r"junk\.mp4: cannot be decoded \(PyAV: [^;]*\)$"):
        decode_frames(tmp_path / "junk.mp4", PER_SECOND)


def test_pyav_steps_in_where_decord_fails(tmp_path, monkeypatch):
    path = write_video(tmp_path / "a.mp4")
    both = decode_frames(path, PER_SECOND)

    def fail(path, plan):
        raise video._decord().DECORDError("av_read_frame failed")

    monkeypatch.setattr(video, "_decode_decord", fail)
    assert torch.equal(decode_frames(path, PER_SECOND), both)


def unreadable_files(folder: Path) -> dict[str, Path]:
    junk = folder / "junk.mp4"
    junk.write_bytes(np.random.RandomState(0).bytes(5000))
    page = folder / "page.mp4"
    page.write_text("<html>404 not found</html>" * 50)
    whole = write_video(folder / "whole.mp4", frames=60, faststart=True)
    return {
        "junk": junk,
        "page": page,
        "no index": cut_file(write_video(folder / "late.mp4"), folder / "no index.mp4", share=0.5),
        "cut": cut_file(whole, folder / "cut.mp4", share=0.5),
        "sound": write_sound(folder / "sound.mp4"),
    }


@pytest.mark.parametrize("kind", ["junk", "page", "no index", "cut", "sound"])
@pytest.mark.parametrize("plan", [PER_SECOND, INTERVALS], ids=["per_second", "intervals"])
def test_unreadable_file_is_named_with_the_reason_of_each_decoder(tmp_path, kind, plan):
    path = unreadable_files(tmp_path)[kind]
    with pytest.raises(VideoError, match=r"decord: .+; PyAV: .+") as caught:
        decode_frames(path, plan)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_empty_and_folder_paths_say_so(tmp_path):
    (tmp_path / "empty.mp4").touch()
    for path, reason in [
        (tmp_path / "no.mp4", "does not exist"),
        (tmp_path / "empty.mp4", "empty"),
        (tmp_path, "folder"),
    ]:
        with pytest.raises(VideoError, match=reason) as caught:
            decode_frames(path, PER_SECOND)
        assert str(path) in str(caught.value)


def test_cut_file_is_read_where_the_sampled_frames_are_there(tmp_path):
    whole = write_video(tmp_path / "whole.mp4", frames=60, faststart=True)
    cut = cut_file(whole, tmp_path / "cut.mp4", share=0.8)
    head = FramePlan("per_second", 2, keep="head")
    assert torch.equal(decode_frames(cut, head), decode_frames(whole, head))
