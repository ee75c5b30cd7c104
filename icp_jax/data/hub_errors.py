"""Why the hub gave nothing, in words for a message."""

from __future__ import annotations

import errno
from collections.abc import Iterator

from converters.rules import first_line
from icp_jax.errors import InputError

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


def pass_on(error: Exception) -> None:
    """Raise an error that is not the hub's: bad input, no memory, a disk that takes no more."""
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
