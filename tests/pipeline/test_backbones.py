"""The commands with students and teachers that are no CLIP: every one reads texts and pictures in its own way."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import assert_same_losses, logged_losses
from sentence_transformers import SentenceTransformer
from tiny_backbones import POSITIONS, save_backbone, tiny_tokenizer_of
from tiny_models import SIZE
from torch.testing import assert_close

from teachclip import load_student
from teachclip.cli import distill, evaluate, train_teacher
from teachclip.models.backbone import SCALE_PARAMETERS, load_backbone, load_config
from teachclip.pipeline.build import build_processor
from teachclip.pipeline.teachers import open_teachers
from teachclip.recipe.loading import load_recipe

TEXTS = ["a red circle", "a blue square"]


def run(main: Any, *arguments: Any) -> int:
    return main([str(argument) for argument in arguments])  # type: ignore[no-any-return]


@pytest.fixture
def siglip_recipe(project: Any, tmp_path: Path) -> Any:
    """A recipe with a SigLIP student, taught by an ALIGN and an X-Pool. `write(**changes)` returns its path."""
    folder = save_backbone("siglip", tmp_path / "siglip")
    teachers = [
        {"name": "dual_encoder", "checkpoint": str(save_backbone("align", tmp_path / "align", seed=1))},
        {
            "name": "xpool",
            "checkpoint": str(project.root / "teacher.pth"),
            "reads": str(project.root / "clip"),
        },
    ]

    def write(name: str = "recipe.yaml", **changes: Any) -> Path:
        sections = {
            "student": {"backbone": str(folder)},
            "frames": {"size": None},
            "train": {"encoders": "finetuned"},
            "teachers": teachers,
        }
        for key, values in changes.items():
            sections[key] = {**sections[key], **values} if isinstance(sections.get(key), dict) else values
        return Path(project(name, **sections))

    write.root = project.root  # type: ignore[attr-defined]
    return write


def test_a_siglip_student_is_distilled_exported_and_used(
    siglip_recipe: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = siglip_recipe()
    assert run(distill.main, recipe, "--dry-run") == 0
    told = capsys.readouterr().err
    assert told.count("frozen, as the published runs freeze CLIP's inputs: backbone.text_model.embeddings") == 1
    assert not (tmp_path / "run").exists()
    assert run(distill.main, recipe) == 0
    assert run(evaluate.main, recipe, "--model", "student", "--out", tmp_path / "again.json") == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text(encoding="utf-8"))
    again = json.loads((tmp_path / "again.json").read_text(encoding="utf-8"))
    assert again["test"]["t2v"] == results["test"]["t2v"]

    student = load_student(tmp_path / "run" / "student")
    assert student.config.backbone_config.model_type == "siglip"
    assert student.config.temporal_activation == "gelu_pytorch_tanh"
    how = student.processor.preprocessing
    assert (how.pad_to, how.resize, how.size, how.max_tokens) == (POSITIONS, "stretch", SIZE, 10)
    texts = student.encode_text(TEXTS, progress=False)
    paths = [str(siglip_recipe.root / "videos" / f"clip{number}.mp4") for number in range(2)]
    videos = student.encode_video(paths, progress=False)
    other = SentenceTransformer(str(tmp_path / "run" / "student"), device="cpu")
    assert_close(torch.as_tensor(other.encode(TEXTS)), texts, atol=1e-5, rtol=0)
    assert_close(torch.as_tensor(other.encode(paths)), videos, atol=1e-5, rtol=0)
    start, end = load_backbone(tmp_path / "siglip"), student.backbone
    name = "text_model.embeddings.position_embedding.weight"
    assert torch.equal(start.get_parameter(name), end.get_parameter(name))  # frozen as the published runs do
    assert not torch.equal(start.text_model.head.weight, end.text_model.head.weight)
    assert start.logit_bias.item() == pytest.approx(end.logit_bias.item(), abs=0.1) != 0


def test_towers_that_are_not_published_as_clip_teach_alike_stored_and_online(
    siglip_recipe: Any, tmp_path: Path
) -> None:
    for source in ("stored", "online"):
        recipe = siglip_recipe(
            f"{source}.yaml",
            teaching={"source": source, "precision": "float32"},
            output=str(tmp_path / source),
            stores=str(tmp_path / f"stores-{source}"),
        )
        assert run(distill.main, recipe) == 0
    assert_same_losses(*(logged_losses(tmp_path / source) for source in ("stored", "online")), steps=4)
    # The student and X-Pool look at frames of one size made in two ways, the ALIGN in a third.
    assert len(list((tmp_path / "stores-stored").glob("frames*"))) == 3


def test_frozen_towers_of_a_siglip_are_computed_once(siglip_recipe: Any, tmp_path: Path) -> None:
    recipe = siglip_recipe(train={"encoders": "frozen"}, teachers=[])
    assert run(distill.main, recipe) == 0
    for model in ("student", "zero_shot"):
        assert run(evaluate.main, recipe, "--model", model, "--out", tmp_path / f"{model}.json") == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text(encoding="utf-8"))
    again = json.loads((tmp_path / "student.json").read_text(encoding="utf-8"))
    assert again["test"]["t2v"] == results["test"]["t2v"]  # from features there, from pixels here
    trained, start = load_student(tmp_path / "run" / "student").backbone, load_backbone(tmp_path / "siglip")
    for name, tensor in start.state_dict().items():
        if name not in SCALE_PARAMETERS:
            assert torch.equal(trained.state_dict()[name], tensor), name


def test_every_dual_encoder_teacher_of_the_recipe_can_be_evaluated(siglip_recipe: Any, tmp_path: Path) -> None:
    recipe = siglip_recipe()
    for model in ("dual_encoder", "xpool"):
        assert run(evaluate.main, recipe, "--model", model, "--out", tmp_path / f"{model}.json") == 0
        assert json.loads((tmp_path / f"{model}.json").read_text(encoding="utf-8"))["test"]["videos"] == 3


def test_a_student_starts_from_a_configuration_alone(siglip_recipe: Any, tmp_path: Path) -> None:
    folder = tmp_path / "siglip"
    bare = tmp_path / "bare"
    shutil.copytree(folder, bare, ignore=shutil.ignore_patterns("*.safetensors"))
    recipe = siglip_recipe(student={"backbone": str(bare / "config.json")}, teachers=[])
    assert run(distill.main, recipe) == 0
    assert run(distill.main, recipe) == 0  # the same random weights, so the same run


def errors(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]


def test_a_clip_teacher_must_say_what_it_reads(siglip_recipe: Any, capsys: pytest.CaptureFixture[str]) -> None:
    teachers = [{"name": "xpool", "checkpoint": str(siglip_recipe.root / "teacher.pth")}]
    assert run(distill.main, siglip_recipe(teachers=teachers)) == 2
    (line,) = errors(capsys)
    assert "a XPool reads the tokens and pixels of CLIP, the student those of SigLIP" in line and "reads" in line


def test_what_is_for_clip_alone_is_refused(
    siglip_recipe: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = siglip_recipe(train={"clip_weights": "float16"}, optimizer={"name": "bert_adam"}, teachers=[])
    assert run(distill.main, recipe) == 2
    assert "float16 is for CLIP's encoders, these are of a SiglipModel" in errors(capsys)[0]
    assert run(distill.main, siglip_recipe(frames={"size": 64}, teachers=[], output=str(tmp_path / "other"))) == 2
    assert "frames.size is 64" in errors(capsys)[0]
    train = {"encoders": "finetuned", "steps": 1, "batch_size": 4}
    teachers = [{"name": "xpool", "checkpoint": str(tmp_path / "new.pth"), "training": {"train": train}}]
    assert run(train_teacher.main, siglip_recipe(teachers=teachers)) == 2
    assert "is trained on a CLIP and its tokens; teachers.training.clip is a SiglipModel" in errors(capsys)[0]


def test_the_tokenizer_must_be_the_backbones(
    siglip_recipe: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "siglip" / "tokenizer.json").unlink()
    recipe = siglip_recipe(teachers=[])
    assert run(distill.main, recipe) == 2
    assert "its tokenizer cannot be loaded" in errors(capsys)[0]
    tiny_tokenizer_of("siglip").save_pretrained(tmp_path / "siglip")
    assert run(distill.main, recipe, "--dry-run") == 0


def test_code_of_a_tokenizer_runs_only_where_a_recipe_says_so(project: Any) -> None:
    folder = Path(shutil.copytree(project.root / "clip", project.folder / "clip"))
    (folder / "theirs.py").write_text(
        f"from pathlib import Path\nPath({str(folder / 'ran')!r}).touch()\n"
        "from transformers import CLIPTokenizer\nclass Theirs(CLIPTokenizer): pass\n"
    )
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    theirs = {"tokenizer_class": "Theirs", "auto_map": {"AutoTokenizer": ["theirs.Theirs", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, **theirs}))
    for trusted in (False, True):
        teacher = {"name": "dual_encoder", "checkpoint": str(folder), "options": {"trust_remote_code": trusted}}
        student = {"backbone": str(folder), "trust_remote_code": trusted}
        recipe = load_recipe(project(student=student, teachers=[teacher]))
        for load in (
            lambda: build_processor(recipe, load_config(folder)),  # noqa: B023
            lambda: open_teachers(recipe, torch.device("cpu"))["dual_encoder"].model,  # noqa: B023
        ):
            load()
            assert (folder / "ran").exists() == trusted
            (folder / "ran").unlink(missing_ok=True)
            for name in [name for name in sys.modules if name.startswith("transformers_modules.")]:
                del sys.modules[name]
