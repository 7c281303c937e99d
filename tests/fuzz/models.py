"""Small valid models, and what goes wrong with them: every mutation is drawn from one random generator."""

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import AttributeProto, NodeProto, TensorProto

from pdq_export.graph.lookup import all_nodes, reads

Generator = np.random.Generator

_WEIGHTS = {"w1": (4, 3, 3, 3), "w2": (4, 4, 3, 3), "w3": (5, 4), "b": (5,), "d": (4, 1, 3, 3), "t": (4, 4, 2, 2)}
_WEIGHTS |= {"lw": (1, 16, 4), "lr": (1, 16, 4), "g": (4,), "h": (4,), "m": (4,), "v": (4,)}
_HEAD = "p = GlobalAveragePool(z) f = Flatten(p) y = Gemm <transB = 1> (f, w3, b)"
_BODIES = [
    "c = Conv <pads = [1, 1, 1, 1]> (x, w1) n = BatchNormalization(c, g, h, m, v) r = Relu(n) "
    f"e = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (r, w2) q = Conv <strides = [2, 2]> (r, k1) s = Add(e, q) "
    f"k1 = Identity(w2) z = Relu(s) {_HEAD}".replace(
        "q = Conv <strides = [2, 2]> (r, k1)", "q = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r)"
    ).replace("k1 = Identity(w2) ", ""),
    "c = Conv <pads = [1, 1, 1, 1]> (x, w1) lo = Constant <value_float = 0.0> () hi = Constant <value_float = 6.0> () "
    "r = Clip(c, lo, hi) e = Conv <group = 4, pads = [1, 1, 1, 1]> (r, d) s = Sigmoid(e) z = Mul(e, s) "
    "p = GlobalAveragePool(z) i = Shape(p) o = Constant <value_ints = [0]> () n = Gather(i, o) "
    "u = Constant <value_ints = [-1]> () a = Concat <axis = 0> (n, u) f = Reshape(p, a) "
    "y = Gemm <transB = 1> (f, w3, b)",
    "c = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (x, w1) r = Relu(c) e = ConvTranspose <strides = [2, 2]> (r, t) "
    "k = Constant <value_floats = [1.0, 1.0, 2.0, 2.0]> () "
    'o = Resize <mode = "nearest", coordinate_transformation_mode = "asymmetric", nearest_mode = "floor"> (r, , k) '
    "s = Concat <axis = 1> (e, o) q = Slice(s, k0, k4, k0) z = Conv <pads = [1, 1, 1, 1]> (e, w2) "
    f"{_HEAD}".replace("q = Slice(s, k0, k4, k0) ", ""),
    "c = Conv <pads = [1, 1, 1, 1]> (x, w1) r = Relu(c) q = ReduceMax <axes = [2], keepdims = 0> (r) "
    "e = Transpose <perm = [2, 0, 1]> (q) a, l, s = LSTM <hidden_size = 4> (e, lw, lr) "
    "o = Constant <value_ints = [0]> () f = Squeeze(l, o) n = LayerNormalization <axis = -1> (f, g, h) "
    "i = Softmax(n) y = MatMul(i, w4)",
    "c = Conv <pads = [1, 1, 1, 1]> (x, w1) z = Relu(c) p = GlobalAveragePool(z) f = Flatten(p) "
    "s = Gemm <transB = 1> (f, w3, b) q = ReduceMax <keepdims = 0> (s) o = Constant <value_float = 0.0> () "
    "i = Greater(q, o) k = Constant <value_int = 2> () l = Loop (k, i, s) <body = body (int64 n, bool a, float[N,K] e) "
    "=> (bool on, float[N,K] e1) { on = Identity(a) e1 = Mul(e, b) }> "
    "y = If (i) <then_branch = then () => (float[N,K] yes) { yes = Add(l, s) }, "
    "else_branch = else () => (float[N,K] no) { r = Relu(l) no = Gemm <transB = 1> (f, w3, r) }>",
    "c = Conv <pads = [1, 1, 1, 1]> (x, w1) r = Relu(c) e = Conv(r, w2) k = Constant <value_ints = [0, 4, -1]> () "
    "i = Reshape(e, k) a = Transpose <perm = [0, 2, 1]> (i) s = ReduceMax <axes = [1]> (i) u = Sigmoid(s) "
    "n = Constant <value_int = 3> () o = Constant <value_float = 0.5> () l = NonMaxSuppression(a, u, n, o, o) "
    "q = Constant <value_ints = [0, 2]> () at = Gather <axis = 1> (l, q) y = GatherND(a, at)",
]


