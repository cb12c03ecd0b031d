from pathlib import Path

import pytest

from lite_llama.bench.timeline import Span, draw, idle_share, summary

SPANS = [Span("a", 0.0, 4.0), Span("b", 3.0, 5.0), Span("a", 7.0, 10.0)]


def test_time_in_which_nothing_runs_is_idle() -> None:
    assert idle_share(SPANS) == pytest.approx(0.2)
    assert idle_share(SPANS[:2]) == 0.0


def test_a_line_and_a_bar_for_each_kernel(tmp_path: Path) -> None:
    assert [line.split()[-1] for line in summary(SPANS).splitlines()] == ["a", "b"]
    draw(SPANS, tmp_path / "gpu" / "timeline.png", "some model")
    assert (tmp_path / "gpu" / "timeline.png").read_bytes().startswith(b"\x89PNG")
