"""The student's processor, from strings and video files to the inputs of the model; saved with the model.

Only this module, `videos` and `preprocessing` import `teachclip.data` here: for decoding, the image transform
and file names.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import BatchFeature, PreTrainedConfig, ProcessorMixin
from transformers.utils import cached_file

from teachclip.data.texts import check_texts
from teachclip.data.video.decode import decode_frames
from teachclip.data.video.sampling import FrameSampling
from teachclip.data.video.transform import CLIP_MEAN, CLIP_STD, FrameTransform, normalize
from teachclip.errors import CheckpointError, DataError
from teachclip.models.checkpoints import first_line
from teachclip.models.preprocessing import Preprocessing, load_preprocessing
from teachclip.models.student_folder import PROCESSOR_AUTO_MAP, write_code_file
from teachclip.models.videos import frames_of, list_videos, part_of, thin

PROCESSOR_FILE = "processor_config.json"
SETTING_GROUPS = ("text_kwargs", "images_kwargs", "videos_kwargs", "audio_kwargs", "common_kwargs")


class StudentProcessor(ProcessorMixin):
    """A tokenizer and the settings for decoding the videos of a student.

    tokenizer: of the backbone.
    frame_sampling: which frames are used, a `FrameSampling` or its fields as a dict.
    size: height and width of the frames in pixels.
    mean, std: per channel, of pixels in 0..1; CLIP's by default.
    max_tokens: texts are truncated to this many tokens, including start and end of text. It becomes the tokenizer's
        `model_max_length`, if that is not less; afterwards they are one, so that both truncate at the same token.
    pad_to: texts are padded to this many tokens; None: to the longest of a call.
    pad_id: the padding token; None: the one of the tokenizer.
    resize, resample, scale_to: see `FrameTransform`.

    Raises CheckpointError for an invalid `frame_sampling`.
    """

    # transformers takes the names of saved settings from this signature, so they may not be keyword-only.
    def __init__(
        self,
        tokenizer: Any,
        frame_sampling: FrameSampling | Mapping[str, Any] | None = None,
        size: int = 224,
        mean: Sequence[float] = CLIP_MEAN,
        std: Sequence[float] = CLIP_STD,
        max_tokens: int = 32,
        pad_to: int | None = None,
        pad_id: int | None = None,
        resize: Literal["crop", "stretch"] = "crop",
        resample: Literal["bicubic", "bilinear"] = "bicubic",
        scale_to: int | None = None,
    ) -> None:
        for name, value in {"max_tokens": max_tokens, "pad_to": pad_to, "pad_id": pad_id}.items():
            if value is not None and (type(value) is not int or not 0 <= value < 10**9):
                raise CheckpointError(f"StudentProcessor: {name} is {value!r}, expected a whole number")
        super().__init__(tokenizer)
        if frame_sampling is None:
            frame_sampling = FrameSampling("per_second", 12)
        self.frame_sampling: dict[str, Any] = (
            frame_sampling.describe() if isinstance(frame_sampling, FrameSampling) else dict(frame_sampling)
        )
        self.size = size
        self.mean = list(mean)
        self.std = list(std)
        tokenizer.model_max_length = min(max_tokens, tokenizer.model_max_length)
        self.pad_to = pad_to
        self.pad_id: int = (tokenizer.pad_token_id or 0) if pad_id is None else pad_id
        self.resize, self.resample, self.scale_to = resize, resample, scale_to
        self.transform = FrameTransform(size, resize, resample, scale_to)
        try:
            self.sampling = FrameSampling(**self.frame_sampling)
        except TypeError as error:
            raise CheckpointError(
                f"StudentProcessor: frame_sampling {self.frame_sampling} is invalid: {error}"
            ) from error

    def __call__(
        self,
        text: str | Sequence[str] | None = None,
        videos: Any | Sequence[Any] | None = None,
        return_tensors: str = "pt",
        **settings: Any,
    ) -> BatchFeature:
        """Prepare texts, videos or both.

        `videos`: paths, parts of files as (path, start, end) in seconds, uint8 arrays (frames, 3, height, width) or
        (frames, height, width, 3), lists of PIL images or of such frames; or one of them. Files are decoded in this
        process, one after the other. Returns `input_ids`, `attention_mask` (texts, tokens), and `pixel_values`
        (videos, frames, 3, size, size) with `frame_mask` (videos, frames); a video with fewer frames than the
        sampling's count is padded with zeros.

        `settings`: as of a tokenizer, `padding` (True, "longest", "max_length"), `truncation` and `max_length`, here
        or in `text_kwargs`; the other groups that libraries pass are ignored, as a student has only one
        preprocessing. Raises DataError for an empty text, the path of a video as a text, unknown words or another
        setting, and VideoError for a video that cannot be read.
        """
        text_settings = _text_settings(settings)
        if text is None and videos is None:
            raise DataError("nothing to process: give text, videos or both")
        data: dict[str, Tensor] = {}
        if text is not None:
            data |= self._tokenize([text] if isinstance(text, str) else list(text), **text_settings)
        if videos is not None:
            data |= self._read(list_videos(videos))
        return BatchFeature(data, tensor_type=return_tensors)

    @classmethod
    def from_backbone(
        cls,
        source: str | os.PathLike[str],
        config: PreTrainedConfig,
        *,
        sampling: FrameSampling,
        size: int | None = None,
        max_tokens: int = 32,
        trust_remote_code: bool = False,
        **hub: Any,
    ) -> StudentProcessor:
        """Create a processor with the tokenizer and image settings of a dual encoder's folder or hub id.

        `config`: of the model. See `load_preprocessing` for the other options and the errors.
        """
        settings = load_preprocessing(
            source, config, max_tokens=max_tokens, size=size, trust_remote_code=trust_remote_code, **hub
        )
        return cls(settings.tokenizer, sampling, **settings.describe())

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: Any, *, trust_remote_code: bool | None = None, **kwargs: Any
    ) -> Any:
        """Load a saved processor; see transformers. Python code that its tokenizer brings is refused by default."""
        # With None, transformers asks on the terminal, and obeys what is piped into it.
        options = {"trust_remote_code": bool(trust_remote_code), **kwargs}
        return super().from_pretrained(pretrained_model_name_or_path, **options)

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoProcessor") -> None:
        """Do nothing: transformers would copy this module into saved folders, which name the package instead."""

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> Any:
        """Save the settings, the tokenizer, and the module that `auto_map` names."""
        os.makedirs(save_directory, exist_ok=True)
        write_code_file(save_directory)
        return super().save_pretrained(save_directory, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as they are saved."""
        return {**super().to_dict(), "max_tokens": self.max_tokens, "auto_map": PROCESSOR_AUTO_MAP}

    @property
    def max_tokens(self) -> int:
        """The most tokens of a text: the tokenizer's `model_max_length`, which Sentence Transformers may set."""
        return int(self.tokenizer.model_max_length)

    @property
    def preprocessing(self) -> Preprocessing:
        """The same settings as `Preprocessing`, which training uses."""
        return Preprocessing(
            self.tokenizer,
            self.max_tokens,
            self.pad_to,
            self.pad_id,
            self.size,
            tuple(self.mean),
            tuple(self.std),
            self.transform.resize,
            self.transform.resample,
            self.scale_to,
        )

    @property
    def model_input_names(self) -> list[str]:
        """The names of the possible outputs of a call."""
        return ["input_ids", "attention_mask", "pixel_values", "frame_mask"]

    def _tokenize(
        self, texts: list[str], *, padding: Any = True, truncation: Any = True, max_length: int | None = None
    ) -> dict[str, Tensor]:
        check_texts(texts)
        limit = self.max_tokens if max_length is None else min(max_length, self.max_tokens)
        is_cut = truncation not in (False, "do_not_truncate")
        cut = {"truncation": True, "max_length": limit} if is_cut else {}
        encoded = self.tokenizer(texts, **cut, verbose=False)["input_ids"]
        unknown = self.tokenizer.unk_token_id
        # In CLIP the end-of-text token is also the unknown token: only the last one marks the end.
        allowed = self.tokenizer("")["input_ids"].count(unknown) if unknown is not None else 0
        for number, (text, ids) in enumerate(zip(texts, encoded, strict=True)):
            if unknown is not None and ids.count(unknown) > allowed:
                words = [word for word in text.split() if self._is_unknown(word)] or [text]
                raise DataError(f"text {text[:60]!r}: not in the vocabulary: {', '.join(words[:5])}")
            if len(ids) > limit:
                raise DataError(f"text {number} has {len(ids)} tokens, allowed: {limit}; or write truncation=True")
        width = self.pad_to or (limit if padding == "max_length" else max(map(len, encoded), default=0))
        ids = torch.full((len(texts), width), self.pad_id)
        attention = torch.zeros_like(ids)
        for row, tokens in enumerate(encoded):
            ids[row, : len(tokens)], attention[row, : len(tokens)] = torch.tensor(tokens), 1
        return {"input_ids": ids, "attention_mask": attention}

    def _is_unknown(self, word: str) -> bool:
        return self.tokenizer.unk_token_id in self.tokenizer(word, add_special_tokens=False)["input_ids"]

    def _read(self, videos: list[Any]) -> dict[str, Tensor]:
        frames = []
        for video in videos:
            part = part_of(video)
            if part is None:
                frames.append(self.transform(thin(frames_of(video), self.sampling.count)))
            else:
                frames.append(self.transform(decode_frames(part[0], self.sampling, start=part[1], end=part[2])))
        return self.batch(frames)

    def batch(self, videos: Sequence[Tensor]) -> dict[str, Tensor]:
        """Normalise and pad decoded videos, each uint8 (frames, 3, size, size), at most `sampling.count` frames.

        Returns `pixel_values` (videos, frames, 3, size, size) and `frame_mask` (videos, frames), as a call does.
        """
        pixels = torch.zeros(len(videos), self.sampling.count, 3, self.size, self.size)
        mask = torch.zeros(len(videos), self.sampling.count, dtype=torch.bool)
        for number, frames in enumerate(videos):
            pixels[number, : len(frames)] = normalize(frames, self.mean, self.std)
            mask[number, : len(frames)] = True
        return {"pixel_values": pixels, "frame_mask": mask}


