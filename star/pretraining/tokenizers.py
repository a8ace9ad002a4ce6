"""The miniature's tokenizers: a CLIP byte-pair tokenizer and a T5 unigram tokenizer over the
world's few words.

Both know every printable ASCII character, so any prompt has an encoding; words of the world are one
token each. The T5 vocabulary holds no run of capitals, so a quoted word is spelled letter by
letter."""

import string
from collections import Counter
from itertools import pairwise
from pathlib import Path

from transformers import CLIPTokenizer, T5Tokenizer

from star.miniature.world import CLASSES
from star.prompts.geneval import COLORS, COUNT_WORDS, RELATIONS, plural

CLIP_LENGTH = 16
T5_LENGTH = 16


def world_words() -> list[str]:
    """Return every lower-case word that a prompt of the world can hold, sorted."""
    phrases = [*CLASSES, *map(plural, CLASSES), *COLORS, *RELATIONS, *COUNT_WORDS.values()]
    phrases += ["a photo of an and", "a sign that says"]
    return sorted({word for phrase in phrases for word in phrase.split()})


def save_clip_tokenizer(folder: Path) -> None:
    """Write a CLIP byte-pair tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    words = world_words()
    merges = _byte_pair_merges(words)
    characters = [chr(code) for code in range(33, 127)]
    pieces = characters + [c + "</w>" for c in characters] + ["".join(pair) for pair in merges]
    pieces = list(dict.fromkeys([*pieces, "<|startoftext|>", "<|endoftext|>"]))
    vocab = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=CLIP_LENGTH)
    tokenizer.save_pretrained(folder)


def _byte_pair_merges(words: list[str]) -> list[tuple[str, str]]:
    """Return merges that make each word one token: the most frequent pair first.

    Ties go by the alphabet. The trainer of the `tokenizers` library breaks them by hash order,
    which differs from process to process."""
    spelled = [[*word[:-1], word[-1] + "</w>"] for word in words]
    merges: list[tuple[str, str]] = []
    while pairs := Counter(pair for pieces in spelled for pair in pairwise(pieces)):
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        spelled = [_merged(pieces, best) for pieces in spelled]
    return merges


def _merged(pieces: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for piece in pieces:
        if merged and (merged[-1], piece) == pair:
            merged[-1] += piece
        else:
            merged.append(piece)
    return merged


def save_t5_tokenizer(folder: Path) -> None:
    """Write a T5 unigram tokenizer: the world's words, then single characters with and without the
    word mark."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces += [(f"▁{word}", -2.0) for word in world_words()]
    characters = string.ascii_letters + string.digits + string.punctuation
    pieces += [("▁", -4.0), *((character, -8.0) for character in characters)]
    pieces += [(f"▁{character}", -9.0) for character in characters if character != "a"]
    tokenizer = T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=T5_LENGTH)
    tokenizer.save_pretrained(folder)
