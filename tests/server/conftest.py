from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
import torch

from lite_llama.llm import LLM
from lite_llama.server.config import ServeConfig
from tests.server.servers import LocalServer, wait_until

if TYPE_CHECKING:
    import openai


@pytest.fixture(scope="session")
def served_llm() -> Iterator[LLM]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with LLM(device="cpu", max_model_len=1024, max_num_seqs=16, num_blocks=256) as llm:
        yield llm
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def session_server(served_llm: LLM) -> Iterator[LocalServer]:
    server = LocalServer(served_llm, ServeConfig(request_timeout_s=60))
    yield server
    server.stop()


@pytest.fixture
def server(session_server: LocalServer) -> Iterator[LocalServer]:
    """The shared server; after each test it must be idle, with every KV block free."""
    yield session_server
    wait_until(session_server.is_idle)


@pytest.fixture
def client(server: LocalServer) -> "Iterator[openai.OpenAI]":
    import openai  # not on every machine with a GPU

    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client
