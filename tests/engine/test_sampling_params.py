"""Every field of SamplingParams is checked, and every refusal names it in one line."""

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lite_llama import RequestError, SamplingParams

NAN, INF = math.nan, math.inf
# For each field the values that are accepted, and those that are refused.
REALS: dict[str, tuple[list[Any], list[Any]]] = {
    "temperature": ([0, 0.0, 1e-300, 1, 2.0], [-1e-9, -1, 2.0001, 3]),
    "top_p": ([1e-9, 0.5, 1], [0, 0.0, -0.1, 1.0001]),
    "min_p": ([0, 0.5, 1.0], [-0.001, 1.001]),
    "presence_penalty": ([-2, 0, 2.0], [-2.001, 2.001]),
    "frequency_penalty": ([-2, 0, 2.0], [-2.001, 2.001]),
    "repetition_penalty": ([0.01, 1, 2.0], [0, -1, 0.009, 2.001]),
}
WHOLES: dict[str, tuple[list[Any], list[Any]]] = {
    "n": ([1, 16], [0, -1, 17, 10**9, None]),
    "top_k": ([-1, 0, 1, 2**31 - 1], [-2, 2**31, None]),
    "seed": ([None, 0, -(2**63), 2**63 - 1], [-(2**63) - 1, 2**63]),
    "max_tokens": ([None, 1, 2**31 - 1], [0, -1, 2**31, 10**400]),
    "min_tokens": ([0, 16], [-1, 2**31, None]),
    "logprobs": ([None, 0, 20], [-1, 21]),
    "prompt_logprobs": ([None, 0, 20], [-1, 21]),
}
OTHERS: dict[str, tuple[list[Any], list[Any]]] = {
    "stop": (
        [None, (), [], "end", ["a", "b"], ("x" * 256,), ["é"] * 16],
        ["", [""], ["a", ""], [3], 5, {"a": 1}, ["a"] * 17, "x" * 257, ["é" * 129], [None], b"end"],
    ),
    "stop_token_ids": (
        [(), [], [0, 5], (2**31 - 1,), [1] * 64],
        [None, 5, "12", [-1], [2**31], [1.0], [True], ["1"], [1] * 65, {1}],
    ),
    "logit_bias": (
        [None, {}, {5: 1.5, 6: -100, 7: 100}],
        [
            *([], 5, {5: NAN}, {5: INF}, {5: 100.1}, {5: -101}, {-1: 1.0}, {2**31: 1.0}),
            *({"5": 1.0}, {True: 1.0}, {5: "1"}, {5: None}, {5: True}),
            dict.fromkeys(range(1025), 1),
        ],
    ),
    **{
        name: ([True, False], [None, 0, 1, "yes"])
        for name in ("ignore_eos", "skip_special_tokens", "include_stop_str_in_output")
    },
}
WRONG_TYPES: list[Any] = ["1", "", b"1", [1], (1,), {}, True, False, 1 + 0j, object()]
CASES = {
    **{
        name: (good, [*bad, *WRONG_TYPES, NAN, INF, -INF, 10**400, -(10**400), None])
        for name, (good, bad) in REALS.items()
    },
    **{
        name: (good, [*bad, *WRONG_TYPES, NAN, INF, -INF, 1.0, 0.5])
        for name, (good, bad) in WHOLES.items()
    },
    **OTHERS,
}


def refusal(**fields: Any) -> RequestError:
    with pytest.raises(RequestError) as caught:
        SamplingParams(**fields)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 200
    return caught.value


@pytest.mark.parametrize("name", CASES)
def test_values_in_range_are_kept(name: str) -> None:
    for value in CASES[name][0]:
        assert getattr(SamplingParams(**{name: value}), name) == value


@pytest.mark.parametrize("name", CASES)
def test_values_out_of_range_name_their_field(name: str) -> None:
    for value in CASES[name][1]:
        error = refusal(**{name: value})
        assert error.param == name, value
        assert name in str(error) or name == "stop", value


def test_every_field_is_covered() -> None:
    assert set(SamplingParams.__dataclass_fields__) == set(CASES)


def test_a_message_gives_value_and_limit() -> None:
    assert str(refusal(temperature=2.5)) == (
        "temperature is 2.5, limit [0, 2]; give one in that range"
    )
    assert "limit (0, 1]" in str(refusal(top_p=0))
    assert "n is 17, limit 1..16" in str(refusal(n=17))


def test_greedy_completions_are_not_made_twice() -> None:
    assert refusal(n=2, temperature=0).param == "n"
    assert SamplingParams(n=2, temperature=0, seed=1).n == 2


def test_min_tokens_is_at_most_max_tokens() -> None:
    assert refusal(min_tokens=5, max_tokens=4).param == "min_tokens"
    assert SamplingParams(min_tokens=5, max_tokens=5).min_tokens == 5
    assert SamplingParams(min_tokens=5, max_tokens=None).min_tokens == 5


def test_stop_strings_are_a_tuple_however_given() -> None:
    assert SamplingParams(stop="a").stop_strings == ("a",)
    assert SamplingParams(stop=["a", "b"]).stop_strings == ("a", "b")
    assert SamplingParams().stop_strings == ()


@pytest.mark.parametrize("name", ["stop_token_ids", "logit_bias"])
def test_token_ids_outside_the_vocabulary_are_refused(name: str) -> None:
    def of(token: int) -> SamplingParams:
        value: Any = [token] if name == "stop_token_ids" else {token: 1.0}
        return SamplingParams(**{name: value})

    of(99).check_vocabulary(100)
    with pytest.raises(RequestError, match=r"token id 100, limit 0\.\.99") as caught:
        of(100).check_vocabulary(100)
    assert caught.value.param == name


anything = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.binary(max_size=3),
    st.lists(st.one_of(st.integers(), st.text(max_size=3), st.none()), max_size=3),
    st.dictionaries(st.one_of(st.integers(), st.text(max_size=3)), st.floats(), max_size=3),
)


@settings(max_examples=500, deadline=None, derandomize=True)
@given(fields=st.dictionaries(st.sampled_from(sorted(CASES)), anything, max_size=4))
def test_whatever_is_given_only_a_request_error_comes_out(fields: dict[str, Any]) -> None:
    refusal: RequestError | None = None
    try:
        params = SamplingParams(**fields)
        params.check_vocabulary(100)
    except RequestError as error:
        refusal = error
    if refusal is None:
        assert all(getattr(params, name) == value for name, value in fields.items())
    else:
        assert refusal.param in CASES
        assert "\n" not in str(refusal)
