// Keeps a page fresh, asks before something is done, and helps the keyboard. Every page works
// without it: links lead to pages, forms are sent, and the page reloads by itself.
"use strict";

const QUIET_MS = 15000; // a page reads itself again at least so often: telemetry is no change
const SETTLE_MS = 400; // many changes that come together are read at once
const root = document.documentElement;
root.classList.add("js");

// -- theme: in a cookie, so that the next page already comes in it

function setTheme(name) {
  root.dataset.theme = name;
  document.cookie = `edgepack_theme=${name}; path=/; max-age=31536000; SameSite=Strict`;
  document.querySelector('meta[name="color-scheme"]').content = name === "auto" ? "light dark" : name;
  for (const button of document.querySelectorAll("[data-theme-to]")) {
    button.setAttribute("aria-pressed", String(button.dataset.themeTo === name));
  }
  document.dispatchEvent(new Event("theme"));
}

// -- what the page says is kept as people have it: what is chosen, unfolded, typed

Idiomorph.defaults.ignoreActiveValue = true;
Idiomorph.defaults.callbacks.beforeAttributeUpdated = (name, node) => {
  if (name === "open" && (node.tagName === "DETAILS" || node.tagName === "DIALOG")) return false;
  if (name === "checked" && node.closest?.(".pick")) return false;
  if (name === "hidden" && node.matches?.(".copy, #bulk")) return false;
  return true;
};
Idiomorph.defaults.callbacks.beforeNodeMorphed = (old, next) => {
  if (!(old instanceof Element) || !old.classList.contains("plot")) return true;
  for (const name of ["data-x", "data-y", "data-until", "aria-label"]) {
    if (next.hasAttribute?.(name)) old.setAttribute(name, next.getAttribute(name));
  }
  return false; // what is drawn inside stays; charts.js draws it anew
};

// -- live

let asked = 0;
let pause = 1000; // ms; what costs a large fleet much is asked for seldom
let waiting = null;

function refresh() {
  clearTimeout(waiting);
  waiting = null;
  asked = Date.now();
  if (document.hidden || !document.body.classList.contains("in")) return;
  const here = location.pathname + location.search;
  const done = () => (pause = Math.max(1000, 4 * (Date.now() - asked)));
  htmx.ajax("GET", here, { target: "#live", select: "#live", swap: "morph:outerHTML", source: "#live" }).then(done, done);
}

function changed() {
  if (waiting === null) waiting = setTimeout(refresh, Math.max(SETTLE_MS, asked + pause - Date.now()));
  htmx.trigger(document.body, "fleet:changed");
}

function pulse(state, text) {
  const shown = document.getElementById("pulse");
  if (!shown || shown.dataset.state === state) return;
  shown.dataset.state = state;
  shown.querySelector("span").textContent = text;
}

// A tab that nobody sees has no stream: a browser has six connections to one host, for all tabs.
let stream = null;
let losing = null; // a moment without a stream is no news
let again = null;
let heard = document.body.dataset.change;

function listen() {
  if (stream !== null || document.hidden) return;
  stream = new EventSource(`/live?after=${heard}`);
  stream.onopen = () => {
    clearTimeout(losing);
    losing = null;
    if (document.getElementById("pulse").dataset.state === "lost") changed();
    pulse("on", "Live");
  };
  stream.onerror = () => {
    losing ??= setTimeout(() => pulse("lost", "Reconnecting …"), 2500);
    // A browser gives up on an answer that is no stream: the fleet restarts, or the session is over.
    if (stream.readyState === EventSource.CLOSED) {
      hush();
      pulse("lost", "Reconnecting …");
      refresh(); // leads to the login, if it is the session
      again = setTimeout(listen, 5000);
    }
  };
  for (const type of [...document.body.dataset.types.split(" "), "edgepack.stream.gap"]) {
    stream.addEventListener(type, (event) => {
      heard = event.lastEventId || heard;
      changed();
    });
  }
}

function hush() {
  clearTimeout(losing);
  clearTimeout(again);
  losing = again = null;
  stream?.close();
  stream = null;
}

