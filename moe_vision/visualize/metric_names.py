# SPDX-License-Identifier: Apache-2.0
"""What the metrics of `moe_vision.train.evaluate` are called where people read them, in the order to show them."""

METRIC_NAMES = {
    "map": "mAP 50:95",
    "map50": "mAP 50",
    "mask_map": "mask mAP 50:95",
    "mask_map50": "mask mAP 50",
    "top1": "top-1 accuracy",
    "top5": "top-5 accuracy",
}
