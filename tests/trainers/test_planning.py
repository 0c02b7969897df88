"""A plan, held against what real runs of one and of two workers used."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from pipeline.artifacts import Dataset
from pipeline.errors import RecipeError, UserError
from pipeline.gpus import Gpu, known, named
from pipeline.recipe import Recipe
from pipeline.records import load
from pipeline.store import open_store
from tests.trainers.conftest import Digits, node_cache, small_recipe
from trainers import checkpoints, loop, stream
from trainers.engine import TorchEngine
from trainers.planning import Machine, ModelPlan, plan_recipe
from trainers.state import State
from trainers.task import Place, Task

SMALL_GPU = Gpu("small", 2, 100, 50)
CPU = torch.device("cpu")
OVERRIDES = ("models.gan.steps=4", "models.gan.checkpoint_every_steps=4", "models.gan.preview_every_steps=0")


def plan_of(recipe: Recipe, model: str, **machine: Any) -> ModelPlan:
    plans = plan_recipe(recipe, Machine(SMALL_GPU, **machine), num_classes=10)
    return next(plan for plan in plans if plan.model == model)


def task_of(digits: Digits, run_id: str) -> Task:
    return Task(digits.store, small_recipe(*OVERRIDES), "gan", digits.dataset, run_id, node_cache())


def test_a_run_of_one_worker_keeps_and_writes_what_was_planned(digits: Digits) -> None:
    task, place = task_of(digits, "planned"), Place(0, 1, CPU)
    plan = plan_of(task.recipe, "gan")
    loop.train(task, place, TorchEngine, print)
    saved = checkpoints.newest(digits.store, task.run_ref)
    assert saved is not None
    written = sum(tensor.nbytes for name, tensor in saved.tensors.items() if not name.startswith("meter/"))
    assert written == pytest.approx(plan.checkpoint_bytes, rel=0.001)  # beside it Adam's count of steps

    state = State(task, place, TorchEngine)
    weights = sum(tensor.nbytes for engine in state.engines.values() for tensor in engine.shards().values())
    trained = sum(p.nbytes for network in state.networks.values() for p in network.parameters())
    average = sum(tensor.nbytes for tensor in state.average().values())
    assert plan.stages[0].kept == weights + 3 * trained + average  # a gradient and two moments each
    assert plan.stages[0].sent == 0


def test_a_first_epoch_fetches_the_shards_that_there_are(digits: Digits) -> None:
    recipe, images = small_recipe(*OVERRIDES), digits.dataset.splits["train"]
    plan = plan_of(recipe, "gan")
    requests, bytes_ = plan.store_rates
    seconds = images / plan.batch_size * plan.chosen.seconds
    fetched = stream.split_shards(digits.dataset, "train")
    assert requests * seconds == pytest.approx(len(fetched), abs=1)  # an ingest rounds shards up and down
    assert bytes_ * seconds == pytest.approx(images * 64)
    two_nodes = plan_of(recipe, "gan", workers=2, gpus_per_node=1)
    share = two_nodes.chosen.seconds / plan.chosen.seconds
    assert two_nodes.store_rates[0] == pytest.approx(2 * requests / share)  # each node reads all shards


class Sent:
    """Bytes of tensors that went into all-reduces."""

    def __init__(self) -> None:
        self.bytes, self._reduce = 0, dist.all_reduce

    def all_reduce(self, tensor: torch.Tensor, *arguments: Any, **named: Any) -> Any:
        self.bytes += tensor.nbytes
        return self._reduce(tensor, *arguments, **named)


def worker(rank: int, folder: str, store_uri: str, dataset_ref: str) -> None:
    torch.set_num_threads(1)
    store = open_store(store_uri)
    task = task_of(Digits(store, load(store, dataset_ref, Dataset)), "planned-2")
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    sent = Sent()
    dist.all_reduce = sent.all_reduce
    loop.train(task, Place(rank, 2, CPU), TorchEngine, lambda line: None)
    Path(folder, str(rank)).write_text(str(sent.bytes))
    dist.barrier()
    os._exit(0)  # gloo's threads may abort while the group is taken down


def test_two_workers_send_what_was_planned(digits: Digits, tmp_path: Path) -> None:
    """A ring of two sends as many bytes as a tensor has: half of it to be added up, half of it added up."""
    spawn(worker, (str(tmp_path), digits.store.uri, digits.dataset.ref), nprocs=2)  # type: ignore[no-untyped-call]
    plan = plan_of(small_recipe(*OVERRIDES), "gan", workers=2)
    for rank in "01":
        sent = int((tmp_path / rank).read_text()) / plan.steps
        assert plan.stages[0].sent <= sent <= 1.01 * plan.stages[0].sent  # beside gradients the metrics


def test_zero_spreads_memory_and_stage_3_sends_half_as_much_again() -> None:
    plan = plan_of(small_recipe(), "vae", workers=4)
    kept = [stage.kept for stage in plan.stages]
    assert kept[2] < kept[1] and kept[3] < 0.5 * kept[0]
    sent = [stage.sent for stage in plan.stages]
    assert sent[0] == sent[1] == sent[2] == round(2 * 4 * plan.cost.parameters * 3 / 4)
    assert sent[3] == pytest.approx(1.5 * sent[0])


def test_activations_that_are_computed_again_and_moments_on_the_cpu_are_not_of_the_gpu() -> None:
    small = (
        "models.vae.preset=base",
        "models.gan.preset=base",
        "models.vae.batch_size=16",
        "dataset.height=16",
        "dataset.width=16",
    )
    plain, again = (
        plan_of(small_recipe(*small, *more), "vae") for more in ((), ("cluster.checkpoint_activations=true",))
    )
    assert again.stages[0].activations < 0.7 * plain.stages[0].activations
    assert 1.1 < again.stages[0].compute_seconds / plain.stages[0].compute_seconds < 1.4
    assert again.cost.flops_per_step > 1.1 * plain.cost.flops_per_step  # the work that is shown is that of the step
    deepspeed = ("cluster.launcher=ray", "cluster.engine=deepspeed", "cluster.zero=1", "cluster.offload=cpu")
    offloaded = plan_of(small_recipe(*small, *deepspeed), "vae")
    moments = plain.stages[1].kept - offloaded.stages[1].kept
    assert moments == 12 * plain.cost.parameters  # and the copy of the weights that goes with them


def test_more_workers_than_a_batch_has_images_are_no_plan() -> None:
    with pytest.raises(RecipeError, match=r"cluster.workers: expected at most the models.gan.batch_size 60, got 64"):
        plan_of(small_recipe("models.gan.batch_size=60", "models.vae.batch_size=64"), "gan", workers=64)
    assert plan_of(small_recipe("models.gan.batch_size=64", "models.vae.batch_size=64"), "gan", workers=64).stages


def test_the_first_stage_that_fits_is_chosen() -> None:
    plan = plan_of(small_recipe(), "vae", workers=4)
    assert plan.chosen.zero == 0
    tight = replace(plan, machine=replace(plan.machine, gpu=replace(SMALL_GPU, memory_gb=0)))
    assert tight.chosen.zero == 3 and not tight.fits(tight.chosen)


def test_workers_share_the_work_and_precision_and_price_count() -> None:
    seconds = {workers: plan_of(small_recipe(), "vae", workers=workers).stages[0].compute_seconds for workers in (1, 4)}
    assert seconds[1] == pytest.approx(4 * seconds[4])
    fp32 = plan_of(small_recipe("cluster.precision=fp32"), "vae", workers=4)
    assert fp32.precision == "fp32" and fp32.stages[0].compute_seconds == pytest.approx(2 * seconds[4])
    priced = plan_of(small_recipe(), "vae", workers=4, price=2.0)
    assert priced.price == pytest.approx(8 * priced.hours)


def test_gpus_by_the_names_of_people_and_of_cuda() -> None:
    assert named("h200").memory_gb == 141 and named("RTX-4090").name == "RTX 4090"
    names = {
        "NVIDIA H100 80GB HBM3": "H100",
        "NVIDIA H100 PCIe": "H100 PCIe",
        "NVIDIA A100-SXM4-80GB": "A100",
        "NVIDIA L40S": "L40S",
        "Tesla T4": "T4",
    }
    for device, name in names.items():
        gpu = known(device)
        assert gpu is not None and gpu.name == name
    assert known("GeForce GTX 9") is None
    with pytest.raises(UserError, match=r"--gpu: expected one of b200, h200, .*; got 'h300'"):
        named("h300")
