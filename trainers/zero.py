"""DeepSpeed's engines behind `trainers.engine.Engine`: ZeRO stage 0 to 3 (Rajbhandari et al. 2020), in fp32 masters.

What each worker holds a part of: nothing (stage 0), Adam's moments (1), and gradients (2), and parameters (3). The only
importer of deepspeed. `torch.distributed` must be initialised, with a LOCAL_RANK in the environment.

Stage 3 fetches a submodule's parameters when its `forward` begins, and lets go of them behind it, once on the way
forward and once on the way back. DeepSpeed sees the way back by hooks on the tensors that a `forward` gives: they
must lie in tuples (named ones too), lists or dicts. It goes on without a word where they lie in another object, and
computes wrong gradients; here that is an error.
"""

import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipeline.errors import TrainingError
from pipeline.sections import ClusterSpec
from trainers.engine import (
    STATE_KEYS,
    Engine,
    TorchEngine,
    WholeState,
    adam,
    adam_state,
    clip,
    load_adam_state,
    set_lr,
)
from trainers.families import Adam


def maker(cluster: ClusterSpec) -> Callable[[nn.Module, Adam], Engine]:
    """What makes the engines that the recipe's `cluster:` asks for."""
    if cluster.engine == "torch":
        return TorchEngine

    def make(module: nn.Module, settings: Adam) -> Engine:
        return deepspeed_engine(module, settings, cluster.zero, cluster.offload == "cpu", cluster.accumulate)

    return make


def deepspeed_engine(
    module: nn.Module, settings: Adam, zero: int, offload: bool = False, accumulate: int = 1
) -> "DeepSpeedEngine":
    """DeepSpeed at a ZeRO stage; `offload` keeps Adam and its state on the CPU (stage 1 to 3)."""
    kinds: dict[int, type[Replicated | Sharded | FullySharded]]
    kinds = {0: Replicated, 1: Sharded, 2: Sharded, 3: FullySharded}
    return kinds[zero](module, settings, zero, offload, accumulate)


class DeepSpeedEngine(Engine):
    """What the stages have in common."""

    def __init__(self, module: nn.Module, settings: Adam, zero: int, offload: bool, accumulate: int) -> None:
        device = next(module.parameters()).device
        deepspeed = _import_deepspeed(device)
        values = sum(parameter.numel() + parameter.numel() % 2 for parameter in module.parameters())  # it wants it even
        sharding: dict[str, Any] = {
            "stage": zero,
            # DeepSpeed's own sizes are buffers of 2 GB for each network.
            "reduce_bucket_size": values,
            "allgather_bucket_size": values,
            "stage3_prefetch_bucket_size": values // 4,
            "stage3_param_persistence_threshold": 0,  # small parameters too: memory is then what theory says
        }
        if offload:
            sharding["offload_optimizer"] = {"device": "cpu", "pin_memory": device.type == "cuda"}
        config = {
            "train_batch_size": dist.get_world_size() * accumulate,  # of DeepSpeed's own data loader, not in use
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": accumulate,
            "gradient_clipping": settings.clip_norm if zero else 0.0,  # its default is 1; stage 0 is clipped here
            "zero_optimization": sharding,
            # torch's fused Adam steps on the CPU; DeepSpeed's own would be compiled at first use.
            "zero_force_ds_cpu_optimizer": False,
            "steps_per_print": 2**31,
        }
        self._engine, self.optimizer, _, _ = deepspeed.initialize(
            model=module, optimizer=adam(module, settings), config=config, dist_init_required=False
        )
        self._device, self._zero = device, zero
        self._clip_norm = settings.clip_norm
        self._parameters = list(module.parameters())

    def accumulate(self, loss: Tensor) -> None:
        self._backward(loss)
        self._engine.step()  # counts; DeepSpeed steps at the last of `accumulate` calls

    def _backward(self, loss: Tensor) -> None:
        if self._zero:
            # What a forward of DeepSpeed's engine begins with; else a part's gradients replace those before.
            self.optimizer.clear_backward_seen_flag()
        self._engine.backward(loss, scale_wrt_gas=False)

    def step(self, loss: Tensor, lr: float) -> Tensor:
        set_lr(self.optimizer, lr)
        self._backward(loss)
        self._engine.step()
        return torch.as_tensor(self._engine.get_global_grad_norm(), dtype=torch.float32, device=self._device)


