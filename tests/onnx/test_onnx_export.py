"""What an ONNX folder computes is what its student computes, for every option, batch size and length."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from tiny_backbones import save_backbone
from tiny_models import FRAMES, SIZE, WIDTH, tiny_batch, tiny_processor, tiny_student

from teachclip import export_onnx, load_onnx
from teachclip.data.video.sampling import FrameSampling
from teachclip.errors import CheckpointError, DataError
from teachclip.models.backbone import load_backbone
from teachclip.models.processing import StudentProcessor
from teachclip.models.student import StudentModel
from teachclip.onnx import parity
from teachclip.onnx.graphs import store_as
from teachclip.search.provenance import student_fingerprint

TEXTS = ["a red circle", "sea", "a blue square over a red sea over a blue circle", "a", "red " * 20]


def frames_and_mask(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    frames = torch.randint(0, 256, (count, FRAMES, 3, SIZE, SIZE), generator=generator).to(torch.uint8)
    mask = torch.arange(FRAMES) < torch.tensor([FRAMES, 1, 3, 2, FRAMES])[:count, None]
    return frames * mask[:, :, None, None, None], mask


@torch.no_grad()
def expected_videos(student: StudentModel, frames: torch.Tensor, mask: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    inputs = student.processor.batch([video[: int(row.sum())] for video, row in zip(frames, mask, strict=True)])
    output = student(**inputs)
    return output.video_embeds.numpy(), output.frame_weights.numpy()


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_every_batch_size_gives_the_students_vectors(pair: tuple[StudentModel, Path], count: int) -> None:
    student, folder = pair
    loaded = load_onnx(folder, threads=1)
    expected = student.encode_text(TEXTS[:count], progress=False).numpy()
    found = loaded.encode_text(TEXTS[:count])
    assert found.dtype == np.float32 and found.shape == (count, WIDTH)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    frames, mask = frames_and_mask(count)
    vectors, weights = loaded.encode_frames(frames.numpy(), mask.numpy())
    for got, wanted in zip((vectors, weights), expected_videos(student, frames, mask), strict=True):
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("length", [1, 2, 5, 10])
def test_every_length_of_texts_gives_the_students_vectors(published: tuple[StudentModel, Path], length: int) -> None:
    student, folder = published
    texts = [" ".join(["blue"] * length), "a"]
    found = load_onnx(folder, threads=1).encode_text(texts)
    np.testing.assert_allclose(found, student.encode_text(texts, progress=False), rtol=0, atol=1e-5)


def test_the_folder_says_what_it_is_and_how_far_it_is(published: tuple[StudentModel, Path]) -> None:
    student, folder = published
    names = {"config.json", "tokenizer.json", "text.onnx", "video.onnx", "parity.json", "README.md", "query.py"}
    assert {path.name for path in folder.iterdir()} == names
    config = json.loads((folder / "config.json").read_text())
    assert config["fingerprint"] == student_fingerprint(student) and config["dim"] == WIDTH
    measured = json.loads((folder / "parity.json").read_text())
    for tower in ("text", "video"):
        assert 0 < measured[tower]["max_abs"] <= 1e-5 and measured[tower]["min_cosine"] > 0.99999
    card = (folder / "README.md").read_text()
    assert f"(videos, {FRAMES}, 3, {SIZE}, {SIZE})" in card and "python query.py" in card
    here = [str(Path(__file__).parents[2]), str(Path(torch.__file__).parent), str(folder.parent)]
    for path in folder.iterdir():
        assert not any(place.encode() in path.read_bytes() for place in here), path.name
    graph = onnx.load(folder / "video.onnx").graph
    types = {node.name: node.type.tensor_type for node in graph.input}
    assert (
        types["frames"].elem_type == onnx.TensorProto.UINT8 and types["frame_mask"].elem_type == onnx.TensorProto.BOOL
    )
    assert types["frames"].shape.dim[0].dim_param == "videos"


@pytest.mark.parametrize(("precision", "least", "smaller"), [("float16", 0.9999, 0.7), ("int8", 0.98, 0.8)])
def test_fewer_bits_stay_close(
    published: tuple[StudentModel, Path], tmp_path: Path, precision: str, least: float, smaller: float
) -> None:
    student, folder = published
    shutil.copytree(folder, tmp_path / "out")
    for name in ("text.onnx", "video.onnx"):
        store_as(onnx.load(folder / name), precision, tmp_path / "out" / name)
    loaded, frames = load_onnx(tmp_path / "out", threads=1), frames_and_mask(5)
    texts = (loaded.encode_text(TEXTS) * student.encode_text(TEXTS, progress=False).numpy()).sum(axis=1)
    vectors, _ = loaded.encode_frames(*(value.numpy() for value in frames))
    videos = (vectors * expected_videos(student, *frames)[0]).sum(axis=1)
    assert least < texts.min() < 1 + 1e-6 and least < videos.min() < 1 + 1e-6
    assert abs(loaded.encode_text(TEXTS) - load_onnx(folder).encode_text(TEXTS)).max() > 1e-5  # it is another model
    for name in ("text.onnx", "video.onnx"):
        assert (tmp_path / "out" / name).stat().st_size < smaller * (folder / name).stat().st_size


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_large_weights_are_beside_the_graph_and_give_the_same_vectors(
    published: tuple[StudentModel, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    student, (frames, mask) = published[0], frames_and_mask(2)
    folders = tmp_path / "inside", tmp_path / "beside"
    export_onnx(student, folders[0], precision=precision)
    monkeypatch.setattr("teachclip.onnx.graphs.OUTSIDE_BYTES", 1000)
    export_onnx(student, folders[1], precision=precision)
    inside, beside = map(load_onnx, folders)
    assert np.array_equal(beside.encode_text(TEXTS[:2]), inside.encode_text(TEXTS[:2]))
    given = frames.numpy(), mask.numpy()
    assert np.array_equal(beside.encode_frames(*given)[0], inside.encode_frames(*given)[0])
    for name in ("text.onnx", "video.onnx"):
        graph, weights = folders[1] / name, folders[1] / f"{name}.data"
        assert graph.stat().st_size + weights.stat().st_size < 1.3 * (folders[0] / name).stat().st_size
    (folders[1] / "text.onnx.data").unlink()
    with pytest.raises(CheckpointError, match=r"text\.onnx: cannot be loaded: .*data path does not exist"):
        load_onnx(folders[1]).encode_text("sea")
    monkeypatch.undo()
    export_onnx(student, folders[1], precision=precision)  # a folder with such files is replaced as any other
    assert not list(folders[1].glob("*.data"))


def test_the_text_tower_alone(published: tuple[StudentModel, Path], tmp_path: Path) -> None:
    student, folder = published
    export_onnx(student, tmp_path / "text", only="text")
    assert {path.name for path in folder.iterdir()} - {path.name for path in (tmp_path / "text").iterdir()} == {
        "video.onnx"
    }
    loaded = load_onnx(tmp_path / "text")
    assert np.array_equal(loaded.encode_text(TEXTS), load_onnx(folder).encode_text(TEXTS))
    with pytest.raises(CheckpointError, match="has no video tower, it was exported with --only text"):
        loaded.encode_video(["missing.mp4"])
    assert "video.onnx" not in (tmp_path / "text" / "README.md").read_text()


def test_real_files_are_ranked_as_by_the_student(
    pair: tuple[StudentModel, Path], clips: list[Path], tmp_path: Path
) -> None:
    student, folder = pair
    loaded = load_onnx(folder, threads=1)
    items = [*clips, (clips[2], 1.0, 2.5)]
    videos, found = (
        student.encode_video(items, progress=False, workers=1),
        loaded.encode_video(items, progress=False, workers=1),
    )
    np.testing.assert_allclose(found, videos, rtol=0, atol=1e-5)
    texts = [*TEXTS, "a blue circle", "red sea", "a square"]
    expected = student.encode_text(texts, progress=False) @ videos.T
    assert np.array_equal(np.argsort(-(loaded.encode_text(texts) @ found.T)), np.argsort(-expected.numpy()))


def test_what_cannot_be_read_is_named_as_by_the_student(
    published: tuple[StudentModel, Path], clips: list[Path], tmp_path: Path
) -> None:
    student, folder = published
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    items = [clips[1], tmp_path / "broken.mp4", clips[3]]
    options = {"on_error": "skip", "progress": False, "workers": 1, "batch_size": 1}
    expected, found = student.encode_video(items, **options), load_onnx(folder).encode_video(items, **options)
    assert found.kept == expected.kept == [0, 2] and found.failures == expected.failures
    np.testing.assert_allclose(found.embeddings, expected.embeddings, rtol=0, atol=1e-5)
    nothing = load_onnx(folder).encode_video([], progress=False)
    assert nothing.shape == (0, WIDTH) and nothing.dtype == np.float32


@pytest.mark.parametrize(("family", "only"), [("siglip2", None), ("align", "text")])
def test_other_families(family: str, only: str | None, tmp_path: Path) -> None:
    """SigLIP 2 has its own patches, position embedding and length of texts, ALIGN's text encoder needs the mask."""
    folder = save_backbone(family, tmp_path / "backbone")
    backbone = load_backbone(folder)
    torch.manual_seed(0)
    student = StudentModel.from_backbone(backbone, temporal_layers=0, frames=FRAMES)
    student.processor = StudentProcessor.from_backbone(
        folder, backbone.config, sampling=FrameSampling("intervals", FRAMES), max_tokens=10
    )
    export_onnx(student, tmp_path / "out", only=only)
    loaded, texts = load_onnx(tmp_path / "out", threads=1), TEXTS[:3]
    np.testing.assert_allclose(
        loaded.encode_text(texts), student.encode_text(texts, progress=False), rtol=0, atol=1e-5
    )
    if only == "text":
        return
    frames, mask = frames_and_mask(3)
    vectors, _ = loaded.encode_frames(frames.numpy(), mask.numpy())
    np.testing.assert_allclose(vectors, expected_videos(student, frames, mask)[0], rtol=0, atol=1e-5)


