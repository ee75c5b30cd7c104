"""One check of settings, for Python, config files and the command line alike."""

import dataclasses
import inspect
import json
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

import icp_jax
from icp_jax.checks import flat
from icp_jax.cli import main
from icp_jax.cli.options import as_options
from icp_jax.config import (
    DEFAULTS,
    CalibrationConfig,
    CompensateConfig,
    EvalConfig,
    MemoryConfig,
    PruneConfig,
    QuantConfig,
    RunConfig,
    check,
    filled,
    rechosen,
)
from icp_jax.core.hyper import Recipe, hyper
from icp_jax.core.pruners import METHODS
from icp_jax.errors import InputError

NAN, INF = float("nan"), float("inf")
GROUPS = {
    "prune": PruneConfig,
    "quant": QuantConfig,
    "compensate": CompensateConfig,
    "calibration": CalibrationConfig,
    "memory": MemoryConfig,
}


def run_of(**settings):
    """A run with settings by dotted name, dots written as two underscores."""
    found: dict = {}
    for name, value in settings.items():
        group, _, field = name.rpartition("__")
        if group:
            found.setdefault(group, {})[field] = value
        else:
            found[field] = value
    return RunConfig(**{k: GROUPS[k](**v) if k in GROUPS else v for k, v in found.items()})


WRONG = [
    ({"prune__method": "foo"}, "prune.method must be icp, icp"),
    ({"dtype": "float16"}, "dtype must be auto, float32 or bfloat16"),
    ({"memory__streams": "gpu"}, "memory.streams must be auto, device, host or disk"),
    ({"memory__stream_dtype": "float64"}, "memory.stream_dtype must be float32 or bfloat16"),
    ({"prune__alpha": -3.0}, "prune.alpha must be at least 0"),
    ({"prune__keep_first": -1}, "prune.keep_first must be at least 0, got -1"),
    ({"prune__include": 3}, "prune.include must be a text or a list of texts, got 3"),
    ({"prune__exclude": ["a", 3]}, "prune.exclude must be a text or a list of texts"),
    ({"prune__sparsity_of": "*.fc2=1"}, "=1' is not GLOB=S with S in"),
    ({"prune__sparsity_of": "*=0.5", "prune__pattern": "2:4"}, "prune.sparsity_of applies to"),
    ({"prune__alpha": NAN}, "prune.alpha must be at least 0"),
    ({"prune__alpha": INF}, "prune.alpha must be at least 0"),
    ({"prune__beta": 7.0}, r"prune.beta must be in \[0, 1\]"),
    ({"prune__sparsity": "0.5"}, "prune.sparsity must be a number, got '0.5'"),
    ({"prune__sparsity": np.array([0.5])}, "prune.sparsity must be a number"),
    ({"prune__sparsity": 1j}, "prune.sparsity must be a number"),
    ({"prune__damping": 10**400}, "prune.damping must be a number"),
    ({"prune__damping": 1e-60}, "prune.damping must be a positive number"),
    ({"prune__pattern": (2, 4)}, "prune.pattern must be text"),
    ({"prune__block_size": 0}, "prune.block_size must be at least 1"),
    ({"prune__block_size": 2**40}, "prune.block_size must be at most 2147483647"),
    ({"compensate__lr": INF}, "compensate.lr must be a positive number, got inf"),
    ({"compensate__lr": 1e300}, "compensate.lr must be a positive number"),
    ({"compensate__epochs": 1.5}, "compensate.epochs must be an integer, got 1.5"),
    ({"compensate__epochs": None, "compensate__gamma": True}, "gamma must be a number, got True"),
    ({"quant__bits": True}, "quant.bits must be an integer, got True"),
    ({"quant__bits": np.bool_(True)}, "quant.bits must be an integer, got True"),
    ({"quant__bits": 4, "quant__symmetric": 1}, "quant.symmetric must be True or False, got 1"),
    ({"calibration__samples": "8"}, "calibration.samples must be an integer, got '8'"),
    ({"calibration__seed": None}, "calibration.seed must be an integer, got None"),
    ({"calibration__data": 3}, "calibration.data must be text, got 3"),
    ({"memory__device": "9" * 400}, "memory.device must be a size such as 8GiB"),
    ({"memory__host": "0.1B"}, "memory.host must be a size such as 8GiB"),
    ({"out": "a\0b"}, "out must be text"),
    ({"seed": -1}, "seed must be at least 0"),
    ({"seed": 0.0}, "seed must be an integer"),
    ({"prune": None}, "prune must be a PruneConfig, got None"),
]


