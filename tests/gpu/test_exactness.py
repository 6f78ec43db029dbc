"""The float64 tests of tests/step on this device: refreshes, their mixer and amortised steps, to 1e-10."""

from tests.step.conftest import case, descent, double_policy, reference
from tests.step.test_direction import (
    test_a_refresh_pushes_no_reward_down,
    test_a_refresh_tells_how_stale_the_cache_was,
    test_after_a_refresh_the_amortised_step_goes_the_same_way,
    test_an_amortised_step_takes_the_cached_weights,
    test_constant_shares_add_the_gradients_up,
    test_mixtures_are_the_gradient_of_one_loss,
    test_output_space_balances_velocities_at_every_step,
    test_the_published_amortisation_goes_elsewhere,
)
from tests.step.test_gradients import (
    apart_once,
    test_every_rewards_gradient_is_its_definition,
    test_gradients_of_the_ranks_parts_add_up,
    test_one_backward_pass_has_the_balanced_direction_as_its_gradient,
    test_the_micro_batch_size_changes_nothing,
    test_the_velocity_gram_matrix_is_autograds,
)
from tests.step.test_refresh_fraction import test_a_share_of_the_micro_batches_chooses_the_weights_of_all

__all__ = [
    "apart_once",
    "case",
    "descent",
    "double_policy",
    "reference",
    "test_a_refresh_pushes_no_reward_down",
    "test_a_refresh_tells_how_stale_the_cache_was",
    "test_a_share_of_the_micro_batches_chooses_the_weights_of_all",
    "test_after_a_refresh_the_amortised_step_goes_the_same_way",
    "test_an_amortised_step_takes_the_cached_weights",
    "test_constant_shares_add_the_gradients_up",
    "test_every_rewards_gradient_is_its_definition",
    "test_gradients_of_the_ranks_parts_add_up",
    "test_mixtures_are_the_gradient_of_one_loss",
    "test_one_backward_pass_has_the_balanced_direction_as_its_gradient",
    "test_output_space_balances_velocities_at_every_step",
    "test_the_micro_batch_size_changes_nothing",
    "test_the_published_amortisation_goes_elsewhere",
    "test_the_velocity_gram_matrix_is_autograds",
]
