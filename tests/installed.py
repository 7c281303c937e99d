"""Which onnxruntime is installed, for tests of what only its newer kernels do."""

import onnxruntime


def onnxruntime_is(version: str) -> bool:
    """Whether it is this version, major and minor, or a newer one."""

    def numbers(text: str) -> list[int]:
        return [int(part) for part in text.split(".")[:2]]

    return numbers(onnxruntime.__version__) >= numbers(version)
