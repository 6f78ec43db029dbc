"""The ranks of one machine train with one server of an isolated reward."""

from collections.abc import Callable
from pathlib import Path

import pytest

from marble_cli.config.compose import dump
from marble_cli.config.schema import RunConfig
from marble_cli.metrics.jsonl import read_rows
from tests.distributed.processes import ends, forks, job


def has_ended(pid: int) -> bool:
    """Whether a process has ended; the system may have yet to remove it."""
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"


def test_two_ranks_share_a_server_that_ends_with_the_run(
    run_config: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("OMP_NUM_THREADS", "1"), ("TMPDIR", str(tmp_path / "temporary"))):
        monkeypatch.setenv(name, value)
    (tmp_path / "temporary").mkdir()
    file, program = tmp_path / "config.yaml", Path(__file__).with_name("shared_reward_ranks.py")
    reward = "+rewards.apart={plugin: colorfulness, isolated: true}"
    file.write_text(dump(run_config("rewards=[colorfulness]", reward, f"run.dir={tmp_path / 'run'}")))
    forks().write_python(tmp_path / "python")
    done = ends(job([(program, file, tmp_path / "python")] * 2))
    assert [code for code, _, _ in done] == [0, 0], "\n".join(err for _, _, err in done)
    servers = [int(pid) for _, out, _ in done for pid in out.split("started")[1].split()]
    assert len(servers) == 1
    assert has_ended(servers[0])
    assert not list((tmp_path / "temporary").glob("marble-rewards-*"))
    for row in read_rows(tmp_path / "run" / "metrics.jsonl"):
        assert row["reward/apart/mean"] == pytest.approx(row["reward/colorfulness/mean"], rel=1e-12)
        assert row["reward/apart/failed"] == 0
