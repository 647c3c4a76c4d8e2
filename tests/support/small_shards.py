"""Run a tool with small shards, so that several processes share the work: `small_shards.py TOOL ARGUMENT ...`."""

import importlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import teachclip.scoring.pair_store
import teachclip.scoring.relevance_store
import teachclip.scoring.token_store

teachclip.scoring.token_store.TEXTS_PER_SHARD = 5
teachclip.scoring.token_store.VIDEOS_PER_SHARD = 3
teachclip.scoring.relevance_store.ROWS_PER_SHARD = 4
teachclip.scoring.pair_store.CAPTIONS_PER_SHARD = 4

if __name__ == "__main__":
    raise SystemExit(importlib.import_module(f"teachclip.cli.{sys.argv[1]}").main(sys.argv[2:]))
