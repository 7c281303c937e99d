"""Whether what is calibrated and written computes what the user's file computes in onnxruntime, as the file is.

Everything that is done to a model before calibration is held against the file, on a few images: the prepared model in
onnxruntime, then the network in torch. Only where they differ is it asked after which step, and whether rounding
explains it.
"""

import dataclasses
import functools
import hashlib
import logging
from collections.abc import Callable, Sequence

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import TensorProto
from torch import fx

from pdq_export.errors import ModelError, ValidationError, percent
from pdq_export.frontend import compute_tensors, import_model
from pdq_export.graph.batch_axis import fixed_batch
from pdq_export.graph.lookup import GraphIndex, describe, opset_version
from pdq_export.graph.noise import noise
from pdq_export.graph.passes import to_float32
from pdq_export.graph.prepare import PreparationStep, PreparedModel, float32_reference, prepare_in_steps
from pdq_export.validate import Session, open_session, with_outputs
from pdq_export.validate.equivalence import (
    BFLOAT16,
    FLOAT16,
    FLOAT32,
    Difference,
    Inputs,
    Outputs,
    Precision,
    explain,
    find_differences,
    join,
)

logger = logging.getLogger(__name__)

BATCHES = 2  # of a model with a fixed batch size
_LARGE_BATCH = 8
_FREEING = "freeing its batch size", "export it with a dynamic batch axis"


@dataclasses.dataclass(frozen=True, kw_only=True)
class UserFile:
    """A model as the user has it: ``name`` of the file, empty where there is none, and ``content``, its bytes.

    ``runnable``: what onnxruntime runs; the same, or where it does not load that, the model in float32 with distinct
    names of nodes. ``precision``: of its numbers. ``opset``: its own.
    """

    name: str
    content: bytes
    runnable: bytes
    precision: Precision
    opset: int

    @classmethod
    def of(cls, model: onnx.ModelProto, name: str = "") -> "UserFile":
        """The file of a model that was loaded. Raises as `open_file`."""
        return open_file(model, name)[0]

    @functools.cached_property
    def sha256(self) -> str:
        """Of its bytes."""
        return hashlib.sha256(self.content).hexdigest()

    def parse(self) -> onnx.ModelProto:
        """The model, made of its bytes again: as a message it takes as much memory once more."""
        return onnx.load_model_from_string(self.content)


def open_file(model: onnx.ModelProto, name: str = "") -> tuple[UserFile, Session]:
    """The file of a model that was loaded, and a session of what onnxruntime runs of it.

    Raises ModelError for operators of a foreign domain, ValidationError where onnxruntime does not load it.
    """
    _, inlined = next(prepare_in_steps(model))
    types = to_float32.other_floats(inlined.model)
    del inlined
    halves = {TensorProto.FLOAT16: FLOAT16, TensorProto.BFLOAT16: BFLOAT16}
    known = [precision for dtype, precision in halves.items() if dtype in types]
    precision = known[-1] if known else FLOAT32
    runnable = content = _serialized(model)
    try:
        session = open_session(content)
    except ValidationError as error:
        runnable, precision = _serialized(float32_reference(model)), FLOAT32
        session = open_session(runnable)
        logger.warning("the model is compared in float32 and with distinct names of nodes: %s", error)
    file = UserFile(name=name, content=content, runnable=runnable, precision=precision, opset=opset_version(model))
    return file, session


