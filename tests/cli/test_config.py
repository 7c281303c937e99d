"""Files of options on the command line: `--config`, `init` and `show-config`."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from click.testing import Result

from pdq_export import calib_data
from pdq_export.config.config import options_of
from pdq_export.config.record import ASKED, MADE_BY, SETTLED
from pdq_export.config.toml import read_toml

from .fakes import FakePipeline

Run = Callable[..., Result]
EMBEDDED = calib_data.path("fashion_resnet.onnx")


def test_the_command_line_wins_over_the_file(run: Run, pipeline: FakePipeline, folder: Path) -> None:
    (folder / "run.toml").write_text(
        '[plan]\nbits = "2/4"\nexclude = ["a"]\nwide_residuals = true\nreduce_range = true\n'
        '[file]\noutput = "out.onnx"\n[calibration]\nmethod = "qdrop"\niters = 5\n[data]\ncalib = "images.npy"\n'
    )
    result = run("quantize", "model.onnx", "--config", "run.toml", "--iters", "7", "--no-wide-residuals", "-q")
    assert result.exit_code == 0, result.output
    (call,) = pipeline.calls
    assert (call["bits"], call["exclude"], call["output"], call["calib"]) == ("2/4", ("a",), "out.onnx", "images.npy")
    assert (call["method"], call["options"]) == ("qdrop", {"iters": 7})
    assert (call["wide_residuals"], call["reduce_range"]) == (False, True)


def test_what_a_file_gives_can_be_unset(run: Run, pipeline: FakePipeline, folder: Path) -> None:
    (folder / "run.toml").write_text(
        '[plan]\nexclude = ["a"]\nlayer_bits = ["b=2/2"]\nbits = "2/4"\n'
        '[calibration]\niters = 5\ntemperature = 2\n[data]\ncalib = "images.npy"\n[run]\nmax_memory = "4GB"\n'
    )
    names = ["exclude", "layer-bits", "--iters", "temperature", "max_memory"]
    given = [text for name in names for text in ("--unset", name)]
    result = run("quantize", "model.onnx", "--config", "run.toml", "-q", *given)
    assert result.exit_code == 0, result.output
    (call,) = pipeline.calls
    assert (call["exclude"], call["layer_bits"], call["options"], call["max_memory"]) == ((), (), {}, None)
    assert call["bits"] == "2/4"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--unset", "bitss"], "--unset 'bitss': 'bitss' is unknown; did you mean bits or bits_to or avg_bits?"),
        (["--unset", "bits", "--bits", "2/4"], "--unset bits: --bits is given as well; expected one of them"),
        (["--unset", "warmup", "--set", "warmup=0"], "--set 'warmup=0': warmup is set twice"),
        (["--set", "bits=2/2"], "--set 'bits=2/2': bits is no number of the method; expected --bits"),
        (["--config", ""], "--config '': expected the name of a TOML file"),
        (["--calib", ""], "--calib '': expected the name of a file or folder of images"),
        (["--eval", ""], "--eval '': expected the name of a file or folder of images"),
        (["--work-dir", ""], "--work-dir '': expected the name of a folder"),
        (["-o", ""], "--output '': expected the name of a file to write"),
        (["--report", ""], "--report '': expected the name of a file to write"),
    ],
)
def test_what_is_wrong_on_the_command_line(run: Run, pipeline: FakePipeline, args: list[str], message: str) -> None:
    result = run("quantize", "model.onnx", *args)
    assert (result.exit_code, result.stdout, pipeline.calls) == (2, "", [])
    assert message in result.stderr


@pytest.mark.parametrize("command", ["quantize", "inspect"])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[run]\ndevice = 'tpu'\n", "line 2: device is 'tpu'; expected auto, cpu, cuda or cuda:N"),
        ("[run]\nmax_memory = 'much'\n", "line 2: max_memory is 'much'; expected a size"),
        ("[file]\nopset = 12\n", "line 2: opset is 12; expected 13 or more"),
    ],
)
def test_what_is_wrong_whatever_the_command(run: Run, folder: Path, command: str, text: str, message: str) -> None:
    (folder / "run.toml").write_text(text)
    result = run(command, EMBEDDED, "--config", "run.toml")
    assert result.exit_code == 2
    assert f"run.toml, {message}" in result.stderr


@pytest.mark.parametrize("args", [["init", EMBEDDED, "-o", "a" * 300], ["example", "a" * 300]])
def test_names_that_no_file_can_have(run: Run, args: list[str | Path]) -> None:
    result = run(*args)
    assert result.exit_code == 2
    assert "a: cannot be " in result.stderr or "calib_data: cannot be created" in result.stderr


def test_no_result_is_lost_to_a_terminal(tmp_path: Path) -> None:
    name = "k\u00e4se\u2603.toml"
    code = "import sys; from pdq_export.cli.app import main; sys.argv[0] = 'pdq-export'; main()"
    command = [sys.executable, "-c", code, "init", str(EMBEDDED), "-o", name]
    env = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("wrote 'k\\xe4se\\u2603.toml'; edit it")
    assert (tmp_path / name).exists()


def test_init_quotes_for_the_shell(run: Run, folder: Path) -> None:
    name = "it's $HOME\nx = 1\n.onnx"
    (folder / name).write_bytes(Path(EMBEDDED).read_bytes())
    assert run("init", name, "-o", "out.toml").exit_code == 0
    text = (folder / "out.toml").read_text()
    assert """#   pdq-export quantize 'it'"'"'s $HOME\\nx = 1\\n.onnx' --config THIS_FILE\n""" in text
    assert read_toml(folder / "out.toml").values == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[plan]\nbitss = 4\n", "run.toml, line 2: option 'bitss' is unknown; did you mean bits?"),
        ('[plan]\n\nbits = "9/4"\n', "run.toml, line 3: --bits 9/4: weight bits are 9"),
        ('[data]\ncalib = "missing.npy"\n', "missing.npy: no such file or folder"),
    ],
)
def test_what_is_wrong_in_a_file(run: Run, pipeline: FakePipeline, folder: Path, text: str, message: str) -> None:
    (folder / "run.toml").write_text(text)
    result = run("quantize", "model.onnx", "--config", "run.toml")
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert pipeline.calls == []


