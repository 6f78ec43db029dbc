"""Answers of judges: a score counts after the thinking, in a complete answer, and on the scale."""

import json
from typing import Any

import pytest
from marble_reward_judge.completion import Answer, CompletionError, read_completion
from marble_reward_judge.score import ScoreReader, UnreadableAnswerError, conclusion
from marble_reward_judge.unifiedreward import HIGH, LOW, PATTERN
from marble_reward_judge.unifiedreward2 import PATTERN as SECOND

BY_PATTERN = ScoreReader(r"Score:\s*(\S+)", None, 1, 5)
BY_KEY = ScoreReader(None, "score", 1, 5)
UNIFIED = ScoreReader(PATTERN, None, LOW, HIGH)
UNIFIEDS = [
    pytest.param(UNIFIED, "Final Score: {}", id="unifiedreward"),
    pytest.param(
        ScoreReader(SECOND.replace("{aspect}", "style"), None, LOW, HIGH),
        "Style Score (1-5): {}",
        id="unifiedreward2",
    ),
]
READERS = [
    pytest.param(BY_PATTERN, "Score: {}", id="pattern"),
    pytest.param(BY_KEY, '{{"score": {}}}', id="key"),
    pytest.param(UNIFIED, "Final Score: {}", id="unifiedreward"),
]
TAGS = [
    ("<think>", "</think>"),
    ("<Think>", "</THINK>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|thinking|>", "<|/thinking|>"),
    ("<think >", "</think >"),
    ("<think lang='en'>", "</think>"),
    ("<thoughts>", "</thoughts>"),
    ("<mm:think>", "</mm:think>"),
    ("<longcat_think>", "</longcat_think>"),
    ("<analysis>", "</analysis>"),
    ("<scratchpad>", "</scratchpad>"),
    ("<reflection>", "</reflection>"),
    ("<|channel>thought\n", "<channel|>"),
    ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
    (
        "<|channel|>analysis<|message|>Hm<|end|><|start|>assistant<|channel|>commentary<|message|>",
        "<|end|><|start|>assistant<|channel|>final<|message|>",
    ),
]


@pytest.mark.parametrize(("opening", "closing"), TAGS)
@pytest.mark.parametrize(("reader", "form"), READERS)
def test_a_score_inside_the_thinking_does_not_count(
    reader: ScoreReader, form: str, opening: str, closing: str
) -> None:
    draft, final = form.format(2), form.format(4)
    for cut in (True, False):
        with pytest.raises(UnreadableAnswerError, match="was cut" if cut else "has no score"):
            reader(Answer(f"{opening}{draft}, or is it", cut))
    with pytest.raises(UnreadableAnswerError, match="has no score"):
        reader(Answer(f"{opening}{draft}{closing}I cannot say.", False))
    assert reader(Answer(f"{opening}{draft}{closing}\n{final}", False)) == 4
    assert reader(Answer(f"{draft}{closing}\n{final}", False)) == 4  # the template opened it
    assert reader(Answer(f"{final}\n{opening}{draft}{closing}", False)) == 4


def test_an_empty_thought_is_none() -> None:
    assert BY_PATTERN(Answer("<think/>\n<think />Score: 4", False)) == 4


@pytest.mark.parametrize(("reader", "form"), READERS)
@pytest.mark.parametrize(
    "text", ["{}", "{}. But wait, the han", "<think>hm</think>{}", "<think>{}</think>", "{}</thi"]
)
def test_a_score_in_a_cut_answer_does_not_count(reader: ScoreReader, form: str, text: str) -> None:
    with pytest.raises(UnreadableAnswerError, match=r"was cut \(length\) before it had a score that counts"):
        reader(Answer(text.format(form.format(1)), True))


def test_conclusion_leaves_out_all_thinking() -> None:
    assert conclusion("a<think>b</think>c<think>d</think>e") == "ace"
    assert conclusion("<think>a<think>b</think>c</think>d") == "d"
    assert conclusion("a < b, 1 > 0") == "a < b, 1 > 0"
    with pytest.raises(ValueError, match="does not end"):
        conclusion("<think>a</think>b<think>c")


