import itertools

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pdq_export
from pdq_export.errors import ExportError, OptionError
from pdq_export.export import Packing, export_model, required_opset
from pdq_export.export.runtimes import min_onnxruntime
from pdq_export.plan import PlanOptions, make_plan
from pdq_export.spec import BitWidths

from . import toy_networks as nets
from .toy_quantizer import calibrate

METADATA = {"pdq_export.bits": "4/4", "pdq_export.seed": "0"}


def prepared(bits: str = "4/4", opset: int = 21):
    model = nets.chain(opset)
    plan = make_plan(model, PlanOptions.of(bits))
    return model, plan, calibrate(model, plan, {"x": nets.images((2, 3, 12, 12))})


def plan_at(weight: int, activation: int = 8):
    return make_plan(nets.chain(), PlanOptions.of(BitWidths(weight, activation)))


@pytest.mark.parametrize(
    ("bits", "max_opset", "expected"),
    [
        (2, None, 25),
        (2, 21, 21),
        (2, 24, 24),
        (2, 17, 17),
        (4, None, 21),
        (4, 25, 21),
        (4, 20, 20),
        *((bits, None, 13) for bits in (3, 5, 6, 7, 8)),
    ],
)
def test_types_need_the_opset_that_has_them(bits, max_opset, expected):
    assert required_opset(plan_at(bits), max_opset=max_opset, packing=Packing.TYPES) == expected


@pytest.mark.parametrize("bits", range(2, 9))
def test_bytes_need_no_newer_opset(bits):
    assert required_opset(plan_at(bits)) == 13


def test_opset_below_13_is_refused():
    with pytest.raises(OptionError, match="--opset 12: expected at least 13"):
        required_opset(plan_at(8), max_opset=12)


@pytest.mark.parametrize(("bits", "opset", "ir"), [("8/8", 13, 7), ("4/4", 21, 10), ("2/2", 25, 13)])
def test_versions(bits, opset, ir):
    model, plan, tensors = prepared(bits, opset)
    model.ir_version = 14
    exported = export_model(model, plan, tensors, metadata={})
    assert exported.opset_import == model.opset_import
    assert exported.ir_version == ir
    assert (exported.producer_name, exported.producer_version) == ("pdq-export", pdq_export.__version__)


def test_metadata_is_added_to_the_users():
    model, plan, tensors = prepared()
    onnx.helper.set_model_props(model, {"author": "someone", "pdq_export.bits": "old"})
    exported = export_model(model, plan, tensors, metadata=METADATA)
    properties = {entry.key: entry.value for entry in exported.metadata_props}
    assert properties.pop("pdq_export.source")
    assert properties.pop("pdq_export.min_onnxruntime") == min_onnxruntime(exported)
    assert properties == {"author": "someone", **METADATA}


def test_an_old_opset_is_refused():
    model, plan, tensors = prepared("8/8", 13)
    model.opset_import[0].version = 12
    with pytest.raises(ExportError, match="opset is 12; expected at least 13"):
        export_model(model, plan, tensors, metadata={})


def test_a_graph_that_the_checker_refuses():
    model, plan, tensors = prepared()
    model.graph.node[5].op_type = "NoSuchOperator"
    with pytest.raises(ExportError, match=r"(?s)not a valid model.*NoSuchOperator"):
        export_model(model, plan, tensors, metadata={})


def test_the_input_stays_as_it_is():
    model, plan, tensors = prepared()
    before = model.SerializeToString(deterministic=True)
    export_model(model, plan, tensors, metadata=METADATA)
    assert model.SerializeToString(deterministic=True) == before


@given(weight=st.integers(2, 8), activation=st.integers(2, 8))
def test_equal_arguments_give_equal_bytes(weight, activation):
    model = nets.chain(25)
    plan = make_plan(model, PlanOptions.of(BitWidths(weight, activation)))
    tensors = calibrate(model, plan, {"x": nets.images((1, 3, 12, 12))})
    shuffled = dict(reversed(list(tensors.items())))
    first, second = (
        export_model(model, plan, known, metadata=METADATA).SerializeToString(deterministic=True)
        for known in (tensors, shuffled)
    )
    assert first == second


def test_fewer_bits_make_smaller_files():
    sizes = []
    model = nets.network(
        "(float[N,4,6,6] x) => (float[N,4,4,4] y) { c = Conv(x, v) e = Conv(c, w) y = Conv(e, u) }",
        {"v": (32, 4, 1, 1), "w": (64, 32, 3, 3), "u": (4, 64, 1, 1)},
        opset=13,
    )
    for bits in range(7, 1, -1):
        plan = make_plan(model, PlanOptions.of(BitWidths(bits, 8)))
        tensors = calibrate(model, plan, {"x": nets.images((1, 4, 6, 6))})
        sizes.append(len(export_model(model, plan, tensors, metadata={}).SerializeToString()))
    assert all(more > fewer for more, fewer in itertools.pairwise(sizes))
