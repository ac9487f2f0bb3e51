"""Is a text Traditional Chinese, and how Taiwan prints it: OpenCC's s2tw tables, one character at a time.

Three kinds of characters must be told apart:

- *legal in both scripts* (后 里 于 云 台 干 …): Simplified uses them for several Traditional characters, but they
  are Traditional characters too. Big5, Taiwan's own character set, holds them, so they prove nothing.
- *Simplified only*, one Traditional original (黄 带 凉 …): reprints of old books mix these glyphs into
  Traditional text. They can be set right without reading the sentence.
- *Simplified only*, several originals (发 is 發 or 髮): only the sentence tells, so a text that holds one is
  not taken for Traditional.

Characters that Taiwan merely prints in another standard glyph (爲→為, 裏→裡, 峯→峰) are Traditional.
"""

import functools
from collections import defaultdict
from dataclasses import dataclass

SINGLE_IN_PROSE = "烟迹别净个毁馀夹径录药参麽"
"""Simplified-only characters with several originals on paper (煙 菸) but one in practice: OpenCC's first choice."""

NOT_SIMPLIFIED = "叶"
"""OpenCC takes it for 葉 alone, but it is also an old glyph of 協, as in 叶韻: left as it is."""

OLD_PRINT = (
    "疎疏踈疏鬰鬱欝鬱徧遍慙慚鈎鉤鶑鶯鸎鶯粧妝劒劍劔劍鷄雞鬭鬥鬬鬥鳬鳧蘂蕊臯皋皐皋猨猿髙高巵卮馿驢産產覩睹妬妒"
    "灧灩隣鄰餠餅罇樽飈飆飇飆閙鬧壠壟鎸鐫椀碗盌碗筯箸鳯鳳峩峨怱匆悤匆檝楫堦階畧略穉稚墻牆駡罵潄漱犂犁鏁鎖鎻鎖鼈鱉"
    "飜翻廻迴欵款邉邊頽頹磵澗羮羹栢柏槩概覊羈逈迥竝並棊棋碁棋烱炯暎映緜綿綫線壻婿纒纏輙輒讐讎頳赬朶朵敎教蠧蠹憇憩"
    "呌叫鵶鴉皷鼓邨村濶闊蕚萼囘回逺遠棃梨塲場闗關奬獎箒帚寜寧窻窗牕窗窓窗澁澀衞衛寃冤嚢囊輭軟帬裙汚汙虵蛇鞵鞋鐡鐵"
    "逰遊舘館釡釜籖籤甆瓷凖準彜彝襃褒覔覓徃往刼劫匳奩湼涅鋭銳氷冰鞾靴竪豎衘銜貎貌悮誤眀明曵曳膓腸濵濱纎纖昻昂聨聯"
    "攅攢蠒繭畆畝頬頰戸戶冩寫胷胸煑煮巓巔舩船凴憑鑛礦亷廉鵞鵝敍敘爼俎韮韭郷鄉擕攜騐驗冨富繋繫樷叢謌歌蠏蟹疉疊"
)
"""Pairs of a glyph of old print that neither Big5 nor OpenCC's tables hold, and the same character today."""


@dataclass(frozen=True)
class Script:
    """Character tables; each maps or holds single characters."""

    taiwan_glyph: dict[int, int]
    """For `str.translate`: glyphs with exactly one Taiwan-standard form → that form."""
    simplified: frozenset[str]
    """Characters that only Simplified text uses."""
    ambiguous: frozenset[str]
    """Those of `simplified` that stand for several Traditional characters."""
    traditional: frozenset[str]
    """Characters that only Traditional text uses."""


def is_traditional(text: str) -> bool:
    """Whether converting `text` from Simplified to Taiwan's standard would change nothing but glyphs.

    True if no character is ambiguous Simplified, and Simplified-only characters do not outnumber
    Traditional-only ones. A text without evidence either way counts as Traditional.
    """
    script = _script()
    found = set(text)
    simplified = found & script.simplified
    if not simplified:
        return True
    return not simplified & script.ambiguous and len(simplified) <= len(found & script.traditional)


def to_taiwan_glyphs(text: str) -> str:
    """The same Traditional text in the glyphs Taiwan's standard prints: 黄→黃, 爲→為, 裏→裡, 隠→隱."""
    return text.translate(_script().taiwan_glyph)


def taiwan_glyph_table() -> dict[int, int]:
    """The table behind `to_taiwan_glyphs`, by code point."""
    return _script().taiwan_glyph


@functools.cache
def _script() -> Script:
    characters = [chr(code) for block in ((0x3400, 0x4DC0), (0x4E00, 0xA000)) for code in range(*block)]
    s2tw, t2tw, t2s, jp2t = (_convert_each(characters, name) for name in ("s2tw", "t2tw", "t2s", "jp2t"))
    originals = defaultdict(list)
    for c in characters:
        if _in_big5(c):
            originals[t2s[c]].append(c)
    jp2t.update(zip(OLD_PRINT[::2], OLD_PRINT[1::2], strict=True))
    simplified, ambiguous, glyph = set(), set(), {}
    for c in characters:
        target = t2tw[c]
        if s2tw[c] != t2tw[c] and not _in_big5(c) and c not in NOT_SIMPLIFIED:
            simplified.add(c)
            target = s2tw[c]
            if len(originals[c]) > 1 and c not in SINGLE_IN_PROSE:
                ambiguous.add(c)
                continue
        if not _in_big5(c) and not _in_big5(target):  # Glyphs of Japanese print (隠 髪 頼), also found in old books.
            target = t2tw[jp2t[c]]
        if target != c and _in_big5(target):
            glyph[ord(c)] = ord(target)
    traditional = {c for c in characters if t2s[c] != c and c not in simplified}
    return Script(glyph, frozenset(simplified), frozenset(ambiguous), frozenset(traditional))


def _convert_each(characters: list[str], conversion: str) -> dict[str, str]:
    """Convert characters one by one: a line each, since OpenCC's phrases do not cross line ends."""
    from opencc import OpenCC

    converted = OpenCC(conversion).convert("\n".join(characters)).split("\n")
    return {c: t if len(t) == 1 else c for c, t in zip(characters, converted, strict=True)}


def _in_big5(character: str) -> bool:
    try:
        character.encode("big5")
    except UnicodeEncodeError:
        return False
    return True
