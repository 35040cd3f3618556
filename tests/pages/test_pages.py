"""Every page stands alone: well formed, nothing loaded, what is put in escaped; and the charts."""

import re
from html.parser import HTMLParser

import pytest

from ehrmamba_hf.corpus.page import data_page
from ehrmamba_hf.events.page import events_page
from ehrmamba_hf.pages import by_power, by_year, percent, short

NASTY = '<script src="https://evil.example/x.js">&"'
COUNTS = {"read": 3, "used": 1, "not_used": {NASTY: 1}, "rejected": 1}
REPORT = {
    "source": NASTY,
    "timezone": NASTY,
    "resources": {NASTY: COUNTS},
    "total": COUNTS,
    "events": {NASTY: 1},
    "events_by_year": {"2019": 1},
    "date_range": [NASTY, NASTY],
    "systems": {NASTY: {"events": 1, "known": False, "url": NASTY}},
    "notes": {NASTY: 1},
    "unresolved_references": {NASTY: 1},
    "warnings": [NASTY],
}
REJECT = dict.fromkeys(("file", "line", "resource_type", "field", "expected", "found"), NASTY)
COHORT = {"examples": {"positive": 1, "negative": 1}, "excluded": {NASTY: 1}}
PREPARED = {
    "patients": {NASTY: 3, "test": 1},
    "stays": {NASTY: 3, "test": 3},
    "follow_up_end": NASTY,
    "fingerprint": NASTY,
    "unknown_by_system": {"test": {NASTY: {"events": 1, "unknown": 1}}},
    "unfitted_units": {NASTY: {"numbers": 1, "unfitted": 1}},
    "visits": {NASTY: 1},
    "records": {NASTY: 1, "implicit_visit": 1},
    "distributions": {NASTY: {"test": {"1": 1}}},
    "tasks": {NASTY: {NASTY: COHORT, "test": COHORT}},
}
PAGES = {
    "events": events_page(REPORT, [REJECT]),
    "data": data_page(PREPARED, REPORT),
}
each_page = pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)


class Tags(HTMLParser):
    """Collects start tags and checks that elements close in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in ("meta", "br", "wbr"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@each_page
def test_well_formed_with_unique_ids(page):
    tags = Tags(page)
    assert not tags.open
    ids = [attributes["id"] for _, attributes in tags.seen if "id" in attributes]
    assert len(ids) == len(set(ids))
    labelled = [a["aria-labelledby"] for _, a in tags.seen if "aria-labelledby" in a]
    assert sorted(labelled) == sorted(ids)


@each_page
def test_self_contained(page):
    for tag, attributes in Tags(page).seen:
        assert tag not in ("script", "link", "img", "iframe", "object", "a")
        assert not {"src", "href", "data", "action"} & set(attributes)
    assert "@import" not in page
    assert "url(" not in page
    assert "default-src 'none'" in page


@each_page
def test_what_is_put_in_is_escaped(page):
    assert "<script" not in page
    assert "&lt;script src=&#34;https://evil.example/x.js&#34;&gt;&amp;&#34;" in page


@each_page
def test_rows_of_a_table_have_as_many_cells_as_its_head(page):
    for table in re.findall(r"<table>.*?</table>", page, re.DOTALL):
        widths = {
            sum(int(n or 1) for n in re.findall(r'<t[hd](?:[^>]*colspan="(\d+)")?[^>]*>', row))
            for row in re.findall(r"<tr.*?</tr>", table, re.DOTALL)
        }
        assert len(widths) == 1, table


def test_a_share_is_never_rounded_to_none_or_all():
    assert percent(1, 10**9) == "under 0.1 %"
    assert percent(10**9 - 1, 10**9) == "over 99.9 %"


def test_short_counts_fit_a_narrow_column():
    assert all(len(short(round(1.07**power))) <= 4 for power in range(400))


def test_histograms_of_nothing():
    assert by_year({}) == []
    assert by_power({"test": {}}) == {"test": []}


def test_histogram_counts_add_up_over_the_same_axis():
    series = {"a": {"0": 3, "1": 1, "1024": 5}, "b": {"16": 2}}
    bins = by_power(series)
    assert [column.label for column in bins["a"]] == [
        *("0", "1", "2", "4", "8", "16", "32", "64", "128", "256", "512", "1k")
    ]
    for name, columns in bins.items():
        assert [column.label for column in columns] == [column.label for column in bins["a"]]
        assert sum(column.count for column in columns) == sum(series[name].values())
    assert bins["a"][-1].name == "1,024 to 2,047"


@pytest.mark.parametrize("years", [(2019,), (1914, 2021), (1, 2021, 9999), (1880, 1999)])
def test_years_stay_legible_and_add_up(years):
    columns = by_year({str(year): 2 for year in years})
    assert sum(column.count for column in columns) == 2 * len(years)
    assert len(columns) <= 121
    labels = [column.label for column in columns if column.label]
    assert 1 <= len(labels) <= 9
    assert len(set(labels)) == len(labels)