@dataclasses.dataclass(frozen=True, kw_only=True)
class Probe:
    """Samples that models are compared on, [n, ...] for each input, run ``batch`` at a time; ``source``: in words."""

    inputs: Inputs
    batch: int
    source: str

    @classmethod
    def of(cls, inputs: Sequence[NDArray[np.float32]], batch: int | None, source: str) -> "Probe":
        """The first two samples, or two batches of a fixed size (one, if large), repeated where there are fewer."""
        size = batch or min(BATCHES, len(inputs[0]))
        count = size if batch is None or batch > _LARGE_BATCH or len(inputs[0]) <= size else BATCHES * size
        taken = tuple(np.take(x, np.arange(count) % len(x), axis=0) for x in inputs)
        return cls(inputs=taken, batch=size, source=source)

    @property
    def batches(self) -> list[Inputs]:
        """The samples, ``batch`` at a time."""
        starts = range(0, len(self.inputs[0]), self.batch)
        return [tuple(x[start : start + self.batch] for x in self.inputs) for start in starts]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reference:
    """What a quantized file is compared with: the user's ``file``, and whether onnxruntime may ``optimize`` it.

    Where the file lacks a tensor that is compared it is None, which stands for the prepared model that was checked.
    """

    file: UserFile | None
    optimize: bool

    def content(self, prepared: onnx.ModelProto) -> bytes:
        """Its bytes; ``prepared``: the model that was checked last."""
        return _serialized(prepared) if self.file is None else self.file.runnable


