"""Where the quantization points are, on small graphs written out as ONNX text."""

import pytest

from pdq_export.errors import ModelError
from pdq_export.graph.lookup import GraphIndex
from pdq_export.graph.prepare import prepare
from pdq_export.plan import PlanOptions, make_plan
from pdq_export.plan.blocks import MAX_LAYERS
from pdq_export.plan.summary import summarize_layers
from pdq_export.spec import Plan, Role

from ..onnx_text import fill, parse


def plan_of(body: str, weights: dict[str, tuple[int, ...]], *, bits: str = "4/2", output: str = "float[N,K] y") -> Plan:
    """Plan a graph ``body`` from ``image`` to ``y``; ``weights`` by name and shape."""
    return make_plan(prepare(fill(parse(body, outputs=output), weights)).model, PlanOptions.of(bits))


def table(plan: Plan) -> dict[str, tuple[Role, int]]:
    return {point.tensor: (point.role, point.bits) for point in plan.points.values()}


WEIGHTS = {"w1": (4, 3, 3, 3), "w2": (4, 4, 3, 3), "w3": (4, 4, 3, 3), "w4": (5, 4)}
PAD = "<pads = [1, 1, 1, 1]>"


def test_residual_net() -> None:
    plan = plan_of(
        f"""c1 = Conv {PAD} (image, w1)  a1 = Relu(c1)
            c2 = Conv {PAD} (a1, w2)     a2 = Relu(c2)
            c3 = Conv {PAD} (a2, w3)     s = Add(c3, a1)  a3 = Relu(s)
            p = GlobalAveragePool(a3)    f = Flatten(p)   y = Gemm <transB = 1> (f, w4)""",
        WEIGHTS,
    )
    assert table(plan) == {
        "image": (Role.CARRIER, 8),
        "w1": (Role.WEIGHT, 8),
        "a1": (Role.ACTIVATION, 2),
        "w2": (Role.WEIGHT, 4),
        "a2": (Role.ACTIVATION, 2),
        "w3": (Role.WEIGHT, 4),
        "c3": (Role.CARRIER, 8),  # before the Add
        "a3": (Role.ACTIVATION, 8),  # the last layer's input, through the average
        "p": (Role.CARRIER, 8),
        "w4": (Role.WEIGHT, 8),
    }
    assert plan.passthrough == {"f": "p"}
    assert plan.points["a3"].absorbed is not None
    assert [plan.points[name].symmetric for name in ("w1", "w2", "w4")] == [True, False, True]
    assert [block.outputs for block in plan.blocks] == [("a1",), ("a3",), ("y",)]
    assert [len(block.layers) for block in plan.blocks] == [1, 2, 1]


@pytest.mark.parametrize("activation", ["Relu", "HardSwish"])
def test_what_a_gate_multiplies_is_a_carrier_and_the_product_an_activation(activation: str) -> None:
    plan = plan_of(
        f"""c1 = Conv {PAD} (image, w1)  a1 = {activation}(c1)
            q = GlobalAveragePool(a1)    e = Conv {PAD} (q, w2)  g = HardSigmoid(e)  m = Mul(a1, g)
            c3 = Conv {PAD} (m, w3)      p = GlobalAveragePool(c3)  f = Flatten(p)  y = Gemm <transB = 1> (f, w4)""",
        WEIGHTS,
    )
    points = table(plan)
    assert points["a1"] == (Role.CARRIER, 8)
    assert (plan.points["a1"].absorbed is not None) is (activation == "Relu")
    assert points["m"] == (Role.ACTIVATION, 2)
    assert points["q"] == points["e"] == points["g"] == (Role.CARRIER, 8)
    assert plan.ramps["g"].alone
    assert set(plan.ramps) == {"g"} | ({"a1_gate"} if activation == "HardSwish" else set())


@pytest.mark.parametrize("product", ["Mul(n, g)", "Mul(g, n)"])
def test_points_come_in_the_order_of_the_graph(product: str) -> None:
    plan = plan_of(
        f"""c1 = Conv {PAD} (image, w1)  n = InstanceNormalization(c1, ones, zeros)  g = HardSigmoid(c1)  m = {product}
            c3 = Conv {PAD} (m, w3)      p = GlobalAveragePool(c3)  f = Flatten(p)  y = Gemm <transB = 1> (f, w4)""",
        {**WEIGHTS, "ones": (WEIGHTS["w1"][0],), "zeros": (WEIGHTS["w1"][0],)},
    )
    names = [name for name in plan.points if name in ("n", "g", "m")]
    assert names == ["n", "g", "m"]
    assert set(plan.ramps) == {"g"}


