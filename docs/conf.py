"""Configuration of Sphinx; `make docs` builds with warnings as errors."""

from importlib import metadata

project = "polyloop"
author = "The polyloop authors"
copyright = "2026, The polyloop authors"
release = metadata.version("polyloop")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
suppress_warnings = ["myst.header"]  # pages may start a table of a topic at any level

html_theme = "furo"
html_title = f"polyloop {release}"
html_copy_source = False

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
# The headings of our docstrings that Google's style does not have (CONTRIBUTING.md).
napoleon_custom_sections = ["Cancellation", "Thread safety", "Source"]
napoleon_include_init_with_doc = False
napoleon_use_rtype = False
