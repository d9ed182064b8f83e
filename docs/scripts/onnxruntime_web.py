# SPDX-License-Identifier: Apache-2.0
"""A hook of mkdocs: ONNX Runtime Web, for the demo page, becomes part of the site."""

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from npm_files import npm_files

PACKAGE = "onnxruntime-web@1.30.0"
SHA512 = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
# The build for the processor alone; those for GPUs have twice the size.
NAMES = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files beside the page's own."""
    folder = npm_files(PACKAGE, SHA512, "dist", NAMES)
    for name in NAMES:
        files.append(File.generated(config, f"assets/demo/ort/{name}", abs_src_path=str(folder / name)))
    return files
