# SPDX-License-Identifier: Apache-2.0
"""``timm.create_model("yolo_master_n")`` works once both packages are imported, in any order.

timm knows the models whose modules have been imported, but importing timm takes seconds, and most users of this
package do not need it. So where timm has been imported first, `moe_vision.models.timm_model` is imported at once;
else a finder waits in `sys.meta_path` for the import of timm, lets it happen, and imports that module after it.
"""

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


def register_with_timm() -> None:
    """Register the YOLO-Master models with timm: now, or when it is imported, if it ever is."""
    if sys.modules.get("timm") is not None:
        _import_models()
    elif not any(isinstance(finder, _TimmFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _TimmFinder())


def _import_models() -> None:
    try:
        import_module("moe_vision.models.timm_model")
    except Exception as error:  # whoever imports timm may want nothing of us
        warnings.warn(f"the models of moe_vision are not registered with timm: {error!r}", RuntimeWarning, stacklevel=2)


class _TimmFinder(MetaPathFinder):
    """Find timm as the other finders do, with a loader that tells when it is loaded."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != "timm":
            return None
        others = [finder for finder in sys.meta_path if finder is not self]
        spec = next(filter(None, (finder.find_spec(name, path, target) for finder in others)), None)
        if spec is not None and spec.loader is not None:
            spec.loader = _TimmLoader(spec.loader, self)
        return spec


class _TimmLoader(Loader):
    """Load timm with its own loader, which is left in its place, then import our models."""

    def __init__(self, loader: Loader, finder: _TimmFinder) -> None:
        self._loader = loader
        self._finder = finder

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        if self._finder in sys.meta_path:
            sys.meta_path.remove(self._finder)
        _import_models()

    def __getattr__(self, name: str) -> Any:
        """Answer those who found timm without importing it, and ask its loader for the source."""
        return getattr(self._loader, name)
