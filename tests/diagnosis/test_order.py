"""The probe of order: clauses and frames in another order, on students that know it and on some that do not."""

import json

import numpy as np
import pytest
import torch
from tiny_models import tiny_clip

from teachclip.diagnosis.diagnose import diagnose
from teachclip.diagnosis.order import frame_order_steps, permuted_frames, reversed_frames, swapped
from teachclip.models.student import StudentModel


@pytest.mark.parametrize(
    ("caption", "other"),
    [
        ("open the door, then pick up a key", "pick up a key, then open the door"),
        ("open the door after you pick up a key", "pick up a key after you open the door"),
        ("a man runs and then falls", "falls and then a man runs"),
        ("he sings before he dances", "he dances before he sings"),
        ("A man runs, then he falls.", "He falls, then a man runs."),
        ("I sing before BMX riders jump!", "BMX riders jump before I sing!"),
        ("a man looks after a child", None),
        ("a red ring and a blue ball", None),
        ("first this, then that, then more", None),
        ("this then that before more", None),
        ("an authentic dish", None),
        (", then nothing", None),
        ("a man talks, then a man talks", None),
        ("A man talks. then a  man talks!", None),
    ],
)
def test_the_clauses_of_a_caption_change_places(caption, other):
    assert swapped(caption) == other
    assert other is None or swapped(other) == caption


def test_frames_change_places_and_padding_does_not():
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]).bool()
    assert reversed_frames(mask).tolist() == [[3, 2, 1, 0], [1, 0, 2, 3]]
    places = permuted_frames(torch.ones(50, 8).bool())
    assert (places.sort(dim=1).values == torch.arange(8)).all()
    assert (places != torch.arange(8)).float().mean() > 0.8
    assert torch.equal(places, permuted_frames(torch.ones(50, 8).bool()))


def tokens(videos=12, frames=4, seed=0):
    width = tiny_clip(text_layers=4, heads=1).config.projection_dim
    features = torch.randn(videos, frames, width, generator=torch.Generator().manual_seed(seed))
    return {"frame_features": features, "frame_mask": torch.ones(videos, frames).bool()}


def test_a_student_without_a_temporal_transformer_finds_the_same_in_any_order():
    student = StudentModel.from_backbone(tiny_clip(text_layers=4, heads=1), temporal_layers=0).eval()
    videos = tokens()
    with torch.no_grad():
        texts = student.videos_from_features(**videos)["embeds"]  # texts that know their videos
    for step in frame_order_steps(student, texts, videos, np.arange(len(texts))):
        assert step.metrics["recall_at_1"] == 100


class FirstFrame:
    """Knows the order of frames in the simplest way: it sees the first alone."""

    def videos_from_features(self, frame_features, frame_mask):
        return {"embeds": torch.nn.functional.normalize(frame_features[:, 0], dim=-1)}


def test_a_student_that_knows_the_order_loses_by_another_one():
    videos, student = tokens(), FirstFrame()
    texts = student.videos_from_features(**videos)["embeds"]
    found = {step.name: step.metrics for step in frame_order_steps(student, texts, videos, np.arange(len(texts)))}
    assert found["frames_reversed"]["recall_at_1"] < 40 and found["frames_permuted"]["recall_at_1"] < 80


def test_a_diagnosis_reports_the_order_of_frames_and_clauses(project, tmp_path):
    table = (project.root / "captions.csv").read_text(encoding="utf-8").splitlines()
    named = [f"{line.split(',')[0]},a red circle then a blue square,test" for line in table if line.endswith("test")]
    own = tmp_path / "captions.csv"
    own.write_text("\n".join([*(line for line in table if not line.endswith("test")), *named[::2]]) + "\n")
    student = tmp_path / "student"
    StudentModel.from_backbone(tiny_clip(text_layers=4, heads=1), temporal_layers=0).save_pretrained(student)
    report = diagnose(project(data={"annotations": str(own)}), student=student, out=tmp_path / "out", worst=0)
    assert report["order"]["clauses"]["captions"] == 3 and 0 <= report["order"]["clauses"]["preferred"] <= 100
    assert [step["name"] for step in report["order"]["frames"]] == ["frames_reversed", "frames_permuted"]
    page = (tmp_path / "out" / "diagnosis.html").read_text(encoding="utf-8")
    assert "Of 3 captions that tell an order" in page and "Order of events" in page
    assert json.loads((tmp_path / "out" / "diagnosis.json").read_text())["order"] == report["order"]
