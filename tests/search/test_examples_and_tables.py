import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from indexing import update
from PIL import Image
from tiny_models import tiny_student
from video_files import write_video

from teachclip import VideoIndex, decode_frames
from teachclip.cli import duplicates as duplicates_command
from teachclip.cli import index as index_command
from teachclip.cli import search as search_command
from teachclip.data.video.probe import probe_video
from teachclip.errors import DataError
from teachclip.search.duplicates import find_duplicates, mean_vectors
from teachclip.search.examples import split_moment
from teachclip.search.queries import StudentQueries
from teachclip.search.update import Wanted


@pytest.fixture(scope="module")
def opened(made_index):
    with VideoIndex.open(made_index, queries=StudentQueries(tiny_student())) as index:
        yield index


@pytest.mark.parametrize(
    ("example", "path", "moment"),
    [
        ("film.mp4", "film.mp4", None),
        ("film.mp4@0:42", "film.mp4", 42),
        ("a@b/film.mp4@1:02:03.5", "a@b/film.mp4", 3723.5),
        ("film.mp4@7", "film.mp4", 7),
        ("me@home.mp4", "me@home.mp4", None),
    ],
)
def test_a_moment_of_an_example(example, path, moment):
    assert split_moment(example) == (path, moment)


def test_an_example_in_the_index_is_its_own_nearest_and_needs_no_student(made_index):
    index = VideoIndex.open(made_index)
    clip = index.video("clip2.mp4")
    for example in (clip.path, clip.id, f"{clip.id}-0", "clip2.mp4"):
        best = index.search(like=example)[0]
        assert best.video.id == clip.id and best.score == pytest.approx(1, abs=1e-5)
    moment = index.search(like="film.mp4@0:22")[0]
    assert (moment.parts[0].start, moment.parts[0].end) == (15, 25) and moment.score == pytest.approx(1, abs=1e-5)
    assert index._queries is None
    with pytest.raises(DataError, match=r"is 30.0 seconds long; there is no second 42"):
        index.search(like="film.mp4@0:42")


def test_files_and_pictures_that_are_not_in_the_index(opened, made_library, tmp_path):
    copy = shutil.copy(made_library / "clip3.mp4", tmp_path / "outside.mp4")
    best = opened.search(like=str(copy))[0]
    assert best.path.endswith("clip3.mp4") and best.score == pytest.approx(1, abs=1e-5)
    moment = opened.search(like=f"{shutil.copy(made_library / 'film.mp4', tmp_path / 'other.mp4')}@10")[0]
    assert (moment.parts[0].start, moment.parts[0].end) == (5, 15)
    frame = decode_frames(made_library / "clip3.mp4", tiny_student().processor.sampling)[1]
    picture = Image.fromarray(frame.permute(1, 2, 0).numpy())
    picture.save(tmp_path / "picture.png")
    expected = opened.queries().videos([[picture]])[0]
    assert opened.query_vector(like=str(tmp_path / "picture.png")) == pytest.approx(expected, abs=1e-6)
    (tmp_path / "text.txt").write_text("no picture")
    with pytest.raises(DataError, match="neither a video nor a picture"):
        opened.search(like=str(tmp_path / "text.txt"))
    with pytest.raises(DataError, match=r"example 'nowhere.mp4': .*has no video"):
        opened.search(like="nowhere.mp4")


def test_minus_and_text_with_an_example_are_sums_of_vectors(opened):
    red, blue = (opened.queries().texts([text])[0] for text in ("a red circle", "a blue square"))
    both = red - blue
    assert opened.query_vector("a red circle", minus="a blue square") == pytest.approx(
        both / np.linalg.norm(both), abs=1e-6
    )
    clip = opened.vectors([opened.video("clip0.mp4").id])
    mixed = red + next(iter(clip.values()))
    assert opened.query_vector("a red circle", like="clip0.mp4") == pytest.approx(
        mixed / np.linalg.norm(mixed), abs=1e-6
    )
    with pytest.raises(DataError, match="nothing is left to search"):
        opened.search("a red circle", minus="a red circle")


