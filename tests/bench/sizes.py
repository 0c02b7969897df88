"""How large a run of the benchmarks is."""

from dataclasses import dataclass

from tests.bench.measure import QUICK, THOROUGH, Rule


@dataclass(frozen=True)
class Sizes:
    """Numbers of images; `many` are those over which memory must stay the same."""

    grey28: int = 60_000
    colour64: int = 20_000
    colour256: int = 4_000
    many: tuple[int, int, int] = (10_000, 100_000, 1_000_000)
    many_side: int = 16
    planned_samples: int = 1_000_000_000
    planned_shards: int = 20_000
    batch_size: int = 256
    rule: Rule = THOROUGH


FULL = Sizes()
SMALL = Sizes(
    grey28=600,
    colour64=200,
    colour256=60,
    many=(200, 400, 800),
    planned_samples=1_000_000,
    planned_shards=200,
    batch_size=32,
    rule=QUICK,
)
