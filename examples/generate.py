"""Answer several questions in one batch: `python examples/generate.py [MODEL]`."""

import sys

from lite_llama import LLM, SamplingParams

QUESTIONS = ("What is the capital of France?", "What colour is the sky on a clear day?")

with LLM(*sys.argv[1:2]) as llm:
    conversations = [[{"role": "user", "content": question}] for question in QUESTIONS]
    answers = llm.chat(conversations, SamplingParams(temperature=0.0, max_tokens=40))

for question, answer in zip(QUESTIONS, answers, strict=True):
    print(f"{question}\n  {answer.outputs[0].text}")
