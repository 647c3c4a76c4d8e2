"""The CLIP2Video teacher against the official code's recorded numbers, and its own behaviour."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from clip2video_golden import clip2video_batch, clip2video_state
from golden import load_golden
from golden_models import rule_state
from tiny_models import WIDTH, tiny_batch, tiny_clip
from torch.nn.functional import cross_entropy, normalize
from torch.testing import assert_close

from teachclip.errors import CheckpointError, DataError
from teachclip.models.frame_attention import residual_pooling
from teachclip.models.layouts import openai_to_transformers, transformers_to_openai, under
from teachclip.models.temporal import rename_blocks
from teachclip.scorer import Teacher, Tokens, select_tokens
from teachers import load_teacher
from teachers.clip2video import CLIP2Video
from teachers.xpool import XPool

CASES = ["c2v_tiny_full", "c2v_tiny_padded", "c2v_tiny_k7_f9"]


class Recorded:
    """One golden: its arrays, inputs, and a teacher with its weights, encoded once."""

    def __init__(self, name: str) -> None:
        self.info, self.arrays = load_golden(name)
        self.state = clip2video_state(self.info)
        self.batch = clip2video_batch(self.info)
        self.teacher: CLIP2Video = load_teacher("clip2video", self.state, mask_padding=False)  # type: ignore[assignment]
        with torch.no_grad():
            self.texts = self.teacher.encode_texts(self.batch["input_ids"], self.batch["attention_mask"])
            self.videos = self.teacher.encode_videos(self.batch["pixel_values"], self.batch["frame_mask"])

    def array(self, name: str) -> torch.Tensor:
        """A recorded array; of mixed lengths the one where every video has its own mask."""
        return torch.from_numpy(self.arrays[f"{name}_bs1" if f"{name}_bs1" in self.arrays else name])


@pytest.fixture(scope="module")
def goldens() -> dict[str, Recorded]:
    return {name: Recorded(name) for name in CASES}


def frame_cosines(texts: Tokens, videos: Tokens) -> torch.Tensor:
    return torch.einsum("td,vfd->tvf", normalize(texts["sentence"], dim=-1), normalize(videos["frames"], dim=-1))


@pytest.mark.parametrize("name", CASES)
def test_inputs_are_as_recorded(goldens: dict[str, Recorded], name: str) -> None:
    golden = goldens[name]
    for key, array in (("input_ids", "input_ids"), ("attention_mask", "text_mask"), ("frame_mask", "video_mask")):
        assert torch.equal(golden.batch[key].long(), torch.from_numpy(golden.arrays[array]).long())


@pytest.mark.parametrize("name", CASES)
def test_scores_equal_the_official_ones(goldens: dict[str, Recorded], name: str) -> None:
    golden = goldens[name]
    assert_close(golden.teacher.score(golden.texts, golden.videos), golden.array("logits"), atol=2e-5, rtol=0)
    (share, overall), (rest, aligned) = golden.teacher.training_logits(golden.texts, golden.videos)
    assert (share, rest) == (0.5, 0.5)
    assert_close(overall, golden.array("g_logits"), atol=2e-5, rtol=0)
    assert_close(aligned, golden.array("a_logits"), atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", CASES)
def test_both_sides_are_described_as_by_the_official_code(goldens: dict[str, Recorded], name: str) -> None:
    golden = goldens[name]
    assert_close(golden.videos["video"], golden.array("video_global"), atol=2e-6, rtol=0)
    assert_close(golden.videos["aligned"], golden.array("tab_video"), atol=2e-6, rtol=0)
    assert_close(golden.texts["aligned"], golden.array("tab_text"), atol=2e-6, rtol=0)


@pytest.mark.parametrize("name", CASES[:2])
def test_differences_and_frames_are_as_recorded(goldens: dict[str, Recorded], name: str) -> None:
    golden = goldens[name]
    cosines = golden.array("frame_text_cosine")
    assert_close(frame_cosines(golden.texts, golden.videos), cosines, atol=2e-6, rtol=0)
    relevance = golden.teacher.frame_relevance(golden.texts, golden.videos)
    assert_close(relevance, cosines.diagonal().T.softmax(dim=-1), atol=2e-6, rtol=0)
    with torch.no_grad():
        pixels = golden.batch["pixel_values"]
        frames = golden.teacher.clip.get_image_features(pixel_values=pixels.flatten(0, 1)).pooler_output
        tokens = golden.teacher.differences.between(frames.unflatten(0, pixels.shape[:2]), golden.batch["frame_mask"])
    assert_close(tokens, golden.array("tdb_diff_tokens"), atol=2e-5, rtol=0)


def contrastive(logits: torch.Tensor) -> torch.Tensor:
    target = torch.arange(len(logits))
    return (cross_entropy(logits, target) + cross_entropy(logits.T, target)) / 2


def test_the_training_loss_equals_the_official_one(goldens: dict[str, Recorded]) -> None:
    golden = goldens["c2v_tiny_full"]
    parts = golden.teacher.training_logits(golden.texts, golden.videos)
    total = sum(weight * contrastive(logits) for weight, logits in parts)
    found = torch.stack([torch.as_tensor(total), *(contrastive(logits) for _, logits in parts)]).double()
    assert_close(found, torch.from_numpy(golden.arrays["train_loss"]), atol=5e-6, rtol=0)


def test_at_the_size_of_vit_b_32_scores_equal_the_official_ones() -> None:
    golden = Recorded("c2v_vitb32")
    assert_close(golden.teacher.score(golden.texts, golden.videos), golden.array("logits"), atol=2e-5, rtol=0)
    found = frame_cosines(golden.texts, golden.videos)
    assert_close(found, golden.array("frame_text_cosine"), atol=2e-6, rtol=0)


def test_a_video_of_another_length_in_the_batch_changes_nothing(goldens: dict[str, Recorded]) -> None:
    golden = goldens["c2v_tiny_padded"]
    for row in range(2, 4):
        alone = {name: golden.batch[name][row : row + 1] for name in ("pixel_values", "frame_mask")}
        with torch.no_grad():
            tokens = golden.teacher.encode_videos(**alone)
        for name in ("frames", "video", "aligned"):
            assert_close(tokens[name][0], golden.videos[name][row], atol=2e-5, rtol=0)


def test_relevance_never_falls_on_padded_frames_unless_asked(goldens: dict[str, Recorded]) -> None:
    golden = goldens["c2v_tiny_padded"]
    masked = load_teacher("clip2video", golden.state)
    relevance, mask = masked.frame_relevance(golden.texts, golden.videos), golden.batch["frame_mask"]
    assert (relevance[~mask] == 0).all()
    assert_close(relevance.sum(dim=1), torch.ones(len(relevance)))
    official = golden.teacher.frame_relevance(golden.texts, golden.videos)
    assert (official[~mask] > 0).all()
    assert_close(relevance, official * mask / (official * mask).sum(dim=1, keepdim=True))
    assert torch.equal(masked.score(golden.texts, golden.videos), golden.teacher.score(golden.texts, golden.videos))


@torch.no_grad()
def test_texts_do_not_depend_on_their_padding(goldens: dict[str, Recorded]) -> None:
    golden = goldens["c2v_tiny_full"]
    ids, mask = golden.batch["input_ids"], golden.batch["attention_mask"]
    longest = int(mask.sum(dim=1).max())
    wider = torch.nn.functional.pad(ids, (0, 20)), torch.nn.functional.pad(mask, (0, 20))
    with_end_token = torch.where(mask.bool(), ids, torch.full_like(ids, 49407)), mask
    for given in ((ids[:, :longest], mask[:, :longest]), wider, with_end_token):
        texts = golden.teacher.encode_texts(*given)
        for name, tensor in golden.texts.items():
            assert_close(texts[name], tensor, atol=5e-6, rtol=0)
    with pytest.raises(DataError, match=r"attention_mask has shape \(6, 31\), input_ids \(6, 32\)"):
        golden.teacher.encode_texts(ids, mask[:, :-1])


def tiny_teacher(*, clip_heads: int = 1, seed: int = 0, **options: Any) -> CLIP2Video:
    torch.manual_seed(seed)
    teacher = CLIP2Video.from_clip(tiny_clip(heads=clip_heads), frames=4, **options)
    with torch.no_grad():
        for name, parameter in teacher.named_parameters():
            if not name.startswith("clip."):
                parameter.add_(0.2 * torch.randn(parameter.shape))
    return teacher.eval()


def encoded(teacher: Teacher, batch: dict[str, torch.Tensor]) -> tuple[Tokens, Tokens]:
    texts = teacher.encode_texts(batch["input_ids"], batch["attention_mask"])
    return texts, teacher.encode_videos(batch["pixel_values"], batch["frame_mask"])


def test_it_is_a_teacher_whose_tokens_are_items() -> None:
    teacher, batch = tiny_teacher(), tiny_batch(videos=3, texts=2)
    assert isinstance(teacher, Teacher)
    texts, videos = encoded(teacher, batch)
    assert {name: tuple(tensor.shape) for name, tensor in texts.items()} == {
        "sentence": (2, WIDTH),
        "aligned": (2, WIDTH),
    }
    assert all(len(tensor) == 3 for tensor in videos.values()) and videos["mask"].dtype == torch.bool
    scores = teacher.score(texts, videos)
    assert scores.shape == (2, 3)
    part = teacher.score(select_tokens(texts, [1]), select_tokens(videos, [2, 0]))
    assert_close(part, scores[1:, [2, 0]], atol=1e-6, rtol=0)
    assert teacher.score(select_tokens(texts, slice(0, 0)), videos).shape == (0, 3)


@pytest.mark.parametrize(("frames", "is_fine"), [(2, False), (3, True), (16, True), (17, False)])
def test_too_few_or_too_many_frames_are_refused_with_the_limits(frames: int, is_fine: bool) -> None:
    teacher = tiny_teacher()
    pixels, mask = torch.randn(1, frames, 3, 32, 32), torch.ones(1, frames, dtype=torch.bool)
    if is_fine:
        assert teacher.encode_videos(pixels, mask)["video"].isfinite().all()
        return
    with pytest.raises(DataError, match=f"^videos have {frames} frames, CLIP2Video takes 3 to 16$"):
        teacher.encode_videos(pixels, mask)


def test_videos_with_one_valid_frame_stay_finite() -> None:
    mask = torch.tensor([[True, False, False, False]])
    tokens = tiny_teacher().encode_videos(torch.randn(1, 4, 3, 32, 32), mask)
    assert all(tensor.isfinite().all() for tensor in tokens.values())


def test_residual_pooling_follows_its_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    tokens, w, e = (torch.randn(shape, generator=generator) for shape in ((2, 4, 8), (3, 8), (3, 8)))
    mask = torch.tensor([[True, True, False, True], [True, False, False, False]])
    for row in range(2):
        clusters = []
        for k in range(3):
            total = torch.zeros(8)
            for x in tokens[row][mask[row]]:
                total += torch.softmax(w @ x, dim=0)[k] * (x - e[k])
            clusters.append(total / total.norm())
        mean = torch.stack(clusters).mean(dim=0)
        assert_close(residual_pooling(tokens, mask, w, e)[row], mean / mean.norm(), atol=1e-6, rtol=0)


def with_matrix(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A checkpoint of the other published way to project differences (`sigmoid_mlp`)."""
    kept = {key: tensor for key, tensor in state.items() if not key.startswith("frame2t_attention")}
    return kept | rule_state({"frame2t_projection": [WIDTH, WIDTH]}, seed=1)


