"""Runs a file and the one it was made from side by side and measures: accuracy, agreement, kernels."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from pdq_export.errors import ValidationError
from pdq_export.spec import OutputPart, Place
from pdq_export.validate.compare import (
    Accuracy,
    AccuracyMeter,
    Agreement,
    AgreementMeter,
    Top1Changes,
    Top1Meter,
    same_where_infinite,
)
from pdq_export.validate.deviation import DeviationMeter, Simulate
from pdq_export.validate.kernels import KernelCount
from pdq_export.validate.parts import PartAgreement, PartMeters
from pdq_export.validate.runtime import (
    Batch,
    Session,
    batch_size,
    min_onnxruntime,
    open_counted,
    warn_older,
    with_outputs,
)

Array = NDArray[np.float32]
BATCH_SIZE = 16  # simulation and both sessions hold the activations of a batch
_PAIRS = ("quantized_float", "quantized_simulated", "simulated_float")


Ran = TypeVar("Ran")
# Is told of every batch: what the reference gave, what stands for the quantized model gave, and which samples they are.
Observer = Callable[[Mapping[str, Array], Mapping[str, Array], slice], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Share:
    """What this process runs of a course: the batches of the numbers ``mine``, from its own to that of all, in steps.

    A step is as many as there are processes. ``batches``: these. ``to_first``: takes what one process has found in a
    round over all of them, and gives what all have to the first, in their order, and nothing to the others.
    """

    mine: range
    batches: Callable[[], Iterable[Batch]]
    to_first: Callable[[Any], Sequence[Any]]

    def run(self, run: Callable[[int, Batch], Ran]) -> Iterator[Ran]:
        """On the first process, what ``run`` gives of every batch of all, by number, in order; nothing on others."""
        own, count = iter(self.batches()), self.mine.stop
        for start in range(0, count, self.mine.step):
            number = start + self.mine.start
            found = self.to_first(run(number, next(own)) if number in self.mine else None)
            yield from found[: count - start]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Course:
    """What two models are run over, and what of their outputs is compared.

    ``batches`` gives the samples from the start, one batch at a time; a tuple is one array for each input.
    ``labels``: [N], where the first output is one vector of class scores per image.
    ``compared``: names of tensors, inner ones among them; by default all outputs. ``parts``: of outputs, compared one
    by one too. ``places``: where images lie in outputs in which they do not have axis 0 for themselves.
    ``simulate`` computes the compared tensors of one batch; it sees the first and every ``simulate_every``-th one.
    ``observe``: an `Observer`. ``share``: what one of several processes runs of it. Unless it is ``strict``, an output
    that has another shape in the second model, NaN or infinity, or no axis of images is left out, and `Measurements`
    say so.
    """

    batches: Callable[[], Iterable[Batch]]
    labels: NDArray[np.integer] | None = None
    compared: Sequence[str] = ()
    parts: Mapping[str, Sequence[OutputPart]] = dataclasses.field(default_factory=dict)
    places: Mapping[str, Place] = dataclasses.field(default_factory=dict)
    simulate: Simulate | None = None
    simulate_every: int = 1
    observe: Observer | None = None
    share: Share | None = None
    strict: bool = True

    def simulated_batches(self) -> Iterable[Batch]:
        """The batches that the simulation sees."""
        return itertools.islice(self.batches(), 0, None, self.simulate_every)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison(Course):
    """Two models that are run over the same samples, and the simulation of the second where there is one.

    ``original``, ``quantized``: the files' bytes; ``quantized`` is None where onnxruntime does not run it, and the
    simulation stands for it, on the batches that it sees. Without ``optimize`` onnxruntime runs the original as it is
    written. ``threads``: of each session, where others share the machine.
    """

    original: bytes
    quantized: bytes | None
    optimize: bool = True
    threads: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class OutputAgreement:
    """How the quantized model, its simulation and FP32 agree in one output; None where one of them was not run.

    ``deviation``: of the quantized model from the simulation, see `pdq_export.validate.deviation`. ``quantized_name``:
    what the quantized model calls it, where that is another name.
    """

    name: str
    quantized_float: Agreement | None
    quantized_simulated: Agreement | None
    simulated_float: Agreement | None
    deviation: float | None = None
    quantized_name: str | None = None

    @property
    def against_float(self) -> Agreement:
        """How what is known best of the quantized model agrees with FP32: the file, or else its simulation."""
        found = self.quantized_float or self.simulated_float
        assert found is not None  # one of them has been run
        return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measurements:
    """What running two models side by side has shown.

    Accuracies are None without labels, those of the simulation also where it has no scores. ``images``: those that the
    file was run on, or the simulation where the file was not; then its accuracy and kernels are None.
    ``float_where_simulated``, ``quantized_where_simulated``: of FP32 and of the file on the images that the simulation
    saw. ``top1_changes``: from FP32 to the file,
    or to the simulation where the file was not run. ``uncompared``: outputs that cannot be, with the reason;
    ``not_finite``: those of them that have NaN, or infinity where the other does not. ``session_config``: without which
    onnxruntime does not load the quantized file. ``min_onnxruntime``: the lowest version that it names for itself.
    """

    images: int
    float_accuracy: Accuracy | None
    quantized_accuracy: Accuracy | None
    simulated_accuracy: Accuracy | None
    float_where_simulated: Accuracy | None = None
    quantized_where_simulated: Accuracy | None = None
    top1_changes: Top1Changes | None = None
    outputs: tuple[OutputAgreement, ...]
    parts: tuple[PartAgreement, ...] = ()
    kernels: KernelCount | None
    session_config: Mapping[str, str] = dataclasses.field(default_factory=dict)
    min_onnxruntime: str | None = None
    uncompared: Mapping[str, str] = dataclasses.field(default_factory=dict)
    not_finite: tuple[str, ...] = ()


def validate(comparison: Comparison, *, progress: Callable[[int], None] | None = None) -> Measurements:
    """Run both models over all samples, one batch at a time, and measure how their outputs agree.

    ``progress`` is told how many images are done. Raises ValidationError where a model does not load or run, where
    outputs do not fit each other, their places or the labels, and where there is no image.
    """
    if comparison.quantized is None and comparison.simulate is None:
        raise ValueError("neither a quantized model nor a simulation to measure")
    reference, (session, kernels) = _open_original(comparison), _open_quantized(comparison)
    measured = run_course(comparison, reference, session, kernels, progress=progress)
    if session is None or comparison.quantized is None:
        return measured
    lowest = min_onnxruntime(comparison.quantized)
    return dataclasses.replace(measured, session_config=session.config, min_onnxruntime=lowest)


def help_validate(comparison: Comparison) -> None:
    """Run this process's share of a comparison that `validate` measures on the first."""
    session, _ = _open_quantized(comparison)
    for _ in _runs(comparison, _open_original(comparison), session):
        pass


