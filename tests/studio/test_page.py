"""The page in a real browser."""

import shutil
from collections.abc import Iterator
from types import SimpleNamespace
from urllib.parse import urlsplit

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright
from studio.fakes import HOSTILE, write_metrics

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = (
    "--no-sandbox",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium is installed; on Debian: apt-get install chromium"
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=list(QUIET))
        yield chromium
        chromium.close()


@pytest.fixture
def addresses() -> list[str]:
    """Every address the page has asked for."""
    return []


@pytest.fixture
def page(browser: Browser, studio: SimpleNamespace, addresses: list[str]) -> Iterator[Page]:
    """The studio as a visitor from Taiwan opens it; mistakes in the browser and requests elsewhere fail the test."""
    context = browser.new_context(locale="zh-TW", viewport={"width": 1280, "height": 860})
    context.on("request", lambda request: addresses.append(request.url))
    page = context.new_page()
    page.set_default_timeout(8000)
    page.on("websocket", lambda socket: addresses.append(socket.url))
    mistakes: list[str] = []
    page.on("pageerror", lambda error: mistakes.append(str(error)))
    page.on("console", lambda line: mistakes.append(line.text) if line.type == "error" else None)
    page.goto(studio.url)
    expect(page.locator(".examples")).to_be_visible()
    yield page
    context.close()
    assert mistakes == []
    hosts = {urlsplit(a).hostname for a in addresses if urlsplit(a).scheme not in ("data", "blob")}
    assert hosts == {"127.0.0.1"}


def ask(page: Page, text: str) -> None:
    page.get_by_label("訊息").fill(text)
    page.get_by_label("訊息").press("Enter")


def test_enter_brings_a_poem_with_its_verse_check(page: Page, addresses: list[str]) -> None:
    ask(page, "寫一首五言絕句，題為〈登樓〉。")
    expect(page.locator(".question")).to_have_text("寫一首五言絕句，題為〈登樓〉。")
    expect(page.locator(".poem .character")).to_have_text(list("白日依山盡黃河入海流欲窮千里目更上一層樓"))
    expect(page.locator(".poem .mark").first).to_have_text("仄")
    expect(page.locator(".rhyme .character")).to_have_text(["流", "樓"])
    expect(page.locator(".verdict-seal")).to_have_text("合律")
    expect(page.locator(".facts")).to_contain_text("押尤韻")
    expect(page.get_by_label("訊息")).to_have_value("")
    assert any(urlsplit(address).scheme == "ws" for address in addresses)


def test_faults_are_named(page: Page) -> None:
    ask(page, "寫一首五絕，題為〈月〉。")
    expect(page.locator(".verdict-seal")).to_have_text("不合律")
    expect(page.locator(".verdict")).to_contain_text("第 3 句失黏")
    expect(page.locator(".cell.fault .character").first).to_have_text("是")


def test_a_reply_is_seen_growing_and_can_be_stopped(page: Page, studio: SimpleNamespace) -> None:
    studio.engine.closed.clear()
    ask(page, "慢")
    expect(page.locator(".writing")).to_contain_text("仄起")
    page.get_by_role("button", name="停筆").click()
    expect(page.locator(".turn-foot")).to_contain_text("已停筆")
    assert studio.engine.closed.wait(2)
    assert len(page.locator(".prose").inner_text()) < 12
    expect(page.get_by_role("button", name="送出")).to_be_visible()


def test_leaving_the_page_stops_the_writing(browser: Browser, studio: SimpleNamespace) -> None:
    studio.engine.closed.clear()
    page = browser.new_page(locale="zh-TW")
    page.goto(studio.url)
    ask(page, "慢")
    expect(page.locator(".writing")).to_contain_text("仄起")
    page.close()
    assert studio.engine.closed.wait(15)


@pytest.mark.parametrize("composing", ["isComposing: true", "keyCode: 229"])
def test_enter_that_belongs_to_the_input_method_does_not_send(page: Page, composing: str) -> None:
    box = page.get_by_label("訊息")
    box.fill("秋夜")
    event = f"{{key: 'Enter', bubbles: true, cancelable: true, {composing}}}"
    box.evaluate(f"(e) => e.dispatchEvent(new KeyboardEvent('keydown', {event}))")
    page.wait_for_timeout(300)
    assert page.locator(".turn").count() == 0
    expect(box).to_have_value("秋夜")
    box.press("Shift+Enter")
    box.press_sequentially("二")
    expect(box).to_have_value("秋夜\n二")
    assert page.locator(".turn").count() == 0
    box.press("Enter")  # The same key sends once the input method is done.
    expect(page.locator(".turn")).to_have_count(1)


