"""Any encoder into an elastic one, without labels and without touching its index.

The full size stays what it was, bit for bit (see `AnchoredMatViT`), so an index made
with it stays valid. The smaller sizes get weights of their own: a copy whose hidden units are
sorted by importance and which is then trained until its vectors meet those of the original.

While it goes on, everything that a killed conversion needs lies in `OUT/conversion`.
"""

from __future__ import annotations

import hashlib
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import structs
from numpy.typing import NDArray

from matvit.checkpoint import SETTINGS, read_settings
from matvit.config import MatViTConfig
from matvit.conversion.fit import fit
from matvit.conversion.reorder import Ranking, reorder
from matvit.embedding import embed
from matvit.identity import without_head
from matvit.mixes import trained_sizes
from matvit.model import AnchoredMatViT, MatViT
from matvit.preprocess import Preprocess
from matvit.training.data import LabelledPixels
from matvit.training.recipes import recipe as find_recipe
from matvit.training.run import LOG, RECIPE, STATE, train
from matvit.training.schedule import Phase, Recipe, Schedule

CUT, REORDERED, FITTED, TRAINED = "cut", "reordered", "fitted", "trained"
"""Stages of a conversion: the original cut as it is, with sorted hidden units, with what is kept
fitted to what was lost, and trained."""

Watch = Callable[[str, MatViT], None]

_SORTING_IMAGES = 1024
_MIN_IMAGES = 20
_IMAGES_SEEN = 100_000
_MAX_EPOCHS = 30.0
_WORKPLACE, _START, _RUN = "conversion", "start", "run"


@dataclass(frozen=True, kw_only=True)
class ConversionRecipe(Recipe):
    """A recipe for an encoder that sees images in its own way.

    Args:
        images: Preprocessing of the encoder that is converted.
    """

    images: Preprocess

    def preprocess(self) -> Preprocess:
        """Return the preprocessing of the encoder that is converted."""
        return self.images


def conversion_recipe(
    model: MatViT,
    images: int,
    *,
    epochs: float | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    merging: bool = False,
) -> ConversionRecipe:
    """Return the `align` recipe, fitted to an encoder.

    Its phases at smaller input sizes are kept only if the encoder takes other sizes than its own.

    Args:
        model: What is converted.
        images: How many there are to train on.
        epochs: Passes over them; None is as many as show 100,000 images, 30 at most.
        batch_size: Images per step; None is the recipe's own.
        learning_rate: Peak of the schedule; None is the recipe's own, less for wider encoders.
        merging: Whether to train with merged tokens too, by the recipe `align-merging`.

    Raises:
        ValueError: If a setting is out of range, or they amount to no step at all.
    """
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    for name, value in (("learning_rate", learning_rate), ("epochs", epochs)):
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"{name} must be a number above 0, got {value}")
    base, config = find_recipe("align-merging" if merging else "align"), model.config
    if epochs is None:
        epochs = min(_MAX_EPOCHS, max(1.0, _IMAGES_SEEN / images))
    if learning_rate is None:
        learning_rate = base.learning_rate * min(1.0, base.model.embed_dim / config.embed_dim)
    share = epochs / sum(phase.epochs for phase in base.phases)
    phases = tuple(_fitted(phase, base.model, config, share) for phase in base.phases)
    settings: dict[str, Any] = {field.name: getattr(base, field.name) for field in fields(Recipe)}
    settings |= {"name": "convert", "model": config, "phases": phases}
    batch_size = base.batch_size if batch_size is None else batch_size
    settings |= {"learning_rate": learning_rate, "batch_size": batch_size}
    made = ConversionRecipe(**settings, images=model.preprocess)
    Schedule(made, images)  # says so if there is nothing to do
    return made


