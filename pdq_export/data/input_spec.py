"""The model's input that images have to fit."""

import dataclasses

from pdq_export.errors import DataError


@dataclasses.dataclass(frozen=True, kw_only=True)
class InputSpec:
    """An input of the model: its name, its shape ((N, C, H, W) for images; None is dynamic) and its element type."""

    name: str
    shape: tuple[int | None, ...]
    dtype: str = "float32"

    def __str__(self) -> str:
        return f"input {self.name!r} ({format_shape(self.shape)}, {self.dtype})"

    def check_supported(self, where: str) -> None:
        """Raise DataError unless this is a float32 image input of rank 4."""
        if not self.takes_images:
            raise DataError(
                f"{where}: images cannot feed the model's {self}; expected N x C x H x W, float32; give an .npz with a "
                f"float32 array {self.name!r} of such rows"
            )

    @property
    def takes_images(self) -> bool:
        """Whether this is a float32 input of rank 4."""
        return len(self.shape) == 4 and self.dtype == "float32"

    @property
    def layout(self) -> str:
        """NHWC where the last axis alone looks like the channels of an image, else NCHW."""
        _, first, _, last = self.shape
        return "NHWC" if last in (1, 3) and first not in (1, 3) else "NCHW"

    def channels(self, layout: str) -> int | None:
        """How many there are; None where dynamic."""
        return self.shape[3 if layout == "NHWC" else 1]

    def size(self, layout: str) -> tuple[int | None, int | None]:
        """Height and width; None where dynamic."""
        height, width = self.shape[1:3] if layout == "NHWC" else self.shape[2:4]
        return height, width


def format_shape(shape: tuple[int | None, ...]) -> str:
    """``1 x 3 x ? x 32``; ? is a dynamic axis."""
    return " x ".join("?" if size is None else str(size) for size in shape) or "scalar"
