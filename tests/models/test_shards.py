"""What ranks hold, put together, is the model; what they cannot hold is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as QType
from torch import Tensor

from lite_llama import LLM, ConfigError
from lite_llama.checkpoint.reader import open_checkpoint
from lite_llama.engine import workers
from lite_llama.formats.raw_tensor import RawTensor
from lite_llama.formats.registry import FORMATS, dequantize, nbytes
from lite_llama.layouts.dense import DenseWeight
from lite_llama.models.decoder import Decoder
from lite_llama.models.layers import GatheredLinear, Linear, SummedLinear
from lite_llama.models.loader import (
    Precision,
    check_shares,
    load_decoder,
    random_decoder,
    read_config,
)
from lite_llama.models.ranks import RankGroup
from lite_llama.models.shards import Share, take_columns
from tests.models import tiny

EXACT = Precision(torch.float32, torch.float32)
# Two ranks have whole blocks of 32 values.
WIDE = {"hidden_size": 128, "intermediate_size": 192, "head_dim": 32}


def save(folder: Path, kind: str) -> Path:
    if kind == "internlm2":
        return tiny.save_as_internlm2(tiny.model(attention_bias=True), folder)
    if kind.startswith("gguf"):
        path = folder / "tiny.gguf"
        formats = {"": QType.Q4_1, "ffn_down": QType[kind.split()[1]]}
        tiny.write_gguf(path, tiny.model(**WIDE), "llama", formats=formats)
        return path
    changes = {"llama": {"attention_bias": True}, "qwen2": {"tie_word_embeddings": True}}
    return tiny.save(tiny.model(kind, **changes.get(kind, {})), folder)


def load(path: Path, ranks: RankGroup | None = None) -> Decoder:
    checkpoint = open_checkpoint(path)
    config = read_config(checkpoint)
    check_shares(checkpoint, config, 2)
    return load_decoder(
        checkpoint, config, EXACT, device=torch.device("cpu"), num_positions=16, ranks=ranks
    )


def values(linear: Linear) -> Tensor:
    assert isinstance(linear.weight, DenseWeight)
    return linear.weight.values


def check_parts(whole: Decoder, parts: list[Decoder]) -> None:
    """Every weight and bias of the ranks, put together again, is the whole model's."""
    config = whole.config
    assert all(part.config.num_kv_heads * 2 == config.num_kv_heads for part in parts)

    def rejoin(pieces: list[Tensor], sizes: list[int]) -> Tensor:
        """Rows that were shared out group by group."""
        halves = [size // 2 for size in sizes]
        groups = [piece.split(halves) for piece in pieces]
        return torch.cat([torch.cat(group) for group in zip(*groups, strict=True)])

    heads = [config.q_size, config.kv_size, config.kv_size]
    for i, block in enumerate(whole.blocks):
        mine = [part.blocks[i] for part in parts]
        qkvs = [each.attention.qkv for each in mine]
        assert torch.equal(
            rejoin([values(each) for each in qkvs], heads), values(block.attention.qkv)
        )
        if block.attention.qkv.bias is not None:
            biases = [each.bias for each in qkvs if each.bias is not None]
            assert torch.equal(rejoin(biases, heads), block.attention.qkv.bias)
        gates = [values(each.mlp.gate_up) for each in mine]
        sizes = [config.intermediate_size] * 2
        assert torch.equal(rejoin(gates, sizes), values(block.mlp.gate_up))
        for of, name in (("attention", "o"), ("mlp", "down")):
            summed = [getattr(getattr(each, of), name) for each in mine]
            assert all(isinstance(each, SummedLinear) for each in summed)
            expected = getattr(getattr(block, of), name)
            assert torch.equal(torch.cat([values(each) for each in summed], 1), values(expected))
            if expected.bias is not None:
                assert torch.equal(summed[0].bias, expected.bias)
                assert summed[1].bias is None
        assert all(
            torch.equal(each.mlp_norm.weight, block.mlp_norm.weight)
            and torch.equal(each.attention_norm.weight, block.attention_norm.weight)
            for each in mine
        )
    assert all(isinstance(part.head, GatheredLinear) for part in parts)
    assert torch.equal(torch.cat([values(part.head) for part in parts]), values(whole.head))
    assert isinstance(whole.embedding, Tensor)
    for part in parts:
        assert isinstance(part.embedding, Tensor)
        assert torch.equal(part.embedding, whole.embedding)


@pytest.mark.parametrize(
    "kind", ["llama", "qwen2", "qwen3", "internlm2", "gguf Q8_0", "gguf Q5_1", "gguf F16"]
)
def test_the_ranks_parts_are_the_model(tmp_path: Path, kind: str) -> None:
    path = save(tmp_path, kind)
    whole = load(path)
    assert type(whole.blocks[0].attention.o) is type(whole.head) is Linear
    check_parts(whole, [load(path, RankGroup(Share(rank, 2))) for rank in range(2)])


def test_random_weights_are_those_of_one_model(tmp_path: Path) -> None:
    config = read_config(open_checkpoint(save(tmp_path, "qwen2")))

    def random(rank: int, size: int) -> Decoder:
        ranks = RankGroup(Share(rank, size))
        cpu = torch.device("cpu")
        return random_decoder(config, EXACT, device=cpu, num_positions=16, ranks=ranks)

    check_parts(random(0, 1), [random(0, 2), random(1, 2)])


@pytest.mark.parametrize("name", FORMATS)
def test_columns_of_every_format_are_cut_between_blocks(name: str) -> None:
    rows, width = 3, 2 * 256
    data = np.random.default_rng(0).integers(0, 256, nbytes(name, (rows, width)), dtype=np.uint8)
    raw = RawTensor("x", name, (rows, width), data)
    half = take_columns(raw, range(256, 512))
    assert half.data.size * 2 == raw.data.size
    # Random bytes may be NaN.
    torch.testing.assert_close(
        dequantize(half), dequantize(raw)[:, 256:], rtol=0, atol=0, equal_nan=True
    )


@pytest.mark.parametrize(
    ("changes", "size", "said"),
    [
        ({}, 3, "a divisor of the model's 2 key heads; set one of 1, 2"),
        ({}, 4, "tensor_parallel_size is 4, limit a divisor of the model's 2 key heads"),
        ({"intermediate_size": 97}, 2, "97 rows of the feed-forward block; set one of 1"),
        ({"vocab_size": 261}, 2, "261 tokens of the vocabulary; set one of 1"),
    ],
)
def test_what_cannot_be_shared_out_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, int],
    size: int,
    said: str,
) -> None:
    monkeypatch.setattr(workers, "_spawn", lambda _: pytest.fail("a rank was started"))
    path = tiny.save(tiny.model(**changes), tmp_path)
    with pytest.raises(ConfigError, match=said):
        LLM(path, device="cpu", tensor_parallel_size=size)


def test_blocks_that_two_ranks_would_have_to_share_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "_spawn", lambda _: pytest.fail("a rank was started"))
    path = tmp_path / "tiny.gguf"
    tiny.write_gguf(path, tiny.model(), "llama", formats={"ffn_down": QType.Q8_0})
    with pytest.raises(ConfigError, match=r"48 columns of tensor 'blk.0.ffn_down.weight', limit"):
        LLM(path, device="cpu", tensor_parallel_size=2)
