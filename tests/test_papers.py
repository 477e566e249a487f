"""Whatever the code and the README cite stands in papers/references.bib and is explained in papers/README.md."""

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).parents[1]
BIB = (ROOT / "papers" / "references.bib").read_text()
REQUIRED = {"article": "author title journal year doi", "inproceedings": "author title booktitle year",
            "book": "author title publisher year", "misc": "title"}
ARXIV = re.compile(r"(?<![\d.])(?:0[7-9]|[12]\d)(?:0[1-9]|1[0-2])\.\d{4,5}(?!\.?\d)")  # YYMM.number
DOI = re.compile(r"\b10\.\d{4,9}/[^\s\"'`,;\]}]+")
PMC = re.compile(r"\bPMC\d+")
NAME = re.compile(r"\b([A-Z][a-z]+)(?: et al\.| and [A-Z][a-z]+)?,? \(?((?:19|20)\d\d)\b(?!-)")
OTHER = {"Nov"}  # what stands before a year and is no author


def entries(bib: str) -> Iterator[tuple[str, str, dict[str, str]]]:
    """Kind, key and fields of each entry."""
    for kind, key, body in re.findall(r"^@(\w+)\{([^,\s]+),\n(.*?)^\}", bib, re.MULTILINE | re.DOTALL):
        yield kind, key, dict(re.findall(r"^\s+(\w+)\s*= \{(.*)\},$", body, re.MULTILINE))


def identifiers(text: str) -> set[str]:
    """arXiv numbers, DOIs (lower case) and PubMed Central's numbers."""
    found = {doi.lower() for doi in DOI.findall(text)}
    for doi in [doi for doi in found if doi[-1] in ".):>"]:
        found.remove(doi)
        while doi[-1] in ".:>" or (doi[-1] == ")" and doi.count("(") < doi.count(")")):
            doi = doi[:-1]
        found.add(doi)
    return found | set(PMC.findall(text)) | set(ARXIV.findall(DOI.sub(" ", text)))


def names(text: str) -> set[tuple[str, str]]:
    """Citations such as `Guo 2017`, also across the lines of a comment."""
    return {pair for pair in NAME.findall(re.sub(r"\s*\n\s*#?\s*", " ", text)) if pair[0] not in OTHER}


def known_names(bib: str) -> set[tuple[str, str]]:
    """Every word of the authors with the year of print, of the preprint, and of a note."""
    known = set()
    for _, _, fields in entries(bib):
        years = re.findall(r"(?:19|20)\d\d", fields.get("year", "") + " " + fields.get("note", ""))
        years += [f"20{fields['eprint'][:2]}"] if "eprint" in fields else []
        known |= {(name, year) for name in re.findall(r"\w+", fields.get("author", "")) for year in years}
    return known


def sources() -> list[Path]:
    return [ROOT / "README.md", *sorted(ROOT.glob("[a-z]*/*.py"))]


@pytest.mark.parametrize("path", sources(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_what_is_cited_is_listed(path: Path) -> None:
    text = path.read_text()
    assert not identifiers(text) - identifiers(BIB), "add it to papers/references.bib and papers/README.md"
    assert not names(text) - known_names(BIB), "add it to papers/references.bib and papers/README.md"


def test_entries_are_complete() -> None:
    assert BIB.count("{") == BIB.count("}")
    found = list(entries(BIB))
    assert len(found) == len(re.findall(r"^@", BIB, re.MULTILINE)) > 40  # none is skipped for its form
    keys = [key for _, key, _ in found]
    assert len(set(keys)) == len(keys)
    for kind, key, fields in found:
        assert not set(REQUIRED[kind].split()) - {name for name, value in fields.items() if value}, key
        assert all(value.count("{") == value.count("}") for value in fields.values()), key
        assert kind == "book" or {"doi", "eprint", "url"} & set(fields), key
        for name, form in (("year", r"(19|20)\d\d"), ("eprint", ARXIV), ("doi", r"10\.\d{4,9}/\S+")):
            assert name not in fields or re.fullmatch(form, fields[name]), f"{key}: {name}"
    numbers = [value for _, _, fields in found for name, value in fields.items() if name in ("doi", "eprint", "url")]
    assert len(set(numbers)) == len(numbers)


def test_every_entry_has_its_line_and_its_link() -> None:
    rows = re.findall(r"^\| (.*?) \| `(\w+)` \| .+ \|$", (ROOT / "papers" / "README.md").read_text(), re.MULTILINE)
    linked = {key: unquote(paper) for paper, key in rows}
    assert len(rows) == len(linked)
    assert set(linked) == {key for _, key, _ in entries(BIB)}
    for kind, key, fields in entries(BIB):
        number = fields.get("eprint") or fields.get("doi") or fields.get("url", "")
        assert kind == "book" or f"/{number})" in linked[key] or f"({number})" in linked[key], key


def test_a_paper_that_is_not_listed_is_noticed() -> None:
    dot, slash = ".", "/"  # so that this file cites none of these itself
    paper = f"10{dot}1234{slash}some(where)5"
    assert identifiers(f"(arXiv 2105{dot}01234; {paper}), PM" + "C42.") == {f"2105{dot}01234", paper, "PM" + "C42"}
    assert identifiers(f"a loss of 0.12345, 12.3456 or 1375.0436, <https://doi.org/{paper}>") == {paper}
    year = "2019"
    cited = names(f"as in Miller and Smith {year}; Jones\n    # {year}, BraTS {year}")
    assert cited == {("Miller", year), ("Jones", year)} and not cited & known_names(BIB)
