"""wikitext2, ptb and c4, as the pruning papers read them."""

from __future__ import annotations

from icp_jax import hub
from icp_jax.data.corpus import GAP, Corpus
from icp_jax.errors import InputError

HUB = ("c4", "wikitext2", "ptb")
C4_TRAIN = "en/c4-train.00000-of-01024.json.gz"
C4_VALIDATION = "en/c4-validation.00000-of-00008.json.gz"


def from_hub(name: str, evaluation: bool) -> Corpus:
    """One of HUB. Raises InputError where it cannot be had."""
    try:
        with hub.quiet():
            return _load(name, evaluation)
    except Exception as error:  # no network, a moved data set: the library's errors share no base
        hub.pass_on(error)
        raise InputError(
            f"dataset {name} could not be loaded ({hub.reason(error)}); "
            "give a local .txt, .jsonl, .npy or Arrow folder instead"
        ) from None


def _load(name: str, evaluation: bool) -> Corpus:
    import datasets  # whose version 4 and later run no code of a data set's own

    if name == "wikitext2":
        split = "test" if evaluation else "train"
        rows = datasets.load_dataset("Salesforce/wikitext", "wikitext-2-raw-v1", split=split)
        return Corpus(name, [(GAP if evaluation else " ").join(rows["text"])])
    if name == "ptb":
        rows = datasets.load_dataset(
            "ptb-text-only/ptb_text_only",
            "penn_treebank",
            split="test" if evaluation else "train",
            revision="refs/convert/parquet",
        )
        return Corpus(name, [" ".join(rows["sentence"])])
    files = {"validation": C4_VALIDATION} if evaluation else {"train": C4_TRAIN}
    rows = datasets.load_dataset("allenai/c4", data_files=files, split=next(iter(files)))
    if evaluation:
        return Corpus(name, [" ".join(rows[:1100]["text"])], limit=256)
    return Corpus(name, rows["text"])