def run_course(
    course: Course,
    reference: Session,
    session: Session | None,
    kernels: KernelCount | None,
    *,
    progress: Callable[[int], None] | None = None,
) -> Measurements:
    """What `validate` does, with the sessions of both models; without that of the second, its simulation is measured.

    ``kernels``: of the second.
    """
    outputs = reference.outputs if session is None else session.outputs
    meters = _Meters(tuple(course.compared) or outputs, outputs[0], course, runs=session is not None)
    for ran in _runs(course, reference, session):
        if ran.reference is None:
            meters.skip(ran.size)
        else:
            meters.update(ran.size, ran.reference, ran.quantized, ran.simulated)
        if progress is not None:
            progress(meters.seen)
    return meters.result(kernels)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Ran:
    """What came of a batch of so many samples; None of what was not run."""

    size: int
    reference: Mapping[str, Array] | None
    quantized: Mapping[str, Array] | None
    simulated: Sequence[Array] | None


def _runs(course: Course, reference: Session, session: Session | None) -> Iterator[_Ran]:
    """What comes of every batch, in order; of several processes, all of it on the first alone."""

    def run(number: int, batch: Batch) -> _Ran:
        simulated = None
        if course.simulate is not None and number % course.simulate_every == 0:
            simulated = [np.asarray(output) for output in course.simulate(batch)]
        skipped = session is None and simulated is None
        return _Ran(
            size=batch_size(batch),
            reference=None if skipped else reference.run_by_name(batch),
            quantized=None if session is None else session.run_by_name(batch),
            simulated=simulated,
        )

    if course.share is not None:
        return course.share.run(run)
    return itertools.starmap(run, enumerate(course.batches()))


def _open_original(comparison: Comparison) -> Session:
    content = with_outputs(comparison.original, comparison.compared)
    return Session(content, threads=comparison.threads, optimize=comparison.optimize)


def _open_quantized(comparison: Comparison) -> tuple[Session, KernelCount] | tuple[None, None]:
    """The session that is measured; its options, as the kernels, are the file's own: other outputs prevent fusions."""
    if comparison.quantized is None:
        return None, None
    warn_older(comparison.quantized)
    own, kernels = open_counted(comparison.quantized, threads=comparison.threads)
    content = with_outputs(comparison.quantized, comparison.compared)
    if content == comparison.quantized:
        return own, kernels
    return Session(content, threads=comparison.threads, config=own.config), kernels


