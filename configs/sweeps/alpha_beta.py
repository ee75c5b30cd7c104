"""Figure 4 of the paper: alpha × beta at 70 %, 25 points.

    icp-jax sweep alpha_beta --out alpha-beta
    icp-jax sweep alpha_beta --out alpha-beta-opt-125m --model facebook/opt-125m --calibration c4 \\
        --data wikitext2
"""

from icp_jax.demo import BUNDLED
from icp_jax.sweeps import Sweep, grid

ALPHAS, BETAS = (0.6, 0.7, 0.8, 0.9, 1.0), (0.0, 0.1, 0.2, 0.3, 0.4)


def get_sweep() -> Sweep:
    return Sweep(
        base="opt_pydoc",
        points=grid({"prune.alpha": ALPHAS, "prune.beta": BETAS}),
        data=str(BUNDLED / "heldout.txt"),
    )
