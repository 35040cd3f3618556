"""The page of an events folder: what was read, what became of it, and whether to trust it."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from ehrmamba_hf.fhir.reading import told_endings
from ehrmamba_hf.pages import Verdict, by_year, environment, percent, thousands

_EXAMPLES: Final = 3
_DOCUMENTS: Final = {".txt", ".md", ".html", ".pdf"}
"""Endings of what lies beside records and holds none."""
_REASONS: Final = 15
"""Lines of the list of rejects; what breaks every record breaks it for few reasons."""


@dataclass(frozen=True, slots=True)
class Account:
    """What became of the resources of one type."""

    name: str
    read: int
    used: int
    not_used: int
    rejected: int
    reasons: list[tuple[str, int]]  # of those not used, the most frequent first

    @property
    def holds(self) -> bool:
        return self.read == self.used + self.not_used + self.rejected

    @property
    def parts(self) -> list[tuple[str, int]]:
        """Kind (a class of the style) and count, in the order of the bar."""
        return [("used", self.used), ("unused", self.not_used), ("rejected", self.rejected)]


@dataclass(frozen=True, slots=True)
class Reason:
    """One reason for rejects, with the first places where it was met."""

    text: str
    count: int
    examples: list[str]


@dataclass(frozen=True, slots=True)
class System:
    """A code system and how many events have a code of it."""

    name: str
    url: str
    events: int
    known: bool


def events_page(report: Mapping[str, Any], rejects: Iterable[Mapping[str, Any]] = ()) -> str:
    """The self-contained page of an ingestion, as HTML.

    It holds counts, code systems and dates, and of what was rejected the file and line; never an
    identifier or content of a record. A section whose keys are missing is left out.

    Args:
        report: report.json, see `Report`.
        rejects: the lines of rejects.ndjson: file, line, resource_type, field, expected, found.
    """
    accounts = [_account(kind, outcome) for kind, outcome in report.get("resources", {}).items()]
    total = _account("All", report["total"]) if "total" in report else None
    reasons = _reject_reasons(rejects)
    return (
        environment()
        .get_template("events/report.html.j2")
        .render(
            report=report,
            noun=noun(report),
            verdict=_verdict(report, accounts, total),
            accounts=sorted(accounts, key=lambda account: -account.read),
            total=total,
            facts=_facts(report),
            categories=sorted(report.get("events", {}).items(), key=lambda pair: -pair[1]),
            systems=_systems(report),
            years=by_year(report.get("events_by_year", {})),
            reasons=reasons[:_REASONS],
            more_reasons=reasons[_REASONS:],
            noted=_noted(report),
        )
    )


def noun(report: Mapping[str, Any]) -> str:
    """What an ingestion reads: FHIR has resources, MEDS has rows."""
    return "rows" if report.get("source") == "MEDS" else "resources"


def warnings(report: Mapping[str, Any]) -> list[str]:
    """What a user of the events should know first, in sentences."""
    total = report.get("total", {})
    points = list(report.get("warnings", ()))
    if rejected := total.get("rejected", 0):
        share = percent(rejected, total["read"])
        points.append(f"{thousands(rejected)} {noun(report)} ({share}) were rejected.")
    unread = report.get("files_not_read", {}).items()
    if data := {ending: count for ending, count in unread if ending not in _DOCUMENTS}:
        points.append(f"Files of these endings were not read: {told_endings(data)}.")
    if unresolved := sum(report.get("unresolved_references", {}).values()):
        points.append(f"{thousands(unresolved)} references lead to nothing that was read.")
    if unknown := sum(report.get("unknown_code_systems", {}).values()):
        points.append(f"{thousands(unknown)} codings are of code systems that are not known.")
    return points


def _verdict(report: Mapping[str, Any], accounts: list[Account], total: Account | None) -> Verdict:
    points = warnings(report)
    wrong = [account.name for account in (*accounts, total) if account and not account.holds]
    if wrong:
        sentence = f"Do not trust these events: the counts do not add up ({', '.join(wrong)})."
        return Verdict("bad", sentence, points)
    accounted = f"All {noun(report)} are accounted for"
    if points:
        return Verdict("look", f"{accounted}. Before you use the events, read this:", points)
    return Verdict("good", f"{accounted}, none was rejected, and there are no warnings.", [])


def _account(name: str, outcome: Mapping[str, Any]) -> Account:
    reasons = Counter(outcome["not_used"]).most_common()
    not_used = sum(count for _, count in reasons)
    return Account(name, outcome["read"], outcome["used"], not_used, outcome["rejected"], reasons)


def _facts(report: Mapping[str, Any]) -> dict[str, str]:
    """What there is to say about the input and the result, in words."""
    counted = {
        "Patients": "subjects",
        "Encounters": "encounters",
        "Files": "files",
        "Lines": "lines",
        "Blank lines": "blank_lines",
        "Bundles": "bundles",
    }
    facts = {name: thousands(report[key]) for name, key in counted.items() if key in report}
    if others := report.get("files_not_read"):
        facts["Files not read"] = told_endings(others)
    if "events" in report:
        facts = {"Events": thousands(sum(report["events"].values())), **facts}
    if dates := report.get("date_range"):
        facts["First and last event"] = f"{dates[0][:10]} to {dates[-1][:10]}"
    if "timezone" in report:
        facts["Timezone given"] = report["timezone"] or "none: times as written"
    return facts


def _systems(report: Mapping[str, Any]) -> list[System]:
    """Unknown ones first, then by use; an older report tells only of the unknown ones."""
    systems = [
        System(name, system.get("url", ""), system["events"], system["known"])
        for name, system in report.get("systems", {}).items()
    ]
    named = {system.url for system in systems}
    systems += [
        System("", url, count, False)
        for url, count in report.get("unknown_code_systems", {}).items()
        if url not in named
    ]
    return sorted(systems, key=lambda system: (system.known, -system.events))


def _noted(report: Mapping[str, Any]) -> dict[str, int]:
    """What was met on the way and cost no record."""
    noted = {
        "concepts that have a text but no code": report.get("text_only_codes", 0),
        "Observations without a category": report.get("observations_without_category", 0),
        **report.get("notes", {}),
    }
    return {reason: count for reason, count in noted.items() if count}


def _reject_reasons(rejects: Iterable[Mapping[str, Any]]) -> list[Reason]:
    """Rejects by type, field and what was expected there, the most frequent first.

    What was found instead is left to rejects.ndjson: of broken JSON it differs from line to line.
    """
    counts: Counter[str] = Counter()
    examples: defaultdict[str, list[str]] = defaultdict(list)
    for reject in rejects:
        field = re.sub(r"\[\d+\]", "[]", reject["field"])
        where = " ".join(filter(None, (reject["resource_type"], field)))
        reason = f"{where}: expected {reject['expected']}"
        counts[reason] += 1
        if counts[reason] <= _EXAMPLES:
            examples[reason].append(f"{reject['file']}:{reject['line']}")
    return [Reason(text, count, examples[text]) for text, count in counts.most_common()]