class Fidelity:
    """Holds models and networks against a user's file on ``probes``.

    ``names``: tensors that are compared, the file's other outputs besides. ``session``: of the file, where one is open.
    Raises ModelError where the file in float32 is another, ValidationError where it does not run on the probes.
    """

    def __init__(
        self, file: UserFile, probes: Sequence[Probe], names: Sequence[str], *, session: Session | None = None
    ) -> None:
        self._file, self._probes, self._names = file, probes, tuple(names)
        self._batches = [batch for probe in probes for batch in probe.batches]
        self._prepared: list[Outputs] = []
        model = file.parse()
        known = [name for name in names if _has(model, name)]
        self._covers_all = len(known) == len(names)
        content = with_outputs(file.runnable, known)
        self._plain = True  # whether sessions are without optimizations: not where the file needs them
        try:
            self._outputs = self._run(content)
        except ValidationError:
            self._plain = False
            self._outputs = self._run(content)
        self._optimize = self._survives_optimization(content, session)
        self._strict, self._expected = content, self._outputs
        if file.precision is not FLOAT32:
            self._strict = with_outputs(_serialized(float32_reference(model)), known)
            self._expected = self._run(self._strict)
            found = find_differences(self._outputs, self._expected, file.precision)
            if (difference := self._certain(found, content, self._outputs, file.precision)) is not None:
                raise self._error(difference, PreparationStep.FLOAT32.what, PreparationStep.FLOAT32.remedy)

    @property
    def probe(self) -> Inputs:
        """The first batch that models are compared on."""
        return self._batches[0]

    @property
    def outputs(self) -> Outputs:
        """What the file gives on the first batch that models are compared on, by name."""
        return self._outputs[0]

    def check_finite(self) -> None:
        """Raise ModelError where an output that is compared is NaN or infinite."""
        for name, value in (item for batch in self._outputs for item in batch.items()):
            if name in self._names and value.dtype.kind == "f" and not np.isfinite(value).all():
                raise ModelError(
                    f"output {name!r}: the model computes NaN or infinity on {self._probes[0].source}; expected "
                    "finite numbers; check how the images are scaled, and export a float16 model in float32"
                )

    def check_model(self, model: onnx.ModelProto, *, what: str = "", remedy: str = "") -> None:
        """Raise ModelError where a prepared model computes something else than the file, naming the step.

        ``what``, ``remedy``: the step that was made since the last check, and how to do without it.
        """
        self._prepared = self._run(with_outputs(_serialized(model), self._names))
        found = find_differences(self._expected, self._prepared, FLOAT32)
        difference = self._certain(found, self._strict, self._expected, FLOAT32)
        if difference is None:
            return
        if not what:
            what, remedy = self._find_step(opset_version(model))
        raise self._error(difference, what, remedy)

    def check_network(self, network: fx.GraphModule, prepared: PreparedModel, core: onnx.ModelProto) -> None:
        """Raise ModelError where the network differs from the model that was checked last, naming the node.

        ``core``: the part of the model that was imported, before its batch size was freed.
        """
        found = [compute_outputs(network, batch, prepared.index, core) for batch in self._batches]
        if differences := find_differences(self._prepared, found, FLOAT32):
            content = with_outputs(_serialized(prepared.model), self._names)
            difference = self._certain(differences, content, self._prepared, FLOAT32)
            if difference is not None:
                raise self._error(difference, *_find_node(prepared.index, core, self._batches[0]))
        for probe in self._probes:
            at = len(probe.batches)
            own, found = found[:at], found[at:]
            self._check_together(network, prepared, core, probe, own)

    def _check_together(
        self,
        network: fx.GraphModule,
        prepared: PreparedModel,
        core: onnx.ModelProto,
        probe: Probe,
        expected: Sequence[Outputs],
    ) -> None:
        """The same for all batches of a probe at once, which a model with a fixed batch size cannot run."""
        if len(expected) < 2:
            return

        def run(inputs: Inputs) -> Outputs:
            return compute_outputs(network, inputs, prepared.index, core)

        together = run(probe.inputs)
        differences = find_differences([join(expected, together)], [together], FLOAT32)
        if not differences:
            return
        # Of the others check_batch has told that images influence each other in the model itself.
        freed = _differ_from_own(prepared.index, core, probe.inputs, together)
        differences = [difference for difference in differences if difference.output in freed]
        difference = _first_certain(differences, run, [probe.inputs], [together], FLOAT32)
        if difference is not None:
            raise self._error(difference, *_FREEING)

    def reference(self) -> "Reference":
        """What a quantized file is compared with."""
        return Reference(
            file=self._file if self._covers_all else None,
            optimize=self._optimize if self._covers_all else not self._plain,
        )

    def _survives_optimization(self, content: bytes, session: Session | None) -> bool:
        """Whether onnxruntime computes the same of the file when it optimizes it, with a warning where it does not."""
        if session is None or content != self._file.runnable:
            session = Session(content, optimize=True)
        optimized = [session.run_by_name(batch) for batch in self._batches]
        found = find_differences(self._outputs, optimized, self._file.precision)
        difference = self._certain(found, content, self._outputs, self._file.precision)
        if difference is not None:
            logger.warning(
                "output %r: with its graph optimizations onnxruntime %s computes something else of the file, %s "
                "off, which is a fault of these; the file is compared as it is written, without them; use it "
                "with ORT_DISABLE_ALL, too",
                difference.output,
                onnxruntime.__version__,
                percent(difference.error),
            )
        return difference is None

    def _find_step(self, opset: int) -> tuple[str, str]:
        """The first step of preparation behind which an output differs, or the model does not run; and its remedy."""
        for step, prepared in prepare_in_steps(self._file.parse(), opset=opset):
            known = [name for name in self._names if _has(prepared.model, name)]
            try:
                outputs = self._run(with_outputs(_serialized(prepared.model), known))
            except ValidationError:
                return step.what, step.remedy
            found = find_differences(self._expected, outputs, FLOAT32)
            if self._certain(found, self._strict, self._expected, FLOAT32) is not None:
                return step.what, step.remedy
        return "planning it", "quantize it without --wide-residuals and other options of the plan"

    def _run(self, content: bytes) -> list[Outputs]:
        session = Session(content, optimize=not self._plain)
        return [session.run_by_name(batch) for batch in self._batches]

    def _certain(
        self, differences: Sequence[Difference], content: bytes, expected: Sequence[Outputs], precision: Precision
    ) -> Difference | None:
        """The first that rounding does not explain; ``content``: the model that computes ``expected``."""
        if not differences:
            return None
        run = Session(content, optimize=not self._plain).run_by_name
        return _first_certain(differences, run, self._batches, expected, precision)

    def _error(self, difference: Difference, what: str, remedy: str) -> ModelError:
        return ModelError(
            f"output {difference.output!r}: {difference.words} after {what}, on {self._probes[0].source}; expected "
            f"what onnxruntime computes of the file; {remedy}"
        )