def convert(
    model: MatViT,
    data: LabelledPixels,
    out: str | Path,
    recipe: Recipe | None,
    *,
    ranking: Ranking = "energy",
    least_squares: bool = False,
    seed: int = 0,
    device: str = "auto",
    resume: bool = False,
    progress: bool = False,
    watch: Watch | None = None,
) -> MatViT:
    """Make an elastic encoder of any, and leave it in `out`.

    Args:
        model: The encoder; of one that was converted before, its full size.
        data: Images like those that it will see; their labels are not looked at.
        out: Folder for the encoder.
        recipe: How to train, as from `conversion_recipe`; None only sorts the hidden units.
        ranking: By what the hidden units are sorted; see `reorder`.
        least_squares: Whether their second matrices are fitted then; see `fit`.
        seed: Decides order, augmentation and random submodels.
        device: Where to train: `auto`, `cpu` or `cuda`.
        resume: Go on with a conversion that was stopped.
        progress: Show a progress bar.
        watch: Called with every stage's name and the encoder as it is then.

    Raises:
        FileExistsError: If `out` already holds something and `resume` is not set.
        FileNotFoundError: If `resume` is set and there is nothing to resume.
        ValueError: If what is in `out` was begun with something else, or has begun to train and
            `recipe` is None.
    """
    out, original = Path(out), full_size_of(model)
    tell: Watch = watch or (lambda _stage, _encoder: None)
    if recipe is None and (out / _WORKPLACE / _RUN / STATE).exists():
        raise ValueError(f"the conversion in {out} has begun to train; resume it with training")
    tell(CUT, original)
    start = _start(
        original, data, out, tell, ranking=ranking, least_squares=least_squares, resume=resume
    )
    trained = start
    if recipe is not None:
        trained = train(
            recipe,
            data,
            out / _WORKPLACE / _RUN,
            seed=seed,
            device=device,
            init=start,
            teacher=original,
            resume=_can_resume(out / _WORKPLACE / _RUN),
            progress=progress,
        )
    converted = AnchoredMatViT.join(trained, original, f"{model.name}-converted")
    converted.to(original.device)
    if recipe is not None:
        tell(TRAINED, converted)
    converted.save(out, training=_description(original, data, recipe, seed))
    _clear(out)
    return converted


def check_target(out: Path, *, resume: bool) -> None:
    """Make sure that a conversion may begin in a folder, or go on there.

    Raises:
        FileExistsError: If it holds a finished encoder, or anything and `resume` is not set.
        FileNotFoundError: If `resume` is set and there is nothing to resume.
    """
    is_begun = (out / _WORKPLACE / _START / SETTINGS).exists()
    if (out / SETTINGS).exists() and not is_begun:
        raise FileExistsError(f"{out} is already converted; choose another folder")
    if resume and not is_begun:
        raise FileNotFoundError(f"no conversion to resume in {out}; start without resume")
    if not resume and out.exists() and (out.is_file() or any(out.iterdir())):
        raise FileExistsError(
            f"{out} is not empty; choose another folder, or resume the conversion in it"
        )


