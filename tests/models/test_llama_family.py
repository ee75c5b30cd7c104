"""Llama and its relatives: which blocks share a module, what is refused, budgets, names."""

import json

import numpy as np
import pytest
from conftest import LLAMA, OPT, rope

import icp_jax
from converters import ConversionError, table_for
from converters.files import open_checkpoint
from converters.layout import plan_layout
from converters.llama import TABLES
from converters.safetensors_files import Writer
from icp_jax import InputError, PruneConfig, RunConfig
from icp_jax.models import FAMILIES, make_family
from icp_jax.planning.budgets import budgets
from icp_jax.runs.convert import convert
from icp_jax.runs.export import FolderSink
from icp_jax.runs.job import job
from icp_jax.runs.verify_export import verify_export
from icp_jax.streaming.loop import prune_blocks
from icp_jax.streaming.source import FolderSource


def test_blocks_that_compute_alike_share_a_module():
    slides = {"use_sliding_window": True, "sliding_window": 7}
    qwen = {**LLAMA, "model_type": "qwen2", "num_hidden_layers": 5, **slides}
    family = make_family({**qwen, "max_window_layers": 3})
    modules = [family.block_at(t) for t in range(5)]
    assert [m.window for m in modules] == [None, None, None, 7, 7]
    assert modules[0] is modules[1] is modules[2] and modules[3] is modules[4]
    assert make_family({**LLAMA, "sliding_window": 7}).block.window is None
    assert hash(family) == hash(make_family({**qwen, "max_window_layers": 3}))


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"model_type": "mixtral"}, "'mixtral' .*mixture of experts.*llama, mistral, opt"),
        ({"model_type": "qwen3_moe"}, "'qwen3_moe' .*mixture of experts"),
        ({"model_type": "new", "n_routed_experts": 8}, "'new' .*mixture of experts"),
        ({"model_type": "bert"}, "'bert' is not supported; supported"),
        (rope("longrope"), "'longrope' .* default, linear, dynamic, llama3, yarn"),
        (rope("linear"), "no 'factor'"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "by layer type"),
        ({"hidden_act": "mish"}, "'mish' is not supported; supported: relu"),
        ({"num_key_value_heads": 4}, "6 is not a multiple of num_key_value_heads 4"),
        ({"num_attention_heads": 7}, "48 is not a multiple of num_attention_heads 7"),
        ({"head_dim": 7}, "even head_dim"),
        ({"model_type": "qwen2", "layer_types": ["full_attention"]}, "layer_types must list 3"),
        (
            {"model_type": "qwen3", "layer_types": ["sliding_attention"] * 3},
            "without a sliding window",
        ),
    ],
)
def test_refused_in_one_line(changes, message):
    with pytest.raises(InputError, match=message) as raised:
        make_family({**LLAMA, **changes})
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("kind", ["opt", "llama", "qwen2"])
@pytest.mark.parametrize("sparsity", [0.5, 0.613])
def test_the_ten_rearrangements_keep_the_budget(kind, sparsity):
    config = OPT if kind == "opt" else {**LLAMA, "model_type": kind}
    family, shapes = make_family(config), [{} for _ in range(config["num_hidden_layers"])]
    assert family.default_rearrangement == ("qkv-f2" if kind == "opt" else "qkv-d")
    linears = {spec.name for spec in family.linears}
    for p in table_for(kind).place(config):
        if p.path[0] == "blocks" and p.path[2] in linears and p.path[3] == "kernel":
            shapes[int(p.path[1])][p.path[2]] = p.shape[::-1]
    sizes = [sum(i * o for i, o in block.values()) for block in shapes]
    assert len(family.rearrangements) == 10
    uniform = budgets(family, shapes, PruneConfig(sparsity=sparsity, beta=0.0))
    for name, arrangement in family.rearrangements:
        settings = PruneConfig(sparsity=sparsity, beta=0.1, rearrange=name)
        counts = budgets(family, shapes, settings)
        assert sum(sum(block.values()) for block in counts) == round(sparsity * sum(sizes))
        for block, before in zip(counts, uniform, strict=True):
            assert sum(block.values()) == sum(before.values())
            for spec in family.linears:
                moved = block[spec.name] - before[spec.name]
                side = (spec.role in arrangement.takes) - (spec.role in arrangement.gives)
                assert np.sign(moved) == side if side else abs(moved) <= 1, (name, spec)


@pytest.fixture
def old_llama(tmp_path):
    """A folder as of 2023: half precision, two shards, `inv_freq` buffers beside the weights."""
    folder, config = tmp_path / "old", {**LLAMA, "rms_norm_eps": 1e-5}
    folder.mkdir()
    half, rng = np.dtype(np.float16), np.random.default_rng(0)
    tensors = {p.name: rng.normal(size=p.shape) * 0.1 for p in table_for("llama").place(config)}
    for i in range(3):
        at = f"model.layers.{i}.self_attn.rotary_emb.inv_freq"
        tensors[at] = 10000 ** -(np.arange(0, 8, 2) / 8)
    layout = plan_layout({k: (half, v.shape) for k, v in tensors.items()}, {"format": "pt"}, 60000)
    assert len(layout.headers) >= 2
    writer = Writer(folder, layout)
    for name, tensor in tensors.items():
        writer.write(name, tensor.astype(half))
    writer.close()
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def contents(folder):
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


@pytest.mark.slow
def test_old_buffers_survive(old_llama, tmp_path):
    tokens = np.random.default_rng(0).integers(0, 97, (4, 24)).astype(np.int32)
    model = icp_jax.load(old_llama)
    assert contents(icp_jax.save(model, tmp_path / "saved")) == contents(old_llama)
    convert(old_llama, tmp_path / "orbax")
    convert(tmp_path / "orbax", tmp_path / "back")
    assert contents(tmp_path / "back") == contents(old_llama)

    source, config = FolderSource(old_llama), PruneConfig(method="magnitude", sparsity=0.5)
    (tmp_path / "pruned").mkdir()
    sink = FolderSink(source, tmp_path / "pruned")
    prune_blocks(source, sink, tokens, job(source, RunConfig(prune=config)))
    sink.close()
    counts = budgets(source.family, [source.shapes(t) for t in range(3)], config)
    assert verify_export(source, tmp_path / "pruned", counts, None, tuned_from=99).sparsity >= 0.5
    name = "model.layers.2.self_attn.rotary_emb.inv_freq"
    kept = open_checkpoint(tmp_path / "pruned").read(name)
    assert kept.tobytes() == source.reader.read(name).tobytes() != bytes(8)


def test_names_are_compared():
    names = [p.name for p in table_for("qwen3").place({**LLAMA, "model_type": "qwen3"})]
    buffer = "model.layers.{}.self_attn.rotary_emb.inv_freq"
    table = table_for("llama")
    with pytest.raises(ConversionError, match=r"unknown tensor .*q_norm"):
        table.place(LLAMA, names)
    names = [p.name for p in table.place(LLAMA)]
    bare = [n.removeprefix("model.") for n in names]
    assert [p.name for p in table.place(LLAMA, bare)] == bare
    assert len(table.place(LLAMA, [*names, buffer.format(2)])) == len(names)
    with pytest.raises(ConversionError, match=r"unknown tensor .*3.self_attn.rotary_emb"):
        table.place(LLAMA, [*names, buffer.format(3)])
    with pytest.raises(ConversionError, match=r"missing tensor 'lm_head.weight'"):
        table.place(LLAMA, names[:-1])
    assert len(table.place({**LLAMA, "tie_word_embeddings": True}, names[:-1])) == len(names) - 1
    assert set(TABLES) < set(FAMILIES)
