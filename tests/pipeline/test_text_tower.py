"""Another text encoder for a CLIP: taught on texts alone, then a student stands on it and knows another language."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from sentence_transformers import SentenceTransformer
from text_models import PAIRS, save_text_model, write_pairs
from tiny_backbones import save_backbone, tiny_backbone
from torch.nn.functional import cosine_similarity, normalize
from torch.testing import assert_close
from transformers import DistilBertModel, ViTConfig, ViTModel

from teachclip import distill, export_onnx, load_student
from teachclip.cli import text_tower
from teachclip.errors import CheckpointError, DataError, LaunchError, RecipeError, TrainingError
from teachclip.models.backbone import frame_features, load_backbone, text_features
from teachclip.models.text_tower import load_text_model, with_text_model
from teachclip.onnx.query import TextEncoder
from teachclip.pipeline import text_tower as text_tower_pipeline
from teachclip.pipeline.text_tower import RECORD, TextTeaching, read_parallel, teach_text_tower


@pytest.fixture(scope="module")
def tower(made_project, tmp_path_factory):
    """A tiny CLIP with a German and English text encoder, taught by the command, and the file of texts."""
    root = tmp_path_factory.mktemp("tower")
    texts = write_pairs(root / "parallel.tsv")
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
    assert dual.config.text_config.hidden_dropout_prob == 0  # type: ignore[attr-defined]
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
    distil = str(save_text_model(tmp_path / "distil", DistilBertModel))
    with pytest.raises(CheckpointError, match="a DistilBertModel has no pooled output of its own; choose a pooling"):
        load_text_model(distil)
    ViTModel(
        ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=1, intermediate_size=16)
    ).save_pretrained(tmp_path / "vit")
    with pytest.raises(CheckpointError, match=r"type 'vit' is no text encoder .*has no vocab_size"):
        load_text_model(str(tmp_path / "vit"))
    with pytest.raises(CheckpointError, match="a CLIP is a dual encoder; expected a text encoder alone"):
        load_text_model(str(made_project / "clip"))
    parts = (str(made_project / "clip"), str(tower / "bert"), tower / "parallel.tsv")
    with pytest.raises(RecipeError, match="tower exists and is not empty; give a new folder"):
        teach_text_tower(*parts, tower / "tower", TextTeaching(steps=1))
    siglip = str(save_backbone("siglip", tmp_path / "siglip"))
    with pytest.raises(CheckpointError, match="projected into the joint space, a SigLIP's is not"):
        teach_text_tower(siglip, *parts[1:], tmp_path / "out", TextTeaching(steps=1))
    with pytest.raises(CheckpointError, match="model type 'bert' is not supported; known: CLIP"):  # no images to find
        teach_text_tower(parts[1], *parts[1:], tmp_path / "out", TextTeaching(steps=1))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("family", ["clip", "metaclip_2", "altclip", "chinese_clip", "vision-text-dual-encoder"])
@torch.no_grad()
def test_every_family_with_projected_images_takes_another_text_encoder(family, tower):
    old = tiny_backbone(family)
    dual = with_text_model(old, load_text_model(str(tower / "bert")))
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    images, own = (model.get_image_features(pixel_values=pixels).pooler_output for model in (dual, old))
    assert_close(images, own, rtol=0, atol=0)
    assert dual.logit_scale == old.logit_scale
    again = type(dual)(dual.config)  # as it is built from a folder
    again.load_state_dict(dual.state_dict())
    assert_close(again.get_image_features(pixel_values=pixels).pooler_output, own, rtol=0, atol=0)


def test_a_backbone_of_several_languages_teaches_texts_of_one_without_translations(tower, tmp_path):
    """The dual encoder that knows German and English teaches a new text encoder German texts alone."""
    german = [pair[1] for pair in PAIRS]
    (tmp_path / "german.txt").write_text("\n".join(german) + "\n", encoding="utf-8")
    teaching = TextTeaching(steps=150, batch_size=16, lr=3e-3)
    teach_text_tower(str(tower / "tower"), str(tower / "bert"), tmp_path / "german.txt", tmp_path / "out", teaching)
    found, wanted = (
        load_student(folder).encode_text(german, progress=False) for folder in (tmp_path / "out", tower / "tower")
    )
    assert cosine_similarity(found, wanted).min() > 0.9
