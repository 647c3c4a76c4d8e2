from pathlib import Path

import numpy as np
import pytest

from teachclip.data.annotations.catalog import ValidationOptions, choose_held_out, load_catalog, require_readable
from teachclip.data.annotations.files import EXTENSIONS
from teachclip.data.annotations.records import Caption, Catalog, Split, Video
from teachclip.errors import DataError, RecipeError


def own_data(folder: Path, rows: list[str], files: list[str] | None = None, header="video,caption,split") -> dict:
    videos = folder / "videos"
    videos.mkdir()
    for name in files if files is not None else sorted({row.split(",")[0] + ".mp4" for row in rows}):
        (videos / name).parent.mkdir(parents=True, exist_ok=True)
        (videos / name).write_bytes(b"x")
    annotations = folder / "captions.csv"
    annotations.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return {"format": "csv", "videos": videos, "annotations": annotations}


def numbered(count: int, split: str = "train", start: int = 0) -> list[str]:
    return [f"v{number},caption {number},{split}" for number in range(start, start + count)]


def test_captions_are_grouped_by_video_in_the_order_of_the_file(tmp_path):
    rows = ["b,one,train", "a,two,train", "b,three,train", "t,four,test"]
    catalog = load_catalog(**own_data(tmp_path, rows))
    assert [video.id for video in catalog.train.videos] == ["b", "a"]
    assert [caption.text for caption in catalog.train.captions] == ["one", "three", "two"]
    assert catalog.train.caption_videos.tolist() == [0, 0, 1]
    assert catalog.train.caption_videos.dtype == np.int64
    assert [video.id for video in catalog.videos] == ["b", "a", "t"]
    assert all(video.path.is_file() for video in catalog.videos)
    assert catalog.validation is None and catalog.excluded == {}


def test_held_out_videos_do_not_depend_on_the_order_of_the_file_or_on_other_videos(tmp_path):
    rows = numbered(40)
    options = ValidationOptions(videos=10, seed=3)
    folders = [tmp_path / name for name in "abcd"]
    for folder in folders:
        folder.mkdir()
    first = load_catalog(**own_data(folders[0], rows), validation=options)
    turned = load_catalog(**own_data(folders[1], rows[::-1]), validation=options)
    held = {video.id for video in first.validation.videos}
    assert len(held) == 10 and held == {video.id for video in turned.validation.videos}
    assert held.isdisjoint(video.id for video in first.train.videos) and len(first.train.videos) == 30
    other_seed = load_catalog(**own_data(folders[2], rows), validation=ValidationOptions(videos=10, seed=4))
    assert held != {video.id for video in other_seed.validation.videos}
    trained = sorted(video.id for video in first.train.videos)[:15]
    fewer = [row for row in rows if row.split(",")[0] not in trained]
    kept = load_catalog(**own_data(folders[3], fewer), validation=options)
    assert held == {video.id for video in kept.validation.videos} and len(kept.train.videos) == 15


def test_held_out_videos_never_come_from_test(tmp_path):
    rows = numbered(10) + numbered(10, "test", 10)
    catalog = load_catalog(**own_data(tmp_path, rows), validation=ValidationOptions(videos=9))
    assert [video.id for video in catalog.test.videos] == [f"v{number}" for number in range(10, 20)]
    assert len(catalog.train.videos) == 1


def test_own_validation_split_goes_before_held_out_videos(tmp_path):
    rows = numbered(4) + numbered(2, "validation", 4)
    catalog = load_catalog(**own_data(tmp_path, rows), validation=ValidationOptions(videos=1))
    assert [video.id for video in catalog.validation.videos] == ["v4", "v5"]
    assert len(catalog.train.videos) == 4


@pytest.mark.parametrize("count", [0, 3, 4])
def test_holding_out_no_or_all_videos_is_refused(tmp_path, count):
    with pytest.raises(DataError, match=f"validation.videos is {count}; allowed: 1 to 2"):
        load_catalog(**own_data(tmp_path, numbered(3)), validation=ValidationOptions(videos=count))


