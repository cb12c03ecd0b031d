"""Greedy answers of the default model beside those of transformers on the same weights.

`python -m tests.accuracy_page` writes docs/accuracy.md. The oracle is built apart from our own
code: gguf-py decodes the file, its row order is undone by a reshape, and transformers computes in
float32.
"""

from pathlib import Path
from typing import Any

import gguf
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lite_llama import LLM, SamplingParams
from lite_llama.checkpoint.default_model import DEFAULT_MODEL_NAME, find_default_model

NUM_TOKENS = 64
PROMPTS = (
    "I believe the meaning of life is,",
    "Simply put, the theory of relativity states that ",
    "A brief message congratulating the team on the launch:\n\nHi everyone,\n\nI just ",
    "Roosevelt was the first president of the United States, he has",
)
_OUTPUT = Path(__file__).parents[1] / "docs" / "accuracy.md"
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_OUTER_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}


def build_oracle(path: Path) -> LlamaForCausalLM:
    """transformers' Llama in float32, eager attention, with the decoded weights of a GGUF file."""
    reader = gguf.GGUFReader(path)

    def field(name: str) -> Any:
        return reader.fields[f"llama.{name}"].contents()

    heads, kv_heads = field("attention.head_count"), field("attention.head_count_kv")
    config = LlamaConfig(
        vocab_size=len(reader.fields["tokenizer.ggml.tokens"].data),
        hidden_size=field("embedding_length"),
        intermediate_size=field("feed_forward_length"),
        num_hidden_layers=field("block_count"),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=field("context_length"),
        rms_norm_eps=field("attention.layer_norm_rms_epsilon"),
        rope_parameters={"rope_type": "default", "rope_theta": field("rope.freq_base")},
        tie_word_embeddings=True,
    )
    config._attn_implementation = "eager"
    model = LlamaForCausalLM(config).float().eval()
    state = {}
    for tensor in reader.tensors:
        values = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).copy())
        stem = tensor.name.removesuffix(".weight")
        if stem in _OUTER_NAMES:
            state[f"{_OUTER_NAMES[stem]}.weight"] = values
            continue
        _, layer, kind = stem.split(".")
        if kind in ("attn_q", "attn_k"):
            # llama.cpp interleaves the two halves of each head; take them apart again.
            count = heads if kind == "attn_q" else kv_heads
            pairs = values.reshape(count, -1, 2, values.shape[1])
            values = pairs.transpose(1, 2).reshape(values.shape)
        state[f"model.layers.{layer}.{_LAYER_NAMES[kind]}.weight"] = values
    missing, unexpected = model.load_state_dict(state, strict=False)
    if missing != ["lm_head.weight"] or unexpected:
        raise AssertionError(f"missing {missing}, unexpected {unexpected}")
    model.tie_weights()
    return model


@torch.no_grad()
def oracle_tokens(model: LlamaForCausalLM, prompt: list[int], count: int) -> list[int]:
    """Greedy continuation by `count` tokens; the end token is a token like any other."""
    ids, cache = torch.tensor([prompt]), None
    tokens: list[int] = []
    for _ in range(count):
        out = model(ids, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        tokens.append(int(out.logits[0, -1].argmax()))
        ids = torch.tensor([tokens[-1:]])
    return tokens


def our_tokens(llm: LLM, prompts: list[list[int]], count: int) -> list[list[int]]:
    """Greedy continuations of a batch."""
    params = SamplingParams(temperature=0, max_tokens=count, ignore_eos=True)
    return [output.outputs[0].token_ids for output in llm.generate(prompts, params)]


def main() -> None:
    """Compute both answers to each prompt and write the page."""
    path = find_default_model()
    oracle = build_oracle(path)
    with LLM(path, dtype="float32", device="cpu") as llm:
        prompts = [llm.tokenizer.encode(prompt) for prompt in PROMPTS]
        theirs = [oracle_tokens(oracle, prompt, NUM_TOKENS) for prompt in prompts]
        alone = [our_tokens(llm, [prompt], NUM_TOKENS)[0] for prompt in prompts]
        batch = our_tokens(llm, prompts, NUM_TOKENS)
        texts = [
            (llm.tokenizer.decode(their), llm.tokenizer.decode(our))
            for their, our in zip(theirs, batch, strict=True)
        ]
    with LLM(path, device="cpu") as llm:
        auto = [our_tokens(llm, [prompt], NUM_TOKENS)[0] for prompt in prompts]
    lines = [
        "# Accuracy",
        "",
        f"Greedy answers of {DEFAULT_MODEL_NAME} (Q4_1), {NUM_TOKENS} tokens, end token ignored,",
        "on the CPU. transformers computes in float32 on the same decoded weights. Written by",
        "`python -m tests.accuracy_page`.",
        "",
        "| prompt | float32, alone | float32, batch of 4 | auto: equal tokens at the start |",
        "| --- | --- | --- | --- |",
    ]
    for i, prompt in enumerate(PROMPTS):
        verdicts = ["equal" if given[i] == theirs[i] else "DIFFERENT" for given in (alone, batch)]
        equal = [a == b for a, b in zip(auto[i], theirs[i], strict=True)]
        agreed = equal.index(False) if False in equal else NUM_TOKENS
        lines.append(f"| {prompt!r} | {' | '.join(verdicts)} | {agreed} of {NUM_TOKENS} |")
    for prompt, (their_text, our_text) in zip(PROMPTS, texts, strict=True):
        lines += ["", f"## {prompt!r}", ""]
        for name, text in (("transformers", their_text), ("lite_llama", our_text)):
            lines += [f"{name}:", "", "```text", text.strip("\n"), "```", ""]
        lines.pop()
    _OUTPUT.parent.mkdir(exist_ok=True)
    _OUTPUT.write_text("\n".join(lines) + "\n")
    print(f"wrote {_OUTPUT}")


if __name__ == "__main__":
    main()
