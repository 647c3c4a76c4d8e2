import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from teachclip.data.annotations.records import Segment
from teachclip.data.formats.custom import read_csv, read_jsonl, read_parquet
from teachclip.errors import DataError

ROWS = [
    {"video": "x", "caption": "a dog", "start": 0, "end": 2.5, "split": "train"},
    {"video": "x", "caption": "a pup", "start": 2.5, "end": None, "split": "train"},
    {"video": "x", "caption": "a hound", "start": None, "end": 2.5, "split": "train"},
    {"video": "y.mp4", "caption": "a cat", "start": None, "end": None, "split": "test"},
    {"video": "y.mp4", "caption": "all of it", "start": 0, "end": None, "split": "test"},
    {"video": "z", "caption": "late", "start": 100, "end": 3600.125, "split": "validation"},
]


def write_csv(path, rows):
    lines = [",".join("" if value is None else str(value) for value in row.values()) for row in rows]
    path.write_text("\n".join([",".join(rows[0]), *lines]), encoding="utf-8")


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n\n" for row in rows), encoding="utf-8")


def write_parquet(path, rows):
    pq.write_table(pa.Table.from_pylist(rows), path)


TABLES = {"csv": (write_csv, read_csv), "jsonl": (write_jsonl, read_jsonl), "parquet": (write_parquet, read_parquet)}
each_table = pytest.mark.parametrize("kind", TABLES)


def read_rows(folder, kind, rows):
    write, read = TABLES[kind]
    write(folder / f"own.{kind}", rows)
    return read(annotations=folder / f"own.{kind}")


def read_bytes(folder, content: bytes, kind="csv"):
    path = folder / f"own.{kind}"
    path.write_bytes(content)
    return TABLES[kind][1](annotations=path)


@each_table
def test_parts_of_a_file_are_videos_of_their_own(tmp_path, kind):
    found = read_rows(tmp_path, kind, ROWS)
    assert [(caption.id, caption.text) for caption in found.train] == [
        ("x[0-2.5]:0", "a dog"),
        ("x[2.5-]:0", "a pup"),
        ("x[0-2.5]:1", "a hound"),
    ]
    assert [caption.id for caption in found.test] == ["y.mp4:0", "y.mp4:1"]  # from 0 to the end is all of it
    assert found.segments == {
        "x[0-2.5]": Segment("x", None, 2.5),
        "x[2.5-]": Segment("x", 2.5, None),
        "z[100-3600.125]": Segment("z", 100.0, 3600.125),
    }
    assert [caption.video_id for caption in found.validation] == ["z[100-3600.125]"]


@each_table
def test_video_and_caption_are_enough_and_other_columns_are_ignored(tmp_path, kind):
    found = read_rows(tmp_path, kind, [{"who": "me", "caption": " a dog ", "video": "x"}])
    assert [(caption.video_id, caption.text) for caption in found.train] == [("x", "a dog")]
    assert found.validation is None and found.test is None and not found.segments


@each_table
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"caption": " "}, "'caption' is empty"),
        ({"video": ""}, "'video' is empty"),
        ({"split": "val"}, "'split' is 'val'; allowed: train, validation, test"),
        ({"split": "test"}, r"video 'x\[2.5-\]' is in split test, but in train above"),
        ({"start": -1}, "'start' must be a number of seconds, 0 or more, found "),
        ({"end": float("nan")}, "'end' must be a number of seconds, 0 or more, found "),
        ({"end": float("inf")}, "'end' must be a number of seconds"),
        ({"end": 0}, "'end' must be above 0"),
        ({"end": 2.5}, "'start' is 2.5, which is not before 'end', 2.5"),
        ({"end": 1}, "'start' is 2.5, which is not before 'end', 1"),
    ],
)
def test_wrong_values_are_named_with_their_row(tmp_path, kind, change, message):
    rows = [ROWS[1], {**ROWS[1], **change}]
    with pytest.raises(DataError, match=message) as caught:
        read_rows(tmp_path, kind, rows)
    place = {"csv": "line 3", "jsonl": "line 3", "parquet": "row 2"}[kind]
    assert f"own.{kind}: {place}: " in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("value", ["soon", "1:30", "2,5"])
def test_times_in_a_csv_are_plain_seconds(tmp_path, value):
    with pytest.raises(DataError, match=f"line 2: 'start' must be a number of seconds, 0 or more, found '{value}'"):
        read_bytes(tmp_path, f'video,caption,start\nx,a,"{value}"\n'.encode())


@each_table
def test_files_without_training_rows_or_with_lists_are_refused(tmp_path, kind):
    with pytest.raises(DataError, match="no row is in split train"):
        read_rows(tmp_path, kind, [ROWS[3]])
    for name in ("train", "validation", "test"):
        with pytest.raises(DataError, match="does not take lists of videos; add a column 'split'"):
            TABLES[kind][1](annotations=tmp_path / f"own.{kind}", **{name: tmp_path / "list.csv"})