def _text_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return `padding`, `truncation` and `max_length` of a call. Raises DataError for other settings and values."""
    found = dict(settings.get("text_kwargs") or {})
    found |= {name: value for name, value in settings.items() if name not in SETTING_GROUPS}
    found = {name: value for name, value in found.items() if value is not None and name != "return_tensors"}
    for name, value in found.items():
        if name not in ("padding", "truncation", "max_length"):
            raise DataError(f"{name} cannot be set here; set it in the processor")
        if name == "padding" and value not in (True, "longest", "max_length"):
            raise DataError(f"padding is {value!r}, allowed: True, 'longest', 'max_length': the texts are one tensor")
        if name == "max_length" and (isinstance(value, bool) or not isinstance(value, int) or value < 3):
            raise DataError(f"max_length is {value!r}, allowed: 3 tokens or more")
    return found


def load_processor(source: Any, *, trust_remote_code: bool = False, **hub: Any) -> StudentProcessor | None:
    """Return the processor saved in a student's folder or hub repository, or None if there is none.

    `trust_remote_code`: run the Python code that its tokenizer brings, if any; otherwise it is refused. `hub`: where
    in a hub repository, as in transformers: `revision`, `subfolder`, `cache_dir`, `token`, ... Raises CheckpointError
    if it cannot be loaded.
    """
    try:
        file = cached_file(
            str(source),
            PROCESSOR_FILE,
            **hub,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        if file is None:
            return None
        return StudentProcessor.from_pretrained(source, trust_remote_code=trust_remote_code, **hub)
    except Exception as error:  # the tokenizers library raises nothing more exact
        raise CheckpointError(f"{source}: its processor cannot be loaded: {first_line(error)}") from error
