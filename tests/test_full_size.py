"""docs/full-size.md holds what the benchmarks measured."""

from benchmarks import full_size


def test_the_document_is_that_of_the_results() -> None:
    document = full_size.DOCUMENT.read_text(encoding="utf-8")
    assert full_size.written(document) == document
