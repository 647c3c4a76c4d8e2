"""Results files as `teachclip distill` writes them, with made-up numbers."""

from typing import Any

RECALLS = ("recall_at_1", "recall_at_5", "recall_at_10")


def made_up_run(recall: float, *, shift: float = 0.0, **head: Any) -> dict[str, Any]:
    """Return one run whose t2v R@1 is `recall`; every other number differs from it and from each other."""
    t2v = {name: recall + 7.3 * k for k, name in enumerate(RECALLS)}
    t2v |= {"median_rank": 30.5 - recall / 10, "mean_rank": 61.7 - recall / 5}
    v2t = {name: value + 1.9 + shift for name, value in t2v.items()}
    test = {"t2v": t2v, "v2t": v2t, "sum_of_recalls": 0.0, "videos": 300, "captions": 320}
    return {"model": "student", "selected_on": "validation", "excluded": {}, "test": test, **head}


def made_up_cost(size: float) -> dict[str, float]:
    return {"bytes_per_video": size, "flops_per_query": size * 1234, "ms_per_query": size / 3000, "candidates": 1000}
