"""The peers' side, run by the peers' own Python: `python -m tests.bench.training.peers IMAGES WORK`.

For each line of JSON on its input it trains once and answers with the seconds a step. Every peer trains the project's
own networks (`cases`), on one thread, from a data loader in the same process, as its documentation shows, without what
only talks (progress bars). Only `trainers.families` of the project is imported, which needs torch and pydantic.
"""

import contextlib
import importlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from tests.bench.training.bare import negative_elbo, vae_of
from tests.bench.training.cases import LR, Case
from tests.bench.training.clock import Clock

Train = Callable[[Case, Tensor, int, Path], Clock]


def main(images_path: str, work: str) -> None:
    """Answer until the input ends. What the peers print goes to the error stream."""
    torch.set_num_threads(1)
    unit_NCHW = torch.load(images_path).float() / 255
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    for line in sys.stdin:
        request = json.loads(line)
        case = Case(**request["case"])
        with contextlib.redirect_stdout(sys.stderr):
            clock = PEERS[request["peer"]](case, unit_NCHW, request["steps"], Path(work))
        print(json.dumps(clock.seconds_per_step(request["warmup"])), file=answers, flush=True)


def part(unit_NCHW: Tensor, case: Case, steps: int) -> Tensor:
    """As many images as an epoch of these steps has, or all that there are: pythae counts in epochs only."""
    return unit_NCHW[: steps * case.batch_size]


def epochs(unit_NCHW: Tensor, case: Case, steps: int) -> int:
    """How many epochs make the steps."""
    return max(1, round(steps * case.batch_size / len(unit_NCHW)))


def lightning_vae(case: Case, unit_NCHW: Tensor, steps: int, work: Path) -> Clock:
    """Lightning's Trainer: a module with `training_step` that logs its loss, the CSV logger, no progress bar."""
    lightning = importlib.import_module("lightning")
    loggers = importlib.import_module("lightning.pytorch.loggers")
    clock = Clock()

    class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]  # the peers' library is not here
        def __init__(self) -> None:
            super().__init__()
            self.network = vae_of(case)

        def training_step(self, batch: list[Tensor], index: int) -> Tensor:
            loss = negative_elbo(self.network, batch[0])
            self.log("loss", loss)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), lr=LR)

        def on_train_batch_end(self, *arguments: Any) -> None:
            clock.tick()

    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=steps,
        logger=loggers.CSVLogger(work / "lightning"),
        default_root_dir=work / "lightning",
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    loader = DataLoader(TensorDataset(unit_NCHW), case.batch_size, shuffle=True, drop_last=True)
    trainer.fit(Module(), loader)
    return clock


def pythae_vae(case: Case, unit_NCHW: Tensor, steps: int, work: Path) -> Clock:
    """pythae's VAE and BaseTrainer; the decoder gives probabilities, as its loss wants them."""
    models = importlib.import_module("pythae.models")
    bases = importlib.import_module("pythae.models.nn")
    outputs = importlib.import_module("pythae.models.base.base_utils")
    trainers = importlib.import_module("pythae.trainers")
    callbacks = importlib.import_module("pythae.trainers.training_callbacks")
    datasets = importlib.import_module("pythae.data.datasets")
    clock, network = Clock(), vae_of(case)
    labels_B = torch.zeros(case.batch_size, dtype=torch.int64)

    class Encoder(bases.BaseEncoder):  # type: ignore[misc, name-defined]  # the peers' library is not here
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleList([network.down, network.encoder])

        def forward(self, x_BCHW: Tensor) -> Any:
            mean_BZ, log_variance_BZ = network.encode(x_BCHW, labels_B[: len(x_BCHW)])
            return outputs.ModelOutput(embedding=mean_BZ, log_covariance=log_variance_BZ)

    class Decoder(bases.BaseDecoder):  # type: ignore[misc, name-defined]  # the peers' library is not here
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleList([network.decoder, network.up])

        def forward(self, z_BZ: Tensor) -> Any:
            return outputs.ModelOutput(reconstruction=network.decode(z_BZ, labels_B[: len(z_BZ)]).sigmoid())

    class Marks(callbacks.TrainingCallback):  # type: ignore[misc, name-defined]  # the peers' library is not here
        def on_train_step_end(self, *arguments: Any, **named: Any) -> None:
            clock.tick()

    config = models.VAEConfig(
        input_dim=tuple(unit_NCHW.shape[1:]), latent_dim=network.latent_size, reconstruction_loss="bce"
    )
    model = models.VAE(config, encoder=Encoder(), decoder=Decoder())
    images_NCHW = part(unit_NCHW, case, steps)
    training = trainers.BaseTrainerConfig(
        output_dir=str(work / "pythae"),
        learning_rate=LR,
        per_device_train_batch_size=case.batch_size,
        num_epochs=epochs(images_NCHW, case, steps),
        no_cuda=True,
    )
    dataset = datasets.BaseDataset(images_NCHW, torch.zeros(len(images_NCHW)))
    trainers.BaseTrainer(model, dataset, training_config=training, callbacks=[Marks()]).train()
    return clock


def dcgan(case: Case, unit_NCHW: Tensor, steps: int, work: Path) -> Clock:
    """The loop of PyTorch's DCGAN example (pytorch/examples, dcgan/main.py) with our networks for its own.

    Its three backward passes, its one generated batch for both players, its means that are read every step; lines are
    made every 50 steps, and no pictures.
    """
    model, clock = case.build(), Clock()
    generator, discriminator = model.networks["generator"], model.networks["discriminator"]
    of_generator = torch.optim.Adam(generator.parameters(), lr=LR, betas=(0.5, 0.999))
    of_discriminator = torch.optim.Adam(discriminator.parameters(), lr=LR, betas=(0.5, 0.999))
    criterion = nn.BCEWithLogitsLoss()
    loader = DataLoader(TensorDataset(2 * unit_NCHW - 1), case.batch_size, shuffle=True, drop_last=True)
    labels_B = torch.zeros(case.batch_size, dtype=torch.int64)
    done = 0
    while done < steps:
        for (real_BCHW,) in loader:
            discriminator.zero_grad()
            label = torch.full((case.batch_size,), 1.0)
            output = discriminator(real_BCHW, labels_B[:, None])
            loss_real = criterion(output, label)
            loss_real.backward()
            d_x = output.mean().item()
            fake_BCHW = generator(torch.randn(case.batch_size, model.latent_size), labels_B).tanh()
            label.fill_(0.0)
            output = discriminator(fake_BCHW.detach(), labels_B[:, None])
            loss_fake = criterion(output, label)
            loss_fake.backward()
            d_g_z1 = output.mean().item()
            of_discriminator.step()

            generator.zero_grad()
            label.fill_(1.0)
            output = discriminator(fake_BCHW, labels_B[:, None])
            loss = criterion(output, label)
            loss.backward()
            d_g_z2 = output.mean().item()
            of_generator.step()
            if done % 50 == 0:
                lost = (loss_real + loss_fake).item()
                print(f"[{done}] Loss_D: {lost:.4f} Loss_G: {loss.item():.4f} D(x): {d_x:.4f} {d_g_z1} {d_g_z2}")
            clock.tick()
            done += 1
            if done == steps:
                break
    return clock


PEERS: dict[str, Train] = {"Lightning": lightning_vae, "pythae": pythae_vae, "DCGAN's loop": dcgan}

if __name__ == "__main__":
    main(*sys.argv[1:])
