"""RETRO's chunked cross-attention against the paper's algorithm written out in numpy, and what must not leak."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from wenfang.core.errors import ModelError
from wenfang.model import Decoder, DecoderConfig
from wenfang.model.families import family_for
from wenfang.model.memory import AttentionSpec, Memory, Sight, State, attention
from wenfang.model.parts import RetroConfig

Array = NDArray[np.float64]
M, N = 4, 2
RETRO = RetroConfig(chunk=M, neighbours=N, layers=(1, 2), encoder_layers=2)
CONFIG = DecoderConfig(
    vocab_size=40, dim=16, layers=3, heads=4, kv_heads=2, head_dim=8, hidden=20, context=32, retro=RETRO
)


@pytest.fixture(scope="module")
def model() -> Decoder:
    return make(CONFIG)


def make(config: DecoderConfig) -> Decoder:
    torch.manual_seed(3)
    model = Decoder(config)
    model.initialise()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.2 * torch.randn_like(weight))
    return model


def neighbours(rows: int, sets: int) -> Tensor:
    """Random neighbours: of each third set one is shorter, and each fifth set has none."""
    ids = torch.randint(0, 40, (rows, sets, N, 2 * M))
    ids[:, ::3, 1, M:] = -1
    ids[:, 3::5] = -1
    return ids


def run(model: Decoder, ids_BT: Tensor, found_BSNR: Tensor | None, memory: Memory | None = None) -> Tensor:
    memory = memory or Memory()
    memory.neighbours_BSNR = found_BSNR
    return model(ids_BT, torch.arange(ids_BT.shape[1]).expand_as(ids_BT), memory)


class Paper:
    """Algorithm 1 of Borgeaud et al. (2022), one sequence, one chunk and one query at a time, in double precision."""

    def __init__(self, model: Decoder) -> None:
        self.weights = {name: weight.detach().double().numpy() for name, weight in model.named_parameters()}
        self.config = model.config

    def logits(self, tokens: list[int], found: list[list[list[int]]]) -> Array:
        """`found[u]` are the neighbours of chunk u, each a list of tokens, perhaps empty."""
        H = self.weights["embed_tokens.weight"][tokens]
        E: list[Array] = []
        for p in range(self.config.layers):
            here = f"layers.{p}."
            H = H + self.self_attention(self.norm(H, here + "mixer_norm"), here + "mixer.", causal=True)
            if p in RETRO.layers:
                normed = self.norm(H, here + "cross.norm")
                if p == RETRO.layers[0]:
                    chunks = [normed[u * M : (u + 1) * M] for u in range(len(tokens) // M)]
                    E = [self.encoder(found[u], chunk) for u, chunk in enumerate(chunks)]
                H = H + self.cca(normed, E, found, here + "cross.attention.")
            H = H + self.feed_forward(self.norm(H, here + "mlp_norm"), here + "mlp.")
        return self.norm(H, "norm") @ self.weights["lm_head.weight"].T

    def cca(self, H: Array, E: list[Array], found: list[list[list[int]]], name: str) -> Array:
        """CCA(H, E): h_{uM + i − 1} attends to the neighbours of chunk u (counted from 1), i = 1 … M."""
        out = np.zeros_like(H)
        for u in range(1, len(E) + 1):
            key_places = [i for neighbour in found[u - 1] for i in range(len(neighbour))]
            for i in range(1, M + 1):
                j = u * M + i - 1  # Counted from 1, as in the paper.
                if j <= len(H) and key_places:
                    out[j - 1] = self.attend(H[j - 1 : j], E[u - 1], [M - 1 + i - 1], key_places, name)[0]
        return out

    def encoder(self, neighbours: list[list[int]], chunk: Array) -> Array:
        encoded = []
        for tokens in filter(None, neighbours):
            x, places = self.weights["embed_tokens.weight"][tokens], list(range(len(tokens)))
            for n in range(RETRO.encoder_layers):
                here = f"layers.{RETRO.layers[0]}.cross.encoder.blocks.{n}."
                x = x + self.self_attention(self.norm(x, here + "self_norm"), here + "self_attention.", causal=False)
                if n == 0:
                    queries = self.norm(x, here + "chunk_norm")
                    x = x + self.attend(queries, chunk, places, list(range(M)), here + "chunk_attention.")
                x = x + self.feed_forward(self.norm(x, here + "mlp_norm"), here + "mlp.")
            encoded.append(self.norm(x, f"layers.{RETRO.layers[0]}.cross.encoder.norm"))
        return np.concatenate(encoded) if encoded else np.zeros((0, self.config.dim))

    def self_attention(self, x: Array, name: str, *, causal: bool) -> Array:
        places = list(range(len(x)))
        if not causal:
            return self.attend(x, x, places, places, name)
        return np.concatenate(
            [self.attend(x[t : t + 1], x[: t + 1], [t], places[: t + 1], name) for t in range(len(x))]
        )

    def attend(self, x: Array, y: Array, x_places: list[int], y_places: list[int], name: str) -> Array:
        """CA(h, Y) = softmax(Y K Qᵀ h) Y V, in heads, with rotated and normalised queries and keys."""
        w, K = self.weights, self.config.head_dim
        contexts = []
        for head in range(self.config.heads):
            group = head // (self.config.heads // self.config.kv_heads)
            mine, shared = slice(head * K, (head + 1) * K), slice(group * K, (group + 1) * K)
            q = self.rope(self.norm(x @ w[name + "q_proj.weight"][mine].T, name + "q_norm"), x_places)
            k = self.rope(self.norm(y @ w[name + "k_proj.weight"][shared].T, name + "k_norm"), y_places)
            scores = np.exp(q @ k.T / math.sqrt(K))
            contexts.append(scores / scores.sum(-1, keepdims=True) @ (y @ w[name + "v_proj.weight"][shared].T))
        return np.concatenate(contexts, -1) @ w[name + "o_proj.weight"].T

    def rope(self, x: Array, places: list[int]) -> Array:
        """Each pair of channels (i, i + K/2) turned by its place times 10000^(−2i/K)."""
        half = x.shape[-1] // 2
        angles = np.outer(places, 10_000.0 ** (-2 * np.arange(half) / x.shape[-1]))
        turned = (x[:, :half] + 1j * x[:, half:]) * np.exp(1j * angles)
        return np.concatenate((turned.real, turned.imag), -1)

    def norm(self, x: Array, name: str) -> Array:
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + self.config.norm_eps) * self.weights[name + ".weight"]

    def feed_forward(self, x: Array, name: str) -> Array:
        w, gate = self.weights, x @ self.weights[name + "gate_proj.weight"].T
        return (gate / (1 + np.exp(-gate)) * (x @ w[name + "up_proj.weight"].T)) @ w[name + "down_proj.weight"].T


@torch.no_grad()
@pytest.mark.parametrize("length", [16, 23, 3])
def test_the_papers_algorithm(model: Decoder, length: int) -> None:
    ids, found = torch.randint(0, 40, (2, length)), neighbours(2, length // M)
    logits = run(model, ids, found)
    for row in range(2):
        lists = [[[t for t in one if t >= 0] for one in chunk] for chunk in found[row].tolist()]
        expected = Paper(model).logits(ids[row].tolist(), lists)
        # fp32 against double precision through three layers of weights near 1.
        torch.testing.assert_close(logits[row].double(), torch.from_numpy(expected), rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("chunk", range(4))
def test_neighbours_are_seen_from_the_last_token_of_their_chunk_on_and_not_before(model: Decoder, chunk: int) -> None:
    ids, found = torch.randint(0, 40, (1, 20)), torch.randint(0, 40, (1, 5, N, 2 * M))
    others = found.clone()
    others[:, chunk] = torch.randint(0, 40, (1, N, 2 * M))
    moved = (run(model, ids, found) - run(model, ids, others))[0].abs().amax(-1)
    first = (chunk + 1) * M - 1
    assert moved[:first].max() == 0
    assert moved[first] > 1e-3


@torch.no_grad()
def test_a_token_changes_nothing_before_itself(model: Decoder) -> None:
    ids, found = torch.randint(0, 40, (1, 14)), neighbours(1, 3)
    before = run(model, ids, found)
    for t in range(14):
        changed = ids.clone()
        changed[0, t] = (changed[0, t] + 1) % 40
        moved = (run(model, changed, found) - before)[0].abs().amax(-1)
        assert moved[:t].sum() == 0
        assert moved[t] > 0


@torch.no_grad()
def test_without_neighbours_it_is_the_plain_decoder(model: Decoder) -> None:
    plain = Decoder(CONFIG.model_copy(update={"retro": None}))
    report = plain.load_state_dict(model.state_dict(), strict=False)
    assert not report.missing_keys
    assert all(".cross." in name for name in report.unexpected_keys)
    ids = torch.randint(0, 40, (2, 11))
    expected = run(plain, ids, None)
    assert torch.equal(run(model, ids, None), expected)
    torch.testing.assert_close(run(model, ids, torch.full((2, 2, N, 2 * M), -1)), expected)
    torch.testing.assert_close(run(model, ids, None, Growing()), expected)
    served = Growing()
    served.retrieves = False
    assert torch.equal(run(model, ids, None, served), expected)
    assert not served.states


class Growing(Memory):
    """Keys, values and states of whole rows, growing with each call."""

    lasting = True
    retrieves = True

    def __init__(self) -> None:
        super().__init__()
        self.kv: dict[int, tuple[Tensor, Tensor]] = {}
        self.states: dict[str, State] = {}

    def attend(self, layer: int, q_BHTK: Tensor, k_BGTK: Tensor, v_BGTV: Tensor, spec: AttentionSpec) -> Tensor:
        if layer in self.kv:
            k_BGTK, v_BGTV = (torch.cat(pair, 2) for pair in zip(self.kv[layer], (k_BGTK, v_BGTV), strict=True))
        self.kv[layer] = k_BGTK, v_BGTV
        keys_1S = torch.arange(k_BGTK.shape[2])[None]
        return attention(q_BHTK, k_BGTK, v_BGTV, Sight(keys_1S[:, -q_BHTK.shape[2] :], keys_1S), spec)

    def recall(self, place: str) -> State | None:
        return self.states.get(place)

    def keep(self, place: str, state: State) -> None:
        self.states[place] = state


@torch.no_grad()
@pytest.mark.parametrize("split", [1, 2, 3, 4, 5, 7, 8, 9, 12])
def test_in_pieces_and_token_by_token_it_gives_what_one_call_gives(model: Decoder, split: int) -> None:
    ids, found = torch.randint(0, 40, (2, 18)), neighbours(2, 4)
    found[1, 2] = -1  # In one call a set of one row is new and the other's stays empty.
    expected = run(model, ids, found)
    memory, pieces = Growing(), []
    for start, stop in [(0, split), (split, 13), *((t, t + 1) for t in range(13, 18))]:
        memory.neighbours_BSNR = found[:, start // M : stop // M] if stop // M > start // M else None
        positions = torch.arange(start, stop).expand(2, -1)
        pieces.append(model(ids[:, start:stop], positions, memory))
    torch.testing.assert_close(torch.cat(pieces, 1), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_rows_at_different_places_decode_together(model: Decoder) -> None:
    """In a running batch one sequence completes a chunk while another is in the middle of one."""
    ids, found = torch.randint(0, 40, (2, 13)), torch.randint(0, 40, (2, 3, N, 2 * M))
    expected = run(model, ids, found)
    memories = []
    for row, read in ((0, 7), (1, 9)):
        memory = Growing()
        run(model, ids[row : row + 1, :read], found[row : row + 1, : read // M], memory)
        memories.append(memory)

    class Together(Growing):
        def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec) -> Tensor:
            rows = [memories[row].attend(layer, q[[row]], k[[row]], v[[row]], spec) for row in range(2)]
            return torch.cat(rows)

    together = Together()
    together.states = {
        place: tuple(torch.cat(parts) for parts in zip(*(memory.states[place] for memory in memories), strict=True))
        for place in memories[0].states
    }
    together.neighbours_BSNR = torch.stack((found[0, 1:2], torch.full_like(found[1, :1], -1)))
    step = model(torch.stack((ids[0, 7:8], ids[1, 9:10])), torch.tensor([[7], [9]]), together)
    torch.testing.assert_close(step[:, 0], torch.stack((expected[0, 7], expected[1, 9])), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_packed_documents_equal_documents_alone(model: Decoder) -> None:
    lengths = [7, 4, 1, 9, 3]
    sets = [length // M for length in lengths]
    ids, found = torch.randint(0, 40, (1, sum(lengths))), neighbours(1, sum(sets))
    memory = Memory(torch.tensor([[n for n, length in enumerate(lengths) for _ in range(length)]]))
    memory.neighbours_BSNR = torch.cat((found, torch.full((1, 2, N, 2 * M), -1)), 1)
    packed = model(ids, torch.cat([torch.arange(length) for length in lengths])[None], memory)
    pairs = zip(ids.split(lengths, 1), found.split(sets, 1), strict=True)
    alone = torch.cat([run(model, *pair) for pair in pairs], 1)
    torch.testing.assert_close(packed, alone, rtol=1e-4, atol=1e-5)


def loss_of(model: Decoder, ids: Tensor, found: Tensor) -> Tensor:
    logits = run(model, ids, found)
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def test_training_compiles_into_one_graph_and_every_weight_learns() -> None:
    retro = RETRO.model_copy(update={"layers": (0, 1), "encoder_layers": 1})
    config = CONFIG.model_copy(update={"layers": 2, "retro": retro})
    eager, compiled = make(config), make(config)
    ids, found = torch.randint(0, 40, (2, 18)), neighbours(2, 4)
    loss = loss_of(eager, ids, found)
    loss.backward()
    again = torch.compile(loss_of, fullgraph=True, dynamic=False, backend="aot_eager")(compiled, ids, found)
    again.backward()
    torch.testing.assert_close(again, loss)
    for (name, weight), expected in zip(compiled.named_parameters(), eager.parameters(), strict=True):
        assert expected.grad is not None, name
        assert expected.grad.any(), name
        torch.testing.assert_close(weight.grad, expected.grad)


def test_a_fresh_model_is_the_plain_one_whatever_is_found() -> None:
    fresh = Decoder(CONFIG)
    fresh.initialise()
    ids, positions = torch.randint(0, 40, (1, 12)), torch.arange(12)[None]
    memory = Memory()
    memory.neighbours_BSNR = neighbours(1, 3)
    with torch.no_grad():
        states = [fresh.hidden(ids, positions, m, torch.float32) for m in (Memory(), memory)]
    torch.testing.assert_close(states[1], states[0])


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"retro": {"layers": (2, 1)}}, "must rise"),
        ({"retro": {"layers": (1, 3)}}, "less than layers"),
        ({"retro": {"layers": (1,)}, "hidden": 0}, "needs hidden"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        DecoderConfig(**{**CONFIG.model_dump(), **changes})


def test_neighbours_of_another_shape_are_refused(model: Decoder) -> None:
    with pytest.raises(ModelError, match=r"\[2, 7\]; the model needs \[2, 8\]"):
        run(model, torch.zeros(1, 4, dtype=torch.long), torch.zeros(1, 1, N, 7, dtype=torch.long))


def test_no_hugging_face_family_holds_it() -> None:
    with pytest.raises(ModelError, match="retro="):
        family_for(CONFIG)
