"""Numbers for words, and what is remembered of them."""

from ehrmamba_hf.fhir.vocabulary import Index, Memo


def test_a_memo_forgets_and_an_index_does_not(monkeypatch):
    monkeypatch.setattr("ehrmamba_hf.fhir.vocabulary._REMEMBERED", 3)
    calls: list[int] = []
    memo = Memo(lambda n: calls.append(n) or -n)
    assert [memo[n] for n in (1, 2, 1, 3, 4, 1)] == [-1, -2, -1, -3, -4, -1]
    assert calls == [1, 2, 3, 4, 1]
    index = Index()
    assert [index[n] for n in (5, None, 5, 6, 7, 8, 5)] == [1, 0, 1, 2, 3, 4, 1]
