"""What both kinds of Sentence Transformers' models share: loading, prompts, and how they are given frames.

Frames are arrays of our own decoder, never files: decoding there needs torchcodec, and a `.webm` would be read as
text. A processor may prepare them further, but not choose among them: which frames of a video are read is the
recipe's frame sampling.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from torch import Tensor

from teachclip.errors import CheckpointError, RecipeError
from teachclip.models.checkpoints import first_line
from teachclip.models.clip import quiet_loading
from teachclip.models.preprocessing import Preprocessing
from teachclip.models.processing import StudentProcessor
from teachclip.models.raw_inputs import raw_preprocessing

Type = Literal["float32", "float16", "bfloat16", "auto"]
"""Type of the weights; `auto`: as they are stored."""

Modality = Literal["video", "image"]
Pooling = Literal["mean", "max"]

DEFAULT_SIZE = 384
"""Pixels of a frame for a model whose processor takes pictures of any size."""

KEEP_FRAMES = {"processing_kwargs": {"video": {"do_sample_frames": False}}}
"""Tells a processor that frames were chosen already."""

_RESAMPLE: dict[int, Literal["bicubic", "bilinear"]] = {2: "bilinear", 3: "bicubic"}  # PIL's numbers


def load_model(kind: str, checkpoint: str, *, dtype: Type, trust_remote_code: bool, **options: Any) -> Any:
    """Load a model of Sentence Transformers, `SentenceTransformer` or `CrossEncoder`, on the CPU.

    Raises RecipeError if the library is not installed, CheckpointError if the model cannot be loaded.
    """
    try:
        import sentence_transformers
    except ImportError as error:
        raise RecipeError(
            f"{checkpoint}: a model of Sentence Transformers needs that library ({first_line(error)}): "
            "pip install 'teachclip[sentence-transformers]'"
        ) from error
    try:
        with quiet_loading(), _loading_report() as report:
            model = getattr(sentence_transformers, kind)(
                checkpoint,
                device="cpu",
                model_kwargs={"dtype": dtype},
                trust_remote_code=trust_remote_code,
                **options,
            )
    except ImportError as error:
        if "orchvision" in str(error):
            raise CheckpointError(
                f"{checkpoint}: its processor needs torchvision, which is not installed: pip install torchvision, in "
                "the version that belongs to your PyTorch"
            ) from error
        raise CheckpointError(f"{checkpoint}: cannot be loaded as a {kind}: {first_line(error)}") from error
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise CheckpointError(f"{checkpoint}: cannot be loaded as a {kind}: {first_line(error)}") from error
    rows = [line.split("|") for line in report if "|" in line]
    if missing := [row[0].strip() for row in rows if "MISSING" in row[1]]:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise CheckpointError(f"{checkpoint}: weights of the {kind} are missing: {missing[0]}{more}")
    return model


@contextmanager
def _loading_report() -> Iterator[list[str]]:
    """Give the lines of the report in which transformers says what it did not find, instead of printing them.

    Sentence Transformers hands on nothing else, and what is missing would be random numbers.
    """
    lines: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: lines.extend(record.getMessage().splitlines())  # type: ignore[method-assign]
    logger = logging.getLogger("transformers.modeling_utils")
    before = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING)
    logger.propagate = False
    try:
        yield lines
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before[0])
        logger.propagate = before[1]


def chosen_modality(model: Any, wanted: Modality | None, *, source: str) -> Modality:
    """Return what a video is to a model: by default a video if the model takes videos, and else its frames.

    Raises CheckpointError if the model does not take texts and that.
    """
    takes = [name for name in ("video", "image") if model.supports("text") and model.supports(name)]
    allowed = [wanted] if wanted else ["video", "image"]
    for name in allowed:
        if name in takes:
            return name  # type: ignore[return-value]
    found = ", ".join("+".join(name) if isinstance(name, tuple) else name for name in model.modalities)
    raise CheckpointError(f"{source}: the model takes {found}; needed: text and {' or '.join(allowed)}")


def prompt_of(model: Any, prompt: str | None) -> dict[str, str]:
    """Return the arguments of a prompt, which is the name of one of the model or a text; None: the model's own."""
    if prompt is None:
        return {}
    return {"prompt_name": prompt} if prompt in model.prompts else {"prompt": prompt}


