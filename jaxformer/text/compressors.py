"""What general compressors make of a text, as marks to measure a language model against."""

import lzma
import zlib
from collections.abc import Iterable


def bits_per_byte(held_out: Iterable[str], training: Iterable[str]) -> dict[str, float]:
    """Bits that each byte of the held-out texts (UTF-8, on end) costs.

    zlib (level 9) and lzma (preset 9, extreme) see the held-out text alone; "primed lzma" has read the training
    text before: what the held-out text adds to its compressed size.
    """
    text, before = ("".join(texts).encode() for texts in (held_out, training))
    return {
        "zlib": 8 * len(zlib.compress(text, 9)) / len(text),
        "lzma": 8 * _lzma(text) / len(text),
        "primed lzma": 8 * (_lzma(before + text) - _lzma(before)) / len(text),
    }


def _lzma(data: bytes) -> int:
    """Compressed size, with a window over all of it: a primed compressor must not have forgotten the beginning."""
    window = {
        "id": lzma.FILTER_LZMA2,
        "preset": 9 | lzma.PRESET_EXTREME,
        "dict_size": max(len(data), 1 << 16),
    }
    return len(lzma.compress(data, lzma.FORMAT_XZ, filters=[window]))
