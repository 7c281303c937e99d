"""What kernels are chosen by is told apart, and nothing else is."""

import pytest
import torch

from pdq_export.commands.machine import describe_machine, processor_parts

CPU = torch.device("cpu")
X86 = (
    "model name\t: Some CPU @ 2 GHz\ncpu family\t: 6\nmodel\t\t: 85\nstepping\t: 4\n"
    "flags\t\t: sse2 avx2 fma\nbugs\t: none\n"
)
ARM = "CPU implementer\t: 0x41\nCPU architecture: 8\nCPU part\t: 0xd0c\nFeatures\t: fp asimd\n"


@pytest.mark.parametrize(
    ("text", "before", "after", "told"),
    [
        (X86, "family\t: 6", "family\t: 25", {"kind of processor"}),
        (X86, ": 85", ": 86", {"kind of processor"}),
        (X86, "stepping\t: 4", "stepping\t: 7", {"kind of processor"}),
        (X86, "avx2", "avx512f", {"features of the processor"}),
        (X86, "sse2 avx2", "avx2 sse2", set()),
        (X86, "bugs\t: none", "bugs\t: some", set()),
        (ARM, "0x41", "0x42", {"kind of processor"}),
        (ARM, "0xd0c", "0xd40", {"kind of processor"}),
        (ARM, "asimd", "asimd sve", {"features of the processor"}),
    ],
)
def test_another_processor_is_another_machine(text: str, before: str, after: str, told: set[str]) -> None:
    first, second = processor_parts(text), processor_parts(text.replace(before, after))
    assert {name for name in first if first[name] != second[name]} == told
    assert first.keys() == second.keys()


@pytest.mark.parametrize("name", ["ONEDNN_MAX_CPU_ISA", "DNNL_X", "MKL_CBWR", "ATEN_CPU_CAPABILITY", "OMP_SCHEDULE"])
def test_a_variable_that_steers_kernels(name: str) -> None:
    assert describe_machine(CPU, {name: "x"})[f"environment variable {name}"] == "x"


@pytest.mark.parametrize("name", ["ONEDNN_VERBOSE", "OMP_NUM_THREADS", "KMP_AFFINITY", "HOME", "CUDNN_LOGDEST_DBG"])
def test_a_variable_that_changes_nothing(name: str) -> None:
    assert describe_machine(CPU, {name: "x"}) == describe_machine(CPU, {})


def test_what_torch_is_told() -> None:
    before = describe_machine(CPU, {})
    with torch.backends.mkldnn.flags(enabled=False):
        without = describe_machine(CPU, {})
    assert (before["oneDNN in torch"], without["oneDNN in torch"]) == ("on", "off")
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        assert describe_machine(CPU, {})["deterministic algorithms of torch"] == "on"
    finally:
        torch.use_deterministic_algorithms(False)
    assert before["deterministic algorithms of torch"] == "off"
