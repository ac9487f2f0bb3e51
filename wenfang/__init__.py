"""Wenfang 文房: raw text in, a working assistant out, on your own machine.

Rooms, from the ground up: `core` and `text`; `tokenizer` and `model`; `data` and `engine`; `train` and
`evaluate`; `recipe` and `serve`; `studio` and `cli`. A room imports only from rooms below it. Importing this
package imports nothing heavy.
"""

__version__ = "0.1.0"
