"""The table of batch keys in teachclip/README.md, against the batches of real runs."""

import re
from pathlib import Path

import pytest

from teachclip import distill
from teachclip.training.task import DistillationTask

README = Path(__file__).parents[2] / "teachclip" / "README.md"
PREFIX = r"(joined\.)?((inputs\d+|frame_sets|scored_frame_sets|swapped)\.)?"


def table_keys():
    """Return the first column of the table: names, and patterns of numbered names."""
    table = README.read_text(encoding="utf-8").split("| key of a batch |")[1].split("\n\n")[0]
    cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    return [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]


@pytest.mark.parametrize(
    ("source", "encoders", "scorer"),
    [("stored", "frozen", "xpool"), ("stored", "finetuned", "backbone"), ("online", "finetuned", "xpool")],
)
def test_every_key_of_a_batch_is_in_the_table_and_every_plain_key_of_the_table_is_used(
    project, monkeypatch, source, encoders, scorer
):
    seen = set()
    forward = DistillationTask.forward

    def record(self, batch):
        seen.update(batch)
        return forward(self, batch)

    monkeypatch.setattr(DistillationTask, "forward", record)
    sets = {"weight": 1.0, "count": 4, "texts": 4, "scorer": scorer}
    distill(
        project(
            losses={"frame_sets": sets},
            teaching={"source": source},
            train={"encoders": encoders, "steps": 1, "evaluate_every": 1},
        )
    )
    names = table_keys()
    patterns = [PREFIX + re.escape(name).replace("K", r"\d+") for name in names if not name.endswith(".")]
    assert not [key for key in seen if not any(re.fullmatch(pattern, key) for pattern in patterns)]
    written = {"frozen": {"text_features", "frame_features"}, "finetuned": {"input_ids", "frames", "mean", "std"}}
    expected = written[encoders] | {"frame_mask", "rows", "video_rows", "progress"}
    assert expected <= seen and expected <= set(names)
    assert ("video_text.0" in seen) == (source == "stored")
