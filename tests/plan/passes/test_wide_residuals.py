"""Wide residuals: what Adds read keeps 8 bits, what layers read of it has A."""

from collections.abc import Mapping

import pytest

from pdq_export.graph.lookup import GraphIndex
from pdq_export.graph.prepare import prepare
from pdq_export.plan import PlanOptions, make_plan
from pdq_export.plan.passes.wide_residuals import widen
from pdq_export.plan.planned import Planned
from pdq_export.plan.summary import summarize_layers
from pdq_export.spec import Plan, Role

from ...onnx_text import fill, name_nodes, parse

PAD = "<pads = [1, 1, 1, 1]>"
WEIGHTS = {"w1": (4, 3, 3, 3), **dict.fromkeys(("w2", "w3", "w5", "w6"), (4, 4, 3, 3)), "w4": (5, 4), "d": (4, 4, 1, 1)}
WEIGHTS |= {"h": (2, 2, 3, 3), "last": (5, 4, 1, 1)}
STEM = f"c1 = Conv {PAD} (image, w1)  a1 = Relu(c1)"
UNIT = f"c2 = Conv {PAD} (a1, w2)  a2 = Relu(c2)  c3 = Conv {PAD} (a2, w3)  s = Add(c3, a1)  a3 = Relu(s)"
SECOND = f"c5 = Conv {PAD} (a3, w5)  a5 = Relu(c5)  c6 = Conv {PAD} (a5, w6)  s6 = Add(c6, a3)  z = Relu(s6)"
HEAD = "p = GlobalAveragePool(z)  f = Flatten(p)  y = Gemm <transB = 1> (f, w4)"


def planned(body: str, bits: str = "4/2", outputs: str = "float[N,K] y", **options: object) -> tuple[GraphIndex, Plan]:
    """The plan of a graph whose nodes are called after their outputs, and the graph itself."""
    model = prepare(name_nodes(fill(parse(body, outputs=outputs), WEIGHTS))).model
    chosen = PlanOptions.of(bits, wide_residuals=True, **options)  # type: ignore[arg-type]
    widened = widen(Planned.of(model, make_plan(model, chosen), chosen))
    return widened.index, widened.plan


def activations(plan: Plan) -> Mapping[str, tuple[Role, int]]:
    return {p.tensor: (p.role, p.bits) for p in plan.points.values() if p.role is not Role.WEIGHT}


def test_units_read_few_bits_of_a_sum_that_keeps_8() -> None:
    index, plan = planned(f"{STEM} {UNIT} {SECOND} {HEAD}")
    assert activations(plan) == {
        "image": (Role.CARRIER, 8),
        "a1": (Role.CARRIER, 8),
        "a1_narrow": (Role.ACTIVATION, 2),
        "a2": (Role.ACTIVATION, 2),
        "c3": (Role.CARRIER, 8),
        "a3": (Role.CARRIER, 8),
        "a3_narrow": (Role.ACTIVATION, 2),
        "a5": (Role.ACTIVATION, 2),
        "c6": (Role.CARRIER, 8),
        "z": (Role.ACTIVATION, 8),  # the last layer's input
        "p": (Role.CARRIER, 8),
    }
    assert plan.points["a3"].absorbed == "a3"
    assert plan.points["a3_narrow"].absorbed == "a3/Identity"
    assert [block.inputs for block in plan.blocks] == [("image",), ("a1",), ("a3",), ("z",)]
    assert [layer.input_bits for layer in summarize_layers(index, plan)] == [8, 2, 2, 2, 2, 8]
    assert [layer.activation_bits for layer in summarize_layers(index, plan)] == [2, 2, 2, 2, 8, None]


def test_pooled_and_sliced_residuals() -> None:
    """The maximum of a stem passes 8 bits on; a shortcut may be cut out of its tensor."""
    shortcut = "begin = Constant <value_ints = [0]> ()  end = Constant <value_ints = [4]> ()  t = Slice(a3, begin, end)"
    body = f"""{STEM} m = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (a1)  {UNIT.replace("a1", "m")}
        {shortcut} {SECOND.replace("Add(c6, a3)", "Add(c6, t)")} {HEAD}"""
    index, plan = planned(body)
    assert [layer.activation_bits for layer in summarize_layers(index, plan)] == [2, 2, 2, 2, 8, None]
    found = activations(plan)
    assert found["a1"] == found["a3"] == (Role.CARRIER, 8)
    assert found["m_narrow"] == found["a3_narrow"] == (Role.ACTIVATION, 2)
    assert "a1_narrow" not in found
    assert (plan.passthrough["m"], plan.passthrough["t"]) == ("a1", "a3")
    assert [block.outputs for block in plan.blocks][:2] == [("a1",), ("a3",)]


def test_a_layer_behind_a_pool_reads_through_the_identity_and_a_projection_shares_it() -> None:
    body = f"""{STEM} {UNIT} q = MaxPool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (a3)
        c5 = Conv {PAD} (q, w5)  e = Conv (a3, d)  s5 = Add(c5, e)  s6 = Add(s5, a3)  z = Relu(s6) {HEAD}"""
    index, plan = planned(body)
    assert [reader.name for reader in index.consumers("a3_narrow")] == ["q", "e"]
    assert [reader.name for reader in index.consumers("a3")] == ["a3/Identity", "s6"]
    assert plan.passthrough["q"] == "a3_narrow"