def base(number: int) -> onnx.ModelProto:
    """One of the valid models, the same every time."""
    body = _BODIES[number % len(_BODIES)]
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["": 17]> g (float[N,3,8,8] x) => (float[N,K] y) {{ {body} }}'
    )
    generator = np.random.default_rng(number)
    used = {name for node in model.graph.node for name in reads(node)}
    for name, shape in {**_WEIGHTS, "w4": (4, 5)}.items():
        if name in used:
            value = generator.normal(size=shape).astype(np.float32)
            model.graph.initializer.append(onnx.numpy_helper.from_array(value**2 if name == "v" else value, name))
    return model


def _pick(generator: Generator, items: object) -> object:
    found = list(items)  # type: ignore[call-overload]
    return found[int(generator.integers(len(found)))]


def _nodes(model: onnx.ModelProto) -> list[NodeProto]:
    """Those of subgraphs as well."""
    return list(all_nodes(model.graph.node))


NUMBERS = [0, 1, -1, 2, 3, 7, 255, -7, 2**15, 2**31 - 1, 2**31, -(2**31), 2**40, 2**62, -(2**63), 2**63 - 1]
FLOATS = [0.0, -1.0, 1e-30, 1e30, float("nan"), float("inf"), float("-inf"), 0.5]
OPERATORS = (
    "Conv ConvTranspose Gemm MatMul Relu Add Mul Div Concat Reshape Flatten Transpose Slice Split Gather Pad Resize "
    "MaxPool AveragePool GlobalAveragePool BatchNormalization Softmax LSTM If Loop Shape ConstantOfShape Expand Tile "
    "Range Cast Squeeze Unsqueeze TopK ArgMax NonMaxSuppression Identity Einsum QuantizeLinear Nonsense"
).split()


def op_type(model: onnx.ModelProto, generator: Generator) -> None:
    _pick(generator, _nodes(model)).op_type = str(_pick(generator, OPERATORS))


def domain(model: onnx.ModelProto, generator: Generator) -> None:
    _pick(generator, _nodes(model)).domain = str(_pick(generator, ["ai.onnx", "com.microsoft", "ai.onnx.ml", "x", "é"]))


def rewire(model: onnx.ModelProto, generator: Generator) -> None:
    """Another tensor, or none, at an input: cycles, missing tensors, wrong ranks."""
    node = _pick(generator, [n for n in _nodes(model) if n.input])
    tensors = [name for n in _nodes(model) for name in (*n.input, *n.output)]
    node.input[int(generator.integers(len(node.input)))] = str(_pick(generator, [*tensors, "", "missing", "x", "y"]))


def rename_output(model: onnx.ModelProto, generator: Generator) -> None:
    node = _pick(generator, _nodes(model))
    tensors = [name for n in _nodes(model) for name in (*n.input, *n.output)]
    node.output[0] = str(_pick(generator, [*tensors, "", "nobody", "x"]))


def drop_or_repeat(model: onnx.ModelProto, generator: Generator) -> None:
    """A node, input, initializer or output is gone, twice there, or elsewhere."""
    graph = model.graph
    field = _pick(generator, [f for f in (graph.node, graph.initializer, graph.input, graph.output) if f])
    place = int(generator.integers(len(field)))
    match int(generator.integers(3)):
        case 0:
            del field[place]
        case 1:
            field.append(field[place])
        case _:
            items = list(field)
            generator.shuffle(items)
            del field[:]
            field.extend(items)


def inputs_of_node(model: onnx.ModelProto, generator: Generator) -> None:
    node = _pick(generator, _nodes(model))
    if generator.random() < 0.5 and node.input:
        del node.input[int(generator.integers(len(node.input))) :]
    else:
        node.input.extend(["x"] * int(generator.integers(1, 9)))


def attribute(model: onnx.ModelProto, generator: Generator) -> None:
    """An absurd value, an absurd type, a foreign name, or a length that does not fit."""
    found = _pick(generator, [a for n in _nodes(model) for a in n.attribute])
    match int(generator.integers(6)):
        case 0:
            found.i = int(_pick(generator, NUMBERS))
        case 1 if found.ints:
            found.ints[int(generator.integers(len(found.ints)))] = int(_pick(generator, NUMBERS))
        case 2:
            found.ints.extend([int(_pick(generator, NUMBERS))] * int(generator.integers(1, 70)))
        case 3:
            found.type = int(_pick(generator, AttributeProto.AttributeType.values()))
        case 4:
            found.name = str(_pick(generator, ["pads", "axis", "to", "group", "strides", "", "perm", "value", "body"]))
        case _:
            found.f, found.s = float(_pick(generator, FLOATS)), bytes(generator.bytes(4))


