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
        ("a.txt", b"a\ncaf\xe9", r"a\.txt: line 2 is not UTF-8"),
        ("list.txt", b"ghost", r"list\.txt: line 1: video 'ghost' has no text file ghost\.txt"),
        ("list.txt", b"a\na", r"list\.txt: line 2: video 'a' is duplicated"),
    ],
)
def test_damage_is_named(folder, name, content, message):
    (folder / "list.txt").write_text("a")
    (folder / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read(annotations=folder, test=folder / "list.txt")


def test_a_text_file_without_video_is_named(folder):
    (folder / "README.txt").write_text("about")
    with pytest.raises(DataError, match=r"1 of 4 videos are not below .*: README \(no such file\)"):
        load_catalog(format="text_files", videos=folder, annotations=folder)


def test_folders_without_text_files_are_named(folder, tmp_path):
    (tmp_path / "none").mkdir()
    cases = {"none": "none has no file", "no": "no does not exist", "data/a.txt": "a.txt is a file; give the folder"}
    for name, message in cases.items():
        with pytest.raises(DataError, match=message):
            read(annotations=tmp_path / name)
