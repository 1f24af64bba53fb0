"""What `matvit convert` does: find the encoder, convert it, say what every step was worth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from app.console import say
from matvit import MatViT, checkpoint, count_macs, trained_sizes
from matvit.conversion import CUT, REORDERED, TRAINED, conversion_recipe, split
from matvit.conversion import convert as run
from matvit.training import LabelledPixels
from retrieval import Agreement, Agreements

REPORT = "report.json"
_DATABASE = 5000
_HEADINGS = {CUT: "cut as it is", REORDERED: "reordered", TRAINED: "trained"}


def find_encoder(source: str, img_size: int | None = None) -> MatViT:
    """Load a bundled encoder, a checkpoint folder, or a timm Vision Transformer by name.

    Raises:
        FileNotFoundError: If it is a path where nothing is.
        ValueError: If it can be neither loaded nor converted.
    """
    is_ours = source in checkpoint.bundled() or Path(source).exists()
    if is_ours and img_size is not None:
        raise ValueError("--image-size is for encoders that timm loads; this one has its own")
    if is_ours:
        return MatViT.load(source)
    if "/" in source and ":" not in source:
        raise FileNotFoundError(f"no encoder {source!r}: there is no such folder")
    from matvit.conversion import from_timm

    return from_timm(source, img_size=img_size)


def run_conversion(
    model: MatViT,
    data: LabelledPixels,
    out: Path,
    *,
    training: bool,
    settings: dict[str, Any],
    seed: int,
    device: str,
    resume: bool,
    progress: bool,
) -> list[dict[str, Any]]:
    """Convert an encoder, and measure what each stage was worth on images held out.

    Args:
        model: The encoder.
        data: All images; some are held out as queries, the others are trained on and, 5,000 at
            most, are also the database that the queries are asked against.
        out: Folder for the encoder and the report.
        training: Whether to train, or only to sort the hidden units.
        settings: Keyword arguments of `conversion_recipe`.
        seed: See `matvit.conversion.conversion.convert`.
        device: See there.
        resume: See there.
        progress: Show progress bars.

    Returns:
        One row per size, as `--json` prints it.
    """
    shown, held_out = split(data)
    recipe = conversion_recipe(model, len(shown), **settings) if training else None
    sizes = trained_sizes(model.config)
    judge = Agreements(model, shown.sample(_DATABASE).pixels, held_out.pixels)
    stages: dict[str, list[Agreement]] = {}

    def watch(stage: str, encoder: MatViT) -> None:
        stages[stage] = judge.measure(encoder, sizes)
        if stage == REORDERED and stages[stage] == stages[CUT]:
            say("Another order of the hidden units is no better; they stay as they are.")
            return
        say(f"{_HEADINGS[stage]}: S agrees with the full size on {stages[stage][0].overlap:.1%}")

    say(f"{len(shown):,} images to learn from, {len(held_out):,} held out.")
    run(
        model, shown, out, recipe,
        seed=seed, device=device, resume=resume, progress=progress, watch=watch,
    )  # fmt: skip
    full = count_macs(model.config, model.submodel())
    rows = [
        {
            "submodel": str(size),
            "macs": count_macs(model.config, size),
            "macs_fraction": count_macs(model.config, size) / full,
            **{stage: _figures(stages, stage, row) for stage in _HEADINGS},
        }
        for row, size in enumerate(sizes)
    ]
    report = {
        "encoder": {"name": model.name, "fingerprint": model.fingerprint},
        "images": len(shown),
        "database": min(_DATABASE, len(shown)),
        "held_out": len(held_out),
        "seed": seed,
        "recipe": None if recipe is None else recipe.to_dict(),
        "sizes": rows,
    }
    (out / REPORT).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return rows


def format_rows(rows: list[dict[str, Any]]) -> str:
    """Lay the rows out for people."""
    stages = [stage for stage in _HEADINGS if rows[0][stage] is not None]
    lines = [f"{'':22}" + "".join(f"{_HEADINGS[stage]:>22}" for stage in stages)]
    lines.append(
        f"{'size':<6}{'GMACs':>8}{'of full':>8}" + f"{'cosine':>11}{'overlap@10':>11}" * len(stages)
    )
    for row in rows:
        line = f"{row['submodel']:<6}{row['macs'] / 1e9:>8.3f}{row['macs_fraction']:>8.0%}"
        for stage in stages:
            line += f"{row[stage]['cosine']:>11.4f}{row[stage]['overlap@10']:>11.3f}"
        lines.append(line)
    return "\n".join(lines)


def _figures(stages: dict[str, list[Agreement]], stage: str, row: int) -> dict[str, float] | None:
    if stage not in stages:
        return None
    return {"cosine": stages[stage][row].cosine, "overlap@10": stages[stage][row].overlap}
