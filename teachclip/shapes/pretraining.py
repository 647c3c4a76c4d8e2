"""Pre-training of a tiny CLIP on single frames of the Shapes dataset and their captions.

It takes the place of the CLIP that the papers' teachers and students start from: it recognises what is in a frame and
knows nothing of videos. The loss is CLIP's (Radford et al., ICML 2021, section 2.3).
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor
from tqdm import tqdm
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from teachclip.data.video.transform import CLIP_MEAN, CLIP_STD, normalize
from teachclip.errors import DataError, TrainingError
from teachclip.shapes.captions import describe_event, vocabulary
from teachclip.shapes.rendering import render_single_frames
from teachclip.shapes.scenes import FRAME_SIZE, Purpose, stream

START, END = "<|startoftext|>", "<|endoftext|>"
MAX_TOKENS = 32
"""Rows of the text position table: enough for the longest caption, and for frame positions copied from it."""


@dataclass(frozen=True)
class PretrainingSettings:
    """Everything that the weights of the tiny CLIP depend on."""

    seed: int = 0
    frames: int = 12_000
    steps: int = 700
    batch_size: int = 128
    lr: float = 1e-3
    weight_decay: float = 0.05
    warmup: float = 0.1
    border_share: float = 0.3
    caption_drop: float = 0.15
    width: int = 128
    vision_layers: int = 3
    text_layers: int = 2

    def __post_init__(self) -> None:
        if not 2 <= self.batch_size <= self.frames:
            raise DataError(f"batch_size is {self.batch_size}; allowed: 2 to the number of frames, {self.frames}")
        if self.steps < 1:
            raise DataError(f"steps is {self.steps}; allowed: 1 or more")


def build_tokenizer(words: Iterable[str]) -> CLIPTokenizer:
    """Build a CLIP tokenizer to which each of `words` (lower-case letters) is one token.

    As in CLIP's own vocabulary, the first 512 tokens are the bytes inside and at the end of a word, so that any text
    has tokens: an unknown word is spelled. The special tokens come last, the end of text with the highest id.
    """
    alphabet = sorted(_byte_symbols())
    tokens = alphabet + [symbol + "</w>" for symbol in alphabet]
    spelled = [(*word[:-1], word[-1] + "</w>") for word in sorted(set(words))]
    merges = []
    while pairs := Counter(pair for word in spelled for pair in pairwise(word)):
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        tokens.append("".join(best))
        spelled = [_merge(word, best) for word in spelled]
    vocab = {token: number for number, token in enumerate([*tokens, START, END])}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=MAX_TOKENS)


def _byte_symbols() -> set[str]:
    """Return the characters that byte-level tokenizers write for the 256 bytes."""
    return set(ByteLevel.alphabet())


def _merge(word: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    """Replace every occurrence of `pair` in a spelled word by its join, from left to right."""
    result: list[str] = []
    for symbol in word:
        if result and (result[-1], symbol) == pair:
            result[-1] += symbol
        else:
            result.append(symbol)
    return tuple(result)


def build_tiny_clip(settings: PretrainingSettings, tokenizer: CLIPTokenizer) -> CLIPModel:
    """Build an untrained CLIP of 64-pixel frames, drawn from torch's global generator."""
    heads = max(1, settings.width // 64)  # the rule by which official state dicts are read
    shared = {
        "hidden_size": settings.width,
        "intermediate_size": 4 * settings.width,
        "num_attention_heads": heads,
        "projection_dim": settings.width,
        "hidden_act": "quick_gelu",
    }
    text = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": MAX_TOKENS,
        "num_hidden_layers": settings.text_layers,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        **shared,
    }
    vision = {"image_size": FRAME_SIZE, "patch_size": 16, "num_hidden_layers": settings.vision_layers, **shared}
    clip = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=settings.width))
    with torch.no_grad():
        # with the usual .02 of patches the model does not learn in time where things are; text positions as
        # large as that drown the words
        clip.vision_model.embeddings.position_embedding.weight.normal_(std=0.75)
        clip.text_model.embeddings.position_embedding.weight.normal_(std=0.06)
        clip.text_model.embeddings.token_embedding.weight.normal_(std=0.06)
    return clip


class SingleFrames:
    """Frames with one event each and a caption for each: what the tiny CLIP is trained or tested on."""

    def __init__(self, settings: PretrainingSettings, tokenizer: CLIPTokenizer, *, count: int, index: int) -> None:
        rng = stream(Purpose.PRETRAINING, settings.seed, index)
        frames, events = render_single_frames(count, rng, settings.border_share)
        self.pixels = torch.from_numpy(frames).permute(0, 3, 1, 2)
        texts = [describe_event(event, rng, settings.caption_drop).text for event in events]
        encoded = tokenizer(texts, padding=True, return_tensors="pt")
        self.input_ids: Tensor = encoded["input_ids"]

    def __len__(self) -> int:
        return len(self.pixels)

    def batch(self, rows: Tensor) -> dict[str, Tensor]:
        """Return CLIP's inputs for some rows: `pixel_values` (n, 3, size, size) and `input_ids` (n, tokens)."""
        return {"pixel_values": normalize(self.pixels[rows]), "input_ids": self.input_ids[rows]}


