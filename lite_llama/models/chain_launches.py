"""How each kernel of the decode chain is launched: as fits the shape, or as a table says; pure."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import dtype

from lite_llama.errors import ConfigError
from lite_llama.kernel_lib import tuned
from lite_llama.kernel_lib.gemv_launch import GemvLaunch, choose_gemv
from lite_llama.kernel_lib.gpu import GpuSpec
from lite_llama.models.config import ModelConfig
from lite_llama.ops.attention_decode.launch import Launch as AttentionLaunch
from lite_llama.ops.attention_decode.launch import Problem
from lite_llama.ops.attention_decode.launch import choose_launch as choose_attention

# Hidden size of the widest model whose one token was measured by rings.
_MOST_RING_HIDDEN = 2048
_PRODUCTS = ("qkv", "o", "gate_up", "down", "head")


@dataclass(frozen=True)
class ChainLaunches:
    """How each kernel of the chain is launched; attention None: as its operator chooses.

    `attention_overlap`: as the others' `overlap`, but of 0 and 1 alone: o may start when attention
    begins, or when it ends.
    `carveout`: percent of its greatest shared memory that an SM gives to shared memory while any of
    these kernels runs, −1: as the driver chooses for each. See `kernel_lib.carveout`.
    """

    qkv: GemvLaunch
    o: GemvLaunch
    gate_up: GemvLaunch
    down: GemvLaunch
    head: GemvLaunch
    attention: AttentionLaunch | None = None
    attention_overlap: float = 0.0
    carveout: int = -1

    def all_rings(self, config: ModelConfig, weights: dtype, gpu: GpuSpec) -> bool:
        """Whether every product has its weights in shared memory before its wait."""
        return all(
            getattr(self, site).is_ring(num_columns, weights, gpu)
            for site, (_, num_columns) in weight_shapes(config).items()
        )


def weight_shapes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """(rows or row pairs, columns) of each product's weight, by site, in the chain's order."""
    heads = config.num_q_heads + 2 * config.num_kv_heads
    return {
        "qkv": (heads * config.head_dim // 2, config.hidden_size),
        "o": (config.hidden_size, config.q_size),
        "gate_up": (config.intermediate_size, config.hidden_size),
        "down": (config.hidden_size, config.intermediate_size),
        "head": (config.vocab_size, config.hidden_size),
    }


def owns_pairs(config: ModelConfig, site: str) -> bool:
    """Whether programs of a product own pairs of rows: rotary ones, but for models whose q/k norms
    need whole heads, or gate and up."""
    return site == "gate_up" or (site == "qkv" and not config.qk_norm)


def choose_launches(config: ModelConfig, num_tokens: int, weights: dtype) -> ChainLaunches:
    """Launches for a model, its weights' dtype, and a batch size on any GPU; pure.

    One token of a small model takes rings as two do, if all of its products are some. On an H200 a
    step of Llama-3.2-1B takes 0.734 ms by the registers that would be chosen, and 0.689 by rings;
    Qwen2.5-1.5B 1.130 and 1.061, Qwen3-0.6B 0.664 and 0.559. The tuner knows both.
    """
    if num_tokens == 1 and weights.itemsize == 2 and config.hidden_size <= _MOST_RING_HIDDEN:
        two = choose_launches(config, 2, weights)
        if all(getattr(two, site).num_stages for site in _PRODUCTS):
            return two
    # Where the next kernel may start: see docs/tuning.md.
    products = {}
    for site, shape in weight_shapes(config).items():
        product = choose_gemv(*shape, num_tokens, pairs=owns_pairs(config, site))
        products[site] = replace(product, overlap=0.0 if product.preload else 0.5)
    if products["qkv"].num_stages == 0:
        products["qkv"] = replace(products["qkv"], overlap=1.0)
    num_rows, num_columns = weight_shapes(config)["down"]
    if num_tokens == 1 and num_columns >= 4 * num_rows:
        # Whole rows by many warps: Qwen2.5-0.5B on an H100 0.568 -> 0.504 ms a step, and what
        # tuning found for three of four models there.
        widest = 1 << (num_columns - 1).bit_length()
        products["down"] = GemvLaunch(4, min(widest, 4096), 16, overlap=0.0)
    # A program of o whose weights come after its wait only keeps one of attention off its SM.
    attention_overlap = 0.0 if products["o"].preload else 1.0
    # On an H200 0.739 -> 0.734 ms a step of Llama-3.2-1B for one token.
    launches = ChainLaunches(**products, carveout=72)  # type: ignore[arg-type]
    return replace(launches, attention_overlap=attention_overlap)


def find_launches(
    config: ModelConfig, activations: dtype, num_tokens: int, gpu: GpuSpec
) -> ChainLaunches:
    """The launches tuned for this model, dtype, batch size and GPU, else `choose_launches`.

    ConfigError where a table cannot be read.
    """
    entry = tuned.find(gpu, tuned_shape(config), dtype_name(activations), num_tokens)
    defaults = choose_launches(config, num_tokens, activations)
    if entry is None:
        return defaults
    launches = read_launches(entry.sites, f"{entry.where}.sites")
    if not entry.has_stale_attention:
        return launches
    overlap = defaults.attention_overlap
    return replace(launches, attention=defaults.attention, attention_overlap=overlap)


def tuned_shape(config: ModelConfig) -> dict[str, int]:
    """What of a model its launches depend on: the key of an entry in a table."""
    names = (
        "hidden_size", "intermediate_size", "num_layers", "num_q_heads", "num_kv_heads",
        "head_dim", "vocab_size", "qkv_bias", "o_bias", "qk_norm",
    )  # fmt: skip
    return {name: int(getattr(config, name)) for name in names}


def dtype_name(activations: dtype) -> str:
    """ "bfloat16" for torch.bfloat16."""
    return str(activations).removeprefix("torch.")


def read_launches(sites: Mapping[str, Any], where: str) -> ChainLaunches:
    """Launches from JSON values as `dataclasses.asdict` makes them; ConfigError names the key."""
    known = set(ChainLaunches.__dataclass_fields__)
    sites = {"carveout": -1, **sites}  # tables of before it could be chosen
    for site in known ^ set(sites):
        raise ConfigError(
            f"{where}.{site} is {'missing' if site in known else 'unknown'}, expected "
            f"{', '.join(ChainLaunches.__dataclass_fields__)}; tune again or delete it"
        )
    overlap, carveout = sites["attention_overlap"], sites["carveout"]
    if overlap not in (-1, 0, 1) or isinstance(overlap, bool):
        raise tuned.malformed(f"{where}.attention_overlap", overlap, "-1, 0 or 1")
    if type(carveout) is not int or not -1 <= carveout <= 100:
        raise tuned.malformed(f"{where}.carveout", carveout, "an integer from -1 to 100")
    attention = sites["attention"]
    return ChainLaunches(
        **{
            site: tuned.launch(GemvLaunch, sites[site], f"{where}.{site}")
            for site in known - {"attention", "attention_overlap", "carveout"}
        },
        attention=None
        if attention is None
        else tuned.launch(AttentionLaunch, attention, f"{where}.attention"),
        attention_overlap=overlap,
        carveout=carveout,
    )


def settle_attention(
    launches: ChainLaunches, config: ModelConfig, problem: tuple[int, dtype, int], gpu: GpuSpec
) -> ChainLaunches:
    """The same launches with attention's spelled out, as its operator would choose it.

    `problem`: sequences, dtype, and tokens that a row of the block table can hold.
    """
    num_seqs, activations, max_kv_len = problem
    found = Problem(
        num_seqs=num_seqs,
        num_kv_heads=config.num_kv_heads,
        q_per_kv=config.num_q_heads // config.num_kv_heads,
        head_dim=config.head_dim,
        dtype=activations,
        max_kv_len=max_kv_len,
        in_chain=True,
    )
    return replace(launches, attention=launches.attention or choose_attention(found, gpu))


def without_overlap(launches: ChainLaunches) -> ChainLaunches:
    """The same tiles in plain launches: the baseline without programmatic dependent launch."""
    return replace(_with(launches, overlap=-1.0), attention_overlap=-1.0)


def without_early_loads(launches: ChainLaunches) -> ChainLaunches:
    """Every kernel a dependent launch, none of whose products loads weights before its wait.

    But for rings in shared memory, whose loads before it are what they are.
    """
    changed = _with(launches, overlap=0.0, prefetch=0.0)
    registers = {
        site: replace(product, preload=False)
        for site in _PRODUCTS
        if (product := getattr(changed, site)).num_stages == 0
    }
    changed = replace(changed, **registers)
    return replace(changed, attention_overlap=0.0, carveout=-1)


def _with(launches: ChainLaunches, **changes: float) -> ChainLaunches:
    products = {site: replace(getattr(launches, site), **changes) for site in _PRODUCTS}
    return replace(launches, **products)
