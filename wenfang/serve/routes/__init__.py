"""The endpoints, one file for each kind, and the table of them all."""

from wenfang.serve.routes import about, chat, completions, ollama, responses, tokens
from wenfang.serve.routes.docs import described_by

ROUTES = described_by(
    (
        *chat.ROUTES,
        *completions.ROUTES,
        *responses.ROUTES,
        *tokens.ROUTES,
        *ollama.ROUTES,
        *about.ROUTES,
    )
)
