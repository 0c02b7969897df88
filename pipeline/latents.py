"""The latent of a seed: the same numbers in torch, in onnxruntime without torch, and in a browser.

torch's own generator on the CPU reads the low 32 bits of a seed only, so that two sets whose seeds differ above them
would be the same images; and its normal numbers can be had from nothing but torch. Here a latent is a pure function
of 64 bits and a position: Philox 4x32-10 (Salmon et al. 2011, 'Parallel random numbers: as easy as 1, 2, 3') gives 32
random bits a position, Box and Muller (1958) turn two of them into two normal numbers.

    key      the seed's low and high word          counter   number of the block of four, 0, 0, 0

Shape legend: B seeds, Z latent size, N blocks of four words.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Words = NDArray[np.uint64]  # 32 bits each, held in 64 for the products

ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
WORD = 0xFFFFFFFF
MAX_SEED = 2**63 - 1
IMAGES_PER_SET = 2**32
MAX_SETS = 2**31  # seeds of sets


def image_seed(seed: int, index: int) -> int:
    """The seed of the image at `index` of a set made with `seed`."""
    return seed * IMAGES_PER_SET + index


def philox(counter: "Sequence[Words]", key: "Sequence[Words]") -> "list[Words]":
    """Four random words for four words of counter and two of key; arrays are broadcast."""
    import numpy as np

    c0, c1, c2, c3 = counter
    k0, k1 = key
    shift, mask = np.uint64(32), np.uint64(WORD)
    for _ in range(ROUNDS):
        product_0, product_1 = c0 * np.uint64(MULTIPLIERS[0]), c2 * np.uint64(MULTIPLIERS[1])
        c0, c1 = (product_1 >> shift) ^ c1 ^ k0, product_1 & mask
        c2, c3 = (product_0 >> shift) ^ c3 ^ k1, product_0 & mask
        k0, k1 = (k0 + np.uint64(KEY_STEPS[0])) & mask, (k1 + np.uint64(KEY_STEPS[1])) & mask
    return [c0, c1, c2, c3]


def latents(seeds: Sequence[int], latent_size: int) -> "NDArray[np.float32]":
    """Standard normal latents (B, Z), each row from its own seed (0 to 2**63 - 1) alone.

    Logarithm and cosine are the machine's, so a latent may differ in its last bit on another one.
    """
    import numpy as np

    if any(not 0 <= seed <= MAX_SEED for seed in seeds):
        raise ValueError(f"expected seeds of 0 to 2**63 - 1, got {min(seeds)} to {max(seeds)}")
    seeds_B1 = np.asarray(seeds, np.uint64).reshape(-1, 1)
    num_blocks = -(-latent_size // 4)
    blocks_N = np.arange(num_blocks, dtype=np.uint64)
    zero = np.zeros(1, np.uint64)
    key = [seeds_B1 & np.uint64(WORD), seeds_B1 >> np.uint64(32)]
    words_BN4 = np.stack(philox([blocks_N, zero, zero, zero], key), axis=2)
    uniform_BP2 = ((words_BN4.astype(np.float64) + 0.5) / 2**32).reshape(len(seeds), 2 * num_blocks, 2)
    radius_BP = np.sqrt(-2 * np.log(uniform_BP2[..., 0]))
    angle_BP = 2 * np.pi * uniform_BP2[..., 1]
    normal_BP2 = np.stack([radius_BP * np.cos(angle_BP), radius_BP * np.sin(angle_BP)], axis=2)
    return normal_BP2.reshape(len(seeds), 4 * num_blocks)[:, :latent_size].astype(np.float32)
