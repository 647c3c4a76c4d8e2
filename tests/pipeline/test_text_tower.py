"""Another text encoder for a CLIP: taught on texts alone, then a student stands on it and knows another language."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sentence_transformers import SentenceTransformer
from tokenizers import BertWordPieceTokenizer
from torch.nn.functional import cosine_similarity, normalize
from torch.testing import assert_close
from transformers import BertConfig, BertModel, BertTokenizerFast, DistilBertConfig, DistilBertModel

from teachclip import distill, export_onnx, load_student
from teachclip.cli import text_tower
from teachclip.errors import CheckpointError, DataError, LaunchError, RecipeError, TrainingError
from teachclip.models.backbone import frame_features, load_backbone, text_features
from teachclip.models.text_tower import load_text_model
from teachclip.onnx.query import TextEncoder
from teachclip.pipeline import text_tower as text_tower_pipeline
from teachclip.pipeline.text_tower import RECORD, TextTeaching, read_parallel, teach_text_tower

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
        plain = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        BertModel(BertConfig(**sizes, **layers, **plain)).save_pretrained(folder)
    else:
        DistilBertModel(DistilBertConfig(**sizes, dim=32, n_layers=1, n_heads=2, hidden_dim=32)).save_pretrained(
            folder
        )
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tower(made_project, tmp_path_factory):
    """A tiny CLIP with a German and English text encoder, taught by the command, and the file of texts."""
    root = tmp_path_factory.mktemp("tower")
    texts = root / "parallel.tsv"
    texts.write_text("\n".join("\t".join(row) for row in [("en", "de"), *PAIRS]) + "\n", encoding="utf-8")
    text = save_text_model(root / "bert")
    options = ["--steps", "150", "--batch-size", "16", "--lr", "3e-3"]
    where = ["--backbone", str(made_project / "clip"), "--text", str(text), "--texts", str(texts)]
    assert text_tower.main([*where, "--out", str(root / "tower"), *options]) == 0
    return root


@torch.no_grad()
def test_the_new_texts_lie_where_the_old_ones_do_and_images_are_the_same(tower, made_project):
    clip, dual = load_backbone(made_project / "clip"), load_backbone(tower / "tower")
    pixels = torch.randn(2, 1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert_close(frame_features(dual, pixels), frame_features(clip, pixels), rtol=0, atol=0)
    assert dual.logit_scale == clip.logit_scale
    record = json.loads((tower / "tower" / RECORD).read_text())
    assert record["columns"] == ["en", "de"] and record["rows"] + record["held_out_rows"] == len(PAIRS)
    assert record["losses"][-1] < 0.2 * record["losses"][0]
    student = load_student(tower / "tower")  # zero-shot: frames are averaged
    english, german = (student.encode_text([pair[side] for pair in PAIRS], progress=False) for side in (0, 1))
    wanted = load_student(made_project / "clip").encode_text([pair[0] for pair in PAIRS], progress=False)
    assert min(cosine_similarity(english, wanted).min(), cosine_similarity(german, wanted).min()) > 0.9
    assert text_features(dual, torch.ones(1, 3, dtype=torch.long)).shape == (1, 32)


@pytest.mark.parametrize("encoders", ["frozen", "finetuned"])
def test_a_student_stands_on_it_and_is_used_as_any_other(tower, project, encoders):
    teachers = [
        {"name": "xpool", "checkpoint": str(project.root / "teacher.pth"), "reads": str(project.root / "clip")}
    ]
    results = distill(
        project(student={"backbone": str(tower / "tower")}, teachers=teachers, train={"encoders": encoders})
    )
    assert results["test"]["videos"] == 3
    folder = project.folder / "run" / "student"
    student = load_student(folder)
    texts = ["ein rot kreis", "a blue square"]
    vectors = student.encode_text(texts, progress=False)
    assert vectors.shape == (2, 32)
    found = torch.from_numpy(SentenceTransformer(str(folder)).encode(texts))
    assert_close(normalize(found, dim=-1), vectors, rtol=0, atol=1e-5)
    if encoders == "frozen":
        export_onnx(student, project.folder / "onnx")
        onnx = TextEncoder(project.folder / "onnx", threads=1).encode(texts)
        assert_close(torch.from_numpy(onnx), vectors, rtol=0, atol=1e-4)


def test_a_file_without_tabs_has_a_text_per_line(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("".join(f"text {number}\n" for number in range(10)) + "text 0\n")
    assert read_parallel(path) == (["text"], [[f"text {number}"] for number in range(10)])
    path.write_text("one\ntwo\n")
    with pytest.raises(DataError, match="holds 2 different rows; expected at least 10"):
        read_parallel(path)
    path.write_text("en\tde\n" + "a\tb\n" * 10 + "a\n")
    with pytest.raises(DataError, match=r"line 12: 1 texts, 0 of them empty; expected one for each of en, de"):
        read_parallel(path)
    path.write_text("en\tde\n\n" + "a\tb\n\n" * 10 + "a\n")
    with pytest.raises(DataError, match=r"texts.txt: line 23: 1 texts"):
        read_parallel(path)


def test_a_loss_that_is_not_finite_and_several_processes_are_refused(tower, made_project, tmp_path, monkeypatch):
    parts = (str(made_project / "clip"), str(tower / "bert"), tower / "parallel.tsv", tmp_path / "out")
    with pytest.raises(TrainingError, match=r"text-tower: the loss is (nan|inf) at step"):
        teach_text_tower(*parts, TextTeaching(steps=20, lr=float("inf")))
    several = SimpleNamespace(num_processes=2, device="cpu")
    monkeypatch.setattr(text_tower_pipeline, "build_accelerator", lambda: several)
    with pytest.raises(LaunchError, match="text-tower learns in one process, 2 were started"):
        teach_text_tower(*parts, TextTeaching(steps=1))
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_a_text_tower_is_refused(tower, made_project, tmp_path):
    with pytest.raises(
        CheckpointError, match="a DistilBertModel has no pooler; allowed: text encoders with a pooled"
    ):
        load_text_model(str(save_text_model(tmp_path / "distil", DistilBertModel)))
    parts = (str(made_project / "clip"), str(tower / "bert"), tower / "parallel.tsv")
    with pytest.raises(RecipeError, match="tower exists and is not empty; give a new folder"):
        teach_text_tower(*parts, tower / "tower", TextTeaching(steps=1))
    with pytest.raises(CheckpointError, match="the images' half must be a CLIP's"):
        teach_text_tower(str(tower / "tower"), *parts[1:], tmp_path / "out", TextTeaching(steps=1))
    assert not (tmp_path / "out").exists()
