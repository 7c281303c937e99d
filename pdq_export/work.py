"""What every command starts from: the user's file, the prepared model, its plan, the network in torch, and samples."""

import dataclasses
import functools
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import onnx
import torch
from torch import fx, nn

from pdq_export.calibrate import Source
from pdq_export.calibrate.equalization import channel_factors, channel_factors_of_scales, scale_clips
from pdq_export.config.sections import FileSection
from pdq_export.data import Data, ImageSet, InputSpec, KnownLabels, Samples
from pdq_export.errors import ModelError, OptionError, first_few
from pdq_export.export.loading import Loading, choose_loading
from pdq_export.export.runtimes import check_opset
from pdq_export.fidelity import BATCHES, Fidelity, Probe, UserFile, as_seen, open_file
from pdq_export.frontend import check_batch, check_runs, find_batch_blockers, find_unsupported, import_network
from pdq_export.graph.load import check_model, load_model
from pdq_export.graph.lookup import GraphIndex
from pdq_export.graph.passes import equalize, free_batch
from pdq_export.graph.prepare import PreparedModel, at_opset, prepare
from pdq_export.plan import PlanOptions, float_tail, network_family, without_tail
from pdq_export.plan.outputs import separate_outputs
from pdq_export.plan.planned import Planned
from pdq_export.ranks import ALONE, Ranks
from pdq_export.report import ModelInfo
from pdq_export.signature import check_labels, declared_scores, input_specs
from pdq_export.spec import Plan
from pdq_export.targets import Target, find_target
from pdq_export.torch_module import export_module
from pdq_export.validate import Session

logger = logging.getLogger(__name__)

_HELD = 128 * 2**20  # bytes of images that are held as floats
Model = str | Path | onnx.ModelProto | nn.Module


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlannedModel:
    """A user's file and what is planned for it, before there are samples.

    ``original``: the file. ``prepared``: the whole model, tail included, with its index. ``loading``: how its weights
    are packed. ``family``: which of the paper's networks it is like.
    """

    original: UserFile
    prepared: PreparedModel
    plan: Plan
    loading: Loading
    family: str

    @classmethod
    def of(
        cls,
        original: UserFile,
        options: PlanOptions,
        asked: FileSection,
        *,
        told: bool = True,
        heard: set[str] | None = None,
    ) -> Self:
        """Prepare and plan the file's model; ``asked``: what is to be written. Raises ModelError, OptionError.

        ``told``, ``heard``: as in `prepare_and_plan`.
        """
        prepared, plan, loading = prepare_and_plan(
            original.parse(),
            options,
            target=asked.target,
            opset=asked.opset,
            runtime=asked.runtime,
            told=told,
            heard=heard,
        )
        family = network_family(prepared.index, (*plan.layers, *plan.excluded))
        return cls(original=original, prepared=prepared, plan=plan, loading=loading, family=family)

    @property
    def info(self) -> ModelInfo:
        """What is said of the user's file."""
        file = self.original
        return ModelInfo(name=file.name, sha256=file.sha256, size=len(file.content))

    @property
    def index(self) -> GraphIndex:
        """Of the prepared model."""
        return self.prepared.index

    @functools.cached_property
    def core(self) -> GraphIndex:
        """Of the prepared model without the plan's tail: what calibration sees."""
        return GraphIndex(without_tail(self.prepared.model, self.plan.tail)) if self.plan.tail else self.index

    @property
    def compared(self) -> tuple[str, ...]:
        """The tensors in which models are compared: the outputs, or what the tail reads in their place."""
        return self.core.outputs

    @property
    def inputs(self) -> tuple[InputSpec, ...]:
        """What samples have to fit. Raises ModelError for an input that calibration cannot feed."""
        return input_specs(self.index)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work(PlannedModel):
    """A planned model with its network in torch, freed of a fixed batch size, and the samples to run it on."""

    network: fx.GraphModule
    samples: Samples

    @property
    def batch(self) -> int | None:
        """The batch size that the model fixes."""
        return self.inputs[0].shape[0]

    def fidelity(self, session: Session) -> Fidelity:
        """What holds models against the file, on a few samples of calibration and, where they differ, of evaluation.

        ``session``: of the file.
        """
        samples, size = self.samples, BATCHES * (self.batch or 1)
        judged = () if samples.shared == len(samples.judged) else (samples.judged,)
        probes = [
            Probe.of(tuple(data.head(size).inputs()), self.batch, data.source)
            for data in (samples.calibration, *judged)
        ]
        return Fidelity(self.original, probes, self.compared, session=session)


