"""The stage `evaluate.verse`: a poet judged on held-out titles, beside human poets and shuffled characters."""

import json
import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from wenfang.core.artifact import Summary, check_artifact
from wenfang.core.errors import DataError
from wenfang.core.language import say
from wenfang.core.report import Reporter
from wenfang.data.poems import LabelledPoem, read_poems
from wenfang.engine import Engine, SamplingParams
from wenfang.evaluate.config import VerseConfig
from wenfang.evaluate.likelihood import Pair, reply_nats
from wenfang.model import Decoder, load_model
from wenfang.text.verse import (
    FORMS,
    Form,
    Request,
    VerseCheck,
    check_verse,
    compose_reply,
    parse_reply,
    split_lines,
)
from wenfang.tokenizer import Tokenizer

LONGEST_TITLE = 12
"""Titles beyond this many characters are not asked for: the model was not taught them."""


HeldOut = dict[Form, list[LabelledPoem]]
"""Validation poems by form."""


@dataclass(frozen=True)
class Rates:
    """Shares of a set of poems, each from 0 to 1."""

    poems: int
    well_formed: float
    rhyme: float
    regular: float

    @classmethod
    def of(cls, checks: Sequence[VerseCheck]) -> "Rates":
        """Count what the judge found."""
        n = max(len(checks), 1)
        return cls(
            poems=len(checks),
            well_formed=sum(c.well_formed for c in checks) / n,
            rhyme=sum(c.rhymes for c in checks) / n,
            regular=sum(c.regular for c in checks) / n,
        )


def run(config: VerseConfig, out: Path, report: Reporter) -> Summary:
    """Measure likelihood and form; writes `metrics.json`, `samples.jsonl` and a readable `README.md`.

    Raises:
        InputError: the model or corpus cannot be used.
        DataError: the validation split holds no verse to ask for.
    """
    check_artifact(config.corpus, "corpus")
    held_out = _held_out(config)
    model = load_model(config.model)
    tokenizer = Tokenizer.load(config.model, model_vocab_size=model.config.vocab_size)
    nats, given_plan = _nats_per_character(model, tokenizer, held_out, config, report)

    checks, samples = _ask(Engine(model, tokenizer, name="poet", max_batch=config.batch), held_out, config, report)
    people = {form: _judge(poem.text for poem in poems) for form, poems in held_out.items()}
    floor = {form: _judge(_shuffled(poems, config.seed)) for form, poems in held_out.items()}
    tables = {
        "model": {form.name: Rates.of(found) for form, found in checks.items()},
        "people": {form.name: Rates.of(found) for form, found in people.items()},
        "shuffled": {form.name: Rates.of(found) for form, found in floor.items()},
    }
    everything = Rates.of([check for found in checks.values() for check in found])
    summary: Summary = {
        "nats_per_character": round(nats, 3),
        "nats_per_character_given_plan": round(given_plan, 3),
        "bits_per_character": round(nats / math.log(2), 3),
        "well_formed": round(everything.well_formed, 3),
        "rhyme": round(everything.rhyme, 3),
        "regular": round(everything.regular, 3),
        "regular_qijue": round(tables["model"]["七言絕句"].regular, 3),
        "people_regular_qijue": round(tables["people"]["七言絕句"].regular, 3),
        "shuffled_regular_qijue": round(tables["shuffled"]["七言絕句"].regular, 3),
    }
    rates = {who: {form: vars(rate) for form, rate in table.items()} for who, table in tables.items()}
    _write(out / "metrics.json", json.dumps({"summary": summary, "rates": rates}, ensure_ascii=False, indent=2))
    _write(out / "samples.jsonl", "".join(json.dumps(s, ensure_ascii=False) + "\n" for s in samples))
    table = render(tables)
    _write(out / "README.md", f"# evaluate.verse\n\n{table}\n\n{_explain(summary)}\n")
    report.notice(f"{table}\n{_explain(summary)}")
    return summary


def render(tables: dict[str, dict[str, Rates]]) -> str:
    """The rates as a Markdown table: the model, people and chance side by side."""
    names = {
        "model": say(zh="模型", en="model"),
        "people": say(zh="人（未見過的詩人）", en="people (held-out poets)"),
        "shuffled": say(zh="同字打亂", en="same characters, shuffled"),
    }
    heads = say(
        zh="| | 詩體 | 首數 | 格式 | 押韻 | 全合律 |", en="| | form | poems | well-formed | rhyme | every rule |"
    )
    lines = [heads, "| --- | --- | ---: | ---: | ---: | ---: |"]
    for who, table in tables.items():
        for form, rate in table.items():
            shares = (f"{share:.1%}" for share in (rate.well_formed, rate.rhyme, rate.regular))
            lines.append(f"| {names[who]} | {form} | {rate.poems} | {' | '.join(shares)} |")
    return "\n".join(lines)


