# ruff: noqa: N815 - FHIR's own names
"""Observations of the common shape, many at a time, as columns.

Most of a hospital's records are Observations with a code, a time and a number or a text: laboratory
results, vital signs, charted findings. One by one they cost ten times what it takes to decode them.
Here a chunk of lines is decoded in one call, and the parts that come again and again (codes,
categories, references, times, units) are looked up by their bytes, so that each is understood once.
What comes out is what `convert` gives, and whatever is not of this shape, or is odd in any way, is
handed back for it.
"""

import re
from collections.abc import Sequence
from itertools import chain
from typing import Any, Final, Literal, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa

from ehrmamba_hf.fhir.codings import Concept
from ehrmamba_hf.fhir.fields import id_of, observation_kind, patient_of, unit_of
from ehrmamba_hf.fhir.identity import subject_id
from ehrmamba_hf.fhir.reading import Lines, line_ends
from ehrmamba_hf.fhir.resources import (
    CodeableConcept,
    Meta,
    Observation,
    Quantity,
    Reference,
)
from ehrmamba_hf.fhir.rows import NotUsed, Reject, Site
from ehrmamba_hf.fhir.statuses import EXCLUDED
from ehrmamba_hf.fhir.time_columns import NONE, ODD, TimeColumns, instants
from ehrmamba_hf.fhir.vocabulary import Memo, Vocabulary

_FLOAT32_MAX: Final = float(np.finfo(np.float32).max)


class Plain(NamedTuple):
    """Columns of some Observations, a row each; times in microseconds."""

    source_id: list[str]
    updated: np.ndarray  # int64, NONE without a meta.lastUpdated
    subject: np.ndarray  # int64
    time: np.ndarray  # int64
    available: np.ndarray  # int64
    value: np.ndarray  # float64, NaN without a number
    concept: np.ndarray  # int32, in the vocabulary, like the next ones
    text: np.ndarray
    unit: np.ndarray
    category: np.ndarray
    encounter: np.ndarray
    without_category: int


class _Record(msgspec.Struct, frozen=True, gc=False):
    """What a plain Observation has, in FHIR's order, in which it decodes fastest.

    What repeats is left as text.
    """

    resourceType: Literal["Observation"]  # a tag of one type alone may be missing
    id: str | None = None
    meta: Meta | None = None
    status: str | None = None
    category: msgspec.Raw = msgspec.Raw()
    code: msgspec.Raw = msgspec.Raw()
    subject: msgspec.Raw = msgspec.Raw()
    encounter: msgspec.Raw = msgspec.Raw()
    effectiveDateTime: str | None = None
    issued: str | None = None
    valueQuantity: Quantity | None = None
    valueString: str | None = None
    component: msgspec.Raw = msgspec.Raw()
    context: msgspec.Raw = msgspec.Raw()


# The rest is decoded, though not used: where it is malformed, the record is no better than when it
# comes alone.
_rest = [
    (field.name, field.type, field.default)
    for field in msgspec.structs.fields(Observation)
    if field.name not in _Record.__struct_fields__
]
_decoder: Final[msgspec.json.Decoder[_Record]] = msgspec.json.Decoder(
    msgspec.defstruct("_Observation", _rest, bases=(_Record,), frozen=True, gc=False)
)
_concept_decoder = msgspec.json.Decoder(CodeableConcept | None)
_categories_decoder = msgspec.json.Decoder(list[CodeableConcept] | None)
_reference_decoder = msgspec.json.Decoder(Reference | None)
_SIMPLE_REFERENCE = re.compile(rb'\{"reference": ?"Encounter/([A-Za-z0-9.-]{1,64})"\}')
_Asking = tuple[dict[bytes, int], list[Any]]  # a memo, and the texts of a column
_FAULTS = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, Reject, NotUsed)


