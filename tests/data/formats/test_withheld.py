import json

import pytest

from teachclip.data.annotations.catalog import ValidationOptions, load_catalog
from teachclip.errors import DataError, RecipeError

SPLITS = {"a": "train", "b": "train", "c": "validate", "d": "test", "e": "test"}


@pytest.fixture
def files(tmp_path):
    """Five videos, captions of all of them, and a file of texts, one of which is a test caption."""
    videos = tmp_path / "videos"
    videos.mkdir()
    for name in SPLITS:
        (videos / f"{name}.mp4").write_bytes(name.encode())
    content = {
        "videos": [{"video_id": name, "split": split} for name, split in SPLITS.items()],
        "sentences": [
            {"sen_id": number, "video_id": name, "caption": f"sentence {name}"} for number, name in enumerate(SPLITS)
        ],
    }
    (tmp_path / "data.json").write_text(json.dumps(content))
    (tmp_path / "texts.txt").write_text("sentence d\na text\nanother text\na third text\n")
    return {"videos": videos, "annotations": tmp_path / "data.json"}


@pytest.mark.parametrize("name", ["msrvtt", "teachclip.data.formats.msrvtt:read"])
def test_only_the_captions_of_the_test_split_are_left(files, name):
    catalog = load_catalog(
        **files,
        format=f"teachclip.data.formats.withheld:{name}",
        texts=files["videos"].parent / "texts.txt",
        uncaptioned=files["videos"],
        validation=ValidationOptions(videos=1),
    )
    assert [caption.text for caption in catalog.test.captions] == ["sentence d", "sentence e"]
    others = [catalog.train, catalog.validation]
    assert {video.id for split in others for video in split.videos} == {"a.mp4", "b.mp4", "c.mp4"}
    read = {caption.text for split in others for caption in split.captions}
    assert read == {"a text", "another text", "a third text"}
    assert not any(caption.video_id for split in others for caption in split.captions)


def test_without_other_texts_there_is_nothing_to_train_on(files):
    with pytest.raises(DataError):
        load_catalog(**files, format="teachclip.data.formats.withheld:msrvtt")
    with pytest.raises(RecipeError, match="msrvt"):
        load_catalog(**files, format="teachclip.data.formats.withheld:msrvt")
