"""The operator library: one folder an operator (contract, reference, Triton kernel).

Kernels are imported where a CUDA tensor first needs them: Triton takes 0.2 s to import, which the
CPU path must not pay.
"""

from lite_llama.ops.add.op import add
from lite_llama.ops.advance_greedy.op import advance_drawn, advance_greedy
from lite_llama.ops.argmax.op import argmax
from lite_llama.ops.attention_decode.op import attention_decode
from lite_llama.ops.attention_prefill.op import attention_prefill
from lite_llama.ops.bias_rope_pad.op import bias_rope_pad, unpad
from lite_llama.ops.embedding.op import embedding
from lite_llama.ops.fused_ffn.op import fused_ffn
from lite_llama.ops.kv_write.op import kv_write
from lite_llama.ops.layer_norm.op import layer_norm
from lite_llama.ops.linear.op import linear, linear_fp8
from lite_llama.ops.linear_add.op import linear_add
from lite_llama.ops.norm_gate_up.op import norm_gate_up
from lite_llama.ops.norm_linear.op import norm_linear
from lite_llama.ops.norm_qkv.op import norm_qkv
from lite_llama.ops.norm_rope_write.op import norm_rope_write
from lite_llama.ops.repeat_kv.op import repeat_kv
from lite_llama.ops.rms_norm.op import add_rms_norm, rms_norm
from lite_llama.ops.rope.op import rope
from lite_llama.ops.sample.op import (
    SamplingRows,
    apply_masks,
    apply_penalties,
    sample,
    token_logprobs,
)
from lite_llama.ops.softmax.op import softmax
from lite_llama.ops.swiglu.op import swiglu
from lite_llama.ops.topk.op import topk

__all__ = [
    "SamplingRows",
    "add",
    "add_rms_norm",
    "advance_drawn",
    "advance_greedy",
    "apply_masks",
    "apply_penalties",
    "argmax",
    "attention_decode",
    "attention_prefill",
    "bias_rope_pad",
    "embedding",
    "fused_ffn",
    "kv_write",
    "layer_norm",
    "linear",
    "linear_add",
    "linear_fp8",
    "norm_gate_up",
    "norm_linear",
    "norm_qkv",
    "norm_rope_write",
    "repeat_kv",
    "rms_norm",
    "rope",
    "sample",
    "softmax",
    "swiglu",
    "token_logprobs",
    "topk",
    "unpad",
]
