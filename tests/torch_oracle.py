"""transformers' torch classes as the oracle: models with random weights, and what they compute.

Import it inside a test: without torch that skips the test.
"""

import json

import numpy as np
import pytest

from converters import table_for
from converters.rules import insert

torch = pytest.importorskip("torch")


def model_of(config, seed=0):
    """A torch model of a `config.json` dict; norm scales and biases are random too."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    hf = AutoConfig.for_model(**config)
    model = AutoModelForCausalLM.from_config(hf, attn_implementation="eager").float().eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim == 1:
                p.copy_(torch.randn_like(p) * 0.3 + float("norm" in name and "bias" not in name))
            else:
                p.copy_(torch.randn_like(p) * (1.0 if "embed" in name else p.shape[1] ** -0.5))
    return model


def config_of(model):
    """The model's `config.json`, as transformers writes it."""
    return json.loads(model.config.to_json_string())


def tree_of(model):
    """A torch model's param tree, through its family's table."""
    state = {k: v.detach().numpy() for k, v in model.state_dict().items()}
    config, tree = config_of(model), {}
    for placed in table_for(config["model_type"]).place(config, list(state)):
        insert(tree, placed.path, placed.to_tree(state[placed.name]))
    return tree


def run(model, tokens):
    """(input, output) of every decoder layer, and the logits, for tokens `[b, t]`."""
    seen = []

    def keep(module, args, out):
        out = out[0] if isinstance(out, tuple) else out
        seen.append((args[0].numpy().copy(), out.numpy().copy()))

    hooks = [layer.register_forward_hook(keep) for layer in model.get_decoder().layers]
    with torch.no_grad():
        logits = model(torch.from_numpy(np.asarray(tokens)), use_cache=False).logits.numpy()
    for hook in hooks:
        hook.remove()
    return seen, logits


def logits_of(model, tokens):
    """Logits `[b, t, V]` of tokens `[b, t]`."""
    return run(model, tokens)[1]