def test_a_file_called_like_a_part_of_another_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"line 3: video 'x\[0-5\]' is also a segment of another file above"):
        read_bytes(tmp_path, b"video,caption,end\nx,a,5\nx[0-5],b,\n")


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
        (b"video,caption,start,start\nx,a,1,2\n", "column 'start' twice"),
        (b"video,caption\nx,a\ny,\n", "line 3: 'caption' is empty .beside 'y'"),
        (b"video,caption\n,a\n", "line 2: 'video' is empty .beside 'a'"),
        (
            b"video,caption\nx,a dog, a cat\n",
            "line 2 has 3 values, the header has 2; put a value with commas between",
        ),
        (b"video,caption\nx\n", "line 2 has 1 values, the header has 2$"),
        (b"video,caption,split\nx,a,\n", "line 2: 'split' is ''; allowed"),
        (b"video,caption\nx,a\ny,caf\xe9\n", "line 3 is not UTF-8 .byte 0xe9"),
        ("video,caption\nx,a\n".encode("utf-16"), "line 1 is not UTF-8"),
        (b'video,caption\nx,"a dog\ny,b\n', "unexpected end of data"),
    ],
)
def test_damaged_csv_files_are_named_with_their_line(tmp_path, content, message):
    with pytest.raises(DataError, match=message) as caught:
        read_bytes(tmp_path, content)
    assert str(tmp_path / "own.csv") in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b" \n", "own.jsonl is empty"),
        (b'{"video": "x", "caption": "a"}\n{"video": "y",\n', "line 2: column 15: broken JSON"),
        (b'{"video": "x", "caption": "a"}\n["y", "b"]\n', "line 2 must hold a JSON object, found a list"),
        (b'{"video": "x"}\n', "line 1: 'caption' is missing"),
        (b'{"video": 7, "caption": "a"}', "line 1: 'video' must be text, found 7"),
        (b'{"video": "x", "caption": ["a"]}', "line 1: 'caption' must be text, found a list"),
        (
            b'{"video": "x", "caption": "a", "start": "1"}',
            "'start' must be a number of seconds, .*, found '1'",
        ),
        (b'{"video": "x", "caption": "a", "start": true}', "'start' must be .*, found True"),
        (b'{"video": "x", "caption": "a", "split": ["test"]}', "'split' is a list; allowed: train"),
        (b'{"video": "x", "video": "y", "caption": "a"}', "line 1: key 'video' is duplicated"),
        (b'{"video": "x", "caption": "a"}\n\n{"video": "caf\xe9"}', "line 3 is not UTF-8"),
    ],
)
def test_damaged_json_lines_are_named(tmp_path, content, message):
    with pytest.raises(DataError, match=message) as caught:
        read_bytes(tmp_path, content, "jsonl")
    assert str(tmp_path / "own.jsonl") in str(caught.value) and "\n" not in str(caught.value)


def test_json_lines_may_have_a_byte_order_mark_and_line_ends_of_windows(tmp_path):
    content = b'\xef\xbb\xbf{"video": "x", "caption": "a"}\r\n{"video": "x", "caption": "b\\u2028c"}\r\n'
    assert [caption.text for caption in read_bytes(tmp_path, content, "jsonl").train] == ["a", "b\u2028c"]


def test_damaged_parquet_files_are_named(tmp_path):
    whole = tmp_path / "whole.parquet"
    write_parquet(whole, ROWS)
    for content in (b"", b"video,caption\n", whole.read_bytes()[:-20]):
        with pytest.raises(DataError, match=r"own\.parquet cannot be read as Parquet: ") as caught:
            read_bytes(tmp_path, content, "parquet")
        assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match=r"has no column 'caption'; found: video, captions; did you mean captions\?"):
        read_rows(tmp_path, "parquet", [{"video": "x", "captions": "a"}])
    with pytest.raises(DataError, match="has column 'start' twice"):
        pq.write_table(pa.table([pa.array(["x"])] * 4, ["video", "caption", "start", "start"]), whole)
        read_parquet(annotations=whole)
    with pytest.raises(DataError, match="has no rows"):
        pq.write_table(pa.table({"video": pa.array([], pa.string()), "caption": pa.array([], pa.string())}), whole)
        read_parquet(annotations=whole)
    with pytest.raises(DataError, match="row 1: 'video' must be text, found 7"):
        read_rows(tmp_path, "parquet", [{"video": 7, "caption": "a"}])


def test_parquet_columns_may_be_categories_or_large_text(tmp_path):
    table = pa.table(
        {"video": pa.array(["x", "x"]).dictionary_encode(), "caption": pa.array(["a", "b"], pa.large_string())}
    )
    pq.write_table(table, tmp_path / "own.parquet")
    assert [caption.id for caption in read_parquet(annotations=tmp_path / "own.parquet").train] == ["x:0", "x:1"]


@each_table
def test_missing_file_is_named(tmp_path, kind):
    with pytest.raises(DataError, match=f"none.{kind} cannot be read.*No such file"):
        TABLES[kind][1](annotations=tmp_path / f"none.{kind}")


@pytest.mark.parametrize("text", ["\ud800 a cat", "a\0cat"])
def test_half_a_surrogate_pair_and_nul_are_no_text(tmp_path, text):
    write_jsonl(tmp_path / "own.jsonl", [{"video": "a", "caption": text}])  # which escapes them
    with pytest.raises(DataError, match="caption 'a:0' of 'a' is not valid text"):
        read_jsonl(annotations=tmp_path / "own.jsonl")