function seen() {
  if (document.hidden) {
    hush();
    pulse("off", "Not live");
    return;
  }
  listen(); // first: what changes while the page is read is told after it
  refresh();
}

document.addEventListener("htmx:beforeSwap", (event) => {
  const answer = new URL(event.detail.xhr.responseURL, location.href);
  if (answer.pathname === "/login") {
    event.detail.shouldSwap = false;
    location.reload(); // the session is over: the server knows where to send us
  }
});
for (const [name, text] of [["htmx:sendError", "The fleet does not answer."], ["htmx:responseError", "The fleet cannot answer now."]]) {
  document.addEventListener(name, () => {
    const lost = document.getElementById("lost");
    lost.textContent = `${text} What you see may be old; trying again.`;
    lost.hidden = false;
    pulse("lost", "Reconnecting …");
  });
}
document.addEventListener("htmx:beforeRequest", () => root.classList.add("asking"));
document.addEventListener("htmx:afterRequest", (event) => {
  root.classList.remove("asking");
  if (event.detail.successful) document.getElementById("lost").hidden = true;
});
document.addEventListener("htmx:afterSettle", (event) => {
  if (event.target.id === "dialog" && !event.target.open) event.target.showModal();
  prepare();
});

// -- choosing devices

const picks = () => [...document.querySelectorAll(".pick input[name=id]")];

function count() {
  const bulk = document.getElementById("bulk");
  if (!bulk) return;
  const chosen = picks().filter((pick) => pick.checked);
  bulk.hidden = chosen.length === 0;
  bulk.querySelector("[data-count]").textContent = chosen.length;
  const all = document.querySelector("[data-choose-all]");
  all.checked = chosen.length > 0 && chosen.length === picks().length;
  all.indeterminate = chosen.length > 0 && !all.checked;
}

async function copy(button, text) {
  const said = button.querySelector("span");
  const before = said.textContent;
  try {
    await navigator.clipboard.writeText(text);
    said.textContent = "Copied";
  } catch {
    said.textContent = "Select and copy it by hand";
  }
  setTimeout(() => (said.textContent = before), 1600);
}

document.addEventListener("click", (event) => {
  const hit = (selector) => event.target.closest?.(selector);
  const themed = hit("[data-theme-to]");
  if (themed) setTheme(themed.dataset.themeTo);
  const copied = hit("[data-copy]");
  if (copied) copy(copied, copied.dataset.copy);
  const ids = hit("[data-copy-chosen]");
  if (ids) copy(ids, picks().filter((p) => p.checked).map((p) => p.value).join("\n"));
  if (hit("[data-choose-none]")) {
    picks().forEach((pick) => (pick.checked = false));
    count();
  }
  const close = hit("dialog [data-close]");
  if (close) {
    event.preventDefault();
    close.closest("dialog").close();
  }
  if (event.target.tagName === "DIALOG") event.target.close(); // beside it
});
document.addEventListener("change", (event) => {
  if (event.target.matches("[data-choose-all]")) picks().forEach((p) => (p.checked = event.target.checked));
  if (event.target.closest(".pick")) count();
});
document.addEventListener("keydown", (event) => {
  const search = document.getElementById("q");
  const typing = event.target.matches?.("input, select, textarea");
  if (event.key === "/" && search && !typing && !event.ctrlKey && !event.metaKey) {
    event.preventDefault();
    search.focus();
    search.select();
  }
  // What looks like a button is pressed like one.
  if (event.key === " " && event.target.matches?.("a[role=button]")) {
    event.preventDefault();
    event.target.click();
  }
});

// -- begin

function prepare() {
  for (const button of document.querySelectorAll(".copy")) button.hidden = false;
  count();
  document.dispatchEvent(new Event("fresh"));
}

for (const themes of document.querySelectorAll(".themes")) themes.hidden = false;
prepare();
if (document.body.classList.contains("in")) {
  listen();
  setInterval(() => Date.now() - asked > QUIET_MS && refresh(), 3000);
  document.addEventListener("visibilitychange", seen);
  window.addEventListener("pagehide", hush);
  window.addEventListener("pageshow", listen); // back from the browser's memory
  asked = Date.now();
}
