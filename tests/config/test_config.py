"""One declaration, many uses: a new option appears everywhere, and whatever is given is checked once."""

import dataclasses
import pickle
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from pdq_export.calibrate.memory import parse_size
from pdq_export.cli.options import config_options, given
from pdq_export.config.config import Config, flatten, make_config, nested, options_of, overrides, recorded
from pdq_export.config.method import CalibrationOptions
from pdq_export.config.option import INSPECT, QUANTIZE, find_options, option
from pdq_export.config.search import SearchSection
from pdq_export.config.sections import CalibrationSection, DataSection, PlanSection, PreprocessSection
from pdq_export.config.toml import read_toml, write_toml
from pdq_export.errors import OptionError
from pdq_export.export.runtimes import OLDEST, parse_version
from pdq_export.spec import BitWidths
from pdq_export.targets import target_names

from .toy import ToyConfig


def test_flat_names_map_one_to_one() -> None:
    fields = {"bits": "2/4", "samples": 7, "max_memory": "4GB", "calib": "images", "output": "a.onnx"}
    config = make_config(fields)
    assert {name: flatten(config)[name] for name in fields} == fields
    assert (config.plan.bits, config.run.max_memory, config.data.calib) == ("2/4", "4GB", "images")
    assert overrides(config) == {"samples": 7}
    assert nested(flatten(config)) == config


def test_later_values_win_over_those_before() -> None:
    base = make_config({"bits": "2/4", "iters": 5})
    assert overrides(make_config({"iters": 7}, base=base)) == {"iters": 7}
    assert make_config({"iters": 7}, base=base).plan.bits == "2/4"


def test_what_python_callers_like_to_give() -> None:
    fields = {
        "bits": BitWidths(2, 4),
        "layer_bits": {"a=b": "3/3", "c": BitWidths(8, 8), "d": (4, 2)},
        "first_last": (8, 6),
        "exclude": "x",
        "exclude_op": iter(["Add", "Mul"]),
        "output": Path("out.onnx"),
        "max_memory": 5_000_000_000,
        "lambda_r": 1,
        "iters": "30",
    }
    flat = flatten(make_config(fields))
    assert {name: flat[name] for name in fields} == {
        "bits": "2/4",
        "layer_bits": ("a=b=3/3", "c=8/8", "d=4/2"),
        "first_last": "8/6",
        "exclude": ("x",),
        "exclude_op": ("Add", "Mul"),
        "output": "out.onnx",
        "max_memory": "5000000000",
        "lambda_r": 1.0,
        "iters": 30,
    }
    assert type(flat["lambda_r"]) is float


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"wide_residual": True}, "option 'wide_residual' is unknown; did you mean wide_residuals?"),
        ({"wide_residuals": 1}, "--wide-residuals 1: expected true or false"),
        ({"wide_residuals": "yes"}, "--wide-residuals 'yes': expected true or false"),
        ({"bits": 4}, "--bits 4: expected W/A, weight and activation bits, for example 4/4, or auto"),
        ({"weights": "signed"}, "--weights 'signed': expected asymmetric or symmetric"),
        (
            {"target": "nativ"},
            "--target 'nativ': expected one of ort, native, qcdq, qonnx, tensorrt; did you mean native?",
        ),
        ({"opset": 2.0}, "--opset 2.0: expected a whole number, 13 or more"),
        ({"exclude": [1]}, "--exclude [1]: expected a list of regular expressions"),
        ({"output": "folder/"}, "--output 'folder/': expected the name of a file to write"),
        ({"simulated_images": 0}, "--simulated-images 0: expected 1 or more"),
        ({"device": None}, "--device None: expected auto, cpu, cuda or cuda:N"),
        ({"iters": 2.5}, "--iters 2.5: expected a whole number, 0 or more"),
        ({"warmup": 1.5}, "warmup is 1.5; expected a number from 0 to 1"),
        ({"temperature": 10**30}, f"temperature is {10**30}; expected a number above 0, of 64 bits"),
        (
            {"seed": 10**5000},
            "--seed a number of thousands of digits: expected 0 or more, of 64 bits",
        ),
        ({"lambda_c": float("nan")}, "lambda_c is nan; expected a number above 0"),
    ],
)
def test_what_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError) as caught:
        make_config(fields)
    assert str(caught.value) == message


def test_a_configuration_that_is_built_by_hand_is_checked_as_well() -> None:
    with pytest.raises(OptionError, match="--bits 4: expected W/A"):
        Config(plan=PlanSection(bits=4))  # type: ignore[arg-type]
    with pytest.raises(OptionError, match=r"section plan is str; expected PlanSection; Config\.of takes options"):
        Config(plan="4/4")  # type: ignore[arg-type]


