// Keeps a page fresh and filters its table. Without it the page reloads by itself.
"use strict";

const EVERY_MS = 2500;
const main = () => document.querySelector("main");

function applyFilter() {
  const box = document.getElementById("filter");
  if (!box) return;
  const words = box.value.toLowerCase().split(/\s+/).filter(Boolean);
  for (const row of document.querySelectorAll("tbody tr")) {
    const text = row.textContent.toLowerCase();
    row.hidden = !words.every((word) => text.includes(word));
  }
}

async function refresh() {
  if (document.hidden || main().dataset.live !== "yes") return;
  const answer = await fetch(location.href, { headers: { Accept: "text/html" } });
  if (answer.redirected || !answer.ok) return;
  const next = new DOMParser().parseFromString(await answer.text(), "text/html").querySelector("main");
  if (!next || next.innerHTML === main().dataset.last) return;
  const last = next.innerHTML;
  const box = document.getElementById("filter");
  const focused = document.activeElement;
  if (focused && focused !== box && main().contains(focused) && focused.tagName === "BUTTON") return;
  if (box && next.querySelector("#filter")) next.querySelector("#filter").replaceWith(box);
  const link = focused && main().contains(focused) && focused.getAttribute("href");
  const scrolled = [...document.querySelectorAll(".scroll")].map((place) => place.scrollLeft);
  main().replaceChildren(...next.childNodes);
  main().dataset.last = last;
  if (focused === box && box) box.focus();
  // Who goes from link to link by keyboard, or has moved a wide table, stays where they are.
  const same = link && [...main().querySelectorAll("a")].find((a) => a.getAttribute("href") === link);
  if (same) same.focus({ preventScroll: true });
  document.querySelectorAll(".scroll").forEach((place, n) => (place.scrollLeft = scrolled[n] ?? 0));
  applyFilter();
}

document.addEventListener("input", (event) => event.target.id === "filter" && applyFilter());
document.addEventListener("keydown", (event) => {
  const box = document.getElementById("filter");
  if (event.key === "/" && box && document.activeElement !== box) {
    event.preventDefault();
    box.focus();
  }
});
// A fleet that restarts is no reason to stop asking.
setInterval(() => refresh().catch(() => {}), EVERY_MS);
