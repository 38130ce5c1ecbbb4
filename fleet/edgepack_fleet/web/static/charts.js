// Draws the charts of a device: one time axis for all, a cursor that moves on every one of them.
"use strict";

const drawn = new Map();
const sync = uPlot.sync("device");

function colour(name) {
  // A token may be another one in the other theme: only the browser knows which counts now.
  const probe = document.createElement("i");
  probe.className = "unseen";
  probe.style.color = `var(${name})`;
  document.body.append(probe);
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
}

const FEW = 24; // values up to which each is marked
const SHORTEST = 3600; // seconds of a time axis at least, so that a single value has a place on it

// A line needs two values beside each other: of few, and of one between gaps, there is a mark.
function marked(plot, series) {
  const values = plot.data[series];
  const known = values.map((_value, at) => at).filter((at) => values[at] !== null);
  const none = (at) => values[at] === null || values[at] === undefined;
  return known.length <= FEW ? known : known.filter((at) => none(at - 1) && none(at + 1));
}

// The axis ends now: not with room after it, and not with the last that a silent device has told.
function time(plot) {
  const [times, now] = [plot.data[0], Number(plot.root.parentElement.dataset.until)];
  const end = Math.max(times[times.length - 1], now);
  return [Math.min(times[0], end - SHORTEST), end];
}

const hour = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit" });

// Where another release took over, a dashed line on every chart.
function releases(plot) {
  const names = JSON.parse(plot.root.closest(".charts").dataset.bundles);
  const { ctx, bbox } = plot;
  ctx.save();
  ctx.strokeStyle = ctx.fillStyle = colour("--muted");
  ctx.setLineDash([4, 4]);
  ctx.font = `${11 * devicePixelRatio}px system-ui`;
  for (let n = 1; n < names.length; n += 1) {
    if (names[n] === names[n - 1] || !names[n]) continue;
    const x = Math.round(plot.valToPos(plot.data[0][n], "x", true)) + 0.5;
    ctx.beginPath();
    ctx.moveTo(x, bbox.top);
    ctx.lineTo(x, bbox.top + bbox.height);
    ctx.stroke();
    if (bbox.width < 420 * devicePixelRatio) continue;
    ctx.textAlign = x > bbox.left + bbox.width / 2 ? "right" : "left";
    ctx.fillText(names[n], x + (ctx.textAlign === "right" ? -5 : 5) * devicePixelRatio, bbox.top + 9 * devicePixelRatio);
  }
  ctx.restore();
}

function options(place, bars) {
  const [line, muted, grid] = [colour("--bar-busy"), colour("--muted"), colour("--line")];
  const axis = { stroke: muted, grid: { stroke: grid, width: 1 }, ticks: { show: false }, font: "12px system-ui" };
  const reading = place.closest("figure").querySelector("[data-reading]");
  const unit = place.dataset.unit;
  return {
    width: place.clientWidth,
    height: place.clientHeight,
    cursor: { sync: { key: sync.key }, y: false, points: { size: 7 } },
    scales: { x: { range: time }, y: { range: (_plot, low, high) => [0, (high || 1) * 1.15] } },
    axes: [
      { ...axis, space: 60, size: 26, values: (_plot, at) => at.map((time) => hour.format(time * 1000)) },
      { ...axis, size: 40, space: 30 },
    ],
    series: [{}, {
      stroke: line, width: 1.5, fill: bars ? line : undefined, spanGaps: false,
      paths: bars ? uPlot.paths.bars({ size: [0.8, 12] }) : undefined,
      points: bars ? { show: false } : { show: true, filter: marked, size: 5, stroke: line, fill: line },
    }],
    hooks: {
      draw: [releases],
      setCursor: [(plot) => {
        const at = plot.cursor.idx;
        const values = plot.data[1];
        const last = values.findLast((value) => value !== null);
        const value = at === null || at === undefined ? last : values[at];
        const time = at ? hour.format(plot.data[0][at] * 1000) + " · " : "";
        reading.textContent = value === null || value === undefined ? "" : `${time}${+value.toPrecision(3)} ${unit}`;
      }],
    },
  };
}

function draw(place, anew) {
  const [x, y] = [place.getAttribute("data-x"), place.getAttribute("data-y")];
  const before = drawn.get(place);
  if (before && before.y === y && before.x === x && !anew) return;
  const data = [JSON.parse(x), JSON.parse(y)];
  if (before && !anew) {
    before.plot.setData(data);
    drawn.set(place, { ...before, x, y });
    return;
  }
  before?.plot.destroy();
  const plot = new uPlot(options(place, place.hasAttribute("data-bars")), data, place);
  drawn.set(place, { plot, x, y });
  plot.setCursor({ left: -10, top: -10 });
}

function drawAll(anew) {
  for (const [place, { plot }] of drawn) {
    if (!place.isConnected) {
      plot.destroy();
      drawn.delete(place);
    }
  }
  for (const place of document.querySelectorAll(".plot")) draw(place, anew);
}

new ResizeObserver(() => {
  for (const [place, { plot }] of drawn) plot.setSize({ width: place.clientWidth, height: place.clientHeight });
}).observe(document.getElementById("main"));
document.addEventListener("fresh", () => drawAll(false));
document.addEventListener("theme", () => drawAll(true));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawAll(true));
drawAll(false);
