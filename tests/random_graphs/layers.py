"""Steps that add a layer with what belongs to it: the tensors that quantization is about."""

import numpy as np

from .builder import LOCAL, Builder, Unfit

PARAMETRIC = {"LeakyRelu": "alpha", "Elu": "alpha", "ThresholdedRelu": "alpha", "HardSigmoid": "alpha"}
ACTIVATIONS = {  # the first opset that has each
    "Relu": 6,
    "Clip": 11,
    "LeakyRelu": 6,
    "PRelu": 9,
    "ThresholdedRelu": 10,
    "Sigmoid": 6,
    "HardSigmoid": 6,
    "HardSwish": 14,
    "Tanh": 6,
    "Elu": 6,
    "Selu": 6,
    "Celu": 12,
    "Gelu": 20,
    "Mish": 18,
    "Softplus": 1,
    "Softsign": 1,
    "Silu": 6,
    "HardSwishByHand": 11,
    "Relu6ByHand": 11,
    "GeluByHand": 9,
}


def _gain(g: Builder, x: str) -> float:
    """What brings the spread back to about 1."""
    return 1 / max(g.spread(x), 1e-2)


def _bias(g: Builder, size: int) -> list[str]:
    return [g.constant(g.rng.normal(size=size) * 0.3, "b")] if g.flip(0.7) else []


