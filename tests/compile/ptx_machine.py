"""Run compiled kernels on the CPU: PTX in numpy, for what Triton's interpreter cannot run (Gluon).

All threads of a program execute an instruction together. What goes wrong only now and then on a GPU
goes wrong here each time: an asynchronous copy lands when a wait asks for it and not before, and
until then its place is NaN, as is fresh memory; a byte of shared memory that one thread writes and
another reads or writes with no barrier in between is an AssertionError.
"""

import importlib
import math
import operator
import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lite_llama.kernel_lib.gpu import H200
from tests.compile.record import compile_launch, launches_go_to

Array = NDArray[Any]

_GAP = 256  # bytes around every tensor: the alignment of CUDA's allocations, and a guard
_MAX_STEPS = 1_000_000
_NO_THREAD, _THREADS = -1, -2  # nobody, and more than one

# Numbers by their PTX type; registers hold their bits, as unsigned integers, or truth values.
_DTYPES: dict[str, type[np.generic]] = {
    "pred": np.bool_,
    "b16": np.uint16, "u16": np.uint16, "f16": np.float16,
    "b32": np.uint32, "u32": np.uint32, "s32": np.int32, "f32": np.float32,
    "b64": np.uint64, "u64": np.uint64, "s64": np.int64,
}  # fmt: skip
_UNSIGNED: dict[int, type[np.generic]] = {2: np.uint16, 4: np.uint32, 8: np.uint64}

_FUNCTIONS: dict[str, Callable[..., Array]] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "min": np.minimum,
    "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor,
    "shl": np.left_shift, "shr": np.right_shift,
    "mov": np.asarray, "not": np.invert, "ex2": np.exp2, "rsqrt": lambda x: 1 / np.sqrt(x),
}  # fmt: skip


@dataclass(frozen=True)
class Compiled:
    """A kernel as the machine takes it; `arguments` are the names of its parameters in order."""

    ptx: str
    num_threads: int
    shared_bytes: int
    arguments: tuple[str, ...]


@dataclass(frozen=True)
class Instruction:
    """One line: what runs it with which parts of the opcode, where `predicate` (or not) holds."""

    line: str
    handler: Callable[..., None]
    parts: tuple[str, ...]
    operands: tuple[str, ...]
    predicate: str = ""
    negated: bool = False