def test_stages_without_a_residual_keep_the_papers_points() -> None:
    """Where two convolutions read a tensor, none of its bits reaches an Add."""
    body = f"""{STEM} c2 = Conv {PAD} (a1, w2)  e = Conv (a1, d)  s = Add(c2, e)  z = Relu(s) {HEAD}"""
    index, plan = planned(body)
    assert activations(plan)["a1"] == (Role.ACTIVATION, 2)
    assert not any(node.op_type == "Identity" for node in index.graph.node)


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ({"layer_bits": ["^c3$=4/5"]}, {"a3": 8, "a3_narrow": 5, "z": 8, "a1_narrow": 2}),
        ({"layer_bits": ["^c3$=4/8"]}, {"a3": 8, "a1_narrow": 2}),
        ({"layer_bits": ["^c1$=4/3"]}, {"a1": 8, "a1_narrow": 3, "a3_narrow": 2}),
        ({"exclude": ["^c5$"]}, {"a3": 8, "a1_narrow": 2}),
    ],
)
def test_bits_of_single_layers(rules: dict[str, list[str]], expected: dict[str, int]) -> None:
    _, plan = planned(f"{STEM} {UNIT} {SECOND} {HEAD}", **rules)
    assert {name: plan.points[name].bits for name in expected} == expected
    assert {name for name in plan.points if "_narrow" in name} == {name for name in expected if "_narrow" in name}


def test_every_half_of_a_split_residual_is_read_in_few_bits() -> None:
    body = f"""{STEM} l, r = Split <axis = 1> (a1) c2 = Conv {PAD} (l, h) s = Add(c2, l) c3 = Conv {PAD} (r, h)
        k = Concat <axis = 1> (s, c3) z = Relu(k) {HEAD}"""
    index, plan = planned(body)
    assert [layer.input_bits for layer in summarize_layers(index, plan)] == [8, 2, 2, 8]
    assert activations(plan)["a1"] == (Role.CARRIER, 8)
    assert {"l_narrow", "r_narrow"} < set(plan.points)


def test_what_the_last_layers_read_keeps_the_bits_of_first_last() -> None:
    """The ends of a pyramid: one layer reads what the other's branch is added to."""
    body = f"{STEM} t = Conv {PAD} (a1, w2) s = Add(t, a1) y = Conv (t, last) z = Conv (s, last)"
    index, plan = planned(body, outputs="float[N,K,H,W] y, float[N,K,H,W] z")
    assert [layer.input_bits for layer in summarize_layers(index, plan)] == [8, 2, 8, 8]
    assert not any("t_" in name for name in plan.points)


def test_what_is_a_carrier_anyway_is_left_alone() -> None:
    pool = "g = AveragePool <kernel_shape = [2, 2]> (a1)"
    index, plan = planned(f"{STEM} {pool} c2 = Conv {PAD} (g, w2) s = Add(c2, g) z = Relu(s) {HEAD}")
    assert [layer.input_bits for layer in summarize_layers(index, plan)] == [8, 8, 8]
    assert "g_narrow" not in plan.points


def test_a_shortcut_around_a_gate_is_wide_too() -> None:
    body = f"""{STEM} q = GlobalAveragePool(a1) e = Conv (q, d) g = Sigmoid(e) m = Mul(a1, g) s = Add(m, a1)
        a3 = Relu(s) c5 = Conv {PAD} (a3, w5) z = Relu(c5) {HEAD}"""
    _, plan = planned(body)
    assert activations(plan)["a1"] == (Role.CARRIER, 8)
    assert activations(plan)["a3"] == (Role.ACTIVATION, 2)


@pytest.mark.parametrize("body", [f"{STEM} {UNIT} {SECOND} {HEAD}", f"{STEM} c2 = Conv (a1, d) z = Relu(c2) {HEAD}"])
def test_nothing_changes_at_8_bits_or_without_an_addition(body: str) -> None:
    model = prepare(name_nodes(fill(parse(body), WEIGHTS))).model
    options = PlanOptions.of("4/8" if "Add" in body else "4/4")
    planned = Planned.of(model, make_plan(model, options), options)
    assert widen(planned) is planned


def test_layer_by_layer_blocks_stay() -> None:
    """A layer a block where it ends at a learned point; the projection before the Add has none."""
    _, plan = planned(f"{STEM} {UNIT} {SECOND} {HEAD}", per_layer=True)
    assert [[layer.node for layer in block.layers] for block in plan.blocks] == [
        *(["c1"], ["c2"], ["c3"], ["c5"], ["c6"], ["y"])
    ]


def test_names_that_are_taken() -> None:
    body = f"{STEM} {UNIT.replace('a2', 'a1_narrow')} {SECOND} {HEAD}"
    index, plan = planned(body)
    assert plan.points["a1_narrow_1"].absorbed == "a1/Identity"
    assert len(index.nodes) == len(index.graph.node)