def new_attribute(model: onnx.ModelProto, generator: Generator) -> None:
    names = ["pads", "strides", "dilations", "kernel_shape", "output_shape", "group", "axis", "axes", "hidden_size"]
    names += ["keepdims", "ceil_mode", "auto_pad", "transA", "alpha", "epsilon", "to", "perm", "training_mode"]
    node = _pick(generator, _nodes(model))
    name = str(_pick(generator, names))
    numbers = [int(_pick(generator, NUMBERS)) for _ in range(int(generator.integers(1, 6)))]
    value = _pick(generator, [numbers, numbers[0], float(_pick(generator, FLOATS)), "SAME_UPPER"])
    node.attribute.append(onnx.helper.make_attribute(name, value))


def dims(model: onnx.ModelProto, generator: Generator) -> None:
    """Other sizes than there are data, negative ones, huge ones."""
    tensor = _pick(generator, model.graph.initializer)
    if generator.random() < 0.3 or not tensor.dims:
        tensor.dims.append(int(_pick(generator, NUMBERS)))
    else:
        tensor.dims[int(generator.integers(len(tensor.dims)))] = int(_pick(generator, NUMBERS))


def reshape_initializer(model: onnx.ModelProto, generator: Generator) -> None:
    """Consistent data of another shape."""
    tensor = _pick(generator, model.graph.initializer)
    value = onnx.numpy_helper.to_array(tensor)
    shape = _pick(
        generator, [(-1,), (1, -1), (*value.shape, 1), value.shape[::-1], (0, *value.shape[1:]), value.shape[1:]]
    )
    if 0 in shape or (len(shape) < value.ndim and shape != (-1,)):
        value = np.zeros(shape, value.dtype)
    tensor.CopyFrom(onnx.numpy_helper.from_array(value.reshape(shape), tensor.name))


def values(model: onnx.ModelProto, generator: Generator) -> None:
    """NaN, infinity, huge or tiny numbers in a weight."""
    tensor = _pick(generator, model.graph.initializer)
    value = onnx.numpy_helper.to_array(tensor).copy()
    if value.size and value.dtype.kind == "f":
        value.reshape(-1)[: int(generator.integers(1, value.size + 1))] = float(_pick(generator, FLOATS))
        tensor.CopyFrom(onnx.numpy_helper.from_array(value, tensor.name))


def data_type(model: onnx.ModelProto, generator: Generator) -> None:
    """A type that does not fit the data, or data of another type."""
    tensor = _pick(generator, model.graph.initializer)
    if generator.random() < 0.5:
        tensor.data_type = int(_pick(generator, [*TensorProto.DataType.values(), 99, -1]))
    else:
        kinds = [np.float16, np.float64, np.int8, np.int64, np.bool_]
        value = onnx.numpy_helper.to_array(tensor).astype(_pick(generator, kinds))
        tensor.CopyFrom(onnx.numpy_helper.from_array(value, tensor.name))


def interface(model: onnx.ModelProto, generator: Generator) -> None:
    """Type, rank and sizes that an input or output declares."""
    value = _pick(generator, [*model.graph.input, *model.graph.output])
    shape = value.type.tensor_type.shape
    match int(generator.integers(5)):
        case 0:
            value.type.tensor_type.elem_type = int(_pick(generator, [*TensorProto.DataType.values(), 77]))
        case 1 if shape.dim:
            shape.dim[int(generator.integers(len(shape.dim)))].dim_value = int(_pick(generator, NUMBERS))
        case 2:
            shape.dim.add().dim_value = int(_pick(generator, NUMBERS))
        case 3:
            value.type.sequence_type.elem_type.tensor_type.elem_type = 1
        case _:
            value.type.tensor_type.ClearField("shape")


def header(model: onnx.ModelProto, generator: Generator) -> None:
    """Opsets and format versions."""
    match int(generator.integers(4)):
        case 0:
            model.opset_import[0].version = int(_pick(generator, [*range(-1, 30), 2**31, -(2**63), 2**62]))
        case 1:
            model.ir_version = int(_pick(generator, [*range(-1, 15), 2**31, 2**62]))
        case 2:
            model.opset_import.add(domain="", version=int(generator.integers(1, 30)))
        case _:
            del model.opset_import[:]


def external(model: onnx.ModelProto, generator: Generator) -> None:
    """External data at a path that leads elsewhere, or with sizes that do not fit."""
    tensor = _pick(generator, model.graph.initializer)
    paths = [
        "../../x",
        "/etc/passwd",
        "..",
        ".",
        "",
        "C:\\x",
        "a/../../x",
        "missing",
        "/dev/zero",
        "data",
        "d" * 5000,
        "\0",
    ]
    tensor.data_location = TensorProto.EXTERNAL
    if generator.random() < 0.7:
        tensor.ClearField("raw_data")
    for key in ("location", "offset", "length", "checksum", "odd"):
        if key == "location" or generator.random() < 0.4:
            value = _pick(generator, paths) if key == "location" else _pick(generator, [*NUMBERS, "x", "", "1e3", "²"])
            tensor.external_data.add(key=key, value=str(value))


