"""Every operator's smallest interesting case on a GPU, beside the same call on the CPU.

`python -m tests.ops.smallest [OPERATOR ...]` prints a line a case and exits with 1 if one is wrong.
Made for compute-sanitizer, which slows a kernel a hundred times; see tests/ops/sanitize.py. A case
is a function of the device: on the CPU the same call is the operator's reference.
"""

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lite_llama import ops
from lite_llama.kernel_lib.gemv_launch import GemvLaunch
from lite_llama.ops.attention_decode.launch import Launch
from tests.ops.attention_inputs import Heads, Ragged, ragged
from tests.ops.compare import nmse, random

DTYPE = torch.bfloat16
# Both sides round to bf16; a wrong value is far outside.
LIMIT = 1e-4
EPS = 1e-5
SLOTS = [6, 0, -1, 11, 3, -1, 8, 5]  # of three blocks of four

# Results, and inputs that were changed in place.
Results = tuple[Tensor, ...]
Case = Callable[[torch.device], Results]


def _new(device: torch.device, *shape: int, scale: float = 1.0, dtype: Any = DTYPE) -> Tensor:
    """Random values in memory of their own, of which guards can stand on both sides."""
    values = random(*shape, dtype=dtype, device=device, scale=scale)
    return torch.empty(shape, dtype=dtype, device=device).copy_(values)


def _integers(device: torch.device, values: list[Any], dtype: Any = torch.int64) -> Tensor:
    return torch.tensor(values, dtype=dtype, device=device)


