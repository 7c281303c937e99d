"""What to try next after a loss: every line works as it is printed, and the loss is smaller then."""

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

from pdq_export.cli import app
from pdq_export.errors import ModelError
from tests.onnx_text import fill, name_nodes, parse
from tests.quantized_files import quantize_by_onnxruntime, with_two_bits
from tests.test_equalization import images as small_images
from tests.test_equalization import network as unequal_network

Report = Mapping[str, Any]
PAD = "pads = [1, 1, 1, 1]"
NETWORK = f"""c = Conv<{PAD}>(image, w) r = Relu(c) d = Conv<{PAD}>(r, v) e = Relu(d) f = Conv<{PAD}>(e, u) g = Relu(f)
    h = Conv<{PAD}>(g, t) k = Relu(h) p = AveragePool<kernel_shape = [4, 4], strides = [4, 4]>(k) y = Conv(p, s)"""
SHAPES = {"w": (16, 3, 3, 3), "v": (16, 16, 3, 3), "u": (16, 16, 3, 3), "t": (16, 16, 3, 3), "s": (1, 16, 2, 2)}
NEAREST = ["--method", "nearest"]
LEARNED = ["--preset", "fast", "--correction-iters", "2"]
pytestmark = pytest.mark.usefixtures("losses_are_told")


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A current folder with a network and images for it, without labels."""
    monkeypatch.chdir(tmp_path)
    onnx.save(name_nodes(fill(parse(NETWORK, outputs="float[N,1,1,1] y"), SHAPES, scale=1.4)), "model.onnx")
    x = np.random.default_rng(1).normal(size=(96, 3, 8, 8)).astype(np.float32)
    x *= np.linspace(0.2, 3, 96, dtype=np.float32)[np.random.default_rng(2).permutation(96), None, None, None]
    np.save("calib.npy", x[:64])
    np.save("eval.npy", x[64:])


def run(*words: str) -> Report:
    result = CliRunner().invoke(app, [*words, "--json"])
    assert result.exit_code == 0, result.output
    report: Report = json.loads(result.stdout)
    return report


def quantized(words: Sequence[str], data: Sequence[str] = ("--calib", "calib.npy", "--eval", "eval.npy")) -> Report:
    return run("quantize", "model.onnx", *data, *words, "--output", "q.onnx", "--overwrite", "--reduce-range")


def error(report: Report) -> float:
    (output,) = report["outputs"]
    return float(output["quantized_float"]["relative_error"])


@pytest.mark.parametrize(
    ("words", "line", "factor"),
    [
        (["--bits", "4/2", *NEAREST], "--bits 4/8", 0.7),
        (
            ["--bits", "4/8", "--layer-bits", "^[df]$=4/2", *NEAREST],
            "--bits 4/8 --layer-bits '^[df]$=4/8'",
            0.8,
        ),
        (["--bits", "2/8", "--preset", "fast", *NEAREST], "--method pdq", 0.8),
        (["--bits", "8/2", *NEAREST, "--samples", "2"], "--samples 1024", 0.95),
        (["--bits", "2/8", *LEARNED, "--iters", "2"], "--iters 200", 0.8),
    ],
)
def test_an_option_that_is_named_helps(words: list[str], line: str, factor: float) -> None:
    before = quantized(words)
    (remedy,) = (one for one in before["remedies"] if one["line"] == line)
    after = quantized([*words, *shlex.split(line)])
    assert error(after) < factor * error(before)
    assert abs(after["quantized"]["size"] - before["quantized"]["size"] - remedy["bytes"]) < 600  # metadata tell of it
    assert line not in [one["line"] for one in after["remedies"]]


def test_bits_by_budget_are_named_for_equal_ones() -> None:
    words = ["--bits", "3/8", *NEAREST]
    before = quantized(words)
    (remedy,) = (one for one in before["remedies"] if one["line"].startswith("--bits auto"))
    assert (remedy["line"], remedy["bytes"]) == (f"--bits auto --max-size {before['quantized']['size']}", 0)
    after = quantized([*words, *shlex.split(remedy["line"])])
    assert error(after) < 0.9 * error(before)
    assert after["quantized"]["size"] <= before["quantized"]["size"]
    assert not any("auto" in one["line"] for one in after["remedies"])
    narrow = quantized(["--bits", "3/4", "--target", "native", *NEAREST])  # whose activations cost something
    assert not any("auto" in one["line"] for one in narrow["remedies"])


def test_a_file_with_bits_of_its_own_is_told_what_works_for_it() -> None:
    """`compare` does not know the budget that its bits were found for, in which single layers can have no more."""
    quantized(["--bits", "auto", "--avg-bits", "3.2", "--allowed-bits", "2,3,4,8", *NEAREST])
    before = run("validate", "model.onnx", "q.onnx", "--data", "eval.npy")
    found = run("compare", "model.onnx", "q.onnx", "--data", "eval.npy")["remedies"]
    (larger,) = (one for one in found if one["line"].startswith("--bits auto"))
    layers = [one for one in found if one["line"].startswith("--layer-bits")]
    assert all("beside the file's --bits-from" in one["why"] for one in layers)
    assert larger["bytes"] == sum(one["bytes"] for one in layers) > 0
    size = Path("q.onnx").stat().st_size
    after = quantized(["--bits-from", "q.bits.toml", *NEAREST, *shlex.split(layers[0]["line"])])
    assert error(after) < error(before)
    assert abs(after["quantized"]["size"] - size - layers[0]["bytes"]) < 300
    after = quantized([*NEAREST, *shlex.split(larger["line"])])
    assert error(after) < error(before)
    assert size < after["quantized"]["size"] <= size + larger["bytes"]


def test_a_budget_of_operations_is_told_a_larger_one() -> None:
    words = ["--bits", "auto", "--max-bit-ops", "0.2", "--allowed-bits", "2,4,8", *NEAREST]
    before = quantized(words)
    (remedy,) = (one for one in before["remedies"] if "lose" in one["why"])
    assert remedy["line"] == "--max-bit-ops 0.25"
    after = quantized([*words, *shlex.split(remedy["line"])])
    assert error(after) < error(before)
    assert abs(after["quantized"]["size"] - before["quantized"]["size"] - remedy["bytes"]) < 300


def test_the_worst_layer_is_named_with_its_bytes() -> None:
    words = ["--bits", "8/8", "--layer-bits", "^f$=2/8", *NEAREST]
    before = quantized(words)
    remedy = next(one for one in before["remedies"] if one["line"].startswith("--layer-bits"))
    assert remedy["line"] == "--layer-bits '^f$=8/8'"
    assert remedy["share"] > 0.9
    after = quantized([*words, *shlex.split(remedy["line"])])
    assert error(after) < error(before) / 4
    assert after["loss"] is None
    assert abs(after["quantized"]["size"] - before["quantized"]["size"] - remedy["bytes"]) < 300


def test_lines_can_be_given_together() -> None:
    words = ["--bits", "3/8", "--target", "native", *NEAREST]
    before = quantized(words)
    lines = [one for one in before["remedies"] if one["line"].startswith("--layer-bits")][:2]
    assert len(lines) == 2
    after = quantized([*words, *(word for one in lines for word in shlex.split(one["line"]))])
    left = (error(after) / error(before)) ** 2
    assert left == pytest.approx(1 - sum(one["share"] for one in lines), abs=0.3)  # shares are about right


def test_equalization_is_named_where_it_is_off() -> None:
    onnx.save(unequal_network(), "model.onnx")
    np.save("x.npy", small_images(32))
    data, words = ("--calib", "x.npy"), ["--bits", "8/4", *NEAREST]
    before = quantized(words, data)
    (remedy,) = (one for one in before["remedies"] if "equalize" in one["line"])
    after = quantized([*words, *shlex.split(remedy["line"])], data)
    assert error(after) < error(before)


def test_other_tools_files_are_told_of_layers_alone(tmp_path: Path) -> None:
    (tmp_path / "ort").mkdir()
    file = with_two_bits(quantize_by_onnxruntime(Path("model.onnx"), np.load("calib.npy"), tmp_path / "ort"), "d")
    onnx.save(file, "int8.onnx")
    words = ["validate", "model.onnx", "int8.onnx", "--data", "eval.npy"]
    result = CliRunner().invoke(app, [*words, "--markdown", "g.md"])
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    at = next(number for number, line in enumerate(lines) if "what to try next" in line)
    assert lines[at + 1].startswith("  --exclude '^d$'  (+")
    assert "What to try next" in Path("g.md").read_text()
    before = run(*words)
    assert all(one["line"].startswith(("--exclude", "--layer-bits")) for one in before["remedies"])
    after = quantized(["--bits", "8/8", *NEAREST, *shlex.split(before["remedies"][0]["line"])])
    assert error(after) < error(before) / 4


def test_what_cannot_be_compared_costs_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise ModelError("over 2 GB")

    monkeypatch.setattr("pdq_export.commands.next_steps.compare_layers", fails)
    report = quantized(["--bits", "2/2", *NEAREST])
    assert [one["line"] for one in report["remedies"]][:2] == ["--bits 2/8", "--method pdq"]
    assert Path("q.onnx").exists()


def test_no_loss_no_advice() -> None:
    report = quantized(["--bits", "8/8", *NEAREST])
    assert (report["loss"], report["remedies"]) == (None, [])