class Machine:
    """One program of a kernel: registers of all its threads, and its shared memory.

    `memory` is the global memory, bytes that all programs share; `parameters` are addresses in it,
    and numbers.
    """

    def __init__(
        self, kernel: Compiled, memory: Array, parameters: Sequence[int | float], program: int
    ) -> None:
        self.code, self.labels = decode(kernel.ptx)
        self.memory, self.parameters = memory, parameters
        self.shared = np.full(kernel.shared_bytes, 0xFF, np.uint8)
        self.everyone = np.arange(kernel.num_threads)
        self.registers: dict[str, Array] = {
            "%tid.x": self.everyone.astype(np.uint32),
            "%ctaid.x": np.full(kernel.num_threads, program, np.uint32),
            "global_smem": np.zeros(kernel.num_threads, np.uint32),
        }
        # Who wrote and who read a byte of shared memory since the last barrier.
        self.writers = np.full(kernel.shared_bytes, _NO_THREAD, np.int16)
        self.readers = self.writers.copy()
        # Copies under way: of every group (places, bytes, threads).
        self.groups: list[list[tuple[Array, Array, Array]]] = [[]]
        self.waited = "griddepcontrol.wait" not in kernel.ptx
        self.position = 0
        self.line = ""
        self.threads = self.everyone  # those that the present instruction is for

    def run(self) -> None:
        """Run the program to its end."""
        with np.errstate(all="ignore"):
            for _ in range(_MAX_STEPS):
                if self.position == len(self.code):
                    return
                self._step(self.code[self.position])
        raise AssertionError(f"the program does not end: {self.line}")

    def _step(self, instruction: Instruction) -> None:
        self.position += 1
        self.line, self.threads = instruction.line, self.everyone
        if instruction.predicate:
            holds = self.registers[instruction.predicate] != instruction.negated
            self.threads = np.flatnonzero(holds)
        instruction.handler(self, instruction.operands, *instruction.parts)

    # Registers.

    def _get(self, operand: str, kind: str) -> Array:
        """The values of a register or constant, one a thread."""
        if operand in self.registers:
            bits = self.registers[operand]
        elif kind == "pred":
            bits = np.full(len(self.everyone), operand != "0")
        else:
            num_bytes = np.dtype(_DTYPES[kind]).itemsize
            number = int(operand[2:], 16) if operand.startswith("0f") else int(operand, 0)
            number %= 256**num_bytes
            bits = np.full(len(self.everyone), number, _UNSIGNED[num_bytes])
        return _values(bits, kind)

    def _put(self, register: str, values: Array, kind: str) -> None:
        bits = _bits(values, kind)
        if len(self.threads) < len(self.everyone):
            old = self.registers.get(register, ~np.zeros_like(bits)).copy()
            old[self.threads] = bits[self.threads]
            bits = old
        self.registers[register] = bits

    def _unary(self, operands: Sequence[str], name: str, kind: str) -> None:
        target, source = operands
        if target.startswith("{"):  # the halves of a register
            low, high = _names(target)
            bits = self._get(source, "b32")
            self._put(low, bits, "b16")
            self._put(high, bits >> np.uint32(16), "b16")
        else:
            self._put(target, _FUNCTIONS[name](self._get(source, kind)), kind)

    def _binary(self, operands: Sequence[str], name: str, kind: str) -> None:
        target, a, b = operands
        first = self._get(a, kind)
        second = self._get(b, kind if name[:2] != "sh" else "u32").astype(first.dtype)
        self._put(target, _FUNCTIONS[name](first, second), kind)

    def _product(self, operands: Sequence[str], name: str, part: str, kind: str) -> None:
        target, a, b, *added = operands
        wide = "s64" if kind.startswith("s") else "u64"
        first, second = (self._get(operand, kind).astype(_DTYPES[wide]) for operand in (a, b))
        product = first * second
        if part == "hi":
            product >>= np.array(32, product.dtype)
        kind = wide if part == "wide" else kind
        if name == "mad":
            product = product + self._get(added[0], kind).astype(product.dtype)
        self._put(target, product, kind)

    def _fma(self, operands: Sequence[str]) -> None:
        a, b, c = (self._get(operand, "f32").astype(np.float64) for operand in operands[1:])
        self._put(operands[0], a * b + c, "f32")

    def _convert(self, operands: Sequence[str], to: str, source: str) -> None:
        target, *values = operands
        half = to.removesuffix("x2")
        *high, low = (_bits(self._get(value, source), half) for value in values)
        if high:
            both = low.astype(np.uint32) | high[0].astype(np.uint32) << np.uint32(16)
            self._put(target, both, "b32")
        else:
            self._put(target, self._get(values[0], source), to)

    def _extract(self, operands: Sequence[str], kind: str) -> None:
        target, source, first, width = operands
        left = 32 - int(first) - int(width)
        dtype = _DTYPES[kind]
        bits = (self._get(source, "u32") << np.uint32(left)).view(dtype)
        self._put(target, bits >> np.array(32 - int(width), dtype), kind)

    def _compare(self, operands: Sequence[str], name: str, kind: str) -> None:
        target, a, b = operands
        self._put(target, getattr(operator, name)(self._get(a, kind), self._get(b, kind)), "pred")

    def _select(self, operands: Sequence[str], kind: str) -> None:
        target, a, b, predicate = operands
        chosen = np.where(self.registers[predicate], self._get(a, kind), self._get(b, kind))
        self._put(target, chosen, kind)

    def _shuffle(self, operands: Sequence[str]) -> None:
        target, source, distance, *_ = operands
        self._put(target, self._get(source, "b32")[self.everyone ^ int(distance)], "b32")

    def _multiply(self, operands: Sequence[str], kind: str) -> None:
        """mma.m16n8k16: d = a b + c, a warp at a time."""
        d, a, b, c = map(_names, operands)
        lane = np.arange(32)
        row, column = lane // 4, lane % 4 * 2
        num_warps = len(self.everyone) // 32
        left = np.zeros((num_warps, 16, 16), np.float32)
        right = np.zeros((num_warps, 16, 8), np.float32)
        sums = np.zeros((num_warps, 16, 8), np.float32)
        for i, register in enumerate(a):
            for j, half in enumerate(self._halves(register, kind)):
                left[:, row + 8 * (i % 2), column + 8 * (i // 2) + j] = half
        for i, register in enumerate(b):
            for j, half in enumerate(self._halves(register, kind)):
                right[:, column + 8 * i + j, row] = half
        for i, register in enumerate(c):
            sums[:, row + 8 * (i // 2), column + i % 2] = self._get(register, "f32").reshape(-1, 32)
        sums += left @ right
        for i, register in enumerate(d):
            self._put(register, sums[:, row + 8 * (i // 2), column + i % 2].reshape(-1), "f32")

    def _halves(self, register: str, kind: str) -> Iterator[Array]:
        bits = self._get(register, "b32")
        for half in (bits, bits >> np.uint32(16)):
            yield _values(half.astype(np.uint16), kind).reshape(-1, 32)

    # Memory.

    def _places(self, operand: str, num_bytes: int) -> Array:
        """[threads, num_bytes], from an address such as [%r1+16]."""
        register, _, offset = operand[1:-1].replace(" ", "").partition("+")
        starts = self._get(register, "b64" if register.startswith("%rd") else "b32")[self.threads]
        places = starts.astype(np.int64) + int(offset or 0)
        assert (places >= 0).all(), f"negative address: {self.line}"
        assert (places % num_bytes == 0).all(), f"misaligned address: {self.line}"
        every_byte: Array = places[:, None] + np.arange(num_bytes)
        return every_byte

    def _load_parameter(self, operands: Sequence[str], kind: str) -> None:
        target, source = operands
        index = int(source.rpartition("_")[2].rstrip("]"))
        # After the arguments come pointers to scratch memory, which no kernel here has.
        value = self.parameters[index] if index < len(self.parameters) else 0
        given = np.full(len(self.everyone), value)
        self._put(target, given, "f32" if isinstance(value, float) else kind)

    def _load(self, operands: Sequence[str], space: str, kind: str) -> None:
        target, address = operands
        registers = _names(target)
        places = self._places(address, len(registers) * np.dtype(_DTYPES[kind]).itemsize)
        found = np.zeros((len(self.everyone), places.shape[1]), np.uint8)
        if space == "shared":
            self._note_read(places)
            found[self.threads] = self.shared[places]
        else:
            found[self.threads] = self.memory[places]
        values = found.view(_DTYPES[kind])
        for i, register in enumerate(registers):
            self._put(register, values[:, i], kind)

    def _store(self, operands: Sequence[str], space: str, kind: str) -> None:
        address, source = operands
        values = np.stack([self._get(register, kind) for register in _names(source)], 1)
        written = values.view(np.uint8)[self.threads]
        places = self._places(address, written.shape[1])
        if space == "shared":
            self._note_write(places, self.threads)
            self.shared[places] = written
        else:
            assert self.waited, f"a store before the wait for the kernel before: {self.line}"
            self.memory[places] = written

    def _store_matrix(self, operands: Sequence[str]) -> None:
        """stmatrix: lanes 8 j to 8 j + 7 name the rows of matrix j, of 16 bytes."""
        address, source = operands
        rows = self._places(address, 16)[:, 0].reshape(-1, 32)
        lane = np.arange(32)
        for j, register in enumerate(_names(source)):
            starts = rows[:, 8 * j + lane // 4] + lane % 4 * 4
            places = starts.reshape(-1, 1) + np.arange(4)
            self._note_write(places, self.everyone)
            self.shared[places] = self._get(register, "b32").view(np.uint8).reshape(-1, 4)

    def _copy(self, operands: Sequence[str]) -> None:
        target, source, *sizes = operands
        assert all(int(size, 0) == 16 for size in sizes), self.line
        places = self._places(target, 16)
        self._note_write(places, self.threads)
        self.shared[places] = 0xFF  # it may land at once: what was there is lost
        self.groups[-1].append((places, self.memory[self._places(source, 16)], self.threads))

    def _commit(self, operands: Sequence[str]) -> None:
        del operands
        self.groups.append([])

    def _wait(self, operands: Sequence[str]) -> None:
        while len(self.groups) - 1 > int(operands[0], 0):
            for places, found, threads in self.groups.pop(0):
                self._note_write(places, threads)
                self.shared[places] = found

    def _barrier(self, operands: Sequence[str], kind: str) -> None:
        of_all = operands == ("0",) if kind == "sync" else len(self.everyone) == 32
        if not of_all:
            raise NotImplementedError(self.line)
        self.writers[:] = self.readers[:] = _NO_THREAD

    def _depend(self, operands: Sequence[str], what: str) -> None:
        del operands
        self.waited |= what == "wait"

    def _note_read(self, places: Array) -> None:
        reader = np.broadcast_to(self.threads[:, None], places.shape)
        self._check(places, reader, self.writers, "was written")
        known = self.readers[places]
        self.readers[places] = np.where((known == _NO_THREAD) | (known == reader), reader, _THREADS)
        shared = places[self.readers[places] != reader]
        self.readers[shared] = _THREADS

    def _note_write(self, places: Array, threads: Array) -> None:
        writer = np.broadcast_to(threads[:, None], places.shape)
        self._check(places, writer, self.readers, "was read")
        self._check(places, writer, self.writers, "was written")
        self.writers[places] = writer
        self._check(places, writer, self.writers, "is written")

    def _check(self, places: Array, thread: Array, noted: Array, what: str) -> None:
        known = noted[places]
        bad = (known != _NO_THREAD) & (known != thread)
        if bad.any():
            other = f"thread {known[bad][0]}" if known[bad][0] >= 0 else "several threads"
            raise AssertionError(
                f"race: byte {places[bad][0]} {what} by {other} and, no barrier in between, "
                f"met by thread {thread[bad][0]}: {self.line}"
            )

    # Control.

    def _branch(self, operands: Sequence[str]) -> None:
        assert len(self.threads) in (0, len(self.everyone)), f"threads part: {self.line}"
        if len(self.threads):
            self.position = self.labels[operands[0]]

    def _return(self, operands: Sequence[str]) -> None:
        del operands
        assert len(self.threads) == len(self.everyone), f"threads part: {self.line}"
        self.position = len(self.code)


_KIND = "(" + "|".join([*_DTYPES, "bf16"]) + ")"
_OPCODES: dict[str, Callable[..., None]] = {
    rf"(mov|not|ex2|rsqrt)(?:\.approx)?(?:\.ftz)?\.{_KIND}": Machine._unary,
    rf"(add|sub|mul|div|min|and|or|xor|shl|shr)(?:\.full)?\.{_KIND}": Machine._binary,
    rf"(mul|mad)\.(lo|hi|wide)\.{_KIND}": Machine._product,
    r"fma\.rn\.f32": Machine._fma,
    rf"cvt(?:\.rn)?\.(\w+)\.{_KIND}": Machine._convert,
    r"bfe\.(u32|s32)": Machine._extract,
    rf"setp\.(eq|ne|lt|gt)\.{_KIND}": Machine._compare,
    rf"selp\.{_KIND}": Machine._select,
    r"shfl\.sync\.bfly\.b32": Machine._shuffle,
    r"mma\.sync\.aligned\.m16n8k16\.row\.col\.f32\.(f16|bf16)\.\1\.f32": Machine._multiply,
    rf"ld\.param\.{_KIND}": Machine._load_parameter,
    rf"ld\.(global|shared)(?:\.v[24])?\.{_KIND}": Machine._load,
    rf"st\.(global|shared)(?:\.v[24])?\.{_KIND}": Machine._store,
    r"stmatrix\.sync\.aligned\.m8n8\.x4\.shared\.b16": Machine._store_matrix,
    r"cp\.async\.cg\.shared\.global": Machine._copy,
    r"cp\.async\.commit_group": Machine._commit,
    r"cp\.async\.wait_group": Machine._wait,
    r"bar\.(sync|warp\.sync)": Machine._barrier,
    r"griddepcontrol\.(wait|launch_dependents)": Machine._depend,
    r"bra(?:\.uni)?": Machine._branch,
    r"ret": Machine._return,
}


@cache
def decode(ptx: str) -> tuple[list[Instruction], dict[str, int]]:
    """The instructions of a kernel, and where its labels point."""
    code: list[Instruction] = []
    labels: dict[str, int] = {}
    body = ptx.partition(".entry")[2].partition("\n{")[2].partition("\n}")[0]
    for line in body.splitlines():
        text = line.partition("//")[0].strip()
        if label := re.fullmatch(r"(\$\w+):", text):
            labels[label[1]] = len(code)
        elif text and not text.startswith("."):
            code.append(_decode_line(text))
    return code, labels


def _decode_line(line: str) -> Instruction:
    found = re.fullmatch(r"(?:@(!?)(%p\d+)\s+)?([\w.:]+)\s*(.*);", line)
    for pattern, handler in _OPCODES.items():
        if found and (opcode := re.fullmatch(pattern, found[3])):
            operands = tuple(re.findall(r"\{.*?\}|\[.*?\]|[^\s,]+", found[4]))
            predicate, negated = found[2] or "", found[1] == "!"
            return Instruction(line, handler, opcode.groups(), operands, predicate, negated)
    raise NotImplementedError(line)


def _names(operand: str) -> list[str]:
    """The registers of { a, b }, or of a alone."""
    return operand.strip("{} ").replace(" ", "").split(",")


def _values(bits: Array, kind: str) -> Array:
    """What the bits of a register mean as a type; bfloat16 as float32."""
    if kind == "bf16":
        bits, kind = bits.astype(np.uint32) << np.uint32(16), "f32"
    assert bits.itemsize == np.dtype(_DTYPES[kind]).itemsize, f"{bits.dtype} as {kind}"
    values: Array = bits.view(_DTYPES[kind])
    return values


def _bits(values: Array, kind: str) -> Array:
    """Values rounded to a type, as a register holds them."""
    if kind == "bf16":
        rounded = torch.from_numpy(np.ascontiguousarray(values, np.float32)).bfloat16()
        return rounded.view(torch.int16).numpy().view(np.uint16)
    numbers = np.ascontiguousarray(values, _DTYPES[kind])
    return numbers if kind == "pred" else numbers.view(_UNSIGNED[numbers.itemsize])


@contextmanager
def emulated(edit: Callable[[str], str] = str) -> Iterator[list[str]]:
    """Compile launches on CPU tensors for an H200, and run them on the machine.

    Yields the names of the kernels that have run; `edit` may change their PTX before.
    """
    names: list[str] = []

    def run(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        del warmup
        assert math.prod(grid) == grid[0], f"a grid of more than one dimension: {grid}"
        kernel = _compile(self, args, kwargs)
        assert kernel.shared_bytes <= H200.shared_bytes_per_block, "too much shared memory"
        given = dict(zip(self.arg_names, args, strict=False)) | kwargs
        edited = replace(kernel, ptx=edit(kernel.ptx))
        _run_all(edited, [given[name] for name in kernel.arguments], grid[0])
        names.append(self.fn.__name__)

    with launches_go_to(run, H200):
        yield names


def _run_all(kernel: Compiled, arguments: Sequence[Any], num_programs: int) -> None:
    """Run the programs one after the other on a copy of the tensors, and copy what they wrote."""
    tensors = {t.data_ptr(): t for t in arguments if isinstance(t, torch.Tensor)}
    places: dict[int, slice] = {}
    end = _GAP
    for pointer, tensor in tensors.items():
        assert tensor.is_contiguous()
        places[pointer] = slice(end, end + tensor.nbytes)
        end += (tensor.nbytes // _GAP + 2) * _GAP
    memory = np.full(end, 0xFF, np.uint8)
    gaps = np.ones(end, np.bool_)
    for pointer, tensor in tensors.items():
        memory[places[pointer]] = tensor.view(-1).view(torch.uint8).numpy()
        gaps[places[pointer]] = False
    parameters = [
        places[value.data_ptr()].start if isinstance(value, torch.Tensor) else value
        for value in arguments
    ]
    for program in range(num_programs):
        Machine(kernel, memory, parameters, program).run()
    assert (memory[gaps] == 0xFF).all(), "the kernel writes beside its tensors"
    for pointer, tensor in tensors.items():
        tensor.view(-1).view(torch.uint8).copy_(torch.from_numpy(memory[places[pointer]]))


def _compile(function: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Compiled:
    shapes = [a.to("meta") if isinstance(a, torch.Tensor) else a for a in args]
    name = (function.fn.__module__, function.fn.__name__)
    return _compiler().submit(_compile_by_name, name, shapes, kwargs).result()


@cache
def _compiler() -> ProcessPoolExecutor:
    """A process without Triton's interpreter, which binds at import and leaves no compiler."""
    return ProcessPoolExecutor(1, get_context("spawn"), initializer=_forget_interpreter)


def _forget_interpreter() -> None:
    os.environ.pop("TRITON_INTERPRET", None)  # noqa: TID251


def _compile_by_name(
    name: tuple[str, str], args: Sequence[Any], kwargs: dict[str, Any]
) -> Compiled:
    function = getattr(importlib.import_module(name[0]), name[1])
    kernel = compile_launch(function, args, kwargs, "sm_90")
    arguments = tuple(n for n, kind in kernel.src.signature.items() if kind != "constexpr")
    threads = 32 * kernel.metadata.num_warps
    return Compiled(kernel.asm["ptx"], threads, kernel.metadata.shared, arguments)
