"""Named ways to train an encoder, each a frozen configuration."""

from __future__ import annotations

from dataclasses import replace

from msgspec import structs

from matvit.config import MatViTConfig
from matvit.training.schedule import RANDOM, RANDOM_SCHEDULE, Phase, Recipe

_VIT = MatViTConfig(
    img_size=64, patch_size=8, embed_dim=256, depth=6, num_heads=4, dynamic_img_size=True
)

JOINT64 = Recipe(
    name="joint64",
    model=_VIT,
    phases=(Phase(epochs=30, img_size=64),),
    drop_path_rate=0.05,
)
"""The paper's objective from the first step to the last, at full resolution.

    matvit train DATA --recipe joint64

Not run to its end yet: it wants a GPU. `benchmarks/recipes.py` compares the objective with others
at a size that two cores manage."""

PLAIN32 = Recipe(
    name="plain32",
    model=_VIT,
    phases=(
        Phase(epochs=7, img_size=32, sizes=("XL",), weights=(1.0,), micro_batch=256),
        Phase(epochs=1.5, img_size=32, micro_batch=256),
        Phase(epochs=0.5, img_size=64),
    ),
)
"""The full size alone at a quarter of the tokens, then a little of everything.

    matvit train DATA --recipe plain32 --seed 0

On Tiny ImageNet, two CPU cores: about half an hour, stopped at step 2,882 of 3,510.
Its joint phases come when the learning rate is nearly zero, so the small sizes do not catch up:
after 170 joint steps their losses were 3.95, 3.55, 3.14 and 2.89. `joint-after-plain` goes on
from here instead."""

JOINT_AFTER_PLAIN = Recipe(
    name="joint-after-plain",
    model=_VIT,
    phases=(Phase(epochs=1.1, img_size=32, micro_batch=256), Phase(epochs=0.4, img_size=64)),
    learning_rate=1e-3,
    warmup_steps=50,
    needs_init=True,
)
"""All four sizes jointly, from the weights of a plain ViT, with a learning rate of its own.

    matvit train DATA --recipe joint-after-plain --init PLAIN --seed 1

On Tiny ImageNet from `plain32`, two CPU cores: about half an hour. The four sizes then asked the
full one's index with hit_rate@1 .243, .271, .300 and .315 (S to XL; see docs/LOG.md)."""

_ALIGN = Phase(
    epochs=1,
    img_size=64,
    sizes=("S", "XL", RANDOM, RANDOM),
    objective="align",
    micro_batch=64,
)

ALIGN = Recipe(
    name="align",
    model=_VIT,
    phases=(
        replace(_ALIGN, epochs=0.8, img_size=32, micro_batch=128),
        replace(_ALIGN, epochs=0.6, img_size=48, micro_batch=128),
        replace(_ALIGN, epochs=0.5),
    ),
    batch_size=128,
    learning_rate=3e-3,
    warmup_steps=50,
    min_area=0.5,
    ema_decay=0.98,
    needs_init=True,
)
"""Bring the embeddings of all sizes to those of the encoder at full size, without labels.

    matvit train DATA --recipe align --init JOINT --seed 2

On Tiny ImageNet from a `joint-after-plain` encoder, two CPU cores that had other work too: 47
minutes. hit_rate@1 of val against train at full size .303, .308, .311 and .314 (S to XL;
`benchmarks/results/tiny_imagenet.json`)."""

ALIGN_MERGING = replace(
    ALIGN,
    name="align-merging",
    phases=tuple(
        replace(phase, sizes=("S", "XL", RANDOM, RANDOM_SCHEDULE)) for phase in ALIGN.phases
    ),
)
"""The same for both axes: one of the two submodels that each step draws merges tokens.

    matvit train DATA --recipe align-merging --init ENCODER --epochs 0.75 --seed 3

On Tiny ImageNet from a `distill64` encoder, one CPU core: 25 minutes."""

APART_S = replace(
    PLAIN32,
    name="apart-s",
    model=structs.replace(_VIT, mlp_ratio=0.5),
    phases=(
        Phase(epochs=2, img_size=32, sizes=("XL",), weights=(1.0,), micro_batch=256),
        Phase(epochs=0.2, img_size=64, sizes=("XL",), weights=(1.0,)),
    ),
)
"""An ordinary small ViT of the cost of S, trained on its own: the baseline that cannot ask
another encoder's index."""

