"""Made-up results of a study, without training anything."""

from typing import Any

FRAMES = {"event": 0.6, "distractor": 0.3, "empty": 0.1}
COST = {"bytes_per_video": 512.0, "flops_per_query": 256e3, "ms_per_query": 0.5, "candidates": 1000}


def metrics(value: float) -> dict[str, Any]:
    recalls = {"recall_at_1": value, "recall_at_5": value + 10, "recall_at_10": value + 20}
    return {"t2v": recalls, "v2t": recalls, "sum_of_recalls": 6 * value + 60, "videos": 20, "captions": 20}


def made_up_prepared(plan, queries: int = 1500) -> dict[str, Any]:
    """Made-up preparations of a plan: every teacher scores 10 plus the seed modulo 7."""
    labels = [teacher.label for teacher in plan.load((*plan.study.common, *plan.last)).teachers]
    prepared = {}
    for job in plan.preparing():
        same = {**metrics(10.0 + job.seed % 7), "cost": COST}
        content = {"train": "a", "selection": "b", "test": "c", **{f"teacher {label}": "d" for label in labels}}
        prepared[job.name] = {
            "content": {stores: content for stores, _ in job.readers},
            "splits": {"train": [400, 3200], "validation": [300, 2400], "test": [300, queries]},
            "zero_shot": same,
            "teachers": {label: {**same, "frames": FRAMES} for label in labels},
            "event_frames": same,
        }
    return prepared


def made_up_with_factors(plan, queries: int = 1500):
    """Made-up results of a plan with pooling factors: setting 1 at factor 4 is the best, and teaching gains 5."""
    prepared, tuned, tests = made_up_prepared(plan, queries), {}, {}
    for seed in plan.dev_seeds:
        for variant in plan.study.variants:
            for number, setting in enumerate(variant.grid):
                measured = {
                    f"{factor:g}": metrics(20 + 3 * (number == 1) + 2 * (factor == 4)) for factor in plan.factors
                }
                job = plan.train_job("tune", seed, variant, setting, prepared)
                tuned[job.name] = {"step": 1, "validation": metrics(1.0), "factors": measured}
    candidates = plan.candidates(tuned, prepared)
    for job in plan.testing(plan.choices(candidates), prepared):
        value = 20.0 + job.seed % 3 + (0 if job.variant == "undistilled" else 5)
        measured = {f"{f:g}": {**metrics(value + (f == 4)), "frames": FRAMES} for f in job.factors}
        tests[job.name] = {
            **{"step": 1, "seconds": 10.0, "parameters": 1234, "validation": metrics(1.0)},
            **{"test": {**metrics(1.0), "cost": COST}, "factors": measured},
        }
    return prepared, candidates, tests
