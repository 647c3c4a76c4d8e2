"""Memory does not grow with captions and videos: processes with few and with many of them have the same peak."""

import json
import sys

import pytest
from processes import run_fresh

FEW, MANY = 2_000, 120_000
ALLOWED = 6e6
"""Bytes by which a peak may differ: small arrays stay in memory, and blocks are not full with few items."""

NAMES_OF_VIDEOS = 1_000
"""Bytes a video in a store of relevance: its manifest names the videos, in JSON."""


def peaks(tmp_path, items):
    script = _STAGES.format(items=items, folder=str(tmp_path / str(items)))
    done = run_fresh(script)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell pages of files apart, nor have glibc")
def test_no_stage_takes_more_memory_for_more_captions_and_videos(tmp_path):
    few, many = (peaks(tmp_path, items) for items in (FEW, MANY))
    more = {name: many[name] - few[name] for name in few}
    videos = more.pop("relevance of many videos")
    assert len(more) == 6 and {name: size for name, size in more.items() if size > ALLOWED} == {}
    assert videos < ALLOWED + NAMES_OF_VIDEOS * MANY / 6, "a shard of 512 captions is not held in memory"


_STAGES = """
import json
from pathlib import Path
import numpy as np
import torch
from teachclip.data.batches import BatchSampler, Tokenized
from teachclip.data_check import benchmark_memory
from teachclip.evaluation.retrieval import retrieval_ranks
from teachclip.pipeline.benchmark_parts import made_up_split
from teachclip.processes import Processes
from teachclip.scoring.relevance_store import store_relevance
from teachclip.scoring.token_store import store_tokens
from teachclip.store.row_plan import row_keys
from teachclip.store.scratch import scratch_array

items, folder, stages = {items}, Path({folder!r}), {{}}
benchmark_memory.give_memory_back()
torch.set_num_threads(1)


def stage(name):
    return benchmark_memory.measured_peak(stages, name)


def tokenizer(texts, **options):
    return {{"input_ids": [[1, 2, 3, 4]] * len(texts)}}


def store(path, what):
    options = {{"provenance": {{"made": "up"}}, "processes": Processes(), "label": what}}
    if what == "relevance":
        videos = items // 6
        return store_relevance(
            path,
            lambda rows, *_, **options: {{"video_text": scratch_array((len(rows), videos), np.float32)}},
            captions=row_keys(range(600)), videos=row_keys(range(videos)), precision="float16", **options,
        )
    return store_tokens(
        path, keys=row_keys(range(items)), encode=lambda rows: {{"x": torch.zeros(len(rows), 4)}},
        batch_size=256, rows_per_shard=4096, **options,
    )


class Product:
    def score(self, texts, videos):
        return texts["x"] @ videos["x"].T


with stage("records"):
    split = made_up_split(items)
    split.provenance()
with stage("tokenising"):
    tokenized = Tokenized.from_captions(split.captions, tokenizer, max_tokens=8)
    tokenized.sha256()
with stage("stored tokens"):
    tokens = store(folder / "tokens", "tokens")
with stage("stored tokens again"):
    assert store(folder / "tokens", "tokens").rows == items
with stage("batches"):
    sampler = BatchSampler(items, 100, 0)
    for step in (0, 1, sampler.batches_per_epoch):
        tokenized.batch(sampler.rows(step))
with stage("ranks"):
    vectors = torch.from_numpy(scratch_array((items, 4), np.float32)), torch.eye(4)[:3]
    texts, videos = ({{"x": tokens}} for tokens in vectors)
    owners = scratch_array(items, np.int64)
    owners[items // 2:] = 1
    retrieval_ranks(Product(), texts, videos, owners, text_block=1024)
with stage("relevance of many videos"):
    store(folder / "relevance", "relevance")
print(json.dumps(stages))
"""
