"""Targets: what a file is for. Everything that differs between them is said here, once for each.

A new one is a `Target` with its layout, registered; the stages, commands and checks ask it.
"""

import dataclasses
from collections.abc import Callable, Mapping

import onnx

from pdq_export.config.sections import WEIGHTS
from pdq_export.errors import OptionError
from pdq_export.export import Layout, Packing, export_model, native, ort, qcdq, qonnx, required_opset, tensorrt
from pdq_export.graph.lookup import GraphIndex
from pdq_export.plan import PlanOptions, make_plan, passes
from pdq_export.plan.floating import FloatNode, find_floating, find_left_out
from pdq_export.plan.magnitudes import check_magnitudes
from pdq_export.plan.passes import tensorrt as pairs_for_tensorrt
from pdq_export.plan.planned import Pass, Planned
from pdq_export.spec import MAX_BITS, MIN_BITS, Plan, QuantizedTensors
from pdq_export.validate import Batch, Outputs, check_runs_qonnx, check_runs_quantized


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """What a quantized file is for.

    ``layout``: how files are written. ``rules``: passes over the plan, before those that users ask for. ``weights``:
    the kinds of weights that it takes, the first by default. ``fewest_bits``: of any tensor; ``because``: why that is
    more than 2, for messages. ``integer_bias``: whether biases are rounded to INT32. ``find_floating``: the nodes that
    compute in float, as far as that is known here.

    ``check_runs``: loads a file, given as bytes, in the runtime that checks it, and runs a batch if there is one;
    raises ValidationError where that fails. It may give the outputs, to be held against the simulation. Before
    calibration it gets a file with placeholders, and afterwards the written one where onnxruntime does not measure
    that. ``in_onnxruntime``: whether onnxruntime runs the files.
    Where it does, kernels are counted and outputs measured in it; else inspections and reports have no kernels, and
    figures of the simulation alone. ``free_activations``: whether 8 bits of activations take no more bytes and time
    than fewer, where the files run.
    """

    name: str
    layout: Layout
    rules: tuple[Pass, ...] = ()
    weights: tuple[str, ...] = WEIGHTS
    fewest_bits: int = MIN_BITS
    because: str = ""
    integer_bias: bool = True
    find_floating: Callable[[GraphIndex, Plan], tuple[FloatNode, ...]] = find_floating
    check_runs: Callable[[bytes, Batch | None], Outputs | None] = check_runs_quantized
    in_onnxruntime: bool = True
    free_activations: bool = False

    @property
    def convertible(self) -> bool:
        """Whether a finished file can become one of another target that is: all these calibrate the same plan."""
        return not self.rules and self.integer_bias and self.weights == WEIGHTS and self.fewest_bits == MIN_BITS

    def settle(self, options: PlanOptions) -> PlanOptions:
        """What was asked for, with what the target decides. Raises OptionError for weights that it does not take."""
        asked = options.section.weights
        if asked is None:
            settled = dataclasses.replace(options.section, weights=self.weights[0])
            return dataclasses.replace(options, section=settled)
        if asked not in self.weights:
            raise OptionError(
                f"--weights {asked}: --target {self.name} takes {self.weights[0]} weights only; leave the option out"
            )
        return options

    def check_runtime(self, runtime: str | None) -> None:
        """Raise OptionError for the version of an onnxruntime where files are for another runtime."""
        if runtime is not None and not self.layout.for_onnxruntime:
            others = ", ".join(other.name for other in _TARGETS.values() if other.layout.for_onnxruntime)
            raise OptionError(
                f"--runtime {runtime}: is a version of onnxruntime, and --target {self.name} is for another runtime; "
                f"leave the option out, or choose another --target: {others}"
            )

    def plan(
        self, model: onnx.ModelProto | GraphIndex, options: PlanOptions, unsupported: Mapping[str, str] | None = None
    ) -> Planned:
        """Plan a prepared model, given with or without its index, for this target; ``unsupported`` as in `make_plan`.

        Raises ModelError or OptionError where the model cannot be planned as asked, or not for this target.
        """
        options, index = self.settle(options), GraphIndex.of(model)
        plan = make_plan(index, options, unsupported, integer_bias=self.integer_bias)
        planned = passes.run(Planned.of(index, plan, options), (*self.rules, self._checked))
        check_magnitudes(planned.index, planned.plan)
        return self._checked(planned)  # a pass may have narrowed what was asked for

    def required_opset(self, plan: Plan, max_opset: int | None = None, packing: Packing = Packing.BYTES) -> int:
        """As `pdq_export.export.required_opset`, for the target's layout."""
        return required_opset(plan, self.layout, max_opset, packing)

    def export(
        self,
        model: onnx.ModelProto,
        plan: Plan,
        tensors: QuantizedTensors,
        *,
        metadata: Mapping[str, str],
        own_opset: int | None = None,
        max_opset: int | None = None,
        packing: Packing = Packing.BYTES,
        runtime: str | None = None,
    ) -> onnx.ModelProto:
        """Write the quantized model; arguments, errors and result as in `pdq_export.export.export_model`."""
        return export_model(
            model,
            plan,
            tensors,
            layout=self.layout,
            metadata=metadata,
            convertible=self.convertible,
            own_opset=own_opset,
            max_opset=max_opset,
            packing=packing,
            runtime=runtime,
        )

    def _checked(self, planned: Planned) -> Planned:
        """The same. Raises OptionError for a tensor of fewer bits than the target has."""
        for point in planned.plan.points.values():
            if point.bits < self.fewest_bits:
                expected = f"{self.fewest_bits} {'throughout' if self.fewest_bits == MAX_BITS else 'or more'}"
                others = ", ".join(other.name for other in _TARGETS.values() if other.fewest_bits <= point.bits)
                raise OptionError(
                    f"--target {self.name}: tensor {point.tensor!r} is to have {point.bits} bits; expected {expected}, "
                    f"as {self.because}; use --bits {self.fewest_bits}/{self.fewest_bits}, leave the layer in float "
                    f"with --exclude, or choose another --target: {others}"
                )
        return planned


_TARGETS: dict[str, Target] = {}


def register_target(target: Target) -> Target:
    """Add a target. Raises ValueError where its name is taken."""
    if target.name in _TARGETS:
        raise ValueError(f"target {target.name!r} is registered twice")
    _TARGETS[target.name] = target
    return target


def target_names() -> tuple[str, ...]:
    """The known targets, sorted."""
    return tuple(sorted(_TARGETS))


def find_target(name: str) -> Target:
    """The target of that name. Raises OptionError for an unknown one."""
    if name not in _TARGETS:
        raise OptionError(f"--target {name!r}: unknown; expected one of {', '.join(target_names())}")
    return _TARGETS[name]


register_target(Target(name="ort", layout=ort.LAYOUT, free_activations=True))
register_target(Target(name="native", layout=native.LAYOUT))
register_target(Target(name="qcdq", layout=qcdq.LAYOUT, free_activations=True))
register_target(Target(name="qonnx", layout=qonnx.LAYOUT, check_runs=check_runs_qonnx, in_onnxruntime=False))
register_target(
    Target(
        name="tensorrt",
        layout=tensorrt.LAYOUT,
        rules=(pairs_for_tensorrt.run,),
        weights=("symmetric",),
        fewest_bits=MAX_BITS,
        because="TensorRT has INT8 convolutions only",
        integer_bias=False,
        find_floating=find_left_out,  # its builder decides on the rest
    )
)