@pytest.mark.parametrize("settings, message", WRONG)
def test_wrong_settings_are_one_line(settings, message):
    config = RunConfig(prune=None) if settings == {"prune": None} else run_of(**settings)
    with pytest.raises(InputError, match=message) as caught:
        check(config)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_what_is_no_config_is_refused():
    with pytest.raises(InputError, match="must be a RunConfig, got {}"):
        check({})


MEANINGLESS = [
    ({"prune__pattern": "2:4", "prune__sparsity": 0.5}, "sparsity applies to unstructured"),
    ({"prune__pattern": "2:4", "prune__rearrange": "qkv-f2"}, "rearrange applies to unstructured"),
    (
        {"prune__pattern": "2:4", "prune__alpha": 1.0, "prune__beta": 0.0},
        "alpha and prune.beta app",
    ),
    ({"quant__search": True}, "quant settings need quant.bits"),
    ({"quant__group": 64}, "quant settings need quant.bits"),
    (
        {"prune__method": "wanda", "prune__damping": 0.01},
        "prune.damping applies to icp, icp",
    ),
    ({"prune__method": "magnitude", "prune__block_size": 128}, "prune.block_size applies to icp"),
    ({"prune__method": "alps", "prune__block_size": 128}, "prune.block_size applies to icp"),
    ({"prune__method": "alps", "prune__solver": "alps"}, "prune.solver applies to icp and icp"),
    ({"prune__solver": "alps", "prune__block_size": 128}, "prune.block_size does not apply to"),
    ({"prune__solver": "alps", "quant__bits": 4}, "quant.bits does not go with prune.solver alps"),
    (
        {"prune__method": "sparsegpt", "compensate__lr": 1e-4},
        "compensate.lr applies to icp and",
    ),
    (
        {"prune__method": "wanda", "compensate__epochs": 1},
        "compensate.epochs applies to icp and",
    ),
    (
        {"prune__method": "wanda", "compensate__gamma": 0.87},
        "compensate.gamma applies to icp and",
    ),
    ({"prune__method": "wanda", "seed": 0}, "seed applies to icp and"),
    (
        {"prune__method": "wanda", "memory__remat": True},
        "memory.remat applies to icp and",
    ),
]


@pytest.mark.parametrize("settings, message", MEANINGLESS)
def test_settings_that_nothing_would_use_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        check(run_of(**settings))


@pytest.mark.parametrize(
    "settings",
    [
        {"prune__pattern": "unstructured", "prune__sparsity": 0.5},
        {"prune__method": "wanda", "compensate__epochs": 0, "memory__remat": False},
        {"prune__method": "sparsegpt", "prune__damping": 0.1, "prune__block_size": 64},
        {"compensate__epochs": 0, "compensate__lr": 1e-3},
        {"prune__sparsity": 0},
    ],
)
def test_settings_that_go_together(settings):
    assert check(run_of(**settings)) == run_of(**settings)


def test_numbers_of_numpy_and_jax_and_paths_become_plain_values():
    given = run_of(
        model=Path("a/b"),
        seed=np.uint8(3),
        prune__sparsity=np.float32(0.5),
        prune__block_size=np.int64(64),
        prune__alpha=jnp.float32(0.75),
        prune__beta=0,
        quant__bits=np.array(4),
        quant__symmetric=np.bool_(True),
    )
    found = check(given)
    lists = {name: list(v) for name, v in flat(found).items() if isinstance(v, tuple)}
    assert json.loads(json.dumps(flat(found))) == flat(found) | lists
    assert (found.model, found.seed, found.prune.block_size, found.quant.bits) == ("a/b", 3, 64, 4)
    assert found.quant.symmetric is True
    assert (found.prune.sparsity, found.prune.alpha) == (0.5, 0.75)
    assert type(found.prune.beta) is float and type(found.quant.bits) is int


def test_the_methods_that_use_a_setting_are_those_that_do():
    for name, method in METHODS.items():
        run = RunConfig(prune=PruneConfig(name))
        settings = (
            run_of(prune__method=name, prune__block_size=64),
            run_of(prune__method=name, compensate__lr=1e-3),
        )
        for given, used in zip(settings, (method.walks, method.compensates), strict=True):
            assert (rechosen(given, None) == given) == used
            assert used or rechosen(given, None) == run


