"""Metadata of the distribution. Tool settings are in pyproject.toml."""

from __future__ import annotations

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).resolve().parent


def version() -> str:
    """Read the version as text: importing the package would need its dependencies."""
    text = (HERE / "llm_sessions" / "_version.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "([^"]+)"$', text, re.M)
    if found is None:
        raise RuntimeError('llm_sessions/_version.py has no line: __version__ = "…"')
    return found[1]


def readme() -> str:
    """Return the README as an index can show it.

    An index resolves no relative address, and the files of the project have no other one yet. So a picture of
    ours is left out, and a link to a file or a heading becomes its text. The sdist has the files.
    """
    path = HERE / "README.md"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    text = re.sub(r"^!\[[^\]]*\]\((?!https:)[^)]*\)\n\n", "", text, flags=re.M)
    return re.sub(r"(?<!!)\[([^\]\n]+)\]\((?!https:)[^)\s]+\)", r"\1", text)


RUNTIME = [
    # Only the opening handshake, over a stream of ours (`socket=`): the same from 1.8.0 to 1.9.2, but that a
    # redirect raises from 1.9.1 on and is returned before, so the status is checked. 1.9.1 has a broken
    # WebSocketApp.close: that is nothing to us, but to programs that use both.
    "websocket-client>=1.8,!=1.9.1",
    "requests>=2.31",  # does not leak Proxy-Authorization over redirects
    "backoff>=2.2,<3",  # only its generators; 2.0 changed how they start, so a 3.0 may too
    "PyJWT>=2.8",
]
TESTING = [
    "h11>=0.16",  # what wsproto asks for
    "wsproto>=1.3",  # before it some payloads are bytearrays, and LocalServer would answer no ping
    "trustme>=1.1",
]
SPEED = ["orjson>=3.10.7"]  # the first with wheels for every Python that we support
CLI = ["rich>=13.7"]
SOCKS = [
    "python-socks>=2.4.4,<4",  # its objects without I/O for SOCKS5, the same from 2.4.4 to 3.2.1
    "PySocks>=1.7",  # for requests
]
DOCS = [
    *TESTING,  # the reference reads the docstrings of LocalServer and the others
    "sphinx>=7.2",
    "myst-parser>=3",
    "furo>=2024.1.29",
]
PROMETHEUS = ["prometheus-client>=0.20"]
EXAMPLES = [
    *TESTING,  # they talk to the LocalServer
    "pytest>=8",  # one is a test file
    "flask>=3.0",  # one is a web application: what most legacy services have around such a client
]
BENCH = [
    "trustme>=1.1",
    *SPEED,
    "matplotlib>=3.8",  # the pictures
    "slack_sdk>=3.33",  # its socket mode clients are measured beside ours
]
SUITE = [
    *TESTING,
    *SPEED,
    *CLI,
    *SOCKS,
    *PROMETHEUS,
    *EXAMPLES,  # each is run by a test
    *BENCH,  # the benchmarks have tests
    *DOCS,  # and so has the documentation
    "coverage>=7.10",
    "hypothesis>=6.100",
    "pytest>=9",  # faulthandler_exit_on_timeout
    "pytest-cov>=6",
    "pytest-randomly>=3.16",
    "pytest-xdist>=3.6",
    "pytest-timeout>=2.3",
    "responses>=0.25",
]
DEV = [
    *SUITE,
    "mypy>=2.4,<2.5",  # a new release finds new errors: moving on is a change of its own
    "pyright[nodejs]==1.1.414",  # as mypy, with every patch; it brings the node that it runs on
    "ruff>=0.17.5,<0.18",  # its formatter changes between minor releases, and `make check` compares
    "types-requests>=2.31",
]

setup(
    name="llm-sessions",
    version=version(),
    description="Many Webex data channel sockets at once, for programs that use threads",
    long_description=readme(),
    long_description_content_type="text/markdown",
    author="the llm_sessions authors",
    license="MIT",
    license_files=["LICENSE"],
    keywords=["webex", "mercury", "llm", "data channel", "websocket", "threads"],
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Developers",
        "Operating System :: MacOS",
        "Operating System :: POSIX",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Communications :: Conferencing",
        "Topic :: Software Development :: Libraries :: Python Modules",
        "Typing :: Typed",
    ],
    python_requires=">=3.10",
    packages=find_packages(include=["llm_sessions*"]),
    package_data={"llm_sessions": ["py.typed"]},
    zip_safe=False,
    install_requires=RUNTIME,
    extras_require={
        "testing": TESTING,
        "speed": SPEED,
        "cli": CLI,
        "socks": SOCKS,
        "prometheus": PROMETHEUS,
        "examples": EXAMPLES,
        "bench": BENCH,
        "docs": DOCS,
        "suite": SUITE,  # what `make compat` tests with: DEV's type checkers are larger than all of it
        "dev": DEV,
        # Not in "dev": few need them, and seldom.
        "compat": ["tox>=4"],
        "release": ["build>=1.2", "twine>=6.1"],  # 6.1 knows the metadata that newer setuptools write
    },
    entry_points={
        "console_scripts": ["llm-sessions = llm_sessions.cli.main:main"],
        "pytest11": ["llm_sessions = llm_sessions.testing._entry_point"],
    },
)