def test_inspect_takes_the_same_file(run: Run, folder: Path) -> None:
    (folder / "run.toml").write_text('[plan]\nbits = "2/4"\n[calibration]\niters = 5\n[file]\nopset = 21\n')
    result = run("inspect", EMBEDDED, "--config", "run.toml", "--json", "--bits", "3/4")
    assert result.exit_code == 0, result.output
    settings = json.loads(result.stdout)["settings"]
    assert (settings["bits"], settings["opset"]) == ("3/4", 17)  # the opset of the model


def test_init_writes_every_option_explained(run: Run, folder: Path) -> None:
    result = run("init", EMBEDDED)
    assert result.exit_code == 0, result.output
    written = folder / "fashion_resnet.toml"
    assert result.stdout.startswith("wrote fashion_resnet.toml; edit it, then: pdq-export quantize ")
    text = written.read_text(encoding="utf-8")
    assert 'inputs: "image"; outputs: "logits"' in text
    assert all(f"\n#{name} = " in text and one.declared.help[:40] in text for name, one in options_of().items())
    assert read_toml(written).values == {}
    before = {path.name for path in folder.iterdir()}
    again = run("init", EMBEDDED)
    assert (again.exit_code, again.stdout) == (2, "")
    assert "fashion_resnet.toml: exists already; choose another name with --output, or remove it" in again.stderr
    assert written.read_text(encoding="utf-8") == text
    assert run("init", EMBEDDED, "-o", "other.toml").exit_code == 0
    assert {path.name for path in folder.iterdir()} == {*before, "other.toml"}


def test_init_is_for_models(run: Run, folder: Path) -> None:
    result = run("init", "model.onnx")
    assert result.exit_code == 2
    assert "model.onnx: " in result.stderr
    assert not (folder / "model.toml").exists()


def with_metadata(path: Path, **entries: str) -> None:
    model = onnx.load(EMBEDDED)
    for key, value in entries.items():
        model.metadata_props.add(key=key, value=value)
    onnx.save(model, path)


def test_show_config_prints_what_init_would_take(run: Run, folder: Path) -> None:
    strange = "a\x1b[2J\u202e\xa0\n'\"\\"
    asked = {"bits": "2/4", "exclude": [strange], "calib": "images/calib.npz"}
    made_by = {"model": {"name": strange}, "versions": {"torch": "2.0"}, "threads": 3}
    entries = {ASKED: json.dumps(asked), SETTLED: json.dumps({"iters": 200}), MADE_BY: json.dumps(made_by)}
    with_metadata(folder / "q.onnx", **entries)
    result = run("show-config", "q.onnx")
    assert result.exit_code == 0, result.output
    assert result.stdout.isprintable() or set(filter(lambda c: not c.isprintable(), result.stdout)) == {"\n"}
    (folder / "shown.toml").write_text(result.stdout, encoding="utf-8")
    assert read_toml(folder / "shown.toml").values == {**asked, "exclude": (strange,)}
    assert "\n#iters = 200\n" in result.stdout
    assert f"\n#opset = {onnx.load(EMBEDDED).opset_import[0].version}\n" in result.stdout
    for name in ("simulated_images", "output", "device", "max_memory", "eval", "overwrite", "work_dir"):
        assert f"{name} = " not in result.stdout
    assert '# versions: {"torch": "2.0"}' in result.stdout
    assert "# threads: 3" in result.stdout


@pytest.mark.parametrize("key", [ASKED, SETTLED, MADE_BY])
@pytest.mark.parametrize("depth", [100, 900, 980, 100_000])
def test_show_config_of_deeply_nested_metadata(run: Run, folder: Path, key: str, depth: int) -> None:
    with_metadata(folder / "q.onnx", **{ASKED: "{}", key: '{"model": ' + "[" * depth + "]" * depth + "}"})
    result = run("show-config", "q.onnx")
    assert result.exit_code in (0, 2)
    assert result.exit_code == 0 or len(result.stderr.splitlines()) == 1


def test_show_config_of_a_file_that_says_nothing(run: Run, folder: Path) -> None:
    result = run("show-config", EMBEDDED)
    assert (result.exit_code, result.stdout) == (2, "")
    assert len(result.stderr.splitlines()) == 1
    assert "says nothing of its making" in result.stderr
