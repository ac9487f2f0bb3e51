"""Which language people are spoken to in."""

import pytest

from wenfang.core.language import language, say


@pytest.mark.parametrize(
    ("environment", "spoken"),
    [
        ({}, "zh"),
        ({"LANG": "C.UTF-8"}, "zh"),
        ({"LANG": "zh_TW.UTF-8"}, "zh"),
        ({"LANG": "ja_JP.UTF-8"}, "zh"),
        ({"LANG": "en_US.UTF-8"}, "en"),
        ({"LANG": "en_US.UTF-8", "LC_ALL": "zh_TW.UTF-8"}, "zh"),
        ({"LANG": "zh_TW.UTF-8", "LC_ALL": "en_GB.UTF-8"}, "en"),
        ({"LANG": "zh_TW.UTF-8", "WENFANG_LANGUAGE": "en"}, "en"),
        ({"LANG": "en_US.UTF-8", "WENFANG_LANGUAGE": "zh"}, "zh"),
        ({"LANG": "en_US.UTF-8", "WENFANG_LANGUAGE": ""}, "en"),
        ({"WENFANG_LANGUAGE": "EN"}, "en"),
    ],
)
def test_the_locale_decides_and_a_variable_of_ours_overrules_it(
    environment: dict[str, str], spoken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WENFANG_LANGUAGE", "LC_ALL", "LANG"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert language() == spoken
    assert say(zh="文房", en="study") == {"zh": "文房", "en": "study"}[spoken]
