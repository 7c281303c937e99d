"""What a file of a sweep asks for."""

import itertools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdq_export.config.method import _NEEDS, LEFT_OUT, METHODS, PRESETS, CalibrationOptions
from pdq_export.config.sweep import Sweep, read_sweep, settled
from pdq_export.errors import OptionError

ABLATION = """[sweep]
models = ["a.onnx", "b.onnx", "a.onnx"]
bits = ["8/8", "2/2"]
method = ["nearest", "brecq", "pdq"]
seed = [0, 1]

[sweep.changes."drops off"]
keep_probability = 0.0
mix_probability = 1.0

[data]
calib = "calib.npz"

[calibration]
iters = 7
temperature = 2.0
"""


def read(folder: Path, text: str) -> Sweep:
    path = folder / "sweep.toml"
    path.write_text(text)
    return read_sweep(path)


def test_every_combination_once(tmp_path: Path) -> None:
    runs = read(tmp_path, ABLATION).runs()
    told = [(run.model, run.varied.get("method"), run.varied.get("seed"), run.change) for run in runs]
    assert len(runs) == 2 * 2 * (1 + 2 + 4)
    assert told[:7] == [
        ("a.onnx", "nearest", None, ""),
        ("a.onnx", "brecq", 0, ""),
        ("a.onnx", "brecq", 1, ""),
        ("a.onnx", "pdq", 0, ""),
        ("a.onnx", "pdq", 0, "drops off"),
        ("a.onnx", "pdq", 1, ""),
        ("a.onnx", "pdq", 1, "drops off"),
    ]
    assert {run.varied["bits"] for run in runs} == {"8/8", "2/2"}


def test_a_run_has_what_is_of_use_to_it(tmp_path: Path) -> None:
    nearest, brecq, _, full, off, *_ = (run.config.calibration for run in read(tmp_path, ABLATION).runs())
    assert (nearest.iters, nearest.temperature, nearest.seed) == (None, None, None)
    assert (brecq.iters, brecq.temperature) == (7, None)
    assert (full.iters, full.temperature, full.keep_probability) == (7, 2.0, None)
    assert (off.iters, off.temperature, off.keep_probability) == (7, 2.0, 0.0)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (('models = ["a.onnx", "b.onnx", "a.onnx"]', ""), r"sweep.toml: has no section \[sweep\] with models"),
        (('["a.onnx", "b.onnx", "a.onnx"]', "[]"), r"line 2: models are \[\]; expected a list of ONNX files"),
        (("bits =", "bit ="), "line 3: option 'bit' is unknown; did you mean bits"),
        (('["8/8", "2/2"]', '"8/8"'), "line 3: bits is '8/8'; expected a list of values"),
        (("[0, 1]", '["0"]'), "line 5: seed is '0'; expected a whole number"),
        (("[0, 1]", "[-1]"), "line 5: seed is -1; expected"),
        (("mix_probability", "mix_probabilities"), "line 9: option 'mix_probabilities' is unknown"),
        (("keep_probability = 0.0", "keep_probability = 2"), "line 8: keep_probability is 2; expected"),
        (("iters = 7", "itres = 7"), "line 15: option 'itres' is unknown"),
        (("iters = 7", "seed = 7"), "line 5: seed is given for all runs as well"),
        (("[data]", '[file]\noutput = "a.onnx"\n[data]'), "line 12: output is the sweep's own"),
        (("seed = [0, 1]", 'work_dir = ["a", "b"]'), "line 5: work_dir is the sweep's own"),
        (('[sweep.changes."drops off"]', "[sweep.changes]"), "changes are .*; expected sections"),
    ],
)
def test_what_is_refused(tmp_path: Path, changed: tuple[str, str], message: str) -> None:
    assert changed[0] in ABLATION
    with pytest.raises(OptionError, match=message):
        read(tmp_path, ABLATION.replace(*changed)).runs()


def test_what_has_no_effect_in_any_run_is_refused() -> None:
    asked = Sweep(models=("a.onnx",), base={"calib": "c.npz", "lambda_r": 0.5}, axes={"method": ("nearest", "brecq")})
    with pytest.raises(OptionError, match="lambda_r has no effect in any run"):
        asked.runs()


def varied(base: dict[str, Any], **axes: tuple[Any, ...]) -> list[dict[str, Any]]:
    """What is settled in each run."""
    asked = Sweep(models=("a.onnx",), base={"calib": "c.npz", **base}, axes=axes)
    return [{**settled(run.config), **{f"shown {n}": v for n, v in run.varied.items()}} for run in asked.runs()]


