"""studio: one page in the browser to write with a model and to watch its training.

`find_model` says what a run or model folder holds, `create_studio` builds the application: the page and `serve`'s
API on one port. It draws and listens; tokens come from `engine` through `serve`, verdicts on verse from `text`.
"""

from wenfang.studio.app import create_studio
from wenfang.studio.run import Found, find_model

__all__ = ["Found", "create_studio", "find_model"]
