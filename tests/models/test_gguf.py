"""The same tiny model as a GGUF file gives the same logits, whole or quantised."""

from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from gguf import GGMLQuantizationType as QType
from torch import Tensor

from lite_llama import LLM
from lite_llama.layouts.dense import DenseWeight
from lite_llama.layouts.int4_groups import Int4Groups
from lite_llama.layouts.refined_rows import RefinedRows
from tests.models import tiny

IDS = tiny.token_ids(40)

MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("llama", "llama", {}),
    "llama, tied": ("llama", "llama", {"tie_word_embeddings": True}),
    "llama, 9 heads on 3": (
        "llama",
        "llama",
        {"num_attention_heads": 9, "num_key_value_heads": 3, "hidden_size": 72, "head_dim": 24},
    ),
    "llama, biases": ("llama", "llama", {"attention_bias": True}),
    "mistral, window": ("llama", "mistral", {"sliding_window": 7}),
    "internlm2": ("internlm2", "llama", {}),
    "qwen2": ("qwen2", "qwen2", {}),
    "qwen2, tied": ("qwen2", "qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", "qwen3", {"head_dim": 24}),
}


def logits_of(path: Path, **settings: Any) -> Tensor:
    with LLM(path, device="cpu", **settings) as llm:
        return llm.logits(IDS)


def divergence(expected: Tensor, given: Tensor) -> Tensor:
    """Mean Kullback-Leibler divergence of the next token's distribution, in nats."""
    p, q = expected.log_softmax(-1), given.log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1).mean()


@pytest.mark.parametrize("name", MODELS)
def test_a_float32_file_gives_the_logits_of_transformers(name: str, tmp_path: Path) -> None:
    arch, family, changes = MODELS[name]
    built = tiny.model(family, **changes)
    tiny.write_gguf(tmp_path / "model.gguf", built, arch)
    given = logits_of(tmp_path / "model.gguf", dtype="float32")
    torch.testing.assert_close(given, tiny.oracle_logits(built, IDS), atol=1e-4, rtol=0)


def test_rope_factors_divide_the_frequencies(tmp_path: Path) -> None:
    # llama.cpp stores Llama 3's scaling as divisors in a tensor.
    rope = {
        "rope_type": "llama3",
        "rope_theta": 1e4,
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    }
    built = tiny.model(rope_parameters=rope)
    plain = 1.0 / 1e4 ** (torch.arange(0, 16, 2).float() / 16)
    factors = plain / built.model.rotary_emb.inv_freq
    assert factors.max() == 4.0
    path = tmp_path / "model.gguf"
    tiny.write_gguf(path, built, "llama", extra_tensors={"rope_freqs.weight": factors})
    given = logits_of(path, dtype="float32")
    torch.testing.assert_close(given, tiny.oracle_logits(built, IDS), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("kind", "rope"),
    [
        (gguf.RopeScalingType.LINEAR, {"rope_type": "linear", "factor": 2.0}),
        (
            gguf.RopeScalingType.YARN,
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
        ),
    ],
)
def test_rope_scaling_keys_are_read(
    kind: gguf.RopeScalingType, rope: dict[str, Any], tmp_path: Path
) -> None:
    built = tiny.model("qwen2", rope_parameters={**rope, "rope_theta": 1e4})
    path = tmp_path / "model.gguf"
    tiny.write_gguf(path, built, "qwen2", changes={"rope_scaling": (kind, rope["factor"], 32)})
    given = logits_of(path, dtype="float32")
    torch.testing.assert_close(given, tiny.oracle_logits(built, IDS), atol=1e-4, rtol=0)


FORMATS: dict[str, dict[str, QType]] = {
    "Q8_0": {"": QType.Q8_0},
    "Q4_0": {"": QType.Q4_0},
    "Q4_1": {"": QType.Q4_1},
    "Q5_1": {"": QType.Q5_1},
    "Q4_0 and Q4_1 in one qkv": {"": QType.Q4_0, "attn_k": QType.Q4_1, "ffn_up": QType.Q4_1},
    "Q8_0 and Q4_0 in one qkv": {"": QType.Q4_0, "attn_v": QType.Q8_0},
    "F16": {"": QType.F16},
    "BF16": {"": QType.BF16},
    "Q8_0 with a BF16 embedding": {"": QType.Q8_0, "token_embd": QType.BF16},
}
SHAPES = {"tied": {"tie_word_embeddings": True}, "own head": {}}


