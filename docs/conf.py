"""The site, built by `make docs`: offline, warnings as errors."""

import os
import subprocess
import sys
from pathlib import Path

import icp_jax

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_ext"))

# What the tutorial and autodoc compute with: the CPU, wherever the site is built.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

project = "icp_jax"
author = "the icp_jax authors"
copyright = author
version = release = icp_jax.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx_copybutton",
    "docstrings",
    "mathml",
]
exclude_patterns = ["_build", "_generated"]
html_theme = "sphinx_book_theme"
html_title = f"icp_jax {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False
html_theme_options = {
    "show_toc_level": 2,
    "use_download_button": False,
    "use_fullscreen_button": False,
    "navbar_persistent": [],  # the sidebar has the search
}

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
html_math_renderer = "mathml"
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_execution_timeout = 900
nb_merge_streams = True
nb_output_stderr = "remove"
copybutton_exclude = ".linenos, .gp, .go"

autodoc_default_options = {"members": True, "undoc-members": True, "member-order": "bysource"}
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_use_type_comments = False
add_module_names = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88

COMMANDS = (
    "prune",
    "plan",
    "eval",
    "sweep",
    "generate",
    "segment",
    "convert",
    "verify",
    "pack",
    "unpack",
    "distill",
    "masks",
    "report",
    "demo",
)


def write_help(app):
    """The help of every command, as it is printed, for `cli.md`."""
    folder = HERE / "_build" / "help"
    folder.mkdir(parents=True, exist_ok=True)
    plain = {**os.environ, "COLUMNS": "78", "NO_COLOR": "1", "TERM": "dumb"}
    for command in COMMANDS:
        done = subprocess.run(
            [sys.executable, "-m", "icp_jax.cli", command, "--help"],
            env=plain,
            capture_output=True,
            text=True,
            check=True,
        )
        (folder / f"{command}.txt").write_text(done.stdout)


def setup(app):
    app.connect("builder-inited", write_help)
