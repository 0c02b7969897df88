"""The 1,797 real handwritten digits that scikit-learn bundles: no download.

They are the test part of "Optical Recognition of Handwritten Digits" (Alpaydin & Kaynak, UCI 1998), 8x8 grey.
"""

import hashlib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from pipeline.artifacts import Rejected
from pipeline.errors import SourceError
from pipeline.sources import Item, Piece, SourceBase

NUM_DIGITS = 1797


class Source(SourceBase):
    """8x8 images of the classes 0 to 9. It has no fields."""

    kind: Literal["digits"] = "digits"

    def pieces(self) -> Iterator[Piece | Rejected]:
        data = _bundled_file().read_bytes()
        yield Piece("digits", hashlib.sha256(data).hexdigest(), len(data), NUM_DIGITS)

    def read_piece(self, piece: Piece) -> Iterator[Item | Rejected]:
        import numpy as np
        from sklearn.datasets import load_digits

        digits = load_digits()
        # The file's values are 0 to 16: counts of ink pixels in 4x4 blocks of the scan.
        images = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]
        for number, (image, label) in enumerate(zip(images, digits.target, strict=True)):
            yield Item(f"digits/{number:06d}", image, str(label))

    def classes(self) -> tuple[str, ...]:
        return tuple("0123456789")


def _bundled_file() -> Path:
    """Where the digits lie, without the second that importing scikit-learn takes."""
    spec = find_spec("sklearn")
    file = Path(spec.origin).parent / "datasets" / "data" / "digits.csv.gz" if spec and spec.origin else None
    if file is None or not file.is_file():
        raise SourceError("expected scikit-learn with its bundled digits, found none; install scikit-learn>=1.8")
    return file
