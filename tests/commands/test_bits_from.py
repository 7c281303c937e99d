"""``--bits-from`` and ``--bits-to``: the same bits make the same file, byte for byte, from wherever they come."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from pdq_export.commands.inspect import inspect_model
from pdq_export.commands.quantize import quantize
from pdq_export.commands.show_config import show_config
from pdq_export.errors import OptionError

from ..onnx_text import fill, name_nodes, parse

P = "<pads = [1, 1, 1, 1]>"
BODY = f"""c1 = Conv {P} (image, w1) a1 = Relu(c1) c2 = Conv {P} (a1, w2) s = Add(c2, a1) z = Relu(s)
    c3 = Conv {P} (z, w3) v = Relu(c3) p = GlobalAveragePool(v) f = Flatten(p) y = Gemm <transB = 1> (f, w4)"""
SHAPES = {"w1": (8, 3, 3, 3), "w2": (8, 8, 3, 3), "w3": (8, 8, 3, 3), "w4": (5, 8)}
IMAGES = np.random.default_rng(3).normal(size=(16, 3, 8, 8)).astype(np.float32)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    onnx.save(name_nodes(fill(parse(BODY), SHAPES)), "model.onnx")
    return tmp_path


def run(**fields: Any) -> bytes:
    result = quantize("model.onnx", calib=IMAGES, method="nearest", device="cpu", overwrite=True, **fields)
    return result.model.SerializeToString(deterministic=True)


@pytest.mark.parametrize("name", ["bits.toml", "bits.json"])
@pytest.mark.parametrize("options", [{}, {"first_last": "5/6"}, {"layer_bits": {"c2": "2/7"}, "wide_residuals": True}])
def test_bits_that_were_written_make_the_same_plan(folder: Path, name: str, options: dict[str, Any]) -> None:
    asked = {"bits": "3/4", **options}
    before = quantize("model.onnx", calib=IMAGES, method="nearest", device="cpu", **asked, bits_to=name)
    after = quantize("model.onnx", calib=IMAGES, method="nearest", device="cpu", bits_from=name)
    assert after.plan.points.keys() >= {"w1", "w2", "w3", "w4"}
    if "wide_residuals" not in options:
        assert after.plan == before.plan
    assert run(**asked) == run(**options, bits_from=name)
    assert [str(path) for path in before.files] == [name]


def test_a_file_that_was_edited(folder: Path) -> None:
    run(bits="3/4", bits_to="bits.toml")
    text = Path("bits.toml").read_text()
    edited = text.replace('"c2" = { W = 3, A = 4 }', '"c2" = { W = 6, A = 2 }')
    assert edited != text
    Path("bits.toml").write_text(edited)
    made = quantize("model.onnx", calib=IMAGES, method="nearest", device="cpu", bits_from="bits.toml")
    assert {name: made.plan.points[name].bits for name in ("w2", "z", "w3", "a1")} == {
        "w2": 6,
        "z": 2,
        "w3": 3,
        "a1": 4,
    }
    found = inspect_model("model.onnx", bits_from="bits.toml")
    assert found.plan == made.plan
    assert found.settings["tensor_bits"] == ["w2=6", "z=2"]
    Path("again.toml").write_text(show_config(made.model))
    again = quantize("model.onnx", calib=IMAGES, config="again.toml")
    assert again.model.SerializeToString(deterministic=True) == made.model.SerializeToString(deterministic=True)


def test_another_model_is_told_and_other_names_are_refused(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    run(bits="3/4", bits_to="bits.toml")
    changed = onnx.load("model.onnx")
    changed.graph.doc_string = "another"
    onnx.save(changed, "model.onnx")
    with caplog.at_level(logging.WARNING):
        run(bits_from="bits.toml")
    assert "--bits-from bits.toml: it was made for another model, model.onnx; its names are" in caplog.text
    Path("bits.toml").write_text(Path("bits.toml").read_text().replace('"c2"', '"c9"'))
    with pytest.raises(
        OptionError, match=r"--bits-from bits\.toml: the model has no quantized layer 'c9'; expected names"
    ):
        run(bits_from="bits.toml")
    with pytest.raises(OptionError, match="no quantized layer 'c9'"):
        inspect_model("model.onnx", bits_from="bits.toml")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"bits_from": "b.toml", "bits": "3/3"}, "--bits 3/3: --bits-from b.toml says the bits of all layers.*leave"),
        ({"bits_from": "b.toml", "bits": "auto", "max_size": 0.2}, "--bits-from b.toml: .*give one of them"),
        ({"bits_from": "missing.toml"}, "--bits-from missing.toml: cannot be read: No such file"),
        ({"bits_to": "model.onnx"}, "model.onnx"),
        ({"bits_to": "b.toml", "overwrite": False}, "b.toml: exists"),
        ({"bits_to": "b.toml", "bits_from": "b.toml"}, "b.toml"),
        ({"tensor_bits": {"w2": "x"}}, "--tensor-bits 'w2=x': expected TENSOR=BITS"),
        ({"tensor_bits": {"w7": 3}}, "bits of tensor 'w7': it is not in the prepared model"),
        ({"max_size": "0.2"}, "--max-size 0.2: is for --bits auto; a limit on the file's size is --max-size-ratio"),
        ({"avg_bits": 3}, "--avg-bits 3: is for --bits auto"),
        ({"allowed_bits": [2, 4]}, "--allowed-bits 2,4: is for --bits auto"),
        ({"bits": "auto"}, "--bits auto: there is no budget; expected --max-size 0.12"),
        ({"bits": "auto", "max_size": 0.2, "target": "tensorrt"}, "--target tensorrt has 8 bits throughout"),
        (
            {"bits": "auto", "max_size": 0.2, "target": "qonnx"},
            "weights of fewer bits take as many bytes",
        ),
        ({"bits": "auto", "target": "qcdq"}, "there is no budget; expected --avg-bits 3.5, --max-bit-ops 0.25"),
        ({"bits": "auto", "max_drop": 0.01}, "--max-drop 0.01: of the images.*one is more than that; expected 0.05"),
        ({"bits": "auto", "max_drop": 3, "target": "qcdq"}, "expected --avg-bits 3.5 or --max-bit-ops 0.25"),
        ({"bits": "auto", "max_size": "1.5"}, "--max-size 1.5: expected a share of FP32's size up to 1"),
        ({"bits": "auto", "max_size": "0"}, "--max-size 0: expected a share"),
        ({"bits": "auto", "max_size": "big"}, "--max-size 'big': expected a share"),
        ({"bits": "auto", "avg_bits": "9"}, "--avg-bits 9: 9 is no average of bits; expected 2 to 8"),
        ({"bits": "auto", "avg_bits": "3/1"}, "--avg-bits 3/1: 1 is no average"),
        ({"bits": "auto", "max_bit_ops": 0}, "--max-bit-ops 0: expected a number above 0"),
        ({"bits": "auto", "avg_bits": 3, "allowed_bits": "1,4"}, "--allowed-bits '1,4': expected bits from 2 to 8"),
    ],
)
def test_what_is_refused(folder: Path, fields: dict[str, Any], message: str) -> None:
    Path("b.toml").write_text('bits = "3/4"\n')
    with pytest.raises(OptionError, match=message):
        quantize("model.onnx", calib=IMAGES, method="nearest", **{"overwrite": True, **fields})
