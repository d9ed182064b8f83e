# SPDX-License-Identifier: Apache-2.0
"""``python -m moe_vision`` is ``moe-vision``."""

import sys

from moe_vision.cli import main

sys.exit(main())
