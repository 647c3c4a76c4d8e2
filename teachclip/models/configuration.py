"""The student's configuration, saved as `config.json` beside its weights."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig, CLIPConfig, PreTrainedConfig
from transformers.activations import ACT2FN

from teachclip.errors import CheckpointError
from teachclip.models.adapters import ADAPTER_PLACES
from teachclip.models.families import family_of, joint_width, text_positions
from teachclip.models.frame_attention import ATTENTION_KINDS
from teachclip.models.student_folder import AUTO_MAP, write_code_file
from teachclip.registry import closest

log = logging.getLogger(__name__)

POOLINGS = ("attention", "mean")
ATTENTION_INPUTS = ("after", "before")
FIELDS = (
    *("backbone_config", "temporal_layers", "temporal_heads", "temporal_activation", "max_frames", "pooling"),
    *("pooling_temperature", "mask_padding", "attention", "attention_input", "attention_rescale"),
    *("adapters", "adapter_width", "matryoshka", "vectors"),
)
_FROM_TRANSFORMERS = {
    *PreTrainedConfig().to_dict(),
    *("model_type", "dtype", "torch_dtype", "name_or_path", "attn_implementation", "auto_map", "num_labels"),
    *("id2label", "label2id", "output_attentions", "output_hidden_states", "quantization_config"),
    *("use_cache", "torchscript", "pad_token_id", "bos_token_id", "eos_token_id", "tie_word_embeddings"),
}
_is_saved: ContextVar[bool] = ContextVar("_is_saved", default=False)
"""Whether the values are of a saved configuration, in which transformers, its Trainer and others may write keys."""


class StudentConfig(PreTrainedConfig):
    """Architecture of a student.

    backbone_config: of the dual encoder for frames and texts, of any supported family; None: CLIP's default.
    temporal_layers: blocks of the temporal transformer; 0 for none.
    temporal_heads: attention heads of the blocks; None: joint width // 64.
    temporal_activation: activation of the blocks, by its name in transformers.
    max_frames: rows of the frame position embedding, the most frames of a video; None: the number of text positions.
    pooling: `attention` weighs frames by frame attention (TeachCLIP), `mean` weighs them equally (CLIP4Clip).
    pooling_temperature: divisor of the attention scores before pooling.
    mask_padding: whether padded frames get weight zero; False reproduces the official code (whose mean pooling is
        always masked).
    attention, attention_rescale: `kind` and `rescale` of `FrameAttention`.
    attention_input: whether the attention reads the frames `after` the temporal transformer, as published, or
        `before` it.
    adapters: places of residual adapters, of frame, pooled, text; none as published; see `ResidualAdapter`.
    adapter_width: their inner width; None: four times the joint width.
    matryoshka: first numbers of an embedding that are trained to be embeddings by themselves, renormalised; none as
        published (Matryoshka representations, Kusupati et al. 2022).
    vectors: of a video; 1 as published. A text is compared with the nearest one. Saved only if there are more.

    Raises CheckpointError for invalid values, and for unknown names when a student is built. A saved configuration
    may hold names that others wrote; one that looks like a misspelled name of ours is logged.
    """

    model_type = "teachclip"
    sub_configs = {"backbone_config": AutoConfig}  # noqa: RUF012 (transformers reads it from the class)

    def __init__(
        self,
        backbone_config: PreTrainedConfig | dict[str, Any] | None = None,
        temporal_layers: int = 4,
        temporal_heads: int | None = None,
        temporal_activation: str = "quick_gelu",
        max_frames: int | None = None,
        pooling: str = "attention",
        pooling_temperature: float = 0.1,
        mask_padding: bool = True,
        attention: str = "softmax",
        attention_input: str = "after",
        attention_rescale: bool = False,
        adapters: Sequence[str] = (),
        adapter_width: int | None = None,
        matryoshka: Sequence[int] = (),
        vectors: int = 1,
        **kwargs: Any,
    ) -> None:
        unknown = [key for key in kwargs if key not in _FROM_TRANSFORMERS and not key.startswith("_")]
        if _is_saved.get():
            for key in unknown:
                if hint := closest(key, FIELDS):
                    log.warning("config.json: %s is unknown and has no effect%s", key, hint)
        elif unknown:
            raise CheckpointError(
                f"StudentConfig: {unknown[0]} is unknown; known: {', '.join(FIELDS)}{closest(unknown[0], FIELDS)}"
            )
        self.backbone_config = _backbone_config(backbone_config)
        self.temporal_layers = _integer("temporal_layers", temporal_layers, least=0)
        attention_heads = max(1, self.width // 64) if temporal_heads is None else temporal_heads
        self.temporal_heads = _integer("temporal_heads", attention_heads, least=1)
        if self.width % self.temporal_heads:
            raise CheckpointError(
                f"StudentConfig: temporal_heads {self.temporal_heads} does not divide the width {self.width}"
            )
        if temporal_activation not in ACT2FN:
            raise CheckpointError(
                f"StudentConfig: temporal_activation {temporal_activation!r} is unknown to transformers"
            )
        self.temporal_activation = temporal_activation
        positions = text_positions(self.backbone_config)
        self.max_frames = _integer("max_frames", positions if max_frames is None else max_frames, least=1)
        self.pooling = _one_of("pooling", pooling, POOLINGS)
        self.pooling_temperature = _positive("pooling_temperature", pooling_temperature)
        self.mask_padding = _boolean("mask_padding", mask_padding)
        self.attention = _one_of("attention", attention, ATTENTION_KINDS)
        self.attention_input = _one_of("attention_input", attention_input, ATTENTION_INPUTS)
        self.attention_rescale = _boolean("attention_rescale", attention_rescale)
        self.adapters = _places(adapters)
        self.adapter_width = _integer(
            "adapter_width", 4 * self.width if adapter_width is None else adapter_width, least=1
        )
        self.matryoshka = _prefixes(matryoshka, self.width)
        self.vectors = _vectors(vectors, pooling)
        super().__init__(**{**kwargs, "auto_map": dict(AUTO_MAP)})
        _check_outputs(self)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Return the configuration that was saved as `config_dict`; see transformers."""
        token = _is_saved.set(True)
        try:
            return super().from_dict(config_dict, **kwargs)
        finally:
            _is_saved.reset(token)

    def to_dict(self) -> dict[str, Any]:
        """Return the values as they are saved, without the folder that the backbone was loaded from."""
        values = super().to_dict()
        if values.get("vectors") == 1:  # as published: saved students and what is computed with them stay the same
            del values["vectors"]
        for part in (values["backbone_config"], *values["backbone_config"].values()):
            if isinstance(part, dict):
                part.pop("_name_or_path", None)
        return values

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoConfig") -> None:
        """Do nothing: transformers would copy this module into saved folders, which name the package instead."""

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], push_to_hub: bool = False, **kwargs: Any
    ) -> Any:
        """Save `config.json`, and the module that its `auto_map` names."""
        if not os.path.isfile(save_directory):
            os.makedirs(save_directory, exist_ok=True)
            write_code_file(save_directory)
        return super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)

    @property
    def width(self) -> int:
        """The width of the joint space of texts and frames."""
        return joint_width(self.backbone_config)


