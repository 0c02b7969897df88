"""An extractor from a file of one's own: TorchScript, ONNX, or the weights of another dataset's extractor.

    evaluation:
      extractor: {path: inception.pt, sha256: ..., side: 299, channels: 3, values: symmetric}

The file's bytes must be those of the digest that the recipe states. None of them is unpickled: TorchScript is read by
`torch.jit`, once its code is seen to reach no files, ONNX by onnxruntime from memory (no external data, no custom
operators), weights as safetensors or by `torch.load(weights_only=True)` into the network that the extractor.json
beside them describes. A Frechet distance on
the Inception network's features is the FID of the literature only where its images are prepared the same way.
"""

import hashlib
import io
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_safetensors
from torch import Tensor
from torch.nn.functional import interpolate

from pipeline.errors import IntegrityError, UserError
from pipeline.records import parse
from pipeline.sections import ExtractorSpec
from trainers.extractors.inputs import check_images, to_unit
from trainers.extractors.network import ExtractorNet
from trainers.extractors.own import RECORD, ExtractorRecord

BATCH_IMAGES = 64
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
KINDS = ".pt, .pth or .ts (TorchScript, or weights), .onnx, .safetensors (weights)"

MAX_CODE_BYTES = 16 << 20
NOWHERE = "/dev/null"  # a folder in which nothing lies
# Names, wherever they stand in the code: spaces and comments between a dot and a name change nothing.
REACHES_FILES = re.compile(
    rb"\b(?:save|from_file)\b|\bops\s*\.\s*(?!aten\b|prim\b|prepacked\b|quantized\b)\w+"
    rb"|\bclasses\s*\.\s*(?!quantized\b)\w+"
)

Network = Callable[[Tensor], Any]  # prepared images (B, C, H, W) -> features (B, ...), if it is one for this


@dataclass(frozen=True)
class FileExtractor:
    """A network from a file, ready to use on the CPU."""

    spec: ExtractorSpec
    network: Network
    kind: str

    @property
    def ref(self) -> str:
        """What it is called in a protocol."""
        return f"file {Path(self.spec.path).name}"

    @property
    def sha256(self) -> str:
        """Of the file."""
        return self.spec.sha256

    @property
    def preprocessing(self) -> str:
        """From a stored image to what the network sees."""
        spec = self.spec
        channels = f"{spec.channels} channels" if spec.channels else "channels as they are"
        side = f"{spec.side}x{spec.side} (bilinear, antialiased)" if spec.side else "size as it is"
        return f"{channels}, {side}, values {spec.values}"

    @property
    def note(self) -> str:
        """One sentence: what it is."""
        return f"The output of the {self.kind} network {Path(self.spec.path).name} for images of {self.preprocessing}."

    def features(self, images_NCHW: Tensor) -> Tensor:
        """Features (N, D), float32 on the CPU, of uint8 images or float ones in [0, 1].

        Raises UserError for images that are not finite or that the network does not take, and for another output than
        finite features for each image.
        """
        check_images(images_NCHW)
        with torch.inference_mode():
            return torch.cat(
                [self._checked(prepare(images, self.spec)) for images in torch.split(images_NCHW, BATCH_IMAGES)]
            )

    def _checked(self, images_BCHW: Tensor) -> Tensor:
        shape = tuple(images_BCHW.shape)
        try:
            found = self.network(images_BCHW)
        except Exception as error:
            raise UserError(
                f"{self.spec.path}: expected a network that takes images {shape}, got {_last_line(error)}; "
                "set side, channels and values of evaluation.extractor as it wants them"
            ) from error
        if not isinstance(found, Tensor) or found.ndim < 2 or len(found) != len(images_BCHW):
            got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise UserError(
                f"{self.spec.path}: expected features (B, D) for images {shape}, got {got}; wrap the network"
            )
        features_BD = found.flatten(1).float()
        if not bool(features_BD.isfinite().all()):
            raise UserError(f"{self.spec.path}: expected finite features, got NaN or infinity; check `values`")
        return features_BD


def prepare(images_BCHW: Tensor, spec: ExtractorSpec) -> Tensor:
    """uint8 images, or float ones in [0, 1], as the extractor wants them: channels, then size, then values."""
    x = to_unit(images_BCHW)
    if spec.channels and spec.channels != x.shape[1]:
        x = x.mean(1, keepdim=True) if spec.channels == 1 else x.mean(1, keepdim=True).repeat(1, 3, 1, 1)
    if spec.side and x.shape[2:] != (spec.side, spec.side):
        x = interpolate(x, size=(spec.side, spec.side), mode="bilinear", antialias=True).clamp(0, 1)
    if spec.values == "symmetric":
        return 2 * x - 1
    if spec.values == "bytes":
        return 255 * x
    if spec.values == "imagenet":
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
        return (x - mean) / std
    return x


