"""Teach another text encoder the joint space of a dual encoder, on texts alone: no video and no caption is needed."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from teachclip.console import log
from teachclip.data.formats.own_text import own_lines
from teachclip.errors import DataError, LaunchError, RecipeError, TrainingError
from teachclip.losses.text_text import text_text_loss
from teachclip.models.backbone import load_backbone, text_features
from teachclip.models.clip import quiet_loading
from teachclip.models.families import text_positions
from teachclip.models.preprocessing import load_preprocessing, load_tokenizer, padding_token, read_image_settings
from teachclip.models.text_tower import load_text_model, with_text_model, without_dropout
from teachclip.store.folders import replaced_folder
from teachclip.training.distributed import build_accelerator
from teachclip.training.optim import warmup_cosine

logger = logging.getLogger(__name__)

RECORD = "text_tower.json"
ENCODED_AT_ONCE = 256

FEWEST = 10
"""Fewer different texts are refused."""


@dataclass(frozen=True)
class TextTeaching:
    """How a text encoder is pooled, and how long and how fast it learns.

    pooling: as of `load_text_model`. held_out: rows that are only measured, at most a tenth.
    """

    steps: int = 2000
    batch_size: int = 64
    lr: float = 3e-4
    weight_decay: float = 0.01
    seed: int = 0
    max_tokens: int = 64
    held_out: int = 500
    pooling: str | None = None


def read_parallel(path: Path) -> tuple[list[str], list[list[str]]]:
    """Return the languages and the rows of a file of texts that mean the same: the first column is the teacher's.

    A file with tabs has a header that names its columns; one without has a text per line, a single column. Raises
    DataError for rows of another number of columns, empty texts or fewer than `FEWEST` rows.
    """
    lines, _ = own_lines(path)  # stripped, and without blank ones, but with their numbers
    split = [[" ".join(cell.split()) for cell in text.split("\t")] for _, text in lines]
    where = [place for place, _ in lines]
    header = ["text"]
    if split and len(split[0]) > 1:
        header, split, where = split[0], split[1:], where[1:]
    for place, row in zip(where, split, strict=True):
        if len(row) != len(header) or not all(row):
            raise DataError(
                f"{place}: {len(row)} texts, {sum(not cell for cell in row)} of them empty; expected "
                f"one for each of {', '.join(header)}, with tabs between them"
            )
    rows = [list(row) for row in dict.fromkeys(map(tuple, split))]
    if len(rows) < FEWEST:
        raise DataError(f"{path} holds {len(rows)} different rows; expected at least {FEWEST}, one text per line")
    return header, rows


def teach_text_tower(
    backbone: str, text: str, texts: Path, out: Path, teaching: TextTeaching | None = None
) -> dict[str, Any]:
    """Write a dual encoder with the image encoder of another one and a new text encoder, which learns from its texts.

    `backbone`, `text`: folders or hub ids of a dual encoder and of a text encoder of transformers. `texts`: of
    `read_parallel`; every column of a row learns to lie where the backbone's text encoder puts the first. `out`: a
    new folder, for `student.backbone`. Returns the record, which is also in `text_tower.json`, see `TextTower.teach`.

    Raises RecipeError if `out` exists, CheckpointError and DataError for what cannot be read, LaunchError for several
    processes, and TrainingError if a loss is not finite.
    """
    teaching = teaching or TextTeaching()
    if out.exists() and any(out.iterdir()):
        raise RecipeError(f"{out} exists and is not empty; give a new folder")
    columns, rows = read_parallel(texts)
    accelerator = build_accelerator()
    if accelerator.num_processes > 1:
        raise LaunchError(f"text-tower learns in one process, {accelerator.num_processes} were started")
    tower = TextTower(load_backbone(backbone), backbone, text, teaching, accelerator.device)
    record = tower.teach(columns, rows)
    tower.save(out, record)
    log(f"text tower: {out}  (student.backbone={out})")
    return record


class TextTower:
    """A dual encoder and the text encoder that replaces its own.

    backbone, source: the dual encoder, and the folder or hub id that it is from. text: folder or hub id of the new
    text encoder. `trust_remote_code`: run the Python code that the backbone's tokenizer brings, if any. Raises
    CheckpointError for a text encoder or backbone that cannot be used.
    """

    def __init__(
        self,
        backbone: Any,
        source: str,
        text: str,
        teaching: TextTeaching,
        device: torch.device,
        *,
        trust_remote_code: bool = False,
    ) -> None:
        self.backbone, self.source, self.teaching = backbone.to(device), source, teaching
        self.how = load_preprocessing(source, backbone.config, trust_remote_code=trust_remote_code)
        loaded = load_text_model(text, pooling=teaching.pooling, seed=teaching.seed)
        self.tokenizer = load_tokenizer(text)
        self.dual: Any = with_text_model(backbone, loaded, seed=teaching.seed).to(device)
        longest = min(teaching.max_tokens, text_positions(self.dual.config), int(self.tokenizer.model_max_length))
        self.encode = _Encoder(self.dual, self.tokenizer, longest, padding_token(self.tokenizer, source=text), device)

    def teach(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> dict[str, Any]:
        """Teach the text encoder texts that mean the same, of as many languages as `columns`.

        `rows` have a text for each column, or for the first one alone, which the backbone understands. Returns the
        losses, and for each column, on rows held out, the mean cosine with the target and how often that is the
        closest of all held-out targets. Raises TrainingError if a loss is not finite.
        """
        teaching = self.teaching
        targets = self._targets([row[0] for row in rows])
        order = np.random.default_rng(teaching.seed).permutation(len(rows))
        count = max(1, min(teaching.held_out, len(rows) // 10))
        held_out, train = order[:count], order[count:]
        losses = _teach(self.encode, rows, targets, train, teaching)
        return {
            "columns": list(columns),
            "rows": len(train),
            "held_out": _measure(self.encode, rows, targets, held_out, columns),
            "held_out_rows": count,
            "losses": losses,
            "settings": vars(teaching),
        }

    @torch.no_grad()
    def _targets(self, texts: Sequence[str]) -> Tensor:
        """Return where the backbone puts texts: (texts, dim), on the CPU. Those with unknown words are counted."""
        how = self.how
        encode = _Encoder(self.backbone, how.tokenizer, how.max_tokens, how.pad_id, self.encode.device)
        parts = [encode(texts[at : at + ENCODED_AT_ONCE]).cpu() for at in range(0, len(texts), ENCODED_AT_ONCE)]
        unknown = how.tokenizer.unk_token_id
        if unknown is not None and unknown != how.tokenizer.eos_token_id:
            ids = how.tokenizer(list(texts))["input_ids"]
            lost = sum(unknown in row for row in ids)
            if lost:
                logger.warning("%d of %d texts hold words that the teacher does not know", lost, len(texts))
        return torch.cat(parts)

    def save(self, out: Path, record: dict[str, Any]) -> None:
        """Write the folder in one move: model, tokenizer, the backbone's image settings, and the record.

        What is built from it has no dropout.
        """
        without_dropout(self.dual.config.text_config)
        with replaced_folder(out) as temporary:
            with quiet_loading():
                self.dual.cpu().save_pretrained(temporary)
            self.tokenizer.save_pretrained(temporary)
            image = read_image_settings(self.source) or self._usual_image_settings()
            (temporary / "preprocessor_config.json").write_text(json.dumps(image, indent=1), encoding="utf-8")
            (temporary / RECORD).write_text(json.dumps(record, indent=1), encoding="utf-8")

    def _usual_image_settings(self) -> dict[str, Any]:
        """Return image settings for a backbone without any: those of OpenAI's CLIP, at its size."""
        square = {"height": self.how.size, "width": self.how.size}
        values = {"image_mean": list(self.how.mean), "image_std": list(self.how.std), "resample": 3}
        return {**values, "size": {"shortest_edge": self.how.size}, "crop_size": square, "do_center_crop": True}


