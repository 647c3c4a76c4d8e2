"""Students on dual encoders of every family: start, train, save, load, export, encode."""

from __future__ import annotations

import copy
import logging
from pathlib import Path

import pytest
import torch
from tiny_backbones import FAMILIES, POSITIONS, save_backbone, tiny_backbone
from tiny_models import FRAMES, SIZE, WIDTH, tiny_clip
from torch.nn.functional import normalize
from torch.testing import assert_close
from transformers import AutoModel, AutoProcessor

from teachclip.data.video.sampling import FrameSampling
from teachclip.errors import CheckpointError
from teachclip.models.backbone import load_backbone
from teachclip.models.configuration import StudentConfig
from teachclip.models.mean_pooling import EncoderFeatures, MeanPooling
from teachclip.models.processing import StudentProcessor
from teachclip.models.student import StudentModel, load_student, student_to_official
from teachclip.scorer import FeatureScorer
from teachclip.training.optim import freeze_clip_inputs, parameter_groups

TEXTS = ["a red circle", "a blue square over a sea", "sea"]
COPIED = ("clip", "metaclip_2", "siglip", "siglip2")


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def student(family: str, tmp_path: Path) -> StudentModel:
    """A student on a saved backbone, with the processor that belongs to it."""
    folder = save_backbone(family, tmp_path / "backbone")
    backbone = load_backbone(folder)
    torch.manual_seed(0)
    model = StudentModel.from_backbone(backbone, temporal_layers=2, frames=FRAMES)
    model.processor = StudentProcessor.from_backbone(
        folder, backbone.config, sampling=FrameSampling("intervals", FRAMES), max_tokens=10
    )
    with torch.no_grad():
        for part in (model.temporal, model.aggregation):
            for parameter in part.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def some_videos() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randint(0, 256, (count, 3, 40, 64), generator=generator).to(torch.uint8) for count in (FRAMES, 2, 1)
    ]


def batch_of(student: StudentModel) -> dict[str, torch.Tensor]:
    return dict(student.processor(text=TEXTS, videos=some_videos()))


def test_everything_is_differentiable(student: StudentModel) -> None:
    out = student.train()(**batch_of(student))
    assert out.logits_per_text.shape == (3, 3) and out.frame_weights.shape == (3, FRAMES)
    assert out.frame_weights[2].tolist() == [1, 0, 0, 0]
    (out.logits_per_text.diagonal().sum() + out.frame_scores.sum()).backward()
    without = [name for name, parameter in student.named_parameters() if parameter.grad is None]
    freeze_clip_inputs(student)
    assert not any(student.get_parameter(name).requires_grad for name in without)  # or processes would wait for them
    # ALIGN reads the first token itself, not the pooler of its BERT.
    assert all("text_model.pooler" in name for name in without)
    assert student.aggregation.hidden.weight.grad is not None


@torch.no_grad()
def test_logits_are_the_backbones_scaled_cosines(family: str, student: StudentModel) -> None:
    out, backbone = student(**batch_of(student)), student.backbone
    scale = 1 / backbone.temperature if family == "align" else backbone.logit_scale.exp()
    bias = backbone.logit_bias if family.startswith("siglip") else 0
    assert_close(out.logits_per_text, scale * out.text_embeds @ out.video_embeds.T + bias)


@torch.no_grad()
def test_a_saved_student_loads_whole_and_encodes_alike(family: str, student: StudentModel, tmp_path: Path) -> None:
    student.eval().save_pretrained(tmp_path / "student")
    loaded = load_student(tmp_path / "student")
    assert loaded.config.backbone_config.model_type == family
    assert type(loaded.backbone) is type(student.backbone)
    want, got = student(**batch_of(student)), loaded(**batch_of(loaded))
    for name in ("logits_per_text", "text_embeds", "video_embeds", "frame_scores"):
        assert_close(got[name], want[name], rtol=0, atol=0)
    assert loaded.processor.preprocessing.describe() == student.processor.preprocessing.describe()
    for one, other in zip(
        dict(student.processor(text=TEXTS, videos=some_videos())).values(),
        dict(AutoProcessor.from_pretrained(tmp_path / "student")(text=TEXTS, videos=some_videos())).values(),
        strict=True,
    ):
        assert torch.equal(one, other)
    auto = AutoModel.from_pretrained(tmp_path / "student")
    assert isinstance(auto, StudentModel)
    student.to(torch.float16).save_pretrained(tmp_path / "half")
    assert load_student(tmp_path / "half").dtype == torch.float32


def test_texts_and_videos_are_encoded_alone_as_in_a_batch(student: StudentModel) -> None:
    texts = student.encode_text(TEXTS, progress=False)
    videos = student.encode_video(some_videos(), progress=False)
    assert texts.shape == videos.shape == (3, WIDTH)
    assert_close(student.encode_text(TEXTS[1], progress=False), texts[1:2], atol=1e-5, rtol=0)
    assert_close(student.encode_video(some_videos()[1:2], progress=False), videos[1:2], atol=1e-5, rtol=0)
    assert (texts[0] - texts[2]).abs().max() > 1e-3
    output = student.get_text_features(**dict(student.processor(text=TEXTS)))
    assert_close(normalize(output.pooler_output, dim=-1), texts, atol=1e-5, rtol=0)


