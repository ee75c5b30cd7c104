"""One side of `bench_sam.py`, in its own process: `icp_jax`, or transformers' torch classes.

python benchmarks/sam_sides.py jax|torch forward|phases IMAGES RESULT.npz
"""

from __future__ import annotations

import json
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np

SPARSITY, LR, GAMMA, EPOCHS = 0.7, 5e-4, 0.9, 1


def config_of(task: str) -> dict:
    """ViT-B; for the phases its first windowed and its first global block alone."""
    two = {"num_hidden_layers": 2, "global_attn_indexes": [1]}
    return {"model_type": "sam", "vision_config": {} if task == "forward" else two}


def weights(config: dict) -> dict[str, np.ndarray]:
    """Random tensors under Hugging Face's names, the same for both sides."""
    from converters import table_for

    rng, found = np.random.default_rng(0), {}
    for p in table_for("sam").place(config):
        value = rng.standard_normal(p.shape, np.float32)
        fan = float(np.prod(p.shape[1:])) ** 0.5 if len(p.shape) > 1 else 10.0
        found[p.name] = 1 + value / 10 if p.path[-1] == "scale" else value / np.float32(fan)
    return found


def images(count: int) -> np.ndarray:
    """Smooth noise, `[count, 3, 1024, 1024]`."""
    rng = np.random.default_rng(1)
    small = rng.standard_normal((count, 3, 64, 64), np.float32)
    return np.repeat(np.repeat(small, 16, 2), 16, 3)


def jax_model(config: dict):
    """The tree in memory, as `icp_jax.load` would give it."""
    from converters import table_for
    from converters.layout import plan_layout
    from converters.rules import insert
    from icp_jax.model import Model

    found, tree = weights(config), {}
    for p in table_for("sam").place(config):
        insert(tree, p.path, np.ascontiguousarray(p.to_tree(found[p.name])))
    layout = plan_layout({k: (v.dtype, v.shape) for k, v in found.items()}, {})
    return Model(config, tree, layout, Path())


def jax_forward(config: dict, pixels: np.ndarray):
    """One encoder pass, block by block, as the predictor runs it."""
    from icp_jax.vision.predictor import _apply

    model = jax_model(config)
    family, params = model.family, model.params

    def run():
        x = _apply(family.embed, params["embed"], pixels)
        for t in range(family.n_blocks):
            x = _apply(family.block_at(t), params["blocks"][str(t)], x)
        return np.asarray(_apply(family.head, params["head"], x))

    return run, {}


def jax_phases(config: dict, pixels: np.ndarray):
    """`icp_jax.prune`; its own clock says how long each phase took."""
    from icp_jax import CompensateConfig, PruneConfig, api

    model, seconds = jax_model(config), {}
    prune = PruneConfig(sparsity=SPARSITY, alpha=0.85)
    compensation = CompensateConfig(epochs=EPOCHS, lr=LR, gamma=GAMMA)

    def run():
        pruned, reports = api.prune(model, pixels, prune, compensation)
        seconds.clear()
        for report in reports:
            for phase, spent in report.seconds.items():
                seconds[phase] = seconds.get(phase, 0) + spent
        kernels = pruned.params["blocks"]["1"]
        return np.concatenate([np.ravel(kernels[k]["kernel"].T) for k in ("qkv", "lin2")])

    return run, seconds


def torch_encoder(config: dict):
    """transformers' encoder with the same weights."""
    import torch
    from transformers import SamConfig, SamModel

    encoder = SamModel(SamConfig(**config)).vision_encoder.eval()
    at = "vision_encoder."
    state = {k.removeprefix(at): v for k, v in weights(config).items() if k.startswith(at)}
    encoder.load_state_dict({k: torch.from_numpy(v) for k, v in state.items()})
    return encoder


def torch_forward(config: dict, pixels: np.ndarray):
    """One encoder pass."""
    import torch

    encoder, given = torch_encoder(config), torch.from_numpy(pixels)

    def run():
        with torch.no_grad():
            return encoder(given).last_hidden_state.permute(0, 2, 3, 1).numpy()

    return run, {}


