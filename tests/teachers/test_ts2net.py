"""The TS2-Net teacher against the official code's recorded numbers, and its own behaviour."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from golden import load_golden
from golden_models import golden_batch, golden_state, openai_clip_shapes, rule_state, student_shapes
from tiny_models import WIDTH, tiny_batch, tiny_clip
from torch import Tensor
from torch.testing import assert_close

import teachers.ts2net
from teachclip.errors import CheckpointError, DataError, RecipeError, TeachclipError
from teachclip.models.clip import clip_from_state, frame_features
from teachclip.models.layouts import openai_to_transformers, under
from teachclip.scorer import Teacher, Tokens, select_tokens
from teachclip.scoring.token_store import architecture_hash
from teachers import load_teacher, token_selection
from teachers.content_noise import content_noise, content_seeds
from teachers.token_selection import PerturbedTopK, hard_top_k
from teachers.token_shift import shift_tokens
from teachers.ts2net import TS2Net

GOLDENS = {name: load_golden(name) for name in ("03_ts2net", "03b_ts2net_shift", "03c_ts2net_fallback")}
UNUSED = ("text_token_selector.", "visual_prompt_encoder.")
CLIP = openai_clip_shapes(width=64, layers=3, patch=4, grid=4, text_width=64, text_layers=2, vocabulary=100)
SIZE = 16


def load(name: str, **options: Any) -> TS2Net:
    return load_teacher("ts2net", golden_state(GOLDENS[name][0]), **options)  # type: ignore[return-value]


@pytest.fixture(scope="module", params=["03_ts2net", "03b_ts2net_shift"])
def golden(request: pytest.FixtureRequest) -> tuple[str, TS2Net]:
    return request.param, load(request.param, selection="hard", mask_padding=False)


def base_clip(info: dict[str, Any]) -> dict[str, Tensor]:
    """The OpenAI CLIP that TeachCLIP's loader filled the missing tensors from when 03c was recorded."""
    shapes = {key.replace(".attn.net.", ".attn."): shape for key, shape in under(info["manifest"], "clip.").items()}
    return rule_state(shapes, info["clip_base_seed"])


def encode(teacher: TS2Net, batch: dict[str, Tensor]) -> tuple[Tokens, Tokens]:
    return (
        teacher.encode_texts(batch["input_ids"], batch["attention_mask"]),
        teacher.encode_videos(batch["pixel_values"], batch["frame_mask"]),
    )


def small_teacher(**options: Any) -> TS2Net:
    """A teacher on a small CLIP of 17 tokens a frame; its own weights are spread out so that they matter."""
    teacher = TS2Net.from_clip(clip_from_state(rule_state(CLIP, seed=3), source="small"), **options)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in teacher.named_parameters():
            if not name.startswith("clip."):
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return teacher.eval()


def small_batch(*, videos: int = 3, frames: int = 5) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    mask = torch.ones(videos, frames, dtype=torch.bool)
    mask[1:, -2:] = False
    pixels = torch.randn(videos, frames, 3, SIZE, SIZE, generator=generator) * mask[:, :, None, None, None]
    ids = torch.randint(1, 99, (videos, 6), generator=generator)
    ids[:, -1] = 99
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels, "frame_mask": mask}


