"""Learning rate × epochs of the compensation, at 70 %, 16 points.

    icp-jax sweep lr_epochs --out lr-epochs
    icp-jax sweep lr_epochs --out lr-epochs-opt-125m --model facebook/opt-125m --calibration c4 \\
        --data wikitext2
"""

from icp_jax.demo import BUNDLED
from icp_jax.sweeps import Sweep, grid

RATES, EPOCHS = (1e-4, 3e-4, 1e-3, 3e-3), (1, 2, 4, 8)


def get_sweep() -> Sweep:
    return Sweep(
        base="opt_pydoc",
        points=grid({"compensate.epochs": EPOCHS, "compensate.lr": RATES}),
        data=str(BUNDLED / "heldout.txt"),
    )
