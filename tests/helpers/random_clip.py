"""A CLIP of few random weights for the tests of rewards."""

from pathlib import Path

from transformers import CLIPConfig, CLIPModel, CLIPProcessor


def save_random_clip(folder: Path, processor: CLIPProcessor, positions: int) -> None:
    """Write a CLIP of few random weights with its processor; texts have ``positions``."""
    tokenizer, side = processor.tokenizer, processor.image_processor.crop_size["height"]
    tower = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    text = tower | {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": positions,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    vision = tower | {"image_size": side, "patch_size": 16}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision)).save_pretrained(folder)
    processor.save_pretrained(folder)