class Replicated(WholeState, DeepSpeedEngine):
    """Stage 0: every worker holds everything, as with `TorchEngine`."""

    def __init__(self, module: nn.Module, settings: Adam, zero: int, offload: bool, accumulate: int) -> None:
        DeepSpeedEngine.__init__(self, module, settings, zero, offload, accumulate)
        WholeState.__init__(self, self._engine.module)

    def step(self, loss: Tensor, lr: float) -> Tensor:
        set_lr(self.optimizer, lr)
        self._backward(loss)
        norm = clip([p.grad for p in self._parameters if p.grad is not None], self._clip_norm)
        self._engine.step()
        return norm

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        self.module.load_state_dict(weights)

    def optimizer_state(self) -> dict[str, Tensor]:
        return adam_state(self.module, self.optimizer)

    def load_optimizer_state(self, state: dict[str, Tensor]) -> None:
        load_adam_state(self.module, self.optimizer, state)


class Sharded(WholeState, DeepSpeedEngine):
    """Stage 1 and 2: a worker steps its part of the parameters, as one flat tensor, and all gather them."""

    def __init__(self, module: nn.Module, settings: Adam, zero: int, offload: bool, accumulate: int) -> None:
        DeepSpeedEngine.__init__(self, module, settings, zero, offload, accumulate)
        WholeState.__init__(self, self._engine.module)

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        self.module.load_state_dict(weights)
        self.optimizer.refresh_fp32_params()  # ZeRO steps its own copy of the parameters

    def optimizer_state(self) -> dict[str, Tensor]:
        from deepspeed.utils import safe_get_full_optimizer_state

        state = {
            f"{name}/{key}": safe_get_full_optimizer_state(parameter, key).detach()
            for name, parameter in self.module.named_parameters()
            for key in STATE_KEYS
        }
        return state | {"step": step_of(self.optimizer.optimizer)}

    def load_optimizer_state(self, state: dict[str, Tensor]) -> None:
        from deepspeed.utils import safe_set_full_optimizer_state

        make_moments(self.optimizer.optimizer, self.optimizer.single_partition_of_fp32_groups, state)
        self.optimizer._hp_optimizer_states_linked = False  # to those that the last line replaced
        self.optimizer._lazy_init_hp_params_optimizer_state()
        for name, parameter in self.module.named_parameters():
            for key in STATE_KEYS:
                safe_set_full_optimizer_state(parameter, state[f"{name}/{key}"].to(parameter.device), key)


