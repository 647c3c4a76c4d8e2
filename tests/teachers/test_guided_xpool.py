"""The X-Pool teacher that is given its student's frame attention."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_xpool import tiny_teacher
from tiny_backbones import save_backbone
from tiny_models import FRAMES, tiny_batch, tiny_clip, tiny_student
from torch.testing import assert_close

from teachclip.errors import CheckpointError, RecipeError
from teachclip.models.backbone import load_backbone
from teachclip.models.student import StudentModel
from teachclip.scorer import FeatureScorer, Teacher, Tokens, teacher_factories, teacher_traits
from teachclip.scoring.token_store import architecture_hash
from teachers import load_teacher
from teachers.guided_xpool import LEAST_WEIGHT, GuidedXPool


@pytest.fixture
def folder(tmp_path: Path) -> str:
    save(tiny_student(frames=FRAMES), tmp_path / "student")
    return str(tmp_path / "student")


def save(student: StudentModel, folder: Path) -> None:
    student.save_pretrained(folder)
    student.processor.save_pretrained(folder)


def tokens(teacher: Teacher) -> tuple[Tokens, Tokens]:
    batch = tiny_batch()
    texts = teacher.encode_texts(batch["input_ids"], batch["attention_mask"])
    return texts, teacher.encode_videos(batch["pixel_values"], batch["frame_mask"])


@pytest.mark.parametrize("options", [{}, {"attention": "sigmoid"}, {"vectors": 2}])
def test_the_student_weighs_what_x_pool_takes_of_every_frame(options: dict[str, object]) -> None:
    xpool, student = tiny_teacher(), tiny_student(frames=FRAMES, **options).eval()
    teacher = GuidedXPool(xpool, student, strength=2.0)
    texts, videos = tokens(teacher)
    plain = xpool.frame_relevance(*tokens(xpool))
    batch = tiny_batch()
    weights = student.aggregate(_features(student, batch), batch["frame_mask"])[1].pooling_weights
    weights = weights.mean(dim=1) if weights.ndim == 3 else weights
    wanted = plain * weights.clamp_min(LEAST_WEIGHT) ** 2 * batch["frame_mask"]
    assert_close(teacher.frame_relevance(texts, videos), wanted / wanted.sum(dim=1, keepdim=True))


def _features(student: StudentModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    pixels = batch["pixel_values"]
    return student.backbone.get_image_features(pixels.flatten(0, 1)).pooler_output.unflatten(0, pixels.shape[:2])


def test_its_scores_are_those_of_the_frames_that_the_student_takes() -> None:
    xpool, student = tiny_teacher(), tiny_student(frames=FRAMES).eval()
    texts, videos = tokens(GuidedXPool(xpool, student))
    kept = videos["mask"].clone()
    kept[:, 1:] = False
    one_frame = {**videos, "log_prior": torch.full_like(videos["log_prior"], -1e4).masked_fill(kept, 0)}
    assert_close(xpool.score(texts, one_frame), xpool.score(texts, {"frames": videos["frames"], "mask": kept}))
    assert (xpool.score(texts, videos) - xpool.score(*tokens(xpool))).abs().max() > 1e-3


def test_without_strength_it_is_x_pool() -> None:
    xpool = tiny_teacher()
    teacher = GuidedXPool(xpool, tiny_student(frames=FRAMES).eval(), strength=0.0)
    assert_close(teacher.score(*tokens(teacher)), xpool.score(*tokens(xpool)))
    assert_close(teacher.frame_relevance(*tokens(teacher)), xpool.frame_relevance(*tokens(xpool)))


def test_it_loads_from_x_pools_checkpoint_and_a_students_folder(folder: str) -> None:
    xpool = tiny_teacher(heads=4)
    teacher = load_teacher("guided_xpool", xpool.checkpoint(), student=folder)
    assert isinstance(teacher, GuidedXPool) and teacher.strength == 1.0
    wanted = GuidedXPool(xpool, tiny_student(frames=FRAMES).eval())
    assert_close(teacher.score(*tokens(teacher)), wanted.score(*tokens(wanted)))
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert not any(module.training for module in teacher.modules())
    traits = teacher_traits(teacher)
    assert traits.max_frames == wanted.student.config.max_frames
    assert traits.has_frame_relevance and traits.clip is teacher.xpool.clip
    assert traits.preprocessing == teacher.student.processor.preprocessing  # what its student reads
    assert isinstance(teacher, Teacher) and not isinstance(teacher, FeatureScorer)
    assert teacher_factories(GuidedXPool).from_clip is None  # it is made of two models that were trained


def test_another_student_or_another_setting_of_it_is_another_teacher() -> None:
    def identity(**changes: object) -> str:
        student = tiny_student(frames=FRAMES)
        for key, value in changes.items():
            setattr(student.config, key, value)
        return architecture_hash(GuidedXPool(tiny_teacher(), student))

    assert identity() == identity()
    assert len({identity(), identity(attention_input="before"), identity(mask_padding=False)}) == 3


@pytest.mark.parametrize("strength", [-1.0, float("nan"), float("inf"), 101.0])
def test_another_strength_is_refused(strength: float) -> None:
    with pytest.raises(CheckpointError, match=r"strength is \S+; allowed: numbers from 0 to 100"):
        GuidedXPool(tiny_teacher(), tiny_student(frames=FRAMES), strength=strength)


def test_what_does_not_fit_is_refused(folder: str, tmp_path: Path) -> None:
    state = tiny_teacher().checkpoint()
    missing = str(tmp_path / "missing")
    with pytest.raises(CheckpointError, match=rf"guided_xpool: options\.student={missing}: .*no such folder"):
        load_teacher("guided_xpool", state, student=missing)
    with pytest.raises(RecipeError, match="teacher 'guided_xpool' needs the option 'student': write it"):
        load_teacher("guided_xpool", state)
    with pytest.raises(CheckpointError, match="no frame attention: it averages its frames"):
        GuidedXPool(tiny_teacher(), StudentModel.from_backbone(tiny_clip(), pooling="mean"))
    siglip = StudentModel.from_backbone(load_backbone(save_backbone("siglip", tmp_path / "siglip")))
    with pytest.raises(CheckpointError, match="reads the tokens and pixels of SigLIP, X-Pool those of CLIP"):
        GuidedXPool(tiny_teacher(), siglip)
    other = tiny_student(frames=FRAMES)
    other.config.backbone_config.vision_config.image_size = 999
    with pytest.raises(CheckpointError, match="its student of 999"):
        GuidedXPool(tiny_teacher(), other)