def test_however_a_configuration_is_built_its_values_are_the_same() -> None:
    built = Config(
        plan=PlanSection(exclude="a"),  # type: ignore[arg-type]
        calibration=CalibrationSection(temperature=4),
        data=DataSection(calib=Path("./c.npz")),  # type: ignore[arg-type]
    )
    assert built == Config.of(exclude=["a"], temperature=4.0, calib="c.npz")
    assert type(built.calibration.temperature) is float  # type: ignore[attr-defined]
    assert pickle.loads(pickle.dumps(built)) == built
    assert Config.of() == Config()
    with pytest.raises(OptionError, match="option 'bitss' is unknown; did you mean bits"):
        Config.of(bitss="4/4")


@pytest.mark.parametrize("name", ["calib", "eval", "work_dir", "output", "report"])
def test_no_path_is_empty(name: str) -> None:
    with pytest.raises(OptionError, match=rf"--{name.replace('_', '-')} '': expected the name of a f"):
        Config.of(**{name: ""})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"device": "tpu"}, "--device 'tpu': expected auto, cpu, cuda or cuda:N"),
        ({"device": "cuda:"}, "--device 'cuda:': expected auto"),
        ({"max_memory": "much"}, "--max-memory 'much': expected a size"),
        ({"max_memory": "0.0GB"}, "--max-memory '0.0GB': expected a size"),
        ({"opset": 12}, "--opset 12: expected 13 or more"),
        *(
            ({"runtime": wrong}, r"--runtime .*: expected a version of onnxruntime as text, 1\.15 or newer, such as")
            for wrong in ("1.14", "1.9", "1.5", "0.15", "1", "1.23.x", "v1.23", "newest", "", "1.23.1.2", " 1.23", 1.23)
        ),
    ],
)
def test_what_is_wrong_without_looking_at_anything(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Config.of(**fields)


@pytest.mark.parametrize("text", ["1.15", "1.15.1", "1.23.2", "1.31", "1.100", "2.0"])
def test_versions_of_onnxruntime_are_those_that_exporting_reads(text: str) -> None:
    assert parse_version(Config.of(runtime=text).file.runtime or "") >= OLDEST


@pytest.mark.parametrize("text", ["4GB", "512 mb", "1.5GiB", "0.5k", "100", "7B"])
def test_sizes_are_those_that_calibration_reads(text: str) -> None:
    assert parse_size(Config.of(max_memory=text).run.max_memory or "") > 0


def test_a_command_takes_its_own_options_alone() -> None:
    planned = {*PlanSection.__dataclass_fields__, "target", "runtime", "opset"}
    searched = SearchSection.__dataclass_fields__.keys() - {"bits_to"}  # it writes no file
    read = {"calib", *PreprocessSection.__dataclass_fields__, "device", "max_memory", "work_dir"}  # for --bits auto
    found = {*CalibrationSection.__dataclass_fields__, "max_drop"}
    assert set(options_of(command=INSPECT)) == planned | searched | read | found
    with pytest.raises(OptionError, match="'report' is unknown"):
        make_config({"report": "a.json"}, command=INSPECT)


def test_every_number_of_the_method_can_be_given() -> None:
    given = set(options_of()) & set(CalibrationOptions.__dataclass_fields__)
    assert given == set(CalibrationOptions.__dataclass_fields__)


def test_the_targets_are_those_that_there_are() -> None:
    assert set(options_of()["target"].declared.choices) == set(target_names())


def test_names_are_unique() -> None:
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Twice(Config):
        bits: str = option("4/4", "Again")

    with pytest.raises(TypeError, match="bits stand in two sections"):
        find_options(Twice)


def test_help_is_one_sentence_without_its_full_stop() -> None:
    for one in find_options(Config):
        assert one.declared.help[0].isupper() or one.name == "rounding_weight", one.name
        assert not one.declared.help.endswith("."), one.name


def test_a_new_option_is_one_field(tmp_path: Path) -> None:
    taken: list[dict[str, Any]] = []

    @click.command()
    @config_options(QUANTIZE, ToyConfig)
    def command(config_file: Path | None, **arguments: Any) -> None:
        taken.append(given(arguments))

    told = CliRunner().invoke(command, ["--help"]).output
    assert "--flavour plain|sweet|salty" in told
    assert "What it tastes of. [default: plain]" in " ".join(told.split())
    assert CliRunner().invoke(command, ["--flavour", "sweet"]).exit_code == 0
    assert taken == [{"flavour": "sweet"}]

    config = make_config({"flavour": "sweet", "bits": "2/2"}, kind=ToyConfig)
    assert config.toy.flavour == "sweet"
    with pytest.raises(OptionError, match=r"--flavour 'swet': expected one of plain, sweet, salty; did you mean sweet"):
        make_config({"flavour": "swet"}, kind=ToyConfig)
    assert recorded(config) == {"flavour": "sweet", "bits": "2/2"}

    text = write_toml({"flavour": "sweet"}, config=ToyConfig)
    expected = '[toy]\n\n# What it tastes of.  [plain|sweet|salty; default: plain]\nflavour = "sweet"\n'
    assert expected in text
    (tmp_path / "toy.toml").write_text(text)
    assert read_toml(tmp_path / "toy.toml", config=ToyConfig).values == {"flavour": "sweet"}
