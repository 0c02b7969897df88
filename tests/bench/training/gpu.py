"""Images a second on the GPU, where there is one, and the share of its product peak that they make (MFU)."""

import torch
from torch import Tensor

from tests.bench.rows import Limit, Row, row
from tests.bench.training import whole
from tests.bench.training.cases import Case
from tests.bench.training.clock import Clock
from tests.bench.training.peaks import best_seconds
from tests.bench.training.whole import Data, Plan
from trainers.families import DataShape
from trainers.summary import summarise
from trainers.task import Place

READ_EVERY = 10  # steps between two readings of the metrics, which wait for the GPU
READINGS = 6
BATCH_SIZES = {28: 512, 64: 128, 256: 16}  # by side
PRODUCT = 8192


def cases(batch_size: int, preset: str = "base") -> list[Case]:
    """A VAE and a GAN."""
    return [Case(f"{family.upper()} {preset}", family, batch_size, {"preset": preset}) for family in ("vae", "gan")]


def rows(case: Case, data: Data, device: torch.device, peak: float) -> list[Row]:
    """The rate of the whole trainer on single-device steps. `peak` are FLOPs a second."""
    plan = Plan(READINGS * READ_EVERY + 1, log_every=READ_EVERY)
    clock = whole.train(case, data, "torch", plan, whole.new_run(), Place(0, 1, device))
    # Both ends are steps that follow a reading: what lies between them is done, not only asked for.
    rate = case.batch_size / Clock(clock.marks[::READ_EVERY]).seconds_per_step(2) * READ_EVERY
    shape = DataShape(data.dataset.channels, data.dataset.height, data.dataset.width, 0)
    flops = summarise(case.family, case.all_options, shape, case.batch_size).flops_per_image
    limit = Limit(f"{flops / 1e9:,.1f} GFLOP an image at {peak / 1e12:,.1f} TFLOP/s", peak / flops)
    return [row(f"train {case.name} at {shape.height} pixels on {device.type}", rate, "images/s", limit=limit)]


@torch.no_grad()
def product_peak(device: torch.device, size: int = PRODUCT) -> float:
    """FLOPs a second of a product of bfloat16 matrices."""
    a, b = (torch.rand(size, size, device=device).bfloat16() for _ in range(2))

    def multiply() -> Tensor:
        product = a @ b
        return product[0, 0].cpu()  # waits for it

    return 2 * size**3 / best_seconds(multiply)