def as_seen(inputs: Sequence[NDArray[np.float32]], index: GraphIndex) -> list[torch.Tensor]:
    """Samples in float32 as a model sees them, rounded where it declares a float16 input."""
    halves = [index.dtype(name) == np.float16 for name in index.inputs]
    return [
        torch.from_numpy(x.astype(np.float16).astype(np.float32) if half else x)
        for x, half in zip(inputs, halves, strict=True)
    ]


@torch.no_grad()
def compute_outputs(network: fx.GraphModule, inputs: Inputs, index: GraphIndex, core: onnx.ModelProto) -> Outputs:
    """The outputs of ``core`` by name, computed by the network that was imported from it; ``index``: the prepared."""
    results = network(*as_seen(inputs, index))
    return {value.name: y.numpy() for value, y in zip(core.graph.output, results, strict=True)}


def _noise_probe(index: GraphIndex) -> Probe | None:
    """Two random samples for a prepared model; None where `noise` has none, or for inputs without axes or no floats."""
    if any(not index.rank(name) or getattr(index.dtype(name), "kind", "") != "f" for name in index.inputs):
        return None
    arrays = noise(index, np.random.default_rng(0), batch=BATCHES)
    return None if arrays is None else Probe.of(arrays, fixed_batch(index) or None, "random inputs")


def check_on_noise(
    file: UserFile, session: Session, prepared: PreparedModel, core: onnx.ModelProto, network: fx.GraphModule
) -> None:
    """What `Fidelity` can tell without images: raises ModelError where two random samples have other outputs.

    Noise need not be what a model takes: where the file does not run on it, or gives no numbers, nothing is said.
    """
    probe = _noise_probe(prepared.index)
    if probe is None:
        return
    try:
        fidelity = Fidelity(file, [probe], [value.name for value in core.graph.output], session=session)
    except ValidationError:
        return
    fidelity.check_model(prepared.model)
    fidelity.check_network(network, prepared, core)


def _find_node(index: GraphIndex, core: onnx.ModelProto, inputs: Inputs) -> tuple[str, str]:
    """What makes a network differ from its model, and how to do without it: a node, or freeing the batch size."""
    found = compute_tensors(import_model(core), as_seen(inputs, index))
    nodes = {name: node for node in core.graph.node for name in node.output if name in found}
    expected = Session(with_outputs(_serialized(core), nodes), optimize=False).run_by_name(inputs)
    for name, node in nodes.items():
        differences = find_differences([{name: expected[name]}], [found], FLOAT32)
        if any(difference.error > FLOAT32.tolerance for difference in differences):
            return f"importing {describe(node)}", "replace this node by other operators in the exported model"
    return _FREEING


def _differ_from_own(index: GraphIndex, core: onnx.ModelProto, inputs: Inputs, together: Outputs) -> set[str]:
    """The outputs in which the model as it is, imported without freeing its batch size, does not give ``together``."""
    try:
        found = compute_outputs(import_model(core), inputs, index, core)
    except (RuntimeError, IndexError, ValueError):  # it names its batch size somewhere
        return set(together)
    return {difference.output for difference in find_differences([found], [together], FLOAT32)}


def _first_certain(
    differences: Sequence[Difference],
    run: Callable[[Inputs], Outputs],
    batches: Sequence[Inputs],
    expected: Sequence[Outputs],
    precision: Precision,
) -> Difference | None:
    """The first difference that is certain, every one looked at by itself; a warning of those before that may be."""
    for found in differences:
        difference = explain(found, run, batches, expected, precision)
        if difference is None:
            continue
        if difference.certain:
            return difference
        logger.warning(
            "output %r: %s once the model is prepared; tiny changes of the input make such differences, too: what lies "
            "behind a threshold, a sort or the argument of a maximum may be another",
            difference.output,
            difference.words,
        )
    return None


def _has(model: onnx.ModelProto, tensor: str) -> bool:
    """Whether a model has an output of this name, or an inner tensor of its own graph."""
    graph = model.graph
    return any(tensor == value.name for value in graph.output) or any(tensor in node.output for node in graph.node)


def _serialized(model: onnx.ModelProto) -> bytes:
    return bytes(model.SerializeToString(deterministic=True))
