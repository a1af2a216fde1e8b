"""Text to batches: documents out of files, tokens on disk, windows in a fixed random order.

One name of the door is a module: ``tokenizer``, with ``train_tokenizer`` and ``PlainEncoder``.
"""

from moiety.data import tokenizer
from moiety.data.documents import Skipped
from moiety.data.judging import DocumentNats
from moiety.data.packed import PackedText
from moiety.data.packing import pack_split, pack_text
from moiety.data.reading import Sources
from moiety.data.tokenizer import load_tokenizer

__all__ = [
    "DocumentNats",
    "PackedText",
    "Skipped",
    "Sources",
    "load_tokenizer",
    "pack_split",
    "pack_text",
    "tokenizer",
]
