"""What a report is told to mean."""

import dataclasses

import pytest

from pdq_export.report import ModelInfo, Report
from pdq_export.report.verdict import warn_useless
from pdq_export.validate import Agreement, KernelCount, OutputAgreement

SOURCE = "50%s.npz"
WELL = Agreement(
    images=64,
    argmax_agreement=0.9,
    chance_agreement=0.2,
    sqnr_db=30.0,
    relative_error=0.03,
    median_relative_error=0.03,
    max_relative_error=0.1,
)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, ""),
        # single images rule the sum
        ({"relative_error": 7.3, "max_relative_error": 90.0, "sqnr_db": -17.0}, ""),
        ({"median_relative_error": 0.97}, "on 50%s.npz is 97 % of FP32's output, or more, on half of the images"),
        ({"argmax_agreement": 0.21}, "its argmax on 50%s.npz is FP32's 21 % of the time, as by chance (20 %)"),
        ({"argmax_agreement": 0.21, "images": 10}, ""),  # too few to tell
        ({"argmax_agreement": None, "chance_agreement": None}, ""),
    ],
)
def test_a_file_of_no_use_is_told(changes: dict[str, float], told: str, caplog: pytest.LogCaptureFixture) -> None:
    output = OutputAgreement(
        name="y",
        quantized_float=dataclasses.replace(WELL, **changes),
        quantized_simulated=None,
        simulated_float=None,
    )
    info = ModelInfo(name="", sha256="", size=1)
    kernels = KernelCount(integer={}, floating={}, floating_nodes=(), between_pairs={})
    report = Report(
        model=info,
        quantized=info,
        images=64,
        float_accuracy=None,
        quantized_accuracy=None,
        simulated_accuracy=None,
        outputs=(output,),
        kernels=kernels,
    )
    warn_useless(report, SOURCE)
    assert ("of no use" in caplog.text) == bool(told)
    assert told in caplog.text