def read_any(model: Model, example_input: Any = None, *, opset: int | None = None) -> tuple[onnx.ModelProto, str]:
    """A model from a path, in memory, or exported from a torch module, checked, and its name. Raises ModelError."""
    if isinstance(model, str | Path):
        return load_model(model), Path(model).name
    if isinstance(model, nn.Module):
        return check_model(export_module(model, example_input, opset=opset)), type(model).__name__
    if isinstance(model, onnx.ModelProto):
        return check_model(model), ""
    raise ModelError(
        f"model is {type(model).__name__}; expected the path of an ONNX file, an onnx.ModelProto or a torch.nn.Module "
        "with example_input"
    )


def open_model(model: Model, example_input: Any = None, *, opset: int | None = None) -> tuple[UserFile, Session]:
    """Load and check a model; the file, and a session of it. Raises ModelError, ValidationError.

    ``example_input`` and ``opset``: of a torch module, see `export_module`.
    """
    return open_file(*read_any(model, example_input, opset=opset))


def prepare_and_plan(
    model: onnx.ModelProto,
    options: PlanOptions,
    *,
    target: str,
    opset: int | None = None,
    runtime: str | None = None,
    told: bool = True,
    heard: set[str] | None = None,
) -> tuple[PreparedModel, Plan, Loading]:
    """Prepare the model at the opset that the layout needs for what is planned, and plan it for the target.

    ``told``: whether users hear what passes have done; ``heard``: what they have been told before, which is not told
    again, and to which the rest is added. Raises ModelError or OptionError where that cannot be done as
    asked.
    """
    chosen = find_target(target)
    prepared = _separated(prepare(model))
    planned = _plan(prepared, options, chosen)
    own = planned.index.opset
    if opset is not None and own > opset:
        raise OptionError(
            f"--opset {opset}: the model's own opset is {own} already; expected {own} or more; export the model with "
            f"opset {opset}"
        )
    if runtime is not None:
        check_opset(own, runtime)
    loading = choose_loading(planned.index, planned.plan, runtime=runtime, max_opset=opset)
    raised, loading = _raised(prepared, planned.plan, loading, chosen)
    if raised is not prepared:
        prepared = raised
        planned = _plan(prepared, options, chosen)
    for level, text in planned.notes if told else ():
        if heard is None or text not in heard:
            logger.log(level, text)
        if heard is not None:
            heard.add(text)
    if planned.model is not prepared.model:  # nodes were added
        prepared = dataclasses.replace(prepared, model=planned.model)
    return prepared, planned.plan, loading


def _raised(prepared: PreparedModel, plan: Plan, loading: Loading, target: Target) -> tuple[PreparedModel, Loading]:
    """The model at the opset that the target wants; without one that is there for types alone, if it cannot be had.

    Raises ModelError for another that cannot be had.
    """
    needed = target.required_opset(plan, loading.max_opset, loading.packing)
    if needed <= prepared.index.opset:
        return prepared, loading
    try:
        return at_opset(prepared, needed), loading
    except ModelError as error:
        portable = loading.in_bytes()
        if not target.layout.packs or portable == loading:
            raise
        logger.warning("weights are packed in bytes, which takes more memory to load: %s", error)
        return _raised(prepared, plan, portable, target)


def _plan(prepared: PreparedModel, options: PlanOptions, target: Target) -> Planned:
    return target.plan(prepared.index, options, _unsupported(prepared.index, options))


def _separated(prepared: PreparedModel) -> PreparedModel:
    return dataclasses.replace(prepared, model=separate_outputs(prepared.model))


def _unsupported(index: GraphIndex, options: PlanOptions) -> dict[str, str]:
    """What calibration cannot compute, by node with the reason: unknown operators, and what mixes up images.

    The latter where the unknown ones are left to the tail; the model is refused for them otherwise.
    """
    freed = free_batch.run(index.model)
    found = {node: error.found for node, error in find_unsupported(freed).items()}
    if not found:
        return find_batch_blockers(freed, index)
    tail = float_tail(index, options, found)
    if not found.keys() <= tail.keys():
        return found
    core = without_tail(index.model, tail)
    return find_batch_blockers(free_batch.run(core), core) | found


def import_planned(planned: PlannedModel) -> fx.GraphModule:
    """The network that calibration sees. Raises ModelError where it cannot be imported, or fixes its batch size."""
    network = import_network(planned.core)
    check_batch(network, planned.core)
    return network


def check_known_labels(planned: PlannedModel, known: KnownLabels | Data | None) -> None:
    """Raise DataError for labels that do not fit what the model declares of its first output, as far as it does."""
    first = planned.index.outputs[0]
    if known is None or known.labels is None or first not in planned.compared:
        return
    if (scores := declared_scores(planned.index.shape(first))) is not None:
        check_labels(first, scores, known)


