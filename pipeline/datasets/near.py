"""Near duplicates: a perceptual hash of an image, and a search for hashes that differ by a few bits.

The hash says which of the 64 lowest frequencies of the image's cosine transform lie above their median (Zauner 2010,
"Implementation and benchmarking of perceptual image hash functions"), so it outlives resizing, compression and small
changes of brightness. The search is exact: hashes that differ by at most m bits agree in one of m + 1 bands whole
(Norouzi et al. 2012, "Fast search in Hamming space with multi-index hashing").
"""

import functools
import itertools
from array import array
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

HASH_BITS = 64
LOW = 8  # frequencies of each direction
SCALE = 1024  # of the cosines, which are rounded to whole numbers
FLAT = 2.0  # standard deviation of the low frequencies, in grey values, below which there is no structure to compare
BUCKET_BITS = 16  # of a band; more would make buckets of one hash each, which take most room
SCAN = 32  # a longer bucket is compared by NumPy


def perceptual_hash(pixels: "NDArray[np.uint8]") -> int | None:
    """64 bits for pixels (height, width, 1 or 3), sides up to 1,024; None for a flat image or mere noise.

    Those would all be near to each other, or by chance to anything. The sums are of whole numbers below 2^53, so they
    are exact in float64 and every machine finds the same bits.
    """
    import numpy as np

    from pipeline.decoders import opencv

    height, width, channels = pixels.shape
    grey = pixels[..., 0] if channels == 1 else opencv().cvtColor(pixels, opencv().COLOR_RGB2GRAY)
    low = (_cosines(height) @ grey.astype(np.float64) @ _cosines(width).T).ravel()[_order()]
    rest = low[1:]  # without the mean
    if float(rest @ rest) < FLAT**2 * (height * width) ** 2 * SCALE**4 / 4:  # Parseval
        return None
    median = np.partition(low, HASH_BITS // 2 - 1)[HASH_BITS // 2 - 1]
    return int.from_bytes(np.packbits(low > median).tobytes())


@functools.lru_cache(maxsize=16)
def _cosines(size: int) -> "NDArray[np.float64]":
    """The lowest frequencies (LOW, size) of the DCT-II, times SCALE and the root of size / 2."""
    import numpy as np

    frequency, place = np.ogrid[:LOW, :size]
    basis = np.cos(np.pi * (2 * place + 1) * frequency / (2 * size))
    basis[0] /= np.sqrt(2)
    rounded: NDArray[np.float64] = np.rint(SCALE * basis)
    return rounded


@functools.cache
def _order() -> "NDArray[np.intp]":
    """Which frequency each bit of the hash is of.

    High frequencies say little about smooth images. Bit reversal spreads them over the bands of `NearIndex`, whose
    longest buckets are up to 7 times as long without it.
    """
    import numpy as np

    down, across = np.divmod(np.arange(HASH_BITS), LOW)
    lowest_first = np.argsort(down + across, kind="stable")
    return lowest_first[[int(f"{bit:06b}"[::-1], 2) for bit in range(HASH_BITS)]]


class NearIndex:
    """Hashes with the rows that they belong to: 90 bytes a hash at a distance of 3 (for a million)."""

    def __init__(self, max_distance: int) -> None:
        self.max_distance = max_distance
        num_bands = max_distance + 1
        edges = [HASH_BITS * band // num_bands for band in range(num_bands + 1)]
        # A part of a band serves as well: it only brings more hashes to compare.
        self._bands = [(low, (1 << min(high - low, BUCKET_BITS)) - 1) for low, high in itertools.pairwise(edges)]
        self._hashes = array("Q")
        self._rows = array("q")
        self._buckets: list[dict[int, array[int]]] = [{} for _ in self._bands]  # positions by the band's bits

    def add(self, value: int, row: int) -> None:
        """Take a hash."""
        position = len(self._hashes)
        self._hashes.append(value)
        self._rows.append(row)
        for (shift, mask), buckets in zip(self._bands, self._buckets, strict=True):
            key = (value >> shift) & mask
            if (bucket := buckets.get(key)) is None:
                bucket = buckets[key] = array("I")
            bucket.append(position)

    def near(self, value: int) -> list[int]:
        """The rows whose hashes differ by at most `max_distance` bits, in the order in which they came."""
        found: set[int] = set()
        for (shift, mask), buckets in zip(self._bands, self._buckets, strict=True):
            if bucket := buckets.get((value >> shift) & mask):
                found |= self._within(bucket, value)
        return [self._rows[position] for position in sorted(found)]

    def _within(self, bucket: "array[int]", value: int) -> set[int]:
        if len(bucket) <= SCAN:
            return {at for at in bucket if (self._hashes[at] ^ value).bit_count() <= self.max_distance}
        import numpy as np

        positions = np.frombuffer(bucket, np.uint32)
        hashes = np.frombuffer(self._hashes, np.uint64)[positions]
        close: list[int] = positions[np.bitwise_count(hashes ^ np.uint64(value)) <= self.max_distance].tolist()
        return set(close)