def test_an_export_that_differs_is_not_written(
    published: tuple[StudentModel, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    student, folder = published
    before = shutil.copytree(folder, tmp_path / "out")
    monkeypatch.setattr(parity, "TOLERANCE", 0.0)
    with pytest.raises(CheckpointError, match=r"text.onnx differs from the student by \d\.\de-\d+ .*allowed: 0"):
        export_onnx(student, before, only="text")
    assert list(tmp_path.iterdir()) == [before]  # the export that was there is whole
    assert all((before / path.name).read_bytes() == path.read_bytes() for path in folder.iterdir())


def test_a_folder_of_something_else_is_never_replaced(published: tuple[StudentModel, Path], tmp_path: Path) -> None:
    student, _ = published
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match=r"holds notes\.txt, which is no export of ours"):
        export_onnx(student, tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(CheckpointError, match="holds another model"):
        export_onnx(student, other)
    with pytest.raises(CheckpointError, match="is a file"):
        export_onnx(student, tmp_path / "notes.txt")
    assert (tmp_path / "notes.txt").read_text() == "mine" and not (tmp_path / ".other.tmp").exists()


def test_students_that_cannot_be_exported_say_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    student = tiny_student(temporal_layers=0)
    with pytest.raises(CheckpointError, match=r"precision is 'int4' .*allowed: float32, float16, int8"):
        export_onnx(student, tmp_path / "out", precision="int4")
    student.processor = None
    with pytest.raises(CheckpointError, match="has no processor"):
        export_onnx(student, tmp_path / "out")
    student.processor = tiny_processor()
    monkeypatch.setattr("teachclip.onnx.folder.find_spec", lambda name: None if name == "onnxscript" else True)
    with pytest.raises(CheckpointError, match=r"needs onnxscript: pip install 'teachclip\[onnx\]'"):
        export_onnx(student, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_tokenizer_that_differs_is_refused(
    published: tuple[StudentModel, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    student, _ = published
    tokenize = type(student.processor.tokenizer).__call__

    def upper(self: object, texts: list[str], *arguments: object, **options: object) -> object:
        changed = [text.replace("a man", "man") for text in texts] if isinstance(texts, list) else texts
        return tokenize(self, changed, *arguments, **options)

    monkeypatch.setattr(type(student.processor.tokenizer), "__call__", upper)
    with pytest.raises(CheckpointError, match=r"'a man plays the drum' has other tokens in tokenizer\.json"):
        export_onnx(student, tmp_path / "out", only="text")


def test_wrong_shapes_of_frames_are_one_line(published: tuple[StudentModel, Path]) -> None:
    loaded, batch = load_onnx(published[1]), tiny_batch()
    frames, mask = frames_and_mask(2)
    for bad, bad_mask in (
        (batch["pixel_values"].numpy(), mask.numpy()),
        (frames.numpy()[:, :1], mask.numpy()),
        (frames.numpy(), mask.numpy()[:, :2]),
        (frames.numpy(), mask.numpy().astype(int)),
        (frames.numpy(), mask.numpy()[:1]),
    ):
        with pytest.raises(DataError, match=r"expected (uint8|bool) \(\d, 4") as error:
            loaded.encode_frames(bad, bad_mask)
        assert "\n" not in str(error.value)
