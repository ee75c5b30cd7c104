"""The paper's ablation of rearrangements: the ten of the model's family, at 70 %.

    icp-jax sweep rearrangements --out rearrangements
    icp-jax sweep rearrangements --out rearrangements-llama --model meta-llama/Llama-2-7b-hf \\
        --calibration c4 --data wikitext2

All have the same beta, small enough for those in which one layer takes from all others.
"""

from icp_jax.demo import BUNDLED
from icp_jax.models import Family
from icp_jax.sweeps import Sweep, grid

BETA = 0.1


def points(family: Family) -> list[dict[str, object]]:
    names = [name for name, _ in family.rearrangements]
    return grid({"prune.beta": [BETA], "prune.rearrange": names})


def get_sweep() -> Sweep:
    return Sweep(base="opt_pydoc", points=points, data=str(BUNDLED / "heldout.txt"))
