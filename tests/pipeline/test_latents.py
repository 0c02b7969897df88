"""A latent is a function of its seed: the published random bits, normal numbers, all 63 bits of the seed used."""

import numpy as np
import pytest
from scipy import stats

from pipeline.latents import MAX_SEED, latents, philox

# kat_vectors of Random123, the authors' own code: counter, key, result.
KNOWN = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text: str) -> list[np.typing.NDArray[np.uint64]]:
    return [np.array([int(word, 16)], np.uint64) for word in text.split()]


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN)
def test_the_bits_are_those_that_the_authors_publish(counter: str, key: str, result: str) -> None:
    assert philox(words(counter), words(key)) == words(result)


def test_latents_are_standard_normal_and_independent() -> None:
    values = latents(range(20_000), 7).astype(np.float64)
    assert all(stats.kstest(column, "norm").pvalue > 1e-3 for column in values.T)
    assert abs(np.corrcoef(values.T) - np.eye(7)).max() < 0.03
    assert abs(np.corrcoef(values[:-1, 0], values[1:, 0])[0, 1]) < 0.03  # seeds in a row


def test_a_latent_depends_on_its_own_seed_and_on_all_of_it() -> None:
    seeds = [5, 2**32 + 5, 5 + 2**62, MAX_SEED]
    together = latents(seeds, 6)
    assert len({row.tobytes() for row in together}) == 4
    for row, seed in zip(together, seeds, strict=True):
        assert np.array_equal(latents([seed], 6)[0], row)
        assert np.array_equal(latents([seed], 3)[0], row[:3])  # a longer latent begins as a shorter one
    assert latents([], 4).shape == (0, 4)


def test_a_seed_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="expected seeds of 0 to"):
        latents([-1], 4)
