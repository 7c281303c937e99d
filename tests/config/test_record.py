"""What a file says of its making is read again; so is what files from before said."""

import dataclasses
import json

import pytest

from pdq_export import __version__
from pdq_export.config import record
from pdq_export.config.config import make_config
from pdq_export.config.method import LEFT_OUT, METHODS, CalibrationOptions, choose_options, with_effect
from pdq_export.config.record import ASKED, SETTLED, read_record, retargeted
from pdq_export.errors import ModelError

from .toy import ToyConfig

GIVEN = {
    "bits": "2/4",
    "exclude": ("a", "b"),
    "target": "native",
    "iters": 7,
    "calib": "images/calib.npz",
}
NOT_RECORDED = {
    "eval": "eval.npz",
    "device": "cpu",
    "output": "out.onnx",
    "report": "r.json",
    "overwrite": True,
    "max_memory": "4GB",
}


def properties(**fields: object) -> dict[str, str]:
    config = make_config(fields)
    settled = record.settings(config, choose_options(overrides={"iters": 7}), family="plain")
    return record.metadata(config, settled, {"threads": 1}, version="1.0")


def test_what_was_asked_for_is_read_again() -> None:
    found = read_record(properties(**GIVEN, **NOT_RECORDED), "m.onnx")
    assert found.asked == GIVEN
    assert found.made_by == {"threads": 1}
    assert found.version == "1.0"
    assert found.settled["lambda_r"] == 1.0
    assert found.settled["exclude"] == ["a", "b"]


def test_what_has_no_influence_on_the_file_is_not_in_it() -> None:
    assert properties(**GIVEN) == properties(**GIVEN, **NOT_RECORDED)
    assert "out.onnx" not in str(properties(**GIVEN, **NOT_RECORDED))


def test_paths_have_one_spelling() -> None:
    assert properties(**{**GIVEN, "calib": "./images//calib.npz"}) == properties(**GIVEN)
    assert json.loads(properties(calib="a/../c.npz")[ASKED]) == {"calib": "a/../c.npz"}  # a may be a link


def test_settled_options_hold_no_paths() -> None:
    assert "calib.npz" not in properties(**GIVEN)[SETTLED]


def test_a_new_option_is_in_the_metadata() -> None:
    config = make_config({"flavour": "sweet"}, kind=ToyConfig)
    settled = record.settings(config, choose_options(), family="plain")
    assert settled["flavour"] == "sweet"
    assert json.loads(record.metadata(config, settled, {}, version="1")[ASKED]) == {"flavour": "sweet"}


def test_bits_of_single_tensors_are_said_once() -> None:
    given = properties(**GIVEN, tensor_bits={"w1": 3, "w2": 5})
    assert "w1=3" not in given[SETTLED]
    asked = {**GIVEN, "tensor_bits": ("w1=3", "w2=5")}
    found = read_record(given, "m.onnx")
    assert (found.asked, found.settled["tensor_bits"]) == (asked, ["w1=3", "w2=5"])
    assert record.bits_word(found.settled) == given["pdq_export.bits"] == "mixed"
    former = {**given, SETTLED: json.dumps(dict(found.settled), sort_keys=True)}
    assert read_record(former, "m.onnx") == found


def test_retargeted() -> None:
    assert retargeted(properties(**GIVEN), target="ort") == properties(**{**GIVEN, "target": "ort"})
    assert retargeted(properties(**GIVEN), target="qcdq", opset=None) == properties(**{**GIVEN, "target": "qcdq"})
    assert retargeted(properties(**GIVEN), target="native", opset=19) == properties(**GIVEN, opset=19)
    damaged = {**properties(), SETTLED: "{", ASKED: "[]"}
    assert retargeted(damaged, target="native") == {**damaged, "pdq_export.target": "native"}


@pytest.mark.parametrize(
    ("target", "weights", "asked"),
    [
        ("ort", "asymmetric", {}),
        ("ort", "symmetric", {"weights": "symmetric"}),
        ("tensorrt", "symmetric", {"weights": "symmetric"}),
    ],
)
def test_files_that_say_only_what_was_settled(target: str, weights: str, asked: dict[str, str]) -> None:
    options = choose_options(method="qdrop", preset="fast", family="depthwise", overrides={"iters": 7})
    settled = {
        "bits": "2/4",
        "first_last": "8/8",
        "layer_bits": ["a=3/3"],
        "exclude": [],
        "wide_residuals": True,
        "reduce_range": False,
        "weights": weights,
        "target": target,
        "method": "qdrop",
        "preset": "fast",
        "family": "depthwise",
        **dataclasses.asdict(options),
    }
    found = read_record({SETTLED: json.dumps(settled)}, "m.onnx")
    others = {"target": target} if target != "ort" else {}
    expected = {"bits": "2/4", "layer_bits": ("a=3/3",), "wide_residuals": True, "method": "qdrop", "preset": "fast"}
    assert found.asked == {**expected, **asked, **others, "iters": 7}
    assert found.made_by == {}


