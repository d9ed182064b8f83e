# SPDX-License-Identifier: Apache-2.0
"""The rule that filled the weights of the reference networks, so that fixtures need to hold outputs alone."""

import zlib

import numpy as np


def fill(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return the values of one entry of a reference state_dict, seeded by its name."""
    generator = np.random.default_rng(zlib.crc32(key.encode()))
    if key.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    is_scale = key.endswith("running_var") or (key.endswith("weight") and len(shape) == 1)
    if is_scale:
        values = generator.uniform(0.5, 1.5, shape)
    elif len(shape) < 2:
        values = generator.standard_normal(shape) * 0.1
    else:
        fan_in = int(np.prod(shape[1:]))
        values = generator.standard_normal(shape) * np.sqrt(1.05 / fan_in)
    return values.astype(np.float32)
