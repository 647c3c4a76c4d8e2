"""The student against numbers recorded from the official code (TeachCLIP's CLIP4Clip class with frame weighting)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from golden import load_golden
from golden_models import golden_batch, golden_state
from torch.testing import assert_close

from teachclip.models.student import StudentModel, load_student, student_to_official

INFO, ARRAYS = load_golden("01_student")


def recorded(name: str) -> torch.Tensor:
    return torch.from_numpy(ARRAYS[name])


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    return golden_state(INFO)


@pytest.fixture(scope="module")
def official(state: dict[str, torch.Tensor]) -> StudentModel:
    return load_student(state, mask_padding=False)


@pytest.fixture(scope="module")
def masking(state: dict[str, torch.Tensor]) -> StudentModel:
    return load_student(state)


@pytest.mark.parametrize("kind", ["full", "pad"])
def test_outputs_equal_the_official_ones(official: StudentModel, kind: str) -> None:
    with torch.no_grad():
        out = official(**golden_batch(INFO, kind))
    assert_close(out.logits_per_text, recorded(f"{kind}_logits"), atol=2e-4, rtol=0)
    assert_close(out.frame_scores, recorded(f"{kind}_frame_score"), atol=1e-4, rtol=0)
    assert_close(out.frame_weights, recorded(f"{kind}_frame_weight"), atol=1e-5, rtol=0)
    assert_close(out.logits_per_video, out.logits_per_text.T)


@pytest.mark.parametrize("kind", ["full", "pad"])
def test_features_equal_the_official_ones(official: StudentModel, kind: str) -> None:
    batch = golden_batch(INFO, kind)
    with torch.no_grad():
        video = official.get_video_features(batch["pixel_values"], batch["frame_mask"])
        text = official.get_text_features(batch["input_ids"], batch["attention_mask"])
    frames = recorded(f"{kind}_frames")
    assert_close(video.pooler_output, recorded(f"{kind}_pooled"), atol=1e-4, rtol=0)
    assert_close(text.pooler_output, recorded("full_sentence"), atol=1e-4, rtol=0)
    assert_close(video.last_hidden_state, recorded(f"{kind}_temporal") + frames, atol=1e-4, rtol=0)


def test_the_scorer_interface_gives_the_same_logits_from_pixels_and_from_features(official: StudentModel) -> None:
    batch = golden_batch(INFO, "pad")
    with torch.no_grad():
        texts = official.encode_texts(batch["input_ids"], batch["attention_mask"])
        videos = official.encode_videos(batch["pixel_values"], batch["frame_mask"])
        logits = official.score(texts, videos)
        out = official(
            text_features=recorded("full_sentence"),
            frame_features=recorded("pad_frames"),
            frame_mask=batch["frame_mask"],
        )
    assert texts.keys() == videos.keys() == {"embeds"}
    assert_close(logits, recorded("pad_logits"), atol=2e-4, rtol=0)
    assert_close(out.logits_per_text, recorded("pad_logits"), atol=2e-4, rtol=0)


def test_training_mode_gives_the_official_training_logits(official: StudentModel) -> None:
    official.train()
    out = official(**golden_batch(INFO, "full"))
    official.eval()
    assert out.logits_per_text.requires_grad
    assert_close(out.logits_per_text.detach(), recorded("full_logits_trainmode"), atol=2e-4, rtol=0)


def test_masking_changes_nothing_when_no_frame_is_padded(masking: StudentModel) -> None:
    with torch.no_grad():
        out = masking(**golden_batch(INFO, "full"))
    assert_close(out.logits_per_text, recorded("full_logits"), atol=2e-4, rtol=0)
    assert_close(out.frame_weights, recorded("full_frame_weight"), atol=1e-5, rtol=0)


def test_padded_frames_are_inert_with_masking_and_not_without(masking: StudentModel, official: StudentModel) -> None:
    batch = golden_batch(INFO, "pad")
    mask = batch["frame_mask"]
    noisy = dict(batch)
    noise = torch.randn(batch["pixel_values"].shape, generator=torch.Generator().manual_seed(0))
    noisy["pixel_values"] = torch.where(mask[:, :, None, None, None], batch["pixel_values"], noise)
    with torch.no_grad():
        clean, changed = masking(**batch), masking(**noisy)
        loose, loose_changed = official(**batch), official(**noisy)
    assert_close(changed.logits_per_text, clean.logits_per_text, atol=1e-6, rtol=1e-6)
    assert_close(changed.frame_weights, clean.frame_weights, atol=1e-7, rtol=0)
    assert (clean.frame_weights[~mask] == 0).all()
    assert_close(clean.frame_weights.sum(dim=1), torch.ones(len(mask)))
    assert (loose_changed.logits_per_text - loose.logits_per_text).abs().max() > 1e-2


def test_a_padded_video_scores_as_the_same_video_without_its_padding(masking: StudentModel) -> None:
    batch = golden_batch(INFO, "pad")
    valid = INFO["n_valid"][2]
    with torch.no_grad():
        padded = masking.encode_videos(batch["pixel_values"][2:3], batch["frame_mask"][2:3])
        short = masking.encode_videos(batch["pixel_values"][2:3, :valid], batch["frame_mask"][2:3, :valid])
    assert_close(padded["embeds"], short["embeds"], atol=1e-6, rtol=0)


def test_text_padding_is_inert(official: StudentModel) -> None:
    batch = golden_batch(INFO, "full")
    longest = max(INFO["text_lengths_L"]) + 2
    with torch.no_grad():
        short = official.encode_texts(batch["input_ids"][:, :longest], batch["attention_mask"][:, :longest])
        long = official.encode_texts(batch["input_ids"], batch["attention_mask"])
        unmasked = official.encode_texts(batch["input_ids"], torch.ones_like(batch["attention_mask"]))
    assert_close(short["embeds"], long["embeds"], atol=1e-6, rtol=0)
    assert_close(unmasked["embeds"], long["embeds"], atol=1e-6, rtol=0)


def test_writing_the_official_layout_gives_back_every_tensor(
    official: StudentModel, state: dict[str, torch.Tensor]
) -> None:
    written = student_to_official(official)
    assert written.keys() == state.keys()
    for key, tensor in state.items():
        assert torch.equal(written[key], tensor), key


def test_sizes_are_read_off_the_state_dict(official: StudentModel) -> None:
    config = official.config
    vision, text = config.backbone_config.vision_config, config.backbone_config.text_config
    assert (vision.hidden_size, vision.num_hidden_layers, vision.patch_size, vision.image_size) == (128, 12, 8, 56)
    assert (text.hidden_size, text.num_hidden_layers, text.vocab_size) == (128, 4, 49408)
    assert vision.num_attention_heads == text.num_attention_heads == config.temporal_heads == 2
    assert vision.hidden_act == text.hidden_act == "quick_gelu"
    assert (config.temporal_layers, config.max_frames) == (4, 77)
    assert all(parameter.dtype == torch.float32 for parameter in official.parameters())
    assert np.isclose(official.backbone.logit_scale.item(), 2.6593)


@pytest.mark.parametrize("kind", ["full", "pad"])
def test_without_frame_weighting_it_is_the_official_mean_pooling(state: dict[str, torch.Tensor], kind: str) -> None:
    sequential = load_student({key: value for key, value in state.items() if not key.startswith("frameLinear")})
    assert sequential.config.pooling == "mean"
    with torch.no_grad():
        out = sequential(**golden_batch(INFO, kind))
    assert_close(out.logits_per_text, recorded(f"{kind}_logits_meanpool"), atol=2e-4, rtol=0)
    mask = golden_batch(INFO, kind)["frame_mask"]
    assert_close(out.frame_weights, mask / mask.sum(dim=1, keepdim=True), atol=1e-6, rtol=0)
