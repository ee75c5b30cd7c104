"""The arguments of each command, as dataclasses. The docstrings are the help texts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import tyro

from icp_jax.cli import options
from icp_jax.config import Dtype

Model = Annotated[str, tyro.conf.arg(metavar="MODEL")]


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
class Eval:
    """Measure the perplexity of a language model, its accuracy in zero-shot tasks, or the IoU of
    SAM's masks.

    Losses are in nats per token. The standard error is over windows, or over questions."""

    model: tyro.conf.Positional[Model]
    """Hugging Face folder or hub id, a .gguf file, or a SAM .pth file."""
    data: str = ""
    """Evaluation data: wikitext2, ptb, c4, or a path to .txt, .jsonl[.gz], .npy token ids or an
    Arrow folder. For SAM: sa1b:DIR or coco:DIR. Give this or --tasks."""
    tasks: str = ""
    """Zero-shot tasks of lm-eval, with commas, such as boolq,rte. Needs pip install
    'icp-jax[zeroshot]'. Default: none."""
    task_data: str = ""
    """Folder with the tasks' sets. Default: the hub."""
    seq_len: int | None = None
    """Tokens per window.
    Default: the rows' length of a 2-D .npy, else the model's context, at most 2048."""
    against: Annotated[str, tyro.conf.arg(metavar="DENSE")] = ""
    """A second model with the same vocabulary and tokenizer, such as the dense one: also measure
    the KL divergence from its predictions (not for SAM). Default: no comparison."""
    prompt: Literal["point", "box"] | None = None
    """Prompt for each object (SAM only). Points are SA-1B's own, or drawn inside COCO's masks.
    Default: point."""
    limit: int | None = None
    """Maximum number of windows, of images, or of questions in each task, the first ones.
    Default: all."""
    seed: int | None = None
    """Random seed for drawing points (SAM on COCO only). Default: 0."""
    dtype: Dtype = "auto"
    """Compute dtype of the blocks. auto: bfloat16 on GPU and TPU, float32 on CPU."""
    json: bool = False
    """Print the result as one JSON object instead of text."""
    quiet: bool = False
    """Do not show progress."""


@options.described
@dataclass(frozen=True)
class Generate:
    """Let a language model continue a text, or answer a chat message."""

    model: tyro.conf.Positional[Model]
    """Hugging Face folder or hub id."""
    prompt: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="[PROMPT]")]] = ""
    """Text to continue. Default: standard input if it is piped, else the start of a text."""
    tokens: int = 64
    """Maximum number of new tokens."""
    temperature: float = 0.0
    """Randomness: 0 takes the likeliest token each time, 1 draws as the model predicts."""
    top_p: float = 1.0
    """Draw only from the likeliest tokens, which hold this probability together, in (0, 1]."""
    seed: int = 0
    """Random seed for drawing."""
    chat: bool = False
    """Format the prompt as a message by the tokenizer's chat template."""
    compare: Annotated[str, tyro.conf.arg(metavar="DENSE")] = ""
    """Second model, such as the dense one; both texts are shown side by side. Default: none."""
    dtype: Dtype = "auto"
    """Compute dtype of the blocks. auto: bfloat16 on GPU and TPU, float32 on CPU."""
    json: bool = False
    """Print the result as one JSON object instead of text."""
    quiet: bool = False
    """Do not report the speed."""


@options.described
@dataclass(frozen=True)
class Segment:
    """Segment one object of an image with SAM and write the image with its mask."""

    model: tyro.conf.Positional[Model]
    """Hugging Face folder or hub id, a .gguf file, or a SAM .pth file."""
    image: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="IMAGE")]]
    """Image file."""
    out: str
    """Output image. It must not exist."""
    point: Annotated[str | None, tyro.conf.arg(metavar="X,Y")] = None
    """A point on the object, in pixels from the top left corner. Default: use --box."""
    box: Annotated[str | None, tyro.conf.arg(metavar="X0,Y0,X1,Y1")] = None
    """The object's left, top, right and bottom, in pixels. Default: use --point."""
    dtype: Dtype = "auto"
    """Compute dtype of the encoder. auto: bfloat16 on GPU and TPU, float32 on CPU."""
    json: bool = False
    """Print the result as one JSON object instead of text."""


@options.described
@dataclass(frozen=True)
class Convert:
    """Convert a Hugging Face folder to an Orbax checkpoint of the Flax tree, or back; bit-exact.

    A .gguf file becomes a Hugging Face folder, with its tokenizer.
    """

    src: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="SRC")]]
    """Hugging Face folder or hub id, a folder that this command wrote, or a .gguf file (any part
    of a split one)."""
    dst: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="DST")]]
    """Output folder. It must not exist."""
    dtype: Literal["float16", "bfloat16", "float32"] | None = None
    """Dtype of the tensors (.gguf only). Default: float16."""
    json: bool = False
    """Print the result as one JSON object instead of text."""


@options.described
@dataclass(frozen=True)
class Verify:
    """Check a pruned folder: sparsity, n:m patterns, non-finite values, changed tensors."""

    folder: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="DIR")]]
    """Hugging Face folder."""
    source: str = ""
    """Dense checkpoint to compare with, to list the tensors that changed. Default: no
    comparison."""
    json: bool = False
    """Print the result as one JSON object instead of a table."""


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


@options.described
@dataclass(frozen=True)
class Report:
    """Make the report of a run, a demo or a sweep anew, or compare several runs in one page."""

    folders: tyro.conf.Positional[Annotated[tuple[str, ...], tyro.conf.arg(metavar="DIR")]]
    """Output folders of prune, demo or sweep."""
    out: Annotated[str, tyro.conf.arg(metavar="FILE")] = ""
    """The HTML file. An earlier report there is replaced. Default: report.html in DIR, or in the
    current folder for several."""
    json: bool = False
    """Print the result as one JSON object instead of text."""


COMMANDS: dict[str, type] = {
    "demo": Demo,
    "prune": Prune,
    "plan": Plan,
    "eval": Eval,
    "generate": Generate,
    "segment": Segment,
    "convert": Convert,
    "verify": Verify,
    "sweep": Sweep,
    "report": Report,
}

AnyCommand: Any = (
    Annotated[Demo, tyro.conf.subcommand("demo")]
    | Annotated[Prune, tyro.conf.subcommand("prune")]
    | Annotated[Plan, tyro.conf.subcommand("plan")]
    | Annotated[Eval, tyro.conf.subcommand("eval")]
    | Annotated[Generate, tyro.conf.subcommand("generate")]
    | Annotated[Segment, tyro.conf.subcommand("segment")]
    | Annotated[Convert, tyro.conf.subcommand("convert")]
    | Annotated[Verify, tyro.conf.subcommand("verify")]
    | Annotated[Sweep, tyro.conf.subcommand("sweep")]
    | Annotated[Report, tyro.conf.subcommand("report")]
)
