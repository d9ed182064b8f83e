# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of every version so far are read, and their networks say what they said."""

from pathlib import Path

import numpy as np
import pytest

from moe_vision.models import load_checkpoint
from moe_vision.models.config import variant_of
from tests.models.old_checkpoints import TASKS, answers, files, unpack


@pytest.mark.parametrize("path", files(), ids=lambda path: path.name)
def test_a_checkpoint_of_an_earlier_version_is_read(path: Path, tmp_path: Path) -> None:
    model = load_checkpoint(unpack(path, tmp_path))
    _, version, variant, task = path.name.removesuffix(".safetensors.gz").split("-")
    assert (variant_of(model.config), model.config.task) == (variant, task)
    expected = np.load(path.with_name(path.name.replace("safetensors.gz", "npz")))
    found = answers(model)
    assert sorted(found) == sorted(expected)
    for name, value in found.items():
        assert expected[name].std() > 1e-3, f"{name} of version {version} is the same everywhere"
        np.testing.assert_allclose(value, expected[name], rtol=1e-3, atol=1e-3 * np.abs(expected[name]).max())


def test_every_variant_has_one() -> None:
    assert {path.name.split("-")[2] for path in files()} >= set(TASKS)
