"""The marginal likelihood against sums over documents in double precision, and what it teaches the retriever."""

from pathlib import Path

import numpy as np
import pytest
import torch

from wenfang.core.errors import DataError
from wenfang.core.report import Reporter
from wenfang.data import index as index_stage
from wenfang.data.chunks import ChunkIndex
from wenfang.data.index import IndexConfig
from wenfang.model import Decoder, DecoderConfig, load_model
from wenfang.model.embedding import embed_text
from wenfang.model.memory import Memory
from wenfang.train import pretrain
from wenfang.train.config import OptimizerConfig, PretrainConfig, TrainConfig
from wenfang.train.loop import train
from wenfang.train.objective import Task
from wenfang.train.realm import TEMPERATURE, Continuations, MarginalLikelihood, continuations
from wenfang.train.retrieval import Pieces

M, VOCABULARY = 4, 50


def make(seed: int = 0, *, fresh: bool = True) -> Decoder:
    torch.manual_seed(seed)
    model = Decoder(
        DecoderConfig(vocab_size=VOCABULARY, dim=32, layers=2, heads=2, kv_heads=2, head_dim=16, hidden=48, context=32)
    )
    model.initialise()
    if not fresh:
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(0.2 * torch.randn_like(weight))
    return model


def index_of(ids_CM: np.ndarray, last_C: np.ndarray) -> ChunkIndex:
    return ChunkIndex.build(ids_CM.astype(np.int32), np.arange(len(ids_CM)), last_C, make(), "exact", Reporter())


def pairs(rng: np.random.Generator) -> Continuations:
    """Random chunks, of which some are short, some documents, of which some are missing."""
    index = index_of(rng.integers(0, VOCABULARY, (9, M)), np.array([False, False, True] * 3))
    following = rng.integers(0, VOCABULARY, (5, M)).astype(np.int32)
    following[1, 2:] = -1
    found = rng.integers(0, 9, (5, 3))
    found[2, 1:] = -1
    return Continuations(index, rng.integers(0, VOCABULARY, (5, M)).astype(np.int32), following, found, 1.0)


def test_the_sum_over_documents_in_double_precision() -> None:
    """log Σ_z exp(cos(x, z) / τ) / Σ exp(…) · Π_t p(y_t | z, x, y_<t), document by document."""
    data, model = pairs(np.random.default_rng(0)), make(1, fresh=False)
    with torch.no_grad():
        loss = MarginalLikelihood(torch.float32)(model, **data.batch(np.arange(5)).tensors)
        expected, alone = 0.0, 0.0
        for x, y, found in zip(data.ids_PM.tolist(), data.next_PM.tolist(), data.found_PK, strict=True):
            y = [token for token in y if token >= 0]
            documents = [[], *(data.index.tokens(found[[k]])[0].tolist() for k in range(3) if found[k] >= 0)]
            documents = [[token for token in z if token >= 0] for z in documents]
            scores, likelihoods = [], []
            vector = embed_text(model, torch.tensor([x]), torch.float32)[0].double()
            for z in documents:
                vector_z = embed_text(model, torch.tensor([z]), torch.float32)[0].double() if z else 0 * vector
                scores.append(float(vector @ vector_z) / TEMPERATURE)
                ids = torch.tensor([z + x + y])
                logprobs = model(ids, torch.arange(ids.shape[1])[None], Memory())[0].double().log_softmax(-1)
                spans = range(len(z + x), len(z + x + y))
                likelihoods.append(sum(float(logprobs[t - 1, ids[0, t]]) for t in spans))
            prior = np.exp(scores) / np.exp(scores).sum()
            expected += np.log((prior * np.exp(likelihoods)).sum())
            alone += likelihoods[0]
    # fp32 logits, summed in double precision.
    assert float(loss.total) == pytest.approx(-expected, rel=1e-5)
    assert abs(expected - alone) > 1
    assert float(loss.metrics["retrieval_utility"]) == pytest.approx(expected - alone, abs=1e-3)


def test_the_gradient_of_the_scores_is_posterior_less_prior() -> None:
    """∂ log p(y|x) / ∂ score(z) = p(z|x, y) − p(z|x) (Guu et al. 2020, section 3.3): what helped is drawn nearer."""
    scores, likelihoods = torch.tensor([0.3, -0.2, 0.9], requires_grad=True), torch.tensor([-4.0, -2.0, -7.0])
    torch.logsumexp(scores.log_softmax(0) + likelihoods, 0).backward()
    prior = scores.detach().softmax(0)
    torch.testing.assert_close(scores.grad, (prior.log() + likelihoods).softmax(0) - prior)
    data, model = pairs(np.random.default_rng(0)), make(1, fresh=False)
    tensors = data.batch(np.arange(5)).tensors
    asked = tensors | {"queries_BM": tensors["queries_BM"].roll(1, 0)}
    with torch.no_grad():
        before, after = (MarginalLikelihood(torch.float32)(model, **each) for each in (tensors, asked))
    assert abs(float(before.total - after.total)) > 0.1  # The queries act through the scores alone.