def test_clip_is_absorbed_and_elu_is_not() -> None:
    plan = plan_of(
        f"""zero = Constant <value_float = 0.0> ()  six = Constant <value_float = 6.0> ()
            c1 = Conv {PAD} (image, w1)  a1 = Clip(c1, zero, six)
            c2 = Conv {PAD} (a1, w2)     a2 = Elu(c2)
            c3 = Conv {PAD} (a2, w3)     p = GlobalAveragePool(c3)  f = Flatten(p)  y = Gemm <transB = 1> (f, w4)""",
        WEIGHTS,
    )
    points = table(plan)
    assert "c1" not in points
    assert plan.points["a1"].absorbed is not None
    assert points["c2"] == (Role.CARRIER, 8)  # keeps the convolution integer
    assert points["a2"] == (Role.ACTIVATION, 2)
    assert plan.points["a2"].absorbed is None
    assert points["c3"] == (Role.ACTIVATION, 8)


def test_silu_written_as_sigmoid_and_mul() -> None:
    plan = plan_of(
        f"""c1 = Conv {PAD} (image, w1)  g = Sigmoid(c1)  a1 = Mul(c1, g)
            c2 = Conv {PAD} (a1, w2)     r = Relu(c2)     p = GlobalAveragePool(r)  f = Flatten(p)
            y = Gemm <transB = 1> (f, w4)""",
        {name: WEIGHTS[name] for name in ("w1", "w2", "w4")},
    )
    points = table(plan)
    assert points["c1"] == points["g"] == (Role.CARRIER, 8)
    assert points["a1"] == (Role.ACTIVATION, 2)


def test_concat_gets_carriers_and_ends_a_block() -> None:
    plan = plan_of(
        f"""c1 = Conv {PAD} (image, w1)  a1 = Relu(c1)
            c2 = Conv {PAD} (a1, w2)     a2 = Relu(c2)    k = Concat <axis = 1> (a1, a2)
            c3 = Conv {PAD} (k, w3)      a3 = Relu(c3)    p = GlobalAveragePool(a3)  f = Flatten(p)
            y = Gemm <transB = 1> (f, w4)""",
        {**WEIGHTS, "w3": (4, 8, 3, 3)},
    )
    assert table(plan)["k"] == (Role.CARRIER, 8)
    assert [block.outputs for block in plan.blocks] == [("a1",), ("k",), ("a3",), ("y",)]


def test_max_pool_and_pad_pass_integers_through() -> None:
    plan = plan_of(
        """c1 = Conv (image, w1)  a1 = Relu(c1)  m = MaxPool <kernel_shape = [2, 2]> (a1)
           pads = Constant <value_ints = [0, 1, 0, 0, 0, 1, 0, 0]> ()  d = Pad(m, pads)
           c2 = Conv (d, w2)      a2 = Relu(c2)  p = GlobalAveragePool(a2)  f = Flatten(p)
           y = Gemm <transB = 1> (f, w4)""",
        {**WEIGHTS, "w2": (4, 6, 3, 3)},
    )
    assert plan.passthrough == {"m": "a1", "d": "a1", "f": "p"}
    assert plan.source("d") == "a1"


def test_the_network_output_is_not_quantized() -> None:
    plan = plan_of(
        f"c1 = Conv {PAD} (image, w1)  a1 = Relu(c1)  c2 = Conv {PAD} (a1, w2)  y = Relu(c2)",
        {name: WEIGHTS[name] for name in ("w1", "w2")},
        output="float[N,4,8,8] y",
    )
    assert "y" not in plan.points
    assert plan.points["w2"].bits == 8
    assert plan.points["a1"].bits == 8


