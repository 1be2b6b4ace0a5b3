"""Scripts that connect to `server`, plain and TLS."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trustme

from llm_sessions.testing.server import LocalServer
from tests.processes.script import Script


@pytest.fixture
def script(authority: trustme.CA, tls: bool, tmp_path: Path) -> Callable[..., Script]:
    """Start a script; see `Script`."""
    bundle = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(bundle))

    def start(server: LocalServer, code: str, **options: Any) -> Script:
        return Script(server, code, ca_file=bundle if tls else None, **options)

    return start
