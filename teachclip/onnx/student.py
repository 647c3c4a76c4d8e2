"""A student from an ONNX folder: the same calls as `StudentModel`, without transformers, for texts without torch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
from tqdm import tqdm

from teachclip.data.texts import check_texts
from teachclip.errors import CheckpointError, DataError
from teachclip.onnx.folder import TEXT, VIDEO, OnnxConfig, require_packages

if TYPE_CHECKING:
    from teachclip.models.videos import EncodedVideos, OnError

CPU = ("CPUExecutionProvider",)


def load_onnx(folder: str | os.PathLike[str], *, threads: int = 0, providers: Sequence[str] = CPU) -> OnnxStudent:
    """Load a student that `teachclip export --layout onnx` wrote.

    `threads`: of onnxruntime, 0 for one per core. `providers`: of onnxruntime, in the order of preference. A tower is
    loaded when it is first used. Raises CheckpointError if the folder is none of ours, unfinished or damaged.
    """
    require_packages("onnxruntime", "tokenizers")
    path = Path(os.path.expanduser(folder))
    return OnnxStudent(path, OnnxConfig.read(path), threads=threads, providers=providers)


class OnnxStudent:
    """The towers of a student in onnxruntime; `load_onnx` makes one.

    `encode_text` imports neither torch nor transformers. `encode_video` decodes as `StudentModel` does.
    """

    def __init__(self, folder: Path, config: OnnxConfig, *, threads: int = 0, providers: Sequence[str] = CPU) -> None:
        self.folder, self.config = folder, config
        self._options: dict[str, Any] = {"threads": threads, "providers": providers}
        self._text: Any = None
        self._video: Any = None

    @property
    def dim(self) -> int:
        """Numbers of a vector."""
        return self.config.dim

    @property
    def text_encoder(self) -> Any:
        """The `TextEncoder` of `query.py`, loaded at first use. Raises CheckpointError if it cannot be."""
        if self._text is None:
            from teachclip.onnx.query import ArtefactError, TextEncoder

            try:
                encoder = TextEncoder(self.folder, **self._options)
            except ArtefactError as error:
                raise CheckpointError(str(error)) from error
            _check_nodes(encoder.session, self.folder / TEXT, {"input_ids": 2}, self.dim)
            self._text = encoder
        return self._text

    @property
    def video_session(self) -> Any:
        """The session of `video.onnx`, loaded at first use. Raises CheckpointError if it cannot be used."""
        if self._video is None:
            from teachclip.onnx.query import ArtefactError, open_session

            if "video" not in self.config.towers:
                raise CheckpointError(f"{self.folder}: has no video tower, it was exported with --only text")
            try:
                session = open_session(self.folder / VIDEO, **self._options)
            except ArtefactError as error:
                raise CheckpointError(str(error)) from error
            _check_nodes(session, self.folder / VIDEO, {"frames": 5, "frame_mask": 2}, self.dim)
            self._video = session
        return self._video

    def encode_text(self, texts: str | Sequence[str], *, batch_size: int = 64, progress: bool = True) -> np.ndarray:
        """Encode texts. Returns vectors (texts, dim), float32, L2-normalised, in the given order.

        Raises DataError for a text that is empty or has unknown words, or for the path of a video.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        check_texts(texts)
        _check_batch(batch_size)
        encoder = self.text_encoder
        parts = [np.empty((0, self.dim), dtype=np.float32)]
        with tqdm(total=len(texts), unit="text", desc="texts", disable=not progress) as bar:
            for start in range(0, len(texts), batch_size):
                try:
                    parts.append(encoder.encode(texts[start : start + batch_size]))
                except ValueError as error:
                    raise DataError(str(error)) from error
                bar.update(len(parts[-1]))
        return np.concatenate(parts)

    def encode_frames(self, frames: np.ndarray, frame_mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Encode decoded videos: `frames` uint8 (videos, frames, 3, size, size), `frame_mask` (videos, frames) bool.

        Returns vectors (videos, dim) and frame weights (videos, frames), float32. Raises DataError for other shapes.
        """
        session = self.video_session
        shapes = {node.name: [len(frames), *node.shape[1:]] for node in session.get_inputs()}
        given = {"frames": frames, "frame_mask": frame_mask}
        for (name, values), dtype in zip(given.items(), ("uint8", "bool"), strict=True):
            if list(values.shape) != shapes[name] or values.dtype != dtype:
                expected = f"{dtype} {tuple(shapes[name])}"
                raise DataError(f"{name} is {values.dtype} {values.shape}, expected {expected}")
        vectors, weights = session.run(["embeddings", "frame_weights"], given)
        return vectors, weights

    @overload
    def encode_video(self, videos: Any, *, on_error: Literal["raise"] = "raise", **options: Any) -> np.ndarray: ...

    @overload
    def encode_video(
        self, videos: Any, *, on_error: Literal["skip", "use_decodable"], **options: Any
    ) -> EncodedVideos: ...

    def encode_video(  # type: ignore[misc]
        self,
        videos: Any,
        *,
        on_error: OnError = "raise",
        batch_size: int = 8,
        progress: bool = True,
        workers: int = 0,
        time_limit: float = 60.0,
        memory_limit: float = 4.0,
    ) -> np.ndarray | EncodedVideos:
        """Encode videos as `StudentModel.encode_video` does; vectors are numpy arrays (videos, dim), float32."""
        from teachclip.models.videos import encode_in_batches, list_videos, read_videos

        _check_batch(batch_size)
        self.video_session  # noqa: B018  (whatever is wrong with it is said before anything is decoded)
        items = list_videos(videos)
        sampling, transform = self._decoding()
        limits = {"workers": workers, "time_limit": time_limit, "memory_limit": memory_limit}
        outcomes = read_videos(items, sampling, transform, on_error=on_error, **limits)  # type: ignore[arg-type]
        result = encode_in_batches(
            outcomes,
            len(items),
            lambda frames: self.encode_frames(*_padded(frames, sampling.count))[0],
            on_error=on_error,
            batch_size=batch_size,
            progress=progress,
        )
        parts = result.embeddings
        result = result._replace(
            embeddings=np.concatenate(parts) if parts else np.empty((0, self.dim), dtype=np.float32)
        )
        return result.embeddings if on_error == "raise" else result

    def _decoding(self) -> tuple[Any, Any]:
        """Return the frame sampling and the transform. Raises CheckpointError for settings that are none."""
        from teachclip.data.video.sampling import FrameSampling
        from teachclip.data.video.transform import FrameTransform

        video = self.config.video
        try:
            sampling = FrameSampling(**video.frame_sampling)
        except (TypeError, DataError) as error:
            raise CheckpointError(f"{self.folder / 'config.json'}: frame_sampling: {str(error)[:200]}") from error
        return sampling, FrameTransform(video.size, video.resize, video.resample, video.scale_to)  # type: ignore[arg-type]


def _padded(videos: Sequence[Any], count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return decoded videos, each uint8 (frames, 3, size, size), padded to `count` frames, and their mask."""
    frames = np.zeros((len(videos), count, *videos[0].shape[1:]), dtype=np.uint8)
    mask = np.zeros((len(videos), count), dtype=bool)
    for number, video in enumerate(videos):
        frames[number, : len(video)], mask[number, : len(video)] = video, True
    return frames, mask


def _check_batch(batch_size: int) -> None:
    if batch_size < 1:
        raise DataError(f"batch_size is {batch_size}, expected at least 1")


def _check_nodes(session: Any, file: Path, inputs: dict[str, int], dim: int) -> None:
    """Raise CheckpointError unless a session has these inputs, by their dimensions, and gives vectors of `dim`."""
    found = {node.name: len(node.shape) for node in session.get_inputs()}
    outputs = {node.name: node.shape for node in session.get_outputs()}
    shape = outputs.get("embeddings", [])
    if not inputs.items() <= found.items() or len(shape) != 2 or shape[1] != dim:
        raise CheckpointError(f"{file}: is not the tower that config.json describes; export the student again")
