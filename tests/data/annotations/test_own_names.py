"""Names of videos as people write them, and files that are no data."""

import logging
from pathlib import Path

import pytest

from teachclip.data.annotations.catalog import load_catalog
from teachclip.data.annotations.files import find_videos, locate_videos
from teachclip.data.annotations.own_names import is_about, is_junk
from teachclip.errors import DataError


@pytest.fixture
def root(tmp_path):
    """A folder of files in sub-folders."""
    for name in ("one.MP4", "a/Clip.mp4", "b/clip.mp4", "b/Deep/Sea.webm", "b/Deep/Sea.mp4"):
        path = tmp_path / "My Videos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return tmp_path / "My Videos"


@pytest.mark.parametrize(
    ("names", "files"),
    [
        (["ONE.mp4", "One"], ["one.MP4", "one.MP4"]),
        (["A/CLIP", "B/CLIP.MP4"], ["a/Clip.mp4", "b/clip.mp4"]),
        (["sea", "SEA.WEBM"], ["b/Deep/Sea.mp4", "b/Deep/Sea.webm"]),
        (["clip.mp4", "Clip.mp4"], ["b/clip.mp4", "a/Clip.mp4"]),  # as they are written
        (["My Videos/a/Clip.mp4"], ["a/Clip.mp4"]),
        (["D:/export/a/Clip.mp4", "D:/export/b/clip.mp4"], ["a/Clip.mp4", "b/clip.mp4"]),
        (["/mnt/x/b/deep/sea.mp4"], ["b/Deep/Sea.mp4"]),
        (["//server/share/one"], ["one.MP4"]),
    ],
)
def test_names_of_ones_own_tables_are_found_and_the_log_tells(root, caplog, names, files):
    caplog.set_level(logging.WARNING, logger="teachclip")
    assert locate_videos(root, names, tolerant=True) == {
        name: root / file for name, file in zip(names, files, strict=True)
    }
    told = [record for record in caplog.records if "is taken for" in record.getMessage()]
    assert len(told) == any(name not in (file, Path(file).name) for name, file in zip(names, files, strict=True))


def test_paths_of_this_computer_are_used_wherever_they_lead(root, tmp_path):
    (tmp_path / "other.mp4").write_bytes(b"x")
    names = [str(tmp_path / "other.mp4"), str(root / "a" / "Clip.mp4"), str(tmp_path / "none.mp4")]
    found = locate_videos(root, names, tolerant=True)
    assert found == {names[0]: tmp_path / "other.mp4", names[1]: root / "a" / "Clip.mp4"}


def test_published_names_are_exact(root):
    names = ["ONE", "A/Clip.mp4", "D:/export/a/Clip.mp4", str(root / "one.MP4")]
    assert locate_videos(root, names) == {}


def test_names_that_fit_several_files_are_all_named_with_both(root):
    (root / "two.mp4").write_bytes(b"x")
    (root / "two.MP4").write_bytes(b"x")
    with pytest.raises(DataError) as caught:
        locate_videos(root, ["CLIP", "one.mp4", "TWO.Mp4"], tolerant=True)
    clip, two = str(caught.value).splitlines()
    assert clip.startswith(
        f"video 'CLIP' matches {root / 'a/Clip.mp4'} and {root / 'b/clip.mp4'}; give the path below "
    )
    assert two.startswith(f"video 'TWO.Mp4' matches {root / 'two.MP4'} and {root / 'two.mp4'}; ")


def test_folders_of_different_videos_are_never_dropped(root):
    (root / "a" / "Clip.mp4").unlink()
    assert locate_videos(root, ["C:/x/a/clip.mp4", "C:/x/b/clip.mp4"], tolerant=True) == {
        "C:/x/b/clip.mp4": root / "b" / "clip.mp4"
    }


@pytest.mark.parametrize("name", ["\0", "/\0", "/" + "x" * 5000, "\ud800", "//", "C:/", ".", "..", "/"])
def test_odd_names_are_no_files(root, name):
    assert locate_videos(root, [name], tolerant=True) == {}


def test_what_computers_leave_behind_is_no_video(root):
    for name in ("._one.mp4", "~$one.mp4", "__MACOSX/one.mp4", "__MACOSX/a/._Clip.mp4"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    assert sorted(find_videos(root)) == ["a/Clip.mp4", "b/Deep/Sea.mp4", "b/Deep/Sea.webm", "b/clip.mp4", "one.MP4"]
    assert all(map(is_junk, ["Thumbs.db", ".DS_Store", "desktop.ini"])) and not is_junk("_x.mp4")


@pytest.mark.parametrize(
    ("about", "stems"),
    [
        (True, ["README", "read me", "LICENSE", "licence_en", "Copying"]),
        (False, ["reader", "clip", "licensed bar", "notices"]),
    ],
)
def test_texts_about_the_data_are_recognised(about, stems):
    assert {is_about(stem) for stem in stems} == {about}


def test_a_table_finds_its_videos_by_paths_of_windows(root, tmp_path):
    rows = ["C:\\Users\\me\\a\\clip.mp4;x", "C:\\Users\\me\\b\\clip.mp4;y", "C:\\Users\\me\\B\\DEEP\\sea.webm;z"]
    (tmp_path / "own.csv").write_text("\n".join(["File;Text", *rows]))
    catalog = load_catalog(format="csv", videos=root, annotations=tmp_path / "own.csv")
    assert [str(video.path.relative_to(root)) for video in catalog.train.videos] == [
        *("a/Clip.mp4", "b/clip.mp4", "b/Deep/Sea.webm")
    ]
    assert catalog.understood.header == ("video (File)", "caption (Text)")


def test_two_spellings_of_one_file_are_all_named(root, tmp_path):
    (tmp_path / "own.csv").write_text("video,caption\none,a\nONE.mp4,b\na/Clip,c\na/clip,d\n")
    with pytest.raises(DataError) as caught:
        load_catalog(format="csv", videos=root, annotations=tmp_path / "own.csv")
    assert [line.partition(" are the same file")[0] for line in str(caught.value).splitlines()] == [
        *("videos 'one' and 'ONE.mp4'", "videos 'a/Clip' and 'a/clip'")
    ]
