"""Trace each module for ONNX once in a run of the tests: tracing takes seconds, and indexes and exports repeat it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx
import pytest
from filelock import FileLock
from torch import Tensor, nn

import teachclip.onnx.export


class Graphs:
    """Does what `graph_of` does, from a folder that processes share if it was done before.

    A graph depends on the module and the shapes alone. Exports measure every graph against the student, so one that
    did not belong to it would be refused.
    """

    def __init__(self, folder: Path):
        self.folder, self.trace = folder, teachclip.onnx.export.graph_of

    def __call__(self, module: nn.Module, inputs: Mapping[str, Tensor], *arguments: Any, **options: Any) -> Any:
        content = hashlib.sha256(repr((module, arguments, options)).encode())
        for name, tensor in module.state_dict().items():
            content.update(repr((name, tensor.shape, tensor.dtype)).encode() + tensor.contiguous().numpy().tobytes())
        content.update(repr([(name, tensor.shape, tensor.dtype) for name, tensor in inputs.items()]).encode())
        path = self.folder / f"{content.hexdigest()}.onnx"
        with FileLock(f"{path}.lock"):
            if not path.exists():
                onnx.save(self.trace(module, inputs, *arguments, **options), path)
        return onnx.load(path)


@pytest.fixture(scope="session", autouse=True)
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep graphs for the whole run; for a `conftest.py` to import."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "graphs"
    folder.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("teachclip.onnx.export.graph_of", Graphs(folder))
        yield
