"""Whether a recipe has what it needs, found out before the first step."""

from __future__ import annotations

from itertools import product

from matvit.model import MatViT
from matvit.training.schedule import RANDOM, RANDOM_SCHEDULE, Recipe
from matvit.training.teacher import Answers, Teacher


def check_before_asking(recipe: Recipe, init: MatViT | None, teacher: Teacher) -> None:
    """Find out before a teacher is asked, which may take hours, what a trainer would refuse.

    Raises:
        ValueError: If there is anything.
    """
    check_teacher(recipe, init, teacher)
    model = MatViT(recipe.model, recipe.preprocess(), recipe.name)
    check_sizes(recipe, model, init)
    if init is not None:
        model.check_alike(init, "start from")


def check_teacher(
    recipe: Recipe, init: MatViT | None, teacher: MatViT | Teacher | Answers | None
) -> None:
    """Make sure that a recipe has what it goes on from and learns from, and nothing else.

    Raises:
        ValueError: If not.
    """
    only_aligns = recipe.aligns and not recipe.aligns_to_itself
    if (recipe.needs_init or only_aligns) and init is None:
        raise ValueError(f"recipe {recipe.name} goes on from an encoder; name it with init")
    if isinstance(teacher, MatViT) and not recipe.aligns:
        raise ValueError(f"recipe {recipe.name} aligns nothing; leave the teacher out")
    if recipe.distills and (teacher is None or isinstance(teacher, MatViT)):
        raise ValueError(f"recipe {recipe.name} learns from a teacher; name it with --teacher")
    if isinstance(teacher, (Teacher, Answers)):
        if not recipe.distills:
            raise ValueError(
                f"recipe {recipe.name} learns from no teacher; leave it out, or take a recipe "
                "that distils, such as distill64"
            )
        wanted = [phase for phase in recipe.phases if phase.objective == "distill"]
        if not teacher.classes and not all(p.vector_weight or p.neighbour_weight for p in wanted):
            raise ValueError(
                f"recipe {recipe.name} learns from class scores of a teacher, and this one knows "
                "no classes; take another teacher, or give vector_weight"
            )


def check_sizes(recipe: Recipe, model: MatViT, aligned_to: MatViT | None) -> None:
    """Find out before the first step what a later phase would stumble over.

    Raises:
        ValueError: If there is anything.
    """
    for phase in recipe.phases:
        for size in set(phase.sizes) - {RANDOM, RANDOM_SCHEDULE}:
            model.submodel(size)
        taught_by = [aligned_to] if phase.objective == "align" else []
        for encoder, side in product([model, *filter(None, taught_by)], phase.sides):
            model.config.tokens(side)
            fixed = encoder.config.img_size
            if side != fixed and not encoder.config.dynamic_img_size:
                raise ValueError(
                    f"recipe {recipe.name} trains at {side} px, but {encoder.name} "
                    f"takes {fixed} px only; set dynamic_img_size=True or train at {fixed} px"
                )