def describe_taught(record: dict[str, Any]) -> list[str]:
    """Return what a record says of the rows held out, a line for each column."""
    return [
        f"{name}: cosine {column['cosine']:.3f} with the backbone's own text encoder, which is closest for "
        f"{column['closest']:.0f} % of {column['rows']} texts held out"
        for name, column in record["held_out"].items()
    ]


@dataclass(frozen=True)
class _Encoder:
    """Encodes texts with the text half of a dual encoder."""

    dual: Any
    tokenizer: Any
    longest: int
    pad_id: int
    device: torch.device

    def __call__(self, texts: Sequence[str]) -> Tensor:
        ids = self.tokenizer(list(texts), truncation=True, max_length=self.longest)["input_ids"]
        width = max(map(len, ids))
        padded = torch.tensor([row + [self.pad_id] * (width - len(row)) for row in ids])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in ids])
        return text_features(self.dual, padded.to(self.device), mask.to(self.device))


def _teach(
    encode: _Encoder, rows: Sequence[Sequence[str]], targets: Tensor, train: np.ndarray, teaching: TextTeaching
) -> list[float]:
    """Train the text half; return the mean loss of every tenth of the run."""
    parameters = [*encode.dual.text_model.parameters(), *encode.dual.text_projection.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=teaching.lr, weight_decay=teaching.weight_decay)
    rng = np.random.default_rng([teaching.seed, 1])
    torch.manual_seed(teaching.seed)
    encode.dual.text_model.train()
    losses = []
    for step in tqdm(range(teaching.steps), desc="teach texts", unit="step"):
        for group in optimizer.param_groups:
            group["lr"] = teaching.lr * warmup_cosine(step / teaching.steps)
        chosen = train[rng.integers(len(train), size=teaching.batch_size)]
        columns = rng.integers([len(rows[row]) for row in chosen])
        texts = [rows[row][column] for row, column in zip(chosen, columns, strict=True)]
        loss = text_text_loss(encode(texts), targets[torch.from_numpy(chosen)].to(encode.device))
        if not torch.isfinite(loss):
            raise TrainingError(f"text-tower: the loss is {loss.item()} at step {step}")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    encode.dual.text_model.eval()
    parts = torch.stack(losses).cpu().tensor_split(10)
    return [round(float(part.mean()), 5) for part in parts if len(part)]


@torch.no_grad()
def _measure(
    encode: _Encoder, rows: Sequence[Sequence[str]], targets: Tensor, held_out: np.ndarray, columns: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Return for each column the mean cosine with the target, and how often it is the closest one, in percent."""
    measured: dict[str, dict[str, float]] = {}
    for column, name in enumerate(columns):
        having = np.array([row for row in held_out if len(rows[row]) > column])
        if not len(having):
            continue
        wanted = torch.nn.functional.normalize(targets[torch.from_numpy(having)], dim=-1)
        texts = [rows[row][column] for row in having]
        parts = [encode(texts[at : at + ENCODED_AT_ONCE]).cpu() for at in range(0, len(texts), ENCODED_AT_ONCE)]
        cosines = torch.nn.functional.normalize(torch.cat(parts), dim=-1) @ wanted.T
        own = cosines.diagonal()
        closest = (cosines > own[:, None] + 1e-6).sum(dim=1) == 0
        share = 100 * float(closest.float().mean())
        measured[name] = {"cosine": float(own.mean()), "closest": share, "rows": len(having)}
    return measured
