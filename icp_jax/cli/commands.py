"""The arguments of the commands that prune, as dataclasses, and the list of all commands.

The docstrings are the help texts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import tyro

from icp_jax.cli import options
from icp_jax.cli.model_commands import (
    Convert,
    Distill,
    Eval,
    Generate,
    Masks,
    Pack,
    Report,
    Segment,
    Unpack,
    Verify,
)


@options.described
@dataclass(frozen=True)
class Demo:
    """Prune the bundled model with all four methods and compare them.

    With --model, prune that language model by sparsegpt and icp, on bundled text.
    """

    model: str | None = None
    """Hugging Face folder or hub id, or a .gguf file, to prune instead. It takes minutes. Default:
    the bundled model."""
    out: str = "demo-out"
    """Output folder for the pruned checkpoints and the figure. Replaces an earlier demo there."""
    sparsity: float = 0.7
    """Fraction of weights to set to zero in the blocks' linear layers, in [0, 1)."""
    json: bool = False
    """Print the result as one JSON object instead of a table."""
    quiet: bool = False
    """Do not show progress."""


JSON = (bool, False, "Print the result as one JSON object instead of a table.")
QUIET = (bool, False, "Do not show progress.")
CONFIG = (
    str,
    "",
    "Config to start from: a Python file with get_config(), or the name of a bundled config. If "
    "you set another method or a pattern, the config's alpha, beta and rearrange are reset. "
    "Default: no config.",
)
MODEL = ("MODEL", "Hugging Face folder or hub id, a .gguf file, or a SAM .pth file.")

Prune = options.command(
    "Prune",
    "Prune a checkpoint block by block into a new folder.",
    {"model": MODEL, "out": ("OUT", "Output folder. It must not exist.")},
    {
        "method": {"config": CONFIG},
        "output": {
            "resume": (bool, False, "Continue an interrupted run into OUT after its last block."),
            "dry-run": (bool, False, "Print the zeros per layer and the cost, and write nothing."),
            "report-text": (
                str,
                "",
                "Prompt for the report: what the model writes after it, before and after pruning. "
                "Both models must fit into memory. Default: no text.",
            ),
            "track": (
                str,
                "",
                "Send each block's losses, errors, seconds and memory to jsonl, tensorboard, wandb "
                "or mlflow; several with commas. Files go to OUT.tracking. Default: none.",
            ),
            "json": JSON,
            "quiet": QUIET,
        },
        "hosts": {
            "hosts.coordinator": (
                str,
                "",
                "Address of process 0, to share a run among several hosts; auto takes it from "
                "Slurm, MPI or the TPU pod. Start the same command on each host, with its own "
                "--hosts.index. Default: one host.",
            ),
            "hosts.count": (
                int | None,
                None,
                "Number of processes. Required with --hosts.coordinator, except for auto.",
            ),
            "hosts.index": (
                int | None,
                None,
                "Index of this process, from 0; process 0 writes OUT. Required with "
                "--hosts.coordinator, except for auto.",
            ),
        },
    },
)

Plan = options.command(
    "Plan",
    "Estimate a run's memory, FLOPs, bytes moved and minimum time, phase by phase.",
    {"model": (MODEL[0], f"{MODEL[1]} Only its config.json is needed.")},
    {"method": {"config": CONFIG}, "output": {"json": JSON}},
)


@options.described
@dataclass(frozen=True)
class Sweep:
    """Prune and evaluate a model with many settings, with a record of every point."""

    sweep: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="SWEEP")]]
    """Python file with get_sweep(), or the name of a bundled sweep: table1, rearrangements,
    alpha_beta or lr_epochs."""
    out: str
    """Output folder for points.jsonl, with one line a point, and sweep.json."""
    model: str = ""
    """Hugging Face folder or hub id. Default: the sweep's."""
    calibration: str = ""
    """Calibration data. Default: the sweep's."""
    data: str = ""
    """Evaluation data. Default: the sweep's."""
    limit: int | None = None
    """Maximum number of evaluation windows, the first ones. Default: the sweep's, or all."""
    resume: bool = False
    """Skip the points that OUT records. For a search, also join the processes that work on it."""
    export_best: str = ""
    """Write the best point as a checkpoint into this folder. Default: no checkpoint."""
    engine: Literal["auto", "compiled", "streamed"] = "auto"
    """compiled: the whole model in memory. streamed: one block in memory. auto: compiled if it
    fits."""
    trials: int | None = None
    """Maximum number of points, recorded ones included. Default: the sweep's, or no limit."""
    budget: float | None = None
    """Minutes after which no further point starts. Default: the sweep's, or no limit."""
    objective: Literal["perplexity"] | None = None
    """What a search minimizes. Default: perplexity."""
    sampler: Literal["tpe", "cmaes", "grid", "qmc", "random"] | None = None
    """Sampler of a search. Default: the sweep's, or tpe."""
    json: bool = False
    """Print the result as one JSON object instead of a table."""
    quiet: bool = False
    """Do not show progress."""


COMMANDS: dict[str, type] = {
    "demo": Demo,
    "prune": Prune,
    "plan": Plan,
    "distill": Distill,
    "eval": Eval,
    "generate": Generate,
    "segment": Segment,
    "convert": Convert,
    "verify": Verify,
    "pack": Pack,
    "unpack": Unpack,
    "masks": Masks,
    "sweep": Sweep,
    "report": Report,
}

AnyCommand: Any = (
    Annotated[Demo, tyro.conf.subcommand("demo")]
    | Annotated[Prune, tyro.conf.subcommand("prune")]
    | Annotated[Plan, tyro.conf.subcommand("plan")]
    | Annotated[Distill, tyro.conf.subcommand("distill")]
    | Annotated[Eval, tyro.conf.subcommand("eval")]
    | Annotated[Generate, tyro.conf.subcommand("generate")]
    | Annotated[Segment, tyro.conf.subcommand("segment")]
    | Annotated[Convert, tyro.conf.subcommand("convert")]
    | Annotated[Verify, tyro.conf.subcommand("verify")]
    | Annotated[Pack, tyro.conf.subcommand("pack")]
    | Annotated[Unpack, tyro.conf.subcommand("unpack")]
    | Annotated[Masks, tyro.conf.subcommand("masks")]
    | Annotated[Sweep, tyro.conf.subcommand("sweep")]
    | Annotated[Report, tyro.conf.subcommand("report")]
)
