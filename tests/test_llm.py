"""The Python API on the default model, and hostile input at its door."""

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lite_llama import (
    LLM,
    ContextTooLong,
    EngineError,
    ModelFileError,
    RequestError,
    SamplingParams,
)
from lite_llama.text.tokenizer import Tokenizer
from tests.models import tiny

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
GREEDY = SamplingParams(temperature=0, max_tokens=24)


@pytest.fixture(scope="module", params=["auto", "float32"])
def llm(request: pytest.FixtureRequest, smollm2_path: Path) -> Iterator[LLM]:
    with LLM(smollm2_path, dtype=request.param, device="cpu", max_model_len=1024) as loaded:
        yield loaded
        assert loaded.engine.scheduler.pool.num_used == 0


@pytest.fixture(scope="module")
def auto(smollm2_path: Path) -> Iterator[LLM]:
    with LLM(smollm2_path, device="cpu", max_model_len=1024) as loaded:
        yield loaded
        assert loaded.engine.scheduler.pool.num_used == 0


def test_the_capital_of_france_is_paris(llm: LLM) -> None:
    [output] = llm.chat(QUESTION, GREEDY)
    assert "Paris" in output.outputs[0].text
    assert output.outputs[0].finish_reason == "stop"
    assert output.outputs[0].stop_reason in llm.engine.eos_token_ids
    assert "<|im_end|>" not in output.outputs[0].text


def test_streamed_text_is_the_text(llm: LLM) -> None:
    prompt = "Once upon a time, in a naïve café 🙂,"
    params = SamplingParams(temperature=0.8, seed=1, max_tokens=40)
    chunks = list(llm.stream(prompt, params))
    completion = llm.generate(prompt, params)[0].outputs[0]
    assert "".join(chunk.text for chunk in chunks) == completion.text
    assert [token for chunk in chunks for token in chunk.token_ids] == completion.token_ids
    assert completion.text == llm.tokenizer.decode(completion.token_ids)


def test_the_default_model_is_found_and_loads(smollm2_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    with LLM(device="cpu", progress=lambda done, total: seen.append((done, total))) as llm:
        assert llm.text.checkpoint.path == smollm2_path
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1][0] == seen[-1][1] > 90_000_000


def test_a_conversation_that_goes_on_reuses_its_cache(auto: LLM) -> None:
    first = auto.chat(QUESTION, GREEDY)[0]
    answer = {"role": "assistant", "content": first.outputs[0].text}
    longer = [*QUESTION, answer, {"role": "user", "content": "And of Italy?"}]
    second = auto.chat(longer, GREEDY)[0]
    assert second.num_cached_tokens >= len(first.prompt_token_ids) // 16 * 16
    assert "Rome" in second.outputs[0].text


def test_several_conversations_are_answered_in_order(auto: LLM) -> None:
    japan = [{"role": "user", "content": "What is the capital of Japan?"}]
    outputs = auto.chat([QUESTION, japan], GREEDY)
    assert "Paris" in outputs[0].outputs[0].text
    assert "Tokyo" in outputs[1].outputs[0].text


def test_a_prompt_longer_than_a_step_is_answered_all_the_same(auto: LLM) -> None:
    ids = auto.tokenizer.encode("The quick brown fox jumps over the lazy dog. " * 70)
    assert 512 < len(ids) < 1000
    [output] = auto.generate([ids], SamplingParams(temperature=0, max_tokens=8))
    assert output.outputs[0].text.strip().startswith("The quick brown fox")


@pytest.mark.parametrize("include", [False, True])
@pytest.mark.parametrize("stop", ["Paris", "s.", ["of F", "France"], "capital of France is Par"])
def test_stop_strings_end_the_text_and_never_leak(
    auto: LLM, stop: str | list[str], *, include: bool
) -> None:
    prompt = auto.render_chat(QUESTION)
    whole = auto.generate([prompt], GREEDY)[0].outputs[0].text
    assert whole == "The capital of France is Paris."
    params = SamplingParams(
        temperature=0, max_tokens=24, stop=stop, include_stop_str_in_output=include
    )
    stops = [stop] if isinstance(stop, str) else stop
    found = min(stops, key=lambda each: whole.index(each) + len(each))
    end = whole.index(found) + (len(found) if include else 0)
    chunks = list(auto.stream(prompt, params))
    assert "".join(chunk.text for chunk in chunks) == whole[:end]
    assert chunks[-1].finish_reason == "stop"
    completion = auto.generate([prompt], params)[0].outputs[0]
    assert (completion.text, completion.stop_reason) == (whole[:end], found)
    assert auto.engine.scheduler.pool.num_used == 0


