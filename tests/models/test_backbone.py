"""Dual encoders of every family: loading, features as transformers computes them, scale and bias."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path

import pytest
import torch
from tiny_backbones import FAMILIES, POSITIONS, save_backbone, tiny_backbone, tiny_config
from tiny_models import SIZE, WIDTH, tiny_clip
from torch.testing import assert_close
from transformers import BertConfig

from teachclip.errors import CheckpointError, DataError
from teachclip.models import backbone as encoders
from teachclip.models.families import image_size, joint_width, text_positions, vocabulary_size
from teachclip.models.layouts import transformers_to_openai
from teachclip.training.optim import FROZEN_CLIP_INPUTS


def some_ids(model: torch.nn.Module, *, texts: int = 3, tokens: int = POSITIONS) -> torch.Tensor:
    config = model.config
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(4, vocabulary_size(config) - 1, (texts, tokens), generator=generator)
    if config.text_config.eos_token_id is not None:
        ids[:, -1] = config.text_config.eos_token_id
    return ids


def some_pixels(*, videos: int = 2, frames: int = 3) -> torch.Tensor:
    return torch.randn(videos, frames, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_model_loads_with_equal_weights(family: str, tmp_path: Path) -> None:
    loaded = encoders.load_backbone(save_backbone(family, tmp_path))
    state = tiny_backbone(family).state_dict()
    assert loaded.dtype == torch.float32 and not loaded.training
    assert loaded.state_dict().keys() == state.keys()
    for key, tensor in loaded.state_dict().items():
        assert_close(tensor, state[key], rtol=0, atol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_sizes_are_read_off_the_configuration(family: str) -> None:
    config = tiny_config(family)
    assert (joint_width(config), image_size(config), text_positions(config)) == (WIDTH, SIZE, POSITIONS)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_scaled_cosines_of_the_features_are_the_models_own_logits(family: str) -> None:
    model, pixels = tiny_backbone(family), some_pixels(videos=3, frames=1)
    ids = some_ids(model)
    texts = torch.nn.functional.normalize(encoders.text_features(model, ids, torch.ones_like(ids)), dim=-1)
    frames = torch.nn.functional.normalize(encoders.frame_features(model, pixels), dim=-1)
    images = pixels.flatten(0, 1)
    inputs = {"pixel_values": images}
    if family == "siglip2":
        from transformers.models.siglip2.image_processing_pil_siglip2 import convert_image_to_patches

        inputs = {
            "pixel_values": torch.stack([torch.from_numpy(convert_image_to_patches(i.numpy(), 16)) for i in images]),
            "pixel_attention_mask": torch.ones(3, 4, dtype=torch.int32),
            "spatial_shapes": torch.full((3, 2), 2),
        }
    logits = model(input_ids=ids, **inputs).logits_per_text
    assert_close(encoders.logits_of(model, texts @ frames[:, 0].T), logits, atol=1e-4, rtol=1e-4)
    assert frames.shape == (3, 1, WIDTH)


@pytest.mark.parametrize("family", ["clip", "metaclip_2", "align", "altclip", "chinese_clip"])
@torch.no_grad()
def test_padding_of_a_text_does_not_count(family: str) -> None:
    model = tiny_backbone(family)
    ids = some_ids(model, tokens=6)
    padded = torch.cat([ids, torch.full((3, 4), model.config.text_config.pad_token_id)], dim=1)
    mask = torch.tensor([1] * 6 + [0] * 4).expand(3, -1)
    short = encoders.text_features(model, ids, torch.ones_like(ids))
    assert_close(encoders.text_features(model, padded, mask), short, atol=1e-5, rtol=1e-4)
    assert_close(encoders.text_features(model, ids), short)


@pytest.mark.parametrize("family", ["siglip", "siglip2"])
def test_siglip_wants_texts_of_its_full_length(family: str) -> None:
    model = tiny_backbone(family)
    with pytest.raises(DataError, match=r"\(3, 6\), but SigLIP.* reads texts padded to 16 tokens"):
        encoders.text_features(model, some_ids(model, tokens=6))


@pytest.mark.parametrize("family", FAMILIES)
def test_wrong_tokens_and_pixels_are_refused(family: str) -> None:
    model = tiny_backbone(family)
    with pytest.raises(DataError, match="at most 16"):
        encoders.text_features(model, some_ids(model, tokens=POSITIONS + 1))
    with pytest.raises(DataError, match="outside the vocabulary of the model"):
        encoders.text_features(model, some_ids(model) + vocabulary_size(model.config))
    for pixels in (some_pixels()[0], some_pixels()[:, :, :1], some_pixels()[..., :16]):
        with pytest.raises(DataError, match="pixel_values has shape"):
            encoders.frame_features(model, pixels)


@torch.no_grad()
def test_only_align_takes_other_image_sizes() -> None:
    larger = torch.nn.functional.pad(some_pixels(), (0, 16, 0, 16))
    assert encoders.frame_features(tiny_backbone("align"), larger).shape == (2, 3, WIDTH)
    with pytest.raises(DataError, match="expected"):
        encoders.frame_features(tiny_backbone("siglip"), larger)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_scale_stays_within_bounds_but_siglips_is_left_alone(family: str) -> None:
    model = tiny_backbone(family)
    scale = model.temperature if family == "align" else model.logit_scale
    with torch.no_grad():
        scale.fill_(1e-3 if family == "align" else math.log(1000))
    encoders.clamp_scale(model)
    expected = math.log(1000) if family.startswith("siglip") else math.log(100)
    assert_close(encoders.log_scale(model), torch.tensor(expected))
    encoders.log_scale(model).backward()
    assert scale.grad is not None


def test_the_inputs_of_a_clip_are_what_published_runs_freeze() -> None:
    assert sorted(encoders.input_parameters(tiny_clip())) == sorted(FROZEN_CLIP_INPUTS)


@pytest.mark.parametrize("family", FAMILIES)
def test_both_encoders_of_every_family_have_inputs_to_freeze(family: str) -> None:
    names = encoders.input_parameters(tiny_backbone(family))
    assert any("text_model" in name for name in names) and any("vision_model" in name for name in names)
    assert not any("layers." in name or "layer." in name or "blocks" in name for name in names)


@pytest.mark.parametrize("is_file", [True, False])
def test_a_configuration_alone_gives_random_weights_and_says_so(
    is_file: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tiny_config("siglip").save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING):
        model = encoders.load_backbone(tmp_path / "config.json" if is_file else tmp_path)
    assert model.config.model_type == "siglip" and "random weights" in caplog.text


def test_state_dicts_of_clip_load_as_before(tmp_path: Path) -> None:
    state = transformers_to_openai(tiny_clip(heads=1).state_dict())
    torch.save(state, tmp_path / "clip.pt")
    for source in (state, tmp_path / "clip.pt"):
        found = encoders.load_backbone(source)
        assert_close(found.text_projection.weight, tiny_clip(heads=1).text_projection.weight)


def test_weights_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    for family in ("clip", "siglip"):
        backbone = tiny_backbone(family)
        backbone.vision_model.embeddings.patch_embedding.weight.data[0, 0, 0, 0] = math.inf
        backbone.save_pretrained(tmp_path / family)
        with pytest.raises(CheckpointError, match=r"1 of \d+ numbers of vision_model.*NaN or infinite"):
            encoders.load_backbone(tmp_path / family)
    state = tiny_clip().state_dict()
    state["text_projection.weight"] = state["text_projection.weight"] * math.nan
    with pytest.raises(CheckpointError, match=r"text_projection.weight are NaN or infinite"):
        encoders.load_backbone(state)


def test_other_models_are_refused_with_the_families_named(tmp_path: Path) -> None:
    BertConfig().save_pretrained(tmp_path)
    with pytest.raises(
        CheckpointError, match=r"model type 'bert' is not supported; known: CLIP \(clip\), MetaCLIP 2"
    ):
        encoders.load_backbone(tmp_path)


def test_incomplete_and_missing_models_are_refused(tmp_path: Path) -> None:
    model = tiny_backbone("siglip")
    model.save_pretrained(tmp_path / "part", state_dict={**model.state_dict(), "text_model.head.bias": torch.ones(3)})
    with pytest.raises(CheckpointError, match=r"part: .*text_model.head.bias"):
        encoders.load_backbone(tmp_path / "part")
    (tmp_path / "part" / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(CheckpointError, match="cannot be loaded as a SigLIP"):
        encoders.load_backbone(tmp_path / "part")
    (tmp_path / "part" / "config.json").write_text(json.dumps({"model_type": "nonsense"}), encoding="utf-8")
    for folder in ("part", "absent"):
        with pytest.raises(CheckpointError, match=f"{folder}: cannot be loaded as a dual encoder"):
            encoders.load_backbone(tmp_path / folder)