def nesting(model: onnx.ModelProto, generator: Generator) -> None:
    """Subgraphs in subgraphs, up to what protobuf allows and beyond."""
    graph = onnx.GraphProto(name="inner")
    graph.node.add(op_type="Relu", input=["x"], output=["deep"])
    for _ in range(int(_pick(generator, [1, 5, 20, 90]))):
        outer = onnx.GraphProto(name="outer")
        outer.node.add(op_type="If", input=["x"], output=["deep"]).attribute.add(
            name="then_branch", type=AttributeProto.GRAPH
        ).g.CopyFrom(graph)
        graph = outer
    model.graph.node.add(op_type="If", input=["x"], output=["unused"]).attribute.add(
        name="then_branch", type=AttributeProto.GRAPH
    ).g.CopyFrom(graph)


def functions(model: onnx.ModelProto, generator: Generator) -> None:
    """A function that calls itself, lacks its node, or stands for a standard operator."""
    name, inner = str(_pick(generator, ["f", "Relu"])), str(_pick(generator, ["f", "Relu", "Missing"]))
    function = model.functions.add(name=name, domain="local", input=["a"], output=["b"])
    function.opset_import.add(domain="", version=17)
    function.opset_import.add(domain="local", version=1)
    function.node.add(op_type=inner, domain=str(_pick(generator, ["", "local"])), input=["a"], output=["b"])
    model.opset_import.add(domain="local", version=1)
    node = _pick(generator, model.graph.node)
    node.op_type, node.domain = name, "local"


def shape_constants(model: onnx.ModelProto, generator: Generator) -> None:
    """What an operator reads as a shape, an axis or a scale: huge, negative, not a number."""
    graph = model.graph
    kind = str(_pick(generator, ["ConstantOfShape", "Expand", "Tile", "Reshape", "Pad", "Resize", "Range", "OneHot"]))
    numbers = [int(_pick(generator, NUMBERS)) for _ in range(int(_pick(generator, [0, 1, 2, 4, 8])))]
    dtype = np.float32 if kind == "Resize" else np.int64
    graph.initializer.append(onnx.numpy_helper.from_array(np.array(numbers, dtype), "absurd"))
    source = str(_pick(generator, ["x", "z", "r", *(t.name for t in graph.initializer)]))
    inputs = {"ConstantOfShape": ["absurd"], "Resize": [source, "", "absurd"], "Range": ["absurd"] * 3}
    node = onnx.helper.make_node(kind, inputs.get(kind, [source, "absurd"]), ["absurd_out"])
    place = int(generator.integers(len(graph.node)))
    reader = graph.node[place]
    if reader.input:
        reader.input[int(generator.integers(len(reader.input)))] = "absurd_out"
    graph.node.insert(place, node)


Mutation = Callable[[onnx.ModelProto, Generator], None]
MUTATIONS: list[Mutation] = [
    op_type,
    domain,
    rewire,
    rename_output,
    drop_or_repeat,
    inputs_of_node,
    attribute,
    new_attribute,
    dims,
    reshape_initializer,
    values,
    data_type,
    interface,
    header,
    external,
    nesting,
    functions,
    shape_constants,
]


def mutated_bytes(data: bytes, generator: Generator) -> bytes:
    """Bytes cut, flipped, repeated, replaced by a number or swapped."""
    changed = bytearray(data)
    for _ in range(int(_pick(generator, [1, 1, 1, 2, 8]))):
        place = int(generator.integers(max(len(changed), 1)))
        match int(generator.integers(6)):
            case 0:
                del changed[place:]
            case 1:
                changed[place : place + 1] = bytes([int(generator.integers(256))])
            case 2:
                changed[place:place] = generator.bytes(int(generator.integers(1, 9)))
            case 3:
                del changed[place : place + int(generator.integers(1, 9))]
            case 4:
                changed[place : place + 4] = struct.pack("<I", int(_pick(generator, [0, 2**31, 2**32 - 1, 127, 128])))
            case _:
                end = place + int(generator.integers(1, 40))
                changed[place:place] = changed[place:end]
    return bytes(changed)


def write_case(seed: int, folder: Path) -> tuple[Path, str]:
    """The model of a seed as a file, and what was done to it."""
    generator = np.random.default_rng([1, seed])
    path = folder / "m.onnx"
    model = base(int(generator.integers(len(_BODIES))))
    if generator.random() < 0.25:
        path.write_bytes(mutated_bytes(model.SerializeToString(), generator))
        return path, "bytes"
    done = []
    for _ in range(int(_pick(generator, [1, 1, 1, 2, 3]))):
        mutation = _pick(generator, MUTATIONS)
        try:
            mutation(model, generator)
        except Exception:
            continue  # an earlier mutation left nothing to do this to
        done.append(mutation.__name__)
    path.write_bytes(model.SerializeToString())
    return path, ", ".join(done)
