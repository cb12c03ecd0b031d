"""Replicas of the server on Ray Serve: `serve run lite_llama.serve_ray:app num_replicas=2`.

    client -- Ray's proxy -- Gateway ---- Engine    one model, one engine, the whole server.App
                             Guard  \\---- Engine
                             prefix key, router

The gateway reads a request, names its prefix, and hands it to the replica that the router chooses.
Everything that `lite-llama serve` checks and answers, an Engine checks and answers. What only the
gateway can do is its own: it tries another replica when one has died, says 503 when all are full,
and speaks for all of them on /ready and /metrics.
"""

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Mapping, MutableMapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict
from ray import serve
from ray.exceptions import RayActorError, RayError
from ray.serve.config import RequestRouterConfig
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle
from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica
from starlette import requests
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from lite_llama.engine.config import DEFAULT_NUM_SEQS
from lite_llama.server import affinity, messages
from lite_llama.server.app import App, Guard
from lite_llama.server.config import ServeConfig, read_keys
from lite_llama.server.http import (
    JsonResponse,
    Request,
    data_event,
    parse_json,
    problem_response,
    read_body,
)
from lite_llama.server.metrics import merge_pages
from lite_llama.server.problems import Problem, overloaded
from lite_llama.server.run import create_service, start_engine
from lite_llama.server.tracing import open_tracer

log = logging.getLogger("lite_llama.server")

# A request whose replica dies before the first byte of its answer is sent so often.
_ATTEMPTS = 3
# The replica's own deadline comes first, with the better message.
_DEADLINE_SLACK_S = 5.0
_ASK_ALL_S = 2.0
# Ray notices a dead replica at its next health check.
_HEALTH_CHECK_S = 1.0


class Settings(BaseModel):
    """Arguments of the application: the flags of `lite-llama serve`, and how many of it there are.

    num_gpus: of each replica; without one it computes on the CPU. num_gateways: processes that
    read requests and choose replicas. max_imbalance: requests that a replica may have more than
    the least loaded one and still be chosen for its prefixes (default: half of max_num_seqs).
    host: the address of Ray's proxy; on any other than a loopback address, every Host is served.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str | None = None
    num_replicas: int = 1
    num_gateways: int = 1
    num_cpus: float = 1.0
    num_gpus: float = 0.0
    max_imbalance: int | None = None

    max_model_len: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    num_blocks: int | None = None
    dtype: str = "auto"
    device: str = "auto"

    host: str = "127.0.0.1"
    allowed_host: tuple[str, ...] = ()
    api_key_file: Path | None = None
    served_model_name: tuple[str, ...] = ()
    max_num_queued_reqs: int | None = None
    max_num_queued_tokens: int | None = None
    request_timeout: float = 600.0
    step_timeout: float = 30.0
    shutdown_timeout: float = 30.0
    seed: int | None = None
    otlp_traces_endpoint: str | None = None

    @property
    def num_seqs(self) -> int:
        """Most sequences in a step of one replica."""
        return self.max_num_seqs or DEFAULT_NUM_SEQS["cuda" if self.num_gpus else "cpu"]

    @property
    def num_queued(self) -> int:
        """Most sequences waiting and running in one replica."""
        return self.max_num_queued_reqs or 4 * self.num_seqs

    def serve_config(self) -> ServeConfig:
        """What the server is told; ConfigError if the keys cannot be read here."""
        return ServeConfig(
            host=self.host,
            api_keys=tuple(read_keys(self.api_key_file)),
            served_model_names=self.served_model_name,
            allowed_hosts=self.allowed_host,
            max_num_queued_reqs=self.num_queued,
            max_num_queued_tokens=self.max_num_queued_tokens,
            request_timeout_s=self.request_timeout,
            step_timeout_s=self.step_timeout,
            drain_s=self.shutdown_timeout,
            seed=self.seed,
            otlp_traces_endpoint=self.otlp_traces_endpoint,
        )


class PrefixAffinityRouter(RequestRouter):  # type: ignore[misc]
    """Chooses replicas by the key that is the first argument of a call; see affinity.rank."""

    def initialize_state(self, max_imbalance: int) -> None:
        """Called by Ray, with RequestRouterConfig's request_router_kwargs."""
        self._max_imbalance = max_imbalance

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """Called by Ray, which takes the first that has room, and asks again if none has."""
        key = b""
        if pending_request is not None:
            key = pending_request.args[0]
            pending_request.routing_context.should_backoff = True
        replicas = {each.replica_id.unique_id: each for each in candidate_replicas}
        loads = {
            name: self.replica_queue_len_cache.get(each.replica_id) or 0
            for name, each in replicas.items()
        }
        return [[replicas[name]] for name in affinity.rank(key, loads, self._max_imbalance)]