def test_a_matrix_in_place_of_attention_is_read_off_the_checkpoint() -> None:
    state = with_matrix(tiny_teacher().official_state_dict())
    teacher: CLIP2Video = load_teacher("clip2video", state)  # type: ignore[assignment]
    frames, mask = torch.randn(2, 4, WIDTH), torch.ones(2, 4, dtype=torch.bool)
    steps = (frames[:, 1:] - frames[:, :-1]) @ state["frame2t_projection"]
    norm = torch.nn.LayerNorm(WIDTH, eps=1e-5)
    norm.load_state_dict(under(state, "trans_layernorm."))
    assert_close(teacher.differences.between(frames, mask), torch.tanh(norm(steps) / 2), atol=1e-6, rtol=0)
    written = teacher.official_state_dict()
    assert written.keys() == state.keys() and all(torch.equal(written[key], state[key]) for key in state)


def test_centres_and_layers_are_read_off_the_checkpoint() -> None:
    state = tiny_teacher(centers=7).official_state_dict()
    for key in [key for key in state if key.startswith("actionClip.resblocks.0.")]:
        state[key.replace(".0.", ".1.", 1)] = state[key].clone()
    for key in [key for key in state if key.startswith("transformerClip.resblocks.3.")]:
        state.pop(key)
    teacher: CLIP2Video = load_teacher("clip2video", state)  # type: ignore[assignment]
    assert (len(teacher.weight_center), len(teacher.temporal.layers), len(teacher.action.layers)) == (7, 3, 2)
    assert teacher.official_state_dict().keys() == state.keys()


