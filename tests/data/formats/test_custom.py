import datetime
import json
import math
import os

import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from teachclip.data.annotations.catalog import load_catalog
from teachclip.data.annotations.records import Segment
from teachclip.data.formats.custom import read_csv, read_jsonl, read_parquet, read_xlsx
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


def write_xlsx(path, rows):
    book = openpyxl.Workbook()
    for row in [list(rows[0]), *(list(row.values()) for row in rows)]:
        book.active.append(
            [str(cell) if isinstance(cell, float) and not math.isfinite(cell) else cell for cell in row]
        )
    book.save(path)


TABLES = {
    "csv": (write_csv, read_csv),
    "jsonl": (write_jsonl, read_jsonl),
    "parquet": (write_parquet, read_parquet),
    "xlsx": (write_xlsx, read_xlsx),
}
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
        ({"split": "exam"}, "'split' is 'exam'; allowed: train, validation, test"),
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
    place = {"csv": "line 3", "jsonl": "line 3", "parquet": "row 2", "xlsx": "sheet 'Sheet', row 3"}[kind]
    assert f"own.{kind}: {place}: " in str(caught.value) and "\n" not in str(caught.value)


@each_table
@pytest.mark.parametrize(
    ("value", "start"),
    [
        ("20.5", 20.5),
        (" 20,5 ", 20.5),
        ("0,333", 0.333),
        ("0:45", 45.0),
        ("90:00", 5400.0),
        ("1:02:03.5", 3723.5),
        ("01:02:03,500", 3723.5),
        ("62.3", 62.3),
        ("1:02.3", 62.3),
        (".5", 0.5),
        ("1e2", 100.0),
    ],
)
def test_times_are_seconds_or_clock_times(tmp_path, kind, value, start):
    quoted = f'"{value}"' if kind == "csv" else value
    (segment,) = read_rows(tmp_path, kind, [{"video": "x", "caption": "a", "start": quoted}]).segments.values()
    assert segment.start == start  # the same bits, however it is written


@pytest.mark.parametrize(
    "value",
    ["soon", "1:75", "1:60:00", "1:2:3:4", "1.234,5", "1 000", "1_0", "0:45 h", "-0:45", "٣", "9" * 400, ":5"],
)
def test_other_times_are_refused(tmp_path, value):
    with pytest.raises(DataError, match="line 2: 'start' must be a number of seconds, 0 or more, found '") as caught:
        read_bytes(tmp_path, f'video,caption,start\nx,a,"{value}"\n'.encode())
    assert len(str(caught.value)) < 400


def test_a_comma_before_three_digits_needs_another_time_that_shows_what_it_is(tmp_path):
    with pytest.raises(
        DataError, match=r"line 2: 'start' is '1,500', which may be 1\.500 or 1500; write 1500 or 1.500"
    ):
        read_bytes(tmp_path, b"video;caption;start\nx;a;1,500\n")
    found = read_bytes(tmp_path, b"video;caption;start\nx;a;1,500\nx;b;20,5\n")
    assert [segment.start for segment in found.segments.values()] == [1.5, 20.5]


@each_table
def test_files_without_training_rows_or_with_lists_are_refused(tmp_path, kind):
    assert read_rows(tmp_path, kind, [ROWS[3]]).train == []  # videos without captions may be what is trained on
    options = {"format": kind, "annotations": tmp_path / f"own.{kind}", "videos": tmp_path}
    (tmp_path / "y.mp4").touch()
    with pytest.raises(DataError, match="split train: it has no captions"):
        load_catalog(**options)
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
        b"video;caption\nx;a dog\n",
        b"video\tcaption\nx\ta dog\n",
        b"video|caption\nx|a dog\n",
        b"sep=;\nvideo;caption\nx;a dog\n",
        b"\xef\xbb\xbfSEP=;\r\nvideo;caption\r\nx;a dog\r\n",
        b'"sep=|"\nvideo|caption\nx|a dog\n',
        b"video,caption\rx,a dog\r",
        b'video, caption\nx, "a dog"\n',
        b"VIDEO,Caption\nx,a dog\n",
        b"File Name,Text\nx,a dog\n",
        b"who,video_id,sentence\nme,x,a dog\n",
        b"clip,video,caption\n7,x,a dog\n",
        b"video,caption,,\nx,a dog,,\n",
        b"video,caption\nx,a dog,,\n",
        b"video,caption,split\nx,a dog,\n",
        b"video,caption,Split\nx,a dog,TRAINING\n",
        "video,caption\nx,a dog\n".encode("utf-16"),
        b"\xfe\xff" + "video;caption\r\nx;a dog\r\n".encode("utf-16-be"),
        "video,caption\nx,a dog\n".encode("utf-32"),
        b"video,caption\n.\\x,a dog\n",
    ],
)
def test_usual_spellings_of_csv_give_the_same_caption(tmp_path, content):
    found = read_bytes(tmp_path, content)
    (caption,) = found.train
    assert (caption.video_id, caption.text) == ("x", "a dog") and not found.understood.doubts


