"""XLA settings of the command line: a compile cache on disk, cuBLAS for products, pinned memory.

Variables set by the user take precedence: JAX_COMPILATION_CACHE_DIR,
JAX_ENABLE_COMPILATION_CACHE=false for no cache, XLA_FLAGS, XLA_PJRT_GPU_HOST_MEMORY_LIMIT_GB.
"""

from __future__ import annotations

import hashlib
import os
import platform
import warnings
import zlib
from pathlib import Path

ZSTD = b"\x28\xb5\x2f\xfd"  # magic number of a zstd frame
# Autotuning Triton kernels takes over two minutes at OPT-6.7B's shapes; use cuBLAS.
NO_TRITON = "--xla_gpu_enable_triton_gemm=false"


def use() -> None:
    """Point JAX at the user's cache folder. Call this before JAX is imported.

    Also lifts XLA's default limit of 64 GiB on pinned memory; the plan limits it instead.
    """
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    os.environ.setdefault("XLA_PJRT_GPU_HOST_MEMORY_LIMIT_GB", str(max(memory >> 30, 1)))
    flags = os.environ.get("XLA_FLAGS", "")
    if NO_TRITON.split("=")[0] not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {NO_TRITON}".strip()
    for name, value in (  # cache every program, however quickly it compiles
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
        if base.is_absolute():  # a relative HOME is not usable
            folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # RuntimeError: the user has no home
        return  # without a cache the run is only slower
    if not base.is_absolute() or not os.access(folder, os.W_OK):
        return
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
    repair(folder)


def repair(folder: Path) -> None:
    """Remove entries truncated by a full disk, which JAX can neither read nor replace.

    A marker file keeps the time of the last check, so that each entry is checked once.
    """
    mark = folder / ".looked-through"
    try:
        last = mark.stat().st_mtime if mark.is_file() else 0.0
        mark.touch()  # before the check, so that entries written during it are checked next time
        for entry in folder.glob("*-cache"):
            if entry.stat().st_mtime >= last - 2 and not _whole(entry.read_bytes()):
                entry.unlink()
    except OSError:
        return  # without a cache the run is only slower


def _whole(entry: bytes) -> bool:
    """Whether an entry can be decompressed; True if zstd is needed but not installed."""
    try:
        if entry.startswith(ZSTD):
            try:
                from compression import zstd  # from Python 3.14, where JAX uses it too
            except ImportError:
                import zstandard

                zstandard.ZstdDecompressor().decompress(entry)
            else:
                zstd.decompress(entry)
        elif entry[:1] in (b"", b"\x78"):
            zlib.decompress(entry)
    except ImportError:
        return True
    except Exception:  # each package has its own error
        return False
    return True


def features() -> str:
    """The processor's feature flags, as the system lists them."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        return platform.processor()


def _processor() -> str:
    """A hash of the features: machines may share a home, and compiled code fits one kind."""
    return hashlib.sha256(f"{platform.machine()} {features()}".encode()).hexdigest()[:12]
