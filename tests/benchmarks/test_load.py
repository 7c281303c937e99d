"""The benchmark of loading on the embedded network, one round; its table on made-up figures."""

import dataclasses
import json
from pathlib import Path

import onnx
import pytest

from benchmarks import load
from benchmarks.load import Loaded, Result, Work, main, read, table

pytestmark = pytest.mark.usefixtures("short_search")


def test_every_form_is_loaded_in_a_process_of_its_own_and_not_twice(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "load.jsonl"
    forms = ["--bits", "3/3", "4/4", "--forms", "ort", "ort:1.31", "--add", f"again={model}"]
    command = [str(model), *forms, "--rounds", "1", "--output", str(output)]
    assert main(command) == 0
    printed = capsys.readouterr().out
    (result,) = read(output)
    rows = {row.name: row for row in result.rows}
    names = ["ort 3/3", "ort:1.31 3/3", "ort 4/4", "ort:1.31 4/4"]
    assert list(rows) == ["FP32", "ort 8/8", *names, "again"]
    assert all(row.failure is None and len(row.cpu) == len(row.peak) == 1 for row in result.rows)
    assert all(row.cpu[0] > 0 and row.peak[0] >= row.after[0] > 0 for row in result.rows)
    assert rows["again"].size == rows["FP32"].size == model.stat().st_size
    assert rows["ort 3/3"].size < rows["ort 4/4"].size < rows["ort 8/8"].size
    assert rows["ort 4/4"].size != rows["ort:1.31 4/4"].size

    monkeypatch.setattr(load, "run", lambda *_: pytest.fail("it was run again"))
    assert main(command) == 0
    assert capsys.readouterr().out == printed
    assert main(["--output", str(output), "--table"]) == 0
    assert capsys.readouterr().out == printed


def test_a_form_that_does_not_load_has_a_row_that_says_so(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    graph = onnx.parser.parse_graph("g (float[N,3] x) => (float[N,3] y) { y = NoSuchOperator(x) }")
    unknown = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(unknown, tmp_path / "unknown.onnx")
    added = ["--add", f"unknown={tmp_path / 'unknown.onnx'}"]
    assert main([str(model), "--rounds", "1", "--bits", "8/8", *added]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("| unknown | ")
    assert "NoSuchOperator" in last
    assert str(tmp_path) not in last


def test_a_runtime_of_another_folder_is_the_one_that_loads(model: Path, tmp_path: Path) -> None:
    """A package of that name that only says who it is."""
    (tmp_path / "onnxruntime.py").write_text(
        "__version__ = '0.1'\n"
        "class SessionOptions:\n    def add_session_config_entry(self, key, value): pass\n"
        "class InferenceSession:\n    def __init__(self, *arguments, **named): pass\n"
    )
    work = dataclasses.replace(made_up().work, runtime=str(tmp_path))
    assert load.load(model, work).onnxruntime == "0.1"


def made_up() -> Result:
    work = Work(model="net", model_sha256="0", forms=["ort"], bits=["4/4"], added={}, runtime="", config={}, rounds=3)
    rows = [
        Loaded(
            name="FP32", size=1000, cpu=[0.1, 0.2, 0.3], wall=[1, 1, 1], peak=[8_000_000] * 3, after=[6_000_000] * 3
        ),
        Loaded(name="ort 8/8", size=250, cpu=[0.1] * 3, wall=[1, 1, 1], peak=[2_000_000] * 3, after=[1_000_000] * 3),
        Loaded(name="ort 4/4", size=130, cpu=[0.05] * 3, wall=[1, 1, 1], peak=[7_000_000] * 3, after=[1_000_000] * 3),
        Loaded(name="qcdq 4/4", size=240, failure="no | kernel"),
    ]
    return Result(work=work, rows=rows, versions={"onnxruntime": "1.2"})


def test_the_table() -> None:
    lines = table(made_up()).splitlines()
    assert lines[0] == "**net** (onnxruntime 1.2; one thread; 3 rounds)"
    assert lines[4] == "| FP32 | 1 | 1.0000 | 200 (150–250) | 1.00 | 2.00 | 8 | +6 | 6 |"
    assert lines[6] == "| ort 4/4 | 0 | 0.1300 | 50 (50–50) | 0.25 | 0.50 | 7 | +5 | 1 |"
    assert lines[7] == "| qcdq 4/4 | 0 | 0.2400 | no / kernel |  |  |  |  |  |"
    fields = json.loads(json.dumps(dataclasses.asdict(made_up())))
    assert table(Result.of(fields)) == "\n".join(lines)


def test_a_model_that_cannot_be_had_fails_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(load, "run", lambda path, work: made_up())
    assert main(["resnet19", str(model)]) == 1
    assert "resnet19: no such file" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--table"])