def test_bits_of_inner_layers_only() -> None:
    body = f"""c1 = Conv {PAD} (image, w1)  a1 = Relu(c1)  c2 = Conv {PAD} (a1, w2)  a2 = Relu(c2)
               c3 = Conv {PAD} (a2, w3)  a3 = Relu(c3)  p = GlobalAveragePool(a3)  f = Flatten(p)
               y = Gemm <transB = 1> (f, w4)"""
    for weight_bits in range(2, 9):
        plan = plan_of(body, WEIGHTS, bits=f"{weight_bits}/3")
        assert [plan.points[name].bits for name in ("w1", "w2", "w3", "w4")] == [8, weight_bits, weight_bits, 8]
        assert [plan.points[name].bits for name in ("a1", "a2", "a3")] == [3, 3, 8]


def test_a_weight_shared_by_two_layers_is_one_point() -> None:
    plan = plan_of(
        f"""c1 = Conv {PAD} (image, w1)  a1 = Relu(c1)  c2 = Conv {PAD} (a1, w2)  a2 = Relu(c2)
            c3 = Conv {PAD} (a2, w2)  a3 = Relu(c3)  p = GlobalAveragePool(a3)  f = Flatten(p)
            y = Gemm <transB = 1> (f, w4)""",
        {name: WEIGHTS[name] for name in ("w1", "w2", "w4")},
    )
    assert [layer.weight for layer in plan.layers] == ["w1", "w2", "w2", "w4"]
    assert plan.points["w2"].bits == 4


def test_a_u_net_falls_apart_into_units_when_it_is_large() -> None:
    names = [f"w{k}" for k in range(1, 16)]
    steps = "\n".join(f"c{k} = Conv {PAD} (a{k - 1}, w{k}) a{k} = Relu(c{k})" for k in range(2, 15))
    plan = plan_of(
        f"c1 = Conv {PAD} (image, w1) a1 = Relu(c1) {steps} s = Add(a14, a1) y = Conv {PAD} (s, w15)",
        {name: (4, 3 if name == "w1" else 4, 3, 3) for name in names},
        output="float[N,4,8,8] y",
    )
    assert len(plan.layers) == 15
    assert max(len(block.layers) for block in plan.blocks) <= MAX_LAYERS
    assert [layer.weight for block in plan.blocks for layer in block.layers] == names
    produced = {"image"}
    for block in plan.blocks:
        assert set(block.inputs) <= produced
        produced.update(block.outputs)


def test_nothing_to_quantize() -> None:
    with pytest.raises(ModelError, match="nothing to quantize"):
        plan_of("r = Relu(image) y = Flatten(r)", {})


def test_the_scores_before_a_softmax_are_the_network_s_output() -> None:
    plan = plan_of(
        f"""c1 = Conv {PAD} (image, w1)  a1 = Relu(c1)  p = GlobalAveragePool(a1)  f = Flatten(p)
            l = Gemm <transB = 1> (f, w4)  y = Softmax(l)""",
        {name: WEIGHTS[name] for name in ("w1", "w4")},
    )
    assert "l" not in plan.points


def test_behind_the_last_layers_there_are_no_narrow_tensors() -> None:
    plan = plan_of(
        f"""c1 = Conv {PAD} (image, w1)  a1 = Relu(c1)  c2 = Conv {PAD} (a1, w2)  c3 = Conv {PAD} (a1, w3)
            f2 = Flatten(c2)  f3 = Flatten(c3)  k = Concat <axis = 1> (f2, f3)  y = Sigmoid(k)""",
        {name: WEIGHTS[name] for name in ("w1", "w2", "w3")},
    )
    points = table(plan)
    assert {points[name] for name in ("c2", "c3")} == {(Role.CARRIER, 8)}
    assert points["a1"] == (Role.ACTIVATION, 8)


def test_what_a_detector_computes_of_its_last_layers_is_float() -> None:
    plan = plan_of(
        f"""c1 = Conv {PAD} (image, w1)  a1 = Relu(c1)  c2 = Conv {PAD} (a1, w2)  c3 = Conv {PAD} (a1, w3)
            f2 = Flatten(c2)  f3 = Flatten(c3)  s = Sigmoid(f3)  d = Mul(f2, s)  e = Add(d, f2)
            b = Concat <axis = 1> (d, e)  k = Concat <axis = 1> (b, s)  y = Identity(k)""",
        {name: WEIGHTS[name] for name in ("w1", "w2", "w3")},
    )
    # the layers' own outputs keep an 8-bit pair, without which they would not run as integers
    assert table(plan).keys() - {"image", "w1", "w2", "w3"} == {"a1", "c2", "c3"}


