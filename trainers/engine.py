"""One network, its optimizer, and how a loss becomes a step over all workers.

Two kinds of engine behind one interface. `TorchEngine` needs torch alone: it averages the gradients in one all-reduce,
which is the arithmetic of DistributedDataParallel. Those of `trainers.zero` are DeepSpeed's, at ZeRO stage 0 to 3.
Losses are computed by forward passes through `engine.module`, so that a gradient penalty (a double backward) and
several engines in one step are exact; a forward through an engine of DeepSpeed's own would not be.

Weights and optimizer state leave an engine whole, as named tensors that do not depend on the number of workers, and
enter it the same way: a checkpoint holds nothing pickled, and a run may continue on another number of workers or
another engine.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trainers.families import Adam

STATE_KEYS = ("exp_avg", "exp_avg_sq")  # Adam's two moments, by torch's names


class Engine(ABC):
    """Steps one network. `module` is the network to compute losses with."""

    module: nn.Module

    @abstractmethod
    def accumulate(self, loss: Tensor) -> None:
        """Backward of a part of the batch that is not its last: the gradients add up to those of `step`."""

    @abstractmethod
    def step(self, loss: Tensor, lr: float) -> Tensor:
        """Backward, average the gradients over the workers, clip, one Adam step at `lr`, gradients cleared.

        Gives the norm of the averaged gradient before clipping: a scalar on the device, not waited for.
        """

    @abstractmethod
    def shards(self) -> dict[str, Tensor]:
        """What this worker holds of the module's state, by name, live: all of it, but at ZeRO-3 a part of each
        parameter (flat, padded to the same size on every worker)."""

    @abstractmethod
    def gather(self, shards: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Whole tensors of tensors that are split as `shards` are. Collective: every worker calls it."""

    @abstractmethod
    def split(self, whole: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """This worker's part of whole tensors: the inverse of `gather`."""

    @abstractmethod
    def load_weights(self, weights: dict[str, Tensor]) -> None:
        """Take whole parameters and buffers by name. Collective."""

    @abstractmethod
    def optimizer_state(self) -> dict[str, Tensor]:
        """Adam's state as whole `parameter/moment` tensors and the scalar `step`. Collective."""

    @abstractmethod
    def load_optimizer_state(self, state: dict[str, Tensor]) -> None:
        """Take the state that `optimizer_state` gave. Collective."""


def adam(module: nn.Module, settings: Adam) -> torch.optim.Optimizer:
    """Adam as the family asks for it, with decoupled weight decay where there is any.

    `fused` is one pass over each parameter, on CUDA and on CPUs (there 5 times as fast as the loop of operations, which
    differs from it by a unit in the last place).
    """
    kind = torch.optim.AdamW if settings.weight_decay else torch.optim.Adam
    return kind(
        module.parameters(),
        lr=settings.lr,
        betas=(settings.beta1, settings.beta2),
        eps=settings.eps,
        weight_decay=settings.weight_decay,
        fused=True,
    )


def set_lr(optimizer: Any, lr: float) -> None:
    """Step with this learning rate from now on."""
    for group in optimizer.param_groups:
        group["lr"] = lr


@torch.no_grad()
def clip(gradients: list[Tensor], clip_norm: float) -> Tensor:
    """Scale the gradients, in place, to a joint norm of at most `clip_norm` (0: as they are).

    Gives the norm that they had, a scalar. The arithmetic is that of `torch.nn.utils.clip_grad_norm_` (Pascanu et al.
    2013, algorithm 1): times min(1, clip_norm / (norm + 1e-6)).
    """
    norm: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    if clip_norm:
        torch._foreach_mul_(gradients, (clip_norm / (norm + 1e-6)).clamp(max=1.0))
    return norm


class WholeState:
    """The part of an engine that is the same wherever each worker holds the whole module."""

    module: nn.Module

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        # Parameters and buffers themselves, which stay the same objects: a state_dict() a step would cost its walk.
        self._live: dict[str, Tensor] = dict(module.state_dict(keep_vars=True))

    def shards(self) -> dict[str, Tensor]:
        return self._live

    def gather(self, shards: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor.detach() for name, tensor in shards.items()}

    def split(self, whole: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return dict(whole)


class TorchEngine(WholeState, Engine):
    """Plain torch: one all-reduce of all gradients a step, and none with a single worker."""

    def __init__(self, module: nn.Module, settings: Adam) -> None:
        if next(module.parameters()).is_cuda:  # what cuDNN's convolutions are fastest with
            module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # no overload for it
        super().__init__(module)
        self.optimizer = adam(module, settings)
        self._clip_norm = settings.clip_norm
        self._parameters = list(module.parameters())
        self._world = dist.get_world_size() if dist.is_initialized() else 1

    def accumulate(self, loss: Tensor) -> None:
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped

    def step(self, loss: Tensor, lr: float) -> Tensor:
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        if self._world > 1:
            self._average(gradients)
        norm = clip(gradients, self._clip_norm)
        set_lr(self.optimizer, lr)
        self.optimizer.step()
        for parameter in self._parameters:
            parameter.grad = None
        return norm

    def _average(self, gradients: list[Tensor]) -> None:
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        dist.all_reduce(flat)
        flat /= self._world
        pieces = torch.split(flat, [gradient.numel() for gradient in gradients])
        torch._foreach_copy_(gradients, [p.view_as(g) for p, g in zip(pieces, gradients, strict=True)])

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        self.module.load_state_dict(weights)

    def optimizer_state(self) -> dict[str, Tensor]:
        return adam_state(self.module, self.optimizer)

    def load_optimizer_state(self, state: dict[str, Tensor]) -> None:
        load_adam_state(self.module, self.optimizer, state)


def adam_state(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The state of an Adam that steps the module's parameters, as `Engine.optimizer_state` gives it."""
    state: dict[str, Tensor] = {}
    for name, parameter in module.named_parameters():
        moments = optimizer.state[parameter]
        for key in STATE_KEYS:
            state[f"{name}/{key}"] = moments[key].detach().clone()
        state["step"] = moments["step"].detach().cpu().clone()
    return state


def load_adam_state(module: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Tensor]) -> None:
    """Give such an Adam a state."""
    for name, parameter in module.named_parameters():
        # In the parameter's own memory format: a fused step goes through both as they lie.
        moments = {key: torch.empty_like(parameter).copy_(state[f"{name}/{key}"]).detach() for key in STATE_KEYS}
        step = state["step"].to(parameter.device, copy=True)
        optimizer.state[parameter] = {**moments, "step": step}
