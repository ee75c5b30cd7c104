"""The algorithm of `icp_jax` in plain PyTorch: what `bench_prune.py` compares with, on the CPU,
and `bench_gpu.py`.

OPT's and Llama's decoder layers, the two streams, SparseGPT and compensation, in float32 and as
a PyTorch user would write them. It does no more work than it must: linears of one input share
one second moment and one factor, statistics stop before the last linear, attention is eager or
fused, Adam is the fused one, and the reports of `icp_jax` (errors of layers and streams, losses
on a probe) are left out.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable
from contextlib import contextmanager
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F

Params = dict[str, torch.Tensor]


def from_tree(tree: dict[str, dict[str, np.ndarray]]) -> Params:
    """A block of `icp_jax` with PyTorch's names; weights are `[out, in]`."""
    names = {"kernel": "weight", "scale": "weight", "bias": "bias"}
    return {
        f"{module}.{names[leaf]}": torch.from_numpy(np.ascontiguousarray(array.T))
        for module, leaves in tree.items()
        for leaf, array in leaves.items()
    }


# ---------------------------------------------------------------- the blocks

See = Callable[[str, torch.Tensor], None]


class Block(ABC):
    """A decoder layer, `[b, t, D]` to `[b, t, D]`: what the families share.

    attention: "eager", the whole score matrix, or "fused", PyTorch's own kernel.
    """

    taps: ClassVar[dict[str, tuple[str, ...]]]  # tap -> the linears that read it, in order
    last: ClassVar[str]  # the linear that writes to the residual stream at the end

    def __init__(self, hidden: int, heads: int, length: int, attention: str):
        self.heads, self.fused = heads, attention == "fused"
        self.mask = torch.full((length, length), float("-inf")).triu(1)

    def __call__(self, p: Params, x: torch.Tensor) -> torch.Tensor:
        x, y = self.hidden(p, x)
        return x + _linear(p, self.last, y)

    @abstractmethod
    def hidden(self, p: Params, x: torch.Tensor, see: See = lambda tap, y: None):
        """(the residual stream, the input of the last linear); `see` is shown every tap."""

    def split(self, y):
        return y.view(*y.shape[:2], self.heads, -1).transpose(1, 2)

    def attend(self, q, k, v):
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2) + self.mask
            y = torch.softmax(scores, -1) @ v
        return y.transpose(1, 2).flatten(2)


class OptBlock(Block):
    """Layer norm before, biases, ReLU."""

    taps: ClassVar = {
        "qkv_in": ("q_proj", "k_proj", "v_proj"),
        "out_in": ("out_proj",),
        "fc1_in": ("fc1",),
        "fc2_in": ("fc2",),
    }
    last = "fc2"

    def hidden(self, p, x, see=lambda tap, y: None):
        y = _norm(p, "self_attn_layer_norm", x)
        see("qkv_in", y)
        y = self.attend(*(self.split(_linear(p, name, y)) for name in self.taps["qkv_in"]))
        see("out_in", y)
        x = x + _linear(p, "out_proj", y)
        y = _norm(p, "final_layer_norm", x)
        see("fc1_in", y)
        y = F.relu(_linear(p, "fc1", y))
        see("fc2_in", y)
        return x, y


class LlamaBlock(Block):
    """RMS norm before, rotary positions, SwiGLU."""

    taps: ClassVar = {
        "qkv_in": ("q_proj", "k_proj", "v_proj"),
        "o_in": ("o_proj",),
        "gate_up_in": ("gate_proj", "up_proj"),
        "down_in": ("down_proj",),
    }
    last = "down_proj"

    def __init__(self, hidden, heads, length, attention):
        super().__init__(hidden, heads, length, attention)
        size = hidden // heads
        rates = 10000.0 ** (-torch.arange(0, size, 2) / size)
        angles = torch.outer(torch.arange(length).float(), rates).repeat(1, 2)
        self.cos, self.sin = angles.cos(), angles.sin()

    def hidden(self, p, x, see=lambda tap, y: None):
        y = _rms(p, "input_layernorm", x)
        see("qkv_in", y)
        q, k, v = (self.split(_linear(p, name, y)) for name in self.taps["qkv_in"])
        y = self.attend(self.turn(q), self.turn(k), v)
        see("o_in", y)
        x = x + _linear(p, "o_proj", y)
        y = _rms(p, "post_attention_layernorm", x)
        see("gate_up_in", y)
        y = F.silu(_linear(p, "gate_proj", y)) * _linear(p, "up_proj", y)
        see("down_in", y)
        return x, y

    def turn(self, y):
        first, second = y.chunk(2, -1)
        return y * self.cos + torch.cat((-second, first), -1) * self.sin


BLOCKS = {"opt": OptBlock, "llama": LlamaBlock}


def _linear(p: Params, name: str, x):
    return F.linear(x, p[f"{name}.weight"], p.get(f"{name}.bias"))


def _norm(p: Params, name: str, x):
    return F.layer_norm(x, x.shape[-1:], p[f"{name}.weight"], p[f"{name}.bias"], 1e-5)


def _rms(p: Params, name: str, x):
    return F.rms_norm(x, x.shape[-1:], p[f"{name}.weight"], 1e-6)


# ---------------------------------------------------------------- SparseGPT


