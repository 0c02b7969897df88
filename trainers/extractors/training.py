"""Train a dataset's own extractor: on the classes, or without labels on quarter turns.

Shape legend: N images of a set, B of a batch, C channels, H height, W width, D feature size, K outputs.
"""

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from pipeline.errors import TrainingError, UserError
from trainers.extractors.inputs import value_range
from trainers.extractors.network import DEFAULT, ExtractorConfig, ExtractorNet, infer

NUM_TURNS = 4  # 0, 90, 180 and 270 degrees
ACCURACY_IMAGES = 10_000  # at most as many of the training images tell the held-in accuracy
CHECK_EVERY_STEPS = 50

Progress = Callable[[int, int], None]  # is told (steps done, steps in all)
Device = str | torch.device


def train_extractor(
    images_NCHW: Tensor,
    labels_N: Tensor | None,
    num_classes: int,
    seed: int,
    *,
    config: ExtractorConfig = DEFAULT,
    device: Device = "cpu",
    progress: Progress | None = None,
) -> tuple[dict[str, Tensor], float]:
    """Train on uint8 images and int64 labels in [0, num_classes); gives the weights and the held-in accuracy.

    With `labels_N` None or a single class it learns quarter turns instead. The same inputs give the same bits on
    one kind of CPU: all random numbers come from `seed`, and the CPU's part runs on one thread (on a GPU it is as
    repeatable as cuDNN's deterministic kernels are). Raises UserError for fewer than two images or wrong labels,
    TrainingError when the loss is not finite.
    """
    labels_N = _check_training_set(images_NCHW, labels_N, num_classes)
    shown = slice(ACCURACY_IMAGES)
    with _repeatable(seed):
        num_outputs = NUM_TURNS if labels_N is None else num_classes
        network = ExtractorNet(images_NCHW.shape[1:], num_outputs, config).to(device)
        _fit(network, images_NCHW, labels_N, seed=seed, config=config, progress=progress)
        held_in = accuracy(network, images_NCHW[shown], None if labels_N is None else labels_N[shown])
    return {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}, held_in


def _fit(
    network: ExtractorNet,
    images_NCHW: Tensor,
    labels_N: Tensor | None,
    *,
    seed: int,
    config: ExtractorConfig,
    progress: Progress | None,
) -> None:
    device = next(network.parameters()).device
    random = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    rows_of_steps = list(_rows_of_steps(len(images_NCHW), config, random))
    network.train()
    for step, rows in enumerate(rows_of_steps):
        images = _shift(images_NCHW[rows], random).to(device).float() / 255
        if labels_N is None:
            targets = torch.randint(NUM_TURNS, (len(rows),), generator=random)
            images = _turn(network.to_square(images), targets)
        else:
            targets = labels_N[rows]
        loss = cross_entropy(network(images)[1], targets.to(device))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        optimizer.param_groups[0]["lr"] = config.lr * _schedule(step / len(rows_of_steps))
        optimizer.step()
        if (step + 1) % CHECK_EVERY_STEPS == 0 or step + 1 == len(rows_of_steps):
            _check_loss(loss, step + 1)
            if progress:
                progress(step + 1, len(rows_of_steps))


def _rows_of_steps(num_images: int, config: ExtractorConfig, random: torch.Generator) -> Iterator[Tensor]:
    """Each step's rows: whole batches of one permutation after another; what is left of one is not used."""
    batch = min(config.batch_images, num_images)
    seen = min(max(config.epochs * num_images, config.min_images_seen), config.max_images_seen)
    steps_left = max(seen // batch, 1)
    while steps_left:
        batches = torch.randperm(num_images, generator=random)[: num_images // batch * batch].reshape(-1, batch)
        yield from batches[:steps_left]
        steps_left -= min(len(batches), steps_left)


def _schedule(done: float) -> float:
    """The learning rate's factor: up over the first tenth, flat, down to 0 over the last seven tenths."""
    return min(1.0, 0.05 + done / 0.1, (1 - done) / 0.7)


def _shift(images_BCHW: Tensor, random: torch.Generator) -> Tensor:
    """Each image moved by whole pixels, up to a fourteenth of its size (1 at least); edges are repeated."""
    batch, _, height, width = images_BCHW.shape
    reach = max(1, min(height, width) // 14)
    offsets = torch.randint(-reach, reach + 1, (2, batch, 1), generator=random)
    rows = (torch.arange(height) + offsets[0]).clamp(0, height - 1)
    columns = (torch.arange(width) + offsets[1]).clamp(0, width - 1)
    moved_BHWC = images_BCHW[torch.arange(batch)[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    return moved_BHWC.permute(0, 3, 1, 2)


def _turn(images_BCHW: Tensor, turns_B: Tensor) -> Tensor:
    """Square images, each rotated by its own number of quarter turns."""
    turned = images_BCHW.clone()
    for turn in range(1, NUM_TURNS):
        chosen = (turns_B == turn).to(images_BCHW.device)
        turned[chosen] = torch.rot90(images_BCHW[chosen], turn, (2, 3))
    return turned


def accuracy(network: ExtractorNet, images_NCHW: Tensor, labels_N: Tensor | None) -> float:
    """The share of images whose class it reads rightly; without labels, of their quarter turns."""
    if labels_N is not None:
        read_N = infer(network, images_NCHW)[1].argmax(1)
        return float((read_N == labels_N).double().mean())
    square_NCHW = network.to_square(images_NCHW.float() / 255)
    shares = []
    for turn in range(NUM_TURNS):
        read_N = infer(network, torch.rot90(square_NCHW, turn, (2, 3)))[1].argmax(1)
        shares.append(float((read_N == turn).double().mean()))
    return sum(shares) / NUM_TURNS


@contextlib.contextmanager
def _repeatable(seed: int) -> Iterator[None]:
    """One thread, seeded initial weights, deterministic kernels; what was set before is set again afterwards.

    The order in which threads add up decides the last bits of a sum, so the number of threads must not vary.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        deterministic = torch.backends.cudnn.flags(deterministic=True, benchmark=False)
        with torch.random.fork_rng(devices=[]), deterministic:
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(threads)


# Checks


def _check_training_set(images_NCHW: Tensor, labels_N: Tensor | None, num_classes: int) -> Tensor | None:
    """The labels to train on, or None for quarter turns. Raises UserError."""
    if images_NCHW.ndim != 4 or images_NCHW.dtype != torch.uint8 or len(images_NCHW) < 2:
        raise UserError(
            f"extractor: expected two or more uint8 training images (N, C, H, W), got {images_NCHW.dtype} "
            f"{tuple(images_NCHW.shape)}; ingest more images"
        )
    if labels_N is None or num_classes < 2:
        return None
    if labels_N.shape != (len(images_NCHW),) or labels_N.min() < 0 or labels_N.max() >= num_classes:
        raise UserError(
            f"extractor: expected a label in [0, {num_classes}) for each of the {len(images_NCHW):,} images, "
            f"got {len(labels_N):,} in {value_range(labels_N)}; ingest the dataset again"
        )
    return labels_N


def _check_loss(loss: Tensor, step: int) -> None:
    if not bool(loss.isfinite()):
        raise TrainingError(
            f"extractor: expected a finite loss, got {float(loss.detach())} at step {step}; "
            "lower `lr` of ExtractorConfig for this dataset"
        )
