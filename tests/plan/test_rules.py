"""Bits of single layers: which patterns are taken, what wins, and what the points become."""

import time

import onnx
import pytest

from pdq_export.errors import OptionError
from pdq_export.graph.lookup import GraphIndex
from pdq_export.graph.prepare import prepare
from pdq_export.plan import PlanOptions, make_plan, patterns
from pdq_export.plan.summary import summarize_layers
from pdq_export.spec import BitWidths, Plan, Role

from ..onnx_text import fill, name_nodes, parse

PAD = "<pads = [1, 1, 1, 1]>"
RESIDUAL = f"""c1 = Conv {PAD} (image, w1)  a1 = Relu(c1)
    c2 = Conv {PAD} (a1, w2)     a2 = Relu(c2)
    c3 = Conv {PAD} (a2, w3)     s = Add(c3, a1)  a3 = Relu(s)
    c4 = Conv {PAD} (a3, w4)     a4 = Relu(c4)
    p = GlobalAveragePool(a4)    f = Flatten(p)   y = Gemm <transB = 1> (f, w5)"""
WEIGHTS = {"w1": (4, 3, 3, 3), "w2": (4, 4, 3, 3), "w3": (4, 4, 3, 3), "w4": (4, 4, 3, 3), "w5": (5, 4)}
NAMES = {
    "c1": "/stem/Conv",
    "c2": "/layer1/conv1/Conv",
    "c3": "/layer1/conv2/Conv",
    "c4": "/head/Conv",
    "y": "/fc/Gemm",
}


def prepared(body: str = RESIDUAL) -> onnx.ModelProto:
    return prepare(name_nodes(fill(parse(body), WEIGHTS), NAMES)).model


def plan_of(body: str = RESIDUAL, bits: str = "4/2", **options: object) -> Plan:
    return make_plan(prepared(body), PlanOptions.of(bits, **options))  # type: ignore[arg-type]


def widths(plan: Plan) -> dict[str, int]:
    return {name: point.bits for name, point in plan.points.items()}


USUAL = {"image": 8, "w1": 8, "a1": 2, "w2": 4, "a2": 2, "w3": 4, "c3": 8, "a3": 2, "w4": 4, "a4": 8, "p": 8, "w5": 8}


def test_without_rules() -> None:
    assert widths(plan_of()) == USUAL


def test_layer_bits_are_those_of_the_weight_and_of_the_activation_that_the_layer_ends_in() -> None:
    assert widths(plan_of(layer_bits={"conv1": "3/5"})) == {**USUAL, "w2": 3, "a2": 5}
    assert widths(plan_of(layer_bits=["^/layer1/=3/5"])) == {**USUAL, "w2": 3, "a2": 5, "w3": 3, "a3": 5}


def test_of_two_layers_that_end_in_one_addition_the_larger_activation_counts() -> None:
    body = RESIDUAL.replace("s = Add(c3, a1)", f"c5 = Conv {PAD} (a1, w3) s = Add(c3, c5)")
    plan = plan_of(body, layer_bits={"conv2": "4/5", "^c5$": "4/3"})
    assert widths(plan) == {**USUAL, "c5": 8, "a3": 5}
    plan = plan_of(body, layer_bits={"^c5$": "4/3"})
    assert widths(plan) == {**USUAL, "c5": 8, "a3": 3}


def test_layer_bits_reach_past_an_activation_that_is_not_absorbed() -> None:
    body = RESIDUAL.replace("a2 = Relu(c2)", "g2 = Sigmoid(c2) a2 = Mul(c2, g2)").replace("Relu(c4)", "Elu(c4)")
    plan = plan_of(body, layer_bits={"conv1": "3/5", "head": "3/6"})
    assert widths(plan) == {**USUAL, "c2": 8, "g2": 8, "w2": 3, "a2": 5, "c4": 8, "w4": 3, "a4": 6}


def test_first_and_last() -> None:
    assert widths(plan_of(first_last="6/5")) == {**USUAL, "w1": 6, "a4": 5, "w5": 6}
    assert widths(plan_of(bits="8/8", first_last="4/4")) == {**dict.fromkeys(USUAL, 8), "w1": 4, "a4": 4, "w5": 4}


def test_what_wins() -> None:
    rules = {".": "5/5", "head|fc": "7/6"}  # the last that matches, and before first_last
    plan = plan_of(first_last="3/3", layer_bits=rules, exclude=["conv1"])
    own = {"w1": 5, "a1": 5, "w3": 5, "a3": 5, "w4": 7, "a4": 6, "w5": 7}
    assert widths(plan) == {name: own.get(name, bits) for name, bits in USUAL.items() if name != "w2"}
    assert [layer.node for layer in plan.excluded] == ["/layer1/conv1/Conv"]


def test_an_excluded_layer_is_float_between_pairs() -> None:
    plan = plan_of(exclude="conv1")
    assert "w2" not in plan.points
    assert plan.points["a2"].role is Role.ACTIVATION  # the next layer's input
    assert plan.points["a2"].absorbed is None
    assert {name: bits for name, bits in USUAL.items() if name != "w2"} == widths(plan)
    assert [layer.output for layer in plan.layers] == ["c1", "c3", "c4", "y"]
    assert [[layer.output for layer in block.layers] for block in plan.blocks] == [["c1"], ["c3"], ["c4"], ["y"]]


