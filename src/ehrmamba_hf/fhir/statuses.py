"""Which statuses mean that there is no event, for each resource type.

Out is what did not happen, is not true, or is so far no more than an intention; in is what began,
though it was stopped, paused or only partly reported. A status that is missing, unknown, or in no
value set says nothing against the record. Each record that is left out is counted by its status.
"""

from typing import Final

from ehrmamba_hf.fhir.resources import CodeableConcept
from ehrmamba_hf.fhir.rows import NotUsed

_ERROR: Final = frozenset({"entered-in-error"})
_NEVER: Final = _ERROR | {"cancelled", "not-done"}  # some write the one where the other is meant

EXCLUDED: Final[dict[str, frozenset[str]]] = {
    # in: arrived, triaged, in-progress, onleave, finished, unknown; R5: on-hold, discharged,
    # completed, discontinued (it began, but could not be completed)
    # https://hl7.org/fhir/R4/valueset-encounter-status.html
    # https://hl7.org/fhir/R5/valueset-encounter-status.html
    "Encounter": _NEVER | {"planned"},
    # verificationStatus; in: unconfirmed, provisional, differential, confirmed
    # https://hl7.org/fhir/R4/valueset-condition-ver-status.html (R5 alike)
    "Condition": _ERROR | {"refuted"},
    # verificationStatus; in: unconfirmed, confirmed; R5: presumed
    # https://hl7.org/fhir/R4/valueset-allergyintolerance-verification.html
    # https://hl7.org/fhir/R5/valueset-allergyintolerance-verification.html
    "AllergyIntolerance": _ERROR | {"refuted"},
    # in: in-progress, on-hold, stopped, completed, unknown; STU3: suspended, aborted
    # https://hl7.org/fhir/R4/valueset-event-status.html (R5 alike)
    "Procedure": _NEVER | {"preparation"},
    # in: completed
    # https://hl7.org/fhir/R4/valueset-immunization-status.html (R5 alike)
    "Immunization": _NEVER,
    # in: active, inactive
    # https://hl7.org/fhir/R4/valueset-medication-status.html (R5 alike)
    "Medication": _NEVER,
    # in: active, on-hold, completed, stopped, unknown; R5: ended
    # https://hl7.org/fhir/R4/valueset-medicationrequest-status.html
    # https://hl7.org/fhir/R5/valueset-medicationrequest-status.html
    "MedicationRequest": _NEVER | {"draft"},
    # in: in-progress, on-hold, completed, stopped, unknown
    # https://hl7.org/fhir/R4/valueset-medication-admin-status.html (R5 alike)
    "MedicationAdministration": _NEVER,
    # in: in-progress, completed, stopped, unknown. on-hold waits for stock or the prescriber:
    # nothing has been handed over.
    # https://hl7.org/fhir/R4/valueset-medicationdispense-status.html (R5 alike)
    "MedicationDispense": _NEVER | {"preparation", "declined", "on-hold"},
    # in: active, completed, stopped, on-hold, unknown; R5: recorded. R5 has its draft.
    # https://hl7.org/fhir/R4/valueset-medication-statement-status.html
    # https://hl7.org/fhir/R5/valueset-medication-statement-status.html
    "MedicationStatement": _NEVER | {"intended", "not-taken", "draft"},
    # in: preliminary, final, amended, corrected, unknown
    # https://hl7.org/fhir/R4/valueset-observation-status.html (R5 alike)
    "Observation": _NEVER | {"registered"},
    # in: partial, preliminary, final, amended, corrected, appended, unknown; R5: modified
    # https://hl7.org/fhir/R4/valueset-diagnostic-report-status.html
    # https://hl7.org/fhir/R5/valueset-diagnostic-report-status.html
    "DiagnosticReport": _NEVER | {"registered"},
}
"""The statuses that are no events, by resource type; the comments name those that are."""

# in: plan, order, original-order, reflex-order, filler-order, instance-order
# https://hl7.org/fhir/R4/valueset-medicationrequest-intent.html (R5 alike)
_NO_ORDER: Final = frozenset({"proposal", "option"})
# in: taking (and as or not as directed), on-hold, stopped (both taken before), unknown
# https://hl7.org/fhir/R5/valueset-medication-statement-adherence.html
_NOT_TAKING: Final = frozenset({"not-taking"})
# in: y (yes), unk (unknown), na (not applicable)
# https://hl7.org/fhir/STU3/valueset-medication-statement-taken.html
_NOT_TAKEN: Final = frozenset({"n"})


def expect_happened(status: CodeableConcept | str | None, resource_type: str) -> None:
    """Raise NotUsed for a status that says that it did not happen or is not true.

    A verificationStatus is a code in STU3 and a concept since R4.
    """
    _expect(status, EXCLUDED[resource_type], "status")


def expect_order(intent: str | None) -> None:
    """Raise NotUsed for an intent short of an order."""
    _expect(intent, _NO_ORDER, "intent")


def expect_taken(taken: str | None, adherence: CodeableConcept | None) -> None:
    """Raise NotUsed where STU3's `taken` or R5's `adherence` says that it is not taken."""
    _expect(taken, _NOT_TAKEN, "taken")
    _expect(adherence, _NOT_TAKING, "adherence")


def expect_not(**flags: bool | None) -> None:
    """Raise NotUsed where a flag is set that turns a record into its opposite.

    >>> expect_not(doNotPerform=None)
    """
    for name, flag in flags.items():
        if flag:
            raise NotUsed(name)


def _expect(status: CodeableConcept | str | None, excluded: frozenset[str], what: str) -> None:
    for code in _codes(status):
        if code in excluded:
            raise NotUsed(f"{what} {code}")


def _codes(status: CodeableConcept | str | None) -> list[str | None]:
    """Every code, and the text: a hospital's own coding may stand before the one that tells."""
    if status is None or isinstance(status, str):
        return [status]
    return [*(coding.code for coding in status.coding or ()), status.text]
