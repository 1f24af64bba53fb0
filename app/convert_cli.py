"""The commands that take over encoders of others: `matvit convert` and `matvit import-scenic`."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

import indexing
import matvit
import retrieval
from app.options import Device, DeviceOption, JsonOption, SeedOption, refuse_full
from app.output import exit_with_failures, say, show, show_json
from matvit import conversion, training

_REPORT, _DATABASE = "report.json", 5000

_STAGES = {
    "cut": "cut as it is", "reordered": "reordered", "fitted": "fitted", "trained": "trained",
}  # fmt: skip
"""Of a conversion, as `--json` and people read them."""


class RankBy(StrEnum):
    """What makes a hidden unit important."""

    ENERGY = "energy"
    FIRST_ORDER = "first-order"


class Fit(StrEnum):
    """How images become square."""

    AUTO = "auto"
    CROP = "crop"
    SQUASH = "squash"


def convert(
    encoder: Annotated[
        str,
        typer.Argument(
            metavar="ENCODER",
            help="Bundled encoder, folder of ours or of Hugging Face's, hf-hub:owner/name, or a "
            "timm Vision Transformer by name.",
        ),
    ],
    images: Annotated[str, typer.Option(help="Folder of images, Parquet or tar files; no labels.")],
    out: Annotated[Path, typer.Option(help="Folder for the converted encoder.")],
    weights: Annotated[
        Path | None,
        typer.Option(help="File with the weights of that timm model: .safetensors or .pt."),
    ] = None,
    no_training: Annotated[
        bool, typer.Option("--no-training", help="Only sort the hidden units by importance.")
    ] = False,
    rank_by: Annotated[
        RankBy, typer.Option(help="Importance of a hidden unit: output energy, or its derivative.")
    ] = RankBy.ENERGY,
    least_squares: Annotated[
        bool,
        typer.Option("--least-squares", help="Then fit what is kept to what was lost: no steps."),
    ] = False,
    epochs: Annotated[
        float | None,
        typer.Option(min=0.01, help="Passes over the images [default: 100,000 seen, 30 at most]."),
    ] = None,
    batch_size: Annotated[int | None, typer.Option(min=2, help="Images per step.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak, above 0.")] = None,
    merging: Annotated[
        bool, typer.Option("--merging", help="Train submodels that merge tokens (S~) too.")
    ] = False,
    max_images: Annotated[
        int, typer.Option(min=20, help="Decode at most this many; they are kept in memory.")
    ] = 20_000,
    img_size: Annotated[
        int | None,
        typer.Option(
            "--image-size", min=1, help="Side of the input, for encoders of timm and Hugging Face."
        ),
    ] = None,
    seed: SeedOption = 0,
    device: DeviceOption = Device.AUTO,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where it stopped.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Make any Vision Transformer elastic, without labels.

    An index made with ENCODER stays valid.
    """
    conversion.check_target(out, resume=resume)
    where = matvit.resolve_device(device.value)
    model = _find_encoder(encoder, img_size, weights).to(where)
    data = training.LabelledPixels.load(
        indexing.Corpus.open(images), model.preprocess,
        labels=False, limit=max_images, progress=True,
    )  # fmt: skip
    settings = {
        "epochs": epochs, "batch_size": batch_size, "learning_rate": learning_rate,
        "merging": merging,
    }  # fmt: skip
    rows = _convert_and_judge(
        model, data, out, None if no_training else settings,
        ranking=rank_by.value, least_squares=least_squares,
        seed=seed, device=device.value, resume=resume, progress=True,
    )  # fmt: skip
    if as_json:
        for row in rows:
            show_json(row)
    else:
        show(*_table(rows))
    say(f"{model.name} at full size is unchanged ({model.fingerprint}); the encoder is in {out}.")
    exit_with_failures(data.skipped)


def import_scenic(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="Checkpoint of a MatViT of scenic, as flax writes it."),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the encoder.")],
    fit: Annotated[
        Fit,
        typer.Option(help="How images become square [auto: squashed for 384 px, else cropped]."),
    ] = Fit.AUTO,
) -> None:
    """Take over a MatViT that google-research/scenic trained, with all its sizes."""
    refuse_full(out)
    model = conversion.from_scenic(file, fit=fit.value)
    model.save(out, training={"imported_from": "scenic", "file": file.name})
    config = model.config
    say(
        f"{model.name}: {config.depth} blocks of dimension {config.embed_dim}, "
        f"{config.img_size} px, images {model.preprocess.fit}; "
        f"the encoder ({model.fingerprint}) is in {out}."
    )


