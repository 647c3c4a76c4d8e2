"""The dataset check and the recipe for one's own videos, on real small files."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from html_pages import HOSTILE, check_hostile_page
from video_files import cut_file, write_video

from teachclip.cli import distill, prepare
from teachclip.data.annotations.records import Caption, Split, Video
from teachclip.data_check.checks import Suspicion, VideoCheck, caption_statistics, duplicates, frame_suspicions
from teachclip.data_check.report import DatasetCheck, Strip, check_page, thumbnails
from teachclip.recipe.loading import load_recipe


def run(main, *arguments):
    return main([str(argument) for argument in arguments])


def write_still(path, value):
    """A video of one image: a grey value, or black."""
    import av

    image = np.zeros((64, 64, 3), np.uint8) if value is None else np.full((64, 64, 3), value, np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for _ in range(20):
            for packet in stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


@pytest.fixture
def folder(project, tmp_path):
    """The small project's videos and captions in another folder, and suspicious ones beside them."""
    home = tmp_path / "my videos"
    shutil.copytree(project.root / "videos", home / "videos")
    for number in range(14):
        write_video(home / "videos" / f"clip{number}.mp4", frames=24, seed=number)
    rows = (project.root / "captions.csv").read_text(encoding="utf-8").splitlines()
    write_still(home / "black.mp4", None)
    write_still(home / "still.mp4", 90)
    write_video(home / "short.mp4", frames=3)
    shutil.copy(home / "videos" / "clip0.mp4", home / "again.mp4")
    (home / "page.mp4").write_text("<html>sorry</html>")
    cut_file(write_video(tmp_path / "whole.mp4", frames=60, faststart=True), home / "cut.mp4", share=0.7)
    for name in ("black", "still", "short", "page", "cut", "nowhere"):
        rows.append(f"{name}.mp4,a red circle,train")
    rows.append("again.mp4,a red circle over a blue sea over a red sea over a blue sea,test")
    (home / "captions.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return home


@pytest.fixture
def recipe(project, folder):
    data = {"videos": str(folder), "annotations": str(folder / "captions.csv")}
    return project(data=data, frames={"workers": 2})


def report_of(project):
    return json.loads((project.folder / "run" / "prepare.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("store", ["disk", "none"])
def test_every_suspicious_video_is_found_named_and_shown(project, recipe, store, capsys):
    assert run(prepare.main, recipe, f"frames.store={store}") == 2
    captured = capsys.readouterr()
    report = report_of(project)
    suspicions = {name: entry["suspicions"] for name, entry in report["videos"].items() if entry["suspicions"]}
    assert suspicions == {
        "black.mp4": ["black"],
        "still.mp4": ["frozen: all frames show the same image"],
        "short.mp4": ["short: 0.3 s"],
    }
    errors = {name: entry["error"] for name, entry in report["videos"].items() if entry["error"]}
    assert sorted(errors) == ["cut.mp4", "nowhere.mp4", "page.mp4"]
    assert "web page" in errors["page.mp4"] and errors["nowhere.mp4"] == "missing: no such file"
    assert report["duplicates"] == [["clip0.mp4", "again.mp4"]]
    assert len(report["overlaps"]) == 1 and "'clip0.mp4'" in report["overlaps"][0]
    assert report["captions"]["test"]["captions_truncated"] == 1
    facts = report["videos"]["clip1.mp4"]["facts"]
    assert (facts["codec"], facts["width"], facts["frames"]) == ("h264", 64, 24)
    assert facts["duration"] == pytest.approx(2.4)
    assert "3 of 21 videos cannot be used: " in captured.out and "data.max_missing=0.1429 (now 0.01)" in captured.out
    assert "train short.mp4: short: 0.3 s" in captured.out
    lines = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "training refuses this data" in lines[0] and "Traceback" not in captured.err
    page = (project.folder / "run" / "prepare.html").read_text(encoding="utf-8")
    assert page.count("data:image/jpeg;base64,") == 6 + 3
    assert "web page" in page and "<script" not in page
    assert (project.folder / "stores" / "frames" / "manifest.json").exists() == (store == "disk")


def test_excluded_videos_are_counted_and_training_continues_without_them(project, recipe, capsys):
    assert run(prepare.main, recipe, "data.max_missing=0.2") == 0
    out = capsys.readouterr().out
    assert "training excludes 3 videos (14.3 %, allowed 20 %)" in out
    found = re.findall(r"(\w+): (\d+) of (\d+) videos and (\d+) captions can be used", out)
    counts = {split: [int(number) for number in numbers] for split, *numbers in found}
    assert np.sum(list(counts.values()), axis=0).tolist() == [18, 21, 32]
    assert run(distill.main, recipe, "data.max_missing=0.2", "teachers=[]") == 0
    listed = ", ".join(f"{split} {kept} videos, {captions} captions" for split, (kept, _, captions) in counts.items())
    assert f"data: {listed}\n" in capsys.readouterr().err


def test_usable_data_has_no_suspicions(project, capsys):
    assert run(prepare.main, project()) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("captions.csv, as it was understood: UTF-8; separated by comma; rows: train ")
    assert "no video is excluded" in captured.out and "| none |" in captured.out.replace(" " * 2, "")
    assert not [name for name, entry in report_of(project)["videos"].items() if entry["suspicions"]]


def test_damaged_videos_are_partially_decoded_if_the_recipe_allows_it(project, recipe, capsys):
    run(prepare.main, recipe, "frames.on_error=use_decodable")
    entry = report_of(project)["videos"]["cut.mp4"]
    assert entry["error"] == "" and entry["frames"] > 0
    assert entry["suspicions"][0].startswith("partially decoded: ") and "truncated or damaged" in entry["suspicions"]


def test_its_own_advice_can_be_followed_without_decoding_again(project, recipe, folder, capsys):
    assert run(prepare.main, recipe) == 2
    rows = (folder / "captions.csv").read_text(encoding="utf-8").splitlines()
    kept = [row for row in rows if not row.startswith(("page", "cut", "nowhere"))]
    (folder / "captions.csv").write_text("\n".join(kept) + "\n", encoding="utf-8")
    capsys.readouterr()
    assert run(prepare.main, recipe) == 0
    captured = capsys.readouterr()
    assert "no video is excluded" in captured.out and "decode: " not in captured.err
    assert run(distill.main, recipe, "teachers=[]") == 0


def test_a_store_that_training_refuses_is_reported_and_the_rest_examined(project, recipe, folder, capsys):
    run(prepare.main, recipe)
    (project.folder / "run" / "prepare.json").unlink()
    capsys.readouterr()
    assert run(prepare.main, recipe, "data.max_missing=0.2", "frames.sampling=per_second") == 2
    assert "has another provenance: sampling.kind" in capsys.readouterr().out
    report = report_of(project)
    assert "has another provenance: sampling.kind" in report["refusal"]
    assert report["videos"]["clip1.mp4"]["frames"] > 0 and report["videos"]["black.mp4"]["suspicions"] == ["black"]


def test_its_verdict_is_that_of_training(project, recipe, folder, capsys):
    for name in ("again", "clip11", "clip12", "clip13"):
        path = next(folder.rglob(f"{name}.mp4"))
        path.write_bytes(b"broken")
    for main in (prepare.main, distill.main):
        assert run(main, recipe, "data.max_missing=1", "teachers=[]") == 2
        assert "split test: none of its videos can be used: clip11.mp4 (" in capsys.readouterr().err
    assert run(prepare.main, recipe, "data.max_missing=0.9", "data.annotations=" + str(folder / "none.csv")) == 2
    assert "none.csv cannot be read" in capsys.readouterr().err


def test_unreadable_videos_without_a_store_are_refused_as_in_training(project, recipe, capsys):
    assert run(prepare.main, recipe, "frames.store=none", "data.max_missing=0.5") == 2
    assert "frames.store=none cannot exclude unreadable videos, and 2 are unreadable" in capsys.readouterr().err


def test_segments_of_a_file_are_checked_as_segments(project, tmp_path, capsys):
    write_video(tmp_path / "long.mp4", frames=100)
    rows = [f"long.mp4,a red circle,{k},{k + 2},train" for k in range(0, 8, 2)]
    rows += ["long.mp4,a blue circle,9,9.2,test"]
    (tmp_path / "parts.csv").write_text("video,caption,start,end,split\n" + "\n".join(rows) + "\n")
    data = {"annotations": str(tmp_path / "parts.csv"), "videos": str(tmp_path), "validation": None}
    assert run(prepare.main, project(data={**data, "select_on": "test"})) == 0
    videos = report_of(project)["videos"]
    assert videos["long.mp4[9-9.2]"]["suspicions"] == ["short: 0.2 s"]
    assert videos["long.mp4[2-4]"]["suspicions"] == [] and videos["long.mp4[2-4]"]["seconds"] == pytest.approx(2)
    assert len(report_of(project)["overlaps"]) == 1


def test_an_output_folder_that_cannot_be_made_is_reported_first(project, recipe, folder, capsys):
    assert run(prepare.main, recipe, f"output={folder / 'black.mp4' / 'x'}") == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if "rror" in line]
    assert len(errors) == 1 and "cannot create the folder" in errors[0]
    assert not (project.folder / "stores").exists()


# init


def test_init_writes_a_recipe_that_trains(project, folder, capsys):
    for name in ("page", "cut"):
        (folder / f"{name}.mp4").unlink()
    assert run(prepare.main, "init", folder, "--backbone", project.root / "clip", "--teacher", "none") == 0
    assert "18 of 21 videos and 35 captions, format csv" in capsys.readouterr().err
    path = folder / "recipe.yaml"
    recipe = load_recipe(path)
    assert (recipe.data.format, recipe.data.videos, recipe.teachers) == ("csv", folder, [])
    assert run(prepare.main, path, "data.max_missing=0.2", "text.max_tokens=10") == 0
    short = ("data.max_missing=0.2", "text.max_tokens=10", "train.epochs=1", "train.workers=0")
    assert run(distill.main, path, *short, "student.temporal_layers=1") == 0
    assert (folder / "teachclip" / "run" / "student" / "config.json").exists()
    assert run(prepare.main, "init", folder) == 2
    assert "recipe.yaml exists" in capsys.readouterr().err


def test_init_takes_text_files_beside_the_videos(tmp_path, capsys):
    for name in ("a", "b $x"):
        write_video(tmp_path / f"{name}.mp4", frames=5)
        (tmp_path / f"{name}.txt").write_text("one caption\nand another\n")
    assert run(prepare.main, "init", tmp_path, "--teacher", "some/model") == 0
    recipe = load_recipe(tmp_path / "recipe.yaml")
    assert recipe.data.format == "text_files" and recipe.teachers[0].checkpoint == "some/model"
    assert "2 of 2 videos and 4 captions" in capsys.readouterr().err


def test_init_shows_how_a_table_of_excel_was_understood(tmp_path, capsys):
    (tmp_path / "Clip.MP4").write_bytes(b"x")
    (tmp_path / "other").mkdir()
    for name in ("._captions.csv", "~$captions.csv", "Thumbs.db", "README.txt", "other/LICENSE.txt"):
        (tmp_path / name).write_bytes(b"\x00")
    rows = ["sep=;", "Dateiname;File;Text;Start;End", f"7;C:\\me\\clip.mp4;caf\xe9 | {'x' * 90};0:45;62,5"]
    (tmp_path / "captions.csv").write_bytes("\r\n".join(rows).encode("cp1252"))
    assert run(prepare.main, "init", tmp_path) == 0
    captured = capsys.readouterr()
    title, header, _, row = captured.out.strip().splitlines()
    assert title == (
        "captions.csv, as it was understood: Windows-1252; separated by semicolon; ignored columns: Dateiname; "
        "rows: train 1"
    )
    assert [cell.strip() for cell in header.split("|")[1:-1]] == [
        *("video (File)", "caption (Text)", "start, seconds (Start)", "end, seconds (End)")
    ]
    assert "C:/me/clip.mp4" in row and "café \\| xxx" in row and "45 |" in row and "62.5 |" in row and len(row) < 160
    assert "please confirm: " in captured.err and "line 3 is not UTF-8 (byte 0xe9)" in captured.err
    assert "1 video has another name or path than the file in" in captured.err
    assert "found:  1 of 1 videos and 1 captions, format csv" in captured.err


def test_init_takes_subtitles_and_tables_of_tabs(tmp_path, capsys):
    (tmp_path / "clip.mp4").write_bytes(b"x")
    (tmp_path / "clip.en.srt").write_text("1\n00:00:01,000 --> 00:00:02,000\nhello\n")
    assert run(prepare.main, "init", tmp_path) == 0
    assert load_recipe(tmp_path / "recipe.yaml").data.format == "subtitles"
    captured = capsys.readouterr()
    assert "1 of 1 videos and 1 captions" in captured.err and "1 files of subtitles" in captured.out
    (tmp_path / "own.tsv").write_text("video\tcaption\nclip\thello, you\n")
    assert run(prepare.main, "init", tmp_path, "--out", tmp_path / "two.yaml") == 0
    assert load_recipe(tmp_path / "two.yaml").data.format == "csv" and "separated by tab" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "holds no captions: expected a table (.csv, .tsv, .jsonl, .parquet, .xlsx) of video,caption"),
        ({"a.csv": "video,caption\nx,y\n", "b.csv": ""}, "holds 2 tables (a.csv, b.csv); name the one"),
        ({"a.csv": "film,text\nx,y\n"}, "a.csv: line 1 has no column 'video'"),
        ({"README.txt": "hello", "LICENSE.txt": "mine"}, "holds no captions"),
        (
            {"a.txt": "hello", "a.srt": "00:00:01,000 --> 00:00:02,000\na\n"},
            "holds text files and subtitles; keep one",
        ),
        ({"a.csv": "video,caption\nx,y\n", "z.mp4": "v"}, "names 1 videos, such as 'x', but none of them is below"),
    ],
)
def test_a_folder_that_cannot_be_used_gets_one_line(tmp_path, capsys, files, message):
    home = tmp_path / "videos"
    home.mkdir()
    for name, text in files.items():
        (home / name).write_text(text)
    assert run(prepare.main, "init", home) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and message in lines[0]
    assert not (home / "recipe.yaml").exists()


