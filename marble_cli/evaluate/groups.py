"""Check that evaluations draw whole groups for the rewards that judge them."""

from collections.abc import Sequence

from marble_cli.config.evaluation import EvaluationSettings
from marble_cli.errors import ConfigError


def check_evaluated_groups(evaluation: EvaluationSettings, groupwise: Sequence[str]) -> None:
    """Check that `groupwise` rewards, which judge all images of a prompt at once, get whole groups.

    Raises:
        ConfigError: there is one image per prompt, or a batch holds less than a group.
    """
    size, batch = evaluation.images_per_prompt, evaluation.batch_size
    for name in groupwise:
        if size == 1:
            raise ConfigError(
                f"reward {name} compares the images of a prompt, and evaluation.images_per_prompt=1 draws "
                "one. Expected at least 2, such as evaluation.images_per_prompt=4."
            )
        if batch < size:
            raise ConfigError(
                f"reward {name} judges whole groups, and evaluation.batch_size={batch} would cut groups of "
                f"evaluation.images_per_prompt={size}. Expected evaluation.batch_size={size} or more."
            )
