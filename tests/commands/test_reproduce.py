"""A release can be repeated: what `show-config` prints of a file makes the same file again, byte for byte."""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result

import pdq_export
from pdq_export.cli import app
from pdq_export.commands.quantize import quantize
from pdq_export.commands.show_config import show_config
from pdq_export.config.toml import read_toml
from pdq_export.errors import DataError, OptionError

from ..onnx_text import fill

SMALL = """<ir_version: 8, opset_import: ["": 17]>
m (float[N,3,8,8] image) => (float[N,5] y) {
    c = Conv <pads = [1, 1, 1, 1]> (image, w1)
    r = Relu(c)
    p = GlobalAveragePool(r)
    f = Flatten(p)
    y = Gemm <transB = 1> (f, w2)
}"""
FAST = {"samples": 8, "iters": 2, "correction_iters": 1, "batch_size": 4}
IMAGES = np.random.default_rng(1).normal(size=(10, 3, 8, 8)).astype(np.float32)

Run = Callable[..., Result]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    onnx.save(fill(onnx.parser.parse_model(SMALL), {"w1": (4, 3, 3, 3), "w2": (5, 4)}), tmp_path / "model.onnx")
    (tmp_path / "data").mkdir()
    np.save(tmp_path / "data" / "calib.npy", IMAGES)
    return tmp_path


def run(*args: str) -> Result:
    result = CliRunner().invoke(app, args)
    assert result.exit_code == 0, result.output
    return result


def entries(path: Path) -> Mapping[str, str]:
    return {entry.key: entry.value for entry in onnx.load(path).metadata_props}


@pytest.mark.usefixtures("logging_as_before")
def test_init_edit_config_show_config(folder: Path) -> None:
    run("init", "model.onnx")
    text = (folder / "model.toml").read_text()
    edited = {
        '#bits = "4/4"': 'bits = "3/5"',
        "#exclude = []": "exclude = ['^Flatten']",
        '#device = "auto"': 'device = "cpu"',
    }
    edited |= {f"#{name} = ": f"{name} = {value} # " for name, value in FAST.items()}
    edited |= {'#calib = "PATH"': 'calib = "data/calib.npy"', '#output = "OUT.onnx"': 'output = "first.onnx"'}
    for before, after in edited.items():
        assert text.count(f"\n{before}") == 1
        text = text.replace(f"\n{before}", f"\n{after}")
    (folder / "model.toml").write_text(text)
    run("quantize", "model.onnx", "--config", "model.toml", "--report", "report.json", "-q")
    shown = run("show-config", "first.onnx").stdout
    (folder / "shown.toml").write_text(shown)
    assert "first.onnx" not in "".join(line for line in shown.splitlines() if not line.startswith("#"))
    run("quantize", "model.onnx", "--config", "shown.toml", "-o", "second.onnx", "-q")
    assert (folder / "second.onnx").read_bytes() == (folder / "first.onnx").read_bytes()
    options = ["--bits=3/5", "--exclude=^Flatten", "--device=cpu", "--calib=data/calib.npy", "--max-memory=20GB"]
    options += [f"--{name.replace('_', '-')}={value}" for name, value in FAST.items() if name != "batch_size"]
    run("quantize", "model.onnx", *options, "--set", "batch_size=4", "-o", "third.onnx", "-q")
    assert (folder / "third.onnx").read_bytes() == (folder / "first.onnx").read_bytes()
    result = quantize("model.onnx", config="shown.toml")
    assert result.model.SerializeToString(deterministic=True) == (folder / "first.onnx").read_bytes()

    report = json.loads((folder / "report.json").read_text())
    assert report["settings"]["asked"] == json.loads(entries(folder / "first.onnx")["pdq_export.config"])
    assert report["settings"]["made_by"] == json.loads(entries(folder / "first.onnx")["pdq_export.made_by"])


def test_a_file_says_what_made_it(folder: Path) -> None:
    quantize("model.onnx", calib="data/calib.npy", output="out.onnx", device="cpu", options=FAST)
    made_by: dict[str, Any] = json.loads(entries(folder / "out.onnx")["pdq_export.made_by"])
    content = (folder / "model.onnx").read_bytes()
    assert made_by["model"] == {"name": "model.onnx", "sha256": hashlib.sha256(content).hexdigest()}
    assert made_by["calibration"] == {"image": hashlib.sha256(IMAGES[:8].tobytes()).hexdigest()}
    assert (made_by["device"], made_by["threads"]) == ("cpu", 1)
    assert made_by["versions"]["pdq-export"] == pdq_export.__version__
    assert set(made_by["versions"]) == {"pdq-export", "torch", "onnx", "onnxruntime", "numpy", "scipy"}
    assert str(folder) not in str(entries(folder / "out.onnx"))


def test_what_has_no_influence_on_a_file_is_not_in_it(folder: Path) -> None:
    np.save(folder / "eval.npy", IMAGES[:4])
    run("quantize", "model.onnx", "--calib", "data/calib.npy", "--method", "nearest", "-o", "a.onnx", "-q")
    other = ["--calib", ".//data/calib.npy", "--eval", "eval.npy", "--device", "cpu", "--simulated-images", "2"]
    run("quantize", "model.onnx", *other, "--method", "nearest", "-o", "b.onnx", "-q")
    assert entries(folder / "a.onnx") == entries(folder / "b.onnx")
    assert (folder / "a.onnx").read_bytes() == (folder / "b.onnx").read_bytes()


def test_data_in_memory_leave_no_path(folder: Path) -> None:
    (folder / "run.toml").write_text('[data]\ncalib = "data/calib.npy"\n[calibration]\nmethod = "nearest"\n')
    result = quantize("model.onnx", calib=IMAGES[:4], config="run.toml", device="cpu")
    assert read_text(show_config(result.model), folder) == {"method": "nearest", "device": "cpu"}


def read_text(text: str, folder: Path) -> Mapping[str, Any]:
    (folder / "read.toml").write_text(text)
    return read_toml(folder / "read.toml").values


def test_a_converted_file_is_what_its_options_make(folder: Path) -> None:
    result = quantize("model.onnx", calib="data/calib.npy", method="nearest", device="cpu")
    values = read_text(show_config(pdq_export.convert(result.model, "native", opset=21)), folder)
    assert (values["target"], values["opset"]) == ("native", 21)


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"wide_residual": True}, OptionError, "option 'wide_residual' is unknown; did you mean wide_residuals"),
        ({"iters": 3, "options": {"iters": 3}}, OptionError, "iters is given twice, by itself and in options"),
        ({"options": {"bits": "4/4"}}, OptionError, "option 'bits' is unknown"),
        ({"options": 3}, OptionError, "options are int; expected a mapping"),
        ({"config": 3}, OptionError, "config is int; expected a Config or the path of a TOML file"),
        ({"config": "missing.toml"}, OptionError, r"missing\.toml: no such file; expected a TOML file"),
        ({}, DataError, "no calibration data"),
    ],
)
def test_calls_that_are_refused(folder: Path, fields: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        quantize("model.onnx", **fields)


def test_numbers_of_the_method_are_fields_as_well(folder: Path) -> None:
    by_field = quantize("model.onnx", calib=IMAGES, device="cpu", **FAST)
    by_options = quantize("model.onnx", calib=IMAGES, device="cpu", options=FAST)
    assert by_field.model.SerializeToString(deterministic=True) == by_options.model.SerializeToString(
        deterministic=True
    )
