"""Every error lite_llama raises on purpose. A message gives the value, the limit and the remedy.

LiteLlamaError
├── ModelFileError            a checkpoint, tokenizer or template file cannot be used
│   ├── ModelNotFound         there is nothing at the path, or no default model is installed
│   └── UnsupportedModel      the file is sound, but names something that is not implemented
├── RequestError              a request cannot be served as asked; `param` names its field
│   └── ContextTooLong        prompt (and answer) do not fit the model's context
├── ConfigError               the engine cannot be built from these settings on this machine
├── OperatorError             an operator was called against its contract
└── EngineError               the engine itself failed; running requests were lost
"""


class LiteLlamaError(Exception):
    """Base of every error raised on purpose."""


class ModelFileError(LiteLlamaError):
    """A checkpoint, tokenizer or template file cannot be used."""


class ModelNotFound(ModelFileError):
    """There is nothing at the path, or no default model is installed."""


class UnsupportedModel(ModelFileError):
    """The file is sound, but names a feature, format or architecture that is not implemented."""


class RequestError(LiteLlamaError, ValueError):
    """A request cannot be served as asked. `param` names the field at fault."""

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class ContextTooLong(RequestError):
    """The prompt, or prompt and answer together, do not fit the model's context."""


class ConfigError(LiteLlamaError, ValueError):
    """The engine cannot be built from these settings on this machine."""


class OperatorError(LiteLlamaError, ValueError):
    """An operator was called against its contract: names argument, value and expectation."""


class EngineError(LiteLlamaError, RuntimeError):
    """The engine itself failed; requests that were running are lost."""
