"""Make small real models for the whole suite: a random Stable Diffusion 3 pipeline, prompts and runs."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub is imported: no test reaches for the network
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of numpy and of the programs that tests start
os.environ.setdefault("TORCH_FAKE_TENSOR_DISPATCH_CACHE", "0")  # which only slows graphs of tiny blocks down
os.environ["WANDB__SAVE_REQUIREMENTS"] = "false"  # W&B would read what is installed, twice per start
os.environ["WANDB_ERROR_REPORTING"] = "false"  # its threads would report into the next tests

import copy
import gc
import json
import logging
import pwd
import re
import signal
import ssl
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from _pytest.logging import catching_logs
from torch import Tensor
from xdist.scheduler.loadscope import LoadScopeScheduling

from marble_cli import redaction
from marble_cli.config.compose import compose
from marble_cli.config.schema import ModelConfig, RunConfig
from marble_cli.paths import NO_HOME
from marble_cli.rewards import guard
from tests.compositions import remember_compositions
from tests.distributed import processes
from tests.process_state import describe_changes, read_state, restore

gc.disable()  # until the tests are imported: collections find nothing in modules
remember_compositions()
ssl.create_default_context = cache(ssl.create_default_context)  # 20 ms per client of httpx
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in background jobs of a shell; children inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)
torch.set_num_threads(1)  # the tensors are tiny, and sums do not depend on the machine


def _catch_logs(self: catching_logs[logging.Handler]) -> logging.Handler:
    """Attach to the root logger alone.

    Six times per test, pytest would look for loggers that do not propagate among a thousand of libraries.
    """
    level = self.level
    if level is not None:
        self.handler.setLevel(level)
        self.orig_level = logging.root.level
        logging.root.setLevel(min(self.orig_level, level))
    logging.root.addHandler(self.handler)
    self.attached_loggers.append(logging.root)
    return self.handler


catching_logs.__enter__ = _catch_logs  # type: ignore[method-assign]


def pytest_collection_finish() -> None:
    """Leave what the imports made out of all garbage collections, which begin here."""
    if "diffusers" in sys.modules:
        from tests.pipelines import remember_pipelines

        remember_pipelines()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)  # there is memory enough for less work
    gc.enable()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest rooms first, and mark the tests that not every run takes.

    No worker is then left alone with a long room at the end. `make test-fast` leaves out every test that a
    fixture gives a model or an environment; `make test` leaves out the rooms that need a device.
    """
    items.sort(key=lambda item: LONGEST.get(room_of(item), len(LONGEST)))
    for item in items:
        if room_of(item) in DEVICES:
            item.add_marker(room_of(item))
            item.add_marker(pytest.mark.filterwarnings("default"))  # of a device's own libraries
        if not COSTLY.isdisjoint(getattr(item, "fixturenames", ())):
            item.add_marker("model")


class Rooms(LoadScopeScheduling):
    """Give the tests of one folder to one worker, which makes what they share once."""

    def _split_scope(self, nodeid: str) -> str:
        return str(Path(nodeid.partition("::")[0]).parent)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Rooms:
    return Rooms(config, log)


def room_of(item: pytest.Item) -> str:
    """Return the folder of tests/ that a test is in."""
    return item.nodeid.split("/")[1]


@pytest.fixture(autouse=True)
def _a_process_as_before() -> Iterator[None]:
    """Fail the very test that leaves the process changed, instead of later ones in the same worker.

    Its name comes first in the order of autouse fixtures, so that all others have put back what they changed.
    """
    before = read_state()
    yield
    after = read_state()
    if after != before:
        restore(before)
        pytest.fail(f"the test left the process changed: {'; '.join(describe_changes(before, after))}")