@pytest.mark.parametrize("before", ["", "u = Relu(c1)", "u = Identity(c1)"])
def test_a_normalization_counts_to_the_layer_before_it(before: str) -> None:
    plan = plan_of(
        f"""c1 = Conv {PAD} (image, w1)  {before}  n = InstanceNormalization({"u" if before else "c1"}, s, s)
            a1 = Relu(n)  c2 = Conv {PAD} (a1, w2)  a2 = Relu(c2)
            p = GlobalAveragePool(a2)  f = Flatten(p)  y = Gemm <transB = 1> (f, w4)""",
        {**WEIGHTS, "s": (4,)},
    )
    points = table(plan)
    assert points["a1"] == (Role.ACTIVATION, 2)
    assert points["u" if "Relu" in before else "c1"] == (Role.CARRIER, 8)


def test_a_normalization_in_a_residual_network_reads_a_carrier() -> None:
    plan = plan_of(
        f"""c0 = Conv {PAD} (image, w1)  n1 = InstanceNormalization(c0, s, s)  c1 = Conv {PAD} (n1, w2)
            x1 = Add(c0, c1)  n2 = InstanceNormalization(x1, s, s)  c2 = Conv {PAD} (n2, w3)  x2 = Add(x1, c2)
            p = GlobalAveragePool(x2)  f = Flatten(p)  y = Gemm <transB = 1> (f, w4)""",
        {**WEIGHTS, "s": (4,)},
    )
    points = table(plan)
    assert {points[name] for name in ("c0", "c1", "x1", "c2")} == {(Role.CARRIER, 8)}
    assert {points[name] for name in ("n1", "n2")} == {(Role.ACTIVATION, 2)}


GROUP_NORM = """k1 = Constant <value_ints = [0, 2, -1]> ()  g1 = Reshape(c1, k1)  g2 = InstanceNormalization(g1, s2, s2)
    k2 = Shape(c1)  g3 = Reshape(g2, k2)  g4 = Mul(g3, t)  g5 = Add(g4, t)  a = Relu(g5)"""


@pytest.mark.parametrize(
    ("behind", "end"),
    [
        ("n = InstanceNormalization(c1, s, s)  a = Relu(n)", "a"),
        (GROUP_NORM, "a"),
        ("m = MaxPool <kernel_shape = [1, 1]> (c1)  a = Add(m, a0)", "a"),
        ("m = MaxPool <kernel_shape = [1, 1]> (c1)  e = Elu(m)  a = Add(e, a0)", "a"),
        ("n = InstanceNormalization(c1, s, s)  g = Sigmoid(n)  a = Mul(n, g)", "a"),
        ("u = Relu(c1)  z = LRN <size = 3> (u)  a = Add(z, a0)", "a"),
        ("u = LeakyRelu(c1)  a = Add(u, a0)", "a"),
        ("n = InstanceNormalization(c1, s, s)  a = Concat <axis = 2> (n, a0)", "n"),
    ],
)
def test_a_layer_s_own_bits_reach_the_activation_that_it_ends_in(behind: str, end: str) -> None:
    model = fill(
        parse(
            f"""c0 = Conv {PAD} (image, w1)  a0 = Relu(c0)  c1 = Conv {PAD} (a0, w2)  {behind}
                c2 = Conv {PAD} (a, w3)  r2 = Relu(c2)  c3 = Conv {PAD} (r2, w5)  y = Relu(c3)""",
            outputs="float[N,K,8,8] y",
        ),
        {**WEIGHTS, "w5": (4, 4, 3, 3), "s": (4,), "s2": (2,), "t": (4, 1, 1)},
    )
    prepared = prepare(model).model
    convs = [node.name for node in prepared.graph.node if node.op_type == "Conv"]
    plan = make_plan(prepared, PlanOptions.of("4/3", layer_bits=[f"^{convs[1]}$=8/6"]))
    learned = {name: bits for name, (role, bits) in table(plan).items() if role is Role.ACTIVATION}
    assert learned == {"a0": 3, end: 6, "r2": 8}
    assert [row.activation_bits for row in summarize_layers(GraphIndex(prepared), plan)] == [3, 6, 8, None]


