"""What the server does without: a network, and `assert` statements."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_NAMESPACE = ("unshare", "--user", "--map-root-user", "--net")


def _why_not() -> str | None:
    """Why no network namespace can be made here; None if it can."""
    for tool in ("unshare", "ip"):
        if shutil.which(tool) is None:
            return f"{tool} is not installed (util-linux, iproute2)"
    done = subprocess.run([*_NAMESPACE, "true"], capture_output=True, text=True, check=False)
    return None if done.returncode == 0 else f"no network namespace: {done.stderr.strip()}"


OUTSIDE = _why_not()


def without_a_network(*arguments: str) -> subprocess.CompletedProcess[str]:
    """pytest in a namespace whose one interface is its own loopback."""
    script = 'ip link set lo up && test -z "$(ip route)" && exec "$@"'
    pytest_of_ours = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider"]
    return subprocess.run(
        [*_NAMESPACE, "sh", "-c", script, "sh", *pytest_of_ours, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )


@pytest.mark.skipif(OUTSIDE is not None, reason=str(OUTSIDE))
def test_the_server_works_without_a_network() -> None:
    """X16, with a few of its tests."""
    done = without_a_network("tests/server/test_process.py", "-k", "listener or cached_prefixes")
    assert done.returncode == 0, done.stdout[-3000:]
    assert "\n.. " in f"\n{done.stdout}"  # both ran


def test_checks_hold_without_assert_statements() -> None:
    """X17: the part of the suite that refuses hostile input. pytest rewrites its own asserts."""
    kept = "not_plain_json or out_of_bounds or ids_and_counts"
    files = ("tests/server/test_json_body.py", "tests/server/test_limits.py")
    done = subprocess.run(
        [sys.executable, "-O", "-m", "pytest", "-p", "no:cacheprovider", *files, "-k", kept],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
