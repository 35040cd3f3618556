"""One pure function per resource: the resource in, its Rows out, or Reject or NotUsed raised.

Times. `time` is the start of what was written; an end that is only a date stands at its last
microsecond (FHIR: a period's end includes any matching time). `available_time` is when the event
could have been known: never before what it was dated by is over, so that a date without an hour
leaks nothing.

Releases. R4, R4B and R5 give the same Rows for the same record; where STU3 or DSTU2 have a field of
another name, it is used, and where they have one of another kind, the record is rejected with the
field that it stands in.
"""

from collections.abc import Callable
from typing import Any, Final

from ehrmamba_hf.fhir.administrative import encounter, patient
from ehrmamba_hf.fhir.clinical import allergy_intolerance, condition, immunization, procedure
from ehrmamba_hf.fhir.medications import (
    medication,
    medication_administration,
    medication_dispense,
    medication_request,
    medication_statement,
)
from ehrmamba_hf.fhir.observations import diagnostic_report, observation
from ehrmamba_hf.fhir.resources import (
    AllergyIntolerance,
    Clinical,
    Condition,
    DiagnosticReport,
    Encounter,
    Immunization,
    Medication,
    MedicationAdministration,
    MedicationDispense,
    MedicationRequest,
    MedicationStatement,
    Observation,
    Patient,
    Procedure,
)
from ehrmamba_hf.fhir.rows import Rows, Site

_CONVERT: Final[dict[type, Callable[[Any, Site], Rows]]] = {
    Patient: patient,
    Encounter: encounter,
    Condition: condition,
    AllergyIntolerance: allergy_intolerance,
    Procedure: procedure,
    Immunization: immunization,
    Medication: medication,
    MedicationRequest: medication_request,
    MedicationAdministration: medication_administration,
    MedicationDispense: medication_dispense,
    MedicationStatement: medication_statement,
    Observation: observation,
    DiagnosticReport: diagnostic_report,
}


def convert(resource: Clinical, site: Site) -> Rows:
    """The Rows of any used resource. Raises Reject or NotUsed, and nothing else.

    Their notes also tell what decoding left out, and a reference to an encounter that names none.
    """
    rows = _CONVERT[type(resource)](resource, site)
    notes = [f"{field} is malformed" for field in resource.malformed]
    if _names_no_encounter(resource, rows):
        notes.append("the encounter's reference names no Encounter")
    return rows._replace(notes=(*rows.notes, *notes)) if notes else rows


def _names_no_encounter(resource: Clinical, rows: Rows) -> bool:
    if isinstance(resource, Encounter):
        reference, found = resource.partOf, rows.encounter and rows.encounter.part_of
    elif isinstance(resource, Patient | Medication):
        return False
    else:
        reference = resource.encounter or resource.context
        found = rows.events[0].encounter_id if rows.events else None
    return reference is not None and bool(reference.reference) and not found