def test_it_starts_from_clip_as_published() -> None:
    clip = tiny_clip(text_layers=3)
    torch.manual_seed(1)
    teacher = CLIP2Video.from_clip(clip, frames=4, centers=6)
    blocks = rename_blocks(transformers_to_openai(clip.state_dict()), prefix="transformer.resblocks.")
    difference_attention = teacher.differences.frame2t_attention
    assert difference_attention is not None
    for stack in (teacher.temporal, teacher.action, difference_attention):
        own = stack.state_dict()
        shared = [key for key in blocks if key in own]
        assert len(shared) == 12 * min(3, len(stack.layers))
        assert all(torch.equal(own[key], blocks[key]) for key in shared)
    positions = clip.text_model.embeddings.position_embedding.weight
    assert torch.equal(teacher.differences.frame_position_embeddings.weight, positions)
    assert torch.equal(teacher.differences.type_position_embeddings.weight, positions[:2])
    norm = teacher.differences.trans_layernorm
    assert (norm.weight == 1).all() and (norm.bias == 0).all() and norm.eps == 1e-5
    for centers in (teacher.weight_center, teacher.emb_center):
        assert centers.shape == (6, WIDTH) and 0.1 < centers.std().item() < 0.15
    assert teacher.temporal.layers[0].attention.heads == clip.config.text_config.num_attention_heads  # type: ignore[union-attr]
    assert CLIP2Video.from_clip(clip, frames=20).differences.frame_position_embeddings.num_embeddings == 20


