"""Table 1 of the paper: method × sparsity, 20 points.

    icp-jax sweep table1 --out table1
    icp-jax sweep table1 --out table1-opt-125m --model facebook/opt-125m --calibration c4 \\
        --data wikitext2

At 90 % the default alpha and beta of ICP would prune fc2 whole, so ICP takes milder ones there.
"""

from icp_jax.demo import BUNDLED
from icp_jax.sweeps import Sweep, grid

METHODS, SPARSITIES = ("magnitude", "wanda", "sparsegpt", "icp"), (0.5, 0.6, 0.7, 0.8)
MILD = {"prune.alpha": 0.9, "prune.beta": 0.05}


def get_sweep() -> Sweep:
    most = [{"prune.method": method, "prune.sparsity": 0.9} for method in METHODS[:-1]]
    mild = {"prune.method": "icp", "prune.sparsity": 0.9, **MILD}
    return Sweep(
        base="opt_pydoc",
        points=[
            *grid({"prune.method": METHODS, "prune.sparsity": SPARSITIES}),
            *most,
            mild,
        ],
        data=str(BUNDLED / "heldout.txt"),
    )
