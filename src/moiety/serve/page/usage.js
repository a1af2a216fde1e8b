// What this key used: bars by hour or day, each expert's part in its own colour, and a table.
"use strict";

const SVG = "http://www.w3.org/2000/svg";
const HOUR = 3600e3;
const CHART = { height: 220, left: 52, bottom: 26, top: 12 };
const LABEL_WIDTH = 64;

async function tellUsage() {
  const hours = Number(byId("hours").value);
  const { data } = await get(`/v1/usage?hours=${hours}`);
  if (hours !== Number(byId("hours").value)) return; // asked for others meanwhile
  const step = hours > 168 ? 24 * HOUR : HOUR;
  const bars = barsOf(data, hours, step, byId("measure").value);
  const names = [...new Set(data.map((row) => row.expert))].sort(inOrder);
  tellWords(bars, hours);
  byId("chart").replaceChildren(...(data.length ? [chart(bars, names, step)] : []));
  byId("usage-legend").replaceChildren(...names.map((name) => legend(name, bars)));
  byId("usage-rows").replaceChildren(...data.sort(latestFirst).map(usageRow));
}

function inOrder(a, b) {
  return (places.get(a) ?? Infinity) - (places.get(b) ?? Infinity) || (a < b ? -1 : 1);
}

function latestFirst(a, b) {
  return a.hour === b.hour ? inOrder(a.expert, b.expert) : a.hour < b.hour ? 1 : -1;
}

// A bar for each hour or day: when it begins, and each expert's part. Parts add up to what was
// answered: tokens by the routing, requests split as their hour's tokens were.
function barsOf(rows, hours, step, measure) {
  const now = Math.floor(Date.now() / step) * step;
  const count = Math.ceil((hours * HOUR) / step);
  const bars = Array.from({ length: count }, (_, place) => ({
    begins: now - (count - 1 - place) * step,
    parts: new Map(),
  }));
  for (const [hour, own] of Map.groupBy(rows, (row) => row.hour)) {
    const bar = bars[count - 1 - Math.floor((now + step - 1 - Date.parse(hour)) / step)];
    for (const [name, part] of bar ? partsOf(own, measure) : []) {
      bar.parts.set(name, (bar.parts.get(name) ?? 0) + part);
    }
  }
  return bars;
}

function partsOf(rows, measure) {
  const total = sumOf(rows.map((row) => row.share_sum));
  if (measure === "tokens") return rows.map((row) => [row.expert, row.share_sum]);
  const requests = Math.max(...rows.map((row) => row.requests)); // the anchor's row counts all
  if (!total) return [["anchor", requests]];
  return rows.map((row) => [row.expert, (requests * row.share_sum) / total]);
}

function sumOf(numbers) {
  return [...numbers].reduce((sum, one) => sum + one, 0);
}

function tellWords(bars, hours) {
  const total = sumOf(bars.map((bar) => sumOf(bar.parts.values())));
  const what = byId("measure").value === "tokens" ? "tokens answered" : "requests";
  const when = hours === 24 ? "24 hours" : `${hours / 24} days`;
  const by = hours > 168 ? "day" : "hour";
  byId("usage-words").textContent = total
    ? `${number(total)} ${what} in the last ${when}, by ${by} (UTC), split by the routing.`
    : `Nothing in the last ${when}.`;
}

function number(value) {
  return Math.round(value).toLocaleString("en");
}

function legend(name, bars) {
  const part = sumOf(bars.map((bar) => bar.parts.get(name) ?? 0));
  const total = sumOf(bars.map((bar) => sumOf(bar.parts.values())));
  const item = paint(element("li"), name);
  const words = ` ${name} ${total ? percent(part / total) : ""}`;
  item.append(element("span", "", "swatch"), element("span", words));
  return item;
}

function usageRow(row) {
  const share = row.completion_tokens ? percent(row.share_sum / row.completion_tokens) : "";
  const counts = [row.requests, row.prompt_tokens, row.completion_tokens].map(number);
  const made = element("tr");
  const when = row.hour.slice(0, 16).replace("T", " ");
  for (const text of [when, row.expert, ...counts, share]) made.append(element("td", text));
  return made;
}

// ---- the picture ----

function chart(bars, names, step) {
  const { height, left, bottom, top } = CHART;
  const width = Math.max(280, byId("chart").clientWidth);
  const most = topOf(Math.max(1, ...bars.map((bar) => sumOf(bar.parts.values()))));
  const scale = (height - bottom - top) / most;
  const svg = shape("svg", { viewBox: `0 0 ${width} ${height}`, role: "img" });
  svg.setAttribute("aria-label", byId("usage-words").textContent);
  for (const part of [0, 0.5, 1]) svg.append(...gridLine(part * most, scale, width));
  const wide = (width - left) / bars.length;
  bars.forEach((bar, place) => {
    const at = left + place * wide;
    svg.append(stack(bar, names, { at, wide, scale, step }));
  });
  svg.append(...ticks(bars, wide, step));
  return svg;
}

// The next round number.
function topOf(value) {
  const unit = 10 ** Math.floor(Math.log10(value));
  return unit * [1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10].find((times) => times * unit >= value);
}

function stack(bar, names, { at, wide, scale, step }) {
  const group = shape("g", {});
  let y = CHART.height - CHART.bottom;
  const gap = wide < 3 ? 0 : Math.min(2, wide / 4);
  for (const name of names) {
    const high = (bar.parts.get(name) ?? 0) * scale;
    if (!high) continue;
    y -= high;
    const box = { x: at + gap / 2, y, width: wide - gap, height: high, class: "part" };
    group.append(paint(shape("rect", box), name));
  }
  const told = names
    .filter((name) => bar.parts.get(name))
    .map((name) => `${name} ${number(bar.parts.get(name))}`);
  const title = shape("title", {});
  title.textContent = `${whenOf(bar.begins, step)}: ${told.join(", ")}`;
  group.append(title);
  return group;
}

function gridLine(value, scale, width) {
  const y = CHART.height - CHART.bottom - value * scale;
  const line = shape("line", { x1: CHART.left, x2: width, y1: y, y2: y, class: "grid" });
  const text = shape("text", { x: CHART.left - 8, y: y + 4, "text-anchor": "end" });
  text.textContent = value < 10 && value % 1 ? value.toFixed(1) : number(value);
  return [line, text];
}

// Hours where there is one day, else the days' beginnings; as many as have room.
function ticks(bars, wide, step) {
  const hourly = bars.length <= 24;
  const begins = (bar) => hourly || new Date(bar.begins).getUTCHours() === 0;
  const found = [...bars.entries()].filter(([, bar]) => begins(bar));
  const room = Math.floor((wide * bars.length) / LABEL_WIDTH);
  const each = Math.ceil(found.length / room);
  const fitting = found.filter(([place]) => (bars.length - place) * wide >= 0.7 * LABEL_WIDTH);
  return fitting.filter((_, place) => place % each === 0).map(([place, bar]) => {
    const text = shape("text", { x: CHART.left + place * wide, y: CHART.height - 6 });
    const [day, hour] = whenOf(bar.begins, step).split(" ");
    text.textContent = hourly ? hour : day;
    return text;
  });
}

function whenOf(moment, step) {
  const told = new Date(moment).toISOString();
  const day = told.slice(5, 10);
  return step > HOUR ? day : `${day} ${told.slice(11, 13)}h`;
}

function shape(tag, attributes) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}
