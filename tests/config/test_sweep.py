"""What a file of a sweep asks for."""

from pathlib import Path

import pytest

from pdq_export.config.sweep import Sweep, read_sweep
from pdq_export.errors import OptionError

ABLATION = """[sweep]
models = ["a.onnx", "b.onnx", "a.onnx"]
bits = ["8/8", "2/2"]
method = ["nearest", "brecq", "pd-quant"]
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
        ("a.onnx", "pd-quant", 0, ""),
        ("a.onnx", "pd-quant", 0, "drops off"),
        ("a.onnx", "pd-quant", 1, ""),
        ("a.onnx", "pd-quant", 1, "drops off"),
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