def test_every_parameter_that_matters_learns_and_both_terms_reach_clip() -> None:
    teacher, batch = tiny_teacher().train(), tiny_batch()
    texts, videos = encoded(teacher, batch)
    for _, logits in teacher.training_logits(texts, videos):
        teacher.zero_grad()
        contrastive(logits).backward(retain_graph=True)
        assert teacher.clip.visual_projection.weight.grad.abs().sum() > 0
    teacher.zero_grad()
    sum(weight * contrastive(logits) for weight, logits in teacher.training_logits(texts, videos)).backward()  # type: ignore[union-attr]
    without = [name for name, parameter in teacher.named_parameters() if parameter.grad is None]
    assert without == []


def test_scores_stay_float32_under_bfloat16_autocast() -> None:
    teacher, batch = tiny_teacher(), tiny_batch()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        texts, videos = encoded(teacher, batch)
        scores, relevance = teacher.score(texts, videos), teacher.frame_relevance(texts, videos)
    assert scores.dtype == relevance.dtype == torch.float32
    assert_close(scores, teacher.score(*encoded(teacher, batch)), atol=0.5, rtol=0)


def test_float16_files_containers_and_transformers_names_load_the_same_teacher(
    goldens: dict[str, Recorded], tmp_path: Path
) -> None:
    state = goldens["c2v_tiny_k7_f9"].state
    half = {key: tensor.half() if key.endswith("c_fc.weight") else tensor for key, tensor in state.items()}
    torch.save(half, tmp_path / "pytorch_model.bin.2")
    loaded = load_teacher("clip2video", tmp_path / "pytorch_model.bin.2").official_state_dict()  # type: ignore[attr-defined]
    assert all(torch.equal(loaded[key], half[key].float()) for key in half) and loaded.keys() == half.keys()
    other = {key: tensor for key, tensor in state.items() if not key.startswith("clip.")}
    other |= {f"clip.{key}": tensor for key, tensor in openai_to_transformers(under(state, "clip.")).items()}
    again = load_teacher("clip2video", {"state_dict": other}).official_state_dict()  # type: ignore[attr-defined]
    assert all(torch.equal(again[key], state[key]) for key in state)


