import json

import pytest

from teachclip.data.annotations.catalog import load_catalog
from teachclip.data.formats.msrvtt import read
from teachclip.errors import DataError

SPLITS = {"video0": "train", "video1": "train", "video2": "validate", "video3": "test", "video4": "test"}


def dataset(folder, **changes):
    """Write five videos with two sentences each, in an order that mixes the videos."""
    content = {
        "info": {"year": "2016"},
        "videos": [{"video_id": name, "url": "https://x", "split": split} for name, split in SPLITS.items()],
        "sentences": [
            {"sen_id": 10 * turn + number, "video_id": name, "caption": f"{name} sentence {turn}"}
            for turn in range(2)
            for number, name in enumerate(SPLITS)
        ],
    }
    path = folder / "data.json"
    path.write_text(json.dumps({**content, **changes}), encoding="utf-8")
    return path


def write(folder, name, text):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def texts(captions):
    return [caption.text for caption in captions]


def test_train_and_1k_a_test_lists(tmp_path):
    train = write(tmp_path, "train.csv", "video_id\nvideo4\nvideo0\n")
    test = write(tmp_path, "test.csv", "key,vid_key,video_id,sentence\nret0,msr3,video3,a dog runs on grass\n")
    found = read(annotations=dataset(tmp_path), train=train, test=test)
    assert texts(found.train) == [f"{name} sentence {turn}" for name in ("video4", "video0") for turn in range(2)]
    assert [caption.id for caption in found.train] == ["video4:0", "video4:1", "video0:0", "video0:1"]
    assert [(caption.id, caption.text) for caption in found.test] == [("video3:0", "a dog runs on grass")]
    assert found.validation is None


def test_splits_of_the_json_itself(tmp_path):
    found = read(annotations=dataset(tmp_path))
    assert [len(part) for part in (found.train, found.validation, found.test)] == [4, 2, 4]
    assert texts(found.validation) == ["video2 sentence 0", "video2 sentence 1"]


def test_test_list_beside_the_splits_of_the_json(tmp_path):
    test = write(tmp_path, "test.csv", "video_id,sentence\nvideo4,one\nvideo4,two\n")
    found = read(annotations=dataset(tmp_path), test=test)
    assert len(found.train) == 4 and len(found.validation) == 2
    assert [(caption.id, caption.text) for caption in found.test] == [("video4:0", "one"), ("video4:1", "two")]


def test_test_list_without_sentences_takes_all_captions(tmp_path):
    train = write(tmp_path, "train.csv", "video_id\nvideo0\n")
    test = write(tmp_path, "test.csv", "video_id\nvideo3\n")
    assert len(read(annotations=dataset(tmp_path), train=train, test=test).test) == 2


def test_train_list_alone_gives_no_test_split(tmp_path):
    train = write(tmp_path, "train.csv", "video_id\nvideo3\n")
    assert read(annotations=dataset(tmp_path), train=train).test is None


def test_catalogue_of_the_dataset(tmp_path):
    train = write(tmp_path, "train.csv", "video_id\nvideo0\nvideo1\nvideo2\n")
    test = write(tmp_path, "test.csv", "key,vid_key,video_id,sentence\nret0,msr3,video3,a dog\n")
    (tmp_path / "videos").mkdir()
    for name in SPLITS:
        (tmp_path / "videos" / f"{name}.mp4").write_bytes(b"x")
    options = {"format": "msrvtt", "videos": tmp_path / "videos", "annotations": dataset(tmp_path)}
    catalog = load_catalog(**options, train=train, test=test)
    assert catalog.train.caption_videos.tolist() == [0, 0, 1, 1, 2, 2]
    assert [video.id for video in catalog.videos] == ["video0", "video1", "video2", "video3"]
    leak = write(tmp_path, "leak.csv", "video_id\nvideo0\nvideo3\n")
    with pytest.raises(DataError, match="'video3' is in two splits, train and test"):
        load_catalog(**options, train=leak, test=test)


