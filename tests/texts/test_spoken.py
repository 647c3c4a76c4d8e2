"""Subtitles beside videos as texts with times."""

import logging

import pytest

from teachclip.cli import texts as texts_command
from teachclip.data.annotations.catalog import load_catalog
from teachclip.texts.subtitles import Spoken, subtitles_of

CUES = "1\n00:00:01,000 --> 00:00:02,500\n<i>A dog</i>\nbarks\n\n2\n00:00:03,000 --> 00:00:04,000\na dog barks\n"


@pytest.fixture
def folder(tmp_path):
    """Three videos, subtitles of two of them in two places, and others that are of no video here."""
    root = tmp_path / "films"
    (root / "trip").mkdir(parents=True)
    for name in ("a.mp4", "trip/b.MP4", "a.b.mp4"):
        (root / name).write_bytes(b"not decoded here")
    (root / "a.srt").write_text(CUES)
    (root / "a.en.SRT").write_text(CUES.replace("dog", "cat"))
    (root / "trip" / "b.vtt").write_text("WEBVTT\n\n00:05.250 --> 00:06.000\na boat\n")
    (root / "trip" / "a.srt").write_text(CUES.replace("dog", "cow"))
    return root


def test_subtitles_are_those_beside_the_video_in_any_language(folder):
    files = {"a.mp4": folder / "a.mp4", "trip/b.MP4": folder / "trip" / "b.MP4", "a.b.mp4": folder / "a.b.mp4"}
    found = subtitles_of(files)
    assert Spoken("a.mp4", 1.0, 2.5, "A dog barks") in found and Spoken("trip/b.MP4", 5.25, 6.0, "a boat") in found
    assert sorted({item.video for item in found}) == ["a.mp4", "trip/b.MP4"]
    assert not any("cow" in item.text for item in found) and len(found) == 5


def test_a_file_that_cannot_be_read_is_named_and_excluded(folder, caplog):
    (folder / "a.srt").write_text("no times at all\n")
    with caplog.at_level(logging.WARNING):
        found = subtitles_of({"a.mp4": folder / "a.mp4"})
    assert [item.text for item in found] == ["A cat barks", "a cat barks"] and "a.srt" in caplog.text


def test_the_command_writes_texts_or_a_table_that_is_read_as_captions(folder, tmp_path, capsys):
    assert texts_command.main(["subtitles", str(folder), "--out", str(tmp_path / "texts.txt")]) == 0
    assert (tmp_path / "texts.txt").read_text().splitlines() == ["A cat barks", "A dog barks", "a boat"]
    assert "subtitles: 5 of 2 videos" in capsys.readouterr().err
    assert texts_command.main(["subtitles", str(folder), "--out", str(tmp_path / "said.csv")]) == 0
    catalog = load_catalog(videos=folder, format="csv", annotations=tmp_path / "said.csv")
    assert {video.start for video in catalog.train.videos} == {1.0, 3.0, 5.25}
    assert texts_command.main(["subtitles", str(folder), "--out", str(tmp_path / "said.parquet")]) == 2
    assert "said.parquet: allowed: a file that ends with .csv or .txt" in capsys.readouterr().err
    assert not (tmp_path / "said.parquet").exists()
    assert texts_command.main(["subtitles", str(folder)]) == 0
    assert capsys.readouterr().out == (tmp_path / "said.csv").read_text()
    assert texts_command.main(["subtitles", str(tmp_path / "films" / "trip" / "none")]) == 2
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "x.mp4").write_bytes(b"x")
    assert texts_command.main(["subtitles", str(empty)]) == 2
    assert "no video has subtitles beside it" in capsys.readouterr().err
