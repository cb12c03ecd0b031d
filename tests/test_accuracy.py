"""Greedy answers of the default model are transformers', token for token."""

from pathlib import Path

import pytest
import torch

from lite_llama import LLM
from tests.accuracy_page import NUM_TOKENS, PROMPTS, build_oracle, oracle_tokens, our_tokens


@pytest.fixture(scope="module")
def answers(smollm2_path: Path) -> tuple[list[list[int]], list[list[int]]]:
    """(prompts as token ids, transformers' continuations)."""
    with LLM(smollm2_path, device="cpu", max_model_len=256) as llm:
        prompts = [llm.tokenizer.encode(prompt) for prompt in PROMPTS]
    oracle = build_oracle(smollm2_path)
    return prompts, [oracle_tokens(oracle, prompt, NUM_TOKENS) for prompt in prompts]


def test_float32_answers_are_those_of_transformers(
    smollm2_path: Path, answers: tuple[list[list[int]], list[list[int]]]
) -> None:
    prompts, expected = answers
    with LLM(smollm2_path, dtype="float32", device="cpu", max_model_len=256) as llm:
        batch = our_tokens(llm, prompts, NUM_TOKENS)
        alone = [our_tokens(llm, [prompt], NUM_TOKENS)[0] for prompt in prompts]
    assert alone == expected
    assert batch == expected
    assert len({tuple(answer) for answer in expected}) == len(PROMPTS)


def test_auto_stays_near_the_exact_distribution(
    smollm2_path: Path, answers: tuple[list[list[int]], list[list[int]]]
) -> None:
    texts = [prompt + answer for prompt, answer in zip(*answers, strict=True)]
    with LLM(smollm2_path, dtype="float32", device="cpu", max_model_len=256) as llm:
        exact = torch.cat([llm.logits(text) for text in texts]).log_softmax(-1)
    with LLM(smollm2_path, device="cpu", max_model_len=256) as llm:
        given = torch.cat([llm.logits(text) for text in texts]).log_softmax(-1)
    divergence = (exact.exp() * (exact - given)).sum(-1)
    agreement = (exact.argmax(-1) == given.argmax(-1)).double().mean()
    # Measured: 0.0003 nats and 99.0 % of the most likely tokens.
    assert divergence.mean() < 1e-3
    assert agreement > 0.975
