"""The table of rotary cosines and sines, with every scaling of the frequencies that is in use."""

import math

import torch
from torch import Tensor

from lite_llama.models.config import RopeConfig


def cos_sin_table(rope: RopeConfig, num_positions: int) -> Tensor:
    """float32 [num_positions, rotary_dim]: cosines, then sines, of position · frequency."""
    frequencies, magnitude = scaled_frequencies(rope, num_positions)
    angles = torch.outer(torch.arange(num_positions, dtype=torch.float32), frequencies)
    return torch.cat((angles.cos(), angles.sin()), dim=-1) * magnitude


def scaled_frequencies(rope: RopeConfig, num_positions: int) -> tuple[Tensor, float]:
    """(frequencies float32 [rotary_dim / 2], factor on cosines and sines)."""
    exponents = torch.arange(0, rope.rotary_dim, 2, dtype=torch.int64).float() / rope.rotary_dim
    plain = 1.0 / rope.theta**exponents
    if rope.kind == "linear":
        return plain / rope.factor, 1.0
    if rope.kind == "dynamic":
        return _dynamic(rope, exponents, num_positions), 1.0
    if rope.kind == "llama3":
        return _llama3(rope, plain), 1.0
    if rope.kind == "yarn":
        return _yarn(rope, plain)
    if rope.kind == "factors":
        return plain / torch.tensor(rope.factors), 1.0
    return plain, 1.0


def _dynamic(rope: RopeConfig, exponents: Tensor, num_positions: int) -> Tensor:
    """NTK-aware scaling by the longest context served, fixed for the engine's life.

    Source: transformers' `_compute_dynamic_ntk_parameters` at seq_len = num_positions. There the
    base follows the longest sequence so far; keys already cached under another base would be wrong.
    """
    length = max(num_positions, rope.original_max_positions)
    stretch = rope.factor * length / rope.original_max_positions - (rope.factor - 1)
    base = rope.theta * stretch ** (rope.rotary_dim / (rope.rotary_dim - 2))
    return torch.pow(base, -exponents)


def _llama3(rope: RopeConfig, plain: Tensor) -> Tensor:
    """Llama 3.1's smooth interpolation. Source: transformers' `_compute_llama3_parameters`."""
    wavelength = 2 * math.pi / plain
    low = rope.original_max_positions / rope.low_freq_factor
    high = rope.original_max_positions / rope.high_freq_factor
    smooth = (rope.original_max_positions / wavelength - rope.low_freq_factor) / (
        rope.high_freq_factor - rope.low_freq_factor
    )
    blended = (1 - smooth) * plain / rope.factor + smooth * plain
    scaled = torch.where(wavelength > low, plain / rope.factor, blended)
    return torch.where(wavelength < high, plain, scaled)


def _yarn(rope: RopeConfig, plain: Tensor) -> tuple[Tensor, float]:
    """YaRN (Peng et al. 2023, equations 17-22), as transformers' `_compute_yarn_parameters`."""

    def dimension(rotations: float) -> float:
        turns = rope.original_max_positions / (rotations * 2 * math.pi)
        return rope.rotary_dim * math.log(turns) / (2 * math.log(rope.theta))

    low, high = dimension(rope.beta_fast), dimension(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.rotary_dim - 1)
    width = max(high - low, 0.001)
    ramp = ((torch.arange(len(plain), dtype=torch.float32) - low) / width).clamp(0, 1)
    frequencies = plain / rope.factor * ramp + plain * (1 - ramp)
    magnitude = rope.attention_factor
    if magnitude is None:
        magnitude = 0.1 * math.log(rope.factor) + 1.0 if rope.factor > 1 else 1.0
    return frequencies, magnitude
