"""The files that `marble rewards new` writes are a complete plugin: see `make_environment`."""

import json

from tests.e2e.environment import NEW, Environment


def test_a_new_plugin_passes_its_tests_and_all_checks(environment: Environment) -> None:
    def run(*arguments: object) -> str:
        assert environment.forks is not None
        # A fork has imported what pytest's other plugins would want to rewrite.
        variables = environment.variables() | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        program = environment.forks.start(arguments, variables, environment.folder)
        out, err = program.communicate(120)
        assert program.returncode == 0, out + err
        return out

    report = json.loads(run("-m", "marble_cli", "rewards", "check", NEW, "--json"))
    assert report["ok"]
    outcomes = {check["name"]: check["outcome"] for check in report["checks"]}
    assert set(outcomes.values()) == {"pass", "skipped"}
    assert [name for name, outcome in outcomes.items() if outcome == "skipped"] == ["same on another device"]
    own = run("-m", "pytest", "-p", "no:cacheprovider", "-W", "error", "marble-reward-blur-free")
    assert "passed" in own
    table = run("-m", "marble_cli", "rewards", "check", NEW, f"rewards.{NEW}.gamma=3")
    assert max(map(len, table.splitlines())) <= 80
    rewards = f"rewards=[{NEW},compressibility]"
    assert NEW in run("-m", "marble_cli", "train", "preset=tiny", rewards, "--dry-run")
