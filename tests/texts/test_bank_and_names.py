"""Where texts come from: the grammar of everyday words, names of files and folders, tags."""

from collections import Counter

import av
import numpy as np
import pytest

from teachclip.data.video.tags import read_seconds, read_tags
from teachclip.errors import DataError
from teachclip.shapes.captions import vocabulary
from teachclip.shapes.scenes import ATTRIBUTES
from teachclip.texts.bank import bank, everyday, read_grammar
from teachclip.texts.names import distinct, text_of_name, texts_of_files


def test_the_bank_is_large_distinct_and_whole_sentences():
    texts = bank()
    assert 5000 < len(texts) < 8000 and len(set(texts)) == len(texts) and texts == bank()
    assert not [text for text in texts if "{" in text or "  " in text or text != text.strip()]
    lists = {name: words for name, words in everyday().items() if name != "patterns"}
    assert sum(map(len, lists.values())) > 500
    for name, words in lists.items():
        assert len(set(words)) == len(words), f"{name}: a word is repeated"
        missing = [word for word in words if not any(word in text for text in texts)]
        assert not missing, f"{name}: {missing} are in no text"


def test_a_pattern_takes_words_evenly_and_at_most_so_many():
    grammar = {"patterns": {"{a} {b}": 12, "{a}!": 100}, "a": list("uvw"), "b": list("1234567")}
    texts = bank(grammar)
    pairs = [text for text in texts if "!" not in text]
    assert len(pairs) == 12 and len(texts) == 15
    for position in (0, 2):
        counts = Counter(text[position] for text in pairs).values()
        assert max(counts) - min(counts) <= 1
    assert len(bank({**grammar, "patterns": {"{a} {a}": 99}})) == 9


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("patterns: {'a {x}': 2}\nx: [b, c]\n", None),
        ("patterns: {'a {x}': 2}\ny: [b]\n", "names no list: x"),
        ("patterns: {'a {x}': 0}\nx: [b]\n", "0 texts; allowed: 1 or more"),
        ("patterns: {'a {x}': 2}\nx: [no]\n", "quote 'no'"),
        ("a: [b]\n", "a grammar has 'patterns'"),
        ("{", "cannot read the grammar"),
    ],
)
def test_a_grammar_of_ones_own_is_checked(tmp_path, text, told):
    path = tmp_path / "words.yaml"
    path.write_text(text)
    if told is None:
        assert bank(read_grammar(path)) == ["a b", "a c"]
        return
    with pytest.raises(DataError) as caught:
        read_grammar(path)
    assert told in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(DataError, match="did you mean shapes"):
        read_grammar("shape")


def test_the_grammar_of_shapes_says_what_its_captions_say():
    words = {word for text in bank(read_grammar("shapes")) for word in text.split()}
    assert words <= set(vocabulary()) and set().union(*ATTRIBUTES.values()) <= words


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("Beach_holiday-2019 (2).mp4", "beach holiday"),
        ("IMG_0042.MP4", ""),
        ("SunsetOverSea.mov", "sunset over sea"),
        ("Übung am Meer.mkv", "übung am meer"),
        ("a1.mp4", ""),
        ("GOPR1234.mp4", ""),
        ("海の波.mp4", "海の波"),
    ],
)
def test_names_become_texts_where_they_say_something(name, text):
    assert text_of_name(name) == text


def test_folders_files_and_tags_give_texts_once(tmp_path):
    folder = tmp_path / "Beach holiday"
    folder.mkdir()
    for name, title in (("waves.mp4", "Waves at noon"), ("IMG_1.mp4", None)):
        with av.open(str(folder / name), "w") as container:
            if title:
                container.metadata["title"] = title
            stream = container.add_stream("libx264", rate=10)
            stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
            for _ in range(20):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8))))
            container.mux(stream.encode())
    (folder / "broken.mp4").write_bytes(b"not a film")
    files = {f"Beach holiday/{path.name}": path for path in sorted(folder.iterdir())}
    assert texts_of_files(tmp_path, files) == ["beach holiday", "broken", "waves", "Waves at noon"]
    assert texts_of_files(tmp_path, files, tags=False) == ["beach holiday", "broken", "waves"]
    assert read_seconds(folder / "waves.mp4") == pytest.approx(2.0, abs=0.1)
    assert read_seconds(folder / "broken.mp4") is None and read_tags(folder / "broken.mp4") == []
    assert distinct(["A  sea", "a sea", " ", "B"]) == ["A  sea", "B"]
