"""The npy format 1.0 for the arrays in shards: C order, no pickle, the same bytes for ever.

NumPy's own writer may pad the head otherwise one day, and its reader evaluates it; here a head is made, or compared.
"""

from typing import TYPE_CHECKING, Any

from pipeline.errors import IntegrityError

if TYPE_CHECKING:
    from numpy.typing import NDArray

HEAD_BYTES = 128


def to_npy(array: "NDArray[Any]", descr: str) -> bytes:
    """An array as a file; `descr` is its type in NumPy's words, such as `<i8`."""
    import numpy as np

    values = np.ascontiguousarray(array, dtype=descr)
    return _head(descr, values.shape) + values.tobytes()


def view_npy(data: bytes, start: int, stop: int, descr: str, item_shape: tuple[int, ...]) -> "NDArray[Any]":
    """A view of the file at data[start:stop], with as many items of `item_shape` as there is room for.

    Raises IntegrityError where it is another array.
    """
    import numpy as np

    values = np.dtype(descr)
    item_values = int(np.prod(item_shape, dtype=np.int64))
    num, rest = divmod(stop - start - HEAD_BYTES, values.itemsize * item_values)
    shape = (num, *item_shape)
    head = data[start : min(start + HEAD_BYTES, stop)]
    if num < 1 or rest or head != _head(descr, shape):
        raise IntegrityError(f"expected an npy of {descr} (n, {str(item_shape)[1:-1]}), got {head[:80]!r}")
    return np.frombuffer(data, values, num * item_values, start + HEAD_BYTES).reshape(shape)


def _head(descr: str, shape: tuple[int, ...]) -> bytes:
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00\x76\x00" + text.ljust(HEAD_BYTES - 11) + b"\n"
