"""A question of EditReward's in the chat of its base model."""

from dataclasses import dataclass
from typing import Any

from transformers.processing_utils import ProcessorMixin

from marble_reward_editreward.prompt import PLACE, REWARD_TOKEN


def read_template(base: str, tokenizer: Any) -> str:
    """Return a base model's chat template: its processor's, else its tokenizer's, as transformers chooses.

    Args:
        base: a folder or a hub repository.
        tokenizer: loaded from there.

    Raises:
        ValueError: it has none.
    """
    files, _ = ProcessorMixin.get_processor_dict(base)
    template = files.get("chat_template") or tokenizer.chat_template
    if not isinstance(template, str):
        raise ValueError("it has no chat template")
    return template


@dataclass(frozen=True)
class Question:
    """The tokens of a chat that are the same for all edits, and the text that has the instruction's place."""

    tokenizer: Any
    before: list[int]  # the first picture
    between: list[int]
    after: list[int]  # the second one
    text: str

    def tokens(self, picture: list[int], instruction: str) -> list[int]:
        """Return the tokens of the question about an edit, up to the token at which the score is read.

        What the chat has after that token cannot change the score. Marks such as <|im_end|> are text in an
        instruction.

        Args:
            picture: the image tokens of one picture; both have as many.
            instruction: of the edit.
        """
        encode, text = self.tokenizer.encode, self.text.replace(PLACE, instruction)
        asked = encode(text, add_special_tokens=False, split_special_tokens=True)
        mark = self.tokenizer.convert_tokens_to_ids(REWARD_TOKEN)
        return [*self.before, *picture, *self.between, *picture, *self.after, *asked, mark]


def read_question(text: str, tokenizer: Any, template: str, config: Any) -> Question:
    """Put a question about two pictures into a chat.

    Args:
        text: of `prompt.py`.
        tokenizer: of the base model.
        template: its chat template.
        config: its configuration, which names the marks of a picture.

    Raises:
        ValueError: the template does not show two pictures before the text.
    """
    content = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": text}]
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], chat_template=template, tokenize=False
    )
    image, end = tokenizer.convert_ids_to_tokens([config.image_token_id, config.vision_end_token_id])
    parts = chat.partition(REWARD_TOKEN)[0].split(image)
    if len(parts) != 3 or end not in parts[2]:
        raise ValueError(f"its chat template shows {len(parts) - 1} pictures, not two before the text")
    after, asked = parts[2].split(end, 1)
    first, second, last = (
        tokenizer.encode(part, add_special_tokens=False) for part in (*parts[:2], after + end)
    )
    return Question(tokenizer, first, second, last, asked)
