"""What rings compute, compiled for an H200 and run without a GPU: see tests.compile.ptx_machine."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed: nothing to compile")

from lite_llama.kernel_lib import tuned
from lite_llama.kernel_lib.gemv_launch import GemvLaunch, choose_gemv
from lite_llama.models.chain_launches import read_launches
from tests.compile.ptx_machine import decode, emulated
from tests.ops import test_linear_add, test_norm_gate_up, test_norm_linear, test_norm_qkv
from tests.ops.compare import poison_new_outputs

CPU = torch.device("cpu")

DTYPES = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
LAUNCHES = pytest.mark.parametrize(
    ("num_tokens", "launch", "hidden"),
    [
        (3, GemvLaunch(16, 32, 1, num_stages=4), 64),
        (8, GemvLaunch(16, 64, 1, num_stages=3, overlap=0.6, groups=2), 576),
        (1, GemvLaunch(32, 64, 2, num_stages=3, overlap=0.0), 576),
        (5, GemvLaunch(16, 512, 8, num_stages=4, overlap=0.0), 1024),
        (8, GemvLaunch(8, 256, 8, num_stages=2, overlap=1.0, groups=2), 1024),
        (8, GemvLaunch(16, 512, 16, num_stages=2, overlap=0.0), 1536),
        (16, GemvLaunch(16, 64, 1, num_stages=3, overlap=0.0, groups=2), 192),
        (9, GemvLaunch(16, 256, 8, num_stages=4, overlap=0.0), 1536),
        (16, GemvLaunch(16, 1024, 16, num_stages=2, overlap=0.6, groups=2), 2048),
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
    test_linear_add.check(num_tokens, launch, rows, hidden, dtype, CPU, biased=biased, running=ring)


@DTYPES
@LAUNCHES
def test_logits_equal_the_reference(
    num_tokens: int, launch: GemvLaunch, hidden: int, dtype: torch.dtype
) -> None:
    biased = launch.groups == 1
    test_norm_linear.check(num_tokens, launch, 70, hidden, dtype, CPU, biased=biased, running=ring)


@DTYPES
@LAUNCHES
def test_gated_products_equal_the_reference(
    num_tokens: int, launch: GemvLaunch, hidden: int, dtype: torch.dtype
) -> None:
    test_norm_gate_up.check(num_tokens, launch, 33, hidden, dtype, CPU, running=ring)


@DTYPES
@LAUNCHES
def test_queries_keys_and_values_equal_the_reference(
    num_tokens: int, launch: GemvLaunch, hidden: int, dtype: torch.dtype
) -> None:
    shape = ((3, 1), 24, hidden)
    test_norm_qkv.check(num_tokens, launch, shape, dtype, CPU, biased=True, running=ring)


def check_site(
    site: str, num_tokens: int, launch: GemvLaunch, sizes: tuple[int, int], dtype: torch.dtype, *,
    biased: bool,
) -> None:  # fmt: skip
    """A site's launch on few of its rows; `sizes`: hidden and intermediate; `biased`: qkv."""
    hidden, inter = sizes
    # For two programs, of which the second has little to do.
    rows = launch.block_n * launch.groups + launch.block_n // 2 + 1
    if site == "qkv":
        shape = ((2, 1), 16, hidden)
        test_norm_qkv.check(num_tokens, launch, shape, dtype, CPU, biased=biased, running=ring)
        return
    check = {"gate_up": test_norm_gate_up.check, "head": test_norm_linear.check}.get(
        site, test_linear_add.check
    )
    columns = inter if site == "down" else hidden
    check(num_tokens, launch, rows, columns, dtype, CPU, running=ring)


# Rows (or pairs) of queries, keys and values; of the MLP; of the head.
@pytest.mark.parametrize(
    ("hidden", "qkv", "inter", "head"),
    [(1536, 1024, 8960, 151936), (2048, 1536, 8192, 128256), (4096, 3072, 14336, 128256)],
)
@pytest.mark.parametrize("site", ["qkv", "o", "gate_up", "head"])
@pytest.mark.parametrize("num_tokens", [8, 16])
def test_launches_are_right_that_are_chosen_for_whole_models(
    num_tokens: int, site: str, hidden: int, qkv: int, inter: int, head: int
) -> None:
    rows = {"qkv": qkv, "o": hidden, "gate_up": inter, "head": head}[site]
    launch = choose_gemv(rows, hidden, num_tokens, pairs=site in ("qkv", "gate_up"))
    check_site(site, num_tokens, launch, (hidden, inter), torch.bfloat16, biased=True)


@pytest.mark.parametrize("site", ["qkv", "o", "gate_up", "down", "head"])
def test_rings_are_right_that_were_tuned(site: str) -> None:
    found = 0
    for entry in tuned.read(tuned.SHIPPED / "nvidia-h200.json"):
        launch = getattr(read_launches(entry.sites, entry.where), site)
        if launch.num_stages:
            sizes = entry.shape["hidden_size"], entry.shape["intermediate_size"]
            dtype = getattr(torch, entry.dtype)
            check_site(site, entry.batch, launch, sizes, dtype, biased=False)
            found += 1
    assert found


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
        running = partial(ring, edit)
        test_norm_gate_up.check(5, launch, 32, hidden, torch.bfloat16, CPU, running=running)

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
