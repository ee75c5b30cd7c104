"""Which linears are pruned, and which get a sparsity of their own: globs over names.

The linear `q_proj` of block 3 is called `blocks.3.q_proj`. In a glob `*` stands for any text.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from reprlib import repr
from typing import NamedTuple

from icp_jax.errors import InputError

Names = Sequence[Iterable[str]]  # the linears of each block
LEFT = -1  # the count of a linear that is left as it is: neither pruned nor quantized


class Choice(NamedTuple):
    """What is pruned. The default is every linear of every block, without a sparsity of its own."""

    include: tuple[str, ...] = ()  # globs; none: all linears
    exclude: tuple[str, ...] = ()  # globs; they win over include
    sparsity_of: tuple[str, ...] = ()  # GLOB=S; of several for one linear, the last
    keep_first: int = 0  # blocks that are left as they are
    keep_last: int = 0


def parse_own(text: str) -> tuple[str, float]:
    """Parse `"blocks.*.fc2=0.5"` to (glob, sparsity). Raises InputError."""
    glob, _, number = text.rpartition("=")
    try:
        sparsity = float(number)
    except ValueError:
        sparsity = -1.0
    if not glob or not 0 <= sparsity < 1:
        raise InputError(
            f"prune.sparsity_of {repr(text)} is not GLOB=S with S in [0, 1): "
            "use one such as 'blocks.*.fc2=0.5'"
        )
    return glob, sparsity


def chosen(choice: Choice, names: Names) -> list[dict[str, float | None]]:
    """The pruned linears of each block, with their own sparsity or None.

    Raises InputError for a glob that matches nothing, and if nothing is left to prune.
    """
    blocks = len(names)
    known = {name_of(t, name): (t, name) for t, block in enumerate(names) for name in block}
    picked = set(known if not choice.include else ())
    for glob in choice.include:
        picked |= _matches("include", glob, known)
    for glob in choice.exclude:
        picked -= _matches("exclude", glob, known)
    kept = {*range(choice.keep_first), *range(blocks - choice.keep_last, blocks)}
    own: dict[str, float | None] = {
        full: None for full, (t, _) in known.items() if full in picked and t not in kept
    }
    if not own:
        raise InputError(
            "prune.include, prune.exclude, prune.keep_first and prune.keep_last leave no layer to "
            "prune: leave some of them out"
        )
    for text in choice.sparsity_of:
        glob, sparsity = parse_own(text)
        own |= dict.fromkeys(_matches("sparsity_of", glob, own), sparsity)
    found: list[dict[str, float | None]] = [{} for _ in names]
    for full, sparsity_or_none in own.items():
        t, name = known[full]
        found[t][name] = sparsity_or_none
    return found


def fits(inputs: int, pattern: tuple[int, int] | None, group: int | None) -> bool:
    """Whether a kernel with this number of inputs can have the n:m pattern and the groups."""
    return inputs % (pattern or (1, 1))[1] == 0 and inputs % (group or 1) == 0


def name_of(t: int, name: str) -> str:
    """The name of a linear, as globs see it."""
    return f"blocks.{t}.{name}"


def _matches(option: str, glob: str, known: Mapping[str, object]) -> set[str]:
    if found := {full for full in known if fnmatchcase(full, glob)}:
        return found
    those = " that is pruned" if option == "sparsity_of" else ""
    raise InputError(
        f"prune.{option} {repr(glob)} matches no layer{those}: "
        f"use names from {next(iter(known))} to {list(known)[-1]}, with * for any text"
    )
