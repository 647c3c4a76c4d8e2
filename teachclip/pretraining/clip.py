"""Pre-training of a tiny CLIP on single frames and their captions.

It takes the place of the CLIP that the papers' teachers and students start from: it recognises what is in a frame and
knows nothing of videos. The loss is CLIP's (Radford et al., ICML 2021, section 2.3).
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from teachclip.data.video.transform import CLIP_MEAN, CLIP_STD, normalize
from teachclip.errors import DataError, TrainingError

FRESH = 500
"""Most frames that the recall is measured on."""


@dataclass(frozen=True)
class ClipSettings:
    """What the weights of the tiny CLIP depend on besides frames and captions."""

    seed: int = 0
    steps: int = 700
    batch_size: int = 128
    lr: float = 1e-3
    weight_decay: float = 0.05
    warmup: float = 0.1
    width: int = 128
    vision_layers: int = 3
    text_layers: int = 2
    patch_size: int = 16

    def __post_init__(self) -> None:
        at_least_1 = dict.fromkeys(("steps", "vision_layers", "text_layers", "patch_size"), 1)
        for name, least in {"batch_size": 2, **at_least_1, "seed": 0}.items():
            if getattr(self, name) < least:
                raise DataError(f"{name} is {getattr(self, name)}; allowed: {least} or more")
        if not 0 < self.lr < math.inf:
            raise DataError(f"lr is {self.lr}; allowed: more than 0")
        if self.width < 64 or self.width % 64:
            raise DataError(f"width is {self.width}; allowed: multiples of 64, the width of an attention head")


class SingleFrames:
    """Frames and a caption of each: what the tiny CLIP is trained or tested on.

    `pixels`: uint8 (n, 3, size, size). `texts`: n captions; longer ones are cut to the tokenizer's tokens. `groups`:
    (n,) numbers of the videos that the frames are from, or None if each frame stands by itself. Frames of one video
    are not told apart by its captions, so an epoch shows one frame of each. Raises DataError if numbers differ.
    """

    def __init__(
        self, pixels: Tensor, texts: Sequence[str], tokenizer: CLIPTokenizer, groups: Sequence[int] | None = None
    ) -> None:
        if not len(pixels) == len(texts) == len(pixels if groups is None else groups):
            raise DataError(f"{len(pixels)} frames have {len(texts)} captions; each needs one")
        self.pixels = pixels
        ids: Tensor = tokenizer(list(texts), padding=True, return_tensors="pt")["input_ids"]
        if ids.shape[1] > tokenizer.model_max_length:  # asking the tokenizer to cut would change what it saves
            ids = ids[:, : tokenizer.model_max_length].clone()
            ids[:, -1] = tokenizer.eos_token_id  # which also pads
        self.input_ids = ids
        self.rows_of_groups = None
        if groups is not None:
            numbers = np.asarray(groups)
            self.rows_of_groups = [np.flatnonzero(numbers == number) for number in np.unique(numbers)]

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def different(self) -> int:
        """How many frames an epoch shows."""
        return len(self) if self.rows_of_groups is None else len(self.rows_of_groups)

    def epoch(self, generator: torch.Generator) -> Tensor:
        """Return the rows of one epoch in random order."""
        order = torch.randperm(self.different, generator=generator)
        if self.rows_of_groups is None:
            return order
        draws = torch.rand(self.different, generator=generator).tolist()
        rows = [self.rows_of_groups[group] for group in order.tolist()]
        return torch.tensor([int(found[int(draw * len(found))]) for found, draw in zip(rows, draws, strict=True)])

    def batch(self, rows: Tensor) -> dict[str, Tensor]:
        """Return CLIP's inputs for some rows: `pixel_values` (n, 3, size, size) and `input_ids` (n, tokens)."""
        return {"pixel_values": normalize(self.pixels[rows]), "input_ids": self.input_ids[rows]}


def build_tiny_clip(settings: ClipSettings, tokenizer: CLIPTokenizer, size: int) -> CLIPModel:
    """Build an untrained CLIP of frames of `size` pixels, drawn from torch's global generator.

    The text positions are as many as the tokenizer allows tokens.
    """
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
        "max_position_embeddings": tokenizer.model_max_length,
        "num_hidden_layers": settings.text_layers,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        **shared,
    }
    vision = {
        "image_size": size,
        "patch_size": settings.patch_size,
        "num_hidden_layers": settings.vision_layers,
        **shared,
    }
    clip = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=settings.width))
    with torch.no_grad():
        # with the usual .02 of patches the model does not learn in time where things are; text positions as
        # large as that drown the words
        clip.vision_model.embeddings.position_embedding.weight.normal_(std=0.75)
        clip.text_model.embeddings.position_embedding.weight.normal_(std=0.06)
        clip.text_model.embeddings.token_embedding.weight.normal_(std=0.06)
    return clip


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


def train(clip: CLIPModel, data: SingleFrames, settings: ClipSettings, *, progress: bool = True) -> float:
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
            rows = data.epoch(order)
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


def pretrain_clip(
    folder: Path,
    data: SingleFrames,
    fresh: SingleFrames | None,
    tokenizer: CLIPTokenizer,
    settings: ClipSettings,
    *,
    progress: bool = True,
) -> dict[str, float]:
    """Pre-train a tiny CLIP and write it, its tokenizer and its image settings into `folder` for transformers.

    Deterministic for given frames, captions and settings on one machine and number of threads. Returns the share of
    texts that scored their own frame highest at the end of training ("accuracy"), and its recall on the frames of
    `fresh`, which it was not trained on ("frame_recall_at_1", percent). Raises DataError if there are fewer frames
    than a batch has, or patches do not fill them.
    """
    size = data.pixels.shape[-1]
    if data.different < settings.batch_size:
        raise DataError(
            f"batch_size is {settings.batch_size}, but there are {data.different} frames that captions tell apart; "
            "allowed: as many or fewer"
        )
    if size % settings.patch_size:
        raise DataError(f"patch_size is {settings.patch_size}; allowed: what divides the frames' size, {size}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        clip = build_tiny_clip(settings, tokenizer, size)
        results = {"accuracy": train(clip, data, settings, progress=progress)}
    silence_unseen_tokens(clip, data.input_ids.unique().tolist())
    clip.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(image_settings(size), indent=1))
    if fresh is not None:
        results["frame_recall_at_1"] = frame_recall_at_1(clip, fresh)
    return results


def image_settings(size: int) -> dict[str, object]:
    """Return the settings of the image processor, in transformers' own terms."""
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": size},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(CLIP_MEAN),
        "image_std": list(CLIP_STD),
    }
