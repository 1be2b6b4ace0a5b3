"""`python -m llm_sessions`, for where the command `llm-sessions` is not on the path."""

from __future__ import annotations

import sys

from .cli.main import main

__all__: list[str] = []

if __name__ == "__main__":
    sys.exit(main())