def test_a_layer_s_own_bits_do_not_reach_the_next_layer() -> None:
    model = fill(
        parse(
            f"""c1 = Conv {PAD} (image, w1)  n = InstanceNormalization(c1, s, s)  c2 = Conv {PAD} (n, w2)
                x = Add(n, c2)  r = Relu(x)  c3 = Conv {PAD} (r, w3)  r3 = Relu(c3)
                c4 = Conv {PAD} (r3, w5)  y = Relu(c4)""",
            outputs="float[N,K,8,8] y",
        ),
        {**WEIGHTS, "w5": (4, 4, 3, 3), "s": (4,)},
    )
    prepared = prepare(model).model
    first = next(node.name for node in prepared.graph.node if node.op_type == "Conv")
    points = table(make_plan(prepared, PlanOptions.of("4/3", layer_bits=[f"^{first}$=8/6"])))
    assert (points["n"][1], points["r"][1]) == (6, 3)


def test_what_a_float_resize_writes_is_rounded_where_a_layer_reads_it() -> None:
    plan = plan_of(
        f"""c1 = Conv {PAD} (image, w1)  r1 = Relu(c1)  m = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r1)
            c2 = Conv {PAD} (m, w2)  r2 = Relu(c2)  k = Constant <value_floats = [1.0, 1.0, 2.0, 2.0]> ()
            u = Resize <mode = "linear"> (r2, , k)  a = Concat <axis = 1> (u, r1)  c3 = Conv {PAD} (a, w8)
            p = GlobalAveragePool(c3)  f = Flatten(p)  y = Gemm <transB = 1> (f, w4)""",
        {**WEIGHTS, "w8": (4, 8, 3, 3)},
    )
    points = table(plan)
    assert [points[name] for name in ("r2", "u", "r1")] == [(Role.CARRIER, 8), *[(Role.ACTIVATION, 2)] * 2]


def test_an_output_behind_a_pool_leaves_the_layer_its_integers() -> None:
    plan = plan_of(
        f"""c0 = Conv {PAD} (image, w1)  r0 = Relu(c0)  c1 = Conv {PAD} (r0, w2)
            m = MaxPool <kernel_shape = [1, 1]> (c1)  y = Relu(m)  c2 = Conv {PAD} (y, w3)  z = Elu(c2)""",
        {name: WEIGHTS[name] for name in ("w1", "w2", "w3")},
        output="float[N,4,8,8] y, float[N,4,8,8] z",
    )
    assert table(plan)["c1"] == (Role.CARRIER, 8)


@pytest.mark.parametrize(
    ("node", "width", "passes"),
    [
        ("p = ReduceMax <axes = [1]> (a1)", 64, True),
        ("p = ReduceMin <axes = [2, 3]> (a1)", 4, True),
        ("k = Constant <value_ints = [1, 1, 2, 1]> ()  p = Tile(a1, k)", 512, True),
        ("k = Constant <value_ints = [2, 0]> ()  p = Gather <axis = 1> (a1, k)", 128, True),
        ("p = ReduceMean <axes = [1]> (a1)", 64, False),
    ],
)
def test_operators_that_only_choose_elements_pass_integers_on(node: str, width: int, passes: bool) -> None:
    plan = plan_of(
        f"c1 = Conv {PAD} (image, w1)  a1 = Relu(c1)  {node}  f = Flatten(p)  y = MatMul(f, w)",
        {"w1": WEIGHTS["w1"], "w": (width, 5)},
    )
    assert (plan.passthrough.get("p") == "a1") == passes
    assert bool({"p", "f"} & plan.points.keys()) != passes


def test_an_activation_behind_a_reshape_is_rounded_once() -> None:
    plan = plan_of(
        f"""c1 = Conv {PAD} (image, w1)  rows = Constant <value_ints = [0, 4, -1]> ()  f = Reshape(c1, rows)
            a1 = Elu(f)  t = Transpose <perm = [0, 2, 1]> (a1)  l = MatMul(t, wq)  y = MatMul(l, wo)""",
        {"w1": WEIGHTS["w1"], **dict.fromkeys(("wq", "wo"), (4, 4))},
        output="float[N,64,4] y",
    )
    points = table(plan)
    assert (points["c1"], points["a1"]) == ((Role.CARRIER, 8), (Role.ACTIVATION, 2))


