"""Preprocessing of texts and frames equals that of a dual encoder's own processor in transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_backbones import FAMILIES, MEAN, POSITIONS, STD, save_backbone, tiny_config
from tiny_models import SIZE
from torch.testing import assert_close
from transformers import CLIPImageProcessorPil
from transformers.models.efficientnet.image_processing_pil_efficientnet import EfficientNetImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from teachclip.data.video.transform import CLIP_MEAN, CLIP_STD, FrameTransform, normalize, resize_and_crop
from teachclip.errors import CheckpointError
from teachclip.models.preprocessing import image_settings, load_preprocessing, load_tokenizer

IMAGE = np.random.RandomState(0).randint(0, 256, (1, 3, 48, 80), dtype=np.uint8)
SQUARE = {"height": SIZE, "width": SIZE}


def prepare(settings: dict[str, Any]) -> torch.Tensor:
    """The image, preprocessed with settings read from an image processor: (1, 3, size, size)."""
    found = image_settings(settings, 224, source="test")
    transform = FrameTransform(found["size"], found["resize"], found["resample"], found["scale_to"])
    return normalize(transform(torch.from_numpy(IMAGE)), found["mean"], found["std"])


@pytest.mark.parametrize(
    "processor",
    [
        CLIPImageProcessorPil(size={"shortest_edge": SIZE}, crop_size=SQUARE),
        CLIPImageProcessorPil(size={"shortest_edge": 40}, crop_size=SQUARE, do_normalize=False),
        CLIPImageProcessorPil(size=SQUARE, do_center_crop=False),
        SiglipImageProcessorPil(size=SQUARE),
        SiglipImageProcessorPil(size=SQUARE, resample=2, image_mean=MEAN, image_std=STD),
        EfficientNetImageProcessorPil(
            size={"height": 40, "width": 40},
            crop_size=SQUARE,
            do_center_crop=True,
            rescale_factor=1 / 127.5,
            rescale_offset=True,
            do_normalize=False,
            include_top=False,
            resample=2,
        ),
        EfficientNetImageProcessorPil(size=SQUARE, image_mean=MEAN, image_std=STD, include_top=True),
    ],
    ids=["clip", "larger", "square", "siglip", "siglip2", "align", "top"],
)
def test_images_equal_those_of_transformers(processor: Any) -> None:
    expected = processor(list(IMAGE), return_tensors="pt", input_data_format="channels_first")["pixel_values"]
    settings = json.loads(processor.to_json_string())
    assert_close(prepare(settings), expected, atol=1e-5, rtol=0)


def test_settings_of_old_are_clips() -> None:
    found = image_settings({"size": 40, "crop_size": 32, "image_mean": MEAN, "image_std": STD}, 224, source="test")
    assert (found["size"], found["scale_to"], found["resize"]) == (32, 40, "crop")


def test_without_settings_images_are_as_clips() -> None:
    assert image_settings({}, 224, source="test") == {"size": 224}
    images = torch.from_numpy(IMAGE)
    assert torch.equal(FrameTransform(SIZE)(images), resize_and_crop(images, SIZE))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": {"height": 32, "width": 48}}, "expected a square"),
        ({"size": SQUARE, "resample": 0}, r"resample is 0, supported: 2 \(bilinear\), 3 \(bicubic\)"),
        ({"size": {"shortest_edge": 16}, "crop_size": SQUARE}, "scaled to 16 pixels and cropped to 32"),
        ({"size": {"longest_edge": 16}}, "expected a square"),
    ],
)
def test_settings_that_cannot_be_followed_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        image_settings(settings, 224, source="test")


def test_a_transform_says_what_it_does() -> None:
    assert FrameTransform(32).describe() == "short side by PIL bicubic, centre crop"
    assert FrameTransform(32, "stretch", "bilinear").describe() == "stretched by PIL bilinear"
    assert FrameTransform(32, "stretch", scale_to=40).describe() == "stretched to 40 by PIL bicubic, centre crop"


@pytest.mark.parametrize("family", FAMILIES)
def test_everything_is_read_from_the_models_folder(family: str, tmp_path: Path) -> None:
    found = load_preprocessing(save_backbone(family, tmp_path), tiny_config(family), max_tokens=10)
    assert (found.max_tokens, found.size) == (10, SIZE)
    assert found.pad_to == (POSITIONS if family.startswith("siglip") else None)
    assert found.pad_id == (0 if family == "clip" else found.tokenizer.pad_token_id)
    assert found.resize == ("stretch" if family in ("siglip", "siglip2", "align", "chinese_clip") else "crop")
    assert found.scale_to == (SIZE + 8 if family == "align" else None)
    assert found.mean == pytest.approx(MEAN) and found.std == pytest.approx(STD)
    unknown = found.tokenizer.unk_token_id
    ids = found.tokenizer("a red circle over sea")["input_ids"]
    assert family == "clip" or unknown not in ids
    assert json.dumps(found.describe()) and "tokenizer" not in found.describe()


def test_settings_inside_a_processors_file_are_found(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_backbone("siglip", tmp_path)
    (tmp_path / "preprocessor_config.json").rename(tmp_path / "old.json")
    settings = json.loads((tmp_path / "old.json").read_text(encoding="utf-8"))
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": settings}), encoding="utf-8")
    assert load_preprocessing(tmp_path, tiny_config("siglip")).resize == "stretch"
    (tmp_path / "processor_config.json").unlink()
    found = load_preprocessing(tmp_path, tiny_config("siglip"))
    assert (found.resize, found.size, found.mean, found.std) == ("crop", SIZE, CLIP_MEAN, CLIP_STD)
    assert "has no image settings" in caplog.text


def test_texts_are_no_longer_than_the_model_reads(tmp_path: Path) -> None:
    folder, config = save_backbone("altclip", tmp_path), tiny_config("altclip")
    assert load_preprocessing(folder, config).max_tokens == POSITIONS
    assert load_preprocessing(folder, config, max_tokens=100).max_tokens == POSITIONS


def test_only_align_takes_another_size_than_its_own(tmp_path: Path) -> None:
    folder = save_backbone("align", tmp_path / "align")
    found = load_preprocessing(folder, tiny_config("align"), size=64)
    assert (found.size, found.scale_to) == (64, None)
    with pytest.raises(CheckpointError, match="images of 64 pixels are configured, the weights are for 32"):
        load_preprocessing(save_backbone("siglip", tmp_path / "siglip"), tiny_config("siglip"), size=64)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_without_a_tokenizer_is_refused(family: str, tmp_path: Path) -> None:
    tiny_config(family).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="its tokenizer cannot be loaded"):
        load_tokenizer(tmp_path)
