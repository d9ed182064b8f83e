# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_vision.data.readers.yolo_names import parse_names, read_names

names = st.lists(st.text("abzé -'_.!/5", min_size=1, max_size=9), min_size=1, max_size=5, unique=True)


@pytest.mark.parametrize(
    "text",
    [
        "names: [cat, hot dog, t-shirt]",
        "train: a\nnames: ['cat', \"hot dog\", t-shirt]  # three\nnc: 3",
        "names: [\n  cat,\n  hot dog,  # second\n  't-shirt',\n]\n",
        "names: {0: cat, 1: 'hot dog', 2: t-shirt}",
        "names:\n- cat\n- hot dog\n- 't-shirt'\nnc: 3",
        "# names: [no]\nnames:\n  - cat # first\n\n  # none\n  - hot dog\n  - t-shirt",
        "names:\n  0: cat\n  1: hot dog\n  2: t-shirt\n\nnc: 3\n",
        "\r\nnames:\r\n  0: cat\r\n  1: hot dog\r\n  2: t-shirt\r\n",
        "names :\n 0:  cat\n 1:  hot dog\n 2:  t-shirt",
    ],
)
def test_forms(text: str) -> None:
    assert parse_names(text) == ("cat", "hot dog", "t-shirt")
    assert tuple(_values(yaml.safe_load(text)["names"])) == ("cat", "hot dog", "t-shirt")


@settings(deadline=None)
@given(names=names, flow=st.booleans(), mapping=st.booleans())
def test_what_yaml_writes_is_read_alike_or_refused(names: list[str], flow: bool, mapping: bool) -> None:
    content = {"path": "x", "names": dict(enumerate(names)) if mapping else names, "nc": 1}
    text = yaml.safe_dump(content, default_flow_style=flow, allow_unicode=True, sort_keys=False)
    if flow:  # the whole file is in brackets; take the entry alone
        text = "names: " + yaml.safe_dump(content["names"], default_flow_style=True, allow_unicode=True)
    try:
        found = parse_names(text)
    except ValueError:
        assert set("-'!") & set("".join(names)) or any(name != name.strip() or name.isspace() for name in names)
    else:
        assert list(found) == names


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nc: 3",
        "names:",
        "names: cat",
        "names: []",
        "names: [cat",
        "names: [cat, 'dog]",
        "names: [cat, cat]",
        "names: [cat, '']",
        "names: ['a, b', c]",
        "names: [[cat], dog]",
        "names: {1: cat, 2: dog}",
        "names: {0: cat, 0: dog}",
        "names: {cat: 0}",
        "names:\n  - *cat",
        "names:\n  - cat: dog",
        "names:\n  0: cat\n  2: dog",
        "names: &all [cat]",
        "names: |\n  cat",
        "my_names: [cat]",
        "other:\n  names: [cat]",
    ],
)
def test_other_forms_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="names"):
        parse_names(text)


def test_files(tmp_path: Path) -> None:
    assert read_names(tmp_path) is None
    (tmp_path / "classes.txt").write_text("cat\nhot dog \n\n")
    assert read_names(tmp_path) == ("cat", "hot dog")
    (tmp_path / "data.yaml").write_bytes("\ufeffnames: [caf\u00e9]".encode())
    assert read_names(tmp_path) == ("caf\u00e9",)
    (tmp_path / "data.yaml").write_text("names: cat")
    with pytest.raises(ValueError, match=r"data.yaml: names must be a list .*; give classes instead"):
        read_names(tmp_path)
    (tmp_path / "data.yaml").unlink()
    (tmp_path / "classes.txt").write_text("cat\n\ndog")
    with pytest.raises(ValueError, match=r"classes.txt: names must be at least one, not empty"):
        read_names(tmp_path)


def _values(found: list[str] | dict[int, str]) -> list[str]:
    return list(found.values()) if isinstance(found, dict) else found
