"""Look at what `python -m build` made, and try the wheel as a user would: `make dist` does both.

    python tools/check_dist.py dist

The wheel has the package and nothing else; the sdist has every file that git knows. The wheel is installed
into an empty environment, with the extras testing and cli, and `llm-sessions demo` is run outside the tree.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "llm_sessions"
WHEEL_INFO = {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE", "top_level.txt"}


def differences(kind: str, found: Iterable[str], expected: Iterable[str]) -> list[str]:
    """Say what is missing and what should not be there."""
    found, expected = set(found), set(expected)
    lacks = [f"the {kind} lacks {name}" for name in sorted(expected - found)]
    return lacks + [f"the {kind} should not have {name}" for name in sorted(found - expected)]


def wheel_problems(names: Iterable[str], tracked: Iterable[str]) -> list[str]:
    """Compare the files of a wheel with those that git knows."""
    expected = {name for name in tracked if name.startswith(f"{PACKAGE}/")}
    found = {name.partition(".dist-info/")[2] if ".dist-info/" in name else name for name in names}
    return differences("wheel", found, expected | WHEEL_INFO)


def sdist_problems(names: Iterable[str], tracked: Iterable[str]) -> list[str]:
    """Compare the files of an sdist with those that git knows. setuptools adds some of its own."""
    inside = {name.partition("/")[2] for name in names}
    made = {name for name in inside if name in ("PKG-INFO", "setup.cfg") or ".egg-info/" in name}
    return differences("sdist", inside - made, tracked)


def tracked_files() -> list[str]:
    """Return the files that git knows, as far as they are there."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [name for name in listed.splitlines() if (ROOT / name).is_file()]


def only(folder: Path, pattern: str) -> Path:
    """Return the only file of a kind; two of them are of different builds."""
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        sys.exit(f"{folder} has {len(found)} files {pattern}, not one: remove it and build again")
    return found[0]


def try_wheel(wheel: Path) -> None:
    """Install a wheel into an empty environment and run the demo there.

    Raises:
        CalledProcessError: If that fails; what it printed has been seen.
    """
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        venv.create(home / "venv", with_pip=True)
        bin_ = home / "venv" / "bin"
        # Neither this tree nor what the caller has installed.
        clean = {
            name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL"))
        }

        def run(*command: str | Path) -> None:
            subprocess.run(command, cwd=home, env=clean, check=True)

        run(bin_ / "python", "-m", "pip", "install", "--quiet", f"{wheel.resolve()}[testing,cli]")
        run(bin_ / "python", "-m", "pip", "check")
        code = f"import {PACKAGE}, sys; sys.exit(not {PACKAGE}.__file__.startswith(sys.prefix))"
        run(bin_ / "python", "-c", code)
        run(bin_ / "llm-sessions", "--version")
        run(bin_ / "llm-sessions", "demo", "--plain")


def main(folder: Path) -> int:
    wheel, sdist = only(folder, "*.whl"), only(folder, "*.tar.gz")
    tracked = tracked_files()
    with zipfile.ZipFile(wheel) as archive:
        problems = wheel_problems(archive.namelist(), tracked)
    with tarfile.open(sdist) as archive:
        problems += sdist_problems((one.name for one in archive if one.isfile()), tracked)
    if problems:
        print(*problems, sep="\n", file=sys.stderr)
        return 1
    print(f"== {wheel.name} and {sdist.name} have what they should; trying the wheel", flush=True)
    try_wheel(wheel)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(*sys.argv[1:])))
