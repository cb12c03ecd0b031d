import sys

import pytest

from lite_llama.bench.startup import measure


def test_first_output_and_end_are_timed_and_the_answer_is_checked() -> None:
    script = "import sys, time; print('a', flush=True); time.sleep(0.5); print('Paris')"
    line = measure((sys.executable, "-c", script), "Paris")
    assert line["whole_s"] >= line["median_us"] / 1e6 + 0.25
    assert line["peak_mib"] > 5
    with pytest.raises(RuntimeError, match="not 'Rome'"):
        measure((sys.executable, "-c", "print('Paris')"), "Rome")
