"""Gates, residual adapters and sets of frames of a student, in closed form."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from tiny_models import WIDTH, tiny_clip
from torch.nn.functional import normalize, relu
from torch.testing import assert_close

from teachclip.errors import CheckpointError
from teachclip.models.adapters import ResidualAdapter, ResidualAdapters
from teachclip.models.frame_attention import FrameAttention, attention_weights, masked_softmax
from teachclip.models.student import StudentConfig, StudentModel, load_student, student_to_official

FRAMES = torch.randn(3, 4, WIDTH, generator=torch.Generator().manual_seed(1)) * 7
MASK = torch.tensor([[True] * 4, [True, True, False, False], [True] * 4])


def student(**options) -> StudentModel:
    torch.manual_seed(0)
    made = StudentModel.from_backbone(tiny_clip(text_layers=4, heads=1), temporal_layers=2, frames=4, **options)
    with torch.no_grad():  # at its start the attention weighs frames almost equally and adapters do nothing
        made.aggregation.score.weight.mul_(20)
        for adapter in getattr(made, "heads", {}).values():
            adapter.outer.weight.normal_(std=0.1)
    return made.eval()


def test_sigmoid_attention_scores_every_frame_independently() -> None:
    scores = torch.tensor([[3.0, 3.0, -3.0, 0.0]])
    weights = (scores / 0.5).sigmoid()
    assert_close(attention_weights(scores, temperature=0.5, kind="sigmoid"), weights / weights.sum())
    mask = torch.tensor([[True, False, True, False]])
    kept = weights * mask
    assert_close(attention_weights(scores, mask, temperature=0.5, kind="sigmoid"), kept / kept.sum())


def test_sigmoid_attention_of_very_low_scores_stays_finite() -> None:
    pooling_weights = attention_weights(torch.tensor([[-500.0, -501.0]]), kind="sigmoid", temperature=0.1)
    assert_close(pooling_weights.sum(), torch.tensor(1.0))
    assert pooling_weights[0, 0] > 0.99


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_a_video_is_the_weighted_mean_of_its_frames(kind: str) -> None:
    torch.manual_seed(0)
    aggregation = FrameAttention(WIDTH, temperature=0.3, kind=kind)
    found = aggregation(FRAMES, MASK)
    assert_close(found.pooling_weights.sum(-1), torch.ones(3))
    assert (found.pooling_weights[~MASK] == 0).all() and (found.attention_weights[~MASK] == 0).all()
    assert_close(found.pooled, (found.pooling_weights[..., None] * normalize(FRAMES, dim=-1)).sum(1))
    assert_close(found.attention_weights, attention_weights(found.attention_scores, MASK, kind=kind))


def test_rescaled_attention_ignores_the_scale_of_frames() -> None:
    torch.manual_seed(0)
    plain, rescaled = FrameAttention(WIDTH), FrameAttention(WIDTH, rescale=True)
    rescaled.load_state_dict(plain.state_dict())
    assert_close(rescaled(FRAMES).attention_scores, rescaled(FRAMES / 1000).attention_scores)
    assert_close(
        rescaled(FRAMES).attention_scores, plain(normalize(FRAMES, dim=-1) * math.sqrt(WIDTH)).attention_scores
    )
    assert not torch.allclose(plain(FRAMES).attention_scores, plain(FRAMES / 1000).attention_scores, atol=1e-3)


@pytest.mark.parametrize("attention_input", ["after", "before"])
def test_the_attention_reads_frames_after_or_before_the_temporal_transformer(attention_input: str) -> None:
    made = student(attention_input=attention_input)
    hidden, found = made.aggregate(FRAMES, MASK)
    read = hidden if attention_input == "after" else FRAMES
    assert_close(found.attention_scores, made.aggregation(read, MASK).attention_scores)
    assert_close(found.pooled, (found.pooling_weights[..., None] * normalize(hidden, dim=-1)).sum(1))


def test_an_adapter_starts_as_the_identity_on_directions_and_adds_what_it_learns() -> None:
    torch.manual_seed(0)
    adapter = StudentModel(StudentConfig(tiny_clip().config, adapters=["text"])).heads["text"]
    unit = normalize(FRAMES, dim=-1)
    assert_close(adapter(FRAMES), unit)
    with torch.no_grad():
        adapter.outer.bias.fill_(0.5)
    assert_close(adapter(FRAMES), unit + 0.5)
    assert_close(adapter(FRAMES), adapter(FRAMES / 50))


def test_heads_stand_where_they_are_named_and_nowhere_else() -> None:
    adapters = ResidualAdapters(["pooled"], WIDTH, 8)
    assert list(adapters) == ["pooled"] and adapters["pooled"].inner.out_features == 8
    assert adapters.adapt("text", FRAMES) is FRAMES
    assert adapters.adapt("pooled", FRAMES).shape == FRAMES.shape


@pytest.mark.parametrize("place", ["frame", "pooled", "text"])
def test_each_adapter_changes_only_its_place(place: str) -> None:
    plain, made = student(), student(adapters=[place])
    made.load_state_dict({**made.state_dict(), **plain.state_dict()})
    texts = torch.randn(5, WIDTH)
    same_texts = torch.allclose(*(m.texts_from_features(texts)["embeds"] for m in (plain, made)), atol=1e-6)
    same_videos = torch.allclose(*(m.videos_from_features(FRAMES, MASK)["embeds"] for m in (plain, made)), atol=1e-6)
    assert (same_texts, same_videos) == ((False, True) if place == "text" else (True, False))
    assert_close(
        plain.aggregate(FRAMES, MASK)[1].attention_scores, made.aggregate(FRAMES, MASK)[1].attention_scores
    )  # not the attention


def test_every_way_to_encode_uses_the_heads() -> None:
    made = student(adapters=["frame", "pooled", "text"], attention="sigmoid", attention_rescale=True)
    ids = torch.tensor([[0, 3, 4, made.config.backbone_config.text_config.eos_token_id]])
    pixels = torch.randn(2, 4, 3, 32, 32)
    with torch.no_grad():
        out = made(input_ids=ids, pixel_values=pixels)
        assert_close(made.encode_texts(ids)["embeds"], out.text_embeds)
        assert_close(normalize(made.get_text_features(ids).pooler_output, dim=-1), out.text_embeds)
        assert_close(made.encode_videos(pixels)["embeds"], out.video_embeds)
        assert_close(normalize(made.get_video_features(pixels).pooler_output, dim=-1), out.video_embeds)


def test_a_set_of_one_frame_is_the_video_of_that_frame_whatever_the_attention_weights() -> None:
    made = student(adapters=["frame", "pooled"])
    one = torch.tensor([[True, False, False, False]] * 3)
    with torch.no_grad():
        sets, videos = made.frame_sets_from_features(FRAMES, one.float()), made.videos_from_features(FRAMES, one)
        assert_close(sets["embeds"], videos["embeds"])
        full = made.frame_sets_from_features(FRAMES, MASK / MASK.sum(1, keepdim=True))["embeds"]
        made.aggregation.score.weight.zero_()  # then all frames count alike
        assert_close(full, made.videos_from_features(FRAMES, MASK)["embeds"])


def test_options_survive_saving(tmp_path) -> None:
    made = student(
        adapters=["frame", "text"],
        attention="sigmoid",
        attention_input="before",
        attention_rescale=True,
        adapter_width=5,
    )
    made.save_pretrained(tmp_path)
    loaded = load_student(tmp_path)
    for key in ("adapters", "attention", "attention_input", "attention_rescale", "adapter_width"):
        assert getattr(loaded.config, key) == getattr(made.config, key)
    with torch.no_grad():
        assert_close(loaded.videos_from_features(FRAMES, MASK), made.videos_from_features(FRAMES, MASK))


def test_with_all_options_off_a_student_is_the_published_one_to_the_bit() -> None:
    plain, made = (
        student(),
        student(attention="softmax", attention_input="after", attention_rescale=False, adapters=[]),
    )
    assert plain.state_dict().keys() == made.state_dict().keys()
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, made.state_dict()[name]), name
    hidden, found = made.aggregate(FRAMES, MASK)
    part = made.aggregation
    scores = part.score(relu(part.hidden(hidden))).squeeze(-1).float()
    pooling_weights = masked_softmax(scores, MASK, temperature=0.1)
    pooled = (pooling_weights[..., None] * normalize(hidden.float(), dim=-1)).sum(1)
    assert torch.equal(found.attention_scores, scores) and torch.equal(
        found.attention_weights, masked_softmax(scores, MASK)
    )
    assert torch.equal(found.pooling_weights, pooling_weights) and torch.equal(found.pooled, pooled)
    assert torch.equal(plain.videos_from_features(FRAMES, MASK)["embeds"], normalize(pooled, dim=-1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attention": "tanh"}, "attention is 'tanh', allowed: softmax, sigmoid"),
        ({"attention_input": "both"}, "attention_input is 'both', allowed: after, before"),
        ({"attention_rescale": 1}, "attention_rescale is 1, expected true or false"),
        ({"adapters": ["video"]}, "adapters is 'video', allowed: frame, pooled, text"),
        ({"adapters": ["text", "text"]}, "adapters names text twice"),
        ({"matryoshka": [8, 0]}, "matryoshka is 0, expected an integer of at least 1"),
        ({"matryoshka": [8, 33]}, "matryoshka names 33, embeddings have 32 numbers"),
        ({"adapter_width": 0}, "adapter_width is 0, expected an integer of at least 1"),
    ],
)
def test_impossible_options_are_named(options: dict, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        StudentConfig(tiny_clip().config, **options)


@pytest.mark.parametrize(
    "options",
    [{"attention": "sigmoid"}, {"attention_input": "before"}, {"attention_rescale": True}, {"adapters": ["text"]}],
)
def test_the_official_layout_refuses_what_it_cannot_hold(options: dict) -> None:
    clip = copy.deepcopy(tiny_clip(text_layers=4, heads=1))
    made = StudentModel.from_backbone(clip, temporal_layers=2, frames=4, **options)
    with pytest.raises(CheckpointError, match=f"student: {next(iter(options))} is .*official layouts only support"):
        student_to_official(made)


def test_an_adapter_has_the_configured_inner_width() -> None:
    assert ResidualAdapter(WIDTH, 9).inner.weight.shape == (9, WIDTH)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_student_with_heads_runs_in_half_precision(dtype: torch.dtype) -> None:
    made = student(adapters=["frame", "pooled", "text"], attention="sigmoid")
    ids = torch.tensor([[0, 3, 4, made.config.backbone_config.text_config.eos_token_id]])
    pixels = torch.randn(2, 4, 3, 32, 32)
    with torch.no_grad():
        whole = made(input_ids=ids, pixel_values=pixels)
        half = made.to(dtype)(input_ids=ids, pixel_values=pixels.to(dtype))
        features = made.get_text_features(ids).pooler_output
    assert_close(half.text_embeds, whole.text_embeds, atol=0.05, rtol=0)
    assert_close(half.video_embeds, whole.video_embeds, atol=0.05, rtol=0)
    assert features.isfinite().all()
