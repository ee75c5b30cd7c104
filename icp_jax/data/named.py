"""The data sets wikitext2, ptb and c4, read as in the pruning literature."""

from __future__ import annotations

import contextlib

from icp_jax.data import hub
from icp_jax.data.corpus import GAP, Corpus
from icp_jax.data.hub_errors import pass_on, reason
from icp_jax.errors import InputError

REPOSITORIES = {
    "c4": "allenai/c4",
    "wikitext2": "Salesforce/wikitext",
    "ptb": "ptb-text-only/ptb_text_only",
}
HUB = tuple(REPOSITORIES)
C4_TRAIN = "en/c4-train.00000-of-01024.json.gz"
C4_VALIDATION = "en/c4-validation.00000-of-00008.json.gz"


def from_hub(name: str, evaluation: bool) -> Corpus:
    """Load a data set of HUB. Raises InputError if it is not available."""
    import datasets  # noqa: F401  its import sets the log level, so it must precede `quiet`

    refusal: Exception | None = None
    with hub.quiet():
        try:
            hub.ask(REPOSITORIES[name], "dataset")
        except Exception as error:  # the hub's clients raise unrelated types
            refusal = error
        try:
            with hub.cache_alone() if refusal else contextlib.nullcontext():
                return _load(name, evaluation)
        except Exception as error:  # `pass_on` re-raises errors not caused by the hub
            pass_on(error)
            why = reason(refusal or error)
        raise InputError(
            f"dataset {name} could not be loaded ({why}); "
            "give a local .txt, .jsonl, .npy or Arrow folder instead"
        )


def _load(name: str, evaluation: bool) -> Corpus:
    import datasets  # version 4 and later never run a data set's own code

    path = REPOSITORIES[name]
    if name == "wikitext2":
        split = "test" if evaluation else "train"
        rows = datasets.load_dataset(path, "wikitext-2-raw-v1", split=split)
        return Corpus(name, [(GAP if evaluation else " ").join(rows["text"])])
    if name == "ptb":
        rows = datasets.load_dataset(
            path,
            "penn_treebank",
            split="test" if evaluation else "train",
            revision="refs/convert/parquet",
        )
        return Corpus(name, [" ".join(rows["sentence"])])
    files = {"validation": C4_VALIDATION} if evaluation else {"train": C4_TRAIN}
    rows = datasets.load_dataset(path, data_files=files, split=next(iter(files)))
    if evaluation:
        return Corpus(name, [" ".join(rows[:1100]["text"])], limit=256)
    return Corpus(name, rows["text"])
