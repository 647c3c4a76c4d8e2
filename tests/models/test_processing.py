"""Strings and video files to tensors, and to embeddings."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
import torch
import view_decoder
from PIL import Image
from sentence_transformers.base.modality import InputFormatter
from tiny_models import FRAMES, SIZE, WIDTH, tiny_clip, tiny_processor, tiny_student, tiny_tokenizer
from torch.testing import assert_close
from video_files import cut_file
from video_files import write_video as number_video

from teachclip.data.video import workers
from teachclip.data.video.decode import decode_frames
from teachclip.data.video.sampling import FrameSampling
from teachclip.data.video.transform import CLIP_MEAN, CLIP_STD, normalize, resize_and_crop
from teachclip.errors import CheckpointError, DataError, VideoError
from teachclip.models.processing import StudentProcessor, check_texts


def write_video(path: Path, *, frames: int = 16, seed: int = 0) -> Path:
    """A small mp4 file of smooth frames."""
    state = np.random.RandomState(seed)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("h264", rate=8)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(frames):
            pixels = np.kron(state.randint(0, 255, (6, 8, 3)), np.ones((8, 8, 1))).astype(np.uint8)
            for packet in stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


def test_files_are_read_by_the_plan_and_padded_with_zeros(tmp_path: Path) -> None:
    short, long = write_video(tmp_path / "short.mp4"), write_video(tmp_path / "long.mp4", frames=64, seed=1)
    inputs = tiny_processor()(videos=[short, str(long)])
    assert inputs["pixel_values"].shape == (2, FRAMES, 3, SIZE, SIZE)
    assert inputs["frame_mask"].tolist() == [[True, True, False, False], [True] * 4]
    assert not inputs["pixel_values"][0, 2:].any()
    sampling = FrameSampling("per_second", FRAMES)
    wanted = normalize(resize_and_crop(decode_frames(short, sampling), SIZE), CLIP_MEAN, CLIP_STD)
    assert_close(inputs["pixel_values"][0, :2], wanted)


def test_arrays_of_either_axis_order_are_taken_and_thinned_as_published() -> None:
    frames = torch.randint(0, 255, (9, 3, 40, 50), dtype=torch.uint8)
    processor = tiny_processor()
    first = processor(videos=[frames])["pixel_values"]
    last = processor(videos=frames.permute(0, 2, 3, 1).numpy())["pixel_values"]
    assert torch.equal(first, last)
    picked = frames[[0, 2, 5, 8]]  # int(linspace(0, 8, 4))
    assert torch.equal(first[0], normalize(resize_and_crop(picked, SIZE), CLIP_MEAN, CLIP_STD))


@pytest.mark.parametrize(
    ("video", "message"),
    [
        (np.zeros((4, 3, 8, 8), dtype=np.float32), r"torch.float32 \(4, 3, 8, 8\)"),
        (np.zeros((0, 3, 8, 8), dtype=np.uint8), r"torch.uint8 \(0, 3, 8, 8\)"),
        (np.zeros((4, 8, 8, 4), dtype=np.uint8), "expected 3 channels in axis 1 or in the last axis"),
        (7, "a video is a int"),
        ("/no/such/file.mp4", "/no/such/file.mp4: does not exist"),
    ],
)
def test_what_is_no_video_is_named(video: object, message: str) -> None:
    with pytest.raises(VideoError, match=message):
        tiny_processor()(videos=[video])


def test_long_texts_are_cut_and_keep_their_end() -> None:
    processor = tiny_processor(max_tokens=6)
    inputs = processor(text=["a red circle over a blue square", "sea"])
    end = processor.tokenizer.eos_token_id
    assert inputs["input_ids"].shape == (2, 6)
    assert inputs["input_ids"][0, -1] == end and (inputs["input_ids"][0, :-1] != end).all()
    assert inputs["attention_mask"].sum(dim=1).tolist() == [6, 3]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a drum over a piano", "'a drum over a piano': not in the vocabulary: drum, piano"),
        ("red <|endoftext|> sea", "not in the vocabulary: <|endoftext|>"),
        ("  ", "text 1 is '  ', expected a text that is not empty"),
        ("", "text 1 is '', expected a text that is not empty"),
    ],
)
def test_texts_that_would_end_early_are_named(text: str, message: str) -> None:
    with pytest.raises(DataError) as error:
        tiny_processor()(text=["red", text])
    assert message in str(error.value)


def test_settings_of_other_libraries_hold_and_unknown_ones_are_named() -> None:
    processor, text = tiny_processor(), ["a red circle over a sea", "sea"]
    plain = processor(text=text)["input_ids"]
    groups = {"text_kwargs": {"padding": True, "truncation": "longest_first"}, "videos_kwargs": {"fps": 2}}
    assert torch.equal(processor(text=text, **groups, common_kwargs={"return_tensors": "pt"})["input_ids"], plain)
    assert torch.equal(processor(text=text, truncation=True, padding="longest", max_length=99)["input_ids"], plain)
    assert processor(text=text, text_kwargs={"max_length": 3})["input_ids"].shape == (2, 3)
    assert processor(text="sea", padding="max_length")["attention_mask"].tolist() == [[1] * 3 + [0] * 7]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stride": 3}, "stride cannot be set here"),
        ({"text_kwargs": {"add_special_tokens": False}}, "add_special_tokens cannot be set here"),
        ({"padding": False}, "padding is False, allowed: True, 'longest', 'max_length'"),
        ({"max_length": 1}, "max_length is 1, allowed: 3 tokens or more"),
        ({"truncation": False, "max_length": 5}, "text 1 has 8 tokens, allowed: 5; or write truncation=True"),
    ],
)
def test_settings_that_cannot_hold_are_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        tiny_processor()(text=["sea", "a red circle over a sea"], **settings)


@pytest.mark.parametrize(
    "path",
    [f"film{ending}" for ending in (".webm", ".m4v", ".MPG", ".ts", ".3gp", ".ogv", ".mp4", ".m2ts")]
    + ["/no such folder/a film.mp4", "C:\\my films\\a.avi", "https://example.org/a.mp4", Path("a.mp4")],
)
def test_the_path_of_a_video_is_not_taken_for_a_text(path: str | Path) -> None:
    for encode in (lambda texts: tiny_processor()(text=texts), tiny_student().encode_text):
        with pytest.raises(
            DataError, match=r"text 1 is '.*', the path of a video: give it as a video \(encode_video"
        ):
            encode(["sea", path])


def test_a_text_about_a_file_is_a_text(tmp_path: Path) -> None:
    check_texts(["someone opens movie.mp4", "holiday.mp4 is played", "a sea.\n"])
    spaced = tmp_path / "a film.mp4"
    spaced.write_bytes(b"")
    with pytest.raises(DataError, match="the path of a video"):
        check_texts([str(spaced)])


def test_lists_of_frames_are_videos(tmp_path: Path) -> None:
    frames = torch.randint(0, 255, (3, 40, 50, 3), dtype=torch.uint8).numpy()
    pictures = [Image.fromarray(frame) for frame in frames]
    processor = tiny_processor()
    wanted = processor(videos=[frames])["pixel_values"]
    turned = frames[:, :, ::-1].copy()[:, :, ::-1]  # with a negative stride
    every = [pictures, [pictures], (pictures,), list(frames), [list(frames)], frames, [turned], torch.tensor(frames)]
    for videos in every:
        assert torch.equal(processor(videos=videos)["pixel_values"], wanted)
    assert processor(videos=[pictures, pictures[:2]])["frame_mask"].sum(dim=1).tolist() == [3, 2]
    grey = [picture.convert("L") for picture in pictures]
    assert processor(videos=[grey])["pixel_values"].shape == wanted.shape
    student = tiny_student()
    assert student.encode_video(pictures, progress=False).shape == (1, WIDTH)
    client = InputFormatter("teachclip", supported_modalities=["text", "video"])
    theirs = client.parse_inputs([{"video": pictures}])[1]["video"]
    assert torch.equal(processor(videos=theirs)["pixel_values"], wanted)


def test_frames_of_several_sizes_are_named() -> None:
    frames = [Image.new("RGB", (40, 30)), Image.new("RGB", (20, 30))]
    with pytest.raises(VideoError, match=r"frames of several shapes: \(30, 20, 3\), \(30, 40, 3\)"):
        tiny_processor()(videos=[frames])


def test_settings_survive_saving(tmp_path: Path) -> None:
    sampling = FrameSampling("per_second", 5, rate=2, keep="head")
    processor = tiny_processor(frame_sampling=sampling, mean=[0.1, 0.2, 0.3], std=[0.4, 0.5, 0.6])
    processor.save_pretrained(tmp_path)
    again = StudentProcessor.from_pretrained(tmp_path)
    assert again.sampling == sampling
    assert (again.size, again.max_tokens) == (SIZE, 10)
    assert (again.mean, again.std) == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    text = ["a red circle"]
    assert torch.equal(again(text=text)["input_ids"], processor(text=text)["input_ids"])


def test_a_wrong_frame_plan_is_named() -> None:
    with pytest.raises(CheckpointError, match=r"frame_sampling .* is invalid"):
        tiny_processor(frame_sampling={"kind": "intervals", "number": 4})


def test_a_processor_takes_its_tokenizer_and_pixels_from_a_clip(tmp_path: Path) -> None:
    tiny_clip().save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    sampling = FrameSampling("intervals", FRAMES)
    config = tiny_clip().config
    plain = StudentProcessor.from_backbone(tmp_path, config, sampling=sampling)
    assert (plain.size, plain.mean, plain.max_tokens) == (SIZE, list(CLIP_MEAN), 16)
    settings = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "crop_size": {"height": SIZE, "width": SIZE}}
    settings["size"] = {"shortest_edge": 48}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    processor = StudentProcessor.from_backbone(str(tmp_path), config, sampling=sampling, max_tokens=8)
    assert (processor.size, processor.scale_to, processor.mean, processor.std, processor.max_tokens) == (
        SIZE,
        48,
        [0.5] * 3,
        [0.25] * 3,
        8,
    )
    assert StudentProcessor.from_backbone(tmp_path, config, sampling=sampling, size=SIZE).size == SIZE


def test_a_clip_without_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="its tokenizer cannot be loaded"):
        StudentProcessor.from_backbone(tmp_path, tiny_clip().config, sampling=FrameSampling("intervals", FRAMES))


def test_texts_are_encoded_in_order_whatever_the_batch_size(capsys: pytest.CaptureFixture[str]) -> None:
    student = tiny_student()
    texts = ["a red circle over sea", "sea", "a blue square", "red", "a circle over a square over a sea"]
    every = student.encode_text(texts, progress=False)
    assert "texts" not in capsys.readouterr().err
    assert every.shape == (5, WIDTH)
    assert_close(every.norm(dim=-1), torch.ones(5))
    assert_close(student.encode_text(texts, batch_size=2), every, atol=1e-6, rtol=0)
    assert "texts: 100%" in capsys.readouterr().err
    assert_close(student.encode_text("a blue square", progress=False), every[2:3], atol=1e-6, rtol=0)
    assert student.encode_text([], progress=False).shape == (0, WIDTH)


def test_videos_are_encoded_from_files_in_order_whatever_the_batch_size(tmp_path: Path) -> None:
    student = tiny_student().train()
    paths = [write_video(tmp_path / f"{seed}.mp4", frames=10 + seed, seed=seed) for seed in range(3)]
    every = student.encode_video(paths, progress=False)
    assert student.training
    assert every.shape == (3, WIDTH) and not every.requires_grad
    assert_close(student.encode_video(paths, batch_size=2, progress=False), every, atol=1e-6, rtol=0)
    assert_close(student.encode_video(paths[1], progress=False), every[1:2], atol=1e-6, rtol=0)
    half = student.encode_video(paths, progress=False, precision="bfloat16")
    assert half.dtype == torch.float32 and not torch.equal(half, every) and (half * every).sum(1).min() > 0.999
    inputs = student.processor(text=["sea"], videos=paths)
    assert_close(student(**inputs).video_embeds, every, atol=1e-6, rtol=0)


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two good films, one that is none, and one of which the end is missing."""
    folder = tmp_path_factory.mktemp("films")
    films = {name: write_video(folder / f"{name}.mp4", frames=32, seed=ord(name[0])) for name in ("good", "other")}
    films["bad"] = folder / "bad.mp4"
    films["bad"].write_bytes(b"no video at all")
    whole = number_video(folder / "whole.mp4", frames=60, faststart=True)
    films["cut"] = cut_file(whole, folder / "cut.mp4", share=0.7)
    return films


