"""What the fields of a config say about their options, and how configs are checked, read and written.

A config is a frozen dataclass of the options of one command. Its field names, types and defaults, the string under each
field (the help text) and the markers in `Annotated` are the only place where an option is written: the checks, the
command line (`sckit.cli.options`), TOML files and docs/commands.md follow from them.
"""

import ast
import inspect
import json
import sys
import tomllib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import NoneType
from typing import Any, ClassVar, NamedTuple, TypeVar, get_args, get_origin, get_type_hints

from sckit.errors import ConfigError

C = TypeVar("C")

LARGEST_SEED = 2**32 - 1
"""What all libraries that draw random numbers take."""

_LEAST_PERCENT = 2  # from here on a share that is too large may be meant as a percentage
_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


class Bound(NamedTuple):
    """A test of one value; what an error says of a wrong value, or of a list that holds one; and how it ends."""

    holds: Callable[[Any], bool]
    one: str
    several: str = ""
    end: Callable[[Any], str] = lambda _: "."


def at_least(limit: float) -> Bound:
    """Bound a number from below, the limit included."""
    return Bound(lambda value: value >= limit, f"must be at least {limit}, not {{}}")


def above(limit: float) -> Bound:
    """Bound a number from below, the limit excluded."""
    return Bound(lambda value: value > limit, f"must be above {limit}, not {{}}")


def between(low: float, high: float) -> Bound:
    """Bound a number from both sides, the limits included."""
    return Bound(lambda value: low <= value <= high, f"must be between {low} and {high}, not {{}}")


def share(interval: str, word: str = "") -> Bound:
    """Bound a share by an interval such as "(0, 0.5]"; a word may be allowed in its place."""
    low, high = map(float, interval[1:-1].split(","))
    words = f"{'above' if interval[0] == '(' else 'of at least'} {low:g}"
    words += f" and {'below' if interval[-1] == ')' else 'at most'} {high:g}{word and f', nor {word}'}"

    def holds(value: Any) -> bool:
        if isinstance(value, str):
            return value == word
        return low <= value <= high and (value > low or interval[0] == "[") and (value < high or interval[-1] == "]")

    def end(value: Any) -> str:
        percent = isinstance(value, int | float) and value >= _LEAST_PERCENT and holds(value / 100)
        return f"; did you mean {value / 100:g}?" if percent else "."

    return Bound(holds, f"{{}} is not a share {words}", f"{{}} are not all shares {words}", end)


def one_of(*choices: str) -> Bound:
    """Bound a text to the choices."""
    words = f"{', '.join(choices[:-1])} or {choices[-1]}"
    return Bound(lambda value: value in choices, f"{{}} is unknown; choose {words}", f"{{}} must name some of {words}")


def mark(**facts: Any) -> dict[str, Any]:
    """Set attributes of a field's `Option`. A panel also holds for the fields that follow."""
    return facts


def was(**former: str) -> dict[str, Any]:
    """Name what a field was called before and what its option was called; both are still accepted."""
    return mark(former=former)


@dataclass(frozen=True)
class Option:
    """One field of a config, as the command line and files know it."""

    name: str
    kinds: tuple[type, ...]  # of the value, or of the items of a list
    many: bool
    default: Any
    bounds: tuple[Bound, ...]
    flag: str
    panel: str = ""
    repeated: bool = False  # a list is given one item at a time, not with commas
    labels: bool = False  # a repeated list of labels, which may hold commas themselves
    documented_alone: bool = False  # result documents hold a list of one as that one
    file_only: bool = False
    former: dict[str, str] = field(default_factory=dict)  # options by former field name; result documents keep the name
    former_values: dict[str, str] = field(default_factory=dict)
    gone: bool = False  # only the default is still accepted, and it does nothing


@cache
def options(config: type) -> dict[str, Option]:
    """Return the options of a config class by field name, with those that are gone."""
    found, panel = {}, ""
    for name, hint in get_type_hints(config, include_extras=True).items():
        hint = get_args(hint)[0] if get_origin(hint) is ClassVar else hint
        marks = getattr(hint, "__metadata__", ())
        base = hint.__origin__ if marks else hint
        kinds = tuple(kind for kind in get_args(base) or (base,) if kind not in (NoneType, Ellipsis))
        facts: dict[str, Any] = {"panel": panel, "flag": f"--{name.replace('_', '-')}"}
        for one in marks:
            facts |= one if isinstance(one, dict) else {}
        facts |= {"flag": name} if "file_only" in facts else {}
        facts |= {"repeated": True} if "labels" in facts else {}
        bounds = tuple(one for one in marks if isinstance(one, Bound))
        found[name] = Option(name, kinds, get_origin(base) is tuple, getattr(config, name), bounds, **facts)
        panel = facts["panel"]
    return found


def sentences(config: type) -> dict[str, str]:
    """Return the string under each field of a config class, read from its source."""
    inherited = (sentences(base) for base in config.__bases__ if base is not object)
    found = {name: text for base in inherited for name, text in base.items()}
    for node, below in pairwise(getattr(ast.parse(inspect.getsource(config)).body[0], "body", [])):
        if isinstance(node, ast.AnnAssign) and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            found[ast.unparse(node.target)] = " ".join(str(below.value.value).split())
    return found


def check(config: Any) -> None:
    """Raise ConfigError where a value of the config is outside its bounds."""
    for option in options(type(config)).values():
        value = getattr(config, option.name)
        values = value if option.many else [] if value is None else [value]
        if option.many and option.bounds and not value:
            raise ConfigError(f"{option.flag} needs at least one value.")
        for bound in option.bounds:
            wrong = [one for one in values if not bound.holds(one)]
            if wrong and option.many and not option.repeated:
                raise ConfigError(f"{option.flag} {bound.several.format(_shown(value))}.")
            if wrong:
                raise ConfigError(f"{option.flag} {bound.one.format(_shown(wrong[0]))}{bound.end(wrong[0])}")