def _find_encoder(
    source: str, img_size: int | None = None, weights: Path | None = None
) -> matvit.MatViT:
    """Load an encoder of ours, of Hugging Face's or of timm's.

    Args:
        source: Bundled name, folder, `hf-hub:owner/name`, or timm's name.
        img_size: Side of the input.
        weights: File with the weights of a timm model.

    Raises:
        FileNotFoundError: If it is a path where nothing is.
        ValueError: If it can be neither loaded nor converted.
    """
    if weights is not None:
        if source in matvit.bundled_encoders() or Path(source).exists():
            raise ValueError(f"--weights go with the name of a timm model; {source} has its own")
        return conversion.from_timm(source, weights=weights, img_size=img_size)
    folder = Path(source)
    if matvit.is_on_hub(source):
        folder = matvit.hub_folder(source)
    if conversion.is_huggingface(folder):
        return conversion.from_huggingface(folder, img_size=img_size)
    if conversion.is_timm(folder):
        return conversion.from_timm(f"local-dir:{folder}", img_size=img_size)
    if source in matvit.bundled_encoders() or folder.exists():
        if img_size is not None:
            raise ValueError("--image-size is for encoders that timm loads; this one has its own")
        return matvit.MatViT.load(source)
    if "/" in source and ":" not in source:
        raise FileNotFoundError(f"no encoder {source!r}: there is no such folder")
    return conversion.from_timm(source, img_size=img_size)


def _convert_and_judge(
    model: matvit.MatViT,
    data: training.LabelledPixels,
    out: Path,
    settings: dict[str, Any] | None,
    **how: Any,  # noqa: ANN401
) -> list[dict[str, Any]]:
    """Convert an encoder, and measure what each stage was worth on images held out.

    Args:
        model: The encoder.
        data: All images; some are held out as queries, the others are trained on and, 5,000 at
            most, are also the database that the queries are asked against.
        out: Folder for the encoder and the report.
        settings: Keyword arguments of `conversion_recipe`; None to sort the hidden units only.
        how: Keyword arguments of `matvit.conversion.convert`.

    Returns:
        One row per size, as `--json` prints it.
    """
    shown, held_out = conversion.split(data)
    recipe = None
    if settings is not None:
        recipe = conversion.conversion_recipe(model, len(shown), **settings)
    sizes = matvit.trained_sizes(model.config)
    judge = retrieval.Agreements(model, shown.sample(_DATABASE).pixels, held_out.pixels)
    stages: dict[str, list[retrieval.Agreement]] = {}

    def watch(stage: str, encoder: matvit.MatViT) -> None:
        stages[stage] = judge.measure(encoder, sizes)
        if stage == "reordered" and stages[stage] == stages["cut"]:
            say("Another order of the hidden units is no better; they stay as they are.")
            return
        say(f"{_STAGES[stage]}: S agrees with the full size on {stages[stage][0].overlap:.1%}")

    say(f"{len(shown):,} images to learn from, {len(held_out):,} held out.")
    conversion.convert(model, shown, out, recipe, watch=watch, **how)
    full = matvit.count_macs(model.config, model.submodel())
    rows = [
        {
            "submodel": str(size),
            "macs": matvit.count_macs(model.config, size),
            "macs_fraction": matvit.count_macs(model.config, size) / full,
            **{stage: _figures(stages[stage][row]) if stage in stages else None
               for stage in _STAGES if stage != "fitted" or stage in stages},
        }
        for row, size in enumerate(sizes)
    ]  # fmt: skip
    report = {
        "encoder": {"name": model.name, "fingerprint": model.fingerprint},
        "images": len(shown),
        "database": min(_DATABASE, len(shown)),
        "held_out": len(held_out),
        "seed": how["seed"],
        "recipe": None if recipe is None else recipe.to_dict(),
        "sizes": rows,
    }
    text = json.dumps(report, indent=2) + "\n"
    matvit.write_atomically(out / _REPORT, lambda stream: stream.write(text.encode()))
    return rows


def _figures(found: retrieval.Agreement) -> dict[str, float]:
    return {"cosine": found.cosine, "overlap@10": found.overlap}


def _table(rows: list[dict[str, Any]]) -> list[str]:
    """Lay the rows out for people."""
    stages = [stage for stage in _STAGES if rows[0].get(stage) is not None]
    lines = [
        f"{'':22}" + "".join(f"{_STAGES[stage]:>22}" for stage in stages),
        f"{'size':<6}{'GMACs':>8}{'of full':>8}"
        + f"{'cosine':>11}{'overlap@10':>11}" * len(stages),
    ]
    for row in rows:
        line = f"{row['submodel']:<6}{row['macs'] / 1e9:>8.3f}{row['macs_fraction']:>8.0%}"
        for stage in stages:
            line += f"{row[stage]['cosine']:>11.4f}{row[stage]['overlap@10']:>11.3f}"
        lines.append(line)
    return lines
