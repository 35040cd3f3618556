"""Words that come again and again, as numbers, and what was found out about them."""

from collections.abc import Callable, Hashable
from typing import Any, Final, TypeVar

_REMEMBERED: Final = 1 << 18

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Index(dict[Any, int]):
    """Numbers values in the order in which they come; 0 is None.

    >>> index = Index()
    >>> index["mg/dL"], index[None], index["mmol/L"], index["mg/dL"], index.values_
    (1, 0, 2, 1, [None, 'mg/dL', 'mmol/L'])
    """

    def __init__(self) -> None:
        super().__init__({None: 0})
        self.values_: list[Any] = [None]

    def __missing__(self, value: Any) -> int:
        number = self[value] = len(self.values_)
        self.values_.append(value)
        return number


class Memo(dict[K, V]):
    """What a function gave for each argument; it forgets everything now and then."""

    def __init__(self, function: Callable[[K], V]) -> None:
        self._function = function

    def __missing__(self, key: K) -> V:
        if len(self) >= _REMEMBERED:
            self.clear()
        value = self[key] = self._function(key)
        return value


class Vocabulary:
    """The values that repeat in the events of a block, numbered."""

    def __init__(self) -> None:
        self.concepts = Index()
        self.units = Index()
        self.texts = Index()
        self.encounters = Index()
        self.categories = Index()
        self.types = Index()
        self.medications = Index()
