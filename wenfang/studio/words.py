"""Every word of the page, in 正體中文 and English."""

from typing import Final

WORDS: Final[dict[str, tuple[str, str]]] = {
    "studio": ("文房", "Wenfang"),
    "chat": ("對話", "Chat"),
    "training": ("訓練", "Training"),
    "views": ("頁面", "Views"),
    "other_language": ("English", "中文"),
    "switch_language": ("Switch to English", "切換為中文"),
    "conversation": ("對話內容", "Conversation"),
    "empty_title": ("鋪紙，研墨。", "Paper laid, ink ground."),
    "empty_text": ("出個題目，請它寫一首詩。", "Name a theme and ask for a poem."),
    "you": ("你", "You"),
    "message": ("訊息", "Message"),
    "placeholder": ("出個題目，或說一句話……", "A theme, or anything you like …"),
    "key_hint": ("Enter 送出・Shift+Enter 換行", "Enter sends · Shift+Enter for a new line"),
    "send": ("送出", "Send"),
    "stop": ("停筆", "Stop"),
    "again": ("再寫一次", "Write again"),
    "clear": ("換一張紙", "New sheet"),
    "writing": ("書寫中", "Writing"),
    "stopped": ("已停筆", "stopped"),
    "cut_off": ("寫到上下文盡頭而止", "cut off at the end of the context"),
    "speed": ("{tokens} 個詞元・每秒 {speed:,.0f} 個", "{tokens} tokens · {speed:,.0f} per second"),
    "error": ("沒有寫成", "This could not be written"),
    "desk": ("擬題", "The theme"),
    "form": ("詩體", "Form"),
    "title": ("題目", "Title"),
    "title_placeholder": ("秋夜", "秋夜"),
    "rhyme": ("韻部", "Rhyme"),
    "opening": ("起式", "Opening"),
    "any": ("不限", "any"),
    "level": ("平起", "level"),
    "oblique": ("仄起", "oblique"),
    "fill": ("填入", "Fill in"),
    "compose": ("作詩", "Compose"),
    "sampling": ("筆意", "The brush"),
    "temperature": ("溫度", "Temperature"),
    "temperature_hint": ("高則奇，低則穩", "higher is bolder, lower is steadier"),
    "top_p": ("Top-p", "Top-p"),
    "top_p_hint": ("只取機率最高的這一部分字", "only the likeliest share of words"),
    "remember": ("接續前文", "Keep the thread"),
    "remember_hint": ("把先前的對話也讀給模型", "the model reads the earlier turns too"),
    "verse_check": ("格律檢查", "Verse check"),
    "regular": ("合律", "Keeps the rules"),
    "irregular": ("不合律", "Breaks the rules"),
    "verdict": ("{verdict}：{details}", "{verdict}: {details}"),
    "between": ("；", "; "),
    "form_name": ("{name}", "{name}, {english}"),
    "rhymes_in": ("押{rhyme}韻", "rhymes in {rhyme}"),
    "opens": ("{tone}起{first}", "{tone} opening, {first}"),
    "first_in": ("首句入韻", "first line rhymes"),
    "first_out": ("首句不入韻", "first line does not rhyme"),
    "asked_rhyme": ("要求押{rhyme}韻", "asked for the rhyme {rhyme}"),
    "asked_opening": ("要求{tone}起", "asked for a {tone} opening"),
    "announced": ("自述「{plan}」", "announced {plan}"),
    "kept": ("：做到了", ": kept"),
    "not_kept": ("：沒有做到", ": not kept"),
    "mark_level": ("平聲", "level tone"),
    "mark_oblique": ("仄聲", "oblique tone"),
    "mark_either": ("平仄兩讀", "level or oblique"),
    "mark_unknown": ("韻書未收", "not in the rhyme book"),
    "marks_legend": (
        "字下小注平、仄；中為兩讀，? 為韻書未收。圈者入韻，朱者出律。",
        "Under each character its tone: 平 level, 仄 oblique, 中 either, ? not in the rhyme book. Ringed: it rhymes. "
        "Red: it breaks a rule.",
    ),
    "curves": ("訓練曲線", "Training curves"),
    "no_curves": ("這個模型沒有附上訓練紀錄。", "No training record came with this model."),
    "loss": ("損失（nats／詞元）", "Loss (nats per token)"),
    "bits_per_character": ("位元／字", "Bits per character"),
    "tokens_per_s": ("詞元／秒", "Tokens per second"),
    "training_line": ("訓練", "training"),
    "validation": ("驗證", "validation"),
    "step": ("步", "step"),
    "running": ("進行中", "running"),
    "unfinished": ("未完成", "unfinished"),
    "account": ("各階段的用時與成果", "What each stage cost and achieved"),
    "stage": ("階段", "Stage"),
    "time": ("時間", "Time"),
    "result": ("成果", "Result"),
    "total": ("合計", "Total"),
}


class Words:
    """The page's words in one language, `zh` or `en`."""

    def __init__(self, language: str) -> None:
        self.language = language

    def __call__(self, key: str, **values: object) -> str:
        """The text of `key`, its placeholders filled in."""
        return WORDS[key][self.language == "en"].format(**values)

    @property
    def tag(self) -> str:
        """The language as HTML names it."""
        return "en" if self.language == "en" else "zh-Hant-TW"


def preferred_language(accept_language: str | None) -> str:
    """`en` for a browser that prefers English to Chinese, else `zh`."""
    best = {"zh": -1.0, "en": -1.0}
    for entry in (accept_language or "").lower().split(","):
        tag, _, quality = entry.strip().partition(";q=")
        try:
            weight = float(quality) if quality else 1.0
        except ValueError:
            continue
        if (primary := tag.partition("-")[0]) in best:
            best[primary] = max(best[primary], weight)
    return "en" if best["en"] > best["zh"] else "zh"
