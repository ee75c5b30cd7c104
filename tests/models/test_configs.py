"""What a `config.json` may hold: null where transformers takes it, one line for anything else."""

import json
from dataclasses import fields

import pytest
from conftest import LLAMA, OPT

from converters import table_for
from icp_jax.errors import InputError
from icp_jax.models import make_family
from icp_jax.models.llama_config import FIELDS as LLAMA_FIELDS
from icp_jax.models.llama_config import OWN_FIELDS
from icp_jax.models.opt import FIELDS as OPT_FIELDS
from icp_jax.models.sam import config as sam
from icp_jax.streaming.model_config import read_config

CONFIGS = {"opt": OPT, **{kind: {**LLAMA, "model_type": kind} for kind in OWN_FIELDS}}
CONFIGS["sam"] = {"model_type": "sam"}
KEYS = {kind: LLAMA_FIELDS | OWN_FIELDS[kind] for kind in OWN_FIELDS} | {"opt": OPT_FIELDS}
ALL = [(kind, key) for kind in KEYS for key in KEYS[kind]]
OTHER = ("64", True, 1.5, [1], {}, -1, None, 0, "nope")
FIT = {  # what of OTHER is right for a kind
    "count": (0,),
    "number": (1.5,),
    "flag": (True,),
    "word": ("64", "nope"),
    "words": (),
    "size": (),
}


@pytest.mark.parametrize("kind, key", ALL)
def test_every_key(kind, key):
    config, wants = CONFIGS[kind], KEYS[kind][key]
    for value in OTHER:
        if value is None and wants.endswith("?"):
            absent = {k: v for k, v in config.items() if k != key}
            given = {**absent, key: None}
            same = make_family(given)
            table_for(kind).place(given)
            if key == "num_key_value_heads":  # null: no groups; absent: the type's default
                absent[key] = config["num_attention_heads"]
            if key != "sliding_window":  # null: none; absent: the type's default
                assert same == make_family(absent)
        elif value not in FIT[wants.rstrip("?")] or (isinstance(value, bool) and wants != "flag"):
            with pytest.raises(InputError, match=f"config.json: {key} must be ") as found:
                make_family({**config, key: value})
            assert len(str(found.value).splitlines()) == 1


@pytest.mark.parametrize("part", ["vision_config", "prompt_encoder_config", "mask_decoder_config"])
def test_every_key_of_sam(part):
    whole = make_family(CONFIGS["sam"])
    assert make_family({"model_type": "sam", part: None}) == whole
    cls = {
        "vision_config": sam.VisionConfig,
        "prompt_encoder_config": sam.PromptConfig,
        "mask_decoder_config": sam.DecoderConfig,
    }[part]
    for f in fields(cls):
        for value in (None, "x", -1):
            if f.name == "mlp_dim" and part == "vision_config" and value is None:
                assert make_family({"model_type": "sam", part: {f.name: None}}) == whole
                continue
            if f.type == "str" and value == "x":
                continue
            with pytest.raises(InputError, match=f.name):
                make_family({"model_type": "sam", part: {f.name: value}})


def test_sides_as_pairs():
    pair = {"image_size": [1024, 1024], "patch_size": [16, 16]}
    config = {"model_type": "sam", "vision_config": pair, "prompt_encoder_config": pair}
    assert make_family(config) == make_family({"model_type": "sam"})
    shapes = [{p.name: p.shape for p in table_for("sam").place(c)} for c in (config, {})]
    assert shapes[0] == shapes[1]


def test_sliding_windows():
    mistral, qwen = CONFIGS["mistral"], CONFIGS["qwen2"]
    assert make_family({**mistral, "sliding_window": None}).block.window is None
    assert make_family(mistral).block.window == 4096
    assert make_family({**qwen, "sliding_window": 0}) == make_family(qwen)  # not in use
    with pytest.raises(InputError, match="sliding_window must be .* or null, got 0"):
        make_family({**qwen, "sliding_window": 0, "use_sliding_window": True})


@pytest.mark.parametrize(
    "rope, said",
    [
        ({"rope_theta": 0}, "rope_theta must be"),
        ({"rope_theta": "1e4"}, "rope_theta must be"),
        ({"rope_scaling": "linear"}, "rope_scaling must be an object"),
        ({"rope_scaling": {"type": "linear", "factor": None}}, "rope_parameters.factor must be"),
        ({"rope_scaling": {"type": "linear", "factor": 0}}, "rope_parameters.factor must be"),
        ({"rope_scaling": {"type": "linear", "factor": "2"}}, "rope_parameters.factor must be"),
        ({"rope_scaling": {"type": "linear"}}, "config.json has no 'factor'"),
        ({"rope_scaling": {"type": ["linear"]}}, "rope_parameters.type must be a string"),
        ({"rope_parameters": {"rope_theta": 0}}, "rope_parameters.rope_theta must be"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 2.0, "low_freq_factor": None,
                           "high_freq_factor": 4.0}}, "rope_parameters.low_freq_factor must be"),
        ({"rope_scaling": None}, None),
        ({"rope_parameters": None, "rope_theta": None, "partial_rotary_factor": None}, None),
        ({"rope_parameters": {"rope_type": None, "rope_theta": None}}, None),
    ],
)  # fmt: skip
def test_rotary_settings(rope, said):
    if said is None:
        assert make_family({**LLAMA, **rope}) == make_family(LLAMA)
    else:
        with pytest.raises(InputError, match=said):
            make_family({**LLAMA, **rope})


@pytest.mark.parametrize("kind", [None, 3, ["opt"], {}])
def test_a_type_that_is_none(kind):
    with pytest.raises(InputError, match="model type .* is not supported"):
        make_family({"model_type": kind})


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_config_file(tmp_path, encoding):
    config = {**OPT, "quantization_config": None}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding=encoding)
    assert read_config(tmp_path) == config