def test_an_unreadable_video_is_named(films: dict[str, Path]) -> None:
    with pytest.raises(VideoError, match=r'bad\.mp4: .*; on_error="skip" leaves such videos out and names them'):
        tiny_student().encode_video([films["good"], films["bad"]], progress=False)


def test_one_bad_video_costs_no_other_one(films: dict[str, Path]) -> None:
    student = tiny_student()
    array = torch.randint(0, 255, (9, 3, 40, 50), dtype=torch.uint8)
    videos = [films["good"], films["bad"], array, films["cut"], torch.zeros(3), str(films["other"])]
    alone = student.encode_video([films["good"], array, films["other"]], progress=False)
    found = student.encode_video(videos, on_error="skip", batch_size=2, progress=False)
    assert found.kept == [0, 2, 5] and list(found.failures) == [1, 3, 4] and found.partial == {}
    assert_close(found.embeddings, alone, atol=1e-6, rtol=0)
    assert "bad.mp4" in found.failures[1] and "frames.on_error" in found.failures[3]
    assert "expected a path, (path, start, end)" in found.failures[4]
    found = student.encode_video(videos, on_error="use_decodable", progress=False)
    assert found.kept == [0, 2, 3, 5] and list(found.failures) == [1, 4]
    assert list(found.partial) == [3] and "frames.on_error" not in found.partial[3]