def test_a_stop_string_that_does_not_come_holds_nothing_back(auto: LLM) -> None:
    prompt = auto.render_chat(QUESTION)
    params = SamplingParams(temperature=0, max_tokens=24, stop=["Paris. It", "is Paris.\n"])
    completion = auto.generate([prompt], params)[0].outputs[0]
    assert completion.text == "The capital of France is Paris."
    assert completion.stop_reason in auto.engine.eos_token_ids


def test_stop_strings_are_not_searched_before_min_tokens(auto: LLM) -> None:
    prompt = auto.tokenizer.encode("one two three one two three one two three one two three")
    params = SamplingParams(temperature=0, max_tokens=16, ignore_eos=True)
    plain = auto.generate([prompt], params)[0].outputs[0]
    assert plain.text.count("two") > 2
    patient = SamplingParams(
        temperature=0, max_tokens=16, ignore_eos=True, min_tokens=5, stop="two"
    )
    stopped = auto.generate([prompt], patient)[0].outputs[0]
    assert len(stopped.token_ids) > 5
    assert stopped.text == plain.text[: len(stopped.text)]
    assert "two" in stopped.text
    assert stopped.finish_reason == "stop"


def test_special_tokens_are_shown_on_demand(auto: LLM) -> None:
    prompt = auto.render_chat(QUESTION)
    params = SamplingParams(
        temperature=0, max_tokens=24, skip_special_tokens=False, include_stop_str_in_output=True
    )
    text = auto.generate([prompt], params)[0].outputs[0].text
    assert text == "The capital of France is Paris.<|im_end|>"


def test_defaults_follow_the_model(tmp_path: Path) -> None:
    path = tiny.save(tiny.model(), tmp_path)
    file = path / "generation_config.json"
    file.write_text('{"temperature": 0.6, "top_k": 40, "eos_token_id": [0, 7, 999]}')
    with LLM(path, device="cpu") as llm:
        assert llm.default_sampling_params() == SamplingParams(
            temperature=0.6, top_k=40, max_tokens=None
        )
        # Id 0 counts; an id outside the vocabulary cannot come. 2 stands in config.json.
        assert llm.engine.eos_token_ids == {0, 2, 7}
    file.write_text('{"do_sample": false}')
    with LLM(path, device="cpu") as llm:
        assert llm.default_sampling_params().temperature == 0


@pytest.mark.parametrize("text", ['{"temperature": 5}', '{"top_k": "many"}', '{"top_p": 0}'])
def test_a_recommendation_out_of_bounds_names_its_file(tmp_path: Path, text: str) -> None:
    path = tiny.save(tiny.model(), tmp_path)
    (path / "generation_config.json").write_text(text)
    with LLM(path, device="cpu") as llm, pytest.raises(ModelFileError, match=r"n_config\.json: t"):
        llm.generate([[5, 6]])


def test_a_closed_llm_says_so(tmp_path: Path) -> None:
    llm = LLM(tiny.save(tiny.model(), tmp_path), device="cpu")
    llm.close()
    llm.close()
    for call in (
        lambda: llm.generate([[5, 6]]),
        lambda: list(llm.stream([5, 6])),
        lambda: llm.logits([5, 6]),
    ):
        with pytest.raises(EngineError, match="closed"):
            call()


def test_a_closed_llm_leaves_nothing_behind(smollm2_path: Path) -> None:
    """Row L15 of the server's matrix, 4 of its 20 times."""
    process = psutil.Process()
    handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
    children = set(process.children(recursive=True))
    for _ in range(4):
        with LLM(smollm2_path, device="cpu", max_model_len=256, num_blocks=64) as llm:
            llm.chat(QUESTION, SamplingParams(max_tokens=2))
    assert {number: signal.getsignal(number) for number in signal.valid_signals()} == handlers
    assert set(process.children(recursive=True)) <= children


