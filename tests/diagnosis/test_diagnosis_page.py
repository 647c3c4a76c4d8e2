"""The page of a diagnosis: escaped, with the images inside, and small."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
from html_pages import HOSTILE, check_hostile_page
from PIL import Image

from teachclip.diagnosis.report import (
    IMAGE_BYTES,
    diagnosis_page,
    frame_jpeg,
    image_height,
    terminal_text,
)
from teachclip.reports.pages import jpeg_uri

METRICS = {"recall_at_1": 12.5, "recall_at_5": 50.0, "recall_at_10": 75.0}


def image(size=(120, 160), seed=0):
    return np.random.RandomState(seed).randint(0, 256, (3, *size)).astype(np.uint8)


def row(video, *, teacher=True):
    return {
        "video": video,
        "frame_count": 9,
        "frames": [0, 4],
        "student": [0.25, 0.75],
        "teacher": [0.9, 0.1] if teacher else None,
    }


def made_up_report(*, teacher=True):
    steps = [
        {"name": "student", "label": "student", "description": HOSTILE, **METRICS},
        {"name": "teacher", "label": "teacher", "description": "As it is.", **dict.fromkeys(METRICS, 80.0)},
    ]
    query = {"caption": HOSTILE, "caption_id": "c", "student_rank": 31, "teacher_rank": 2}
    return {
        "recipe": HOSTILE,
        "student": HOSTILE,
        "teacher": HOSTILE,
        "split": "test",
        "videos": 100,
        "captions": 300,
        "models": {"student": {"t2v": METRICS, "v2t": METRICS}},
        "cross_fitted": True,
        "ladder": steps,
        "parts": [{"step": "teacher", "label": HOSTILE, **{key: 80 - METRICS[key] for key in METRICS}}],
        "gap": {key: 80 - METRICS[key] for key in METRICS},
        "comparisons": [
            {"name": "closest_frame", "label": HOSTILE, "description": HOSTILE, "captions": None, **METRICS}
        ],
        "agreement": [{"name": "spearman", "label": HOSTILE, "description": HOSTILE, "value": None}],
        "frames": {HOSTILE: {"event": 0.5, "empty": 0.5}},
        "notes": [HOSTILE],
        "worst": [{**query, "match": row(HOSTILE, teacher=teacher), "top": row(HOSTILE, teacher=teacher)}],
    }


def page_of(report):
    images = [image(seed=seed) for seed in range(2)]
    return diagnosis_page(report, [{"match": images, "top": images}])


def test_the_page_shows_hostile_texts_as_text_and_needs_no_network():
    check_hostile_page(page_of(made_up_report()), images=4)


def test_the_page_shows_the_frames_and_both_weights_below_them():
    page = page_of(made_up_report())
    assert page.count("<img ") == 4
    sources = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page)
    opened = Image.open(io.BytesIO(base64.b64decode(sources[0])))
    assert opened.size == (128, 96)
    for text in ("S 25%", "S 75%", "T 90%", "T 10%", "2 of 9 frames", "student 31, teacher 2"):
        assert text in page


def test_a_teacher_without_frame_relevance_has_no_bars():
    page = page_of(made_up_report(teacher=False))
    assert "S 25%" in page and 'class="bar T"' not in page


def test_a_page_without_queries_and_kinds_says_so():
    page = diagnosis_page({**made_up_report(), "worst": [], "frames": {}}, [])
    assert "No query is ranked worse by the student." in page and "<img " not in page


def test_the_terminal_gets_the_tables():
    text = terminal_text(made_up_report())
    assert "| gap " in text and "+67.5" in text and "sum of the parts" in text


def test_images_shrink_until_they_fit():
    small = [image((64, 64))] * 10
    assert image_height(small) == 96
    assert Image.open(io.BytesIO(frame_jpeg(small[0], 96))).size == (64, 64)  # never enlarged
    many = [image((96, 96))] * 480  # noise: the worst that JPEG can meet
    height = image_height(many)
    assert height < 96
    assert len(frame_jpeg(many[0], height)) * 480 <= IMAGE_BYTES
    assert len(jpeg_uri(frame_jpeg(many[0], height))) * 480 < 3_000_000
