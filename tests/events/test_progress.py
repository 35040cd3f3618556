"""What is shown while an ingestion works."""

from collections import Counter
from contextlib import contextmanager

import pytest

from ehrmamba_hf.events import ingestion


@pytest.mark.parametrize("workers", [1, 2])
def test_every_stage_goes_over_all_bytes(run, hospital, write, tmp_path, monkeypatch, workers):
    monkeypatch.setattr(ingestion, "_POOL_BYTES", 0)
    told: Counter[str] = Counter()
    begun: list[str] = []

    @contextmanager
    def bars(size, *, shown):
        def begin(stage):
            begun.append(stage)
            return lambda amount: told.update({stage: amount})

        yield begin
        assert told == {"reading": size, "sorting": size}

    monkeypatch.setattr(ingestion, "_progress_bars", bars)
    source = write(tmp_path / "fhir" / "all.ndjson", hospital).parent
    run(source, workers=workers)
    assert begun == ["reading", "sorting"]
    assert told["reading"] == (source / "all.ndjson").stat().st_size


def test_nothing_is_shown_where_nobody_looks(run, hospital, capfd):
    run(hospital)
    assert capfd.readouterr() == ("", "")
