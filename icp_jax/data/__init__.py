"""Calibration and evaluation tokens from hub datasets, local text or token ids.

A corpus is a single text, a set of documents or chats, or rows of token ids. Calibration windows
are drawn at random: from places in a text that do not overlap, or from documents longer than a
window. If no document is long enough, the documents are joined. Rows of exactly one window, such as
those of a 2-D `.npy` file, are used unchanged. Evaluation joins the corpus and cuts it into windows
that do not overlap. Tokens masked by an `attention_mask` are dropped first.
"""

from icp_jax.data.corpus import Corpus, Encode, Piece
from icp_jax.data.files import load_corpus
from icp_jax.data.named import HUB
from icp_jax.data.tokenizer import Encoder, vocabulary
from icp_jax.data.windows import calibration_tokens, evaluation_windows, joined, length_of, window

__all__ = [
    "HUB",
    "Corpus",
    "Encode",
    "Encoder",
    "Piece",
    "calibration_tokens",
    "evaluation_windows",
    "joined",
    "length_of",
    "load_corpus",
    "vocabulary",
    "window",
]
