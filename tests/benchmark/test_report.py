"""The table of `marble bench`: whole numbers in 80 columns, whatever names are long."""

import io
import re

from rich.console import Console

from marble_cli.benchmark.report import BenchReport, Result
from marble_cli.benchmark.score import Score


def rendered(report: BenchReport) -> list[str]:
    out = io.StringIO()
    console = Console(file=out, width=80)
    for table in report.tables():
        console.print(table)
    return out.getvalue().splitlines()


def result(benchmark: str, target: str, rewards: list[str], value: float, failed: int = 0) -> Result:
    groups = {tag: Score(4, value / 2, 0.1, 0.2) for tag in ("single_object", "[two]")}
    scores = {reward: Score(8, value, value - 0.01, value + 0.01, groups) for reward in rewards}
    return Result(benchmark, {"target": target}, scores, dict.fromkeys(rewards, failed), {}, 1.0, True)


def test_many_targets_and_long_names_fit_80_columns() -> None:
    targets = ["base", "demo-0/step-00000070", "loras/pytorch_lora_weights.safetensors", "[last]"]
    names = {
        "geneval (changed: prompts=50, resolution=1024)": ["geneval"],
        "tiny": ["compressibility", "ocr"],
    }
    report = BenchReport(
        {},
        [{}, {}],
        [
            result(name, target, rewards, k + 0.5, failed=2 * (target == "[last]"))
            for name, rewards in names.items()
            for k, target in enumerate(targets)
        ],
    )
    lines = rendered(report)
    assert all(len(line) <= 80 for line in lines)
    text = "\n".join(lines)
    assert len(re.findall(r"\d\.\d{4} … \d\.\d{4}", text)) == 4 * 3
    assert len(re.findall(r"\b3\.5000\b", text)) == 3
    assert "[last]" in text
    assert "[two]" in text
    assert text.count("Failed on images") == 1


def test_what_has_no_score_is_a_dash() -> None:
    nothing = Result("tiny", {"target": "base"}, {"ocr": Score(0)}, {"ocr": 0}, {}, 1.0, False)
    assert rendered(BenchReport({}, [{}], [nothing]))[-1].split() == ["tiny", "ocr", "-"]
