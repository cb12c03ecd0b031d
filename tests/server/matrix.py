"""Writes docs/test-matrix.md from a test run: `pytest -p tests.server.matrix` (make matrix, soak).

A row has a short form, which `make test` runs too, and where that is smaller than what was
specified a long one. A form's date moves only when every one of its tests ran whole and passed.
"""

import re
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "test-matrix.md"


@dataclass(frozen=True)
class Form:
    """The number that passes, and the functions that test it."""

    number: str
    tests: tuple[str, ...]


@dataclass(frozen=True)
class Row:
    """What is tested; `long` runs in `make soak`, or where its number says so in `make gpu`."""

    what: str
    short: Form | None = None
    long: Form | None = None


def form(number: str, *tests: str) -> Form:
    return Form(number, tests)


ROWS: dict[str, Row] = {
    "A1": Row(
        "schemathesis over /openapi.json, every route",
        form(
            "90 cases: no 5xx, answers as described",
            "test_generated_requests_are_answered_as_the_document_says",
        ),
        form(
            "5 000 cases: no 5xx, answers as described",
            "test_5_000_generated_requests_are_answered_as_the_document_says",
        ),
    ),
    "A2": Row(
        "malformed requests",
        form(
            "600: no 5xx, p99 of a refusal < 100 ms, RSS < +20 MB",
            "test_malformed_requests_are_never_a_server_error",
        ),
        form(
            "10 000: no 5xx, p99 of a refusal < 50 ms, RSS < +20 MB",
            "test_10_000_malformed_requests",
        ),
    ),
    "A3": Row(
        "every numeric field out of bounds or of a wrong type",
        form(
            "400 that names the field, no request reaches the engine",
            "test_a_number_out_of_bounds_is_a_400_naming_its_field",
        ),
    ),
    "A4": Row(
        "token ids outside the vocabulary",
        form(
            "400, the next answer and its logprobs are unchanged",
            "test_ids_and_counts_are_checked_before_anything_is_spent",
        ),
        form("the same on a GPU (make gpu)", "test_ids_outside_the_vocabulary_change_nothing"),
    ),
    "A5": Row(
        "enormous counts",
        form(
            "400 within 100 ms, 500 ms for bodies above 10 kB",
            "test_ids_and_counts_are_checked_before_anything_is_spent",
        ),
        form(
            "n and max_tokens of 10^9, 10^6 stops (4 MB), 10^6 empty messages (3 MB): 400 < 20 ms; "
            "10^6 whole messages (30 MB): 413 < 20 ms; RSS < +10 MB",
            "test_enormous_counts_are_refused_in_20_ms",
        ),
    ),
    "A6": Row(
        "oversized and slow bodies and heads",
        form(
            "413, 431, closed within 12 s with 40 slow clients, /health < 500 ms",
            "test_bodies_and_heads_are_bounded",
            "test_slow_heads_and_bodies_are_closed_and_hurt_nobody",
        ),
        form(
            "200 slow clients: closed within 10.5 s, /health < 100 ms",
            "test_200_slow_clients_hurt_nobody",
        ),
    ),
    "A7": Row(
        "prompts at and beyond the context",
        form(
            "200 at the limit, 400 beyond, /health < 500 ms",
            "test_prompts_at_the_edge_of_the_context",
            "test_huge_texts_are_refused_without_blocking_the_loop",
        ),
        form(
            "100 MB of one letter: 413; 10^5 emoji sequences, 1 MB of spaces: 400; texts that "
            "just fit: 200; /health p99 < 100 ms",
            "test_enormous_texts_leave_health_quick",
        ),
    ),
    "A8": Row(
        "the official openai client",
        form(
            "every case of tests/server/test_chat.py and test_completions.py",
            "test_a_bad_field_is_a_400_that_names_it",
            "test_parse_returns_the_model_class",
            "test_the_asynchronous_client_runs_requests_side_by_side",
        ),
    ),
    "A9": Row(
        "stream equals whole text, no stop string leaks",
        form(
            "25 prompts x stop sets, 0 differences",
            "test_streams_never_leak_a_stop_string_and_equal_the_whole_text",
            "test_a_stream_has_role_first_one_reason_usage_and_the_text",
            "test_a_character_of_several_tokens_is_never_split",
        ),
        form(
            "1 000 prompts x stop sets, 0 differences",
            "test_1_000_streams_equal_their_whole_texts",
        ),
    ),
    "A10": Row(
        "tool calls",
        form(
            "constrained arguments valid in every case, streamed deltas rebuild",
            "test_a_required_tool_is_called_with_valid_arguments",
            "test_streamed_calls_rebuild_to_valid_json",
            "test_constrained_arguments_stream_and_make_the_whole_call",
            "test_free_arguments_stream_and_make_the_whole_call",
            "test_tagged_calls_are_found_wherever_the_text_is_cut",
        ),
        form(
            "200 cases, whole and streamed: constrained arguments valid in every one",
            "test_200_tool_calls_are_valid",
        ),
    ),
    "A11": Row(
        "clients that others wrote",
        None,
        form(
            "lm-eval (both its adapters), aiperf, guidellm: exit 0 each, no failed request",
            "test_lm_eval_reads_logprobs_and_generates",
            "test_aiperf_ends_without_an_error",
            "test_guidellm_ends_without_an_error",
        ),
    ),
    "S1": Row(
        "JSON schemas",
        form(
            "over 50, tokens drawn at random under the mask: every finished answer validates, "
            "unsupported keywords refused",
            "test_every_finished_answer_satisfies_its_schema",
            "test_an_unsupported_keyword_is_refused",
        ),
        form(
            "over 200, the model at temperature 1.5: every finished answer validates",
            "test_over_200_schemas_are_satisfied_by_the_model",
        ),
    ),
    "S2": Row(
        "hostile grammars",
        form(
            "25 shapes: each < 1.5 s or refused",
            "test_hostile_grammars_end_within_a_second_or_are_refused",
        ),
        form(
            "25 shapes over HTTP: each < 1 s or refused; another stream's ITL p99 < 2 x",
            "test_hostile_grammars_do_not_slow_another_stream",
        ),
    ),
    "S3": Row(
        "many unique schemas",
        form(
            "900: cache <= 256 entries, RSS < +40 MB",
            "test_the_cache_is_bounded_and_memory_stays_flat",
        ),
        form(
            "5 000: cache <= 256 entries, RSS < +40 MB after 500, 0 files written",
            "test_5_000_unique_schemas",
        ),
    ),
    "S4": Row(
        "batch 32 with and without a schema",
        None,
        form("tokens/s loss <= 5 % (make gpu)", "test_a_schema_costs_few_tokens_a_second"),
    ),
    "L1": Row(
        "random disconnects, streaming",
        form(
            "2 rounds of 40: no block leaked, idle within 3 s",
            "test_random_disconnects_leak_no_blocks",
        ),
        form(
            "10 rounds of 500: free + cached + used = total after each step, idle within 1 s",
            "test_10_rounds_of_500_requests_with_disconnects",
        ),
    ),
    "L1-GPU": Row(
        "random disconnects, random weights in a 1B shape",
        None,
        form(
            "3 rounds of 500 as L1 (make gpu)",
            "test_disconnects_leak_no_blocks_of_a_gpu",
        ),
    ),
    "L2": Row(
        "random disconnects, not streaming",
        form(
            "as L1; aborted within 1 step of being noticed",
            "test_random_disconnects_leak_no_blocks",
            "test_a_disconnect_ends_the_request_within_a_few_steps",
        ),
        form("as L1", "test_10_rounds_of_500_requests_with_disconnects"),
    ),
    "L3": Row(
        "overload",
        form(
            "only 200 and 503 with Retry-After",
            "test_a_full_queue_is_a_503_with_retry_after",
            "test_a_full_token_queue_is_a_503",
        ),
        form(
            "5 x capacity for 60 s: only 200 and 503 with Retry-After, accepted p99 TTFT <= 1.5 x "
            "that of a full queue, RSS < +20 MB",
            "test_five_times_the_capacity_for_a_minute",
        ),
    ),
    "L4": Row(
        "a KV pool of a tenth of the demand, 200 requests",
        form(
            "all finish, tokens as with an ample pool, preemptions counted",
            "test_a_tenth_of_the_cache_gives_the_same_tokens",
        ),
    ),
    "L5": Row(
        "state machine over scheduler and blocks",
        form(
            "10 000 sequences: books balance after every step",
            "test_ten_thousand_sequences_leave_no_block_behind",
        ),
    ),
    "L6": Row(
        "SIGTERM",
        form(
            "12 streams: /ready 503 < 500 ms, new requests 503, all finish, exit 0; second signal "
            "< 1 s",
            "test_sigterm_drains_and_exits_with_zero",
            "test_a_second_signal_exits_at_once",
        ),
        form(
            "50 streams: /ready 503 < 100 ms, new requests 503, all finish, exit 0",
            "test_sigterm_lets_50_streams_finish",
        ),
    ),
    "L7": Row(
        "the engine's process dies, hangs, or is killed (-9); kill -9 of the HTTP process",
        form(
            "error event < 1 s, /ready 503 < 1 s, exit not 0 < 5 s (a hang: beyond step_timeout); "
            "no process, no /dev/shm file left",
            "test_a_dead_engine_ends_the_process_with_an_error",
            "test_a_hanging_step_ends_the_process_with_an_error",
            "test_a_killed_engine_ends_the_process_with_an_error",
            "test_a_stopped_server_takes_its_hanging_engine_along",
            "test_a_killed_server_leaves_nothing_behind",
        ),
    ),
    "L8": Row(
        "kill -9 of one of the ranks that share the model",
        form(
            "gloo, one of two workers: noticed < 1 s, then as L7",
            "test_a_killed_rank_is_noticed_and_the_model_is_lost",
            "test_a_killed_rank_ends_the_process_with_an_error",
        ),
        form(
            "NCCL, two GPUs: the same (make gpu2)",
            "test_a_killed_gpu_rank_ends_the_process_with_an_error",
        ),
    ),
    "L9": Row(
        "SIGSTOP of one of the ranks that share the model",
        form(
            "gloo: exit not 0 within step_timeout + 2 s, no process left",
            "test_a_stopped_rank_ends_the_process_with_an_error",
        ),
        form(
            "NCCL, two GPUs: the same (make gpu2)",
            "test_a_stopped_gpu_rank_ends_the_process_with_an_error",
        ),
    ),
    "L10": Row(
        "a grammar that breaks in mid-answer",
        form(
            "only its request fails; tokens and logprobs of the others are bitwise unchanged",
            "test_a_broken_grammar_fails_its_own_request_only",
            "test_a_broken_grammar_leaves_the_others_bitwise_unchanged",
        ),
    ),
    "L11": Row(
        "CUDA out of memory, device assert",
        None,
        form(
            "out of memory: its batch fails, the next works; assert: as L7 (make gpu)",
            "test_out_of_memory_fails_its_batch_only",
            "test_a_device_assert_ends_the_process",
        ),
    ),
    "L12": Row(
        "half an hour of mixed load",
        None,
        form(
            "RSS slope < 1 MB/h, file descriptors constant, 0 errors",
            "test_half_an_hour_of_mixed_load",
        ),
    ),
    "L12-GPU": Row(
        "nine minutes of mixed load, random weights in a 1B shape",
        None,
        form(
            "RSS slope < 1 MB/h, GPU bytes and file descriptors constant, 0 errors (make gpu-soak)",
            "test_nine_minutes_of_mixed_load_on_a_gpu",
        ),
    ),
    "L13": Row(
        "idle",
        form(
            "CPU < 1 % of a core over 5 s",
            "test_an_idle_server_takes_less_than_one_percent_of_a_core",
        ),
        form("CPU < 1 % of a core over 60 s", "test_a_minute_of_idleness_costs_nothing"),
    ),
    "L14": Row(
        "deadlines, waiting and decoding",
        form(
            "504 within 0.6 s for timeout = 0.5, blocks freed",
            "test_a_deadline_is_a_504_in_time",
            "test_a_deadline_also_holds_while_waiting",
        ),
    ),
    "L15": Row(
        "LLM() made and closed over and over",
        form(
            "4 times, and 4 with ranks: signal handlers untouched, no child left",
            "test_a_closed_llm_leaves_nothing_behind",
            "test_ranks_made_and_closed_leave_nothing_behind",
        ),
        form(
            "20 times: RSS of the last ten within 10 MB, handlers untouched, no child left",
            "test_20_llms_leave_nothing_behind",
        ),
    ),
    "L15-GPU": Row(
        "LLM() made and closed over and over",
        None,
        form(
            "20 times: GPU memory back to its start within 50 MB (make gpu)",
            "test_20_llms_give_back_their_gpu_memory",
        ),
    ),
    "L16": Row(
        "Ray: two replicas, one killed under load",
        None,
        form(
            "no new request fails, replaced within 10 s; overload 503; disconnects free blocks; "
            "every conversation on one replica",
            "test_every_turn_of_a_conversation_goes_to_one_replica",
            "test_a_disconnect_frees_the_blocks_in_the_replica",
            "test_what_is_too_much_is_a_503_with_retry_after",
            "test_a_killed_replica_loses_no_new_request_and_is_replaced",
        ),
    ),
    "X1": Row(
        "listeners, of one process and of three ranks",
        form(
            "one, on 127.0.0.1; beside it one of gloo a rank, on 127.0.0.1 as well",
            "test_there_is_one_listener_on_loopback",
            "test_a_killed_rank_ends_the_process_with_an_error",
        ),
        form(
            "two GPUs: beside it NCCL's, on loopback (make gpu2)",
            "test_a_killed_gpu_rank_ends_the_process_with_an_error",
        ),
    ),
    "X2": Row(
        "every route without or with a wrong key, path tricks",
        form(
            "401 for all but /health and /ready",
            "test_every_route_needs_a_key",
            "test_tricks_with_the_path_do_not_get_past_the_key",
        ),
    ),
    "X3": Row(
        "time of a key comparison",
        form("median of 3 000 differs by < 10 %", "test_keys_are_compared_in_constant_time"),
        form(
            "20 000 samples, sign test on block medians: no difference at p = 0.01",
            "test_the_sign_test_sees_no_difference_between_keys",
        ),
    ),
    "X4": Row(
        "foreign Host and Origin",
        form("403, no CORS header", "test_a_foreign_host_or_origin_is_refused"),
    ),
    "X5": Row(
        "pickle, eval, exec, torch.load, shell, assert in validators",
        form("0 hits", "test_no_module_runs_foreign_data_as_code", "test_no_check_is_an_assert"),
    ),
    "X12": Row(
        "canary prompts in logs and metrics",
        form("0 canaries", "test_no_prompt_text_reaches_logs_or_metrics"),
    ),
    "X13": Row(
        "line breaks and escapes in model, user, role, field names",
        form("log lines stay whole", "test_no_prompt_text_reaches_logs_or_metrics"),
    ),
    "X14": Row(
        "prefix cache, forced collision of its hash",
        form("tokens are compared, no reuse", "test_a_hash_collision_is_no_match"),
    ),
    "X15": Row(
        "prefix cache of two keys",
        form(
            "what one key has computed is no hit of the other's",
            "test_two_keys_do_not_share_cached_prefixes",
        ),
    ),
    "X16": Row(
        "a network namespace without a route",
        form(
            "the server starts and answers",
            "test_the_server_works_without_a_network",
        ),
        form(
            "all of test_limits, test_faults, test_chat, test_completions, test_process",
            "test_rows_a_and_l_pass_without_a_network",
        ),
    ),
    "X17": Row(
        "python -O",
        form(
            "bodies, numeric fields, ids and counts: same results",
            "test_checks_hold_without_assert_statements",
        ),
        form(
            "every test of server, text, engine, checkpoint and cache: same results",
            "test_the_suite_passes_without_assert_statements",
        ),
    ),
    "X17-audit": Row(
        "pip-audit on constraints.txt",
        None,
        form("no known vulnerability", "test_no_pinned_package_has_a_known_vulnerability"),
    ),
    "K1": Row(
        "every operator's smallest case, its outputs NaN before",
        form(
            "equal to the reference (by make gpu on the GPU)",
            "test_outputs_are_written_whole_and_nothing_beside_them",
            "test_every_operator_has_a_smallest_case",
        ),
    ),
    "K2": Row(
        "compute-sanitizer, every operator's smallest case",
        None,
        form(
            "memcheck, and racecheck but for prompts on Hopper: 0 reports (make sanitize)",
            "test_memcheck_reports_nothing",
            "test_racecheck_reports_nothing",
        ),
    ),
    "K3": Row(
        "guards before and after each of these outputs, cache slots that are not written",
        form(
            "unchanged (by make gpu on the GPU)",
            "test_outputs_are_written_whole_and_nothing_beside_them",
            "test_one_value_beside_an_output_is_found",
        ),
    ),
    "overhead": Row(
        "the server over the bare engine, 64 closed-loop clients",
        None,
        form(
            "tokens/s loss <= 5 %, TTFT p50 <= +1.5 ms (make gpu)",
            "test_the_server_costs_little_over_the_engine",
        ),
    ),
    "streams": Row(
        "256 streaming clients",
        None,
        form(
            "event loop lag p99 <= 20 ms, ITL p99 <= 3 x p50 (make gpu)",
            "test_256_streams_leave_the_loop_quick",
        ),
    ),
}