def test_missing_videos_are_named_up_to_five_with_their_number(tmp_path):
    data = own_data(tmp_path, numbered(10), ["v0.mp4", "v1.mp4"])
    with pytest.raises(
        DataError, match=r"8 of 10 videos are not below .*v2 .*v6 .*and 3 more.*max_missing=0.8 "
    ) as caught:
        load_catalog(**data)
    assert "v7" not in str(caught.value) and "\n" not in str(caught.value)
    assert load_catalog(**data, max_missing=0.8).train.provenance()["videos"] == 2


def test_few_missing_videos_are_left_out_and_recorded(tmp_path):
    data = own_data(tmp_path, numbered(10), [f"v{number}.mp4" for number in range(9)])
    catalog = load_catalog(**data, max_missing=0.1)
    assert len(catalog.train.videos) == len(catalog.train.captions) == 9
    assert catalog.excluded == {"v9": "no such file"} and catalog.incomplete_splits == {"train": "9 of 10"}


def test_split_without_any_file_is_refused(tmp_path):
    data = own_data(tmp_path, [*numbered(3), "t,text,test"], ["v0.mp4", "v1.mp4", "v2.mp4"])
    with pytest.raises(DataError, match="split test: none of its videos"):
        load_catalog(**data, max_missing=0.5)


def test_unreadable_videos_are_refused_or_left_out(tmp_path):
    catalog = load_catalog(**own_data(tmp_path, [*numbered(9), "t,text,test"]))
    failures = {"v1": "cannot be decoded (PyAV: bad)", "elsewhere": "not of this catalogue"}
    with pytest.raises(DataError, match=r"1 of 10 videos cannot be read: v1 \(cannot be decoded \(PyAV: bad\)\); "):
        require_readable(catalog, failures, max_missing=0.05)
    kept = require_readable(catalog, failures, max_missing=0.1)
    assert [video.id for video in kept.train.videos] == [f"v{number}" for number in (0, *range(2, 9))]
    assert [caption.video_id for caption in kept.train.captions] == [video.id for video in kept.train.videos]
    assert kept.excluded == {"v1": failures["v1"]} and kept.test == catalog.test
    assert require_readable(catalog, {}, max_missing=0.0) is catalog


def test_unreadable_videos_count_together_with_missing_ones(tmp_path):
    data = own_data(tmp_path, numbered(10), [f"v{number}.mp4" for number in range(9)])
    catalog = load_catalog(**data, max_missing=0.1)
    with pytest.raises(DataError, match=r"1 of 10 videos .*max_missing=0.2 \(now 0.1\)"):
        require_readable(catalog, {"v0": "bad"}, max_missing=0.1)
    assert set(require_readable(catalog, {"v0": "bad"}, max_missing=0.2).excluded) == {"v0", "v9"}


def test_unknown_format_suggests_the_nearest_name(tmp_path):
    with pytest.raises(RecipeError, match="did you mean msrvtt"):
        load_catalog(format="msrvt", videos=tmp_path, annotations=tmp_path)


def test_video_folder_that_is_missing_or_empty_is_named(tmp_path):
    data = own_data(tmp_path, numbered(2), [])
    with pytest.raises(DataError, match=r"videos has no file with the extension \.mp4"):
        load_catalog(**data)
    with pytest.raises(DataError, match="nowhere does not exist"):
        load_catalog(**{**data, "videos": tmp_path / "nowhere"})
    with pytest.raises(DataError, match=r"captions\.csv is a file"):
        load_catalog(**{**data, "videos": data["annotations"]})


@pytest.mark.parametrize("name", ["clip", "clip.mp4", "sub/clip", "sub/clip.mp4", "./sub/clip.mp4"])
def test_video_is_found_by_name_or_relative_path(tmp_path, name):
    catalog = load_catalog(**own_data(tmp_path, [f"{name},text,train"], ["sub/clip.mp4", "other.mp4"]))
    assert catalog.videos[0].path == tmp_path / "videos" / "sub" / "clip.mp4"


@pytest.mark.parametrize("file", [f"v.1{extension}" for extension in (*EXTENSIONS, ".AVI")])
def test_usual_extensions_are_found_for_ids_with_dots(tmp_path, file):
    assert load_catalog(**own_data(tmp_path, ["v.1,text,train"], [file])).videos[0].path.name == file


