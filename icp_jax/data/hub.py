"""Model files from the Hugging Face hub or its local cache."""

from __future__ import annotations

import contextlib
import glob
import json
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from converters.files import is_gguf, lone_torch_file
from converters.names import GGUF
from converters.packed_files import packed_name
from icp_jax.data.hub_errors import SHOWN, not_given, pass_on
from icp_jax.errors import InputError

BESIDE = (".json", ".txt", ".model", ".jinja")  # config, tokenizer and similar files
# Weight files in the order in which transformers looks for them; an index lists shards. Packed
# files stand in for safetensors.
WEIGHTS = (
    "model.safetensors",
    packed_name("model.safetensors"),
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


def download(repo: str) -> Path:
    """Download a model's config, tokenizer and weights; returns its folder in the hub's cache.

    Uses an earlier download if the hub cannot be reached. Raises InputError.
    """
    return _given(repo, _download)


def config(repo: str) -> Path:
    """Download a model's `config.json`; returns its folder in the cache. Raises InputError."""
    return _given(repo, _download_config)


def _given(repo: str, get: Callable[[str, Any], Path]) -> Path:
    with quiet():
        try:
            info = ask(repo)
        except Exception as error:  # the hub's clients raise unrelated types
            return _cached(repo, error)
        try:
            return get(repo, info)
        except Exception as error:  # `pass_on` re-raises errors not caused by the hub
            pass_on(error)
            raise not_given(repo, error) from None


def ask(repo: str, kind: str = "model") -> Any:
    """Get the hub's info on a repository, with a timeout; a download would retry for minutes."""
    from huggingface_hub import HfApi, constants

    return HfApi().repo_info(repo, repo_type=kind, timeout=constants.HF_HUB_ETAG_TIMEOUT)


def _download_config(repo: str, info: Any) -> Path:
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(repo, "config.json")).parent


def _download(repo: str, info: Any) -> Path:
    from huggingface_hub import snapshot_download

    names = [file.rfilename for file in info.siblings or ()]
    wanted = [*_beside(names), *_weights(repo, names, info.sha)]
    exact = [glob.escape(name) for name in wanted]
    return Path(snapshot_download(repo, allow_patterns=exact))


def _beside(names: Sequence[str]) -> list[str]:
    """Config, tokenizer and similar files in the top folder, without weight indexes."""
    return [n for n in names if n.endswith(BESIDE) and "/" not in n and ".index." not in n]


def _weights(repo: str, names: Sequence[str], revision: str | None) -> list[str]:
    """The weight files that transformers would load. Raises InputError if there are none."""
    from huggingface_hub import hf_hub_download

    single = next((name for name in WEIGHTS if name in names), None)
    if single is None:
        raise InputError(f"{repo} has no weights: expected one of {', '.join(WEIGHTS)}")
    if not single.endswith(".index.json"):
        return [single]
    index = Path(hf_hub_download(repo, single, revision=revision))
    try:
        shards = set(json.loads(index.read_text(encoding="utf-8-sig"))["weight_map"].values())
    except (ValueError, KeyError, AttributeError, TypeError):
        raise InputError(f"{single} of {repo} is not a checkpoint index") from None
    packed = {packed_name(str(shard)) for shard in shards}
    if packed <= set(names) and shards.isdisjoint(names):
        shards = packed
    if missing := sorted(str(shard) for shard in shards if shard not in names):
        raise InputError(f"{repo} has no file {missing[0][:SHOWN]!r}, which its {single} lists")
    return [single, *sorted(shards)]


def _cached(repo: str, error: Exception) -> Path:
    """The folder of an earlier download. Raises InputError for `error` if there is none."""
    from huggingface_hub import try_to_load_from_cache

    pass_on(error)
    try:
        found = try_to_load_from_cache(repo, "config.json")
    except ValueError:  # not a valid id
        found = None
    if isinstance(found, str):
        return Path(found).parent
    raise not_given(repo, error) from None


@contextlib.contextmanager
def cache_alone() -> Iterator[None]:
    """Make the hub's clients use only their caches."""
    from huggingface_hub import constants

    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the hub clients' warnings, and their progress bars outside a terminal."""
    from huggingface_hub import logging as hub_log
    from huggingface_hub import utils

    hub_log.get_verbosity()  # its first use sets the level, which must happen before ours
    loggers = [logging.getLogger(n) for n in ("huggingface_hub", "datasets", "transformers")]
    levels = [logger.level for logger in loggers]
    bars = not utils.are_progress_bars_disabled() and not sys.stderr.isatty()
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        if bars:
            utils.disable_progress_bars()
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if bars:
            utils.enable_progress_bars()


def resolve(model: str) -> Path:
    """The local folder or file, or the downloaded folder of a hub id. Raises InputError."""
    if not model:
        raise InputError("no model given: give a Hugging Face folder or hub id")
    path = Path(model).expanduser()
    if path.is_dir() or is_gguf(path) or lone_torch_file(path) is not None:
        return path
    if path.exists():
        raise InputError(f"{model} is a file: give the folder that holds config.json")
    if path.suffix == GGUF:
        raise InputError(f"no such file: {model}")
    if model.startswith((".", "/", "~")) or model.count("/") > 1:
        raise InputError(f"no such folder: {model}; give a Hugging Face folder or hub id")
    return download(model)
