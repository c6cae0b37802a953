"""Sizes by scale: for every notebook that measures, given ones kept, and said in every record."""

import ast
import json
from pathlib import Path

import pytest

from stx.files.errors import InputError
from stx.reports import notebooks, scales

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", scales.SIZES)
def test_every_size_is_a_parameter_that_follows_from_the_scale(name):
    known = notebooks.parameters(ROOT / "notebooks" / f"{name}.ipynb")
    assert known["scale"] == "quick"
    assert {parameter: known[parameter] for parameter in scales.SIZES[name]} == dict.fromkeys(scales.SIZES[name], 0)
    for smoke, quick, evidence in scales.SIZES[name].values():
        assert smoke <= quick <= evidence


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda p: p.stem)
def test_notebooks_with_a_scale_are_those_of_the_table_and_begin_before_they_measure(path):
    assert ("scale" in notebooks.parameters(path)) == (path.stem in scales.SIZES)
    cells = ["".join(c["source"]) for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]
    early = cells[1].split("record = notebooks.begin")[0]
    used = {x.id for x in ast.walk(ast.parse(early)) if isinstance(x, ast.Name)}
    assert not used & scales.SIZES.get(path.stem, {}).keys()


def test_what_is_given_goes_before_the_scale():
    given = {"count": 7, "searched": 0, "scale": "evidence", "smoke": False}
    given |= dict.fromkeys(scales.SIZES["04_inversion_table"].keys() - given.keys(), 5)
    assert scales.sizes("04_inversion_table", given) == {"searched": 32}
    assert scales.sizes("04_inversion_table", given | {"smoke": True}) == {"searched": 2}
    assert scales.sizes("09_explorer", {}) == {}
    with pytest.raises(InputError, match="scale is 'large', expected quick or evidence"):
        scales.sizes("03_inversion_quality", {"scale": "large"})


def test_evidence_is_as_large_as_is_promised():
    size = {name: {k: v[2] for k, v in of.items()} for name, of in scales.SIZES.items()}
    assert size["08_attribute_dependency"]["count"] >= 64
    assert min(size[name]["count"] for name in ("01_generator", "03_inversion_quality", "04_inversion_table")) >= 2048
    assert size["04_inversion_table"]["searched"] >= 32 and size["04_inversion_table"]["search_steps"] >= 400
    assert all(of[1] >= 1000 for name in scales.SIZES.values() for key, of in name.items() if key == "resamples")


def test_a_notebook_begins_with_the_sizes_of_its_scale(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    names = notebooks.parameters(ROOT / "notebooks" / "03_inversion_quality.ipynb") | {"scale": "evidence", "count": 9}
    record = notebooks.begin("03_inversion_quality", names)
    assert (names["count"], names["resamples"]) == (9, 2000)
    assert record["parameters"]["count"] == 9 and record["parameters"]["set_resamples"] == 100
    assert "at evidence scale: resamples 2,000, set_resamples 100" in capsys.readouterr().out