def test_the_desk_fills_and_sends_a_request(page: Page) -> None:
    page.get_by_role("button", name="七絕").click()
    page.get_by_label("題目").fill("江上")
    page.get_by_role("button", name="平起").click()
    page.get_by_label("韻部").click()
    page.get_by_role("option", name="陽").click()
    page.get_by_role("button", name="填入").click()
    expect(page.get_by_label("訊息")).to_have_value("寫一首七言絕句，題為〈江上〉，押陽韻，平起。")
    page.get_by_role("button", name="作詩").click()
    expect(page.locator(".question")).to_have_text("寫一首七言絕句，題為〈江上〉，押陽韻，平起。")
    expect(page.locator(".verdict")).to_contain_text("要求押陽韻：沒有做到")


def test_the_language_changes_around_the_conversation(page: Page) -> None:
    ask(page, "寫一首五絕")
    expect(page.locator(".verdict-seal")).to_have_text("合律")
    page.get_by_label("訊息").fill("未完")
    page.get_by_role("button", name="Switch to English").click()
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    expect(page.locator(".verdict-seal")).to_have_text("Keeps the rules")
    expect(page.get_by_label("Message")).to_have_value("未完")
    assert page.evaluate("document.documentElement.lang") == "en"
    page.reload()
    expect(page.locator(".empty-title")).to_have_text("Paper laid, ink ground.")
    page.get_by_role("button", name="切換為中文").click()
    expect(page.get_by_role("button", name="送出")).to_be_visible()
    assert page.evaluate("document.documentElement.lang").startswith("zh-Hant")


def test_an_english_browser_is_spoken_to_in_english(browser: Browser, studio: SimpleNamespace) -> None:
    page = browser.new_page(locale="en-GB")
    page.goto(studio.url)
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    page.close()


def test_markup_is_shown_and_never_run(page: Page) -> None:
    question = '毒 <img src=x onerror="window.hacked=1"> <script>window.hacked=1</script>'
    ask(page, question)
    expect(page.locator(".question")).to_have_text(question)
    expect(page.locator(".prose")).to_have_text(HOSTILE)
    ask(page, "寫一首五絕，題為〈<img src=x onerror=window.hacked=1>毒〉。")
    expect(page.locator(".poem-title")).to_have_text("<img src=x onerror=window.hacked=1>毒")
    expect(page.locator(".poem")).to_contain_text("onerror")
    assert page.evaluate("window.hacked") is None
    assert page.locator(".log img, .log script").count() == 0


def test_an_error_of_the_engine_is_shown(page: Page) -> None:
    ask(page, "錯")
    expect(page.get_by_role("alert")).to_contain_text("out of memory")
    expect(page.get_by_role("button", name="送出")).to_be_visible()


def test_curves_and_the_closing_table_follow_the_run(page: Page, studio: SimpleNamespace) -> None:
    page.get_by_role("button", name="訓練").click()
    stages = page.locator(".stage")
    expect(stages).to_have_count(2)
    expect(page.locator(".chart svg")).to_have_count(6)
    expect(page.get_by_role("img", name="損失（nats／詞元）: 7.9 → 6")).to_be_visible()
    expect(page.locator(".account")).to_contain_text("118,234")
    expect(page.locator(".account")).to_contain_text("<b>rhyme")
    write_metrics(studio.run / "sft/s1.partial", range(10, 31, 10))
    expect(stages.nth(1).locator(".running")).to_have_text("進行中")
    line = stages.nth(1).locator("svg path[fill='none'][stroke='#2c2722']").first
    before = line.get_attribute("d")
    write_metrics(studio.run / "sft/s1.partial", range(40, 201, 10))
    expect(line).not_to_have_attribute("d", before or "")


def test_a_telephone_is_wide_enough(page: Page) -> None:
    page.set_viewport_size({"width": 360, "height": 740})
    page.get_by_role("button", name="擬題").click()
    page.get_by_role("button", name="七律").click()
    page.get_by_label("題目").fill("登樓")
    page.get_by_role("button", name="作詩").click()
    expect(page.locator(".verdict-seal")).to_be_visible()
    for view in ("對話", "訓練"):
        page.get_by_role("button", name=view, exact=True).click()
        page.wait_for_timeout(200)
        assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_page_and_api_share_one_port_and_keep_strangers_out(studio: SimpleNamespace) -> None:
    assert httpx.get(f"{studio.url}/v1/models").json()["data"][0]["id"] == "poet"
    assert httpx.get(f"{studio.url}/v1/nothing").json()["error"]["code"] == "unknown_url"
    assert httpx.get(studio.url).headers["content-type"].startswith("text/html")
    handshake = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        "Origin": "http://evil.example",
    }
    socket = f"{studio.url}/_nicegui_ws/socket.io/?EIO=4&transport=websocket"
    assert httpx.get(socket, headers=handshake).status_code == 403
