"""What the processes that share one model have in common: signals are their parent's to hear."""

import ctypes
import signal
import sys

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def follow_parent() -> None:
    """Leave SIGINT and SIGTERM, which a group gets at once, to the parent, and do not outlive it.

    On Linux the system kills this process when the thread that started it ends, even while it is
    stopped or waits for a GPU.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
