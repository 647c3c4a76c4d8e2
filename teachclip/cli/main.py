"""The `teachclip` command: `teachclip distill RECIPE` is `tools/distill.py RECIPE`."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

from teachclip import __version__
from teachclip.registry import closest

COMMANDS = {
    "init": "write a recipe for a folder of your own videos, with or without captions",
    "prepare": "check the data of a recipe",
    "texts": "texts for videos without captions: a bank of them, and which of them occur in your videos",
    "text-tower": "give a CLIP another text encoder, smaller or of more languages, taught on texts alone",
    "make-data": "make a data set to try things on: videos, captions and a tiny CLIP",
    "pretrain-clip": "pre-train a tiny CLIP on frames and captions of a recipe",
    "train-teacher": "train a teacher of a recipe",
    "precompute": "decode the videos and store the teachers' relevance",
    "import-relevance": "store scores of any embedder or reranker as a teacher's relevance",
    "distill": "distil the teachers into the student",
    "soup": "average the weights of several students",
    "evaluate": "evaluate a student, a teacher or the zero-shot backbone",
    "compare": "compare two models query by query",
    "diagnose": "show where the gap between a student and its teacher comes from",
    "export": "write a student for use elsewhere",
    "index": "make a searchable index of folders of videos, or bring it up to date",
    "search": "search an index by a text or an example",
    "serve": "open an index in a browser: a page to search and watch, and a JSON API",
    "duplicates": "list videos of an index that show the same",
    "compress": "measure smaller forms of an index's vectors on your queries, and choose one",
    "keys": "list the keys of a recipe",
    "demo": "the whole pipeline on the Shapes dataset, with a report",
    "study": "compare ways to train a student with an equal tuning budget",
    "bench": "measure how fast training steps are, or encoding",
    "bench-search": "measure ways to search on the vectors of an index",
    "bench-data": "measure how fast videos are decoded and stored frames are read",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command by name; 2 for an unknown one. Ends quietly when its output is closed, as by `| head`."""
    try:
        code = _run(argv)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # as a shell counts a process that SIGPIPE ended


def _run(argv: Sequence[str] | None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        width = max(map(len, COMMANDS))
        print("usage: teachclip COMMAND ...\n\n" + "\n".join(f"  {k:{width}}  {v}" for k, v in COMMANDS.items()))
        print("\n`teachclip COMMAND --help` describes one. Several processes: accelerate launch -m teachclip ...")
        return 0
    if arguments[0] == "--version":
        print(__version__)
        return 0
    name = arguments[0]
    if name not in COMMANDS:
        print(f"error: unknown command {name!r}{closest(name, COMMANDS)}", file=sys.stderr)
        return 2
    module = importlib.import_module(f"teachclip.cli.{name.replace('-', '_')}")
    return int(module.main(arguments[1:]))
