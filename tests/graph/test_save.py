"""Models in one file or two, whole or not at all."""

import os
from pathlib import Path

import numpy as np
import onnx
import pytest

from pdq_export.errors import OptionError
from pdq_export.graph import save
from pdq_export.graph.load import external_files, load_model
from pdq_export.graph.save import check_output, save_model

TEXT = '<ir_version: 8, opset_import: ["": 17]> g (float[1,4,8,8] x) => (float[1,32,8,8] y) { y = Conv(x, w, b) }'


def model() -> onnx.ModelProto:
    made = onnx.parser.parse_model(TEXT)
    for name, shape in (("w", (32, 4, 3, 3)), ("b", (32,))):
        value = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
        made.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    del made.graph.output[0].type.tensor_type.shape.dim[:]
    made.graph.output[0].type.tensor_type.shape.Clear()
    return made


def save_external(folder: Path, name: str = "net.onnx") -> Path:
    save_model(folder / name, model(), external=True)
    return folder / name


def test_one_file(tmp_path: Path) -> None:
    save_model(tmp_path / "net.onnx", model())
    assert os.listdir(tmp_path) == ["net.onnx"]


def test_two_files(tmp_path: Path) -> None:
    path = save_external(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["net.onnx", "net.onnx.data"]
    light = onnx.load(path, load_external_data=False)
    stored = {
        tensor.name: {entry.key: entry.value for entry in tensor.external_data} for tensor in light.graph.initializer
    }
    assert stored == {"w": {"location": "net.onnx.data", "offset": "0", "length": "4608"}, "b": {}}
    assert external_files(path) == [tmp_path / "net.onnx.data"]
    assert load_model(path).graph.initializer[0] == model().graph.initializer[0]
    onnx.checker.check_model(str(path))


def test_models_over_2_gb_are_split_unasked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(save, "LIMIT", 1000)
    save_model(tmp_path / "net.onnx", model())
    assert sorted(os.listdir(tmp_path)) == ["net.onnx", "net.onnx.data"]


def test_without_large_tensors_there_is_no_second_file(tmp_path: Path) -> None:
    small = model()
    del small.graph.initializer[0]
    assert list(save_model(tmp_path / "net.onnx", small, external=True)) == [tmp_path / "net.onnx"]
    assert os.listdir(tmp_path) == ["net.onnx"]


def test_equal_models_give_equal_bytes(tmp_path: Path) -> None:
    contents = [save.split(model(), "net.onnx.data") for _ in range(2)]
    assert contents[0] == contents[1]


def test_a_failure_leaves_both_files_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_external(tmp_path)
    before = {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)}
    real = Path.replace
    calls = []

    def replace(self: Path, target: Path) -> Path:
        calls.append(target)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        return real(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    other = model()
    other.graph.initializer[0].raw_data = bytes(4608)
    with pytest.raises(OptionError, match=r"net\.onnx: cannot be written: No space left"):
        save_model(path, other, external=True, overwrite=True)
    assert {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)} == before


def test_a_failure_leaves_no_new_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.link

    def link(source: Path, target: Path) -> None:
        if not str(target).endswith(".data"):
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(os, "link", link)
    with pytest.raises(KeyboardInterrupt):
        save_external(tmp_path)
    assert os.listdir(tmp_path) == []


def test_both_files_are_replaced_only_when_asked(tmp_path: Path) -> None:
    path = save_external(tmp_path)
    path.unlink()
    with pytest.raises(OptionError, match=r"net\.onnx\.data: exists already"):
        check_output(path, external=True)
    check_output(path, external=True, overwrite=True)
    check_output(path)


def test_external_data_of_the_input_are_never_replaced(tmp_path: Path) -> None:
    path = save_external(tmp_path)
    (tmp_path / "other.onnx").write_bytes(path.read_bytes())
    with pytest.raises(OptionError, match="is the same file as the input"):
        check_output(tmp_path / "net.onnx.data", overwrite=True, model=tmp_path / "other.onnx")
    with pytest.raises(OptionError, match="is the same file as the input"):
        check_output(path, overwrite=True, model=tmp_path / "other.onnx", external=True)
    check_output(path, overwrite=True, model=tmp_path / "other.onnx")


def test_a_model_is_parsed_only_where_its_files_could_be_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed: list[Path] = []
    monkeypatch.setattr("pdq_export.graph.save.external_files", lambda path: parsed.append(path) or [])
    model = tmp_path / "net.onnx"
    check_output(tmp_path / "new.onnx", model=model)
    check_output(tmp_path / "new.onnx", model=model, overwrite=True)
    (tmp_path / "old.onnx").touch()
    with pytest.raises(OptionError, match="exists already"):
        check_output(tmp_path / "old.onnx", model=model)
    assert parsed == []
    check_output(tmp_path / "old.onnx", model=model, overwrite=True)
    check_output(None, model=model, overwrite=True, beside=[("--report", tmp_path / "old.onnx")])
    assert parsed == [model, model]


def test_unreadable_models_have_no_external_files(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"\xff\xff")
    assert external_files(tmp_path / "a") == external_files(tmp_path / "missing") == []
