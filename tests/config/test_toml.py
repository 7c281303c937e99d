"""Options in a TOML file: what is written is read again, and what is wrong is told with file and line."""

import dataclasses
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdq_export.config.config import Config, flatten, make_config
from pdq_export.config.method import choose_options
from pdq_export.config.option import find_options
from pdq_export.config.toml import read_toml, write_toml
from pdq_export.errors import OptionError


def read(folder: Path, text: str) -> dict[str, Any]:
    path = folder / "run.toml"
    path.write_text(text, encoding="utf-8")
    return dict(read_toml(path).values)


def test_defaults_are_comments_with_all_that_there_is_to_say(tmp_path: Path) -> None:
    text = write_toml({}, head=["for model.onnx"], used=dataclasses.asdict(choose_options()))
    assert text.startswith("# for model.onnx\n\n[plan]\n")
    assert read(tmp_path, text) == {}
    for one in find_options(Config):
        assert f"\n#{one.name} = " in text
        assert one.declared.help in text.replace("\n# ", " ")
        assert all(choice in text for choice in one.declared.choices)
    assert "\n#iters = 200\n" in text
    assert "[N; default: the preset's]" in text


VALUES = {
    "bits": "2/4",
    "layer_bits": (r'^/a\.b"c=4/4', "é☃\x7f\\n=2/2"),
    "wide_residuals": True,
    "opset": 21,
    "seed": 3,
    "lambda_r": 0.1,
    "scale_lr": 1e-05,
    "learn_scales": False,
    "calib": "my 'images'/calib.npz",
    "max_memory": "4GB",
}


@pytest.mark.parametrize("explain", [True, False])
def test_what_is_written_is_read_again(tmp_path: Path, explain: bool) -> None:
    assert read(tmp_path, write_toml(VALUES, explain=explain)) == VALUES


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1))
def test_any_text_is_read_again(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    folder = tmp_path_factory.mktemp("toml")
    written = write_toml({"exclude": tuple(texts)}, explain=False)
    assert written.isascii()
    assert read(folder, written) == {"exclude": tuple(texts)}


def test_what_is_not_unicode_is_no_toml() -> None:
    with pytest.raises(OptionError, match=r"^'\\udcff\.npz': is not Unicode, and TOML cannot say it"):
        write_toml({"calib": "\udcff.npz"})


def test_an_uncommented_line_is_what_was_meant(tmp_path: Path) -> None:
    """Every default that has a value is written so that taking out the # changes nothing."""
    text = write_toml({})
    lines = [line[1:] for line in text.splitlines() if line.startswith("#") and " = " in line and line[1] != " "]
    sections = {one.name: ".".join(one.path) for one in find_options(Config)}
    flat = flatten(make_config({}))
    for line in lines:
        name = line.split(" = ")[0]
        if flat[name] is not None:
            assert read(tmp_path, f"[{sections[name]}]\n{line}\n") == {name: flat[name]}


@pytest.mark.parametrize(
    "text",
    [
        'plan.bits = "2/4"',
        'plan = { bits = "2/4" }',
        '[plan]\n"bits" = "2/4"',
        '[plan]\r\nbits = """2\\\n  /4"""\r\n',
    ],
)
def test_all_ways_of_writing_toml(tmp_path: Path, text: str) -> None:
    assert read(tmp_path, text) == {"bits": "2/4"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[plan]\nbitss = "4/4"\n', "line 2: option 'bitss' is unknown; did you mean bits?"),
        ("# a\n\n[plann]\nx = 1\n", "line 3: section 'plann' is unknown; did you mean plan?"),
        ("[plan]\nmax_sise = '1kB'\n", "line 2: option 'max_sise' is unknown; did you mean max_size, in [search]?"),
        ("[plan]\niters = 3\n", "line 2: iters stands in [plan]; expected it in [calibration]"),
        (
            '# a\nbits = "3/8"\n[layers]\nc = { W = 4 }\n',
            "line 2: these are bits of layers; expected options; give the",
        ),
        ("iters = 3\n", "line 1: iters stands before the first section; expected it in [calibration]"),
        ("# a\n[method]\niters = 3\n", "line 2: method is an option; expected it in [calibration], not as a section"),
        ("[[method]]\niters = 3\n", "line 1: method is an option; expected it in [calibration], not as a section"),
        ("[plan]\nbits = 4\n", "line 2: bits is 4; expected W/A, weight and activation bits, for example 4/4"),
        ("[plan]\n\nexclude = [\n  'a',\n  3,\n]\n", "line 3: exclude is ['a', 3]; expected a list of regular exp"),
        ('x = """\n[plan]\nbits = 3\n"""\n', "line 1: section 'x' is unknown"),
        ('[calibration]\niters = "30"\n', "line 2: iters is '30'; expected a whole number, 0 or more"),
        ("[calibration]\nlambda_r = nan\n", "line 2: lambda_r is nan; expected a number above 0"),
        ("[calibration]\nlearn_scales = 1\n", "line 2: learn_scales is 1; expected true or false"),
        (
            "[file]\ntarget = 'nativ'",
            "line 2: target is 'nativ'; expected one of ort, native, qcdq, qonnx, tensorrt; did you",
        ),
        ("plan = 3\n", "line 1: plan is 3; expected a section [plan]"),
        ("[plan.deeper]\nbits = '4/4'\n", "line 1: option 'deeper' is unknown"),
        ("[run]\ndevice = 2026-01-01\n", "line 2: device is datetime.date(2026, 1, 1); expected auto, cpu"),
        ("plan.first_last = '8/8'\nplan.bits = true\n", "line 2: bits is True; expected W/A"),
    ],
)
def test_what_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(OptionError) as caught:
        read(tmp_path, text)
    assert str(caught.value).startswith(f"{tmp_path / 'run.toml'}, {message}")


