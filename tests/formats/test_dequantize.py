"""Every decoder against gguf-py's, bit for bit."""

import re

import gguf
import numpy as np
import pytest
import torch
from gguf import quants

from lite_llama.errors import ModelFileError, UnsupportedModel
from lite_llama.formats import q4_0, q4_1, q8_0, registry
from lite_llama.formats.raw_tensor import RawTensor

# Byte offset of each fp16 scale or minimum in a block: random bytes there could be NaN.
HALVES = {
    "F16": [0],
    "Q8_0": [0],
    "Q4_0": [0],
    "Q4_1": [0, 2],
    "Q5_0": [0],
    "Q5_1": [0, 2],
    "Q2_K": [80, 82],
    "Q3_K": [108],
    "Q4_K": [0, 2],
    "Q5_K": [0, 2],
    "Q6_K": [208],
    "IQ4_NL": [0],
    "F32": [],
    "BF16": [],
}
QUANTIZABLE = ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"]


def random_blocks(name: str, num_blocks: int) -> np.ndarray:
    rng = np.random.default_rng(len(name) + num_blocks)
    fmt = registry.FORMATS[name]
    blocks = rng.integers(0, 256, (num_blocks, fmt.block_bytes), dtype=np.uint8)
    for offset in HALVES[name]:  # both signs, subnormals and 0 to 65504: every finite half
        halves = rng.integers(0, 0x7C00, num_blocks, dtype=np.uint16)
        halves |= rng.integers(0, 2, num_blocks, dtype=np.uint16) << 15
        blocks[:, offset : offset + 2] = halves[:, None].view(np.uint8)
    if name == "F32":
        blocks = rng.standard_normal((num_blocks, 1), dtype=np.float32).view(np.uint8)
    if name == "BF16":
        blocks[:, 1] &= 0xBF  # clears the top exponent bit: finite
    return blocks


def oracle(blocks: np.ndarray, name: str) -> np.ndarray:
    return quants.dequantize(blocks, gguf.GGMLQuantizationType[name])


def bits(values: torch.Tensor) -> torch.Tensor:
    return values.contiguous().view(torch.int32)


@pytest.mark.parametrize("name", HALVES)
def test_random_blocks_decode_to_the_same_bits_as_gguf_py(name: str) -> None:
    blocks = random_blocks(name, 997)
    decoded = registry.FORMATS[name].dequantize(torch.from_numpy(blocks))
    assert decoded.shape == (997, registry.FORMATS[name].block_size)
    assert torch.equal(bits(decoded), bits(torch.from_numpy(oracle(blocks, name))))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", HALVES)
def test_a_gpu_decodes_to_the_same_bits_as_the_cpu(name: str) -> None:
    blocks = torch.from_numpy(random_blocks(name, 997))
    decode = registry.FORMATS[name].dequantize
    assert torch.equal(bits(decode(blocks.cuda()).cpu()), bits(decode(blocks)))


@pytest.mark.parametrize("name", QUANTIZABLE)
def test_quantized_weights_decode_to_the_same_bits_as_gguf_py(name: str) -> None:
    weight = np.random.default_rng(0).standard_normal((24, 128), dtype=np.float32)
    stored = quants.quantize(weight, gguf.GGMLQuantizationType[name]).view(np.uint8)
    decoded = registry.dequantize(RawTensor("w", name, (24, 128), stored.reshape(-1)))
    assert torch.equal(bits(decoded), bits(torch.from_numpy(oracle(stored, name))))


