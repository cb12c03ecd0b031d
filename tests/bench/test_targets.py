from typing import Any

from lite_llama.bench import targets


def line(bench: str, case: str, engine: str, us: float, **rest: Any) -> dict[str, Any]:
    spread = {"p20_us": us - 0.1, "p80_us": us + 0.1, "dtype": "bf16"}
    return {"bench": bench, "case": case, "engine": engine, "median_us": us} | spread | rest


def row(lines: list[dict[str, Any]], what: str) -> tuple[str, ...]:
    return next(found for found in targets.rows(lines) if found[0].startswith(what))


def test_the_figure_furthest_from_the_limit_is_told_and_how_many_keep_it() -> None:
    steps = [
        line("latency", f"llama-3.2-1b b1 p{n} g64", "lite_llama", us, floor_us=100.0)
        for n, us in ((4096, 120.0), (32768, 140.0), (131000, 130.0))
    ]
    assert row(steps, "Llama-3.2-1B after")[1:] == (
        "≤ 1.250", "1.400 (llama-3.2-1b b1 p32768)", "1 of 3",
        "[attention_decode](lab/attention_decode.md)",
    )  # fmt: skip


def test_a_met_limit_needs_no_page_and_a_missing_figure_is_called_missing() -> None:
    step = line("latency", "llama-3.2-1b b1 p128 g256", "lite_llama", 670.0)
    found = row([step], "Llama-3.2-1B, one sequence")
    assert found[1:] == ("≤ 0.680 ms", "0.670 ms (llama-3.2-1b b1 p128)", "1 of 1", "")
    assert row([step], "launch to first text, kernels")[2:] == ("no figure", "", "")


def test_operators_are_held_against_the_engines_that_are_named_and_a_tie_is_no_loss() -> None:
    lines = [
        line("ops/topk", "8x128256 k5", "torch", 50.0),
        line("ops/topk", "8x128256 k5", "torch.compile", 20.0),
        line("ops/topk", "8x128256 k5", "lite_llama", 20.0),
        line("ops/add", "2x3", "torch", 1.95),
        line("ops/add", "2x3", "lite_llama", 2.0),
        line("ops/linear", "2x64x64 (cublas)", "cublas", 9.0),
        line("ops/linear", "2x64x64 (cublas)", "lite_llama", 10.0),
    ]
    lines.append(line("ops/topk", "8x128256 k5", "torch", 10.0) | {"dtype": "fp32"})
    assert row(lines, "argmax, topk")[2:] == ("2.50 (topk 8x128256 k5)", "1 of 1", "")
    assert row(lines, "the same operators")[2:] == ("1.00 (add 2x3)", "1 of 1", "")
    assert row(lines, "linear, 1 to 16 rows")[2:4] == ("0.90 (linear 2x64x64)", "0 of 1")
