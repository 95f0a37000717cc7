r"""The Jinja environment of the TeX templates: ``\VAR{}``, ``\BLOCK{}``, ``\#{}``.

Every value is escaped or formatted on its way out; what must not be printed raises. A project's
own templates come first, the package's are behind them, so a project overrides what it wants to.
Templates use no Jinja macros: their output is a plain string and would be escaped once more.
"""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

import jinja2

from zenrepro.errors import InputError
from zenrepro.report import numbers
from zenrepro.report.escape import Tex, escape, url
from zenrepro.report.formulas import Formatted
from zenrepro.report.numbers import Missing, Number
from zenrepro.report.wording import title_lines

PACKAGED = Path(__file__).parent / "templates"
SUFFIX = ".jinja"


def finalise(value: Any) -> str:
    """TeX for any value that a template prints. Raises NotPrintable for None, floats, booleans."""
    if isinstance(value, Tex):
        return value
    if isinstance(value, Number):
        return numbers.tex(value)
    if isinstance(value, Missing):
        return missing(value)
    if isinstance(value, Formatted):
        return value.tex
    if isinstance(value, jinja2.Undefined):
        return str(value)  # StrictUndefined raises here, naming the variable
    numbers.check(value)
    if isinstance(value, int):
        return rf"\num{{{value}}}"
    if isinstance(value, str):
        return escape(value)
    raise numbers.NotPrintable(f"a template prints a {type(value).__name__}: {value!r}")


def missing(value: Missing) -> Tex:
    """An em dash with its code."""
    return Tex(rf"\missing{{{escape(value.code)}}}")


def bare(value: Any) -> Tex:
    """A number without its unit (tables name the unit once, with the quantity)."""
    return (
        numbers.tex(value, with_unit=False) if isinstance(value, Number) else Tex(finalise(value))
    )


def digits(value: Any) -> Tex:
    """A number without its unit and without siunitx, which takes half a millisecond a number: the
    record appendix has thousands."""
    if isinstance(value, Number):
        return escape(numbers.text(value, with_unit=False))
    return Tex(finalise(value))


def bare_unit(symbol: str) -> Tex:
    """A unit alone."""
    if symbol == "x":
        return Tex(r"\ensuremath{\times}")
    name = numbers.unit_tex(symbol)
    return Tex(rf"\unit{{{name}}}" if name else "")


def plain(value: int) -> Tex:
    """A whole number as bare digits: for column counts and labels."""
    return Tex(str(int(value)))


def stacked(title: str) -> Tex:
    """A machine's title in short lines, for the head of a column."""
    return Tex(r"\\ ".join(f"{{}}{escape(line)}" for line in title_lines(title)))


def environment(templates: Path) -> jinja2.Environment:
    """The environment over a project's templates and the package's."""
    env = jinja2.Environment(
        loader=jinja2.FileSystemLoader([templates, PACKAGED / "tex"]),
        block_start_string=r"\BLOCK{",
        block_end_string="}",
        variable_start_string=r"\VAR{",
        variable_end_string="}",
        comment_start_string=r"\#{",
        comment_end_string="}",
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
        finalize=finalise,
        undefined=jinja2.StrictUndefined,
    )
    env.filters.update(
        bare=bare,
        digits=digits,
        unit=bare_unit,
        url=url,
        plain=plain,
        stacked=stacked,
        tex=lambda text: Tex(text),
    )
    return env


def render(env: jinja2.Environment, name: str, /, **variables: Any) -> str:
    """One template, rendered. Raises InputError with template, line and what is wrong there."""
    try:
        return env.get_template(name).render(**variables)
    except jinja2.TemplateNotFound as error:
        raise InputError(
            f"{_place(error, name)}: template {error.name!r} is neither in the project's templates "
            "nor in the package's"
        ) from None
    except jinja2.TemplateSyntaxError as error:
        raise InputError(f"{error.filename or error.name}, line {error.lineno}: {error}") from None
    except jinja2.UndefinedError as error:
        raise InputError(
            f"{_place(error, name)}: {error.message}; the template asks for a variable that the "
            "report does not give"
        ) from None
    except (InputError, ValueError) as error:
        raise InputError(f"{_place(error, name)}: {error}") from None


def _place(error: BaseException, name: str) -> str:
    """The innermost template line of a traceback."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.filename.endswith(SUFFIX):
            return f"{frame.filename}, line {frame.lineno}"
    return f"template {name}"