def read_toml(config: type[C], path: Path | None, **overrides: Any) -> C:
    """Return a config of the type from a TOML file, where there is one, with what the command line gave on top."""
    return read_configs(path, overrides, config)[0]


def read_configs(path: Path | None, overrides: dict[str, Any], *types: type) -> tuple[Any, ...]:
    """Return a config of each type from one TOML file, where there is one, with what the command line gave on top.

    Raises ConfigError for a file that cannot be read, for names that no type has, and for values out of bounds.
    """
    try:
        loaded = tomllib.loads(path.read_text(encoding="utf-8")) if path else {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"the config file {path} cannot be read: {reason}.") from error
    names = {name: config for config in types for name in _names(config)}
    for values, origin in ((loaded, str(path)), (overrides, "the command line")):
        for name in values:
            if name not in names:
                close = get_close_matches(name, names, 1)
                hint = f"; did you mean {close[0]}?" if close else "."
                raise ConfigError(f"{origin} sets {name}, which is no option{hint}")
    found = []
    for config in types:
        from_file, typed = ({n: v for n, v in values.items() if names[n] is config} for values in (loaded, overrides))
        values = _current(config, from_file, str(path))
        try:
            found.append(config(**values | _current(config, typed, "")))
        except ConfigError as error:
            if not values or typed:
                raise
            raise ConfigError(f"{path}: {error}") from error
    return tuple(found)


def from_dict(config: type[C], values: dict[str, Any], origin: str) -> C:
    """Return a config of the type from plain values of a file; ConfigError for unknown names and wrong types."""
    if not isinstance(values, dict):
        raise ConfigError(f"{origin} does not hold options by name.")
    return config(**_current(config, values, origin))


def to_toml(config: Any) -> str:
    """Return the resolved config as TOML; options that are None are left out."""
    return "".join(f"{name} = {_toml_value(value)}\n" for name, value in asdict(config).items() if value is not None)


def _names(config: type) -> set[str]:
    """Return all names that a file may give the fields of a config, today's and former ones."""
    return {name for option in options(config).values() for name in (option.name, *option.former)}


def as_documented(config: Any) -> dict[str, Any]:
    """Return the config as result documents keep it: under former names and values, with the options that are gone."""
    document = {}
    for option in options(type(config)).values():
        value = getattr(config, option.name)
        was = [old for old, new in option.former_values.items() if new == value]
        value = value[0] if option.documented_alone and len(value) == 1 else value
        document[next(iter(option.former), option.name)] = was[0] if was else value
    return document


def _current(config: type, values: dict[str, Any], origin: str) -> dict[str, Any]:
    """Values under today's names and in the types of the fields; each former name gives one sentence on stderr.

    Without an origin the values are those of the command line, and the sentences name the options as typed there.
    """
    known = options(config)
    former = {key: (option, flag) for option in known.values() for key, flag in option.former.items()}
    found = {}
    for key, value in values.items():
        option, flag = former.get(key, (known.get(key), ""))
        if option is None:
            close = get_close_matches(key, known, 1)
            raise ConfigError(
                f"{origin} sets {key}, which is no option{f'; did you mean {close[0]}?' if close else '.'}"
            )
        typed = f"the option `{key}` of {origin}" if origin else flag or option.flag
        if option.gone and value != option.default:
            raise ConfigError(f"{typed} cannot be {value} any more: {option.default} is the only way now.")
        if option.gone:
            _tell(f"{typed} is not needed any more: {value} is the only way now.")
            continue
        if key in former:
            _tell(f"{typed} is called {f'`{option.name}`' if origin else option.flag} now.")
        if isinstance(value, str) and value in option.former_values:
            _tell(f"the value {value} of {typed} is called {option.former_values[value]} now.")
            value = option.former_values[value]
        line = f"`{key} = {_toml_value(value)}` in {origin}" if origin else ""
        found[option.name] = None if value is None else _converted(option, value, line)
    return found


def _converted(option: Option, value: Any, line: str) -> Any:
    """The value in the type of its field; a text stands for a list with commas, or for a number where one is meant.

    line: where the value stands in a file; empty for the command line.
    """
    items = value if option.many and isinstance(value, list | tuple) else [value]
    if option.many and isinstance(value, str) and not option.labels:
        items = [part.strip() for part in value.split(",") if part.strip()]
        if not items:
            raise ConfigError(f"{line or f'{option.flag} {_shown(value)}'} names no value.")
    found = [_item(option.kinds, item) for item in items]
    if None in found:
        listed = option.many and (option.labels or not option.repeated)
        line = line or f"{option.flag} {_shown(value if listed else items[found.index(None)])}"
        words = " or ".join(_KINDS[kind] for kind in option.kinds)
        raise ConfigError(f"{line} is not {f'a list of {words[2:]}s' if listed else words}.")
    return tuple(dict.fromkeys(found)) if option.many else found[0]


def _item(kinds: tuple[type, ...], value: Any) -> Any:
    """The value as one of the kinds, or None."""
    if not isinstance(value, str):
        return value if type(value) in kinds or (type(value) is int and float in kinds) else None
    for kind in kinds:
        with suppress(ValueError):
            if kind is not bool:
                return kind(value)
    return None


def _toml_value(value: Any) -> str:
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_toml_value, value))}]"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str | bool) else repr(value)


def _shown(value: Any) -> str:
    """The value as a user types it."""
    if isinstance(value, tuple | list):
        return ",".join(map(_shown, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _tell(sentence: str) -> None:
    print(sentence, file=sys.stderr)