def _angles(device: torch.device, positions: int, rotary_dim: int) -> Tensor:
    angles = torch.randn(positions, rotary_dim // 2)
    return torch.cat((angles.cos(), angles.sin()), -1).to(device)


def _rope(device: torch.device) -> Results:
    q, k = _new(device, 3, 5, 20), _new(device, 3, 1, 20)
    ops.rope(q, k, _angles(device, 9, 16), _integers(device, [0, 8, 3]))
    return q, k


def _bias_rope_pad(device: torch.device) -> Results:
    qkv, bias = _new(device, 5, 40), _new(device, 40)
    bounds = _integers(device, [0, 2, 2, 5], torch.int32)
    return ops.bias_rope_pad(qkv, bias, _angles(device, 4, 8), bounds, 4, 3)


def _unpad(device: torch.device) -> Results:
    bounds = _integers(device, [0, 2, 2, 5], torch.int32)
    return (ops.unpad(_new(device, 3, 2, 4, 8), bounds, 5),)


def _caches(device: torch.device, heads: int, dim: int) -> list[Tensor]:
    return [_new(device, 3, 4, heads, dim) for _ in range(2)]


def _kv_write(device: torch.device) -> Results:
    k, v = (_new(device, 8, 3, 20) for _ in range(2))
    caches = _caches(device, 3, 20)
    ops.kv_write(k, v, *caches, _integers(device, SLOTS))
    return tuple(caches)


def _advance_greedy(device: torch.device) -> Results:
    fields, told = _step(device)
    ops.advance_greedy(_new(device, 3, 9001), fields, told)
    return fields, told


def _advance_drawn(device: torch.device) -> Results:
    fields, told = _step(device)
    ops.advance_drawn(_integers(device, [11, 12, 13]), fields, told)
    return fields, told


def _step(device: torch.device) -> Results:
    """Fields of a step, with a row of padding, and what nobody has told."""
    fields = torch.tensor([[1, 2, 3], [4, 0, 8], [20, -1, 7], [5, 0, 9], [1, 0, 0]])
    between = [torch.empty(shape, dtype=torch.int64, device=device) for shape in ((5, 3), (2, 3))]
    return between[0].copy_(fields), between[1].zero_()


def _cache_arguments(device: torch.device, num_tokens: int, heads: int, dim: int) -> dict[str, Any]:
    k_cache, v_cache = _caches(device, heads, dim)
    return {
        "cos_sin": _angles(device, 16, dim),
        "positions": _integers(device, [11, 3, 15, 0, 7, 7, 2, 9][:num_tokens]),
        "k_cache": k_cache,
        "v_cache": v_cache,
        "slot_mapping": _integers(device, SLOTS[:num_tokens]),
    }


def _norm_qkv(device: torch.device, num_tokens: int, columns: int, launch: GemvLaunch) -> Results:
    x, norm, bias = (_new(device, *shape) for shape in ((num_tokens, columns), (columns,), (64,)))
    weight = _new(device, 64, columns, scale=0.1)
    given = _cache_arguments(device, num_tokens, 1, 16)
    q = ops.norm_qkv(x, norm, weight, bias, EPS, **given, launch=launch)
    return q, given["k_cache"], given["v_cache"]


def _norm_rope_write(device: torch.device, *, overlap: bool) -> Results:
    qkv = _new(device, 3, 5 * 24, dtype=torch.float32)
    norms = _new(device, 24), _new(device, 24)
    given = _cache_arguments(device, 3, 1, 24)
    q = ops.norm_rope_write(qkv, *norms, EPS, **given, overlap=overlap)
    return q, given["k_cache"], given["v_cache"]


def _norm_gate_up(
    device: torch.device, num_tokens: int, columns: int, launch: GemvLaunch
) -> Results:
    x, norm, weight = (
        _new(device, num_tokens, columns),
        _new(device, columns),
        _new(device, 42, columns, scale=0.1),
    )
    return (ops.norm_gate_up(x, norm, weight, EPS, launch=launch),)


def _norm_linear(
    device: torch.device, num_tokens: int, columns: int, launch: GemvLaunch
) -> Results:
    x, norm, bias = (_new(device, *shape) for shape in ((num_tokens, columns), (columns,), (37,)))
    weight = _new(device, 37, columns, scale=0.1)
    return (ops.norm_linear(x, norm, weight, EPS, bias, launch=launch),)


def _linear_add(device: torch.device, num_tokens: int, columns: int, launch: GemvLaunch) -> Results:
    x, residual = _new(device, num_tokens, columns), _new(device, num_tokens, 37)
    weight, bias = _new(device, 37, columns, scale=0.1), _new(device, 37)
    return (ops.linear_add(x, weight, residual, bias, launch=launch),)


def _over_launches(call: Callable[..., Results]) -> dict[str, Case]:
    """In registers and on tensor cores, as a plain launch and as one that the next overlaps."""
    late = GemvLaunch(16, 32, 2, num_stages=3, preload=False, prefetch=1.0)
    forms = {
        "registers": (2, 88, GemvLaunch(4, 32, 2, prefetch=1.0)),
        "tensor cores": (8, 88, late),
        "ring": (5, 96, GemvLaunch(16, 32, 1, num_stages=2)),
    }
    return {
        f"{name}, {mode}": partial(
            call, num_tokens=count, columns=columns, launch=replace(launch, overlap=overlap)
        )
        for name, (count, columns, launch) in forms.items()
        for mode, overlap in (("plain", -1.0), ("overlapped", 0.5))
    }


def _attention_decode(
    device: torch.device, launch: Launch, *, overlap: float = -1.0, window: int | None = None
) -> Results:
    x = ragged([1, 1, 1], [100, 0, 1], Heads(3, 1, 24), DTYPE, device, 16)
    assert x.block_table is not None
    x.block_table[1] = 0  # as the engine pads: a prefetch may look at the first place of any row
    return (
        ops.attention_decode(
            x.q, x.k, x.v, block_table=x.block_table, seq_lens=x.seq_lens, window=window,
            sinks=_new(device, 3), overlap=overlap, launch=launch,
        ),
    )  # fmt: skip


def _attention_prefill(device: torch.device, block_size: int, **mask: Any) -> Results:
    x = ragged([5, 1, 20], [5, 18, 30], Heads(3, 1, 24), DTYPE, device, block_size)
    return _attend(x, max_q_len=20, **mask)


def _attention_prefill_on_hopper(device: torch.device) -> Results:
    return _attend(ragged([5, 66], [30, 129], Heads(2, 1, 64), DTYPE, device, 16), max_q_len=66)


def _attend(x: Ragged, **more: Any) -> Results:
    return (
        ops.attention_prefill(
            x.q, x.k, x.v, cu_seqlens_q=x.cu_seqlens_q, seq_lens=x.seq_lens,
            block_table=x.block_table, **more,
        ),
    )  # fmt: skip


def _linear(device: torch.device, m: int, n: int = 37, k: int = 88) -> Results:
    return (ops.linear(_new(device, m, k), _new(device, n, k, scale=0.1), _new(device, n)),)


def _linear_fp8(device: torch.device) -> Results:
    x, weight = (_new(device, *shape, dtype=torch.float32) for shape in ((5, 96), (33, 96)))
    one = torch.ones(1, device=device)
    fp8 = torch.float8_e4m3fn
    return (ops.linear_fp8(x.to(fp8), (0.1 * weight).to(fp8), one, one, _new(device, 33)),)


def _fused_ffn(device: torch.device, num_tokens: int) -> Results:
    weights = _new(device, 80, 48, scale=0.1), _new(device, 48, 40, scale=0.1)
    return (ops.fused_ffn(_new(device, num_tokens, 48), *weights),)


def _sample(device: torch.device, vocab: int, *, cuts: bool) -> Results:
    logits = _new(device, 3, vocab, dtype=torch.float32)
    rows = ops.SamplingRows(
        temperature=torch.tensor([0.0, 1.0, 0.7], device=device),
        top_k=_integers(device, [0, 5, 0], torch.int32),
        top_p=torch.tensor([1.0, 1.0, 0.9], device=device),
        min_p=torch.tensor([0.0, 0.0, 0.05], device=device),
        seeds=_integers(device, [1, 2, 3]),
        positions=_integers(device, [7, 8, 9]),
        any_top_k=cuts,
        any_top_p=cuts,
    )
    return (ops.sample(logits, rows),)


def _apply_masks(device: torch.device) -> Results:
    logits = _new(device, 2, 77, dtype=torch.float32)
    words = _integers(device, [0x12345678, -1, 5, 0, 1 << 30, -7], torch.int32).view(2, 3)
    ops.apply_masks(logits, words)
    return (logits.clamp(min=-9.0),)  # two infinities have no distance


def _apply_penalties(device: torch.device) -> Results:
    logits = _new(device, 2, 77, dtype=torch.float32)
    seen = _integers(device, [int(i % 3 == 0) for i in range(2 * 77)], torch.int32).view(2, 77)
    strengths = (torch.tensor([1.3, 0.8], device=device) for _ in range(3))
    ops.apply_penalties(logits, seen > 0, seen * 2, *strengths)
    return (logits,)


def _token_logprobs(device: torch.device) -> Results:
    tokens = _integers(device, [0, 76, 5, 3]).view(2, 2)
    return (ops.token_logprobs(_new(device, 2, 77, dtype=torch.float32), tokens),)


# Chunks of 32 keys and fewer programs than chunks, and all keys in one.
_SPLIT, _WHOLE = Launch(4, 32, 2, 32, 2, 2), Launch(1, 128, 1, 32, 2, 2)

CASES: dict[str, dict[str, Case]] = {
    "add": {"": lambda d: (ops.add(_new(d, 3, 13), _new(d, 3, 13)),)},
    "add_rms_norm": {
        "": lambda d: ops.add_rms_norm(_new(d, 3, 77), _new(d, 3, 77), _new(d, 77), EPS)
    },
    "advance_drawn": {"": _advance_drawn},
    "advance_greedy": {"": _advance_greedy},
    "apply_masks": {"": _apply_masks},
    "apply_penalties": {"": _apply_penalties},
    "argmax": {
        "one piece": lambda d: ops.argmax(_new(d, 3, 77)),
        "pieces": lambda d: ops.argmax(_new(d, 2, 9001)),
    },
    "attention_decode": {
        "one chunk": lambda d: _attention_decode(d, _WHOLE),
        "one chunk, overlapped": lambda d: _attention_decode(d, _WHOLE, overlap=0.0),
        "chunks": lambda d: _attention_decode(d, _SPLIT),
        "chunks, overlapped": lambda d: _attention_decode(d, _SPLIT, overlap=1.0),
        "chunks, window": lambda d: _attention_decode(d, _SPLIT, window=70),
    },
    "attention_prefill": {
        "dense": lambda d: _attention_prefill(d, 0),
        "dense, all keys": lambda d: _attention_prefill(d, 0, causal=False),
        "paged": lambda d: _attention_prefill(d, 16),
        "paged, window, sinks": lambda d: _attention_prefill(d, 16, window=9, sinks=_new(d, 3)),
        "paged, on Hopper": _attention_prefill_on_hopper,
    },
    "bias_rope_pad": {"": _bias_rope_pad},
    "embedding": {"": lambda d: (ops.embedding(_integers(d, [6, 0, 3]), _new(d, 7, 77)),)},
    "fused_ffn": {
        "a token": lambda d: _fused_ffn(d, 1),
        "a few": lambda d: _fused_ffn(d, 5),
        "many": lambda d: _fused_ffn(d, 70),
    },
    "kv_write": {"": _kv_write},
    "layer_norm": {
        "": lambda d: (ops.layer_norm(_new(d, 3, 77), _new(d, 77), _new(d, 77), EPS),)
    },
    "linear": {
        "a row": lambda d: _linear(d, 1),
        "two rows": lambda d: _linear(d, 2),
        "a few rows of many columns": lambda d: _linear(d, 3, n=32770, k=16),
        "a tile": lambda d: _linear(d, 70),
    },
    "linear_add": _over_launches(_linear_add),
    "linear_fp8": {"": _linear_fp8},
    "norm_gate_up": _over_launches(_norm_gate_up),
    "norm_linear": _over_launches(_norm_linear),
    "norm_qkv": _over_launches(_norm_qkv),
    "norm_rope_write": {
        "plain": lambda d: _norm_rope_write(d, overlap=False),
        "overlapped": lambda d: _norm_rope_write(d, overlap=True),
    },
    "repeat_kv": {"": lambda d: (ops.repeat_kv(_new(d, 3, 2, 20), 3),)},
    "rms_norm": {"": lambda d: (ops.rms_norm(_new(d, 3, 77), _new(d, 77), EPS),)},
    "rope": {"": _rope},
    "sample": {
        "no cut": lambda d: _sample(d, 300, cuts=False),
        "cuts": lambda d: _sample(d, 300, cuts=True),
        "cuts of pieces": lambda d: _sample(d, 9001, cuts=True),
    },
    "softmax": {
        "": lambda d: (ops.softmax(_new(d, 3, 77)),),
        "pieces": lambda d: (ops.softmax(_new(d, 1, 20001)),),
    },
    "swiglu": {"": lambda d: (ops.swiglu(_new(d, 3, 2 * 77)),)},
    "token_logprobs": {"": _token_logprobs},
    "topk": {
        "": lambda d: ops.topk(_new(d, 2, 77), 5),
        "the most": lambda d: ops.topk(_new(d, 1, 9001), 256),
    },
    "unpad": {"": _unpad},
}  # fmt: skip


def run_on(device: torch.device, case: Case) -> Results:
    """The case's results there; every device draws the same inputs."""
    torch.manual_seed(0)
    return case(device)


def worst_error(got: Results, want: Results) -> float:
    """The largest normalised mean squared error of the results; NaN where one has a NaN."""
    errors = [nmse(a.cpu(), b) for a, b in zip(got, want, strict=True)]
    return max(errors, key=lambda error: (error != error, error))


def named(operators: Iterable[str]) -> Iterator[tuple[str, Case]]:
    """(operator and case, the case) of these operators."""
    for operator in operators:
        for name, case in CASES[operator].items():
            yield f"{operator} {name}".rstrip(), case


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("operators", nargs="*", choices=[[], *CASES], metavar="OPERATOR")
    chosen = parser.parse_args().operators or list(CASES)
    if not torch.cuda.is_available():
        sys.exit("there is no CUDA device to run on")
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    wrong = 0
    for name, case in named(chosen):
        got = run_on(cuda, case)
        torch.cuda.synchronize()
        error = worst_error(got, run_on(cpu, case))
        passed = error <= LIMIT
        wrong += not passed
        print(f"{name:44} NMSE {error:8.2e} {'ok' if passed else 'WRONG'}", flush=True)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
