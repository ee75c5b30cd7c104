"""The command line's arguments, one dataclass a command; docstrings are the help texts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro

from icp_jax.config import Dtype, RunConfig

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


@dataclass(frozen=True)
class Hosts:
    """A run that several processes share, one a host: each is given the same command but index."""

    coordinator: str = ""
    """HOST:PORT on which process 0 listens; auto where Slurm, Open MPI or a TPU pod say it all."""
    count: int | None = None
    """How many processes there are."""
    index: int | None = None
    """Which of them this is, from 0. The first one writes the result."""


@dataclass(frozen=True)
class Prune(RunConfig):
    """Prune a Hugging Face checkpoint, block by block, into a new folder."""

    config: str = ""
    """Start from a config: a Python file with get_config(), or the name of one in the package. If
    you set another method or a pattern, what the config chose for its own is unset."""
    resume: bool = False
    """Go on after the last block that an interrupted run into the same folder finished."""
    hosts: Hosts = field(default_factory=Hosts)
    dry_run: bool = False
    """Print targets, counts and cost, and touch nothing."""
    json: bool = False
    """Print one JSON object on standard output, and nothing else there."""


@dataclass(frozen=True)
class Plan(RunConfig):
    """Memory by phase, FLOPs, bytes moved and the least time of a prune, and settings that fit."""

    config: str = ""
    """Start from a config: a Python file with get_config(), or the name of one in the package. If
    you set another method or a pattern, what the config chose for its own is unset."""
    device_memory: str = ""
    """What the run may take of the device's memory, such as 8GiB. Unset: what is free there."""
    host_memory: str = ""
    """What it may take of the host's memory. Unset: what is free."""
    json: bool = False
    """Print one JSON object on standard output, and nothing else there."""


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

AnyCommand = (
    Annotated[Demo, tyro.conf.subcommand("demo")]
    | Annotated[Prune, tyro.conf.subcommand("prune")]
    | Annotated[Plan, tyro.conf.subcommand("plan")]
    | Annotated[Eval, tyro.conf.subcommand("eval")]
    | Annotated[Segment, tyro.conf.subcommand("segment")]
    | Annotated[Convert, tyro.conf.subcommand("convert")]
    | Annotated[Verify, tyro.conf.subcommand("verify")]
)
