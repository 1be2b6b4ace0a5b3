"""What the tests of one socket share: links, all ended in the end, and who they report to."""

from __future__ import annotations

import ssl
from collections.abc import Iterator

import pytest

from tests.peers import Links, Owner


@pytest.fixture
def links(client_context: ssl.SSLContext) -> Iterator[Links]:
    links = Links(client_context)
    yield links
    links.close()


@pytest.fixture
def owner() -> Owner:
    return Owner()
