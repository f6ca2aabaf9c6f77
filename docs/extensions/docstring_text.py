"""Makes reStructuredText of docstrings, which are written to be read in an editor.

Docstrings have Google's sections (Sphinx's napoleon reads them), code in single backticks, formulas
in paragraphs of their own, and no other markup: stars and bars in them are what they look like.
"""

import re
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.domains.python import PyXRefRole
from sphinx.util.docutils import SphinxRole

CODE = re.compile(r"(`[^`]*`)")
MARKUP = re.compile(r"[*|]|(?<=\w)_(?!\w)")
PROMPT = re.compile(r"\s*(>>>|\.\.\. |\.\.\.$)")
NAMED = re.compile(r"(Sources?|Errors?): ")
FORMULA = re.compile(r"[\w'\[\]., ()|]{1,40} = \S")
LINKED = re.compile(r"[A-Z]\w+|parllel(\.\w+)+|[A-Z]\w*(\.\w+)+")  # a class, or a path to a name
STARRED = re.compile(r"\s*\*{1,2}\w+:")  # an argument `*args:`, which napoleon knows


def rewritten(lines: list[str]) -> list[str]:
    """Return a docstring's lines as reStructuredText, but for its sections."""
    paragraphs: list[list[str]] = [[]]
    for line in lines:
        if not line.strip():
            paragraphs += [[], []]  # the empty line, and the next paragraph
        else:
            paragraphs[-1].append(line)
    found: list[str] = []
    is_announced = False  # a paragraph that ends with a colon
    for each in paragraphs:
        found += paragraph(each, is_announced=is_announced) or [""]
        if each:
            is_announced = not each[-1].startswith(" ") and each[-1].endswith(":")
    return found


def paragraph(lines: list[str], *, is_announced: bool) -> list[str]:
    if lines and PROMPT.match(lines[0]):
        return lines
    is_set_off = is_announced and all(line.startswith("    ") for line in lines)
    if lines and (is_set_off or all(FORMULA.match(line) for line in lines)):
        return ["::", "", *(f"    {line}" for line in lines), ""]
    return [escaped(line) for line in joined(lines)]


def joined(lines: list[str]) -> list[str]:
    """Take what is indented below `Source:` or `Error:` to the same paragraph."""
    found: list[str] = []
    is_named = False
    for line in lines:
        if NAMED.match(line):
            is_named = True
            found += [""] if found else []
        elif not line.startswith(" "):
            is_named = False
        found.append(line.lstrip() if is_named else line)
    return found


def escaped(line: str) -> str:
    """Put a backslash before what would be markup outside of code in backticks."""
    if STARRED.match(line) or PROMPT.match(line):
        return line
    parts = CODE.split(line)
    parts[::2] = [MARKUP.sub(r"\\\g<0>", part) for part in parts[::2]]
    return "".join(parts)


class Code(SphinxRole):
    """Code in backticks: a link where it names something of the package, else as it is."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        if LINKED.fullmatch(self.text):
            given = (self.rawtext, self.text, self.lineno, self.inliner)
            return PyXRefRole()("py:obj", *given)
        return [nodes.literal(self.rawtext, self.text)], []


def process(app: Sphinx, what: str, name: str, obj: object, options: Any, lines: list[str]) -> None:
    lines[:] = rewritten(lines)


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_role("name", Code())
    app.connect("autodoc-process-docstring", process, priority=100)  # before napoleon
    return {"parallel_read_safe": True}
