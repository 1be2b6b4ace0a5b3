"""What the reference shows of the library, and how names in texts find it.

Docstrings are written to be read in the source, too: a name is in single backticks, whether it is a class, an
argument or a word of the protocol. Here those that the reference has become links; the others are code.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping, Sequence
from typing import Any

from docutils import nodes
from docutils.parsers.rst.states import Inliner
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.pycode import ModuleAnalyzer
from sphinx.util.nodes import make_refnode

import llm_sessions

# Users get these from calls and do not make them, so their arguments are nobody's business.
NOT_MADE_BY_USERS = {
    *("Session", "Messages", "SessionStats", "PoolStats", "Envelope", "DataChannel", "Captions"),
    *("Transcripts", "ServerConnection", "ProxiedConnection", "CaptionRequest", "RestRequest"),
    "RefreshedTokens",
}

# What the reference says in place of types that are the library's own business.
PRIVATE_TYPES = {
    "str | ~llm_sessions.pool.listening._Marker": "SessionId",
    "~llm_sessions.pool.listening.Whose | ~llm_sessions.pool.listening._Marker": "SessionId",
    "float | None | ~llm_sessions.pool.session._Default": "Timeout",
}
# What the docstrings leave unsaid, since nearly every method would say it.
UNSAID = {"PoolClosed": "If the pool was closed, or is another process's."}
TESTING = ("server", "proxy", "captions", "clock")


def without_internals(
    app: Sphinx, what: str, name: str, obj: object, skip: bool, options: object
) -> bool | None:
    """Leave out what says of itself that it is internal."""
    summary = (getattr(obj, "__doc__", None) or "").partition("\n\n")[0]
    return True if summary.endswith("Internal.") else None


def with_documented_constants(
    app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """Give a constant of the package the text that is under its assignment, where it is defined."""
    package, _, constant = name.rpartition(".")
    home = llm_sessions._HOMES.get(constant)
    if what != "data" or package != llm_sessions.__name__ or home is None:
        return
    analyzer = ModuleAnalyzer.for_module(f"{package}.{home}")
    lines[:] = analyzer.find_attr_docs()["", constant]


def without_arguments_of_others(
    app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """Drop the arguments of classes that users do not make."""
    if what == "class" and name.rpartition(".")[2] in NOT_MADE_BY_USERS:
        kept = re.sub(r"^Args:\n(?:(?: .*)?\n)*", "", "\n".join([*lines, ""]), flags=re.MULTILINE)
        lines[:] = kept.splitlines()


def shorter_signature(
    app: Sphinx,
    what: str,
    name: str,
    obj: object,
    options: object,
    signature: str | None,
    returns: str | None,
) -> tuple[str, str | None] | None:
    """Drop their signatures, too, and say of the others what a reader wants to know of private types."""
    if signature is None:
        return None
    if what == "class" and (
        name.rpartition(".")[2] in NOT_MADE_BY_USERS
        or isinstance(obj, enum.EnumMeta)
        or getattr(obj, "_is_protocol", False)
    ):
        return "", returns
    for private, shown in PRIVATE_TYPES.items():
        signature = signature.replace(private, shown)
    return re.sub(
        r"= ?<[^<>]*>", "=...", signature
    ), returns  # a marker, of which the text says what it means


def one_error_a_line(
    app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """`:raises A, B: text` becomes two fields, so that each name can be a link."""
    found: list[str] = []
    for line in lines:
        raised = re.fullmatch(r":raises ((?:\w+, )*\w+): *(.*)", line)
        names = raised[1].split(", ") if raised else []
        found += [f":raises {one}: {raised[2] or UNSAID.get(one, '')}" for one in names] or [line]
    lines[:] = found


def public_name(target: str) -> list[str]:
    """Return under which names the reference may have what a text or an annotation calls so."""
    parts = target.split(".")
    names = [target]
    for start, part in enumerate(parts):
        if part in llm_sessions.__all__:
            names.append(".".join([llm_sessions.__name__, *parts[start:]]))
    names += [f"{llm_sessions.__name__}.testing.{module}.{parts[-1]}" for module in TESTING]
    return names


def resolve(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, content: nodes.Element
) -> nodes.Element | None:
    """Find what the Python domain has not found: public names by where they are defined, or bare."""
    if node.get("refdomain") != "py":
        return None
    objects = env.domains["py"].data["objects"]
    for name in public_name(node["reftarget"]):
        if name in objects:
            entry = objects[name]
            return make_refnode(app.builder, node["refdoc"], entry.docname, entry.node_id, content, name)
    if not node.get("llm_word"):
        return None
    return content


def link(env: BuildEnvironment, raw: str, literal: nodes.literal) -> nodes.literal | pending_xref:
    """Return a reference for a text that may be a name, which is resolved later on."""
    target = re.sub(r"\(.*\)$", "", literal.astext())
    if re.fullmatch(r"\w+(\.\w+)*", target) is None:
        return literal
    found = pending_xref(raw, literal, refdomain="py", reftype="obj", reftarget=target, refdoc=env.docname)
    found.attributes |= {"refwarn": False, "refexplicit": False, "llm_word": True}
    return found


def link_names(app: Sphinx, doctree: nodes.document) -> None:
    """On pages that are no docstrings, make links of names of classes, and of what is in them."""
    for literal in list(doctree.findall(nodes.literal)):
        in_text = not isinstance(literal.parent, (nodes.title, nodes.reference, pending_xref))
        if in_text and "word" not in literal["classes"] and literal.astext()[:1].isupper():
            target = link(app.env, literal.rawsource, literal.deepcopy())
            literal.replace_self(target)


def word(
    role: str,
    raw: str,
    text: str,
    line: int,
    inliner: Inliner,
    options: Mapping[str, Any] | None = None,
    content: Sequence[str] = (),
) -> tuple[list[nodes.Node], list[nodes.system_message]]:
    """A text in single backticks: a link if it is a name that the reference has, else code."""
    env = inliner.document.settings.env
    found = link(env, raw, nodes.literal(raw, text, classes=["word"]))
    if isinstance(found, pending_xref):
        found.attributes |= {place: env.ref_context.get(place) for place in ("py:module", "py:class")}
    return [found], []


def without_overloads(app: Sphinx) -> None:
    """Show one signature for each method, that of its definition: overloads are for type checkers."""
    public = (getattr(llm_sessions, name) for name in llm_sessions.__all__)
    kinds = {base for kind in public if isinstance(kind, type) for base in kind.__mro__}
    for module in {kind.__module__ for kind in kinds}:
        if module.partition(".")[0] == llm_sessions.__name__:
            analyzer = ModuleAnalyzer.for_module(module)
            analyzer.analyze()
            analyzer.overloads.clear()


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_role("word", word)
    app.connect("builder-inited", without_overloads)
    app.connect("autodoc-skip-member", without_internals)
    app.connect("autodoc-process-signature", shorter_signature)
    app.connect("autodoc-process-docstring", with_documented_constants, priority=100)
    app.connect("autodoc-process-docstring", without_arguments_of_others, priority=200)
    app.connect("autodoc-process-docstring", one_error_a_line, priority=900)  # after napoleon
    app.connect("doctree-read", link_names)
    app.connect("missing-reference", resolve)
    return {"parallel_read_safe": True}
