"""What a client is told when a request is not served: the OpenAI error envelope."""

from dataclasses import dataclass, field
from typing import Any

from lite_llama.errors import RequestError

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    500: "server_error",
    503: "overloaded_error",
    504: "timeout_error",
}


@dataclass
class Problem(Exception):
    """A request that ends without its answer; `param` names the field at fault.

    The message is all that a client sees of the cause: no path, no traceback, no address.
    """

    status: int
    message: str
    param: str | None = None
    code: str | None = None
    headers: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__(self.message)

    @property
    def kind(self) -> str:
        """The envelope's `type`."""
        return _TYPES.get(self.status, "invalid_request_error")

    def envelope(self) -> dict[str, Any]:
        """The JSON body of the answer; `type` beside `error` is what Anthropic's clients read."""
        return {
            "type": "error",
            "error": {
                "message": self.message,
                "type": self.kind,
                "param": self.param,
                "code": self.code,
            },
        }


def refused(error: RequestError) -> Problem:
    """The 400 of a value that the engine, tokenizer or template refused."""
    return Problem(400, str(error), error.param)


def overloaded(message: str, retry_after_s: int = 1) -> Problem:
    """The 503 of a server that is full, draining or down."""
    return Problem(503, message, headers={"retry-after": str(retry_after_s)})