def quantised(path: Path, formats: dict[str, QType], shape: dict[str, Any]) -> Any:
    """Write a quantised llama to `path`; the transformers model with the values it decodes to."""
    built = tiny.model("llama", vocab_size=272, **shape)
    stored = tiny.write_gguf(path, built, "llama", formats=formats)
    tiny.load_stored(built, stored, permute=True)
    return built


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", FORMATS)
def test_float32_decodes_a_quantised_file_exactly(name: str, shape: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    built = quantised(path, FORMATS[name], SHAPES[shape])
    given = logits_of(path, dtype="float32")
    torch.testing.assert_close(given, tiny.oracle_logits(built, IDS), atol=1e-4, rtol=0)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", FORMATS)
def test_auto_is_near_the_exact_distribution(name: str, shape: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    built = quantised(path, FORMATS[name], SHAPES[shape])
    # bf16 products of a random model this narrow; 0.0017 measured.
    assert divergence(tiny.oracle_logits(built, IDS), logits_of(path)) < 5e-3


def test_k_quants_are_decoded_where_their_blocks_fit(tmp_path: Path) -> None:
    built = tiny.model(hidden_size=256, intermediate_size=256, head_dim=16, vocab_size=272)
    path = tmp_path / "model.gguf"
    # gguf-py decodes k-quants but cannot encode them: random bytes with sane scales are a weight.
    blocks = k_quant_bytes(rows=256, columns=256)
    stored = gguf.dequantize(blocks, QType.Q6_K)
    for layer in built.model.layers:
        layer.mlp.up_proj.weight.data = torch.from_numpy(stored)
    write_with_raw_up(path, built, blocks)
    expected = tiny.oracle_logits(built, IDS)
    exact = logits_of(path, dtype="float32")
    torch.testing.assert_close(exact, expected, atol=1e-4, rtol=0)
    assert divergence(expected, logits_of(path)) < 5e-3


def k_quant_bytes(rows: int, columns: int) -> Any:
    generator = torch.Generator().manual_seed(3)
    blocks = torch.randint(0, 256, (rows * columns // 256, 210), generator=generator).byte()
    # block_q6_K ends with its fp16 scale; int8 codes · int8 scales · 2e-5 gives weights near 0.03.
    scale = torch.tensor([2e-5], dtype=torch.float16).view(torch.uint8)
    blocks[:, 208:] = scale
    return blocks.view(rows, -1).numpy()


def write_with_raw_up(path: Path, built: Any, blocks: Any) -> None:
    original = gguf.GGUFWriter.add_tensor

    def add_tensor(self: Any, name: str, data: Any, **options: Any) -> None:
        if "ffn_up" in name:
            original(self, name, blocks, raw_dtype=QType.Q6_K)
        else:
            original(self, name, data, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf.GGUFWriter, "add_tensor", add_tensor)
        tiny.write_gguf(path, built, "llama")


def test_auto_keeps_four_and_eight_bit_weights_packed(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    quantised(path, {"": QType.Q4_0, "ffn_down": QType.Q8_0, "attn_output": QType.Q5_0}, {})
    with LLM(path, device="cpu") as llm:
        decoder = llm.engine.runner.decoder
        block = decoder.blocks[0]
        assert isinstance(block.attention.qkv.weight, Int4Groups)
        assert isinstance(block.mlp.down.weight, Int4Groups)
        assert block.mlp.down.weight.num_planes == 2
        assert isinstance(block.attention.o.weight, DenseWeight)
        assert isinstance(decoder.head.weight, RefinedRows)
        # Half a byte a weight, and 4 bytes of scale and offset a group of 32.
        assert block.attention.qkv.weight.nbytes == 128 * 64 // 2 + 128 * 64 // 32 * 4


def test_a_row_count_that_does_not_pack_is_decoded(tmp_path: Path) -> None:
    built = tiny.model(vocab_size=260)  # 260 rows of the head are no multiple of 16
    path = tmp_path / "model.gguf"
    stored = tiny.write_gguf(path, built, "llama", formats={"output.weight": QType.Q4_0})
    tiny.load_stored(built, stored, permute=True)
    with LLM(path, device="cpu") as llm:
        head = llm.engine.runner.decoder.head.weight
        assert isinstance(head, RefinedRows)
        assert isinstance(head.coarse, DenseWeight)
        assert divergence(tiny.oracle_logits(built, IDS), llm.logits(IDS)) < 5e-3