def _backbone_config(config: PreTrainedConfig | dict[str, Any] | None) -> PreTrainedConfig:
    """Return the configuration of a dual encoder from a configuration, its values as a dict, or None for CLIP's."""
    if config is None:
        return CLIPConfig()
    if isinstance(config, dict):
        kind = config.get("model_type", "")
        if kind not in CONFIG_MAPPING:
            raise CheckpointError(f"StudentConfig: backbone_config has the unknown model_type {kind!r}")
        config = CONFIG_MAPPING[kind](**{key: value for key, value in config.items() if key != "model_type"})
    family_of(config, source="StudentConfig: backbone_config")
    return config


def _check_outputs(config: PreTrainedConfig) -> None:
    """Raise CheckpointError for what transformers would only stumble over when the model runs."""
    for name, part in _parts(config):
        for key in ("output_hidden_states", "output_attentions"):
            _boolean(f"{name}{key}", getattr(part, key, False))


def _parts(config: PreTrainedConfig) -> Iterator[tuple[str, PreTrainedConfig]]:
    """Yield a configuration and those in it, with what stands before their keys."""
    yield "", config
    for name, value in vars(config).items():
        if isinstance(value, PreTrainedConfig):
            yield from ((f"{name}.{inner}", part) for inner, part in _parts(value))


def _positive(name: str, value: float) -> float:
    if isinstance(value, bool) or not 0 < value < float("inf"):
        raise CheckpointError(f"StudentConfig: {name} is {value}, expected more than 0")
    return float(value)


def _integer(name: str, value: int, *, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise CheckpointError(f"StudentConfig: {name} is {value!r}, expected an integer of at least {least}")
    return value


def _places(adapters: Sequence[str]) -> list[str]:
    places = [_one_of("adapters", place, ADAPTER_PLACES) for place in adapters]
    if len(set(places)) < len(places):
        raise CheckpointError(f"StudentConfig: adapters names {max(places, key=places.count)} twice")
    return places


def _vectors(count: int, pooling: str) -> int:
    if _integer("vectors", count, least=1) > 1 and pooling == "mean":
        raise CheckpointError(f"StudentConfig: vectors is {count}, but mean pooling gives one; allowed: 1")
    return count


def _prefixes(widths: Sequence[int], width: int) -> list[int]:
    prefixes = [_integer("matryoshka", each, least=1) for each in widths]
    if prefixes and max(prefixes) > width:
        raise CheckpointError(f"StudentConfig: matryoshka names {max(prefixes)}, embeddings have {width} numbers")
    return prefixes


def _one_of(name: str, value: str, allowed: Sequence[str]) -> str:
    if value not in allowed:
        raise CheckpointError(f"StudentConfig: {name} is {value!r}, allowed: {', '.join(allowed)}")
    return value


def _boolean(name: str, value: bool) -> bool:
    if not isinstance(value, bool):
        raise CheckpointError(f"StudentConfig: {name} is {value!r}, expected true or false")
    return value