def conv(g: Builder) -> str:
    """One or two spatial axes; grouped, depthwise, strided, dilated, padded in every way."""
    x = g.pick(3, 4, 4)
    _, channels, *sizes = g.values[x].shape
    axes = len(sizes)
    kernel = [min(g.choose([1, 3, 3, 3, 2, 5]), size) for size in sizes]
    strides = [g.choose([1, 1, 1, 2])] * axes
    dilations = [g.choose([1, 1, 1, 2])] * axes
    groups = g.choose([1, 1, 1, channels, 2 if channels % 2 == 0 else 1])
    out = groups * g.whole(1, max(1, 10 // groups)) if groups > 1 else g.whole(3, 10)
    attributes = {"strides": strides, "dilations": dilations, "group": groups}
    padding = g.choose(["half", "half", "SAME_UPPER", "VALID", "uneven"])
    if padding == "half":
        half = [d * (k - 1) // 2 for k, d in zip(kernel, dilations, strict=True)]
        attributes["pads"] = half * 2
    elif padding == "uneven":
        attributes["pads"] = [g.whole(0, 2) for _ in range(2 * axes)]
    elif padding == "SAME_UPPER" and max(dilations) > 1:
        raise Unfit
    else:
        attributes["auto_pad"] = padding
    if padding in ("VALID", "uneven") and any(
        d * (k - 1) >= n for k, d, n in zip(kernel, dilations, sizes, strict=True)
    ):
        raise Unfit
    w = g.weight(out, channels // groups, *kernel, fan_in=channels // groups * int(np.prod(kernel)), gain=_gain(g, x))
    if g.flip(0.5):
        attributes["kernel_shape"] = kernel
    return _finish(g, g("Conv", x, w, *_bias(g, out), **attributes))


def conv_transpose(g: Builder) -> str:
    x = g.pick(3, 4, 4)
    _, channels, *sizes = g.values[x].shape
    if max(sizes) > 8:
        raise Unfit
    axes = len(sizes)
    groups = g.choose([1, 1, 2 if channels % 2 == 0 else 1])
    kernel, stride = g.choose([(2, 2), (3, 2), (3, 1), (4, 2)])
    each = g.whole(2, 4)
    w = g.weight(channels, each, *[kernel] * axes, fan_in=channels // groups * 2, gain=_gain(g, x))
    attributes = {"strides": [stride] * axes, "pads": [(kernel - stride) // 2] * 2 * axes, "group": groups}
    return _finish(g, g("ConvTranspose", x, w, *_bias(g, each * groups), **attributes))


def gemm(g: Builder) -> str:
    x = g.pick(2)
    features, out = g.values[x].shape[1], g.whole(4, 12)
    transposed = g.flip()
    shape = (out, features) if transposed else (features, out)
    w = g.weight(*shape, fan_in=features, gain=_gain(g, x))
    attributes: dict[str, float] = {"transB": 1} if transposed else {}
    if g.flip(0.1):
        attributes |= {"alpha": 0.5, "beta": 2.0}
    return _finish(g, g("Gemm", x, w, *_bias(g, out), **attributes))


def matmul(g: Builder) -> str:
    """Of two to four axes, with the bias as an Add before or behind."""
    x = g.pick(2, 3, 3, 4)
    features, out = g.values[x].shape[-1], g.whole(4, 12)
    y = g("MatMul", x, g.weight(features, out, fan_in=features, gain=_gain(g, x)))
    if g.flip():
        bias = g.constant(g.rng.normal(size=out) * 0.3, "b")
        y = g("Add", *([y, bias] if g.flip() else [bias, y]))
    return _activate(g, y)


def activation(g: Builder) -> str:
    return activate(g, g.pick())


def unit(g: Builder) -> str:
    """A residual unit of one or two convolutions, its ends joined by Add or Sum."""
    x = g.pick(4)
    channels = g.values[x].shape[1]
    y = x
    for _ in range(g.whole(1, 2)):
        w = g.weight(channels, channels, 3, 3, fan_in=9 * channels, gain=_gain(g, y))
        y = g("Conv", y, w, *_bias(g, channels), pads=[1, 1, 1, 1])
        if g.flip():
            y = activate(g, y)
    operands = [x, y] if g.flip() else [y, x]
    return _activate(g, g(g.choose(["Add", "Add", "Sum", "Sub"]), *operands))


def gate(g: Builder) -> str:
    """Squeeze and excitation."""
    x = g.pick(4)
    channels = g.values[x].shape[1]
    p = g("GlobalAveragePool", x) if g.flip() else reduce_mean(g, x, [2, 3])
    squeezed = g.weight(2, channels, 1, 1, fan_in=channels, gain=_gain(g, p))
    q = g("Relu", g("Conv", p, squeezed, *_bias(g, 2)))
    s = g("Conv", q, g.weight(channels, 2, 1, 1, fan_in=2, gain=_gain(g, q)), *_bias(g, channels))
    s = g(g.choose(["Sigmoid", "HardSigmoid"]), s)
    return g("Mul", *([x, s] if g.flip() else [s, x]))


def attention(g: Builder) -> str:
    """One head over [N, T, K], or [N, C, L]."""
    x = g.pick(3)
    width = g.values[x].shape[2]
    q, k, v = (g("MatMul", x, g.weight(width, 6, fan_in=width, gain=_gain(g, x))) for _ in range(3))
    scores = g("Mul", g("MatMul", q, g("Transpose", k, perm=[0, 2, 1])), g.constant(np.array(6**-0.5)))
    if g.traits.opset < 13 and len(g.values[scores].shape) != 3:
        raise Unfit
    return g("MatMul", g("Softmax", scores, axis=2), v)


def function_layer(g: Builder) -> str:
    """A convolution in a function of the graph's own, whose strides or slope may be left to their defaults."""
    x = g.pick(4)
    channels = g.values[x].shape[1]
    if min(g.values[x].shape[2:]) < 4:
        raise Unfit
    opset = g.traits.opset
    name = g.function(
        f'<domain: "{LOCAL}", opset_import: ["": {opset}]> Unit <strides: ints = [2, 2], alpha: float = 0.3> '
        "(x, w, b) => (y) { c = Conv <pads = [1, 1, 1, 1], strides: ints = @strides> (x, w, b) "
        "y = LeakyRelu <alpha: float = @alpha> (c) }"
    )
    w = g.weight(6, channels, 3, 3, fan_in=9 * channels, gain=_gain(g, x))
    given = {"strides": [1, 1], "alpha": 0.05}
    attributes = {key: value for key, value in given.items() if g.flip()}
    return g(name, x, w, g.constant(g.rng.normal(size=6) * 0.3, "b"), domain=LOCAL, **attributes)


def function_activation(g: Builder) -> str:
    """A function without a layer, of one operator with a default or of several without."""
    x, opset = g.pick(), g.traits.opset
    name = g.function(
        g.choose(
            [
                f'<domain: "{LOCAL}", opset_import: ["": {opset}]> Leaky <alpha: float = 0.4> (x) => (y) '
                "{ y = LeakyRelu <alpha: float = @alpha> (x) }",
                f'<domain: "{LOCAL}", opset_import: ["": {opset}]> Silu (x) => (y) {{ s = Sigmoid(x) y = Mul(x, s) }}',
            ]
        )
    )
    return g(name, x, domain=LOCAL, **({"alpha": 0.1} if name == "Leaky" and g.flip() else {}))


def reduce_mean(g: Builder, x: str, axes: list[int], *, keep: bool = True, kind: str = "ReduceMean") -> str:
    if g.traits.opset >= 18:
        return g(kind, x, g.constant(np.array(axes)), keepdims=int(keep))
    return g(kind, x, axes=axes, keepdims=int(keep))


def activate(g: Builder, x: str) -> str:
    """Any activation that the opset has."""
    kind = g.choose([name for name, first in ACTIVATIONS.items() if g.traits.opset >= first])
    number = lambda value: g.constant(np.array(value))  # noqa: E731
    match kind:
        case "Clip":
            bounds = g.choose([(0.0, 6.0), (0.0, 1.0), (-1.0, 1.0), (None, 1.5), (0.0, None), (0.2, 2.0)])
            inputs = [x, *("" if bound is None else number(bound) for bound in bounds)]
            return g("Clip", *inputs[: 2 if bounds[1] is None else 3])
        case "PRelu":
            shape = (g.values[x].shape[1], *[1] * (g.values[x].ndim - 2))
            return g("PRelu", x, g.constant(g.rng.uniform(0.05, 0.4, shape), "slope"))
        case "Silu":
            return g("Mul", x, g("Sigmoid", x))
        case "HardSwishByHand":
            ramp = g("Clip", g("Add", x, number(3.0)), number(0.0), number(6.0))
            return g("Div", g("Mul", x, ramp), number(6.0))
        case "Relu6ByHand":
            return g("Min", g("Relu", x), number(6.0))
        case "GeluByHand":
            e = g("Erf", g("Div", x, number(2**0.5)))
            return g("Mul", g("Mul", x, g("Add", e, number(1.0))), number(0.5))
        case "Gelu":
            return g("Gelu", x, **({"approximate": "tanh"} if g.flip() else {}))
        case "ThresholdedRelu":
            return g("ThresholdedRelu", x, alpha=0.1)
        case _ if kind in PARAMETRIC and g.flip():
            return g(kind, x, **{PARAMETRIC[kind]: 0.3})
        case _:
            return g(kind, x)


def batch_norm(g: Builder, x: str) -> str:
    size = g.values[x].shape[1]
    axes = tuple(axis for axis in range(g.values[x].ndim) if axis != 1)
    mean, spread = g.values[x].mean(axes), np.maximum(g.values[x].std(axes), 0.05)
    gamma, beta = g.rng.uniform(0.5, 1.5, size), g.rng.normal(size=size) * 0.3
    return g("BatchNormalization", x, *(g.constant(v, "bn") for v in (gamma, beta, mean, spread**2)))


def _activate(g: Builder, x: str) -> str:
    return activate(g, x) if g.flip(0.6) else x


def _finish(g: Builder, x: str) -> str:
    return _activate(g, batch_norm(g, x) if g.flip(0.3) and g.values[x].ndim > 2 else x)
