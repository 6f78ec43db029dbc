"""Every family trains: gradients, adapted layers, resumed runs and half precision."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from marble_cli.checkpoint import store
from marble_cli.checkpoint.export import export
from marble_cli.config.enums import Precision, Switch, Train
from marble_cli.config.schema import RunConfig
from marble_cli.errors import ConfigError
from marble_cli.policy.base import PromptEmbeddings
from marble_cli.policy.load import load_policy
from marble_cli.run.train import train
from marble_cli.step.per_sample import PerSampleGradients
from tests.policy.families.cases import (
    STEPS,
    Case,
    assert_same_images,
    load_plain,
    plain_run,
)
from tests.policy.families.differences import beyond_rounding
from tests.policy.families.pipelines import NETWORKS, ONE_PER_NETWORK, ONE_UNET, TINY, TRANSFORMERS
from tests.policy.operations import CountedOperations


@pytest.mark.parametrize("case", ONE_UNET, indirect=True)
def test_per_sample_gradients_equal_autograd_for_every_mixture(case: Case) -> None:
    """With and without gradient checkpointing."""
    policy, draw, xt = case.policy, torch.Generator().manual_seed(5), case.start()
    cotangent = torch.randn(xt.shape, generator=draw)
    coefficients = torch.randn(2, len(xt), generator=draw)
    parameters = list(policy.parameters("trained").values())
    at = (xt, case.times, case.encode(policy), "trained")
    expected, v = [], policy.velocity(*at)
    for own in coefficients:
        loss = ((v * cotangent).flatten(1).sum(1) * own).sum()
        parts = torch.autograd.grad(
            loss, parameters, retain_graph=True, materialize_grads=True, allow_unused=True
        )
        expected.append(torch.cat([part.flatten() for part in parts]))
    for watched in (policy, case.load(gradient_checkpointing=Switch.true)):
        rows = torch.zeros(2, sum(p.numel() for p in parameters))
        mixer = PerSampleGradients(watched.layers(), rows)
        with mixer.watching():
            mixer.mix(watched.velocity(*at), cotangent, coefficients, retain_graph=False)
        for row, exact in zip(rows, expected, strict=True):
            case.record("gradients", (row - exact).norm() / exact.norm())
            assert (row - exact).norm() < 1e-4 * exact.norm()


def test_every_network_is_stood_for(case: Case) -> None:
    assert NETWORKS[type(getattr(case.plain, case.network)).__name__] in TINY


def test_default_targets_adapt_every_attention_projection(case: Case) -> None:
    """But for FLUX.2's projections to outputs of attention and MLP at once, which have a list's name."""
    adapted = {name.split(".lora_")[0] for name in case.policy.parameters("trained")}
    assert adapted == {
        name
        for name, module in getattr(case.plain, case.network).named_modules()
        if isinstance(module, nn.Linear)
        and any(part.startswith(("to_", "add_q", "add_k", "add_v")) for part in name.split(".")[-2:])
        and not name.endswith(".attn.to_out")
    }


def run_of(case: Case, run_config: Callable[..., RunConfig], folder: Path, kind: Train) -> RunConfig:
    """Two steps with large rates, so that pictures change."""
    config = run_config(*case.overrides, f"run.dir={folder}")
    config.model.train, config.optimizer.lr = kind, 0.1 if kind is Train.lora else 0.01
    return config


@contextmanager
def policy_to_load(case: Case, kind: Train) -> Iterator[Any]:
    """Yield a policy whose trained weights may change: the case's own, which then has its adapters again."""
    if kind is Train.full:
        yield load_policy(replace(case.model, train=kind), seed=7)
        return
    try:
        yield case.policy
    finally:
        case.randomise(case.policy)


def assert_export_draws_in_diffusers(case: Case, config: RunConfig) -> None:
    """The plain pipeline with a run's exported averages draws what the policy draws with them."""
    folder = Path(config.run.dir)
    file = export(str(folder), folder / "exported")
    with policy_to_load(case, config.model.train) as policy:
        policy.load_trained(store.load(store.resolve(str(folder)))[2])
        trained = case.images(policy, "trained")
    plain = load_plain(case.model.path)
    if config.model.train is Train.lora:
        plain.load_lora_weights(file.parent)
    else:
        kind_of = type(getattr(plain, case.network))
        exported = kind_of.from_pretrained(file.parents[1], subfolder=case.network, local_files_only=True)
        setattr(plain, case.network, exported)
    images = plain_run(case, plain).images
    case.record("trained pictures", beyond_rounding(trained, images))
    assert_same_images(trained, images)
    assert (images - case.drawn.images).abs().max() * 255 > 5


