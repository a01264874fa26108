"""What is wrong with the layout of a page, by the boxes of its elements: no comparison of pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from .pages import Page

__all__ = ["WIDTHS", "layout_problems"]

#: A phone, a tablet, a laptop: one width on each side of every breakpoint of the console.
WIDTHS: Final = (390, 900, 1440)

_PROBLEMS: Final = """(() => {
  const found = [];
  const name = (each) => `${each.tagName.toLowerCase()}.${each.className} "${
    (each.getAttribute("aria-label") ?? each.innerText ?? "").trim().slice(0, 40)}"`;
  // The part of an element that its scrolling ancestors show.
  const visible = (each) => {
    let { left, top, right, bottom } = each.getBoundingClientRect();
    for (let up = each.parentElement; up !== null && up !== document.body; up = up.parentElement) {
      if (getComputedStyle(up).overflowY === "visible") continue;
      const box = up.getBoundingClientRect();
      [left, top] = [Math.max(left, box.left), Math.max(top, box.top)];
      [right, bottom] = [Math.min(right, box.right), Math.min(bottom, box.bottom)];
    }
    return { left, top, right, bottom };
  };
  if (document.documentElement.scrollWidth > innerWidth) {
    found.push(`the page is ${document.documentElement.scrollWidth} wide in a window of ${innerWidth}`);
  }
  const controls = [...document.querySelectorAll("button, input, select, textarea, summary")]
    .filter((each) => each.checkVisibility() && each.closest(".unseen") === null)
    .map((each) => [each, visible(each)])
    .filter(([, { left, top, right, bottom }]) => right - left > 1 && bottom - top > 1);
  for (const [each, { left, right }] of controls) {
    if (left < -0.5 || right > innerWidth + 0.5) found.push(`${name(each)} is beyond the edge`);
  }
  // The panel of the identity lies over the page.
  const layer = (each) => each.closest(".identity-panel") !== null;
  controls.forEach(([one, a], index) => {
    for (const [other, b] of controls.slice(index + 1)) {
      if (one.contains(other) || other.contains(one) || layer(one) !== layer(other)) continue;
      const across = Math.min(a.right, b.right) - Math.max(a.left, b.left);
      const down = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
      if (across > 1 && down > 1) found.push(`${name(one)} overlaps ${name(other)}`);
    }
  });
  for (const each of document.querySelectorAll("button, .badge, .state, h2, dt, .notice p")) {
    const isCut = each.scrollWidth > each.clientWidth + 1 && getComputedStyle(each).overflowX !== "visible";
    if (each.checkVisibility() && isCut && getComputedStyle(each).textOverflow !== "ellipsis") {
      found.push(`${name(each)} is cut`);
    }
  }
  return found;
})()"""


async def layout_problems(page: Page, state: str, pictures: Path) -> list[str]:
    """Return what is wrong at each width, with a picture for each in ``pictures``, and restore the window."""
    found = []
    before: dict[str, Any] = await page.run("return page.viewportSize()")
    for width in WIDTHS:
        await page.run("await page.setViewportSize({ width: args.width, height: 900 })", width=width)
        problems: list[str] = await page.evaluate(_PROBLEMS)
        if problems:
            picture = str(pictures / f"{state}-{width}.png")
            await page.run("await page.screenshot({ path: args.path, fullPage: true })", path=picture)
            found += [f"{state}, {width} wide: {problem} ({picture})" for problem in problems]
    await page.run("await page.setViewportSize(args.size)", size=before)
    return found
