"""Makes Triton's interpreter compute on bf16 and fp8 as a GPU does.

As shipped (3.6) it keeps bf16 and fp8 as raw unsigned integers: arithmetic on bf16 works on the
bits (silently wrong), conversions to both truncate, and `griddepcontrol` is unknown. bf16 support
was declined upstream (triton issue 11584). Here every bf16 operation is computed in float32 and
rounded once, and every conversion goes through torch, which rounds to nearest even.
"""

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import triton.language as tl
import triton.runtime.interpreter as interpreter
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

_TORCH_DTYPES = {
    tl.bfloat16: torch.bfloat16,
    tl.float8e4nv: torch.float8_e4m3fn,
    tl.float8e5: torch.float8_e5m2,
}
_RAW_DTYPES = {tl.bfloat16: np.uint16, tl.float8e4nv: np.uint8, tl.float8e5: np.uint8}


def install() -> None:
    """Patch the interpreter; to be called once, before the first kernel runs."""
    builder = InterpreterBuilder
    builder.binary_op = _in_float32(builder.binary_op)
    builder.unary_op = _in_float32(builder.unary_op)
    builder.create_fma = _in_float32(builder.create_fma)
    builder.create_rsqrt = _in_float32(builder.create_rsqrt)
    builder.create_clampf = _in_float32(builder.create_clampf)
    builder.create_dot = _widen_operands(builder.create_dot)
    builder.cast_impl = _cast_through_torch(builder.cast_impl)
    builder.create_fp_to_fp = _cast_through_torch(builder.create_fp_to_fp)
    builder.get_bf16 = _bf16_constant
    _refuse_bf16_reductions()
    _index_without_deprecation()
    # Two modules of one source: kernels import from the second.
    for module in (tl.extra.cuda, importlib.import_module("triton.language.extra.cuda")):
        module.gdc_wait = module.gdc_launch_dependents = _no_dependents


def _no_dependents(_semantic: Any = None) -> None:
    # Programs run one after another here: everything launched earlier has finished.
    return None


def _is_bf16(x: Any) -> bool:
    return isinstance(x, TensorHandle) and x.dtype.scalar == tl.bfloat16


def _decode(x: TensorHandle) -> torch.Tensor:
    raw = torch.from_numpy(np.array(x.data, order="C"))
    narrow = _TORCH_DTYPES.get(x.dtype.scalar)
    return raw if narrow is None else raw.view(narrow)


def _encode(values: torch.Tensor, dtype: Any) -> TensorHandle:
    narrow = _TORCH_DTYPES.get(dtype)
    if narrow is None:
        target = interpreter._get_np_dtype(dtype)
        return TensorHandle(values.float().numpy().astype(target), dtype)
    bits = values.to(narrow).view(torch.uint8 if narrow.itemsize == 1 else torch.int16)
    return TensorHandle(bits.numpy().view(_RAW_DTYPES[dtype]), dtype)


def _widen(x: Any) -> Any:
    return TensorHandle(_decode(x).float().numpy(), tl.float32) if _is_bf16(x) else x


def _in_float32(method: Callable[..., TensorHandle]) -> Callable[..., TensorHandle]:
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> TensorHandle:
        if not any(_is_bf16(arg) for arg in args):
            return method(self, *args, **kwargs)
        result = method(self, *(_widen(arg) for arg in args), **kwargs)
        if result.data.dtype == np.bool_:  # a comparison
            return result
        return _encode(torch.from_numpy(np.asarray(result.data)), tl.bfloat16)

    return wrapped


def _widen_operands(method: Callable[..., TensorHandle]) -> Callable[..., TensorHandle]:
    def wrapped(self: Any, a: Any, b: Any, *rest: Any) -> TensorHandle:
        return method(self, _exact(a), _exact(b), *rest)

    def _exact(x: TensorHandle) -> TensorHandle:
        if x.dtype.scalar in _TORCH_DTYPES:
            return TensorHandle(_decode(x).float().numpy(), tl.float32)
        return x

    return wrapped


def _cast_through_torch(method: Callable[..., TensorHandle]) -> Callable[..., TensorHandle]:
    def wrapped(self: Any, src: Any, dst_type: Any, *rest: Any) -> TensorHandle:
        source, target = src.dtype.scalar, dst_type.scalar
        if source not in _TORCH_DTYPES and target not in _TORCH_DTYPES:
            return method(self, src, dst_type, *rest)
        if source == target:
            return src
        values = _decode(src)
        if values.dtype == torch.float64:
            values = values.float()  # as the hardware: by way of float32
        return _encode(values, target)

    return wrapped


def _bf16_constant(_self: Any, value: float) -> TensorHandle:
    return _encode(torch.tensor([value]), tl.bfloat16)


def _refuse_bf16_reductions() -> None:
    # They would sum raw bits. Kernels widen to float32 before they reduce.
    for operation in (interpreter.ReduceOps, interpreter.ScanOps):
        operation.check_tensor = _checked(operation.check_tensor)


def _checked(method: Callable[..., None]) -> Callable[..., None]:
    def wrapped(self: Any, tensors: Any) -> None:
        if any(tensor.dtype == tl.bfloat16 for tensor in tensors):
            raise ValueError("reduction over bf16: widen to float32 first")
        method(self, tensors)

    return wrapped


def _index_without_deprecation() -> None:
    # numpy 2.4 refuses int() of a one-element array; loop bounds are such arrays.
    original = interpreter._patch_lang_tensor

    def patched(tensor: Any, scope: Any) -> None:
        original(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    interpreter._patch_lang_tensor = patched