@torch.no_grad()
def test_stored_features_replace_the_encoders(student: StudentModel) -> None:
    batch = batch_of(student)
    features = EncoderFeatures(student.backbone)
    texts = features.encode_texts(batch["input_ids"], batch["attention_mask"])["features"]
    frames = features.encode_videos(batch["pixel_values"], batch["frame_mask"])["frame_features"]
    again = student(text_features=texts, frame_features=frames, frame_mask=batch["frame_mask"])
    assert_close(again.logits_per_text, student(**batch).logits_per_text)
    pooled = MeanPooling(student.backbone)
    assert isinstance(pooled, FeatureScorer)
    tokens = pooled.encode_texts(batch["input_ids"], batch["attention_mask"])
    videos = pooled.encode_videos(batch["pixel_values"], batch["frame_mask"])
    assert pooled.score(tokens, videos).shape == (3, 3)


def test_the_temporal_transformer_starts_from_a_text_encoder_of_the_same_blocks(
    family: str, caplog: pytest.LogCaptureFixture
) -> None:
    backbone = tiny_backbone(family)
    with caplog.at_level(logging.INFO, logger="teachclip"):
        student = StudentModel.from_backbone(backbone, temporal_layers=2, frames=FRAMES)
    if family not in COPIED:
        assert "post-norm blocks" in caplog.text and "starts from random weights" in caplog.text
        assert student.config.temporal_activation == "quick_gelu"
        assert student.config.max_frames == 77
        return
    assert not caplog.text
    layer, block = backbone.text_model.encoder.layers[1], student.temporal.layers[1]
    assert torch.equal(block.mlp.fc1.weight, layer.mlp.fc1.weight)
    assert torch.equal(block.attention.qkv_proj.weight[:WIDTH], layer.self_attn.q_proj.weight)
    assert student.config.temporal_activation == backbone.config.text_config.hidden_act
    table = backbone.text_model.embeddings.position_embedding.weight
    assert torch.equal(student.frame_position_embeddings.weight, table) and len(table) == POSITIONS
    hidden = torch.randn(2, 3, WIDTH)
    assert_close(block.mlp(hidden), layer.mlp(hidden))


def test_a_block_has_the_activation_of_the_text_encoder() -> None:
    config = StudentConfig(tiny_clip().config.to_dict(), 1, temporal_heads=2, temporal_activation="gelu")
    blocks = [StudentModel(config).temporal.layers[0].mlp]
    config = copy.deepcopy(config)
    config.temporal_activation = "quick_gelu"
    blocks.append(StudentModel(config).temporal.layers[0].mlp)
    blocks[1].load_state_dict(blocks[0].state_dict())
    hidden = 3 * torch.randn(4, WIDTH)
    assert not torch.allclose(blocks[0](hidden), blocks[1](hidden), atol=1e-6)
    with pytest.raises(CheckpointError, match="temporal_activation 'relux' is unknown to transformers"):
        StudentConfig(temporal_activation="relux")


def test_inputs_are_frozen_and_the_backbone_has_its_own_rate(student: StudentModel) -> None:
    frozen = freeze_clip_inputs(student)
    parts = ("embeddings.", "pre_layrnorm.", "text_model.pooler.")
    assert frozen and all(name.startswith("backbone.") and any(part in name for part in parts) for name in frozen)
    groups = parameter_groups(student, lr=1.0, clip_lr=0.1, attention_lr=10.0, weight_decay=0.2)
    rates = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    for name, parameter in student.named_parameters():
        expected = 0.1 if name.startswith("backbone.") else 10.0 if name.startswith("aggregation.") else 1.0
        assert rates.get(id(parameter)) == (None if name in frozen else expected), name


def test_batch_norms_keep_their_statistics() -> None:
    student = StudentModel.from_backbone(tiny_backbone("align"), temporal_layers=0).train()
    before = {key: tensor.clone() for key, tensor in student.state_dict().items() if "running" in key}
    student(pixel_values=torch.randn(2, 3, 3, SIZE, SIZE))
    assert before and all(torch.equal(student.state_dict()[key], tensor) for key, tensor in before.items())
    assert student.training and student.aggregation.training


def test_the_official_layout_is_for_clip(family: str) -> None:
    student = StudentModel.from_backbone(tiny_backbone(family))
    message = "official layout" if family == "clip" else f"need a CLIP backbone, this student has a {family} backbone"
    with pytest.raises(CheckpointError, match=message):
        student_to_official(student)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"model_type": "bert"}, "model type 'bert' is not supported; known: CLIP"),
        ({"model_type": "blip-9"}, "unknown model_type 'blip-9'"),
        ({"projection_dim": 32}, "unknown model_type ''"),
    ],
)
def test_a_configuration_of_something_else_is_refused(given: dict[str, object], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        StudentConfig(given)
