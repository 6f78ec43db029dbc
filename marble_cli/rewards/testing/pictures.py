"""Pictures for rewards' own `examples`: drawn shapes, which any model can tell apart, a photograph and noise.

Reward plugins may import this module, as those that come with marble do.
"""

from importlib.resources import files
from random import Random

from PIL import Image, ImageDraw

SIDE = 448  # pixels of a drawn picture
COLORS = {"red": (214, 48, 49), "blue": (45, 96, 214)}
GROUND = (232, 232, 232)

Sample = tuple[Image.Image, str]


def draw_shape(color: str, shape: str) -> Image.Image:
    """Draw a shape in the middle of a picture: RGB, 448 x 448.

    Args:
        color: `red` or `blue`.
        shape: `circle` or `square`.
    """
    picture = Image.new("RGB", (SIDE, SIDE), GROUND)
    draw = ImageDraw.Draw(picture)
    box = (SIDE // 4, SIDE // 4, 3 * SIDE // 4, 3 * SIDE // 4)
    {"circle": draw.ellipse, "square": draw.rectangle}[shape](box, COLORS[color])
    return picture


def photograph() -> Image.Image:
    """Return a photograph of a cat's face: RGB, 451 x 300.

    It is Chelsea of scikit-image, which its photographer, Stefan van der Walt, published under CC0.
    """
    with (files("marble_cli") / "assets" / "examples" / "cat.jpg").open("rb") as file:
        return Image.open(file).convert("RGB")


def draw_noise() -> Image.Image:
    """Draw noise, the same in every call: RGB, 448 x 448."""
    return Image.frombytes("RGB", (SIDE, SIDE), Random(0).randbytes(3 * SIDE * SIDE))


def prompt_examples() -> list[tuple[Sample, Sample]]:
    """Return pairs (better, worse) for a reward of pictures for prompts.

    A red circle comes before a blue square of the same prompt, and before itself with the square's prompt.
    """
    prompt, other = "a red circle", "a blue square"
    circle = (draw_shape("red", "circle"), prompt)
    return [(circle, (draw_shape("blue", "square"), prompt)), (circle, (circle[0], other))]
