"""One network, its optimizer, and how a loss becomes a step over all workers. The only importer of deepspeed.

Two engines behind one interface. `TorchEngine` needs torch alone: it averages the gradients in one all-reduce.
`DeepSpeedEngine` is DeepSpeed's engine at ZeRO stage 0, 1 or 2. Losses are computed by forward passes through
`engine.module`, so that a gradient penalty (a double backward) and several engines in one step are exact at each
of these stages; a forward through DeepSpeed's own engine would not be.

Optimizer state leaves an engine whole, as named tensors that do not depend on the number of workers, and enters it the
same way: a checkpoint holds nothing pickled, and a run may continue on another number of workers or another engine.
"""

import os
from abc import ABC, abstractmethod
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trainers.families import Adam

STATE_KEYS = ("exp_avg", "exp_avg_sq")  # Adam's two moments, by torch's names


class Engine(ABC):
    """Steps one network. `module` is the network to compute losses with."""

    module: nn.Module

    @abstractmethod
    def step(self, loss: Tensor, lr: float) -> None:
        """Backward, average the gradients over the workers, one Adam step at `lr`, gradients cleared."""

    @abstractmethod
    def optimizer_state(self) -> dict[str, Tensor]:
        """Adam's state as `parameter/moment` tensors and the scalar `step`. Collective: every worker calls it."""

    @abstractmethod
    def load_optimizer_state(self, state: dict[str, Tensor]) -> None:
        """Take the state that `optimizer_state` gave. Collective."""

    @abstractmethod
    def parameters_changed(self) -> None:
        """Tell the engine that somebody wrote to the module's parameters (a restore)."""


def adam(module: nn.Module, settings: Adam) -> torch.optim.Optimizer:
    """Adam as the family asks for it, with decoupled weight decay where there is any."""
    kind = torch.optim.AdamW if settings.weight_decay else torch.optim.Adam
    return kind(
        module.parameters(),
        lr=settings.lr,
        betas=(settings.beta1, settings.beta2),
        eps=settings.eps,
        weight_decay=settings.weight_decay,
    )


class TorchEngine(Engine):
    """Plain torch: one all-reduce of all gradients a step, and none with a single worker."""

    def __init__(self, module: nn.Module, settings: Adam) -> None:
        self.module = module
        self.optimizer = adam(module, settings)
        self._world = dist.get_world_size() if dist.is_initialized() else 1

    def step(self, loss: Tensor, lr: float) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        if self._world > 1:
            self._average_gradients()
        _set_lr(self.optimizer, lr)
        self.optimizer.step()

    def _average_gradients(self) -> None:
        grads = [p.grad for p in self.module.parameters() if p.grad is not None]
        flat = torch.cat([grad.reshape(-1) for grad in grads])
        dist.all_reduce(flat)
        flat /= self._world
        for grad, piece in zip(grads, torch.split(flat, [grad.numel() for grad in grads]), strict=True):
            grad.copy_(piece.view_as(grad))

    def optimizer_state(self) -> dict[str, Tensor]:
        state: dict[str, Tensor] = {}
        for name, parameter in self.module.named_parameters():
            moments = self.optimizer.state[parameter]
            for key in STATE_KEYS:
                state[f"{name}/{key}"] = moments[key].detach().clone()
            state["step"] = moments["step"].detach().clone()
        return state

    def load_optimizer_state(self, state: dict[str, Tensor]) -> None:
        for name, parameter in self.module.named_parameters():
            moments = {key: state[f"{name}/{key}"].to(parameter.device).clone() for key in STATE_KEYS}
            self.optimizer.state[parameter] = {**moments, "step": state["step"].clone()}

    def parameters_changed(self) -> None:
        pass  # the optimizer steps the parameters themselves


class DeepSpeedEngine(Engine):
    """DeepSpeed at ZeRO stage 0, 1 or 2, in fp32. `torch.distributed` must be initialised."""

    def __init__(self, module: nn.Module, settings: Adam, zero: Literal[0, 1, 2]) -> None:
        if next(module.parameters()).device.type == "cpu":
            os.environ["DS_ACCELERATOR"] = "cpu"  # read when deepspeed is imported; its own guess may be a GPU
        import deepspeed

        # The op would be compiled at first use (a minute, and it needs a C++ compiler); it serves inference only.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        world = dist.get_world_size()
        config: dict[str, Any] = {
            "train_batch_size": world,  # counts of DeepSpeed's own data loader, which we do not use
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "zero_optimization": {"stage": zero},
            "steps_per_print": 2**31,
        }
        self._engine, self.optimizer, _, _ = deepspeed.initialize(
            model=module, optimizer=adam(module, settings), config=config, dist_init_required=False
        )
        self.module = self._engine.module
        self._zero = zero

    def step(self, loss: Tensor, lr: float) -> None:
        _set_lr(self.optimizer, lr)
        self._engine.backward(loss)
        self._engine.step()

    def _inner(self) -> torch.optim.Optimizer:
        inner: torch.optim.Optimizer = self.optimizer.optimizer if self._zero else self.optimizer
        return inner

    def optimizer_state(self) -> dict[str, Tensor]:
        from deepspeed.utils import safe_get_full_optimizer_state

        state: dict[str, Tensor] = {}
        for name, parameter in self.module.named_parameters():
            for key in STATE_KEYS:
                if self._zero:
                    state[f"{name}/{key}"] = safe_get_full_optimizer_state(parameter, key).detach().clone()
                else:
                    state[f"{name}/{key}"] = self.optimizer.state[parameter][key].detach().clone()
        state["step"] = next(iter(self._inner().state.values()))["step"].detach().clone()
        return state

    def load_optimizer_state(self, state: dict[str, Tensor]) -> None:
        from deepspeed.utils import safe_set_full_optimizer_state

        if self._zero:
            self._make_empty_moments()
        for name, parameter in self.module.named_parameters():
            moments = {key: state[f"{name}/{key}"].to(parameter.device) for key in STATE_KEYS}
            if not self._zero:
                own = {key: moment.clone() for key, moment in moments.items()}
                self.optimizer.state[parameter] = {**own, "step": state["step"].clone()}
                continue
            for key, moment in moments.items():
                safe_set_full_optimizer_state(parameter, moment, key)
        for inner in self._inner().state.values():
            inner["step"] = state["step"].clone()

    def _make_empty_moments(self) -> None:
        """ZeRO makes its flat moments at the first step only, and a restore comes before that."""
        for flat in self.optimizer.single_partition_of_fp32_groups:
            self._inner().state[flat] = {key: torch.zeros_like(flat) for key in STATE_KEYS}
        self.optimizer._lazy_init_hp_params_optimizer_state()

    def parameters_changed(self) -> None:
        if self._zero:
            self.optimizer.refresh_fp32_params()  # ZeRO steps its own copy of the parameters


def _set_lr(optimizer: Any, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr
