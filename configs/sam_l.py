"""SAM ViT-L at 70 %, with the settings that the paper gives for ViT-B.

    icp-jax prune sam_vit_l_0b3195.pth sam-l-70 --config sam_l --data sa1b:DIR
    icp-jax eval sam-l-70 --data coco:DIR --prompt point

Uses 128 images of 1024² from SA-1B, and the model as Meta's `.pth` file or facebook/sam-vit-large
from the hub. Not yet run with this package; the paper has results for SAM-H only, see sam_h.
Add `--dry-run` for the cost.
"""

from icp_jax import CalibrationConfig, CompensateConfig, PruneConfig, RunConfig


def get_config() -> RunConfig:
    return RunConfig(
        model="facebook/sam-vit-large",
        prune=PruneConfig(method="icp", sparsity=0.7, alpha=0.85, beta=0.0),
        compensate=CompensateConfig(epochs=8, lr=5e-4, gamma=0.9),
        calibration=CalibrationConfig(data="sa1b:sa1b", samples=128),
    )
