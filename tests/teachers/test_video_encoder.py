"""VideoPrism as a teacher: its own numbers, frames and masks, preprocessing, and loading by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import SIZE, WIDTH, WORDS, tiny_clip
from torch.nn.functional import normalize
from torch.testing import assert_close
from transformers import PeVideoConfig, VideoPrismClipModel, VideoPrismConfig, VideoPrismTokenizer, XCLIPConfig

from teachclip.errors import CheckpointError, DataError, RecipeError
from teachclip.scorer import Teacher, select_tokens
from teachers import load_teacher
from teachers.video_encoder import VideoEncoder, spread_frames

TRAINED_FRAMES = 4
MAX_TOKENS = 12
SPECIAL = ("<pad>", "</s>", "<unk>")


def tiny_videoprism(*, seed: int = 0, size: Any = SIZE) -> VideoPrismClipModel:
    """A VideoPrism with random weights, spread out so that its parts matter."""
    torch.manual_seed(seed)
    shared = {"hidden_size": WIDTH, "num_attention_heads": 2, "intermediate_size": 2 * WIDTH}
    vision = {
        "image_size": size,
        "tubelet_size": [1, 16, 16],
        "num_frames": TRAINED_FRAMES,
        "num_spatial_layers": 1,
        "num_temporal_layers": 1,
        "num_auxiliary_layers": 1,
    }
    text = {
        "vocab_size": len(SPECIAL) + len(WORDS) + 1,
        "num_hidden_layers": 1,
        "max_position_embeddings": MAX_TOKENS,
    }
    config = VideoPrismConfig(text_config=shared | text, vision_config=shared | vision)
    model = VideoPrismClipModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


def save_tokenizer(folder: Path) -> None:
    """A tokenizer of VideoPrism's kind that knows `WORDS`."""
    pieces = [*SPECIAL, "\u2581", *("\u2581" + word for word in WORDS)]
    vocabulary = [(piece, -float(number)) for number, piece in enumerate(pieces)]
    VideoPrismTokenizer(vocab=vocabulary, extra_ids=0, additional_special_tokens=[]).save_pretrained(folder)


def saved(folder: Path, **options: Any) -> Path:
    """A folder with model, tokenizer and the settings of its video processor, as transformers writes them."""
    tiny_videoprism(**options).save_pretrained(folder)
    save_tokenizer(folder)
    settings = {
        "size": {"height": 999, "width": 999},
        "resample": 2,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "rescale_factor": 1 / 255,
        "crop_size": None,
        "do_center_crop": None,
    }
    content = {"processor_class": "VideoPrismProcessor", "video_processor": settings}
    (folder / "processor_config.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("videoprism"))


@pytest.fixture
def teacher(folder: Path) -> VideoEncoder:
    return load_teacher("video_encoder", folder)  # type: ignore[return-value]


def videos_of(frames: int, *, videos: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(frames)
    return torch.rand(videos, frames, 3, SIZE, SIZE, generator=generator)


def everything(pixels: torch.Tensor) -> torch.Tensor:
    return torch.ones(pixels.shape[:2], dtype=torch.bool)


def captions(teacher: VideoEncoder, **padding: Any) -> dict[str, torch.Tensor]:
    texts = ["a red circle", "a blue square over a sea", "sea"]
    tokens = teacher.tokenizer(
        texts, return_tensors="pt", return_attention_mask=True, **(padding or {"padding": True})
    )
    return {name: tokens[name] for name in ("input_ids", "attention_mask")}


@torch.no_grad()
def test_scores_are_the_models_own_cosines_over_the_temperature(teacher: VideoEncoder, folder: Path) -> None:
    model, tokens, pixels = tiny_videoprism(), captions(teacher), videos_of(TRAINED_FRAMES)
    assert isinstance(teacher, Teacher) and not any(parameter.requires_grad for parameter in teacher.parameters())
    texts, videos = teacher.encode_texts(**tokens), teacher.encode_videos(pixels, everything(pixels))
    outputs = model(pixel_values_videos=pixels, **tokens)
    cosines = normalize(outputs.text_embeds, dim=-1) @ normalize(outputs.video_embeds, dim=-1).T
    assert_close(teacher.score(texts, videos), 100 * cosines, atol=1e-3, rtol=0)
    assert cosines.std() > 1e-2  # the random model does tell texts and videos apart
    warmer = load_teacher("video_encoder", folder, temperature=0.5)
    assert_close(warmer.score(texts, videos), 2 * cosines, atol=1e-5, rtol=0)
    part = teacher.score(select_tokens(texts, [2]), select_tokens(videos, [1, 0]))
    assert_close(part, 100 * cosines[2:, [1, 0]], atol=1e-3, rtol=0)


def test_frames_are_spread_evenly_over_what_is_valid() -> None:
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0], [0, 1, 0, 1, 0, 0], [0, 0, 0, 0, 0, 0]]).bool()
    assert spread_frames(mask, 3).tolist() == [[1, 3, 5], [0, 1, 1], [1, 3, 3], [1, 3, 5]]
    assert spread_frames(mask, 6)[0].tolist() == [0, 1, 2, 3, 4, 5]
    assert spread_frames(mask, 4)[1].tolist() == [0, 0, 1, 1]


