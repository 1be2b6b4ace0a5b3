"""Settings of the documentation; `make docs` builds it."""

from __future__ import annotations

import sys
from pathlib import Path

from llm_sessions import __version__

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "llm_sessions"
author = "the llm_sessions authors"
copyright = author  # noqa: A001  # the name that Sphinx asks for
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "names", "pictures", "tables"]
exclude_patterns = ["_build"]
nitpicky = True
default_role = "word"  # of _ext/names.py

# Pages are read on the web as well, where a picture is a fenced block: here it is a directive.
myst_fence_as_directive = ["mermaid"]
myst_heading_anchors = 4

autodoc_member_order = "bysource"
autodoc_default_options = {
    "members": True,
    # With what comes from bases of the library, which are its own business, up to those of Python.
    "inherited-members": (
        "object,BaseException,Exception,OSError,ValueError,TimeoutError,AssertionError,Enum,dict"
    ),
}
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # a dataclass's fields are told of once, in its docstring
python_use_unqualified_type_names = True
toc_object_entries_show_parents = "hide"

# What Python and requests document is not linked to: a build needs no network.
nitpick_ignore_regex = [
    (r"py:.*", r"(collections\.abc|ssl|types|logging|enum|requests|typing|os)\..*"),
    (r"py:.*", r"(ValueError|TimeoutError|AssertionError|Exception|StopIteration|OSError|TypedDict|Enum)"),
    (r"py:class", r"(Any|Callable|Collection|Iterable|Mapping|Sequence|Iterator|Literal|Final)"),
    (r"py:class", r"(.*\.)?(F|Callback)"),  # type variables: what goes in comes out
    (r"py:class", r"(SessionId|Timeout|TokenSource)"),  # the page on pools says what these are
    (r"py:class", r"(.*\.)?(Bytes|ClientCert|Direction|File|HasAddress)"),  # the texts do, of these
]

html_theme = "furo"
html_title = "llm_sessions"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