def torch_phases(config: dict, pixels: np.ndarray):
    """The loop of ICP over transformers' layers."""
    import copy

    import torch
    import torch.nn.functional as F
    from torch_reference import advance, factor, sparsegpt

    from icp_jax import PruneConfig
    from icp_jax.models import make_family
    from icp_jax.planning.budgets import budgets

    family = make_family(config)
    width = family.hidden_size
    shapes = {"qkv": (width, 3 * width), "proj": (width, width)}
    shapes |= {"lin1": (width, 4 * width), "lin2": (4 * width, width)}
    budget = budgets(family, [shapes] * 2, PruneConfig(sparsity=SPARSITY, alpha=0.85))
    encoder, seconds = torch_encoder(config), {}
    stored = [copy.deepcopy(layer.state_dict()) for layer in encoder.layers]

    @contextmanager
    def clock(phase):
        started = time.perf_counter()
        yield
        seconds[phase] = seconds.get(phase, 0) + time.perf_counter() - started

    def linears(layer):
        return {
            "qkv": layer.attn.qkv,
            "proj": layer.attn.proj,
            "lin1": layer.mlp.lin1,
            "lin2": layer.mlp.lin2,
        }

    def moments(layer, stream):
        sums, rows = {}, len(stream) * stream.shape[1] * stream.shape[2]

        def hook(name):
            def see(module, inputs):
                x = inputs[0].reshape(-1, inputs[0].shape[-1])
                sums.setdefault(name, torch.zeros(x.shape[1], x.shape[1])).addmm_(x.T, x)

            return see

        hooks = [m.register_forward_pre_hook(hook(k)) for k, m in linears(layer).items()]
        with torch.no_grad():
            for k in range(len(stream)):
                layer(stream[k : k + 1])
        for handle in hooks:
            handle.remove()
        return {name: total / rows for name, total in sums.items()}

    def tune(layer, inputs, targets):
        adam = torch.optim.Adam(layer.parameters(), lr=LR, fused=True)
        for epoch in range(EPOCHS):
            adam.param_groups[0]["lr"] = LR * GAMMA**epoch
            for i in np.random.default_rng((0, 1, epoch)).permutation(len(inputs)):
                loss = F.mse_loss(layer(inputs[i : i + 1]), targets[i : i + 1])
                adam.zero_grad()
                loss.backward()
                adam.step()

    def run():
        seconds.clear()
        for layer, state in zip(encoder.layers, stored, strict=True):
            layer.load_state_dict(state)
        with torch.no_grad():
            sparse = encoder.patch_embed(torch.from_numpy(pixels)) + encoder.pos_embed
        dense = torch.empty_like(sparse)
        first, second = encoder.layers
        with clock("dense"):
            advance(first, sparse, 1, dense)
        for t, layer in enumerate((first, second)):
            with clock("statistics"):
                found = moments(layer, sparse)
            with clock("prune"), torch.no_grad():
                for name, linear in linears(layer).items():
                    upper, dead = factor(found.pop(name), 0.01)
                    linear.weight.copy_(sparsegpt(linear.weight, upper, dead, budget[t][name], 128))
            with clock("sparse"):
                advance(layer, sparse, 1, sparse)
            if t == 0:
                with clock("dense"):
                    advance(second, dense, 1, dense)
                with clock("compensate"):
                    tune(second, sparse, dense)
        kernels = linears(second)
        return np.concatenate([kernels[k].weight.detach().numpy().ravel() for k in ("qkv", "lin2")])

    return run, seconds


def child(side: str, task: str, count: int, result: Path) -> None:
    """Warm up, run for the clock, write what came out."""
    make = globals()[f"{side}_{task}"]
    run, phases = make(config_of(task), images(1 if task == "forward" else count))
    run()
    started = time.perf_counter()
    out = run()
    record = {"seconds": time.perf_counter() - started, "phases": dict(phases), "peak": peak()}
    np.savez(result, out=out, record=json.dumps(record))


def peak() -> int:
    """The most memory this process has held, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(x for x in lines if x.startswith("VmHWM")).split()[1])


if __name__ == "__main__":
    side, task, count, file = sys.argv[1:]
    child(side, task, int(count), Path(file))
