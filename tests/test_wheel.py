"""What `pip install` gets: the whole package, and nothing but the package."""

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_wheel_holds_every_file_of_the_package(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    [wheel] = tmp_path.glob("lite_llama-*-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        [entry_points] = [name for name in names if name.endswith("entry_points.txt")]
        assert "lite-llama = lite_llama.cli:main" in archive.read(entry_points).decode()
    packed = {name for name in names if name.startswith("lite_llama/")}
    listed = subprocess.run(
        ["git", "ls-files", "lite_llama"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert packed == set(listed)
    assert not {name.partition("/")[0] for name in names - packed} - {
        name.partition("/")[0] for name in names if ".dist-info/" in name
    }
