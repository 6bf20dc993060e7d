"""The web page of `fcos serve` in chromium or Chrome."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from detectors import tiny_detector
from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright
from serving import encoded, picture, running, shape_detector

CHROMIUM_OPTIONS = [
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-gpu",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
]
COLORS = {"cat": (230, 159, 0), "dog": (86, 180, 233), "owl": (0, 158, 115)}
pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def chromium():
    """Return the browser context factory; every context is a new profile."""
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert path, "these tests need chromium or Chrome; on Debian: apt-get install chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=CHROMIUM_OPTIONS, chromium_sandbox=False)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def url():
    with running(tiny_detector(), name="tiny", max_body=1_000_000) as client:
        yield str(client.base_url)


@pytest.fixture
def open_page(chromium):
    """Return a function that opens the page of a server; the test fails if it loads anything else or has an error."""
    contexts, problems = [], []

    def note_error(kind, text):
        if kind == "error" and "server responded with a status of 4" not in text:  # the page displays these
            problems.append(text)

    def run(url, **options) -> Page:
        context = chromium.new_context(accept_downloads=True, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda request: request.url.startswith((url, "blob:")) or problems.append(request.url))
        page.on("console", lambda message: note_error(message.type, message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(url)
        expect(page.locator("#count")).to_have_text("No image")
        return page

    yield run
    for context in contexts:
        context.close()
    assert problems == []


def upload(page, *files):
    """Choose files, and wait for the detections of all of them."""
    page.set_input_files("#files", [{"name": name, "mimeType": "image/png", "buffer": data} for name, data in files])
    expect(page.locator("#busy")).to_be_hidden(timeout=120_000)


def shown_pixels(page, points):
    """Return the RGB of the canvas at points of an image that is 120 pixels wide."""
    return page.evaluate(
        """(points) => {
            const canvas = document.getElementById("canvas");
            const scale = canvas.width / 120;
            const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
            const start = ([x, y]) => 4 * (Math.floor(y * scale) * canvas.width + Math.floor(x * scale));
            return points.map((point) => [...data.slice(start(point), start(point) + 3)]);
        }""",
        points,
    )


def test_uploaded_image_shows_its_boxes_at_their_pixels(url, open_page):
    page = open_page(url)
    upload(page, ("a.png", encoded(picture())))
    expected = tiny_detector().predict(picture())
    assert len(expected) > 3
    expect(page.locator("#rows tr")).to_have_count(len(expected))
    expect(page.locator("#count")).to_have_text(f"{len(expected)} detections")
    page.uncheck("#labels")
    page.locator("#rows tr").first.click()  # draws it on top, and the others faintly
    x1, y1, x2, y2 = expected.boxes[0].tolist()
    edges = [(x1, (y1 + y2) / 2), (x2 - 0.01, (y1 + y2) / 2), ((x1 + x2) / 2, y1), ((x1 + x2) / 2, y2 - 0.01)]
    inside = [(x, y) for x, y in edges if 0 < x < 119 and 0 < y < 79]
    assert len(inside) >= 2
    for color in shown_pixels(page, inside):
        assert color == pytest.approx(COLORS[expected.names[0]], abs=12)


def test_several_images_are_shown_one_at_a_time(url, open_page):
    page = open_page(url)
    upload(page, *((f"{i}.png", encoded(picture(100 + i, 80, seed=i))) for i in range(9)))
    expect(page.locator("#strip button")).to_have_count(9)
    page.click("#strip button[title='7.png']")
    expect(page.locator("#canvas[aria-label^='7.png: ']")).to_be_visible()
    expected = tiny_detector().predict(picture(107, 80, seed=7))
    expect(page.locator("#rows tr")).to_have_count(len(expected))
    expect(page.locator("#strip button[aria-current=true]")).to_have_attribute("title", "7.png")


def test_format_that_the_browser_cannot_display_still_has_results(url, open_page):
    page = open_page(url)
    upload(page, ("a.tif", encoded(picture(), "TIFF")))
    expect(page.locator("#error-text")).to_contain_text("a.tif: this browser cannot display the format")
    expect(page.locator("#rows tr")).to_have_count(len(tiny_detector().predict(picture())))


def test_slider_and_class_buttons_select_detections(url, open_page):
    page = open_page(url)
    upload(page, ("a.png", encoded(picture())))
    detector = tiny_detector()
    for threshold in (0.55, 0.0, 1.0):
        page.locator("#threshold").fill(str(threshold))
        expect(page.locator("#value")).to_have_text(f"{threshold:.2f}")
        expected = detector.predict(picture(), threshold=threshold)
        expect(page.locator("#rows tr")).to_have_count(len(expected))
    page.click("#default")
    expect(page.locator("#value")).to_have_text("per class")
    names = detector.predict(picture()).names
    page.click(f"#classes button[data-name={names[0]}]")
    expect(page.locator("#rows tr")).to_have_count(len(names) - names.count(names[0]))


def test_keyboard_and_pointer_select_detections(url, open_page):
    page = open_page(url)
    upload(page, ("a.png", encoded(picture())))
    page.focus("#canvas")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    expect(page.locator("#rows tr").nth(1)).to_have_attribute("aria-selected", "true")
    page.keyboard.press("Escape")
    expect(page.locator("#rows tr[aria-selected=true]")).to_have_count(0)
    page.locator("#rows tr").first.focus()
    page.keyboard.press("Enter")
    page.keyboard.press("ArrowUp")
    expect(page.locator("#rows tr").last).to_be_focused()
    expect(page.locator("#rows tr").last).to_have_attribute("aria-selected", "true")
    expected = tiny_detector().predict(picture())
    sizes = expected.boxes_xywh[:, 2:].prod(dim=1)
    smallest = int(sizes.argmin())
    x1, y1, x2, y2 = expected.boxes[smallest].tolist()
    frame = page.locator("#canvas").bounding_box()
    assert frame
    scale = frame["width"] / 120
    page.locator("#canvas").click(position={"x": (x1 + x2) / 2 * scale, "y": (y1 + y2) / 2 * scale})
    expect(page.locator("#rows tr").nth(smallest)).to_have_attribute("aria-selected", "true")


def test_errors_are_displayed_and_the_page_stays_usable(url, open_page):
    page = open_page(url)
    page.set_input_files("#files", [{"name": "<b>notes</b>.txt", "mimeType": "text/plain", "buffer": b"text"}])
    expect(page.locator("#error-text")).to_have_text(
        "<b>notes</b>.txt: not an image, or the start of the file is damaged"
    )
    page.set_input_files("#files", [{"name": "big.png", "mimeType": "image/png", "buffer": bytes(1_000_001)}])
    expect(page.locator("#error-text")).to_have_text("big.png: is larger than 1 MB, the limit of this server.")
    page.click("#dismiss")
    expect(page.locator("#error")).to_be_hidden()
    upload(page, ("a.png", encoded(picture())))
    expect(page.locator("#count")).to_contain_text("detections")


def test_dropped_and_pasted_images_are_detected(url, open_page):
    page = open_page(url)
    data = list(encoded(picture()))
    for event, key in (("drop", "dataTransfer"), ("paste", "clipboardData")):
        page.evaluate(
            """([data, event, key]) => {
                const transfer = new DataTransfer();
                transfer.items.add(new File([new Uint8Array(data)], `${event}.png`, {type: "image/png"}));
                const options = {[key]: transfer, bubbles: true, cancelable: true};
                const Event = event === "drop" ? DragEvent : ClipboardEvent;
                document.body.dispatchEvent(new Event(event, options));
            }""",
            [data, event, key],
        )
        expect(page.locator(f"#canvas[aria-label^='{event}.png: ']")).to_be_visible(timeout=60_000)
    expect(page.locator("#strip button")).to_have_count(2)
    page.locator("#strip button").first.click()
    expect(page.locator("#canvas[aria-label^='drop.png: ']")).to_be_visible()


def test_camera_shows_detections_until_it_is_stopped(url, open_page):
    page = open_page(url)
    page.click("#camera")
    expect(page.locator("#camera")).to_have_text("Stop camera")
    page.locator("#threshold").fill("0")
    expect(page.locator("#rows tr").first).to_be_visible(timeout=120_000)
    page.click("#camera")
    expect(page.locator("#camera")).to_have_text("Camera")


def test_two_fast_clicks_start_one_camera(url, open_page):
    page = open_page(url)
    page.evaluate(
        """() => {
            const devices = navigator.mediaDevices, ask = devices.getUserMedia.bind(devices);
            window.asked = 0;
            devices.getUserMedia = (options) => { window.asked += 1; return ask(options); };
            for (let i = 0; i < 2; i++) document.getElementById("camera").click();
        }"""
    )
    expect(page.locator("#camera")).to_have_text("Stop camera")
    assert page.evaluate("window.asked") == 1
    page.click("#camera")
    expect(page.locator("#camera")).to_have_text("Camera")


def test_downloads_contain_the_shown_detections(url, open_page, tmp_path):
    page = open_page(url)
    upload(page, ("a.b.png", encoded(picture())))
    page.locator("#threshold").fill("0.55")
    expected = tiny_detector().predict(picture(), threshold=0.55)
    with page.expect_download() as download:
        page.click("#save-json")
    assert download.value.suggested_filename == "a.b.json"
    content = json.loads(Path(download.value.path()).read_text())
    assert [detection["box"] for detection in content["detections"]] == expected.boxes.tolist()
    assert (content["model"], content["width"], content["height"]) == ("tiny", 120, 80)
    with page.expect_download() as download:
        page.click("#save-image")
    assert download.value.suggested_filename == "a.b_detections.png"
    with Image.open(download.value.path()) as image:
        assert image.size == (120, 80)


def test_mask_and_keypoints_are_drawn_at_their_pixels(open_page):
    detector, white = shape_detector(), Image.new("RGB", (120, 80), "white")
    assert detector.model.postprocess
    detector.model.postprocess = replace(detector.model.postprocess, max_detections=1)
    expected = detector.predict(white, threshold=0.0)
    assert expected.masks is not None
    assert expected.keypoints is not None
    with running(detector) as client:
        page = open_page(str(client.base_url))
        page.uncheck("#labels")
        upload(page, ("a.png", encoded(white)))
        page.locator("#threshold").fill("0")
        expect(page.locator("#rows tr")).to_have_count(1)
        points = [(x + 0.5, y + 0.5) for y in range(80) for x in range(120)]
        colors = torch.tensor(shown_pixels(page, points)).view(80, 120, 3)
        keypoints = shown_pixels(page, expected.keypoints[0, :, :2].tolist())
    is_drawn = (colors < 250).any(dim=2)
    x1, y1, x2, y2 = expected.boxes[0].round().int().tolist()
    assert is_drawn[expected.masks[0]].float().mean() > 0.95
    assert expected.masks[0].sum() > 100
    is_drawn[max(y1 - 2, 0) : y2 + 2, max(x1 - 2, 0) : x2 + 2] = False
    assert not is_drawn.any()
    color = COLORS[expected.names[0]]
    assert sum(point == pytest.approx(color, abs=12) for point in keypoints) > 8  # others are below another one's rim


def test_labels_hide_little_of_the_boxes_in_a_crowded_image(url, open_page):
    largest_part, num_changed = open_page(url).evaluate(
        """async () => {
            const { paint } = await import("/page/draw.js");
            const detections = [];
            for (let y = 30; y < 280; y += 40)
                for (let x = 10; x < 380; x += 20)
                    detections.push({ name: "cell", score: 0.9, box: [x, y, x + 12, y + 12] });
            const options = { scale: 1, unit: 1, colorOf: () => "#e69f00", focused: null, skeleton: [] };
            const [plain, labelled] = [false, true].map((labels) => {
                const canvas = document.createElement("canvas");
                paint(canvas, { width: 400, height: 300, bitmap: null }, detections, { ...options, labels });
                return new Uint32Array(canvas.getContext("2d").getImageData(0, 0, 400, 300).data.buffer);
            });
            const changed = (i) => plain[i] !== labelled[i];
            const parts = detections.map(({ box: [x1, y1] }) => {
                let count = 0;
                for (let y = y1; y < y1 + 12; y++) for (let x = x1; x < x1 + 12; x++) count += changed(400 * y + x);
                return count / 144;
            });
            return [Math.max(...parts), [...plain.keys()].filter(changed).length];
        }"""
    )
    assert num_changed > 5000  # labels between the rows
    assert largest_part <= 0.25


def test_run_lengths_of_masks_are_those_of_coco(url, open_page):
    from fcos.masks import encode

    page = open_page(url)
    generator = torch.Generator().manual_seed(1)
    for size in ((7, 5), (300, 200), (1, 40)):
        bitmap = torch.rand(size, generator=generator) > 0.3
        if size[0] == 300:
            bitmap[:, :150] = False  # a long run
        counts = page.evaluate(
            "async (text) => (await import('/page/draw.js')).runLengths(text)", encode(bitmap)["counts"]
        )
        values = bitmap.T.flatten().int()
        _, lengths = torch.unique_consecutive(values, return_counts=True)
        expected = lengths.tolist() if not values[0] else [0, *lengths.tolist()]
        assert counts == expected


def test_token_is_asked_for(open_page, chromium):
    with running(tiny_detector(), token="s3cret") as client:
        context = chromium.new_context()
        page = context.new_page()
        page.goto(str(client.base_url))
        for token in ("wrong", "s3cret"):
            expect(page.locator("#login")).to_be_visible()
            page.fill("#token", token)
            page.keyboard.press("Enter")
        expect(page.locator("#title")).to_have_text("detector")
        expect(page.locator("#login")).to_be_hidden()
        upload(page, ("a.png", encoded(picture())))
        expect(page.locator("#count")).to_contain_text("detections")
        context.close()


def test_narrow_screen_has_no_horizontal_scrolling(url, open_page):
    page = open_page(url, viewport={"width": 360, "height": 640})
    upload(page, ("a.png", encoded(picture(400, 60))), ("b.png", encoded(picture(60, 400))))
    widths = page.evaluate("() => [document.documentElement.scrollWidth, innerWidth]")
    assert widths[0] <= widths[1]
    for part in ("#choose", "#camera", "#canvas", "#threshold", "#save-image"):
        box = page.locator(part).bounding_box()
        assert box
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 360


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_enough_contrast(url, open_page, scheme):
    page = open_page(url, color_scheme=scheme)
    upload(page, ("a.png", encoded(picture())))
    ratios = page.evaluate(
        """() => {
            const parse = (color) => color.match(/[\\d.]+/g).map(Number);
            const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
                .map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
                .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
            const ground = (node) => {
                for (; node; node = node.parentElement) {
                    const color = parse(getComputedStyle(node).backgroundColor);
                    if (color.length < 4 || color[3] === 1) return color;
                }
                return [255, 255, 255];
            };
            const names = ["#title", "#subtitle", "#choose", "#camera", "#value", "#count", "th", "td .name", ".foot"];
            return names.map((name) => {
                const node = document.querySelector(name);
                const [a, b] = [light(parse(getComputedStyle(node).color)), light(ground(node))].sort((x, y) => y - x);
                return [name, (a + 0.05) / (b + 0.05)];
            });
        }"""
    )
    assert [name for name, ratio in ratios if ratio < 4.5] == []


def test_controls_have_names(url, open_page):
    page = open_page(url)
    upload(page, ("a.png", encoded(picture())))
    for role, name in (
        ("button", "Choose images"),
        ("button", "Camera"),
        ("slider", "Score threshold"),
        ("checkbox", "Labels"),
        ("grid", "detections"),
        ("button", "Save JSON"),
    ):
        expect(page.get_by_role(role, name=name)).to_be_visible()
