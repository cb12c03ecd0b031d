"""Perplexity of texts, from the logits of every position: `python examples/score.py [MODEL]`."""

import sys

from torch.nn.functional import cross_entropy

from lite_llama import LLM

TEXTS = (
    "The sun rises in the east and sets in the west.",
    "West the in sets and east the in rises sun the.",
)

with LLM(*sys.argv[1:2]) as llm:
    for text in TEXTS:
        token_ids = llm.tokenizer.encode(text)
        logits = llm.logits(token_ids)  # float32 [num_tokens, vocab]
        # Row i predicts token i + 1; what follows the last token is not known.
        loss = cross_entropy(logits[:-1], logits.new_tensor(token_ids[1:]).long())
        print(f"{loss.exp().item():8.1f}  {text}")
