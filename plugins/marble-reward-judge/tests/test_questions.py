"""Rewards that ask several questions about a picture: Soft-TIFA of GenEval 2, and DPG-Bench."""

import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pytest
import torch
from marble_reward_judge.dpg import DpgBench, share
from marble_reward_judge.softtifa import SoftTifa

if TYPE_CHECKING:
    from conftest import Server

BLACK, WHITE = torch.zeros(3, 8, 8, dtype=torch.uint8), torch.full((3, 8, 8), 255, dtype=torch.uint8)


def completion(text: str, tokens: Mapping[str, float] | None = None) -> tuple[int, dict[str, str], str]:
    """Return an answer of one token with these probabilities of its alternatives."""
    choice: dict[str, Any] = {"message": {"content": text}, "finish_reason": "length" if tokens else "stop"}
    if tokens is not None:
        top = [{"token": token, "logprob": math.log(share)} for token, share in tokens.items()]
        choice["logprobs"] = {"content": [{"token": text, "logprob": -0.1, "top_logprobs": top}]}
    return 200, {}, json.dumps({"choices": [choice]})


def test_soft_tifa_is_the_geometric_mean_of_the_right_answers_probabilities(server: "Server") -> None:
    tokens = {
        "How many cows are in the image? Answer in one word.": {"THREE": 0.5, " Three": 0.1, "3": 0.2},
        "Are the cows white? Answer in one word.": {"Yes": 0.25, " yes": 0.15, "No": 0.6, "yesterday": 0.1},
        "Is there a hat? Answer in one word.": {"Yes": 0.3, "No": 0.7},
    }  # fmt: skip
    server.reply = lambda body, _: completion("x", tokens[body["messages"][0]["content"][1]["text"]])
    cows = {"vqa_list": [["How many cows are in the image?", "three"], ["Are the cows white?", "Yes"]]}
    hat = {"vqa_list": [["Is there a hat?", "Yes"]]}
    reward = SoftTifa(server.url, "a-judge")
    first, second = reward(torch.stack([BLACK, WHITE]), ["", ""], [cows, hat])
    assert first == pytest.approx(math.sqrt(0.8 * 0.4))
    assert second == pytest.approx(0.3)
    sent = server.bodies[0]
    assert (sent["logprobs"], sent["top_logprobs"], sent["max_tokens"], sent["temperature"]) == (
        True,
        20,
        1,
        0,
    )


@pytest.mark.parametrize("tokens", [None, {}])
def test_soft_tifa_without_log_probabilities_fails(
    server: "Server", tokens: Mapping[str, float] | None
) -> None:
    server.reply = lambda body, _: completion("Yes", tokens)
    (score,) = SoftTifa(server.url)(BLACK[None], [""], [{"vqa_list": [["Is it black?", "Yes"]]}])
    assert "no log-probabilities" in str(score)


def test_a_question_counts_as_no_if_one_that_it_depends_on_does() -> None:
    """As the published script counts, which goes through the questions in order."""
    assert share([True, True, True, False], ["1", "2", "3", "4"], ["0", "1", "1,2", "0"]) == 0.75
    assert share([False, True, True, True], ["1", "2", "3", "4"], ["0", "1", "2", "0"]) == 0.25
    assert share([True, True, False], ["1", "2", "3"], ["0", "3", "0"]) == pytest.approx(1 / 3)
    with pytest.raises(KeyError):
        share([True], ["1"], ["7"])


ROW = {
    "question_natural_language": ["Is there a cat?", "Is the cat red?", "Is it night?"],
    "proposition_id": ["1", "2", "3"],
    "dependency": ["0", "1", "0"],
}


def test_dpg_is_the_share_of_yes(server: "Server") -> None:
    answers = {"Is there a cat?": "No.", "Is the cat red?": "yes", "Is it night?": "<think>no</think>Yes!"}
    server.reply = lambda body, _: completion(
        answers[body["messages"][0]["content"][1]["text"].removesuffix(" Answer yes or no.")]
    )
    assert DpgBench(server.url)(BLACK[None], ["a red cat"], [ROW]) == [pytest.approx(1 / 3)]
    answers["Is it night?"] = "perhaps"
    (score,) = DpgBench(server.url)(BLACK[None], ["a red cat"], [ROW])
    assert "neither yes nor no: 'perhaps'" in str(score)


@pytest.mark.parametrize(
    ("kind", "good", "bad", "message"),
    [
        (SoftTifa, {"vqa_list": [["Is it?", "yes"]]}, {"vqa_list": []}, "vqa_list=[]: expected pairs"),
        (SoftTifa, {"vqa_list": [["Is it?", "yes"]]}, {"vqa_list": [["Is it?"]]}, "[['Is it?']]: expected"),
        (DpgBench, ROW, {key: [] for key in ROW}, "0 under dependency: expected one entry"),
        (DpgBench, ROW, ROW | {"dependency": ["0"]}, "3 under proposition_id, 1 under dependency: expected"),
        (DpgBench, ROW, ROW | {"dependency": ["0", "7", "0"]}, "dependency=['0', '7', '0']: expected"),
    ],
)
def test_malformed_metadata_fails_its_picture_alone(
    server: "Server", kind: Any, good: dict[str, Any], bad: dict[str, Any], message: str
) -> None:
    server.reply = lambda body, _: completion("yes", {"yes": 1.0})
    first, second = kind(server.url)(torch.stack([BLACK, WHITE]), ["a hat", "a cat"], [bad, good])
    assert str(first).startswith("metadata of the prompt 'a hat': ")
    assert message in str(first)
    assert second == 1.0


def test_one_question_without_an_answer_fails_its_picture_alone(server: "Server") -> None:
    server.reply = lambda body, _: (
        (400, {}, "no") if "red" in body["messages"][0]["content"][1]["text"] else completion("yes")
    )
    plain = {key: value[:1] for key, value in ROW.items()}
    first, second = DpgBench(server.url)(torch.stack([BLACK, BLACK]), ["", ""], [ROW, plain])
    assert "answered 400" in str(first)
    assert second == 1.0
