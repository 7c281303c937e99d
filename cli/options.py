"""Options that several commands share: what is to be quantized to what, and for whom."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])

_OPTIONS = (
    click.option(
        "--bits", default="4/4", metavar="W/A", help="Bits of weights and activations, 2 to 8.  [default: 4/4]"
    ),
    click.option(
        "--layer-bits",
        multiple=True,
        metavar="REGEX=W/A",
        help="Other bits for layers whose node name or module matches; again for more, the last that matches counts.",
    ),
    click.option(
        "--exclude",
        multiple=True,
        metavar="REGEX",
        help="Leave layers and other nodes whose name or module matches in float; again for more.",
    ),
    click.option(
        "--exclude-op",
        multiple=True,
        metavar="TYPE",
        help="Leave all nodes of an operator in float, for example Add; again for more.",
    ),
    click.option(
        "--first-last",
        default="8/8",
        metavar="W/A",
        help="Bits of the first and last layers' weights and the last layers' input.  [default: 8/8]",
    ),
    click.option(
        "--weights",
        metavar="asymmetric|symmetric",
        help="Symmetric weights have zero_point 0 and lose accuracy.  [default: asymmetric; symmetric for tensorrt]",
    ),
    click.option(
        "--wide-residuals",
        is_flag=True,
        help="Keep 8 bits in residual connections; layers read A bits of them. Not as in the paper; for A of 2 or 3.",
    ),
    click.option(
        "--reduce-range",
        is_flag=True,
        help="Weights of 7 bits where wider ones saturate on x86 processors without VNNI: layers with 8-bit inputs, "
        "at 4/4 the first and the last.",
    ),
    click.option(
        "--target",
        default="ort",
        metavar="ort|native|qcdq|tensorrt",
        help="Layout of the file: ort runs as integers in ONNX Runtime; native has INT4 and INT2 pairs, for compilers; "
        "qcdq has INT8 and Clip, for older runtimes; tensorrt is symmetric, 8/8 only.  [default: ort]",
    ),
    click.option(
        "--opset",
        type=int,
        metavar="N",
        help="Write no newer opset than N, for older runtimes.  [default: what the layout needs]",
    ),
)


def plan_options(command: Command) -> Command:
    """Give a command the options of the plan and the layout; they arrive under the names of `pdq_export.quantize`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def check_plan_options(arguments: Mapping[str, Any]) -> None:
    """Raise OptionError for what is wrong whatever the model is."""
    from pdq_export.plan.options import PlanOptions
    from pdq_export.targets import find_target

    names = (
        *("bits", "layer_bits", "exclude", "exclude_op", "first_last", "weights"),
        *("wide_residuals", "reduce_range"),
    )
    find_target(arguments["target"]).settle(PlanOptions.of(**{name: arguments[name] for name in names}))