def test_what_pd_quant_was_is_read_as_what_it_is_now() -> None:
    """From before it left out what its paper does not have: the numbers that made the file are the file's."""
    former = dataclasses.asdict(choose_options(method="pdq", preset="fast"))
    del former["correction_share"]
    found = read_record({SETTLED: json.dumps({"method": "pd-quant", "preset": "fast", **former})}, "m.onnx")
    parts = {"compensate_rounding": True, "equalize_channels": True, "lambda_r": 1.0}
    parts |= {"prediction_interval": 2, "prediction_share": 0.5}
    numbers = {**parts, "correction_iters": 10}
    assert found.asked == {"method": "pd-quant", "preset": "fast", **numbers}
    again = choose_options(method="pd-quant", preset="fast", overrides=numbers)
    assert again == choose_options(method="pdq", preset="fast", overrides={"correction_iters": 10})


_OFF = [{"prediction_difference": False}, {"correction_iters": 0}, {"learn_rounding": False, "learn_scales": False}]


@pytest.mark.parametrize(
    ("method", "off"), [*((method, {}) for method in METHODS), *(("pdq", off) for off in (*_OFF, {"iters": 0}))]
)
def test_files_from_before_there_were_shares_are_read_as_what_made_them(method: str, off: dict[str, object]) -> None:
    given = {"iters": 100, "correction_iters": 10, "prediction_interval": 2, **off}
    given = with_effect({**given, **LEFT_OUT[method]} | off, method=method, preset="fast")
    made = choose_options(method=method, preset="fast", overrides=given)

    def without_shares(options: CalibrationOptions) -> dict[str, object]:
        return {name: value for name, value in dataclasses.asdict(options).items() if not name.endswith("_share")}

    former = without_shares(made)
    found = read_record({SETTLED: json.dumps({"method": method, "preset": "fast", **former})}, "m.onnx")
    numbers = {name: value for name, value in found.asked.items() if name in former}
    again = choose_options(method=method, preset="fast", overrides=numbers)
    for bits in (2, 8):
        assert without_shares(again.for_block(bits)) == without_shares(made.for_block(bits))


@pytest.mark.parametrize(("preset", "method"), [("paper", "pd-quant"), ("fast", "pdq")])
def test_what_was_the_default_method_is_read_as_what_made_the_file(preset: str, method: str) -> None:
    entries = {ASKED: json.dumps({"preset": preset}), SETTLED: json.dumps({"method": "pd-quant", "preset": preset})}
    found = read_record(entries, "m.onnx")
    assert found.asked.get("method", make_config({}).calibration.method) == method


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({}, r"m\.onnx: says nothing of its making \(no pdq_export\.config in its metadata\)"),
        ({ASKED: "{"}, r"m\.onnx: pdq_export\.config in its metadata is not JSON"),
        ({ASKED: "[" * 100_000}, "is not JSON"),
        ({ASKED: "[]"}, "is no object"),
        ({ASKED: '{"bitss": "4/4"}', "pdq_export.version": "9.9"}, r"'bitss' is unknown to this version.*'9\.9'"),
        ({ASKED: '{"bits": 3}'}, r"--bits 3: expected W/A"),
        ({SETTLED: '{"method": "gptq"}'}, "method 'gptq' is unknown"),
        ({SETTLED: '{"method": []}'}, "cannot be read as options"),
        ({ASKED: f'{{"temperature": {10**400}}}'}, "temperature is 1000"),
        ({ASKED: f'{{"seed": {"9" * 5000}}}'}, "is not JSON"),
        ({ASKED: '{"bits": ' + "[" * 900 + "]" * 900 + "}"}, r"cannot be read as options|is not JSON"),
    ],
)
def test_what_is_refused(entries: dict[str, str], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        read_record(entries, "m.onnx")


def test_what_is_wrong_is_told_once() -> None:
    with pytest.raises(ModelError) as caught:
        read_record({ASKED: "[]"}, "m.onnx")
    assert str(caught.value).count("m.onnx") == 1


def test_no_other_version_is_advised_than_another() -> None:
    for version in ("", __version__):
        with pytest.raises(ModelError, match=r"as pdq-export writes them$"):
            read_record({ASKED: '{"bits": 3}', "pdq_export.version": version}, "m.onnx")
