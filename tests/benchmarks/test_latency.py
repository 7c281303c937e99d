"""The latency benchmark, one short round."""

from pathlib import Path

import pytest

from benchmarks.latency import main


@pytest.mark.parametrize("with_images", [True, False])
def test_a_table_for_each_batch(
    model: Path, images: tuple[Path, Path], with_images: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--images", str(images[0])] if with_images else []
    main([str(model), *given, "--own-int8", "--rounds", "1", "--seconds", "0", "--batch", "1", "3"])
    printed = capsys.readouterr().out
    assert printed.count("| FP32 | 620 |") == 2
    assert printed.count("| onnxruntime INT8 |") == 2
