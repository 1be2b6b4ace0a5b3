"""The command in this process, against servers of the test's."""

from __future__ import annotations

import pytest

from tests.cli.command import TOKEN


@pytest.fixture(autouse=True)
def a_token_and_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEBEX_TOKEN", TOKEN)
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def tls() -> bool:
    """The server of these tests is plain; what is about TLS makes its own."""
    return False
