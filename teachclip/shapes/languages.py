"""The captions of the Shapes dataset in German and French, and a small text encoder to learn them.

A caption in another language says what its English one claims (`Phrase.claims`), with agreement of gender and case.
Beside a dataset are written, for each language, the test queries `test_LANGUAGE.csv`, as `test.csv`; `parallel.tsv`,
texts of random events with the same meaning in every language, none of which is a test query; and `text_encoder/`, a
BERT with random weights and a WordPiece vocabulary of those texts, for `teachclip text-tower`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from teachclip.datasets.folder import read_manifest
from teachclip.errors import DataError
from teachclip.shapes.captions import TEST_DROP, Phrase, describe_event, test_caption
from teachclip.shapes.dataset import ShapesSettings, table_bytes, video_id
from teachclip.shapes.scenes import ATTRIBUTES, Event, Purpose, choose, events_of, sample_video, stream
from teachclip.store.files import write_atomic

Claim = Mapping[str, str]
ROWS = 3000

_GERMAN_SHAPES = {
    "circle": ("Kreis", "m"),
    "square": ("Quadrat", "n"),
    "triangle": ("Dreieck", "n"),
    "cross": ("Kreuz", "n"),
    "ring": ("Ring", "m"),
    "diamond": ("Raute", "f"),
    "shape": ("Form", "f"),
}
_GERMAN_WORDS = {
    "red": "rot",
    "green": "grün",
    "blue": "blau",
    "yellow": "gelb",
    "purple": "violett",
    "orange": "orangefarben",
    "cyan": "türkis",
    "white": "weiß",
    "small": "klein",
    "big": "groß",
}
_GERMAN_PLACES = {"top": "oben", "middle": "in der Mitte", "bottom": "unten"}
_GERMAN_SCENES = {
    "sea": "über dem Meer",
    "grass": "über Gras",
    "sand": "über Sand",
    "brick": "über Ziegeln",
    "snow": "über Schnee",
    "night": "über der Nacht",
}
_FRENCH_SHAPES = {
    "circle": ("cercle", "m"),
    "square": ("carré", "m"),
    "triangle": ("triangle", "m"),
    "cross": ("croix", "f"),
    "ring": ("anneau", "m"),
    "diamond": ("losange", "m"),
    "shape": ("forme", "f"),
}
_FRENCH_WORDS = {
    "red": ("rouge", "rouge"),
    "green": ("vert", "verte"),
    "blue": ("bleu", "bleue"),
    "yellow": ("jaune", "jaune"),
    "purple": ("violet", "violette"),
    "orange": ("orange", "orange"),
    "cyan": ("cyan", "cyan"),
    "white": ("blanc", "blanche"),
    "small": ("petit", "petite"),
    "big": ("grand", "grande"),
}
_FRENCH_PLACES = {"top": "en haut", "middle": "au milieu", "bottom": "en bas"}
_FRENCH_SCENES = {
    "sea": "sur la mer",
    "grass": "sur l'herbe",
    "sand": "sur le sable",
    "brick": "sur des briques",
    "snow": "sur la neige",
    "night": "sur la nuit",
}


def _german(claim: Claim) -> str:
    noun, gender = _GERMAN_SHAPES[claim.get("shape", "shape")]
    ending = {"m": "er", "f": "e", "n": "es"}[gender]
    words = [_GERMAN_WORDS[claim[name]] + ending for name in ("size", "colour") if name in claim]
    return " ".join(
        [
            "eine" if gender == "f" else "ein",
            *words,
            noun,
            *([_GERMAN_PLACES[claim["place"]]] if "place" in claim else []),
            *([_GERMAN_SCENES[claim["scene"]]] if "scene" in claim else []),
        ]
    )


def _french(claim: Claim) -> str:
    noun, gender = _FRENCH_SHAPES[claim.get("shape", "shape")]
    form = int(gender == "f")
    return " ".join(
        [
            "une" if gender == "f" else "un",
            *([_FRENCH_WORDS[claim["size"]][form]] if "size" in claim else []),
            noun,
            *([_FRENCH_WORDS[claim["colour"]][form]] if "colour" in claim else []),
            *([_FRENCH_PLACES[claim["place"]]] if "place" in claim else []),
            *([_FRENCH_SCENES[claim["scene"]]] if "scene" in claim else []),
        ]
    )


LANGUAGES: Mapping[str, tuple[Callable[[Claim], str], str]] = {
    "de": (_german, " dann "),
    "fr": (_french, " puis "),
}
"""By code: how one event is described, and what stands between two."""


def translate(phrase: Phrase, language: str) -> str:
    """Return what a caption says in another language. Raises DataError for one that is not here."""
    if language not in LANGUAGES:
        raise DataError(f"language {language!r}; allowed: {', '.join(LANGUAGES)}")
    describe, then = LANGUAGES[language]
    return then.join(map(describe, phrase.claims))


def write_languages(folder: Path, languages: Sequence[str], *, seed: int = 0) -> None:
    """Write the files of other languages beside a complete Shapes dataset. `seed`: of texts and text encoder."""
    made = read_manifest(folder, "Shapes")["settings"]["dataset"]
    names = ("train_videos", "test_videos", "seed", "preset")
    settings = ShapesSettings(**{name: made[name] for name in names if name in made})
    numbers, test = settings.numbers, range(settings.train_videos, settings.videos)
    phrases = []
    for index in test:  # as `annotation_files` draws them: the first caption of a test video is its query
        rng = stream(Purpose.TEST_CAPTION, settings.seed, index)
        phrases.append(test_caption(events_of(sample_video(settings.seed, index, numbers)), rng, numbers))
    for language in languages:
        rows = [
            (f"ret{n}", f"shapes{index}", video_id(index), translate(phrase, language))
            for n, (index, phrase) in enumerate(zip(test, phrases, strict=True))
        ]
        write_atomic(folder / f"test_{language}.csv", table_bytes(["key", "vid_key", "video_id", "sentence"], rows))
    held_out = {phrase.text for phrase in phrases}
    table = parallel_texts(languages, rows=ROWS, seed=seed, without=held_out)
    text = "\n".join("\t".join(row) for row in [("en", *languages), *table]) + "\n"
    write_atomic(folder / "parallel.tsv", text.encode())
    new_text_encoder(folder / "text_encoder", [cell for row in table for cell in row], seed=seed)


def parallel_texts(
    languages: Sequence[str], *, rows: int, seed: int = 0, without: set[str] | frozenset[str] = frozenset()
) -> list[tuple[str, ...]]:
    """Return different texts of random events, in English and each language; none whose English is in `without`."""
    rng = np.random.default_rng([seed, 77])
    found: dict[str, tuple[str, ...]] = {}
    while len(found) < rows:
        event = Event(**{name: choose(rng, values) for name, values in ATTRIBUTES.items()})
        phrase = describe_event(event, rng, TEST_DROP)
        if phrase.text not in without:
            found[phrase.text] = (phrase.text, *(translate(phrase, language) for language in languages))
    return list(found.values())


def new_text_encoder(folder: Path, texts: Sequence[str], *, seed: int = 0) -> None:
    """Write a small BERT with random weights and a WordPiece tokenizer whose vocabulary is learned from texts."""
    import torch
    from tokenizers import BertWordPieceTokenizer
    from transformers import BertConfig, BertModel, BertTokenizerFast

    learned = BertWordPieceTokenizer(strip_accents=False, lowercase=True)
    learned.train_from_iterator(sorted(set(texts)), vocab_size=400, min_frequency=1, show_progress=False)
    tokenizer = BertTokenizerFast(tokenizer_object=learned._tokenizer, model_max_length=40, do_lower_case=True)
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=256,
        max_position_embeddings=40,
        pad_token_id=tokenizer.pad_token_id,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
