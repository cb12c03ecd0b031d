"""`lite-llama serve` for random weights, which also tells how long its event loop makes one wait.

`python -m tests.server.preset_server`; flags that it does not know are passed over.
"""

import argparse
import asyncio
import json
import sys
import time
from typing import Any

from lite_llama.server import run
from lite_llama.server.config import ServeConfig
from lite_llama.server.log import log_to_stderr
from tests.server.preset import LAGS, MODEL, PRESET, preset_checkpoint


async def tell_lags() -> None:
    """Once a second, by how much each sleep of 5 ms was too long."""
    while True:
        lags = []
        for _ in range(200):
            begun = time.perf_counter()
            await asyncio.sleep(0.005)
            lags.append(round((time.perf_counter() - begun - 0.005) * 1e3, 3))
        print(LAGS + json.dumps(lags), file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--engine-main", default="tests.server.preset_engine")
    parser.add_argument("--tell-lags", action="store_true")
    parser.add_argument("--max-num-seqs", type=int)
    parser.add_argument("--num-blocks", type=int)
    parser.add_argument("--tensor-parallel-size", type=int)
    parser.add_argument("--step-timeout", type=float, default=30.0)
    flags, _ = parser.parse_known_args()
    log_to_stderr()
    create_server = run.create_server

    def create_and_tell(*arguments: Any) -> Any:
        server, service = create_server(*arguments)
        server.tells_lags = asyncio.ensure_future(tell_lags())  # type: ignore[attr-defined]
        return server, service

    run.open_checkpoint = lambda _: preset_checkpoint()  # type: ignore[attr-defined]
    if flags.tell_lags:
        run.create_server = create_and_tell
    names = ("max_num_seqs", "num_blocks", "tensor_parallel_size")
    given = {name: getattr(flags, name) for name in names}
    settings = {name: value for name, value in given.items() if value is not None}
    config = ServeConfig(
        port=0,
        served_model_names=(MODEL,),
        max_num_queued_reqs=600,
        request_timeout_s=120,
        step_timeout_s=flags.step_timeout,
    )
    phases = run.Phases(lambda line: print(line, file=sys.stderr, flush=True))
    sys.exit(run.serve(PRESET, config, settings, phases, flags.engine_main))


if __name__ == "__main__":
    main()