def frame_preprocessing(model: Any, size: int | None, resize: Literal["crop", "stretch"] | None) -> Preprocessing:
    """Return how frames are cut before a model gets them: to what its own processor would scale them to.

    `size` in pixels and `resize` replace what the processor says. A processor that takes pictures of any size gets
    squares of `DEFAULT_SIZE`.
    """
    found, how, resample = _scaling(_image_processor(model))
    return raw_preprocessing(size or found, resize=resize or how, resample=resample)


def _image_processor(model: Any) -> Any:
    processor = getattr(model[0], "processor", None)
    parts = (getattr(processor, name, None) for name in ("image_processor", "video_processor"))
    return next((part for part in parts if part is not None), processor)


def _scaling(processor: Any) -> tuple[int, Literal["crop", "stretch"], Literal["bicubic", "bilinear"]]:
    """Return the size, manner and filter of a processor's first step, or defaults where it has no single size."""
    if isinstance(processor, StudentProcessor):
        transform = processor.transform
        return transform.scale_to or transform.size, transform.resize, transform.resample
    resample = _RESAMPLE.get(getattr(processor, "resample", None) or 3, "bicubic")
    size = getattr(processor, "size", None)
    sides = {name: side for name, side in dict(size or {}).items() if side is not None}
    if set(sides) == {"shortest_edge"}:
        return int(sides["shortest_edge"]), "crop", resample
    if set(sides) == {"height", "width"} and sides["height"] == sides["width"]:
        return int(sides["height"]), "stretch", resample
    return DEFAULT_SIZE, "crop", resample  # such as a number of pixels between two bounds


def as_texts(texts: Sequence[str]) -> list[dict[str, str]]:
    """Return texts as Sentence Transformers takes them for texts, also one that is the path or address of a file."""
    return [{"text": text} for text in texts]


def as_videos(videos: Sequence[Tensor], frame_rate: float | None) -> list[dict[str, Any]]:
    """Return uint8 videos (frames, 3, height, width) as Sentence Transformers takes them.

    `frame_rate`: how many frames a second the model is told that there are; None: it is told nothing.
    """
    if frame_rate is None:
        return [{"video": video} for video in videos]
    return [
        {
            "video": {
                "array": video,
                "video_metadata": {
                    "fps": frame_rate,
                    "total_num_frames": len(video),
                    "duration": len(video) / frame_rate,
                    "frames_indices": list(range(len(video))),
                },
            }
        }
        for video in videos
    ]


def as_pictures(frames: Tensor) -> list[Any]:
    """Return uint8 frames (frames, 3, height, width) as PIL images, which every image processor takes."""
    from PIL import Image

    return [Image.fromarray(frame) for frame in frames.permute(0, 2, 3, 1).contiguous().numpy()]


def settings_hash(model: Any) -> str:
    """Return a hash of what a model does besides its weights: prompts, modules, tokenizer and processor.

    Paths do not count: a folder that is moved is the same model.
    """
    parts: list[Any] = [model.prompts, model.default_prompt_name]
    for module in model:
        parts.append([type(module).__name__, _plain(_call(module, "get_config_dict"))])
        processor = getattr(module, "processor", None)
        for part in (processor, *(getattr(processor, name, None) for name in ("image_processor", "video_processor"))):
            parts.append([type(part).__name__, _plain(_call(part, "to_dict"))])
        tokenizer = getattr(processor, "tokenizer", processor)
        parts.append([_backend(tokenizer), getattr(processor, "chat_template", None)])
        parts.append([getattr(tokenizer, name, None) for name in ("model_max_length", "chat_template")])
    text = json.dumps(parts, sort_keys=True, default=lambda value: type(value).__name__)
    return hashlib.sha256(text.encode()).hexdigest()


def _backend(tokenizer: Any) -> str | None:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return None if backend is None else backend.to_str()


def _call(thing: Any, method: str) -> Any:
    function: Callable[[], Any] | None = getattr(thing, method, None)
    return None if function is None else function()


def _plain(value: Any) -> Any:
    """Return settings without paths and without what the library or the moment left in them."""
    if isinstance(value, Mapping):
        ignored = ("name_or_path", "_name_or_path", "_commit_hash", "tokenizer", "transformers_version")
        return {str(name): _plain(item) for name, item in value.items() if name not in ignored}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def to_float32(vectors: Tensor) -> Tensor:
    """Return vectors that other computations may use: the library's were made in inference mode."""
    return vectors.to(torch.float32, copy=True)