def test_first_extension_of_one_folder_is_taken_and_two_folders_are_refused(tmp_path):
    data = own_data(tmp_path, ["clip,text,train"], ["clip.webm", "clip.mp4"])
    assert load_catalog(**data).videos[0].path.name == "clip.mp4"
    (tmp_path / "videos" / "sub").mkdir()
    (tmp_path / "videos" / "clip.webm").rename(tmp_path / "videos" / "sub" / "clip.mp4")
    assert load_catalog(**data).videos[0].path == tmp_path / "videos" / "clip.mp4"  # its path, spelled out
    (tmp_path / "videos" / "clip.mp4").rename(tmp_path / "videos" / "sub" / "other.mp4")
    (tmp_path / "videos" / "late").mkdir()
    (tmp_path / "videos" / "sub" / "other.mp4").rename(tmp_path / "videos" / "late" / "clip.mp4")
    with pytest.raises(DataError, match=r"video 'clip' matches .*late/clip.mp4 and .*sub/clip.mp4"):
        load_catalog(**data)


def test_two_names_of_one_file_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"'a' and 'a\.mp4' are the same file"):
        load_catalog(**own_data(tmp_path, ["a,one,train", "a.mp4,two,test"], ["a.mp4"]))


def test_linked_folders_are_searched_without_going_in_circles(tmp_path):
    data = own_data(tmp_path, ["a,one,train"], ["x.mp4"])
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "a.mp4").write_bytes(b"x")
    (tmp_path / "videos" / "linked").symlink_to(tmp_path / "store")
    (tmp_path / "store" / "back").symlink_to(tmp_path / "videos")
    assert load_catalog(**data).videos[0].path.name == "a.mp4"


def test_accents_match_however_the_file_name_spells_them(tmp_path):
    assert (
        load_catalog(**own_data(tmp_path, ["caf\u00e9,text,train"], ["cafe\u0301.mp4"])).videos[0].id == "caf\u00e9"
    )


def test_circumstances_change_with_ids_texts_and_order():
    def split(*texts):
        videos = tuple(Video(f"v{number}", Path()) for number in range(len(texts)))
        return Split("train", videos, tuple(Caption(f"v{n}:0", f"v{n}", text) for n, text in enumerate(texts)))

    assert split("a", "b").provenance() == split("a", "b").provenance()
    found = [str(sorted(split(*texts).provenance().items())) for texts in (("a", "b"), ("b", "a"), ("a",), ("a,b",))]
    assert len(set(found)) == 4


def test_split_refuses_repeated_ids_and_captions_out_of_order():
    videos = (Video("a", Path()), Video("b", Path()))
    captions = (Caption("1", "a", "x"), Caption("2", "b", "y"), Caption("3", "a", "z"))
    with pytest.raises(DataError, match="grouped by video"):
        Split("train", videos, captions)
    with pytest.raises(DataError, match="grouped by video"):
        Split("train", videos[:1], captions[:2])
    with pytest.raises(DataError, match="grouped by video"):
        Split("train", videos, (Caption("t", "", "a text"), *captions[:2]))
    with pytest.raises(DataError, match="caption id '1' is duplicated"):
        Split("train", videos[:1], captions[:1] * 2)


def test_video_in_two_splits_is_refused():
    one = Split("train", (Video("a", Path()),), (Caption("a:0", "a", "x"),))
    two = Split("test", one.videos, one.captions)
    with pytest.raises(DataError, match="'a' is in two splits, train and test"):
        Catalog(train=one, test=two)


def test_parts_of_one_file_are_found_once_and_keep_their_times(tmp_path):
    rows = ["film,start,0,4,train", "film.mp4,middle,2,6,train", "film,end,6,,train", "other,all,,,train"]
    catalog = load_catalog(**own_data(tmp_path, rows, ["film.mp4", "other.avi"], "video,caption,start,end,split"))
    film = tmp_path / "videos" / "film.mp4"
    assert catalog.videos == (
        Video("film[0-4]", film, None, 4.0),
        Video("film.mp4[2-6]", film, 2.0, 6.0),
        Video("film[6-]", film, 6.0, None),
        Video("other", tmp_path / "videos" / "other.avi"),
    )


