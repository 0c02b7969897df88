"""What the makers' data sheets say of GPUs: the limits that training is measured against, and planned with."""

from dataclasses import dataclass

from pipeline.errors import UserError


@dataclass(frozen=True)
class Gpu:
    """One GPU. FLOPs a second are of dense matrix products; a multiplication and an addition are two."""

    name: str  # as in CUDA's name of the device
    memory_gb: int  # 10^9 bytes
    bf16_tflops: float  # 0 where it has none
    fp32_tflops: float  # with tensor cores where there are any (TF32), as torch's convolutions use them


GPUS = (  # a name that contains another comes first
    Gpu("B200", 180, 2250, 1125),
    Gpu("H200", 141, 989, 494),
    Gpu("H100 PCIe", 80, 756, 378),
    Gpu("H100", 80, 989, 494),
    Gpu("A100", 80, 312, 156),
    Gpu("L40S", 48, 362, 183),
    Gpu("L4", 24, 121, 60),
    Gpu("A10G", 24, 70, 35),
    Gpu("A10", 24, 125, 62),
    Gpu("V100", 32, 0, 15.7),
    Gpu("T4", 16, 0, 8.1),
    Gpu("RTX 4090", 24, 165, 82.6),
)


def named(name: str) -> Gpu:
    """The GPU that a person calls so: h200, a100, "rtx 4090". Raises UserError that lists them."""
    wanted = name.casefold().replace("-", " ")
    for gpu in GPUS:
        if gpu.name.casefold() == wanted:
            return gpu
    there = ", ".join(gpu.name.casefold() for gpu in GPUS)
    raise UserError(f"--gpu: expected one of {there}; got {name!r}")


def known(device_name: str) -> Gpu | None:
    """The GPU that CUDA calls so, such as "NVIDIA H100 80GB HBM3"; None where it is not in the table."""
    words = f" {device_name.replace('-', ' ')} "
    return next((gpu for gpu in GPUS if f" {gpu.name} " in words), None)
