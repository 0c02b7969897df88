"""How long a checkpoint holds the training loop up, at the preset `large`.

A run takes its usual step before the first checkpoint; what the later steps take beyond that is the stall, whatever
the loop and its helpers do meanwhile.
"""

from torch import Tensor

from tests.bench.rows import Limit, Row, row
from tests.bench.training import whole
from tests.bench.training.cases import Case
from tests.bench.training.compare import CHECKPOINT_EACH_SECONDS
from tests.bench.training.peaks import copied_bytes_per_second
from tests.bench.training.whole import Data, Plan


def rows(case: Case, data: Data, steps: int, rounds: int) -> list[Row]:
    """The share of time at one checkpoint a minute. A run has `steps` before its checkpoint and as many after it."""
    stalls = []
    for _ in range(rounds):
        clock = whole.train(case, data, "torch", Plan(2 * steps, checkpoint_every=steps), whole.new_run())
        stalls.append(clock.beyond_median(steps - 1, 2 * steps - 1))
    stall = max(min(stalls), 1e-6)  # a run whose later steps were quicker had none that can be seen
    size = checkpoint_bytes(case)
    copying = size / copied_bytes_per_second()
    name = f"a copy of its {size / 2**20:,.0f} MiB in memory, {copying:.2g} s"
    return [
        row(
            f"checkpoint of {case.name} once a minute: the loop's stall",
            stall / CHECKPOINT_EACH_SECONDS,
            "share of time",
            bar="<= 0.02",
            limit=Limit(name, copying / CHECKPOINT_EACH_SECONDS),
        )
    ]


def checkpoint_bytes(case: Case) -> int:
    """Weights, Adam's moments, and the sampling network's average."""
    model = case.build()

    def bytes_of(tensors: list[Tensor]) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    states = {name: bytes_of(list(network.state_dict().values())) for name, network in model.networks.items()}
    moments = sum(2 * bytes_of(list(network.parameters())) for network in model.networks.values())
    return sum(states.values()) + moments + states[model.sampler]
