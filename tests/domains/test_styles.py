"""A style as data: labels follow the options of the drawing, and the folder is a domain with attributes."""

import numpy as np
import pytest

from stx import cli
from stx.domains import datasets, styles
from stx.files.errors import DomainError
from stx.files.outputs import lock_output

NAMES = styles.attributes("bottts")


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (
            {"headVariant": ["round01"], "topVariant": ["horns"], "sidesVariant": ["cables02"]},
            {"Round_Head", "Horns", "Cable_Ears"},
        ),
        (
            {"headVariant": ["square01"], "topVariant": ["glowingBulb02"], "sidesVariant": ["antenna01"]},
            {"Bulb", "Antenna_Ears"},
        ),
    ],
)
def test_labels_are_what_is_drawn(given, shown):
    plain = {
        "seed": "a",
        "textureProbability": 0,
        "mouthVariant": ["bite"],
        "eyesVariant": ["hearts"],
        "baseColor": ["b46bd6"],
    }
    found = styles.labels("bottts", plain | given)
    assert {name for name, label in zip(NAMES, found, strict=True) if label} == shown


def test_every_attribute_is_shown_by_some_and_not_by_all():
    drawn = list(styles.drawings("bottts", 300, resolution=8))
    labels = np.stack([labels for *_, labels in drawn])
    assert len(drawn) == 300 and ((labels.mean(0) > 0.02) & (labels.mean(0) < 0.7)).all()
    fewer = list(styles.drawings("bottts", 40, resolution=8))
    assert [name for name, *_ in fewer][:2] == ["train/00000.png", "train/00001.png"]
    np.testing.assert_array_equal(fewer[3][1], drawn[3][1])


def test_a_drawn_folder_is_a_domain(tmp_path, capsys):
    out = tmp_path / "robots"
    assert cli.main(["draw", "bottts", "--count", "40", "--out", str(out)]) == 0
    assert "40 pictures and labels.csv with 16 attributes" in capsys.readouterr().out
    world = datasets.load(out)
    assert world.attributes == NAMES
    test = world.split("test")
    assert len(test) == 4 and test.labels.shape == (4, 16) and test.uint8([0]).shape == (1, 64, 64, 3)
    assert cli.main(["draw", "bottts", "--count", "40", "--out", str(out)]) == 0  # its own files are renewed
    with lock_output(out):  # another that draws there at the same time
        assert cli.main(["draw", "bottts", "--count", "40", "--seed", "1", "--out", str(out)]) == 2
    assert "another stx writes into it" in capsys.readouterr().err
    assert cli.main(["draw", "robots", "--out", str(tmp_path / "x")]) == 2
    assert "unknown style 'robots': expected bottts" in capsys.readouterr().err
    with pytest.raises(DomainError):
        styles.attributes("")
