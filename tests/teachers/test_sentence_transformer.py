"""Models of Sentence Transformers as teachers: the same numbers as by other ways, and what they are given."""

from __future__ import annotations

import shutil
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from sentence_models import save_colour_encoder, save_embedder, save_llava, save_qwen3_vl
from sentence_transformers import SentenceTransformer
from tiny_models import FRAMES, SIZE, tiny_clip, tiny_processor, tiny_student
from torch.testing import assert_close
from transformers import CLIPProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from teachclip.errors import CheckpointError, DataError, RecipeError
from teachclip.models.raw_inputs import RawTexts, texts_of
from teachclip.scoring.inputs import encode_text_batch, encode_video_batch
from teachclip.scoring.token_store import architecture_hash
from teachers import load_teacher

TEXTS = ["a red circle", "over a blue sea", "square"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A student, a CLIP and an embedder of texts and pictures, as folders."""
    root = tmp_path_factory.mktemp("models")
    tiny_student(heads=1).save_pretrained(root / "student")
    tiny_clip().save_pretrained(root / "clip")
    pictures = CLIPImageProcessorPil(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE})
    CLIPProcessor(pictures, tiny_processor().tokenizer).save_pretrained(root / "clip")
    save_llava(root / "llava")
    save_embedder(root / "embedder", root / "llava")
    return root


def load(folders, name, **options):
    return load_teacher("sentence_transformer", folders / name, **options)


def text_batch(texts):
    ids = [torch.tensor(row, dtype=torch.long) for row in RawTexts()(texts)["input_ids"]]
    mask = [torch.ones_like(row) for row in ids]
    padded = [torch.nn.utils.rnn.pad_sequence(rows, batch_first=True) for rows in (ids, mask)]
    return {"input_ids": padded[0], "attention_mask": padded[1]}


def video_batch(seed=0, size=SIZE, *, whole=False):
    generator = torch.Generator().manual_seed(seed)
    frames = torch.randint(0, 256, (3, FRAMES, 3, size, size), dtype=torch.uint8, generator=generator)
    mask = torch.ones(3, FRAMES, dtype=torch.bool)
    mask[1, 2:] = whole
    return {"frames": frames, "frame_mask": mask, "mean": torch.zeros(3), "std": torch.ones(3)}


@torch.no_grad()
def scores(teacher, texts=TEXTS, **options):
    batch = text_batch(texts), video_batch(**options)
    return teacher.score(encode_text_batch(teacher, batch[0]), encode_video_batch(teacher, batch[1]))


def test_texts_pass_through_batches_as_bytes():
    texts = ["", "a é 漢 🎬", "b" * 300]
    batch = text_batch(texts)
    assert texts_of(batch["input_ids"], batch["attention_mask"]) == texts
    cut = RawTexts()(["a é"], max_length=3)["input_ids"]  # within a character
    assert texts_of(torch.tensor(cut), torch.ones(1, 3, dtype=torch.long)) == ["a "]


def test_an_exported_student_gives_the_relevance_that_it_gives_directly(folders):
    student, teacher = tiny_student(heads=1).eval(), load(folders, "student")
    batch = video_batch()
    with torch.no_grad():
        videos = [frames[mask] for frames, mask in zip(batch["frames"], batch["frame_mask"], strict=True)]
        tokens = {"embeds": student.encode_text(TEXTS, progress=False)}
        wanted = student.score(tokens, {"embeds": student.encode_video(videos, progress=False)})
    assert teacher.modality == "video" and not teacher.has_frame_relevance
    assert_close(scores(teacher), wanted, atol=1e-5, rtol=1e-5)


def test_a_clip_is_the_same_teacher_as_a_dual_encoder(folders):
    teacher, dual = load(folders, "clip"), load_teacher("dual_encoder", folders / "clip")
    batch, how = video_batch(), dual.preprocessing
    ids = how.tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        texts = dual.encode_texts(ids["input_ids"], ids["attention_mask"])
        videos = encode_video_batch(dual, {**batch, "mean": torch.tensor(how.mean), "std": torch.tensor(how.std)})
        own = encode_text_batch(teacher, text_batch(TEXTS)), encode_video_batch(teacher, batch)
    assert teacher.modality == "image" and teacher.preprocessing.size == SIZE
    assert_close(teacher.score(*own), dual.score(texts, videos), atol=1e-4, rtol=1e-4)
    assert_close(teacher.frame_relevance(*own), dual.frame_relevance(texts, videos), atol=1e-5, rtol=1e-5)


def test_a_vision_language_model_encodes_frames_as_pictures(folders):
    client = SentenceTransformer(str(folders / "embedder"), device="cpu")
    batch, teacher = video_batch(), load(folders, "embedder", pooling="max", scale=2.0, batch_size=2)
    frames = batch["frames"].permute(0, 1, 3, 4, 2).numpy()
    pictures = [[Image.fromarray(frame) for frame in video] for video in frames]
    texts = torch.tensor(client.encode_query(TEXTS))
    wanted = torch.stack(
        [
            (texts @ torch.tensor(client.encode_document(video[: int(mask.sum())])).T).amax(1)
            for video, mask in zip(pictures, batch["frame_mask"], strict=True)
        ],
        dim=1,
    )
    assert_close(scores(teacher), 2 * wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "max"])
@pytest.mark.parametrize("name", ["student", "clip"])
def test_padded_frames_never_count(folders, name, pooling):
    teacher, batch = load(folders, name, pooling=pooling), video_batch()
    changed = {**batch, "frames": batch["frames"].clone()}
    changed["frames"][1, 2:] = 255
    with torch.no_grad():
        texts = encode_text_batch(teacher, text_batch(TEXTS))
        found = [teacher.score(texts, encode_video_batch(teacher, each)) for each in (batch, changed)]
    assert torch.equal(*found)
    if pooling == "mean":
        assert not torch.equal(found[0], scores(teacher, whole=True))


def test_prompts_are_named_or_texts(folders):
    client = SentenceTransformer(str(folders / "embedder"), device="cpu")
    for option, prompt in (
        (None, "Find what is described."),
        ("short", "Find."),
        ("Where is this?", "Where is this?"),
        ("", ""),
    ):
        teacher = load(folders, "embedder", query_prompt=option)
        found = encode_text_batch(teacher, text_batch(TEXTS))["sentence"]
        assert_close(found, torch.tensor(client.encode(TEXTS, prompt=prompt)), atol=1e-5, rtol=1e-5)
    plain, asked = (load(folders, "embedder", document_prompt=prompt) for prompt in (None, "What is seen?"))
    found = [encode_video_batch(teacher, video_batch())["frames"] for teacher in (plain, asked)]
    assert (found[0] - found[1]).abs().max() > 1e-3


def test_first_dimensions_count_alone(folders):
    teacher, whole = load(folders, "student", truncate_dim=8), load(folders, "student")
    one, other = (encode_text_batch(each, text_batch(TEXTS))["sentence"] for each in (teacher, whole))
    assert_close(one, torch.nn.functional.normalize(other[:, :8], dim=-1))
    assert scores(teacher).shape == (3, 3)


def test_weights_keep_the_type_that_was_chosen(folders):
    teacher = load(folders, "clip", dtype="bfloat16").to("cpu").eval()
    assert {parameter.dtype for parameter in teacher.parameters()} == {torch.bfloat16}
    tokens = encode_text_batch(teacher, text_batch(TEXTS))
    assert tokens["sentence"].dtype == torch.float32 and not tokens["sentence"].is_inference()
    assert_close(scores(teacher), scores(load(folders, "clip")), atol=0.5, rtol=0.1)


def test_a_text_that_names_a_file_stays_a_text(folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    teacher = load(folders, "embedder")
    before = encode_text_batch(teacher, text_batch(["a.png"]))["sentence"]
    Image.fromarray(np.zeros((SIZE, SIZE, 3), np.uint8)).save("a.png")
    assert torch.equal(before, encode_text_batch(teacher, text_batch(["a.png"]))["sentence"])


def test_a_student_with_a_larger_first_step_is_given_frames_of_that_size(tmp_path):
    student = tiny_student()
    student.processor = tiny_processor(scale_to=SIZE + 8, frame_sampling=student.processor.frame_sampling)
    student.save_pretrained(tmp_path / "student")
    teacher = load_teacher("sentence_transformer", tmp_path / "student")
    assert teacher.preprocessing.size == SIZE + 8
    videos = list(video_batch(size=SIZE + 8, whole=True)["frames"])
    with torch.no_grad():
        tokens = {"embeds": student.encode_text(TEXTS, progress=False)}
        wanted = student.eval().score(tokens, {"embeds": student.encode_video(videos, progress=False)})
    assert_close(scores(teacher, size=SIZE + 8, whole=True), wanted, atol=1e-5, rtol=1e-5)
    assert (
        load_teacher("sentence_transformer", tmp_path / "student", size=64, resize="stretch").preprocessing.size == 64
    )


def test_a_model_of_videos_may_say_of_its_frames_what_it_says_of_pictures(tmp_path):
    save_colour_encoder(tmp_path / "colours")
    videos, frames = (
        load(tmp_path, "colours", trust_remote_code=True, **options)
        for options in ({"frame_relevance": True}, {"modality": "image"})
    )
    texts, batch = text_batch(TEXTS), video_batch()
    tokens = [(encode_text_batch(teacher, texts), encode_video_batch(teacher, batch)) for teacher in (videos, frames)]
    assert (videos.modality, frames.modality) == ("video", "image") and videos.has_frame_relevance
    found, wanted = (teacher.frame_relevance(*each) for teacher, each in zip((videos, frames), tokens, strict=True))
    assert torch.equal(found, wanted)
    shown = zip(batch["frames"], batch["frame_mask"], strict=True)
    ends = [video[mask][[0, -1]].float().mean((0, 2, 3)) for video, mask in shown]
    vectors = torch.nn.functional.normalize(torch.stack(ends) / 255 @ videos.model[0].colours, dim=-1)
    assert_close(videos.score(*tokens[0]), 100 * tokens[0][0]["sentence"] @ vectors.T, atol=1e-4, rtol=1e-4)


def test_the_same_model_elsewhere_has_the_same_identity(folders, tmp_path):
    shutil.copytree(folders / "embedder", tmp_path / "moved")
    first = load(folders, "embedder")
    assert architecture_hash(first) == architecture_hash(load(tmp_path, "moved"))
    settings = tmp_path / "moved" / "config_sentence_transformers.json"
    settings.write_text(settings.read_text().replace("Find what is described.", "Find it."))
    assert architecture_hash(first) != architecture_hash(load(tmp_path, "moved"))


def test_models_that_cannot_teach_are_named(folders, tmp_path, monkeypatch):
    save_qwen3_vl(tmp_path / "qwen3_vl")
    with pytest.raises(CheckpointError, match="its processor needs torchvision, which is not installed"):
        load(tmp_path, "qwen3_vl")
    for options, part in (
        ({"modality": "image"}, "the model takes text, video; needed: text and image"),
        ({"frame_relevance": True}, "frame_relevance needs a model that takes pictures"),
        ({"scale": -1.0}, "scale is -1.0, allowed: above 0"),
    ):
        with pytest.raises(CheckpointError, match=part):
            load(folders, "student", **options)
    with pytest.raises(DataError, match="a video is one vector here"):
        load(folders, "student").frame_relevance({}, {})
    with pytest.raises(RecipeError, match="option dtype is 'float8'"):
        load(folders, "student", dtype="float8")
    long = load(folders, "clip")
    long.model.max_seq_length = 100  # more than the model has positions for
    with pytest.raises(DataError, match="the model cannot encode a text: Sequence length must be less"):
        encode_text_batch(long, text_batch(["a red circle " * 9]))
    with pytest.raises(CheckpointError, match="cannot be loaded as a SentenceTransformer"):
        load(tmp_path, "nowhere/at/all")
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(RecipeError, match=r"pip install 'teachclip\[sentence-transformers\]'"):
        load(folders, "student")


def test_missing_weights_are_refused(folders, tmp_path):
    from safetensors.torch import load_file, save_file

    shutil.copytree(folders / "clip", tmp_path / "clip")
    weights = load_file(tmp_path / "clip" / "model.safetensors")
    del weights["text_projection.weight"]
    save_file(weights, tmp_path / "clip" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"weights of the SentenceTransformer are missing: text_projection"):
        load(tmp_path, "clip")