@pytest.mark.parametrize(
    "text",
    [
        'For {a red cube}: {"score": 3}',
        '{"score": 3} as {asked}',
        '{{"score": 3}}',
        '{ {"score": 3} }',
        '{the score is {"score": 3}}',
        'As in {"score": 1}, so {"score": 3}',
        '{"score": 3} {"note": "done"}',
        '[{"score": 3}]',
        '{"why": "a } and a { and \\"{\\"", "score": 3}',
        '{"why": "```json\\n{\\"score\\": 1}\\n```", "score": 3}',
        '```json\n{"score": 3}\n``` I left out {x}',
        '{"why": "two\nlines", "score": 3}',
        '{"score": } no: {"score": 3}',
        '{"parts": {"score": 1}, "score": 3}',
        '} {"score": 3} {',
        "{" * 2000 + '{"score": 3}',
        '<think>{"score": 1}</think>{"score": 3}',
    ],
)
def test_the_last_whole_object_with_the_key_counts(text: str) -> None:
    assert BY_KEY(Answer(text, False)) == 3


@pytest.mark.parametrize(
    "text",
    [
        '{"why": "he said "no"", "part": {"score": 1}, "score": 3}',  # no JSON, and the part is not the whole
        '{"part": {"score": 1}',
        '{"aspects": {"score": 1}}',
        "{'score': 3}",
        "{score: 3}",
        '{"score": 3',
        '"score": 3}',
        '{"score": [3]}',
        '{"score": {"value": 3}}',
        "[" * 100_000 + '{"score":' * 100_000,
    ],
)
def test_text_without_an_object_with_the_key_has_no_score(text: str) -> None:
    with pytest.raises(UnreadableAnswerError, match="has no score"):
        BY_KEY(Answer(text, False))


@pytest.mark.parametrize(
    ("written", "score"),
    [
        ("4", 4),
        (" 4.5 ", 4.5),
        ("4/5", 4),
        ("4 / 5", 4),
        ("4.0/5.0", 4),
        ("4 out of 5", 4),
        ("+4", 4),
        ("4.", 4),
        ("40e-1", 4),
    ],
)
def test_a_score_as_text_is_read(written: str, score: float) -> None:
    assert BY_KEY(Answer(json.dumps({"score": written}), False)) == score


@pytest.mark.parametrize(
    "written",
    [
        "8/10",
        "4/10",
        "4/4",
        "80%",
        "4 of 5",
        "4-5",
        "4,5",
        "four",
        "",
        "1_0",
        "４",
        "٤",
        "nan",
        "inf",
        "0x4",
        "4 5",
        "4/0",
    ],
)
def test_text_on_another_scale_is_refused(written: str) -> None:
    with pytest.raises(UnreadableAnswerError, match="has no score"):
        BY_KEY(Answer(json.dumps({"score": written}), False))


def test_percentages_need_a_scale_that_ends_at_a_hundred() -> None:
    reader = ScoreReader(None, "score", 0, 100)
    assert reader(Answer('{"score": "80%"}', False)) == 80
    assert reader(Answer('{"score": "80/100"}', False)) == 80


@pytest.mark.parametrize(("reader", "form"), UNIFIEDS)
@pytest.mark.parametrize(
    "written",
    [
        *("4/10", "4 / 10", "4 out of 10", "4 (out of 10)", "**4** / 10", "4 of 5", "4/", "4 out of ten"),
        *("4%", "4 %", "2,5", "3-4", "3 - 4", "3\u20134", "3 to 4", "3:4", "1e1", "4th"),
    ],
)
def test_unifiedreward_refuses_more_than_a_score_on_its_scale(
    reader: ScoreReader, form: str, written: str
) -> None:
    with pytest.raises(UnreadableAnswerError, match="has no score|the score 10 is not on the scale"):
        reader(Answer(form.format(written), False))


@pytest.mark.parametrize(("reader", "form"), UNIFIEDS)
@pytest.mark.parametrize(
    "written",
    [
        "4",
        "** 4**",
        "4.",
        "4, as",
        "4 - good",
        "4\n- 2 cubes",
        "4/5",
        "4 / 5.0",
        "4 out of 5",
        "4 (out of 5).",
        "40e-1",
    ],
)
def test_unifiedreward_reads_a_score_in_prose(reader: ScoreReader, form: str, written: str) -> None:
    assert reader(Answer(form.format(written), False)) == 4


