"""ONNX graphs: written from a module, freed of what this machine left in them, stored in fewer bits."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from teachclip.errors import CheckpointError
from teachclip.onnx.folder import WEIGHTS

OPSET = 18
MOST_BYTES = 2_000_000_000
"""A file of Protocol Buffers, as ONNX is, holds less than 2 GB."""

OUTSIDE_BYTES = 2**25
"""Larger weights are beside the graph: onnxruntime maps that file, where it would copy them out of a graph."""

HALVED = 1024
"""Weights of fewer numbers stay float32 under float16: they take no room."""


def graph_of(
    module: nn.Module,
    inputs: Mapping[str, Tensor],
    outputs: Sequence[str],
    *,
    dynamic: Mapping[str, Mapping[int, str]],
) -> Any:
    """Return a module's forward pass as an ONNX model, weights inside.

    `inputs`: an example of each, in the order of `forward`. `dynamic`: the axes of any size, with their names.
    Raises CheckpointError, in one line, for what cannot be exported.
    """
    shapes = [dict.fromkeys(dynamic.get(name, {}), torch.export.Dim.DYNAMIC) for name in inputs]
    try:
        with torch.no_grad(), _quiet():
            program: Any = torch.onnx.export(
                module,
                tuple(inputs.values()),
                input_names=list(inputs),
                output_names=list(outputs),
                dynamic_shapes=tuple(shapes),
                opset_version=OPSET,
                dynamo=True,
                external_data=False,
                verbose=False,
            )
    except Exception as error:  # of torch.export, torch.onnx and onnxscript, which share no class
        cause = (str(error.__cause__ or error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"the student cannot be exported to ONNX: {cause[:300]}") from error
    model = program.model_proto
    size = sum(len(weight.raw_data) for weight in model.graph.initializer)
    if size >= MOST_BYTES:
        raise CheckpointError(f"the weights of one tower are {size / 1e9:.1f} GB; an ONNX file holds less than 2 GB")
    _strip(model)
    _name_axes(model, dynamic)
    return model


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the progress of torch's exporter, and the advice of it and of onnxruntime, from the terminal."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def _strip(model: Any) -> None:
    """Remove the names of source files and lines, which the exporter writes to every node."""
    parts = [model, model.graph, *model.graph.node, *model.graph.value_info, *model.graph.initializer]
    parts += [*model.graph.input, *model.graph.output]
    parts += [part for function in model.functions for part in (function, *function.node)]
    for part in parts:
        part.ClearField("doc_string")
        part.ClearField("metadata_props")


def _name_axes(model: Any, dynamic: Mapping[str, Mapping[int, str]]) -> None:
    """Give the axes of any size the names that a reader of the file sees."""
    for value in (*model.graph.input, *model.graph.output):
        for axis, name in dynamic.get(value.name, {}).items():
            value.type.tensor_type.shape.dim[axis].dim_param = name


def store_as(model: Any, precision: str, path: Path) -> None:
    """Write an ONNX model to a file with weights of `precision`, one of `PRECISIONS`.

    Weights of more than `OUTSIDE_BYTES` get a file of their own beside it, but for int8.
    """
    import onnx

    if precision == "int8":
        _write_int8(model, path)
        return
    if precision == "float16":
        _halve_weights(model)
    large = sum(len(weight.raw_data) for weight in model.graph.initializer) > OUTSIDE_BYTES
    outside = {"save_as_external_data": True, "location": path.name + WEIGHTS} if large else {}
    onnx.save_model(model, str(path), **outside)


def _halve_weights(model: Any) -> None:
    """Store large weights as float16; a Cast in front of their users, which loading folds, gives float32.

    Computing in float16 would need a processor that can, and would round the frame attention, whose scores are
    divided by a small temperature.
    """
    from onnx import TensorProto, helper, numpy_helper

    casts = []
    for weight in model.graph.initializer:
        if weight.data_type != TensorProto.FLOAT or int(np.prod(weight.dims)) < HALVED:
            continue
        name, values = weight.name, numpy_helper.to_array(weight)
        if np.abs(values).max() > np.finfo(np.float16).max:
            continue
        weight.CopyFrom(numpy_helper.from_array(values.astype(np.float16), f"{name}.float16"))
        casts.append(helper.make_node("Cast", [f"{name}.float16"], [name], to=TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _write_int8(model: Any, path: Path) -> None:
    """Quantise matrices and embeddings to int8, per column; activations are quantised when they are computed.

    The first layer of the images stays float32: it is small, and convolutions in int8 are slow on most processors.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory() as folder, _quiet():
        source = Path(folder) / "model.onnx"
        onnx.save_model(model, str(source))
        quantize_dynamic(
            source,
            path,
            op_types_to_quantize=["MatMul", "Gemm", "Gather"],
            per_channel=True,
            reduce_range=True,
            weight_type=QuantType.QInt8,
        )
