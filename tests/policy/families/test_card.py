"""The arguments on a model card make every family's plain pipeline draw what marble draws."""

from collections.abc import Callable

from marble_cli.config.resolution import read_resolution
from marble_cli.config.schema import RunConfig
from marble_cli.push.loading import call_arguments, missing_bounds
from tests.policy.families.cases import STEPS, Case, assert_same_images, plain_run


def test_arguments_on_the_card_draw_as_evaluations_do(
    case: Case, run_config: Callable[..., RunConfig]
) -> None:
    config = run_config(*case.overrides)
    family = case.policy.provenance()["family"]
    arguments = call_arguments(config, family)
    sizes = {key: arguments.pop(key) for key in ("num_inference_steps", "height", "width")}
    size = read_resolution(case.tiny.resolution)
    assert sizes == {"num_inference_steps": STEPS, "height": size.height, "width": size.width}
    assert_same_images(case.images(case.policy, None), plain_run(case, case.plain, **arguments).images)


def test_bounds_of_guidance_are_on_the_card_where_the_pipeline_has_them(
    run_config: Callable[..., RunConfig],
) -> None:
    bounds = {"cfg_normalization": 1.0, "cfg_truncation": 0.8}
    guided = run_config(
        "rollout.guidance_scale=4", *(f"rollout.{key}={value}" for key, value in bounds.items())
    )
    assert call_arguments(guided, "ZImage").items() >= bounds.items()
    assert missing_bounds(guided, "ZImage") == {}
    assert call_arguments(guided, "SD3").keys().isdisjoint(bounds)
    assert missing_bounds(guided, "SD3") == bounds
    assert missing_bounds(run_config("rollout.guidance_scale=4"), "SD3") == {}
