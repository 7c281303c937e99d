"""Whoever excludes a node of the file excludes all that was made of it."""

import onnx
import pytest

from pdq_export.commands.dry_run import dry_run
from pdq_export.errors import OptionError
from pdq_export.graph import origins
from pdq_export.graph.prepare import prepare
from pdq_export.plan import PlanOptions
from pdq_export.plan.patterns import find_matches
from pdq_export.spec import Plan
from pdq_export.work import prepare_and_plan

from ..onnx_text import fill, name_nodes, parse

P = "<pads = [1, 1, 1, 1]>"
SHAPES = {"w0": (4, 3, 3, 3), "w1": (4, 4, 3, 3), "w2": (4, 4, 3, 3), "w3": (4, 4, 3, 3)}
POOL = "MaxPool <kernel_shape = [2, 2], strides = [2, 2]>"
BRANCHES = f"c0 = Conv {P} (image, w0) c1 = Conv {P} (c0, w1) c2 = Conv {P} (c0, w2)"
SPLIT = f"c0 = Conv {P} (image, w0) m = {POOL} (c0) y = Conv {P} (m, w1)"
SUM = f"{BRANCHES} s = Sum(c0, c1, c2) y = Conv {P} (s, w3)"
TWICE = f"{BRANCHES} s = Sum(c0, c1, c2) m = {POOL} (s) y = Conv {P} (m, w3)"


def model_of(body: str, *outputs: str, names: dict[str, str] | None = None) -> onnx.ModelProto:
    declared = ", ".join(f"float[N,4,H,W] {name}" for name in ("y", *outputs))
    return name_nodes(fill(parse(body, outputs=declared), SHAPES), names)


def planned(model: onnx.ModelProto, *, opset: int | None = None, **options: object) -> Plan:
    prepared, plan, _ = prepare_and_plan(model, PlanOptions.of("8/8", **options), target="ort", opset=opset)  # type: ignore[arg-type]
    dry_run(prepared, plan, "ort")
    return plan


@pytest.mark.parametrize("opset", [None, 21])
@pytest.mark.parametrize(
    ("body", "outputs", "exclude", "expected"),
    [
        (SPLIT, ["m"], "^m$", {"m", "m/inner"}),
        (SUM, [], "^s$", {"s/1", "s"}),
        (SUM, [], "^s/1$", {"s/1"}),  # the name that is shown still means this one
        (SUM.replace("Sum", "Mean"), [], "^s$", {"s/1", "s/2"}),  # its Mul is in the next layer
        (TWICE, ["m"], "^m$", {"m", "m/inner"}),
        (BRANCHES + f" s = Swish(c0) t = Sum(s, c1, c2) y = Conv {P} (t, w3)", [], "^s$", {"s/Sigmoid", "s"}),
    ],
)
def test_a_node_is_excluded_with_all_that_was_made_of_it(
    body: str, outputs: list[str], exclude: str, expected: set[str], opset: int | None
) -> None:
    model = model_of(body, *outputs)
    if "Swish" in body:
        model.opset_import[0].version = 24
        opset = None
    assert set(planned(model, exclude=exclude, opset=opset).excluded_nodes) == expected


def test_a_copy_of_a_part_is_known_by_all_names() -> None:
    model = model_of(f"{BRANCHES} s = Sum(c0, c1, c2) y = Conv {P} (s, w3)")
    part = next(node for node in prepare(model).model.graph.node if node.name == "s/1")
    copy = onnx.NodeProto()
    copy.CopyFrom(part)
    copy.name = "s/1/inner"
    origins.write_at(copy, origins.origin(part))
    assert origins.names(part) == ("s/1", "s")
    assert origins.names(copy) == ("s/1/inner", "s/1", "s")


def test_nodes_of_the_file_come_from_no_other() -> None:
    names = {"s": "block", "c1": "block/1", "c2": "block.mul"}
    plan = planned(model_of(SUM.replace("c0, c1, c2", "c1, c2"), names=names), exclude="^block$")
    assert (plan.excluded_nodes, plan.excluded) == (("block",), ())


def test_a_foreign_origin_counts_for_nothing() -> None:
    node = onnx.helper.make_node("Relu", ["x"], ["y"], "relu")
    node.metadata_props.add(key=origins.KEY, value="other")
    assert origins.names(node) == ("relu",)


def test_what_was_made_belongs_to_the_module() -> None:
    model = model_of(SUM)
    node = next(node for node in model.graph.node if node.name == "s")
    node.metadata_props.add(key="pkg.torch.onnx.name_scopes", value="['', 'layer1', 'layer1.sum', 'add']")
    assert set(planned(model, exclude=r"^layer1\.sum$").excluded_nodes) == {"s/1", "s"}


@pytest.mark.parametrize(
    ("body", "option", "written"),
    [
        (SUM, "Sum", "Add"),
        (SUM.replace("Sum", "Mean"), "Mean", "Add and Mul"),
        (f"{BRANCHES} s = Max(c1, low) y = Conv {P} (s, w3)", "Max", "Clip or Relu"),
        (f"{BRANCHES} s = PRelu(c1, low) y = Conv {P} (s, w3)", "PRelu", "LeakyRelu"),
        (f"c0 = Conv {P} (image, w0) g = GlobalMaxPool(c0) y = Conv {P} (g, w1)", "GlobalMaxPool", "ReduceMax"),
    ],
)
def test_an_operator_that_is_written_otherwise_is_told(body: str, option: str, written: str) -> None:
    model = model_of(body)
    model.graph.initializer.append(onnx.helper.make_tensor("low", onnx.TensorProto.FLOAT, [1], [0.5]))
    with pytest.raises(OptionError) as error:
        planned(model, exclude_op=option)
    assert f"{option} is written as {written} there" in str(error.value)
    kinds = {node.op_type for node in prepare(model).model.graph.node}
    assert kinds.intersection(written.replace(" or ", " and ").split(" and "))


def test_what_inspect_lists_is_said_truly() -> None:
    with pytest.raises(OptionError, match=r"inspect lists the layers; other nodes are called as in the file$"):
        planned(model_of(SUM), exclude="nothing")
    with pytest.raises(OptionError, match=r"inspect lists all layers$"):
        find_matches("nothing", ["a"], "--layer-bits")
