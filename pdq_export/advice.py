"""What can help where a result is bad, given what was used: more bits cannot where all have 8 already."""

import dataclasses
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from pdq_export.config.method import PRESETS, CalibrationOptions, choose_options
from pdq_export.errors import counted, percent
from pdq_export.spec import CARRIER_BITS, BitWidths, Point, Role

_REDUCED_BITS = 7  # of weights that get them for the runtime's sake
_FEW_IMAGES = 256  # as many as the fastest preset takes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Remedy:
    """What to try next: ``line``, options of quantize beside those that were given, or words where no option does it.

    ``bytes``: by how much the file grows. ``share``: of what quantization adds to the
    output, the part that this takes away as far as measurements tell, None where they do not. ``why``: what it is for.
    """

    line: str
    bytes: int = 0
    share: float | None = None
    why: str = ""

    @property
    def told(self) -> str:
        """Its cost, and what it does, as people read it."""
        told = [f"{self.bytes:+,} bytes"]
        if self.share is not None:
            told.append(f"about {percent(self.share, 0)} of the error")
        if self.why:
            told.append(self.why)
        return "; ".join(told)

    def __str__(self) -> str:
        """With its cost and what it does."""
        return f"{self.line}  ({self.told})"


@dataclasses.dataclass(frozen=True, kw_only=True)
class HowMade:
    """What is known of how a file was made; of other tools' files nothing is.

    ``settings``: of the run, as a report has them. ``images``: that it was calibrated on, None where that is not known.
    ``free_activations``: whether 8 bits of activations take no more bytes and time than fewer. ``shrinks``: whether
    weights of fewer bits take fewer bytes. ``weight_bits``: what is as good as 8 bits: fewer where 8 saturate.
    ``instead``: what to try in place of bits of single layers, which a budget that was asked for may not have; None
    where none was.
    """

    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    images: int | None = None
    free_activations: bool = False
    shrinks: bool = True
    weight_bits: int = CARRIER_BITS
    instead: tuple[Remedy, ...] | None = None


def can_have_more_bits(points: Iterable[Point]) -> bool:
    """Whether more bits can be asked for: fewer than 8 for an activation, or fewer than 7 for a weight."""
    least = {Role.WEIGHT: _REDUCED_BITS}
    return any(point.bits < least.get(point.role, CARRIER_BITS) for point in points)


def bits_or_float(more_bits: bool) -> str:
    """What to do about layers that lose too much."""
    bits = "use more bits (--bits, or --layer-bits for some layers), or " if more_bits else ""
    return f"{bits}leave the part that loses most in float (--exclude, --exclude-op)"


def remedies(points: Iterable[Point], options: CalibrationOptions) -> str:
    """What to do about a network whose outputs are of no use."""
    method = "" if options.prediction_difference else ", or --method pdq"
    return f"{bits_or_float(can_have_more_bits(points))}, or take more images or steps (--samples, --iters){method}"


def asked_for_fewer_bits(settings: Mapping[str, Any]) -> bool:
    """Whether a run with these settings, as a report has them, asked for fewer than 8 bits anywhere."""
    texts = [settings.get("bits", "8/8"), *(rule.rpartition("=")[2] for rule in settings.get("layer_bits", ()))]
    widths = map(BitWidths.parse, texts)
    return any(min(bits.weight, bits.activation) < CARRIER_BITS for bits in widths)


def with_wide_activations(settings: Mapping[str, Any]) -> str:
    """The options of a run, as a report has its settings, with 8 bits for every activation."""
    options = [f"--bits {_wide(settings.get('bits', '8/8'))}"]
    if BitWidths.parse(first_last := settings.get("first_last", "8/8")).activation < CARRIER_BITS:
        options.append(f"--first-last {_wide(first_last)}")
    for rule in settings.get("layer_bits", ()):
        pattern, _, bits = rule.rpartition("=")
        if BitWidths.parse(bits).activation < CARRIER_BITS:
            options.append(f"--layer-bits {shlex.quote(f'{pattern}={_wide(bits)}')}")
    return " ".join(options)


def _wide(bits: str) -> BitWidths:
    return BitWidths(BitWidths.parse(bits).weight, CARRIER_BITS)


