"""Settings of a server, beside those of its engine."""

import hashlib
import hmac
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lite_llama.errors import ConfigError

_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


@dataclass(frozen=True)
class ServeConfig:
    """Settings of a server.

    api_keys: keys that are accepted; none leaves the server open. allowed_hosts: further values
    of the Host header that a server on a loopback address answers to (any other address answers
    to all). max_num_queued_reqs: most sequences waiting and running (default: 4 x max_num_seqs).
    max_num_queued_tokens: most prompt tokens not computed yet (default: 16 x max_model_len).
    request_timeout_s: deadline of a request that sets none. step_timeout_s: an engine step longer
    than this ends the server. drain_s: how long SIGTERM waits for running requests. seed: of
    requests that give none (default: drawn at random). otlp_traces_endpoint: URL that takes spans.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: tuple[str, ...] = ()
    served_model_names: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    max_num_queued_reqs: int | None = None
    max_num_queued_tokens: int | None = None
    request_timeout_s: float = 600.0
    step_timeout_s: float = 30.0
    drain_s: float = 30.0
    seed: int | None = None
    ssl_certfile: str | None = None
    ssl_keyfile: str | None = None
    otlp_traces_endpoint: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"port is {self.port}, limit 0..65535")
        if not all(self.api_keys):
            raise ConfigError("an API key is empty; give one of at least one character")
        if (self.ssl_certfile is None) != (self.ssl_keyfile is None):
            raise ConfigError("TLS needs both ssl_certfile and ssl_keyfile; give both or neither")
        if self.ssl_certfile is not None:
            _check_certificate(self.ssl_certfile, self.ssl_keyfile)
        for name in ("request_timeout_s", "step_timeout_s", "drain_s"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name} is {getattr(self, name)}, limit above 0")
        for name in ("max_num_queued_reqs", "max_num_queued_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}, limit 1; raise it or leave it out")

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can connect."""
        return self.host in _LOOPBACK


class Keys:
    """API keys, kept and compared as SHA-256 digests in constant time."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._digests = [_digest(key) for key in keys]

    def __len__(self) -> int:
        return len(self._digests)

    def salt_of(self, key: str) -> str | None:
        """A name for the key that does not reveal it, or None if it is not one of ours.

        Every digest is compared, whether one has matched or not.
        """
        given = _digest(key)
        matches = [hmac.compare_digest(given, digest) for digest in self._digests]
        return hashlib.sha256(b"salt" + given).hexdigest()[:16] if any(matches) else None


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def read_keys(path: Path | None) -> list[str]:
    """The keys of a file, one a line, without blank lines; ConfigError if it cannot be read."""
    if path is None:
        return []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the keys in {path}: {error}") from None
    return [line.strip() for line in lines if line.strip()]


def _check_certificate(certificate: str, key: str | None) -> None:
    """Refuse files that TLS cannot start with, before a model is loaded."""
    for path in (certificate, key):
        if path is not None and not Path(path).is_file():
            raise ConfigError(f"TLS file {path} does not exist; name a PEM file")
    try:
        # An empty password: a key that needs one is refused, and nobody is asked.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key, password="")
    except OSError as error:
        raise ConfigError(
            f"{certificate} with {key} is no certificate and key ({error}); "
            "give PEM files that belong together, the key without a password"
        ) from error
