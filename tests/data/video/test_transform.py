import numpy as np
import pytest
import torch
from golden import load_golden
from PIL import Image

from teachclip.data.video.transform import normalize, resize_and_crop

INFO, ARRAYS = load_golden("11_preprocess")


def pil_transform(frame, size):
    """Resize(size, bicubic) and CenterCrop(size), done by hand on one frame."""
    height, width = frame.shape[:2]
    new = (size, int(size * height / width)) if width <= height else (int(size * width / height), size)
    image = Image.fromarray(frame).resize(new, Image.Resampling.BICUBIC)
    left, top = round((image.width - size) / 2), round((image.height - size) / 2)
    return np.asarray(image.crop((left, top, left + size, top + size)))


@pytest.mark.parametrize("number", range(5))
def test_transform_equals_the_official_one(number):
    frames = torch.from_numpy(ARRAYS[f"in{number}"]).permute(2, 0, 1)[None]
    found = normalize(resize_and_crop(frames, INFO["size"]))[0].numpy()
    assert np.abs(found[:, ::2, ::2] - ARRAYS[f"out{number}"]).max() <= 1e-6
    assert np.abs(found.mean(axis=(1, 2)) - ARRAYS[f"outmean{number}"]).max() <= 1e-5


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [(240, 320, 224), (101, 57, 32), (57, 101, 32), (9, 12, 56), (64, 64, 64), (65, 200, 33)],
)
def test_resize_and_crop_equals_pil_on_every_frame(height, width, size):
    frames = np.random.RandomState(0).randint(0, 256, (3, height, width, 3)).astype(np.uint8)
    found = resize_and_crop(torch.from_numpy(frames).permute(0, 3, 1, 2), size)
    assert found.dtype == torch.uint8 and found.shape == (3, 3, size, size)
    expected = np.stack([pil_transform(frame, size) for frame in frames])
    assert np.array_equal(found.permute(0, 2, 3, 1).numpy(), expected)


def test_normalize_works_per_channel_and_leaves_its_input_alone():
    frames = torch.tensor([0, 51, 255], dtype=torch.uint8).reshape(1, 1, 3, 1, 1)
    found = normalize(frames, mean=(0.0, 0.2, 0.5), std=(1.0, 0.5, 0.25))
    assert torch.allclose(found.flatten(), torch.tensor([0.0, 0.0, 2.0]), atol=1e-6)
    assert frames.dtype == torch.uint8 and frames.flatten().tolist() == [0, 51, 255]
