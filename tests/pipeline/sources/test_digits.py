"""The bundled digits."""

import subprocess
import sys

import numpy as np

from pipeline.sources.digits import Source


def test_all_digits_come_as_8x8_grey_over_the_whole_range() -> None:
    items = list(Source().items())
    assert len(items) == Source().num_items() == 1797
    assert len({item.name for item in items}) == 1797
    images = np.stack([item.data for item in items if isinstance(item.data, np.ndarray)])
    assert images.shape == (1797, 8, 8, 1)
    assert (images.min(), images.max(), len(np.unique(images))) == (0, 255, 17)
    assert {item.label for item in items} == set(range(len(Source().classes())))


def test_the_fingerprint_needs_no_scikit_learn() -> None:
    program = (
        "import sys; from pipeline.sources.digits import Source; print(Source().fingerprint()); "
        "assert 'sklearn' not in sys.modules"
    )
    child = subprocess.run([sys.executable, "-c", program], check=True, timeout=60, capture_output=True, text=True)
    assert child.stdout.strip() == Source().fingerprint()
