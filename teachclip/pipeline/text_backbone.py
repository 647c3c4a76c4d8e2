"""The text encoder that a recipe gives its student in place of the backbone's: taught once, kept in the stores."""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from teachclip.console import log
from teachclip.data.annotations.records import Catalog
from teachclip.data.annotations.uncaptioned import held_out_texts, plain_text
from teachclip.errors import DataError, StoreError
from teachclip.models.mean_pooling import MeanPooling
from teachclip.pipeline.build import build_backbone
from teachclip.pipeline.teachers import backbone_preprocessing
from teachclip.pipeline.text_tower import FEWEST, RECORD, TextTeaching, TextTower, describe_taught, read_parallel
from teachclip.processes import Processes
from teachclip.recipe.schema import Recipe
from teachclip.scoring.token_store import architecture_hash, weights_hash
from teachclip.store.files import locked_folder, make_folder, read_json
from teachclip.store.fingerprint import fingerprint_of

logger = logging.getLogger(__name__)

FOLDER = "text-encoders"
"""The folder of a recipe's stores with its taught text encoders, one folder each."""


def student_source(recipe: Recipe, catalog: Catalog, processes: Processes, device: torch.device) -> str:
    """Return the folder or hub id of the dual encoder that a recipe's student stands on.

    Without `student.text_backbone` that is its backbone. With it the main process teaches the text encoder, the
    others wait; what was taught before from the same texts is taken from the stores. Raises CheckpointError for what
    is no text encoder or a backbone that cannot take one, DataError for too few texts, TrainingError for a loss that
    is not finite.
    """
    if recipe.student.text_backbone is None:
        return recipe.student.backbone
    return str(processes.main_first(lambda: _taught(recipe, catalog, processes, device)))


@contextmanager
def untaught_source(recipe: Recipe, catalog: Catalog, device: torch.device) -> Iterator[str]:
    """Yield what `student_source` returns, with the text encoder as it is, taught or not: nothing is stored."""
    if recipe.student.text_backbone is None:
        yield recipe.student.backbone
        return
    columns, rows = training_rows(recipe, catalog)
    tower = _tower(recipe, device)
    folder = _place(recipe, tower, columns, rows)[0]
    if (folder / RECORD).exists():
        yield str(folder)
        return
    log(f"text encoder: {recipe.student.text_backbone} would be taught on {len(rows):,} texts; here it is not")
    with tempfile.TemporaryDirectory(prefix="teachclip-text-") as temporary:
        tower.save(Path(temporary) / "tower", {})
        yield str(Path(temporary) / "tower")


def training_rows(recipe: Recipe, catalog: Catalog) -> tuple[list[str], list[list[str]]]:
    """Return the languages and rows that the text encoder learns from: those of the file, and the training texts.

    A row of which a text is a caption of validation or test is excluded, also where test is not read. Raises
    DataError for too few rows.
    """
    columns, rows = ["text"], []
    held_out = held_out_texts(catalog)
    if recipe.student.text_teaching.texts is not None:
        columns, parallel = read_parallel(recipe.student.text_teaching.texts)
        rows = [row for row in parallel if held_out.isdisjoint(map(plain_text, row))]
        if len(rows) < len(parallel):
            logger.warning(
                "excluded %d of %d rows of %s: they are in validation or test",
                len(parallel) - len(rows),
                len(parallel),
                recipe.student.text_teaching.texts,
            )
    known = {row[0] for row in rows}
    texts = dict.fromkeys(" ".join(caption.text.split()) for caption in catalog.train.captions)
    rows += [[text] for text in texts if text not in known and plain_text(text) not in held_out]
    if len(rows) < FEWEST:
        raise DataError(
            f"{recipe.name}: {len(rows)} different texts are too few to teach student.text_backbone; expected at "
            f"least {FEWEST}: give a file of texts as student.text_teaching.texts"
        )
    return columns, rows


