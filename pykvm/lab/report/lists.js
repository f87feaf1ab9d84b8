// Lists of any length: only the rows in sight exist. Browsers limit how tall an element can be,
// so above that the scroll bar is scaled.
const TALLEST = 8e6;
class LongList {
  constructor(element, rowHeight, makeRow) {
    this.element = element; this.rowHeight = rowHeight; this.makeRow = makeRow; this.n = 0; this.rows = new Map();
    this.sizer = node("div", undefined, "sizer");
    element.replaceChildren(this.sizer);
    element.addEventListener("scroll", () => this.scrolled());
    new ResizeObserver(() => this.scrolled()).observe(element);
  }
  get visible() { return Math.max(1, Math.floor(this.element.clientHeight / this.rowHeight)); }
  resize(n) {
    this.n = n;
    this.height = Math.min(TALLEST, n * this.rowHeight);
    this.sizer.style.height = `${this.height}px`;
    this.paint();
  }
  get scaled() { return this.n * this.rowHeight > TALLEST; }
  get first() {
    const top = this.element.scrollTop;
    if (!this.scaled) return top / this.rowHeight;
    return top / Math.max(1, this.height - this.element.clientHeight) * (this.n - this.visible);
  }
  paint() { // every row anew
    this.rows.clear();
    this.sizer.replaceChildren();
    this.scrolled();
  }
  scrolled() { // rows in sight stay the elements they are: a row that is being pressed gets its click
    const start = Math.max(0, Math.floor(this.first)), end = Math.min(this.n, start + this.visible + 2);
    const shift = this.scaled ? Math.min(this.element.scrollTop, this.height - (end - start) * this.rowHeight) - start * this.rowHeight : 0;
    for (const [i, row] of this.rows) if (i < start || i >= end) { row.remove(); this.rows.delete(i); }
    let next = this.sizer.firstChild;
    for (let i = start; i < end; i++) {
      let row = this.rows.get(i);
      if (row) next = row.nextSibling;
      else { this.rows.set(i, row = this.makeRow(i)); this.sizer.insertBefore(row, next); }
      row.style.top = `${i * this.rowHeight + shift}px`;
    }
  }
  reveal(i) {
    const start = this.first, inside = i >= Math.ceil(start) && i < Math.floor(start) + this.visible;
    if (!inside) {
      const wanted = Math.max(0, i - Math.floor(this.visible / 3));
      this.element.scrollTop = this.scaled
        ? wanted / Math.max(1, this.n - this.visible) * (this.height - this.element.clientHeight)
        : wanted * this.rowHeight;
    }
    this.paint();
  }
}

// What passes the filter: indices of exits, or null for all of them.
function applyFilter() {
  const words = $("filter").value.toLowerCase().split(/\s+/).filter(Boolean), reason = $("reason").value, cpu = $("vcpu").value;
  const only = $("view-only").checked, grouped = page.group !== null;
  const active = words.length || reason || cpu || only || grouped;
  $("clear").hidden = !active;
  if (!active) page.matches = null;
  else {
    const ok = Uint8Array.from(sites, site => {
      const text = `${site.name} ${site.access} ${site.place} ${code(site)} ${site.native ? "native" : ""}`.toLowerCase();
      return words.every(w => text.includes(w)) && (!reason || site.name === reason) && (!grouped || groupKey(site) === page.group);
    });
    const from = only ? lowerBound(trace.time, timeline.from) : 0, to = only ? lowerBound(trace.time, timeline.to) : trace.n;
    const found = new Uint32Array(Math.max(0, to - from));
    let n = 0;
    for (let i = from; i < to; i++)
      if (ok[trace.site[i]] && (cpu === "" || trace.vcpu[i] === Number(cpu))) found[n++] = i;
    page.matches = found.slice(0, n);
  }
  const n = page.matches ? page.matches.length : trace.n;
  $("shown").textContent = `${number(n)} of ${number(trace.n)} exits`;
  page.exits.element.scrollTop = 0;
  page.exits.resize(n);
  document.body.dataset.shown = n;
  drawGroups();
}