def test_a_swept_value_is_that_of_its_run() -> None:
    runs = varied({"seed": 1}, iters=(0, 100, 200))
    assert [(run["iters"], run["shown iters"], run["seed"]) for run in runs] == [
        (0, 0, 0),
        (100, 100, 1),
        (200, 200, 1),
    ]
    runs = varied({"lambda_r": 0.5}, prediction_difference=(True, False))
    assert [(run["prediction_difference"], run["lambda_r"]) for run in runs] == [(True, 0.5), (False, 1.0)]
    runs = varied({"temperature": 2.0}, output_loss=("kl", "mse"))
    assert [(run["output_loss"], run["temperature"]) for run in runs] == [("kl", 2.0), ("mse", 4.0)]


def test_the_switch_of_a_change_counts() -> None:
    asked = Sweep(
        models=("a.onnx",),
        base={"calib": "c.npz", "lambda_r": 0.5, "temperature": 2.0},
        axes={"seed": (0, 1)},
        changes={"no PD": {"prediction_difference": False}, "none": {"seed": 3, "iters": 0}},
    )
    runs = [(run.change, settled(run.config)) for run in asked.runs()]
    assert [(change, run["seed"]) for change, run in runs] == [
        ("", 0),
        ("no PD", 0),
        ("none", 0),
        ("", 1),
        ("no PD", 1),
    ]
    assert [run["prediction_difference"] for _, run in runs] == [True, False, True, True, False]
    assert [run["iters"] for _, run in runs] == [200, 200, 0, 200, 200]


VALUES: dict[str, tuple[Any, ...]] = {
    "iters": (0, 7),
    "learn_rounding": (True, False),
    "learn_scales": (True, False),
    "compensate_rounding": (True, False),
    "prediction_difference": (True, False),
    "correction_iters": (0, 3),
    "warmup": (0.5, 1.0),
    "rounding_weight": (0.5, 0.25),
    "output_loss": ("kl", "mse"),
    "temperature": (2.0, 3.0),
    "lambda_r": (0.5, 0.25),
    "lambda_c": (0.5, 0.25),
    "seed": (1, 2),
}


@given(
    st.lists(st.sampled_from(list(VALUES)), unique=True, min_size=1, max_size=5),
    st.sampled_from([name for name in METHODS if name != "nearest"]),
)
def test_every_value_with_an_effect_is_in_a_run(names: list[str], method: str) -> None:
    """Whatever the order of the options is."""
    axes = {name: VALUES[name] for name in names}
    asked = Sweep(models=("a",), base={"calib": "c", "method": method, "preset": "fast"}, axes=axes, strict=False)
    found = [settled(run.config) for run in asked.runs()]
    for values in itertools.product(*axes.values()):
        one = {n: v for n, v in zip(axes, values, strict=True) if LEFT_OUT[method].get(n, v) == v}
        chosen = CalibrationOptions(**{**PRESETS["fast"], **METHODS[method], **one})
        wanted = {n: v for n, v in one.items() if n not in _NEEDS or _NEEDS[n][0](chosen)}
        assert any(wanted.items() <= run.items() for run in found), wanted
    assert len({str(sorted(run.items())) for run in found}) == len(found)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"axes": {"iters": (100, -1)}}, "--iters -1: expected 0 or more"),
        ({"axes": {"bits": ("8/8",), "lambda_r": (0.0,)}}, r"lambda_r is 0\.0; expected a number above 0"),
        ({"base": {"seed": 0.5}}, r"--seed 0\.5: expected"),
        ({"changes": {"off": {"keep_probability": 2}}}, "keep_probability is 2; expected a number from 0 to 1"),
        ({"axes": {"itres": (1,)}}, "option 'itres' is unknown; did you mean iters"),
        ({"axes": {"output": ("a.onnx",)}}, "output is the sweep's own"),
        ({"axes": {"bits": "8/8"}}, "bits is '8/8'; expected a list of values"),
        ({"axes": {"bits": ()}}, r"bits is \(\); expected a list of values"),
        ({"axes": {"bits": ("8/8",)}, "base": {"bits": "4/4"}}, "bits is given for all runs as well"),
    ],
)
def test_what_python_callers_give_is_checked(given: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Sweep(models=("a.onnx",), **given)


def test_values_are_those_that_options_store() -> None:
    (run,) = Sweep(models=("a.onnx",), base={"calib": Path("c.npz")}, axes={"bits": ((4, 8),)}).runs()
    assert run.varied == {"bits": "4/8"}
    assert run.config.data.calib == "c.npz"
