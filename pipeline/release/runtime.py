"""What makes a release's images: torch where it is installed, else its ONNX file in onnxruntime (extra `consume`).

Latents come from `pipeline.latents` for both. A model is data from elsewhere: whatever is in the file, what comes of it
is images or one line.
"""

from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Protocol

from pipeline.errors import IntegrityError, UserError
from pipeline.latents import latents

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Images = NDArray[np.uint8]

Read = Callable[[str], bytes]  # a file of the release by name, checked. Raises RecordError where it has none

MODEL = "model.onnx"
BATCH_IMAGES = 256
MAX_LATENT_SIZE = 1 << 16
FATAL = 4  # onnxruntime's level of logging
# How protobuf writes the key of the path of weights outside the file (TensorProto.external_data): such a model would
# make onnxruntime open whatever file it names.
OUTSIDE = b"\x0a\x08location\x12"


class Sampler(Protocol):
    """Makes images."""

    made_with: str

    def images(self, seeds: Sequence[int], labels: Sequence[int]) -> "Images":
        """Images (B, H, W, C) for seeds and class indices (zeros where there are no classes)."""


def sampler_of(where: str, read: Read) -> Sampler:
    """The sampler of the release whose files `read` gives. Raises UserError, RecordError, IntegrityError."""
    for entry in entry_points(group="atelier.stages", name="sampler"):
        try:
            opened: Callable[[str, Read], Sampler] = entry.load()
        except ModuleNotFoundError:  # no torch
            break
        return opened(where, read)
    return OnnxSampler(where, read)


class OnnxSampler:
    """A release's ONNX file, ready to run."""

    def __init__(self, where: str, read: Read) -> None:
        """Load it. Raises RecordError without an ONNX file, UserError without onnxruntime, IntegrityError."""
        self._where = f"{where}/{MODEL}"
        model = read(MODEL)
        try:
            import onnxruntime
        except ModuleNotFoundError:
            raise UserError(
                "making images needs onnxruntime, which is not installed; install atelier with its extra `consume`"
            ) from None
        if OUTSIDE in model:
            raise IntegrityError(f"{self._where}: expected weights inside the file, got a path to others")
        try:
            onnxruntime.set_default_logger_severity(FATAL)  # it prints what it raises as well
            self.session: Any = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
            inputs = {one.name: one for one in self.session.get_inputs()}
            self.latent_size = int(inputs["latent"].shape[1])
        except Exception as error:  # onnxruntime's own errors have no base in common
            raise IntegrityError(
                f"{self._where}: expected a sampler as ONNX, got {' '.join(str(error).split()):.160}"
            ) from error
        if inputs.keys() != {"latent", "label"} or not 1 <= self.latent_size <= MAX_LATENT_SIZE:
            raise IntegrityError(
                f"{self._where}: expected inputs latent and label, and latents of at most {MAX_LATENT_SIZE:,} numbers, "
                f"got {', '.join(inputs)} and {self.latent_size:,}"
            )
        self.made_with = f"onnxruntime {onnxruntime.__version__}"

    def images(self, seeds: Sequence[int], labels: Sequence[int]) -> "Images":
        """Images (B, H, W, C) for seeds and class indices (zeros where there are no classes). Raises IntegrityError."""
        return self.images_of(latents(seeds, self.latent_size), labels)

    def images_of(self, latents_BZ: "NDArray[np.float32]", labels: Sequence[int]) -> "Images":
        """Images (B, H, W, C) for latents (B, Z) and class indices. Raises IntegrityError."""
        import numpy as np

        made = []
        for start in range(0, len(labels), BATCH_IMAGES):
            part = slice(start, start + BATCH_IMAGES)
            unit_BCHW = self._run(latents_BZ[part], np.asarray(labels[part], np.int64))
            made.append(np.rint(255 * unit_BCHW.clip(0, 1)).astype(np.uint8).transpose(0, 2, 3, 1))
        return np.ascontiguousarray(np.concatenate(made))

    def _run(self, latent_BZ: "NDArray[np.float32]", label_B: "NDArray[np.int64]") -> "NDArray[np.float32]":
        """Images (B, C, H, W) in about [0, 1]."""
        import numpy as np

        try:
            (unit_BCHW,) = self.session.run(["image"], {"latent": latent_BZ, "label": label_B})
        except Exception as error:  # as above
            raise IntegrityError(f"{self._where}: expected images, got {' '.join(str(error).split()):.160}") from error
        shape: tuple[int, ...] = getattr(unit_BCHW, "shape", ())
        if len(shape) != 4 or shape[0] != len(latent_BZ) or unit_BCHW.dtype != np.float32:
            raise IntegrityError(f"{self._where}: expected float32 images ({len(latent_BZ)}, C, H, W), got {shape}")
        if not np.isfinite(unit_BCHW).all():
            raise IntegrityError(f"{self._where}: expected images of finite values, got NaN or infinity")
        return np.asarray(unit_BCHW)
