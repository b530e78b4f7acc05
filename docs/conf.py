"""Settings of the documentation: Sphinx, Furo, pages in MyST Markdown, API pages from the docstrings.

The build needs no network and no display, and a warning is an error. Equations are plain Unicode text: the renderers
that Sphinx offers either need the network when the page is read (MathJax from a server) or a TeX installation.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # for planet_docs, the extension beside this file

import planet_lib

project = "planet_lib"
author = "The planet_lib developers"
copyright = "The planet_lib developers, MIT licence"
version = release = planet_lib.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "myst_parser",
    "planet_docs",
]
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3

# Single backticks are code, as in the docstrings; planet_docs makes links of those that name something public.
default_role = "code"
highlight_language = "python"
pygments_style = "friendly"

autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints = "description"  # beside the arguments: with them in it, a signature takes ten lines
autodoc_typehints_description_target = "documented"
autodoc_typehints_format = "short"
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
python_display_short_literal_types = True

# Inventories of other projects would have to be fetched, so names of theirs stay unlinked text.
nitpicky = True
nitpick_ignore_regex = [
    (r"py:.*", r"(torch|np|numpy|gymnasium|mujoco|collections|pathlib|typing|os|argparse)\..*"),
    (r"py:.*", r"(Tensor|nn\.Module|Module|ndarray|Generator|device|dtype|Optimizer|PathLike|Path|Env|TextIO|Obs)"),
    (r"py:.*", r"'.*'"),  # the values of a Literal
    # Type variables and private aliases: there is nothing to link to.
    (r"py:.*", r"planet_lib\..*\.(S|Array|Frames|Bound|Quality)"),
]

html_theme = "furo"
html_title = f"planet_lib {release}"
html_static_path = ["_static"]
html_css_files = ["planet.css"]
html_show_sourcelink = False
html_copy_source = False