def test_a_folder_that_does_not_exist_and_another_kind_of_table_are_named(tmp_path, capsys):
    assert run(prepare.main, "init", tmp_path / "none") == 2
    assert "none: no such folder" in capsys.readouterr().err
    (tmp_path / "list.xls").touch()
    assert run(prepare.main, "init", tmp_path, "--captions", tmp_path / "list.xls") == 2
    assert "allowed suffixes: .csv, .tsv, .jsonl, .parquet, .xlsx, .srt, .vtt" in capsys.readouterr().err


# The checks


def messages_of(frames):
    return [suspicion.message for suspicion in frame_suspicions(frames)]


def test_black_and_frozen_frames_are_recognised():
    noise = torch.from_numpy(np.random.RandomState(0).randint(0, 256, (4, 3, 16, 16)).astype(np.uint8))
    assert messages_of(noise) == []
    assert messages_of(noise[:1]) == []
    assert messages_of(torch.zeros_like(noise)) == ["black"]
    assert messages_of(noise[:1].expand(4, -1, -1, -1)) == ["frozen: all frames show the same image"]
    dark = noise.clone()
    dark[:3] = 0
    assert messages_of(dark) == ["3 of 4 frames are black"]
    small = torch.zeros_like(noise)
    small[:, :, 4:8, 4:8] = 200  # a light in the dark is not a black frame
    small[1:, :, 4:8, 4:8] = 0
    small[1:, :, 8:12, 8:12] = 200
    assert messages_of(small) == []


