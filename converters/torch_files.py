"""torch files: `.bin` shards and `.pth`. Needs torch: `pip install 'icp-jax[torch]'`."""

from __future__ import annotations

import ctypes
import errno
import mmap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from converters.layout import Described, Entry, Layout, check_tensor, plan_layout
from converters.names import TORCH, create, shards
from converters.rules import ConversionError, first_line
from converters.torch_load import dtype_of, load, state_dict


class TorchReader(Described):
    """Reads `.bin` shards or one `.pth` file, weights only, memory-mapped if the format allows.

    Shards are exported as safetensors; a `.pth` file is exported as `.pth`.
    """

    def __init__(self, files: dict[str, Path], index: str | None):
        first = next(iter(files))
        try:
            import torch
        except ImportError:
            raise ConversionError(
                f"{files[first]} needs torch to be read: pip install 'icp-jax[torch]'"
            ) from None
        self.files = files
        self._tensors: dict[str, Any] = {}
        self._mapped: set[str] = set()
        planned: dict[str, tuple[np.dtype, tuple[int, ...]]] = {}
        for path in files.values():
            state, mapped = load(torch, path)
            for name, tensor in state_dict(torch, path, state).items():
                if name in planned:
                    raise ConversionError(f"duplicate tensor {name!r} in {path.name}")
                planned[name] = dtype_of(name, tensor), tuple(tensor.shape)
                self._tensors[name] = tensor.detach()  # a parameter may require gradients
                self._mapped |= {name} if mapped else set()
        if index is None and first != "pytorch_model.bin":
            self.layout = _file_layout(first, planned)
        else:
            self.layout = plan_layout(planned, {"format": "pt"})

    def names(self) -> list[str]:
        return list(self._tensors)

    def read(self, name: str) -> np.ndarray:
        import torch

        tensor = self._tensors[name].contiguous()
        if tensor.dtype == torch.bfloat16:
            return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        return tensor.numpy()

    def fetch(self, names: Iterable[str]) -> None:
        """Prefetch these tensors in the background."""
        self._advise(names, "MADV_WILLNEED")

    def forget(self) -> None:
        """Free the memory of tensors read so far; arrays stay valid and are reread on use.

        Files that cannot be mapped stay in memory.
        """
        self._advise(self._tensors, "MADV_DONTNEED")

    def _advise(self, names: Iterable[str], advice: str) -> None:
        if not hasattr(mmap, advice):
            return
        madvise = ctypes.CDLL(None).madvise  # torch owns the mapping and has no such call
        for name in self._mapped.intersection(names):  # on unmapped memory it would lose data
            storage = self._tensors[name].untyped_storage()
            start = storage.data_ptr() // mmap.PAGESIZE * mmap.PAGESIZE
            count = storage.data_ptr() + storage.nbytes() - start
            madvise(ctypes.c_void_p(start), ctypes.c_size_t(count), getattr(mmap, advice))

    def close(self) -> None:
        self._tensors.clear()


class TorchWriter:
    """Writes one `.pth` file: collects the tensors and saves them on close, in layout order."""

    def __init__(self, folder: str | Path, layout: Layout):
        try:
            import torch  # noqa: F401
        except ImportError:
            (name,) = layout.headers
            raise ConversionError(
                f"{name} needs torch to be written: pip install 'icp-jax[torch]'"
            ) from None
        self.folder, self.layout = Path(folder), layout
        self._tensors: dict[str, np.ndarray] = {}
        shards(self.folder, layout.headers, TORCH, "the layout")

    def __enter__(self) -> TorchWriter:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self.close() if error is None else self.abandon()

    def write(self, name: str, tensor: np.ndarray) -> None:
        """Collect one tensor, in torch's order. Shape and dtype must match the layout."""
        check_tensor(self.layout.entries[name], name, tensor)
        self._tensors[name] = np.array(tensor, order="C")

    def close(self) -> None:
        """Save the file. Raises OSError if the disk is full."""
        import torch

        (shard,) = self.layout.headers
        state = {name: to_torch(self._tensors[name]) for name in self.layout.entries}
        try:
            with create(self.folder, shard) as file:
                torch.save(state, file)
        except RuntimeError as error:  # torch's error for a failed write
            raise OSError(errno.ENOSPC, first_line(error), str(self.folder / shard)) from None

    def abandon(self) -> None:
        """Drop the tensors; nothing is written before close."""
        self._tensors.clear()


def to_torch(tensor: np.ndarray) -> Any:
    """A torch tensor that shares the array's memory."""
    import torch

    if tensor.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(tensor.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(tensor)


def _file_layout(name: str, tensors: Mapping[str, tuple[np.dtype, tuple[int, ...]]]) -> Layout:
    entries = {
        k: Entry(name, dtype, shape, 0, int(np.prod(shape, dtype=np.int64)) * dtype.itemsize)
        for k, (dtype, shape) in tensors.items()
    }
    return Layout({name: b""}, entries, torch=True)
