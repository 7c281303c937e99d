"""What bits are to be found for: budgets and widths, read from the options and checked before any work."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from pdq_export.config.config import Config
from pdq_export.config.option import INSPECT, SENSITIVITY
from pdq_export.config.sections import AUTO
from pdq_export.errors import OptionError
from pdq_export.spec import ALL_BITS, MAX_BITS, MIN_BITS

BUDGETS = ("max_size", "avg_bits", "max_bit_ops")
_UNITS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Budget:
    """What an allotment keeps within; None where nothing is asked.

    ``size``: bytes; ``size_ratio``: of FP32's file. ``avg_weight``, ``avg_activation``: average bits. ``bit_ops``: over
    those of 8/8. ``drop``: points of top-1, where nothing else is asked. ``weights``, ``activations``: bits to choose
    from.
    """

    size: int | None = None
    size_ratio: float | None = None
    avg_weight: float | None = None
    avg_activation: float | None = None
    bit_ops: float | None = None
    drop: float | None = None
    weights: tuple[int, ...] = ALL_BITS
    activations: tuple[int, ...] = ALL_BITS

    @property
    def counts_activations(self) -> bool:
        """Whether bits of activations cost anything."""
        return self.bit_ops is not None or self.avg_activation is not None

    def bytes(self, original: int) -> int | None:
        """The most bytes that the file may have, beside an FP32 file of ``original`` bytes."""
        return self.size if self.size_ratio is None else int(self.size_ratio * original)

    def raised(self, factor: float) -> "Budget | None":
        """With ``factor`` times the averages and bit operations, as far as there are more.

        None where bytes or a goal are asked for, or nothing is left to raise.
        """
        if self.size is not None or self.size_ratio is not None or self.drop is not None:
            return None
        weight, activation, ops = (
            None if value is None else max(value, float(f"{min(factor * value, most):.3g}"))
            for value, most in ((self.avg_weight, MAX_BITS), (self.avg_activation, MAX_BITS), (self.bit_ops, 1))
        )
        larger = dataclasses.replace(self, avg_weight=weight, avg_activation=activation, bit_ops=ops)
        return None if larger == self else larger

    def told(self) -> str:
        """The budgets as options."""
        average = None if self.avg_weight is None else f"{self.avg_weight:g}"
        if self.avg_activation is not None:
            average = f"{average}/{self.avg_activation:g}"
        size = self.size if self.size_ratio is None else f"{self.size_ratio:g}"
        asked = {"--max-size": size, "--avg-bits": average, "--max-bit-ops": self.bit_ops, "--max-drop": self.drop}
        return " ".join(
            f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in asked.items()
            if value is not None
        )


LEAST_DROP = 0.05  # points: a little more than one of the most images that are held back


def check_search(config: Config, *, command: str, fewest_bits: int, target: str, shrinks: bool) -> None:
    """Raise OptionError for options of a search that do not go together, or not with the ``command``.

    ``fewest_bits``: that the ``target`` has; ``shrinks``: whether its files do with fewer bits.
    """
    search, auto = config.search, config.plan.bits == AUTO
    given = [name for name in BUDGETS if getattr(search, name) is not None]
    if auto and search.bits_from is not None:
        raise OptionError(f"--bits-from {search.bits_from}: has the bits that --bits auto would find; give one of them")
    if search.bits_from is not None and config.plan.bits != type(config.plan)().bits:
        raise OptionError(
            f"--bits {config.plan.bits}: --bits-from {search.bits_from} says the bits of all layers, in its first line "
            "of those that it does not name; leave --bits out, or change the file"
        )
    if command == SENSITIVITY:  # which has widths to try, and finds no bits
        if not tried_widths(config, fewest_bits=fewest_bits):
            raise _none_allowed(config, fewest_bits, target)
        return
    if not auto:
        if given or search.allowed_bits is not None:
            option = _flag((given or ["allowed_bits"])[0])
            judged = option == "--max-size" and command != INSPECT
            gate = "; a limit on the file's size is --max-size-ratio" if judged else ""
            raise OptionError(f"{option} {getattr(search, (given or ['allowed_bits'])[0])}: is for --bits auto{gate}")
        return
    if fewest_bits == MAX_BITS:
        raise OptionError(
            f"--bits auto: --target {target} has {MAX_BITS} bits throughout; expected a target with a choice; use "
            "--bits 8/8, or another --target"
        )
    if not given and config.gates.max_drop is None:
        of_size = "--max-size 0.12 (of FP32's size, or bytes), " if shrinks else ""
        of_drop = ", or --max-drop 1 (points of top-1: the smallest file that keeps it)" if shrinks else ""
        raise OptionError(
            f"--bits auto: there is no budget; expected {of_size}--avg-bits 3.5, --max-bit-ops 0.25 (of 8/8's){of_drop}"
        )
    if not shrinks and (search.max_size is not None or asks_smallest(config)):
        raise OptionError(
            f"--bits auto: in files for --target {target} weights of fewer bits take as many bytes, so that a size is "
            "no budget, and no file is the smallest; expected --avg-bits 3.5 or --max-bit-ops 0.25"
        )
    if asks_smallest(config) and 0 < (config.gates.max_drop or 0) < LEAST_DROP:
        raise OptionError(
            f"--bits auto --max-drop {config.gates.max_drop:g}: of the images that are held back one is more than "
            f"that; expected {LEAST_DROP:g} or more, or 0"
        )
    if command == INSPECT and asks_smallest(config):
        raise OptionError(
            f"--bits auto --max-drop {config.gates.max_drop:g}: which file keeps it is known once files are calibrated "
            "and measured on images held back, which inspect does not do; expected a budget, such as --max-size 0.12, "
            "or quantize"
        )
    if not all(allowed_widths(config, fewest_bits=fewest_bits)):
        raise _none_allowed(config, fewest_bits, target)
    parse_budget(config, fewest_bits=fewest_bits)


def check_inspected(config: Config, given: Mapping[str, Any]) -> None:
    """Raise OptionError where ``given`` options, beside those of a file, ask `inspect` for what no plan tells."""
    if config.plan.bits != AUTO and given.get("max_drop") is not None:
        raise OptionError(
            f"--max-drop {config.gates.max_drop:g}: inspect measures no accuracy, so that it has no effect; leave it "
            "out; quantize and validate judge files by it"
        )


def asks_smallest(config: Config) -> bool:
    """Whether the smallest file is wanted that keeps --max-drop; beside a budget that is a gate alone."""
    given = any(getattr(config.search, name) is not None for name in BUDGETS)
    return config.plan.bits == AUTO and config.gates.max_drop is not None and not given


def parse_budget(config: Config, *, fewest_bits: int) -> Budget:
    """Read the budgets, for a target that has so many bits. Raises OptionError for one that nothing keeps."""
    search = config.search
    size, ratio = _parse_size(search.max_size)
    weight, activation = _averages(search.avg_bits)
    weights, activations = allowed_widths(config, fewest_bits=fewest_bits)
    return Budget(
        size=size,
        size_ratio=ratio,
        avg_weight=weight,
        avg_activation=activation,
        bit_ops=search.max_bit_ops,
        drop=config.gates.max_drop if asks_smallest(config) else None,
        weights=weights,
        activations=activations,
    )


def _parse_size(text: str | None) -> tuple[int | None, float | None]:
    if text is None:
        return None, None
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)(b?)\s*", text, re.ASCII | re.IGNORECASE)
    assert found is not None  # the option's pattern
    number, bare = float(found[1]), not found[2] and not found[4]
    if bare and 0 < number <= 1:
        return None, number
    size = int(number * (1024 if found[3] else 1000) ** _UNITS[found[2].lower()])
    if size < 1 or (bare and not number.is_integer()):
        raise OptionError(
            f"--max-size {text}: expected a share of FP32's size up to 1, for example 0.12, or a size in bytes, for "
            "example 900kB"
        )
    return size, None


def _averages(text: str | None) -> tuple[float | None, float | None]:
    if text is None:
        return None, None
    values = [float(part) for part in text.split("/")]
    for value in values:
        if not MIN_BITS <= value <= MAX_BITS:
            raise OptionError(
                f"--avg-bits {text}: {value:g} is no average of bits; expected {MIN_BITS} to {MAX_BITS}, for example "
                "3.5"
            )
    return values[0], values[1] if len(values) > 1 else None


def allowed_widths(config: Config, *, fewest_bits: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Bits that weights and activations may have, each in order, for a target that has so many or more."""
    parts = (config.search.allowed_bits or "").partition("/")[::2]
    weights, activations = (
        tuple(sorted({width for width in (map(int, part.split(",")) if part else ALL_BITS) if width >= fewest_bits}))
        for part in parts
    )
    return weights, activations


def tried_widths(config: Config, *, fewest_bits: int) -> tuple[int, ...]:
    """Bits to try, of weights and activations alike, in order: all that are allowed by name, or all there are."""
    named = [int(width) for width in re.findall(r"\d", config.search.allowed_bits or "")]
    return tuple(sorted({width for width in named or ALL_BITS if width >= fewest_bits}))


def _none_allowed(config: Config, fewest_bits: int, target: str) -> OptionError:
    return OptionError(
        f"--allowed-bits {config.search.allowed_bits}: --target {target} has none of them; expected {fewest_bits} or "
        "more"
    )


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