_LARGER_VIT = MatViTConfig(
    img_size=64, patch_size=8, embed_dim=320, depth=9, num_heads=5, dynamic_img_size=True
)

PLAIN_GPU = Recipe(
    name="plain-gpu",
    model=_LARGER_VIT,
    phases=(Phase(epochs=60, img_size=64, sizes=("XL",), weights=(1.0,), micro_batch=512),),
    batch_size=512,
    learning_rate=3e-3,
    warmup_steps=500,
    drop_path_rate=0.1,
    mixup=0.2,
    cutmix=1.0,
    jitter=0.4,
)
"""The full size alone, with strong augmentation; the first half of what a GPU should train.

    python benchmarks/ship.py --data DATA --work WORK --chain plain-gpu align-gpu

Not run yet."""

ALIGN_GPU = replace(
    ALIGN,
    name="align-gpu",
    model=_LARGER_VIT,
    phases=(replace(_ALIGN, epochs=15, micro_batch=512),),
    batch_size=512,
    warmup_steps=200,
    ema_decay=0.999,
)
"""The alignment that goes with `plain-gpu`. Not run yet."""

_DISTILL = Phase(
    epochs=1,
    img_size=64,
    sizes=("S", "M", "L", "XL", RANDOM),
    weights=(0.225, 0.15, 0.15, 0.225, 0.25),  # a mix in one step of four
    sampled=True,
    objective="distill",
    vector_weight=0.5,
    resolutions=((32, 0.6), (48, 0.25), (64, 0.15)),
    micro_batch=64,
)

DISTILL64 = Recipe(
    name="distill64",
    model=_VIT,
    phases=(
        replace(
            _DISTILL,
            epochs=13.8,
            vector_weight=0.0,
            resolutions=((32, 0.8), (48, 0.1), (64, 0.1)),
        ),
        replace(
            _DISTILL,
            epochs=2.1,
            vector_weight=0.0,
            resolutions=((32, 0.45), (48, 0.35), (64, 0.2)),
        ),
    ),
    batch_size=512,
    learning_rate=1.5e-3,
    warmup_steps=100,
    cooldown=0.1321,
    jitter=0.3,
    grayscale=0.1,
    mixup=0.2,
    cutmix=1.0,
    views=1,
)
"""Labels and a teacher's class scores, one size a step; `align` goes on from here.

    matvit train DATA --recipe distill64 --init matvit-tiny64 --teacher tf_efficientnet_lite2 \\
        --teacher-size 192

On Tiny ImageNet, one CPU core that had work beside it: three hours, 1,587,000 images. With
`align-merging` after it hit_rate@1 of val against train was that of
`benchmarks/results/tiny_imagenet_v2.json`. Starts from scratch as well."""

DISTILL_GPU = replace(
    DISTILL64,
    name="distill-gpu",
    model=_LARGER_VIT,
    phases=(
        replace(_DISTILL, epochs=200, resolutions=((48, 0.5), (64, 0.5)), micro_batch=512),
        replace(_ALIGN, epochs=20, micro_batch=512),
    ),
    batch_size=512,
    learning_rate=3e-3,
    warmup_steps=500,
    drop_path_rate=0.05,
    jitter=0.4,
    views=4,
)
"""The same with a larger network, from scratch.

    python benchmarks/ship.py --data DATA --work WORK --chain distill-gpu \\
        --teacher tf_efficientnet_lite2 --teacher-size 192

Not run yet."""

RECIPES = {
    recipe.name: recipe
    for recipe in (
        JOINT64, PLAIN32, JOINT_AFTER_PLAIN, ALIGN, ALIGN_MERGING, APART_S, PLAIN_GPU, ALIGN_GPU,
        DISTILL64, DISTILL_GPU,
    )
}  # fmt: skip


def recipe(name: str) -> Recipe:
    """Look a recipe up by name.

    Raises:
        ValueError: If there is none of that name.
    """
    if name not in RECIPES:
        raise ValueError(f"unknown recipe {name!r}; known: {', '.join(sorted(RECIPES))}")
    return RECIPES[name]
