import json
import os
import shutil

import pytest
from indexing import update
from tiny_models import tiny_student
from video_files import write_video

from teachclip import VideoIndex
from teachclip.cli import index as index_command
from teachclip.errors import DataError, RecipeError
from teachclip.search.generations import Encoding
from teachclip.search.queries import StudentQueries
from teachclip.search.update import Wanted
from teachclip.store.fingerprint import seal


def paths(index):
    return {os.path.basename(video.path): video for video in VideoIndex.open(index).videos()}


def test_every_video_below_the_folders_is_in_the_index(made_index, made_library):
    videos = paths(made_index)
    assert set(videos) == {"clip0.mp4", "clip1.mp4", "clip2.mp4", "clip3.mp4", "film.mp4"}
    assert videos["clip0.mp4"].path == str(made_library / "holiday" / "clip0.mp4")
    assert {name: video.parts for name, video in videos.items()} == {**dict.fromkeys(videos, 1), "film.mp4": 5}
    assert videos["film.mp4"].length == pytest.approx(30)


def test_vectors_are_those_of_encode_video(made_index, made_library, student_folder):
    index = VideoIndex.open(made_index)
    student = tiny_student()
    film = index.video("film.mp4")
    vectors = index.vectors([film.id])
    for part in index.parts(film.id):
        expected = student.encode_video((film.path, part.start, part.end), progress=False, workers=1)[0].numpy()
        assert vectors[part.id] == pytest.approx(expected, abs=2e-6)
    clip = index.video("clip0.mp4")
    assert index.vectors([clip.id])[f"{clip.id}-0"] == pytest.approx(
        student.encode_video(clip.path, progress=False, workers=1)[0].numpy(), abs=2e-6
    )


def test_attention_weights_and_times_belong_to_the_frames_of_a_part(made_index):
    for part in VideoIndex.open(made_index).parts("film.mp4"):
        assert sum(part.weights) == pytest.approx(1, abs=1e-5) and len(part.times) == len(part.weights) == 4
        assert part.times == sorted(part.times) and part.start <= part.times[0] and part.times[-1] < part.end
        assert part.best == pytest.approx(part.times[part.weights.index(max(part.weights))])
        assert len(set(part.weights)) > 1


def test_a_second_run_looks_into_no_file_and_loads_no_student(index, library, monkeypatch):
    for name in ("load_for_search", "student_provenance"):
        monkeypatch.setattr(f"teachclip.search.update.{name}", None)
    monkeypatch.setattr("teachclip.search.scan._identify", None)
    report = update(index)
    assert (report.kept, report.new, report.changed, report.gone, report.encoded) == (5, 0, 0, 0, 0)


def test_new_changed_moved_copied_touched_and_deleted_files_are_told_apart(index, library):
    before = paths(index)
    write_video(library / "new.mp4", frames=20, seed=50)
    write_video(library / "clip2.mp4", frames=20, seed=51)
    (library / "clip3.mp4").rename(library / "holiday" / "moved.mp4")
    shutil.copy(library / "film.mp4", library / "copy.mp4")
    os.utime(library / "holiday" / "clip0.mp4", (1, 1))
    (library / "holiday" / "clip1.mp4").unlink()
    report = update(index)
    assert (report.new, report.moved, report.changed, report.gone, report.kept) == (2, 1, 2, 1, 1)
    assert report.encoded == 2 and report.parts == 2
    after = paths(index)
    assert set(after) == {"clip0.mp4", "clip2.mp4", "copy.mp4", "moved.mp4", "new.mp4"}
    assert after["moved.mp4"].id == before["clip3.mp4"].id and after["clip2.mp4"].id != before["clip2.mp4"].id
    assert [os.path.basename(path) for path in after["copy.mp4"].paths] == ["copy.mp4", "film.mp4"]
    assert after["clip0.mp4"].date.startswith("1970-01-01")
    rows = VideoIndex.open(index).vectors()
    assert len(rows) == sum(video.parts for video in after.values()) == 9
    assert {row.partition("-")[0] for row in rows} == {video.id for video in after.values()}


def test_broken_files_are_named_and_tried_again_when_they_change(index, library):
    broken = library / "broken.mp4"
    broken.write_bytes(b"no video at all")
    (library / "gone.mp4").symlink_to(library / "nowhere.mp4")
    report = update(index)
    assert set(report.broken) == {str(broken), str(library / "gone.mp4")} and report.encoded == 0
    assert "broken.mp4" in report.broken[str(broken)]
    again = update(index)
    assert again.kept == 7 and set(again.broken) == set(report.broken)
    write_video(broken, frames=20, seed=60)
    fixed = update(index)
    assert fixed.changed == 1 and fixed.encoded == 1 and set(fixed.broken) == {str(library / "gone.mp4")}


def test_a_folder_that_is_gone_or_empty_does_not_empty_the_index(index, library, tmp_path):
    library.rename(tmp_path / "elsewhere")
    with pytest.raises(
        DataError, match=r"library does not exist; if its videos are gone for good: --forget .*library"
    ):
        update(index)
    assert len(paths(index)) == 5
    report = update(index, [tmp_path / "elsewhere"], forget=[library])
    assert report.encoded == 0 and len(paths(index)) == 5


