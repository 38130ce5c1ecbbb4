"""Take the pictures of the web pages: `python scripts/ui_pictures.py [DIR]`. Writes docs/pictures/.

They show a fleet with a day of history, the one of the tests, as Chromium does.
"""

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from playwright.sync_api import Page  # noqa: E402

from browser_rig import chromium, looking  # noqa: E402
from fleet_rig import mosquitto, wait  # noqa: E402
from ui_rig import Town, shown, token, town  # noqa: E402

DESK, PHONE = (1280, 860), (375, 760)
COLOURS = 160
LARGEST = 200_000


def views(made: Town) -> dict[str, tuple[str, Any, tuple[int, int]]]:
    """Return what is to be taken: path, theme and size of the window, by name."""
    eu, us = (made.newest(group) for group in ("cameras-eu", "cameras-us"))
    return {
        "overview": ("/", "light", DESK),
        "devices": ("/devices?state=behind", "light", DESK),
        "device": ("/devices/eu-cam-01", "dark", DESK),
        "rollout": (eu, "light", DESK),
        "rollout-paused": (us, "dark", DESK),
        "compare": ("/releases/compare", "light", DESK),
        "drift": ("/drift?release=person@1.3.0", "dark", DESK),
        "phone": (us, "light", PHONE),
    }


def take(page: Page, target: Path) -> None:
    """Save what PAGE shows as a small picture."""
    page.screenshot(path=target)
    with Image.open(target) as picture:
        small = picture.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
        small.save(target, optimize=True)
    if target.stat().st_size > LARGEST:
        sys.exit(f"{target} is larger than {LARGEST} bytes")


def main(folder: Path) -> None:
    """Take all pictures into FOLDER."""
    with tempfile.TemporaryDirectory() as name, mosquitto(Path(name) / "fleet") as broker:
        made = town(Path(name), time.time(), broker.address)
        made.service.link.start()
        wait("the broker", lambda: made.service.link.connected)
        with shown(made) as url, chromium() as browser:
            for name, (path, theme, size) in views(made).items():
                with looking(browser, url, token(made), theme, *size) as page:
                    page.goto(path)
                    page.wait_for_timeout(600)
                    take(page, folder / f"ui-{name}.png")
        made.service.link.stop()
        made.service.database.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "pictures")