class Engine:
    """One replica: a model and the server's application on it."""

    def __init__(self, settings: Settings) -> None:
        self._name = serve.get_replica_context().replica_id.unique_id
        self._config = settings.serve_config()
        self._tracer = open_tracer(self._config.otlp_traces_endpoint)
        engine = {
            "max_model_len": settings.max_model_len,
            "max_num_seqs": settings.num_seqs,
            "max_num_batched_tokens": settings.max_num_batched_tokens,
            "num_blocks": settings.num_blocks,
            "dtype": settings.dtype,
            "device": settings.device,
        }
        self._served = start_engine(settings.model, engine, _log_phase)
        self._service = create_service(self._served, self._config)
        self._app = App(self._service, self._config, self._tracer)
        self._watch = asyncio.create_task(self._end_with_the_engine())

    async def answer(
        self, key: bytes, scope: Scope, body: bytes
    ) -> AsyncIterator[list[MutableMapping[str, Any]]]:
        """Run one request; the messages of its answer, those that are ready at a time."""
        del key  # the router has read it
        exchange = _Exchange(body)
        task = asyncio.create_task(self._app(scope, exchange.receive, exchange.send))
        task.add_done_callback(lambda _: exchange.sent.put_nowait(None))
        try:
            while ready := await exchange.next_messages():
                if ready[0]["type"] == "http.response.start":
                    # Ray's proxy adds the same x-request-id.
                    kept = [pair for pair in ready[0]["headers"] if pair[0] != b"x-request-id"]
                    ready[0]["headers"] = [*kept, (b"x-replica", self._name.encode())]
                yield ready
        finally:
            exchange.left.set()
            await task

    async def is_ready(self) -> bool:
        """Whether this replica takes requests."""
        return self._service.is_ready

    async def metrics(self) -> tuple[str, str]:
        """This replica's name and page of metrics."""
        return self._name, self._service.metrics.render().decode()

    def __del__(self) -> None:
        """Called by Ray before the process ends in good order."""
        if self._tracer is not None:
            self._tracer.close()

    async def _end_with_the_engine(self) -> None:
        """A dead or hung engine ends the process, and Ray starts another one."""
        await self._service.engine.watch(self._config.step_timeout_s)
        await asyncio.sleep(0.2)  # the error events of open streams go out first
        self._served.engine.kill()
        os._exit(1)


def _log_phase(phase: str, duration_s: float) -> None:
    log.info("%s %.2f s", phase, duration_s)


class _Exchange:
    """Both ends of one ASGI call: what the application receives, and what it has sent."""

    def __init__(self, body: bytes) -> None:
        self.left = asyncio.Event()
        self.sent: asyncio.Queue[Message | None] = asyncio.Queue()
        self._body: bytes | None = body

    async def receive(self) -> Message:
        """The body, then nothing until the client leaves."""
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """Take a message of the answer."""
        self.sent.put_nowait(message)

    async def next_messages(self) -> list[Message]:
        """The messages since the last call, at least one; none once the answer is complete."""
        first = await self.sent.get()
        found = [] if first is None else [first]
        while not self.sent.empty() and (message := self.sent.get_nowait()) is not None:
            found.append(message)
        return found


class Gateway:
    """Reads requests and relays them to the replicas."""

    def __init__(self, engines: DeploymentHandle, settings: Settings) -> None:
        self._engines = engines
        config = settings.serve_config()
        self._guard = Guard(config)
        self._limit_s = config.request_timeout_s + _DEADLINE_SLACK_S

    async def __call__(self, asked: requests.Request) -> Response:
        """One request, up to the relay of its answer."""
        request = Request(asked.scope, asked.receive)
        path = request.scope["path"]
        try:
            salt = self._guard.admit(request)
            if path == "/health":
                return JsonResponse({"status": "alive"})
            if path == "/ready":
                return await self._ready()
            if path == "/metrics":
                pages = await self._ask_all("metrics")
                return Response(merge_pages(dict(pages)), media_type="text/plain; version=0.0.4")
            if request.scope["method"] != "POST":
                return _Relay(self._engines, (b"", _plain(request.scope), b""), self._limit_s)
            body = await read_body(request)
            key = affinity.prefix_key(await parse_json(body), salt)
            return _Relay(self._engines, (key, _plain(request.scope), body), self._limit_s)
        except Problem as problem:
            return problem_response(problem)

    async def _ready(self) -> Response:
        if any(await self._ask_all("is_ready")):
            return JsonResponse({"status": "ready"})
        return JsonResponse({"status": "not ready"}, 503, headers={"retry-after": "5"})

    async def _ask_all(self, method: str) -> list[Any]:
        """What each replica answers that does."""
        try:
            answers = await self._engines.broadcast(method).results_async(
                timeout_s=_ASK_ALL_S, return_exceptions=True
            )
        except (RayServeException, RayError, TimeoutError):
            return []
        return [answer for answer in answers if not isinstance(answer, Exception)]


