"""The miniature's tokenizers: a CLIP byte-pair tokenizer and a T5 unigram tokenizer over the world's few words.

Both know every printable ASCII character, so any prompt has an encoding; words of the world are one token each. The
T5 vocabulary holds no run of capitals, so a quoted word is spelled letter by letter.
"""

import json
import string
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTokenizer, T5Tokenizer

from star.miniature.world import CLASSES
from star.prompts.geneval import COLORS, COUNT_WORDS, RELATIONS, plural

CLIP_LENGTH = 16
T5_LENGTH = 16


def world_words() -> list[str]:
    """Every lower-case word that a prompt of the world can hold, sorted."""
    phrases = [*CLASSES, *map(plural, CLASSES), *COLORS, *RELATIONS, *COUNT_WORDS.values()]
    phrases += ["a photo of an and", "a sign that says"]
    return sorted({word for phrase in phrases for word in phrase.split()})


def save_clip_tokenizer(folder: Path) -> None:
    """Write ``vocab.json`` and ``merges.txt`` of a CLIP tokenizer and load it once to check them."""
    folder.mkdir(parents=True, exist_ok=True)
    words = world_words()
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(vocab_size=10_000, end_of_word_suffix="</w>", show_progress=False)
    bpe.train_from_iterator([" ".join(words)], trainer)
    merges = json.loads(bpe.to_str())["model"]["merges"]
    characters = [chr(code) for code in range(33, 127)]
    pieces = characters + [c + "</w>" for c in characters] + ["".join(pair) for pair in merges]
    pieces = list(dict.fromkeys(pieces)) + ["<|startoftext|>", "<|endoftext|>"]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    (folder / "vocab.json").write_text(json.dumps(vocab))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in merges) + "\n")
    CLIPTokenizer(vocab=vocab, merges=[tuple(pair) for pair in merges], model_max_length=CLIP_LENGTH).save_pretrained(
        folder
    )


def save_t5_tokenizer(folder: Path) -> None:
    """Write a T5 unigram tokenizer: the world's words, then single characters with and without the word mark."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces += [(f"▁{word}", -2.0) for word in world_words()]
    characters = string.ascii_letters + string.digits + string.punctuation
    pieces += [("▁", -4.0)] + [(c, -8.0) for c in characters] + [("▁" + c, -9.0) for c in characters if c != "a"]
    tokenizer = T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=T5_LENGTH)
    tokenizer.save_pretrained(folder)
