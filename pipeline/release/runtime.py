"""A release's sampler without torch: its ONNX file in onnxruntime (extra `consume`), latents by `pipeline.latents`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pipeline.artifacts import Release, read_file
from pipeline.errors import IntegrityError, RecordError, UserError
from pipeline.latents import latents
from pipeline.store import Store

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Images = NDArray[np.uint8]

MODEL = "model.onnx"
BATCH_IMAGES = 256


class OnnxSampler:
    """What makes a release's images. Its bytes were checked against the manifest."""

    def __init__(self, store: Store, release: Release) -> None:
        """Load it. Raises RecordError without an ONNX file, UserError without onnxruntime, IntegrityError."""
        where = f"{store.uri}/{release.ref}"
        entry = next((entry for entry in release.files if entry.name == MODEL), None)
        if entry is None:
            raise RecordError(f"{where}: expected {MODEL}, got a release without it")
        try:
            import onnxruntime
        except ModuleNotFoundError:
            raise UserError(
                "making images needs onnxruntime, which is not installed; install atelier with its extra `consume`"
            ) from None
        model = read_file(store, release, entry)
        try:
            self.session: Any = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
            inputs = {one.name: one for one in self.session.get_inputs()}
            self.latent_size = int(inputs["latent"].shape[1])
        except Exception as error:  # onnxruntime's own errors have no base in common
            raise IntegrityError(f"{where}/{MODEL}: expected a sampler as ONNX, got {error!s:.120}") from error
        self.made_with = f"onnxruntime {onnxruntime.__version__}"

    def images(self, seeds: Sequence[int], labels: Sequence[int]) -> "Images":
        """Images (B, H, W, C) for seeds and class indices (zeros where there are no classes)."""
        return self.images_of(latents(seeds, self.latent_size), labels)

    def images_of(self, latents_BZ: "NDArray[np.float32]", labels: Sequence[int]) -> "Images":
        """Images (B, H, W, C) for latents (B, Z) and class indices."""
        import numpy as np

        made = []
        for start in range(0, len(labels), BATCH_IMAGES):
            part = slice(start, start + BATCH_IMAGES)
            feed = {"latent": latents_BZ[part], "label": np.asarray(labels[part], np.int64)}
            (unit_BCHW,) = self.session.run(["image"], feed)
            made.append(np.rint(255 * unit_BCHW.clip(0, 1)).astype(np.uint8).transpose(0, 2, 3, 1))
        return np.concatenate(made)