def factor(second: torch.Tensor, damping: float) -> tuple[torch.Tensor, torch.Tensor]:
    """(U, dead) of H = 2·E[x xᵀ], damped, with H⁻¹ = Uᵀ U."""
    h = 2.0 * second
    diagonal = h.diagonal()
    dead = diagonal == 0
    diagonal[dead] = 1.0
    diagonal += damping * diagonal.mean()
    h = torch.cholesky_inverse(torch.linalg.cholesky(h))
    return torch.linalg.cholesky(h, upper=True), dead


def sparsegpt(
    weight: torch.Tensor, upper: torch.Tensor, dead: torch.Tensor, zeros: int, width: int
) -> torch.Tensor:
    """Prune `zeros` entries of `weight` `[out, in]`, in equal shares of `width` inputs a time."""
    w = weight.T.contiguous()  # [in, out]: what the walk touches lies together
    w[dead] = 0.0
    inputs = len(w)
    for start in range(0, inputs, width):
        end = min(start + width, inputs)
        u, w1 = upper[start:end, start:end], w[start:end]
        diagonal = u.diagonal()
        scores = (w1 / diagonal[:, None]).square()
        count = zeros * end // inputs - zeros * start // inputs
        gone = torch.zeros_like(scores, dtype=torch.bool)
        if count:
            gone = scores <= scores.flatten().kthvalue(count).values
        errors = torch.zeros_like(w1)
        for i in range(end - start):
            errors[i] = torch.where(gone[i], w1[i], 0.0) / diagonal[i]
            w1[i + 1 :].addr_(u[i, i + 1 :], errors[i], alpha=-1)
        w1.masked_fill_(gone, 0.0)
        w[end:].addmm_(upper[start:end, end:].T, errors, alpha=-1)
    return w.T.contiguous()


# ---------------------------------------------------------------- the loop


def advance(step: Callable, stream: torch.Tensor, batch: int, out: torch.Tensor) -> None:
    """`out = step(stream)`, `batch` samples at a time; the two may be one tensor."""
    with torch.no_grad():
        for start in range(0, len(stream), batch):
            out[start : start + batch] = step(stream[start : start + batch])


def second_moments(block: Block, p: Params, stream: torch.Tensor, batch: int) -> Params:
    """Mean of x xᵀ over all tokens, by tap."""
    sums: Params = {}

    def add(tap, y):
        rows = y.reshape(-1, y.shape[-1]).float()
        if tap not in sums:
            sums[tap] = torch.zeros(rows.shape[1], rows.shape[1])
        sums[tap].addmm_(rows.T, rows)

    with torch.no_grad():
        for start in range(0, len(stream), batch):
            block.hidden(p, stream[start : start + batch], add)
    return {tap: total / (len(stream) * stream.shape[1]) for tap, total in sums.items()}


def compensate(
    block: Block, p: Params, inputs, targets, seed: tuple[int, int], epochs: int, lr, gamma
) -> Params:
    """Adam on the mean squared error, one sample a step, in `icp_jax.compensate`'s order."""
    p = {name: leaf.clone().requires_grad_() for name, leaf in p.items()}
    adam = torch.optim.Adam(p.values(), lr=lr, fused=True)
    for epoch in range(epochs):
        adam.param_groups[0]["lr"] = lr * gamma**epoch
        for i in np.random.default_rng((*seed, epoch)).permutation(len(inputs)):
            loss = F.mse_loss(block(p, inputs[i : i + 1]), targets[i : i + 1])
            adam.zero_grad()
            loss.backward()
            adam.step()
    return {name: leaf.detach() for name, leaf in p.items()}


def prune_blocks(
    blocks: list[Params],
    embed: dict[str, torch.Tensor],
    tokens: torch.Tensor,
    budgets: list[dict[str, int]],
    *,
    family: str,
    hidden: int,
    heads: int,
    attention: str,
    batch: int,
    epochs: int,
    lr: float,
    gamma: float,
    damping: float,
    width: int,
    seed: int,
    sink: Callable[[int, Params], None] = lambda t, p: None,
) -> tuple[torch.Tensor, torch.Tensor, dict[str, float]]:
    """The loop of ICP over stored `blocks`; returns (sparse, dense, seconds by phase)."""
    seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def clock(phase):
        started = time.perf_counter()
        yield
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds[phase] += time.perf_counter() - started

    length = tokens.shape[1]
    block = BLOCKS[family](hidden, heads, length, attention)
    positions = embed["positions"][2 : length + 2] if "positions" in embed else torch.zeros(())
    sparse = torch.empty(*tokens.shape, hidden)
    advance(lambda ids: F.embedding(ids, embed["tokens"]) + positions, tokens, batch, sparse)
    p, dense = blocks[0], torch.empty_like(sparse)
    with clock("dense"):
        advance(lambda x: block(p, x), sparse, batch, dense)
    for t, budget in enumerate(budgets):
        with clock("statistics"):
            moments = second_moments(block, p, sparse, batch)
        with clock("prune"):
            p = dict(p)
            for tap, linears in block.taps.items():
                upper, dead = factor(moments.pop(tap), damping)
                for name in linears:
                    key = f"{name}.weight"
                    p[key] = sparsegpt(p[key], upper, dead, budget[name], width)
            del upper, dead
        with clock("sparse"):
            advance(lambda x: block(p, x), sparse, batch, sparse)  # noqa: B023
        sink(t, p)
        if t + 1 == len(budgets):
            break
        with clock("dense"):
            p = blocks[t + 1]
            advance(lambda x: block(p, x), dense, batch, dense)  # noqa: B023
        if epochs:
            with clock("compensate"):
                p = compensate(block, p, sparse, dense, (seed, t + 1), epochs, lr, gamma)
    return sparse, dense, dict(seconds)
