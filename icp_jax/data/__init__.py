"""Calibration and evaluation tokens: from hub datasets, local text, or ready token ids.

A corpus is one running text, a set of documents, or rows of token ids. Calibration windows are
drawn at random: from a text anywhere, from documents out of those longer than a window (where
there are none, the documents are joined and treated as a text); rows that are exactly windows are
used as they are. Evaluation joins everything and cuts it into windows that do not overlap. Tokens
that an `attention_mask` leaves out are dropped before anything else.
"""

from icp_jax.data.corpus import Corpus, Encode, Piece
from icp_jax.data.files import load_corpus
from icp_jax.data.named import HUB
from icp_jax.data.tokenizer import Encoder, vocabulary
from icp_jax.data.windows import calibration_tokens, evaluation_windows, joined, window

__all__ = [
    "HUB",
    "Corpus",
    "Encode",
    "Encoder",
    "Piece",
    "calibration_tokens",
    "evaluation_windows",
    "joined",
    "load_corpus",
    "vocabulary",
    "window",
]
