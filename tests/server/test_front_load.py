"""The tool that loads the HTTP side: what it says is what the server did."""

from pathlib import Path

from tests.server.front_load import NUM_TOKENS, load, paced_server


def test_every_stream_beside_a_paced_engine_is_whole(tmp_path: Path) -> None:
    with paced_server(tmp_path) as server:
        seen = load(server, 32, 160)
        assert server.is_idle()
        assert server.metric('request_success_total{finished_reason="length"}') == 160
        assert server.metric("generation_tokens_total") == 160 * NUM_TOKENS
    assert seen.num_tokens == 160 * NUM_TOKENS
    assert len(seen.ttft_s) == 160
    # 64 steps of a millisecond and more, five times; a loaded machine takes several times as long.
    assert seen.tokens_per_s < 32 * 1000
    assert 0 < seen.front_s < 0.1
