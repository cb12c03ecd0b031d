"""Print an answer while it is generated: `python examples/stream.py [MODEL]`."""

import sys

from lite_llama import LLM, SamplingParams

with LLM(*sys.argv[1:2]) as llm:
    prompt = llm.render_chat([{"role": "user", "content": "Explain rain in two sentences."}])
    for chunk in llm.stream(prompt, SamplingParams(temperature=0.0, max_tokens=60)):
        print(chunk.text, end="", flush=True)
        if chunk.metrics is not None:  # the last chunk carries them
            print(f"\n[{chunk.finish_reason} after {chunk.metrics.num_generated_tokens} tokens]")
