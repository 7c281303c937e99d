"""Every option of a run, once: the command line, TOML files, metadata, reports and the tables in docs derive from this.

Those of searches and gates are in modules of their own. A new option is one field here, or in `CalibrationOptions`
where it is a number of the method, and the code that reads it. Names are unique over all sections: ``--max-memory`` on
the command line, ``max_memory=`` in Python and ``max_memory`` under ``[run]`` in a file are the same.
"""

import dataclasses
import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pdq_export.config.adapt import path, paths, texts
from pdq_export.config.gates import JUDGED
from pdq_export.config.method import FAMILIES, FOLLOWING, METHODS, PRESETS, CalibrationOptions
from pdq_export.config.option import (
    COMPARE,
    INSPECT,
    QUANTIZE,
    SENSITIVITY,
    VALIDATE,
    Option,
    find_options,
    option,
)

SYNTHETIC = "synthetic"  # what `calib` is where images are to be made
WEIGHTS = ("asymmetric", "symmetric")
_WRITTEN = (QUANTIZE, INSPECT)
_BOTH = (*_WRITTEN, SENSITIVITY)
_RUN = (QUANTIZE, INSPECT, SENSITIVITY)  # inspect for --bits auto, which measures

_WIDTHS = "W/A, weight and activation bits, for example 4/4"
AUTO = "auto"


def _rules(value: Any) -> Any:
    """Rules for layers: {REGEX: W/A}, one text REGEX=W/A, or several of them."""
    if isinstance(value, Mapping):
        return tuple(f"{pattern}={_widths(bits)}" for pattern, bits in value.items())
    return texts(value)


def _by_tensor(value: Any) -> Any:
    """Bits of tensors: {TENSOR: BITS}, one text TENSOR=BITS, or several of them."""
    return tuple(f"{name}={bits}" for name, bits in value.items()) if isinstance(value, Mapping) else texts(value)


def _widths(value: Any) -> Any:
    """Bits as text; `BitWidths` writes itself so, and (4, 8) are 4/8."""
    if isinstance(value, tuple | list) and len(value) == 2 and all(type(bits) is int for bits in value):
        return "/".join(map(str, value))
    return str(value) if hasattr(value, "weight") and hasattr(value, "activation") else value


def _plain_path(value: Any) -> Any:
    """A path in one spelling, ``c.npz`` for ``./c.npz``: it is written into the file."""
    if not isinstance(value, str | os.PathLike) or not str(value):
        return value
    plain = str(Path(value))
    # The word asks for no file; what is a path to one stays so.
    return os.path.join(os.curdir, plain) if plain == SYNTHETIC and value != SYNTHETIC else plain


def _size(value: Any) -> Any:
    return str(value) if type(value) is int else value