@torch.no_grad()
def test_padded_frames_are_never_read_unless_asked(teacher: VideoEncoder, folder: Path) -> None:
    pixels, mask = videos_of(6), torch.tensor([[True] * 6, [True] * 3 + [False] * 3, [True] + [False] * 5])
    zeroed = pixels * mask[:, :, None, None, None]
    videos = teacher.encode_videos(pixels, mask)["video"]
    assert_close(videos, teacher.encode_videos(zeroed, mask)["video"])
    alone = teacher.encode_videos(pixels[1:2, :3], mask[1:2, :3])["video"]
    assert_close(videos[1:2], alone, atol=1e-5, rtol=0)
    unmasked = load_teacher("video_encoder", folder, mask_padding=False)
    assert_close(unmasked.encode_videos(pixels, mask)["video"][0], videos[0], atol=1e-5, rtol=0)
    assert (unmasked.encode_videos(zeroed, mask)["video"][2] - videos[2]).abs().max() > 1e-3


@torch.no_grad()
def test_other_numbers_of_frames_interpolate_the_temporal_positions(folder: Path) -> None:
    teacher = load_teacher("video_encoder", folder, frames=6)
    pixels = videos_of(6)
    found = teacher.encode_videos(pixels, everything(pixels))["video"]
    own = tiny_videoprism().get_video_features(pixel_values_videos=pixels, interpolate_pos_encoding=True)
    assert_close(found, normalize(own.pooler_output[:, 0], dim=-1), atol=1e-5, rtol=0)


@torch.no_grad()
def test_texts_do_not_depend_on_their_padding_or_batch(teacher: VideoEncoder) -> None:
    found = teacher.encode_texts(**captions(teacher))["sentence"]
    longer = captions(teacher, padding="max_length", max_length=MAX_TOKENS)
    assert longer["input_ids"].shape == (3, MAX_TOKENS)
    assert_close(teacher.encode_texts(**longer)["sentence"], found, atol=1e-5, rtol=0)
    short = {name: tensor[2:, :1] for name, tensor in longer.items()}
    assert short["attention_mask"].all()
    assert_close(teacher.encode_texts(**short)["sentence"], found[2:], atol=1e-5, rtol=0)


def test_it_has_no_frame_relevance_and_says_so(teacher: VideoEncoder) -> None:
    assert VideoEncoder.has_frame_relevance is False
    with pytest.raises(DataError, match="one vector a video; it has no frame relevance"):
        teacher.frame_relevance({}, {})


def test_its_inputs_are_described_as_its_own_processor_makes_them(teacher: VideoEncoder) -> None:
    preprocessing = teacher.preprocessing
    assert preprocessing is not None
    assert (preprocessing.size, preprocessing.resize, preprocessing.scale_to) == (SIZE, "stretch", None)
    assert (preprocessing.resample, preprocessing.pad_to, preprocessing.pad_id) == ("bilinear", None, 0)
    assert (teacher.image_size, teacher.max_tokens) == (SIZE, MAX_TOKENS)
    assert teacher.image_mean == pytest.approx((0, 0, 0)) and teacher.image_std == pytest.approx((1, 1, 1))
    assert teacher.tokenizer is preprocessing.tokenizer
    assert captions(teacher)["input_ids"][2, :1].tolist() == [len(SPECIAL) + 1 + WORDS.index("sea")]


