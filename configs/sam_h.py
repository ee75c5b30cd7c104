"""SAM ViT-H at 70 %, with the settings that the paper gives for ViT-B.

    icp-jax prune sam_vit_h_4b8939.pth sam-h-70 --config sam_h --data sa1b:DIR
    icp-jax eval sam-h-70 --data sa1b:HELD_OUT_DIR --prompt point

The paper reports single-point IoU on SA-1B of 74.42, 72.85 and 57.60 at 50, 70 and 90 % (at 70 %:
magnitude 28.2, Wanda 53.0, SparseGPT 65.7; at 90 %: 1.7, 1.2, 18.2). Not yet run with this package.
Add `--dry-run` for the cost.
"""

from icp_jax import CalibrationConfig, CompensateConfig, PruneConfig, RunConfig


def get_config() -> RunConfig:
    return RunConfig(
        model="facebook/sam-vit-huge",
        prune=PruneConfig(method="icp", sparsity=0.7, alpha=0.85, beta=0.0),
        compensate=CompensateConfig(epochs=8, lr=5e-4, gamma=0.9),
        calibration=CalibrationConfig(data="sa1b:sa1b", samples=128),
    )
