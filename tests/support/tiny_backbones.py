"""Tiny random dual encoders of every supported family, saved with a tokenizer and image settings as theirs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tiny_models import SIZE, WIDTH, WORDS, tiny_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import MODEL_MAPPING, AutoConfig, PreTrainedModel, PreTrainedTokenizerFast, Siglip2Tokenizer

FAMILIES = ("clip", "metaclip_2", "siglip", "siglip2", "align", "altclip", "chinese_clip", "vision-text-dual-encoder")
MEAN, STD = [0.1, 0.2, 0.3], [0.5, 0.6, 0.7]
POSITIONS = 16

_SPECIAL = {  # start, end, padding, unknown; their ids as in the published models where they count
    "metaclip_2": ("<s>", "</s>", "<pad>", "<unk>"),
    "siglip": ("", "</s>", "</s>", "<unk>"),
    "align": ("[CLS]", "[SEP]", "[PAD]", "[UNK]"),
    "altclip": ("<s>", "</s>", "<pad>", "<unk>"),
    "chinese_clip": ("[CLS]", "[SEP]", "[PAD]", "[UNK]"),
    "vision-text-dual-encoder": ("[CLS]", "[SEP]", "[PAD]", "[UNK]"),
}


def tiny_tokenizer_of(family: str) -> Any:
    """A tokenizer that knows `WORDS` and ends, starts and pads texts as the family does."""
    if family == "clip":
        return tiny_tokenizer()
    if family == "siglip2":
        return _siglip2_tokenizer()
    start, end, padding, unknown = _SPECIAL[family]
    vocabulary: dict[str, int] = {}
    for word in filter(None, (padding, start, end, unknown, *WORDS)):
        vocabulary.setdefault(word, len(vocabulary))
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=unknown))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    pieces = [(word, vocabulary[word]) for word in filter(None, (start, end))]
    backend.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}".strip(), pair=f"{start} $A {end} $B {end}".strip(), special_tokens=pieces
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=start or None,
        eos_token=end,
        pad_token=padding,
        unk_token=unknown,
        model_max_length=POSITIONS,
        model_input_names=["input_ids"] if family.startswith("siglip") else ["input_ids", "attention_mask"],
    )


def _siglip2_tokenizer() -> Siglip2Tokenizer:
    """Byte pairs with marked word starts; transformers takes no other class for this family."""
    vocabulary = {word: number for number, word in enumerate(("<pad>", "<eos>", "<bos>", "<unk>", "\u2581"))}
    merges = []
    for word in sorted(WORDS, key=len, reverse=True):
        for letter in word:
            vocabulary.setdefault(letter, len(vocabulary))
        left = word[0]
        for right in word[1:]:
            merges.append((left, right))
            left += right
            vocabulary.setdefault(left, len(vocabulary))
        merges.append(("\u2581", word))
        vocabulary.setdefault("\u2581" + word, len(vocabulary))
    return Siglip2Tokenizer(vocab=vocabulary, merges=merges, model_max_length=POSITIONS)


def tiny_config(family: str, **changes: Any) -> Any:
    """A configuration of the family: 32 pixels, width 32, two text layers, 16 tokens."""
    tokenizer = tiny_tokenizer_of(family)
    layers = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 4 * WIDTH}
    text: dict[str, Any] = {
        **layers,
        "hidden_size": WIDTH,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": POSITIONS + (2 if family == "altclip" else 0),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision: dict[str, Any] = {**layers, "hidden_size": WIDTH, "image_size": SIZE, "patch_size": 16}
    if family == "align":
        stages = {"in_channels": [32, 16], "out_channels": [16, 32], "kernel_sizes": [3, 3], "strides": [2, 2]}
        stages |= {"num_block_repeats": [1, 1], "expand_ratios": [1, 1], "depthwise_padding": []}
        vision = {
            "image_size": SIZE,
            "hidden_dim": WIDTH,
            "width_coefficient": 1.0,
            "depth_coefficient": 1.0,
        } | stages
    elif family == "siglip2":
        vision = {**layers, "hidden_size": WIDTH, "num_patches": 4, "patch_size": 16}
    elif family == "vision-text-dual-encoder":
        text["model_type"], vision["model_type"] = "bert", "clip_vision_model"
    if family.startswith("siglip"):
        text["projection_size"] = WIDTH
    elif family == "altclip":
        text["project_dim"] = WIDTH
    elif family in ("clip", "metaclip_2"):
        text["projection_dim"] = vision["projection_dim"] = WIDTH
    joint = {} if family.startswith("siglip") else {"projection_dim": WIDTH}
    return AutoConfig.for_model(family, text_config=text | changes, vision_config=vision, **joint)


def tiny_backbone(family: str, *, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A dual encoder with random weights, spread out so that its parts matter."""
    torch.manual_seed(seed)
    config = tiny_config(family, **changes)
    model = MODEL_MAPPING[type(config)](config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
            elif name in ("logit_bias", "temperature"):
                parameter.fill_(-2.0 if name == "logit_bias" else 0.5)
        if family == "chinese_clip":  # transformers sets it to zero whenever it loads one; it is never read
            model.text_model.embeddings.word_embeddings.weight[config.text_config.pad_token_id] = 0
    return model.eval()


def image_settings_of(family: str) -> dict[str, Any]:
    """Image settings with the mean, deviation and manner of the family."""
    square = {"height": SIZE, "width": SIZE}
    shared = {"image_mean": MEAN, "image_std": STD, "do_normalize": True, "do_rescale": True, "do_resize": True}
    if family.startswith("siglip") or family == "chinese_clip":
        return {**shared, "size": square, "resample": 2 if family == "siglip2" else 3, "do_center_crop": False}
    if family == "align":
        larger = {"height": SIZE + 8, "width": SIZE + 8}
        return {**shared, "size": larger, "crop_size": square, "do_center_crop": True, "resample": 2}
    return {**shared, "size": {"shortest_edge": SIZE}, "crop_size": square, "do_center_crop": True, "resample": 3}


def save_backbone(family: str, folder: Path, *, seed: int = 0) -> Path:
    """Save a tiny dual encoder with its tokenizer and image settings, as its authors do. Returns the folder."""
    tiny_backbone(family, seed=seed).save_pretrained(folder)
    tiny_tokenizer_of(family).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(image_settings_of(family)), encoding="utf-8")
    return folder