def test_a_model_without_tokenizer_serves_token_ids(tmp_path: Path) -> None:
    with LLM(tiny.save(tiny.model(), tmp_path), device="cpu") as llm:
        [output] = llm.generate([[5, 6, 7]], SamplingParams(max_tokens=3, ignore_eos=True))
        assert len(output.outputs[0].token_ids) == 3
        assert output.outputs[0].text == ""
        for call in (lambda: llm.generate("text"), lambda: llm.chat(QUESTION)):
            with pytest.raises(ModelFileError, match=r"tokenizer\.json"):
                call()


# --- hostile input -------------------------------------------------------------------------

BAD_PROMPTS: list[Any] = [
    None, 5, 5.0, b"text", {}, {"prompt": "x"}, object(), [], "", [[]], [""], ["a", ""],
    [None], [1.5], [True], ["a", 5], [[1], 5], [[1, "a"]], [[1, None]], [[-1]], [[10**9]],
    [[2**70]], [b"a"], [[b"a"]], "\ud800", ["fine", "\udfff"], iter("abc"),
]  # fmt: skip


@pytest.mark.parametrize("prompts", BAD_PROMPTS, ids=lambda value: repr(value)[:30])
def test_a_bad_prompt_is_a_request_error(auto: LLM, prompts: Any) -> None:
    with pytest.raises(RequestError) as caught:
        auto.generate(prompts, GREEDY)
    assert "\n" not in str(caught.value)
    assert not auto.engine.has_requests


@pytest.mark.parametrize("params", [5, "greedy", {}, [GREEDY], [GREEDY, None], [{}, {}]])
def test_bad_sampling_params_are_a_request_error(auto: LLM, params: Any) -> None:
    with pytest.raises(RequestError) as caught:
        auto.generate(["a", "b"], params)
    assert caught.value.param == "sampling_params"


@pytest.mark.parametrize(
    "messages",
    [5, None, "text", [], [[]], ["text"], [5], [QUESTION, "text"], [[{}, 5]], [{"role": object()}]],
)
def test_bad_messages_are_a_request_error(auto: LLM, messages: Any) -> None:
    with pytest.raises(RequestError) as caught:
        auto.chat(messages, GREEDY)
    assert caught.value.param == "messages"
    assert "\n" not in str(caught.value)


def test_a_prompt_over_the_limit_says_so_before_and_after_it_is_read(auto: LLM) -> None:
    with pytest.raises(ContextTooLong, match=r"prompt has 2000000 bytes, limit 8192") as caught:
        auto.generate("hello " * 333333 + "hi", GREEDY)
    assert caught.value.param == "prompt"
    with pytest.raises(ContextTooLong, match=r"prompt has 11\d\d tokens, limit 1023"):
        auto.generate("hello " * 1110, GREEDY)
    with pytest.raises(ContextTooLong, match="limit"):
        auto.chat([{"role": "user", "content": "hello " * 1110}], GREEDY)


token_lists = st.lists(
    st.one_of(st.integers(), st.integers(0, 300), st.none(), st.text(max_size=2), st.floats()),
    max_size=4,
)
prompts = st.one_of(
    st.none(),
    st.integers(),
    st.text(max_size=8),
    st.binary(max_size=4),
    token_lists,
    st.lists(st.one_of(st.text(max_size=4), token_lists, st.integers(0, 300)), max_size=3),
)


@settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(prompt=prompts)
def test_of_whatever_prompt_only_a_request_error_comes(tiny_gguf: LLM, prompt: Any) -> None:
    try:
        outputs = tiny_gguf.generate(prompt, SamplingParams(max_tokens=2, ignore_eos=True))
    except RequestError:
        outputs = []
    assert all(len(output.outputs[0].token_ids) == 2 for output in outputs)
    assert tiny_gguf.engine.scheduler.pool.num_used == 0
    assert not tiny_gguf.engine.has_requests


@pytest.fixture(scope="module")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    tiny.write_gguf(path, tiny.model(vocab_size=320), "llama")
    with LLM(path, device="cpu") as loaded:
        assert isinstance(loaded.tokenizer, Tokenizer)
        yield loaded