def open_file(spec: ExtractorSpec) -> FileExtractor:
    """The extractor in a file. Raises UserError where it cannot be read, IntegrityError on another digest."""
    path = Path(spec.path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"evaluation.extractor: expected a file, got {spec.path}: {error.strerror}") from None
    found = hashlib.sha256(data).hexdigest()
    if found != spec.sha256:
        raise IntegrityError(
            f"{spec.path}: expected SHA-256 {spec.sha256}, got {found}; another network is another protocol: "
            "state its digest in the recipe if it is the one you mean"
        )
    loaders = {".onnx": _onnx, ".safetensors": _weights}
    load = loaders.get(path.suffix, _torchscript if _is_torchscript(data) else _weights)
    if path.suffix not in (".onnx", ".safetensors", ".pt", ".pth", ".ts"):
        raise UserError(f"{spec.path}: expected an extractor in {KINDS}, got {path.suffix or 'no suffix'}")
    try:
        kind, network = load(data, path)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"{spec.path}: expected an extractor in {KINDS}, got {_last_line(error)}; export it again"
        ) from error
    return FileExtractor(spec, network, kind)


def _is_torchscript(data: bytes) -> bool:
    """Whether an archive of torch's holds code beside weights."""
    if not zipfile.is_zipfile(io.BytesIO(data)):
        return False
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return any(name.partition("/")[2].startswith("code/") for name in archive.namelist())


def _check_code(data: bytes, path: Path) -> None:
    """Raise UserError where a TorchScript archive's code could reach files, when it is loaded or when it runs.

    TorchScript is a program: `torch.save` and `torch.from_file` write, and so may operators of other libraries
    (PyTorch's own SECURITY.md, "Untrusted models").
    """
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        sources = [info for info in archive.infolist() if info.filename.endswith(".py")]
        if any(info.filename.endswith("/model.json") for info in archive.infolist()):
            raise UserError(f"{path}: expected TorchScript of PyTorch 1.4 or later, got an older one; export it again")
        if sum(info.file_size for info in sources) > MAX_CODE_BYTES:
            raise UserError(f"{path}: expected {MAX_CODE_BYTES:,} bytes of TorchScript code or less; export it as ONNX")
        for info in sources:
            if found := REACHES_FILES.search(archive.read(info)):
                raise UserError(
                    f"{path}: expected a network that reaches no files, got TorchScript code that names "
                    f"{found[0].decode()}; export it as ONNX"
                )


def _torchscript(data: bytes, path: Path) -> tuple[str, Network]:
    _check_code(data, path)
    module: Any = torch.jit.load(io.BytesIO(data), map_location="cpu")  # type: ignore[no-untyped-call]  # torch's
    module.eval()

    def network(images_BCHW: Tensor) -> Any:
        return _first(module(images_BCHW))

    return "TorchScript", network


def _onnx(data: bytes, path: Path) -> tuple[str, Network]:
    try:
        import onnxruntime
    except ModuleNotFoundError:
        raise UserError(f"{path}: expected onnxruntime to run it with, it is not installed; install it") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # what is wrong is raised, in one line; it need not be logged as well
    # Weights lie in the file itself: a network that names others would read them from the folder that we run in.
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", NOWHERE)
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def network(images_BCHW: Tensor) -> Any:
        return torch.from_numpy(session.run(None, {name: images_BCHW.numpy()})[0])

    return "ONNX", network


def _weights(data: bytes, path: Path) -> tuple[str, Network]:
    """Weights of a network of this project, which the record beside them describes."""
    beside = path.parent / RECORD
    if not beside.is_file():
        raise UserError(
            f"{path}: expected {RECORD} beside the weights, found none: weights alone do not say of which network; "
            "save the network as TorchScript or ONNX"
        )
    record = parse(beside.read_bytes(), ExtractorRecord, str(beside))
    state = load_safetensors(data) if path.suffix == ".safetensors" else torch.load(io.BytesIO(data), weights_only=True)
    module = ExtractorNet(record.shape, record.num_outputs, record.config)
    module.load_state_dict(state)
    module.eval().requires_grad_(False)

    def network(images_BCHW: Tensor) -> Any:
        return _first(module(images_BCHW))

    return "pipeline's own", network


def _first(output: Any) -> Any:
    """A network's first output, which is what it is asked for."""
    return output[0] if isinstance(output, tuple | list) else output


def _last_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return f"{lines[-1].strip():.160}"
