"""What commands share: how words are read, options that many have, exit codes."""

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import click

from stx.files.errors import ImageError, InputError


class Place(click.Path):
    """A path. Of an unset variable of the shell there is an empty one, the current folder, or the next option."""

    def convert(self, value, param, ctx):
        """As `click.Path`; refuses an empty one, and an option in its place."""
        if value == "":
            self.fail("is empty; a path is expected", param, ctx)
        if str(value).startswith("--"):
            self.fail(f"{value} is an option; a path is missing before it (of that name: ./{value})", param, ctx)
        return super().convert(value, param, ctx)


class Number(click.FloatRange):
    """A finite number of a range. click takes NaN for one of any range."""

    def convert(self, value, param, ctx):
        """As `click.FloatRange`; refuses what is not finite."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{number} is not finite", param, ctx)
        return number


COUNT = click.IntRange(1, 2**31 - 1)
SEED = click.IntRange(0, 2**32 - 1)  # what NumPy takes
SIDE = click.IntRange(1, 4096)  # of pictures that are made
FOLDER = Place(path_type=Path)


class Command(click.Command):
    """A command whose repeatable options also take several words, as in `--sizes 256 1024`; others are given once."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Gives each further word its option again, as click expects it, which would take the last of the others."""
        options = [p for p in self.params if isinstance(p, click.Option) and p.multiple and p.nargs == 1]
        repeatable = {name for option in options for name in option.opts}
        spread: list[str] = []
        option, first = "", True
        for word in args:
            if word.startswith("-"):
                option, first = (word if word in repeatable else ""), True
            elif option and not first:
                spread.append(option)
            else:
                first = False
            spread.append(word)
        *_, given = self.make_parser(ctx).parse_args(list(spread))
        for option in given:
            if isinstance(option, click.Option) and not option.multiple and given.count(option) > 1:
                raise click.UsageError(f"{option.opts[0]} is given {given.count(option)} times; give it once", ctx)
        return super().parse_args(ctx, spread)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
def commands() -> None:
    """Style Transformer for image inversion and editing: pictures to codes, and codes to pictures."""


def command(name: str, help: str) -> Callable:
    """A command of `stx`."""
    return commands.command(name, cls=Command, help=help, short_help=help)


pictures = click.argument("pictures", nargs=-1, required=True, metavar="PHOTO...")
device = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or mps")
encoder = click.option(
    "--encoder", default="style_transformer", show_default=True, help="its folder: psp, e4e, restyle_psp, ..."
)
generator = click.option("--generator", default="generator", show_default=True, help="its folder: of a tuned one")
own = click.option("--own", default="", metavar="FILE", help="a Python file with methods of your own")


def look_for(names: Sequence[str]) -> None:
    """Raises `ImageError` when none of these files and folders exists: before networks are loaded for nothing.

    And for an empty name, which an unset variable of the shell leaves: it would be the current folder.
    """
    if "" in names:
        raise ImageError("an empty name of a picture; name a file or a folder")
    if not any(os.path.lexists(name) for name in names):
        raise ImageError(
            f"{names[0]}: no such file" + (f", nor any of the other {len(names) - 1}" if names[1:] else "")
        )


def one_picture(name: str, use: str) -> Path:
    """The file of the one picture that a file or a folder means. Raises `InputError` where there are several."""
    from stx.domains import images

    found = images.names_of([name])
    if len(found) > 1:
        raise InputError(f"{name}: {len(found)} pictures; {use} one, name its file")
    return found[0]


def exit_code(failed: int, count: int) -> int:
    """0 all done, 1 some pictures failed, 2 all of them."""
    return 0 if not failed else 1 if failed < count else 2
