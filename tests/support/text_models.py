"""Tiny random text encoders that know the words of `PAIRS`, texts of the made project in English and German."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import BertWordPieceTokenizer
from transformers import BertConfig, BertModel, BertTokenizerFast, DistilBertConfig, DistilBertModel

ENGLISH = {"red": "rot", "blue": "blau", "circle": "kreis", "square": "quadrat", "sea": "meer"}
PAIRS = [
    (f"a {c} {s}{over}", f"ein {ENGLISH[c]} {ENGLISH[s]}{over.replace('over a sea', 'am meer')}")
    for c in ("red", "blue")
    for s in ("circle", "square")
    for over in ("", " over a sea", " over a red circle", " over a blue square")
]


def save_text_model(folder: Path, kind: Any = BertModel) -> Path:
    learned = BertWordPieceTokenizer(lowercase=True)
    learned.train_from_iterator([text for pair in PAIRS for text in pair], vocab_size=90, show_progress=False)
    tokenizer = BertTokenizerFast(tokenizer_object=learned._tokenizer, model_max_length=16)
    torch.manual_seed(0)
    sizes = {"vocab_size": len(tokenizer), "max_position_embeddings": 16}
    if kind is BertModel:
        layers = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64, "hidden_size": 48}
        BertModel(BertConfig(**sizes, **layers)).save_pretrained(folder)
    else:
        DistilBertModel(DistilBertConfig(**sizes, dim=32, n_layers=1, n_heads=2, hidden_dim=32)).save_pretrained(
            folder
        )
    tokenizer.save_pretrained(folder)
    return folder


def write_pairs(path: Path) -> Path:
    """Write `PAIRS` as a file of parallel texts."""
    path.write_text("\n".join("\t".join(row) for row in [("en", "de"), *PAIRS]) + "\n", encoding="utf-8")
    return path
