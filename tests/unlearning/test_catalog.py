import subprocess
import sys

import pytest
from pydantic import ValidationError

from expunge.unlearning.catalog import (
    METHODS,
    AlignmentCalibrationParams,
    Architecture,
    EncoderSpec,
    MethodNotForFramework,
    MoCo,
    PretrainParams,
    SimCLR,
    UnknownMethod,
    parse_params,
)


def test_importing_the_catalog_imports_no_torch() -> None:
    code = "import sys, expunge.unlearning.catalog; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_absent_parameters_get_the_papers_defaults() -> None:
    params = parse_params("alignment_calibration", "moco", {})
    assert isinstance(params, AlignmentCalibrationParams)
    assert (params.epochs, params.learning_rate, params.alpha, params.gamma) == (10, 0.006, 1, 1)


def test_unknown_method_names_the_known_ones() -> None:
    with pytest.raises(UnknownMethod, match="gradient_ascent, gradient_penalty, l1_sparsity"):
        parse_params("amnesia", "simclr", {})


def test_method_for_another_framework_is_refused() -> None:
    with pytest.raises(MethodNotForFramework, match="for: clip, moco, simclr"):
        parse_params("alignment_calibration", "byol", {})


@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize(
    "params",
    [
        {"epochs": 0},
        {"epochs": 1.5},
        {"epochs": "3"},
        {"epochs": True},
        {"learning_rate": 0},
        {"learning_rate": float("nan")},
        {"learning_rate": float("inf")},
        {"batch_size": 1},
        {"momentum": 1},
        {"weight_decay": -1e-9},
        {"seed": 1},
    ],
)
def test_parameters_out_of_bounds_are_refused(method: str, params: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        parse_params(method, min(METHODS[method].frameworks), params)


@pytest.mark.parametrize("name", ["alpha", "beta", "gamma"])
def test_calibration_weights_are_bounded_and_the_message_says_how(name: str) -> None:
    with pytest.raises(ValidationError, match="less than or equal to 100"):
        parse_params("alignment_calibration", "simclr", {name: 101})
    with pytest.raises(ValidationError, match="greater than or equal to 0"):
        parse_params("alignment_calibration", "simclr", {name: -1})


def test_gradient_ascent_defaults_lie_in_the_papers_range() -> None:
    params = parse_params("gradient_ascent", "simclr", {})
    assert params.epochs == 5
    assert 1e-6 <= params.learning_rate <= 1e-4
    assert params.weight_decay == 5e-4


def test_l1_sparsity_defaults_lie_in_the_papers_range_and_lambda_is_never_zero() -> None:
    params = parse_params("l1_sparsity", "simclr", {}).model_dump()
    assert (params["learning_rate"], params["schedule"]) == (0.006, "linear_decay")
    assert 1e-6 <= params["l1_weight"] <= 1e-3
    for wrong in (0, -1e-6, 1.1):
        with pytest.raises(ValidationError, match="than"):
            parse_params("l1_sparsity", "simclr", {"l1_weight": wrong})


def test_neg_grad_defaults_lie_in_the_papers_range() -> None:
    params = parse_params("neg_grad", "moco", {})
    assert params.epochs == 10
    assert 0.003 <= params.learning_rate <= 0.03
    assert params.model_dump()["protocol"] == "corrected"
    with pytest.raises(ValidationError, match="'corrected' or 'released'"):
        parse_params("neg_grad", "moco", {"protocol": "reference"})


def test_released_protocol_needs_equal_weights() -> None:
    with pytest.raises(ValidationError, match="alpha = gamma"):
        parse_params("alignment_calibration", "simclr", {"alpha": 2, "protocol": "released"})


def test_only_the_cifar_network_has_a_free_width() -> None:
    assert Architecture(width=16).width == 16
    with pytest.raises(ValidationError, match="only resnet18_cifar"):
        Architecture(name="resnet50", width=16)


@pytest.mark.parametrize("objective", [SimCLR(temperature=0.2), MoCo(queue_size=7)])
def test_specification_survives_json(objective: SimCLR | MoCo) -> None:
    spec = EncoderSpec(objective=objective, mean=(0.5, 0.5, 0.5))
    assert EncoderSpec.model_validate_json(spec.model_dump_json()) == spec
    assert EncoderSpec.model_validate(spec.model_dump(mode="json")) == spec


def test_every_method_describes_its_parameters_as_json_schema() -> None:
    for method in METHODS.values():
        properties = method.params.model_json_schema()["properties"]
        assert all("description" in field for field in properties.values()), method.id


def test_zero_standard_deviation_is_refused() -> None:
    with pytest.raises(ValidationError, match="std must be positive"):
        EncoderSpec(objective=SimCLR(), std=(0.2, 0.0, 0.2))


def test_pretraining_defaults_are_the_papers() -> None:
    params = PretrainParams()
    assert (params.epochs, params.learning_rate, params.batch_size) == (800, 0.06, 512)
    assert params.schedule == "cosine"


@pytest.mark.parametrize("framework", ["simclr", "byol", "clip", "supervised"])
def test_a_queue_is_moco_s_alone(framework: str) -> None:
    assert parse_params("fine_tune", "moco", {"queue_init": "random"})
    with pytest.raises(
        ValidationError, match=f"only moco has a queue; leave it out for {framework}"
    ):
        parse_params("fine_tune", framework, {"queue_init": "random"})


def test_an_architecture_without_a_name_is_the_framework_s_usual_one() -> None:
    narrow = EncoderSpec.model_validate(
        {"objective": {"framework": "byol"}, "architecture": {"width": 8}}
    )
    assert narrow.architecture == Architecture(name="resnet18_cifar", width=8)
    towers = EncoderSpec.model_validate({"objective": {"framework": "clip"}})
    assert towers.architecture.name == "open_clip"
    with pytest.raises(ValidationError, match="open_clip is for clip"):
        EncoderSpec.model_validate(
            {"objective": {"framework": "clip"}, "architecture": {"name": "resnet50"}}
        )