def _explain(summary: Summary) -> str:
    nats, bits = summary["nats_per_character"], summary["bits_per_character"]
    given = summary["nats_per_character_given_plan"]
    return say(
        zh=f"未見過的詩人：每字 {nats} nats（{bits} 位元），格律行的代價算在詩上；"
        f"格律行若為已知，每字 {given} nats。字數含標點，不含格律行。",
        en=f"Held-out poets: {nats} nats ({bits} bits) per character with the plan line charged to the poem, "
        f"{given} nats with the plan given. Characters are the poem's, punctuation included.",
    )


def _held_out(config: VerseConfig) -> HeldOut:
    """The validation poems by form, in a fixed random order."""
    path = config.corpus / "validation.parquet"
    poems = read_poems(path)
    random.Random(config.seed).shuffle(poems)
    held_out = {form: [poem for poem in poems if poem.form == form] for form in FORMS.values()}
    for form, found in held_out.items():
        if not any(map(_askable, found)):
            raise DataError(
                say(
                    zh=f"{str(path)!r} 沒有可出題的{form.name}。請增加驗證集。",
                    en=f"{str(path)!r} holds no titled {form.name} to ask for. Enlarge the validation split.",
                )
            )
    return held_out


def _askable(poem: LabelledPoem) -> bool:
    return 0 < len(poem.title) <= LONGEST_TITLE


def _nats_per_character(
    model: Decoder,
    tokenizer: Tokenizer,
    held_out: HeldOut,
    config: VerseConfig,
    report: Reporter,
) -> tuple[float, float]:
    """Mean nats per character of held-out poems, given a request for form and title.

    First with the whole reply charged, plan line and end token included: an upper bound, since p(poem) ≥ p(plan, poem).
    Then with the plan line given, as if the user had asked for that rhyme and opening.
    """
    poems = [poem for found in held_out.values() for poem in found if _askable(poem)]
    random.Random(config.seed).shuffle(poems)
    poems = poems[: config.held_out]
    total = plans = 0.0
    with report.track(say(zh="未見過的詩", en="held-out poems"), len(poems)) as track:
        for start in range(0, len(poems), config.batch):
            batch = poems[start : start + config.batch]
            pairs = [_pair(tokenizer, poem) for poem in batch]
            total += sum(reply_nats(model, pairs))
            heads = [tokenizer.encode(f"{poem.plan}\n") for poem in batch]
            plans += sum(reply_nats(model, [(prompt, head) for (prompt, _), head in zip(pairs, heads, strict=True)]))
            track.update(start + len(batch))
    characters = sum(len(poem.text) for poem in poems)
    return total / characters, (total - plans) / characters


def _pair(tokenizer: Tokenizer, poem: LabelledPoem) -> Pair:
    request = Request(poem.form, title=poem.title, irregular=not poem.plan.regular)
    prompt = tokenizer.chat([{"role": "user", "content": request.compose()}])
    return prompt, [*tokenizer.encode(compose_reply(poem.plan, poem.text)), tokenizer.end_id]


def _ask(
    engine: Engine, held_out: HeldOut, config: VerseConfig, report: Reporter
) -> tuple[dict[Form, list[VerseCheck]], list[dict[str, object]]]:
    """Ask for a poem on each of `config.poems` held-out titles per form, and judge what comes."""
    params = SamplingParams(temperature=config.temperature, top_p=config.top_p, seed=config.seed)
    checks: dict[Form, list[VerseCheck]] = {}
    samples: list[dict[str, object]] = []
    with report.track(say(zh="作詩", en="writing poems"), config.poems * len(held_out)) as track:
        for form, poems in held_out.items():
            titles = [poem.title for poem in poems if _askable(poem)][: config.poems]
            requests = [Request(form, title=title).compose() for title in titles]
            prompts = [engine.tokenizer.chat([{"role": "user", "content": request}]) for request in requests]
            checks[form] = []
            for request, completion in zip(requests, engine.generate(prompts, params), strict=True):
                check = check_verse(parse_reply(completion.text).poem, form=form)
                checks[form].append(check)
                broken = [str(violation) for violation in check.violations]
                samples.append({"request": request, "reply": completion.text, "violations": broken})
            track.update(sum(map(len, checks.values())))
    engine.close()
    return checks, samples


def _judge(poems: Iterable[str]) -> list[VerseCheck]:
    return [check_verse(poem) for poem in poems]


def _shuffled(poems: Sequence[LabelledPoem], seed: int) -> Iterable[str]:
    """The same poems with their characters in random places: what the judge passes by chance."""
    rng = random.Random(seed)
    for poem in poems:
        lines = split_lines(poem.text)
        characters = list("".join(lines))
        rng.shuffle(characters)
        width = len(lines[0])
        yield "，".join("".join(characters[i : i + width]) for i in range(0, len(characters), width))


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
