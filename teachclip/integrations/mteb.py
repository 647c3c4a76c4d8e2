"""mteb: the student as an encoder, and a split of a recipe's data as a retrieval task.

    import mteb
    from teachclip.integrations.mteb import StudentEncoder, retrieval_task

    results = mteb.evaluate(StudentEncoder("my-student"), retrieval_task("recipe.yaml"), cache=None)

mteb's own models read the frames that mteb samples. The student reads those that it was trained on: it is given the
file, not frames, and decodes it by its own frame sampling. Needs `pip install 'teachclip[mteb]'`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, Video
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.retrieval_dataset_loaders import RetrievalSplitData
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.models.abs_encoder import AbsEncoder
from mteb.models.model_meta import ModelMeta, ScoringFunction
from torch.utils.data import DataLoader

from teachclip.data.annotations.records import Split
from teachclip.errors import DataError
from teachclip.models.student import StudentModel, load_student
from teachclip.pipeline.workspace import build_workspace
from teachclip.recipe.loading import RecipeSource, load_recipe
from teachclip.training.distributed import build_accelerator, processes_of


class StudentEncoder(AbsEncoder):
    """A student as mteb's `EncoderProtocol`: texts and videos become L2-normalised vectors."""

    def __init__(
        self, model_name: str | StudentModel, revision: str | None = None, device: str | None = None, **kwargs: Any
    ) -> None:
        """`model_name`: a student, or its folder or hub id. `kwargs`: as of `load_student`."""
        if isinstance(model_name, StudentModel):
            self.student = model_name
        else:
            self.student = load_student(model_name, revision=revision, **kwargs)
        self.student = self.student.to(device).eval() if device else self.student.eval()
        self.student.require_one_vector("the encoder of mteb")
        name = str(getattr(self.student.config, "_name_or_path", "") or "student")
        self.mteb_model_meta = ModelMeta.create_empty(
            {
                "name": f"teachclip/{Path(name).name}",
                "revision": revision or "local",
                "embed_dim": self.student.config.width,
                "similarity_fn_name": ScoringFunction.COSINE,
                "modalities": ["text", "video"],
                "framework": ["PyTorch"],
            }
        )

    def encode(self, inputs: DataLoader[Any], **kwargs: Any) -> np.ndarray:
        """Return the vectors of all inputs, (inputs, dim) float32: of their videos if they have any, else texts.

        Raises DataError for inputs of other modalities, VideoError for a video that cannot be decoded.
        """
        dataset: Any = inputs.dataset
        columns = getattr(dataset, "column_names", [])
        batch_size = inputs.batch_size or 32
        if "video" in columns:
            if isinstance(dataset.features["video"], Video):  # as a file: mteb would hand over frames of its own
                dataset = dataset.cast_column("video", Video(decode=False))
            return self._encode_videos(dataset["video"], batch_size)
        if "text" in columns:
            texts = [str(text) for text in dataset["text"]]
            with torch.no_grad():
                return self.student.encode_text(texts, batch_size=batch_size, progress=False).float().cpu().numpy()
        raise DataError(f"a student encodes texts and videos; mteb gave the columns {', '.join(columns) or 'none'}")

    def _encode_videos(self, videos: Iterable[Any], batch_size: int) -> np.ndarray:
        with tempfile.TemporaryDirectory() as folder:
            files = [_file_of(video, Path(folder), number) for number, video in enumerate(videos)]
            with torch.no_grad():
                found = self.student.encode_video(files, batch_size=batch_size, progress=False)
        return found.float().cpu().numpy()


def _file_of(video: Any, folder: Path, number: int) -> Any:
    """Return a video of a dataset as `encode_video` takes it; bytes are written to a file in `folder`.

    A video is a path, or a dictionary with `path` or `bytes`, and maybe `start` and `end` in seconds.
    """
    if isinstance(video, dict):
        path, content = video.get("path"), video.get("bytes")
        if content is not None:
            path = folder / f"{number}{Path(path or '').suffix or '.mp4'}"
            path.write_bytes(content)
        if video.get("start") is None and video.get("end") is None:
            return path
        return str(path), video.get("start"), video.get("end")
    return video


class RecipeRetrieval(AbsTaskRetrieval):
    """Text-to-video retrieval on a split of a recipe's data, made by `retrieval_task`."""

    metadata: TaskMetadata
    data_loaded: bool
    k_values: Sequence[int] = (1, 5, 10, 50, 100)

    def __init__(self, split: Split) -> None:
        super().__init__()
        self._videos = split

    def load_data(self, num_proc: int | None = None, **kwargs: Any) -> None:
        """Give mteb the captions as queries and the videos as corpus: paths, and seconds of segments."""
        if self.data_loaded:
            return
        split = self._videos
        captions = {"id": [c.id for c in split.captions], "text": [c.text for c in split.captions]}
        videos = [{"path": str(v.path.absolute()), "start": v.start, "end": v.end} for v in split.videos]
        self.dataset = {
            "default": {
                "test": RetrievalSplitData(
                    queries=Dataset.from_dict(captions),
                    corpus=Dataset.from_dict({"id": [video.id for video in split.videos], "video": videos}),
                    relevant_docs={caption.id: {caption.video_id: 1} for caption in split.captions},
                    top_ranked=None,
                )
            }
        }
        self.data_loaded = True


def retrieval_task(
    recipe: RecipeSource, overrides: Sequence[str] = (), *, split: str = "test", name: str = ""
) -> RecipeRetrieval:
    """Return text-to-video retrieval on a split of a recipe's data as a task of mteb.

    Its R@1, R@5 and R@10 (`recall_at_1` and so on, shares of 1) are those of `teachclip evaluate`, whose protocol
    ranks the videos of the split for each caption. Videos that cannot be read are excluded as there. `name`: of the
    task; by default that of the recipe. Raises DataError if the data has no such split, and as `load_recipe` does.
    """
    recipe = load_recipe(recipe, overrides)
    accelerator = build_accelerator()
    work = build_workspace(recipe, processes_of(accelerator), accelerator.device)
    chosen = work.split(split)
    chosen.require_captions("a task of mteb is of captions")
    metadata = TaskMetadata(
        name=name or f"{recipe.name}-{split}",
        description=f"Text-to-video retrieval: {len(chosen.captions)} captions, {len(chosen.videos)} videos",
        dataset={"path": recipe.name, "revision": "local"},
        type="Any2AnyRetrieval",
        category="t2v",
        modalities=["text", "video"],
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        main_score="recall_at_1",
        reference=None,
        date=None,
        domains=None,
        task_subtypes=None,
        license=None,
        annotations_creators=None,
        dialect=None,
        sample_creation=None,
        bibtex_citation="",
    )
    task = type("RecipeRetrieval", (RecipeRetrieval,), {"metadata": metadata})  # mteb wants it on the class
    return task(chosen)  # type: ignore[no-any-return]
