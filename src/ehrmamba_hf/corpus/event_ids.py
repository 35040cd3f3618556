"""Token ids of whole columns of events: what the tokenizer's `event_id` gives of one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from ehrmamba_hf.errors import InputError
from ehrmamba_hf.timelines.shards import factorized
from ehrmamba_hf.tokenization import EHRMambaTokenizer
from ehrmamba_hf.tokenization.counting import BINNED_CATEGORIES, find_bins, numbers_of, token_of
from ehrmamba_hf.tokenization.grammar_ehrmamba import SHORTEST_LENGTH, UNK


@dataclass(frozen=True, slots=True)
class TokenTable:
    """What of a tokenizer it takes to encode a corpus. It can be pickled, without transformers.

    Attributes:
        vocab: token to id.
        bins: code to unit to bin edges.
        types: (vocabulary,) int8, the token type of each id.
        categories: the kinds of event that become tokens.
        context_length: the tokens that a sequence keeps.
    """

    vocab: Mapping[str, int]
    bins: Mapping[str, Mapping[str, Sequence[float]]]
    types: np.ndarray
    categories: tuple[str, ...]
    context_length: int

    @classmethod
    def of(cls, tokenizer: EHRMambaTokenizer) -> "TokenTable":
        """The table of a tokenizer. Raises InputError where it is made for too short sequences."""
        types = np.array(tokenizer.token_types, dtype=np.int8)
        length = tokenizer.model_max_length
        if length < SHORTEST_LENGTH:
            raise InputError(
                f"tokenizer: expected a model_max_length of at least {SHORTEST_LENGTH}, "
                f"found {length}"
            )
        return cls(tokenizer.vocab, tokenizer.bins, types, tokenizer.categories, length)

    def encode(self, events: pa.Table) -> "EncodedEvents":
        """The ids of events, and what is counted of them. Events as `read_records` gives them."""
        found = find_bins(events, self.bins)
        ids = [self._ids(code, found.width) for code, _ in found.pairs]
        table = np.array(ids, dtype=np.int32).reshape(-1, found.width)
        category, kinds = factorized(events["category"])
        binned = np.array([kind in BINNED_CATEGORIES for kind in [*kinds, None]])[category]
        number = binned & ~np.isnan(numbers_of(events))
        names = [code.partition("/")[0] for code, _ in found.pairs]
        systems = sorted(set(names))
        position = {name: i for i, name in enumerate(systems)}
        system = np.array([position[name] for name in names], dtype=np.int64)
        return EncodedEvents(
            ids=table[found.pair, found.bin],
            system=system[found.pair],
            systems=systems,
            number=number,
            unfitted=number & ~found.fitted[found.pair],
        )

    def _ids(self, code: str, width: int) -> list[int]:
        """The ids of a code by bin: a bin's token, else the bare code's, else [UNK]."""
        bare = self.vocab.get(code, UNK)
        return [self.vocab.get(token_of(code, k), bare) for k in range(width)]


@dataclass(slots=True)
class EncodedEvents:
    """Events as token ids.

    Attributes:
        ids: (events,) int32.
        system: (events,), the position of each one's code system in `systems`.
        number: (events,), whether it is a result with a number, which has a bin if it can.
        unfitted: (events,), whether it is one whose (code, unit) has no bins.
    """

    ids: np.ndarray
    system: np.ndarray
    systems: list[str]
    number: np.ndarray
    unfitted: np.ndarray

    def take(self, rows: np.ndarray) -> "EncodedEvents":
        """Some of the events."""
        columns = (self.number[rows], self.unfitted[rows])
        return EncodedEvents(self.ids[rows], self.system[rows], self.systems, *columns)

    def by_system(self, chosen: np.ndarray | None = None) -> dict[str, int]:
        """How many events, or how many of those chosen, each code system has that has any."""
        system = self.system if chosen is None else self.system[chosen]
        counts = np.bincount(system, minlength=len(self.systems)).tolist()
        return {name: n for name, n in zip(self.systems, counts, strict=True) if n}

    @property
    def unknown(self) -> np.ndarray:
        """(events,), whether it became [UNK]."""
        return self.ids == UNK