class PlainReader:
    """Reads plain Observations of one site, with the numbers of one vocabulary."""

    def __init__(self, site: Site, vocabulary: Vocabulary) -> None:
        self._site = site
        self._words = vocabulary
        self._concepts = Memo(self._concept)
        self._categories = Memo(self._category)
        self._subjects = Memo(self._subject)
        self._encounters = Memo(self._encounter)
        self._times = TimeColumns(site.clock)
        self._units = Memo(self._unit)
        self._kinds: list[int] = []  # of the vocabulary's concepts

    def read(self, lines: Lines) -> tuple[Plain | None, list[tuple[int, bytes]]]:
        """Columns of the plain ones, and number and text of every other line."""
        assert lines.text is not None
        if not _objects_apart(lines):
            return self._one_by_one(lines)
        try:
            decoded = _decoder.decode_lines(lines.text)
        except _FAULTS:
            return self._one_by_one(lines)
        # One on each line, or else nobody knows which line is whose.
        if len(decoded) != lines.amount:
            return self._one_by_one(lines)
        plain = _plain_of(decoded)
        return self._columns(plain, _membership(decoded, plain), lines)

    def _one_by_one(self, lines: Lines) -> tuple[Plain | None, list[tuple[int, bytes]]]:
        decoded: list[_Record | None] = []
        for text in lines.split():
            try:
                decoded.append(_decoder.decode(text))
            except _FAULTS:
                decoded.append(None)
        plain = _plain_of([o for o in decoded if o is not None])
        return self._columns(plain, _membership(decoded, plain), lines)

    def _columns(
        self, plain: list[_Record], is_plain: list[bool] | None, lines: Lines
    ) -> tuple[Plain | None, list[tuple[int, bytes]]]:
        """`is_plain`: for each line; None where all of them are."""
        columns, sound = self._understood(plain)
        if not sound.all():
            wanted = sound.tolist()
            columns = _filtered(columns, sound)
            if is_plain is None:
                is_plain = wanted
            else:
                verdicts = iter(wanted)
                is_plain = [p and next(verdicts) for p in is_plain]
        if is_plain is None:
            return columns, []
        texts = zip(lines.split(), is_plain, strict=True)
        others = [(lines.first + i, text) for i, (text, p) in enumerate(texts) if not p]
        return (columns if columns.source_id else None), others

    def _understood(self, plain: list[_Record]) -> tuple[Plain, np.ndarray]:
        """The columns, and which rows of them can stand."""
        n = len(plain)
        asking: list[_Asking] = [
            (self._concepts, [o.code for o in plain]),
            (self._subjects, [o.subject for o in plain]),
            (self._encounters, [o.encounter for o in plain]),
        ]
        categories = [o.category for o in plain]
        if n and categories.count(categories[0]) == n:  # as in most files
            kind = np.full(n, self._categories[bytes(categories[0])])
            concept, subject, encounter = _asked(*asking)
        else:
            kind, concept, subject, encounter = _asked((self._categories, categories), *asking)
        time, issued = self._times.pair(
            [o.effectiveDateTime for o in plain], [o.issued for o in plain]
        )
        value, text, unit = self._values(plain)
        versions = [None if o.meta is None else o.meta.lastUpdated for o in plain]
        updated = instants(versions) if any(versions) else np.full(n, NONE)
        too_large = np.abs(value) > _FLOAT32_MAX
        if self._site.book.converts:
            value, unit = self._converted(concept, unit, value)
            too_large |= np.abs(value) > _FLOAT32_MAX
        sound = (concept >= 0) & (kind >= -1) & (subject >= 0) & (encounter >= 0)
        sound &= (time != ODD) & (issued != ODD) & ~too_large
        uncategorised = kind <= 0
        columns = Plain(
            source_id=[o.id for o in plain],  # type: ignore[misc]
            updated=updated,
            subject=subject,
            time=time,
            available=np.maximum(time, issued),
            value=value + 0.0,  # -0.0 as 0.0
            concept=concept.astype(np.int32),
            text=text,
            unit=unit,
            category=self._by_code(kind, concept) if uncategorised.any() else kind,
            encounter=encounter.astype(np.int32),
            without_category=int(((kind == -1) & sound).sum()),
        )
        return columns, sound

    def _values(self, plain: list[_Record]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Numbers, texts and units."""
        n = len(plain)
        quantities = [o.valueQuantity for o in plain]
        value = np.array([np.nan if q is None else q.value for q in quantities], np.float64)
        told = [
            o.valueString if q is None else q.comparator or None
            for o, q in zip(plain, quantities, strict=True)
        ]
        text = np.zeros(n, np.int32)
        if any(told):
            text = _looked_up(self._words.texts, told, n, np.int32)
        written = [None if q is None else q.code or q.unit for q in quantities]
        return value, text, _looked_up(self._units, written, n, np.int32)

    def _by_code(self, kind: np.ndarray, concept: np.ndarray) -> np.ndarray:
        """The categories; where the Observation's own say nothing, its code's."""
        for known in self._words.concepts.values_[len(self._kinds) :]:
            told = observation_kind(None, known or _NOTHING)
            self._kinds.append(self._words.categories[told])
        return np.where(kind > 0, kind, np.array(self._kinds, np.int32)[concept])

    def _converted(
        self, concept: np.ndarray, unit: np.ndarray, value: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Values and units, where the site wants others."""
        book, words = self._site.book, self._words
        pairs = concept.astype(np.int64) << 32 | unit
        for pair in np.unique(pairs[concept > 0]).tolist():
            code = words.concepts.values_[pair >> 32].code
            conversion = book.conversion(code, words.units.values_[pair & 0xFFFFFFFF])
            if conversion is not None:
                rows = pairs == pair
                value = np.where(rows, value * conversion.factor + conversion.offset, value)
                unit = np.where(rows, words.units[conversion.unit], unit).astype(np.int32)
        return value, unit

    def _concept(self, raw: bytes) -> int:
        try:
            concept = _concept_decoder.decode(raw)
            found = self._site.book.concept(concept) if concept is not None else None
        except _FAULTS:
            return -1
        return self._words.concepts[found] if found is not None else -1

    def _category(self, raw: bytes) -> int:
        """-1 for none at all, 0 for some that say nothing, -2 for odd ones."""
        try:
            categories = _categories_decoder.decode(raw) if raw else None
            if not categories:
                return -1
            kind = observation_kind(categories, _NOTHING)
        except _FAULTS:
            return -2
        return 0 if kind == "observation" else self._words.categories[kind]

    def _subject(self, raw: bytes) -> int:
        try:
            return subject_id(patient_of(_reference_decoder.decode(raw), self._site))
        except _FAULTS:
            return -1

    def _encounter(self, raw: bytes) -> int:
        if match := _SIMPLE_REFERENCE.fullmatch(raw):  # nearly all, and each comes a few times only
            return self._words.encounters[match[1].decode()]
        try:
            reference = _reference_decoder.decode(raw) if raw else None
            found = id_of(reference, self._site)
        except _FAULTS:
            return -1
        if found is None and reference is not None and reference.reference:
            return -1  # it has to be noted
        return self._words.encounters[found]

    def _unit(self, text: str | None) -> int:
        return self._words.units[unit_of(Quantity(code=text))]


_NOTHING = Concept("", ())


def _objects_apart(lines: Lines) -> bool:
    """Whether every line break stands between two objects, as it never does within one.

    Two records on a line and none on another are as many as one on each.
    """
    if lines.breaks is None or lines.text is None:
        return lines.amount == 1
    letters, inner = np.frombuffer(lines.text, np.uint8), lines.breaks[:-1]
    if not (letters[inner + 1] == ord("{")).all():
        return False
    before = letters[inner - 1]
    if (before == ord("\r")).all():  # lines that end with \r\n
        before = letters[inner - 2]
    return bool((before == ord("}")).all())


def _plain_of(decoded: list[_Record]) -> list[_Record]:
    """Those with a code, a time and a number or a text.

    What only `convert` can judge (other values, components, a status that means that there is no
    result) is left to it.
    """
    excluded = EXCLUDED["Observation"]
    return [
        o
        for o in decoded
        if (_is_text(o) if (q := o.valueQuantity) is None else q.value is not None)
        and o.effectiveDateTime
        and o.id
        and o.status not in excluded
        and not o.component
        and not o.context
    ]


def _is_text(observation: Any) -> bool:
    """Whether the value is a text: of several, `convert` takes the first of these that there is."""
    o = observation
    return bool(
        o.valueString
        and o.valueCodeableConcept is None
        and o.valueInteger is None
        and o.valueBoolean is None
        and o.valueRange is None
        and o.valueRatio is None
        and o.valuePeriod is None
    )


def _membership(decoded: Sequence[_Record | None], plain: list[_Record]) -> list[bool] | None:
    """Which of them are plain; None where all are."""
    if len(plain) == len(decoded):
        return None
    kept = set(map(id, plain))
    return [id(o) in kept for o in decoded]


def _asked(*columns: _Asking) -> list[np.ndarray]:
    """What each memo (of int64) has for the texts of its column, asked once for all that are equal.

    All columns at once: most of what this takes does not depend on how many texts there are.
    """
    n = len(columns[0][1])
    joined = b"\n".join([*chain.from_iterable(raws for _, raws in columns), b""])
    ends = line_ends(joined)
    if len(ends) != n * len(columns):  # a record on several lines
        return [_looked_up(memo, map(bytes, raws), n, np.int64) for memo, raws in columns]
    starts = np.zeros(len(ends) + 1, np.int32)
    starts[1:] = ends + 1
    buffers = [None, pa.py_buffer(starts), pa.py_buffer(joined)]
    texts = pa.Array.from_buffers(pa.binary(), len(ends), buffers).dictionary_encode()
    words = texts.dictionary.to_pylist()
    places = texts.indices.to_numpy().reshape(len(columns), n)
    found = []
    for (memo, _), rows in zip(columns, places, strict=True):
        told = np.zeros(len(words), np.int64)
        for word in np.flatnonzero(np.bincount(rows, minlength=len(words))).tolist():
            told[word] = memo[words[word][:-1]]
        found.append(told[rows])
    return found


def _looked_up(memo: dict[Any, int], keys: Any, n: int, kind: type) -> np.ndarray:
    return np.fromiter(map(memo.__getitem__, keys), kind, n)


def _filtered(columns: Plain, keep: np.ndarray) -> Plain:
    kept = [s for s, k in zip(columns.source_id, keep.tolist(), strict=True) if k]
    arrays = {
        name: column[keep]
        for name, column in columns._asdict().items()
        if isinstance(column, np.ndarray)
    }
    return columns._replace(source_id=kept, **arrays)