const groupKey = site => ({ site: sites.indexOf(site), place: site.place || site.name, reason: site.name,
  symbol: site.symbol.split("+")[0] || "(no symbol)" })[$("group").value];

function gather() {
  const rows = new Map(), keyOf = sites.map(groupKey), wanted = page.group !== null;
  const n = page.matches && !wanted ? page.matches.length : trace.n;
  for (let j = 0; j < n; j++) {
    const i = page.matches && !wanted ? page.matches[j] : j, key = keyOf[trace.site[i]];
    let row = rows.get(key);
    if (!row) rows.set(key, row = { key, site: sites[trace.site[i]], count: 0, run: 0, handle: 0 });
    row.count++; row.run += trace.run[i]; row.handle += trace.handle[i];
  }
  return [...rows.values()];
}

const GROUP_LIMIT = 300;
function drawGroups() {
  const kind = $("group").value, rows = gather(), { by, up } = page.sort;
  const key = row => ({ count: row.count, run: row.run, handle: row.handle, each: (row.run + row.handle) / row.count,
    what: row.site.access, place: row.site.place, code: code(row.site), reason: row.site.name, key: String(row.key) })[by];
  rows.sort((a, b) => (key(a) < key(b) ? -1 : key(a) > key(b) ? 1 : 0) * (up ? 1 : -1));
  const total = rows.reduce((sum, row) => sum + row.count, 0) || 1;
  const names = kind === "site" ? [["reason", "reason"], ["what", "access"], ["place", "device"], ["code", "guest code"]] : [["key", { place: "device", reason: "reason", symbol: "function" }[kind]]];
  const heads = [...names, ["count", "exits"], ["share", "share"], ["run", "in guest"], ["handle", "handled"], ["each", "per exit"]];
  const head = node("tr");
  for (const [id, text] of heads) {
    const cell = node("th", text, ["count", "run", "handle", "each"].includes(id) ? "n" : "");
    if (id === by) cell.setAttribute("aria-sort", up ? "ascending" : "descending");
    if (id !== "share") cell.onclick = () => { page.sort = { by: id, up: by === id ? !up : !["count", "run", "handle", "each"].includes(id) }; drawGroups(); };
    head.append(cell);
  }
  $("groups").tHead.replaceChildren(head);
  const made = rows.slice(0, GROUP_LIMIT).map(row => {
    const tr = node("tr");
    if (page.group === row.key) tr.className = "on";
    const cells = kind === "site" ? [[row.site.name], [row.site.access], [row.site.place], [code(row.site), "code"]] : [[row.key]];
    const part = row.count / total * 100;
    for (const [text, name] of [...cells, [number(row.count), "n"], [`${part.toFixed(1)} %`, "share"], [duration(row.run), "n"], [duration(row.handle), "n"], [duration((row.run + row.handle) / row.count), "n"]])
      tr.append(node("td", text, name));
    tr.querySelector(".share").style.setProperty("--part", `${part}%`);
    tr.title = "Click to see only these exits";
    tr.onclick = () => { page.group = page.group === row.key ? null : row.key; applyFilter(); };
    return tr;
  });
  if (rows.length > GROUP_LIMIT) { const tr = node("tr"), td = node("td", `… and ${number(rows.length - GROUP_LIMIT)} more`); td.colSpan = heads.length; tr.append(td); made.push(tr); }
  $("groups").tBodies[0].replaceChildren(...made);
}

function exitRow(j) {
  const i = page.matches ? page.matches[j] : j, site = sites[trace.site[i]];
  const row = node("div", undefined, `row grid${i === page.selected ? " on" : ""}`);
  row.setAttribute("role", "option"); row.dataset.exit = i;
  for (const text of [i, micros(trace.time[i]), trace.vcpu[i], what(i), site.place, brief(site), micros(trace.run[i]), micros(trace.handle[i])]) {
    const cell = node("span", text); cell.title = text === brief(site) ? code(site) : text; row.append(cell);
  }
  row.onclick = () => select(i);
  return row;
}
