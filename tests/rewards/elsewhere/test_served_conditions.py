"""Conditions reach served rewards losslessly; older servers and clients, which know none, keep working."""

import json
from collections.abc import Callable
from itertools import chain
from typing import Any

import httpx
import pytest
import torch
from safetensors.torch import load, save

from marble_cli.config.schema import AspectConfig, RewardConfig
from marble_cli.errors import RewardError
from marble_cli.rewards.api import Batch, Declaration
from marble_cli.rewards.elsewhere import protocol
from marble_cli.rewards.scorer import Scores, open_scorer

Install = Callable[..., None]
At = Callable[..., RewardConfig]

IMAGES, BEFORE = torch.randint(
    0, 256, (2, 4, 3, 8, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)
ONE_EACH = [[picture] for picture in BEFORE]
METADATA: list[dict[str, Any]] = [{}, {"text": "a"}, {}, {"text": "b"}]


def scored(settings: RewardConfig, references: Any) -> Scores:
    with open_scorer({"mine": settings}, "cpu") as scorer:
        return scorer.submit(IMAGES, ["a"] * 4, METADATA, [""] * 4, references=references).result()


def test_conditions_survive_the_wire_and_are_optional() -> None:
    batch = Batch(IMAGES, ["a"] * 4, METADATA, BEFORE.to(memory_format=torch.channels_last))
    arrived = protocol.unpack_batch(protocol.pack_batch(batch))
    assert arrived.conditions is not None
    assert torch.equal(arrived.conditions, BEFORE)
    body = protocol.pack_batch(batch._replace(conditions=None))
    assert "conditions" not in load(body)  # as an older client sends it
    assert protocol.unpack_batch(body).conditions is None
    wrong = save({**load(body), "conditions": BEFORE[:, :, :4].contiguous()})
    with pytest.raises(
        ValueError, match=r"conditions are torch\.uint8 \[4, 3, 4, 12\]\. Expected the images'"
    ):
        protocol.unpack_batch(wrong)


def test_several_pictures_survive_the_wire_and_are_checked() -> None:
    """Each bit, each shape, and which image has which."""
    rows = [[BEFORE[0]], [BEFORE[1, :, :5], BEFORE[2, :, :, :7]], [BEFORE[3].mT, BEFORE[0]], [BEFORE[1]]]
    body = protocol.pack_batch(Batch(IMAGES, ["a"] * 4, METADATA, references=rows))
    arrived = protocol.unpack_batch(body).references
    assert arrived is not None
    assert [len(own) for own in arrived] == [1, 2, 2, 1]
    for got, given in zip(chain(*arrived), chain(*rows), strict=True):
        assert torch.equal(got, given)
    tensors = load(body)
    text = json.loads(tensors["text"].numpy().tobytes())
    for changed, said in (
        ([[[8, 12]]] * 3, "references are no bytes of at least one picture for each image"),
        ([[[8, 12]]] * 4, "the sizes of references do not fit their bytes"),
        ("x", "the sizes of references do not fit their bytes"),
    ):
        sizes = torch.tensor([*json.dumps({**text, "references": changed}).encode()], dtype=torch.uint8)
        pixels = tensors["references"][: 3 * 3 * 96] if len(changed) == 3 else tensors["references"]
        with pytest.raises(ValueError, match=said):
            protocol.unpack_batch(save({**tensors, "text": sizes, "references": pixels}))


def test_served_scores_of_several_pictures_equal_local_ones(install: Install, at: At) -> None:
    install(mine="condition_plugins:areas")
    rows = [[BEFORE[0]], [BEFORE[1, :, :5], BEFORE[2]], [BEFORE[3], BEFORE[0]], [BEFORE[1]]]
    here, there = scored(RewardConfig(plugin="mine"), rows), scored(at(), rows)
    assert there.values.tolist() == here.values.tolist() == [[96.0, 60.0 + 192, 96.0 + 192, 96.0]]


def test_an_older_server_declares_no_conditions_and_is_sent_none() -> None:
    row = protocol.declaration_to_json(Declaration("kept", takes_conditions=True, needs_conditions=True))
    assert protocol.declaration_from_json(row).needs_conditions
    older = {key: value for key, value in row.items() if not key.endswith("conditions")}
    assert not protocol.declaration_from_json(older).takes_conditions
    older = {key: value for key, value in row.items() if key != "takes_references"}
    assert [protocol.declaration_from_json(older).compares(count) for count in (0, 1, 2)] == [
        False,
        True,
        False,
    ]


def test_an_older_client_is_told_what_is_missing(install: Install, at: At) -> None:
    install(mine="condition_plugins:kept")
    url = at().url
    body = protocol.pack_batch(Batch(IMAGES, ["a"] * 4, METADATA))
    answer = httpx.post(f"{url}/score/mine", content=body)
    assert answer.status_code == 422
    assert answer.json()["error"]["kind"] == protocol.CONTRACT
    assert "Expected `conditions` in it" in answer.json()["error"]["message"]


@pytest.mark.parametrize("plugin", ["kept", "Signs"])
def test_served_scores_equal_local_ones(install: Install, at: At, plugin: str) -> None:
    """Two of four images for the reward with aspects."""
    install(mine=f"condition_plugins:{plugin}")
    aspects = {name: AspectConfig() for name in (("kept", "changed") if plugin == "Signs" else ())}
    here = scored(RewardConfig(plugin="mine", aspects=aspects), ONE_EACH)
    there = scored(at({"aspects": aspects}, aspects=aspects), ONE_EACH)
    torch.testing.assert_close(there.values, here.values, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(there.applicable, here.applicable)
    assert int(there.applicable.sum()) == 4


def test_a_contract_breach_of_the_server_ends_a_run(install: Install, at: At) -> None:
    """As if the client were of an older version: the declaration it read says nothing about conditions."""
    install(mine="condition_plugins:kept")
    settings = at()
    with open_scorer({"mine": settings}, "cpu") as scorer:
        worker = scorer.workers[0]
        object.__setattr__(worker.reward, "declaration", Declaration())
        with pytest.raises(RewardError, match="Expected `conditions` in it"):
            scorer.submit(IMAGES, ["a"] * 4, METADATA, [""] * 4, references=ONE_EACH).result()