def test_hostile_names_and_messages_stay_text_on_the_page():
    videos = [
        VideoCheck(HOSTILE, HOSTILE, HOSTILE, suspicions=[Suspicion(HOSTILE, HOSTILE)]),
        VideoCheck(f"{HOSTILE}2", HOSTILE, HOSTILE, error=HOSTILE),
    ]
    strips = [Strip(videos[0], np.zeros((2, 8, 8, 3), np.uint8))]
    captions = {
        HOSTILE: {
            "captions": 1,
            "captions_per_video": [1, 1, 1],
            "tokens": [1, 1, 1],
            "captions_truncated": 0,
            "tokens_truncated_share": 0.0,
            "captions_of_several_videos": 1,
            "examples_of_several_videos": [HOSTILE],
        }
    }
    check = DatasetCheck(HOSTILE, videos, captions, [[HOSTILE] * 2], [HOSTILE], [HOSTILE], HOSTILE, strips)
    check_hostile_page(check_page(check), images=1)


def test_truncated_tokens_are_counted():
    captions = tuple(Caption(str(k), video, "A  word") for k, video in enumerate("aab"))
    split = Split("train", tuple(Video(name, name) for name in "ab"), captions)
    facts = caption_statistics(split, [4, 10, 6], 8)
    assert facts["captions_per_video"] == [1, 1.5, 2] and facts["tokens"] == [4, 6.0, 10]
    assert facts["captions_truncated"] == 1 and facts["tokens_truncated_share"] == pytest.approx(2 / 20)
    assert facts["captions_of_several_videos"] == 1 and facts["examples_of_several_videos"] == ["a word"]


