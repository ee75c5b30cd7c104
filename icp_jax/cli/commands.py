"""The command line's arguments, one dataclass a command; docstrings are the help texts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import tyro

from icp_jax.cli import options
from icp_jax.config import Dtype

Model = Annotated[str, tyro.conf.arg(metavar="MODEL")]


@dataclass(frozen=True)
class Demo:
    """Prune the bundled model with all four methods and compare them."""

    out: str = "demo-out"
    """Folder for the pruned checkpoints and the figure; an earlier demo there is replaced."""
    sparsity: float = 0.7
    """Share of zeros in the linears of the blocks, in [0, 1)."""
    json: bool = False
    """Print one JSON object on standard output instead of the table."""
    quiet: bool = False
    """Show no progress."""


JSON = (bool, False, "Print one JSON object on standard output, and nothing else there.")
QUIET = (bool, False, "Show no progress.")
CONFIG = (
    str,
    "",
    "Start from a config: a Python file with get_config(), or the name of one in the package. If "
    "you set another method or a pattern, the config's alpha, beta and rearrange are reset.",
)
MODEL = ("MODEL", "A Hugging Face folder or hub id, or one of SAM's .pth files.")

Prune = options.command(
    "Prune",
    "Prune a checkpoint block by block into a new folder.",
    {"model": MODEL, "out": ("OUT", "The folder to write. It must not exist.")},
    {
        "method": {"config": CONFIG},
        "output": {
            "resume": (bool, False, "Continue an interrupted run into OUT after its last block."),
            "dry-run": (bool, False, "Print the zeros of every layer and the cost. Write nothing."),
            "json": JSON,
            "quiet": QUIET,
        },
        "hosts": {
            "hosts.coordinator": (
                str,
                "",
                "Address of process 0, to share a run among several hosts. Start the same "
                "command on each, with its own --hosts.index. auto: as Slurm, MPI or the pod says.",
            ),
            "hosts.count": (int | None, None, "Number of processes."),
            "hosts.index": (int | None, None, "This process, from 0. Process 0 writes OUT."),
        },
    },
)

Plan = options.command(
    "Plan",
    "Show what a run needs: memory, FLOPs, bytes moved and the least time, phase by phase.",
    {"model": (MODEL[0], f"{MODEL[1]} Its config.json is enough.")},
    {"method": {"config": CONFIG}, "output": {"json": JSON}},
)


@dataclass(frozen=True)
class Eval:
    """Perplexity of a language model, IoU of SAM's masks, by the field's protocols."""

    model: tyro.conf.Positional[Model]
    """A Hugging Face folder or hub id, or a .pth file of SAM's."""
    data: str
    """wikitext2, ptb, c4, or a path: .txt, .jsonl[.gz], .npy of token ids, or an Arrow folder.
    For SAM sa1b:DIR or coco:DIR."""
    seq_len: int | None = None
    """Tokens a window. Unset: the model's context, at most 2048."""
    prompt: Literal["point", "box"] | None = None
    """SAM: what points at each object. Unset: point.
    Points: SA-1B's own; for COCO drawn inside the mask."""
    limit: int | None = None
    """SAM: at most so many images."""
    seed: int | None = None
    """SAM: of the points that are drawn. Unset: 0."""
    dtype: Dtype = "auto"
    """What blocks compute in; auto is bfloat16 on GPU and TPU, float32 on CPU."""
    json: bool = False
    """Print one JSON object on standard output, and nothing else there."""
    quiet: bool = False
    """Show no progress."""


@dataclass(frozen=True)
class Segment:
    """Segment one object of an image with SAM, and paint its mask over it."""

    model: tyro.conf.Positional[Model]
    """A Hugging Face folder or hub id, or a .pth file of SAM's."""
    image: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="IMAGE")]]
    """An image file."""
    out: str
    """The image to write; it must not exist."""
    point: Annotated[str | None, tyro.conf.arg(metavar="X,Y")] = None
    """x,y of a pixel of the object, from the top left corner."""
    box: Annotated[str | None, tyro.conf.arg(metavar="X0,Y0,X1,Y1")] = None
    """x0,y0,x1,y1: the object's left, top, right and bottom."""
    dtype: Dtype = "auto"
    """What the encoder computes in; auto is bfloat16 on GPU and TPU, float32 on CPU."""
    json: bool = False
    """Print one JSON object on standard output, and nothing else there."""


@dataclass(frozen=True)
class Convert:
    """Hugging Face folder to Orbax checkpoint of the Flax tree, or back; both ways bit-exact."""

    src: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="SRC")]]
    """A Hugging Face folder or hub id, or a folder that this command wrote."""
    dst: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="DST")]]
    """The folder to write; it must not exist."""
    json: bool = False
    """Print one JSON object on standard output, and nothing else there."""


@dataclass(frozen=True)
class Verify:
    """Re-read a pruned folder: sparsity, pattern, values that are not finite, what changed."""

    folder: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="DIR")]]
    """A Hugging Face folder."""
    source: str = ""
    """The checkpoint it was made from: says which tensors changed."""
    json: bool = False
    """Print one JSON object on standard output, and nothing else there."""


COMMANDS: dict[str, type] = {
    "demo": Demo,
    "prune": Prune,
    "plan": Plan,
    "eval": Eval,
    "segment": Segment,
    "convert": Convert,
    "verify": Verify,
}

AnyCommand: Any = (
    Annotated[Demo, tyro.conf.subcommand("demo")]
    | Annotated[Prune, tyro.conf.subcommand("prune")]
    | Annotated[Plan, tyro.conf.subcommand("plan")]
    | Annotated[Eval, tyro.conf.subcommand("eval")]
    | Annotated[Segment, tyro.conf.subcommand("segment")]
    | Annotated[Convert, tyro.conf.subcommand("convert")]
    | Annotated[Verify, tyro.conf.subcommand("verify")]
)