def widen_activations(made: HowMade) -> Remedy | None:
    """Activations of 8 bits, where a run asked for fewer and they cost nothing."""
    if not made.free_activations or not _asked_for_narrow_activations(made.settings):
        return None
    if has_own_bits(made):  # beside which --bits W/A is refused
        return None
    why = "activations of 8 bits: the file has the same size, and onnxruntime computes in bytes anyhow"
    return Remedy(line=with_wide_activations(made.settings), why=why)


def allot_bits(made: HowMade, size: int | None) -> Iterator[Remedy]:
    """Bits that differ, within the bytes of a file whose layers have equal ones; ``size``: of it, where it is known."""
    settings = made.settings
    if not settings or size is None or not made.shrinks:
        return
    if settings.get("layer_bits") or has_own_bits(made) or made.instead is not None:
        return
    bits = BitWidths.parse(settings.get("bits", "8/8"))
    if bits.weight >= _REDUCED_BITS or (bits.activation < CARRIER_BITS and not made.free_activations):
        return
    why = "more bits for the layers that lose most, at most as many bytes; instead of --layer-bits"
    yield Remedy(line=f"--bits auto --max-size {size}", why=why)


def has_own_bits(made: HowMade) -> bool:
    """Whether single tensors have bits that were found within a budget or come from a file."""
    return bool(made.settings.get("tensor_bits"))


def allot_more(made: HowMade, layers: Sequence[Remedy], size: int) -> tuple[Remedy, ...]:
    """Remedies of single ``layers`` for a file of ``size`` bytes whose bits were found within a budget, which has none.

    A budget that is larger by what they take, and the same beside the bits that the file has.
    """
    if not layers:
        return ()
    added = sum(one.bytes for one in layers)
    of_all = "bits found again in what more bits of single layers would take; instead of their budget or file"
    beside = "beside the file's --bits-from, not beside --bits auto, whose budget has no room for it"
    larger = Remedy(line=f"--bits auto --max-size {size + added}", bytes=added, why=of_all)
    told = (dataclasses.replace(one, why=f"{one.why}; {beside}" if one.why else beside) for one in layers)
    return (*([larger] if added > 0 and made.shrinks else []), *told)


def learn_more(made: HowMade) -> Iterator[Remedy]:
    """What costs time in calibration, and no byte: parts of the method that are off, where they are worth most."""
    settings = made.settings
    if not settings:
        return
    method = settings.get("method")
    if method == "nearest":
        yield Remedy(line="--method pdq", why="roundings and scales are learned; nearest learns nothing")
    if settings.get("family") == "depthwise" and not settings.get("equalize_channels", True):
        why = "channels before depthwise layers are brought to one range"
        yield Remedy(line="--set equalize_channels=true", why=why)


def calibrate_more(made: HowMade) -> Iterator[Remedy]:
    """What costs time in calibration, and no byte: more of what there is already."""
    settings, images = made.settings, made.images
    if not settings:
        return
    if images is not None and images < _FEW_IMAGES:
        limited = images >= settings.get("samples", images)
        line = f"--samples {PRESETS['balanced']['samples']}" if limited else "more images in --calib"
        why = f"calibrated on {counted(images, 'image')}; {_FEW_IMAGES} and more are usual"
        yield Remedy(line=line, why=f"{why}{', as far as --calib has more' if limited else ''}")
    bits = BitWidths.parse(settings.get("bits", "8/8"))
    # More steps than those of `fast` win no more than chance does; fewer lose points.
    least = min(bits.weight, bits.activation)
    few, usual = (choose_options(preset=name).for_block(least).iters for name in ("fast", "balanced"))
    taken = {name: settings[name] for name in ("iters", "iters_share") if name in settings}
    steps = CalibrationOptions(**taken).for_block(least).iters
    if settings.get("method") != "nearest" and "iters" in taken and steps < few:
        yield Remedy(line=f"--iters {usual}", why=f"{usual} steps a block, not {steps}")


def _asked_for_narrow_activations(settings: Mapping[str, Any]) -> bool:
    texts = [settings.get("bits", "8/8"), *(rule.rpartition("=")[2] for rule in settings.get("layer_bits", ()))]
    texts.append(settings.get("first_last", "8/8"))
    return any(BitWidths.parse(text).activation < CARRIER_BITS for text in texts)
