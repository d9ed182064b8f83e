# SPDX-License-Identifier: Apache-2.0
"""The state of a run after an epoch, so that a run that was killed goes on as if it had not been."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from accelerate import Accelerator
from safetensors import SafetensorError

PREFIX = "state-"


def save_run_state(accelerator: Accelerator, out: Path, epochs: int) -> None:
    """Write what `Accelerator.save_state` knows to ``out/state-EPOCHS``, and remove that of earlier epochs.

    The folder has its name only once it is whole, so that a run killed here goes on from the state before.
    All processes call this.

    Args:
        accelerator: It has prepared the model, the optimizer and all that changes during a run.
        out: Folder of the run.
        epochs: Epochs that are done.

    Raises:
        OSError: If it can't be written; what was written of it is removed, and the state before stays.
    """
    partial, whole = out / "state.partial", out / f"{PREFIX}{epochs}"
    if accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
    accelerator.wait_for_everyone()
    try:
        accelerator.save_state(str(partial))
    except (OSError, RuntimeError, SafetensorError) as error:  # torch.save raises RuntimeError on a full disk
        shutil.rmtree(partial, ignore_errors=True)
        raise OSError(f"state {whole} can't be written: {error}") from error
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        partial.rename(whole)
        remove_run_states(out, keep=epochs)


@contextmanager
def resumable(out: Path) -> Iterator[None]:
    """Add to an error in writing, such as that of a full disk, from where the run goes on.

    Args:
        out: Folder of the run.
    """
    try:
        yield
    except OSError as error:
        epochs = max(_saved_epochs(out), default=0)
        state = f"{PREFIX}{epochs} is whole: make room, and resume goes on from it" if epochs else "no epoch is done"
        raise OSError(f"{error}; {state}") from error


def load_run_state(accelerator: Accelerator, out: Path) -> int:
    """Restore the latest state in ``out``, if there is one, and return how many epochs are done.

    Args:
        accelerator: As for `save_run_state`.
        out: Folder of the run.
    """
    epochs = max(_saved_epochs(out), default=0)
    if epochs:
        accelerator.load_state(str(out / f"{PREFIX}{epochs}"))
    return epochs


def remove_run_states(out: Path, keep: int = 0) -> None:
    """Remove the states in ``out`` but that after ``keep`` epochs."""
    for epochs in _saved_epochs(out):
        if epochs != keep:
            shutil.rmtree(out / f"{PREFIX}{epochs}")


def _saved_epochs(out: Path) -> list[int]:
    names = [path.name.removeprefix(PREFIX) for path in out.glob(f"{PREFIX}*") if path.is_dir()]
    return [int(name) for name in names if name.isdigit()]
