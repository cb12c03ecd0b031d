"""What is asked of an engine (EngineConfig), and what that means on this machine (EnginePlan)."""

import os
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import torch

from lite_llama.errors import ConfigError
from lite_llama.models.config import ModelConfig
from lite_llama.models.loader import Precision, choose_half, resolve_precision
from lite_llama.models.shards import check_sizes

DTypeName = Literal["auto", "float32", "bfloat16", "float16"]
_DTYPE_NAMES = ("auto", "float32", "bfloat16", "float16")
# Steps above this gain nothing: the matrix products are saturated (2 cores; a GPU needs more), and
# whoever decodes waits for them.
_BATCHED_TOKENS = {"cpu": 512, "cuda": 2048}
# Sequences in a step, by type of device.
DEFAULT_NUM_SEQS = {"cpu": 16, "cuda": 256}
_OPTIONAL_COUNTS = ("max_model_len", "max_num_seqs", "max_num_batched_tokens", "num_blocks")
# Share of the free memory that the cache may take on the CPU, where other programs live too.
_CPU_CACHE_SHARE = 0.25


@dataclass(frozen=True)
class EngineConfig:
    """Settings of an engine; None asks for what suits model and machine.

    dtype: `auto` keeps a file's quantisation where this device multiplies it directly (on the CPU:
    Q4_0, Q4_1, Q8_0) and computes in bfloat16 on a GPU, or in float16 where the file's own
    precision is that; `float32` decodes all weights exactly.
    max_model_len: longest prompt plus answer. max_num_seqs: most sequences in one step.
    max_num_batched_tokens: most tokens in one step; longer prompts are computed in chunks.
    block_size: tokens a KV block. num_blocks: KV blocks in all. prefix_caching: keep and reuse
    the blocks of known prefixes. gpu_memory_utilization: share of the GPU's memory to fill.
    enforce_eager: launch every kernel from the host instead of replaying CUDA graphs.
    tensor_parallel_size: GPUs of this host (on the CPU, processes) that share the model.
    """

    dtype: DTypeName = "auto"
    device: str = "auto"
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    block_size: int = 16
    num_blocks: int | None = None
    prefix_caching: bool = True
    gpu_memory_utilization: float = 0.9
    enforce_eager: bool = False
    tensor_parallel_size: int = 1

    def __post_init__(self) -> None:
        if self.dtype not in _DTYPE_NAMES:
            raise ConfigError(f"dtype is {self.dtype!r}, expected one of {', '.join(_DTYPE_NAMES)}")
        for name in (*_OPTIONAL_COUNTS, "tensor_parallel_size"):
            value = getattr(self, name)
            if value is None and name in _OPTIONAL_COUNTS:
                continue
            if type(value) is not int or value < 1:
                raise ConfigError(
                    f"{name} is {value!r}, expected an integer from 1; raise it or leave it out"
                )
        if not isinstance(self.device, str):
            raise ConfigError(f"device is {self.device!r}, expected auto, cpu or cuda")
        if not isinstance(self.prefix_caching, bool):
            raise ConfigError(f"prefix_caching is {self.prefix_caching!r}, expected true or false")
        if type(self.block_size) is not int or self.block_size not in (8, 16, 32, 64, 128, 256):
            raise ConfigError(
                f"block_size is {self.block_size}, expected 8, 16, 32, 64, 128 or 256"
            )
        share = self.gpu_memory_utilization
        if not (isinstance(share, int | float) and 0.0 < share <= 1.0):
            raise ConfigError(f"gpu_memory_utilization is {share!r}, limit (0, 1]")