def test_attention_stays_float_between_quantized_projections() -> None:
    plan = plan_of(
        f"""c1 = Conv {PAD} (image, w1)  rows = Constant <value_ints = [0, 4, -1]> ()  f = Reshape(c1, rows)
            tokens = Transpose <perm = [0, 2, 1]> (f)  q = MatMul(tokens, wq)  k = MatMul(tokens, wk)
            kt = Transpose <perm = [0, 2, 1]> (k)  s = MatMul(q, kt)  a = Softmax <axis = -1> (s)
            v = MatMul(tokens, wv)  o = MatMul(a, v)  y = MatMul(o, wo)""",
        {"w1": WEIGHTS["w1"], **dict.fromkeys(("wq", "wk", "wv", "wo"), (4, 4))},
        output="float[N,64,4] y",
    )
    activations = {name: bits for name, (role, bits) in table(plan).items() if role is not Role.WEIGHT}
    assert activations == {"image": 8, "c1": 2, "o": 8}


def test_a_bias_that_something_else_reads_is_not_the_layer_s_own() -> None:
    weights = {**WEIGHTS, "b1": (4,), "b2": (4,), "s": (4,)}
    plan = plan_of(
        f"""c1 = Conv {PAD} (image, w1, b1)  c2 = Conv {PAD} (c1, w2, b2)  c3 = Conv {PAD} (c2, w3, b2)
            y = InstanceNormalization (c3, s, b1)""",
        {name: weights[name] for name in ("w1", "w2", "w3", "b1", "b2", "s")},
        output="float[N,K,H,W] y",
    )
    assert [layer.owns_bias for layer in plan.layers] == [False, False, False]
    own = plan_of(
        f"c1 = Conv {PAD} (image, w1, b1)  y = Conv {PAD} (c1, w2)",
        {k: weights[k] for k in ("w1", "w2", "b1")},
        output="float[N,K,H,W] y",
    )
    assert [layer.owns_bias for layer in own.layers] == [True, False]


def test_all_that_a_split_gives_carries_the_integers_that_one_of_them_needs() -> None:
    plan = plan_of(
        f"""c1 = Conv {PAD} (image, w1)  e = Exp(c1)  a, b = Split <axis = 1> (e)
            c2 = Conv {PAD} (a, u)  s = Exp(b)  y = Add(c2, s)""",
        {"w1": (4, 3, 3, 3), "u": (2, 2, 3, 3)},
        output="float[N,2,8,8] y",
    )
    assert plan.passthrough == {"a": "e", "b": "e"}


TRANSFORMER = f"""c1 = Conv {PAD} (image, w1) k = Constant <value_ints = [0, 4, 64]> () f = Reshape(c1, k)
    t = Transpose <perm = [0, 2, 1]> (f) n1 = LayerNormalization(t, ones) m1 = MatMul(n1, u) a1 = Add(m1, t)
    n2 = LayerNormalization(a1, ones) m2 = MatMul(n2, u) g = Sigmoid(m2) m3 = Mul(m2, g) p1 = MatMul(m3, u)
    a2 = Add(p1, a1) n3 = LayerNormalization(a2, ones) p2 = MatMul(n3, u) a3 = Add(p2, a2)
    h = ReduceMean <axes = [1], keepdims = 0> (a3)
    y = Gemm <transB = 1> (h, v)"""


def test_a_residual_stream_between_matrices_and_normalizations_is_float() -> None:
    plan = plan_of(TRANSFORMER, {"w1": (4, 3, 3, 3), "u": (4, 4), "v": (5, 4), "ones": (4,)})
    points = table(plan)
    read_by_layers = {"image", "n1", "n2", "m3", "n3", "h"}
    assert {name for name in points if name in {layer.input for layer in plan.layers}} == read_by_layers
    assert set(points) - read_by_layers - {"w1", "u", "v"} == {"c1"}  # it keeps the convolution in integers
    assert not {"m1", "a1", "m2", "p1", "a2", "p2", "a3"} & (set(points) | set(plan.passthrough))
