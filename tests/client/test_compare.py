"""`expunge compare` and the SDK's comparisons against the real service."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.client.conftest import TINY, Service
from tests.client.test_commands import answer, run

from expunge.client import Client, ProblemError
from expunge.client.comparisons import Comparison
from expunge.embedded.demonstration.cast import sealed

FILES = {"table.json", "table.csv", "table.md", "chart.png", "scores.csv"}


@dataclass(frozen=True)
class Scene:
    """A model owner whose model was trained on two data sets, one of which would be forgotten."""

    client: Client
    secret: str
    model: str
    dataset: str


@pytest.fixture(scope="session")
def scene(service: Service) -> Scene:
    actor, outcome = service.cast.model_owner, service.outcome
    dataset = sealed(actor, "to be forgotten", [service.folder / "shards" / "owner_b.tar"])
    model = actor.client.create_model(
        "compared", TINY.encoder, control_dataset_id=outcome.control.id
    )
    weights = service.folder / "compared.safetensors"
    actor.client.download_weights(outcome.base.id, weights)
    actor.client.upload_checkpoint(model.id, weights, [outcome.retained.id, dataset.id])
    return Scene(actor.client, actor.key.secret, model.id, dataset.id)


@pytest.fixture(scope="session")
def shown(service: Service, scene: Scene) -> tuple[str, Path]:
    """What the command prints, and where it saves."""
    out = service.folder / "comparison"
    result = run(
        service,
        scene.secret,
        "compare",
        scene.model,
        scene.dataset,
        "--method=alignment_calibration:epochs=1,batch_size=16",
        "--method=fine_tune:epochs=1,batch_size=16",
        "--grid=beta=0,8",
        "--seeds=3",
        f"--out={out}",
    )
    assert result.exit_code == 0, result.output
    return result.output, out


def test_it_shows_every_setting_and_the_recommended_one_with_the_reason(
    scene: Scene, shown: tuple[str, Path]
) -> None:
    text, _ = shown
    assert f"if you leave: expunge comparisons watch {made_by_the_command(scene).id}" in text
    assert "succeeded" in text
    for label in ("Before", "beta=0)", "beta=8)", "fine_tune (epochs=1, batch_size=16)"):
        assert label in text
    assert "proxy gap" in text
    assert "Recommended: " in text


def test_it_saves_tables_chart_and_scores(shown: tuple[str, Path]) -> None:
    _, out = shown
    assert {path.name for path in out.iterdir()} == FILES
    assert len(json.loads((out / "table.json").read_text())["rows"]) == 4
    assert (out / "chart.png").read_bytes().startswith(b"\x89PNG")


def test_a_finished_comparison_can_be_shown_again(
    service: Service, scene: Scene, shown: tuple[str, Path], tmp_path: Path
) -> None:
    found = made_by_the_command(scene)
    assert found.id in run(service, scene.secret, "comparisons", "list").output
    again = answer(run(service, scene.secret, "comparisons", "show", found.id, "--json"))
    assert again["state"] == "succeeded"
    assert again["result"] == json.loads((shown[1] / "table.json").read_text())
    watched = answer(run(service, scene.secret, "comparisons", "watch", found.id, "--json"))
    assert watched == again


def test_an_unfinished_comparison_is_shown_as_it_is_and_not_waited_for(
    service: Service, scene: Scene, tmp_path: Path
) -> None:
    methods = [{"method": "fine_tune", "params": {"epochs": 500, "batch_size": 16}}]
    started = scene.client.comparisons.create(scene.model, [scene.dataset], methods, wait=False)
    try:
        told = answer(run(service, scene.secret, "comparisons", "show", started.id, "--json"))
        assert told["state"] in {"queued", "running"}
        plain = run(service, scene.secret, "comparisons", "show", started.id)
        assert (plain.exit_code, f"comparison {started.id}: " in plain.stdout) == (0, True)
        assert f"Next: expunge comparisons watch {started.id}" in plain.stdout
        saving = ("show", started.id, f"--out={tmp_path}")
        refused = run(service, scene.secret, "comparisons", *saving)
        assert (refused.exit_code, "nothing of it to save" in refused.stderr) == (1, True)
    finally:
        scene.client.comparisons.cancel(started.id)
    ended = run(service, scene.secret, "comparisons", "show", started.id)
    assert (ended.exit_code, "cancelled" in ended.stdout) == (0, True)
    assert run(service, scene.secret, "comparisons", "watch", started.id).exit_code == 1


def test_the_sdk_reads_tables_and_chart(
    scene: Scene, shown: tuple[str, Path], tmp_path: Path
) -> None:
    comparisons, found, out = scene.client.comparisons, made_by_the_command(scene), shown[1]
    for suffix in ("json", "csv", "md"):
        text = comparisons.table(found.id, suffix)  # type: ignore[arg-type]
        assert text == (out / f"table.{suffix}").read_text()
    assert comparisons.scores(found.id) == (out / "scores.csv").read_text()
    chart = comparisons.chart(found.id, tmp_path / "chart.png")
    assert chart.read_bytes() == (out / "chart.png").read_bytes()
    result = comparisons.get(found.id).result
    assert result is not None
    assert result.recommended is not None
    assert result.recommended.label in [row.label for row in result.rows]


def made_by_the_command(scene: Scene) -> Comparison:
    return next(each for each in scene.client.comparisons.list() if each.settings["seeds"] == [3])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "at least one --method"),
        (["--method=fine_tune", "--grid=beta=1"], "that one of the methods has"),
        (["--method=fine_tune", "--grid=epochs"], "write name=value,value"),
        (["--method=fine_tune:epochs=1", "--grid=epochs=1,2"], "not fixed already"),
        (["--method=fine_tune", "--grid=epochs=1", "--grid=epochs=2"], "has a grid already"),
        (["--method=fine_tune", "--search=fine_tune"], "or else --search one"),
        (["--search=fine_tune", "--grid=epochs=1"], "--grid goes with --method"),
        (["--method=fine_tune", "--trials=3"], "--trials goes with --search"),
        (["--method=fine_tune:learning_rate=NaN"], "should be a valid number"),
        (["--method=fine_tune", "--grid=learning_rate=1e999"], "should be a valid number"),
        (["--method=fine_tune", f"--out={__file__}"], "exists"),
        (["--method=fine_tune", "--seeds=a"], "whole numbers"),
        (["--method=fine_tune:epochs"], "name=value"),
        (["--method=burn"], "unknown method"),
        (["--method=fine_tune", "--grid=fine_tune:epochs=0"], "/methods/0/grid/epochs/0"),
        (["--search=fine_tune:epochs=0"], "/search/params/epochs"),
    ],
)
def test_what_cannot_be_compared_is_said_at_once(
    service: Service, scene: Scene, options: list[str], said: str
) -> None:
    result = run(service, scene.secret, "compare", scene.model, scene.dataset, *options)
    assert result.exit_code == 1
    assert said in " ".join(result.stderr.split())


def test_repeating_a_call_with_its_key_makes_one_comparison(scene: Scene) -> None:
    methods = [{"method": "fine_tune", "params": {"epochs": 1, "batch_size": 16}}]
    made = [
        scene.client.comparisons.create(
            scene.model, [scene.dataset], methods, idempotency_key="twice", wait=False
        ).id
        for _ in range(2)
    ]
    assert len(set(made)) == 1
    with pytest.raises(ProblemError, match="another body"):
        scene.client.comparisons.create(
            scene.model, [scene.dataset], methods, seeds=[1], idempotency_key="twice", wait=False
        )
