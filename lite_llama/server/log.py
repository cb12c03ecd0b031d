"""Where a server's log goes."""

import logging


def log_to_stderr() -> None:
    """One line an event, with its time; both processes of a server write so."""
    # What no line says is not asked for each, as Python's logging HOWTO advises: to find the caller
    # in the stack of a coroutine, and the rest, takes as long as a tenth of a short request.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger("lite_llama")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
