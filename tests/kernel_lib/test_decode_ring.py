"""What rings compute, compiled for an H200 and run without a GPU: see tests.compile.ptx_machine."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="Triton is not installed: nothing to compile")

from lite_llama.kernel_lib import tuned
from lite_llama.kernel_lib.gemv_launch import GemvLaunch, choose_gemv
from lite_llama.models.chain_launches import read_launches
from lite_llama.ops.linear_add import kernel as linear_add
from lite_llama.ops.norm_gate_up import kernel as norm_gate_up
from lite_llama.ops.norm_gate_up import reference as norm_gate_up_reference
from lite_llama.ops.norm_linear import kernel as norm_linear
from lite_llama.ops.norm_linear import reference as norm_linear_reference
from lite_llama.ops.norm_qkv import kernel as norm_qkv
from lite_llama.ops.norm_qkv import reference as norm_qkv_reference
from tests.compile.ptx_machine import decode, emulated
from tests.ops.compare import assert_close_to_reference, poison_new_outputs, random, same_bits
from tests.ops.tolerances import FUSED, GEMM

CPU = torch.device("cpu")
BLOCKS, BLOCK_SIZE = 3, 4
SLOTS = [6, 0, -1, 11, 3, -1, 8, 5]
POSITIONS = [11, 3, 15, 0, 7, 7, 2, 9]

DTYPES = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
LAUNCHES = pytest.mark.parametrize(
    ("num_tokens", "launch", "hidden"),
    [
        (3, GemvLaunch(16, 32, 1, num_stages=4), 64),
        (8, GemvLaunch(16, 64, 1, num_stages=3, overlap=0.6, groups=2), 576),
        (3, GemvLaunch(32, 64, 2, num_stages=3, overlap=0.0), 576),
        (5, GemvLaunch(16, 512, 8, num_stages=4, overlap=0.0), 1024),
        (8, GemvLaunch(8, 256, 8, num_stages=2, overlap=1.0, groups=2), 1024),
        (8, GemvLaunch(16, 512, 16, num_stages=2, overlap=0.0), 1536),
        (5, GemvLaunch(16, 1024, 16, num_stages=2, overlap=0.0, groups=4), 4096),
    ],
    ids=lambda value: (
        f"{value.block_n}x{value.block_k}-{value.num_warps} warps-{value.groups} groups"
        if isinstance(value, GemvLaunch)
        else str(value)
    ),
)  # fmt: skip


@pytest.fixture(autouse=True)
def _values(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    poison_new_outputs(monkeypatch)


@contextmanager
def ring(edit: Callable[[str], str] = str) -> Iterator[None]:
    """What is launched within is one ring."""
    with emulated(edit) as names:
        yield
    assert names == ["ring_kernel"]


def check_linear_add(
    num_tokens: int, launch: GemvLaunch, rows: int, columns: int, dtype: torch.dtype, *,
    biased: bool = False, edit: Callable[[str], str] = str,
) -> None:  # fmt: skip
    x = random(num_tokens, columns, dtype=dtype, device=CPU)
    weight = random(rows, columns, dtype=dtype, device=CPU, scale=columns**-0.5)
    residual = random(num_tokens, rows, dtype=dtype, device=CPU)
    bias = random(rows, dtype=dtype, device=CPU) if biased else None
    want = residual.double() + x.double() @ weight.double().T
    if bias is not None:
        want += bias.double()
    with ring(edit):
        got = linear_add.linear_add(x, weight, residual, bias, launch)
    assert_close_to_reference(got, want, GEMM)


def check_norm_linear(
    num_tokens: int, launch: GemvLaunch, rows: int, hidden: int, dtype: torch.dtype, *,
    biased: bool = False,
) -> None:  # fmt: skip
    x, norm = (
        random(*shape, dtype=dtype, device=CPU) for shape in ((num_tokens, hidden), (hidden,))
    )
    weight = random(rows, hidden, dtype=dtype, device=CPU, scale=hidden**-0.5)
    bias = random(rows, dtype=dtype, device=CPU) if biased else None
    wide = None if bias is None else bias.double()
    want = norm_linear_reference.norm_linear(x.double(), norm.double(), weight.double(), 1e-5, wide)
    with ring():
        got = norm_linear.norm_linear(x, norm, weight, 1e-5, bias, launch)
    assert got.dtype == torch.float32
    assert torch.equal(got, got.to(dtype).float())
    assert_close_to_reference(got.to(dtype), want, FUSED)


def check_norm_gate_up(
    num_tokens: int, launch: GemvLaunch, inter: int, hidden: int, dtype: torch.dtype, *,
    edit: Callable[[str], str] = str,
) -> None:  # fmt: skip
    x, norm = (
        random(*shape, dtype=dtype, device=CPU) for shape in ((num_tokens, hidden), (hidden,))
    )
    weight = random(2 * inter, hidden, dtype=dtype, device=CPU, scale=hidden**-0.5)
    want = norm_gate_up_reference.norm_gate_up(x.double(), norm.double(), weight.double(), 1e-5)
    with ring(edit):
        got = norm_gate_up.norm_gate_up(x, norm, weight, 1e-5, launch)
    assert_close_to_reference(got, want, FUSED)


def check_norm_qkv(
    num_tokens: int, launch: GemvLaunch, heads: tuple[int, int, int], hidden: int,
    dtype: torch.dtype, *, biased: bool,
) -> None:  # fmt: skip
    """`heads`: queries, keys, and the size of each."""
    num_q, num_kv, head_dim = heads
    rows = (num_q + 2 * num_kv) * head_dim
    x, norm = (
        random(*shape, dtype=dtype, device=CPU) for shape in ((num_tokens, hidden), (hidden,))
    )
    weight = random(rows, hidden, dtype=dtype, device=CPU, scale=hidden**-0.5)
    bias = random(rows, dtype=dtype, device=CPU) if biased else None
    angles = torch.randn(16, head_dim // 2)
    caches = {
        name: random(BLOCKS, BLOCK_SIZE, num_kv, head_dim, dtype=dtype, device=CPU)
        for name in ("k_cache", "v_cache")
    }
    given: dict[str, Tensor] = {
        "cos_sin": torch.cat((angles.cos(), angles.sin()), -1),
        "positions": torch.tensor(POSITIONS[:num_tokens]),
        "slot_mapping": torch.tensor(SLOTS[:num_tokens]),
    }
    before = {name: cache.clone() for name, cache in caches.items()}
    wanted = {name: cache.double() for name, cache in caches.items()}
    want = norm_qkv_reference.norm_qkv(
        x.double(), norm.double(), weight.double(), None if bias is None else bias.double(), 1e-5,
        **given, **wanted,
    )  # fmt: skip
    with ring():
        got = norm_qkv.norm_qkv(x, norm, weight, bias, 1e-5, **given, **caches, launch=launch)
    assert_close_to_reference(got, want, FUSED)
    written = [slot for slot in SLOTS[:num_tokens] if slot >= 0]
    kept = [slot for slot in range(BLOCKS * BLOCK_SIZE) if slot not in written]
    for name, cache in caches.items():
        flat = cache.flatten(0, 1)
        assert_close_to_reference(flat[written], wanted[name].flatten(0, 1)[written], FUSED)
        assert same_bits(flat[kept], before[name].flatten(0, 1)[kept])


@DTYPES
@LAUNCHES
@pytest.mark.parametrize(("rows", "biased"), [(37, True), (64, False)])
def test_residual_and_product_add_up(
    num_tokens: int,
    launch: GemvLaunch,
    hidden: int,
    rows: int,
    biased: bool,  # noqa: FBT001
    dtype: torch.dtype,
) -> None:
    check_linear_add(num_tokens, launch, rows, hidden, dtype, biased=biased)


@DTYPES
@LAUNCHES
def test_logits_equal_the_reference(
    num_tokens: int, launch: GemvLaunch, hidden: int, dtype: torch.dtype
) -> None:
    check_norm_linear(num_tokens, launch, 70, hidden, dtype, biased=launch.groups == 1)


@DTYPES
@LAUNCHES
def test_gated_products_equal_the_reference(
    num_tokens: int, launch: GemvLaunch, hidden: int, dtype: torch.dtype
) -> None:
    check_norm_gate_up(num_tokens, launch, 33, hidden, dtype)


@DTYPES
@LAUNCHES
def test_queries_keys_and_values_equal_the_reference(
    num_tokens: int, launch: GemvLaunch, hidden: int, dtype: torch.dtype
) -> None:
    check_norm_qkv(num_tokens, launch, (3, 1, 24), hidden, dtype, biased=True)


def some_rows(launch: GemvLaunch) -> int:
    """For two programs, of which the second has little to do."""
    return launch.block_n * launch.groups + launch.block_n // 2 + 1


# Rows (or pairs) of queries, keys and values; of the MLP; of the head.
@pytest.mark.parametrize(
    ("hidden", "qkv", "inter", "head"),
    [(1536, 1024, 8960, 151936), (2048, 1536, 8192, 128256), (4096, 3072, 14336, 128256)],
)
@pytest.mark.parametrize("site", ["qkv", "o", "gate_up", "head"])
def test_launches_are_right_that_are_chosen_for_whole_models(
    site: str, hidden: int, qkv: int, inter: int, head: int
) -> None:
    if site == "qkv":
        launch = choose_gemv(qkv, hidden, 8, pairs=True)
        check_norm_qkv(8, launch, (2, 1, 16), hidden, torch.bfloat16, biased=True)
    elif site == "o":
        launch = choose_gemv(hidden, hidden, 8)
        check_linear_add(8, launch, some_rows(launch), hidden, torch.bfloat16)
    elif site == "gate_up":
        launch = choose_gemv(inter, hidden, 8, pairs=True)
        check_norm_gate_up(8, launch, some_rows(launch), hidden, torch.bfloat16)
    else:
        launch = choose_gemv(head, hidden, 8)
        check_norm_linear(8, launch, some_rows(launch), hidden, torch.bfloat16)


@pytest.mark.parametrize("site", ["qkv", "o", "gate_up", "down", "head"])
def test_launches_are_right_that_were_tuned_for_several_sequences(site: str) -> None:
    entries = [e for e in tuned.read(tuned.SHIPPED / "nvidia-h200.json") if e.batch > 1]
    assert entries
    for entry in entries:
        hidden, inter = entry.shape["hidden_size"], entry.shape["intermediate_size"]
        count = entry.batch
        dtype: torch.dtype = getattr(torch, entry.dtype)
        launch = getattr(read_launches(entry.sites, entry.where), site)
        if site == "qkv":
            check_norm_qkv(count, launch, (2, 1, 16), hidden, dtype, biased=False)
        elif site in ("o", "down"):
            columns = inter if site == "down" else hidden
            check_linear_add(count, launch, some_rows(launch), columns, dtype)
        elif site == "gate_up":
            check_norm_gate_up(count, launch, some_rows(launch), hidden, dtype)
        else:
            check_norm_linear(count, launch, some_rows(launch), hidden, dtype)


# Of one and of eight warps, one program each.
FAULTY = pytest.mark.parametrize(
    ("launch", "hidden"),
    [
        (GemvLaunch(16, 64, 1, num_stages=2, overlap=0.0, groups=2), 256),
        (GemvLaunch(16, 512, 8, num_stages=2, overlap=0.0), 2048),
    ],
    ids=["1 warp", "8 warps"],
)
_WAIT = r"cp\.async\.wait_group\s+(\d+);"
_BARRIER_AFTER_WAIT = (
    _WAIT + r"(?:\s*//.*\n|\s*\.loc.*\n|\s*\$L__tmp\d+:\n|\s)*?\s*(bar\.sync\s+0;)"
)


def _each_changed(
    launch: GemvLaunch, hidden: int, pattern: str, change: Callable[[re.Match[str]], str]
) -> Iterator[Callable[[], None]]:
    """A check of a kernel for every place of a pattern in it, changed there alone."""
    count = 0

    def count_places(ptx: str) -> str:
        nonlocal count
        count = len(re.findall(pattern, ptx))
        return ptx

    def check(edit: Callable[[str], str]) -> None:
        check_norm_gate_up(5, launch, 32, hidden, torch.bfloat16, edit=edit)

    check(count_places)
    assert count >= 4
    for index in range(count):

        def edit(ptx: str, index: int = index) -> str:
            found = list(re.finditer(pattern, ptx))[index]
            return ptx[: found.start()] + change(found) + ptx[found.end() :]

        yield partial(check, edit)


@FAULTY
def test_a_wait_for_one_copy_less_is_noticed(launch: GemvLaunch, hidden: int) -> None:
    def later(wait: re.Match[str]) -> str:
        return wait[0].replace(wait[1], str(int(wait[1]) + 1))

    for check in _each_changed(launch, hidden, _WAIT, later):
        with pytest.raises(AssertionError, match=r"NaN|NMSE|race"):
            check()


@FAULTY
def test_a_missing_barrier_after_a_wait_is_noticed(launch: GemvLaunch, hidden: int) -> None:
    def without(wait: re.Match[str]) -> str:
        return wait[0].replace(wait[2], "")

    for check in _each_changed(launch, hidden, _BARRIER_AFTER_WAIT, without):
        with pytest.raises(AssertionError, match="race: byte"):
            check()


def test_an_overwritten_tile_that_others_may_still_read_is_noticed() -> None:
    launch = GemvLaunch(16, 512, 8, num_stages=2, overlap=0.0)
    # The barrier between the loads of a tile and the copies of the next into its place.
    pattern = r"(bar\.sync\s+0;)(?:(?!bar\.sync|ld\.shared)[\s\S])*?cp\.async\.cg"

    def without(barrier: re.Match[str]) -> str:
        return barrier[0].replace(barrier[1], "")

    for check in _each_changed(launch, 4096, pattern, without):
        with pytest.raises(AssertionError, match=r"was read by .*cp\.async\.cg"):
            check()


def test_an_instruction_that_the_machine_lacks_is_named() -> None:
    kernel = ".entry none(\n)\n{\n\tadd.s32 \t%r1, %r2, 1;\n\tbrev.b32 \t%r1, %r1;\n}\n"
    with pytest.raises(NotImplementedError, match=r"brev\.b32"):
        decode(kernel)
