# ruff: noqa: N815 - FHIR's own names
"""The parts of FHIR R4 resources that become events, as typed Structs.

Only what is used is declared: names, addresses and narrative are never decoded. A field that is
absent or null is None. What R5, STU3 or DSTU2 call otherwise stands beside it with the release's
name: which release a record is of is not asked, each of its fields is used under the name that it
has. R4B is R4 here. https://hl7.org/fhir/R4/resourcelist.html, https://hl7.org/fhir/R5/diff.html
"""

from typing import Literal

import msgspec


class Element(msgspec.Struct, frozen=True, gc=False):
    """Base of all FHIR elements; immutable, so that decoded records can be shared freely."""


class Meta(Element, frozen=True, gc=False):
    lastUpdated: str | None = None


class EncounterMeta(Meta, frozen=True, gc=False):
    """Of an Encounter, its profile may tell where it is from."""

    profile: list[str] | None = None


Malformed = Literal["meta", "meta.lastUpdated", "meta.profile", "identifier", "extension", "gender"]
"""What a resource is used without where it is malformed."""


class Resource(Element, frozen=True, gc=False, tag_field="resourceType", tag=str):
    """Base of all resources: the class name is the `resourceType`."""

    id: str | None = None
    meta: Meta | None = None
    malformed: tuple[Malformed, ...] = ()  # none of FHIR's: what decoding left out


class Coding(Element, frozen=True, gc=False):
    system: str | None = None
    code: str | None = None
    display: str | None = None


class CodeableConcept(Element, frozen=True, gc=False):
    coding: list[Coding] | None = None
    text: str | None = None


class Reference(Element, frozen=True, gc=False):
    reference: str | None = None


class MedicationReference(Reference, frozen=True, gc=False):
    """Only here is the display decoded: that of a `subject` is the patient's name."""

    display: str | None = None


class CodeableReference(Element, frozen=True, gc=False):
    """R5: either of the two."""

    concept: CodeableConcept | None = None
    reference: MedicationReference | None = None


class Period(Element, frozen=True, gc=False):
    start: str | None = None
    end: str | None = None


class Quantity(Element, frozen=True, gc=False):
    value: float | None = None
    comparator: str | None = None
    unit: str | None = None
    code: str | None = None


class Range(Element, frozen=True, gc=False):
    low: Quantity | None = None
    high: Quantity | None = None


class Ratio(Element, frozen=True, gc=False):
    numerator: Quantity | None = None
    denominator: Quantity | None = None


class Repeat(Element, frozen=True, gc=False):
    boundsPeriod: Period | None = None


class Timing(Element, frozen=True, gc=False):
    event: list[str] | None = None
    repeat: Repeat | None = None


class Anything(Element, frozen=True, gc=False):
    """An element of which only the presence counts."""


class Identifier(Element, frozen=True, gc=False):
    system: str | None = None


class MedicationIdentifier(Identifier, frozen=True, gc=False):
    """Only here is the value decoded: those of patients and encounters are theirs."""

    value: str | None = None


class Extension(Element, frozen=True, gc=False):
    url: str | None = None
    valueCoding: Coding | None = None
    valueString: str | None = None
    extension: "list[Extension] | None" = None


class Patient(Resource, frozen=True, gc=False):
    extension: list[Extension] | None = None
    gender: str | None = None
    birthDate: str | None = None
    deceasedBoolean: bool | None = None
    deceasedDateTime: str | None = None


class ClinicalResource(Resource, frozen=True, gc=False):
    """A resource about a patient in an encounter.

    Who it is about is `subject` or `patient`, by type and release; `context` is the encounter in
    STU3, and until R4B in some of the medication resources.
    """

    subject: Reference | None = None
    patient: Reference | None = None
    encounter: Reference | None = None
    context: Reference | None = None


class Disposition(CodeableConcept, frozen=True, gc=False):
    """A discharge disposition; German sites write theirs into an extension of it."""

    extension: list[Extension] | None = None


class Discharge(Element, frozen=True, gc=False):
    """Encounter.hospitalization (R4), Encounter.admission (R5)."""

    dischargeDisposition: Disposition | None = None


class Encounter(Resource, frozen=True, gc=False, rename={"class_": "class"}):
    meta: EncounterMeta | None = None
    identifier: list[Identifier] | None = None
    status: str | None = None
    class_: Coding | list[CodeableConcept] | None = None  # R4 | R5
    subject: Reference | None = None
    patient: Reference | None = None  # DSTU2
    period: Period | None = None
    actualPeriod: Period | None = None  # R5
    hospitalization: Discharge | None = None
    admission: Discharge | None = None  # R5
    partOf: Reference | None = None


class Condition(ClinicalResource, frozen=True, gc=False):
    verificationStatus: CodeableConcept | str | None = None  # R4 | STU3
    code: CodeableConcept | None = None
    recordedDate: str | None = None
    assertedDate: str | None = None  # STU3
    dateRecorded: str | None = None  # DSTU2
    onsetDateTime: str | None = None
    onsetPeriod: Period | None = None
    onsetAge: Anything | None = None
    onsetRange: Anything | None = None
    onsetString: str | None = None


class AllergyIntolerance(Condition, frozen=True, gc=False):
    """The fields that are used are those of a Condition."""


class Procedure(ClinicalResource, frozen=True, gc=False):
    status: str | None = None
    notDone: bool | None = None  # STU3
    notPerformed: bool | None = None  # DSTU2
    code: CodeableConcept | None = None
    performedDateTime: str | None = None
    performedPeriod: Period | None = None
    performedString: str | None = None
    performedAge: Anything | None = None
    performedRange: Anything | None = None
    occurrenceDateTime: str | None = None  # R5, like all of occurrence[x]
    occurrencePeriod: Period | None = None
    occurrenceTiming: Timing | None = None
    occurrenceString: str | None = None
    occurrenceAge: Anything | None = None
    occurrenceRange: Anything | None = None


