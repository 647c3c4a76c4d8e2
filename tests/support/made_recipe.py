"""The recipe of the small project that several rooms test with."""

from __future__ import annotations

from pathlib import Path

from tiny_models import FRAMES, SIZE


def recipe_sections(root: Path, output: Path, stores: Path) -> dict:
    """Return the recipe of the made project, as nested dictionaries."""
    return {
        "name": "tiny",
        "seed": 0,
        "output": str(output),
        "stores": str(stores),
        "data": {
            "format": "csv",
            "videos": str(root / "videos"),
            "annotations": str(root / "captions.csv"),
            "validation": {"videos": 3},
        },
        "frames": {"sampling": "intervals", "count": FRAMES, "size": SIZE, "workers": 1},
        "text": {"max_tokens": 10},
        "student": {"backbone": str(root / "clip"), "temporal_layers": 1},
        "teachers": [{"name": "xpool", "checkpoint": str(root / "teacher.pth")}],
        "optimizer": {"name": "adamw", "lr": 1e-3, "clip_lr": 1e-4, "attention_lr": 1e-2},
        "train": {"encoders": "frozen", "steps": 4, "batch_size": 4, "evaluate_every": 2, "log_every": 1},
    }
