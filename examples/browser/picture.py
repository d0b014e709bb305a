"""Let Chromium open the page, train the network and draw a digit, and take a picture of it.

python examples/browser/picture.py  leaves it in runs/browser.png; needs lamella[browser], chromium and chromedriver
"""

import functools
import http.server
import io
import itertools
import shutil
import sys
import threading
from pathlib import Path

from build import main as build
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.support.wait import WebDriverWait

SCALE = 1.25  # pixels of the picture for one of the page
THREE = [(-60, -75), (0, -100), (60, -70), (50, -20), (-5, -5), (55, 25), (55, 80), (0, 105), (-60, 80)]  # on the pad


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def take(address):
    """Return a picture of the page at work, down to what it says of a digit, in the colours of the dark."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in ("--headless", "--no-sandbox", "--disable-gpu", "--no-proxy-server", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        size = {"width": 600, "height": 1700, "deviceScaleFactor": SCALE, "mobile": False}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        dark = [{"name": "prefers-color-scheme", "value": "dark"}]
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": dark})
        driver.get(address)
        wait = WebDriverWait(driver, 60)
        wait.until(lambda _: driver.find_element("id", "start").is_enabled())
        driver.find_element("id", "start").click()
        wait.until(lambda _: "are done" in driver.find_element("id", "status").text)
        pen = ActionChains(driver, duration=20).move_to_element(driver.find_element("id", "pad"))
        pen.move_by_offset(*THREE[0]).click_and_hold()
        for (x, y), (to_x, to_y) in itertools.pairwise(THREE):
            pen.move_by_offset(to_x - x, to_y - y)
        pen.release().perform()
        wait.until(lambda _: "%" in driver.find_element("id", "answer").text)
        image = Image.open(io.BytesIO(driver.get_screenshot_as_png()))
        end = driver.find_element("class name", "drawing").rect
        start = driver.find_element("tag name", "main").rect
        sides = start["x"], start["y"], start["x"] + start["width"], end["y"] + end["height"] + 16
        return image.crop([round(SCALE * side) for side in sides])
    finally:
        driver.quit()


def main(folder=Path("runs/browser")):
    build(folder)
    handler = functools.partial(Quiet, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        image = take(f"http://127.0.0.1:{server.server_port}/")
        server.shutdown()
    picture = folder.with_suffix(".png")
    image.convert("RGB").quantize(64, dither=Image.Dither.NONE).save(picture, optimize=True)
    print(f"the page at work: {picture}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        sys.exit(f"usage: python {sys.argv[0]}")
    main()