@dataclass(frozen=True)
class EnginePlan:
    """An EngineConfig resolved for a model and a machine; `num_blocks` follows after loading."""

    device: torch.device
    precision: Precision
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    block_size: int
    prefix_caching: bool
    enforce_eager: bool
    tensor_parallel_size: int

    @property
    def max_blocks_per_seq(self) -> int:
        """KV blocks of the longest sequence: the width of a block table."""
        return -(-self.max_model_len // self.block_size)


def resolve(config: EngineConfig, model: ModelConfig, formats: Collection[str] = ()) -> EnginePlan:
    """Settle every open choice; ConfigError where a request cannot be met.

    `formats` are those of the checkpoint's tensors.
    """
    device = resolve_device(config.device)
    if config.tensor_parallel_size > 1:
        check_sizes(model, config.tensor_parallel_size)
        device = _first_of_ranks(device, config.tensor_parallel_size)
    default_len = (
        model.rope.original_max_positions if model.rope.kind == "dynamic" else model.max_positions
    )
    max_model_len = config.max_model_len or default_len
    if max_model_len > model.max_positions:
        raise ConfigError(
            f"max_model_len is {max_model_len}, limit {model.max_positions} positions of the "
            "model; lower it"
        )
    budget = config.max_num_batched_tokens or _BATCHED_TOKENS[device.type]
    max_num_seqs = config.max_num_seqs or min(DEFAULT_NUM_SEQS[device.type], budget)
    if budget < max_num_seqs:
        raise ConfigError(
            f"max_num_batched_tokens is {budget}, limit max_num_seqs = {max_num_seqs}: every "
            "running sequence needs one token a step; raise it"
        )
    return EnginePlan(
        device=device,
        precision=resolve_precision(config.dtype, device, choose_half(model, formats)),
        max_model_len=max_model_len,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=budget,
        block_size=config.block_size,
        prefix_caching=config.prefix_caching,
        enforce_eager=config.enforce_eager,
        tensor_parallel_size=config.tensor_parallel_size,
    )


def _first_of_ranks(device: torch.device, size: int) -> torch.device:
    """Rank 0's device: ranks take the GPUs of the machine in order, or all the CPU."""
    if device.type == "cpu":
        return device
    if ":" in str(device):
        raise ConfigError(
            f"device is {str(device)!r}, but tensor_parallel_size {size} takes cuda:0 to "
            f"cuda:{size - 1}; set device to cuda"
        )
    if torch.cuda.device_count() < size:
        raise ConfigError(
            f"tensor_parallel_size is {size}, limit {torch.cuda.device_count()} GPUs of this "
            "machine; lower it"
        )
    return torch.device("cuda", 0)


def resolve_device(name: str) -> torch.device:
    """`auto` is the first GPU if there is one, else the CPU."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"device is {name!r}, expected auto, cpu or cuda") from None
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device is {name!r}, expected auto, cpu or cuda")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device is {name!r}, but torch sees no GPU; use --device cpu")
    return device


def choose_num_blocks(
    config: EngineConfig, plan: EnginePlan, model: ModelConfig, free_bytes: int
) -> int:
    """KV blocks to allocate, given the free memory after the weights are loaded."""
    block_bytes = plan.block_size * model.kv_bytes_per_token(plan.precision.activations.itemsize)
    per_sequence = plan.max_blocks_per_seq
    if config.num_blocks is not None:
        return config.num_blocks
    if plan.device.type == "cpu":
        # Room for two full contexts; pages that are never written take no memory.
        affordable = int(free_bytes * _CPU_CACHE_SHARE) // block_bytes
        return max(1, min(2 * per_sequence, affordable))
    affordable = int(free_bytes * config.gpu_memory_utilization) // block_bytes
    if affordable < per_sequence:
        raise ConfigError(
            f"the KV cache of one context of {plan.max_model_len} tokens takes "
            f"{per_sequence * block_bytes / 2**30:.1f} GiB, limit "
            f"{affordable * block_bytes / 2**30:.1f} GiB of free memory; lower max_model_len"
        )
    return min(affordable, plan.max_num_seqs * per_sequence)


def free_memory(device: torch.device) -> int:
    """Bytes that can still be allocated on a device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
