"""Writes docs/test-matrix.md from a test run: `pytest -p tests.server.matrix tests` (make matrix).

A row's date moves only when every test of the row ran in that run and passed.
"""

import re
from collections.abc import Generator
from datetime import UTC, datetime
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "test-matrix.md"

# row: what is tested, the number that passes, and the functions that test it
ROWS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "A2": (
        "malformed requests",
        "600 mutants (10 000 in make soak): no 5xx, p99 of a refusal < 100 ms, RSS < +20 MB",
        ("test_malformed_requests_are_never_a_server_error",),
    ),
    "A3": (
        "every numeric field out of bounds or of a wrong type",
        "400 that names the field, no request reaches the engine",
        ("test_a_number_out_of_bounds_is_a_400_naming_its_field",),
    ),
    "A4": (
        "token ids outside the vocabulary (without its GPU half)",
        "400, the next answer is unchanged",
        ("test_ids_and_counts_are_checked_before_anything_is_spent",),
    ),
    "A5": (
        "enormous counts",
        "400 within 100 ms, 500 ms for bodies above 10 kB",
        ("test_ids_and_counts_are_checked_before_anything_is_spent",),
    ),
    "A6": (
        "oversized and slow bodies and heads",
        "413, 431, closed within 12 s with 40 slow clients, /health < 500 ms",
        (
            "test_bodies_and_heads_are_bounded",
            "test_slow_heads_and_bodies_are_closed_and_hurt_nobody",
        ),
    ),
    "A7": (
        "prompts at and beyond the context",
        "200 at the limit, 400 beyond, /health < 500 ms",
        (
            "test_prompts_at_the_edge_of_the_context",
            "test_huge_texts_are_refused_without_blocking_the_loop",
        ),
    ),
    "A8": (
        "the official openai client",
        "every case of tests/server/test_chat.py and test_completions.py",
        (
            "test_a_bad_field_is_a_400_that_names_it",
            "test_parse_returns_the_model_class",
            "test_the_asynchronous_client_runs_requests_side_by_side",
        ),
    ),
    "A9": (
        "stream equals whole text, no stop string leaks",
        "25 prompts x stop sets, 0 differences",
        (
            "test_streams_never_leak_a_stop_string_and_equal_the_whole_text",
            "test_a_stream_has_role_first_one_reason_usage_and_the_text",
            "test_a_character_of_several_tokens_is_never_split",
        ),
    ),
    "A10": (
        "tool calls",
        "constrained arguments valid in every case, streamed deltas rebuild",
        (
            "test_a_required_tool_is_called_with_valid_arguments",
            "test_streamed_calls_rebuild_to_valid_json",
            "test_tagged_calls_are_found_wherever_the_text_is_cut",
        ),
    ),
    "S1": (
        "JSON schemas, tokens drawn at random under the mask",
        "over 50 schemas: every finished answer validates, unsupported keywords refused",
        (
            "test_every_finished_answer_satisfies_its_schema",
            "test_an_unsupported_keyword_is_refused",
        ),
    ),
    "S2": (
        "hostile grammars",
        "25 shapes: each < 1.5 s or refused",
        ("test_hostile_grammars_end_within_a_second_or_are_refused",),
    ),
    "S3": (
        "many unique schemas",
        "900 (5 000 in make soak): cache <= 256 entries, RSS < +40 MB",
        ("test_the_cache_is_bounded_and_memory_stays_flat",),
    ),
    "L1": (
        "random disconnects, streaming",
        "2 rounds of 40 (10 of 500 in make soak): no block leaked, idle within 3 s",
        ("test_random_disconnects_leak_no_blocks",),
    ),
    "L2": (
        "random disconnects, not streaming",
        "as L1; aborted within 6 steps of 10 ms",
        (
            "test_random_disconnects_leak_no_blocks",
            "test_a_disconnect_ends_the_request_within_a_few_steps",
        ),
    ),
    "L3": (
        "overload (short form)",
        "only 200 and 503 with Retry-After",
        ("test_a_full_queue_is_a_503_with_retry_after", "test_a_full_token_queue_is_a_503"),
    ),
    "L6": (
        "SIGTERM with 12 streams",
        "/ready 503 < 500 ms, new requests 503, all streams finish, exit 0; second signal < 1 s",
        ("test_sigterm_drains_and_exits_with_zero", "test_a_second_signal_exits_at_once"),
    ),
    "L10": (
        "a grammar that breaks in mid-answer",
        "only its request fails, the other's answer is unchanged",
        ("test_a_broken_grammar_fails_its_own_request_only",),
    ),
    "L13": (
        "idle",
        "CPU < 1 % of a core over 5 s (60 s in make soak)",
        ("test_an_idle_server_takes_less_than_one_percent_of_a_core",),
    ),
    "L14": (
        "deadlines, waiting and decoding",
        "504 within 0.7 s (waiting: 0.6 s and two steps) for timeout = 0.5, blocks freed",
        (
            "test_a_deadline_is_a_504_in_time",
            "test_a_deadline_also_holds_while_waiting",
        ),
    ),
    "L16": (
        "Ray: two replicas, one killed under load",
        "no new request fails, replaced within 10 s; overload 503; disconnects free blocks; "
        "every conversation on one replica",
        (
            "test_every_turn_of_a_conversation_goes_to_one_replica",
            "test_a_disconnect_frees_the_blocks_in_the_replica",
            "test_what_is_too_much_is_a_503_with_retry_after",
            "test_a_killed_replica_loses_no_new_request_and_is_replaced",
        ),
    ),
    "X1": (
        "listeners",
        "one, on 127.0.0.1",
        ("test_there_is_one_listener_on_loopback",),
    ),
    "X2": (
        "every route without or with a wrong key, path tricks",
        "401 for all but /health and /ready",
        (
            "test_every_route_needs_a_key",
            "test_tricks_with_the_path_do_not_get_past_the_key",
        ),
    ),
    "X3": (
        "time of a key comparison",
        "median of 3 000 differs by < 10 %",
        ("test_keys_are_compared_in_constant_time",),
    ),
    "X4": (
        "foreign Host and Origin",
        "403, no CORS header",
        ("test_a_foreign_host_or_origin_is_refused",),
    ),
    "X5": (
        "pickle, eval, exec, torch.load, shell, assert in validators",
        "0 hits",
        ("test_no_module_runs_foreign_data_as_code", "test_no_check_is_an_assert"),
    ),
    "X12": (
        "canary prompts in logs and metrics",
        "0 canaries",
        ("test_no_prompt_text_reaches_logs_or_metrics",),
    ),
    "X13": (
        "line breaks and escapes in model, user, role, field names",
        "log lines stay whole",
        ("test_no_prompt_text_reaches_logs_or_metrics",),
    ),
}

_outcomes: dict[str, set[str]] = {}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.when == "call" or report.outcome != "passed":
        name = getattr(item, "originalname", item.name)
        _outcomes.setdefault(name, set()).add(report.outcome)
    return report


def pytest_sessionfinish() -> None:
    PAGE.write_text(page(PAGE.read_text() if PAGE.is_file() else ""))


def page(before: str) -> str:
    """The page, with the dates of `before` where this run has nothing new to say."""
    dates = dict(re.findall(r"^\| (\w+) \|.*\| ([\d-]{10}|never) \|$", before, re.MULTILINE))
    today = datetime.now(UTC).date().isoformat()
    lines = [
        "# Test matrix of the server",
        "",
        "Each row is one thing that has broken other servers. The page is written by the test run",
        "(`make matrix`): the number is what passes, the date is when all tests of the row last",
        "did.",
        "",
        "| row | what | passes | last passed |",
        "| --- | --- | --- | --- |",
    ]
    for row, (what, number, tests) in ROWS.items():
        passed = all(_outcomes.get(test) == {"passed"} for test in tests)
        date = today if passed else dates.get(row, "never")
        lines.append(f"| {row} | {what} | {number} | {date} |")
    return "\n".join([*lines, ""])
