"""The shapes in signatures are checked in all tests: import this before `icp_jax`.

Only modules that name shapes: elsewhere tests give wrong types on purpose.
"""

from pathlib import Path

from jaxtyping import install_import_hook

ROOT = Path(__file__).parents[1]
MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in sorted((ROOT / "icp_jax").rglob("*.py"))
    if "from jaxtyping import" in path.read_text()
]
install_import_hook(MODULES, "beartype.beartype")