def test_long_files_are_read_at_once(tmp_path: Path) -> None:
    """Of a thousand keys in a file of 100 kB, and none is looked for where nothing is wrong."""
    rules = "".join(f"  'layer_{n:05} # \"[ =4/4',\n" for n in range(4000))
    text = f"[plan]\nlayer_bits = [\n{rules}]\n" + "# a note\n\n" * 3000
    begun = time.perf_counter()
    assert len(read(tmp_path, text)["layer_bits"]) == 4000
    with pytest.raises(OptionError, match="line 10004: option 'bitss' is unknown"):
        read(tmp_path, f"{text}bitss = 3\n")
    assert time.perf_counter() - begun < 5


@pytest.mark.parametrize(
    "before",
    [
        'exclude = ["a\u2028b\x85c"]\n\n',
        'exclude = [ # ]\n  \']\', "[\\""]\n',
        'exclude = ["""[\n""" ]\n',
        "exclude = ['a'] # '''\n\n",
        "exclude = ['''\n'''] # [\n",
        "'weights' = 'symmetric'\r\n\r\n",
    ],
)
def test_lines_are_those_of_editors(tmp_path: Path, before: str) -> None:
    with pytest.raises(OptionError, match=r"run\.toml, line 4: bits is 4; expected"):
        read(tmp_path, f"[plan]\n{before}bits = 4\n")


def test_a_mark_of_the_encoding_is_no_error(tmp_path: Path) -> None:
    assert read(tmp_path, "\ufeff[plan]\nbits = '2/4'\n") == {"bits": "2/4"}


def test_a_pipe_is_read(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=("[plan]\nbits = '2/4'\n",))
    writer.start()
    assert read_toml(pipe).values == {"bits": "2/4"}
    writer.join()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"temperature = {10**400}", "line 2: temperature is 1000"),
        (f"seed = 0\n\niters = {'9' * 5000}", "line 4: a number has too many digits; expected one of 64 bits"),
        (f"seed = {2**63}", f"line 2: seed is {2**63}; expected 0 or more, of 64 bits"),
        (f"seed = 0x{'f' * 5000}", "line 2: seed is a number of thousands of digits; expected 0 or more, of 64 bits"),
    ],
)
def test_numbers_that_are_too_large(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(OptionError) as caught:
        read(tmp_path, f"[calibration]\n{text}\n")
    assert str(caught.value).startswith(f"{tmp_path / 'run.toml'}, {message}")
    assert len(str(caught.value)) < 500


def test_what_is_no_toml(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"run\.toml: is not TOML: .*line 2"):
        read(tmp_path, '[plan]\nbits = "4/4\n')
    with pytest.raises(OptionError, match=r"is not TOML"):
        read(tmp_path, f"[plan]\nexclude = {'[' * 100_000}")
    with pytest.raises(OptionError, match=r"no such file; expected a TOML file; pdq-export init MODEL\.onnx writes"):
        read_toml(tmp_path / "missing.toml")
    with pytest.raises(OptionError, match="is a folder"):
        read_toml(tmp_path)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(OptionError, match="is not UTF-8 text"):
        read_toml(tmp_path / "binary")
    (tmp_path / "large").write_bytes(b"#" * 1_000_001)
    with pytest.raises(OptionError, match="is larger than 1 MB"):
        read_toml(tmp_path / "large")