def test_a_folder_that_cannot_be_listed_keeps_its_videos(index, library, monkeypatch):
    scandir = os.scandir

    def refusing(path):
        if str(path).endswith("holiday"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    report = update(index)
    assert report.unreadable == [str(library / "holiday")] and report.gone == 0 and len(paths(index)) == 5


def test_another_student_re_encodes_beside_the_old_one_and_then_replaces_it(index, library, tmp_path):
    other = tmp_path / "other"
    tiny_student(seed=3).save_pretrained(other)
    opened = VideoIndex.open(index)
    before = opened.vectors()
    (library / "clip3.mp4").write_bytes(b"broken by now")
    report = update(index, wanted=Wanted(str(other)))
    assert report.encoded == 4 and len(report.broken) == 1
    after = opened.vectors()
    assert opened.settings.model == str(other) and set(after) < set(before)
    assert all(abs(after[row] - before[row]).max() > 1e-3 for row in after)
    assert len(list(index.glob("generation-*"))) == 2, "queries that run may still use the former one"
    update(index)
    assert [path.name for path in index.glob("generation-*")] == ["generation-0002"]


def test_faster_encoding_makes_other_vectors_and_is_remembered(index):
    opened = VideoIndex.open(index)
    exact = opened.vectors()
    assert update(index, wanted=Wanted(precision="bfloat16")).encoded == 5
    half = opened.vectors()
    cosines = [float(exact[row] @ half[row]) for row in exact]
    assert half.keys() == exact.keys() and 0.999 < min(cosines) < 1 - 1e-7
    assert update(index).kept == 5
    assert update(index, wanted=Wanted(keyframes=True)).encoded == 5
    assert opened.settings.encoding == Encoding("bfloat16", keyframes=True)
    assert min(float(exact[row] @ vector) for row, vector in opened.vectors().items()) < 0.999
    assert VideoIndex.open(index).settings.encoding.keyframes is True
    with pytest.raises(RecipeError, match="allowed: float32, bfloat16"):
        update(index, wanted=Wanted(precision="int3"))


def test_an_index_from_before_there_was_a_choice_of_encoding_opens(index):
    file = index / "generation-0001" / "settings.json"
    content = json.loads(file.read_text())
    for key in ("encoding", "seal"):
        content.pop(key)
    file.write_text(json.dumps(seal(content)))
    assert VideoIndex.open(index).settings.encoding == Encoding()
    assert update(index).kept == 5


def test_folders_of_the_user_are_never_taken_for_generations(library, student_folder):
    for seed, name in enumerate(["generation-next", "generation-0007"], 50):
        (library / name).mkdir()
        write_video(library / name / "star.mp4", frames=20, seed=seed)
    update(library, [library], Wanted(str(student_folder)))
    report = update(library, wanted=Wanted(window=4.0))
    assert (report.encoded, report.broken) == (7, {})
    update(library)
    names = sorted(path.name for path in library.glob("generation-*"))
    assert names == ["generation-0007", "generation-0009", "generation-next"]


def test_other_parts_make_other_rows(index):
    report = update(index, wanted=Wanted(window=4.0))
    assert report.parts == 4 + 14
    parts = VideoIndex.open(index).parts("film.mp4")
    assert [(part.start, part.end) for part in parts[:2]] == [(0, 4), (2, 6)] and parts[-1].end == pytest.approx(30)
    assert update(index).kept == 5, "the way of cutting is remembered"


@pytest.mark.parametrize(
    ("folders", "wanted", "message"),
    [
        (["nowhere"], Wanted("student"), "nowhere does not exist"),
        (["empty"], Wanted("student"), "has no file with the extension"),
        (["videos"], None, "say which student makes it: --model STUDENT"),
        (["videos"], Wanted("no_student"), "no_student: no such folder"),
        ([], Wanted("student"), "no folder of videos is given"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(folders, wanted, message, tmp_path, student_folder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "videos").mkdir()
    write_video(tmp_path / "videos" / "a.mp4", frames=5)
    shutil.copytree(student_folder, tmp_path / "student")
    with pytest.raises((DataError, Exception), match=message) as raised:
        update(tmp_path / "index", folders, wanted)
    assert "\n" not in str(raised.value) and not (tmp_path / "index").exists()


def test_another_engine_holds_the_same_vectors(made_index, made_library, student_folder, tmp_path):
    index = tmp_path / "index"
    update(index, [made_library], Wanted(str(student_folder), engine="milvus", uri=str(tmp_path / "milvus.db")))
    queries = StudentQueries(tiny_student())
    with VideoIndex.open(index, queries=queries) as milvus, VideoIndex.open(made_index, queries=queries) as lance:
        own, other = milvus.vectors(), lance.vectors()
        assert set(own) == set(other) and all(own[row] == pytest.approx(other[row], abs=1e-6) for row in own)
        for filters in ([], ["folder=holiday"]):
            found, expected = (opened.search("a red circle", filters=filters) for opened in (milvus, lance))
            assert [video.path for video in found] == [video.path for video in expected]
            assert [video.score for video in found] == pytest.approx([video.score for video in expected], abs=1e-5)
    report = update(index, wanted=Wanted(engine="lance"))
    assert report.encoded == 5 and VideoIndex.open(index).settings.engine.name == "lance"
    update(index)  # which also drops the table on the server


def test_the_command_reports_and_names_the_command_that_searches(library, student_folder, tmp_path, capsys):
    (library / "broken.mp4").write_bytes(b"no video")
    index = tmp_path / "my index"
    arguments = [str(library), "--model", str(student_folder), "--index", str(index), "--workers", "1"]
    assert index_command.main(arguments) == 0
    shown = capsys.readouterr()
    assert shown.out == f"teachclip search '{index}' \"a text\"\n"
    assert "files: 6 new" in shown.err and "encoded: 5 videos, 9 parts; search is exact" in shown.err
    assert "1 files cannot be read:" in shown.err and "broken.mp4" in shown.err
    assert index_command.main(["--index", str(index)]) == 0
    assert "nothing has changed; 6 files are as they were" in capsys.readouterr().err
    assert index_command.main(["--index", str(index), "--window", "3", "--stride", "4"]) == 2
    assert "the stride at most the window" in capsys.readouterr().err
