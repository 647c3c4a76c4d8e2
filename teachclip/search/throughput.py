"""How fast an index is made and asked, against its parts: decoding, the video tower, the engine, the text tower.

All sides are timed in turn, several times in one run, so that other work on the machine slows all of them alike.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from teachclip.data.video.cutting import Cutting
from teachclip.data.video.parts import PartFrames, decode_stretch, open_parts
from teachclip.data.video.transform import normalize
from teachclip.data.video.workers import Failure
from teachclip.errors import DataError
from teachclip.models import backbone as encoders
from teachclip.models.modeling import StudentModel, evaluating
from teachclip.onnx.export import export_onnx
from teachclip.onnx.student import OnnxStudent, load_onnx
from teachclip.search.engines import Engine
from teachclip.search.engines.lance import STRUCTURES, LanceEngine
from teachclip.search.index import VideoIndex
from teachclip.search.limits import Limits
from teachclip.search.queries import OnnxQueries, QueryEncoder, load_for_search
from teachclip.search.scan import list_files
from teachclip.search.update import Wanted, update_index

TOWER_FRAMES = 960
"""Frames that the tower alone is timed on."""


def measure_indexing(folder: Path, model: str, *, rounds: int = 3) -> dict[str, float]:
    """Index the films below `folder` and time decoding and the video tower alone.

    What an index needs once, whatever its size, is timed apart: its first film is indexed before, with loading the
    student and the export of its text tower. Returns medians: `frames` that the films give, `decode`, `tower` and
    `index` in frames per second, `ratio`, of the index to the slower of the two others, and `first_s`, seconds of the
    first film. Raises DataError if no film can be read.
    """
    student, limits = load_for_search(model), Limits()
    paths = list(list_files([str(folder)]).files)
    times: dict[str, list[float]] = {"decode": [], "tower": [], "index": []}
    first: list[float] = []
    stretches: list[PartFrames] = []
    for _ in range(rounds):
        with _timed(times["decode"]):
            stretches = _decode(paths, student, limits)
        frames = sum(len(stretch.frames) for stretch in stretches)
        if not frames:
            raise DataError(f"{folder}: none of its {len(paths)} films can be read")
        pictures = np.concatenate([stretch.frames for stretch in stretches])[:TOWER_FRAMES]
        with _timed(times["tower"]):
            _encode(pictures, student, limits.batch_size)
        times["tower"][-1] *= frames / len(pictures)
        with tempfile.TemporaryDirectory() as place:
            index, begun = Path(place) / "index", Path(place) / "first"
            begun.mkdir()
            shutil.copy(paths[0], begun)
            with open(begun / Path(paths[0]).name, "ab") as copy:
                copy.write(b"\0\0\0\x08free")  # another content, or the film would be known; an empty box of an mp4
            with _timed(first):
                update_index(index, [begun], Wanted(model), progress=False)
            with _timed(times["index"]):
                update_index(index, [folder], progress=False)
    rates = {name: frames / statistics.median(seconds) for name, seconds in times.items()}
    ratio = rates["index"] / min(rates["decode"], rates["tower"])
    return {"frames": frames, **rates, "ratio": ratio, "first_s": statistics.median(first)}


def measure_queries(
    index: VideoIndex, texts: Sequence[str], *, queries: QueryEncoder | None = None, rounds: int = 5
) -> dict[str, float]:
    """Search for each text and time the text tower and the engine alone; `queries`: encodes the texts.

    Returns medians in milliseconds per query: `text`, of tokenising and the tower; `engine`, of LanceDB's own call
    for as many rows; and `search`, of the index. `ratio`: the median, over the rounds, of all searches of a round to
    all else of it, so that other work on the machine counts on both sides.
    """
    _, engine = index._open(engine=True)
    index = index if queries is None else VideoIndex.open(index.path, queries=queries)
    encode = _bare(index.queries())
    times: dict[str, list[float]] = {"text": [], "engine": [], "search": []}
    ratios = []
    for number in range(rounds + 1):
        if number == 1:
            times = {name: [] for name in times}  # the first round loads what is loaded late
        before = {name: sum(seconds) for name, seconds in times.items()}
        for text in texts:
            with _timed(times["text"]):
                vector = encode([text])[0]
            with _timed(times["engine"]):
                _ask_alone(engine, vector)
            with _timed(times["search"]):
                index.search(text)
        spent = {name: sum(seconds) - (before[name] if number > 1 else 0) for name, seconds in times.items()}
        ratios.append(spent["search"] / (spent["text"] + spent["engine"]))
    found = {name: 1000 * statistics.median(seconds) for name, seconds in times.items()}
    return {**found, "ratio": statistics.median(ratios[1:])}


ROWS = 50
"""Rows that a search for 10 videos asks the engine for."""


def _bare(queries: QueryEncoder) -> Callable[[Sequence[str]], np.ndarray]:
    """Return what tokenises and runs the text tower, and nothing else."""
    return queries.student.text_encoder.encode if isinstance(queries, OnnxQueries) else queries.texts


def _ask_alone(engine: Engine, vector: np.ndarray) -> Any:
    """Search as LanceDB's documents show; another engine by its own method."""
    if not isinstance(engine, LanceEngine):
        return engine.search(vector, ROWS)
    query = engine.table.search(vector).distance_type("cosine").limit(ROWS).select(["id", "_distance"])
    if how := STRUCTURES[engine.find_structure()]:
        query = query.nprobes(how["nprobes"]).refine_factor(how["refine"])
    return query.to_arrow()