def begin_work(planned: PlannedModel, network: fx.GraphModule, samples: Samples) -> Work:
    """Everything together, once the network has been seen to take the samples.

    Raises ModelError where it does not run on them, DataError where its first output has no class for a label.
    """
    fields = {field.name: getattr(planned, field.name) for field in dataclasses.fields(planned)}
    work = Work(**fields, network=network, samples=samples)
    found = check_runs(network, as_seen(samples.calibration.head(2).inputs(), work.index))
    outputs = dict(zip(work.compared, found, strict=True))
    first = work.index.outputs[0]
    if samples.judged.labels is not None and first in outputs:
        check_labels(first, outputs[first].numpy(), samples.judged)
    return work


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Streamed:
    """Images that are decoded and normalized as they are asked for: a `Source` of calibration."""

    images: ImageSet
    index: GraphIndex

    dtype = torch.float32

    @property
    def shape(self) -> tuple[int, ...]:
        return len(self.images), *self.images.image_shape

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, chosen: torch.Tensor | slice) -> torch.Tensor:
        numbers = range(len(self))[chosen] if isinstance(chosen, slice) else chosen.tolist()
        (seen,) = as_seen(self.images.take(numbers).inputs(), self.index)
        return seen


def calibration_inputs(work: Work) -> list[torch.Tensor | Source]:
    """What calibration sees, for each input; images that would take much memory as floats are made as needed."""
    images = work.samples.calibration
    if isinstance(images, ImageSet) and images.mean is not None and 4 * math.prod(images.pixels.shape) > _HELD:
        return [_Streamed(images=images, index=work.index)]
    return [*as_seen(images.inputs(), work.index)]


def share_of_inputs(inputs: Sequence[torch.Tensor | Source], ranks: Ranks) -> list[torch.Tensor | Source]:
    """What this process has of what calibration sees; copies, so that the whole can go."""
    if ranks.is_alone:
        return list(inputs)
    return [_share(x, ranks) for x in inputs]


def _share(x: torch.Tensor | Source, ranks: Ranks) -> torch.Tensor | Source:
    numbers = ranks.mine(len(x))
    if isinstance(x, _Streamed):
        return dataclasses.replace(x, images=x.images.take(numbers))
    return x[torch.tensor(numbers)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Equalized:
    """A ``work`` with channels of ``tensors`` in one range.

    ``exact``: a model that computes what its network does; the prepared one may need quantization for that.
    """

    work: Work
    tensors: tuple[str, ...]
    exact: PreparedModel


def find_couples(work: PlannedModel) -> list[equalize.Couple]:
    """Layers whose channels in between can be brought to one range."""
    plan = work.plan
    return equalize.find_couples(work.prepared.model, plan.points, {layer.node for layer in plan.layers})


def equalize_channels(
    work: Work, inputs: Sequence[torch.Tensor | Source], ranks: Ranks = ALONE, *, through_clips: bool = True
) -> Equalized:
    """The same with the channels before depthwise layers in one range.

    ``inputs``: what calibration sees, one tensor for each input; ``ranks``: have a share of the images each.
    ``through_clips``: also where a Clip is before the layer, behind which the prepared model computes something else
    until it is quantized.
    """
    prepared, plan = work.prepared, work.plan
    pairs = [pair for pair in find_couples(work) if pair.bound is None or through_clips]
    tensors = tuple(pair.tensor for pair in pairs)
    if not pairs:
        return Equalized(work=work, tensors=tensors, exact=prepared)
    logger.info("channels of %d tensors are brought to one range: %s", len(tensors), ", ".join(tensors))
    ranged = [pair.tensor for pair in pairs if pair.bound is None]
    clipped = {pair.tensor: plan.points[pair.tensor].qmax for pair in pairs if pair.bound is not None}
    of_clips = channel_factors_of_scales(work.network, clipped, inputs, ranks)
    factors = {**channel_factors(work.network, ranged, inputs, ranks), **of_clips}
    model, statistics = equalize.run(prepared.model, prepared.statistics, pairs, factors)
    changed = PreparedModel(model=model, statistics=statistics)
    network = import_network(without_tail(model, plan.tail))
    scale_clips(network, of_clips)
    exact = PreparedModel(model=equalize.exact(model, pairs, factors), statistics=statistics) if of_clips else changed
    equalized = dataclasses.replace(work, prepared=changed, network=network)
    return Equalized(work=equalized, tensors=tensors, exact=exact)


def check_work(work: Work, fidelity: Fidelity) -> None:
    """Refuse what does not compute what the user's file does, and warn of what stays in float behind the rest."""
    fidelity.check_finite()
    fidelity.check_model(work.prepared.model)
    fidelity.check_network(work.network, work.prepared, work.core.model)
    _tell_tail(work)


def _tell_tail(work: PlannedModel) -> None:
    """Warn of what stays in float behind the quantized part."""
    if work.plan.tail:
        logger.warning(
            "behind the quantized part, %d of the nodes stay in float as they are: %s; calibration and validation "
            "compare %s",
            len(work.plan.tail),
            first_few([f"{node!r} ({reason})" for node, reason in work.plan.tail.items()]),
            " and ".join(map(repr, work.compared)),
        )
