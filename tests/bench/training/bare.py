"""Training loops as one writes them by hand in plain torch, on tensors in memory: no trainer, no metrics, no average.

They do the same arithmetic as the families' phases (a test counts the FLOPs of both) and nothing else. Each calls
`tick` after every step.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional

from tests.bench.training.cases import LR, Case
from trainers.families.vae import Vae

Tick = Callable[[], None]


def run(case: Case, images_NCHW: Tensor, steps: int, tick: Tick) -> None:
    """Train the case for some steps."""
    if case.family == "vae":
        vae_loop(case, images_NCHW, steps, tick)
    else:
        gan_loop(case, images_NCHW, steps, tick)


def shuffled(images_NCHW: Tensor, batch_size: int, steps: int) -> Iterator[Tensor]:
    """Batches in [0, 1] of one epoch after another."""
    done = 0
    while done < steps:
        for indices_B in torch.randperm(len(images_NCHW)).split(batch_size):  # type: ignore[no-untyped-call]  # torch leaves it untyped
            if len(indices_B) < batch_size or done == steps:
                break
            yield images_NCHW[indices_B].float().div_(255)
            done += 1


def vae_loop(case: Case, images_NCHW: Tensor, steps: int, tick: Tick) -> None:
    """Kingma & Welling 2014."""
    network = vae_of(case)
    optimizer = torch.optim.Adam(network.parameters(), lr=LR)
    for x_BCHW in shuffled(images_NCHW, case.batch_size, steps):
        loss = negative_elbo(network, x_BCHW)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        optimizer.step()
        tick()


def vae_of(case: Case) -> Vae:
    """The network of a VAE."""
    network = case.build().networks["vae"]
    assert isinstance(network, Vae)
    return network


def negative_elbo(network: Vae, x_BCHW: Tensor) -> Tensor:
    """The mean over a batch in [0, 1], with the Bernoulli likelihood."""
    labels_B = torch.zeros(len(x_BCHW), dtype=torch.int64)
    mean_BZ, log_variance_BZ = network.encode(x_BCHW, labels_B)
    z_BZ = mean_BZ + (0.5 * log_variance_BZ).exp() * torch.randn_like(mean_BZ)
    logits_BCHW = network.decode(z_BZ, labels_B)
    distortion = functional.binary_cross_entropy_with_logits(logits_BCHW, x_BCHW, reduction="sum")
    rate = 0.5 * (mean_BZ**2 + log_variance_BZ.exp() - 1 - log_variance_BZ).sum()
    return (distortion + rate) / len(x_BCHW)


def gan_loop(case: Case, images_NCHW: Tensor, steps: int, tick: Tick) -> None:
    """Goodfellow et al. 2014's game, or with penalties R3GAN's (Huang et al. 2024)."""
    model = case.build()
    generator, discriminator = model.networks["generator"], model.networks["discriminator"]
    of_generator = torch.optim.Adam(generator.parameters(), lr=LR, betas=(0.0, 0.99))
    of_discriminator = torch.optim.Adam(discriminator.parameters(), lr=LR, betas=(0.0, 0.99))
    plain = case.all_options.get("loss") == "non_saturating"
    labels_B = torch.zeros(case.batch_size, dtype=torch.int64)
    labels_P1 = labels_B[:, None]

    def generated() -> Tensor:
        made: Tensor = generator(torch.randn(case.batch_size, model.latent_size), labels_B).tanh()
        return made

    for unit_BCHW in shuffled(images_NCHW, case.batch_size, steps):
        real_BCHW = 2 * unit_BCHW - 1
        discriminator.requires_grad_(True)
        with torch.no_grad():
            fake_BCHW = generated()
        if plain:
            real_B, fake_B = discriminator(real_BCHW, labels_P1), discriminator(fake_BCHW, labels_P1)
            loss = functional.softplus(-real_B).mean() + functional.softplus(fake_B).mean()
        else:
            real_BCHW.requires_grad_(True)
            fake_BCHW.requires_grad_(True)
            real_B, fake_B = discriminator(real_BCHW, labels_P1), discriminator(fake_BCHW, labels_P1)
            loss = functional.softplus(fake_B - real_B).mean()
            loss = loss + 0.5 * (penalty(real_B, real_BCHW) + penalty(fake_B, fake_BCHW))
        of_discriminator.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        of_discriminator.step()

        discriminator.requires_grad_(False)
        fake_B = discriminator(generated(), labels_P1)
        if plain:
            loss = functional.softplus(-fake_B).mean()
        else:
            with torch.no_grad():
                real_B = discriminator(real_BCHW, labels_P1)
            loss = functional.softplus(real_B - fake_B).mean()
        of_generator.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        of_generator.step()
        tick()


def penalty(logits_B: Tensor, images_BCHW: Tensor) -> Tensor:
    """Mean squared norm of the logits' gradient by the images (Mescheder et al. 2018)."""
    (gradient_BCHW,) = torch.autograd.grad(logits_B.sum(), images_BCHW, create_graph=True)
    return gradient_BCHW.square().flatten(1).sum(1).mean()
