"""Docstrings as the package writes them, for autodoc; a public name without one is a warning.

The package's docstrings are plain text with `code` in single backticks. A field of a dataclass or
NamedTuple is explained by the comment on its line.
"""

import ast
import importlib
import inspect
import io
import re
import textwrap
import tokenize
from functools import cache

from docutils import nodes
from sphinx.util import logging

log = logging.getLogger(__name__)
OURS = ("icp_jax", "converters")
GENERATED = ("Alias for field number", "Create and return a new object", "Create new instance of")


def to_rest(line):
    """One line of prose: `code` stays code, all else is literal text."""
    parts = line.split("`")
    if len(parts) % 2 == 0:  # a backtick without a partner
        return re.sub(r"([\\*|_`])", r"\\\1", line)
    prose = (re.sub(r"([\\*|_])", r"\\\1", part) for part in parts[::2])
    code = (f"``{part}``" for part in parts[1::2])
    out = [next(prose)]
    for one in code:
        out += [one, next(prose)]
    return "".join(out)


def names(obj):
    """The parameters of a function, or the fields of a class."""
    if inspect.isclass(obj):
        return set(getattr(obj, "__annotations__", ()))
    try:
        return set(inspect.signature(obj).parameters)
    except (TypeError, ValueError):
        return set()


def parted(lines, known):
    """`name: ` begins a paragraph, where it begins a line or a sentence and the name is known."""
    if not known:
        return lines
    name = "|".join(sorted(map(re.escape, known), key=len, reverse=True))
    start = re.compile(rf"(?:^|(?<=\. ))((?:{name})(?:, (?:{name}))*): ", re.MULTILINE)
    text = "\n".join(lines)
    return start.sub(lambda found: f"\n\n`{found[1]}`: ", text).split("\n")


@cache
def field_comments(cls):
    """field -> the comment on its line, or nothing, of a class's own fields."""
    source = textwrap.dedent(inspect.getsource(cls))
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = {t.start[0]: t.string.lstrip("# ") for t in tokens if t.type == tokenize.COMMENT}
    fields = (n for n in ast.parse(source).body[0].body if isinstance(n, ast.AnnAssign))
    return {n.target.id: comments.get(n.end_lineno, "") for n in fields}


def owner(name):
    """The class that an attribute's full name says it is of, or None."""
    module, *rest = name.split(".")
    found = importlib.import_module(module)
    for part in rest[:-1]:
        module = f"{module}.{part}"
        if not hasattr(found, part):
            importlib.import_module(module)
        found = getattr(found, part)
    return found if inspect.isclass(found) else None


def process(app, what, name, obj, options, lines):
    text = "\n".join(lines).strip()
    if not text or text.startswith(GENERATED):
        cls, field = owner(name), name.rsplit(".", 1)[-1]
        fields = field_comments(cls) if cls else {}
        lines[:] = [fields.get(field, "")]
        if field not in fields:  # what a field without a comment means, its class says
            log.warning("%s has no docstring", name)
    elif inspect.isclass(obj) and text.startswith(f"{obj.__name__}("):  # as dataclass makes it
        log.warning("%s has no docstring", name)
    lines[:] = parted(lines, names(obj))
    code = False
    for n, line in enumerate(lines):
        indented = line.startswith("    ")
        if indented and n and not lines[n - 1].strip() and not code:
            code = True
            lines[n - 1] = "\n.. code-block:: python\n\n"
        elif line.strip() and not indented:
            code = False
        if not code:
            lines[n] = to_rest(line)
    lines[:] = "\n".join(lines).split("\n")


def skip(app, what, name, obj, skipped, options):
    """Of a module, only its own functions and classes; of a class, not JAX's protocol."""
    if name.startswith("tree_"):
        return True
    if what == "module" and not (getattr(obj, "__module__", None) or "").startswith(OURS):
        return True
    return None


def shorten(app, doctree):
    """`Float[jaxlib._jax.Array, "b t"]` is `Float[Array, "b t"]`."""
    for text in list(doctree.findall(nodes.Text)):
        if "jaxlib." in text:
            text.parent.replace(text, nodes.Text(re.sub(r"jaxlib\.[\w.]*\.", "", text)))


def check_names(app, env):
    """Every name that `icp_jax` offers is in the reference."""
    import icp_jax

    known = env.get_domain("py").objects
    for name in icp_jax.__all__:
        home = icp_jax._HOME.get(name, "icp_jax.core")
        if not {f"icp_jax.{name}", f"{home}.{name}"} & set(known):
            log.warning("icp_jax.%s is not in the API reference", name)


def setup(app):
    app.connect("autodoc-process-docstring", process)
    app.connect("doctree-read", shorten)
    app.connect("autodoc-skip-member", skip)
    app.connect("env-check-consistency", check_names)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
