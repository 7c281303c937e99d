"""The deployment benchmark on the embedded network, one short round; its limits on made-up figures."""

import dataclasses
from pathlib import Path

import onnx
import pytest

import pdq_export
from benchmarks import deploy
from benchmarks.deploy import Deployed, Result, Work, main, missed, read, table
from pdq_export.errors import ValidationError

pytestmark = pytest.mark.usefixtures("short_search")

SLOW = "x onnxruntime INT8 at batch 1: 1.0825 > 1.08"
SHORT = ["--rounds", "1", "--seconds", "0", "--batch", "1", "3"]


def test_every_target_is_measured_and_not_twice(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "deploy.jsonl"
    command = [str(model), *SHORT, "--bits", "8/8", "2/2", "--output", str(output)]
    assert main(command) == 0
    printed = capsys.readouterr().out
    (result,) = read(output)
    rows = {row.name: row for row in result.rows}
    low = ["ort 2/2", "native 2/2", "qcdq 2/2"]
    assert list(rows) == ["FP32", "onnxruntime INT8", "ort 8/8", "native 8/8", "qcdq 8/8", "tensorrt 8/8", *low]
    assert all(row.failure is None and len(row.milliseconds["3"]) == 1 for row in result.rows)
    assert rows["FP32"].size == model.stat().st_size
    assert not rows["FP32"].integer
    for name in ("onnxruntime INT8", "ort 8/8", "qcdq 8/8", "ort 2/2"):
        assert not rows[name].floating
        assert sum(rows[name].integer.values()) == sum(rows["FP32"].floating.values())
    assert rows["ort 2/2"].size < rows["ort 8/8"].size
    assert rows["native 2/2"].config == {"session.disable_quant_qdq": "1"}
    assert "loads only with session.disable_quant_qdq=1" in printed
    assert "between pairs: " in printed
    assert str(tmp_path) not in output.read_text()

    monkeypatch.setattr(deploy, "run", lambda *_: pytest.fail("it was run again"))
    assert main(command) == 0
    assert capsys.readouterr().out == printed
    again = tmp_path / "other" / model.name
    again.parent.mkdir()
    again.write_bytes(model.read_bytes() + onnx.ModelProto(doc_string="another").SerializeToString())
    with pytest.raises(pytest.fail.Exception):
        main([str(again), *command[1:]])
    capsys.readouterr()
    assert main(["--output", str(output), "--table"]) == 0
    assert capsys.readouterr().out == printed


def test_a_target_that_fails_has_a_row_that_says_so(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise ValidationError("onnxruntime does not load it")

    monkeypatch.setattr(pdq_export, "convert", refuse)
    output = tmp_path / "deploy.jsonl"
    assert main([str(model), *SHORT, "--bits", "4/4", "--targets", "ort", "native", "--output", str(output)]) == 0
    (result,) = read(output)
    assert result.rows[-1] == Deployed(target="native", bits="4/4", failure="onnxruntime does not load it")
    assert "onnxruntime does not load it |" in capsys.readouterr().out.splitlines()[-1]


def test_a_file_that_does_not_run_is_told(tmp_path: Path) -> None:
    graph = onnx.parser.parse_graph("g (float[N,3] x) => (float[N,3] y) { y = NoSuchOperator(x) }")
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "unknown.onnx")
    row = deploy.examine("ort", "4/4", tmp_path / "unknown.onnx", [])
    assert row.size == model.ByteSize()
    assert row.failure is not None
    assert "does not load 'unknown.onnx'" in row.failure
    assert str(tmp_path) not in row.failure


def made_up(**ort: object) -> Result:
    work = Work(
        model="resnet18, 224x224",
        model_sha256="0",
        targets=["ort"],
        bits=["2/2"],
        batches=[1],
        threads=1,
        rounds=1,
        seconds=0.0,
    )
    values = {"size": 80, "integer": {"QLinearConv": 20}, "milliseconds": {"1": [4.3]}, **ort}
    rows = [
        Deployed(target="FP32", size=1000, milliseconds={"1": [9.6]}),
        Deployed(target="onnxruntime INT8", size=250, milliseconds={"1": [4.0]}),
        Deployed(target="ort", bits="2/2", **values),
    ]
    return Result(work=work, rows=rows, versions={"onnxruntime": "1"})


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, []),
        ({"size": 81}, ["size: 0.0810 > 0.08"]),
        ({"bits": "4/4", "size": 133}, ["size: 0.1330 > 0.132"]),
        ({"bits": "3/3", "size": 104}, ["size: 0.1040 > 0.103"]),
        ({"milliseconds": {"1": [4.33]}}, [f"x FP32 at batch 1: {4.33 / 9.6:.4f} > 0.45", SLOW]),
        ({"floating": {"Conv": 1, "Gemm": 1}}, ["float Conv"]),
        ({"failure": "no"}, ["does not run"]),
        ({"bits": "8/8", "size": 999}, []),
        ({"target": "qcdq", "size": 999}, []),
    ],
)
def test_limits(changed: dict[str, object], expected: list[str]) -> None:
    result = made_up()
    row = dataclasses.replace(result.rows[2], **changed)
    result = dataclasses.replace(result, rows=[*result.rows[:2], row])
    assert sorted(missed(row, result)) == expected
    for limit in expected:
        assert limit in table(result)
    assert ("limits held" in table(result)) is (not expected and row.name == "ort 2/2")


def test_other_models_are_held_to_what_is_for_all() -> None:
    result = made_up(size=999, milliseconds={"1": [4.33]})
    result = dataclasses.replace(result, work=dataclasses.replace(result.work, model="own.onnx"))
    assert missed(result.rows[2], result) == [SLOW]


def test_check_fails_where_a_limit_is_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
    monkeypatch.setattr(deploy, "run", lambda path, work: made_up(size=81))
    assert main([str(model)]) == 0
    assert main([str(model), "--check"]) == 1
    monkeypatch.setattr(deploy, "run", lambda path, work: made_up())
    assert main([str(model), "--check"]) == 0


def test_a_model_that_cannot_be_had_fails_and_the_others_go_on(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done = []
    monkeypatch.setattr(deploy, "run", lambda path, work: done.append(path) or made_up())
    assert main(["resnet19", str(model)]) == 1
    assert done == [model]
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    monkeypatch.undo()
    assert main([str(broken)]) == 1
    assert "broken.onnx: onnxruntime does not load it" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--table"])
