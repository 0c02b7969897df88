"""Images a second of the whole trainer against a bare loop and against the peers, all on one thread of one process.

Rounds are taken in turn, and the quickest of each counts: what else the machine does slows a round down, never up.
"""

from collections import defaultdict
from dataclasses import dataclass

from torch import Tensor

from tests.bench.rows import Against, Limit, Row, row
from tests.bench.training import bare, whole
from tests.bench.training.cases import PLAIN, SHAPE, Case
from tests.bench.training.clock import Clock
from tests.bench.training.peers_asked import Peers
from tests.bench.training.whole import Data, Plan
from trainers.summary import summarise

BARE = "a bare loop on tensors in memory"
CHECKPOINT_EACH_SECONDS = 60
ENGINES = {"torch": "single device", "deepspeed": "DeepSpeed ZeRO-0"}


@dataclass(frozen=True)
class Comparison:
    """A case, what runs it beside the trainer, and the bars: shares of the bare loop's rate, of each peer's."""

    case: Case
    peers: tuple[str, ...] = ()
    peers_bar: str = ">= 1"
    engines: tuple[str, ...] = ("torch", "deepspeed")


@dataclass(frozen=True)
class Effort:
    """How long a comparison is measured: a round of the bare loop takes about `seconds`."""

    seconds: float
    rounds: int
    least_steps: int


def comparisons(tiny: bool = True, base: bool = True) -> list[Comparison]:
    """What the table holds."""
    vae = ("Lightning", "pythae")
    gan = ("DCGAN's loop",)
    found = []
    if tiny:
        found += [
            Comparison(Case("VAE tiny", "vae", 128), vae, ">= 1.3"),
            Comparison(Case("GAN tiny (R3GAN's loss)", "gan", 64)),
            Comparison(Case("GAN tiny (DCGAN's loss)", "gan", 64, PLAIN), gan, ">= 1.3"),
        ]
    if base:
        found += [
            Comparison(Case("VAE base", "vae", 16, {"preset": "base"}), vae),
            Comparison(Case("GAN base (DCGAN's loss)", "gan", 8, {"preset": "base", **PLAIN}), gan),
        ]
    return found


def rows(
    comparison: Comparison, images_NCHW: Tensor, data: Data, peers: Peers | None, effort: Effort, peak: float
) -> list[Row]:
    """A comparison's rows. `peak` are FLOPs a second of one thread. Needs a process group of one for DeepSpeed."""
    case = comparison.case
    seconds = measured(comparison, images_NCHW, data, peers, effort)
    rate = {name: case.batch_size / each for name, each in seconds.items()}
    flops = summarise(case.family, case.all_options, SHAPE, case.batch_size).flops_per_image
    limit = Limit(f"{flops / 1e6:,.0f} MFLOP an image at {peak / 1e9:,.0f} GFLOP/s", peak / flops)
    found = []
    for engine in comparison.engines:
        against = Against(BARE, rate[BARE])
        found.append(row(f"train {case.name}, {ENGINES[engine]}", rate[engine], "images/s", against, ">= 0.95", limit))
    for peer in comparison.peers if peers else ():
        bar = comparison.peers_bar
        found.append(row(f"train {case.name}", rate["torch"], "images/s", Against(peer, rate[peer]), bar, limit))
    return found


def measured(
    comparison: Comparison, images_NCHW: Tensor, data: Data, peers: Peers | None, effort: Effort
) -> dict[str, float]:
    """The least seconds a step of each."""
    case, best = comparison.case, defaultdict[str, float](lambda: float("inf"))
    steps = _steps(case, images_NCHW, effort)
    warmup = max(1, steps // 8)
    for _ in range(effort.rounds):
        best[BARE] = min(best[BARE], _bare(case, images_NCHW, steps).seconds_per_step(warmup))
        for engine in comparison.engines:
            plan = Plan(steps + steps // 2, checkpoint_every=steps)
            clock = whole.train(case, data, engine, plan, whole.new_run())
            took = clock.seconds_per_step_with_checkpoints(warmup, steps, CHECKPOINT_EACH_SECONDS)
            best[engine] = min(best[engine], took)
        for peer in comparison.peers if peers else ():
            assert peers is not None
            best[peer] = min(best[peer], peers.seconds_per_step(peer, case, steps, warmup))
    return dict(best)


def _bare(case: Case, images_NCHW: Tensor, steps: int) -> Clock:
    clock = Clock()
    bare.run(case, images_NCHW, steps, clock.tick)
    return clock


def _steps(case: Case, images_NCHW: Tensor, effort: Effort) -> int:
    """How many steps the bare loop makes in a round."""
    each = _bare(case, images_NCHW, 3).seconds_per_step(1)
    return max(effort.least_steps, round(effort.seconds / each))


def overhead_rows(images_NCHW: Tensor, data: Data, effort: Effort) -> list[Row]:
    """Seconds a step beyond a bare loop's, where the network is next to nothing."""
    case = Case("trivial", "vae", 8, {"network": "mlp", "hidden": [1], "latent_size": 1})
    seconds = measured(Comparison(case), images_NCHW, data, None, effort)
    limit = Limit("the bare loop's whole step", 1e3 * seconds[BARE])
    bars = {"torch": "<= 0.3", "deepspeed": "<= 1"}
    return [
        row(
            f"a step's overhead at a trivial network, {ENGINES[engine]}",
            1e3 * (seconds[engine] - seconds[BARE]),
            "ms",
            bar=bar,
            limit=limit,
        )
        for engine, bar in bars.items()
    ]
