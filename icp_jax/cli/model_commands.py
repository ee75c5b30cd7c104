"""The arguments of the commands that take a model as it is: measure, use, convert or check it.

The docstrings are the help texts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from icp_jax.cli import options
from icp_jax.config import Dtype

Model = Annotated[str, tyro.conf.arg(metavar="MODEL")]


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
class Distill:
    """Tune all blocks of a pruned model together, until it predicts what the dense one does.

    The zeros stay. One block is on the device at a time; the others lie in host memory with Adam's
    moments, 12 bytes a parameter. The last tenth of the windows is held out, and decides which
    epoch is written.
    """

    pruned: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="PRUNED")]]
    """Hugging Face folder of the pruned model. It stays as it is."""
    dense: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="DENSE")]]
    """Hugging Face folder or hub id of the model that was pruned."""
    out: str
    """Output folder. It must not exist."""
    data: str = "c4"
    """Text: c4, wikitext2, ptb, or a path to .txt, .jsonl[.gz], .npy token ids or an Arrow folder;
    or self:N, for N windows that the dense model writes."""
    samples: int | None = None
    """Number of windows, with those that are held out.
    Default: 128, or all rows if the data is at most 128 token rows of exactly one window."""
    seq_len: int | None = None
    """Tokens per window.
    Default: the rows' length of a 2-D .npy, else the model's context, at most 2048."""
    epochs: int = 1
    """Passes over the windows."""
    lr: float = 5e-4
    """Highest learning rate of Adam: it rises over a tenth of the steps, and falls as a cosine."""
    batch: int = 1
    """Windows of a step."""
    seed: int = 0
    """Random seed for drawing the windows and for their order."""
    streams: Literal["auto", "device", "host", "disk"] = "auto"
    """Where the hidden states are kept. auto: the first of device, host and disk with room."""
    dtype: Dtype = "auto"
    """Compute dtype of the blocks. auto: bfloat16 on GPU and TPU, float32 on CPU."""
    json: bool = False
    """Print the record as one JSON object instead of text."""
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
class Pack:
    """Write a pruned folder with its zeros packed, so that they take one bit or less each.

    Every command reads the result as it reads the folder. unpack restores it, byte for byte; of
    an Orbax checkpoint, the tree with the same bits.
    """

    folder: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="DIR")]]
    """Hugging Face folder of safetensors, hub id, or Orbax checkpoint that convert wrote."""
    out: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="OUT")]]
    """Output folder. It must not exist."""
    bits: Literal[4, 8] | None = None
    """Bits of the non-zeros, as integers with a scale for each group of inputs. Exact for weights
    that prune --bits has put on such a grid; others are rounded. Default: not rounded, as they are
    stored."""
    format: Literal["packed", "macko"] = "packed"
    """packed: safetensors, exact, for icp-jax. macko: macko.pt, in float16, for the CUDA kernels of
    MACKO-SpMV (Llama and Mistral; needs torch)."""
    json: bool = False
    """Print the sizes, of every layer too, as one JSON object instead of a table."""


@options.described
@dataclass(frozen=True)
class Unpack:
    """Write the folder that pack was given again, byte for byte."""

    folder: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="DIR")]]
    """Folder that pack wrote."""
    out: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="OUT")]]
    """Output folder. It must not exist."""
    json: bool = False
    """Print the result as one JSON object instead of text."""


@options.described
@dataclass(frozen=True)
class Masks:
    """Write the masks of a pruned folder's zeros, for training in torch or in JAX.

    torch.safetensors has them by torch's names, flax.safetensors by Flax's, both as packed bits.
    """

    folder: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="DIR")]]
    """Hugging Face folder, or hub id, of a pruned model."""
    out: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="OUT")]]
    """Output folder. It must not exist."""
    json: bool = False
    """Print the result as one JSON object instead of text."""


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