@pytest.mark.parametrize("kind", ["full", "pad"])
def test_hard_selection_equals_the_official_numbers(golden: tuple[str, TS2Net], kind: str) -> None:
    name, teacher = golden
    info, arrays = GOLDENS[name]
    recorded = {key: torch.from_numpy(array) for key, array in arrays.items()}
    batch = golden_batch(info, kind)
    texts, videos = encode(teacher, batch)
    assert_close(teacher.score(texts, videos), recorded[f"{kind}_logits"], atol=2e-4, rtol=0)
    relevance = teacher.frame_relevance(texts, videos)
    assert_close(relevance, recorded[f"{kind}_relevance"], atol=2e-6, rtol=0)
    tokens = teacher.patch_tokens(batch["pixel_values"])
    scores = teacher.visual_token_selector.score_predictor(tokens)
    assert torch.equal(hard_top_k(scores[..., 1:], 3), recorded[f"{kind}_topk_index"].long())
    if f"{kind}_patch_score" in recorded:
        assert_close(scores, recorded[f"{kind}_patch_score"], atol=1e-4, rtol=0)
    if f"{kind}_cls" in recorded:
        assert_close(tokens[:, :, 0], recorded[f"{kind}_cls"], atol=1e-4, rtol=0)
    if f"{kind}_tokens" in recorded:
        selected = teacher.visual_token_selector(tokens, batch["pixel_values"])
        assert_close(selected.flatten(1, 2), recorded[f"{kind}_tokens"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", ["full", "pad"])
@pytest.mark.parametrize("name", ["03_ts2net", "03b_ts2net_shift"])
def test_perturbed_selection_has_the_official_means_and_deviations(
    name: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    info, arrays = GOLDENS[name]
    teacher, batch = load(name, mask_padding=False), golden_batch(info, kind)
    tokens = teacher.patch_tokens(batch["pixel_values"])
    monkeypatch.setattr(teacher, "patch_tokens", lambda pixels: tokens)
    draws: dict[str, list[Tensor]] = {"logits": [], "relevance": []}
    draws_here = 10
    for seed in range(draws_here):
        teacher.visual_token_selector.seed = seed
        texts, videos = encode(teacher, batch)
        draws["logits"].append(teacher.score(texts, videos))
        draws["relevance"].append(teacher.frame_relevance(texts, videos))
    for what, slack in (("logits", 1e-3), ("relevance", 1e-6)):
        found, (mean, std) = (
            torch.stack(draws[what]),
            (torch.from_numpy(arrays[f"{kind}_noisy_{what}_{of}"]) for of in ("mean", "std")),
        )
        # the official means are of 20 draws
        assert ((found.mean(dim=0) - mean).abs() <= 4 * std * math.sqrt(1 / 20 + 1 / draws_here) + slack).all(), what
        assert 0.7 < found.std(dim=0).mean() / std.mean() < 1.4, what
    hard = torch.from_numpy(arrays[f"{kind}_logits"])
    assert (torch.stack(draws["logits"]).mean(dim=0) - hard).abs().max() > 0.05


@pytest.mark.parametrize("kind", ["full", "pad"])
def test_with_a_base_clip_an_original_file_is_read_as_by_teachclip(kind: str) -> None:
    info, arrays = GOLDENS["03c_ts2net_fallback"]
    teacher = load("03c_ts2net_fallback", selection="hard", mask_padding=False, base_clip=base_clip(info))
    assert teacher.shift_layers == ()
    texts, videos = encode(teacher, golden_batch(info, kind))
    assert_close(teacher.score(texts, videos), torch.from_numpy(arrays[f"{kind}_logits"]), atol=2e-4, rtol=0)
    relevance = teacher.frame_relevance(texts, videos)
    assert_close(relevance, torch.from_numpy(arrays[f"{kind}_relevance"]), atol=2e-6, rtol=0)


def test_attention_that_is_nowhere_is_refused_with_the_reason(tmp_path: Path) -> None:
    info, _ = GOLDENS["03c_ts2net_fallback"]
    state = {key: tensor for key, tensor in golden_state(info).items() if ".attn.net." not in key}
    with pytest.raises(CheckpointError) as error:
        load_teacher("ts2net", state)
    message = str(error.value)
    assert "clip.visual.transformer.resblocks.10.attn.in_proj_weight and 7 more are missing" in message
    assert "vision layers 10, 11" in message and "base_clip=" in message and "\n" not in message
    torch.save(base_clip(info), tmp_path / "clip.pt")
    filled = load_teacher("ts2net", state, base_clip=tmp_path / "clip.pt", selection="hard")
    passed_over = load("03c_ts2net_fallback", base_clip=base_clip(info), selection="hard")
    assert all(torch.equal(filled.state_dict()[key], value) for key, value in passed_over.state_dict().items())  # type: ignore[attr-defined]
    with pytest.raises(CheckpointError, match="token_shift and base_clip exclude each other"):
        load_teacher("ts2net", state, base_clip=tmp_path / "clip.pt", token_shift=True)
    other = clip_from_state(rule_state(CLIP, seed=3), source="small").state_dict()
    with pytest.raises(CheckpointError, match=r"attn\.in_proj_weight.*of another shape|another shape|missing"):
        load_teacher("ts2net", state, base_clip=other)


def test_token_shift_follows_the_names_and_can_be_overridden() -> None:
    plain, original = load("03_ts2net", selection="hard"), load("03b_ts2net_shift", selection="hard")
    assert plain.shift_layers == () and original.shift_layers == (10, 11)
    # both goldens have one weight rule, whose values differ only where the names do
    never = load("03b_ts2net_shift", selection="hard", token_shift=False)
    always = load("03_ts2net", selection="hard", token_shift=True)
    assert never.shift_layers == () and always.shift_layers == (10, 11)
    pixels = golden_batch(GOLDENS["03_ts2net"][0], "full")["pixel_values"]
    assert_close(always.patch_tokens(pixels[:, :1]), plain.patch_tokens(pixels[:, :1]), atol=1e-5, rtol=0)
    shifted, still = (model.patch_tokens(pixels[:1]) for model in (original, never))
    assert (shifted - still).abs().max() > 0.01


def test_without_shift_the_class_tokens_are_clips_frame_features() -> None:
    teacher, batch = small_teacher(token_shift=False), small_batch()
    tokens = teacher.patch_tokens(batch["pixel_values"])
    assert tokens.shape == (3, 5, 17, 64)
    assert_close(tokens[:, :, 0], frame_features(teacher.clip, batch["pixel_values"]), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("tokens", "step", "last"), [(50, 7, (43, 46)), (197, 28, (197 - 28, 172)), (17, 2, (15, 16)), (7, 1, (6, 6))]
)
def test_shift_moves_the_official_tokens_between_neighbours(tokens: int, step: int, last: tuple[int, int]) -> None:
    frames, videos = 4, 2
    number = torch.arange(1.0, videos * frames + 1).view(videos, frames, 1, 1).expand(-1, -1, tokens, 1)
    found = shift_tokens(number.flatten(0, 1).contiguous(), frames).view(videos, frames, tokens)
    from_before, from_after = set(range(1, tokens, step)), set(range(4, tokens, step))
    assert (max(from_before), max(from_after)) == last
    for video in range(videos):
        for frame in range(frames):
            own = video * frames + frame + 1
            for token in range(tokens):
                wanted = own
                if token in from_before and frame > 0:
                    wanted = own - 1
                if token in from_after and frame < frames - 1:  # the official code writes these last
                    wanted = own + 1
                assert found[video, frame, token] == wanted, (video, frame, token)


def test_noise_belongs_to_the_video_not_to_its_batch() -> None:
    teacher, batch = small_teacher(samples=20), small_batch()
    pixels, mask = batch["pixel_values"], batch["frame_mask"]
    whole = teacher.encode_videos(pixels, mask)["frames"]
    torch.manual_seed(123)
    before = torch.get_rng_state()
    for rows in ([2], [1, 0], [2, 2, 1]):
        again = teacher.encode_videos(pixels[rows], mask[rows])["frames"]
        assert_close(again, whole[rows], atol=1e-5, rtol=0)
    assert torch.equal(torch.get_rng_state(), before)
    hard = small_teacher(selection="hard").encode_videos(pixels, mask)["frames"]
    assert (whole - hard).abs().max() > 1e-3
    assert (small_teacher(samples=20, seed=1).encode_videos(pixels, mask)["frames"] - whole).abs().max() > 1e-4


def test_seeds_tell_videos_apart_and_bear_other_last_bits() -> None:
    levels = torch.randint(0, 256, (4, 3, 3, 40, 40), generator=torch.Generator().manual_seed(2))
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
    pixels = (levels / 255 - mean) / std
    seeds = content_seeds(pixels, 0).tolist()
    assert len(set(seeds)) == 4 and len({seed % 2**32 for seed in seeds}) == 4
    other = (levels.double() / 255 - mean.double()) / std.double()
    assert content_seeds(other, 0).tolist() == seeds
    assert content_seeds(pixels * (1 + 1e-6), 0).tolist() == seeds
    assert content_seeds(pixels[[3, 1]], 0).tolist() == [seeds[3], seeds[1]]
    assert not set(content_seeds(pixels, 1).tolist()) & set(seeds)
    assert content_seeds(pixels[:, [1, 0, 2]], 0)[0] != seeds[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert content_seeds(pixels, 0).tolist() == seeds


def test_noise_is_splitmix64_of_seed_and_place() -> None:
    """Whole numbers as Python computes them, so that they are those of every device."""

    def mixed(number: int) -> int:
        number %= 2**64
        number = (number ^ (number >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        number = (number ^ (number >> 27)) * 0x94D049BB133111EB % 2**64
        return number ^ (number >> 31)

    assert mixed(0x9E3779B97F4A7C15) == 0xE220A8397B1DCDAF  # the published code's first, of seed 0
    seeds = [0, -1, 2**63 - 1, -(2**63), 12345]
    found = content_noise(torch.tensor(seeds), 7)
    for seed, numbers in zip(seeds, found.double(), strict=True):
        bits = [mixed(seed + place * 0x9E3779B97F4A7C15) for place in range(1, 5)]
        radius = [math.sqrt(-2 * math.log(((number >> 32) + 1) / 2**32)) for number in bits]
        angle = [2 * math.pi * (number & 0xFFFFFFFF) / 2**32 for number in bits]
        wanted = [r * math.cos(a) for r, a in zip(radius, angle, strict=True)]
        wanted += [r * math.sin(a) for r, a in zip(radius, angle, strict=True)]
        assert_close(numbers, torch.tensor(wanted[:7], dtype=torch.float64), atol=2e-5, rtol=1e-5)


def test_noise_is_normal_and_nothing_of_it_hangs_together() -> None:
    pixels = torch.zeros(40, 2, 3, 64, 64)
    pixels[torch.arange(40), 0, 0, 0, 0] = 0.05 * torch.arange(40)  # videos that differ in one pixel
    seeds, count = content_seeds(pixels, 0), 50_001
    noise = content_noise(seeds, count).double()
    assert noise.shape == (40, count) and noise.abs().max() < 6.7
    total = noise.numel()
    assert noise.mean().abs() < 5 / math.sqrt(total) and (noise.var() - 1).abs() < 5 * math.sqrt(2 / total)
    assert (noise**3).mean().abs() < 5 * math.sqrt(15 / total) and ((noise**4).mean() - 3).abs() < 5 * math.sqrt(
        96 / total
    )
    for edge in (-2.0, -1.0, -0.5, 0.3, 1.0, 2.5):
        share = 0.5 * (1 + math.erf(edge / math.sqrt(2)))
        assert ((noise < edge).double().mean() - share).abs() < 5 * math.sqrt(share * (1 - share) / total)
    between_videos = (noise @ noise.T / count)[*torch.triu_indices(40, 40, 1)]
    assert between_videos.abs().max() < 5 / math.sqrt(count)
    for lag in (1, 2, 49, 500, count // 2):  # neighbours, patches, samples, the two of a pair
        assert (noise[:, lag:] * noise[:, :-lag]).mean().abs() < 5 / math.sqrt(total - 40 * lag)
    other = content_noise(content_seeds(pixels, 1), count).double()
    assert (noise * other).mean().abs() < 5 / math.sqrt(total)


def test_noise_of_a_batch_is_drawn_at_once_without_a_generator(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, batch = small_teacher(samples=20), small_batch()
    whole = teacher.encode_videos(batch["pixel_values"], batch["frame_mask"])["frames"]
    drawn = []
    monkeypatch.setattr(token_selection, "content_noise", lambda *call: drawn.append(call) or content_noise(*call))
    monkeypatch.setattr(torch, "Generator", None)
    assert torch.equal(teacher.encode_videos(batch["pixel_values"], batch["frame_mask"])["frames"], whole)
    assert [len(seeds) for seeds, _ in drawn] == [3]
    monkeypatch.setattr(token_selection, "NUMBERS_AT_ONCE", 1)
    one_by_one = teacher.encode_videos(batch["pixel_values"], batch["frame_mask"])["frames"]
    assert_close(one_by_one, whole, atol=1e-5, rtol=0)
    assert [len(seeds) for seeds, _ in drawn[1:]] == [1, 1, 1]


def test_drawing_noise_never_waits_for_the_device() -> None:
    pixels = torch.rand(2, 3, 3, 64, 64)
    with torch.profiler.profile() as profile:
        content_noise(content_seeds(pixels, 5), 100)
    called = {event.key for event in profile.key_averages()}
    assert "aten::bitwise_xor_" in called or "aten::__ixor__" in called
    assert not called & {"aten::item", "aten::_local_scalar_dense", "aten::nonzero"}


def test_relevance_of_other_noise_is_stored_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    before = architecture_hash(small_teacher()), architecture_hash(small_teacher(selection="hard"))
    monkeypatch.setattr(token_selection, "NOISE_VERSION", token_selection.NOISE_VERSION + 1)
    assert architecture_hash(small_teacher()) != before[0]
    assert architecture_hash(small_teacher(selection="hard")) == before[1]


def test_perturbed_top_k_and_its_gradient_follow_the_formulas() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(2, 6, generator=generator, requires_grad=True)
    noise, upstream = torch.randn(2, 7, 6, generator=generator), torch.randn(2, 3, 6, generator=generator)
    found = PerturbedTopK.apply(scores, noise.clone, 3, 0.5)
    (found * upstream).sum().backward()
    places = hard_top_k(scores.detach()[:, None] + 0.5 * noise, 3)
    one_hot = torch.nn.functional.one_hot(places, 6).float()
    assert_close(found.detach(), one_hot.mean(dim=1))
    jacobian = torch.einsum("fskq,fsp->fkqp", one_hot, noise) / 7 / 0.5
    assert_close(scores.grad, torch.einsum("fkq,fkqp->fp", upstream, jacobian), atol=1e-5, rtol=0)


def test_perturbed_top_1_of_two_is_a_gaussian_step() -> None:
    sigma, gap = 0.3, 0.2
    scores = torch.tensor([[gap, 0.0]], requires_grad=True)
    noise = torch.randn(1, 200_000, 2, generator=torch.Generator().manual_seed(0))
    share = PerturbedTopK.apply(scores, noise.clone, 1, sigma)[0, 0, 0]
    share.backward()
    scaled = gap / (sigma * math.sqrt(2))
    assert abs(share.item() - 0.5 * (1 + math.erf(scaled / math.sqrt(2)))) < 5e-3
    density = math.exp(-(scaled**2) / 2) / math.sqrt(2 * math.pi) / (sigma * math.sqrt(2))
    assert_close(scores.grad, torch.tensor([[density, -density]]), atol=2e-2, rtol=0)


def test_scores_follow_the_formula_pair_by_pair() -> None:
    teacher = small_teacher()
    generator = torch.Generator().manual_seed(0)
    frames = torch.nn.functional.normalize(torch.randn(2, 5, 64, generator=generator), dim=-1)
    texts = {"sentence": torch.nn.functional.normalize(torch.randn(3, 64, generator=generator), dim=-1)}
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], dtype=torch.bool)
    found = teacher.score(texts, {"frames": frames, "mask": mask})
    for t in range(3):
        for v in range(2):
            cosines = frames[v] @ texts["sentence"][t]
            taken = [f for f in range(5) if mask[v][(4 * f) % 5]]
            kept = cosines[taken]
            wanted = ((4 * kept / kept.norm()).softmax(dim=0) * kept).sum() * teacher.clip.logit_scale.exp()
            assert_close(found[t, v], wanted, atol=1e-5, rtol=1e-5)


def test_scoring_in_chunks_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = small_teacher(selection="hard")
    texts, videos = encode(teacher, small_batch())
    whole = teacher.score(texts, videos)
    monkeypatch.setattr(teachers.ts2net, "CHUNK_ELEMENTS", 3 * 5)
    assert_close(teacher.score(texts, videos), whole, atol=1e-6, rtol=0)
    assert teacher.score(select_tokens(texts, slice(0, 0)), videos).shape == (0, 3)
    assert teacher.score(texts, select_tokens(videos, slice(0, 0))).shape == (3, 0)


def test_masked_relevance_never_falls_on_padding() -> None:
    info, arrays = GOLDENS["03_ts2net"]
    teacher = load("03_ts2net", selection="hard")
    texts, videos = encode(teacher, golden_batch(info, "pad"))
    relevance, mask = teacher.frame_relevance(texts, videos), videos["mask"]
    assert (relevance[~mask] == 0).all()
    wanted = torch.from_numpy(arrays["pad_relevance"]) * mask
    assert_close(relevance, wanted / wanted.sum(dim=1, keepdim=True), atol=1e-5, rtol=0)
    assert_close(teacher.score(texts, videos), torch.from_numpy(arrays["pad_logits"]), atol=2e-4, rtol=0)


def test_it_is_a_teacher_with_items_in_front() -> None:
    teacher, batch = small_teacher(samples=5), small_batch(videos=2, frames=30)  # 120 tokens, 77 positions
    assert isinstance(teacher, Teacher)
    texts, videos = encode(teacher, batch)
    assert {name: tuple(tensor.shape) for name, tensor in (texts | videos).items()} == {
        "sentence": (2, 64),
        "frames": (2, 30, 64),
        "mask": (2, 30),
    }
    assert videos["mask"].dtype == torch.bool
    batch["frame_mask"][0] = False
    texts, videos = encode(teacher, batch)
    assert teacher.score(texts, videos).isfinite().all() and teacher.frame_relevance(texts, videos).isfinite().all()
    with pytest.raises(DataError, match="pixel_values has shape"):
        teacher.encode_videos(batch["pixel_values"][..., :8], batch["frame_mask"])


def test_it_starts_as_published() -> None:
    clip = clip_from_state(rule_state(CLIP, seed=3), source="small")
    teacher = TS2Net.from_clip(clip)
    assert teacher.shift_layers == (1, 2) and teacher.visual_token_selector.selection == "perturbed"
    official = teacher.official_state_dict()
    assert torch.equal(official["frame_position_embeddings.weight"], official["clip.positional_embedding"])
    blocks = under(official, "transformerClip.resblocks.")
    assert len(blocks) == 4 * 12
    for key in blocks:
        if key.startswith(("0.", "1.")):
            assert torch.equal(blocks[key], official[f"clip.transformer.resblocks.{key}"])
    selector = under(official, "visual_token_selector.score_predictor.")
    assert len(selector) == 5
    for name, tensor in selector.items():
        if name.startswith("in_conv.0"):
            assert (tensor == float(name.endswith("weight"))).all(), name
        else:
            assert 0.014 < tensor.std() < 0.026, name


def test_every_parameter_learns_under_perturbed_selection_with_fresh_noise() -> None:
    teacher, batch = small_teacher(samples=50).train(), small_batch()
    logits = teacher.score(*encode(teacher, batch))
    assert not torch.equal(logits, teacher.score(*encode(teacher, batch)))
    labels = torch.arange(len(logits))
    loss = torch.nn.functional.cross_entropy(logits, labels) + torch.nn.functional.cross_entropy(logits.T, labels)
    loss.backward()
    for name, parameter in teacher.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0 or name.endswith("k_proj.bias"), name


def test_under_hard_selection_the_selector_is_frozen_and_the_rest_learns() -> None:
    teacher, batch = small_teacher(selection="hard").train(), small_batch()
    teacher.score(*encode(teacher, batch)).diagonal().sum().backward()
    for name, parameter in teacher.named_parameters():
        is_selector = name.startswith("visual_token_selector.")
        assert parameter.requires_grad is not is_selector and (parameter.grad is None) is is_selector, name


def test_scores_stay_float32_under_bfloat16_autocast() -> None:
    teacher, batch = small_teacher(samples=50), small_batch()
    wanted = encode(teacher, batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        texts, videos = encode(teacher, batch)
        scores, relevance = teacher.score(texts, videos), teacher.frame_relevance(texts, videos)
    assert scores.dtype == relevance.dtype == videos["frames"].dtype == texts["sentence"].dtype == torch.float32
    assert_close(scores, teacher.score(*wanted), atol=0.5, rtol=0)


def test_transformers_names_and_float16_load_the_same_teacher() -> None:
    state = golden_state(GOLDENS["03_ts2net"][0])
    renamed = {f"clip.{key}": tensor for key, tensor in openai_to_transformers(under(state, "clip.")).items()}
    rest = {key: tensor for key, tensor in state.items() if not key.startswith("clip.")}
    again, wanted = load_teacher("ts2net", {"state_dict": renamed | rest}), load("03_ts2net")
    assert all(torch.equal(again.state_dict()[key], tensor) for key, tensor in wanted.state_dict().items())  # type: ignore[attr-defined]
    half = load_teacher("ts2net", {key: tensor.half() for key, tensor in state.items()})
    for parameter in half.parameters():  # type: ignore[attr-defined]
        assert parameter.dtype == torch.float32 and not parameter.requires_grad
    assert not half.training  # type: ignore[attr-defined]


def test_the_official_layout_is_written_with_the_official_names(golden: tuple[str, TS2Net]) -> None:
    name, teacher = golden
    state = {key: value for key, value in golden_state(GOLDENS[name][0]).items() if not key.startswith(UNUSED)}
    written = teacher.official_state_dict()
    assert written.keys() == state.keys()
    assert all(torch.equal(written[key], state[key]) for key in state)
    assert teacher.checkpoint()["options"] == {"selection": "hard"}


@pytest.mark.parametrize(("layers", "grid"), [(2, 14), (1, 3)])
def test_sizes_are_read_off_the_checkpoint(layers: int, grid: int) -> None:
    clip = openai_clip_shapes(width=64, layers=4, patch=2, grid=grid, text_width=64, text_layers=1, vocabulary=100)
    shapes = {key: shape for key, shape in student_shapes(clip, layers=layers).items() if "frameLinear" not in key}
    stem = "visual_token_selector.score_predictor."
    shapes |= {f"{stem}in_conv.0.weight": (64,), f"{stem}in_conv.0.bias": (64,), f"{stem}in_conv.1.weight": (32, 64)}
    shapes |= {f"{stem}out_conv.0.weight": (32, 64), f"{stem}out_conv.2.weight": (1, 32)}
    shapes = {key.replace("resblocks.3.attn.", "resblocks.3.attn.net."): shape for key, shape in shapes.items()}
    teacher: TS2Net = load_teacher("ts2net", rule_state(shapes, seed=4), samples=4)  # type: ignore[assignment]
    assert teacher.shift_layers == (3,) and len(teacher.temporal.layers) == layers
    videos = teacher.encode_videos(torch.randn(2, 3, 3, 2 * grid, 2 * grid), torch.ones(2, 3, dtype=torch.bool))
    assert videos["frames"].shape == (2, 3, 64)
    assert teacher.official_state_dict().keys() == shapes.keys()


def test_a_saved_teacher_on_any_clip_comes_back_whole(tmp_path: Path) -> None:
    teacher, batch = (
        TS2Net.from_clip(tiny_clip(heads=2), token_shift=False, topk=2, samples=9, sigma=0.1),
        tiny_batch(),
    )
    teacher.eval()
    with pytest.raises(CheckpointError, match="text encoder has 2 heads, not 1"):
        teacher.official_state_dict()
    torch.save(teacher.checkpoint(), tmp_path / "ts2net.pth")
    again: TS2Net = load_teacher("ts2net", tmp_path / "ts2net.pth")  # type: ignore[assignment]
    selector = again.visual_token_selector
    assert (selector.topk, selector.samples, selector.sigma, again.temporal_heads) == (2, 9, 0.1, 2)
    assert_close(again.score(*encode(again, batch)), teacher.score(*encode(teacher, batch)), atol=1e-5, rtol=0)


def test_a_shifted_teacher_comes_back_shifted() -> None:
    teacher, batch = small_teacher(), small_batch()
    again: TS2Net = load_teacher("ts2net", teacher.checkpoint())  # type: ignore[assignment]
    assert again.shift_layers == (1, 2)
    assert_close(again.score(*encode(again, batch)), teacher.score(*encode(teacher, batch)), atol=1e-5, rtol=0)
    with pytest.raises(CheckpointError, match="the official layout cannot hold topk 2"):
        small_teacher(topk=2).official_state_dict()


STEM = "clip.visual.transformer.resblocks.2.attn."


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop(f"{STEM}net.in_proj_bias"), f"1 entry ({STEM}in_proj_bias) missing"),
        (lambda s: s.update({f"{STEM}in_proj_bias": torch.ones(192)}), f"has both {STEM}in_proj_bias and {STEM}net"),
        (
            lambda s: s.pop("visual_token_selector.score_predictor.out_conv.2.weight"),
            "1 entry (visual_token_selector.score_predictor.out_conv.2.weight) missing",
        ),
        (lambda s: s.pop("frame_position_embeddings.weight"), "frame_position_embeddings.weight is missing"),
        (
            lambda s: [s.pop(key) for key in list(s) if key.startswith("transformerClip.")],
            "transformerClip.resblocks.0 is missing",
        ),
        (lambda s: s.update(extra=torch.ones(2)), "1 entry (extra) unexpected"),
        (lambda s: s.update({"text_token_selector.extra": torch.ones(2)}), "(text_token_selector.extra) unexpected"),
        (
            lambda s: s.update({"visual_prompt_encoder.conv1.weight": torch.ones(2)}),
            "visual_prompt_encoder.conv1.weight has shape (2,), expected 4 dimensions",
        ),
        (
            lambda s: [s.pop(key) for key in list(s) if "selector" in key or ".net." in key],
            "expected a TS2-Net checkpoint, this looks like a CLIP4Clip seqTransf checkpoint",
        ),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_named(
    tmp_path: Path, change: Callable[[dict[str, Tensor]], object], message: str
) -> None:
    state = small_teacher().official_state_dict()
    change(state)
    torch.save(state, tmp_path / "x.bin")
    with pytest.raises(TeachclipError) as error:
        load_teacher("ts2net", tmp_path / "x.bin")
    assert isinstance(error.value, CheckpointError) and "\n" not in str(error.value)
    assert message in str(error.value) and str(error.value).startswith(f"{tmp_path}/x.bin: ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"selection": "hrd"}, "selection is 'hrd'; allowed: perturbed, hard; did you mean hard?"),
        ({"samples": 0}, "samples is 0, expected an integer of at least 1"),
        ({"sigma": 0.0}, "sigma is 0.0, expected a number above 0"),
        ({"seed": "x"}, "seed is 'x': input should be a valid integer"),
        ({"topk": 16 + 1}, "topk is 17, but a frame has 16 patches"),
    ],
)
def test_impossible_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises((RecipeError, CheckpointError)) as error:
        load_teacher("ts2net", small_teacher().official_state_dict(), **options)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_settings_that_change_the_numbers_change_what_stores_are_named_by() -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"selection": "hard"},
        {"samples": 9},
        {"sigma": 0.1},
        {"seed": 1},
        {"topk": 2},
    ]
    changes += [{"token_shift": False}, {"mask_padding": False}]
    hashes = {architecture_hash(small_teacher(**options)) for options in changes}
    assert len(hashes) == len(changes)


def test_a_frame_of_few_tokens_cannot_shift() -> None:
    with pytest.raises(CheckpointError, match="token shift needs 7 tokens a frame, this CLIP has 5"):
        TS2Net.from_clip(tiny_clip())
    assert TS2Net.from_clip(tiny_clip(), token_shift=False).width == WIDTH


def test_odd_numbers_of_frames_samples_and_patches_are_selected_from() -> None:
    options = {"selection": "perturbed", "sigma": 0.05, "seed": 0, "source": "ts2net"}
    selector = token_selection.TokenSelector(WIDTH, topk=2, samples=5, **options).eval()
    tokens, pixels = torch.randn(2, 3, 1 + 49, WIDTH), torch.randn(2, 3, 3, 8, 8)
    with torch.no_grad():
        chosen = selector(tokens, pixels)
        assert chosen.shape == (2, 3, 3, WIDTH)
        assert_close(selector(tokens[1:], pixels[1:]), chosen[1:])
