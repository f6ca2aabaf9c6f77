"""The directive `toctree-of-present` is a `toctree` that passes over pages that are not there."""

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.directives.other import TocTree


class PresentPages(TocTree):
    """A `toctree` without the pages that are not there: what it lists need not all be written."""

    def run(self) -> list[nodes.Node]:
        pages = [line for line in self.content if line.strip() in self.env.found_docs]
        self.content = StringList(pages, source=self.env.docname)
        return super().run()


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("toctree-of-present", PresentPages)
    return {"parallel_read_safe": True}
