"""Steps that add no layer: merges, operators that only move numbers about, averages, pieces that stay in float."""

import numpy as np

from .builder import Builder, Unfit
from .layers import reduce_mean


def merge(g: Builder) -> str:
    """Two or three tensors of one shape."""
    a = g.pick()
    operands = [a, g.pick(shape=g.values[a].shape, without=[a])]
    kind = g.choose(["Add", "Add", "Add", "Sum", "Mul", "Sub", "Mean", "Max", "Min"])
    if kind in ("Sum", "Mean") and g.flip():
        operands.append(g.pick(shape=g.values[a].shape))
    return g(kind, *operands)


def concat(g: Builder) -> str:
    a = g.pick(2, 3, 4, 4)
    shape = g.values[a].shape
    axis = g.choose([1, 1, len(shape) - 1])
    fitting = [name for name, value in g.values.items() if _beside(value.shape, axis) == _beside(shape, axis)]
    parts = [a, *(g.choose(fitting) for _ in range(g.whole(1, 2)))]
    return g("Concat", *parts, axis=axis if g.flip() else axis - len(shape))


def _beside(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    """How many axes there are, and the extents of the others."""
    return (len(shape), *shape[:axis], *shape[axis + 1 :])


def with_constant(g: Builder) -> str:
    """A scalar, a number for each channel, a tensor of the whole shape, on either side."""
    x = g.pick()
    shape = g.values[x].shape
    extents = g.choose([(), (1,), shape[-1:], (shape[1], *[1] * (len(shape) - 2)), shape[1:], (1, *shape[1:])])
    kind = g.choose(["Add", "Add", "Mul", "Mul", "Sub", "Div", "Max"])
    value = g.rng.uniform(0.5, 1.5, extents) if kind in ("Mul", "Div") else g.rng.normal(size=extents)
    c = g.constant(np.asarray(value))
    return g(kind, *([c, x] if g.flip(0.3) and kind != "Div" else [x, c]))


def broadcast(g: Builder) -> str:
    """A gate or an offset for every channel or place, from another tensor's mean."""
    x = g.pick(3, 4)
    rank = g.values[x].ndim
    other = reduce_mean(g, g.pick(rank, shape=g.values[x].shape), list(range(2, rank)) if g.flip() else [1])
    other = g("Sigmoid", other) if g.flip() else other
    return g(g.choose(["Mul", "Add"]), x, other)


def transpose(g: Builder) -> str:
    x = g.pick(3, 4)
    rest = [int(axis) for axis in 1 + g.rng.permutation(g.values[x].ndim - 1)]
    return g("Transpose", x, perm=[0, *rest])


def reshape(g: Builder) -> str:
    """The batch is kept as 0, −1 or, where it is fixed, as its number."""
    x = g.pick(2, 3, 4)
    _, *sizes = g.values[x].shape
    total = int(np.prod(sizes))
    options = [[-1], [sizes[0], total // sizes[0]], *([[total // d, d] for d in (2, 3, 4) if total % d == 0])]
    options += [[sizes[0], d, total // sizes[0] // d] for d in (2, 3, 4) if total // sizes[0] % d == 0]
    extents = [int(n) for n in g.choose(options)]
    first = 0 if -1 in extents else g.choose([0, -1])
    if g.traits.batch is not None and g.flip():
        first = g.traits.batch
    return g("Reshape", x, g.constant(np.array([first, *extents])))


def flatten(g: Builder) -> str:
    return g("Flatten", g.pick(3, 4))


def unsqueeze(g: Builder) -> str:
    x = g.pick(2, 3)
    return _axes(g, "Unsqueeze", x, g.whole(1, g.values[x].ndim))


def squeeze(g: Builder) -> str:
    fitting = [(name, v.shape.index(1, 1)) for name, v in g.values.items() if v.ndim > 2 and 1 in v.shape[1:]]
    if not fitting:
        raise Unfit
    return _axes(g, "Squeeze", *fitting[-1])


def _axes(g: Builder, kind: str, x: str, axis: int) -> str:
    if g.traits.opset >= 13:
        return g(kind, x, g.constant(np.array([axis])))
    return g(kind, x, axes=[axis])


def slice_(g: Builder) -> str:
    x = g.pick(2, 3, 4)
    axis = g.whole(1, g.values[x].ndim - 1)
    size = g.values[x].shape[axis]
    if size < 3:
        raise Unfit
    start, end, step = g.choose([(0, size - 1, 1), (1, size, 1), (0, size, 2), (-2, 2**31, 1), (-1, -(2**31), -1)])
    return g("Slice", x, *(g.constant(np.array([v])) for v in (start, end, axis, step)))


def split(g: Builder) -> str:
    x = g.pick(2, 3, 4)
    axis = g.whole(1, g.values[x].ndim - 1)
    size = g.values[x].shape[axis]
    if size < 2:
        raise Unfit
    first = g.whole(1, size - 1)
    if g.traits.opset >= 13:
        parts = g("Split", x, g.constant(np.array([first, size - first])), outputs=2, axis=axis)
    else:
        parts = g("Split", x, outputs=2, axis=axis, split=[first, size - first])
    return str(parts[0])


def pad(g: Builder) -> str:
    x = g.pick(3, 4)
    rank = g.values[x].ndim
    pads = [0] * 2 * rank
    pads[rank - 1], pads[-1] = g.whole(0, 1), g.whole(0, 1)
    if min(g.values[x].shape[1:]) < 2:
        raise Unfit
    mode = g.choose(["constant", "constant", "reflect", "edge"])
    fill = [g.constant(np.array(g.choose([0.0, 0.0, 0.5])))] if mode == "constant" and g.flip() else []
    return g("Pad", x, g.constant(np.array(pads)), *fill, mode=mode)


def max_pool(g: Builder) -> str:
    x = g.pick(3, 4)
    axes = g.values[x].ndim - 2
    if min(g.values[x].shape[2:]) < 3:
        raise Unfit
    kernel, stride, pads = g.choose([(2, 2, 0), (3, 2, 1), (3, 1, 1)])
    return g("MaxPool", x, kernel_shape=[kernel] * axes, strides=[stride] * axes, pads=[pads] * 2 * axes)


def average_pool(g: Builder) -> str:
    x = g.pick(3, 4)
    axes = g.values[x].ndim - 2
    if min(g.values[x].shape[2:]) < 3:
        raise Unfit
    kernel, stride, pads = g.choose([(2, 2, 0), (3, 2, 1), (2, 1, 0)])
    include = {"count_include_pad": 1} if g.flip() else {}
    return g("AveragePool", x, kernel_shape=[kernel] * axes, strides=[stride] * axes, pads=[pads] * 2 * axes, **include)


def global_pool(g: Builder) -> str:
    return g(g.choose(["GlobalAveragePool", "GlobalAveragePool", "GlobalMaxPool"]), g.pick(3, 4))


def reduce(g: Builder) -> str:
    x = g.pick(3, 4)
    rank = g.values[x].ndim
    axes = g.choose([[1], [rank - 1], list(range(2, rank)), [-1]])
    kind = g.choose(["ReduceMean", "ReduceMean", "ReduceMax"])
    return reduce_mean(g, x, axes, keep=g.flip(), kind=kind)


def resize(g: Builder) -> str:
    x = g.pick(4)
    if max(g.values[x].shape[2:]) > 8:
        raise Unfit
    mode = g.choose(["nearest", "nearest", "linear"])
    options = {"mode": mode, "coordinate_transformation_mode": g.choose(["asymmetric", "half_pixel", "align_corners"])}
    if mode == "nearest":
        options["nearest_mode"] = g.choose(["floor", "round_prefer_floor"])
    roi = "" if g.traits.opset >= 13 else g.constant(np.zeros(0, np.float32))
    return g("Resize", x, roi, g.constant(np.array([1.0, 1.0, 2.0, g.choose([1.0, 2.0])])), **options)


def depth_to_space(g: Builder) -> str:
    x = g.pick(4)
    _, channels, height, width = g.values[x].shape
    if channels % 4 == 0 and max(height, width) <= 8:
        return g("DepthToSpace", x, blocksize=2, mode=g.choose(["DCR", "CRD"]))
    if height % 2 == 0 and width % 2 == 0:
        return g("SpaceToDepth", x, blocksize=2)
    raise Unfit


def gather(g: Builder) -> str:
    x = g.pick(2, 3, 4)
    axis = g.whole(1, g.values[x].ndim - 1)
    size = g.values[x].shape[axis]
    indices = np.array(g.whole(0, size - 1)) if g.flip(0.3) and g.values[x].ndim > 2 else g.rng.integers(0, size, 4)
    return g("Gather", x, g.constant(indices), axis=axis)


def tile(g: Builder) -> str:
    x = g.pick(3, 4)
    repeats = [1] * g.values[x].ndim
    repeats[g.whole(1, len(repeats) - 1)] = 2
    return g("Tile", x, g.constant(np.array(repeats)))


def identity(g: Builder) -> str:
    x = g.pick()
    if g.flip():
        return g("Identity", x)
    return g("Dropout", x, *([g.constant(np.array(0.3))] if g.traits.opset >= 12 and g.flip() else []))


def softmax(g: Builder) -> str:
    x = g.pick(2, 3, 4)
    rank = g.values[x].ndim
    return g("Softmax", x, axis=rank - 1 if g.traits.opset < 13 else g.choose([1, rank - 1, -1]))


def normalize(g: Builder) -> str:
    """Layer, instance and group normalization."""
    x = g.pick(3, 4)
    shape, opset = g.values[x].shape, g.traits.opset
    one = lambda size: (g.constant(g.rng.uniform(0.5, 1.5, size)), g.constant(g.rng.normal(size=size) * 0.3))  # noqa: E731
    kinds = [*(["layer"] if opset >= 17 else []), *(["instance"] if np.prod(shape[2:]) > 3 else [])]
    if not kinds or shape[-1] < 3:
        raise Unfit
    if g.choose(kinds) == "layer":
        return g("LayerNormalization", x, *one(shape[-1]), axis=-1)
    return g("InstanceNormalization", x, *one(shape[1]))


def elementwise(g: Builder) -> str:
    """Operators that no table of activations has."""
    x = g.pick()
    match g.choose(["Neg", "Abs", "Sqrt", "Exp", "Pow", "Log", "Reciprocal", "Erf"]):
        case "Sqrt":
            return g("Sqrt", g("Relu", x))
        case "Exp":
            return g("Exp", g("Neg", g("Abs", x)))
        case "Pow":
            return g("Pow", x, g.constant(np.array(2.0)))
        case "Log":
            return g("Log", g("Add", g("Abs", x), g.constant(np.array(1.0))))
        case "Reciprocal":
            return g("Reciprocal", g("Add", g("Abs", x), g.constant(np.array(1.0))))
        case kind:
            return g(kind, x)
