"""A checkpoint exists when its record does; what is damaged is refused, what is half written is passed over."""

from pathlib import Path

import pytest
import torch

from pipeline.errors import IntegrityError
from pipeline.store import Store, open_store
from trainers import checkpoints
from trainers.checkpoints import Checkpoint

RUN = "runs/0123"


@pytest.fixture
def place(tmp_path: Path) -> Store:
    return open_store(f"file://{tmp_path}")


def checkpoint(step: int) -> Checkpoint:
    tensors = {"vae/weight": torch.full((3,), float(step)), "ema/weight": torch.zeros(3)}
    return Checkpoint(step, tensors, [{"step": step, "vae/loss": 1.5}])


def test_the_newest_complete_one_comes_back_whole(place: Store) -> None:
    assert checkpoints.newest(place, RUN) is None
    for step in (10, 20, 30):
        checkpoints.save(place, RUN, checkpoint(step))
    found = checkpoints.newest(place, RUN)
    assert found is not None and found.step == 30
    assert torch.equal(found.part("vae")["weight"], torch.full((3,), 30.0))
    assert found.metrics == [{"step": 30, "vae/loss": 1.5}]
    assert checkpoints.committed_steps(place, RUN) == [20, 30]


def test_one_without_its_record_is_passed_over(place: Store) -> None:
    checkpoints.save(place, RUN, checkpoint(10))
    place.put(f"{RUN}/checkpoints/000000020/state.safetensors", b"half")
    found = checkpoints.newest(place, RUN)
    assert found is not None and found.step == 10


def test_a_flipped_bit_is_refused_by_name(place: Store) -> None:
    checkpoints.save(place, RUN, checkpoint(10))
    key = f"{RUN}/checkpoints/000000010/state.safetensors"
    data = bytearray(place.get(key))
    data[-1] ^= 1
    place.put(key, bytes(data))
    with pytest.raises(IntegrityError, match=r"000000010/state.safetensors: expected .* delete the folder"):
        checkpoints.newest(place, RUN)


def test_committing_a_step_twice_leaves_one_that_fits_its_record(place: Store) -> None:
    checkpoints.save(place, RUN, checkpoint(10))
    checkpoints.save(place, RUN, Checkpoint(10, {"vae/weight": torch.ones(3)}, []))
    found = checkpoints.newest(place, RUN)
    assert found is not None and torch.equal(found.part("vae")["weight"], torch.ones(3))