def split(data: LabelledPixels, most: int = 500) -> tuple[LabelledPixels, LabelledPixels]:
    """Divide images into those to train on and those held out: a fifth, `most` at most.

    Of images that are the same pixel by pixel only one is kept, so that no image is on both sides.

    Raises:
        ValueError: If there are fewer than 20 different images.
    """
    digests = [hashlib.sha256(image.tobytes()).hexdigest() for image in data.pixels]
    rows = np.sort(np.unique(digests, return_index=True)[1])
    if len(rows) < _MIN_IMAGES:
        raise ValueError(
            f"a conversion needs at least {_MIN_IMAGES} different images, got {len(rows)}"
        )
    places = np.linspace(0, len(rows) - 1, min(most, len(rows) // 5)).astype(np.int64)
    return data.subset(np.delete(rows, places)), data.subset(rows[places])


def full_size_of(model: MatViT) -> MatViT:
    """Return the full size as an encoder of its own, without anchor and classification head."""
    plain = MatViT(structs.replace(model.config, num_classes=0), model.preprocess, model.name)
    weights = model.weights_of(model.submodel())
    plain.backbone.load_state_dict(without_head(weights.state_dict()))
    return plain.to(model.device)


def _start(
    original: MatViT,
    data: LabelledPixels,
    out: Path,
    tell: Watch = lambda _stage, _encoder: None,
    *,
    ranking: Ranking = "energy",
    least_squares: bool = False,
    resume: bool,
) -> MatViT:
    """Sort the hidden units, or load them as they were sorted before the conversion stopped.

    An encoder whose sizes are nested already keeps its order if that is the better one. The order
    is kept on disk: on another machine or with other threads, rounding could change it.
    """
    check_target(out, resume=resume)
    folder = out / _WORKPLACE / _START
    begun_with = {"original": original.fingerprint, "images": data.fingerprint}
    if ranking != "energy" or least_squares:
        begun_with |= {"ranking": ranking, "fit": "least squares" if least_squares else "none"}
    if resume:
        before = read_settings(folder).training
        for what, now in begun_with.items():
            if (was := before.get(what)) != now:
                name = "encoder" if what == "original" else what
                raise ValueError(
                    f"cannot resume in {out}: it was begun with {name} {was}, this is {now}; "
                    "resume with what it was begun with"
                )
        start = MatViT.load(folder, device=original.device)
        tell(FITTED if least_squares else REORDERED, start)
        return start
    sample = data.sample(_SORTING_IMAGES).pixels
    candidates = (original, reorder(original, sample, by=ranking))
    start = max(candidates, key=lambda encoder: _nearness(encoder, sample[::4]))
    tell(REORDERED, start)
    if least_squares:
        start = fit(start, sample)
        tell(FITTED, start)
    start.save(folder, training=begun_with)
    return start


def _nearness(encoder: MatViT, pixels: NDArray[np.uint8]) -> float:
    """Mean cosine of the vectors of all smaller trained sizes with those of the full one."""
    full = embed(encoder, pixels)
    smaller = trained_sizes(encoder.config)[:-1]
    return float(np.mean([(embed(encoder, pixels, size) * full).sum(axis=1) for size in smaller]))


def _can_resume(run: Path) -> bool:
    """Whether a training run was begun; what was stopped before its first state is removed."""
    if not (run / STATE).exists():
        shutil.rmtree(run, ignore_errors=True)
    return run.exists()


def _fitted(phase: Phase, theirs: MatViTConfig, ours: MatViTConfig, share: float) -> Phase:
    """Bring a phase of one architecture to the input size and the memory of another one."""
    size = ours.img_size
    if ours.dynamic_img_size:
        patches = round(size * phase.img_size / theirs.img_size / ours.patch_size)
        size = max(1, patches) * ours.patch_size

    def memory(config: MatViTConfig, img_size: int) -> int:
        return config.tokens(img_size) * config.embed_dim * config.depth

    images = phase.micro_batch * memory(theirs, phase.img_size) // memory(ours, size)
    micro_batch = min(phase.micro_batch, max(8, images))
    return replace(phase, epochs=phase.epochs * share, img_size=size, micro_batch=micro_batch)


def _description(
    original: MatViT, data: LabelledPixels, recipe: Recipe | None, seed: int
) -> dict[str, Any]:
    return {
        "converted_from": {"name": original.name, "fingerprint": original.fingerprint},
        "recipe": None if recipe is None else recipe.to_dict(),
        "images": len(data),
        "seed": seed,
    }


def _clear(out: Path) -> None:
    """Keep the log and the recipe of the training run, and drop what only a resumed one needs.

    The encoder is there by now. The start goes last: as long as anything is left, so is it.
    """
    run = out / _WORKPLACE / _RUN
    for name in (LOG, RECIPE):
        if (run / name).exists():
            (run / name).replace(out / name)
    shutil.rmtree(run, ignore_errors=True)
    (out / _WORKPLACE / _START / SETTINGS).unlink()  # from here on it is finished
    shutil.rmtree(out / _WORKPLACE)