def test_a_power_of_ten_is_read_alike_by_key_and_by_pattern() -> None:
    for pattern, key, text in ((PATTERN, None, "Final Score: 1e1"), (None, "score", '{"score": "1e1"}')):
        assert ScoreReader(pattern, key, 0, 10)(Answer(text, False)) == 10


def completion(message: Any, **choice: Any) -> bytes:
    return json.dumps({"choices": [{"message": message, "finish_reason": "stop", **choice}]}).encode()


@pytest.mark.parametrize(
    "message",
    [
        {"content": "Score: 3"},
        {"content": "Score: 3", "reasoning_content": "Score: 1"},
        {"content": "Score: 3", "reasoning": "Score: 1", "refusal": None},
        {"content": [{"type": "text", "text": "Score: "}, {"type": "text", "text": "3"}]},
        {"content": [{"type": "output_text", "text": "Score: 3"}]},
        {"content": ["Score: 3"]},
        {
            "content": [
                {"type": "thinking", "thinking": [{"type": "text", "text": "Score: 1"}]},
                {"type": "text", "text": "Score: 3"},
            ]
        },
        {"content": [{"type": "reasoning", "text": "Score: 1"}, {"type": "text", "text": "Score: 3"}]},
    ],
)
def test_every_dialect_of_content_is_read(message: dict[str, Any]) -> None:
    assert read_completion(completion(message)) == Answer("Score: 3", False)


@pytest.mark.parametrize(
    "reason",
    [
        "length",
        "LENGTH",
        "max_tokens",
        "MAX_TOKENS",
        "model_length",
        "content_filter",
        "abort",
        "SAFETY",
        "refusal",
        "sensitive",
        "x",
    ],
)
@pytest.mark.parametrize("content", ["Score: 3", None, []])
def test_finish_reasons_of_cut_answers(reason: str, content: Any) -> None:
    answer = read_completion(completion({"content": content}, finish_reason=reason))
    assert answer == Answer(content or "", True)
    assert answer.reason == reason


@pytest.mark.parametrize(
    "reason", ["stop", "STOP", "eos_token", "end_turn", "COMPLETE", "tool_calls", "", None]
)
def test_finish_reasons_of_complete_answers(reason: str | None) -> None:
    assert not read_completion(completion({"content": "Score: 3"}, finish_reason=reason)).cut


@pytest.mark.parametrize(
    ("body", "message", "status"),
    [
        (b"", "no chat completion", None),
        (b"\xff\xfe", "no chat completion", None),
        (b"[]", "no chat completion", None),
        (b"null", "no chat completion", None),
        (b"[" * 200_000, "no chat completion", None),
        (b'{"choices": []}', "no chat completion", None),
        (b'{"choices": null}', "no chat completion", None),
        (b'{"choices": [null]}', "no chat completion", None),
        (b'{"choices": [{"message": null}]}', "no chat completion", None),
        (completion({"content": None}), "no text", None),
        (completion({"content": 3}), "no text", None),
        (completion({"content": []}), "no text", None),
        (completion({"content": None, "reasoning_content": "Score: 3"}), "no text", None),
        (completion({"content": None, "refusal": "I will not"}), "refuses: 'I will not'", None),
        (b'{"error": {"message": "busy", "code": 429}}', "an error", 429),
        (b'{"error": {"message": "busy", "code": "503"}}', "an error", 503),
        (b'{"error": {"message": "busy", "code": "rate_limit"}}', "an error", 500),
        (b'{"error": "busy"}', "an error", 500),
        (b'{"error": {"code": 401}, "choices": []}', "an error", 401),
        (b'{"object": "error", "message": "too long", "code": 400}', "an error", 400),
        (b'{"object": "error", "message": "too long", "code": 40303}', "an error", 500),
        (completion({"content": "Score: 3"}, error={"code": 502}), "an error", 502),
        (completion({"content": "Score: 3"}, finish_reason="error"), "an error", 500),
        (completion({"content": "Score: 3"}, finish_reason="network_error"), "an error", 500),
    ],
)
def test_a_body_without_an_answer_is_an_error(body: bytes, message: str, status: int | None) -> None:
    with pytest.raises(CompletionError, match=message) as raised:
        read_completion(body)
    assert raised.value.status == status


def test_an_error_of_null_is_no_error() -> None:
    document = {"error": None, **json.loads(completion({"content": "Score: 3"}))}
    assert read_completion(json.dumps(document).encode()) == Answer("Score: 3", False)
