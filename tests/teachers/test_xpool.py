"""The X-Pool teacher against the official code's recorded numbers, and its own behaviour."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from golden import load_golden
from golden_models import golden_batch, golden_state
from tiny_models import FRAMES, WIDTH, tiny_batch, tiny_clip
from torch.nn.functional import cosine_similarity
from torch.testing import assert_close

import teachers.xpool
from teachclip.errors import CheckpointError
from teachclip.models.layouts import transformers_to_openai, under
from teachclip.scorer import FeatureScorer, Teacher, select_tokens
from teachers import load_teacher
from teachers.xpool import XPool

INFO, ARRAYS = load_golden("04_xpool")


def recorded(name: str) -> torch.Tensor:
    return torch.from_numpy(ARRAYS[name])


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    return golden_state(INFO)


@pytest.fixture(scope="module")
def official(state: dict[str, torch.Tensor]) -> XPool:
    return load_teacher("xpool", {"state_dict": state}, mask_padding=False)  # type: ignore[return-value]


def tiny_teacher(*, heads: int = 1, clip_heads: int = 1, mask_padding: bool = True, seed: int = 0) -> XPool:
    """A teacher whose weights are spread out so that frames and texts matter."""
    teacher = XPool.from_clip(tiny_clip(heads=clip_heads), heads=heads, mask_padding=mask_padding)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in teacher.pool_frames.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return teacher.eval()


@pytest.mark.parametrize("kind", ["full", "pad"])
def test_scores_and_relevance_equal_the_official_ones(official: XPool, kind: str) -> None:
    batch = golden_batch(INFO, kind)
    texts = official.encode_texts(batch["input_ids"], batch["attention_mask"])
    videos = official.encode_videos(batch["pixel_values"], batch["frame_mask"])
    assert_close(official.score(texts, videos), recorded(f"{kind}_logits"), atol=2e-4, rtol=0)
    relevance = official.frame_relevance(texts, videos)
    assert_close(relevance, recorded(f"{kind}_relevance"), atol=1e-5, rtol=0)
    assert_close(relevance.sum(dim=1), torch.ones(len(relevance)))
    if kind == "full":
        assert_close(texts["sentence"], recorded("full_text"), atol=1e-4, rtol=0)
        assert_close(videos["frames"], recorded("full_frames"), atol=1e-4, rtol=0)


def test_pooled_videos_equal_the_official_ones(official: XPool) -> None:
    pooling = official.pool_frames
    keys, values = pooling.keys_and_values(recorded("full_frames"))
    pooled = pooling(pooling.queries(recorded("full_text")), keys, values, None)
    assert_close(pooled.diagonal(dim1=0, dim2=1).T, recorded("full_pooled_diag"), atol=1e-4, rtol=0)


def test_masked_padding_takes_no_attention_and_changes_nothing(state: dict[str, torch.Tensor]) -> None:
    teacher = load_teacher("xpool", state)
    frames, mask = recorded("full_frames"), golden_batch(INFO, "pad")["frame_mask"]
    texts = {"sentence": recorded("full_text")}
    noisy = torch.where(mask[:, :, None], frames, torch.full_like(frames, 3.0))
    scores = [teacher.score(texts, {"frames": given, "mask": mask}) for given in (frames, noisy)]
    assert_close(scores[0], scores[1], atol=1e-6, rtol=0)
    relevance = teacher.frame_relevance(texts, {"frames": noisy, "mask": mask})
    assert (relevance[~mask] == 0).all()
    whole = {"frames": frames, "mask": torch.ones_like(mask)}
    assert_close(teacher.score(texts, whole), recorded("full_logits"), atol=2e-4, rtol=0)


def test_it_is_a_teacher_that_scores_from_stored_features(official: XPool) -> None:
    assert isinstance(official, Teacher) and isinstance(official, FeatureScorer)
    batch = tiny_batch()
    teacher = tiny_teacher()
    texts = teacher.encode_texts(batch["input_ids"], batch["attention_mask"])
    videos = teacher.encode_videos(batch["pixel_values"], batch["frame_mask"])
    assert texts.keys() == {"sentence"} and videos.keys() == {"frames", "mask"}
    assert videos["mask"].dtype == torch.bool
    assert torch.equal(teacher.texts_from_features(texts["sentence"])["sentence"], texts["sentence"])
    again = teacher.videos_from_features(videos["frames"], videos["mask"].long())
    assert all(torch.equal(again[name], videos[name]) for name in videos)


def random_tokens(texts: int, videos: int, seed: int = 1) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(videos, FRAMES, generator=generator) > 0.3
    mask[:, 0] = True
    frames = torch.randn(videos, FRAMES, WIDTH, generator=generator)
    return {"sentence": torch.randn(texts, WIDTH, generator=generator)}, {"frames": frames, "mask": mask}


@pytest.mark.parametrize("heads", [1, 4])
def test_scores_follow_the_formula_pair_by_pair(heads: int) -> None:
    teacher, (texts, videos) = tiny_teacher(heads=heads), random_tokens(3, 2)
    pooling, attention = teacher.pool_frames, teacher.pool_frames.cross_attn
    scores = teacher.score(texts, videos)
    for t in range(3):
        for v in range(2):
            frames = pooling.layer_norm1(videos["frames"][v][videos["mask"][v]])
            query = attention.q_proj(pooling.layer_norm1(texts["sentence"][t])).reshape(heads, -1)
            key = attention.k_proj(frames).reshape(len(frames), heads, -1)
            value = attention.v_proj(frames).reshape(len(frames), heads, -1)
            weights = (torch.einsum("fhd,hd->fh", key, query) / (WIDTH / heads) ** 0.5).softmax(dim=0)
            mixed = pooling.layer_norm2(attention.out_proj(torch.einsum("fh,fhd->hd", weights, value).flatten()))
            pooled = pooling.layer_norm3(mixed + pooling.linear_proj(mixed))
            wanted = teacher.clip.logit_scale.exp() * cosine_similarity(texts["sentence"][t], pooled, dim=0)
            assert_close(scores[t, v], wanted, atol=1e-4, rtol=0)
            if t == v:
                relevance = teacher.frame_relevance(select_tokens(texts, [t]), select_tokens(videos, [v]))[0]
                assert_close(relevance[videos["mask"][v]], weights.mean(dim=1))


def test_scoring_in_chunks_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, (texts, videos) = tiny_teacher(), random_tokens(7, 5)
    whole = teacher.score(texts, videos)
    sizes = []
    chunk = teacher._score_chunk
    monkeypatch.setattr(teachers.xpool, "CHUNK_ELEMENTS", 2 * 5 * WIDTH)
    monkeypatch.setattr(teacher, "_score_chunk", lambda s, *rest: sizes.append(len(s)) or chunk(s, *rest))
    assert_close(teacher.score(texts, videos), whole, atol=1e-5, rtol=0)
    assert sizes == [2, 2, 2, 1]
    assert teacher.score(select_tokens(texts, slice(0, 0)), videos).shape == (0, 5)


def test_it_starts_as_published_with_identities() -> None:
    teacher = XPool.from_clip(tiny_clip())
    for name, parameter in teacher.pool_frames.named_parameters():
        if name.endswith("proj.weight"):
            assert torch.equal(parameter, torch.eye(WIDTH)), name
        else:
            assert (parameter == float("norm" in name and name.endswith("weight"))).all(), name


def test_dropout_acts_in_training_only_and_every_parameter_learns() -> None:
    teacher, batch = tiny_teacher(), tiny_batch()

    def scores() -> torch.Tensor:
        texts = teacher.encode_texts(batch["input_ids"], batch["attention_mask"])
        return teacher.score(texts, teacher.encode_videos(batch["pixel_values"], batch["frame_mask"]))

    assert torch.equal(scores(), scores())
    teacher.train()
    assert not torch.equal(scores(), scores())
    scores().diagonal().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in teacher.parameters())


def test_scores_stay_float32_under_bfloat16_autocast() -> None:
    teacher, (texts, videos) = tiny_teacher(), random_tokens(3, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores, relevance = teacher.score(texts, videos), teacher.frame_relevance(texts, videos)
    assert scores.dtype == relevance.dtype == torch.float32
    assert_close(scores, teacher.score(texts, videos), atol=0.3, rtol=0)


def test_loading_closes_the_weights_and_casts_them(state: dict[str, torch.Tensor]) -> None:
    half = {key: tensor.half() for key, tensor in state.items()}
    half["clip.text_model.embeddings.position_ids"] = torch.arange(77)[None]
    half["clip.vision_model.embeddings.position_ids"] = torch.arange(50)[None]
    teacher = load_teacher("xpool", half)
    assert not teacher.training  # type: ignore[attr-defined]
    for parameter in teacher.parameters():  # type: ignore[attr-defined]
        assert parameter.dtype == torch.float32 and not parameter.requires_grad


def test_openai_names_under_clip_load_the_same_teacher(state: dict[str, torch.Tensor], official: XPool) -> None:
    clip = {f"clip.{key}": tensor for key, tensor in transformers_to_openai(under(state, "clip.")).items()}
    assert not any("vision_model" in key for key in clip)
    rest = {key: tensor for key, tensor in state.items() if not key.startswith("clip.")}
    again = load_teacher("xpool", {"state_dict": clip | rest}, mask_padding=False)
    loaded = again.state_dict()  # type: ignore[attr-defined]
    assert all(torch.equal(loaded[key], tensor) for key, tensor in official.state_dict().items())


def test_the_official_layout_is_written_with_the_official_names(
    official: XPool, state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    written = official.official_state_dict()
    assert written.keys() == state.keys()
    assert all(torch.equal(written[key], state[key]) for key in state)


def test_a_saved_teacher_on_any_clip_comes_back_whole(tmp_path: Path) -> None:
    teacher, batch = tiny_teacher(heads=2, clip_heads=4), tiny_batch()
    with pytest.raises(CheckpointError, match="text encoder has 4 heads, not 1"):
        teacher.official_state_dict()
    torch.save(teacher.checkpoint(), tmp_path / "xpool.pth")
    again = load_teacher("xpool", tmp_path / "xpool.pth")
    found, wanted = (
        model.score(
            model.encode_texts(batch["input_ids"], batch["attention_mask"]),
            model.encode_videos(batch["pixel_values"], batch["frame_mask"]),
        )
        for model in (again, teacher)
    )
    assert torch.equal(found, wanted)
    assert load_teacher("xpool", tmp_path / "xpool.pth", heads=4).pool_frames.cross_attn.heads == 4  # type: ignore[attr-defined]
