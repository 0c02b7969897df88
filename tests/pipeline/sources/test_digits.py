"""The bundled digits."""

import subprocess
import sys

import numpy as np

from pipeline.sources.digits import Source
from tests.pipeline.sources.reading import items, pieces


def test_all_digits_come_as_8x8_grey_over_the_whole_range() -> None:
    found = items(Source())
    assert len(found) == sum(piece.num_items for piece in pieces(Source())) == 1797
    assert len({item.name for item in found}) == 1797
    images = np.stack([item.data for item in found if isinstance(item.data, np.ndarray)])
    assert images.shape == (1797, 8, 8, 1)
    assert (images.min(), images.max(), len(np.unique(images))) == (0, 255, 17)
    assert {item.label for item in found} == set(Source().classes())


def test_listing_needs_no_scikit_learn() -> None:
    program = (
        "import sys; from pipeline.sources.digits import Source; print(next(Source().pieces()).mark); "
        "assert 'sklearn' not in sys.modules"
    )
    child = subprocess.run([sys.executable, "-c", program], check=True, timeout=60, capture_output=True, text=True)
    assert child.stdout.strip() == pieces(Source())[0].mark