_outcomes: dict[str, set[str]] = {}
_shortened: dict[str, str] = {}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--clients", help="folders of row A11's executables (default: PATH)")
    parser.addoption("--soak-minutes", type=float, default=30.0, help="length of row L12")
    parser.addoption("--gpu-soak-minutes", type=float, default=9.0, help="length of row L12-GPU")


def _name(item: pytest.Item) -> str:
    return getattr(item, "originalname", None) or item.name


def pytest_deselected(items: Sequence[pytest.Item]) -> None:
    for item in items:
        _outcomes.setdefault(_name(item), set()).add("deselected")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.when == "call" or report.outcome != "passed":
        _outcomes.setdefault(_name(item), set()).add(report.outcome)
        for key, value in report.user_properties:
            if key == "shortened":
                _shortened[_name(item)] = str(value)
    return report


def pytest_sessionfinish() -> None:
    PAGE.write_text(page(PAGE.read_text() if PAGE.is_file() else ""))


def page(before: str) -> str:
    """The page, with the dates of `before` where this run has nothing new to say."""
    rows = re.findall(r"^\| ([\w-]+) \|.*\| (.*) \|.*\| (.*) \|$", before, re.MULTILINE)
    dates = {row: (short, long) for row, short, long in rows}
    lines = [
        "# Test matrix of the server",
        "",
        "Each row is one thing that has broken other servers. The page is written by the test",
        "run: the number is what passes, the date is when all tests of that form last did. Short",
        "forms are part of `make test`, and `make matrix` writes their dates; long ones are run by",
        "`make soak`, or where it says so by `make gpu`.",
        "",
        "| row | what | short form | last passed | long form | last passed |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, row in ROWS.items():
        short, long = dates.get(name, ("never", "never"))
        cells = [*_cells(row.short, short), *_cells(row.long, long)]
        lines.append(f"| {name} | {row.what} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def _cells(form: Form | None, before: str) -> tuple[str, str]:
    """The number, and the date: today's if every test of the form has passed in this run."""
    if form is None:
        return "-", "-"
    if any(_outcomes.get(test) != {"passed"} for test in form.tests):
        return form.number, before if before != "-" else "never"
    today = datetime.now(UTC).date().isoformat()
    notes = [_shortened[test] for test in form.tests if test in _shortened]
    return form.number, f"{today} ({', '.join(notes)})" if notes else today
