"""gguf: a model in llama.cpp's one-file format, in and out.

`header` reads the file without trusting it; `architectures` says which there are, `keys` maps their config, `links` and
`layouts` their tensors, `vocabulary` and `tokens` the tokenizer; `load`, `export` and `bring` put them together.
Judged by llama.cpp itself in the tests.
"""

from wenfang.model.gguf.bring import import_gguf
from wenfang.model.gguf.export import GGUFDtype, export_gguf
from wenfang.model.gguf.header import GGUFFile
from wenfang.model.gguf.load import load_gguf_config, load_gguf_tokenizer, open_gguf

__all__ = [
    "GGUFDtype",
    "GGUFFile",
    "export_gguf",
    "import_gguf",
    "load_gguf_config",
    "load_gguf_tokenizer",
    "open_gguf",
]
