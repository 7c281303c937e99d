"""The random graph of a seed."""

import dataclasses
from collections.abc import Callable

import numpy as np
import onnx

from . import layers, others
from .builder import Array, Builder, Traits, Unfit

Step = Callable[[Builder], str]
STEPS: dict[Step, int] = {  # how often each is drawn
    layers.conv: 16,
    layers.conv_transpose: 3,
    layers.gemm: 7,
    layers.matmul: 6,
    layers.activation: 4,
    layers.unit: 5,
    layers.gate: 2,
    layers.attention: 2,
    layers.function_layer: 2,
    layers.function_activation: 1,
    others.merge: 6,
    others.concat: 4,
    others.with_constant: 4,
    others.broadcast: 2,
    others.transpose: 2,
    others.reshape: 2,
    others.flatten: 2,
    others.unsqueeze: 1,
    others.squeeze: 1,
    others.slice_: 2,
    others.split: 2,
    others.pad: 2,
    others.max_pool: 3,
    others.average_pool: 2,
    others.global_pool: 2,
    others.reduce: 2,
    others.resize: 3,
    others.depth_to_space: 1,
    others.gather: 1,
    others.tile: 1,
    others.identity: 2,
    others.softmax: 1,
    others.normalize: 2,
    others.elementwise: 2,
}
LAYERS = {"Conv", "ConvTranspose", "Gemm", "MatMul", "Unit"}
_ATTEMPTS = 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """A model with images to calibrate on and others to judge on, by input; ``steps``: what was taken, in order."""

    model: onnx.ModelProto
    calibration: dict[str, Array]
    judged: dict[str, Array]
    steps: tuple[str, ...]


def draw(seed: int, without: frozenset[int] = frozenset(), *, calibration: int = 64, judged: int = 48) -> Case:
    """The graph of a seed, less the steps with these numbers: each has random numbers of its own."""
    rng = np.random.default_rng([seed, 0])
    batch = None if rng.random() < 0.7 else int(rng.choice([1, 2, 4]))
    traits = Traits(
        opset=int(rng.integers(11, 21)), batch=batch, literals=bool(rng.random() < 0.3), named=bool(rng.random() < 0.7)
    )
    g = Builder(traits, rng)
    rank = int(rng.choice([4, 4, 4, 3, 2]))
    shape = (int(rng.integers(2, 5)), *rng.integers(6, 13, 2))[: rank - 1] if rank > 2 else (int(rng.integers(6, 17)),)
    shapes = {"x": tuple(int(size) for size in shape)}
    if rng.random() < 0.2:
        shapes["z"] = shapes["x"] if rng.random() < 0.5 else (int(rng.integers(6, 17)),)
    every = {name: samples(rng, calibration + judged, shape) for name, shape in shapes.items()}
    for name, shape in shapes.items():
        g.input(name, shape, every[name][: batch or 4])
    taken = _grow(g, seed, int(rng.integers(2, 11)), without)
    ends = _ends(g, np.random.default_rng([seed, 1]))
    model = g.model(ends)
    if not any(node.op_type in LAYERS for node in model.graph.node):
        model = g.model([*ends, next(node.output[0] for node in reversed(g.nodes) if node.op_type in LAYERS)])
    read = {value.name for value in model.graph.input}
    return Case(
        model=model,
        calibration={name: value[:calibration] for name, value in every.items() if name in read},
        judged={name: value[calibration:] for name, value in every.items() if name in read},
        steps=taken,
    )


def _grow(g: Builder, seed: int, count: int, without: frozenset[int]) -> tuple[str, ...]:
    """Take the steps; the first is a layer."""
    steps, weights = list(STEPS), np.array(list(STEPS.values())) / sum(STEPS.values())
    first = [layers.gemm, layers.matmul, layers.conv, layers.conv]
    taken: list[str] = []
    for number in range(count):
        g.rng = np.random.default_rng([seed, 2, number])
        drawn = [steps[i] for i in g.rng.choice(len(steps), _ATTEMPTS, p=weights)]
        for step in drawn if taken else [*g.rng.permutation(np.array(first, object))]:
            if number in without:
                break
            before = len(g.nodes), set(g.values)
            try:
                step(g)
            except Unfit:
                del g.nodes[before[0] :]
                for name in set(g.values) - before[1]:
                    del g.values[name]
                continue
            taken.append(f"{number} {step.__name__}")
            break
    return tuple(taken)


def _ends(g: Builder, rng: np.random.Generator) -> list[str]:
    """The last tensor, some that nobody reads and some that others do; a name stands for one output alone."""
    g.rng = rng
    read = {name for node in g.nodes for name in node.input}
    computed = [name for name in g.values if name not in {value.name for value in g.inputs}]
    loose = [name for name in computed if name not in read]
    ends = [loose[-1], *(name for name in loose[:-1] if rng.random() < 0.6)]
    if rng.random() < 0.25:
        ends.append(str(rng.choice(computed)))  # inside, or a second time
    if rng.random() < 0.1:
        ends.append(str(rng.choice(list(g.values))))  # perhaps the input
    outputs: list[str] = []
    for name in ends:
        inner = name in outputs or name not in computed
        outputs.append(g("Identity", name) if inner or rng.random() < 0.1 else name)
    return outputs


def samples(rng: np.random.Generator, count: int, shape: tuple[int, ...]) -> Array:
    """Smooth pictures, series or vectors that differ in brightness, contrast and content, of about unit variance."""
    if len(shape) == 1:
        return rng.normal(size=(count, *shape)).astype(np.float32)
    axes = np.meshgrid(*(np.linspace(0, 1, size) for size in shape[1:]), indexing="ij")
    one = [1] * len(axes)
    values = np.zeros((count, *shape))
    for _ in range(4):
        phase = rng.uniform(0, 1, (count, shape[0], *one))
        for axis in axes:
            phase = phase + rng.uniform(0, 4, (count, shape[0], *one)) * axis
        values += rng.normal(size=(count, shape[0], *one)) * np.cos(2 * np.pi * phase) * 0.6
    values += rng.normal(size=(count, shape[0], *one)) * 0.6 + rng.normal(size=values.shape) * 0.15
    return values.astype(np.float32)
