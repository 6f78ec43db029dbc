"""A file that cannot grow is written whole or not at all."""

import logging
from pathlib import Path

import pytest

from marble_cli.errors import StorageError
from marble_cli.files import write_whole
from marble_cli.metrics.jsonl import MetricsLog, read_rows
from marble_cli.run.recorder import LogFile
from tests.run.disks import files_of_at_most


def test_metrics_row_is_written_completely_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    rows = MetricsLog(file)
    rows.write({"step": 1, "phase": "train"})
    before = file.read_bytes()
    with files_of_at_most(len(before) + 9), pytest.raises(StorageError, match="File too large.*It needs"):
        rows.write({"step": 2, "phase": "train"})
    assert file.read_bytes() == before
    rows.write({"step": 2, "phase": "train"})
    rows.close()
    assert [row["step"] for row in read_rows(file)] == [1, 2]


def test_rewritten_file_keeps_its_content_if_writing_fails(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    write_whole(file, "a: 1\n")
    with files_of_at_most(9), pytest.raises(StorageError, match="config.yaml could not be written"):
        write_whole(file, "a: 123456789\n")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("config.yaml", "a: 1\n")]


def test_full_log_warns_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = LogFile(tmp_path / "log.txt")
    logger = logging.getLogger("marble")
    logger.addHandler(log)
    try:
        logger.warning("one")
        with files_of_at_most(6):
            logger.warning("two")
            logger.warning("three")
        logger.warning("four")
    finally:
        logger.removeHandler(log)
        log.close()
    assert (tmp_path / "log.txt").read_text() == "one\nfour\n"
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 5
    assert sum("log.txt could not be written: File too large" in line for line in told) == 1
    assert any("Until there is space, lines are shown here only." in line for line in told)
