"""Judges with several scores per picture, and scores by the probabilities of an answer's first token."""

import json
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import torch
from marble_reward_judge.completion import Answer
from marble_reward_judge.judge import Judge
from marble_reward_judge.likelihood import ExpectedValue
from marble_reward_judge.score import UnreadableAnswerError

if TYPE_CHECKING:
    from conftest import Server

PICTURES = torch.zeros(3, 3, 8, 8, dtype=torch.uint8)
YES_NO = {"yes": 1, "no": 0}


def logged(**shares: float) -> dict[str, float]:
    return {token: math.log(share) for token, share in shares.items()}


def test_one_answer_has_the_scores_of_all_aspects(server: "Server", judge: Callable[..., Judge]) -> None:
    answers = ['{"style": 5, "alignment": 10}', '{"style": 1}', "no idea"]
    server.reply = lambda body, _: server.says(answers[int(server_prompt(body))])
    ask = judge(template="Rate style and alignment: {prompt}", pattern=None, aspects=("alignment", "style"))
    scores: Any = ask(PICTURES, ["0", "1", "2"])
    assert len(server.bodies) == 3
    assert list(scores) == ["alignment", "style"]
    assert scores["alignment"][0] == 1.0
    assert scores["style"][:2] == [0.5, 0.1]
    failed = [*scores["alignment"][1:], scores["style"][2]]
    assert all(isinstance(score, UnreadableAnswerError) for score in failed)


def server_prompt(body: dict[str, Any]) -> str:
    text: str = body["messages"][0]["content"][1]["text"]
    return text.split()[-1]


def test_the_score_is_the_expected_value_over_the_first_token(
    server: "Server", judge: Callable[..., Judge]
) -> None:
    shares = {"a": {"4": 0.2, " 4": 0.1, "five": 0.3, "1": 0.2, "x": 0.2}, "b": {"5": 1.0}}

    def reply(body: dict[str, Any], _: int) -> tuple[int, dict[str, str], str]:
        top = [{"token": t, "logprob": math.log(p)} for t, p in shares[server_prompt(body)].items()]
        content = [{"token": "4", "logprob": -0.1, "top_logprobs": top}]
        choice = {"message": {"content": "4"}, "finish_reason": "length", "logprobs": {"content": content}}
        return 200, {}, json.dumps({"choices": [choice]})

    server.reply = reply
    ask = judge(
        template="{aspect}, 1 to 5: {prompt}",
        pattern=None,
        answers={str(i): i for i in range(1, 6)},
        aspects=["style", "light"],
    )
    scores: Any = ask(PICTURES[:2], ["a", "b"])
    expected = (0.3 * 4 + 0.3 * 5 + 0.2 * 1) / 0.8  # on the scale from 1 to 5, mapped to 0 to 1
    for aspect in ("style", "light"):
        assert scores[aspect] == pytest.approx([(expected - 1) / 4, 1.0], abs=1e-12)
    assert len(server.bodies) == 4
    assert {server.question(i).split(",")[0] for i in range(4)} == {"style", "light"}
    body = server.bodies[0]
    assert (body["logprobs"], body["top_logprobs"], body["max_tokens"]) == (True, 20, 1)


def test_text_counts_only_if_it_is_allowed_to() -> None:
    with pytest.raises(UnreadableAnswerError, match="has no log-probabilities"):
        ExpectedValue(YES_NO, allow_text=False)(Answer("Yes", False))
    read = ExpectedValue(YES_NO, allow_text=True)
    assert read(Answer(" Yes.", False)) == 1.0
    assert read(Answer("no", False, logged(Yes=0.75, no=0.25))) == pytest.approx(0.75)
    with pytest.raises(UnreadableAnswerError, match="has no log-probabilities"):
        read(Answer("perhaps", False))


def test_an_answer_that_is_probably_another_one_has_failed() -> None:
    with pytest.raises(
        UnreadableAnswerError, match=r"'Well' is one of yes, no with a probability of 0.4 only"
    ):
        ExpectedValue(YES_NO, allow_text=True)(Answer("Well", False, logged(Well=0.6, Yes=0.3, no=0.1)))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"answers": {"yes": 1}}, "at least two different answers"),
        ({"answers": {"yes": 1, " Yes": 0}}, "at least two different answers"),
        ({"answers": {"yes": 1, "no": 1}}, "not all of them equal"),
        ({"answers": {"1": 1, "2": 2, "10": 10}}, "'10' begins with '1'"),
        ({"answers": YES_NO, "aspects": ["style"]}, "does not ask for 'style': expected {aspect}"),
        ({"pattern": None, "aspects": ["style"]}, "does not ask for 'style': expected style"),
        ({"template": "style: {prompt}", "aspects": ["style"]}, "no pattern of their own"),
    ],
)
def test_wrong_options_are_refused(judge: Callable[..., Judge], options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        judge("http://127.0.0.1:1/v1", **options)