@pytest.fixture(scope="session", autouse=True)
def _no_server_is_left(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Leave the server of forks, if any test of this process has asked for it."""
    processes.FACTORY.append(tmp_path_factory)
    yield
    if processes.forks.cache_info().currsize:
        processes.forks().close()


@pytest.fixture(scope="module", autouse=True)
def _collections_find_little() -> None:
    """Leave what the files before have imported and made out of all garbage collections.

    After thousands of tests a full collection takes two seconds; benches make dozens.
    """
    gc.freeze()


@pytest.fixture(autouse=True)
def nobody_at_work(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Ignore rewards that another test has left hanging, and let those of this one put back nothing later."""
    own = guard.AtWork()
    monkeypatch.setattr(guard, "_AT_WORK", own)
    yield
    with own.lock:
        if own.working:
            own.working.append(("an ended test", guard.Stage.BUILD))  # until that ends, nothing is put back


@pytest.fixture(autouse=True)
def _no_secrets_are_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start every test without learned secrets, which would hide words of what later ones show."""
    monkeypatch.setattr(redaction, "_learned", {})
    monkeypatch.setattr(redaction, "_values", None)


# Rooms of ten seconds and more begin, in this order.
ROOMS = (
    *("policy", "e2e", "distributed", "run", "step", "launch"),
    *("scripts", "cli", "rewards", "config", "docs", "metrics", "evaluate", "benchmark"),
)
LONGEST = {room: place for place, room in enumerate(ROOMS)}
DEVICES = {"gpu", "standin"}  # rooms of tests that need a device; a marker has the name of its room
COSTLY = {"pipeline_folder", "fresh"}  # fixtures that nearly every test above a second is built on

SOURCES = {
    "general": [{"prompt": f"a {color} cup"} for color in ("red", "blue", "green", "pink")],
    "text": [{"prompt": f'a sign that says "{n}"', "text": str(n)} for n in (3, 14, 15, 92)],
    "compositional": [
        {"prompt": f"{n} boats", "include": [{"class": "boat", "count": n}]} for n in (1, 2, 3, 4)
    ],
}

RunConfigMaker = Callable[..., RunConfig]
PLAIN_FOLDER = re.compile(r"run\.dir=(/\w[\w.-]{,99})+")  # an absolute path, which composing leaves as it is


@pytest.fixture
def at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make `me` in the working folder `tmp_path` the home."""
    folder = tmp_path / "me"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.delenv("MARBLE_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.fixture
def homeless(at_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the home away: neither HOME nor the password file names one."""

    def nobody(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.setenv(NO_HOME, "")  # so that what is set is undone
    monkeypatch.delenv(NO_HOME)
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", nobody)


@pytest.fixture(scope="session")
def transformer_maker() -> Callable[..., Any]:
    """`make_transformer`, for tests in other folders."""
    from tests.models import make_transformer

    return make_transformer


@pytest.fixture(scope="session")
def pipeline_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `StableDiffusion3Pipeline` folder: 16 px pictures from 4 x 4 latents of 4 channels."""
    from tests.models import make_pipeline  # imports diffusers

    folder = tmp_path_factory.mktemp("pipeline")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        make_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def prompts_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three prompt sources of four prompts, of which the first two are held out."""
    root = tmp_path_factory.mktemp("prompts")
    for source, rows in SOURCES.items():
        (root / source).mkdir()
        for split, part in (("train", rows), ("test", rows[:2])):
            (root / source / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    return root


@pytest.fixture(scope="session")
def sized_prompts_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same prompts; of each source the first names a wide picture, and the second one of 16 px."""
    root = tmp_path_factory.mktemp("sized")
    for source, rows in SOURCES.items():
        sizes: list[dict[str, object]] = [{"resolution": "32x16"}, {"resolution": 16}, {}, {}]
        sized = [{**row, **size} for row, size in zip(rows, sizes, strict=True)]
        (root / source).mkdir()
        for split, part in (("train", sized), ("test", sized[:2])):
            (root / source / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    return root


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few prompts in the folders and formats of the published ones."""
    root = tmp_path_factory.mktemp("published")
    for source in ("pickscore", "ocr", "geneval"):
        (root / source).mkdir()
    for split, count in (("train", 5), ("test", 2)):
        numbers = range(1, count + 1)
        (root / f"pickscore/{split}.txt").write_text("".join(f'the word "ALL", {i}, 8k\n' for i in numbers))
        (root / f"ocr/{split}.txt").write_text(
            "".join(f'a sign that reads "Gas {i}", at dusk\n' for i in numbers)
        )
        rows = [
            {
                "tag": "counting",
                "include": [{"class": "bench", "count": i}],
                "exclude": [{"class": "bench", "count": i + 1}],
                "prompt": f"a photo of {i} benches",
            }
            for i in numbers
        ]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (root / f"geneval/{split}_metadata.jsonl").write_text(lines)
    return root


@pytest.fixture(scope="session")
def base_overrides(pipeline_folder: Path, prompts_folder: Path) -> list[str]:
    """Overrides of a run that takes a second: the random pipeline, six images per step, two rewards."""
    return [
        "model=tiny", f"model.path={pipeline_folder}", "model.resolution=16", "model.device=cpu",
        "model.lora.rank=2", "model.lora.alpha=6",
        "model.lora.target_modules=[to_q,to_v,add_k_proj,to_out.0]",
        "data=tiny", f"data.root={prompts_folder}", "data.sources.text.weight=1",
        "rewards=[colorfulness,compressibility]",
        "rollout.groups=2", "rollout.group_size=3", "rollout.steps=3", "rollout.batch_size=4",
        "trainer.steps=2", "trainer.micro_batch_size=4", "trainer.times_per_image=1", "trainer.eval_every=0",
        "trainer.eval_prompts=2", "trainer.timestep_fraction=0.99", "trainer.ema.decay=0.9",
        "algorithm.kl_coef=1e-4",
        "balance=marble", "optimizer.lr=3e-4", "logging.wandb.mode=disabled", "logging.images_every=0",
        "run.name=test", "run.dir=unused",
    ]  # fmt: skip


@pytest.fixture(scope="session")
def run_config(base_overrides: list[str]) -> RunConfigMaker:
    """A function of further overrides that composes such a run.

    The same overrides are composed once, for any folder of the run.
    """

    @cache
    def composed(more: tuple[str, ...], folder: str) -> RunConfig:
        return compose([*base_overrides, *more])

    def make(*more: str) -> RunConfig:
        folders = [word for word in more if PLAIN_FOLDER.fullmatch(word)]
        config = copy.deepcopy(composed(tuple(word for word in more if word not in folders), os.getcwd()))
        if folders:
            config.run.dir = folders[-1].removeprefix("run.dir=")
        return config

    return make


@pytest.fixture(scope="session")
def model(run_config: RunConfigMaker) -> ModelConfig:
    """The `model` group that points at the random pipeline."""
    return run_config().model


@pytest.fixture
def policy(model: ModelConfig) -> Any:
    """A fresh policy over the random pipeline, its adapters as at the start of a run."""
    from marble_cli.policy.load import load_policy

    return load_policy(model, seed=0)


@pytest.fixture(scope="session")
def randomise() -> Callable[..., None]:
    """A function that fills a policy's adapters with random weights, so that all three velocities differ."""

    def fill(policy: Any, scale: float = 0.3, seed: int = 0) -> None:
        draw = torch.Generator().manual_seed(seed)
        for adapter in ("trained", "behaviour"):
            for parameter in policy.parameters(adapter).values():
                values: Tensor = torch.randn(parameter.shape, generator=draw, dtype=torch.float64)
                parameter.data.copy_(scale * values)

    return fill
