import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from expunge.unlearning.comparison import (
    compare,
    scores_csv,
    to_csv,
    to_dict,
    to_markdown,
    write_chart,
)


def test_the_dict_is_json_with_samples_and_seeds_on_every_number(compared: Any) -> None:
    report = json.loads(json.dumps(to_dict(compared.result), allow_nan=False))
    assert report["columns"] == ["emia", "ra", "ta", "ua", "cmia"]
    assert report["settings"]["sizes"] == {"retain": 20, "forget": 7, "test": 10}
    assert report["settings"]["retrain"]["batch_size"] == 8
    assert len(report["rows"]) == 7
    for row in report["rows"][:-1]:
        for figure in row["columns"].values():
            assert figure["seeds"] == [0, 3]
            assert figure["n"] in (7, 10, 20)
    assert report["recommended"]["params"]
    assert report["rank_agreement"]["n"] == 4
    assert "samples" not in report


def test_the_csv_has_one_line_a_row_with_the_same_numbers(compared: Any) -> None:
    lines = list(csv.DictReader(io.StringIO(to_csv(compared.result))))
    assert [line["label"] for line in lines] == [row.label for row in compared.result.rows]
    row, line = compared.result.rows[2], lines[2]
    assert float(line["emia"]) == pytest.approx(row.columns["emia"].mean)
    assert float(line["ta_gap"]) == pytest.approx(row.gaps["ta"].value)
    assert float(line["avg_gap_uncertainty"]) == pytest.approx(row.avg_gap.uncertainty)
    assert json.loads(line["params"]) == row.params
    assert len(line["ks_p"].split()) == 2
    assert line["forgetting_score_seeds"] == "0 3"
    assert (lines[0]["method"], lines[0]["minutes"], lines[1]["avg_gap"]) == ("", "", "")
    assert lines[-1]["failure"].startswith("seed 0: the loss is not finite")
    assert lines[-1]["emia"] == ""


def spread(result: Any, count: int) -> list[dict[str, str]]:
    """The lines for `count` unlearn samples with known scores in the first row."""
    first = replace(
        result.samples[0],
        keys=[f"key {number}" for number in range(count)],
        alignment=np.random.default_rng(0).permutation(count) / 100.0,
        forgetting_score=np.full(count, 0.25),
        confidence=None,
    )
    text = scores_csv(replace(result, samples=[first]))
    assert "key" not in text
    return list(csv.DictReader(io.StringIO(text)))


@pytest.mark.parametrize(("count", "groups"), [(20, 1), (39, 1), (40, 2), (205, 10), (1000, 10)])
def test_every_number_of_the_spread_is_of_at_least_twenty_samples(
    compared: Any, count: int, groups: int
) -> None:
    lines = [line for line in spread(compared.result, count) if line["score"] == "emia"]
    assert [line["group"] for line in lines] == [str(number + 1) for number in range(groups)]
    assert all(int(line["n"]) >= 20 for line in lines)
    assert sum(int(line["n"]) for line in lines) == count
    slow = np.array_split(np.arange(count) / 100.0, groups)
    assert [float(line["mean"]) for line in lines] == pytest.approx(
        [sum(group) / len(group) for group in slow], abs=1e-6
    )


def test_fewer_than_twenty_samples_have_no_spread(compared: Any) -> None:
    assert scores_csv(compared.result) == "label,seed,score,group,n,mean\n"
    assert spread(compared.result, 19) == []


def test_the_spread_is_told_of_each_score(compared: Any) -> None:
    found = {line["score"]: line["mean"] for line in spread(compared.result, 20)}
    assert found == {"emia": "0.095000", "forgetting_score": "0.250000"}


def test_markdown_is_the_papers_table_with_a_reason(compared: Any) -> None:
    text = to_markdown(compared.result)
    lines = text.splitlines()
    assert lines[0] == (
        "| Method | EMIA | RA | TA | UA | CMIA | Avg. gap | Proxy gap | FS | RTE (min) |"
    )
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 2 + 7
    assert {line.count("|") for line in table} == {11}
    row = compared.result.rows[2]
    cell = (
        f"{row.columns['ta'].mean:.2f} ± {row.columns['ta'].std:.2f} ({row.gaps['ta'].value:.2f})"
    )
    assert cell in table[4]
    chosen = compared.result.recommended.label
    assert [line.split("|")[1].strip() for line in table if "**" in line] == [f"**{chosen}**"]
    assert f"Recommended: **{chosen}** " in text
    assert "20 retained, 7 unlearn and 10 test samples; seeds 0, 3" in text
    assert "| failed |" in table[-1]
    assert "Kendall" in text


def test_marks_are_explained_where_they_occur(compared: Any) -> None:
    plain = compared.result
    bare = replace(plain, rows=[replace(row, over_unlearned=[]) for row in plain.rows])
    assert not {"†", "‡"} & set(to_markdown(bare))
    rows = list(plain.rows)
    rows[1] = replace(rows[1], reused=True)
    rows[2] = replace(rows[2], over_unlearned=["emia"])
    text = to_markdown(replace(plain, rows=rows))
    table = text.split("\n\n")[0].splitlines()
    assert table[3].endswith("‡ |")
    assert table[4].split("|")[2].strip().strip("*").endswith(")†")
    assert "† beyond Retrain on the side of forgetting" in text
    assert "‡ time of the run" in text


def test_without_labels_tables_and_chart_have_less(case: Any, tmp_path: Path) -> None:
    bare = [replace(images, labels=None) for images in case.sets]
    result = compare(case.learner, *bare, case.candidates[:1])
    assert to_markdown(result).startswith("| Method | EMIA | Avg. gap |")
    assert all(each.confidence is None for each in result.samples)
    write_chart(result, tmp_path / "chart.png")


def test_the_chart_is_a_picture_that_grows_with_its_rows(
    compared: Any, case: Any, tmp_path: Path
) -> None:
    write_chart(compared.result, tmp_path / "many.png")
    write_chart(compare(case.learner, *case.sets, case.candidates[-1:]), tmp_path / "failed.png")
    with Image.open(tmp_path / "many.png") as many, Image.open(tmp_path / "failed.png") as failed:
        assert many.format == failed.format == "PNG"
        assert many.width == failed.width == 1690
        assert many.height > failed.height
        assert len(many.convert("RGB").getcolors(maxcolors=100_000)) > 50
