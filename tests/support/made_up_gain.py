"""Made-up results of a measurement, without training anything."""

from teachclip.studies.gain_plan import SHARPNESS
from teachclip.studies.measure_gain import gather_candidates
from teachclip.studies.teacher_arms import NAMES


def metrics(value: float) -> dict:
    recalls = dict.fromkeys(("recall_at_1", "recall_at_5", "recall_at_10"), value)
    recalls |= {"median_rank": 1.0, "mean_rank": 1.0}
    return {"t2v": recalls, "v2t": recalls, "sum_of_recalls": 6 * value, "videos": 5, "captions": 25}


FRAMES = {"event": 0.6, "distractor": 0.3, "empty": 0.1}


def made_up_results(sampling):
    """Made-up results in which setting number 1 at sharpness 4 is the best of every arm, and teaching gains 5."""
    tuned, worlds, tests = {}, {}, {}
    for job in sampling.tuning():
        arm = next(a for f in sampling.families for a in f.arms if f"{f.name}-{a.name}" == job.arm)
        best = job.settings[-len(arm.grid[1]) :] == arm.grid[1]
        values = {f"{factor:g}": metrics(20 + 3 * best + 2 * (factor == 4)) for factor in SHARPNESS}
        tuned[job.name] = {"step": 1, "split": "validation", "sharpness": values}
    for job in sampling.worlds():
        same = metrics(10.0 + job.seed % 7)
        teachers = {label: {**same, "frames": FRAMES} for label in NAMES}
        worlds[job.name] = {"zero_shot": same, "teachers": teachers, "event_frames_only": same}
    candidates = gather_candidates(sampling, tuned)
    for job in sampling.testing(candidates):
        value = 20.0 + job.seed % 3 + (0 if "undistilled" in job.arm else 5)
        measured = {f"{factor:g}": {**metrics(value + (factor == 4)), "frames": FRAMES} for factor in job.sharpness}
        tests[job.name] = {"step": 1, "split": "test", "sharpness": measured}
    return worlds, candidates, tests
