"""The engines take the same steps, and their optimizer state moves between engines and numbers of workers."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

from trainers.engine import DeepSpeedEngine, Engine, TorchEngine
from trainers.families import Adam

SETTINGS = Adam(lr=1e-2, beta1=0.0, beta2=0.99)
BATCH = 8
Make = Callable[[nn.Module], Engine]


def networks() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    generator = nn.Sequential(nn.Linear(4, 16), nn.SiLU(), nn.Linear(16, 6))
    discriminator = nn.Sequential(nn.Linear(6, 16), nn.LeakyReLU(), nn.Linear(16, 1))
    return generator, discriminator


def gan_step(step: int, generator: Engine, discriminator: Engine, rank: int, world: int) -> None:
    """One step of a small GAN with an exact R1 penalty on this worker's rows of a global batch."""
    random = torch.Generator().manual_seed(step)
    real = torch.randn(BATCH, 6, generator=random)[rank::world].requires_grad_()
    z = torch.randn(BATCH, 4, generator=random)[rank::world]
    generator.module.requires_grad_(False)
    discriminator.module.requires_grad_(True)
    scores = discriminator.module(real)
    (slope,) = torch.autograd.grad(scores.sum(), real, create_graph=True)
    fake = generator.module(z)
    loss = nn.functional.softplus(discriminator.module(fake)).mean() + nn.functional.softplus(-scores).mean()
    discriminator.step(loss + slope.square().sum(1).mean(), SETTINGS.lr)
    generator.module.requires_grad_(True)
    discriminator.module.requires_grad_(False)
    generator.step(nn.functional.softplus(-discriminator.module(generator.module(z))).mean(), SETTINGS.lr)


def make_engine(kind: str, module: nn.Module) -> Engine:
    if kind == "torch":
        return TorchEngine(module, SETTINGS)
    return DeepSpeedEngine(module, SETTINGS, zero=int(kind[-1]))  # type: ignore[arg-type]


def worker(rank: int, world: int, kind: str, folder: str, steps: range) -> None:
    """Take the steps, starting from the folder's state where there is one, and leave the state there."""
    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = str(rank)  # a launcher's duty; DeepSpeed insists on it
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous-{steps.start}-{world}", rank=rank, world_size=world
    )
    engines = [make_engine(kind, network) for network in networks()]
    state_file = Path(folder) / "state.pt"
    if steps.start:
        for engine, state in zip(engines, torch.load(state_file), strict=True):
            engine.module.load_state_dict(state["weights"])
            engine.parameters_changed()
            engine.load_optimizer_state(state["optimizer"])
    for step in steps:
        gan_step(step, engines[0], engines[1], rank, world)
    states = [
        {
            "weights": {k: v.clone() for k, v in e.module.state_dict().items()},
            "optimizer": e.optimizer_state(),
        }
        for e in engines
    ]
    if rank == 0:
        torch.save(states, state_file)
    dist.barrier()
    dist.destroy_process_group()


def train(folder: Path, kind: str, world: int, steps: range = range(12)) -> dict[str, Tensor]:
    """Train in `world` processes and give every tensor of the end state by name."""
    folder.mkdir(exist_ok=True)
    spawn(worker, (world, kind, str(folder), steps), nprocs=world)  # type: ignore[no-untyped-call]
    states = torch.load(folder / "state.pt")
    return {f"{i}/{part}/{name}": t for i, s in enumerate(states) for part in s for name, t in s[part].items()}


def assert_close(left: dict[str, Tensor], right: dict[str, Tensor], tolerance: float) -> None:
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        torch.testing.assert_close(tensor, right[name], rtol=tolerance, atol=tolerance, msg=name)


@pytest.mark.parametrize("kind", ["zero0", "zero1", "zero2"])
def test_deepspeed_takes_the_steps_of_one_torch_worker(tmp_path: Path, kind: str) -> None:
    alone = train(tmp_path / "alone", "torch", 1)
    assert_close(train(tmp_path / kind, kind, 2), alone, 1e-5)


def test_torch_engine_averages_over_two_workers(tmp_path: Path) -> None:
    assert_close(train(tmp_path / "two", "torch", 2), train(tmp_path / "alone", "torch", 1), 1e-5)


@pytest.mark.parametrize("kind", ["torch", "zero0", "zero1", "zero2"])
def test_resume_matches_straight_run_bit_for_bit(tmp_path: Path, kind: str) -> None:
    straight = train(tmp_path / "straight", kind, 2)
    train(tmp_path / "resumed", kind, 2, range(5))
    assert_close(train(tmp_path / "resumed", kind, 2, range(5, 12)), straight, 0.0)


def test_state_moves_to_another_engine_and_number_of_workers(tmp_path: Path) -> None:
    straight = train(tmp_path / "straight", "torch", 1)
    train(tmp_path / "moved", "zero2", 2, range(5))
    assert_close(train(tmp_path / "moved", "torch", 1, range(5, 12)), straight, 1e-5)
