"""What must be as it was for a run to go on, what need not, and what is said of a difference."""

import contextlib
import dataclasses
import re
import shutil
import threading

import pytest
import test_resume
from runs import contents
from test_resume import config_for, cut_off

from icp_jax import PruneConfig
from icp_jax.config import MemoryConfig
from icp_jax.errors import Kept
from icp_jax.runs import door, fingerprint
from icp_jax.runs.fingerprint import Weights
from icp_jax.runs.run import prune_folder
from icp_jax.streaming.source import FolderSource

place, whole = test_resume.place, test_resume.whole  # its fixtures


def other_settings(place, config):
    return dataclasses.replace(config, prune=PruneConfig(sparsity=0.6), seed=3)


def other_weights(place, config):
    shard = sorted((place / "model").glob("*.safetensors"))[1]
    data = bytearray(shard.read_bytes())
    data[-3] ^= 1
    shard.write_bytes(data)
    return config


def other_tokens(place, config):
    text = place / "text.txt"
    text.write_text(text.read_text()[::-1])
    return config


CHANGES = {
    "settings": (other_settings, "prune.sparsity was 0.5, is 0.6; seed was 0, is 3;"),
    "source": (other_weights, "source model-00002-of-0000..safetensors changed;"),
    "tokens": (other_tokens, "calibration_tokens changed;"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_refused_and_shown(place, change):
    spoil, message = CHANGES[change]
    cut_off(config_for(place), 2, "prune")
    before = sorted((place / "work").rglob("*"))
    with pytest.raises(Kept, match=message):
        prune_folder(spoil(place, config_for(place)), resume=True)
    assert sorted((place / "work").rglob("*")) == before


def test_another_version_is_refused_and_shown(place, monkeypatch):
    cut_off(config_for(place), 1, "prune")
    monkeypatch.setattr("icp_jax.runs.records.version", lambda package: "99")
    with pytest.raises(Kept, match=r"version of icp-jax was .*, is 99"):
        prune_folder(config_for(place), resume=True)


def test_what_does_not_matter_may_change(place, whole):
    """The same model and text at another place."""
    cut_off(config_for(place), 1, "prune")
    shutil.move(place / "model", place / "moved")
    config = dataclasses.replace(config_for(place), model=str(place / "moved"))
    prune_folder(config, resume=True)
    found, record = contents(place / "work" / "out")
    assert found == whole[0] and record["blocks"] == whole[1]["blocks"]


def test_the_batch_that_was_begun_with_is_kept(place):
    """Less memory may be free at the second try: what fits then must not change the sums."""
    config = config_for(place, memory=MemoryConfig(batch_tokens=64))
    prune_folder(dataclasses.replace(config, out=str(place / "work" / "whole")))
    cut_off(config, 2, "prune")
    prune_folder(config_for(place), resume=True)
    assert contents(place / "work" / "out") == contents(place / "work" / "whole")


def test_the_record_says_what_was_chosen_and_going_on_takes_limits(place, whole):
    """What was left open is on record as it was run; a limit given later only moves the streams."""
    assert whole[1]["config"]["memory"]["batch_tokens"] == 1024
    assert whole[1]["config"]["memory"]["remat"] is False
    cut_off(config_for(place), 1, "sparse")
    prune_folder(config_for(place, memory=MemoryConfig("disk", host="20GiB")), resume=True)
    assert contents(place / "work" / "out")[0] == whole[0]


def test_a_limit_that_only_another_batch_would_fit(place):
    cut_off(config_for(place), 1, "sparse")
    with pytest.raises(Kept, match="it lacks .*; a resumed run keeps the batch size and remat"):
        prune_folder(config_for(place, memory=MemoryConfig(host="1MiB")), resume=True)
    assert (place / "work" / ".out.partial" / "block-00000.json").exists()


def test_another_processor_is_refused(place, monkeypatch):
    cut_off(config_for(place), 1, "prune")
    assert re.fullmatch(r"\w+( \w+)+", fingerprint._arithmetic())
    monkeypatch.setattr(fingerprint, "_arithmetic", lambda: "x86_64 sse sse2")
    with pytest.raises(Kept, match="processor was .*, is x86_64 sse sse2; use the run.s original"):
        prune_folder(config_for(place), resume=True)


@pytest.mark.parametrize("host", [True, False])
def test_weights_are_hashed_while_programs_compile_for_an_accelerator(
    monkeypatch, opt_folder, host
):
    planned = threading.Event()

    class Watched(Weights):
        def __init__(self, source):
            assert planned.wait(20)
            super().__init__(source)

    monkeypatch.setattr(door, "Weights", Watched)
    monkeypatch.setattr(door.backend, "is_host", lambda: host)
    with contextlib.closing(FolderSource(opt_folder)) as source:
        hashed = door._hashing(source)  # on the CPU nothing is begun, elsewhere a thread waits
        planned.set()
        assert hashed().digests == Weights(source).digests
        monkeypatch.setattr(fingerprint, "sha256", lambda path: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            door._hashing(source)()