def test_one_part_under_two_names_is_refused(tmp_path):
    rows = ["film,one,0,4,train", "film.mp4,two,0,4,train"]
    data = own_data(tmp_path, rows, ["film.mp4"], "video,caption,start,end,split")
    with pytest.raises(DataError, match=r"'film\[0-4\]' and 'film.mp4\[0-4\]' are the same segment of the file"):
        load_catalog(**data)


def test_parts_of_one_file_are_held_out_together(tmp_path):
    rows = [f"film{film},words,{second},{second + 1},train" for film in range(10) for second in range(3)]
    data = own_data(tmp_path, rows, [f"film{film}.mp4" for film in range(10)], "video,caption,start,end,split")
    for asked, films in ((7, 2), (6, 2), (2, 1), (29, 9)):  # whole films, and not more than were asked for
        catalog = load_catalog(**data, validation=ValidationOptions(videos=asked))
        held = {video.path for video in catalog.validation.videos}
        assert len(held) == films and len(catalog.validation.videos) == 3 * films
        assert held.isdisjoint(video.path for video in catalog.train.videos)


@pytest.mark.parametrize(
    ("total", "share", "held"), [(2, 0.05, 1), (40, 0.05, 2), (100, 0.3, 30), (30_000, 0.05, 1000)]
)
def test_a_share_of_the_training_videos_is_held_out_one_at_least_and_not_too_many(total, share, held):
    files = {f"v{number}": f"v{number}.mp4" for number in range(total)}
    assert len(choose_held_out(files, ValidationOptions(share=share))) == held


def test_a_single_training_file_cannot_be_held_out():
    for files in ({"v": "v.mp4"}, {"v[0-1]": "v.mp4", "v[1-2]": "v.mp4"}):
        with pytest.raises(DataError, match=r"there is only one training file; data\.validation=null holds"):
            choose_held_out(files, ValidationOptions())


def test_how_much_of_each_split_is_used_is_known(tmp_path):
    rows = [*numbered(20), *numbered(10, "test", 20)]
    data = own_data(tmp_path, rows, [f"v{number}.mp4" for number in range(1, 30)])
    catalog = load_catalog(**data, max_missing=0.2, validation=ValidationOptions(videos=5))
    assert catalog.incomplete_splits == {"train": "14 of 15"}
    held = catalog.validation.videos[0].id
    kept = require_readable(catalog, {held: "bad", "v25": "bad"}, max_missing=0.2)
    assert kept.incomplete_splits == {"train": "14 of 15", "validation": "4 of 5", "test": "9 of 10"}
    ids = ("x",) * (1000 - len(kept.train.videos))
    assert "1,000" in Catalog(train=kept.train, excluded_ids={"train": ids}).incomplete_splits["train"]


READER = """
from teachclip.data.annotations.records import Annotations, Caption, Segment

def read(*, annotations, train, validation, test):
    named = [Caption(f"{name}:0", name, str(lists)) for name, lists in (("a", train), ("b", validation), ("c", test))]
    segments = {"a": Segment("film", 1.0, 2.0), "b": Segment("none", other_names=("b", "film"))}
    return Annotations(named[:1], named[1:2], named[2:], segments, {"test": {"d": "said to be broken"}})
"""


def test_a_reader_of_ones_own_gets_the_lists_and_says_where_videos_are(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_reader.py").write_text(READER)
    for name in ("film.mp4", "c.mp4"):
        (tmp_path / name).write_bytes(b"x")
    lists = {"train": Path("1.txt"), "validation": Path("2.txt"), "test": Path("3.txt")}
    options = {"format": "my_reader:read", "videos": tmp_path, "annotations": tmp_path, **lists}
    catalog = load_catalog(**options, max_missing=0.25)
    assert [caption.text for split in catalog.splits for caption in split.captions] == ["1.txt", "2.txt", "3.txt"]
    film = tmp_path / "film.mp4"
    assert catalog.videos == (Video("a", film, 1.0, 2.0), Video("b", film), Video("c", tmp_path / "c.mp4"))
    assert catalog.excluded == {"d": "said to be broken"} and catalog.incomplete_splits == {"test": "1 of 2"}
    with pytest.raises(DataError, match=r"1 of 4 videos .* or have no caption: d \(said to be broken\)"):
        load_catalog(**options)
