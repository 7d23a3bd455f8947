"""What one command measured, as a picture in a file of its own."""

import re
import xml.etree.ElementTree as ElementTree

import pytest
from PIL import Image
from report.made_up import PLATEAU, critical, noise, path, sharpness, spectrum, target_row, targets

from largebatch.errors import UserError
from largebatch.report import svg
from largebatch.report.alone import DRAWINGS, write_picture

HOSTILE = '<b>"$x$ & y'
FACTS = {
    "noise": noise(2000.0, 900.0, 5000.0, title=HOSTILE, global_batch_size=640),
    "noise unbounded": noise(2000.0, 900.0, None, global_batch_size=60_000),
    "noise unknown": noise(None, 900.0, None),
    "noise of nothing": noise(None, None, None),
    "sharpness": sharpness(205.0, 43.0, 0.1, title=HOSTILE),
    "sharpness of nothing": sharpness(0.0, -1e-9, 0.0),
    "spectrum": spectrum(100.0, title=HOSTILE),
    "spectrum's ends": spectrum(100.0, density=None, trace=None),
    "path": path(),
    "path's line": path(curve=[]),
    "path that diverges": path(curve=[{"alpha": 0.0, "train_loss": 1.0}, {"alpha": 1.0, "train_loss": float("inf")}]),
    "plateau": PLATEAU | {"title": HOSTILE},
    "critical": critical(title=HOSTILE),
    "critical at one checkpoint": critical(points=critical()["points"][3:], tolerance=0.01),
    "critical at none": critical(points=[]),
    "targets": targets(title=HOSTILE, target=HOSTILE, source=HOSTILE),
    "targets of rows": targets(
        *(target_row(f"row {n} {HOSTILE}", 300.0 * n, 9e4 + 7e3 * n) for n in range(1, 6)), epoch=None
    ),
    "targets of a row that none is bounded of": targets(
        target_row(
            critical_batch_size=None, critical_batch_size_low=None, critical_batch_size_high=None, perfect_until=None
        ),
    ),
    "targets without a law": targets(target_row(budget=1e4) | {"law": None}, epoch=None, source=None, target=None),
    "targets of one point": targets({**target_row(), "points": target_row()["points"][:1], "law": None}),
}


@pytest.mark.worlds
@pytest.mark.parametrize("name", FACTS)
def test_a_standalone_svg_is_whole(tmp_path, troubles, name):
    file = tmp_path / "picture.svg"
    write_picture(FACTS[name], file)
    text = file.read_text()
    root = ElementTree.fromstring(text)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert root.attrib["font-family"].endswith("sans-serif")
    assert "var(" not in text
    assert not re.search(r"#0000[ab]\d", text), "a stand-in colour was left"
    assert set(re.findall(r"#[0-9a-f]{6}", text)) <= set(svg.LIGHT.values())
    assert "fill:#ffffff" in text
    assert "nan" not in text.lower().replace("nanotech", "")
    assert troubles(text) == []
    assert [path.name for path in tmp_path.iterdir()] == ["picture.svg"]


@pytest.mark.worlds
@pytest.mark.parametrize("name", ["noise", "sharpness", "spectrum", "path", "plateau", "critical", "targets"])
def test_a_png_has_the_same_colours(tmp_path, name):
    file = tmp_path / "picture.png"
    write_picture(FACTS[name], file)
    with Image.open(file) as picture:
        colours = {colour[:3]: number for number, colour in picture.convert("RGB").getcolors(1 << 20)}
        width = picture.width
    assert width > 800, "436 points at 150 dots an inch"
    assert max(colours, key=colours.get) == (255, 255, 255)
    light = {tuple(bytes.fromhex(colour[1:])) for colour in svg.LIGHT.values()}
    assert len(light & set(colours)) >= 3
    # a stand-in is a pure dark blue, and so is what anti-aliasing makes of it on white
    assert not [colour for colour in colours if colour[0] == colour[1] == 0 and 150 < colour[2] < 190]


def test_the_light_theme_is_the_style_sheets():
    sheet = (svg.__file__).replace("svg.py", "page.css")
    with open(sheet) as file:
        light = dict(re.findall(r"(--\w+): (#\w{6})", file.read().split("@media")[0]))
    named = {variable: svg.LIGHT[colour] for colour, variable in svg.VARIABLES.items()}
    assert {**named, "--page": light["--page"]} == {name: light[name] for name in named}, "all but the white page"
    assert named["--page"] == "#ffffff"


@pytest.mark.worlds
def test_numbers_in_the_pictures(tmp_path):
    def texts(name):
        write_picture(FACTS[name], tmp_path / "picture.svg")
        return re.findall(r"<text[^>]*>([^<]*)", (tmp_path / "picture.svg").read_text())

    assert "noise scale 2,000" in texts("noise")
    assert "this run’s batch, 640" in texts("noise")
    assert "above 900" in texts("noise unknown")
    assert [word for word in texts("sharpness") if word in ("205", "43.0", "10.2")] == ["205", "43.0", "10.2"]
    assert any("trace 700.00 ± 0.40" in line for line in texts("spectrum"))
    assert {"batch 64", "batch 640"} <= set(texts("path"))
    assert texts("path").count("cross-entropy (log scale)") == 2, "the line and the curve"
    assert texts("path's line").count("cross-entropy (log scale)") == 1
    assert "• Lower lr.base." in texts("plateau")
    marked = {"B_crit: 900", "perfect scaling ends: 180", "perfect scaling, E_min/B", "a lower bound", "median, fit"}
    assert marked <= set(texts("targets"))
    rows = set(texts("targets of rows"))
    assert not rows & marked - {"perfect scaling, E_min/B", "a lower bound"}
    assert {"images to the target (log scale)", "steps to the target (log scale)"} <= rows
    assert "These points do not bound B_crit." in " ".join(texts("targets of a row that none is bounded of"))


@pytest.mark.parametrize(
    ("facts", "name", "sentence"),
    [
        (PLATEAU, "picture.pdf", "ends in '.pdf'; valid: .svg, .png"),
        (PLATEAU, "nowhere/picture.svg", "does not exist; create it"),
        ({"kind": "weather"}, "picture.svg", "facts of kind 'weather' have no picture; valid: noise, sharpness,"),
    ],
)
def test_a_mistake_is_one_sentence(tmp_path, facts, name, sentence):
    with pytest.raises(UserError, match=re.escape(sentence)):
        write_picture(facts, tmp_path / name)


def test_every_kind_is_named():
    assert list(DRAWINGS) == [
        "noise", "sharpness", "spectrum", "path", "plateau", "critical", "batch_time", "surface",
        "evaluation", "targets", "machine_fit", "cluster_plan", "cluster_simulation",
    ]  # fmt: skip
