"""Composing and balancing import no model library, so that light commands start fast."""

import subprocess
import sys


def imported(module: str) -> set[str]:
    """The top-level packages that a fresh interpreter holds after importing `module`."""
    code = f"import sys, {module}; print(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    return set(
        subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, text=True
        ).stdout.split()
    )


def test_compose_imports_no_model_library() -> None:
    assert not imported("marble_cli.config.compose") & {
        "torch",
        "diffusers",
        "transformers",
        "peft",
        "scipy",
        "wandb",
    }


def test_balance_imports_no_model_library() -> None:
    packages = imported("marble_cli.balance")
    assert "torch" in packages
    assert not packages & {"diffusers", "transformers", "peft", "wandb"}
