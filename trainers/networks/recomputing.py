"""Activation checkpointing (Chen et al. 2016): residual blocks keep their input only, and run again on the way back."""

from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from pipeline.errors import RecipeError
from trainers.networks.blocks import ResidualBlock
from trainers.networks.residual import Block

BLOCKS = (ResidualBlock, Block)


def recompute(networks: dict[str, nn.Module]) -> None:
    """Let the networks' residual blocks run again in each backward. Raises RecipeError where there are none."""
    blocks = [module for network in networks.values() for module in network.modules() if isinstance(module, BLOCKS)]
    if not blocks:
        raise RecipeError(
            "cluster.checkpoint_activations: expected networks with residual blocks, got none; choose preset: base or "
            "large, or checkpoint_activations: false"
        )
    for block in blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)  # type: ignore[method-assign]
