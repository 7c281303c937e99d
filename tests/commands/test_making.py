"""What a file and its report say of their making."""

from pdq_export.commands.making import made_by
from pdq_export.report import ModelInfo


def test_a_file_made_on_a_gpu_says_whether_it_can_be_made_again() -> None:
    """A CPU's kernels give the same bits anyhow: nothing is said."""
    model = ModelInfo(name="m.onnx", sha256="0", size=1)
    for deterministic in (True, False):
        assert made_by(model, {}, "cuda:0", deterministic=deterministic)["deterministic"] is deterministic
    assert "deterministic" not in made_by(model, {}, "cpu")
