"""The Hugging Face hub: the files of a model, and what to say when the hub does not give them."""

from __future__ import annotations

import contextlib
import errno
import glob
import json
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from converters.files import lone_torch_file
from converters.rules import first_line
from icp_jax.errors import InputError

BESIDE = (".json", ".txt", ".model", ".jinja")  # config, tokenizer and the like
# In the order in which transformers looks for them; an index names its shards.
WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
OURS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS, errno.EPERM)
FOREIGN = ("JSONDecodeError", "FileMetadataError", "KeyError", "AttributeError", "AssertionError")
SHOWN = 120  # characters of a library's own words
STATUS = {
    401: "the hub knows no such name, or wants a login (401): check the name, or `hf auth login`",
    403: "access is denied (403): ask for it on the model's page, then `hf auth login`",
    404: "the hub has no such name or file (404)",
    407: "the proxy wants a login (407)",
    429: "too many requests (429): wait a few minutes, or `hf auth login`",
}


def download(repo: str) -> Path:
    """The folder of a model in the hub's cache, with the files that it takes and no others.

    Where the hub cannot be asked, what an earlier download left. Raises InputError.
    """
    return _given(repo, _download)


def config(repo: str) -> Path:
    """The folder in the hub's cache that holds a model's `config.json`. Raises InputError."""
    return _given(repo, _download_config)


def _given(repo: str, get: Callable[[str, Any], Path]) -> Path:
    with quiet():
        try:
            info = ask(repo)
        except Exception as error:  # the clients' errors share no base
            return _cached(repo, error)
        try:
            return get(repo, info)
        except Exception as error:  # as above; `pass_on` raises again what is no fault of the hub's
            pass_on(error)
            raise not_given(repo, error) from None


def ask(repo: str, kind: str = "model") -> Any:
    """What the hub says of a repository. Asked once, with a time limit: a download would go on
    asking for minutes where nothing answers.
    """
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
    """Config, tokenizer and the like: of the top folder, and no lists of weights."""
    return [n for n in names if n.endswith(BESIDE) and "/" not in n and ".index." not in n]


def _weights(repo: str, names: Sequence[str], revision: str | None) -> list[str]:
    """The files of weights that transformers would load. Raises InputError where there are none."""
    from huggingface_hub import hf_hub_download

    single = next((name for name in WEIGHTS if name in names), None)
    if single is None:
        raise InputError(f"{repo} has no weights that can be read: one of {', '.join(WEIGHTS)}")
    if not single.endswith(".index.json"):
        return [single]
    index = Path(hf_hub_download(repo, single, revision=revision))
    try:
        shards = set(json.loads(index.read_text(encoding="utf-8-sig"))["weight_map"].values())
    except (ValueError, KeyError, AttributeError, TypeError):
        raise InputError(f"{single} of {repo} is not a checkpoint index") from None
    if missing := sorted(str(shard) for shard in shards if shard not in names):
        raise InputError(f"{single} of {repo} names {missing[0][:SHOWN]!r}, which is not there")
    return [single, *sorted(shards)]


def _cached(repo: str, error: Exception) -> Path:
    """The folder that an earlier download left. Raises the InputError that `error` amounts to."""
    from huggingface_hub import try_to_load_from_cache

    pass_on(error)
    try:
        found = try_to_load_from_cache(repo, "config.json")
    except ValueError:  # no valid id
        found = None
    if isinstance(found, str):
        return Path(found).parent
    raise not_given(repo, error) from None


def pass_on(error: Exception) -> None:
    """Raise what is no matter of the hub's: bad input, no memory, a disk that takes no more."""
    if isinstance(error, InputError | MemoryError) or getattr(error, "errno", None) in OURS:
        raise error


def not_given(repo: str, error: Exception) -> InputError:
    """What to say of a hub id that the hub gave nothing for."""
    return InputError(
        f"{repo} is neither a folder here nor a model that the hub gave: {reason(error)}"
    )


def reason(error: BaseException) -> str:
    """Why the hub gave nothing, in a few words, whichever client failed."""
    chain = list(_chain(error))
    names = {kind.__name__ for e in chain for kind in type(e).__mro__}
    for e in chain:
        status = getattr(getattr(e, "response", None), "status_code", None)
        if isinstance(status, int) and status >= 400:
            return STATUS.get(status, f"the hub answers with an error ({status}): try again later")
    if "HFValidationError" in names:
        return "this is no valid name of a model"
    if "OfflineModeIsEnabled" in names or _offline():
        return "it is not in the cache, and HF_HUB_OFFLINE forbids to ask the hub"
    for kind, words in (
        ("ProxyError", "the proxy refuses the connection"),
        ("TimeoutException", "the hub does not answer in time"),
        ("TimeoutError", "the hub does not answer in time"),
        ("ConnectError", "no connection to the hub: check the network"),
        ("ConnectionRefusedError", "no connection to the hub: check the network"),
        *((kind, "the answer is not the hub's: a proxy's page, perhaps") for kind in FOREIGN),
        ("HTTPError", "the connection broke off: try again"),
        ("ConnectionError", "the connection broke off: try again"),
    ):
        if kind in names:
            return words
    words = first_line(error)
    return words if len(words) <= SHOWN else f"{words[:SHOWN]}..."


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An exception, and those that it came of."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


@contextlib.contextmanager
def cache_alone() -> Iterator[None]:
    """The clients look into their caches and ask nobody."""
    from huggingface_hub import constants

    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No warnings of the clients' own, and their bars on a terminal alone."""
    from huggingface_hub import logging as hub_log
    from huggingface_hub import utils

    hub_log.get_verbosity()  # importing it sets the level, which must not come later
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
    """A local folder or `.pth` file as it is; a hub id downloaded through huggingface_hub."""
    if not model:
        raise InputError("no model given: --model takes a Hugging Face folder or hub id")
    path = Path(model).expanduser()
    if path.is_dir() or lone_torch_file(path) is not None:
        return path
    if path.exists():
        raise InputError(f"{model} is a file: give the folder that holds config.json")
    if model.startswith((".", "/", "~")) or model.count("/") > 1:
        raise InputError(f"no such folder: {model}")
    return download(model)
