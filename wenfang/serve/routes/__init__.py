"""The endpoints, one file for each kind, and the table of them all."""

from wenfang.serve.routes import about, chat, completions, tokens

ROUTES = (*chat.ROUTES, *completions.ROUTES, *tokens.ROUTES, *about.ROUTES)
