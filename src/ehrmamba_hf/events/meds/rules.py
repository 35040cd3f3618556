"""What the codes of a MEDS dataset mean: rules, and one pure function that applies them.

MEDS fixes the columns of a dataset and the codes of birth and death; every other code is the
source's own. The packaged rules, rules.yaml beside this file, know those of published data.
"""

import re
from collections.abc import Iterable, Sequence
from datetime import time
from functools import cache, cached_property
from importlib import resources
from pathlib import Path
from string import Formatter
from typing import Any, Final, Literal

import meds
import msgspec
import yaml

from ehrmamba_hf.errors import InputError
from ehrmamba_hf.events.schema import CATEGORIES
from ehrmamba_hf.fhir.codings import Registry, packaged_systems

Role = Literal[
    "event",
    "birth",
    "death",
    "sex",
    "race",
    "admission",
    "discharge",
    "icu_admission",
    "icu_discharge",
    "ed_arrival",
    "ed_departure",
    "not_used",
]
FALLBACK_CATEGORY: Final = "observation"
_NOTHING: Final = {"", "UNK", "unk", "None", "nan"}
_SYSTEM: Final = re.compile(r"(?P<system>[^/]+)//?(?P<code>.+)", re.DOTALL)


class Rule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a code means whose whole text matches `pattern`; see `rules.yaml`.

    `code` and `also` are templates over the pattern's named groups; one whose group did not match
    is left out. Without `value`, the group of that name is the value.
    """

    pattern: str
    role: Role = "event"
    category: str | None = None
    code: str | None = None
    also: tuple[str, ...] = ()
    value: str | None = None
    values: dict[str, str] = {}
    after_encounter: bool = False
    mimic: bool = False


class System(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A code system's short name, and the category of an event that is coded by it."""

    name: str
    category: str


