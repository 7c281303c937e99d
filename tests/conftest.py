"""What all tests share: one torch thread a worker, and the models and data that are not part of the project."""

import gc
import itertools
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings

from pdq_export.plan.passes.reduce_range import reduce_range
from pdq_export.spec import Plan
from pdq_export.validate import kernels_saturate

# Each pytest-xdist worker is a process of its own; more threads than one would only fight over the cores.
torch.set_num_threads(1)

# The same examples every time; and a busy machine is not a failure.
settings.register_profile("pdq_export", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("pdq_export")


@pytest.fixture(autouse=True)
def _same_random_tensors() -> None:
    """What a test draws from torch's global generator does not depend on the tests that ran before it."""
    torch.manual_seed(0)


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Where a test computes: on the CPU, and where there is a GPU once more on that."""
    return torch.device(request.param)


@pytest.fixture
def short_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scales from the range alone: the search, which has tests of its own, takes minutes on millions of weights."""
    monkeypatch.setattr("pdq_export.numerics.search.FRACTIONS", 1)
    monkeypatch.setattr("pdq_export.numerics.search._QUICK", 1)
    monkeypatch.setattr("pdq_export.numerics.search._MAX_ENUMERATED_BITS", 0)


@pytest.fixture
def small_weights_are_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights of ort lie in the fewest bytes, as if what unpacks them took none; else small networks have INT8."""
    monkeypatch.setattr("pdq_export.export.packing.UNPACKING_NODE_BYTES", 0)
    monkeypatch.setattr("pdq_export.export.packing.TABLE_BYTES", 0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU without one, and what cannot be checked where kernels saturate: TensorRT's 8 bits."""
    for item in items:
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        wide = parameters.get("target") == "tensorrt" or item.get_closest_marker("wide_weights") is not None
        if item.get_closest_marker("gpu") is not None and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip("needs a GPU that torch can use"))
        if wide and kernels_saturate():
            item.add_marker(pytest.mark.skip("needs a processor on which 8-bit weights do not saturate, one with VNNI"))


def pytest_collection_finish() -> None:
    """What is there by now stays: no collection of garbage has to go over the thousands of tests again."""
    gc.freeze()


def pytest_sessionfinish() -> None:
    gc.unfreeze()


@pytest.fixture(autouse=True)
def weights_that_kernels_can_multiply(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where kernels saturate, every plan has a reduced range, or no file would compute what its simulation does.

    But for tests of the plan itself, and of how it is shown. Plans that module-scoped fixtures make are as they are
    everywhere.
    """
    of_plan = Path(__file__).parent / "plan" in request.path.parents or request.path.name == "test_inspect.py"
    if kernels_saturate() and not of_plan:

        def reduced(**fields: Any) -> Plan:
            plan = Plan(**fields)
            return reduce_range(plan) if plan.integer_bias else plan  # a target without is for other kernels

        monkeypatch.setattr("pdq_export.plan.Plan", reduced)


@pytest.fixture(autouse=True)
def latency_in_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test asks how fast a file is: what is measured of it is that it can be."""
    monkeypatch.setattr("pdq_export.validate.latency.SECONDS", 0.0)


_SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder `shared` beside the checkout; a test that asks for it is skipped without it."""
    if not (_SHARED / "models").is_dir():
        pytest.skip("needs the folder ../shared (models and data that are not part of the project)")
    return _SHARED


@pytest.fixture(scope="session")
def shared_models(shared_dir: Path) -> Path:
    """``shared/models``."""
    return shared_dir / "models"


@pytest.fixture(scope="session")
def shared_data(shared_dir: Path) -> Path:
    """``shared/data``."""
    return shared_dir / "data"


@pytest.fixture(scope="session")
def cache_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One after the other; pytest's own would go over all that there are for the number of the next."""
    parent = tmp_path_factory.mktemp("cache")
    return (parent / str(number) for number in itertools.count())


@pytest.fixture(autouse=True)
def blocks_are_kept_elsewhere(cache_folders: Iterator[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """No test writes into the user's cache folder, nor takes up what another has left."""
    folder = next(cache_folders)
    folder.mkdir()
    monkeypatch.setenv("PDQ_EXPORT_CACHE", str(folder))


LOGGERS = ("pdq_export", "pdq_export.cli", "pdq_export.commands.keeping", "py.warnings")


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """A command sets up logging for its process; other tests of this process need it as it was."""
    loggers = [logging.getLogger(name) for name in LOGGERS]
    before = [(logger.level, logger.propagate, list(logger.handlers)) for logger in loggers]
    yield
    logging.captureWarnings(False)
    for logger, (level, propagate, handlers) in zip(loggers, before, strict=True):
        logger.setLevel(level)
        logger.propagate, logger.handlers = propagate, handlers


@pytest.fixture
def losses_are_told() -> None:
    """The layers of a file that loses are compared, and what to try next is told, as users have it."""


@pytest.fixture(autouse=True)
def no_word_of_losses(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file of a tiny network loses: comparing its layers would take as long as all else of most tests' runs."""
    if "losses_are_told" not in request.fixturenames:
        monkeypatch.setattr("pdq_export.commands.next_steps.find_loss", lambda report: None)


@pytest.fixture(autouse=True)
def no_word_of_latency(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether tiny networks are slower than FP32 is chance, and no warning of a test but those of latency."""
    if "latency" not in request.node.nodeid:
        monkeypatch.setattr("pdq_export.report.verdict.warn_slow", lambda report: None)
