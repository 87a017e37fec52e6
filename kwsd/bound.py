"""What inference costs at least: a network's multiplications and bytes for one hop, over the most this core can do."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kwsd.spotter import Spotter

if TYPE_CHECKING:
    import onnx
    import onnxruntime  # type: ignore[import-untyped]

PEAK_S = 0.3  # each peak is looked for this long
MATRIX = 512  # rows and columns of the product whose speed is the peak
COPIED = 1 << 26  # bytes: more than any cache holds
MULTIPLYING = {"Conv", "MatMul", "Gemm"}


@dataclass(frozen=True)
class Work:
    """For one hop of one stream."""

    macs: int  # multiplications with additions, in convolutions and products of matrices
    weight_bytes: int  # read
    state_bytes: int  # read and written


@dataclass(frozen=True)
class Peak:
    """Of one core."""

    macs_per_s: float  # in 32 bits, by a product of matrices
    bytes_per_s: float  # read and written, by a copy in memory

    def least_us(self, work: Work, streams: int = 1) -> float:
        """No hop of one stream takes less, where so many share the reading of weights."""
        moved = work.weight_bytes / streams + 2 * work.state_bytes
        return max(work.macs / self.macs_per_s, moved / self.bytes_per_s) * 1e6


def work(path: Path, spotter: Spotter, hop: int) -> Work | None:
    """Counted by running an ONNX artefact once with every intermediate result; None for another kind of file."""
    from kwsd.artefact import read_artefact

    if not read_artefact(path).is_onnx or spotter.info.step is None or hop % spotter.info.step:
        return None
    import onnx

    model = onnx.load(path)
    weights = {w.name: onnx.numpy_helper.to_array(w) for w in model.graph.initializer}
    wanted = [name for node in model.graph.node for name in node.output if name]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)
    session = _session(model)
    floats = int(session.get_inputs()[1].shape[1])
    given = {
        "samples": np.zeros((1, hop), np.float32),
        "state": np.zeros((1, floats), np.float32),
        "ends": np.array([hop // spotter.info.step - 1]),
    }
    names = [output.name for output in session.get_outputs()]
    shapes = {name: np.shape(result) for name, result in zip(names, session.run(names, given), strict=True)}
    shapes |= {name: weight.shape for name, weight in weights.items()} | {n: np.shape(v) for n, v in given.items()}
    macs = 0
    for node in model.graph.node:
        if node.op_type in MULTIPLYING:
            terms = shapes[node.input[1]][1:] if node.op_type == "Conv" else shapes[node.input[0]][-1:]
            macs += int(np.prod(shapes[node.output[0]]) * np.prod(terms))
    return Work(macs, sum(weight.nbytes for weight in weights.values()), 4 * floats)


def peak() -> Peak:
    """Measured, each in one thread."""
    multiply = _product()
    source, target = np.ones(COPIED, np.uint8), np.ones(COPIED, np.uint8)
    return Peak(
        macs_per_s=MATRIX**3 / _shortest_s(multiply),
        bytes_per_s=2 * COPIED / _shortest_s(lambda: np.copyto(target, source)),
    )


def _product() -> Callable[[], object]:
    """A product of two square matrices, by the library that runs the networks."""
    import onnx
    from onnx import TensorProto, helper

    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [MATRIX, MATRIX]) for name in "abc"]
    graph = helper.make_graph([helper.make_node("MatMul", ["a", "b"], ["c"])], "product", values[:2], values[2:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    session = _session(model)
    given = {name: np.ones((MATRIX, MATRIX), np.float32) for name in "ab"}
    return lambda: session.run(None, given)


def _session(model: "onnx.ModelProto") -> "onnxruntime.InferenceSession":
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _shortest_s(work: Callable[[], object]) -> float:
    shortest, until = np.inf, time.perf_counter() + PEAK_S
    while time.perf_counter() < until:
        begun = time.perf_counter()
        work()
        shortest = min(shortest, time.perf_counter() - begun)
    return float(shortest)
