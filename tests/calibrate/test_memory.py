"""A budget for calibration: the same result bit for bit, no growth with depth, nothing left behind."""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, fx

from pdq_export.calibrate import Calibrated, calibrate, collapse, memory, spill
from pdq_export.calibrate.finished import Quantizers
from pdq_export.calibrate.memory import STEP_IMAGES, step_bytes
from pdq_export.calibrate.offload import Offload
from pdq_export.calibrate.requirements import Requirements, find_requirements
from pdq_export.calibrate.store import Store
from pdq_export.calibrate.subgraph import extract
from pdq_export.errors import CalibrationError, OptionError

from .networks import Example, calibrate_example, chain, residual
from .test_cache import open_files
from .test_engine import CPU, TINY, same


@pytest.fixture
def stores(monkeypatch: pytest.MonkeyPatch) -> list[Store]:
    """Every store that calibration makes; a budget is counted from zero, whatever the test process holds."""
    made: list[Store] = []
    original = Store.of_process.__func__

    def of_process(cls: type[Store], *args: Any) -> Store:
        made.append(original(cls, *args))
        return made[-1]

    monkeypatch.setattr(Store, "of_process", classmethod(of_process))
    monkeypatch.setattr(memory, "resident_bytes", lambda: 0)
    monkeypatch.setattr(Store, "require", lambda *_: None)  # however small it is
    return made


def run(example: Example, max_memory: int | None, **changes: Any) -> Calibrated:
    options = dataclasses.replace(TINY, **{"iters": 4, **changes})
    return calibrate_example(example, options, max_memory=max_memory)


