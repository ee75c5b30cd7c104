"""How XLA compiles, for the command line: into a cache on disk, so that a second run compiles
nothing, and on a GPU without trying kernels for each product. And what it may pin of the host.

The user's own variables win: JAX_COMPILATION_CACHE_DIR, JAX_ENABLE_COMPILATION_CACHE=false for no
cache, XLA_FLAGS, XLA_PJRT_GPU_HOST_MEMORY_LIMIT_GB.
"""

from __future__ import annotations

import hashlib
import os
import platform
import warnings
import zlib
from pathlib import Path

ZSTD = b"\x28\xb5\x2f\xfd"  # how its frames begin
# Products go to cuBLAS. Triton's, of which XLA compiles and times some hundred, took more than two
# minutes at OPT-6.7B's shapes before the first block.
NO_TRITON = "--xla_gpu_enable_triton_gemm=false"


def use() -> None:
    """Point JAX at the user's cache folder. To be called before JAX is imported.

    Pinned memory, which XLA limits to 64 GiB if not told otherwise, is the plan's to limit.
    """
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    os.environ.setdefault("XLA_PJRT_GPU_HOST_MEMORY_LIMIT_GB", str(max(there >> 30, 1)))
    flags = os.environ.get("XLA_FLAGS", "")
    if NO_TRITON.split("=")[0] not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {NO_TRITON}".strip()
    for name, value in (  # keep every program, however quickly compiled
        ("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", 0),
        ("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", -1),
    ):
        os.environ.setdefault(name, str(value))
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache")
    if given := os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        repair(Path(given))
        return
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = base / "icp-jax" / f"xla-{_processor()}"
        if base.is_absolute():  # a relative HOME is no place
            folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # the second for a user without a home
        return  # one that cannot be written to costs seconds, not the run
    if not base.is_absolute() or not os.access(folder, os.W_OK):
        return
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
    repair(folder)


def repair(folder: Path) -> None:
    """Remove the entries that a full disk cut short: JAX cannot read them, nor replaces them.

    Each entry is looked through once: a mark keeps the time of the last look.
    """
    mark = folder / ".looked-through"
    try:
        last = mark.stat().st_mtime if mark.is_file() else 0.0
        mark.touch()  # first: what is written meanwhile is looked through the next time
        for entry in folder.glob("*-cache"):
            if entry.stat().st_mtime >= last - 2 and not _whole(entry.read_bytes()):
                entry.unlink()
    except OSError:
        return  # a cache that cannot be read or written costs seconds, not the run


def _whole(entry: bytes) -> bool:
    """Whether an entry can be unpacked: zlib's, or zstd's where its package is there."""
    try:
        if entry.startswith(ZSTD):
            try:
                from compression import zstd  # Python 3.14, which JAX then uses too
            except ImportError:
                import zstandard

                zstandard.ZstdDecompressor().decompress(entry)
            else:
                zstd.decompress(entry)
        elif entry[:1] in (b"", b"\x78"):
            zlib.decompress(entry)
    except ImportError:
        return True
    except Exception:  # each package has its own
        return False
    return True


def features() -> str:
    """What this processor says that it can do, in words of its own."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        return platform.processor()


def _processor() -> str:
    """A name for what it can do: a home may be shared, and compiled code fits one kind."""
    return hashlib.sha256(f"{platform.machine()} {features()}".encode()).hexdigest()[:12]
