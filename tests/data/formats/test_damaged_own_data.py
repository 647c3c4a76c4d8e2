"""Damaged files of one's own: they are read, or refused in one report; nothing else happens."""

import json
import random

import openpyxl
import pytest

from teachclip.data.annotations.catalog import load_catalog
from teachclip.data.formats.own_tables import COLUMNS
from teachclip.data.formats.problems import MAX_SHOWN
from teachclip.errors import DataError

ROWS = [
    ("a.mp4", "ein Hund, läuft", "0", "2,5", "train"),
    ("b", 'a "cat"\nsleeps', "0:02", "1:02:03.5", "Val"),
    ("A", "x"),
]
SEMICOLONS = 'sep=;\r\nVideo;Text;start;end;split\r\n"a.mp4";"ein Hund; läuft";0;2,5;\r\nB;x;0:02;1:02:03.5;Test\r\n'
SRT = "1\n00:00:01,000 --> 00:00:02,500\n<i>a</i> dog\n\n2\n00:01:03,250 --> 00:01:04,000\nnight &amp; day\n"
PIECES = [
    b",",
    b";",
    b'"',
    b"\r",
    b"\n\n",
    b"\0",
    b"\xff\xfe",
    b"\xe9",
    b"sep=",
    b"1,500",
    b"-->",
    b"9" * 400,
    b"\\",
    b"/",
]
PIECES += [b"{", b"null", b"\\ud800", b"&#xD800;", b"\x1b[31m", b"video", b"caption", b"C:\\", b" " * 200]


def json_lines():
    return "".join(json.dumps(dict(zip(COLUMNS, row, strict=False))) + "\n" for row in ROWS)


FILES = {
    "csv": ("own.csv", SEMICOLONS.encode()),
    "csv in UTF-16": ("own.csv", SEMICOLONS.encode("utf-16")),
    "csv in Windows-1252": ("own.tsv", SEMICOLONS.replace(";", "\t").encode("cp1252")),
    "jsonl": ("own.jsonl", json_lines().encode()),
    "subtitles": ("a.srt", SRT.encode()),
    "subtitles of the web": ("a.vtt", b"WEBVTT\n\nNOTE x\n\n" + SRT.replace(",", ".").encode()),
    "text_files": ("a.txt", "a dog\r\nläuft\n".encode()),
    "xlsx": ("own.xlsx", b""),
}


def damaged(draw, content):
    """Return a file with a few bytes flipped, removed, repeated, replaced or cut off."""
    content = bytearray(content)
    for _ in range(draw.randint(1, 5)):
        start = draw.randrange(len(content) + 1)
        stop = min(len(content), start + draw.choice([1, 2, 5, 20, 100]))
        choices = [b"", content[start:stop] * 2, draw.choice(PIECES), draw.randbytes(stop - start)]
        content[start : len(content) if draw.random() < 0.1 else stop] = draw.choice(choices)
    return bytes(content)


@pytest.mark.parametrize("kind", FILES)
def test_damaged_files_are_read_or_refused_in_one_report(tmp_path, kind):
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / name).write_bytes(b"x")
    name, content = FILES[kind]
    path = tmp_path / "captions" / name
    path.parent.mkdir()
    if kind == "xlsx":
        book = openpyxl.Workbook()
        for row in (list(COLUMNS), *ROWS):
            book.active.append(row)
        book.save(path)
        content = path.read_bytes()
    format = kind.partition(" ")[0]
    annotations = path.parent if format in ("subtitles", "text_files") else path
    draw, refused = random.Random(kind), 0
    for _ in range(40):
        path.write_bytes(damaged(draw, content))
        try:
            catalog = load_catalog(format=format, videos=tmp_path, annotations=annotations, max_missing=0.5)
            assert catalog.train.captions and catalog.understood.rows
        except DataError as error:
            refused += 1
            lines = str(error).splitlines()
            assert all(lines) and len(lines) <= MAX_SHOWN + 1 and all(len(line) < 1000 for line in lines)
    assert refused
