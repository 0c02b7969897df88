"""Adaptive augmentation: each operation against numpy, derivatives of both orders, and the controller."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from trainers import adaptive
from trainers.families import Noise

SHAPE = (5, 2, 8, 6)


def images() -> Tensor:
    return 2 * torch.rand(SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64) - 1


def noise(step: int = 0, count: int = 5) -> Noise:
    return Noise(0, step, 0, torch.arange(count), count)


def test_chance_zero_changes_nothing_and_one_changes_every_image() -> None:
    assert torch.equal(adaptive.augmented(images(), torch.zeros(1), noise()), images())
    changed = adaptive.augmented(images(), torch.ones(1), noise()) != images()
    assert changed.flatten(1).any(1).all()


def test_operations_happen_with_their_chance() -> None:
    """At chance p an image stays as it is with (1 - p/2)(1 - p)^2 and, moved by no whole pixel, a little more often."""
    count = 4000
    x = torch.rand(count, 1, 64, 64, generator=torch.Generator().manual_seed(2))
    same = (adaptive.augmented(x, torch.tensor([0.3]), noise(count=count)) == x).flatten(1).all(1).float().mean().item()
    unmoved = 0.7 + 0.3 / 17**2 * 1.1  # by -8 to 8 of 64 pixels, the outer two half as often
    assert same == pytest.approx((1 - 0.3 / 2) * unmoved * 0.7 * 0.7, abs=4 * math.sqrt(0.25 / count))


def test_images_are_flipped_and_then_moved_with_their_edge_going_on() -> None:
    flip_B = torch.tensor([False, True, False, False, True])
    by_B2 = torch.tensor([[0.0, 0.0], [0.0, 0.0], [0.25, 0.0], [0.0, -0.5], [0.125, 0.0]])
    got = adaptive.moved(images(), flip_B, by_B2).numpy()
    x = images().numpy()
    assert (got[0] == x[0]).all() and (got[1] == x[1, :, :, ::-1]).all()
    assert (got[2] == np.pad(x[2], ((0, 0), (0, 2), (0, 0)), mode="edge")[:, 2:]).all()
    assert (got[3] == np.pad(x[3], ((0, 0), (0, 0), (3, 0)), mode="edge")[:, :, :6]).all()
    assert (got[4] == np.pad(x[4, :, :, ::-1], ((0, 0), (0, 1), (0, 0)), mode="edge")[:, 1:]).all()


def test_colours_and_cutout_match_numpy() -> None:
    brightness, contrast = torch.tensor([0.0, 0.3, -0.1, 0.0, 1.0]), torch.tensor([0.0, 0.0, 1.0, -1.0, 2.0])
    got = adaptive.recoloured(images(), brightness, contrast)
    expected = images().numpy() * 2 ** contrast.numpy()[:, None, None, None] + brightness.numpy()[:, None, None, None]
    np.testing.assert_allclose(got.numpy(), expected)

    happens_B = torch.tensor([True, False, True, True, True])
    got = adaptive.cut(images(), happens_B, torch.tensor([[0.5, 0.5], [0.5, 0.5], [0.0, 0.0], [1.0, 0.5], [0.3, 0.7]]))
    kept = got != 0
    assert kept[0, :, 2:6, 2:4].any() == 0 and kept[0].sum() == 2 * (
        48 - 4 * 2
    )  # 6 columns: 1.5 each way of the middle
    assert kept[1].all()
    assert not kept[2, :, :2, :1].any() and kept[2, :, 2:].all()
    assert torch.equal(got[kept], images()[kept])


def test_derivatives_of_both_orders_go_through() -> None:
    x = images()[:2].requires_grad_()

    def augment(x_BCHW: Tensor) -> Tensor:
        return adaptive.augmented(x_BCHW, torch.tensor([0.8]), noise(3, 2)) ** 3

    assert torch.autograd.gradcheck(augment, (x,))
    assert torch.autograd.gradgradcheck(augment, (x,))


def test_the_chance_moves_towards_the_target_and_stays_in_its_bounds() -> None:
    chance = torch.zeros(1)
    for sign, expected in (
        (0.9, 0.3),
        (0.9, 0.6),
        (0.9, 0.8),
        (0.9, 0.8),
        (0.2, 0.5),
        (0.6, 0.5),
        (-1.0, 0.2),
        (-1.0, 0),
    ):
        adaptive.adapt(chance, torch.tensor([sign]), target=0.6, step=0.3)
        assert chance.item() == pytest.approx(expected, abs=1e-6), sign


def test_sign_of_overfitting_is_the_mean_sign() -> None:
    logits_B, zeros_B = torch.tensor([3.0, -1.0, 0.5, 0.2]), torch.zeros(4)
    assert adaptive.overfitting(logits_B, zeros_B, 4).tolist() == [0.5]
    assert adaptive.overfitting(logits_B, torch.full((4,), 0.4), 4).tolist() == [0.0]


LOGITS = [3.0, -1.0, 0.5, 0.2, -0.3, 0.0, 7.0]


def worker(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    own_B = torch.tensor(LOGITS)[rank::2]  # four and three
    sign = adaptive.overfitting(own_B, torch.zeros_like(own_B), len(LOGITS))
    Path(folder, f"sign-{rank}").write_bytes(sign.numpy().tobytes())
    dist.barrier()
    dist.destroy_process_group()


def test_sign_of_overfitting_is_the_same_on_two_workers_as_on_one(tmp_path: Path) -> None:
    spawn(worker, (str(tmp_path),), nprocs=2)  # type: ignore[no-untyped-call]
    logits_B = torch.tensor(LOGITS)
    alone = adaptive.overfitting(logits_B, torch.zeros_like(logits_B), len(LOGITS)).numpy().tobytes()
    assert Path(tmp_path, "sign-0").read_bytes() == Path(tmp_path, "sign-1").read_bytes() == alone
