"""Draws the allocation maps of any prompts, at every denoising step, as one image."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps

from star.config.params import AllocationParams, Params
from star.method.allocation import allocation_weights
from star.method.seeds import seed_of
from star.policy.adapter import adapter_file
from star.policy.loading import find_pipeline
from star.policy.rollout import trace_relevance
from star.policy.sd3 import load_policy
from star.preflight import check_core, check_writable
from star.prompts.core_content import with_core
from star.prompts.geneval import clauses_in
from star.prompts.ocr import quoted_spans
from star.prompts.records import PromptRecord
from star.system.errors import StarError, writing
from star.system.images import MAP_SIDE, overlay, paint
from star.system.memory import memory_for
from star.system.processes import ALONE
from star.training.credit import Credit

# Pixels: twice what is seen where a page shows the maps of eight steps 900 pixels wide.
GAP, LINE, BAR = 6, 36, 390
CELL = MAP_SIDE + GAP
FONT = ImageFont.load_default(26)
BLACK, GREY, CORE = "#1e1e28", "#787882", "#c82d46"
LEGEND = """bright: the advantage acts more there; 1: uniform
underlined: core content"""


def write_maps(
    params: Params,
    allocation: AllocationParams,
    prompts: Sequence[str],
    adapter: Path | None,
    seed: int,
    output: Path,
) -> None:
    """Draw each prompt in the steps of a rollout, without noise; write images and maps to a PNG.

    Args:
        allocation: how maps are made; the controls' rearrangements are not shown.
        adapter: folder of LoRA safetensors, None for the base model.
        seed: of the initial noise, which depends on the prompt, too.

    Raises:
        StarError: a file that cannot be written, an unusable adapter, prompt or model.
    """
    if output.suffix != ".png":
        raise StarError(f"--output {output}: give the name of a PNG file, such as maps.png")
    check_writable(output.parent, "the output folder")
    if adapter is not None:
        adapter_file(adapter)
    records = with_core(_record(number, prompt) for number, prompt in enumerate(prompts, 1))
    check_core(find_pipeline(params.model), params.model, params.core, allocation, records)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    policy = load_policy(params.model, device, adapter)
    policy.prepare_prompts(prompts)
    kinds, steps = params.core.weights, params.rollout.steps
    credit = Credit(policy, params.seed, kinds, params.train, allocation, ALONE)
    core, seeds = credit.core_keys(records, False), [seed_of(seed, "maps", p) for p in prompts]
    with memory_for("sample grid"):
        relevance, images = trace_relevance(policy, prompts, seeds, steps, core, allocation)
    lam, temporal, clause_maps = allocation.lam, allocation.temporal, allocation.clause_maps
    weights = allocation_weights(relevance, lam, temporal, clause_maps)[:, :, 0].cpu().numpy()
    sheet = draw_maps(records, kinds, images, weights, policy.schedule(steps).sigmas[:-1])
    with writing(output):
        output.parent.mkdir(parents=True, exist_ok=True)
        sheet.save(output, optimize=True)


def _record(number: int, prompt: str) -> PromptRecord:
    """Return a record of the task that has such prompts: a quotation, GenEval's forms, or any."""
    if quoted_spans(prompt):
        return PromptRecord(str(number), "ocr", prompt, {})
    if clauses := clauses_in(prompt):
        return PromptRecord(str(number), "geneval", prompt, {"include": clauses})
    return PromptRecord(str(number), "preference", prompt, {})


def draw_maps(
    records: Sequence[PromptRecord],
    kinds: Mapping[str, float],
    images: np.ndarray,
    weights: np.ndarray,
    sigmas: Sequence[float],
) -> Image.Image:
    """Return a sheet: of each prompt its image, and its map at each step on the image.

    Args:
        kinds: weight of each kind of core span; those above 0 are marked in the prompt.
        images: uint8 (prompts, height, width, 3).
        weights: allocation maps, float32 (prompts, steps, locations), on one scale of colours.
        sigmas: noise level of each step.
    """
    scale = float(weights.min()), float(weights.max())
    titles = [f"step {t}\nsigma {sigma:.3f}" for t, sigma in enumerate(sigmas, 1)]
    width = max(GAP + (1 + len(titles)) * CELL, 6 * CELL)  # room for the legend
    strips = [_strip(width, 2 * LINE)]
    for column, title in enumerate(["image", *titles]):
        place = GAP + column * CELL + MAP_SIDE // 2, LINE
        ImageDraw.Draw(strips[0]).text(place, title, GREY, FONT, anchor="mm", align="center")
    for record, image, maps in zip(records, images, weights, strict=True):
        row, final = _strip(width, CELL + 2 * GAP), Image.fromarray(image)
        row.paste(final.resize((MAP_SIDE, MAP_SIDE), Image.Resampling.LANCZOS), (GAP, 0))
        for column, step in enumerate(maps, 1):
            # Fewer colours make the file half as large, and nobody sees it.
            laid = ImageOps.posterize(overlay(image, step, scale), 6)
            row.paste(laid, (GAP + column * CELL, 0))
        core = [(span.start, span.end) for span in record.core or () if kinds[span.kind] > 0]
        strips += [_text(record.prompt, core, width), row]
    strips.append(_legend(*scale, width))
    sheet, y = _strip(width, sum(strip.height for strip in strips)), 0
    for strip in strips:
        sheet.paste(strip, (0, y))
        y += strip.height
    return sheet


def _strip(width: int, height: int) -> Image.Image:
    return Image.new("RGB", (width, height), "white")


def _text(prompt: str, core: Sequence[tuple[int, int]], width: int) -> Image.Image:
    """Return a prompt in as many lines as it needs, with these characters underlined."""
    x, y, places = float(GAP), GAP, []
    for token in re.finditer(r"\s+|\w+|[^\w\s]+", prompt):
        length = FONT.getlength(token[0])
        if x + length > width:
            x, y, length = float(GAP), y + LINE, 0.0 if token[0].isspace() else length
        places.append((x, y, length, token))
        x += length
    strip = _strip(width, y + LINE + GAP)
    draw = ImageDraw.Draw(strip)
    for x, y, length, token in places:
        marked = any(start < token.end() and token.start() < stop for start, stop in core)
        draw.text((x, y), token[0], CORE if marked else BLACK, FONT)
        if marked:
            draw.line((x, y + LINE - 4, x + length, y + LINE - 4), CORE, 2)
    return strip


def _legend(low: float, high: float, width: int) -> Image.Image:
    strip = _strip(width, 2 * (LINE + GAP))
    draw, levels = ImageDraw.Draw(strip), np.tile(np.linspace(0, 1, BAR), (LINE - GAP, 1))
    strip.paste(Image.fromarray(paint(levels, np.full(levels.shape, 128))), (GAP, GAP))
    one = GAP + BAR * (1 - low) / max(high - low, 1e-6)
    draw.line((one, GAP, one, LINE), "white", 2)
    for x, text, anchor in (
        (GAP, f"{low:.1f}", "la"),
        (one, "1", "ma"),
        (GAP + BAR, f"{high:.1f}", "ra"),
    ):
        draw.text((x, LINE + GAP), text, BLACK, FONT, anchor=anchor)
    draw.multiline_text((2 * GAP + BAR + LINE, GAP), LEGEND, BLACK, FONT, spacing=8)
    return strip
