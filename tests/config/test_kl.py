"""Keys of the KL term that could have no effect are refused."""

from collections.abc import Callable

import pytest

from marble_cli.config.schema import RunConfig
from marble_cli.config.scored import scored_rewards
from marble_cli.errors import ConfigError

GUIDED = "algorithm.kl_reference=guided"


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["algorithm.kl_gate=watched"], "nothing is watched. Expected a reward under eval_rewards"),
        (["algorithm.kl_guidance=4"], "kl_guidance=4: algorithm.kl_reference=base has no guidance"),
        ([GUIDED], "takes rollout.guidance_scale=1, which means no guidance"),
        ([GUIDED, "rollout.guidance_scale=0"], "takes rollout.guidance_scale=0, which means no guidance"),
        ([GUIDED, "algorithm.kl_guidance=1"], "algorithm.kl_guidance=1.0: expected a number above 1"),
        (
            [GUIDED, "algorithm.kl_guidance=4", "model.guidance=3.5"],
            "so its frozen velocity is guided already, by model.guidance=3.5. Expected algorithm.kl",
        ),
    ],
)
def test_key_without_effect_is_refused(
    run_config: Callable[..., RunConfig], overrides: list[str], said: str
) -> None:
    with pytest.raises(ConfigError) as error:
        run_config(*overrides)
    assert said in str(error.value)


def test_watched_rewards_score_the_images_of_a_step_for_a_gate_alone(
    run_config: Callable[..., RunConfig],
) -> None:
    watched = "+eval_rewards.other={plugin: compressibility}"
    trained = ["colorfulness", "compressibility"]
    assert list(scored_rewards(run_config(watched))) == trained
    assert list(scored_rewards(run_config(watched, "algorithm.kl_gate=watched"))) == [*trained, "other"]
