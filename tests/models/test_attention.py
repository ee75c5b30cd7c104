"""Which attention a device gets. What cuDNN computes cannot be seen without it."""

from types import SimpleNamespace

import pytest

from icp_jax.backend import current as backend
from icp_jax.models import attention

CUDA, ROCM = "PJRT C API\ncuda 13000", "PJRT C API\nrocm 70000"


@pytest.mark.parametrize(
    "platform,version,capability,taken,refused",
    [
        ("gpu", CUDA, "9.0", (64, 80, 128, 256), (4, 100, 264)),
        ("gpu", CUDA, "8.9", (64, 80, 128), (100, 136, 256)),
        ("gpu", CUDA, "12.0", (64, 128), (100, 256)),
        ("gpu", CUDA, "7.5", (), (64, 128)),
        ("gpu", ROCM, "gfx942", (), (64, 128)),
        ("cpu", "cpu", None, (), (64, 128)),
    ],
)
def test_cudnn_is_asked_only_for_what_it_has(
    monkeypatch, platform, version, capability, taken, refused
):
    client = SimpleNamespace(platform_version=version)
    device = SimpleNamespace(platform=platform, client=client, compute_capability=capability)
    monkeypatch.setattr(backend, "device", lambda: device)
    assert [attention._cudnn_takes(d) for d in taken] == [True] * len(taken)
    assert [attention._cudnn_takes(d) for d in refused] == [False] * len(refused)