@pytest.mark.parametrize("case", ONE_UNET, indirect=True)
def test_resumed_run_equals_uninterrupted_run_and_its_export_draws_in_diffusers(
    case: Case, run_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    config = run_of(case, run_config, whole, Train.lora)
    assert train(config, resume="auto") == 0
    shutil.copytree(whole, resumed)
    shutil.rmtree(resumed / "checkpoints" / "step-00000002")
    assert train(replace(config, run=replace(config.run, dir=str(resumed))), resume="auto") == 0
    for name in store.weight_files("lora"):
        one, two = (f / "checkpoints/step-00000002" / name for f in (whole, resumed))
        assert one.read_bytes() == two.read_bytes()
    case.record("resumed", 0)
    assert_export_draws_in_diffusers(case, config)


@pytest.mark.parametrize("case", ONE_PER_NETWORK, indirect=True)
def test_trained_network_is_exported_and_draws_in_diffusers(
    case: Case, run_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    """Runs that train whole networks are resumed in tests/run/test_resume.py."""
    config = run_of(case, run_config, tmp_path / "whole", Train.full)
    assert train(config, resume="auto") == 0
    assert_export_draws_in_diffusers(case, config)


@pytest.mark.parametrize("case", ONE_UNET, indirect=True)
def test_half_precision_is_close_and_keeps_gradients_in_float32(case: Case) -> None:
    half = case.load(precision=Precision.bf16)
    got, exact = (
        p.velocity(case.start(), case.times, case.encode(p), "trained") for p in (half, case.policy)
    )
    assert got.dtype == torch.float32
    assert (got - exact).norm() < 0.05 * exact.norm()
    parameters = list(half.parameters("trained").values())
    found = torch.autograd.grad(got.square().mean(), parameters, allow_unused=True)
    gradients = [g for g in found if g is not None]
    assert all(g.dtype == torch.float32 and g.isfinite().all() for g in gradients)
    # In the last block the text's queries and outputs lead nowhere.
    assert sum(bool(g.any()) for g in gradients) >= 0.8 * len(half.layers())
    assert half.decode(case.start())[0].float().std() > 5


@dataclass(frozen=True)
class Call:
    """A call of a network: its unnamed and named arguments, and its output [3, ...]."""

    inputs: tuple[Any, ...]
    arguments: dict[str, Any]
    output: Tensor

    @classmethod
    def joined(cls, calls: "list[Call]") -> "Call":
        """Of one step, whose samples were drawn one by one."""
        time = torch.cat([call.arguments["timestep"] for call in calls])
        return cls((), {"timestep": time}, torch.cat([call.output for call in calls]))


@contextmanager
def recorded_calls(transformer: Any) -> Iterator[list[Call]]:
    calls: list[Call] = []

    def record(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        calls.append(Call(args, kwargs, torch.stack(tuple(output[0]))))

    with transformer.register_forward_hook(record, with_kwargs=True):
        yield calls


@pytest.mark.parametrize("case", ONE_UNET, indirect=True)
@torch.no_grad()
def test_bfloat16_equals_the_plain_pipelines_own(case: Case) -> None:
    half = case.load(precision=Precision.bf16)
    plain = load_plain(case.model.path, torch.bfloat16)
    with recorded_calls(getattr(plain, case.network)) as expected:
        run = plain_run(case, plain)
    if case.edits:
        expected = [Call.joined(expected[step::STEPS]) for step in range(STEPS)]
    embeddings = case.encode(half)
    for step, call in enumerate(expected):

        def take_time(module: nn.Module, args: Any, kwargs: dict[str, Any], call: Call = call) -> Any:
            if case.network == "unet":  # its pipeline also rounds what it divides latents by
                assert (args[0] - call.inputs[0]).float().norm() < 0.005 * call.inputs[0].float().norm()
                assert torch.equal(args[1], call.inputs[1].expand(3))
                args = call.inputs
            # Some pipelines round times to bfloat16, and then divide by 1000.
            return args, {
                name: call.arguments[name] if name == "timestep" else kwargs[name] for name in kwargs
            }

        with (
            half.network.register_forward_pre_hook(take_time, with_kwargs=True),
            recorded_calls(half.network) as got,
        ):
            half.velocity(run.latents[step].float(), run.times[step].expand(3), embeddings, None)
        (ours,) = got
        assert ours.output.dtype == call.output.dtype == torch.bfloat16
        error, norm = (ours.output.float() - call.output.float()).norm(), call.output.float().norm()
        case.record("bfloat16", error / norm)
        assert error < 0.01 * norm  # one rounding to bfloat16 errs by 0.004 at most
    assert len(expected) == STEPS


@pytest.mark.parametrize("case", [name for name in ONE_PER_NETWORK if name in TRANSFORMERS], indirect=True)
def test_bfloat16_errs_no_more_than_under_autocast(case: Case, randomise: Callable[..., None]) -> None:
    """Errors of velocities and gradients, against float32 on the same rounded weights and inputs.

    Most networks have the same bits either way; the others' errors are means of eight draws.
    """
    half, exact = (load_policy(replace(case.model, precision=Precision.bf16), seed=0) for _ in range(2))
    exact.network.float()
    exact.dtype = torch.float32
    rounded = case.encode(half)
    floats = {
        name: tensor.float() if tensor.is_floating_point() else tensor
        for name, tensor in rounded.tensors.items()
    }

    def results(policy: Any, embeddings: PromptEmbeddings, seed: int) -> tuple[Tensor, Tensor]:
        randomise(policy, seed=seed)
        draw = torch.Generator().manual_seed(seed)
        xt, cotangent = (torch.randn(3, *half.latent_shape, generator=draw) for _ in range(2))
        v = policy.velocity(xt.bfloat16().float(), case.times, embeddings, "trained")
        parts = torch.autograd.grad(
            v,
            list(policy.parameters("trained").values()),
            cotangent,
            allow_unused=True,
            materialize_grads=True,
        )
        return v.detach(), torch.cat([part.flatten() for part in parts])

    errors = {False: torch.zeros(2), True: torch.zeros(2)}
    for seed in range(8):
        expected, found = results(exact, replace(rounded, tensors=floats), seed), []
        for half.autocast in errors:
            got = results(half, rounded, seed)
            errors[half.autocast] += torch.stack(
                [(one - two).norm() / two.norm() for one, two in zip(got, expected, strict=True)]
            )
            found.append(got)
        if all(one.equal(two) for one, two in zip(*found, strict=True)):
            break  # the casts are the same, and so are the errors of any draw
    assert (errors[True] > 0).all()
    assert (errors[False] < 1.15 * errors[True]).all(), errors  # the mean of so few draws is this uncertain


@pytest.mark.parametrize("case", TRANSFORMERS, indirect=True)
def test_half_precision_casts_nothing_per_adapted_layer_but_its_matrices(case: Case) -> None:
    half = case.load(precision=Precision.bf16)
    at, layers = (case.start(), case.times, case.encode(half)), len(half.layers()) // 2
    casts: dict[Any, int] = {}
    for adapter in (None, "trained", None):  # a first pass also makes tables of positions
        with torch.no_grad(), CountedOperations() as counted:
            half.velocity(*at, adapter)
        casts[adapter] = counted.calls["_to_copy"]
    assert casts["trained"] - casts[None] == 2 * layers


@pytest.mark.parametrize("case", ["z_image"], indirect=True)
def test_layer_that_mixes_samples_is_refused(case: Case) -> None:
    """Z-Image embeds the patches of all samples as one list."""
    lora = replace(case.model.lora, target_modules=["all_x_embedder.2-1"])
    policy: Any = load_policy(replace(case.model, lora=lora), 0)
    rows = torch.zeros(1, sum(p.numel() for p in policy.parameters("trained").values()))
    mixer, xt = PerSampleGradients(policy.layers(), rows), case.start()
    with mixer.watching():
        velocity = policy.velocity(xt, case.times, case.encode(policy), "trained")
        with pytest.raises(ConfigError, match="whose input has 96 rows for 3 samples"):
            mixer.mix(velocity, xt, torch.ones(1, 3), retain_graph=False)
