"""The directive `public-names` documents a module's public names; a name left out fails the build.

No documentation is written here: it is that of the docstrings, in the order of `__all__`.
"""

import functools
import importlib
import inspect
import pkgutil
import re
import sys
from collections.abc import Iterator
from pathlib import Path
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

# No public names: what runs as a program, what rooms use among themselves, and a room of rooms.
INTERNAL = (
    "parllel.__main__",
    "parllel.generator_states",
    "parllel.kernels",
    "parllel.cages.actors",
    "parllel.cages.device",
    "parllel.cages.process",
    "parllel.cages.states",
    "parllel.cages.values",
    "parllel.cages.vector",
)
# Programs import these rooms' modules one by one, because each needs something else (pytest, say).
BY_MODULE = ("parllel.ops", "parllel.testing", "parllel.testing.contracts")
IMPORT = re.compile(r"^(?: *>>> )?from (parllel[.\w]*) import (\([^)]*\)|[^\n#]*)", re.MULTILINE)
ROOT = Path(__file__).resolve().parents[2]


@functools.cache
def exported() -> dict[str, dict[str, object]]:
    """Map all public modules to their public names and values.

    Public are the packages, by their list `__all__`, and the modules at the top and of `BY_MODULE`,
    of which it is what they define under a name without an underscore.
    """
    exports: dict[str, dict[str, object]] = {"parllel": listed(parllel)}
    for info in pkgutil.walk_packages(parllel.__path__, "parllel."):
        room, _, last = info.name.rpartition(".")
        is_public_module = room in ("parllel", *BY_MODULE) and not last.startswith("_")
        if is_internal(info.name) or not (info.ispkg or is_public_module):
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
        elif not (info.name in BY_MODULE or is_namespace(module)):
            logger.warning("%s: it has no `__all__`, and is not said to be internal", info.name)
    return exports


def is_internal(module: str) -> bool:
    return any(f"{module}.".startswith(f"{room}.") for room in INTERNAL)


def is_namespace(package: ModuleType) -> bool:
    """Tell whether a package holds packages alone, as `parllel.torch`."""
    return all(info.ispkg for info in pkgutil.iter_modules(package.__path__))


def imported() -> Iterator[tuple[str, str]]:
    """Return each name that a page, the README or an example imports, with its module."""
    texts = (ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("examples/*.py"))
    for path in texts:
        for module, names in IMPORT.findall(path.read_text()):
            for name in re.sub(r"#.*", "", names).strip("()").replace("\n", " ").split(","):
                if name.strip():
                    yield module, name.split()[0]


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
        options = ["members:"]
        if module.startswith("parllel.testing.contracts"):
            options.append("undoc-members:")  # a test's name is its claim
        options += ["show-inheritance:"] if value.__bases__ != (object,) else []
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
        names = exports.get(module, {})  # a room of `BY_MODULE` may have none itself
        homes = {name: home_of(module, name, exports) for name in names}
        links = [f":py:obj:`{name} <{home}.{name}>`" for name, home in homes.items()]
        lines += [" · ".join(links), ""]
        for name, value in names.items():
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
            elif inspect.isclass(value):
                for member in members_of(value):
                    if f"{home}.{name}.{member}" not in on_pages:
                        logger.warning("%s.%s.%s: no page has it", home, name, member)
    public = {id(value) for names in exports.values() for value in names.values()}
    for module, name in sorted(set(imported())):
        value = getattr(importlib.import_module(module), name)
        if id(value) not in public and getattr(value, "__name__", "") not in exports:
            logger.warning("%s.%s: pages import it, and none documents it", module, name)


def members_of(kind: type) -> Iterator[str]:
    """Return the public methods and properties that a class defines itself."""
    for name, value in vars(kind).items():
        is_property = isinstance(value, property | functools.cached_property)
        if (is_property or inspect.isroutine(value)) and not name.startswith("_"):
            yield name


def has_text(module: str, name: str, value: object) -> bool:
    if value is not Any and (inspect.isclass(value) or inspect.isroutine(value)):
        return bool(value.__doc__)
    return bool(text_of_data(module, name))


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("public-names", PublicNames)
    app.connect("env-check-consistency", check)
    return {"parallel_read_safe": True}