def test_how_a_table_was_understood_is_told_with_its_first_rows(tmp_path):
    rows = "".join(f"a\\{number}.mp4;ein Hund, {number};0:0{number};;\n" for number in range(5))
    content = f"Datei;File;Text;Start (s);end;split\n{rows.replace('a', 'me;a', 5)}me;b;caf\xe9;;3;test\n"
    found = read_bytes(tmp_path, content.replace("me;me;", "me;").encode("cp1252"))
    told = found.understood
    assert told.title == (
        "own.csv, as it was understood: Windows-1252; separated by semicolon; ignored columns: Datei; "
        "rows: train 5, test 1; without split: 5, for training"
    )
    assert told.header == ("video (File)", "caption (Text)", "start, seconds (Start (s))", "end, seconds", "split")
    assert told.rows[1:] == (
        ("a/1.mp4", "ein Hund, 1", "1", "", "train"),
        ("a/2.mp4", "ein Hund, 2", "2", "", "train"),
    )
    assert [line.partition("own.csv: ")[2] for line in told.doubts] == [
        "line 7 is not UTF-8 (byte 0xe9), so the file is read as Windows-1252; check its accented letters, or "
        "save it as UTF-8"
    ]
    assert found.test[0].text == "café"


def test_ignored_columns_that_look_like_times_are_doubts(tmp_path):
    (doubt,) = read_bytes(tmp_path, b"video,caption,start_ms\nx,a,900\n").understood.doubts
    assert "column 'start_ms' is ignored; times are read from columns 'start' and 'end', in seconds" in doubt


def test_rows_over_several_lines_are_doubts_as_a_quote_too_many_makes_them(tmp_path):
    (doubt,) = read_bytes(tmp_path, b'video,caption\nw,fine\nx,"a dog\ny,a cat\nz,a pup"\n').understood.doubts
    assert "line 3: 1 row goes over several lines; check that their double quotes close where they should" in doubt


def test_all_problems_of_a_table_are_in_one_report(tmp_path):
    content = b'video,caption,start,split\nx,,soon,exam\ny,a\nz,"a" b,,\nv,fine,0:45,\n,a,,\nw,"open\n'
    with pytest.raises(DataError) as caught:
        read_bytes(tmp_path, content)
    places = [line.partition("own.csv: ")[2] for line in str(caught.value).splitlines()]
    assert [place.partition(" has ")[0].partition(":")[0] for place in places] == [
        *("line 3", "line 4", "line 7"),
        *("line 2", "line 2", "line 2", "line 6"),
    ]
    assert places[2] == 'line 7: a double quote (") opens in this row and is never closed'
    with pytest.raises(DataError) as caught:
        read_bytes(tmp_path, b"video,caption\n" + b"x,\n" * 1021)
    lines = str(caught.value).splitlines()
    assert len(lines) == 21 and lines[-1] == "... and 1,001 more problems"


def test_quoted_captions_may_hold_commas_quotes_and_line_breaks(tmp_path):
    found = read_bytes(tmp_path, 'video,caption\nx,"a ""dog"", a cat\nand é"\n'.encode())
    assert found.train[0].text == 'a "dog", a cat\nand é'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "own.csv is empty"),
        (b"video,caption\n", "has a header but no rows"),
        (b"video,words\nx,a\n", "line 1 has no column 'caption'; found: video, words; known names: caption, cap"),
        (b"video,captoin\nx,a\n", "did you mean captoin"),
        (
            b"video/caption\nx/a\n",
            "line 1 has no columns 'video' and 'caption'; found: video/caption; a first line must name them",
        ),
        (b"Video,caption,VIDEO\nx,a,y\n", "column 'Video' twice"),
        (
            b"file,caption,clip\nx,a,y\n",
            "columns 'file' and 'clip' may both be the video; call the right one 'video'",
        ),
        (b"sep=:\nvideo:caption\nx:a\n", "line 1: sep=:; allowed: comma, semicolon, tab, pipe"),
        (
            b"video,caption,x|video|caption\nx|a\n",
            "may be separated by .*; say which in a first line such as sep",
        ),
        (b"video,caption,video\nx,a,y\n", "column 'video' twice"),
        (b"video,caption,start,start\nx,a,1,2\n", "column 'start' twice"),
        (b"video,caption\nx,a\ny,\n", "line 3: 'caption' is empty .beside 'y'"),
        (b"video,caption\n,a\n", "line 2: 'video' is empty .beside 'a'"),
        (
            b"video,caption\nx,a dog, a cat\n",
            "line 2 has 3 values, the header has 2; put a value with a comma between",
        ),
        (b"video,caption\nx\n", "line 2 has 1 values, the header has 2$"),
        (b"video,caption\nx,\xc3\xa9\ny,caf\xe9\n", "line 3 is not UTF-8 .byte 0xe9.; save it as UTF-8"),
        ("video,caption\nx,a\ny,собака\n".encode("cp1251"), "line 3 is not UTF-8 .byte 0xf1.; save it as UTF-8"),
        ("video,caption\nx,犬が走る\n".encode("shift-jis"), "line 2 is not UTF-8"),
        (b"video,caption\nx,caf\x81\n", "line 2 is not UTF-8"),
        ("video,caption\nx,a\n".encode("utf-16-le"), "as UTF-16 without a byte order mark; save it as UTF-8"),
        ("video,caption\nx,a\n".encode("utf-16")[:-1], "own.csv is damaged: its mark says UTF-16, byte 36 is not"),
        (b'video,caption\nx,"a dog\ny,b\n', "line 2: a double quote .* opens in this row and is never closed"),
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
        (b'{"video": "x"}\n', "has no column 'caption'; found: video"),
        (b'{"video": "x", "text": "a"}\n{"video": "x"}\n', "line 2: 'caption' is missing"),
        (b'{"video": 7, "caption": "a"}', "line 1: 'video' must be text, found 7"),
        (b'{"video": "x", "caption": ["a"]}', "line 1: 'caption' must be text, found a list"),
        (
            b'{"video": "x", "caption": "a", "start": "soon"}',
            "'start' must be a number of seconds, .*, found 'soon'",
        ),
        (b'{"video": "x", "caption": "a", "start": true}', "'start' must be .*, found True"),
        (b'{"video": "x", "caption": "a", "split": ["test"]}', "'split' is a list; allowed: train"),
        (b'{"video": "x", "video": "y", "caption": "a"}', "line 1: key 'video' is duplicated"),
        (b'{"video": "x", "caption": "a"}\n\n{"video": "caf\xe9\xc3\xa9"}', "line 3 is not UTF-8"),
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
    with pytest.raises(DataError, match=r"has no column 'caption'; found: video, captoin; did you mean captoin\?"):
        read_rows(tmp_path, "parquet", [{"video": "x", "captoin": "a"}])
    with pytest.raises(DataError, match="has column 'start' twice"):
        pq.write_table(pa.table([pa.array(["x"])] * 4, ["video", "caption", "start", "start"]), whole)
        read_parquet(annotations=whole)
    with pytest.raises(DataError, match="has a header but no rows"):
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


