"""What a launch may depend on: a GPU as a few numbers, so that launches are tested without one."""

from dataclasses import dataclass
from functools import cache

import torch

_KIB = 1024
_MIB = 1024 * 1024
_INTERPRETED = "Triton interpreter"


@dataclass(frozen=True)
class GpuSpec:
    """One GPU, as far as a launch cares. `capability` is CUDA's (major, minor)."""

    name: str
    capability: tuple[int, int]
    num_sms: int
    l2_bytes: int
    shared_bytes_per_block: int

    @property
    def has_pdl(self) -> bool:
        """Programmatic dependent launch exists from Hopper on."""
        return self.capability >= (9, 0)

    @property
    def compiles(self) -> bool:
        """Whether kernels are compiled for it: Gluon has no interpreter."""
        return self.name != _INTERPRETED

    @property
    def slug(self) -> str:
        """The name as a file name."""
        return slug(self.name)


def slug(name: str) -> str:
    """A device's name as a file name: "NVIDIA H200" -> "nvidia-h200"."""
    return "-".join(name.lower().replace("/", " ").split())


# Data sheets and the CUDA programming guide's table of compute capabilities.
A100 = GpuSpec("NVIDIA A100", (8, 0), 108, 40 * _MIB, 163 * _KIB)
H200 = GpuSpec("NVIDIA H200", (9, 0), 132, 50 * _MIB, 227 * _KIB)
B200 = GpuSpec("NVIDIA B200", (10, 0), 148, 126 * _MIB, 227 * _KIB)
RTX_5090 = GpuSpec("NVIDIA GeForce RTX 5090", (12, 0), 170, 96 * _MIB, 99 * _KIB)
# Triton's interpreter runs one program after another: few SMs keep the grids of tests small.
INTERPRETER = GpuSpec(_INTERPRETED, (9, 0), 4, 1 * _MIB, 227 * _KIB)


def gpu_spec(device: torch.device) -> GpuSpec:
    """The GPU behind `device`; for a CPU, what its interpreter pretends to be."""
    if device.type != "cuda":
        return INTERPRETER
    return _query(torch.cuda.current_device() if device.index is None else device.index)


@cache
def _query(index: int) -> GpuSpec:
    found = torch.cuda.get_device_properties(index)
    return GpuSpec(
        name=found.name,
        capability=(found.major, found.minor),
        num_sms=found.multi_processor_count,
        l2_bytes=found.L2_cache_size,
        shared_bytes_per_block=found.shared_memory_per_block_optin,  # type: ignore[attr-defined]
    )
