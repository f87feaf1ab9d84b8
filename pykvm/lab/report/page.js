// The page as a whole: what is chosen, the explanation, the serial output.
const page = { selected: -1, matches: null, group: null, sort: { by: "count", up: false } };
const waiting = new Set();
function later(job) { // at most once a frame
  if (waiting.has(job)) return;
  waiting.add(job);
  requestAnimationFrame(() => { waiting.delete(job); job(); });
}

const PARTS = [["why", "Why the guest was left"], ["kernel", "What KVM did"], ["user", "What user space did"], ["guest_next", "What the guest sees next"]];
function showDetail(i) {
  const site = sites[trace.site[i]], told = meta.explanations[site.explanation] || {}, list = node("dl");
  const add = (head, content) => { list.append(node("dt", head)); const dd = node("dd"); dd.append(content); list.append(dd); };
  const many = trace.count[i] > 1 ? `, ${trace.count[i]} elements of ${site.size}` : "";
  add("This exit", `#${i}, vCPU ${trace.vcpu[i]}, ${duration(trace.time[i])} after the start${many}: ${duration(trace.run[i])} in the guest before it, ${duration(trace.handle[i])} handled${site.native ? " (by a native rule)" : ""}.`);
  if (value(i)) add(site.write ? "Value written" : "Answer", node("code", exact(i)));
  if (code(site)) add("Instruction", node("code", code(site)));
  for (const [name, head] of PARTS) if (told[name]) add(head, told[name]);
  if (told.references && told.references.length) {
    const refs = node("ul"); refs.append(...told.references.map(r => node("li", r))); add("See", refs);
  }
  $("detail").replaceChildren(node("h3", `${what(i)}${site.place ? ` [${site.place}]` : ""}`), node("div", told.title, "quiet"), list);
  $("detail").scrollTop = 0;
}
function exact(i) {
  const number = (BigInt(trace.high[i]) << 32n) | BigInt(trace.low[i]), shown = value(i);
  return `0x${number.toString(16)} (${number}${shown.startsWith("'") ? `, ${shown}` : ""})`;
}

function select(i, from = "") {
  page.selected = i;
  document.body.dataset.selected = i;
  showDetail(i);
  const j = page.matches ? lowerBound(page.matches, i) : i;
  if (!page.matches || page.matches[j] === i) page.exits.reveal(j); else page.exits.paint();
  if (trace.time[i] < timeline.from || trace.time[i] > timeline.to) {
    const half = (timeline.to - timeline.from) / 2;
    view(trace.time[i] - half, trace.time[i] + half);
  } else later(draw);
  if (from !== "serial") markSerial(i);
}

// Serial output: lines as byte ranges of what the guest printed.
const decoder = new TextDecoder(), encoder = new TextEncoder();
const serial = { starts: [], mark: -1 };
function loadSerial() {
  const text = trace.text, starts = [0];
  for (let i = 0; i < text.length; i++) if (text[i] === 10 || i - starts[starts.length - 1] >= 2000) starts.push(i + 1);
  if (starts[starts.length - 1] >= text.length) starts.pop();
  serial.starts = starts;
  serial.list = new LongList($("serial"), 18, serialRow);
  serial.list.resize(starts.length);
  $("serial-note").textContent = text.length ? `click a character to see its exit${meta.serial_lost ? `; ${number(meta.serial_lost)} bytes more are not kept` : ""}` : "none";
  $("serial-box").hidden = !text.length;
}
const shownText = bytes => decoder.decode(bytes).replace(/\n$/, "").replace(/[\x00-\x08\x0b-\x1f\x7f]/g, c => String.fromCharCode(0x2400 + c.charCodeAt(0) % 0x7f));
const lineOf = position => Math.max(0, lowerBound(serial.starts, position + 1) - 1);
const lineEnd = line => line + 1 < serial.starts.length ? serial.starts[line + 1] : trace.text.length;
function serialRow(line) {
  const start = serial.starts[line], end = lineEnd(line), at = serial.mark - start;
  const row = node("div", undefined, "text");
  if (serial.mark >= start && serial.mark < end) {
    row.className = "text on";
    row.append(shownText(trace.text.subarray(start, start + at)), node("mark", shownText(trace.text.subarray(start + at, start + at + 1)) || " "), shownText(trace.text.subarray(start + at + 1, end)));
  } else row.textContent = shownText(trace.text.subarray(start, end)) || " ";
  row.onclick = event => chooseText(event, row, start, end);
  return row;
}
function chooseText(event, row, start, end) {
  let before = 0;
  const place = document.caretPositionFromPoint ? document.caretPositionFromPoint(event.clientX, event.clientY) : null;
  const range = !place && document.caretRangeFromPoint ? document.caretRangeFromPoint(event.clientX, event.clientY) : null;
  const [found, offset] = place ? [place.offsetNode, place.offset] : range ? [range.startContainer, range.startOffset] : [null, 0];
  if (found && row.contains(found)) {
    const walker = document.createTreeWalker(row, NodeFilter.SHOW_TEXT);
    for (let text = walker.nextNode(); text; text = walker.nextNode()) {
      if (text === found) { before += encoder.encode(text.data.slice(0, offset).replace(/[\u2400-\u2421]/g, "?")).length; break; }
      before += encoder.encode(text.data.replace(/[\u2400-\u2421]/g, "?")).length;
    }
  }
  const position = Math.min(start + before, end - 1), i = lowerBound(trace.serial, position + 1, trace.n);
  serial.mark = position;
  serial.list.paint();
  if (i < trace.n) select(i, "serial");
}
function markSerial(i) {
  if (!trace.text.length) return;
  const before = i ? trace.serial[i - 1] : 0, now = trace.serial[i];
  serial.mark = Math.max(0, (now > before ? now : before) - 1);
  serial.list.reveal(lineOf(Math.min(serial.mark, trace.text.length - 1)));
}