class _OtherTower(OnnxQueries):
    """A text tower that an index takes for its own, to see what one of its size costs."""

    fingerprint = ""

    def __init__(self, student: OnnxStudent, fingerprint: str):
        super().__init__(student)
        self.fingerprint = fingerprint  # type: ignore[misc]


def tower_of_vit_b_32(index: VideoIndex, folder: Path) -> QueryEncoder:
    """Return a text tower of the size of CLIP ViT-B/32's, with random weights, for the vectors of an index.

    Its tokenizer is that of the index's student; 12 layers of width 512 and 49,408 tokens are CLIPConfig's defaults.
    What it finds means nothing; what it costs does. `folder`: for its files.
    """
    from transformers import CLIPConfig, CLIPModel

    from teachclip.models.student import StudentModel as Student

    student = load_for_search(index.settings.model)
    tokenizer = student.processor.tokenizer  # type: ignore[union-attr]
    text = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id}
    vision = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1}
    torch.manual_seed(0)
    clip = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=index.settings.dim)).eval()
    large = Student.from_backbone(clip)
    large.processor = student.processor
    export_onnx(large, folder, only="text")
    return _OtherTower(load_onnx(folder), index.settings.fingerprint)


class _timed:
    """Appends the seconds of a block to a list."""

    def __init__(self, times: list[float]):
        self.times = times

    def __enter__(self) -> None:
        self.started = time.perf_counter()

    def __exit__(self, *error: object) -> None:
        self.times.append(time.perf_counter() - self.started)


def _decode(paths: Sequence[str], student: StudentModel, limits: Limits) -> list[PartFrames]:
    """Decode the parts of files as an index does, and nothing else."""
    processor: Any = student.processor
    how = processor.sampling, processor.transform
    found, rest = [], []
    for opened in limits.map(open_parts, iter([(path, *how, Cutting()) for path in paths]), len(paths)):
        if not isinstance(opened, Failure):
            found.append(opened.first)
            rest += [(opened.source, *how, parts) for parts in opened.rest]
    outcomes = limits.map(decode_stretch, iter(rest), len(rest)) if rest else ()
    return found + [stretch for stretch in outcomes if not isinstance(stretch, Failure)]


@torch.no_grad()
def _encode(frames: np.ndarray, student: StudentModel, batch_size: int) -> None:
    """Run the vision encoder over frames, and nothing else."""
    processor: Any = student.processor
    encode: Callable[..., Any] = encoders.frame_features
    with evaluating(student):
        for start in range(0, len(frames), batch_size):
            pixels = torch.from_numpy(frames[start : start + batch_size]).to(student.device)
            encode(student.backbone, normalize(pixels, processor.mean, processor.std).unsqueeze(0))
