"""What the HTTP side and the engine's side tell each other: structs as msgpack, behind a length.

    Add, Abort, Stop     ------>   engine loop
    HTTP side            <------   Phase, Ready or Failed, then a Step a step, Refused, Ended, Died

Both ends use a `Channel`, which never blocks. Times are time.monotonic(), one clock for all
processes of a machine.
"""

import socket
import struct
from collections.abc import Callable

import msgspec

from lite_llama.engine.request import StepOutput
from lite_llama.engine.sampling_params import SamplingParams
from lite_llama.text.grammar import GrammarSpec

_LENGTH = struct.Struct("<I")
_READ_BYTES = 256 << 10


class Message(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """A list that begins with its kind's name."""


class Load(Message, frozen=True):
    """The first command to an engine's process: which model, with which EngineConfig."""

    model: str | None
    settings: dict[str, str | int | float | bool | None]
    begun: float  # when the process was started


class Add(Message, frozen=True):
    """Complete a prompt once for each id. `params` are checked; a grammar is compiled first."""

    request_ids: list[str]
    prompt_token_ids: list[int]
    params: SamplingParams
    cache_salt: str
    grammar: GrammarSpec | None


class Abort(Message, frozen=True):
    """End sequences, those that have ended already included."""

    request_ids: list[str]


class Stop(Message, frozen=True):
    """End the loop."""


class Phase(Message, frozen=True):
    """A part of starting up is done."""

    name: str
    duration_s: float


class Failed(Message, frozen=True):
    """The model cannot be loaded: the name of a class in lite_llama.errors, and its message."""

    error: str
    message: str


class Ready(Message, frozen=True):
    """The engine takes requests; its plan as far as the HTTP side must know it."""

    max_model_len: int
    max_num_seqs: int


class Figures(msgspec.Struct, frozen=True, array_like=True):
    """The engine's own figures, for /metrics."""

    num_running: int = 0
    num_waiting: int = 0
    cache_usage: float = 0.0  # share of KV blocks, 0 to 1
    num_queried_tokens: int = 0  # of the prefix cache
    num_hit_tokens: int = 0
    num_preemptions: int = 0


class Step(Message, frozen=True):
    """One turn of the engine's loop: a step's outputs, or none as a sign of life."""

    outputs: list[StepOutput]
    figures: Figures
    begun: float
    ended: float
    started: list[str]  # those whose first step this was


class Refused(Message, frozen=True):
    """Sequences that cannot be served as asked: a RequestError."""

    request_ids: list[str]
    message: str
    param: str | None


class Ended(Message, frozen=True):
    """Sequences that a failure of the engine has ended; its log has the cause."""

    request_ids: list[str]


class Died(Message, frozen=True):
    """The engine's last word."""

    reason: str


Command = Load | Add | Abort | Stop
Event = Phase | Ready | Failed | Step | Refused | Ended | Died


class PeerGone(ConnectionError):
    """The other end of a channel is closed; its process may be dead."""


class Channel:
    """Messages over one end of a socket pair. It never blocks: what the socket does not take is
    kept, and goes with the next `flush`."""

    def __init__(self, sock: socket.socket) -> None:
        sock.settimeout(0)
        self.sock = sock
        self._encoder = msgspec.msgpack.Encoder()
        self._frame = bytearray(_LENGTH.size)
        self._unsent = bytearray()
        self._room = memoryview(bytearray(_READ_BYTES))
        self._partial = bytearray()

    @property
    def has_unsent(self) -> bool:
        """Whether `flush` has something to do once the socket can be written."""
        return bool(self._unsent)

    def send(self, message: Message) -> None:
        """Queue a message and send what the socket takes; PeerGone if nobody is there."""
        self.queue(message)
        self.flush()

    def queue(self, message: Message) -> None:
        """Queue a message, for the next `flush`."""
        self._encoder.encode_into(message, self._frame, _LENGTH.size)
        _LENGTH.pack_into(self._frame, 0, len(self._frame) - _LENGTH.size)
        self._unsent += self._frame

    def flush(self) -> None:
        """Send what the socket takes of what is queued; PeerGone if nobody is there."""
        while self._unsent:
            try:
                num_sent = self.sock.send(self._unsent)
            except BlockingIOError:
                return
            except OSError as error:
                raise PeerGone(str(error)) from None
            del self._unsent[:num_sent]

    def receive(self) -> list[bytes]:
        """The messages that have come, undecoded; PeerGone if none comes any more."""
        try:
            num_read = self.sock.recv_into(self._room)
        except BlockingIOError:
            return []
        except OSError as error:
            raise PeerGone(str(error)) from None
        if num_read == 0:
            raise PeerGone("the other side has ended")
        self._partial += self._room[:num_read]
        return self._take_frames()

    def _take_frames(self) -> list[bytes]:
        frames = []
        start, end = 0, len(self._partial)
        while end - start >= _LENGTH.size:
            (size,) = _LENGTH.unpack_from(self._partial, start)
            behind = start + _LENGTH.size + size
            if behind > end:
                break
            frames.append(bytes(self._partial[start + _LENGTH.size : behind]))
            start = behind
        del self._partial[:start]
        return frames

    def close(self) -> None:
        """Close this end, which the other one notices."""
        self.sock.close()


decode_command: Callable[[bytes], Command] = msgspec.msgpack.Decoder(Command).decode
decode_event: Callable[[bytes], Event] = msgspec.msgpack.Decoder(Event).decode
