# SPDX-License-Identifier: Apache-2.0
"""What is noted of a run's surroundings."""

import json
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

import moe_vision
from moe_vision.train.environment import describe_environment, record_start


def git(*arguments: str) -> str:
    identity = ["-c", "user.name=Ann", "-c", "user.email=ann@example.org"]
    return subprocess.run(["git", *identity, *arguments], check=True, capture_output=True, text=True).stdout.strip()


def test_versions_and_machine() -> None:
    found = describe_environment(Accelerator(cpu=True))
    assert found["torch"] == torch.__version__
    assert found["moe-vision"] == moe_vision.__version__
    assert found["python"] == platform.python_version()
    assert (found["threads"], found["processes"]) == (torch.get_num_threads(), 1)
    assert abs((datetime.now(UTC) - datetime.fromisoformat(found["started"])).total_seconds()) < 60
    assert found["device"]


def test_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert describe_environment(Accelerator(cpu=True))["commit"] is None
    git("init")
    file = Path("recipe.txt")
    file.write_text("one")
    git("add", "recipe.txt")
    git("commit", "-m", "One")
    git("tag", "v1")
    head = git("rev-parse", "HEAD")
    assert describe_environment(Accelerator(cpu=True))["commit"] == head
    file.write_text("two")
    assert describe_environment(Accelerator(cpu=True))["commit"] == f"{head}-dirty"
    monkeypatch.setenv("PATH", str(tmp_path))  # no git there
    assert describe_environment(Accelerator(cpu=True))["commit"] is None


def test_command_tells_no_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    elsewhere = tmp_path.parent / "secret" / "cells"
    monkeypatch.setattr(
        sys,
        "argv",
        [f"{elsewhere}/moe-vision", "train", f"--data={elsewhere}", "--out", f"{tmp_path}/runs/a b", "--lr=1"],
    )
    assert (
        describe_environment(Accelerator(cpu=True))["command"]
        == "moe-vision train --data=cells --out 'runs/a b' --lr=1"
    )


def test_each_start_is_noted(tmp_path: Path) -> None:
    path, accelerator = tmp_path / "environment.json", Accelerator(cpu=True)
    for resumed, starts in ((False, 1), (True, 2), (False, 1)):
        record_start(accelerator, path, resumed=resumed)
        assert len(json.loads(path.read_text())) == starts
