import pytest

from teachclip.data.annotations.catalog import load_catalog
from teachclip.data.formats.text_files import read
from teachclip.errors import DataError


@pytest.fixture
def folder(tmp_path):
    """Text files beside their videos."""
    for name in ("a", "sub/b", "sub/c.d"):
        path = tmp_path / "data" / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(f"\ufeff{name} one\r\n\r\n {name} two \r\n".encode())
        path.with_suffix(".webm").write_bytes(b"x")
    return tmp_path / "data"


def videos(captions):
    return list(dict.fromkeys(caption.video_id for caption in captions))


def test_each_line_is_a_caption_of_the_video_beside_it(folder):
    found = read(annotations=folder)
    assert [(caption.id, caption.text) for caption in found.train][:3] == [
        ("a:0", "a one"),
        ("a:1", "a two"),
        ("sub/b:0", "sub/b one"),
    ]
    assert found.validation is None and found.test is None
    catalog = load_catalog(format="text_files", videos=folder, annotations=folder)
    assert [video.path for video in catalog.videos] == [folder / f"{name}.webm" for name in ("a", "sub/b", "sub/c.d")]


def test_lists_divide_the_videos(folder):
    (folder / "test.txt").write_text("sub/c.d\n")  # may lie among the text files
    found = read(annotations=folder, test=folder / "test.txt")
    assert videos(found.train) == ["a", "sub/b"] and videos(found.test) == ["sub/c.d"]
    (folder.parent / "train.txt").write_text("a")
    (folder.parent / "val.txt").write_text("sub/b")
    found = read(annotations=folder, train=folder.parent / "train.txt", validation=folder.parent / "val.txt")
    assert videos(found.validation) == ["sub/b"] and videos(found.train) == ["a"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"\n", r"a\.txt is empty"),
        ("a.txt", b"a\n\xc3\xa9caf\xe9", r"a\.txt: line 2 is not UTF-8"),
        ("list.txt", b"ghost", r"list\.txt: line 1: video 'ghost' has no file of captions such as ghost\.txt"),
        ("list.txt", b"a\na", r"list\.txt: line 2: video 'a' is duplicated"),
    ],
)
def test_damage_is_named(folder, name, content, message):
    (folder / "list.txt").write_text("a")
    (folder / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read(annotations=folder, test=folder / "list.txt")


def test_a_text_file_without_video_is_named(folder):
    (folder / "ghost.txt").write_text("about")
    with pytest.raises(DataError, match=r"1 of 4 videos are not below .*: ghost \(no such file\)"):
        load_catalog(format="text_files", videos=folder, annotations=folder)


def test_texts_about_the_data_and_what_computers_leave_are_ignored_and_told(folder):
    (folder / "sub" / "LICENSE.txt").write_text("all rights")
    (folder / "sub" / "Readme.txt").write_text("a film of a book")
    (folder / "sub" / "Readme.webm").write_bytes(b"x")  # a video of that name
    for name in ("._a.txt", "__MACOSX/sub/b.txt", "~$a.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"\x00\x05")
    found = read(annotations=folder)
    assert videos(found.train) == ["a", "sub/Readme", "sub/b", "sub/c.d"]
    assert found.understood.title == (
        "data, as it was understood: UTF-8; 4 text files, 7 captions; "
        "ignored: ._a.txt, __MACOSX/sub/b.txt, sub/LICENSE.txt and 1 more"
    )
    assert found.understood.rows == (("a", "a one"), ("a", "a two"), ("sub/Readme", "a film of a book"))


def test_texts_in_other_encodings_and_line_ends_are_read(folder):
    (folder / "a.txt").write_bytes("ein Hund\rläuft".encode("utf-16"))
    (folder / "sub" / "b.txt").write_bytes("café".encode("cp1252"))
    found = read(annotations=folder)
    assert [caption.text for caption in found.train[:3]] == ["ein Hund", "läuft", "café"]
    (doubt,) = found.understood.doubts
    assert "b.txt: line 1 is not UTF-8 (byte 0xe9), so the file is read as Windows-1252" in doubt


def test_all_problems_of_the_files_are_in_one_report(folder):
    (folder / "a.txt").write_text("\n")
    (folder / "sub" / "b.txt").write_bytes(b"\xff\xfe\x00")
    (folder.parent / "test.txt").write_text("sub/c.d.webm\nghost\n.\\sub\\spook\n")
    with pytest.raises(DataError) as caught:
        read(annotations=folder, test=folder.parent / "test.txt")
    lines = str(caught.value).splitlines()
    assert [line.partition(": ")[0].rpartition("/")[2] for line in lines[:2]] == ["test.txt", "test.txt"]
    assert "'ghost'" in lines[0] and "'sub/spook'" in lines[1]
    assert "a.txt is empty" in lines[2] and "b.txt is damaged" in lines[3] and len(lines) == 4


def test_folders_without_text_files_are_named(folder, tmp_path):
    (tmp_path / "none").mkdir()
    cases = {"none": "none has no file", "no": "no does not exist", "data/a.txt": "a.txt is a file; give the folder"}
    for name, message in cases.items():
        with pytest.raises(DataError, match=message):
            read(annotations=tmp_path / name)
