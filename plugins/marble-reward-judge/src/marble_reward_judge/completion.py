"""Read chat completions in the dialects of OpenAI-compatible servers."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

# Finish reasons of complete answers; servers have many for others, such as length and content_filter.
ENDED = (
    *("stop", "stop_sequence", "end_turn", "eos", "eos_token", "complete", "completed"),
    *("tool_calls", "function_call", "", "none"),
)
FAILED = ("error", "network_error", "insufficient_system_resource")  # worth another attempt
DEFAULT_STATUS = 500  # of an error inside a successful answer that names no status


class CompletionError(Exception):
    """A successful answer without text; `status` is that of an error in the text's place, if there is one."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Answer:
    """The text of an answer; `cut` tells whether the model did not end it, for the finish reason `reason`.

    `first` has the log-probabilities of the likeliest first tokens, by text; None if the server sent none.
    """

    text: str
    cut: bool
    first: Mapping[str, float] | None = None
    reason: str = field(default="length", compare=False)


def read_completion(body: bytes) -> Answer:
    """Return the text of the first choice.

    Content is a string or a list of parts, whose texts are joined. Separate parts of reasoning are ignored.
    An answer that was cut before its first word is empty.

    Args:
        body: JSON, UTF-8.

    Raises:
        CompletionError: the body is no chat completion, has no text, or holds an error.
    """
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise CompletionError("which is no chat completion") from error
    if not isinstance(document, dict):
        raise CompletionError("which is no chat completion")
    _check_error(document)
    choices = document.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(choice, dict) or not isinstance(message, dict):
        raise CompletionError("which is no chat completion")
    _check_error(choice)
    reason = str(choice.get("finish_reason"))
    cut = reason.lower() not in ENDED
    text = _text(message.get("content"))
    if text is None and not cut:
        refused = message.get("refusal")
        raise CompletionError(f"which refuses: {refused!r}" if refused else "which has no text")
    return Answer(text or "", cut, _first_tokens(choice.get("logprobs")), reason)


def _first_tokens(logprobs: Any) -> dict[str, float] | None:
    """Return the log-probabilities of the likeliest first tokens, None if the server sent none."""
    try:
        tokens = logprobs["content"][0]["top_logprobs"]
        return {str(token["token"]): float(token["logprob"]) for token in tokens} or None
    except (LookupError, TypeError, ValueError):
        return None


def _check_error(part: dict[str, Any]) -> None:
    """Raise the error that an answer or one of its choices holds, if there is one."""
    error = part.get("error")
    if part.get("object") == "error":
        error = part
    if not error and part.get("finish_reason") not in FAILED:
        return
    code = error.get("code") or error.get("status") if isinstance(error, dict) else None
    known = str(code).isascii() and str(code).isdigit() and 400 <= int(str(code)) < 600
    raise CompletionError("which is an error", int(str(code)) if known else DEFAULT_STATUS)


def _text(content: Any) -> str | None:
    """Return the text of a message's content, None if there is none."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return None
    parts = [
        part.get("text") if isinstance(part, dict) else part for part in content if not _is_thought(part)
    ]
    texts = [part for part in parts if isinstance(part, str)]
    return "".join(texts) if texts else None


def _is_thought(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") in ("thinking", "reasoning", "redacted_thinking")
