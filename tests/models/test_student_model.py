"""How the student behaves: inputs, precision, masks, training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from tiny_models import FRAMES, SIZE, WIDTH, tiny_batch, tiny_student
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close

from teachclip.errors import DataError
from teachclip.models.modeling import evaluating
from teachclip.models.temporal import TemporalTransformer
from teachclip.scorer import FeatureScorer, Scorer


def test_the_student_is_a_scorer() -> None:
    student = tiny_student()
    assert isinstance(student, Scorer)
    assert isinstance(student, FeatureScorer)


def test_one_forward_equals_encoding_and_scoring_apart() -> None:
    student, batch = tiny_student(), tiny_batch()
    out = student(**batch)
    texts = student.encode_texts(batch["input_ids"], batch["attention_mask"])
    videos = student.encode_videos(batch["pixel_values"], batch["frame_mask"])
    assert_close(student.score(texts, videos), out.logits_per_text)
    cosines = torch.nn.functional.cosine_similarity(out.text_embeds[:, None], out.video_embeds[None], dim=-1)
    assert_close(out.logits_per_text, student.backbone.logit_scale.exp() * cosines)
    assert_close(out.frame_weights.sum(dim=1), torch.ones(3))


def test_one_encoder_alone_gives_its_embeddings_only() -> None:
    student, batch = tiny_student(), tiny_batch(videos=2, texts=5)
    texts = student(input_ids=batch["input_ids"])
    videos = student(pixel_values=batch["pixel_values"], frame_mask=batch["frame_mask"])
    assert texts.text_embeds.shape == (5, WIDTH)
    assert texts.logits_per_text is None and texts.video_embeds is None
    assert videos.video_embeds.shape == (2, WIDTH)
    assert videos.logits_per_text is None and videos.text_embeds is None
    assert student(**batch).logits_per_text.shape == (5, 2)


def test_no_mask_means_all_frames_are_valid() -> None:
    student, batch = tiny_student(), tiny_batch()
    every = torch.ones_like(batch["frame_mask"])
    with_mask = student.encode_videos(batch["pixel_values"], every)
    assert_close(student.encode_videos(batch["pixel_values"])["embeds"], with_mask["embeds"])
    as_numbers = student.encode_videos(batch["pixel_values"], batch["frame_mask"].long())
    as_bool = student.encode_videos(batch["pixel_values"], batch["frame_mask"])
    assert torch.equal(as_numbers["embeds"], as_bool["embeds"])


def test_one_video_in_a_batch_and_a_video_without_valid_frames_give_finite_numbers() -> None:
    student, batch = tiny_student(), tiny_batch(videos=1, texts=1)
    out = student(**{**batch, "frame_mask": torch.zeros(1, FRAMES, dtype=torch.bool)})
    assert out.logits_per_text.shape == (1, 1)
    out.logits_per_text.sum().backward()
    assert out.logits_per_text.isfinite().all() and out.frame_weights.isfinite().all()
    assert all(p.grad.isfinite().all() for p in student.parameters() if p.grad is not None)


def test_the_temporal_mask_with_valid_keys_only_equals_no_mask() -> None:
    torch.manual_seed(0)
    model = TemporalTransformer(WIDTH, layers=2, heads=2)
    frames = torch.randn(3, 5, WIDTH)
    assert_close(model(frames, torch.ones(3, 5, dtype=torch.bool)), model(frames), atol=1e-6, rtol=0)


def test_masked_keys_do_not_reach_valid_frames_nor_their_gradients() -> None:
    torch.manual_seed(0)
    model = TemporalTransformer(WIDTH, layers=2, heads=2)
    frames = torch.randn(2, 5, WIDTH, requires_grad=True)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], dtype=torch.bool)
    out = model(frames, mask)
    assert_close(out[0, :3], model(frames[:1, :3])[0], atol=1e-6, rtol=0)
    out[0, :3].sum().backward()
    assert not frames.grad[0, 3:].any()
    assert frames.grad[0, :3].abs().min() > 0


def test_attention_runs_on_the_fused_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    student, batch = tiny_student(), tiny_batch()
    assert student.config._attn_implementation == "sdpa"
    assert student.backbone.vision_model.config._attn_implementation == "sdpa"
    calls = []
    fused = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional,
        "scaled_dot_product_attention",
        lambda *args, **kwargs: calls.append(1) or fused(*args, **kwargs),
    )
    student(**batch)
    assert len(calls) == 2 + 2 + student.config.temporal_layers


def test_logits_stay_float32_under_bfloat16_autocast() -> None:
    student, batch = tiny_student(), tiny_batch()
    exact = student(**batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = student(**batch)
    for name in ("logits_per_text", "frame_scores", "frame_weights", "text_embeds", "video_embeds"):
        assert out[name].dtype == torch.float32
    assert_close(out.logits_per_text, exact.logits_per_text, atol=0.3, rtol=0)


@pytest.mark.parametrize("with_encoders", [True, False])
def test_all_trainable_parameters_take_part_in_one_distributed_forward(tmp_path: Path, with_encoders: bool) -> None:
    student, batch = tiny_student(), tiny_batch()
    if not with_encoders:
        for name, parameter in student.named_parameters():
            parameter.requires_grad_(not name.startswith("backbone.") or name == "backbone.logit_scale")
        features = torch.randn(3, WIDTH), torch.randn(3, FRAMES, WIDTH)
        batch = {"text_features": features[0], "frame_features": features[1], "frame_mask": batch["frame_mask"]}
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        model = DistributedDataParallel(student)
        for _ in range(2):  # the second forward fails if a parameter was not used in the first
            out = model(**batch)
            (out.logits_per_text.diagonal().sum() + out.frame_weights.square().sum()).backward()
    finally:
        dist.destroy_process_group()
    assert all(p.grad is not None for p in student.parameters() if p.requires_grad)
    assert student.backbone.logit_scale.grad is not None


def test_activation_checkpointing_changes_no_gradient() -> None:
    grads = []
    for enabled in (False, True):
        student, batch = tiny_student(), tiny_batch()
        if enabled:
            student.activation_checkpointing_enable()
        student.train()
        student(**batch).logits_per_text.diagonal().sum().backward()
        grads.append(student.backbone.vision_model.encoder.layers[0].mlp.fc1.weight.grad)
    assert_close(grads[0], grads[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pixel_values": torch.zeros(3, FRAMES, 3, 48, 48)}, "expected (videos, frames, 3, 32, 32)"),
        ({"pixel_values": torch.zeros(3, 3, SIZE, SIZE)}, "pixel_values has shape (3, 3, 32, 32)"),
        ({"frame_mask": torch.ones(3, FRAMES + 1)}, "frame_mask has shape (3, 5), expected (3, 4)"),
        ({"input_ids": torch.full((3, 7), 999)}, "token id 999 is outside the vocabulary of the model"),
        ({"input_ids": torch.full((3, 7), -1)}, "token id -1 is outside the vocabulary of the model"),
        ({"input_ids": torch.zeros(3, 17, dtype=torch.long)}, "expected (texts, at most 16)"),
        ({"frame_features": torch.zeros(3, FRAMES, WIDTH)}, "give either input_ids or text_features"),
        (
            {"pixel_values": torch.zeros(1, 17, 3, SIZE, SIZE), "frame_mask": None},
            "videos have 17 frames, this student accepts at most 16",
        ),
    ],
)
def test_wrong_inputs_are_named_in_one_line(change: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(DataError) as error:
        tiny_student()(**{**tiny_batch(), **change})
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_nothing_to_encode_is_an_error() -> None:
    with pytest.raises(DataError, match="nothing to encode"):
        tiny_student()()


def test_only_a_model_in_training_is_switched_to_evaluation_and_back(monkeypatch) -> None:
    student, switches = tiny_student().train(), []
    train = type(student).train

    def counted(model, mode=True):
        switches.append(mode)
        return train(model, mode)

    monkeypatch.setattr(type(student), "train", counted)
    with evaluating(student):
        assert not any(module.training for module in student.modules())
    assert switches == [False, True] and student.backbone.training
    student.eval()
    student.backbone.text_model.train()  # as somebody may have left a part
    with evaluating(student):
        assert not student.backbone.text_model.training
    switches.clear()
    with evaluating(student):
        assert not student.training
    assert switches == []
