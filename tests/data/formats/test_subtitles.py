import pytest

from teachclip.data.annotations.catalog import load_catalog
from teachclip.data.annotations.records import Segment
from teachclip.data.formats.subtitles import read
from teachclip.errors import DataError

SRT = "1\n00:00:01,000 --> 00:00:02,500\n<i>a dog</i>\nruns &amp; {\\an8}barks\n\n"
SRT += "2\n01:00:03,250 --> 01:00:04,000\nnight\n"
VTT = (
    "WEBVTT - made by hand\n\nNOTE all of it\nis made up\n\nSTYLE\n::cue { color: red }\n\n"
    "intro\n00:01.000 --> 00:02.500 align:start\n<v Bob>a dog\nruns &amp; <00:01.500>barks\n\n"
    "01:00:03.250 --> 01:00:04.000\nnight\n"
)


def read_text(folder, text, name="clip.srt"):
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return read(annotations=folder)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("clip.srt", SRT),
        ("clip.vtt", VTT),
        ("clip.VTT", VTT.replace("\n", "\r\n")),
        ("clip.srt", SRT.replace("\n", "\r")),
        ("clip.srt", "\ufeff" + SRT.replace(",", ".")),
        ("clip.srt", SRT.encode("utf-16")),
        ("clip.srt", SRT.replace("1\n0", "0", 1).replace("2\n0", "0")),  # without numbers
        ("clip.srt", SRT.replace("\n\n", "\n")),  # without blank lines
        ("clip.srt", SRT.replace("1\n0", "1\n00:00:00,500 --> 00:00:00,900\n<b> </b>\n\n7\n0", 1)),  # no text
        ("clip.en.srt", SRT),
        ("clip.pt-BR.srt", SRT),
    ],
)
def test_each_cue_is_a_caption_of_its_seconds(tmp_path, name, text):
    found = read_text(tmp_path, text, name)
    assert [(caption.id, caption.text) for caption in found.train] == [
        ("clip[1-2.5]:0", "a dog runs & barks"),
        ("clip[3603.25-3604]:0", "night"),
    ]
    places = [(segment.start, segment.end) for segment in found.segments.values()]
    assert places == [(1.0, 2.5), (3603.25, 3604.0)]
    assert found.understood.header[2:] == ("start, seconds", "end, seconds")


def test_videos_are_found_with_and_without_language_and_lists_divide_them(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("a.mp4", "sub/b.mp4", "song.mix.mp4", "song.mp4"):
        (tmp_path / name).write_bytes(b"x")
    for name in ("a.en.srt", "sub/b.vtt", "song.mix.srt", "song.srt"):
        (tmp_path / name).write_text("00:00:01.000 --> 00:00:02.000\nhello\n")
    (tmp_path / "test.txt").write_text("sub/b\n")
    catalog = load_catalog(format="subtitles", videos=tmp_path, annotations=tmp_path, test=tmp_path / "test.txt")
    assert {video.id: video.path.name for video in catalog.train.videos} == {
        "a[1-2]": "a.mp4",
        "song.mix[1-2]": "song.mix.mp4",
        "song[1-2]": "song.mp4",
    }
    assert catalog.excluded == {"sub/b[1-2]": "no such file"} or [v.path.name for v in catalog.test.videos] == [
        "b.mp4"
    ]
    one = read(annotations=tmp_path / "a.en.srt")
    assert one.segments == {"a[1-2]": Segment("a.en", 1.0, 2.0, ("a",))}


def test_all_problems_are_named_and_no_cue_is_lost_unseen(tmp_path):
    lines = ["1", "00:00:aa,000 --> 00:00:02,500", "bad", "", "2", "00:00:05,000 --> 00:00:04,000", "back", ""]
    lines += ["lost words", "", "3", "00:00:06,000 --> 00:00:0", "cut", "", "00:00:07,000 --> 00:00:08,000", "fine"]
    with pytest.raises(DataError) as caught:
        read_text(tmp_path, "\n".join(lines))
    problems = [line.partition("clip.srt: ")[2] for line in str(caught.value).splitlines()]
    assert [problem.partition(": ")[0] for problem in problems] == ["line 2", "line 6", "line 9", "line 12"]
    assert "found '00:00:aa,000 --> 00:00:02,500'" in problems[0]
    assert problems[1].endswith("the cue ends at 4, which is not after its start, 5")
    assert problems[2].endswith("text without a time: 'lost words'")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "has no file with the extension .srt or .vtt"),
        ({"clip.srt": "1\n"}, "clip.srt has no captions; expected times such as"),
        ({"clip.srt": SRT, "clip.vtt": VTT}, "clip.srt and .*clip.vtt are of one video; remove one"),
        (
            {"clip.en.srt": SRT, "clip.de.srt": SRT},
            "clip.de.srt and .*clip.en.srt are of one video; keep the subtitles",
        ),
    ],
)
def test_folders_that_cannot_be_used_are_named(tmp_path, files, message):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        read(annotations=tmp_path)