class FullySharded(DeepSpeedEngine):
    """Stage 3: a worker holds and steps its part of each parameter, flat and padded to the same size everywhere."""

    def __init__(self, module: nn.Module, settings: Adam, zero: int, offload: bool, accumulate: int) -> None:
        super().__init__(module, settings, zero, offload, accumulate)
        self.module = self._engine.module
        self._named = dict(self.module.named_parameters())
        whole = self.module.state_dict(keep_vars=True)
        self._buffers = {name: tensor for name, tensor in whole.items() if name not in self._named}
        self._rank, self._world = dist.get_rank(), dist.get_world_size()
        for name, submodule in self.module.named_modules():
            _check_once(submodule, name)

    def shards(self) -> dict[str, Tensor]:
        from deepspeed.utils import safe_get_local_fp32_param

        with self._trained():
            parts = {name: safe_get_local_fp32_param(parameter) for name, parameter in self._named.items()}
        return parts | self._buffers

    @contextmanager
    def _trained(self) -> Iterator[None]:
        """Of a parameter that is held fixed, DeepSpeed tells nothing, and takes nothing for it."""
        before = [parameter.requires_grad for parameter in self._parameters]
        for parameter in self._parameters:
            parameter.requires_grad = True
        yield
        for parameter, trained in zip(self._parameters, before, strict=True):
            parameter.requires_grad = trained

    def gather(self, shards: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: self._whole(name, shard) if name in self._named else shard for name, shard in shards.items()}

    def _whole(self, name: str, shard: Tensor) -> Tensor:
        parameter: Any = self._named[name]
        parts = [torch.empty_like(shard, device=self._device) for _ in range(self._world)]
        dist.all_gather(parts, shard.detach().to(self._device))
        # On the CPU: the device has room for one whole parameter, but perhaps not for all.
        whole: Tensor = torch.cat(parts)[: parameter.ds_numel].view(parameter.ds_shape).cpu()
        return whole

    def split(self, whole: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: self._part(name, tensor) if name in self._named else tensor for name, tensor in whole.items()}

    def _part(self, name: str, whole: Tensor) -> Tensor:
        parameter: Any = self._named[name]
        size = parameter.ds_tensor.numel()
        flat = torch.zeros(size * self._world, dtype=torch.float32)
        flat[: parameter.ds_numel] = whole.flatten().cpu()
        return flat[size * self._rank : size * (self._rank + 1)].to(self._device)

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        import deepspeed
        from deepspeed.utils import safe_set_local_fp32_param

        with deepspeed.zero.GatheredParameters(self._parameters, modifier_rank=0):
            self.module.load_state_dict(weights)
        with self._trained():
            for name, parameter in self._named.items():
                safe_set_local_fp32_param(parameter, self._part(name, weights[name]))

    def optimizer_state(self) -> dict[str, Tensor]:
        from deepspeed.utils import safe_get_local_optimizer_state

        with self._trained():
            state = {
                f"{name}/{key}": self._whole(name, safe_get_local_optimizer_state(parameter, key))
                for name, parameter in self._named.items()
                for key in STATE_KEYS
            }
        return state | {"step": step_of(self.optimizer.optimizer)}

    def load_optimizer_state(self, state: dict[str, Tensor]) -> None:
        from deepspeed.utils import safe_set_local_optimizer_state

        make_moments(self.optimizer.optimizer, self.optimizer.fp32_partitioned_groups_flat, state)
        with self._trained():
            for name, parameter in self._named.items():
                for key in STATE_KEYS:
                    safe_set_local_optimizer_state(parameter, self._part(name, state[f"{name}/{key}"]), key)


def step_of(optimizer: torch.optim.Optimizer) -> Tensor:
    """How many steps an Adam took."""
    step: Tensor = next(iter(optimizer.state.values()))["step"]
    return step.detach().cpu().clone()


def make_moments(optimizer: torch.optim.Optimizer, flats: list[Tensor], state: dict[str, Tensor]) -> None:
    """Room for moments: Adam makes them at its first step only, and a restore comes before that."""
    for flat in flats:
        step = state["step"].to(flat.device, copy=True)
        optimizer.state[flat] = {**{key: torch.zeros_like(flat) for key in STATE_KEYS}, "step": step}


def _import_deepspeed(device: torch.device) -> Any:
    if device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"  # read when deepspeed is imported; its own guess may be a GPU
        os.environ["LOCAL_SIZE"] = "1"  # else stage 3 starts a process at each step to count CPU sockets
    # DeepSpeed 0.19 calls collectives by names that torch 2.13 would have changed; it says so at every step.
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # The op would be compiled at first use (a minute, and it needs a C++ compiler); it serves inference only.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def _check_once(module: nn.Module, name: str) -> None:
    """Refuse the module's first output if DeepSpeed would overlook tensors in it (see the head of this file)."""

    def check(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        handle.remove()
        if not _seen(output):
            raise TrainingError(
                f"cluster.zero: at stage 3 a network gives its tensors in tuples, lists or dicts, got a "
                f"{type(output).__name__} of {name or type(module).__name__}; make it a NamedTuple, or choose zero: 2"
            )

    handle = module.register_forward_hook(check)


def _seen(output: Any) -> bool:
    if isinstance(output, tuple | list):
        return all(_seen(one) for one in output)
    if isinstance(output, dict):
        return all(_seen(one) for one in output.values())
    return output is None or isinstance(output, Tensor | bool | int | float | str)
