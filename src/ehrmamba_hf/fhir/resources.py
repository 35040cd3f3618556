# ruff: noqa: N815 - FHIR's own names
"""The parts of FHIR R4 resources (and their R5 names) that become events, as typed Structs.

Only what is used is declared: names, addresses and narrative are never decoded. A field that is
absent or null is None. https://hl7.org/fhir/R4/resourcelist.html
"""

import msgspec


class Element(msgspec.Struct, frozen=True, gc=False):
    """Base of all FHIR elements; immutable, so that decoded records can be shared freely."""


class Meta(Element, frozen=True, gc=False):
    lastUpdated: str | None = None
    profile: list[str] | None = None


class Resource(Element, frozen=True, gc=False, tag_field="resourceType", tag=str):
    """Base of all resources: the class name is the `resourceType`."""

    id: str | None = None
    meta: Meta | None = None


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


class Identifier(Element, frozen=True, gc=False):
    system: str | None = None


class Extension(Element, frozen=True, gc=False):
    url: str | None = None
    valueCoding: Coding | None = None
    extension: "list[Extension] | None" = None


class Patient(Resource, frozen=True, gc=False):
    extension: list[Extension] | None = None
    gender: str | None = None
    birthDate: str | None = None
    deceasedBoolean: bool | None = None
    deceasedDateTime: str | None = None


class Disposition(CodeableConcept, frozen=True, gc=False):
    """A discharge disposition; German sites write theirs into an extension of it."""

    extension: list[Extension] | None = None


class Discharge(Element, frozen=True, gc=False):
    """Encounter.hospitalization (R4), Encounter.admission (R5)."""

    dischargeDisposition: Disposition | None = None


class Encounter(Resource, frozen=True, gc=False, rename={"class_": "class"}):
    identifier: list[Identifier] | None = None
    status: str | None = None
    class_: Coding | list[CodeableConcept] | None = None  # R4 | R5
    subject: Reference | None = None
    period: Period | None = None
    actualPeriod: Period | None = None  # R5
    hospitalization: Discharge | None = None
    admission: Discharge | None = None  # R5
    partOf: Reference | None = None


class Condition(Resource, frozen=True, gc=False):
    verificationStatus: CodeableConcept | None = None
    code: CodeableConcept | None = None
    subject: Reference | None = None
    encounter: Reference | None = None
    recordedDate: str | None = None
    onsetDateTime: str | None = None
    onsetPeriod: Period | None = None


class Procedure(Resource, frozen=True, gc=False):
    status: str | None = None
    code: CodeableConcept | None = None
    subject: Reference | None = None
    encounter: Reference | None = None
    performedDateTime: str | None = None
    performedPeriod: Period | None = None
    occurrenceDateTime: str | None = None  # R5
    occurrencePeriod: Period | None = None  # R5


class Medication(Resource, frozen=True, gc=False):
    status: str | None = None
    code: CodeableConcept | None = None


class Contained(Element, frozen=True, gc=False):
    """A Medication inside another resource, named by `#id`."""

    id: str | None = None
    code: CodeableConcept | None = None


class DispenseRequest(Element, frozen=True, gc=False):
    validityPeriod: Period | None = None


class MedicationUse(Resource, frozen=True, gc=False):
    """What MedicationRequest and MedicationAdministration share."""

    status: str | None = None
    medicationCodeableConcept: CodeableConcept | None = None
    medicationReference: MedicationReference | None = None
    medication: CodeableReference | None = None  # R5
    contained: list[msgspec.Raw] | None = None
    subject: Reference | None = None
    encounter: Reference | None = None


class MedicationRequest(MedicationUse, frozen=True, gc=False):
    intent: str | None = None
    doNotPerform: bool | None = None
    authoredOn: str | None = None
    dispenseRequest: DispenseRequest | None = None


class Dosage(Element, frozen=True, gc=False):
    dose: Quantity | None = None


class MedicationAdministration(MedicationUse, frozen=True, gc=False):
    context: Reference | None = None  # R4's name of `encounter`
    effectiveDateTime: str | None = None
    effectivePeriod: Period | None = None
    occurenceDateTime: str | None = None  # R5, with R5's spelling
    occurencePeriod: Period | None = None
    dosage: Dosage | None = None


class Measured(Element, frozen=True, gc=False):
    """The value[x] that Observation and its components share."""

    code: CodeableConcept | None = None
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


class Component(Measured, frozen=True, gc=False):
    pass


class Observation(Measured, frozen=True, gc=False, tag_field="resourceType", tag="Observation"):
    id: str | None = None
    meta: Meta | None = None
    status: str | None = None
    category: list[CodeableConcept] | None = None
    subject: Reference | None = None
    encounter: Reference | None = None
    effectiveDateTime: str | None = None
    effectivePeriod: Period | None = None
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
    | Procedure
    | Medication
    | MedicationRequest
    | MedicationAdministration
    | Observation
)
"""The resource types that are used; all others are counted by type."""