def test_columns_of_a_table_are_filters_and_follow_a_file_that_moves(index, library, tmp_path, student_folder):
    table = tmp_path / "films.csv"
    table.write_text(
        "file; camera; year\nclip0;GoPro;2019\nholiday/clip1.mp4;GoPro;2024\nfilm.mp4;DSLR;2024\nnone;X;1\n"
    )
    assert index_command.main(["--index", str(index), "--table", str(table), "--workers", "1"]) == 0
    opened = VideoIndex.open(index, queries=StudentQueries(tiny_student()))
    assert opened.columns[-2:] == ["camera", "year"]

    def names(*filters):
        return sorted(video.path.rpartition("/")[2] for video in opened.videos(filters))

    assert names("camera=GoPro") == ["clip0.mp4", "clip1.mp4"] and names("camera=GoPro", "year>2020") == ["clip1.mp4"]
    assert names("year=2024") == ["clip1.mp4", "film.mp4"] and names("camera~pro") == ["clip0.mp4", "clip1.mp4"]
    assert opened.search("a red circle", filters=["camera=DSLR"])[0].video.columns == {"camera": "DSLR", "year": 2024}
    (library / "film.mp4").rename(library / "renamed.mp4")
    update(index)
    assert names("camera=DSLR") == ["renamed.mp4"]
    update(index, [], Wanted(window=4.0))
    assert names("camera=DSLR") == ["renamed.mp4"], "other parts, the same films"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,camera\nclip0,GoPro\n", "has no column of files"),
        ("file,length\nclip0,3\n", "column 'length' cannot be used"),
        ("file, date\nclip0,3\n", "column 'date' cannot be used"),
        ("file,camera\nclip9,GoPro\n", "none of its 1 names is a file"),
        ("file,camera\n", "has a header but no rows"),
    ],
)
def test_wrong_tables_are_refused(made_index, tmp_path, text, message):
    from teachclip.search.columns import set_columns

    (tmp_path / "films.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        set_columns(VideoIndex.open(made_index), tmp_path / "films.csv")


def test_vectors_leave_as_parquet(made_index, tmp_path, capsys):
    out = tmp_path / "vectors.parquet"
    assert index_command.main(["--index", str(made_index), "--export", str(out)]) == 0
    table = pq.read_table(out)
    index = VideoIndex.open(made_index)
    assert table.num_rows == 9 and "9 vectors" in capsys.readouterr().err
    about = json.loads(table.schema.metadata[b"teachclip"])
    assert about["fingerprint"] == index.settings.fingerprint and about["window"] == 10
    vectors = index.vectors()
    for row in table.to_pylist():
        part = index.part(row["id"])
        assert (
            row["vector"] == pytest.approx(vectors[row["id"]].tolist(), abs=1e-6)
            and row["model"] == about["fingerprint"]
        )
        assert (row["start"], row["end"], row["best"], row["part"]) == (part.start, part.end, part.best, part.number)
        assert row["weights"] == pytest.approx(part.weights) and row["path"] == index.video(row["video"]).path
    assert index_command.main(["--index", str(made_index), "--export", str(tmp_path / "no" / "x.parquet")]) == 2


def test_the_best_moment_is_cut_out(made_index, made_library, tmp_path, capsys):
    out = tmp_path / "moment.mp4"
    arguments = [str(made_index), "a red circle", "--within", "film.mp4", "--clip", str(out), "--json"]
    assert search_command.main(arguments) == 0
    part = json.loads(capsys.readouterr().out)[0]["parts"][0]
    facts = probe_video(out)
    assert facts.duration == pytest.approx(part["end"] - part["start"], abs=0.2) and facts.codec == "h264"
    assert search_command.main([*arguments[:5], str(tmp_path / "moment.avi")]) == 2
    assert "a clip is an mp4 file" in capsys.readouterr().err
    film = made_library / "film.mp4"
    size = film.stat().st_size
    assert search_command.main([*arguments[:5], str(film)]) == 2
    assert "is the film itself" in capsys.readouterr().err and film.stat().st_size == size


def test_the_best_moment_is_opened_in_a_player(made_index, monkeypatch, tmp_path):
    player = tmp_path / "mpv"
    player.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/told.new; mv {tmp_path}/told.new {tmp_path}/told\n')
    player.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert search_command.main([str(made_index), "--like", "film.mp4@0:22", "--open"]) == 0
    import time

    while not (tmp_path / "told").exists():
        time.sleep(0.01)
    told = (tmp_path / "told").read_text().split()
    assert told[0] == "--start=15.0" and told[1].endswith("film.mp4")


def test_copies_and_recompressed_copies_are_duplicates(index, library, capsys):
    shutil.copy(library / "clip2.mp4", library / "copy.mp4")
    write_video(library / "small.mp4", frames=20, seed=3, options={"crf": "35"})  # clip3 with more loss
    update(index)
    opened = VideoIndex.open(index)
    means = mean_vectors(opened, [video.id for video in opened.videos()])
    names = {video.id: video.path.rpartition("/")[2] for video in opened.videos()}
    pairs = {frozenset((names[a], names[b])): float(means[a] @ means[b]) for a in means for b in means if a < b}
    same = pairs.pop(frozenset(("clip3.mp4", "small.mp4")))
    assert same > max(pairs.values())
    groups = find_duplicates(opened, threshold=(same + max(pairs.values())) / 2)
    found = {frozenset(path.rpartition("/")[2] for video in group.videos for path in video.paths) for group in groups}
    assert found == {frozenset(("clip2.mp4", "copy.mp4")), frozenset(("clip3.mp4", "small.mp4"))}
    assert sorted(group.score for group in groups) == pytest.approx([same, 1], abs=1e-5)
    assert duplicates_command.main([str(index), "--threshold", "1"]) == 0
    assert "copy.mp4" in capsys.readouterr().out
    assert duplicates_command.main([str(index), "--threshold", "1.5"]) == 2
