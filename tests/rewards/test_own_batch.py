"""Each reward has a batch of its own, and a prompt whose metadata is of another type fails alone."""

import copy
import logging
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch

from marble_cli.config.schema import RewardConfig
from marble_cli.rewards.api import Batch
from marble_cli.rewards.call_thread import copy_batch
from marble_cli.rewards.scorer import Scorer, Scores, open_scorer

Install = Callable[..., None]
KNOWN = {
    "text": "47",
    "include": [{"class": "cup", "count": 2, "box": {"at": [1.0, 2.0]}}],
    "tags": ["a", ["b"]],
}
HERE = f"{__name__}:"
seen: list[Any] = []


def touch(images: Any, prompts: Any, metadata: Any) -> None:
    images.zero_()
    prompts[0] = "changed"
    prompts.append("more")
    metadata[0]["text"] = "changed"
    metadata[0]["include"][0]["box"]["at"].append(3.0)
    metadata[0]["include"][0].pop("count")
    metadata[0]["tags"][1].clear()
    metadata[0]["new"] = 1
    metadata.pop()


class Touches:
    """Writes on all that it is given; the first call fails then."""

    calls = 0

    def __call__(self, images: Any, prompts: Any, metadata: Any) -> list[float]:
        seen.append(copy.deepcopy((images, prompts, metadata)))
        count = len(images)
        touch(images, prompts, metadata)
        Touches.calls += 1
        if Touches.calls == 1:
            raise RuntimeError("once more")
        return [1.0] * count


def looks(images: Any, prompts: Any, metadata: Any) -> list[float]:
    """Notes what it is given."""
    seen.append(copy.deepcopy((images, prompts, metadata)))
    return [1.0] * len(images)


def grows(images: Any, metadata: Any) -> list[float]:
    """Adds to a list of each prompt; images of one prompt have lists of their own."""
    for row in metadata:
        row["tags"].append("c")
    return [float(len(row["tags"])) for row in metadata]


def test_changes_of_a_reward_stay_in_its_copy(install: Install) -> None:
    install(touches=f"{HERE}Touches", looks=f"{HERE}looks")
    images, prompts = (
        torch.arange(6, dtype=torch.uint8)[:, None, None, None].expand(6, 3, 4, 4).contiguous(),
        [*"abcdef"],
    )
    metadata = [copy.deepcopy(KNOWN) for _ in prompts]
    expected = copy.deepcopy((images, prompts, metadata))
    seen.clear()
    Touches.calls = 0
    with open_scorer({name: RewardConfig(plugin=name) for name in ("touches", "looks")}, "cpu") as scorer:
        for _ in range(2):
            assert scorer.submit(images, prompts, metadata, [""] * 6).result().applicable.all()
    assert len(seen) == 5  # an attempt more
    for given in (*seen, (images, prompts, metadata)):
        assert torch.equal(given[0], expected[0])
        assert given[1:] == expected[1:]


def test_images_of_one_prompt_do_not_share_its_metadata(install: Install) -> None:
    install(grows=f"{HERE}grows")
    one = copy.deepcopy(KNOWN)
    with open_scorer({"grows": RewardConfig(plugin="grows")}, "cpu") as scorer:
        scores = scorer.submit(
            torch.zeros(3, 3, 4, 4, dtype=torch.uint8), ["a"] * 3, [one] * 3, [""] * 3
        ).result()
    assert scores.values.tolist() == [[3, 3, 3]]
    assert one == KNOWN


def test_a_copy_is_equal_and_shares_nothing() -> None:
    row = KNOWN | {"nan": float("nan"), "set": {1}, "tuple": ([1],), "none": None, "array": torch.zeros(2)}
    batch = Batch(torch.zeros(1, 3, 2, 2, dtype=torch.uint8), ["a"], [row])
    [copied] = copy_batch(batch).metadata
    assert repr(copied) == repr(row)
    for key in ("include", "tags", "set", "array"):
        assert copied[key] is not row[key]
    assert copied["tuple"][0] is not row["tuple"][0]  # type: ignore[index]


class Reads:
    """Length of the text, times a whole number."""

    requires: ClassVar = {"text": str, "times": int | None}

    def __call__(self, metadata: Any) -> list[float]:
        return [float(len(row["text"]) * len(range(row.get("times", 1)))) for row in metadata]


def score(scorer: Scorer, metadata: list[dict[str, Any]]) -> Scores:
    n = len(metadata)
    prompts = [f"prompt {i}" for i in range(n)]
    return scorer.submit(torch.zeros(n, 3, 4, 4, dtype=torch.uint8), prompts, metadata, [""] * n).result()


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"text": 13}, "metadata text=13: expected a string"),
        ({"text": None}, "metadata text=None: expected a string"),
        ({"text": ["a"]}, "metadata text=['a']: expected a string"),
        ({"text": "a", "times": 2.5}, "metadata times=2.5: expected a whole number or null"),
        ({"text": "a", "times": "2"}, "metadata times='2': expected a whole number or null"),
    ],
)
def test_metadata_of_another_type_fails_its_image_alone(
    install: Install, caplog: pytest.LogCaptureFixture, bad: dict[str, Any], said: str
) -> None:
    install(reads=f"{HERE}Reads")
    metadata = [{"text": "abc", "times": 2.0}, bad, {}, {"text": "abcd"}, bad]
    with open_scorer({"mine": RewardConfig(plugin="reads", max_failed=0.6)}, "cpu") as scorer:
        scores = score(scorer, metadata)
        scorer.check(scores)
        assert scorer.workers[0].error == f"prompt 'prompt 1': {said}"
        nothing = score(scorer, [bad])
    assert scores.values[0].nan_to_num(-1).tolist() == [6, -1, -1, 4, -1]
    assert scores.failed.tolist() == [[False, True, False, False, True]]
    assert scores.applicable.tolist() == [[True, False, False, True, False]]
    assert nothing.failed.all()
    assert (
        f"reward mine failed on 2 images: prompt 'prompt 1': {said}; prompt 'prompt 4': {said}" in caplog.text
    )
    assert repr(metadata[0]["times"]) == "2.0"


@pytest.fixture(autouse=True)
def _marble_logs(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other tests may have taken the `marble` logger's lines elsewhere."""
    monkeypatch.setattr(logging.getLogger("marble"), "propagate", True)
    caplog.set_level(logging.WARNING, "marble")
