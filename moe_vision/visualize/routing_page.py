# SPDX-License-Identifier: Apache-2.0
"""The routing of a network on one page of HTML, which holds its pictures and needs nothing else."""

import base64
from collections.abc import Mapping
from html import escape
from importlib.resources import files
from io import BytesIO
from string import Template
from typing import Any

import numpy as np
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image

from moe_vision.diagnostics import GroupRouting, RoutingSummary
from moe_vision.visualize.inspection import Favourite, Inspection
from moe_vision.visualize.svg import bars, expert_colour, histogram, stacked_bars

THUMBNAIL = 128  # pixels of the longer side


def routing_page(found: Inspection, source: Any, *, title: str, subtitle: str = "") -> str:
    """Return the page.

    Args:
        found: What `inspect_routing` found.
        source: The data set that it looked at.
        title: Heading of the page.
        subtitle: A line below it.

    Examples:
        >>> from moe_vision import create_model
        >>> from moe_vision.data import ShapeScenes
        >>> from moe_vision.visualize import inspect_routing, routing_page
        >>> scenes = ShapeScenes(4, image_size=64)
        >>> found = inspect_routing(create_model("yolo_master_n", num_classes=4), scenes)
        >>> "data:image/jpeg;base64" in routing_page(found, scenes, title="Untrained")
        True
    """
    template = Template(files(__package__).joinpath("routing_page.html").read_text(encoding="utf-8"))
    return template.substitute(
        title=escape(title),
        subtitle=escape(subtitle),
        alarms=_alarms(found),
        usage="".join(_usage(name, layer, found.experts[name]) for name, layer in found.layers.items()),
        classes=_section(
            "Routing by class",
            "How the images that show a class are shared among the experts; one counts once for each class it shows.",
            {name: layer.by_class for name, layer in found.layers.items()},
            found,
        ),
        crowds=_section(
            "Experts and number of objects",
            "How the images with so many objects are shared among the experts, and how many each uses on average.",
            {name: layer.by_objects for name, layer in found.layers.items()},
            found,
        ),
        flops_text=_flops_text(found.flops),
        flops=histogram([flops / 1e9 for flops in found.flops], "GFLOPs"),
        favourites=_favourites(found, source),
    )


def _alarms(found: Inspection) -> str:
    if not found.alarms:
        return "<p>No alarm.</p>"
    return f'<ul class="alarms">{"".join(f"<li>{escape(str(alarm))}</li>" for alarm in found.alarms)}</ul>'


def _usage(name: str, layer: RoutingSummary, experts: list[str]) -> str:
    figures = {
        "experts an image": f"{layer.experts_per_image:.2f} of {len(experts)}",
        "information": f"{layer.information:.3f} of {max(layer.information_limit, 0):.3f} nat",
        "of the probabilities": f"{layer.soft_information:.3f} nat",
        "entropy of an image": f"{layer.entropy:.3f} of {np.log(len(experts)):.3f} nat",
    }
    rows = "".join(f"<dt>{label}</dt><dd>{value}</dd>" for label, value in figures.items())
    return _card(name, f"{bars(layer.shares, experts)}<dl>{rows}</dl>")


def _section(title: str, text: str, tables: Mapping[str, Mapping[str, GroupRouting]], found: Inspection) -> str:
    """Return a section with a card for each layer, or nothing if nothing is known of the images."""
    if not any(tables.values()):
        return ""
    most = max(found.experts.values(), key=len)
    legend = "".join(
        f'<span><i style="background:{expert_colour(expert)}"></i>expert {escape(name)}</span>'
        for expert, name in enumerate(most)
    )
    cards = "".join(_card(name, _stacked(groups)) for name, groups in tables.items())
    return f'<h2>{title}</h2><p>{text}</p><div class="legend">{legend}</div><div class="grid wide">{cards}</div>'


def _stacked(groups: Mapping[str, GroupRouting]) -> str:
    notes = {name: f"{group.images} images, {group.experts_per_image:.2f} each" for name, group in groups.items()}
    return stacked_bars({name: group.shares for name, group in groups.items()}, notes)


def _flops_text(flops: list[int]) -> str:
    low, median, high = np.percentile(flops, (0, 50, 100)) / 1e9
    return f"By the experts that {len(flops)} images select: {low:.3f} to {high:.3f} GFLOPs, median {median:.3f}."


def _favourites(found: Inspection, source: Any) -> str:
    pictures: dict[int, str] = {}
    cards = []
    for name, experts in found.favourites.items():
        rows = "".join(
            f'<div class="row"><span>{escape(label)}</span>{_pictures(favourites, source, pictures)}</div>'
            for label, favourites in zip(found.experts[name], experts, strict=True)
        )
        cards.append(_card(name, rows))
    return "".join(cards)


def _pictures(favourites: list[Favourite], source: Any, pictures: dict[int, str]) -> str:
    """Return the pictures of an expert; those that were made before are in ``pictures``."""
    if not favourites:
        return "<p>no image</p>"
    for _, index in favourites:
        if index not in pictures:
            pictures[index] = _thumbnail(source[index][0])
    return "".join(
        f'<figure><img src="{pictures[index]}" alt="image {index}" title="image {index}">'
        f"<figcaption>{probability:.0%}</figcaption></figure>"
        for probability, index in favourites
    )


def _thumbnail(image: Tensor) -> str:
    """Return an image (3, H, W), uint8, made small, as a data URI."""
    small = to_pil_image(image)
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    data = BytesIO()
    small.save(data, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode()


def _card(title: str, content: str) -> str:
    return f'<div class="card"><h3>{escape(title)}</h3>{content}</div>'
