"""Captions of the Shapes dataset in other languages: what they say is what the English one says."""

import csv

import pytest
from transformers import AutoModel, AutoTokenizer

from teachclip.errors import DataError
from teachclip.shapes.captions import Phrase
from teachclip.shapes.dataset import make_shapes
from teachclip.shapes.languages import LANGUAGES, parallel_texts, translate, write_languages
from teachclip.shapes.pretraining import PretrainingSettings
from teachclip.shapes.scenes import ATTRIBUTES

WHOLE = {"size": "big", "colour": "green", "shape": "diamond", "place": "middle", "scene": "sea"}


@pytest.mark.parametrize(
    ("claims", "german", "french"),
    [
        ((WHOLE,), "eine große grüne Raute in der Mitte über dem Meer", "un grand losange vert au milieu sur la mer"),
        (({"shape": "cross", "colour": "white"},), "ein weißes Kreuz", "une croix blanche"),
        (({"colour": "red"}, {"shape": "ring"}), "eine rote Form dann ein Ring", "une forme rouge puis un anneau"),
    ],
)
def test_gender_and_order_are_those_of_the_language(claims, german, french):
    phrase = Phrase("", claims)
    assert (translate(phrase, "de"), translate(phrase, "fr")) == (german, french)


def test_every_word_of_the_dataset_has_a_translation_of_its_own():
    for language in LANGUAGES:
        for name, words in ATTRIBUTES.items():
            said = {translate(Phrase("", ({"shape": "circle", name: word},)), language) for word in words}
            assert len(said) == len(words), (language, name)
    with pytest.raises(DataError, match="language 'nl'; allowed: de, fr"):
        translate(Phrase("", (WHOLE,)), "nl")


def test_parallel_texts_differ_and_leave_out_what_is_tested():
    first = parallel_texts(["de"], rows=40)
    assert len({row[0] for row in first}) == 40 and parallel_texts(["de"], rows=40) == first
    others = parallel_texts(["de"], rows=40, without={row[0] for row in first[:5]})
    assert not {row[0] for row in first[:5]} & {row[0] for row in others}


def test_a_dataset_gets_queries_parallel_texts_and_a_text_encoder(tmp_path):
    tiny = PretrainingSettings(frames=16, steps=2, batch_size=8, width=64, vision_layers=1, text_layers=1)
    make_shapes(tmp_path / "shapes", train_videos=2, test_videos=3, clip=tiny, progress=False)
    write_languages(tmp_path / "shapes", ["fr", "de"])
    tables = {}
    for name in ("test", "test_fr", "test_de"):
        with open(tmp_path / "shapes" / f"{name}.csv", encoding="utf-8", newline="") as file:
            tables[name] = list(csv.DictReader(file))
    for english, french in zip(tables["test"], tables["test_fr"], strict=True):
        assert {**english, "sentence": ""} == {**french, "sentence": ""}
        assert ("circle" in english["sentence"]) == ("cercle" in french["sentence"])
        assert ("red" in english["sentence"].split()) == ("rouge" in french["sentence"])
    header, *rows = (tmp_path / "shapes" / "parallel.tsv").read_text(encoding="utf-8").splitlines()
    assert header == "en\tfr\tde" and not {row["sentence"] for row in tables["test"]} & {
        r.split("\t")[0] for r in rows
    }
    folder = tmp_path / "shapes" / "text_encoder"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("ein weißes Kreuz über der Nacht", return_tensors="pt")["input_ids"]
    assert tokenizer.unk_token_id not in ids[0]
    assert AutoModel.from_pretrained(folder)(ids).pooler_output.shape == (1, 128)