def test_nothing_readable_gives_no_embeddings(films: dict[str, Path]) -> None:
    found = tiny_student().encode_video(films["bad"], on_error="skip", progress=False)
    assert found.embeddings.shape == (0, WIDTH) and list(found.failures) == [0]


def test_parts_of_files_are_videos(films: dict[str, Path]) -> None:
    student = tiny_student()
    part = (films["good"], 1.0, 3.0)
    every = student.encode_video([part, films["good"], (films["good"], None, None)], progress=False)
    assert_close(every[1], every[2]) and not torch.equal(every[0], every[1])
    assert_close(student.encode_video(part, progress=False), every[:1], atol=1e-6, rtol=0)
    assert_close(student.processor(videos=part)["pixel_values"], student.processor(videos=[part])["pixel_values"])
    with pytest.raises(VideoError, match="the span begins at 90 seconds"):
        student.encode_video([(films["good"], 90, None)], progress=False)


def test_a_file_that_hangs_costs_its_time_limit_and_no_other_one(
    films: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "decode_file", view_decoder.failing)
    videos = [tmp_path / "slow.mp4", tmp_path / "fine.mp4"]
    found = tiny_student().encode_video(videos, on_error="skip", time_limit=1, workers=1, progress=False)
    assert found.kept == [1] and found.failures == {0: f"{videos[0]}: took longer than 1 seconds"}