def test_segments_of_one_file_are_no_duplicates_and_unreadable_files_are_not_compared():
    files = {"a": "1", "a2": "1", "b": "2", "c": "3", "d": "4"}
    hashes = {"a": "x", "a2": "x", "b": "x", "c": "unreadable", "d": "unreadable"}
    assert duplicates(hashes, files) == [["a", "b"]]


def test_thumbnails_keep_proportions_and_colours():
    frames = torch.zeros(2, 3, 144, 288, dtype=torch.uint8)
    frames[:, 0] = 255
    small = thumbnails(frames)
    assert small.shape == (2, 72, 144, 3) and (small == [255, 0, 0]).all()


def test_init_elsewhere_keeps_output_and_stores_beside_the_recipe_and_expands_home(project, tmp_path, monkeypatch):
    folder = tmp_path / "data"
    shutil.copytree(project.root / "videos", folder)
    names = sorted(path.name for path in folder.glob("*.mp4"))[:2]
    (folder / "list.csv").write_text("video,caption\n" + "".join(f"{name},a circle\n" for name in names))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert run(prepare.main, "init", folder, "--out=~/new/holiday.yaml") == 0
    recipe = load_recipe("~/new/holiday.yaml")
    home = tmp_path / "home" / "new" / "teachclip" / "holiday"
    assert (recipe.output, recipe.stores) == (home / "run", home / "stores")
    assert load_recipe("~/new/holiday.yaml", ["output=~/x"]).output == tmp_path / "home" / "x"
    assert run(prepare.main, "init", folder) == 0
    assert load_recipe(folder / "recipe.yaml").output == folder / "teachclip" / "run"


def test_a_name_that_is_taken_for_another_is_told_once(project, capsys):
    table = project.folder / "captions.csv"
    text = (project.root / "captions.csv").read_text(encoding="utf-8")
    table.write_text(text.replace("clip0.mp4", "D:\\films\\CLIP0.mp4"), encoding="utf-8")
    assert run(prepare.main, project(data={"annotations": str(table)})) == 0
    assert capsys.readouterr().err.count("is taken for") == 1
