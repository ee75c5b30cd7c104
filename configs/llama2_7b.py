"""Llama-2-7B at 70 %, the paper's settings.

    icp-jax plan --config llama2_7b --device-memory 24GiB --host-memory 32GiB
    icp-jax prune llama-2-7b-70 --config llama2_7b

The paper reports a mean of 46.94 on seven zero-shot tasks (56.96 at 50 %), with 128 C4 samples of
2048 tokens. The paper's script ignores alpha for this family; this config uses it. Not yet run with
this package.
"""

from icp_jax import CalibrationConfig, CompensateConfig, PruneConfig, RunConfig


def get_config() -> RunConfig:
    return RunConfig(
        model="meta-llama/Llama-2-7b-hf",
        prune=PruneConfig(method="icp", sparsity=0.7, alpha=0.691, beta=0.0),
        compensate=CompensateConfig(epochs=1, lr=5e-4),
        calibration=CalibrationConfig(data="c4", samples=128, seq_len=2048),
    )
