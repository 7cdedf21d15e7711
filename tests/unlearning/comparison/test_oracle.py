import json
import os
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from expunge.unlearning.catalog import parse_params
from expunge.unlearning.comparison import OracleStore, compare
from expunge.unlearning.comparison.oracle import identity_of, retrained
from expunge.unlearning.data.captions import tokenise
from expunge.unlearning.frameworks import build
from expunge.unlearning.hardware import precision_for


def identity(case: Any, **changes: Any) -> str:
    params = parse_params("retrain", "simclr", changes.get("params", case.retrain))
    learner, retain = changes.get("learner", case.learner), changes.get("retain", case.sets[0])
    return identity_of(learner, retain, params, seed=changes.get("seed", 0), device="cpu")


def test_a_later_comparison_reads_what_an_earlier_one_trained(case: Any, tmp_path: Path) -> None:
    def again(**changes: Any) -> Any:
        options = {"retrain": case.retrain, "oracle": OracleStore(tmp_path), **changes}
        return compare(case.learner, *case.sets, case.candidates[:1], **options)

    first, second = again(), again()
    assert [len(list(tmp_path.iterdir())), first.rows[1].reused, second.rows[1].reused] == [
        1,
        False,
        True,
    ]
    assert first.rows[1].columns == second.rows[1].columns
    assert first.rows[1].minutes == second.rows[1].minutes
    assert not again(seeds=[1]).rows[1].reused
    assert not again(retrain={**case.retrain, "epochs": 2}).rows[1].reused
    assert len(list(tmp_path.iterdir())) == 3


def test_the_weights_read_are_those_that_were_trained(case: Any, tmp_path: Path) -> None:
    params = parse_params("retrain", "simclr", case.retrain)
    store = OracleStore(tmp_path)
    results = [
        retrained(store, case.learner, *case.sets[:2], params, seed=0, device="cpu")
        for _ in range(2)
    ]
    assert [each.reused for each in results] == [False, True]
    one, two = (each.learner.state_dict() for each in results)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert results[0].seconds == results[1].seconds


def test_any_change_of_what_decides_the_weights_is_another_identity(
    case: Any, make_images: Callable[..., Any]
) -> None:
    retain = case.sets[0]
    spec = case.learner.spec
    hotter = spec.model_copy(
        update={"objective": spec.objective.model_copy(update={"temperature": 0.4})}
    )
    known = {
        identity(case),
        identity(case, seed=1),
        identity(case, params={**case.retrain, "learning_rate": 0.05}),
        identity(case, learner=build(hotter, seed=0)),
        identity(case, retain=retain.subset(range(19))),
        identity(case, retain=retain.subset([1, 0, *range(2, 20)])),
        identity(case, retain=make_images(20, seed=5)),
        identity(case, retain=replace(retain, labels=None)),
        identity(case, retain=replace(retain, labels=retain.labels + 1)),
        identity(case, retain=replace(retain, captions=tokenise(["a"] * 20, 8))),
        identity(case, retain=replace(retain, captions=tokenise(["b"] * 20, 8))),
    }
    assert len(known) == 11


def test_hardware_and_versions_are_part_of_the_identity(case: Any) -> None:
    facts = json.loads(identity(case))
    assert facts["hardware"] == "cpu"
    assert facts["precision"] == precision_for(torch.device("cpu"))
    assert facts["torch"] == torch.__version__
    assert facts["expunge"] == version("expunge")


def test_weights_and_unlearn_set_of_the_checkpoint_are_no_part_of_it(case: Any) -> None:
    assert identity(case) == identity(case, learner=build(case.learner.spec, seed=9))


def test_a_file_that_cannot_be_read_or_is_another_is_made_again(case: Any, tmp_path: Path) -> None:
    store = OracleStore(tmp_path)
    assert store.find("mine") is None
    store.keep_weights("mine", case.learner, 2.5)
    (path,) = tmp_path.iterdir()
    found = store.find("mine")
    assert found is not None
    assert (found.seconds, found.reused) == (2.5, True)
    whole = path.read_bytes()
    for content in (b"", b"junk" * 40, whole[:-9]):
        path.write_bytes(content)
        assert store.find("mine") is None
    store.keep_weights("other", case.learner, 1.0)
    (other,) = set(tmp_path.iterdir()) - {path}
    other.replace(path)
    assert store.find("mine") is None
    store.keep_weights("mine", case.learner, 2.5)
    assert store.find("mine") is not None


def test_those_longest_unused_are_removed(case: Any, tmp_path: Path) -> None:
    store = OracleStore(tmp_path, keep=2)
    for age, name in ((300, "old"), (200, "used")):
        before = set(tmp_path.iterdir())
        store.keep_weights(name, case.learner, 1.0)
        (path,) = set(tmp_path.iterdir()) - before
        os.utime(path, (age, age))
    used = store.find("old")
    assert used is not None
    store.keep_weights("new", case.learner, 1.0)
    assert [store.find(name) is not None for name in ("old", "used", "new")] == [True, False, True]
    assert {path.suffix for path in tmp_path.iterdir()} == {".safetensors"}
