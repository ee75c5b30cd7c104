"""The steps of a global pass with one block on the device, see `streaming.distill`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from icp_jax.backend import heap
from icp_jax.core import distill_steps
from icp_jax.core.compensate import State
from icp_jax.core.distill_steps import Steps
from icp_jax.core.kl import weights
from icp_jax.core.passes import Apply, Params
from icp_jax.streaming import hidden, passes, storage, transfer, tune
from icp_jax.streaming.hidden import Group, WholeSource
from icp_jax.streaming.storage import Samples, Stream

forward = jax.jit(distill_steps.forward, static_argnums=0)
losses = jax.jit(distill_steps.losses, static_argnums=0)
loss_and_slope = jax.jit(distill_steps.loss_and_slope, static_argnums=0)
backward = jax.jit(distill_steps.backward, static_argnums=(0, 1), donate_argnums=2)

Tick = Callable[[int, int, float | None], None]  # done, total, mean loss of the epoch
ONE = 1  # window at a time, as in `core.distill`
TIMES = 4  # of a forward pass, for a window of a step: forward, the same again, and backward


@dataclass(frozen=True)
class Pass:
    """The settings of a global pass."""

    steps: Steps
    dtype: str = "float32"  # compute dtype of the blocks
    place: str = "auto"  # of the hidden states: device, host or disk
    folder: Path | None = None  # for hidden states on disk


class Now:
    """A model of these blocks, with the embedding and the head of another."""

    def __init__(self, source: WholeSource, blocks: list[Params]):
        self.family, self.blocks = source.family, blocks
        self.embed, self.head = source.embed, source.head

    def block(self, t: int) -> Params:
        return self.blocks[t]

    def forget(self) -> None:
        """Do nothing: the blocks stay in memory."""


class Distillation:
    """The hidden states and the blocks of a pass, and its steps.

    windows: those to tune on `[N, T]`, and those held out `[M, T]`. tick: called with forward
    passes of a window through a block, done and in all. states: of the blocks; None: as pruned.
    """

    def __init__(
        self,
        pruned: WholeSource,
        dense: WholeSource,
        windows: tuple[np.ndarray, np.ndarray],
        given: Pass,
        tick: Tick,
        states: list[State] | None = None,
    ):
        self.pruned, self.family, self.given, self.tick = pruned, pruned.family, given, tick
        tokens, self.heldout = windows
        epochs, count, size = given.steps.order.shape
        self.n_blocks, self.count = self.family.n_blocks, int(count)
        self.of_step, of_heldout = TIMES * self.n_blocks * size, self.n_blocks * len(self.heldout)
        self.of_epoch, self.done = self.count * self.of_step + of_heldout, 0
        self.total = self.n_blocks * len(tokens) + 2 * of_heldout + epochs * self.of_epoch
        self.states = self._started() if states is None else list(states)
        kept = (self.n_blocks, size, tokens.shape[1], self.family.hidden_size)
        self.place = self._place(tokens.size + self.heldout.size, int(np.prod(kept)))
        samples, held = (Group(each, ONE) for each in windows)
        (self.first,) = hidden.embedded(pruned, [samples], self.place, given.folder)
        self.target, self.beyond = self._passed(dense, [samples, held])
        self.inputs = storage.empty(kept, "float32", self.place, given.folder)
        ours, theirs = (weights(self.family, s.embed(), s.head()) for s in (pruned, dense))
        self.alike = jax.tree.all(jax.tree.map(np.array_equal, ours, theirs))
        self.weights = ours, theirs

    def _started(self) -> list[State]:
        found = []
        for t in range(self.n_blocks):
            state = tune.start(passes.to_device(self.pruned.block(t)))
            found.append(jax.device_get(transfer.settle(state)))
            self.pruned.forget()
        return found

    def _place(self, positions: int, kept: int) -> storage.Place:
        """Where the hidden states go. kept: numbers of the inputs of a step."""
        needed = 4 * (2 * positions * self.family.hidden_size + kept)
        room = storage.device_free() // 2, storage.host_free() // 2
        return storage.choose(self.given.place, needed, *room)

    def _passed(self, source: WholeSource, groups: list[Group]) -> list[Stream]:
        """The hidden states after the last block."""
        before, given = self.done, self.given

        def tick(done: int) -> None:
            self._told(before + done)

        return hidden.of_groups(source, groups, given.dtype, self.place, tick, given.folder)

    def _told(self, done: int, loss: float | None = None) -> None:
        self.done = done
        self.tick(done, self.total, loss)

    def _heads(self) -> tuple[Any, Any]:
        """The output layers of both models on the device; equal ones are sent once."""
        ours, theirs = self.weights
        sent = jax.device_put(ours, storage.here())
        return sent, sent if self.alike else jax.device_put(theirs, storage.here())

    def snapshot(self) -> Now:
        """The model as it is now, in its stored dtypes."""
        found = []
        for t, state in enumerate(self.states):
            found.append(jax.tree.map(passes.stored, state.params, self.pruned.block(t)))
            self.pruned.forget()
        return Now(self.pruned, found)

    def measure(self, model: WholeSource) -> np.float32:
        """Mean loss of a model on the held-out windows."""
        (after,) = self._passed(model, [Group(self.heldout, ONE)])
        heads = self._heads()
        found = [
            losses(self.family.head, *heads, x, y)
            for _, (x, y), _ in transfer.batches([after, self.beyond], ONE)
        ]
        return np.mean(np.concatenate(jax.device_get(found)), dtype=np.float32)

    def epoch(self, epoch: int) -> Float[np.ndarray, "S"]:
        """The steps of an epoch; their losses, NaN after one that is not finite."""
        order, rates = self.given.steps
        found = np.full(self.count, np.nan, np.float32)
        self.done = self.total - (len(order) - epoch) * self.of_epoch
        for k, (samples, rate) in enumerate(zip(order[epoch], rates[epoch], strict=True)):
            found[k] = self.step(np.asarray(samples), np.float32(rate))
            if k == 0:
                heap.give_back()  # the compiler's memory
            self._told(self.done + self.of_step, float(np.mean(found[: k + 1])))
            if not np.isfinite(found[k]):
                break
        return found

    def step(self, samples: np.ndarray, rate: np.float32) -> np.float32:
        """One step; the loss before it."""
        there = storage.here()
        x = jax.device_put(self.first[samples], there)
        for t, state in enumerate(self.states):
            self._keep(t, x)
            x = forward(self.apply(t), jax.device_put(state.params, there), x)
            transfer.settle(x)
        target = jax.device_put(self.target[samples], there)
        loss, slope = loss_and_slope(self.family.head, *self._heads(), x, target)
        at = jax.device_put(rate, there)
        for t in reversed(range(self.n_blocks)):
            state, x = jax.device_put((self.states[t], self.inputs[t : t + 1]), there)
            state, slope = backward(self.family, self.apply(t), state, at, x[0], slope)
            self.states[t] = jax.device_get(transfer.settle(state))
            del state
        for stream in (self.first, self.target, self.inputs):
            storage.forget(stream)
        return np.float32(loss)

    def apply(self, t: int) -> Apply:
        return Apply(self.family.block_at(t), self.given.dtype)

    def _keep(self, t: int, x: jax.Array) -> None:
        """Keep the input of block t for the way back."""
        value: Any = x[None] if isinstance(self.inputs, Samples) else np.asarray(x)[None]
        self.inputs[t : t + 1] = value