def test_the_first_and_the_last_layer_stay_so_where_they_are_excluded() -> None:
    plan = plan_of(exclude=["stem", "fc"])
    usual = {name: bits for name, bits in USUAL.items() if name not in ("image", "w1", "w5")}
    assert widths(plan) == usual
    assert plan.points["a1"].role is Role.ACTIVATION
    assert plan.blocks[-1].nodes[-1] == "/fc/Gemm"


def test_summary() -> None:
    model = prepared()
    plan = make_plan(model, PlanOptions.of("4/2", exclude="conv1", layer_bits={"conv2": "3/5"}))
    rows = [
        (row.node, row.weight_bits, row.input_bits, row.activation_bits, row.excluded)
        for row in summarize_layers(GraphIndex(model), plan)
    ]
    assert rows == [
        ("/stem/Conv", 8, 8, 2, False),
        ("/layer1/conv1/Conv", None, 2, 2, True),
        ("/layer1/conv2/Conv", 3, 2, 5, False),
        ("/head/Conv", 4, 5, 8, False),
        ("/fc/Gemm", 8, 8, None, False),
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"exclude": "layer2/conv1"}, "--exclude 'layer2/conv1': matches none of the 12 nodes' names; near names are "),
        ({"exclude": "layer2/conv1"}, "'/layer1/conv1/Conv'"),
        ({"layer_bits": {"haed": "4/4"}}, "near names are '/head/Conv'"),
        ({"layer_bits": {"s$": "4/4"}}, "matches none of the 5 layers' names"),  # not a layer
        (
            {"exclude_op": "add"},
            "--exclude-op 'add': the model, once prepared, has no such operator; did you mean Add?",
        ),
        ({"exclude_op": ["Conv", "Gemm"]}, "--exclude-op Conv Gemm: matches all 5 layers"),
        ({"exclude": "("}, r"--exclude '(': is not a regular expression (missing ), unterminated"),
        ({"exclude": ""}, "has 0 characters"),
        ({"exclude": "a" * 1001}, "has 1001 characters"),
        ({"exclude": ["stem", "layer1", "head", "fc"]}, "--exclude 'stem' 'layer1' 'head' 'fc': matches all 5 layers"),
        ({"layer_bits": {"stem": "9/4"}}, "--layer-bits 'stem': 9/4: weight bits are 9; expected 2 to 8"),
        ({"layer_bits": ["stem"]}, "--layer-bits 'stem': expected REGEX=W/A"),
        ({"layer_bits": ["=4/4"]}, "--layer-bits '=4/4': expected REGEX=W/A"),
        ({"layer_bits": ["a=b"]}, "--layer-bits 'a': 'b': expected W/A"),
        ({"first_last": "8"}, "--first-last '8': expected W/A"),
        ({"wide_residuals": "no"}, "--wide-residuals 'no': expected true or false"),
    ],
)
def test_what_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError) as caught:
        plan_of(**options)
    assert message in str(caught.value)


def test_a_pattern_may_hold_an_equals_sign() -> None:
    assert PlanOptions.of("4/4", layer_bits=["a=b=2/3"]).layer_bits == (("a=b", BitWidths(2, 3)),)


def test_a_weight_that_an_excluded_layer_shares_is_refused() -> None:
    with pytest.raises(OptionError, match=r"'/layer1/conv1/Conv' shares its weight 'w2' with '/layer1/conv2/Conv'"):
        plan_of(RESIDUAL.replace("w3", "w2"), exclude="conv1")


@pytest.mark.parametrize("pattern", [r"(a+)+$", r"(a|a)*$", r"(a?){40}a{40}$"])
def test_patterns_that_take_for_ever_are_an_error(pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patterns, "MATCH_SECONDS", 0.5)
    began = time.monotonic()
    with pytest.raises(OptionError, match="takes more than"):
        patterns.find_matches(pattern, ["a" * 39 + "!"], "--exclude")
    assert time.monotonic() - began < 10


def test_patterns_that_may_backtrack_match_the_same() -> None:
    names = ["/layer1/conv1/Conv", "/layer2/conv1/Conv", "é\n"]
    assert patterns.find_matches(r"layer.*/conv.*", names, "-") == set(names[:2])
    assert patterns.find_matches(r"^é|x|z", names, "-") == {"é\n"}


def test_patterns_match_modules_as_well() -> None:
    names = ["node_conv2d", "node_conv2d_1", "other"]
    scopes = {"node_conv2d": ["stem.conv"], "node_conv2d_1": ["layer1.0"], "other": [""]}
    options = PlanOptions.of("4/4", layer_bits={r"^layer1\.": "8/8", "other": "2/2"}, exclude="stem.*conv")
    rules = options.resolve(names, dict.fromkeys(names, "Conv"), scopes)
    assert {name: str(bits) for name, bits in rules.own.items()} == {"node_conv2d_1": "8/8", "other": "2/2"}
    assert rules.excluded == {"node_conv2d"}
    with pytest.raises(OptionError, match=r"near names are 'layer1\.0'"):
        PlanOptions.of("4/4", exclude="layer1_0").resolve(names, dict.fromkeys(names, "Conv"), scopes)
