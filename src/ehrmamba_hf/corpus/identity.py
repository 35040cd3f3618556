"""What a task computes, as content for a hash: a user's task may change and keep its name."""

import pickle
from collections.abc import Iterator, Mapping, Set
from dataclasses import fields, is_dataclass
from functools import partial
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

_PACKAGE = __name__.partition(".")[0]


def identity_of(value: Any, within: tuple[FunctionType, ...] = ()) -> Any:
    """What tells a value from one that works differently, as JSON holds it.

    Of a function: its code, its defaults, what it closes over, and what it uses of its module,
    functions of the same top-level package among them. This package's functions stand for
    themselves, with what they close over: their code is told by the version. The code is that of
    the running version of Python.

    Args:
        value: a function, or what one uses.
        within: the functions that led to it.

    >>> def over(days):
    ...     return lambda stay: stay > days
    >>> identity_of(over(7)) == identity_of(over(7)), identity_of(over(7)) == identity_of(over(8))
    (True, False)
    """
    if value is None or isinstance(value, bool | int | float | str):
        return repr(value)
    if isinstance(value, FunctionType):
        return _of_function(value, within)
    if isinstance(value, type | ModuleType):
        return [getattr(value, "__module__", ""), value.__name__]
    if isinstance(value, CodeType):
        return [value.co_code.hex(), value.co_names, identity_of(value.co_consts, within)]
    if isinstance(value, Mapping):
        value = value.items()
    if isinstance(value, Set):
        return sorted((identity_of(part, within) for part in value), key=str)
    parts = _parts(value)
    return _pickled(value) if parts is None else [identity_of(part, within) for part in parts]


def _of_function(function: FunctionType, within: tuple[FunctionType, ...]) -> Any:
    name = [function.__module__, function.__qualname__]
    if any(function is other for other in within):
        return name
    cells = [] if function.__closure__ is None else [*map(_content, function.__closure__)]
    state: list[Any] = [function.__defaults__, function.__kwdefaults__, cells]
    if _top(function) != _PACKAGE:
        known = function.__globals__
        used = {n: known[n] for n in sorted({*_names(function.__code__)}) if n in known}
        others = {
            n: [v.__module__, v.__qualname__]
            for n, v in used.items()
            if isinstance(v, FunctionType) and _top(v) != _top(function)
        }
        state += [function.__code__, used | others]
    return [name, identity_of(state, (*within, function))]


def _top(function: FunctionType) -> str:
    return str(function.__module__).partition(".")[0]


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # empty as yet
        return None


def _names(code: CodeType) -> Iterator[str]:
    """All names that a function uses, those of the functions inside it too."""
    yield from code.co_names
    for part in code.co_consts:
        if isinstance(part, CodeType):
            yield from _names(part)


def _parts(value: Any) -> list[Any] | None:
    """What makes up a value that is made up of others; None for any other."""
    if isinstance(value, list | tuple):
        return list(value)
    if isinstance(value, MethodType):
        return [value.__func__, value.__self__]
    if isinstance(value, partial):
        return [value.func, value.args, value.keywords]
    if hasattr(value, "__wrapped__"):  # of functools.lru_cache
        return [value.__wrapped__]
    kind = type(value)
    methods = (vars(base).get("__call__") for base in kind.__mro__)
    call = [method for method in methods if isinstance(method, FunctionType)]
    if is_dataclass(value):
        return [kind, *call, *(getattr(value, field.name) for field in fields(value))]
    return [kind, *call, vars(value)] if call and hasattr(value, "__dict__") else None


def _pickled(value: Any) -> str:
    """All of a value, such as an array's numbers; its kind alone where it cannot be pickled."""
    try:
        return pickle.dumps(value, protocol=5).hex()
    except Exception:  # whatever its own methods raise
        return repr(type(value))