def sentence(video="video0", caption="a dog"):
    return {"video_id": video, "caption": caption, "sen_id": 0}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sentences": [sentence("video9")]}, r"sentences\[0\] is about 'video9', which 'videos' does not list"),
        ({"sentences": [sentence(), sentence(caption=" ")]}, "caption 'video0:1' of the annotations is empty"),
        ({"sentences": [sentence(), {"video_id": "video1"}]}, r"sentences\[1\] has no text field 'caption'"),
        ({"sentences": [sentence(), "a dog"]}, r"sentences\[1\] has no text field 'video_id'"),
        ({"sentences": {"video0": "a dog"}}, "'sentences' must be a list of objects$"),
        ({"sentences": [sentence()]}, "video 'video1' has no caption"),
        ({"videos": [{"video_id": "video0"}] * 2}, r"videos\[1\]: video_id 'video0' is duplicated"),
        ({"videos": [{"video_id": "video0"}], "sentences": [sentence()]}, "no entry of 'videos' has split 'train'"),
    ],
)
def test_wrong_entries_are_named(tmp_path, changes, message):
    path = dataset(tmp_path, **changes)
    with pytest.raises(DataError, match=message) as caught:
        read(annotations=path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b'{"sentences": [', "line 1, column 16: broken JSON"),
        (b"[1, 2]", "must hold a JSON object, found list"),
        (b'{"videos": []}', "'sentences' must be a list of objects, but is missing"),
        (b'{"sentences":\n"caf\xe9"}', "line 2 is not UTF-8"),
    ],
)
def test_broken_files_are_named(tmp_path, content, message):
    path = tmp_path / "data.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read(annotations=path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("video_id\nvideo0\nvideo1\nvideo0\n", "line 4: video_id 'video0' is duplicated"),
        ("video_id\nvideo0\nvideo9\n", "line 3: video 'video9' has no caption"),
        ("video0\nvideo1\n", "line 1 has no column 'video_id'; found: video0"),
        ("video_id\n", "has a header but no rows"),
        ("key,video_id,sentence\nret0,video0,a dog\nret1,video1,\n", "line 3: 'sentence' of 'video1' is empty"),
    ],
)
def test_wrong_lists_are_named(tmp_path, content, message):
    path = write(tmp_path, "list.csv", content)
    with pytest.raises(DataError, match=message) as caught:
        read(annotations=dataset(tmp_path), train=path)
    assert str(path) in str(caught.value)


def test_annotations_without_a_list_of_videos_are_enough_with_a_train_list(tmp_path):
    path = tmp_path / "data.json"
    path.write_text(json.dumps({"sentences": [sentence(), sentence(caption="a cat")]}))
    train = write(tmp_path, "train.csv", "video_id\nvideo0\n")
    assert texts(read(annotations=path, train=train).train) == ["a dog", "a cat"]


def test_every_list_goes_before_the_splits_of_the_json(tmp_path):
    """TeachCLIP's lists: captions of their own, as many per video as they like, not grouped."""
    train = write(tmp_path, "train.csv", "video_id\nvideo0\nvideo2\n")
    rows = ["video1,one", "video3,two", "video1,three"]
    validation = write(tmp_path, "val.csv", "\n".join(["video_id,sentence", *rows]))
    found = read(annotations=dataset(tmp_path), train=train, validation=validation)
    assert [(caption.id, caption.text) for caption in found.validation] == [
        ("video1:0", "one"),
        ("video3:0", "two"),
        ("video1:1", "three"),
    ]
    assert found.test is None
    found = read(annotations=dataset(tmp_path), validation=validation)
    assert [len(part) for part in (found.train, found.validation, found.test)] == [4, 3, 4]
    full = write(tmp_path, "full.csv", "video_id\nvideo3\n")  # as CLIP2Video's: all captions of the JSON
    assert texts(read(annotations=dataset(tmp_path), validation=full).validation) == texts(
        read(annotations=dataset(tmp_path), test=full).test
    )


def test_the_folder_of_the_annotations_may_be_given(tmp_path):
    with pytest.raises(DataError, match=r"has no MSRVTT_data\.json; found: data\.json$"):
        dataset(tmp_path)
        read(annotations=tmp_path)
    (tmp_path / "data.json").rename(tmp_path / "MSRVTT_data.json")
    assert len(read(annotations=tmp_path).train) == 4


def test_a_validation_list_that_is_the_test_list_needs_selection_on_test(tmp_path):
    train = write(tmp_path, "train.csv", "video_id\nvideo0\n")
    test = write(tmp_path, "test.csv", "video_id,sentence\nvideo3,a dog\n")
    for name in ("video0", "video3"):
        (tmp_path / f"{name}.mp4").write_bytes(b"x")
    options = {"format": "msrvtt", "videos": tmp_path, "annotations": dataset(tmp_path), "train": train, "test": test}
    with pytest.raises(DataError, match=r"'video3' is in two splits, validation and test; .* data\.select_on=test"):
        load_catalog(**options, validation=test)
