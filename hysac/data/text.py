"""Captions as tokens: as ordinary text, and as a whole.

A CLIP tokenizer reads ``<end_of_text>`` in a caption as the token of that name, and the encoder ignores
the rest. It also drops everything beyond its context. Here such spellings are characters like others,
and a long text can be read in windows.
"""

from __future__ import annotations

import copy
from typing import Any

import regex
import torch
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor


def as_plain_text(tokenizer: Any) -> Any:
    """A tokenizer that reads no spelling in a text as a special token; other texts keep their tokens.

    Args:
        tokenizer: one of open_clip's. Its own BPE is copied, a Hugging Face one is set.
    """
    if isinstance(tokenizer, SimpleTokenizer):
        special = [tokenizer.decoder[token] for token in tokenizer.all_special_ids]
        plain = copy.copy(tokenizer)
        plain.pat = regex.compile(
            tokenizer.pat.pattern.removeprefix("|".join(special) + "|"), regex.IGNORECASE
        )
        plain.cache = {}
        return plain
    if hasattr(getattr(tokenizer, "tokenizer", None), "split_special_tokens"):
        tokenizer.tokenizer.split_special_tokens = True
    return tokenizer


def text_windows(tokenizer: Any, text: str) -> Tensor:
    """Tokens of a whole text in windows, each of which overlaps the one before by half or more.

    Args:
        tokenizer: open_clip's own BPE; another one gives a single row, cut off where its context ends.
        text: any.

    Returns:
        ``(W, L)`` int64. The first row is what the tokenizer makes of the text.
    """
    if not isinstance(tokenizer, SimpleTokenizer) or tokenizer.reduction_fn is not None:
        return tokenizer([text])
    tokens = tokenizer.encode(text)
    room = tokenizer.context_length - 2
    last = max(len(tokens) - room, 0)
    starts = [*range(0, last, max(room // 2, 1)), last]
    rows = torch.zeros(len(starts), tokenizer.context_length, dtype=torch.long)
    for row, start in zip(rows, starts, strict=True):
        part = [tokenizer.sot_token_id, *tokens[start : start + room], tokenizer.eot_token_id]
        row[: len(part)] = torch.tensor(part)
    return rows