def contrastive_step(clip: CLIPModel, batch: dict[str, Tensor]) -> tuple[Tensor, float]:
    """Return CLIP's loss on a batch of pairs and the share of texts that score their own frame highest."""
    logits = clip(**batch).logits_per_text
    target = torch.arange(len(logits))
    loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    return loss, (logits.detach().argmax(dim=1) == target).float().mean().item()


def one_cycle(step: int, steps: int, warmup: float) -> float:
    """Return the factor of the learning rate at `step`: linear to 1 over the first `warmup`, then a half cosine."""
    progress = (step + 1) / steps
    if progress < warmup:
        return progress / warmup
    return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


def train(clip: CLIPModel, data: SingleFrames, settings: PretrainingSettings, *, progress: bool = True) -> float:
    """Train in place; returns the mean share of texts that scored their own frame highest in the last tenth."""
    optimizer = torch.optim.AdamW(
        clip.parameters(), lr=settings.lr, betas=(0.9, 0.98), weight_decay=settings.weight_decay
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: one_cycle(step, settings.steps, settings.warmup)
    )
    order = torch.Generator().manual_seed(settings.seed)
    rows = torch.empty(0, dtype=torch.long)
    accuracies = []
    clip.train()
    bar = tqdm(range(settings.steps), desc="pre-train tiny CLIP", unit="step", disable=not progress)
    for step in bar:
        if len(rows) < settings.batch_size:
            rows = torch.randperm(len(data), generator=order)
        taken, rows = rows[: settings.batch_size], rows[settings.batch_size :]
        loss, accuracy = contrastive_step(clip, data.batch(taken))
        if not torch.isfinite(loss):
            raise TrainingError(f"pre-training: the loss is {loss.item()} at step {step}")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(clip.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            clip.logit_scale.clamp_(max=math.log(100))
        accuracies.append(accuracy)
        bar.set_postfix(loss=f"{loss.item():.2f}", accuracy=f"{accuracy:.2f}", refresh=False)
    clip.eval()
    return float(np.mean(accuracies[-max(1, settings.steps // 10) :]))


@torch.no_grad()
def frame_recall_at_1(clip: CLIPModel, data: SingleFrames) -> float:
    """Return the text-to-frame recall at 1, in percent: each caption retrieves its own among all frames."""
    batch = data.batch(torch.arange(len(data)))
    _, share = contrastive_step(clip, batch)
    return 100 * share


@torch.no_grad()
def silence_unseen_tokens(clip: CLIPModel, seen: Sequence[int]) -> None:
    """Set the embeddings of tokens that no caption contained to zero, as they still have their random initial values.

    An unknown word at the end of a text then changes little. Before other words it still shifts them to positions
    where the model has not seen them, which degrades the text's feature.
    """
    table = clip.text_model.embeddings.token_embedding.weight
    unseen = torch.ones(len(table), dtype=torch.bool)
    unseen[list(seen)] = False
    table[unseen] = 0


def pretrain_clip(folder: Path, settings: PretrainingSettings, *, progress: bool = True) -> dict[str, float]:
    """Pre-train a tiny CLIP and write it, its tokenizer and its image settings into `folder` for transformers.

    Deterministic for given settings on one machine and number of threads. Returns its recall on 500 fresh frames
    ("frame_recall_at_1", percent) and the share of texts that scored their own frame highest at the end of training
    ("accuracy").
    """
    tokenizer = build_tokenizer(vocabulary())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        clip = build_tiny_clip(settings, tokenizer)
        data = SingleFrames(settings, tokenizer, count=settings.frames, index=0)
        accuracy = train(clip, data, settings, progress=progress)
    silence_unseen_tokens(clip, data.input_ids.unique().tolist())
    fresh = SingleFrames(settings, tokenizer, count=500, index=1)
    clip.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(image_settings(), indent=1))
    return {"accuracy": accuracy, "frame_recall_at_1": frame_recall_at_1(clip, fresh)}


def image_settings() -> dict[str, object]:
    """Return the settings of the image processor, in transformers' own terms."""
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": FRAME_SIZE},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": FRAME_SIZE, "width": FRAME_SIZE},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(CLIP_MEAN),
        "image_std": list(CLIP_STD),
    }