@pytest.mark.parametrize("name", ["F16", "Q4_1", "Q6_K"])
def test_a_tensor_of_several_chunks_decodes_every_chunk(name: str) -> None:
    fmt = registry.FORMATS[name]
    num_blocks = 2 * registry.CHUNK_VALUES // fmt.block_size + 3
    blocks = np.tile(random_blocks(name, 251), (num_blocks // 251 + 1, 1))[:num_blocks]
    shape = (num_blocks, fmt.block_size)
    decoded = registry.dequantize(RawTensor("w", name, shape, blocks.reshape(-1)))
    expected = oracle(blocks, name).reshape(shape)
    assert torch.equal(bits(decoded), bits(torch.from_numpy(expected)))


def test_decoding_leaves_a_read_only_mapping_alone_and_does_not_alias_it() -> None:
    data = np.arange(4, dtype=np.float32).view(np.uint8)
    data.flags.writeable = False
    decoded = registry.dequantize(RawTensor("w", "F32", (4,), data))
    decoded += 1
    assert data.view(np.float32).tolist() == [0, 1, 2, 3]
    assert decoded.tolist() == [1, 2, 3, 4]


def test_data_at_an_odd_address_decodes() -> None:
    values = np.array([1.5, -2.0, 65504], dtype=np.float16)
    data = np.frombuffer(b"\0" + values.tobytes(), dtype=np.uint8)[1:]
    assert registry.dequantize(RawTensor("w", "F16", (3,), data)).tolist() == [1.5, -2.0, 65504]


def test_every_e4m3_byte_decodes_by_the_formula_of_the_ocp_8_bit_specification() -> None:
    data = np.array([b for b in range(256) if b & 0x7F != 0x7F], dtype=np.uint8)
    sign, exponent, mantissa = data >> 7, (data >> 3 & 15).astype(int), data & 7
    fraction = np.where(exponent == 0, mantissa / 8, 1 + mantissa / 8)
    expected = (-1.0) ** sign * fraction * 2.0 ** (np.maximum(exponent, 1) - 7)
    decoded = registry.dequantize(RawTensor("w", "F8_E4M3", (254,), data))
    assert decoded.tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("name", "module"), [("Q4_0", q4_0), ("Q4_1", q4_1), ("Q8_0", q8_0)], ids=lambda x: str(x)
)
def test_integer_codes_times_scale_plus_minimum_are_the_decoded_values(name, module) -> None:
    blocks = torch.from_numpy(random_blocks(name, 509))
    codes, scale, minimum = module.unpack_integers(blocks)
    assert codes.shape == (509, 32)
    assert scale.shape == minimum.shape == (509,)
    assert scale.dtype == minimum.dtype == torch.float32
    if name == "Q8_0":
        assert codes.dtype == torch.int8
        assert not minimum.any()
    else:
        assert codes.dtype == torch.uint8
        assert (int(codes.min()), int(codes.max())) == (0, 15)
    values = codes.float() * scale[:, None] + minimum[:, None]
    assert torch.equal(values, module.dequantize(blocks))  # equal up to the sign of zero


def test_nbytes_counts_whole_blocks() -> None:
    assert registry.nbytes("Q4_1", (576, 1536)) == 576 * 1536 // 32 * 20
    assert registry.nbytes("F32", ()) == 4
    assert registry.nbytes("BF16", (0, 7)) == 0
    for name, fmt in registry.FORMATS.items():
        if name in HALVES:
            sizes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]
            assert (fmt.block_size, fmt.block_bytes) == sizes


def test_a_row_that_splits_a_block_is_refused() -> None:
    with pytest.raises(ModelFileError, match=r"row of 48 values .* Q4_0 blocks of 32"):
        registry.nbytes("Q4_0", (2, 48))


@pytest.mark.parametrize("name", ["F64", "IQ1_S", "nonsense"])
def test_a_format_without_decoder_is_refused_by_name(name: str) -> None:
    with pytest.raises(UnsupportedModel, match=name):
        registry.dequantize(RawTensor("w", name, (1,), np.zeros(8, np.uint8)))


def test_bytes_that_do_not_fit_the_shape_are_refused() -> None:
    raw = RawTensor("blk.0", "F16", (3,), np.zeros(8, np.uint8))
    message = "tensor 'blk.0' has 8 bytes, but F16 [3] takes 6"
    with pytest.raises(ModelFileError, match=re.escape(message)):
        registry.dequantize(raw)