@pytest.mark.usefixtures("small_tensors_count")
@pytest.mark.parametrize(
    ("bits", "changes"),
    [
        ("4/4", {}),
        ("2/8", {}),
        ("4/4", {"correction_iters": 0}),
        ("2/8", {"prediction_difference": False}),
        ("2/8", {"iters": 0}),
        ("4/4", {"learn_rounding": False}),
        ("4/4", {"search_samples": 30}),
    ],
    ids=str,
)
def test_the_result_does_not_depend_on_the_budget(
    bits: str, changes: dict[str, Any], stores: list[Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    used = []
    original = Store.new

    def new(self: Store, *args: Any) -> Any:
        cache = original(self, *args)
        used.append(cache.tier)
        return cache

    monkeypatch.setattr(Store, "new", new)
    example = residual(bits, images=61)
    unlimited = run(example, None, **changes)
    assert set(used) == {"device"}
    assert not stores[0].limited
    for max_memory, tiers in ((1, {"file"}), (400_000, {"device", "file"}), (10**12, {"device"})):
        used.clear()
        limited = run(example, max_memory, **changes)
        assert same(unlimited.tensors, limited.tensors)
        with torch.no_grad():
            first, second = (result.simulation(example.images)[0] for result in (unlimited, limited))
        assert torch.equal(first, second)
        assert set(used) == tiers


def test_host_memory_gives_the_same_result(stores: list[Store], monkeypatch: pytest.MonkeyPatch) -> None:
    example = residual()
    unlimited = run(example, None)
    monkeypatch.setattr(Store, "of_process", lambda *_: Store(CPU, device_bytes=0, host_bytes=None))
    assert same(unlimited.tensors, run(example, None).tensors)


def test_steps_use_a_file_only_where_they_must(stores: list[Store], monkeypatch: pytest.MonkeyPatch) -> None:
    rooms = []
    original = Offload.__init__

    def init(self: Offload, room: int, *args: Any) -> None:
        rooms.append(room)
        original(self, room, *args)

    monkeypatch.setattr(Offload, "__init__", init)
    run(residual(), None)
    run(residual(), 10**12)
    assert rooms == []
    run(residual(), 1000)
    assert set(rooms) == {0}


@pytest.mark.parametrize("max_memory", [None, 10**12])
def test_memory_does_not_grow_with_depth(max_memory: int | None, stores: list[Store]) -> None:
    for depth in (4, 12):
        run(chain(depth), max_memory, iters=1, correction_iters=1)
    shallow, deep = stores
    assert shallow.peak == deep.peak > 0


def test_a_budget_takes_the_place_of_memory(stores: list[Store], monkeypatch: pytest.MonkeyPatch) -> None:
    """At no time do the caches in memory exceed half of it."""
    highest = []
    original = Store._register

    def register(self: Store, *args: Any) -> None:
        original(self, *args)
        highest.append(self.used["device"])

    monkeypatch.setattr(Store, "_register", register)
    run(chain(4), 600_000, correction_iters=1)
    assert 0 < max(highest) <= 300_000


class Interrupted(BaseException):
    """As KeyboardInterrupt, which would end the test run."""


@pytest.mark.parametrize("error", [None, Interrupted, RuntimeError])
def test_nothing_is_left_behind(error: type[BaseException] | None, folder: Path, stores: list[Store]) -> None:
    seen = []

    def progress(at: Any) -> None:
        seen.append(open_files(folder))
        assert list(folder.iterdir()) == []  # the files have no name
        if error is not None and at.index == 1:
            raise error

    def start() -> None:
        example = residual()
        calibrate(
            *(example.network, example.plan, example.prepared.statistics, [example.images], TINY),
            device=CPU,
            max_memory=1,
            progress=progress,
        )

    if error is None:
        start()
    else:
        with pytest.raises(error) as caught:
            start()
        assert caught.traceback  # which holds the frames of the engine
    assert min(seen) > 0
    assert open_files(folder) == 0
    assert sum(stores[0].used.values()) == 0


def test_a_full_disk(stores: list[Store], monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    usage = spill.shutil.disk_usage(folder)
    monkeypatch.setattr(spill.shutil, "disk_usage", lambda _: usage._replace(free=10))
    with pytest.raises(CalibrationError, match=r"no room .*TMPDIR.* --max-memory"):
        run(residual(), 1)


def test_a_budget_below_what_the_process_holds() -> None:
    with pytest.raises(OptionError, match="the process holds"):
        run(residual(), 10**6)


def test_the_need_of_a_step() -> None:
    example = residual()
    (block, *_) = example.plan.blocks
    student = extract(example.network, block.inputs, block.outputs)
    images = [example.images[:STEP_IMAGES]]
    needs = [step_bytes(student, None, images, [], batch) for batch in (16, 32)]
    assert needs[1] == 2 * needs[0] > 16 * images[0][0].nbytes
    np.testing.assert_array_equal(images[0], example.images[:STEP_IMAGES])
    assert not images[0].requires_grad


def test_fewer_images_than_the_measurement_takes(stores: list[Store]) -> None:
    example = residual(images=2)
    assert same(run(example, None).tensors, run(example, 1).tensors)


@pytest.mark.parametrize(("images", "parts"), [(40, [14, 13, 13]), (17, [9, 8]), (1, [1])])
def test_the_search_for_collapse_takes_few_images_at_a_time(
    monkeypatch: pytest.MonkeyPatch, images: int, parts: list[int]
) -> None:
    judged: list[Tensor] = []
    sizes: list[int] = []
    simulation = Quantizers.simulation

    def watched(self: Quantizers, inputs: Sequence[str], outputs: Sequence[str]) -> fx.GraphModule:
        module = simulation(self, inputs, outputs)
        module.register_forward_pre_hook(lambda _, x: sizes.append(len(x[0])))
        return module

    monkeypatch.setattr(Quantizers, "simulation", watched)
    monkeypatch.setattr(
        collapse, "warn_of_collapse", lambda name, full, quantized, advise: judged.extend((full, quantized))
    )
    run(residual(images=images), None, iters=0, learn_rounding=False, learn_scales=False)
    assert [len(x) for x in judged] == [images, images]
    assert sizes == parts


def test_a_limit_that_cannot_hold_names_the_smallest_that_can(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """And that one can be given; what goes to a file is told once, with what would keep it in memory."""
    example = residual()
    monkeypatch.setattr("pdq_export.calibrate.store.SCRATCH", 0)  # far more than the tensors here
    monkeypatch.setattr(memory, "resident_bytes", lambda: 10**6)
    with pytest.raises(OptionError, match=r"--max-memory 1 MB.*no file can replace.*batch_size") as caught:
        run(example, 1_050_000)
    (size,) = re.findall(r"give --max-memory (\S+) or more", str(caught.value))
    needed = memory.parse_size(size)
    assert 1_050_000 < needed < 30_000_000
    with caplog.at_level("WARNING", logger="pdq_export.calibrate"):
        limited = run(example, needed)
    assert same(run(example, None).tensors, limited.tensors)
    told = [record.getMessage() for record in caplog.records if "goes to files" in record.getMessage()]
    assert len(told) <= 1


def test_a_limit_below_what_the_process_holds_names_one_that_can(monkeypatch: pytest.MonkeyPatch) -> None:
    example = residual()
    monkeypatch.setattr(memory, "resident_bytes", lambda: 10**6)
    with pytest.raises(OptionError, match="give --max-memory") as caught:
        run(example, 1000)
    (size,) = re.findall(r"give --max-memory (\S+) or more", str(caught.value))
    run(example, memory.parse_size(size))


def test_what_a_network_takes_at_least() -> None:
    """In proportion to images, up to those of a pass and a step; nothing for steps that are not taken."""
    example = residual()

    def needs(count: int, **changes: Any) -> Requirements:
        options = dataclasses.replace(TINY, batch_size=16, **changes)
        return find_requirements(example.network, example.plan, [example.images[:1]], options, count)

    largest = max(x.nbytes for x in [example.images[:1]])
    assert needs(64).passes == 2 * needs(32).passes >= 4 * 64 * largest
    assert needs(1000).passes == needs(64).passes
    assert all(needs(64).steps.values())
    assert not any(needs(64, iters=0).steps.values())
    assert needs(64).most >= max(needs(64).steps.values())
    without = needs(64, prediction_difference=False)
    assert all(without.steps[name] <= size for name, size in needs(64).steps.items())