class Columns(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Names that an extension column may have, by what it holds."""

    unit: tuple[str, ...]
    end_time: tuple[str, ...]
    encounter_id: tuple[str, ...]
    stay_id: tuple[str, ...]
    race: tuple[str, ...]
    source_table: tuple[str, ...]


class Meaning(msgspec.Struct, frozen=True, kw_only=True):
    """What a code of the source means, and how its events are written."""

    role: Role
    category: str
    name: str  # the event's code
    codings: tuple[str, ...]
    unit: str | None = None
    value: str | None = None
    after_encounter: bool = False
    known: bool = True  # False: no rule, table or code system tells the category


def _from_package(name: str) -> Any:
    return msgspec.field(default_factory=lambda: getattr(_packaged(), name))


class MedsRules(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, dict=True):
    """How the codes and columns of a MEDS dataset are read; the packaged rules by default.

    Attributes:
        rules: the first whose pattern matches a whole code decides.
        tables: category by the value of the column `table`.
        systems: code systems by the prefix of a code, in any case.
        columns: names of extension columns.
        mimic: a dataset is MIMIC-IV if its name or any of its codes holds this pattern.
        hourless: times of day that stand for a date without an hour.
        prefer_standard: an event is called by its coding of the most preferred system (its parent
            codes are among them) in place of the source's own code.
    """

    rules: tuple[Rule, ...] = _from_package("rules")
    tables: dict[str, str] = _from_package("tables")
    systems: dict[str, System] = _from_package("systems")
    columns: Columns = _from_package("columns")
    mimic: str = _from_package("mimic")
    hourless: tuple[str, ...] = _from_package("hourless")
    prefer_standard: bool = False

    def __post_init__(self) -> None:
        """Check patterns, templates, times and categories. Raises InputError."""
        for text in self.hourless:
            try:
                time.fromisoformat(text)
            except ValueError:
                raise InputError(
                    f"MEDS rules: hourless: expected times of day such as 23:59:59, found {text}"
                ) from None
        for pattern in (self.mimic, *(rule.pattern for rule in self.rules)):
            try:
                re.compile(pattern)
            except re.error as error:
                raise InputError(
                    f"MEDS rule {pattern!r}: expected a regular expression: {error}"
                ) from None
        for rule in self.rules:
            _expect_templates(rule)
        named = {rule.category for rule in self.rules if rule.category is not None}
        named |= set(self.tables.values()) | {s.category for s in self.systems.values()}
        if others := sorted(named - set(CATEGORIES)):
            raise InputError(f"MEDS rules: expected categories of {CATEGORIES}, found {others}")

    @cached_property
    def compiled(self) -> list[tuple[re.Pattern[str], Rule]]:
        return [(re.compile(rule.pattern, re.DOTALL), rule) for rule in self.rules]

    @cached_property
    def systems_by_prefix(self) -> dict[str, System]:
        return {prefix.lower(): system for prefix, system in self.systems.items()}

    def is_mimic(self, texts: Iterable[str]) -> bool:
        """Whether any of a dataset's name and codes says that it is MIMIC-IV.

        >>> MedsRules().is_mimic(["LOINC/2160-0"]), MedsRules().is_mimic(["MIMIC-IV"])
        (False, True)
        """
        pattern = re.compile(self.mimic)
        return any(pattern.search(text) for text in texts)

    def meaning(
        self, code: str, *, table: str = "", mimic: bool = False, parents: Sequence[str] = ()
    ) -> Meaning:
        """What a code means.

        The event is called by its rule's `code`, else by the source's own code; a code of a known
        system becomes `{SYSTEM}/{code}`. `codings` holds this, the source's own code and the
        parent codes.

        Args:
            code: as the source has it.
            table: its row's value in the column `table`, if there is one.
            mimic: the dataset is MIMIC-IV.
            parents: its parent codes, of the code metadata.

        >>> found = MedsRules().meaning("LAB//50912//mg/dL", mimic=True, parents=["LOINC/2160-0"])
        >>> found.category, found.name, found.unit, found.codings[1:]
        ('lab', 'MIMIC_LAB/50912', 'mg/dL', ('LAB//50912//mg/dL', 'LOINC/2160-0'))
        >>> MedsRules().meaning("HOSPITAL_DISCHARGE//DIED").value
        'DIED'
        """
        rule, groups = self._rule_of(code, mimic)
        name, system = self._with_system(_filled(rule.code, groups) or code)
        category = rule.category or self.tables.get(table) or (system.category if system else None)
        also = [text for template in rule.also if (text := _filled(template, groups))]
        more = [self._with_system(text)[0] for text in (*also, *parents)]
        codings = tuple(dict.fromkeys([name, code, *more]))
        if self.prefer_standard:
            name = min(codings, key=lambda coding: _registry().rank(coding.split("/", 1)[0]))
        value = groups.get("value") if rule.value is None else rule.value
        return Meaning(
            role=rule.role,
            category=category or FALLBACK_CATEGORY,
            name=name,
            codings=codings,
            unit=groups.get("unit"),
            value=rule.values.get(value.lower(), value) if value else None,
            after_encounter=rule.after_encounter or category == "condition",
            known=category is not None or rule.role != "event",
        )

    def _rule_of(self, code: str, mimic: bool) -> tuple[Rule, dict[str, str]]:
        for pattern, rule in self.compiled:
            if (mimic or not rule.mimic) and (match := pattern.fullmatch(code)):
                found = {k: v for k, v in match.groupdict().items() if v and v not in _NOTHING}
                return rule, found
        return _NO_RULE, {}

    def _with_system(self, code: str) -> tuple[str, System | None]:
        match = _SYSTEM.fullmatch(code)
        system = self.systems_by_prefix.get(match["system"].lower()) if match else None
        if match is None or system is None:
            return code, None
        return _registry().coding(system.name, match["code"]), system


_NO_RULE: Final = Rule(pattern=".*")


def read_rules(file: Path) -> MedsRules:
    """Rules of a YAML file, before the packaged ones.

    Its `rules` come first, its `tables`, `systems` and `columns` are merged into the packaged
    ones, everything else replaces. Raises InputError.
    """
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
        return msgspec.convert(_merged(content, _packaged_content()), MedsRules)
    except InputError as error:
        raise InputError(f"{file}: {error}") from None
    except (OSError, yaml.YAMLError, AttributeError, TypeError, ValueError) as error:
        raise InputError(f"{file}: expected a YAML file of MEDS rules: {error}") from None


def meaning_of_own(code: str) -> Meaning:
    """What a code means in a dataset with this package's own columns: they say all but this."""
    roles: dict[str, Role] = {meds.birth_code: "birth", meds.death_code: "death"}
    return Meaning(role=roles.get(code, "event"), category="", name=code, codings=())


def prefix_of(code: str) -> str:
    """What codes without a meaning are counted by.

    >>> prefix_of("EYE_COLOR//BLUE"), prefix_of("Blood Pressure"), prefix_of("X/1/2")
    ('EYE_COLOR', 'Blood Pressure', 'X')
    """
    return code.split("/", 1)[0][:40] or "/"


def _expect_templates(rule: Rule) -> None:
    groups = set(re.compile(rule.pattern).groupindex)
    for template in filter(None, (rule.code, *rule.also)):
        if not _is_template(template, groups):
            raise InputError(
                f"MEDS rule {rule.pattern!r}: expected a template over the named groups "
                f"{sorted(groups)}, found {template!r}"
            )


def _is_template(text: str, groups: set[str]) -> bool:
    """Whether a text has plain names of groups in its braces, if it has any.

    >>> [_is_template(text, {"icd"}) for text in ("ICD10CM/{icd}", "{", "{0}", "{icd:d}")]
    [True, False, False, False]
    """
    try:
        parts = list(Formatter().parse(text))
    except ValueError:
        return False
    return all(
        name is None or (name in groups and not spec and conversion is None)
        for _, name, spec, conversion in parts
    )


def _filled(template: str | None, groups: dict[str, str]) -> str | None:
    try:
        return template.format_map(groups) if template is not None else None
    except KeyError:
        return None


@cache
def _registry() -> Registry:
    return Registry(packaged_systems())


def _merged(mine: dict[str, Any], packaged: dict[str, Any]) -> dict[str, Any]:
    result = packaged | mine
    result["rules"] = [*(mine.get("rules") or ()), *packaged["rules"]]
    for name in ("tables", "systems", "columns"):
        result[name] = packaged[name] | (mine.get(name) or {})
    return result


@cache
def _packaged() -> "MedsRules":
    return msgspec.convert(_packaged_content(), MedsRules)


def _packaged_content() -> dict[str, Any]:
    file = resources.files("ehrmamba_hf.events.meds") / "rules.yaml"
    return yaml.safe_load(file.read_text(encoding="utf-8"))