def test_defaults_are_those_of_the_pure_core(opt):
    signature = {k: p.default for k, p in inspect.signature(hyper).parameters.items()}
    fields = {f.name: f.default for f in dataclasses.fields(Recipe)}
    known = {**signature, **fields, "sparsity": 0.7, "seed": 0}

    def name_there(name):
        group, _, last = name.rpartition(".")
        return f"retune_{last}" if group == "retune" else last

    there = {name: known[name_there(name)] for name in DEFAULTS}
    assert there.pop("compensate.epochs") is None  # it depends on the method
    assert there == {name: value for name, value in DEFAULTS.items() if name in there}
    shapes = [opt.shapes(t) for t in range(opt.family.n_blocks)]
    for method in ("icp", "icp+"):
        made = hyper(opt.family, shapes, recipe=Recipe(method=method))
        assert len(made.rates) == filled(run_of(prune__method=method)).compensate.epochs


def test_a_pattern_has_no_sparsity_of_its_own():
    assert filled(RunConfig()).prune.sparsity == 0.7
    assert filled(run_of(prune__pattern="2:4")).prune.sparsity is None
    assert filled(run_of(prune__sparsity=0.0)).prune.sparsity == 0.0


def test_python_and_command_line_refuse_alike(opt_folder, tokens, capsys):
    model = icp_jax.load(opt_folder)
    cases = {
        "prune.sparsity": (["--sparsity", "1"], {"sparsity": 1}),
        "prune.damping": (
            ["--method", "wanda", "--prune.damping", ".1"],
            {"method": "wanda", "damping": 0.1},
        ),
        "prune.rearrange needs prune.beta": (
            ["--method", "sparsegpt", "--prune.rearrange", "qkv-o"],
            {"method": "sparsegpt", "rearrange": "qkv-o"},
        ),
        "lists q twice": (["--prune.rearrange", "qq-f2"], {"rearrange": "qq-f2"}),
    }
    for said, (options, settings) in cases.items():
        with pytest.raises(InputError, match=said) as caught:
            icp_jax.prune(model, tokens, **settings)
        assert main(["prune", str(opt_folder), "--dry-run", *options]) == 2
        assert capsys.readouterr().err == f"icp-jax: {as_options(str(caught.value))}\n"


def test_in_memory_there_is_nothing_to_pack(opt_folder, tokens):
    with pytest.raises(InputError, match="quant.packed is only for prune_folder"):
        icp_jax.prune(icp_jax.load(opt_folder), tokens, quant=QuantConfig(bits=4, packed=True))


@pytest.mark.parametrize("given", [{"prompt": "box"}, {"seed": 0}])
def test_settings_of_images_are_refused_for_text(opt_folder, tokens, given, capsys):
    (name, value) = next(iter(given.items()))
    with pytest.raises(InputError, match=f"{name} is for SAM"):
        icp_jax.evaluate(icp_jax.load(opt_folder), tokens, **given)
    assert main(["eval", str(opt_folder), "--data", "x.npy", f"--{name}", str(value)]) == 2
    assert f"icp-jax: {name} is for SAM" in capsys.readouterr().err


def test_windows_have_a_length_already(opt_folder, tokens):
    with pytest.raises(InputError, match="seq_len is for text, but token windows"):
        icp_jax.evaluate(icp_jax.load(opt_folder), tokens, seq_len=8)


def test_settings_of_text_are_refused_for_images():
    sam = SimpleNamespace(family=SimpleNamespace(kind="vision"))
    with pytest.raises(InputError, match="seq_len is for text, but this model reads images"):
        icp_jax.evaluate(sam, "sa1b:x", seq_len=8)
    with pytest.raises(InputError, match="not on an array: give sa1b:DIR or coco:DIR"):
        icp_jax.evaluate(sam, np.zeros((1, 3, 8, 8)))
    with pytest.raises(InputError, match="against is for text, but this model reads images"):
        icp_jax.evaluate(sam, "sa1b:x", against="model")


@pytest.mark.parametrize("bad", [{"limit": 0}, {"seed": -1}, {"prompt": "x"}, {"limit": True}])
def test_settings_of_an_evaluation_are_checked(bad):
    with pytest.raises(InputError, match=f"{next(iter(bad))} must be"):
        check(EvalConfig(**bad))


# ------------------------------------------------------------ config files
