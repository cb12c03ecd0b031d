"""Where a server's log goes."""

import logging


def log_to_stderr() -> None:
    """One line an event, with its time; both processes of a server write so."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger("lite_llama")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
