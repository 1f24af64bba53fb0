"""Groups of commands that are imported and read when they are asked for, not before."""

from __future__ import annotations

import math
from collections.abc import Mapping
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

_PLAIN: dict[str, Any] = {
    "add_completion": False,
    "pretty_exceptions_enable": False,
    "rich_markup_mode": None,
}


def group(commands: Mapping[str, str], *, about: str) -> typer.Typer:
    """Make a group of commands; only the one that is asked for costs time.

    Reading the signatures of all commands takes longer than answering with one of them.

    Args:
        commands: Where each is, `module:function` or `module:group`, by its name.
        about: What the group is for, in its help.

    Examples:
        >>> tools = group({"doctor": "app.demo_cli:doctor"}, about="Tools.")
        >>> sorted(typer.main.get_group(tools).list_commands(None))
        ['doctor']
    """

    class OnDemand(TyperGroup):
        def list_commands(self, ctx: object) -> list[str]:  # noqa: ARG002
            return list(commands)

        def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ANN401
            # Of an unknown one the names of all are wanted, to say which was meant.
            for name in [cmd_name] if cmd_name in commands else commands:
                if name not in self.commands:
                    self.commands[name] = _read(name, commands[name])
            return super().get_command(ctx, cmd_name)

    return typer.Typer(cls=OnDemand, help=about, **_PLAIN)


def _read(name: str, where: str) -> Any:  # noqa: ANN401
    module, _, attribute = where.partition(":")
    found = getattr(import_module(module), attribute)
    if isinstance(found, typer.Typer):
        return typer.main.get_group(found)
    alone = typer.Typer(**_PLAIN)
    alone.command(name, cls=_Command)(found)
    return typer.main.get_command(alone)


class _Command(TyperCommand):
    """A command that takes no NaN, which lies in every range."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401
        rest = super().parse_args(ctx, args)
        for parameter in self.params:
            value = ctx.params.get(parameter.name)
            if isinstance(value, float) and math.isnan(value):
                raise typer.BadParameter("nan is no number", ctx=ctx, param=parameter)
        return rest
