"""Files that are not what they should be: always a ModelError that says where, what, and what to do."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from pdq_export.errors import ModelError
from pdq_export.graph import external
from pdq_export.graph.external import external_locations
from pdq_export.graph.load import check_model, load_model, read_model

from .models import build, node, norm_constants, random


def convolution(opset: int = 17, **constants: np.ndarray) -> onnx.ModelProto:
    return build(
        [node("Conv", "x w", "c", "conv"), node("Relu", "c", "y", "act")],
        inputs={"x": ["N", 2, 4, 4]},
        outputs={"y": ["N", 3, 4, 4]},
        constants={"w": random(3, 2, 1, 1), **constants},
        opset=opset,
    )


def saved(path: Path, model: onnx.ModelProto) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


def refused(path: Path, *patterns: str) -> str:
    """The message of the ModelError; it starts with the path and matches every pattern."""
    with pytest.raises(ModelError) as caught:
        load_model(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    for pattern in patterns:
        assert re.search(pattern, message), message
    return message


def test_what_is_no_model() -> None:
    with pytest.raises(ModelError, match=r"NoneType given as model; expected a path or an onnx\.ModelProto"):
        check_model(None)  # type: ignore[arg-type]


def test_a_good_file_comes_back_unchanged(tmp_path: Path) -> None:
    model = convolution()
    assert load_model(saved(tmp_path / "m.onnx", model)) == model
    assert load_model(str(tmp_path / "m.onnx")) == model


def test_missing_file(tmp_path: Path) -> None:
    refused(tmp_path / "nothing.onnx", "no such file; expected an ONNX file; check the path")


def test_directory(tmp_path: Path) -> None:
    refused(tmp_path, "is a directory")


def test_empty_file(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").touch()
    refused(tmp_path / "m.onnx", "is empty")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads everything")
def test_unreadable_file(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.onnx", convolution())
    path.chmod(0)
    refused(path, "cannot be read", "check its permissions")


@pytest.mark.parametrize("text", ["version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "<html></html>", "{}"])
def test_text_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "m.onnx").write_text(text)
    refused(tmp_path / "m.onnx", "it is text that begins with|holds no graph")


@pytest.mark.parametrize("content", [b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", b"PK\x03\x04\x14\0", b"\xff" * 64, b"\0" * 16])
def test_other_binary_files(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    refused(tmp_path / "m.onnx", "is not an ONNX protobuf, or truncated or damaged|holds no graph")


def test_truncated_at_every_byte(tmp_path: Path) -> None:
    model = convolution(**norm_constants(3))
    content = model.SerializeToString()
    path = tmp_path / "m.onnx"
    for length in range(len(content)):
        path.write_bytes(content[:length])
        refused(path)


def test_truncated_real_files(shared_models: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    for name in ("resnet20_cifar10.onnx", "ch_ppocr_mobile_v2.0_cls_infer.onnx"):
        content = (shared_models / name).read_bytes()
        lengths = {*np.linspace(0, len(content) - 3, 40, dtype=int), *range(40), *range(len(content) - 8, len(content))}
        for length in sorted(map(int, lengths)):
            path.write_bytes(content[:length])
            refused(path)


def test_no_graph_and_no_nodes(tmp_path: Path) -> None:
    model = onnx.ModelProto(ir_version=8, opset_import=[helper.make_opsetid("", 17)])
    refused(saved(tmp_path / "m.onnx", model), "holds no graph")
    model.graph.name = "g"
    refused(saved(tmp_path / "m.onnx", model), "its graph has no nodes")


def test_an_invalid_model_gives_the_checker_s_essential_line(tmp_path: Path) -> None:
    model = convolution()
    model.graph.node[1].op_type = "Rleu"
    message = refused(saved(tmp_path / "m.onnx", model), "is not valid ONNX", "Rleu")
    assert "==> Context" not in message
    model.graph.node[1].op_type, model.graph.node[1].input[0] = "Relu", "nobody"
    refused(saved(tmp_path / "m.onnx", model), "is not valid ONNX", "nobody")


@pytest.mark.parametrize(("opset", "advice"), [(8, "newer opset"), (99, "older opset or install a newer onnx")])
def test_opsets_out_of_range(tmp_path: Path, opset: int, advice: str) -> None:
    model = convolution()
    model.opset_import[0].version = opset
    refused(saved(tmp_path / "m.onnx", model), f"has opset {opset}; expected 9 to", advice)


def test_opset_9_and_the_newest_are_read(tmp_path: Path) -> None:
    for opset in (9, onnx.defs.onnx_opset_version()):
        load_model(saved(tmp_path / "m.onnx", convolution(opset)))


def test_no_opset(tmp_path: Path) -> None:
    model = convolution()
    del model.opset_import[:]
    refused(saved(tmp_path / "m.onnx", model), "no opset of the default domain")


def test_other_domains_are_left_to_the_importer(tmp_path: Path) -> None:
    model = convolution()
    model.graph.node[1].domain, model.graph.node[1].op_type = "com.example", "Magic"
    model.opset_import.append(helper.make_opsetid("com.example", 1))
    assert load_model(saved(tmp_path / "m.onnx", model)) == model


QUANTIZED = {
    "QuantizeLinear": "q = QuantizeLinear(x, s)\n y = DequantizeLinear(q, s)",
    "DequantizeLinear": "i = Cast<to=3>(x)\n y = DequantizeLinear(i, s)",
    "DynamicQuantizeLinear": "q, t, z = DynamicQuantizeLinear(x)\n y = DequantizeLinear(q, t, z)",
    "ConvInteger": "i = Cast<to=2>(x)\n c = ConvInteger(i, i)\n y = Cast<to=1>(c)",
    "MatMulInteger": "i = Cast<to=2>(x)\n c = MatMulInteger(i, i)\n y = Cast<to=1>(c)",
    "QLinearAdd": "i = Cast<to=2>(x)\n c = com.microsoft.QLinearAdd(i, s, i, i, s, i, s, i)\n y = Cast<to=1>(c)",
    "QGemm": "y = com.microsoft.QGemm(x)",
    "QAttention": "y = com.microsoft.QAttention(x)",
}


@pytest.mark.parametrize("operator", QUANTIZED)
def test_quantized_models_are_refused(tmp_path: Path, operator: str) -> None:
    model = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["": 17, "com.microsoft": 1]>
        g (float[4, 4] x) => (float[4, 4] y) <float s = {{0.5}}> {{ {QUANTIZED[operator]} }}"""
    )
    message = refused(saved(tmp_path / "m.onnx", model), "is already quantized; expected a float32 model")
    if operator not in ("DequantizeLinear",):
        assert f" {operator} " in message


