"""Print, as JSON, what the launches of the shipped tables take: {entry and site: usage}, on sm_90.

`python -m tests.compile.tuned_launches`. Each product of an entry is compiled for the GPU that it
was tuned on, with the shapes of its model.
"""

import json
from collections.abc import Iterator

import torch

from lite_llama.kernel_lib import tuned
from lite_llama.models.chain_launches import ChainLaunches, read_launches
from lite_llama.ops.linear_add import kernel as linear_add
from lite_llama.ops.norm_gate_up import kernel as norm_gate_up
from lite_llama.ops.norm_linear import kernel as norm_linear
from lite_llama.ops.norm_qkv import kernel as norm_qkv
from tests.compile.record import caught_launches, compile_launch, usage_of


def main() -> None:
    found = {}
    for path in sorted(tuned.SHIPPED.glob("*.json")):
        for entry in tuned.read(path):
            launches = read_launches(entry.sites, entry.where)
            with caught_launches("sm_90") as caught:
                names = list(_call(entry, launches))
            for name, launch in zip(names, caught, strict=True):
                compiled = compile_launch(*launch, "sm_90")
                found[f"{entry.where}.{name}"] = usage_of(compiled.asm["cubin"])
    print(json.dumps(found))


def _call(entry: tuned.Entry, launches: ChainLaunches) -> Iterator[str]:
    """Launch every product of a chain on meta tensors; yield the sites."""
    dtype = getattr(torch, entry.dtype)

    def empty(*shape: int, dtype: torch.dtype = dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    shape, tokens = entry.shape, entry.batch
    hidden, inter = shape["hidden_size"], shape["intermediate_size"]
    num_q, num_kv, dim = shape["num_q_heads"], shape["num_kv_heads"], shape["head_dim"]
    rows = (num_q + 2 * num_kv) * dim
    x, norm = empty(tokens, hidden), empty(hidden)
    bias = empty(rows) if shape["qkv_bias"] else None
    if shape["qk_norm"]:
        norm_linear.norm_linear(x, norm, empty(rows, hidden), 1e-5, bias, launches.qkv)
    else:
        cache, places = empty(8, 16, num_kv, dim), empty(tokens, dtype=torch.int64)
        norm_qkv.norm_qkv(
            x, norm, empty(rows, hidden), bias, 1e-5,
            cos_sin=empty(64, dim, dtype=torch.float32), positions=places,
            k_cache=cache, v_cache=cache, slot_mapping=places, launch=launches.qkv,
        )  # fmt: skip
    yield "qkv"
    o_bias = empty(hidden) if shape["o_bias"] else None
    linear_add.linear_add(
        empty(tokens, num_q * dim), empty(hidden, num_q * dim), x, o_bias, launches.o
    )
    yield "o"
    norm_gate_up.norm_gate_up(x, norm, empty(2 * inter, hidden), 1e-5, launches.gate_up)
    yield "gate_up"
    linear_add.linear_add(empty(tokens, inter), empty(hidden, inter), x, None, launches.down)
    yield "down"
    head = empty(shape["vocab_size"], hidden)
    norm_linear.norm_linear(x, norm, head, 1e-5, None, launches.head)
    yield "head"


if __name__ == "__main__":
    main()