def test_a_saved_teacher_on_any_clip_comes_back_whole(tmp_path: Path) -> None:
    teacher, batch = tiny_teacher(clip_heads=4, center_weight=0.3), tiny_batch()
    with pytest.raises(CheckpointError, match="text encoder has 4 heads, not 1"):
        teacher.official_state_dict()
    torch.save(teacher.checkpoint(), tmp_path / "c2v.pth")
    again: CLIP2Video = load_teacher("clip2video", tmp_path / "c2v.pth")  # type: ignore[assignment]
    assert again.center_weight == 0.3 and again.temporal_heads == 4
    assert torch.equal(again.score(*encoded(again, batch)), teacher.score(*encoded(teacher, batch)))
    (_, overall), _ = again.training_logits(*encoded(again, batch))
    every = load_teacher("clip2video", tmp_path / "c2v.pth", center_weight=1.0)
    assert_close(every.score(*encoded(every, batch)), overall)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("weight_center"), "1 entry (weight_center) missing"),
        (lambda s: s.update(emb_center=torch.ones(4, WIDTH)), "(emb_center: (4, 32), expected (5, 32))"),
        (lambda s: s.update(extra=torch.ones(2)), "1 entry (extra) unexpected"),
        (lambda s: s.update(weight_center=torch.tensor(1.0)), "(weight_center: (), expected (5, 32))"),
        (
            lambda s: [s.pop(key) for key in list(s) if key.startswith("transformerClip.")],
            "12 entries (transformerClip.resblocks.0.",
        ),
        (
            lambda s: s.pop("frame_position_embeddings.weight"),
            "1 entry (frame_position_embeddings.weight) missing",
        ),
        (lambda s: s.update(frame2t_projection=torch.eye(WIDTH)), "12 entries (frame2t_attention.resblocks.0."),
        (lambda s: s.pop("clip.visual.proj"), "1 entry (clip.visual.proj) missing"),
        (
            lambda s: [s.pop(key) for key in list(s) if not key.startswith(("clip.", "transformerClip.", "frame_"))],
            "expected a CLIP2Video checkpoint, this looks like a CLIP4Clip seqTransf checkpoint",
        ),
        (
            lambda s: (s.clear(), s.update(XPool.from_clip(tiny_clip(heads=1)).official_state_dict())),
            "expected a CLIP2Video checkpoint, this looks like an X-Pool checkpoint",
        ),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_named(
    tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], object], message: str
) -> None:
    state = tiny_teacher().official_state_dict()
    change(state)
    torch.save(state, tmp_path / "c.bin")
    with pytest.raises(CheckpointError) as error:
        load_teacher("clip2video", tmp_path / "c.bin")
    assert message in str(error.value) and str(error.value).startswith(f"{tmp_path}/c.bin: ")
    assert "\n" not in str(error.value)


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    torch.save(tiny_teacher().official_state_dict(), tmp_path / "c.bin")
    content = (tmp_path / "c.bin").read_bytes()
    (tmp_path / "c.bin").write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match=r"c\.bin: is truncated or not a checkpoint") as error:
        load_teacher("clip2video", tmp_path / "c.bin")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"center_weight": 1.5}, "center_weight is 1.5, allowed: 0 to 1"),
        ({"temporal_heads": 5}, "5 temporal heads do not divide the width 32"),
    ],
)
def test_impossible_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_teacher("clip2video", tiny_teacher().official_state_dict(), **options)
