"""What a model is, in features. The decoder reads these fields and never a model's name."""

from dataclasses import dataclass
from typing import Literal

RopeKind = Literal["none", "linear", "dynamic", "llama3", "yarn", "factors"]


@dataclass(frozen=True)
class RopeConfig:
    """Rotary embedding: base, rotated dimensions and the scaling of its frequencies."""

    theta: float
    rotary_dim: int
    kind: RopeKind = "none"
    factor: float = 1.0
    original_max_positions: int = 0
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0  # llama3
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0  # yarn
    attention_factor: float | None = None  # yarn; None: 0.1 ln(factor) + 1
    truncate: bool = True  # yarn: whether the correction range is rounded outwards to whole dims
    factors: tuple[float, ...] = ()  # divisors a frequency, as llama.cpp stores them


@dataclass(frozen=True)
class ModelConfig:
    """A decoder-only transformer with grouped-query attention and a gated feed-forward block."""

    family: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_q_heads: int
    num_kv_heads: int
    head_dim: int
    norm_eps: float
    max_positions: int
    rope: RopeConfig
    qkv_bias: bool = False
    o_bias: bool = False
    qk_norm: bool = False
    tied_head: bool = False
    window: int | None = None

    @property
    def q_size(self) -> int:
        """Width of all query heads."""
        return self.num_q_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Width of all key (or value) heads."""
        return self.num_kv_heads * self.head_dim

    def kv_bytes_per_token(self, element_bytes: int) -> int:
        """Bytes that one token holds in the KV cache, all layers."""
        return 2 * self.num_layers * self.kv_size * element_bytes
