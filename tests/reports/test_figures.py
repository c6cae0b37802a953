"""Index and sweep: what is written from the records and tables of other runs."""

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.text import Text

from stx import cli
from stx.reports import figures


def test_index_shows_every_figure_and_table_with_its_record(tmp_path):
    record = figures.provenance(notebook="03_inversion_quality", seed=4)
    figures.use_style()
    figures.save_figure(figures.plt.figure(), "03_picture", tmp_path, record)
    figures.save_table(pd.DataFrame({"a": [1.5]}), "03_short", tmp_path, record, note="A note.")
    figures.save_table(pd.DataFrame({"a": range(200)}), "03_long", tmp_path, record)
    assert cli.main(["index", str(tmp_path)]) == 0
    text = (tmp_path / "index.md").read_text()
    assert text.count("## 03_inversion_quality") == 1
    assert "![03_picture](03_picture.png)" in text
    assert "seed 4; commit" in text
    assert "A note." in text
    assert "| 150 |" not in text
    assert "[table](03_long.md)" in text


def test_a_record_names_processor_and_device_and_so_does_a_table(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", {"cuda:1": "A Big GPU"}.get)
    for device, told in (("cpu", "on Linux"), ("mps", "on mps, Linux"), ("cuda:1", "on A Big GPU, Linux")):
        record = figures.provenance(device=device)
        assert torch.backends.cpu.get_cpu_capability() in record["machine"]
        figures.save_table(pd.DataFrame({"a": [1]}), "t", tmp_path, record | {"machine": "Linux, 2 cores"})
        assert f"{told}, 2 cores" in (tmp_path / "t.md").read_text()


def test_sweep_is_mean_and_sd_by_row(tmp_path, capsys):
    record = figures.provenance(notebook="x")
    for seed, values in enumerate(([1.0, 10.0], [3.0, 10.0])):
        table = pd.DataFrame({"metric": ["L2", "ID"], "value": values})
        figures.save_table(table if seed else table[::-1], "03_quality", tmp_path / str(seed), record)
        figures.save_table(
            pd.DataFrame({"picture": range(9), "L2": 0.1}), "03_per_picture", tmp_path / str(seed), record
        )
        rows = pd.MultiIndex.from_product([range(10), range(10)], names=["method", "metric"])
        long = pd.DataFrame({"value": float(seed)}, index=rows).reset_index().astype({"method": str, "metric": str})
        figures.save_table(long, "04_table", tmp_path / str(seed), record)
        verdict = pd.DataFrame({"claim": ["nearer"], "verdict": [("holds", "undecided")[seed]], "difference": [1.0]})
        figures.save_table(verdict, "claims", tmp_path / str(seed), record)
    figures.save_table(table, "only_here", tmp_path / "0", record)
    out = tmp_path / "out"
    assert cli.main(["sweep", str(tmp_path / "0"), str(tmp_path / "1"), "--out", str(out)]) == 0
    assert sorted(p.name for p in out.glob("*.csv")) == [
        "sweep_03_quality.csv",
        "sweep_04_table.csv",
        "sweep_claims.csv",
    ]
    assert pd.read_csv(out / "sweep_04_table.csv")["value"].tolist() == [0.5] * 100
    got = pd.read_csv(out / "sweep_03_quality.csv").set_index("metric")
    assert got.loc["L2"].tolist() == pytest.approx([2.0, 2**0.5, 2])
    assert got.loc["ID"].tolist() == pytest.approx([10.0, 0.0, 2])
    claims = pd.read_csv(out / "sweep_claims.csv").set_index("verdict")
    assert claims["runs"].to_dict() == {"holds": 1, "undecided": 1}  # told apart, and said to be of one run each
    assert cli.main(["sweep", str(tmp_path / "0"), str(tmp_path / "nowhere"), "--out", str(out)]) == 2
    assert "no table of numbers" in capsys.readouterr().err
    assert cli.main(["index", str(tmp_path / "nowhere")]) == 2
    assert "nowhere: no such folder" in capsys.readouterr().err
    with pytest.raises(ValueError, match="1 folders: a sweep needs two"):
        figures.sweep([tmp_path / "0"], out, record)


def test_rows_of_a_sweep_with_the_same_words_stay_apart(tmp_path):
    record = figures.provenance(notebook="x")
    for seed in (0, 1):
        bins = pd.DataFrame({"method": ["A", "A", "B"], "value": np.array([1.0, 5.0, 7.0]) + seed})
        figures.save_table(bins, "08_curves", tmp_path / str(seed), record)
    figures.sweep([tmp_path / "0", tmp_path / "1"], tmp_path / "out", record)
    table = pd.read_csv(tmp_path / "out" / "sweep_08_curves.csv")
    assert list(table.columns) == ["method", "value", "value sd", "runs"]
    assert table["value"].tolist() == [1.5, 5.5, 7.5] and (table["runs"] == 2).all()


def test_no_two_methods_look_alike():
    looks = figures.looks(str(i) for i in range(100))
    assert len({(look["color"], look["marker"]) for look in looks.values()}) == 100
    assert {look["color"] for look in list(looks.values())[:10]} == {look["color"] for look in looks.values()}


def test_training_curves_are_the_points_that_the_log_has():
    log = pd.DataFrame({"step": [1, 2, 3], "loss": [4.0, np.nan, 2.0], "val_loss": [np.nan, 5.0, np.nan]})
    curves = [("training", log, "loss", "-"), ("validation", log, "val_loss", "o-"), ("", log, "nowhere", "-")]
    figure = figures.training_curves({"loss": curves, "again": curves[:1]}, yscale="log")
    left, right = figure.axes
    assert [line.get_xydata().tolist() for line in left.lines] == [[[1, 4], [3, 2]], [[2, 5]], []]
    assert (left.get_title(), left.get_yscale(), len(right.lines)) == ("loss", "log", 1)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["training", "validation"]
    assert not figures.training_curves({}).legends


def test_a_grid_has_every_picture_in_its_place():
    """Two rows of unlike lengths, the second a smaller map: enlarged, coloured; what is missing stays white."""
    pictures = np.zeros((3, 10, 14, 3), dtype=np.uint8)
    pictures[:, :, :, 0] = np.array([10, 20, 30])[:, None, None]
    ax = figures.show_grid([pictures, np.ones((2, 5, 7))], row_names=["a", "b"], titles=["x", "y", "z"]).axes[0]
    canvas = ax.get_images()[0].get_array()
    down, right = canvas.shape[0] // 2, canvas.shape[1] // 3
    for j, red in enumerate((10, 20, 30)):
        assert (canvas[:10, j * right : j * right + 14] == (red, 0, 0)).all()
    brightest = (255 * np.array(figures.plt.get_cmap("magma")(1.0)[:3])).astype(int)
    assert (canvas[down : down + 10, right : right + 14] == brightest).all()
    assert (canvas[down:, 2 * right :] == 255).all()
    assert [t.get_text() for t in (*ax.get_yticklabels(), *ax.get_xticklabels())] == ["a", "b", "x", "y", "z"]
    assert 14 < right < 16
    assert 10 <= down < 12


def test_names_of_attributes_are_written_as_people_do():
    assert figures.human("Mouth_Slightly_Open") == "Mouth slightly open"
    assert figures.human("Bald") == "Bald"
    assert figures.human("paper form") == "paper form"
    ax = figures.show_grid([np.zeros((1, 8, 8))], titles=["+ Wearing_Hat"], size=0.5).axes[0]
    assert [text.get_text() for text in ax.get_xticklabels()] == ["+ Wearing\nhat"]


def test_marked_pictures_have_a_frame_where_they_are_and_grids_fit_a_page():
    pictures = np.zeros((12, 10, 10, 3), dtype=np.uint8)
    figure = figures.show_grid([pictures, pictures[:2]], size=2.0, marked=[[False, True], [True]])
    (ax,) = figure.axes
    assert figure.get_figwidth() == pytest.approx(figures.WIDTH)
    assert [patch.get_xy() for patch in ax.patches] == [(9.5, -0.5), (-0.5, 9.5)]
    assert {(patch.get_width(), patch.get_height()) for patch in ax.patches} == {(10, 10)}


def test_a_line_breaks_where_a_stage_has_no_such_loss():
    steps = [*range(0, 100, 10), *range(5000, 5100, 10)]
    log = pd.DataFrame({"step": steps, "loss": 1.0})
    (ax,) = figures.training_curves({"loss": [("", log, "loss", "-")]}).axes
    points = ax.lines[0].get_xydata()
    assert len(points) == 21
    assert np.isnan(points[10, 1])
    assert 90 < points[10, 0] < 5000


def test_names_of_points_do_not_lie_on_each_other():
    figure, ax = figures.plt.subplots()
    ax.set(xlim=(0, 1), ylim=(0, 1))
    figures.name_points(ax, {"one": (0.5, 0.5), "two": (0.5, 0.505), "far": (0.1, 0.9)})
    figure.draw_without_rendering()
    boxes = {text.get_text(): Text.get_window_extent(text) for text in ax.texts}  # without their lines
    assert not boxes["one"].overlaps(boxes["two"])
    assert abs(boxes["far"].y0 + boxes["far"].y1 - 2 * ax.transData.transform((0.1, 0.9))[1]) < 4


def test_names_stay_beside_their_points_in_a_file_of_another_resolution(tmp_path):
    """Offsets in pixels would shrink under the marks where a file has more of them than the screen."""
    figure, ax = figures.plt.subplots()
    ax.set(xlim=(0, 1), ylim=(0, 1))
    figures.name_points(ax, {"one": (0.5, 0.5)})
    gaps = []
    for dpi in (100, 400):
        figure.set_dpi(dpi)
        figure.draw_without_rendering()
        left = Text.get_window_extent(ax.texts[0]).x0
        gaps.append((left - ax.transData.transform((0.5, 0.5))[0]) / dpi)
    assert gaps[0] == pytest.approx(gaps[1], rel=0.05)
    assert gaps[0] > 3.5 / 72  # the half of a mark of 7 points
