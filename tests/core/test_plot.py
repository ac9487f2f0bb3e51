"""Plots as files: what stands in them, and that drawing them is silent."""

import warnings
from pathlib import Path
from xml.etree import ElementTree

from wenfang.core.plot import Curve, Panel, write_plot


def test_chinese_stays_text_without_a_word_about_fonts(tmp_path: Path) -> None:
    panels = [Panel("步", "損失", [Curve("訓練", [1, 2, 3], [3, 2, 1]), Curve("驗證", [1, 3], [3, 2])])]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_plot(tmp_path / "a.svg", panels)
    write_plot(tmp_path / "b.svg", panels)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    texts = {element.text for element in ElementTree.parse(tmp_path / "a.svg").iter() if element.tag.endswith("text")}
    assert {"步", "損失", "訓練", "驗證"} <= texts
