"""Preprocessing of texts and frames for a model, read from the files next to its weights."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from transformers import AutoTokenizer, PreTrainedConfig
from transformers.utils import cached_file

from teachclip.data.video.transform import CLIP_MEAN, CLIP_STD, FrameTransform
from teachclip.errors import CheckpointError
from teachclip.models.checkpoints import first_line
from teachclip.models.families import full_length, image_size, takes_any_size, text_positions
from teachclip.store.files import read_json

log = logging.getLogger(__name__)

IMAGE_FILES = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")
_RESAMPLE: dict[Any, Literal["bicubic", "bilinear"]] = {2: "bilinear", 3: "bicubic"}  # PIL's numbers


@dataclass(frozen=True)
class Preprocessing:
    """How captions become tokens and decoded frames become pixels.

    tokenizer: a transformers tokenizer.
    max_tokens: longer texts are truncated; includes special tokens.
    pad_to: every text is padded to this many tokens; None: to the longest of its batch.
    pad_id: the padding token.
    size: height and width of frames in pixels.
    mean, std: per channel, of pixels in 0..1.
    resize, resample, scale_to: see `FrameTransform`.
    """

    tokenizer: Any
    max_tokens: int
    pad_to: int | None = None
    pad_id: int = 0
    size: int = 224
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD
    resize: Literal["crop", "stretch"] = "crop"
    resample: Literal["bicubic", "bilinear"] = "bicubic"
    scale_to: int | None = None

    @property
    def transform(self) -> FrameTransform:
        """The transform from decoded frames to squares of `size`."""
        return FrameTransform(self.size, self.resize, self.resample, self.scale_to)

    def describe(self) -> dict[str, Any]:
        """Return all but the tokenizer as plain values, for fingerprints and logs."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "tokenizer"}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def load_preprocessing(
    source: Any,
    config: PreTrainedConfig,
    *,
    max_tokens: int | None = None,
    size: int | None = None,
    trust_remote_code: bool = False,
    **hub: Any,
) -> Preprocessing:
    """Read the tokenizer and image settings of a dual encoder from its folder or hub id.

    `config`: of the model. `max_tokens`: tokens of the longest text, at most what model and tokenizer accept; None:
    that limit. `size`: pixels; None: according to the files. Without image settings those of OpenAI are used, at the
    size of the model. Captions are padded on the right, as in the training of all these models.
    `trust_remote_code`, `hub`: see `load_tokenizer`.

    Raises CheckpointError if there is no tokenizer or if a setting is not supported.
    """
    folder = Path(source).parent if Path(source).suffix == ".json" else source
    tokenizer = load_tokenizer(folder, trust_remote_code=trust_remote_code, **hub)
    limit = min(text_positions(config), int(tokenizer.model_max_length))
    if max_tokens is not None and max_tokens > limit:
        log.info("%s: texts are truncated to %d tokens, not %d: the model accepts no more", source, limit, max_tokens)
    settings = read_image_settings(folder, **hub)
    if not settings and config.model_type != "clip":
        log.warning("%s has no image settings: frames are preprocessed as for OpenAI's CLIP", source)
    image = image_settings(settings, image_size(config), source=str(source))
    if size is not None and size != image["size"]:
        image |= {"size": size, "scale_to": None}
    if image["size"] != image_size(config) and not takes_any_size(config):
        raise CheckpointError(
            f"{source}: images of {image['size']} pixels are configured, the weights are for {image_size(config)}"
        )
    return Preprocessing(
        tokenizer,
        min(max_tokens or limit, limit),
        pad_to=full_length(config),
        # CLIP never reads the padding of a text; X-CLIP does, and its official code pads with zeros.
        pad_id=0 if config.model_type == "clip" else padding_token(tokenizer, source=str(source)),
        **image,
    )


def load_tokenizer(source: Any, *, trust_remote_code: bool = False, **hub: Any) -> Any:
    """Load the tokenizer of a folder or hub id. Raises CheckpointError if there is none.

    `trust_remote_code`: run the Python code that the tokenizer brings, if it brings any; otherwise it is refused.
    `hub`: where in a hub repository, as in transformers: `revision`, `subfolder`, `cache_dir`, `token`, ...
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code, **hub)
        names = {"tokenizer.json", *tokenizer.vocab_files_names.values()}
        found = [cached_file(source, name, **hub, _raise_exceptions_for_missing_entries=False) for name in names]
    except Exception as error:  # the tokenizers library raises nothing more exact
        raise CheckpointError(f"{source}: its tokenizer cannot be loaded: {first_line(error)}") from error
    if not any(found):  # transformers then creates a tokenizer with an empty vocabulary
        raise CheckpointError(f"{source}: its tokenizer cannot be loaded: it has none of {', '.join(sorted(names))}")
    tokenizer.padding_side = "right"
    return tokenizer


def padding_token(tokenizer: Any, *, source: str) -> int:
    """Return the id of a tokenizer's padding token. Raises CheckpointError if it has none."""
    if tokenizer.pad_token_id is None:
        raise CheckpointError(f"{source}: the tokenizer has no padding token, which the text encoder needs")
    return int(tokenizer.pad_token_id)


