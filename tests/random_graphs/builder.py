"""A graph in the making, whose nodes are run in onnxruntime as they are added: shapes and spreads are those it has."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Array = NDArray[Any]
LOCAL = "local"  # the domain of the graph's own functions


class Unfit(Exception):  # noqa: N818
    """This step does not suit the graph; another one is drawn."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Traits:
    """What a whole graph has in common. ``batch``: None for a free one. ``literals``: weights in Constant nodes."""

    opset: int
    batch: int | None
    literals: bool
    named: bool


class Builder:
    """Nodes, their values on a few samples, and the random numbers of the step that is being taken."""

    def __init__(self, traits: Traits, rng: np.random.Generator) -> None:
        self.traits, self.rng = traits, rng
        self.nodes: list[onnx.NodeProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.functions: dict[str, onnx.FunctionProto] = {}
        self.values: dict[str, Array] = {}  # of everything that depends on an input
        self._constants: dict[str, Array] = {}
        self._count = 0

    # Random choices

    def flip(self, probability: float = 0.5) -> bool:
        return bool(self.rng.random() < probability)

    def choose(self, items: Sequence[Any]) -> Any:
        return items[int(self.rng.integers(len(items)))]

    def whole(self, low: int, high: int) -> int:
        """``low`` to ``high``, both included."""
        return int(self.rng.integers(low, high + 1))

    def pick(self, *ranks: int, shape: tuple[int, ...] | None = None, without: Sequence[str] = ()) -> str:
        """A tensor of one of these ranks (or this shape), mostly a recent one. Raises Unfit where there is none."""
        fitting = [
            name
            for name, value in self.values.items()
            if name not in without and (value.shape == shape if shape else not ranks or value.ndim in ranks)
        ]
        if not fitting:
            raise Unfit
        back = min(int(self.rng.geometric(0.6)), len(fitting))
        return fitting[-back]

    # Growing

    def input(self, name: str, shape: tuple[int, ...], samples: Array) -> str:
        first: int | str = "N" if self.traits.batch is None else self.traits.batch
        self.inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [first, *shape]))
        self.values[name] = samples
        return name

    def constant(self, value: Array, what: str = "c") -> str:
        """A new constant, float32 or int64: an initializer or a Constant node."""
        value = np.asarray(value, np.int64 if np.asarray(value).dtype.kind in "iu" else np.float32)
        name = self._name(what)
        self._constants[name] = value
        if self.traits.literals:
            self.nodes.append(helper.make_node("Constant", [], [name], value=numpy_helper.from_array(value)))
        else:
            self.initializers.append(numpy_helper.from_array(value, name))
        return name

    def weight(self, *shape: int, fan_in: int, gain: float = 1.0) -> str:
        return self.constant(self.rng.normal(size=shape) * gain / np.sqrt(fan_in), "w")

    def __call__(self, op_type: str, *inputs: str, outputs: int = 1, domain: str = "", **attributes: Any) -> Any:
        """Add a node. Returns the name of its output, or of all. Raises Unfit for what grows or vanishes."""
        names = [self._name(op_type.lower()) for _ in range(outputs)]
        node = helper.make_node(op_type, list(inputs), names, domain=domain, **attributes)
        for name, value in zip(names, self._run(node), strict=True):
            if value.size > 4096 * len(value) or not value.size or not np.isfinite(value).all():
                raise Unfit
            if value.ndim > 5 or np.abs(value).max() > 1e4 or value.std() < 1e-3:
                raise Unfit
            self.values[name] = value
        if self.traits.named:
            node.name = f"/{op_type}_{self._count}"
        self.nodes.append(node)
        return names[0] if outputs == 1 else names

    def spread(self, name: str) -> float:
        return float(self.values[name].std())

    def function(self, text: str) -> str:
        """Add a function from its ONNX text. Returns its name."""
        made = onnx.parser.parse_function(text)
        self.functions.setdefault(made.name, made)
        return str(made.name)

    def model(self, outputs: Sequence[str]) -> onnx.ModelProto:
        """The graph as it ends in ``outputs``, with those nodes and constants alone that they need."""
        needed, kept = set(outputs), []
        for node in reversed(self.nodes):
            if needed.intersection(node.output):
                needed.update(node.input)
                kept.append(node)
        results = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, self._declared(self.values[name]))
            for name in outputs
        ]
        graph = helper.make_graph(
            kept[::-1],
            "random",
            [value for value in self.inputs if value.name in needed],
            results,
            [tensor for tensor in self.initializers if tensor.name in needed],
        )
        model = self._wrap(graph)
        used = {node.op_type for node in kept if node.domain == LOCAL}
        model.functions.extend(f for name, f in self.functions.items() if name in used)
        return model

    def _declared(self, value: Array) -> list[int | str]:
        return [self.traits.batch or "N", *value.shape[1:]]

    def _wrap(self, graph: onnx.GraphProto) -> onnx.ModelProto:
        opsets = [helper.make_opsetid("", self.traits.opset)]
        if self.functions:
            opsets.append(helper.make_opsetid(LOCAL, 1))
        return helper.make_model(graph, opset_imports=opsets, ir_version=9 if self.functions else 8)

    def _name(self, what: str) -> str:
        self._count += 1
        return f"{what}_{self._count}"

    def _run(self, node: onnx.NodeProto) -> list[Array]:
        read = [name for name in dict.fromkeys(node.input) if name]
        feeds = {name: self.values[name] for name in read if name in self.values}
        values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, value.shape) for name, value in feeds.items()]
        constants = [numpy_helper.from_array(self._constants[name], name) for name in read if name in self._constants]
        results = [onnx.ValueInfoProto(name=name) for name in node.output if name]
        model = self._wrap(helper.make_graph([node], "step", values, results, constants))
        model.functions.extend(self.functions.values())
        try:
            return run(model, feeds)
        except Exception as error:  # onnxruntime's errors share no base class
            if "NOT_IMPLEMENTED" in str(error):
                raise Unfit from error
            raise


def session(model: onnx.ModelProto, *, optimize: bool = True) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run(model: onnx.ModelProto, feeds: dict[str, Array], *, optimize: bool = True) -> list[Array]:
    """All outputs, for one batch."""
    return list(session(model, optimize=optimize).run(None, feeds))
