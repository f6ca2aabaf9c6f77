"""The directive `public-names` documents a module's public names; a name left out fails the build.

No documentation is written here: it is that of the docstrings, in the order of `__all__`.
"""

import functools
import importlib
import inspect
import pkgutil
import sys
from types import ModuleType
from typing import Any

from docstring_text import rewritten
from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.pycode import ModuleAnalyzer
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

import parllel

logger = logging.getLogger(__name__)

# No public names: what runs as a program, and what rooms use among themselves.
INTERNAL = ("parllel.__main__", "parllel.generator_states", "parllel.kernels")


@functools.cache
def exported() -> dict[str, dict[str, object]]:
    """Map all public modules to their public names and values.

    Public are the packages that have a list `__all__`, and the modules at the top, of which it is
    what they define under a name without an underscore.
    """
    exports: dict[str, dict[str, object]] = {"parllel": listed(parllel)}
    for info in pkgutil.walk_packages(parllel.__path__, "parllel."):
        if info.name.startswith(INTERNAL) or not (info.ispkg or info.name.count(".") == 1):
            continue
        module = importlib.import_module(info.name)
        if hasattr(module, "__all__"):
            exports[info.name] = listed(module)
        elif not info.ispkg:
            exports[info.name] = {
                name: value
                for name, value in vars(module).items()
                if not name.startswith("_") and getattr(value, "__module__", None) == info.name
            }
    return exports


def listed(module: ModuleType) -> dict[str, object]:
    return {name: getattr(module, name) for name in module.__all__}


def home_of(module: str, name: str, exports: dict[str, dict[str, object]]) -> str:
    """Return the module on whose page a name stands: the innermost of those that export it."""
    value = exports[module][name]
    return max(
        (
            other
            for other, names in exports.items()
            if other.startswith(module) and name in names and names[name] is value
        ),
        key=len,
    )


def bases_left_out(kind: type, public: set[int]) -> list[str] | None:
    """Name the bases whose members are not listed again: public ones, and other libraries'.

    None where no base is left whose members are to be listed.
    """
    is_left_out = {
        base: id(base) in public or base.__module__.partition(".")[0] != "parllel"
        for base in kind.__mro__[1:]
    }
    if all(is_left_out.values()):
        return None
    return [base.__name__ for base, left_out in is_left_out.items() if left_out]


def text_of_data(module: str, name: str) -> list[str]:
    """Return the text below the assignment of a name, in whatever module of a package that is."""
    inside = [other for other in sorted(sys.modules) if f"{other}.".startswith(f"{module}.")]
    for other in inside:
        if getattr(sys.modules[other], "__file__", None):
            found = ModuleAnalyzer.for_module(other).find_attr_docs().get(("", name))
            if found:
                return rewritten(found)
    return []


def entry(module: str, name: str, value: object, public: set[int]) -> list[str]:
    """Return the reStructuredText of one name."""
    if inspect.isclass(value) and value is not Any:
        options = ["members:", *(["show-inheritance:"] if value.__bases__ != (object,) else [])]
        bases = bases_left_out(value, public)
        options += [] if bases is None else [f"inherited-members: {', '.join(bases)}"]
        return [f".. autoclass:: {module}.{name}", *(f"   :{each}" for each in options), ""]
    if inspect.isroutine(value):
        return [f".. autofunction:: {module}.{name}", ""]
    return [f".. py:data:: {name}", "", *(f"   {line}" for line in text_of_data(module, name)), ""]


class PublicNames(SphinxDirective):
    """`.. public-names:: MODULE` documents all that a module exports."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        (module,) = self.arguments
        exports = exported()
        public = {id(value) for names in exports.values() for value in names.values()}
        about = inspect.getdoc(importlib.import_module(module)) or ""
        lines = [f".. py:module:: {module}", "", *rewritten(about.splitlines()), ""]
        homes = {name: home_of(module, name, exports) for name in exports[module]}
        links = [f":py:obj:`{name} <{home}.{name}>`" for name, home in homes.items()]
        lines += [" · ".join(links), ""]
        for name, value in exports[module].items():
            if homes[name] == module:
                lines += entry(module, name, value, public)
        parent = nodes.section()
        parent.document = self.state.document
        self.state.nested_parse(StringList(lines, source=module), self.content_offset, parent)
        return parent.children


def check(app: Sphinx, env: BuildEnvironment) -> None:
    """Warn of each public name that no page has, and of each without a docstring."""
    exports = exported()
    on_pages = env.domains.python_domain.objects
    for module, names in exports.items():
        for name, value in names.items():
            home = home_of(module, name, exports)
            if f"{home}.{name}" not in on_pages:
                logger.warning("%s.%s: no page has this public name", home, name)
            elif not has_text(home, name, value):
                logger.warning("%s.%s: this public name has no docstring", home, name)


def has_text(module: str, name: str, value: object) -> bool:
    if value is not Any and (inspect.isclass(value) or inspect.isroutine(value)):
        return bool(value.__doc__)
    return bool(text_of_data(module, name))


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("public-names", PublicNames)
    app.connect("env-check-consistency", check)
    return {"parallel_read_safe": True}