function showHead() {
  $("title").textContent = meta.title;
  const facts = Object.entries(meta.facts).map(([name, text]) => `${name} ${text}`);
  const host = { vmx: "Intel VMX host", svm: "AMD SVM host", software: "host without VMX and SVM (ring 0 is emulated)" }[meta.host];
  $("facts").textContent = [...facts, host, meta.end].filter(Boolean).join(" · ");
  let run = 0, handle = 0;
  for (let i = 0; i < trace.n; i++) { run += trace.run[i]; handle += trace.handle[i]; }
  for (const [name, text] of [["exits", number(trace.n)], ["in the guest", duration(run)], ["handled", duration(handle)], ["kinds of exits", number(sites.length)]]) {
    const box = node("div"); box.append(node("dt", name), node("dd", text)); $("numbers").append(box);
  }
  for (const name of [...new Set(sites.map(s => s.name))].sort()) $("reason").append(new Option(name, name));
  for (let cpu = 0; cpu < meta.vcpus; cpu++) $("vcpu").append(new Option(`vCPU ${cpu}`, cpu));
  $("vcpu").hidden = meta.vcpus < 2;
}

function watch() {
  let timer = 0;
  $("filter").addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(applyFilter, trace.n > 2e5 ? 250 : 40); });
  for (const id of ["reason", "vcpu", "view-only"]) $(id).addEventListener("change", applyFilter);
  $("group").addEventListener("change", () => { page.group = null; applyFilter(); });
  $("clear").onclick = () => { $("filter").value = $("reason").value = $("vcpu").value = ""; $("view-only").checked = false; page.group = null; applyFilter(); };
  $("exits").addEventListener("keydown", e => {
    const step = { ArrowDown: 1, ArrowUp: -1, PageDown: page.exits.visible, PageUp: -page.exits.visible, Home: -Infinity, End: Infinity }[e.key];
    const n = page.matches ? page.matches.length : trace.n;
    if (!step || !n) return;
    e.preventDefault();
    const now = page.selected < 0 ? -1 : page.matches ? lowerBound(page.matches, page.selected) : page.selected;
    const j = Math.max(0, Math.min(n - 1, now + step));
    select(page.matches ? page.matches[j] : j);
    page.exits.reveal(j);
  });
  addEventListener("resize", () => { later(draw); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => later(draw));
  watchTimeline();
}

load().then(() => {
  showHead();
  colours();
  page.exits = new LongList($("exits"), 24, exitRow);
  watch();
  loadSerial();
  applyFilter();
  showAll();
  draw(); // at once: it decides where everything below it is
  document.body.dataset.ready = "yes";
}).catch(error => {
  problems.push(String(error));
  document.body.dataset.problems = problems.length;
  document.body.dataset.ready = "failed";
  $("facts").textContent = `This page could not be shown: ${error}. It needs a browser of 2023 or later.`;
});