class _Meters:
    """The running numbers of one comparison. ``names``: of what is compared; ``scores``: the output with classes.

    ``images``: how many were compared; ``seen``: with those that were skipped.
    """

    def __init__(self, names: Sequence[str], scores: str, course: Course, *, runs: bool) -> None:
        self.images = self.seen = 0
        self._names, self._scores, self._labels = names, scores, course.labels
        self._simulated, self._run, self._strict = course.simulate is not None, runs, course.strict
        self._observe = course.observe or (lambda *_: None)
        self._uncompared: dict[str, str] = {}
        self._not_finite: list[str] = []
        places = course.places
        self._agreements = [
            {pair: AgreementMeter(f"output {name!r}", places.get(name)) for pair in _PAIRS} for name in names
        ]
        self._deviations = [DeviationMeter() for _ in names]
        self._accuracies = [AccuracyMeter() for _ in range(5)]
        self._changes = Top1Meter()
        self._parts = PartMeters(course.parts, names, places)

    def skip(self, size: int) -> None:
        self.seen += size

    def update(
        self,
        size: int,
        reference: Mapping[str, Array],
        quantized: Mapping[str, Array] | None,
        simulated: Sequence[Array] | None,
    ) -> None:
        wrong = quantized is not None and set(reference) != set(quantized)
        if wrong or (simulated is not None and len(simulated) != len(self._names)):
            raise ValidationError(f"the models and the simulation have unequal outputs; expected {list(self._names)}")
        by_name = dict(zip(self._names, simulated or (), strict=simulated is not None))
        for name, meters, deviation in zip(self._names, self._agreements, self._deviations, strict=True):
            if quantized is not None and self._fits(name, reference[name], quantized[name]):
                meters["quantized_float"].update(reference[name], quantized[name])
            if simulated is not None:
                meters["simulated_float"].update(reference[name], by_name[name])
            if quantized is not None and simulated is not None:
                meters["quantized_simulated"].update(by_name[name], quantized[name])
                deviation.update(by_name[name], quantized[name])
        samples = slice(self.seen, self.seen + size)
        if self._labels is not None:
            self._add_labels(self._labels[samples], reference, quantized, by_name)
        if quantized is not None:
            self._parts.update(reference, quantized)
        self._observe(reference, by_name if quantized is None else quantized, samples)
        self.images += size
        self.seen += size

    def _fits(self, name: str, reference: Array, quantized: Array) -> bool:
        """Whether an output can be compared; once it could not, it is no more."""
        if name in self._uncompared:
            return False
        if self._strict:
            return True
        if reference.shape != quantized.shape:
            told = f"its shape is {list(quantized.shape)}, FP32's {list(reference.shape)}"
        elif not reference.ndim:
            told = "it is one number for all samples"
        elif not same_where_infinite(reference, quantized):
            told = "it contains NaN or infinity where FP32's does not"
            if np.isnan(reference).any() or np.isfinite(quantized).all():
                told = "FP32's contains NaN, or infinity where it does not"
            self._not_finite.append(name)
        else:
            return True
        self._uncompared[name] = f"{told}, on samples {self.seen} and following"
        return False

    def _add_labels(
        self,
        labels: NDArray[np.integer],
        reference: Mapping[str, Array],
        quantized: Mapping[str, Array] | None,
        simulated: Mapping[str, Array],
    ) -> None:
        file = quantized or {}
        both = (reference, file) if self._scores in simulated else ({}, {})
        given = (reference, file, simulated, *both)
        for meter, outputs in zip(self._accuracies, given, strict=True):
            if self._scores in outputs:
                meter.update(outputs[self._scores], labels)
        judged = simulated if quantized is None else quantized
        if self._scores in reference and self._scores in judged:
            self._changes.update(reference[self._scores], judged[self._scores], labels)

    def result(self, kernels: KernelCount | None) -> Measurements:
        """Raises ValidationError where there was no image, or not one for every label."""
        if not self.images:
            raise ValidationError("there is no image to validate on; expected at least one")
        if self._labels is not None and len(self._labels) != self.seen:
            raise ValidationError(f"there are {len(self._labels)} labels for {self.seen} images; expected one each")
        floating, quantized, simulated, *where_simulated = (
            None if self._labels is None else meter.result() for meter in self._accuracies
        )
        has_scores = simulated is not None and simulated.images > 0
        return Measurements(
            images=self.images,
            float_accuracy=floating,
            quantized_accuracy=quantized if self._run else None,
            simulated_accuracy=simulated if has_scores else None,
            float_where_simulated=where_simulated[0] if has_scores else None,
            quantized_where_simulated=where_simulated[1] if has_scores and self._run else None,
            top1_changes=self._changes.result(),
            outputs=self._outputs(),
            parts=self._parts.result() if self._run else (),
            kernels=kernels,
            uncompared=dict(self._uncompared),
            not_finite=tuple(self._not_finite),
        )

    def _outputs(self) -> tuple[OutputAgreement, ...]:
        return tuple(
            OutputAgreement(
                name=name,
                quantized_float=meters["quantized_float"].result() if self._run else None,
                quantized_simulated=meters["quantized_simulated"].result() if self._run and self._simulated else None,
                simulated_float=meters["simulated_float"].result() if self._simulated else None,
                deviation=deviation.result() if self._run and self._simulated else None,
            )
            for name, meters, deviation in zip(self._names, self._agreements, self._deviations, strict=True)
            if name not in self._uncompared
        )
