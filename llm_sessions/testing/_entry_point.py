"""What pytest imports in every run of everybody who has this package installed: next to nothing.

It has pytest load the fixtures by their module's name. pytest refuses a module that comes under two names: if
the entry point were that module, a project that also names it, in `pytest_plugins` or by `-p`, could not run.
"""

from __future__ import annotations

pytest_plugins = ["llm_sessions.testing.pytest_plugin"]