def read_image_settings(source: Any, *, part: str = "image_processor", **hub: Any) -> dict[str, Any]:
    """Return the settings of an image processor saved in a folder or hub repository; empty if there are none.

    `part`: which one, if a file contains several (`image_processor`, `video_processor`). `hub`: as of
    `load_tokenizer`. Raises CheckpointError if a
    file cannot be read.
    """
    for name in IMAGE_FILES:
        try:
            file = cached_file(source, name, **hub, _raise_exceptions_for_missing_entries=False)
            content = read_json(Path(file)) if file else {}
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{source}: {name} cannot be read: {first_line(error)}") from error
        settings = content.get(part, content) if isinstance(content, Mapping) else {}
        if "image_mean" in settings or "size" in settings:
            return dict(settings)
    return {}


def image_settings(settings: Mapping[str, Any], default_size: int, *, source: str) -> dict[str, Any]:
    """Convert the settings of an image processor to fields of `Preprocessing`.

    `size: {shortest_edge}` keeps proportions, `{height, width}` stretches, as does ALIGN before it crops. A processor
    that keeps proportions and does not crop gives images of many shapes; here they are cropped, as the frames of a
    batch have one shape. All operations on values after resizing amount to one mean and one standard deviation per
    channel. Raises CheckpointError for rectangles and for other filters.
    """
    if not settings:
        return {"size": default_size}
    scaled, keeps_proportions = _scale(settings.get("size", default_size), source)
    cropped = settings.get("crop_size") if settings.get("do_center_crop", keeps_proportions) else None
    size = _side(cropped, source) if cropped is not None else scaled
    if scaled < size:
        raise CheckpointError(
            f"{source}: images are scaled to {scaled} pixels and cropped to {size}, which is larger"
        )
    filter_number = settings.get("resample", 3)
    if filter_number not in _RESAMPLE:
        raise CheckpointError(f"{source}: resample is {filter_number}, supported: 2 (bilinear), 3 (bicubic)")
    mean, std = _affine(settings)
    return {
        "size": size,
        "scale_to": scaled if scaled != size else None,
        "resize": "crop" if keeps_proportions else "stretch",
        "resample": _RESAMPLE[filter_number],
        "mean": mean,
        "std": std,
    }


def _scale(size: Any, source: str) -> tuple[int, bool]:
    """Return the pixels that images are scaled to, and whether proportions are kept."""
    if isinstance(size, Mapping) and "shortest_edge" in size:
        return int(size["shortest_edge"]), True
    # Old CLIP settings have a bare number.
    return _side(size, source), not isinstance(size, Mapping)


def _side(size: Any, source: str) -> int:
    if isinstance(size, int):
        return size
    if not isinstance(size, Mapping) or not {"height", "width"} <= size.keys() or size["height"] != size["width"]:
        raise CheckpointError(f"{source}: image size {size} is not supported; expected a square")
    return int(size["height"])


def _affine(settings: Mapping[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of pixels in 0..1 that are equivalent to rescaling and normalising.

    With factor r and offset o of EfficientNet's processor, v = ((255 r x - o) - m) / s, divided by s once more if
    `include_top` is set.
    """
    is_normalized = settings.get("do_normalize", True)
    means = settings.get("image_mean") or CLIP_MEAN if is_normalized else (0.0, 0.0, 0.0)
    stds = settings.get("image_std") or CLIP_STD if is_normalized else (1.0, 1.0, 1.0)
    factor = 255 * settings.get("rescale_factor", 1 / 255) if settings.get("do_rescale", True) else 255.0
    offset = 1.0 if settings.get("rescale_offset", False) else 0.0
    second_std = settings.get("image_std") or CLIP_STD if settings.get("include_top", False) else (1.0, 1.0, 1.0)
    mean = tuple((offset + value) / factor for value in means)
    std = tuple(value * second / factor for value, second in zip(stds, second_std, strict=True))
    return mean, std
