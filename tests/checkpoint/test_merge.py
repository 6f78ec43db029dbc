"""Merging LoRAs: concatenation against the sum of products, other methods against their definitions."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from marble_cli.checkpoint import tensor_files
from marble_cli.checkpoint.lora import A, B, check, header
from marble_cli.checkpoint.merge import MergeMethod, merge_loras
from marble_cli.errors import RequestError

LAYERS = {"block.0.attn.to_q": (6, 5), "block.0.attn.to_out.0": (4, 7), "block.1.attn.to_q": (6, 5)}


def lora(seed: int, rank: int, layers: dict[str, tuple[int, int]] = LAYERS) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    state = {}
    for name, (inputs, outputs) in layers.items():
        state[f"transformer.{name}{A}"] = torch.randn(rank, inputs, generator=draw)
        state[f"transformer.{name}{B}"] = torch.randn(outputs, rank, generator=draw)
    return state


def product(state: dict[str, Tensor], layer: str) -> Tensor:
    return state[f"transformer.{layer}{B}"].double() @ state[f"transformer.{layer}{A}"].double()


@pytest.mark.parametrize("ranks", [(2, 2), (1, 4), (3, 2, 1)])
@pytest.mark.parametrize("scale", [1.0, -0.5])
def test_concat_adds_the_weighted_sum_of_the_products(ranks: tuple[int, ...], scale: float) -> None:
    loras = {f"run-{seed}": lora(seed, rank) for seed, rank in enumerate(ranks)}
    weights = [scale * (place + 1) / 4 for place in range(len(ranks))]
    merged = merge_loras(loras, weights)
    check(merged, Path("merged"))
    for layer in LAYERS:
        expected = sum(w * product(state, layer) for w, state in zip(weights, loras.values(), strict=True))
        torch.testing.assert_close(product(merged, layer), expected, rtol=1e-6, atol=1e-6)
        assert merged[f"transformer.{layer}{A}"].shape[0] == sum(ranks)


@pytest.mark.parametrize("sign", [1, -1])
def test_average_is_the_product_of_weighted_factors_and_not_the_sum(sign: int) -> None:
    loras = {"a": lora(0, 3), "b": lora(1, 3)}
    merged = merge_loras(loras, [0.25, sign * 0.75], MergeMethod.average)
    for layer in LAYERS:
        factors = [
            sum(
                w * state[f"transformer.{layer}{part}"].double()
                for w, state in zip((0.5, b * 0.75**0.5), loras.values(), strict=True)
            )
            for part, b in ((B, 1), (A, sign))
        ]
        torch.testing.assert_close(product(merged, layer), factors[0] @ factors[1], rtol=1e-5, atol=1e-5)
        exact = 0.25 * product(loras["a"], layer) + sign * 0.75 * product(loras["b"], layer)
        assert (product(merged, layer) - exact).abs().max() > 0.1


@pytest.mark.parametrize(("density", "expected"), [(2 / 3, [2.5, -1.0, -3.0]), (1 / 3, [3.0, 0.0, -3.0])])
def test_ties_keeps_the_largest_values_of_the_sign_that_weighs_more(
    density: float, expected: list[float]
) -> None:
    """Of the values 3, -1, 0.1 and 2, 0.5, -3; what is kept of both is averaged."""
    layers = {"layer": (3, 1)}
    first, second = lora(0, 1, layers), lora(1, 1, layers)
    first[f"transformer.layer{A}"] = torch.tensor([[3.0, -1.0, 0.1]])
    second[f"transformer.layer{A}"] = torch.tensor([[2.0, 0.5, -3.0]])
    merged = merge_loras({"a": first, "b": second}, [1.0, 1.0], MergeMethod.ties, density)
    assert merged[f"transformer.layer{A}"][0].tolist() == expected
    second[f"transformer.layer{A}"] *= -1  # a negative weight: the sign that counts is that of what is added
    merged = merge_loras({"a": first, "b": second}, [1.0, -1.0], MergeMethod.ties, density)
    assert merged[f"transformer.layer{A}"][0].tolist() == expected


def test_dare_is_the_same_each_time_and_leaves_the_global_generator_alone() -> None:
    loras = {"a": lora(0, 3), "b": lora(1, 3)}
    state = torch.get_rng_state()
    one = merge_loras(loras, [0.5, 0.5], MergeMethod.dare)
    assert torch.get_rng_state().equal(state)
    two = merge_loras(loras, [0.5, 0.5], MergeMethod.dare)
    assert all(one[key].equal(two[key]) for key in one)
    assert any(not one[key].equal(merge_loras(loras, [0.5, 0.5], MergeMethod.average)[key]) for key in one)


@pytest.mark.parametrize(
    ("second", "weights", "method", "density", "said"),
    [
        (lora(1, 3), [1.0], MergeMethod.concat, 0.5, "--weights 1: .*2 in all"),
        (lora(1, 3), [1.0, float("nan")], MergeMethod.concat, 0.5, "--weights 1,nan"),
        (lora(1, 3), [1.0, 0.0], MergeMethod.concat, 0.5, "--weights 1,0"),
        (lora(1, 3), [], MergeMethod.concat, 0.5, "--weights : .*2 in all"),
        (
            lora(1, 3),
            [1e39, 1.0],
            MergeMethod.concat,
            0.5,
            r"--weights 1e\+39,1: the merged LoRA is not finite",
        ),
        (
            lora(1, 2),
            [0.5, 0.5],
            MergeMethod.average,
            0.5,
            r"--method average: ranks differ \(a has 3, b has 2\).*concat",
        ),
        (lora(1, 3), [0.5, 0.5], MergeMethod.ties, 1.0, "--density 1"),
        (lora(1, 3), [0.5, 0.5], MergeMethod.concat, 0.3, "--density 0.3: concat keeps all"),
        (
            lora(1, 3, {"other": (2, 2)}),
            [0.5, 0.5],
            MergeMethod.concat,
            0.5,
            "b and a adapt different layers",
        ),
    ],
)
def test_what_cannot_be_merged_is_refused(
    second: dict[str, Tensor], weights: list[float], method: MergeMethod, density: float, said: str
) -> None:
    with pytest.raises(RequestError, match=said):
        merge_loras({"a": lora(0, 3), "b": second}, weights, method, density)


def test_a_merged_lora_draws_what_the_summed_weights_draw(pipeline_folder: Path, tmp_path: Path) -> None:
    """In plain diffusers: one pipeline with the merged LoRA, one whose weights had both products added."""
    from diffusers import StableDiffusion3Pipeline

    def load() -> StableDiffusion3Pipeline:
        pipeline = StableDiffusion3Pipeline.from_pretrained(
            pipeline_folder, text_encoder_3=None, tokenizer_3=None
        )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def draw(pipeline: StableDiffusion3Pipeline) -> Tensor:
        images = pipeline.to(torch.float64)(
            "a red cup", num_inference_steps=4, guidance_scale=1.0, output_type="pt", height=16, width=16,
            generator=torch.Generator().manual_seed(0),
        ).images  # fmt: skip
        return torch.as_tensor(images)

    plain, merged = load(), load()
    names = [
        name
        for name, module in plain.transformer.named_modules()
        if isinstance(module, torch.nn.Linear) and name.endswith(("to_q", "to_out.0", "add_k_proj"))
    ]
    shapes = {name: plain.transformer.get_submodule(name).weight.shape for name in names}
    layers = {name: (shape[1], shape[0]) for name, shape in shapes.items()}
    loras = {"a": lora(0, 2, layers), "b": lora(1, 3, layers)}
    state = merge_loras(loras, [0.05, 0.03])
    before = draw(plain)
    with torch.no_grad():
        for name in names:
            delta = 0.05 * product(loras["a"], name) + 0.03 * product(loras["b"], name)
            plain.transformer.get_submodule(name).weight.add_(delta)
    file = tmp_path / "pytorch_lora_weights.safetensors"
    tensor_files.write(file, state, header(state))
    merged.load_lora_weights(tmp_path)
    assert (draw(plain) - before).abs().max() > 1e-3
    torch.testing.assert_close(draw(merged), draw(plain), rtol=0, atol=1e-6)
