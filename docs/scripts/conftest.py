# SPDX-License-Identifier: Apache-2.0
"""Scripts are no pages: pytest does not look for examples in them."""

collect_ignore_glob = ["*.py"]
