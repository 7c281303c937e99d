"""SHA-256 of samples, as a model sees them."""

import hashlib

from pdq_export.data.image_set import ImageSet
from pdq_export.data.input_set import InputSet

_BATCH = 64


def sha256_by_input(data: ImageSet | InputSet, names: tuple[str, ...]) -> dict[str, str]:
    """SHA-256 of the bytes of each array that a model reads, by the name of its input: float32, N x ..., normalized."""
    hashes = {name: hashlib.sha256() for name in names}
    for batch in data.batches(_BATCH):
        for found, array in zip(hashes.values(), batch if isinstance(batch, tuple) else (batch,), strict=True):
            found.update(array.astype("<f4", order="C", copy=False).tobytes())
    return {name: found.hexdigest() for name, found in hashes.items()}
