"""The one table of accuracy limits: normalised mean squared error against float64.

NMSE = sum((got − want)²) / sum(want²), with `want` computed in float64 from the rounded inputs.
"""

import torch

EXACT = {torch.float32: 0.0, torch.float16: 0.0, torch.bfloat16: 0.0}
# rms_norm, layer_norm, softmax, swiglu, rope, add
ROWWISE = {torch.float32: 1e-12, torch.float16: 3e-7, torch.bfloat16: 1e-5}
GEMM = {torch.float32: 1e-11, torch.float16: 3e-7, torch.bfloat16: 1e-5}
# A chain of norm, product and rope or activation rounds three times, as its separate parts do.
FUSED = {torch.float32: 3e-11, torch.float16: 1.5e-6, torch.bfloat16: 5e-5}
ATTENTION = {torch.float32: 1e-11, torch.float16: 1e-6, torch.bfloat16: 2e-5}
# An output in fp8 e4m3 has 3 mantissa bits: half a step is 2⁻⁴ of the value at most.
FP8_OUTPUT = {torch.float8_e4m3fn: 2e-3, torch.float8_e5m2: 8e-3}
# A quantised product against dequantise-then-multiply.
QUANTISED_GEMM = 5e-4
# The second gate: error against that of the plain torch operator in the same dtype.
TIMES_TORCH = 1.5
