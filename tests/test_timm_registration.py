# SPDX-License-Identifier: Apache-2.0
"""timm knows our models after both imports, in any order, and neither import suffers from it."""

import subprocess
import sys
from pathlib import Path

import pytest

WORKS = """
import torch
assert timm.list_models("yolo_master*") == [f"yolo_master_{scale}" for scale in "lmnsx"]
assert timm.create_model("yolo_master_n", num_classes=3, device="meta").num_classes == 3
assert "moe_vision._timm_registration" not in {type(finder).__module__ for finder in sys.meta_path}
assert type(timm.__loader__).__module__ == type(timm.__spec__.loader).__module__ == "_frozen_importlib_external"
"""
OURS_FIRST = """
import importlib.util, sys
import moe_vision
assert "timm" not in sys.modules
# Looking for timm does not import it, and tells what it would tell without us.
spec = importlib.util.find_spec("timm")
assert "__version__" in spec.loader.get_source("timm")
assert "timm" not in sys.modules
import timm
"""
TIMM_FIRST = """
import sys
import timm
assert not timm.list_models("yolo_master*")
import moe_vision
"""
OURS_IMPORTS_TIMM = """
import sys
import moe_vision.models.timm_model
import timm
"""
# torchvision first: timm and torchvision alone, imported by two threads, are a deadlock that Python ends with an error.
THREADS = """
import sys, threading
import moe_vision, torchvision
from importlib import import_module
names = ["timm", "moe_vision.models.timm_model", "timm.models", "moe_vision.models", "timm", "timm.layers"]
errors = []
threading.excepthook = errors.append
threads = [threading.Thread(target=import_module, args=(name,)) for name in names]
sys.setswitchinterval(1e-5)
[thread.start() for thread in threads]
[thread.join() for thread in threads]
assert not errors, errors[0].exc_value
import timm
"""
TWICE = """
import importlib, sys
import moe_vision
importlib.reload(moe_vision)
import timm
importlib.reload(timm)
importlib.reload(moe_vision)
"""
# A timm that can't be imported at first, and that is not the one our models need.
FOREIGN = """
import pathlib, sys, warnings
package = pathlib.Path(sys.argv[1], "timm")
package.mkdir()
package.joinpath("__init__.py").write_text("raise ImportError('half installed')")
sys.path.insert(0, sys.argv[1])
import moe_vision
try:
    import timm
except ImportError as error:
    assert str(error) == "half installed"
package.joinpath("__init__.py").write_text("version = 'ours to be left alone'")
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import timm
assert timm.version == "ours to be left alone"
(warning,) = caught
assert warning.category is RuntimeWarning
assert "the models of moe_vision are not registered with timm" in str(warning.message)
"""
ABSENT = """
import sys
import moe_vision
sys.path.clear()
for name in ("timm", "timm.models"):
    try:
        __import__(name)
    except ModuleNotFoundError as error:
        assert error.name == "timm"
    else:
        raise AssertionError
"""
BLOCKED = """
import sys
sys.modules["timm"] = None
import moe_vision
"""


def run(script: str, *arguments: Path) -> None:
    command = [sys.executable, "-B", "-c", script, *map(str, arguments)]  # -B: the foreign timm changes in a moment
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "moe_vision" not in done.stderr


@pytest.mark.parametrize(
    "imports",
    [
        pytest.param(OURS_FIRST, id="ours_first"),
        pytest.param(TIMM_FIRST, id="timm_first"),
        pytest.param(OURS_IMPORTS_TIMM, id="ours_imports_timm", marks=pytest.mark.slow),
        pytest.param(TWICE, id="reloaded", marks=pytest.mark.slow),
        pytest.param(THREADS, id="threads", marks=pytest.mark.slow),
    ],
)
def test_timm_knows_our_models(imports: str) -> None:
    run(imports + WORKS)


@pytest.mark.parametrize("script", [pytest.param(ABSENT, id="absent"), pytest.param(BLOCKED, id="blocked")])
def test_timm_may_be_missing(script: str) -> None:
    run(script)


def test_importing_timm_fails_and_succeeds_as_without_us(tmp_path: Path) -> None:
    run(FOREIGN, tmp_path)
