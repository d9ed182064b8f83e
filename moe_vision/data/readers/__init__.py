# SPDX-License-Identifier: Apache-2.0
"""Readers of data sets, a format each; what is wrong in one is skipped and reported."""