# Workbooks


def book_of(path, sheets):
    """Write a workbook: rows of each sheet by its name."""
    book = openpyxl.Workbook()
    book.remove(book.active)
    for name, rows in sheets.items():
        sheet = book.create_sheet(name)
        for row in rows:
            sheet.append(row)
    return book


def test_cells_of_a_workbook_are_what_it_shows(tmp_path):
    rows = [
        ["Clip", "Text", "Start", "End"],
        [7, "a dog", datetime.time(0, 45), datetime.time(0, 1, 5)],
        [8.0, 5, 1.5],
    ]
    book = book_of(tmp_path, {"notes": [["hello"]], "data": rows, "none": []})
    book["data"]["C2"].number_format, book["data"]["D2"].number_format = "h:mm", "[h]:mm:ss"
    book["data"].append([None] * 5)
    book.save(tmp_path / "own.xlsx")
    found = read_xlsx(annotations=tmp_path / "own.xlsx")
    assert found.segments == {"7[45-65]": Segment("7", 45.0, 65.0), "8[1.5-]": Segment("8", 1.5, None)}
    assert [caption.text for caption in found.train] == ["a dog", "5"]
    assert "sheet 'data'; ignored sheets: notes, none; rows: train 2" in found.understood.title
    (doubt,) = found.understood.doubts
    assert "times shown as 0:45 are read as minutes and seconds" in doubt


@pytest.mark.parametrize(
    ("sheets", "message"),
    [
        ({"a": [], "b": []}, r"own\.xlsx is empty"),
        ({"a": [["video", "words"]]}, "sheet 'a', row 1 has no column 'caption'; found: video, words"),
        ({"a": [["video", "text"]]}, r"own\.xlsx has a header but no rows"),
        (
            {name: [["video", "text"]] for name in "ab"},
            "sheets 'a' and 'b' have the columns; keep one, or save it as CSV",
        ),
        (
            {"a": [["video", "text", "end"], ["x", "a", datetime.date(2026, 1, 2)]]},
            "'end' must be .*, found '2026-01-02",
        ),
    ],
)
def test_workbooks_that_cannot_be_used_are_named(tmp_path, sheets, message):
    book_of(tmp_path, sheets).save(tmp_path / "own.xlsx")
    with pytest.raises(DataError, match=message):
        read_xlsx(annotations=tmp_path / "own.xlsx")


def test_damaged_workbooks_are_named(tmp_path):
    write_xlsx(tmp_path / "whole.xlsx", ROWS)
    whole = (tmp_path / "whole.xlsx").read_bytes()
    for content in (b"", b"video,caption\n", whole[:-30], whole[:200] + bytes(400) + whole[600:]):
        with pytest.raises(DataError, match=r"own\.xlsx cannot be read as an \.xlsx workbook: ") as caught:
            read_bytes(tmp_path, content, "xlsx")
        assert "\n" not in str(caught.value)


@each_table
def test_a_pipe_is_refused_at_once(tmp_path, kind):
    os.mkfifo(tmp_path / f"own.{kind}")
    with pytest.raises(DataError, match=rf"own\.{kind} is a pipe or a device; give a regular file"):
        TABLES[kind][1](annotations=tmp_path / f"own.{kind}")
