"use strict";
// The recording: columns of numbers, one entry an exit, and the sites that they refer to.
const problems = [];
addEventListener("error", e => { problems.push(String(e.message)); document.body.dataset.problems = problems.length; });
addEventListener("unhandledrejection", e => { problems.push(String(e.reason)); document.body.dataset.problems = problems.length; });
const $ = id => document.getElementById(id);
const meta = JSON.parse($("meta").textContent);
const SITE = ["name", "access", "place", "address", "write", "size", "hasValue", "rip", "symbol",
  "instruction", "native", "explanation"];
const sites = meta.sites.map(s => Object.fromEntries(SITE.map((name, i) => [name, s[i]])));
const trace = { n: meta.count };

async function unpack(id) {
  const element = $(`column-${id}`), text = atob(element.textContent);
  element.remove();
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).arrayBuffer();
}

async function load() {
  const [time, run, handle, low, high, serial, site, count, vcpu, text] = await Promise.all(
    ["time", "run", "handle", "low", "high", "serial", "site", "count", "vcpu", "serialtext"].map(unpack));
  const t = new Float64Array(time);
  for (let i = 1; i < t.length; i++) t[i] += t[i - 1];
  Object.assign(trace, { time: t, run: new Uint32Array(run), handle: new Uint32Array(handle),
    low: new Uint32Array(low), high: new Uint32Array(high), serial: new Uint32Array(serial),
    site: new Uint32Array(site), count: new Uint32Array(count), vcpu: new Uint16Array(vcpu),
    text: new Uint8Array(text) });
  inOrder();
  trace.end = trace.n ? t[trace.n - 1] + trace.handle[trace.n - 1] : 1;
  trace.start = trace.n ? Math.max(0, Math.min(t[0], t[0] - trace.run[0])) : 0;
}

// Exits of several vCPUs are recorded as they were taken; here they are sorted by time.
function inOrder() {
  const t = trace.time;
  let sorted = true;
  for (let i = 1; i < t.length && sorted; i++) sorted = t[i] >= t[i - 1];
  if (sorted) return;
  const order = Uint32Array.from(t, (_, i) => i).sort((a, b) => t[a] - t[b] || a - b);
  for (const name of ["time", "run", "handle", "low", "high", "serial", "site", "count", "vcpu"]) {
    const from = trace[name], to = from.slice();
    for (let i = 0; i < order.length; i++) to[i] = from[order[i]];
    trace[name] = to;
  }
  for (let i = 1; i < trace.n; i++) if (trace.serial[i] < trace.serial[i - 1]) trace.serial[i] = trace.serial[i - 1];
}

// The first index in [0, n) with array[index] >= value, n if there is none.
function lowerBound(array, value, n = array.length) {
  let low = 0, high = n;
  while (low < high) { const mid = (low + high) >> 1; if (array[mid] < value) low = mid + 1; else high = mid; }
  return low;
}

function value(i) {
  const site = sites[trace.site[i]];
  if (!site.hasValue) return "";
  const number = (BigInt(trace.high[i]) << 32n) | BigInt(trace.low[i]);
  const hex = "0x" + number.toString(16).padStart(2 * site.size, "0");
  if (site.name === "io" && site.size === 1 && number > 32n && number < 127n)
    return `'${String.fromCharCode(Number(number))}'`;
  return hex;
}

function what(i) {
  const site = sites[trace.site[i]], told = value(i);
  const many = trace.count[i] > 1 ? ` … (${trace.count[i]} × ${site.size})` : "";
  return site.access + (told && ` ${site.write ? "←" : "→"} ${told}`) + many;
}

const code = site => [site.rip, site.symbol && `<${site.symbol}>`, site.instruction].filter(Boolean).join(" ");
const brief = site => [site.instruction, site.symbol || site.rip].filter(Boolean).join(" · ");
const micros = ns => (ns / 1000).toFixed(ns < 1e5 ? 2 : ns < 1e6 ? 1 : 0);
function duration(ns) {
  for (const [unit, size] of [["s", 1e9], ["ms", 1e6], ["µs", 1e3]])
    if (ns >= size) return `${(ns / size).toPrecision(3).replace(/e\+.*/, "")} ${unit}`;
  return `${Math.round(ns)} ns`;
}
const number = n => n.toLocaleString("en");
function node(tag, text, className) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}
