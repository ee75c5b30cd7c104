"""OPT-125M at 70 %, the paper's settings.

    icp-jax prune opt-125m-70 --config opt_125m
    icp-jax eval opt-125m-70 --data wikitext2

The paper reports WikiText-2 perplexity 65.20 (dense 27.65), with 128 C4 samples of 2048 tokens.
Not yet run with this package. `icp-jax prune --config opt_125m --dry-run` prints the cost.
"""

from icp_jax import CalibrationConfig, CompensateConfig, PruneConfig, RunConfig


def get_config() -> RunConfig:
    return RunConfig(
        model="facebook/opt-125m",
        prune=PruneConfig(method="icp", sparsity=0.7, alpha=0.691, beta=0.2, rearrange="qkv-f2"),
        compensate=CompensateConfig(epochs=12, lr=1e-4, gamma=0.87),
        calibration=CalibrationConfig(data="c4", samples=128, seq_len=2048),
    )
