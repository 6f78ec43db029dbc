"""Judges with several scores per picture, and scores by the probabilities of an answer's first token."""

import hashlib
import json
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import torch
from marble_reward_judge import unifiedreward2
from marble_reward_judge.completion import Answer
from marble_reward_judge.judge import Judge
from marble_reward_judge.likelihood import ExpectedValue
from marble_reward_judge.score import UnreadableAnswerError
from marble_reward_judge.unifiedreward2 import UnifiedReward2

from marble_cli.rewards.api import Declaration

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


ANSWERS = [
    "Alignment Score (1-5): 2.5\nCoherence Score (1-5): 3.125000015258789\n**Style Score (1-5):** 4/5",
    "Alignment Score (1-5): 0.5\nCoherence Score (1-5): 1\nStyle Score (1-5): 7",  # not on the scale
    "alignment score (1-5): 5\nStyle Score: 3",  # other words
]


def test_unifiedreward2_scores_three_aspects_in_one_answer(server: "Server") -> None:
    """A score that is missing or not on the scale has failed, and that score alone."""
    server.reply = lambda body, _: server.says(ANSWERS[int(server_prompt(body)[1:-1])])
    scores: Any = UnifiedReward2(server.url)(PICTURES, ["0", "1", "2"])
    assert len(server.bodies) == 3
    assert tuple(scores) == UnifiedReward2.aspects
    rows = [[None if isinstance(score, Exception) else score for score in own] for own in scores.values()]
    assert rows == [[0.5, None, 1.0], [pytest.approx(0.625, abs=1e-6), 0.2, None], [0.8, None, None]]
    assert {type(own[2]) for own in (scores["coherence"], scores["style"])} == {UnreadableAnswerError}
    assert Declaration.of(UnifiedReward2(server.url)) == Declaration.of(UnifiedReward2)


def test_question_of_unifiedreward2_is_the_published_one() -> None:
    """Compares the SHA-256 of the text in point_score_ACS_image_generation.py, with {prompt} in its place."""
    digest = hashlib.sha256(unifiedreward2.QUESTION.encode()).hexdigest()
    assert digest == "75d52d3ae771f89b682db3b74cdaca1c7bde373a39162bc1c9dabd63cdc9b851"


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
        ({"answers": {"yes": "1", "no": "0"}}, "expected finite numbers"),
        ({"answers": {"yes": None, "no": 0}}, "expected finite numbers"),
        ({"answers": ["yes", "no"]}, r"answers=\['yes', 'no'\]: expected a mapping"),
        ({"answers": {"1": 1, "2": 2, "10": 10}}, "'10' begins with '1'"),
        ({"answers": YES_NO, "aspects": ["style"]}, "does not ask for 'style': expected {aspect}"),
        ({"pattern": None, "aspects": ["style"]}, "does not ask for 'style': expected style"),
        ({"template": "style: {prompt}", "aspects": ["style"]}, r"expected {aspect} where the name of each"),
        (
            {"aspects": ["style"], "pattern": "{aspect}: (.)", "json_key": "a"},
            "one of pattern .* and json_key",
        ),
    ],
)
def test_wrong_options_are_refused(judge: Callable[..., Judge], options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        judge("http://127.0.0.1:1/v1", **options)
