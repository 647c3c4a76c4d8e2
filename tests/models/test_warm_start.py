"""What a fresh student starts from."""

from __future__ import annotations

import logging

import pytest
import torch
from golden import load_golden
from golden_models import openai_clip_shapes, rule_state
from tiny_models import WIDTH, tiny_clip

from teachclip.models.clip import load_clip
from teachclip.models.student import StudentModel, student_to_official


def test_a_student_starts_as_the_official_one_does() -> None:
    info, _ = load_golden("10_init_map")
    sizes = load_golden("01_student")[0]["config"]
    shapes = openai_clip_shapes(
        width=sizes["vw"],
        layers=sizes["vl"],
        patch=sizes["patch"],
        grid=sizes["grid"],
        text_width=sizes["tw"],
        text_layers=sizes["tl"],
    )
    base = rule_state(shapes, info["clip_base_seed"])
    torch.manual_seed(0)
    state = student_to_official(StudentModel.from_backbone(load_clip(base)))
    recorded = info["map"]["student"]
    assert state.keys() == {f"clip.{key}" for key in base} | {key for key in recorded if "*" not in key}
    for key, tensor in base.items():
        assert torch.equal(state[f"clip.{key}"], tensor)
    for key, origin in recorded.items():
        if "*" in key:
            assert origin == "CLIP same key without the prefix"
        elif origin.startswith("CLIP "):
            assert torch.equal(state[key], base[origin.removeprefix("CLIP ")]), key
        elif origin == "zeros":
            assert not state[key].any(), key
        else:
            # 0.0202 and 0.0221 were drawn there, the latter from 128 values.
            assert origin.startswith("random, std 0.02")
            assert state[key].std().item() == pytest.approx(0.02, rel=0.2), key


def test_layers_without_a_counterpart_start_at_random_and_are_named(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    with caplog.at_level(logging.INFO, logger="teachclip"):
        student = StudentModel.from_backbone(tiny_clip(text_layers=2), temporal_layers=4, frames=40)
    assert "4 temporal layers, 2 text layers" in caplog.text
    assert "40 frame positions, 16 text positions" in caplog.text
    copied, fresh = student.temporal.layers[1], student.temporal.layers[3]
    text_layer = student.backbone.text_model.encoder.layers[1]
    assert torch.equal(copied.mlp.fc1.weight, text_layer.mlp.fc1.weight)
    assert torch.equal(copied.attention.qkv_proj.weight[:WIDTH], text_layer.self_attn.q_proj.weight)
    assert fresh.attention.qkv_proj.weight.std().item() == pytest.approx(0.02, rel=0.1)
    for narrow in (fresh.attention.out_proj, fresh.mlp.fc2):
        assert narrow.weight.std().item() == pytest.approx(0.02 / 8**0.5, rel=0.1)
        assert not narrow.bias.any()
    positions = student.backbone.text_model.embeddings.position_embedding.weight
    assert len(student.frame_position_embeddings.weight) == 40
    assert torch.equal(student.frame_position_embeddings.weight[:16], positions)
    assert student.frame_position_embeddings.weight[16:].std().item() == pytest.approx(0.02, rel=0.2)


def test_another_text_width_leaves_the_temporal_transformer_at_random(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="teachclip"):
        student = StudentModel.from_backbone(tiny_clip(text_width=48))
    assert "text encoder is 48 wide (inner 192, pre-norm blocks), the joint space 32" in caplog.text
    assert student.config.temporal_heads == 1
    assert student.temporal.layers[0].mlp.fc1.weight.std().item() == pytest.approx(0.02, rel=0.1)


def test_random_parts_follow_the_global_generator() -> None:
    def made(seed: int) -> torch.Tensor:
        clip = tiny_clip()
        torch.manual_seed(seed)
        return StudentModel.from_backbone(clip).aggregation.hidden.weight

    assert torch.equal(made(1), made(1))
    assert not torch.equal(made(1), made(2))


def test_without_temporal_layers_frames_stay_as_clip_encodes_them() -> None:
    student = StudentModel.from_backbone(tiny_clip(heads=1), temporal_layers=0)
    frames = torch.randn(2, 3, WIDTH)
    hidden, _ = student.aggregate(frames)
    assert torch.equal(hidden, frames)
    assert not any(name.startswith(("temporal", "frame_position")) for name, _ in student.named_parameters())
