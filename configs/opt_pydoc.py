"""The bundled model at 70 %, pruned as in `icp-jax demo`. Needs no download.

    icp-jax prune opt-pydoc-70 --config opt_pydoc
    icp-jax eval opt-pydoc-70 --data icp_jax/assets/opt-pydoc/heldout.txt

The README has the results to expect; benchmarks/results/claim.json has other sparsities and seeds.
"""

from icp_jax import RunConfig
from icp_jax.demo import demo_config


def get_config() -> RunConfig:
    return demo_config("icp", 0.7, "")
