"""A file of options and what is given besides: what wins, and where what is wrong is told to stand."""

from pathlib import Path

import pytest

from pdq_export.commands.settle import settle
from pdq_export.config.config import Config, make_config, overrides
from pdq_export.errors import OptionError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "run.toml"


def test_fields_win_over_the_file_and_that_over_defaults(file: Path) -> None:
    file.write_text('[plan]\nbits = "2/4"\nexclude = ["a"]\n[calibration]\niters = 5\n')
    config = settle(file, {"bits": "3/3"})
    assert (config.plan.bits, config.plan.exclude, config.plan.first_last) == ("3/3", ("a",), None)
    assert settle(str(file), {"preset": "paper"}).calibration.preset == "paper"
    assert overrides(settle(file, {"preset": "paper"})) == {"iters": 5}  # given, so it wins over any preset


def test_a_configuration_can_be_given(file: Path) -> None:
    base = make_config({"bits": "2/4", "device": "cpu"})
    assert settle(base, {}) == base
    assert settle(base, {"device": "auto"}) == make_config({"bits": "2/4"})
    assert settle(None, {}) == Config()
    with pytest.raises(OptionError, match="config is dict; expected a Config or the path of a TOML file"):
        settle({"bits": "2/4"}, {})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[plan]\n\nbits = "9/4"\n', "line 3: --bits 9/4: weight bits are 9; expected 2 to 8"),
        ('[plan]\nexclude = [\n  "a",\n  "(",\n]\n', "line 2: --exclude '(': is not a regular expression"),
        ('[plan]\nlayer_bits = ["stem"]\n', "line 2: --layer-bits 'stem': expected REGEX=W/A"),
    ],
)
def test_what_only_the_plan_knows_to_be_wrong_is_told_with_its_line(file: Path, text: str, message: str) -> None:
    file.write_text(text)
    with pytest.raises(OptionError) as caught:
        settle(file, {})
    assert str(caught.value).startswith(f"{file}, {message}")


def test_what_is_wrong_together_or_besides_the_file_is_told_as_it_is(file: Path) -> None:
    file.write_text('[calibration]\nmethod = "nearest"\niters = 5\n')
    with pytest.raises(OptionError, match=r"run\.toml, line 3: iters is given, but it has no effect"):
        settle(file, {})
    with pytest.raises(OptionError, match=r"^iters is given, but it has no effect"):
        settle(file, {"iters": 6})
    file.write_text('[plan]\nbits = "4/4"\n')
    with pytest.raises(OptionError, match=r"^--bits 9/4"):
        settle(file, {"bits": "9/4"})


def test_a_drop_is_nothing_to_inspect_but_stands_in_files_that_quantize_takes(file: Path) -> None:
    with pytest.raises(OptionError, match="inspect measures no accuracy, so that it has no effect; leave it out"):
        settle(None, {"max_drop": 1}, command="inspect")
    file.write_text("[gates]\nmax_drop = 1\n")
    assert settle(file, {}, command="inspect").gates.max_drop == 1
    assert settle(file, {"max_drop": None}, command="inspect").gates.max_drop is None
    assert settle(None, {"max_drop": 2}, command="quantize").gates.max_drop == 2
