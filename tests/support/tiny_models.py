"""A tiny CLIP, tokenizer and student for tests."""

from __future__ import annotations

import torch
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from teachclip.data.video.sampling import FrameSampling
from teachclip.models.processing import StudentProcessor
from teachclip.models.student import StudentModel

WORDS = ("a", "red", "blue", "circle", "square", "over", "sea")
WIDTH = 32
SIZE = 32
FRAMES = 4


def tiny_tokenizer() -> CLIPTokenizer:
    """A byte-pair tokenizer that knows `WORDS`, with CLIP's special tokens at the ends of the vocabulary."""
    vocabulary, merges = {"<|startoftext|>": 0}, []
    for word in WORDS:
        pieces = [*word[:-1], word[-1] + "</w>"]
        for piece in pieces:
            vocabulary.setdefault(piece, len(vocabulary))
        left = pieces[0]
        for right in pieces[1:]:
            merges.append((left, right))
            left += right
            vocabulary.setdefault(left, len(vocabulary))
    vocabulary["<|endoftext|>"] = len(vocabulary)
    return CLIPTokenizer(vocab=vocabulary, merges=merges)


def tiny_clip(
    *, text_layers: int = 2, vision_layers: int = 2, text_width: int = WIDTH, heads: int = 2, seed: int = 0
) -> CLIPModel:
    """A CLIP of 32 pixels."""
    last = len(tiny_tokenizer()) - 1
    shared = {"num_attention_heads": heads, "projection_dim": WIDTH}
    torch.manual_seed(seed)
    return CLIPModel(
        CLIPConfig(
            text_config={
                "vocab_size": last + 1,
                "hidden_size": text_width,
                "intermediate_size": 4 * text_width,
                "num_hidden_layers": text_layers,
                "max_position_embeddings": 16,
                "bos_token_id": 0,
                "eos_token_id": last,
                "pad_token_id": last,
                **shared,
            },
            vision_config={
                "hidden_size": WIDTH,
                "intermediate_size": 64,
                "num_hidden_layers": vision_layers,
                "image_size": SIZE,
                "patch_size": 16,
                **shared,
            },
            projection_dim=WIDTH,
        )
    ).eval()


def tiny_student(*, seed: int = 0, heads: int = 2, layers: int = 2, **options: object) -> StudentModel:
    """A student on the tiny CLIP, with its processor; its weights are spread out so that outputs differ."""
    clip = tiny_clip(text_layers=layers, vision_layers=layers, heads=heads, seed=seed)
    student = StudentModel.from_backbone(clip, **options)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            if name.startswith(("temporal", "aggregation", "frame_position")) and parameter.ndim > 1:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    student.processor = tiny_processor(frame_sampling=FrameSampling("intervals", FRAMES))
    return student


def tiny_processor(**options: object) -> StudentProcessor:
    """A processor of the tiny CLIP; `options` replace its settings."""
    settings = {"frame_sampling": FrameSampling("per_second", FRAMES), "size": SIZE, "max_tokens": 10, **options}
    return StudentProcessor(tiny_tokenizer(), **settings)  # type: ignore[arg-type]


def tiny_batch(*, videos: int = 3, texts: int = 3, frames: int = FRAMES, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random pixels, ids that end in the end-of-text token, and masks with some padding."""
    generator = torch.Generator().manual_seed(seed)
    last = len(tiny_tokenizer()) - 1
    ids = torch.randint(1, last, (texts, 7), generator=generator)
    ids[:, 0], ids[:, -1] = 0, last
    mask = torch.ones(videos, frames, dtype=torch.bool)
    mask[1:, -1] = False
    pixels = torch.randn(videos, frames, 3, SIZE, SIZE, generator=generator)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": pixels * mask[:, :, None, None, None],
        "frame_mask": mask,
    }
