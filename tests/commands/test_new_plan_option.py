"""A new option of the plan is one field, and the pass that reads it: everything between them carries it as it is."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from pdq_export.commands.inspect import inspect_model
from pdq_export.commands.making import settings
from pdq_export.commands.quantize import quantize
from pdq_export.commands.settle import choose, plan_options
from pdq_export.commands.show_config import show_config
from pdq_export.config.config import Config, make_config
from pdq_export.config.option import INSPECT, QUANTIZE, option
from pdq_export.config.record import metadata
from pdq_export.config.sections import PlanSection
from pdq_export.plan import passes
from pdq_export.plan.planned import Planned

from ..onnx_text import fill, name_nodes, parse

BODY = "c1 = Conv (image, w1) a1 = Relu(c1) p = GlobalAveragePool(a1) f = Flatten(p) y = Gemm <transB = 1> (f, w2)"
IMAGES = np.random.default_rng(0).normal(size=(8, 3, 8, 8)).astype(np.float32)


def model() -> onnx.ModelProto:
    return name_nodes(fill(parse(BODY), {"w1": (4, 3, 3, 3), "w2": (5, 4)}))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ToyPlan(PlanSection):
    """The one field; it would stand in `PlanSection`."""

    narrow: str | None = option(None, "Give this weight 3 bits", unset="none", commands=(QUANTIZE, INSPECT))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ToyConfig(Config):
    plan: ToyPlan = dataclasses.field(default_factory=ToyPlan)


def narrow(planned: Planned) -> Planned:
    """The code that uses it."""
    asked = planned.options.section
    assert isinstance(asked, ToyPlan)
    if asked.narrow is None:
        return planned
    points = planned.plan.points
    return planned.with_points({**points, asked.narrow: points[asked.narrow].with_bits(3)})


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.setattr(passes, "ORDER", (*passes.ORDER, narrow))
    return make_config({"narrow": "w1", "method": "nearest", "device": "cpu"}, kind=ToyConfig)


def test_a_new_option_of_the_plan_is_one_field_and_its_pass(toy: Config, tmp_path: Path) -> None:
    found = inspect_model(model(), config=make_config({"narrow": "w1"}, kind=ToyConfig))
    assert (found.plan.points["w1"].bits, found.plan.points["w2"].bits > 3) == (3, True)
    assert found.settings["narrow"] == "w1"
    result = quantize(model(), config=toy, calib=IMAGES, report=tmp_path / "r.json")
    assert (result.plan.points["w1"].bits, result.tensors["w1"].integers.max() < 4) == (3, True)
    entries = {entry.key: entry.value for entry in result.model.metadata_props}
    assert json.loads(entries["pdq_export.config"])["narrow"] == "w1"
    assert json.loads(entries["pdq_export.options"])["narrow"] == "w1"
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["settings"]["narrow"] == report["settings"]["asked"]["narrow"] == "w1"
    fields = {"narrow": "w2", "calib": IMAGES}  # what is given wins over the configuration
    assert quantize(model(), config=toy, **fields).plan.points["w2"].bits == 3


def test_bits_of_single_tensors_are_an_option_and_files_from_before_tell_of_them() -> None:
    config = make_config({"tensor_bits": {"w1": 2}})
    planning, chosen = plan_options(config, choose(config)), choose(config)
    settled = settings(config, planning, chosen, "plain")
    assert (planning.tensor_bits, settled["tensor_bits"]) == ((("w1", 2),), ["w1=2"])
    written = model()
    onnx.helper.set_model_props(written, metadata(config, settled, {}, version="1"))
    assert '\ntensor_bits = ["w1=2"]\n' in show_config(written)
    before = {**settled, "tensor_bits": {"w1": 2}}
    onnx.helper.set_model_props(written, metadata(make_config({}), before, {}, version="1"))
    told = [line for line in show_config(written).splitlines() if "single tensors" in line]
    assert told == ['# NOT in these options: bits that a Python caller gave to single tensors, {"w1": 2}']