def _plain(scope: Scope) -> dict[str, Any]:
    """What the application reads of a scope; the rest belongs to this process."""
    names = ("type", "http_version", "method", "scheme", "path", "raw_path", "query_string")
    return {name: scope.get(name) for name in (*names, "headers", "client", "server")}


class _Relay(Response):
    """The answer of a replica, passed on as it comes."""

    def __init__(
        self,
        engines: DeploymentHandle,
        request: tuple[bytes, Mapping[str, Any], bytes],
        limit_s: float,
    ) -> None:
        super().__init__()
        self._answer = engines.answer.options(stream=True)
        self._request = request
        self._limit_s = limit_s
        self._start: Message | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Relay, from another replica if one dies before it has said anything."""
        del receive
        problem = overloaded("the replica of this request has stopped; try again")
        for _ in range(_ATTEMPTS):
            try:
                await self._relay(send)
            except BackPressureError:
                problem = overloaded("all replicas are full; try again later")
                break
            except RayActorError:
                if self._start is not None:
                    break
            except (RayServeException, RayError):
                problem = Problem(500, "the server failed on this request")
                break
            except TimeoutError:
                problem = Problem(504, f"no answer after {self._limit_s:.0f} s; try again later")
                break
            else:
                return
        await self._end(problem, scope, send)

    async def _relay(self, send: Send) -> None:
        response = self._answer.remote(*self._request)
        try:
            async with asyncio.timeout(self._limit_s) as clock:
                async for ready in response:
                    clock.reschedule(None)
                    for message in ready:
                        self._start = self._start or message
                        await send(message)
        except (asyncio.CancelledError, TimeoutError):
            response.cancel()
            raise

    async def _end(self, problem: Problem, scope: Scope, send: Send) -> None:
        """Say what went wrong: as the answer, or as the last event of a stream."""
        if self._start is None:
            await problem_response(problem)({"type": "http"}, _nothing, send)
            return
        is_messages = scope["path"] == "/v1/messages"
        event = messages.error_event(problem) if is_messages else data_event(problem.envelope())
        await send({"type": "http.response.body", "body": event, "more_body": False})


async def _nothing() -> Message:
    return {"type": "http.disconnect"}


def app(settings: Settings) -> serve.Application:
    """The application that `serve run` and a Serve config file name; built from its arguments."""
    num_queued = settings.num_queued
    max_imbalance = settings.max_imbalance
    engine = serve.deployment(Engine).options(
        num_replicas=settings.num_replicas,
        ray_actor_options={"num_cpus": settings.num_cpus, "num_gpus": settings.num_gpus},
        max_ongoing_requests=num_queued,
        max_queued_requests=num_queued,
        request_router_config=RequestRouterConfig(
            request_router_class=PrefixAffinityRouter,
            request_router_kwargs={
                "max_imbalance": settings.num_seqs // 2 if max_imbalance is None else max_imbalance
            },
        ),
        health_check_period_s=_HEALTH_CHECK_S,
        graceful_shutdown_timeout_s=settings.shutdown_timeout,
    )
    gateway = serve.deployment(Gateway).options(
        num_replicas=settings.num_gateways,
        ray_actor_options={"num_cpus": 0},  # the cores are for the engines
        # More than the replicas and the queue before them take: it is here that the rest is
        # refused, at once and in the API's own words.
        max_ongoing_requests=1024 + (settings.num_replicas + 1) * num_queued,
        health_check_period_s=_HEALTH_CHECK_S,
        graceful_shutdown_timeout_s=settings.shutdown_timeout,
    )
    return gateway.bind(engine.bind(settings), settings)