def _numbers(value: Any) -> Any:
    """Numbers as one text: 0.5,0.25."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, tuple | list) and all(type(item) in (int, float) for item in value):
        return ",".join(map(str, value))
    return value


def _area(value: Any) -> Any:
    """A side, or height and width, as text: 256, 256x224."""
    if isinstance(value, tuple | list) and len(value) == 2 and all(type(side) is int for side in value):
        return "x".join(map(str, value))
    return str(value) if type(value) is int else value


_NUMBER = r"\s*-?\d{1,20}(\.\d{1,20})?(e-?\d{1,3})?\s*"
_NUMBERS = rf"{_NUMBER}(,{_NUMBER}){{0,15}}"
_AREA = r"[1-9]\d{0,4}(x[1-9]\d{0,4})?"
_IN_FILE = "preprocess.toml's"


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanSection:
    """What is quantized to how many bits."""

    bits: str = option(
        "4/4",
        "Bits of weights and activations, 2 to 8 each; auto finds bits for every layer within a budget",
        more="see [Bits by budget](bits.md#bits-by-budget)",
        metavar="W/A|auto",
        expects=f"{_WIDTHS}, or auto",
        adapt=_widths,
        commands=_BOTH,
    )
    first_last: str | None = option(
        None,
        "Bits of the first and last layers' weights, and of the last layers' input",
        metavar="W/A",
        expects=_WIDTHS,
        adapt=_widths,
        unset="8/8; with --bits auto what it finds, 4 or more",
        commands=_BOTH,
    )
    layer_bits: tuple[str, ...] = option(
        (),
        "Other bits for layers whose node name or module matches, the last that matches counts",
        more="see [single layers](bits.md#single-layers-and-a-look-before)",
        metavar="REGEX=W/A",
        expects="a list of rules REGEX=W/A",
        adapt=_rules,
        commands=_BOTH,
    )
    tensor_bits: tuple[str, ...] = option(
        (),
        "Bits of a single weight or activation, by its name in the prepared model, which is how files tell of the bits "
        "that --bits auto or --bits-from gave",
        metavar="TENSOR=BITS",
        expects="a list of TENSOR=BITS",
        adapt=_by_tensor,
        commands=_BOTH,
    )
    exclude: tuple[str, ...] = option(
        (),
        "Leave layers and other nodes whose name or module matches in float",
        more="see [single layers](bits.md#single-layers-and-a-look-before)",
        metavar="REGEX",
        expects="a list of regular expressions",
        adapt=texts,
        commands=_BOTH,
    )
    exclude_op: tuple[str, ...] = option(
        (),
        "Leave all nodes of an operator in float, for example Add",
        metavar="TYPE",
        expects="a list of operators",
        adapt=texts,
        commands=_BOTH,
    )
    weights: str | None = option(
        None,
        "Symmetric weights have zero_point 0, for runtimes that need it, and lose accuracy",
        choices=WEIGHTS,
        unset="asymmetric; symmetric for tensorrt",
        commands=_BOTH,
    )
    wide_residuals: bool = option(
        False,
        "Keep 8 bits in residual connections, of which layers read A bits; not as in the paper, for A of 2 or 3",
        more="see [What is quantized](quantized.md)",
        commands=_BOTH,
    )
    reduce_range: bool = option(
        False,
        "Symmetric weights of 7 bits where 8 bits, or 7 asymmetric ones, saturate on x86 processors without VNNI: "
        "layers with 8-bit inputs, at 4/4 the first and the last",
        more="see [the layout](layout.md)",
        commands=_BOTH,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class FileSection:
    """What is written, and where."""

    target: str = option(
        "ort",
        "Layout of the file: ort runs as integers in ONNX Runtime; native has INT4 and INT2 pairs, for compilers; qcdq "
        "has INT8 and Clip, for older runtimes; qonnx has Quant nodes and weights in FP32, for FINN and hls4ml; "
        "tensorrt is symmetric, 8/8 only",
        more="see [Targets](targets.md)",
        choices=("ort", "native", "qcdq", "qonnx", "tensorrt"),
        commands=_BOTH,
    )
    runtime: str | None = option(
        None,
        "The oldest onnxruntime that has to load the file, which gets the form that takes the least memory there",
        more="what cannot be had in it is refused before calibration; see [Targets](targets.md)",
        metavar="VERSION",
        expects="a version of onnxruntime as text, 1.15 or newer, such as 1.23",
        pattern=r"(1\.(1[5-9]|[2-9]\d|[1-9]\d\d)|([2-9]|[1-9]\d)\.\d{1,3})(\.\d{1,5})?",
        unset="1.15, or as few newer as keep loading within 64 MB more",
        commands=_WRITTEN,
    )
    opset: int | None = option(
        None,
        "Write no newer opset than N, for tools that know no newer one; for onnxruntime say --runtime",
        more="the file's metadata has N, the report the opset that was written",
        least=13,
        unset="what the layout needs",
        commands=_WRITTEN,
    )
    external_data: bool = option(False, "Write the weights to OUT.onnx.data, which is always done for files over 2 GB")
    output: str | None = option(
        None,
        "The file to write",
        more="in Python nothing is written without it",
        metavar="OUT.onnx",
        expects="the name of a file to write",
        writes=True,
        unset="./MODEL-w4a4.onnx, or -w4a4-TARGET",
        short="-o",
        recorded=False,
        adapt=path,
    )
    report: tuple[str, ...] = option(
        (),
        "Write the report, as a page for a browser where the name ends in .html, else as JSON",
        more="the schema of the JSON is documented in `pdq_export/report/report.py`; for the page the file is compared "
        "layer by layer, too, on 64 images",
        metavar="OUT.json|OUT.html",
        expects="the name of a file to write, or a list of them",
        writes=True,
        recorded=False,
        adapt=paths,
        commands=JUDGED,
    )
    overwrite: bool = option(
        False, "Replace the output and the report where they exist", recorded=False, commands=JUDGED
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class MethodSection:
    """How it is calibrated: the budget, the method, and single numbers of it that win over both.

    What is not given of `CalibrationOptions` is chosen by `choose_options`; `CalibrationSection` has a field that may
    be None for each of them.
    """

    preset: str = option(
        "balanced",
        "The budget of images and steps",
        more="see [the method](method.md)",
        choices=tuple(PRESETS),
        commands=_WRITTEN,
    )
    method: str = option(
        "pdq",
        "What is learned, and how: pdq goes beyond PD-Quant, which is pd-quant and grew from the others",
        more="see [the method](method.md#methods)",
        choices=tuple(METHODS),
        commands=_WRITTEN,
    )


def _overriding(one: Option) -> tuple[str, Any, Any]:
    """The field of `CalibrationSection` for one of `CalibrationOptions`: the same, but None where nothing is given."""
    chosen = [what for what, names in _CHOSEN_BY.items() if one.name in names]
    unset = f"the {chosen[0]}'s" if chosen else _written(one.default)
    declared = {**vars(one.declared), "unset": unset, "adapt": functools.partial(_read, one.kind)}
    # Bits are found by what the method makes of them, and a file tells of all numbers, which takes bytes.
    declared["commands"] = tuple(dict.fromkeys((*one.declared.commands, *_WRITTEN)))
    return one.name, one.kind | None, option(None, **declared)


def _written(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


def _read(kind: type, value: Any) -> Any:
    """What a text says, as it comes from ``--set NAME=VALUE``, where it says a value of this kind."""
    if not isinstance(value, str):
        return value
    try:
        return {"true": True, "false": False}[value.lower()] if kind is bool else kind(value)
    except (ValueError, KeyError):
        return value


_BY_PRESET = set().union(*PRESETS.values())
_CHOSEN_BY = {
    "preset": {*(name for name, (follows, _) in FOLLOWING.items() if follows in _BY_PRESET), *_BY_PRESET},
    "network's family": set().union(*FAMILIES.values()),
    "method": set().union(*METHODS.values()),
}
CalibrationSection = dataclasses.make_dataclass(
    "CalibrationSection",
    [_overriding(one) for one in find_options(CalibrationOptions)],
    bases=(MethodSection,),
    frozen=True,
    kw_only=True,
)
CalibrationSection.__module__ = __name__  # where pickle finds it


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataSection:
    """Calibration and evaluation data. Paths are relative to the folder that the command runs in."""

    calib: str | None = option(
        None,
        "Calibration images: .npz, .npy, a folder of images, MODULE:FUNCTION, whose code is run and returns data, or "
        "synthetic: images learned from the model's BatchNormalization",
        more="what is given is written into the file; see [Data from a function](data.md#data-from-a-function) and "
        "[Without data](data.md#without-data)",
        metavar="PATH",
        expects="the name of a file or folder of images, MODULE:FUNCTION, or synthetic",
        is_path=True,
        unset="calib_data/calib.*",
        adapt=_plain_path,
        commands=_RUN,
    )
    eval: str | None = option(
        None,
        "Evaluation images for the report, like --calib",
        metavar="PATH",
        expects="the name of a file or folder of images, or MODULE:FUNCTION",
        is_path=True,
        unset="calib_data/eval.*, where --calib is not given; else the calibration images",
        recorded=False,
        adapt=path,
    )
    no_labels: bool = option(
        False,
        "Leave out the labels that the data have, such as those of a labels.csv that does not fit the model",
        recorded=False,
        commands=(QUANTIZE, VALIDATE),
    )


def _reading(help: str, **declared: Any) -> Any:
    """What is said of images, for commands that read some."""
    return option(None, help, commands=(QUANTIZE, INSPECT, VALIDATE, COMPARE, SENSITIVITY), **declared)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreprocessSection:
    """How images become inputs. What is given here wins over the preprocess.toml of a folder."""

    mean: str | None = _reading(
        "Mean of each channel, in the model's order, of images in folders and of uint8 arrays",
        metavar="X,X,X",
        expects="numbers, one for each channel, for example 0.485,0.456,0.406",
        pattern=_NUMBERS,
        adapt=_numbers,
        unset=f"{_IN_FILE}, or 0",
    )
    std: str | None = _reading(
        "Standard deviation of each channel, like --mean",
        metavar="X,X,X",
        expects="numbers, one for each channel, for example 0.229,0.224,0.225",
        pattern=_NUMBERS,
        adapt=_numbers,
        unset=f"{_IN_FILE}, or 1",
    )
    pixel_range: str | None = _reading(
        "Range of pixels from which the mean is taken, and in which the model takes them without one",
        choices=("0..1", "0..255"),
        unset=f"{_IN_FILE}, or 0..1",
    )
    channel_order: str | None = _reading(
        "Order of channels that the model takes", choices=("RGB", "BGR"), unset=f"{_IN_FILE}, or RGB"
    )
    layout: str | None = _reading(
        "Axes of the model's input",
        choices=("NCHW", "NHWC"),
        unset=f"{_IN_FILE}, or what the model's shape looks like",
    )
    resize: str | None = _reading(
        "Resize images of folders: the shorter side, or exactly HxW",
        metavar="N|HxW",
        expects="the shorter side, or HEIGHTxWIDTH, in pixels",
        pattern=_AREA,
        adapt=_area,
        unset=f"{_IN_FILE}, or none",
    )
    crop: str | None = _reading(
        "Crop images of folders around their centre",
        metavar="N|HxW",
        expects="the side of a square, or HEIGHTxWIDTH, in pixels",
        pattern=_AREA,
        adapt=_area,
        unset=f"{_IN_FILE}, or none",
    )
    crop_fraction: float | None = _reading(
        "Crop that share of images: their shorter side first becomes that of the crop, or of the model, divided by it",
        least=0.01,
        most=1,
        unset=f"{_IN_FILE}, or none",
    )
    letterbox: str | None = _reading(
        "Fit images of folders into HxW as a whole, with a margin around them",
        metavar="N|HxW",
        expects="the side of a square, or HEIGHTxWIDTH, in pixels",
        pattern=_AREA,
        adapt=_area,
        unset=f"{_IN_FILE}, or none",
    )
    padding: int | None = _reading("Grey of that margin", least=0, most=255, unset=f"{_IN_FILE}, or 114")
    interpolation: str | None = _reading(
        "Filter of resizing, Pillow's",
        choices=("nearest", "bilinear", "bicubic", "lanczos", "box"),
        unset=f"{_IN_FILE}, or bilinear",
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunSection:
    """How the run goes about it. Only the device can change what is written, which names the one that was used.

    And whether it was ``deterministic`` there.
    """

    device: str = option(
        "auto",
        "Where to calibrate; auto is a GPU where there is one",
        metavar="auto|cpu|cuda[:n]",
        expects="auto, cpu, cuda or cuda:N",
        pattern=r"auto|cpu|cuda(:\d{1,3})?",
        recorded=False,
        commands=_RUN,
    )
    deterministic: bool = option(
        False,
        "On a GPU, take kernels that give the same bits each time",
        more="slower, and refused where an operator has none; on a CPU they all do",
        recorded=False,
    )
    max_memory: str | None = option(
        None,
        "Keep calibration within SIZE, e.g. 4GB, with temporary files; the result is the same",
        more="block inputs and outputs beyond it go to `$TMPDIR`, which should be on a disk, and calibration can take "
        "ten times as long. A size that a pass or a step alone exceeds is refused, with the smallest that will do",
        metavar="SIZE",
        unset="no limit, but 512 MiB of block inputs and outputs stay in memory",
        expects="a size, for example 4GB, 512MB or 1.5GiB",
        pattern=r"(?i)\s*(?=\S*[1-9])\d{1,30}(\.\d{1,30})?\s*([kmgt]i?)?b?\s*",
        recorded=False,
        commands=_RUN,
        adapt=_size,
    )
    # The simulation takes most of the time of a validation, and a thousand images tell how near onnxruntime is to it.
    simulated_images: int = option(
        1024,
        "Compare the file with its simulation on at most N images, in whole batches, evenly spread; onnxruntime sees "
        "all",
        least=1,
        recorded=False,
    )
    work_dir: str | None = option(
        None,
        "Keep finished blocks in DIR, so that the run can be resumed",
        more="or in `$PDQ_EXPORT_CACHE`; see [Interrupted](resume.md)",
        metavar="DIR",
        unset="the user's cache folder",
        expects="the name of a folder",
        is_path=True,
        recorded=False,
        commands=_RUN,
        adapt=path,
    )
    resume: bool = option(
        False,
        "Take up the blocks that an interrupted run of the same command has finished; the result is the same",
        recorded=False,
    )
