"""One JSON record to one typed resource, or to the reason why not."""

import re
from collections.abc import Iterator
from typing import Any, Final, NamedTuple, cast

import msgspec

from ehrmamba_hf.fhir.identity import parse_reference
from ehrmamba_hf.fhir.resources import Bundle, Clinical, Entry, Malformed
from ehrmamba_hf.fhir.rows import Reject


class Other(msgspec.Struct, frozen=True):
    """A resource of a type that is not used."""

    resourceType: str  # noqa: N815 - FHIR's own name


_decoder = msgspec.json.Decoder(Clinical | Bundle)
_peek = msgspec.json.Decoder(Other)
_USED = {kind.__name__ for kind in Clinical.__args__} | {"Bundle"}
_DISPENSABLE: Final = frozenset({"meta", "identifier", "extension", "gender"})
"""Fields whose loss changes no event: where one is malformed, the rest of the record is used."""
_LARGEST_REPAIR: Final = 1 << 24
"""Bytes of a record; as Python's objects, of which a repair is made, it takes 50 times that."""
BROKEN: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_STEP: Final = re.compile(r"[^.\[\]]+")
_TYPE_NAME = re.compile("[A-Z][A-Za-z]{2,63}")
# "Expected `str | null`, got `int` - at `$.code.text`"
_MISFIT = re.compile(r"(?:Expected `(?P<expected>[^`]+)`(?:, got `(?P<found>[^`]+)`)?)?.*?"
                     r"(?: - at `\$\.?(?P<path>[^`]*)`)?", re.DOTALL)  # fmt: skip


def decode(raw: bytes | msgspec.Raw) -> Clinical | Bundle | Other:
    """The resource that a JSON text holds; of repeated keys, the last one counts.

    Raises Reject, and nothing else, with the field and the kinds expected and found, never with
    the content; its `resource_type` is known where the text is JSON.

    >>> decode(b'{"resourceType": "Device"}')
    Other(resourceType='Device')
    >>> decode(b'{"resourceType": "Procedure", "code": {"text": 5}}')
    Traceback (most recent call last):
    ehrmamba_hf.fhir.rows.Reject: code.text: expected str, found int
    """
    try:
        return _decoder.decode(raw)
    except msgspec.ValidationError as error:
        misfit = str(error)
    except BROKEN as error:
        raise broken(error) from None
    try:
        other = _peek.decode(raw)
    except BROKEN as error:
        if not isinstance(error, msgspec.ValidationError):
            raise broken(error) from None
        raise Reject("resourceType", "a FHIR resource", "JSON that is not one") from None
    if other.resourceType in _USED:
        return _repaired(raw, misfit, other.resourceType)
    if not _TYPE_NAME.fullmatch(other.resourceType):
        raise Reject("resourceType", "a FHIR resource type", "another text")
    return other


class BundleEntry(NamedTuple):
    """A resource inside a Bundle; `fallback_id` stands in where it has no id of its own."""

    raw: msgspec.Raw
    fallback_id: str | None


def entries_of(bundle: Bundle) -> Iterator[BundleEntry]:
    """The entries that hold a resource (a transaction's deletions hold none)."""
    for entry in bundle.entry or ():
        if _holds_one(entry):
            target = parse_reference(entry.fullUrl) if entry.fullUrl else None
            yield BundleEntry(entry.resource, target.id if target else None)


class _Identified(msgspec.Struct):
    id: str | None = None


_id_decoder = msgspec.json.Decoder(_Identified)


def aliases_of(bundle: Bundle) -> dict[str, str]:
    """fullUrl -> id of the entries whose `urn:` URL differs from their id."""
    aliases = {}
    for entry in bundle.entry or ():
        url = entry.fullUrl or ""
        if _holds_one(entry) and url.startswith("urn:"):
            try:
                own = _id_decoder.decode(entry.resource).id
            except BROKEN:
                continue  # the entry itself is going to be rejected
            if own and not url.endswith(f":{own}"):
                aliases[url] = own
    return aliases


def _holds_one(entry: Entry) -> bool:
    return bytes(memoryview(entry.resource)[:4]) not in (b"", b"null")


def _repaired(raw: bytes | msgspec.Raw, misfit: str, kind: str) -> Clinical | Bundle:
    """The resource without the nulls in its arrays and the odd fields that it can do without.

    What had to go is told in its `malformed`: a subfield or a member of an array, as long as these
    are few, else all of the field.
    """
    if len(memoryview(raw)) > _LARGEST_REPAIR:
        raise _misfit(misfit, kind)
    try:
        content = _without_nulls(msgspec.json.decode(raw))
        content.pop("malformed", None)  # not the record's to say
        dropped: list[Malformed] = []
        for turn in range(2 * len(_DISPENSABLE) + 1):
            try:
                found = _decoder.decode(msgspec.json.encode(content))
                return msgspec.structs.replace(found, malformed=tuple(dict.fromkeys(dropped)))
            except msgspec.ValidationError as error:
                misfit = str(error)
            depth = 2 if turn < len(_DISPENSABLE) else 1
            path = _STEP.findall(_misfit(misfit, kind).field)[:depth]
            if not path or path[0] not in _DISPENSABLE or path[0] not in content:
                break
            dropped.append(_drop(content, path))
    except RecursionError as error:
        raise broken(error) from None
    except (msgspec.MsgspecError, ValueError, OverflowError):
        pass  # numbers that Python cannot hold: what was wrong at first is said
    raise _misfit(misfit, kind)


def _drop(content: Any, path: list[str]) -> Malformed:
    """Take what a path of one or two steps leads to out of a record; the name of what it was."""
    inside = content[path[0]]
    if len(path) == 1:
        del content[path[0]]
    elif isinstance(inside, list):
        del inside[int(path[1])]
    else:
        del inside[path[1]]
        return cast(Malformed, ".".join(path))
    return cast(Malformed, path[0])


def _without_nulls(content: Any) -> Any:
    if isinstance(content, dict):
        return {name: _without_nulls(value) for name, value in content.items()}
    if isinstance(content, list):
        return [_without_nulls(item) for item in content if item is not None]
    return content


def _misfit(message: str, kind: str) -> Reject:
    match = _MISFIT.fullmatch(message)
    parts = match.groupdict() if match else {}
    expected = (parts.get("expected") or "a value in range").removesuffix(" | null")
    reject = Reject(parts.get("path") or "", expected, parts.get("found") or "another value")
    reject.resource_type = kind
    return reject


def broken(error: Exception, field: str = "") -> Reject:
    """What is told of one of BROKEN, met in a field."""
    if isinstance(error, UnicodeDecodeError):
        return Reject(field, "UTF-8 text", "an invalid byte")
    if isinstance(error, RecursionError):
        return Reject(field, "a FHIR resource", "JSON nested too deep")
    return Reject(field, "one JSON record", str(error))