def zero_shot_of_backbone(recipe: Recipe, device: torch.device) -> Any:
    """Return mean pooling of the recipe's backbone with its own text encoder, which says what it reads."""
    scorer: Any = MeanPooling(build_backbone(recipe)).to(device).eval()
    scorer.preprocessing = backbone_preprocessing(recipe)
    return scorer


def _taught(recipe: Recipe, catalog: Catalog, processes: Processes, device: torch.device) -> Path:
    """Return the folder of the taught encoder; teach it if it is not there."""
    columns, rows = training_rows(recipe, catalog)
    tower = _tower(recipe, device)
    folder, provenance = _place(recipe, tower, columns, rows)
    make_folder(folder.parent)
    with locked_folder(folder.parent):  # another run may need the same one
        if not (folder / RECORD).exists():
            if not processes.is_main:
                raise StoreError(f"{folder}: the main process left no text encoder there")
            log(f"text encoder: {recipe.student.text_backbone} learns from {len(rows):,} texts")
            record = tower.teach(columns, rows)
            tower.save(folder, {**record, "provenance": provenance})
            for line in describe_taught(record):
                log(line)
    _check(folder, provenance)
    return folder


def _tower(recipe: Recipe, device: torch.device) -> TextTower:
    section = recipe.student
    assert section.text_backbone is not None
    settings = section.text_teaching.model_dump(exclude={"texts"}) | {"max_tokens": recipe.text.max_tokens}
    return TextTower(
        build_backbone(recipe),
        section.backbone,
        section.text_backbone,
        TextTeaching(**settings),
        device,
        trust_remote_code=section.trust_remote_code,
    )


def _place(
    recipe: Recipe, tower: TextTower, columns: Sequence[str], rows: Sequence[Sequence[str]]
) -> tuple[Path, dict[str, Any]]:
    """Return the folder of a taught encoder, and all that it depends on."""
    firsts, texts = [row[0] for row in rows], [text for row in rows for text in row]
    provenance = {
        "backbone": {**_identity(tower.backbone), "reads": tower.how.describe()},
        "text encoder": {
            **_identity(tower.dual),
            "most tokens": tower.encode.longest,
            "padding": tower.encode.pad_id,
        },
        "tokens": [_hash(tower.how.tokenizer(firsts)["input_ids"]), _hash(tower.tokenizer(texts)["input_ids"])],
        "tokenizer": _hash(_rules(tower.tokenizer)),
        "rows": {"count": len(rows), "columns": list(columns), "sha256": _hash(rows)},
        "teaching": dict(vars(tower.teaching)),
    }
    return recipe.stores / FOLDER / fingerprint_of(provenance)[:12], provenance


def _identity(dual: Any) -> dict[str, Any]:
    """Return settings and weights of a dual encoder, and what decides which tokens of a text it pools."""
    text = getattr(dual.config, "text_config", None)
    pooled = {name: getattr(text, name, None) for name in ("pooling", "eos_token_id")}
    return {"settings": architecture_hash(dual), "weights": weights_hash(dual), "pooled": pooled}


def _rules(tokenizer: Any) -> Any:
    """Return what a tokenizer makes of any text, also of words that no text has: of a slow one its words alone."""
    fast = getattr(tokenizer, "backend_tokenizer", None)
    if fast is None:
        return sorted(tokenizer.get_vocab().items())
    rules = json.loads(fast.to_str())
    return {name: part for name, part in rules.items() if name not in ("truncation", "padding")}  # of the last call


def _hash(value: Any) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()


def _check(folder: Path, provenance: dict[str, Any]) -> None:
    """Raise StoreError unless a folder's record says that it was made of this."""
    try:
        recorded = read_json(folder / RECORD).get("provenance")
    except (OSError, ValueError, AttributeError) as error:
        raise StoreError(f"{folder / RECORD} cannot be read: {error}; delete the folder") from error
    if recorded != provenance:
        raise StoreError(f"{folder} is not what its name says; delete the folder")
