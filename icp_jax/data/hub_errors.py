"""Turn errors of the hub's clients into short messages."""

from __future__ import annotations

import errno
from collections.abc import Iterator

from converters.rules import first_line
from icp_jax.errors import InputError

OURS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS, errno.EPERM)
FOREIGN = ("JSONDecodeError", "FileMetadataError", "KeyError", "AttributeError", "AssertionError")
SHOWN = 120  # characters shown of a library's message
STATUS = {
    401: "unknown name or login required (401): check the name, or run `hf auth login`",
    403: "access denied (403): request it on the model's page, then run `hf auth login`",
    404: "unknown name or file (404): check the name",
    407: "the proxy requires a login (407)",
    429: "too many requests (429): wait a few minutes, or run `hf auth login`",
}


def pass_on(error: Exception) -> None:
    """Re-raise an error not caused by the hub: bad input, out of memory, a full disk."""
    if isinstance(error, InputError | MemoryError) or getattr(error, "errno", None) in OURS:
        raise error


def not_given(repo: str, error: Exception) -> InputError:
    """The InputError for a model that is neither local nor available from the hub."""
    return InputError(
        f"{repo} is not a local folder and could not be downloaded from the hub: {reason(error)}"
    )


def reason(error: BaseException) -> str:
    """A short reason for an error of any of the hub's clients."""
    chain = list(_chain(error))
    names = {kind.__name__ for e in chain for kind in type(e).__mro__}
    for e in chain:
        status = getattr(getattr(e, "response", None), "status_code", None)
        if isinstance(status, int) and status >= 400:
            return STATUS.get(status, f"the hub returned an error ({status}): try again later")
    if "HFValidationError" in names:
        return "not a valid hub id, which is OWNER/NAME"
    if "OfflineModeIsEnabled" in names or _offline():
        return "it is not in the cache and HF_HUB_OFFLINE is set: unset it to download"
    for kind, words in (
        ("ProxyError", "the proxy refused the connection"),
        ("TimeoutException", "the hub timed out: try again"),
        ("TimeoutError", "the hub timed out: try again"),
        ("ConnectError", "no connection to the hub: check the network"),
        ("ConnectionRefusedError", "no connection to the hub: check the network"),
        *((kind, "unexpected response, maybe from a proxy: check the network") for kind in FOREIGN),
        ("HTTPError", "the connection was lost: try again"),
        ("ConnectionError", "the connection was lost: try again"),
    ):
        if kind in names:
            return words
    words = first_line(error)
    return words if len(words) <= SHOWN else f"{words[:SHOWN]}..."


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and its causes."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)
