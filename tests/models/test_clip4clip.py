"""CLIP4Clip students (meanP, seqTransf): read, written, and exported in the official layout."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from golden_models import openai_clip_shapes, rule_state, student_shapes
from tiny_models import tiny_batch, tiny_clip, tiny_student
from torch.nn.functional import normalize
from torch.testing import assert_close

from teachclip.errors import CheckpointError
from teachclip.models.clip import frame_features, load_clip, text_features
from teachclip.models.configuration import StudentConfig
from teachclip.models.student import StudentModel, load_student, student_to_official
from teachclip.pipeline.export import write_official_file

CLIP_SHAPES = openai_clip_shapes(width=128, layers=2, patch=8, grid=3, text_width=64, text_layers=2, vocabulary=50)
BATCH = {
    "input_ids": torch.tensor([[48, 3, 7, 49, 0], [48, 9, 49, 0, 0]]),
    "pixel_values": torch.randn(2, 4, 3, 24, 24, generator=torch.Generator().manual_seed(0)),
    "frame_mask": torch.tensor([[True, True, True, True], [True, True, False, False]]),
}


def official_state(kind: str) -> dict[str, torch.Tensor]:
    """A state dict in the layout of CLIP4Clip `meanP`, `seqTransf`, or TeachCLIP."""
    shapes = student_shapes(CLIP_SHAPES)
    if kind != "TeachCLIP":
        shapes = {key: shape for key, shape in shapes.items() if not key.startswith("frameLinear")}
    if kind == "meanP":
        shapes = {key: shape for key, shape in shapes.items() if key.startswith("clip.")}
    return rule_state(shapes, 3)


def test_mean_pooling_is_the_masked_mean_of_normalised_frames() -> None:
    state = official_state("meanP")
    student = load_student(state, mask_padding=False)  # the official mean never counts padded frames
    clip = load_clip({key.removeprefix("clip."): tensor for key, tensor in state.items()})
    with torch.no_grad():
        frames = normalize(frame_features(clip, BATCH["pixel_values"]), dim=-1)
        video = torch.stack([frames[0].mean(dim=0), frames[1, :2].mean(dim=0)])
        text = normalize(text_features(clip, BATCH["input_ids"]), dim=-1)
        wanted = clip.logit_scale.exp() * text @ normalize(video, dim=-1).T
        out = student(**BATCH)
    assert student.config.temporal_layers == 0
    assert_close(out.logits_per_text, wanted)
    assert_close(out.frame_weights[1], torch.tensor([0.5, 0.5, 0.0, 0.0]))


@pytest.mark.parametrize("kind", ["meanP", "seqTransf", "TeachCLIP"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_official_file_has_the_published_names_and_types_and_reads_back(
    tmp_path: Path, kind: str, dtype: str
) -> None:
    state = official_state(kind)
    path = tmp_path / "best_model.bin"
    write_official_file(load_student(state), path, dtype=dtype)
    written = torch.load(path, weights_only=True)
    assert written.keys() == state.keys()
    for key, tensor in written.items():
        linear = ".attn." in key or ".mlp." in key or key.endswith(("conv1.weight", "visual.proj", "text_projection"))
        half = dtype == "float16" and key.startswith("clip.") and linear
        assert tensor.dtype == (torch.float16 if half else torch.float32), key
        assert torch.equal(tensor, state[key].to(tensor.dtype)), key
    again = load_student(path)
    assert again.dtype == torch.float32
    tolerance = 1e-5 if dtype == "float32" else 5e-2
    with torch.no_grad():
        found, wanted = again(**BATCH), load_student(state)(**BATCH)
    assert_close(found.logits_per_text, wanted.logits_per_text, atol=tolerance, rtol=0)


def test_a_mean_pooling_student_is_saved_as_a_folder_too(tmp_path: Path) -> None:
    student = StudentModel.from_backbone(tiny_clip(), pooling="mean")
    student.save_pretrained(tmp_path)
    again, batch = load_student(tmp_path), tiny_batch()
    assert again.config.pooling == "mean"
    with torch.no_grad():
        assert torch.equal(again(**batch).logits_per_text, student(**batch).logits_per_text)


def test_what_the_official_layout_cannot_express_is_refused(tmp_path: Path) -> None:
    for options, message in (
        ({"temporal_layers": 0}, "has a temporal transformer, this student has none"),
        ({"pooling_temperature": 0.2}, "pooling temperature is 0.1, this student's is 0.2"),
    ):
        student = load_student(official_state("TeachCLIP"))
        student.config.temporal_layers = options.get("temporal_layers", 4)
        student.config.pooling_temperature = options.get("pooling_temperature", 0.1)
        with pytest.raises(CheckpointError, match=message):
            student_to_official(student)
    with pytest.raises(CheckpointError, match="the official layout cannot store this CLIP"):
        write_official_file(tiny_student(), tmp_path / "x.bin")
    with pytest.raises(CheckpointError, match="is a folder; the official layout is one file"):
        write_official_file(load_student(official_state("meanP")), tmp_path)
    with pytest.raises(CheckpointError, match="pooling is 'max', allowed: attention, mean"):
        StudentConfig(pooling="max")