def test_training_raises_the_probability_of_the_document_that_helps(tmp_path: Path) -> None:
    """The useful document of a question says its answer after the question's first token; the other one says another
    answer after another token. Which is which, the answers alone can teach."""
    rng = np.random.default_rng(0)
    questions = rng.integers(1, VOCABULARY, (600, M))
    answers = rng.integers(1, VOCABULARY, (600, M))
    documents = np.concatenate((questions[:, :1], rng.integers(1, VOCABULARY, (600, M - 1))), 1)
    chunks = np.stack((documents, answers), 1).reshape(1200, M)
    index = index_of(chunks, np.tile([False, True], 600))
    others = (np.arange(600) + rng.integers(1, 600, 600)) % 600
    found = 2 * np.stack((np.arange(600), others), 1)
    data = Continuations(index, questions.astype(np.int32), answers.astype(np.int32), found, 1.0)
    held = [rows := np.arange(500, 600), data.batch(rows)][1]
    training = Continuations(index, data.ids_PM[:500], data.next_PM[:500], data.found_PK[:500], 1.0)
    model, objective = make(2), MarginalLikelihood(torch.float32)

    def prior() -> float:
        with torch.no_grad():
            queries = embed_text(model, held.tensors["queries_BM"], torch.float32)
            found = embed_text(model, held.tensors["documents_BZR"].flatten(0, 1), torch.float32).view(100, 3, -1)
        return float(((found @ queries[..., None])[..., 0] / TEMPERATURE)[:, 1:].softmax(1)[:, 0].mean())

    before = prior()
    config = TrainConfig(steps=150, batch=32, context=16, compile=False, dtype="float32", validate_every=150,
                         optimizer=OptimizerConfig(lr=0.01))  # fmt: skip
    train(model, Task(training, training, objective, measure=objective), config, tmp_path, Reporter(), label="")
    assert prior() > before + 0.15


def test_pairs_are_chunks_of_one_document(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    documents = [(rng.integers(0, VOCABULARY, n).tolist(), [True] * n) for n in (9, 4, 6)]
    index = index_of(rng.integers(0, VOCABULARY, (6, M)), np.ones(6, bool))
    data = continuations(Pieces(documents, [7, 8, 9], 1.0), index, 2, Reporter())
    expected = [(documents[0][0][:4], documents[0][0][4:8]), (documents[0][0][4:8], documents[0][0][8:]),
                (documents[2][0][:4], documents[2][0][4:])]  # fmt: skip
    found = [(x, [t for t in y if t >= 0]) for x, y in zip(data.ids_PM.tolist(), data.next_PM.tolist(), strict=True)]
    assert found == expected
    assert data.batch(np.arange(3)).count == 4 + 1 + 2
    with pytest.raises(DataError, match="No document is longer than a chunk"):
        continuations(Pieces(documents[1:2], [8], 1.0), index, 2, Reporter())


def test_the_stage(corpus_folder: Path, tokenizer_folder: Path, tmp_path: Path) -> None:
    common = {"corpus": corpus_folder, "batch": 4, "context": 32, "compile": False, "dtype": "float32", "steps": 3}
    tiny = {"dim": 16, "layers": 1, "heads": 2, "kv_heads": 1, "head_dim": 8, "hidden": 24}
    for name in ("plain", "index", "realm", "index2"):
        (tmp_path / name).mkdir()
    pretrain.run(PretrainConfig(**common, **tiny, tokenizer=tokenizer_folder), tmp_path / "plain", Reporter())
    index_stage.run(
        IndexConfig(corpus=corpus_folder, model=tmp_path / "plain", chunk=8), tmp_path / "index", Reporter()
    )
    config = PretrainConfig(**common, model=tmp_path / "plain", index=tmp_path / "index", retrieval={"method": "realm"})
    summary = pretrain.run(config, tmp_path / "realm", Reporter())
    assert {"bits_per_character", "bits_per_character_without_neighbours"} <= summary.keys()
    assert load_model(tmp_path / "realm").config.family == "qwen3"
    index_stage.run(
        IndexConfig(corpus=corpus_folder, model=tmp_path / "realm", chunk=8), tmp_path / "index2", Reporter()
    )
