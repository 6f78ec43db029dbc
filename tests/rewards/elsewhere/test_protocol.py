"""What travels arrives as it left."""

import io
import struct
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

from marble_cli.config.schema import AspectConfig, RewardConfig
from marble_cli.errors import ConfigError
from marble_cli.rewards.api import Batch, Declaration
from marble_cli.rewards.elsewhere.isolated import request_line
from marble_cli.rewards.elsewhere.protocol import (
    authorization,
    declaration_from_json,
    declaration_to_json,
    pack_batch,
    pack_scores,
    unpack_batch,
    unpack_scores,
)
from marble_cli.rewards.elsewhere.serving import read_request
from marble_cli.rewards.testing.samples import sample_batch


def test_a_batch_survives_the_wire() -> None:
    batch = sample_batch(())
    prompts = ['"quoted"\n\t', "", "看板 🚦", *batch.prompts[3:]]
    batch = batch._replace(prompts=prompts, images=batch.images.to(memory_format=torch.channels_last))
    arrived = unpack_batch(pack_batch(batch))
    assert torch.equal(arrived.images, batch.images)
    assert arrived.images.dtype is torch.uint8
    assert arrived.prompts == prompts
    assert arrived.metadata == batch.metadata


def test_scores_survive_the_wire_to_the_last_bit() -> None:
    bits = np.random.default_rng(0).integers(0, 2**64, 4096, dtype=np.uint64)  # NaNs with payloads among them
    special = [0.0, -0.0, np.nan, np.inf, -np.inf, 5e-324, 0.1, 1 / 3, np.nextafter(1, 2)]
    bits = np.concatenate([bits, np.array(special).view(np.uint64)])
    arrived, reasons = unpack_scores(pack_scores({"": (torch.from_numpy(bits.view(np.float64)), {})}))[""]
    assert not reasons
    assert arrived.dtype is torch.float64
    assert (arrived.numpy().view(np.uint64) == bits).all()


@pytest.mark.parametrize(
    "declaration",
    [
        Declaration(),
        Declaration("a summary", ("text", "n"), (0.0, None), "MIT", "arXiv", groupwise=True),
        Declaration(range=(float("-inf"), 1.0)),
        Declaration(aspects=("a", "b"), ranges={"a": (0.0, None)}),
    ],
)
def test_a_declaration_survives_the_wire(declaration: Declaration) -> None:
    assert declaration_from_json(declaration_to_json(declaration)) == declaration


def batch_of(images: torch.Tensor, text: str) -> bytes:
    return save({"images": images, "text": torch.tensor(list(text.encode()), dtype=torch.uint8)})


PICTURE = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "no batch"),
        (b"\x80\x04pickle", "no batch"),
        (struct.pack("<Q", 1 << 60) + b"{}", "no batch"),
        (save({"scores": torch.zeros(1)}), "no batch"),
        (batch_of(PICTURE, "{"), "no batch"),
        (batch_of(PICTURE.float(), '{"prompts": [""], "metadata": [{}]}'), "torch.float32 [1, 3, 4, 4]"),
        (batch_of(PICTURE[:, :1], '{"prompts": [""], "metadata": [{}]}'), "[1, 1, 4, 4]"),
        (batch_of(PICTURE, '{"prompts": [1], "metadata": [{}]}'), "prompts are no list of strings"),
        (batch_of(PICTURE, '{"prompts": [""], "metadata": [3]}'), "metadata is no list of mappings"),
        (batch_of(PICTURE, '{"prompts": ["", ""], "metadata": [{}]}'), "1 images, 2 prompts and 1 rows"),
    ],
)
def test_foreign_bytes_are_refused(data: bytes, said: str) -> None:
    with pytest.raises(ValueError, match=said.replace("[", r"\[")):
        unpack_batch(data)


def test_the_reason_of_a_failure_survives_the_wire() -> None:
    scores = torch.tensor([torch.inf, 1.0, torch.inf])
    sent = {"style": (scores, {2: "ValueError: „warum“ \udce9"}), "a": (torch.ones(2), {})}
    arrived = unpack_scores(pack_scores(sent))
    assert arrived.keys() == {"style", "a"}
    assert arrived["style"][0].tolist() == scores.tolist()
    assert arrived["style"][1] == {2: "ValueError: „warum“ \\udce9"}
    assert arrived["a"][1] == {}


def test_a_single_score_travels_as_in_versions_without_aspects() -> None:
    scores = torch.tensor([1.0, torch.inf, torch.inf], dtype=torch.float64)
    old = {"scores": scores, "reason": torch.tensor([119], dtype=torch.uint8)}
    new = load(pack_scores({"": (scores, {1: "w"})}))
    assert all(torch.equal(new[name], tensor) for name, tensor in old.items())
    assert unpack_scores(save(old))[""][1] == {1: "w", 2: "w"}  # it does not say of which image
    assert declaration_from_json({"summary": "old", "range": [0, 1]}).aspects == ()


def test_foreign_scores_are_refused() -> None:
    with pytest.raises(ValueError, match="holds no scores"):
        unpack_scores(b"<html>")


def test_metadata_outside_json_is_refused() -> None:
    with pytest.raises(TypeError):
        pack_batch(Batch(PICTURE, [""], [{"what": object()}]))


def test_a_token_that_no_header_can_hold_is_refused() -> None:
    assert authorization("a b") == "Bearer a b"
    with pytest.raises(ConfigError, match="no space at its ends"):
        authorization("secret ")  # a header's value loses it on its way
    for token in ("schlüssel", "two\nlines"):
        with pytest.raises(ConfigError, match="printable ASCII"):
            authorization(token)


def test_the_request_to_an_isolated_server_keeps_aspects_and_options(monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"levels": {2: 0.5, 1.5: [None, True, -1e-7], "2": "1e5\ntrue", True: {}}, "b": 1e300, "a": "é"}
    aspects = {"style": AspectConfig(weight=2.0, sources=["text"], only_if="x > 1"), "light": AspectConfig()}
    settings = RewardConfig("mine", aspects=aspects, only_if="y > 1", options=options)
    line = request_line("mine", settings, "cpu", None, "x.mine")
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(line.encode())))
    rewards, keys, _, _ = read_request()
    assert keys == {"mine": "x.mine"}
    bare = {"style": AspectConfig(), "light": AspectConfig()}
    assert rewards["mine"] == RewardConfig("mine", aspects=bare, timeout=120.0, options=options)
    assert [*rewards["mine"].options] == [*options]
