"""Which records come more than once is found in as many rounds as memory asks for."""

import duckdb
import pytest

from ehrmamba_hf.events.fhir.versions import find_repeated


@pytest.mark.parametrize("memory", [1 << 30, 24 * 3, 24, 1])
def test_repeated_keys_in_one_round_or_many(memory):
    ids = ["a", "b", "c", "b", "d", "e", "d", "d", "f"]
    with duckdb.connect() as database:
        database.execute("CREATE TABLE all_resources (resource_type VARCHAR, source_id VARCHAR)")
        for source_id in ids:
            database.execute("INSERT INTO all_resources VALUES ('Observation', ?)", [source_id])
        database.execute("INSERT INTO all_resources VALUES ('Condition', 'a')")  # another type's id
        hashes = "SELECT hash('Observation', 'b') UNION SELECT hash('Observation', 'd')"
        expected = {key for (key,) in database.execute(hashes).fetchall()}
        find_repeated(database, memory)
        found = [key for (key,) in database.execute("FROM repeated").fetchall()]
    assert sorted(found) == sorted(expected)


def test_no_records_have_no_repeated_keys():
    with duckdb.connect() as database:
        database.execute("CREATE TABLE all_resources (resource_type VARCHAR, source_id VARCHAR)")
        find_repeated(database, 1 << 20)
        assert database.execute("FROM repeated").fetchall() == []
