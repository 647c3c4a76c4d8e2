"""Loading CLIP from any layout, and encoding with it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from golden_models import openai_clip_shapes, rule_state
from safetensors.torch import load_file, save_file
from tiny_models import FRAMES, tiny_batch, tiny_clip
from torch.testing import assert_close

from teachclip.errors import CheckpointError
from teachclip.models.clip import (
    frame_features,
    load_clip,
    openai_to_transformers,
    text_features,
    transformers_to_openai,
)

SMALL = openai_clip_shapes(width=128, layers=2, patch=8, grid=3, text_width=64, text_layers=1, vocabulary=50)


def test_renaming_there_and_back_gives_the_same_state() -> None:
    state = rule_state(SMALL, 3)
    again = transformers_to_openai(openai_to_transformers(state))
    assert again.keys() == state.keys()
    assert all(torch.equal(again[key], state[key]) for key in state)


@pytest.mark.parametrize("layout", ["openai", "transformers"])
@pytest.mark.parametrize("as_file", [True, False])
def test_a_state_dict_of_either_layout_loads_with_its_sizes(tmp_path: Path, layout: str, as_file: bool) -> None:
    state = rule_state(SMALL, 3)
    half = {key: tensor.half() if tensor.ndim > 1 else tensor for key, tensor in state.items()}
    given = half if layout == "openai" else openai_to_transformers(half)
    torch.save(given, tmp_path / "clip.pt")
    clip = load_clip(tmp_path / "clip.pt" if as_file else given)
    vision, text = clip.config.vision_config, clip.config.text_config
    assert (vision.num_attention_heads, text.num_attention_heads) == (2, 1)
    assert (vision.image_size, vision.patch_size, text.vocab_size, clip.config.projection_dim) == (24, 8, 50, 64)
    assert not clip.training
    assert {parameter.dtype for parameter in clip.parameters()} == {torch.float32}
    assert_close(clip.visual_projection.weight.T, state["visual.proj"].half().float())
    assert torch.equal(clip.vision_model.embeddings.position_ids, torch.arange(10)[None])


def test_the_text_feature_is_at_the_highest_id_wherever_it_is() -> None:
    clip = load_clip(rule_state(SMALL, 3))
    ids = torch.tensor([[1, 7, 49, 0, 0], [1, 7, 9, 3, 49], [1, 7, 40, 3, 2]])
    found = text_features(clip, ids)
    assert_close(found[:1], text_features(clip, ids[:1, :3]))
    assert_close(found[2:], text_features(clip, ids[2:, :3]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("visual.conv1.weight"), "visual.conv1.weight is missing"),
        (lambda s: s.pop("ln_final.bias"), "1 entry (ln_final.bias) missing"),
        (lambda s: s.update({"visual.conv2.weight": torch.ones(2)}), "1 entry (visual.conv2.weight) unexpected"),
        (lambda s: s.update({"ln_final.bias": torch.ones(2)}), "(ln_final.bias: (2,), expected (64,))"),
        (lambda s: s.update({"visual.positional_embedding": torch.ones(9, 128)}), "not a square number of patches"),
        (
            lambda s: s.pop("visual.transformer.resblocks.0.attn.in_proj_bias"),
            "resblocks.0.attn.in_proj_bias) missing",
        ),
    ],
)
def test_an_incomplete_state_dict_is_named_in_its_own_names(change: object, message: str) -> None:
    state = rule_state(SMALL, 3)
    change(state)  # type: ignore[operator]
    with pytest.raises(CheckpointError) as error:
        load_clip(state)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_folder_of_transformers_keeps_its_own_configuration(tmp_path: Path) -> None:
    clip = tiny_clip(heads=4)
    clip.save_pretrained(tmp_path)
    again = load_clip(tmp_path)
    assert again.config.text_config.num_attention_heads == 4
    assert again.config.text_config.eos_token_id == clip.config.text_config.eos_token_id
    batch = tiny_batch()
    assert torch.equal(text_features(again, batch["input_ids"]), text_features(clip, batch["input_ids"]))


def test_a_folder_without_some_weights_is_refused(tmp_path: Path) -> None:
    tiny_clip().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"1 weight missing \(visual_projection.weight\)"):
        load_clip(tmp_path)


def test_what_is_no_clip_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be loaded as a CLIP"):
        load_clip(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip"}))
    with pytest.raises(CheckpointError, match="cannot be loaded as a CLIP"):
        load_clip(tmp_path)


def test_frames_are_encoded_each_by_itself() -> None:
    clip, batch = tiny_clip(), tiny_batch()
    found = frame_features(clip, batch["pixel_values"])
    assert found.shape == (3, FRAMES, 32)
    alone = clip.get_image_features(pixel_values=batch["pixel_values"][1, 2:3]).pooler_output
    assert_close(found[1, 2:3], alone)


def test_the_attention_mask_of_texts_makes_no_difference() -> None:
    clip, batch = tiny_clip(), tiny_batch()
    ids = torch.nn.functional.pad(batch["input_ids"], (0, 3), value=clip.config.text_config.pad_token_id)
    mask = (torch.arange(10) < 7).long().expand(3, -1)
    masked = clip.get_text_features(input_ids=ids, attention_mask=mask).pooler_output
    assert_close(text_features(clip, ids, mask), masked)
