"""Students with several vectors per video: attention with heads, the nearest vector counts."""

from __future__ import annotations

import json

import pytest
import torch
from tiny_models import tiny_batch, tiny_student
from torch.nn.functional import normalize
from torch.testing import assert_close

from teachclip import load_student
from teachclip.errors import CheckpointError, DataError
from teachclip.models.frame_attention import FrameAttention
from teachclip.models.modeling import best_cosines
from teachclip.models.student import StudentConfig, student_to_official
from teachclip.onnx.export import export_onnx
from teachclip.search.provenance import student_provenance


def single(attention: FrameAttention, head: int) -> FrameAttention:
    """The attention of one of several vectors, by itself."""
    found = FrameAttention(attention.hidden.in_features, temperature=attention.temperature, kind=attention.kind)
    with torch.no_grad():
        found.hidden.load_state_dict(attention.hidden.state_dict())
        found.score.weight.copy_(attention.score.weight[head : head + 1])
        found.score.bias.copy_(attention.score.bias[head : head + 1])
    return found


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
@pytest.mark.parametrize("masked", [False, True])
def test_each_vector_is_what_its_attention_alone_would_give(kind: str, masked: bool) -> None:
    torch.manual_seed(0)
    attention, frames = FrameAttention(8, kind=kind, vectors=3), torch.randn(5, 4, 8)
    with torch.no_grad():
        attention.score.weight.normal_()
    mask = torch.ones(5, 4, dtype=torch.bool)
    mask[1:, -1] = False
    found = attention(frames, mask if masked else None)
    assert found.pooled.shape == (5, 3, 8) and found.attention_scores.shape == (5, 3, 4)
    for head in range(3):
        alone = single(attention, head)(frames, mask if masked else None)
        for one, several in zip(alone, found, strict=True):
            assert_close(several[:, head], one)


def test_the_nearest_vector_of_a_video_counts() -> None:
    texts, videos = normalize(torch.randn(4, 6), dim=-1), normalize(torch.randn(5, 3, 6), dim=-1)
    expected = torch.stack([(texts @ videos[:, head].T) for head in range(3)]).amax(dim=0)
    assert_close(best_cosines(texts, videos), expected)
    assert torch.equal(best_cosines(texts, videos[:, 0]), texts @ videos[:, 0].T)


def test_one_forward_encodes_and_scores() -> None:
    student, batch = tiny_student(vectors=2), tiny_batch()
    with torch.no_grad():
        out = student(**batch)
    assert out.video_embeds.shape == (3, 2, 32) and out.frame_scores.shape == out.frame_weights.shape == (3, 2, 4)
    assert_close(out.frame_weights.sum(dim=-1), torch.ones(3, 2))
    scale = student.backbone.logit_scale.exp()
    assert_close(out.logits_per_text, scale * best_cosines(out.text_embeds, out.video_embeds))
    assert not torch.allclose(out.video_embeds[:, 0], out.video_embeds[:, 1], atol=1e-3)
    prefixes = tiny_student(vectors=2, matryoshka=[8]).prefix_logits(
        {"embeds": out.text_embeds}, {"embeds": out.video_embeds}
    )
    short = normalize(out.text_embeds[:, :8], dim=-1), normalize(out.video_embeds[..., :8], dim=-1)
    assert_close(prefixes[1], scale * best_cosines(*short))


def test_the_number_is_in_the_configuration_where_it_is_not_one(tmp_path) -> None:
    for count in (1, 3):
        tiny_student(vectors=count).save_pretrained(tmp_path / str(count))
        assert load_student(tmp_path / str(count)).config.vectors == count
    configs = [json.loads((tmp_path / name / "config.json").read_text()) for name in "13"]
    assert "vectors" not in configs[0] and configs[1]["vectors"] == 3
    one, three = (student_provenance(load_student(tmp_path / name))["student"] for name in "13")
    assert "vectors" not in one and three["vectors"] == 3
    texts = load_student(tmp_path / "3").encode_text(["a red circle"], progress=False)
    assert texts.shape == (1, 32)
    assert load_student(tmp_path / "3").encode_video([], progress=False).shape == (0, 3, 32)


def test_numbers_that_cannot_be_are_named() -> None:
    with pytest.raises(CheckpointError, match="vectors is 0, expected an integer of at least 1"):
        StudentConfig(vectors=0)
    with pytest.raises(CheckpointError, match="vectors is 2, but mean pooling gives one"):
        StudentConfig(vectors=2, pooling="mean")


def test_who_takes_one_vector_alone_says_so(tmp_path) -> None:
    student, batch = tiny_student(vectors=2), tiny_batch()
    with pytest.raises(DataError, match="one vector per video, this one has 2; use encode_video"):
        student.get_video_features(batch["pixel_values"])
    with pytest.raises(CheckpointError, match="vectors is 2, the official layouts only support 1"):
        student_to_official(tiny_student(vectors=2, heads=1))
    with pytest.raises(CheckpointError, match="2 vectors per video, which an ONNX folder cannot hold yet"):
        export_onnx(student, tmp_path / "onnx")
    assert "text" in export_onnx(student, tmp_path / "onnx", only="text")