@pytest.mark.parametrize("wrong", [{"on_error": "ignore"}, {"workers": -1}, {"time_limit": 0}, {"memory_limit": 0}])
def test_limits_that_cannot_be_are_named(films: dict[str, Path], wrong: dict[str, object]) -> None:
    with pytest.raises(DataError, match=next(iter(wrong))):
        tiny_student().encode_video([films["good"]], progress=False, **wrong)


@pytest.mark.parametrize("turn", [lambda video: video[:, ::-1], lambda video: video[::-1].transpose(0, 3, 1, 2)])
def test_arrays_in_any_layout_are_taken(turn: Callable[[np.ndarray], np.ndarray]) -> None:
    video = np.random.RandomState(0).randint(0, 255, (4, 40, 50, 3)).astype(np.uint8)
    turned = turn(video)
    turned.flags.writeable = False
    student, plain = tiny_student(), np.ascontiguousarray(turned)
    for one in (turned, [turned], torch.from_numpy(plain)):
        assert torch.equal(
            student.processor(videos=one)["pixel_values"], student.processor(videos=[plain])["pixel_values"]
        )
        assert_close(student.encode_video(one, progress=False), student.encode_video([plain], progress=False))


def test_a_student_without_processor_says_so() -> None:
    student = tiny_student()
    student.processor = None
    with pytest.raises(DataError, match="needs a processor, which this student does not have"):
        student.encode_text(["sea"])
    with pytest.raises(DataError, match="batch_size is 0"):
        tiny_student().encode_text(["sea"], batch_size=0)
