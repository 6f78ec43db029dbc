"""Sizes computed from configuration files are the real ones, and settings that a model lacks are refused."""

from dataclasses import replace

import pytest
from torch import nn

from marble_cli.config.enums import Precision
from marble_cli.config.schema import ModelConfig
from marble_cli.errors import ConfigError, RequestError
from marble_cli.policy.load import load_policy
from marble_cli.policy.size import model_size
from marble_cli.policy.source import DTYPES
from tests.policy.families.cases import Case
from tests.policy.families.pipelines import ONE_PER_NETWORK, ONE_UNET


@pytest.mark.parametrize(
    ("case", "precision"),
    [*((case, Precision.bf16) for case in ONE_UNET), ("sd3", Precision.fp32)],
    indirect=["case"],
)
def test_computed_sizes_equal_those_of_the_loaded_model(case: Case, precision: Precision) -> None:
    model = replace(case.model, precision=precision)
    policy = case.load(precision=precision)
    size = model_size(model)
    assert size is not None
    adapter = sum(p.numel() for p in policy.parameters("trained").values())
    assert size.trained == adapter
    assert size.network == sum(p.numel() for p in policy.network.parameters()) - 2 * adapter
    assert size.tokens == policy.tokens == case.tiny.tokens
    own = {id(p) for a in ("trained", "behaviour") for p in policy.parameters(a).values()}

    def held(*parts: nn.Module) -> int:
        weights = {id(p): p for part in parts for p in part.parameters() if id(p) not in own}
        return sum(p.numel() * p.element_size() for p in weights.values())

    itemsize = DTYPES[precision].itemsize
    frozen = held(policy.pipeline.vae, policy.network)
    assert (size.network + size.vae) * itemsize == pytest.approx(frozen, rel=0.01)
    assert size.encoders * itemsize == pytest.approx(held(*policy.family.encoders), rel=0.01)


@pytest.mark.parametrize("case", ONE_UNET, indirect=True)
def test_settings_that_do_not_fit_the_model_are_refused(case: Case) -> None:
    def load(model: ModelConfig) -> None:
        load_policy(model, 0)

    for uneven, each in (("34", ""), ("34x32", "each side "), ("32x34", "each side ")):
        for look in (model_size, load) if uneven == "34x32" else (model_size,):
            message = rf"model\.resolution={uneven}: expected {each}a multiple of \d+"
            with pytest.raises(RequestError, match=message):
                look(replace(case.model, resolution=uneven))
    other, said = (3.5, "3.5") if case.model.guidance is None else (None, "null")
    wrong = [(replace(case.model, guidance=other), rf"model\.guidance={said}: .*Expected")]
    if not case.policy.family.float16:
        wrong.append((replace(case.model, precision=Precision.fp16), "model.precision=fp16"))
    if case.network == "unet":
        wrong.append(
            (replace(case.model, max_sequence_length=77), "model.max_sequence_length=77.*Expected 0")
        )
    elif case.tiny.choice != "sd3":
        wrong.append((replace(case.model, max_sequence_length=0), "model.max_sequence_length=0.*at least 1"))
    if case.tiny.choice == "lumina2":
        wrong.append((replace(case.model, max_sequence_length=128), "max_sequence_length=128.*at most 127"))
    for model, message in wrong:
        for look in (model_size, load) if case.name in ONE_PER_NETWORK else (model_size,):
            with pytest.raises(ConfigError, match=message):
                look(model)
