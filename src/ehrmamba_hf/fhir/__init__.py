"""FHIR in: typed resources, codings, times, identities, and one pure function per resource."""
