"""The X-CLIP teacher against the official code's recorded numbers, and its own behaviour."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from golden import load_golden
from golden_models import golden_batch, golden_state, openai_clip_shapes, rule_state, student_shapes
from tiny_models import FRAMES, SIZE, WIDTH, tiny_batch, tiny_clip
from torch import Tensor
from torch.testing import assert_close

import teachers.xclip
from teachclip.errors import CheckpointError, DataError, TeachclipError
from teachclip.models.layouts import openai_to_transformers, under
from teachclip.scorer import Teacher, Tokens, select_tokens
from teachers import load_teacher
from teachers.xclip import COMPONENTS, XCLIP

INFO, ARRAYS = load_golden("02_xclip")
WORDS = 9


def recorded(name: str) -> Tensor:
    return torch.from_numpy(ARRAYS[name])


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return golden_state(INFO)


@pytest.fixture(scope="module")
def official(state: dict[str, Tensor]) -> XCLIP:
    return load_teacher("xclip", state, mask_padding=False)  # type: ignore[return-value]


def encode(teacher: XCLIP, batch: dict[str, Tensor]) -> tuple[Tokens, Tokens]:
    return (
        teacher.encode_texts(batch["input_ids"], batch["attention_mask"]),
        teacher.encode_videos(batch["pixel_values"], batch["frame_mask"]),
    )


def tiny_teacher(*, heads: int = 1, frames: int = FRAMES, mask_padding: bool = True, seed: int = 0) -> XCLIP:
    """A teacher whose own weights are spread out so that words, frames and texts matter."""
    teacher = XCLIP.from_clip(tiny_clip(heads=heads), frames=frames, tokens=WORDS, mask_padding=mask_padding)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in teacher.named_parameters():
            if not name.startswith("clip."):
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return teacher.eval()


@pytest.mark.parametrize("kind", ["full", "pad"])
def test_scores_and_relevance_equal_the_official_ones(official: XCLIP, kind: str) -> None:
    texts, videos = encode(official, golden_batch(INFO, kind))
    assert_close(official.score(texts, videos), recorded(f"{kind}_logits"), atol=2e-4, rtol=0)
    for name, found in official.components(texts, videos).items():
        assert_close(
            found, recorded(f"{kind}_{name}"), atol=5e-4, rtol=0, msg=lambda text, name=name: f"{name} {text}"
        )
    relevance = official.frame_relevance(texts, videos)
    assert_close(relevance, recorded(f"{kind}_relevance"), atol=2e-6, rtol=0)
    assert_close(relevance.sum(dim=1), torch.ones(len(relevance)))
    assert_close(videos["video"], recorded(f"{kind}_video_output"), atol=1e-4, rtol=0)
    assert_close(texts["sentence"], recorded(f"{kind}_sentence_output"), atol=1e-4, rtol=0)
    if kind == "full":
        assert_close(videos["frames"], recorded("full_frame_features"), atol=1e-4, rtol=0)
        assert_close(texts["words"], recorded("full_word_features"), atol=1e-4, rtol=0)


def test_masked_relevance_never_falls_on_padding_and_scores_stay_official(state: dict[str, Tensor]) -> None:
    teacher: XCLIP = load_teacher("xclip", state)  # type: ignore[assignment]
    texts, videos = encode(teacher, golden_batch(INFO, "pad"))
    assert_close(teacher.score(texts, videos), recorded("pad_logits"), atol=2e-4, rtol=0)
    relevance, mask = teacher.frame_relevance(texts, videos), videos["mask"]
    assert (relevance[~mask] == 0).all()
    wanted = recorded("pad_relevance") * mask
    assert_close(relevance, wanted / wanted.sum(dim=1, keepdim=True), atol=1e-5, rtol=0)


def test_short_texts_and_videos_are_filled_up_as_in_training(official: XCLIP) -> None:
    batch = golden_batch(INFO, "pad")
    rows = [1, 4, 5]  # at most 7 frames and 23 tokens
    batch = {name: tensor[rows] for name, tensor in batch.items()}
    length = int(batch["attention_mask"].sum(dim=1).max())
    assert length < INFO["config"]["W"]
    texts, videos = encode(official, batch)
    cut_texts = official.encode_texts(
        batch["input_ids"][:, :length].masked_fill(batch["attention_mask"][:, :length] == 0, 49407),
        batch["attention_mask"][:, :length],
    )
    cut_videos = official.encode_videos(batch["pixel_values"][:, :7], batch["frame_mask"][:, :7])
    for name in texts:
        assert_close(cut_texts[name], texts[name], atol=1e-5, rtol=0)
    for name in ("video", "frames"):
        assert_close(cut_videos[name], videos[name], atol=1e-5, rtol=0)
    assert cut_videos["mask"].shape == (3, 7)
    assert_close(official.score(cut_texts, cut_videos), official.score(texts, videos), atol=1e-4, rtol=0)
    relevance = official.frame_relevance(texts, videos)[:, :7]
    found = official.frame_relevance(cut_texts, cut_videos)
    assert_close(found, relevance / relevance.sum(dim=1, keepdim=True), atol=1e-6, rtol=0)


def test_too_long_texts_and_videos_are_refused() -> None:
    teacher, batch = tiny_teacher(), tiny_batch(frames=FRAMES + 1)
    with pytest.raises(DataError, match=r"input_ids has shape \(2, 10\).* takes \(texts, at most 9\)"):
        teacher.encode_texts(torch.ones(2, 10, dtype=torch.long), torch.ones(2, 10, dtype=torch.long))
    with pytest.raises(DataError, match="videos have 5 frames, this X-CLIP takes at most 4"):
        teacher.encode_videos(batch["pixel_values"], batch["frame_mask"])
    with pytest.raises(DataError, match="frame_mask has shape"):
        teacher.encode_videos(batch["pixel_values"][:, :3], batch["frame_mask"])


def random_tokens(texts: int, videos: int, *, frames: int = FRAMES, seed: int = 1) -> tuple[Tokens, Tokens]:
    generator = torch.Generator().manual_seed(seed)

    def features(*shape: int) -> Tensor:
        return torch.nn.functional.normalize(torch.randn(*shape, WIDTH, generator=generator), dim=-1)

    mask = torch.rand(videos, frames, generator=generator) > 0.3
    mask[:, 0] = True
    return (
        {"sentence": features(texts), "words": features(texts, WORDS)},
        {"video": features(videos), "frames": features(videos, frames), "mask": mask},
    )


def weighted(similarities: Tensor, matrix: Tensor) -> Tensor:
    return similarities @ (matrix.T @ (similarities / 0.01).softmax(dim=0))


def test_scores_follow_the_formula_pair_by_pair() -> None:
    teacher, (texts, videos) = tiny_teacher(), random_tokens(3, 2)
    found = teacher.components(texts, videos)
    scale = teacher.clip.logit_scale.exp()
    for t in range(3):
        for v in range(2):
            sentence, words = texts["sentence"][t], texts["words"][t]
            video, frames = videos["video"][v], videos["frames"][v]
            fine = words @ teacher.local_mat_weight @ frames.T
            by_frame = torch.stack([weighted(column, teacher.word_mat_weight) for column in fine.T])
            by_word = torch.stack([weighted(row, teacher.frame_mat_weight) for row in fine])
            wanted = {
                "video_sentence": sentence @ teacher.global_mat_weight @ video,
                "video_word": weighted(words @ video, teacher.word_logit_weight),
                "sentence_frame": weighted(frames @ sentence, teacher.frame_logit_weight),
                "frame_word": (
                    weighted(by_frame, teacher.frame_mat_weight2) + weighted(by_word, teacher.word_mat_weight2)
                )
                / 2,
            }
            for name in COMPONENTS:
                assert_close(found[name][t, v], scale * wanted[name], atol=1e-4, rtol=1e-4)
    assert_close(teacher.score(texts, videos), sum(found.values()) / 4)


@pytest.mark.parametrize("pairs", [1, 2, 6, 11, 100])
def test_scoring_in_chunks_changes_nothing(monkeypatch: pytest.MonkeyPatch, pairs: int) -> None:
    teacher, (texts, videos) = tiny_teacher(), random_tokens(7, 5)
    whole = teacher.score(texts, videos)
    sizes = []
    chunk = teacher._chunk

    def counted(texts: Tokens, videos: Tokens, start: int, count: int) -> Tensor:
        found = chunk(texts, videos, start, count)
        sizes.append(found[0].numel())
        return found

    monkeypatch.setattr(teachers.xclip, "CHUNK_ELEMENTS", pairs * WORDS * FRAMES)
    monkeypatch.setattr(teacher, "_chunk", counted)
    assert_close(teacher.score(texts, videos), whole, atol=1e-5, rtol=0)
    assert max(sizes) <= pairs and sum(sizes) == 35
    assert teacher.score(select_tokens(texts, slice(0, 0)), videos).shape == (0, 5)
    assert teacher.score(texts, select_tokens(videos, slice(0, 0))).shape == (7, 0)


def test_it_is_a_teacher_with_items_in_front() -> None:
    teacher, batch = tiny_teacher(), tiny_batch(texts=2)
    assert isinstance(teacher, Teacher)
    texts, videos = encode(teacher, batch)
    assert {name: tuple(tensor.shape) for name, tensor in texts.items()} == {
        "sentence": (2, WIDTH),
        "words": (2, WORDS, WIDTH),
    }
    assert {name: tuple(tensor.shape) for name, tensor in videos.items()} == {
        "video": (3, WIDTH),
        "frames": (3, FRAMES, WIDTH),
        "mask": (3, FRAMES),
    }
    assert videos["mask"].dtype == torch.bool
    assert teacher.frame_relevance(texts, select_tokens(videos, [2, 0])).shape == (2, FRAMES)


def test_a_video_without_a_valid_frame_stays_finite() -> None:
    teacher, batch = tiny_teacher(), tiny_batch()
    batch["frame_mask"][0] = False
    texts, videos = encode(teacher, batch)
    assert teacher.score(texts, videos).isfinite().all()
    assert teacher.frame_relevance(texts, videos).isfinite().all()


def test_it_starts_as_published() -> None:
    clip = tiny_clip(text_layers=5, heads=1)
    teacher = XCLIP.from_clip(clip, frames=FRAMES, tokens=WORDS)
    matrices = {
        name: parameter for name, parameter in teacher.named_parameters() if "_mat_" in name or "_logit_" in name
    }
    assert len(matrices) == 8
    for name, matrix in matrices.items():
        assert torch.equal(matrix, torch.eye(len(matrix))), name
    official, text = teacher.official_state_dict(), under(teacher.official_state_dict(), "clip.")
    assert torch.equal(official["frame_position_embeddings.weight"], text["positional_embedding"])
    blocks = under(official, "transformerClip.resblocks.")
    assert len(blocks) == 4 * 12
    assert all(torch.equal(tensor, text[f"transformer.resblocks.{key}"]) for key, tensor in blocks.items())


def test_what_clip_cannot_give_starts_small_and_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        teacher = XCLIP.from_clip(tiny_clip(text_layers=2), frames=20, tokens=WORDS)
    assert "4 temporal layers, 2 text layers: the others start from random weights" in caplog.text
    assert "20 frame positions, 16 text positions" in caplog.text
    last = teacher.temporal.layers[3]
    assert 0.018 < last.mlp.fc1.weight.std() < 0.022 and (last.mlp.fc1.bias == 0).all()
    assert (last.layer_norm1.weight == 1).all()
    assert 0.015 < teacher.frame_position_embeddings.weight[16:].std() < 0.025


def test_every_parameter_learns_from_the_scores() -> None:
    teacher, batch = tiny_teacher().train(), tiny_batch()
    logits = teacher.score(*encode(teacher, batch))
    labels = torch.arange(len(logits))
    loss = torch.nn.functional.cross_entropy(logits, labels) + torch.nn.functional.cross_entropy(logits.T, labels)
    loss.backward()
    for name, parameter in teacher.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0 or name.endswith(("k_proj.bias", "in_proj_bias")), name


def test_scores_stay_float32_under_bfloat16_autocast() -> None:
    teacher, (texts, videos) = tiny_teacher(), random_tokens(3, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores, relevance = teacher.score(texts, videos), teacher.frame_relevance(texts, videos)
        encoded = encode(teacher, tiny_batch())
    assert scores.dtype == relevance.dtype == torch.float32
    assert all(tensor.dtype in (torch.float32, torch.bool) for tokens in encoded for tensor in tokens.values())
    assert torch.equal(scores, teacher.score(texts, videos))


def test_transformers_names_and_float16_load_the_same_teacher(state: dict[str, Tensor], official: XCLIP) -> None:
    renamed = {f"clip.{key}": tensor for key, tensor in openai_to_transformers(under(state, "clip.")).items()}
    renamed["clip.vision_model.embeddings.position_ids"] = torch.arange(50)[None]
    rest = {key: tensor for key, tensor in state.items() if not key.startswith("clip.")}
    again = load_teacher("xclip", {"state_dict": renamed | rest}).state_dict()  # type: ignore[attr-defined]
    assert all(torch.equal(again[key], tensor) for key, tensor in official.state_dict().items())
    half = load_teacher("xclip", {key: tensor.half() for key, tensor in state.items()})
    for parameter in half.parameters():  # type: ignore[attr-defined]
        assert parameter.dtype == torch.float32 and not parameter.requires_grad
    assert not half.training  # type: ignore[attr-defined]


def test_the_official_layout_is_written_with_the_official_names(state: dict[str, Tensor], official: XCLIP) -> None:
    written = official.official_state_dict()
    assert written.keys() == state.keys()
    assert all(torch.equal(written[key], state[key]) for key in state)
    assert official.checkpoint()["options"] == {}


def other_sizes(*, words: int, frames: int, layers: int, grid: int) -> dict[str, tuple[int, ...]]:
    clip = openai_clip_shapes(width=64, layers=2, patch=4, grid=grid, text_width=64, text_layers=2, vocabulary=100)
    shapes = {key: shape for key, shape in student_shapes(clip, layers=layers).items() if "frameLinear" not in key}
    shapes |= {f"{name}_mat_weight": (64, 64) for name in ("global", "local")}
    for name, size in (("word", words), ("frame", frames)):
        shapes |= {f"{name}_{kind}": (size, size) for kind in ("logit_weight", "mat_weight", "mat_weight2")}
    return shapes


@pytest.mark.parametrize(("words", "frames", "layers", "grid"), [(20, 9, 2, 5), (7, 40, 3, 14), (64, 64, 1, 3)])
def test_sizes_are_read_off_the_checkpoint(words: int, frames: int, layers: int, grid: int) -> None:
    shapes = other_sizes(words=words, frames=frames, layers=layers, grid=grid)
    teacher: XCLIP = load_teacher("xclip", rule_state(shapes, seed=5))  # type: ignore[assignment]
    assert (teacher.words, teacher.frames, len(teacher.temporal.layers)) == (words, frames, layers)
    pixels = torch.randn(2, 3, 3, 4 * grid, 4 * grid)
    texts = teacher.encode_texts(torch.tensor([[1, 5, 99], [1, 99, 0]]), torch.tensor([[1, 1, 1], [1, 1, 0]]))
    videos = teacher.encode_videos(pixels, torch.ones(2, 3, dtype=torch.bool))
    assert teacher.score(texts, videos).shape == (2, 2)
    assert teacher.frame_relevance(texts, videos).shape == (2, 3)
    assert teacher.official_state_dict().keys() == shapes.keys()


def test_a_saved_teacher_on_any_clip_comes_back_whole(tmp_path: Path) -> None:
    teacher, batch = tiny_teacher(heads=2), tiny_batch()
    with pytest.raises(CheckpointError, match="text encoder has 2 heads, not 1"):
        teacher.official_state_dict()
    torch.save(teacher.checkpoint(), tmp_path / "xclip.pth")
    again: XCLIP = load_teacher("xclip", tmp_path / "xclip.pth")  # type: ignore[assignment]
    assert again.temporal_heads == 2
    assert_close(again.score(*encode(again, batch)), teacher.score(*encode(teacher, batch)), atol=1e-5, rtol=0)
    assert all(torch.equal(tensor, again.state_dict()[key]) for key, tensor in teacher.state_dict().items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("local_mat_weight"), "1 entry (local_mat_weight) missing"),
        (lambda s: s.pop("word_logit_weight"), "word_logit_weight is missing; this looks like an X-CLIP checkpoint"),
        (lambda s: s.pop("clip.visual.proj"), "missing"),
        (lambda s: s.pop("frame_position_embeddings.weight"), "frame_position_embeddings.weight is missing"),
        (lambda s: s.pop("transformerClip.resblocks.1.ln_1.bias"), "(transformerClip.resblocks.1.ln_1.bias) missing"),
        (
            lambda s: [s.pop(key) for key in list(s) if key.startswith("transformerClip.")],
            "transformerClip.resblocks.0 is missing",
        ),
        (lambda s: s.update(extra=torch.ones(2)), "1 entry (extra) unexpected"),
        (lambda s: s.update(frame_mat_weight=torch.eye(3)), "(frame_mat_weight: (3, 3), expected (4, 4))"),
        (lambda s: s.update(word_logit_weight=torch.ones(3)), "word_logit_weight has shape (3,), expected 2"),
        (lambda s: s.update(word_logit_weight=torch.eye(17)), "17 words, allowed: 1 to 16"),
        (lambda s: s.update(frame_logit_weight=torch.eye(17)), "17 frames, allowed: 1 to 16"),
        (
            lambda s: [s.pop(key) for key in list(s) if "_mat_" in key or "_logit_" in key],
            "expected an X-CLIP checkpoint, this looks like a CLIP4Clip seqTransf checkpoint",
        ),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_named(
    tmp_path: Path, change: Callable[[dict[str, Tensor]], object], message: str
) -> None:
    state = tiny_teacher().official_state_dict()
    change(state)
    torch.save(state, tmp_path / "x.bin")
    with pytest.raises(TeachclipError) as error:
        load_teacher("xclip", tmp_path / "x.bin")
    assert isinstance(error.value, CheckpointError) and "\n" not in str(error.value)
    assert message in str(error.value) and str(error.value).startswith(f"{tmp_path}/x.bin: ")


def test_heads_that_do_not_divide_the_width_are_named() -> None:
    with pytest.raises(CheckpointError, match="3 temporal heads do not divide the width 32"):
        load_teacher("xclip", tiny_teacher().official_state_dict(), temporal_heads=3)


def test_frames_of_another_size_are_refused() -> None:
    with pytest.raises(DataError, match=f"3, {SIZE}, {SIZE}"):
        tiny_teacher().encode_videos(torch.zeros(1, 2, 3, 8, 8), torch.ones(1, 2, dtype=torch.bool))
