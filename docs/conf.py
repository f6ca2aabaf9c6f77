"""Settings of the site: `make docs` builds it with warnings as errors and without a network."""

import sys
from importlib.metadata import version as version_of
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "extensions"))

project = "parllel"
author = "The parllel authors"
copyright = "The parllel authors, MIT license"
release = version = version_of("parllel")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    # in docs/extensions
    "docstring_text",
    "example_gallery",
    "measured_tables",
    "public_names",
]
exclude_patterns = ["_build", "extensions"]

# Markdown, and the notebook, which is executed anew: what it shows is what this version does.
myst_enable_extensions = ["attrs_block", "colon_fence"]
myst_heading_anchors = 3
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_merge_streams = True

# Docstrings have Google's sections, and code in single backticks, which becomes a link where it
# names something public.
default_role = "name"
napoleon_numpy_docstring = False
napoleon_custom_sections = [("Attributes", "params_style")]  # a list: names are no links
napoleon_use_rtype = False
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_class_signature = "mixed"
autodoc_inherit_docstrings = True
toc_object_entries = False  # each page begins with a list of its names instead
nitpick_ignore = [("myst", "../examples")]  # the notebook's link to a folder
suppress_warnings = ["myst.header"]  # the notebook is the user's own text, whose levels have a gap

html_theme = "sphinx_book_theme"
html_title = "parllel"
html_static_path = ["static"]
html_css_files = ["parllel.css"]
html_theme_options = {"show_navbar_depth": 1, "home_page_in_toc": True}