def test_quantization_inside_a_function_is_seen(tmp_path: Path) -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17, "local": 1]>
        g (float[4, 4] x) => (float[4, 4] y) <float s = {0.5}> { y = local.fake(x, s) }
        <domain: "local", opset_import: ["": 17]> fake (x, s) => (y)
        { q = QuantizeLinear(x, s) y = DequantizeLinear(q, s) }"""
    )
    refused(saved(tmp_path / "m.onnx", model), "is already quantized")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite(tmp_path: Path, value: float) -> None:
    weight = random(3, 2, 1, 1)
    weight[1, 0] = value
    model = convolution(w=weight)
    refused(saved(tmp_path / "m.onnx", model), r"node 'conv' \(Conv\): constant 'w' holds 1 NaN", r"\[1, 0, 0, 0\]")
    tensor = model.graph.initializer.pop()
    model.graph.node.insert(0, helper.make_node("Constant", [], ["w"], value=tensor))
    refused(saved(tmp_path / "m.onnx", model), r"constant 'w' holds 1 NaN")


def test_infinite_bounds_are_no_weights(tmp_path: Path) -> None:
    model = convolution(lo=np.array(-np.inf, np.float32))
    model.graph.node[1].CopyFrom(node("Clip", "c lo", "y"))
    load_model(saved(tmp_path / "m.onnx", model))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"raw_data": b"\0" * 5}, "holds 5 bytes; expected 24"),
        ({"dims": [3, 2, 1, 2**40]}, r"expected \d{14} for dims"),
        ({"dims": [3, 2, 2**62, 2**62]}, "expected .* for dims"),
        ({"dims": [3, 2, -1, 1]}, "expected sizes of at least 0"),
        ({"data_type": 99}, "has type 99"),
        ({"data_type": 0}, "has type UNDEFINED"),
    ],
)
def test_tensors_whose_data_do_not_fit(tmp_path: Path, change: dict, message: str) -> None:
    model = convolution()
    tensor = model.graph.initializer[0]
    for field, value in change.items():
        if field == "dims":
            tensor.dims[:] = value
        else:
            setattr(tensor, field, value)
    refused(saved(tmp_path / "m.onnx", model), "tensor 'w': ", message)


def test_typed_fields_are_counted(tmp_path: Path) -> None:
    model = convolution()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.float_data.extend([1.0] * 5)
    refused(saved(tmp_path / "m.onnx", model), "holds 5 numbers; expected 6")
    tensor.float_data.append(1.0)
    load_model(saved(tmp_path / "m.onnx", model))


def test_sparse_weights_are_refused(tmp_path: Path) -> None:
    model = convolution()
    values = helper.make_tensor("sparse", TensorProto.FLOAT, [1], [1.0])
    indices = helper.make_tensor("i", TensorProto.INT64, [1], [0])
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [3]))
    refused(saved(tmp_path / "m.onnx", model), "tensor 'sparse': is sparse")


@pytest.mark.parametrize(
    ("body", "tensor"),
    [
        ("p = Conv <pads = [99999, 99999, 99999, 99999]> (x, w) y = MaxPool <kernel_shape = [2, 2]> (p)", "p"),
        ("s = Constant <value_ints = [1, 3, 99999, 99999]> () p = ConstantOfShape(s) y = Add(x, p)", "p"),
        ("s = Constant <value_ints = [1, 1, 99999, 99999]> () p = Tile(x, s) y = Conv(p, w)", "p"),
        ("s = Constant <value_ints = [1, 3, 99999, 99999]> () e = Constant <value_float = 1.0> () p = Expand(e, s) "
         "y = Add(p, x)", "p"),
    ],
)  # fmt: skip
def test_tensors_that_no_memory_holds(tmp_path: Path, body: str, tensor: str) -> None:
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["": 17]> g (float[1,3,8,8] x) => (float[A,B,C,D] y) {{ {body} }}'
    )
    model.graph.initializer.append(onnx.numpy_helper.from_array(random(4, 3, 3, 3), "w"))
    refused(saved(tmp_path / "m.onnx", model), f"tensor {tensor!r}: has shape .*, more than")


class TestExternalData:
    """``folder/m.onnx`` with its weight, 24 bytes at offset 8, in ``folder/m.data``."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        folder = tmp_path / "folder"
        folder.mkdir()
        (folder / "m.data").write_bytes(b"\1" * 8 + random(3, 2, 1, 1).tobytes())
        return folder

    @staticmethod
    def written(folder: Path, **entries: object) -> Path:
        model = convolution()
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in {"location": "m.data", "offset": 8, "length": 24, **entries}.items():
            if value is not None:
                tensor.external_data.add(key=key, value=str(value))
        return saved(folder / "m.onnx", model)

    def test_it_is_read(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        assert load_model(self.written(folder)) == convolution()
        assert load_model(self.written(folder, length=None)) == convolution()
        assert load_model(self.written(folder, location="./m.data")) == convolution()
        monkeypatch.chdir(folder)
        assert load_model("m.onnx") == convolution()

    def test_in_a_folder_below(self, folder: Path) -> None:
        (folder / "weights").mkdir()
        (folder / "m.data").rename(folder / "weights" / "m.data")
        assert load_model(self.written(folder, location="weights/m.data")) == convolution()

    def test_missing_file(self, folder: Path) -> None:
        (folder / "m.data").unlink()
        refused(self.written(folder), "tensor 'w': external data file .*m.data is missing", "copy both files")

    @pytest.mark.parametrize(
        "location",
        [
            "../m.data",
            "a/../../m.data",
            "/etc/passwd",
            "",
            "..\\m.data",
            "C:\\m.data",
            "C:m.data",
            "\\\\host\\m",
            "m\0",
        ],
    )
    def test_paths_that_leave_the_folder(self, folder: Path, location: str) -> None:
        (folder.parent / "m.data").write_bytes((folder / "m.data").read_bytes())
        refused(self.written(folder, location=location), "tensor 'w': external data lies at .*; expected a path below")

    def test_links_out_of_the_folder(self, folder: Path) -> None:
        (folder / "m.data").rename(folder.parent / "m.data")
        (folder / "m.data").symlink_to(folder.parent / "m.data")
        refused(self.written(folder), "is a link out of the model's folder")

    def test_linked_folders(self, folder: Path) -> None:
        (folder.parent / "other").mkdir()
        (folder / "m.data").rename(folder.parent / "other" / "m.data")
        (folder / "sub").symlink_to(folder.parent / "other")
        refused(self.written(folder, location="sub/m.data"), "is a link out of the model's folder")

    def test_links_inside_the_folder_and_a_linked_model_folder(self, folder: Path) -> None:
        (folder / "m.data").rename(folder / "blob")
        (folder / "m.data").symlink_to(folder / "blob")
        self.written(folder)
        (folder.parent / "alias").symlink_to(folder)
        assert load_model(folder.parent / "alias" / "m.onnx") == convolution()

    def test_hard_links_are_as_symbolic_ones(self, folder: Path) -> None:
        (folder / "blob").hardlink_to(folder / "m.data")
        assert load_model(self.written(folder)) == convolution()
        (folder.parent / "elsewhere").hardlink_to(folder / "m.data")
        refused(self.written(folder), "tensor 'w': .*m.data has another name out of the model's folder, a hard link")
        data = (folder / "m.data").read_bytes()
        (folder / "m.data").unlink()
        (folder / "m.data").write_bytes(data)  # the remedy
        assert load_model(self.written(folder)) == convolution()

    def test_the_folder_is_walked_once_and_no_further_than_the_names(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (folder / "n.data").write_bytes((folder / "m.data").read_bytes())
        for name in ("m", "n"):
            (folder / f"{name}.copy").hardlink_to(folder / f"{name}.data")
            (folder / "below" / name).mkdir(parents=True)
        model = onnx.load(self.written(folder), load_external_data=False)
        for number in range(20):
            model.graph.initializer.append(model.graph.initializer[0])
            model.graph.initializer[-1].name = f"w{number}"
            model.graph.initializer[-1].external_data[0].value = f"{'mn'[number % 2]}.data"
        path = saved(folder / "m.onnx", model)
        walked: list[str] = []

        def walk(top: Path) -> Iterator[tuple[str, list[str], list[str]]]:
            for step in original(top):
                walked.append(step[0])
                yield step

        original = os.walk
        monkeypatch.setattr(external.os, "walk", walk)
        assert len(read_model(path).graph.initializer) == 21
        assert walked == [str(folder)]
        (folder / "n.copy").rename(folder / "below" / "n" / "n.copy")
        read_model(path)
        assert len(walked) > 2
        (folder / "below" / "n" / "n.copy").rename(folder.parent / "n.copy")
        refused(path, "tensor 'w1': .*n.data has another name out of the model's folder, a hard link")

    def test_tensors_that_share_their_bytes(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Tied weights are read; a small file that is read again and again is refused before it fills the memory."""
        monkeypatch.setattr(external, "_read", pytest.fail)
        os.truncate(folder / "m.data", 25_000_000)
        path = self.written(folder, offset=0, length=25_000_000)
        model = onnx.load(path, load_external_data=False)
        model.graph.initializer[0].dims[:] = [6_250_000]
        for number in range(39):
            model.graph.initializer.append(model.graph.initializer[0])
            model.graph.initializer[-1].name = f"w{number}"
        refused(saved(path, model), "40 tensors read 1,000,000,000 bytes of external data from files of 25,000,000")
        for number in range(50):
            model.graph.initializer.append(model.graph.initializer[0])
            model.graph.initializer[-1].name = f"v{number}"
        refused(saved(path, model), "is larger than 2 GiB with its weights")
        monkeypatch.undo()
        del model.graph.initializer[2:]
        for tensor in model.graph.initializer:
            tensor.dims[:] = [2, 1]
            tensor.external_data[-1].value = "8"
        read = read_model(saved(path, model))
        assert [tensor.raw_data for tensor in read.graph.initializer] == [b"\1" * 8] * 2

    def test_constants_of_functions(self, folder: Path) -> None:
        model = onnx.parser.parse_model(
            """<ir_version: 8, opset_import: ["": 17, "local": 1]> g (float[N] x) => (float[N] y) { y = local.f(x) }
            <domain: "local", opset_import: ["": 17]> f (x) => (y)
            { w = Constant <value_float = 1.0> () y = Add(x, w) }"""
        )
        tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2], data_location=TensorProto.EXTERNAL)
        tensor.external_data.add(key="location", value="m.data")
        constant = model.functions[0].node[0]
        constant.attribute[0].CopyFrom(helper.make_attribute("value", tensor))
        assert external_locations(model) == ["m.data"]
        read = read_model(saved(folder / "m.onnx", model))
        assert read.functions[0].node[0].attribute[0].t.raw_data == b"\1" * 8

    def test_link_loop(self, folder: Path) -> None:
        (folder / "m.data").unlink()
        (folder / "m.data").symlink_to(folder / "m.data")
        refused(self.written(folder), "is missing")

    def test_not_a_regular_file(self, folder: Path) -> None:
        (folder / "sub").mkdir()
        refused(self.written(folder, location="sub"), "is not a regular file")
        os.mkfifo(folder / "pipe")
        refused(self.written(folder, location="pipe"), "is not a regular file")

    @pytest.mark.parametrize(
        ("entries", "message"),
        [
            ({"offset": 9}, "ends at byte 33, but .* has 32 bytes"),
            ({"offset": 10**17}, "has 32 bytes"),
            ({"offset": -1}, "has offset '-1'; expected a number"),
            ({"offset": "abc"}, "has offset 'abc'; expected a number"),
            ({"offset": "9" * 30}, "expected a number"),
            ({"length": 23}, "has length 23; expected 24 bytes"),
            ({"length": 2**40}, "has length .*; expected 24 bytes"),
            ({"length": "²"}, "expected a number"),
        ],
    )
    def test_sizes_that_do_not_fit(self, folder: Path, entries: dict, message: str) -> None:
        refused(self.written(folder, **entries), "tensor 'w': ", message)

    def test_huge_dims_are_refused_before_reading(self, folder: Path) -> None:
        path = self.written(folder, length=None)
        model = onnx.load(path, load_external_data=False)
        model.graph.initializer[0].dims[:] = [2**20, 2**20, 1, 1]
        refused(saved(path, model), "ends at byte .*, but .* has 32 bytes")

    def test_strings_are_refused(self, folder: Path) -> None:
        path = self.written(folder)
        model = onnx.load(path, load_external_data=False)
        model.graph.initializer[0].data_type = TensorProto.STRING
        refused(saved(path, model), "has type STRING")


def test_the_real_file_with_external_data(shared_models: Path, tmp_path: Path) -> None:
    name = "resnet20_cifar10_folded.onnx"
    model = load_model(shared_models / name)
    assert all(t.data_location == TensorProto.DEFAULT for t in model.graph.initializer)
    (tmp_path / name).write_bytes((shared_models / name).read_bytes())
    refused(tmp_path / name, r"external data file .*resnet20_cifar10_folded\.onnx\.data is missing")
    (tmp_path / f"{name}.data").write_bytes((shared_models / f"{name}.data").read_bytes()[:-1])
    refused(tmp_path / name, "external data ends at byte")


@pytest.mark.parametrize("legacy", [False, True])
def test_a_checkpoint_of_torch_is_told_from_a_damaged_file(tmp_path: Path, legacy: bool) -> None:
    torch.save({"w": torch.zeros(2)}, tmp_path / "plain.pt", _use_new_zipfile_serialization=not legacy)
    refused(tmp_path / "plain.pt", "is a checkpoint of PyTorch; expected an ONNX file; .*pytorch.md")
