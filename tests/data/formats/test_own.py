import pytest

from teachclip.data.formats.own import read_csv as read
from teachclip.errors import DataError


def read_bytes(folder, content: bytes):
    path = folder / "own.csv"
    path.write_bytes(content)
    return read(annotations=path)


def test_columns_may_stand_in_any_order_and_others_are_ignored(tmp_path):
    found = read_bytes(tmp_path, b"split,caption,who,video\ntrain,a dog,me,x\ntest,a cat,you,y\ntrain,a pup,me,x\n")
    assert [(caption.id, caption.video_id, caption.text) for caption in found.train] == [
        ("x:0", "x", "a dog"),
        ("x:1", "x", "a pup"),
    ]
    assert [caption.text for caption in found.test] == ["a cat"]
    assert found.validation is None


def test_without_a_split_column_all_rows_are_for_training(tmp_path):
    found = read_bytes(tmp_path, b"video,caption\nx,a dog\n")
    assert len(found.train) == 1 and found.validation is None and found.test is None


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbfvideo,caption\nx,a dog\n",
        b"video,caption\r\nx,a dog\r\n",
        b"video,caption\nx,a dog",
        b"\n video , caption \n\n x , a dog \n\n",
        b'video,caption\n"x","a dog"\n',
    ],
    ids=["byte order mark", "CRLF", "no newline at the end", "blanks", "quotes"],
)
def test_usual_spellings_of_csv_give_the_same_caption(tmp_path, content):
    (caption,) = read_bytes(tmp_path, content).train
    assert (caption.video_id, caption.text) == ("x", "a dog")


def test_quoted_captions_may_hold_commas_quotes_and_line_breaks(tmp_path):
    found = read_bytes(tmp_path, 'video,caption\nx,"a ""dog"", a cat\nand é"\n'.encode())
    assert found.train[0].text == 'a "dog", a cat\nand é'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "own.csv is empty"),
        (b"video,caption\n", "has a header but no rows"),
        (b"video,text\nx,a\n", "line 1 has no column 'caption'; found: video, text"),
        (b"video,captions\nx,a\n", "did you mean captions"),
        (
            b"video;caption\nx;a\n",
            "line 1 has no column 'video'; found: video;caption; columns must be separated by commas",
        ),
        (b"video,caption,video\nx,a,y\n", "column 'video' twice"),
        (b"video,caption\nx,a\ny,\n", "line 3: 'caption' is empty .beside 'y'"),
        (b"video,caption\n,a\n", "line 2: 'video' is empty .beside 'a'"),
        (
            b"video,caption\nx,a dog, a cat\n",
            "line 2 has 3 values, the header has 2; put a value with commas between",
        ),
        (b"video,caption\nx\n", "line 2 has 1 values, the header has 2$"),
        (b"video,caption,split\nx,a,val\n", "line 2: 'split' is 'val'; allowed: train, validation, test"),
        (b"video,caption,split\nx,a,\n", "line 2: 'split' is ''; allowed"),
        (b"video,caption,split\nx,a,train\nx,b,test\n", "line 3: video 'x' is in split test, but in train above"),
        (b"video,caption,split\nx,a,test\n", "no row is in split train"),
        (b"video,caption\nx,a\ny,caf\xe9\n", "line 3 is not UTF-8 .byte 0xe9"),
        ("video,caption\nx,a\n".encode("utf-16"), "line 1 is not UTF-8"),
        (b'video,caption\nx,"a dog\ny,b\n', "unexpected end of data"),
    ],
)
def test_mistakes_are_named_with_file_and_line(tmp_path, content, message):
    with pytest.raises(DataError, match=message) as caught:
        read_bytes(tmp_path, content)
    assert str(tmp_path / "own.csv") in str(caught.value) and "\n" not in str(caught.value)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match="cannot be read: No such file"):
        read(annotations=tmp_path / "none.csv")


def test_lists_of_videos_are_refused(tmp_path):
    with pytest.raises(DataError, match="add a column 'split'"):
        read(annotations=tmp_path / "own.csv", train=tmp_path / "list.csv")