def test_inputs_of_another_shape_are_refused(teacher: VideoEncoder) -> None:
    with pytest.raises(DataError, match=r"pixel_values has shape \(1, 4, 3, 16, 16\), this model takes \(videos, fr"):
        teacher.encode_videos(torch.zeros(1, 4, 3, 16, 16), torch.ones(1, 4).bool())
    with pytest.raises(DataError, match=r"frame_mask has shape \(1, 3\), expected \(1, 4\)"):
        teacher.encode_videos(torch.zeros(1, 4, 3, SIZE, SIZE), torch.ones(1, 3).bool())
    ids = torch.ones(1, MAX_TOKENS + 1, dtype=torch.long)
    with pytest.raises(DataError, match=r"expected both \(texts, at most 12\)"):
        teacher.encode_texts(ids, ids)
    with pytest.raises(DataError, match="token id 500 is outside the vocabulary of the model"):
        teacher.encode_texts(torch.tensor([[500]]), torch.tensor([[1]]))


@torch.no_grad()
def test_scores_stay_float32_under_bfloat16_autocast(teacher: VideoEncoder) -> None:
    pixels = videos_of(TRAINED_FRAMES)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        texts, videos = teacher.encode_texts(**captions(teacher)), teacher.encode_videos(pixels, everything(pixels))
        assert teacher.score(texts, videos).dtype == torch.float32


def save_config(config: Any) -> Callable[[Path], object]:
    return lambda folder: config.save_pretrained(folder)


def truncate(folder: Path) -> None:
    saved(folder)
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])


def drop_tokenizer(folder: Path) -> None:
    tiny_videoprism().save_pretrained(folder)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, "no video encoder can be loaded from it"),
        (save_config(PeVideoConfig()), "PE-Video cannot be used: PeVideoModel of transformers"),
        (save_config(XCLIPConfig()), "Microsoft's X-CLIP, a video classifier; the retrieval teacher is `xclip`"),
        (save_config(VideoPrismConfig().vision_config), "this VideoPrism has no text encoder"),
        (lambda folder: tiny_clip().save_pretrained(folder), "a clip is not supported; expected a VideoPrism"),
        (save_config(VideoPrismConfig()), "cannot be loaded as a VideoPrism"),
        (truncate, "cannot be loaded as a VideoPrism"),
        (drop_tokenizer, "its tokenizer cannot be loaded"),
        (lambda folder: saved(folder, size=[32, 64]), r"image size \(32, 64\) is not supported; expected a square"),
    ],
)
def test_what_cannot_teach_is_refused_with_the_reason(
    tmp_path: Path, make: Callable[[Path], object], message: str
) -> None:
    make(tmp_path)
    with pytest.raises(CheckpointError, match=message) as error:
        load_teacher("video_encoder", tmp_path)
    assert "\n" not in str(error.value) and str(error.value).startswith(str(tmp_path))


def test_weights_that_are_missing_are_named(tmp_path: Path) -> None:
    model = tiny_videoprism()
    weights = {key: tensor for key, tensor in model.state_dict().items() if "head.q_proj" not in key}
    saved(tmp_path)
    model.save_pretrained(tmp_path, state_dict=weights)
    with pytest.raises(CheckpointError, match=r"2 weights missing \(video_model.head.q_proj.bias, "):
        load_teacher("video_encoder", tmp_path)


def test_impossible_options_are_named(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="frames is 0, allowed: 1 or more"):
        load_teacher("video_encoder", folder, frames=0)
    with pytest.raises(CheckpointError, match="temperature is 0, expected more than 0"):
        load_teacher("video_encoder", folder, temperature=0)
    with pytest.raises(
        RecipeError, match=r"no option 'frame'; known: frames, temperature, mask_padding, .*; did you mean"
    ):
        load_teacher("video_encoder", folder, frame=3)
