"""Dual encoders as teachers: their own numbers, masks, preprocessing, and loading by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_backbones import FAMILIES, MEAN, POSITIONS, save_backbone, tiny_backbone
from tiny_models import SIZE
from torch.nn.functional import normalize
from torch.testing import assert_close

from teachclip.errors import CheckpointError, RecipeError
from teachclip.models.backbone import frame_features, text_features
from teachclip.scorer import FeatureScorer, Teacher, select_tokens
from teachers import load_teacher
from teachers.dual_encoder import DualEncoder


def batch_of(teacher: DualEncoder) -> dict[str, torch.Tensor]:
    """Three captions as the teacher's own tokenizer writes them, and three videos, two of them short."""
    preprocessing = teacher.preprocessing
    assert preprocessing is not None
    padding = {"padding": "max_length", "max_length": preprocessing.pad_to} if preprocessing.pad_to else {}
    tokens = preprocessing.tokenizer(
        ["a red circle", "a blue square over a sea", "sea"],
        return_tensors="pt",
        return_attention_mask=True,
        **(padding or {"padding": True}),
    )
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0], [1, 0, 0, 0]]).bool()
    pixels = torch.randn(3, 4, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    return {
        "input_ids": tokens["input_ids"],
        "attention_mask": tokens["attention_mask"],
        "pixel_values": pixels * mask[:, :, None, None, None],
        "frame_mask": mask,
    }


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_scores_are_scaled_cosines_with_the_mean_frame(family: str, tmp_path: Path) -> None:
    teacher = load_teacher("dual_encoder", save_backbone(family, tmp_path))
    assert isinstance(teacher, DualEncoder) and isinstance(teacher, Teacher) and isinstance(teacher, FeatureScorer)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    batch, model = batch_of(teacher), tiny_backbone(family)
    texts = teacher.encode_texts(batch["input_ids"], batch["attention_mask"])
    videos = teacher.encode_videos(batch["pixel_values"], batch["frame_mask"])

    sentences = normalize(text_features(model, batch["input_ids"], batch["attention_mask"]), dim=-1)
    frames = normalize(frame_features(model, batch["pixel_values"]), dim=-1)
    means = torch.stack([frames[i, batch["frame_mask"][i]].mean(dim=0) for i in range(3)])
    cosines = sentences @ normalize(means, dim=-1).T
    scale = 1 / model.temperature if family == "align" else model.logit_scale.exp()
    expected = scale * cosines + (model.logit_bias if family.startswith("siglip") else 0)
    assert_close(teacher.score(texts, videos), expected, atol=1e-5, rtol=1e-4)
    assert expected.std() > 1e-3  # the random models do tell texts and videos apart

    relevance = teacher.frame_relevance(texts, videos)
    raw = (frames @ sentences[:, :, None]).squeeze(-1).masked_fill(~batch["frame_mask"], float("-inf"))
    assert_close(relevance, raw.softmax(dim=1))
    assert relevance[1, 3] == 0 and relevance[2].tolist() == [1, 0, 0, 0]
    pair = select_tokens(texts, [1]), select_tokens(videos, [1])
    assert_close(teacher.frame_relevance(*pair), relevance[1:2])


@torch.no_grad()
def test_without_masking_padded_frames_count_as_pictures(tmp_path: Path) -> None:
    teacher = load_teacher("dual_encoder", save_backbone("siglip", tmp_path), mask_padding=False)
    batch = batch_of(teacher)  # type: ignore[arg-type]
    texts = teacher.encode_texts(batch["input_ids"], batch["attention_mask"])
    videos = teacher.encode_videos(batch["pixel_values"], batch["frame_mask"])
    assert (teacher.frame_relevance(texts, videos) > 0).all()
    everything = {**videos, "mask": torch.ones_like(videos["mask"])}
    assert_close(teacher.score(texts, videos), teacher.score(texts, everything))


@torch.no_grad()
def test_the_closest_frame_may_stand_for_a_video(tmp_path: Path) -> None:
    source = save_backbone("clip", tmp_path)
    teacher = load_teacher("dual_encoder", source, pooling="max")
    batch, model = batch_of(teacher), tiny_backbone("clip")  # type: ignore[arg-type]
    texts = teacher.encode_texts(batch["input_ids"], batch["attention_mask"])
    videos = teacher.encode_videos(batch["pixel_values"], batch["frame_mask"])
    expected = torch.stack(
        [(texts["sentence"] @ videos["frames"][i, batch["frame_mask"][i]].T).amax(dim=1) for i in range(3)], dim=1
    )
    assert_close(teacher.score(texts, videos), model.logit_scale.exp() * expected, atol=1e-5, rtol=1e-4)
    mean = load_teacher("dual_encoder", source).score(texts, videos)
    assert_close(teacher.score(texts, videos)[:, 2], mean[:, 2], atol=1e-5, rtol=1e-4)  # it has one frame
    with pytest.raises(CheckpointError, match="pooling is 'top'; allowed: mean, max"):
        load_teacher("dual_encoder", source, pooling="top")


def test_a_teacher_says_how_its_inputs_are_prepared(tmp_path: Path) -> None:
    teacher = load_teacher("dual_encoder", save_backbone("siglip", tmp_path))
    preprocessing = teacher.preprocessing  # type: ignore[attr-defined]
    assert (preprocessing.pad_to, preprocessing.resize, preprocessing.size) == (POSITIONS, "stretch", SIZE)
    assert preprocessing.mean == pytest.approx(MEAN)


def test_wrong_sources_and_options_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        RecipeError,
        match=r"no option 'mask_pading'; known: mask_padding, .*; did you mean mask_padding",
    ):
        load_teacher("dual_encoder", tmp_path, mask_pading=True)
    with pytest.raises(CheckpointError, match="expected a hub id or a folder"):
        load_teacher("dual_encoder", {"weight": torch.ones(1)})
    with pytest.raises(CheckpointError, match="absent: cannot be loaded as a dual encoder"):
        load_teacher("dual_encoder", tmp_path / "absent")
    tiny_backbone("clip").save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="its tokenizer cannot be loaded"):
        load_teacher("dual_encoder", tmp_path)