class Immunization(ClinicalResource, frozen=True, gc=False):
    status: str | None = None
    notGiven: bool | None = None  # STU3
    wasNotGiven: bool | None = None  # DSTU2
    vaccineCode: CodeableConcept | None = None
    occurrenceDateTime: str | None = None
    date: str | None = None  # STU3
    doseQuantity: Quantity | None = None


class Ingredient(Element, frozen=True, gc=False):
    itemCodeableConcept: CodeableConcept | None = None
    itemReference: MedicationReference | None = None
    item: CodeableReference | None = None  # R5


class Medication(Resource, frozen=True, gc=False):
    identifier: list[MedicationIdentifier] | None = None
    status: str | None = None
    code: CodeableConcept | None = None
    ingredient: list[Ingredient] | None = None


class Contained(Element, frozen=True, gc=False):
    """A Medication inside another resource, named by `#id`."""

    id: str | None = None
    code: CodeableConcept | None = None
    ingredient: list[Ingredient] | None = None


class MedicationUse(ClinicalResource, frozen=True, gc=False):
    """What the resources that name a medication share."""

    status: str | None = None
    # A list in MIMIC-IV on FHIR 1.0 and 2.0.
    medicationCodeableConcept: CodeableConcept | list[CodeableConcept] | None = None
    medicationReference: MedicationReference | None = None
    medication: CodeableReference | None = None  # R5
    contained: list[msgspec.Raw] | None = None


class DispenseRequest(Element, frozen=True, gc=False):
    validityPeriod: Period | None = None


class MedicationRequest(MedicationUse, frozen=True, gc=False):
    intent: str | None = None
    doNotPerform: bool | None = None
    authoredOn: str | None = None
    dispenseRequest: DispenseRequest | None = None


class Dosage(Element, frozen=True, gc=False):
    dose: Quantity | None = None


class MedicationAdministration(MedicationUse, frozen=True, gc=False):
    notGiven: bool | None = None  # STU3
    wasNotGiven: bool | None = None  # DSTU2
    effectiveDateTime: str | None = None
    effectivePeriod: Period | None = None
    occurenceDateTime: str | None = None  # R5, with R5's spelling
    occurencePeriod: Period | None = None
    occurenceTiming: Timing | None = None
    occurrenceDateTime: str | None = None  # what R5 means
    occurrencePeriod: Period | None = None
    occurrenceTiming: Timing | None = None
    dosage: Dosage | None = None


class MedicationDispense(MedicationUse, frozen=True, gc=False):
    notDone: bool | None = None  # STU3
    quantity: Quantity | None = None
    whenHandedOver: str | None = None
    whenPrepared: str | None = None
    recorded: str | None = None  # R5


class Adherence(Element, frozen=True, gc=False):
    code: CodeableConcept | None = None


class MedicationStatement(MedicationUse, frozen=True, gc=False):
    taken: str | None = None  # STU3
    wasNotTaken: bool | None = None  # DSTU2
    adherence: Adherence | None = None  # R5
    effectiveDateTime: str | None = None
    effectivePeriod: Period | None = None
    effectiveTiming: Timing | None = None  # R5
    dateAsserted: str | None = None


class DiagnosticReport(ClinicalResource, frozen=True, gc=False):
    status: str | None = None
    code: CodeableConcept | None = None
    effectiveDateTime: str | None = None
    effectivePeriod: Period | None = None
    issued: str | None = None


class Measured(Element, frozen=True, gc=False):
    """The value[x] that Observation and its components share."""

    code: CodeableConcept | None = None
    dataAbsentReason: Anything | list[Anything] | None = None  # a list in MIMIC-IV on FHIR 1.0
    valueQuantity: Quantity | None = None
    valueInteger: int | None = None
    valueString: str | None = None
    valueCodeableConcept: CodeableConcept | None = None
    valueBoolean: bool | None = None
    valueRange: Range | None = None
    valueRatio: Ratio | None = None
    valueTime: str | None = None
    valueDateTime: str | None = None
    valuePeriod: Period | None = None
    valueSampledData: Anything | None = None
    valueAttachment: Anything | None = None  # R5
    valueReference: Anything | None = None  # R5


class Component(Measured, frozen=True, gc=False):
    pass


class Observation(Measured, frozen=True, gc=False, tag_field="resourceType", tag="Observation"):
    id: str | None = None
    meta: Meta | None = None
    malformed: tuple[Malformed, ...] = ()
    status: str | None = None
    category: list[CodeableConcept] | None = None
    subject: Reference | None = None
    encounter: Reference | None = None
    context: Reference | None = None  # STU3
    effectiveDateTime: str | None = None
    effectivePeriod: Period | None = None
    effectiveTiming: Timing | None = None
    effectiveInstant: str | None = None
    issued: str | None = None
    component: list[Component] | None = None


class Entry(Element, frozen=True, gc=False):
    fullUrl: str | None = None
    resource: msgspec.Raw = msgspec.Raw()


class Bundle(Resource, frozen=True, gc=False):
    """Any type of Bundle (collection, transaction, searchset, ...): its entries' resources."""

    entry: list[Entry] | None = None


Clinical = (
    Patient
    | Encounter
    | Condition
    | AllergyIntolerance
    | Procedure
    | Immunization
    | Medication
    | MedicationRequest
    | MedicationAdministration
    | MedicationDispense
    | MedicationStatement
    | Observation
    | DiagnosticReport
)
"""The resource types that are used; all others are counted by type."""
