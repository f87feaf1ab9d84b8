// The timeline: a lane for each vCPU, a stacked bar for each few pixels, single exits when near.
const PALETTE = ["#3b7ddd", "#e2853a", "#3fa35c", "#c2487c", "#8a63d2", "#2aa4a8", "#b59a2a", "#d0534a"];
const OTHER = "#8a939d";
const timeline = { from: 0, to: 1, hover: -1 };
const LEFT = 92, RIGHT = 10, TOP = 4, LANE = 54, GAP = 10, AXIS = 34;

// Exits are coloured by the device that answers, or by their reason.
function colours() {
  const totals = new Map(), of = sites.map(s => s.place ? s.place.split(" ")[0] : s.name);
  const counts = new Uint32Array(sites.length);
  for (let i = 0; i < trace.n; i++) counts[trace.site[i]]++;
  of.forEach((name, i) => totals.set(name, (totals.get(name) || 0) + counts[i]));
  const names = [...totals.keys()].sort((a, b) => totals.get(b) - totals.get(a));
  const kept = names.slice(0, PALETTE.length);
  timeline.kinds = [...kept, ...(names.length > kept.length ? ["others"] : [])];
  timeline.kindOf = Uint8Array.from(of, name => { const k = kept.indexOf(name); return k < 0 ? kept.length : k; });
  timeline.colour = k => k < PALETTE.length && k < kept.length ? PALETTE[k] : OTHER;
  $("legend").replaceChildren(...timeline.kinds.map((name, k) => {
    const item = node("span"), box = node("i");
    box.style.background = timeline.colour(k);
    item.append(box, `${name} ${number(k < kept.length ? totals.get(name) : names.slice(kept.length).reduce((sum, n) => sum + totals.get(n), 0))}`);
    return item;
  }));
}

function niceStep(span, room) {
  const rough = span / Math.max(1, room), power = 10 ** Math.floor(Math.log10(rough));
  return power * [1, 2, 5, 10].find(m => m * power >= rough);
}

function draw() {
  const canvas = $("timeline"), lanes = meta.vcpus, width = canvas.clientWidth;
  const height = TOP + lanes * (LANE + GAP) + AXIS, ratio = devicePixelRatio || 1;
  canvas.style.height = `${height}px`;
  canvas.width = Math.round(width * ratio); canvas.height = Math.round(height * ratio);
  const pen = canvas.getContext("2d"), style = getComputedStyle(document.body);
  const ink = style.getPropertyValue("--quiet"), line = style.getPropertyValue("--line"), accent = style.getPropertyValue("--accent");
  pen.scale(ratio, ratio); pen.font = `12px ${style.fontFamily}`; pen.textBaseline = "middle";
  const room = Math.max(40, width - LEFT - RIGHT), { from, to } = timeline, scale = room / (to - from);
  const x = t => LEFT + (t - from) * scale;
  const first = lowerBound(trace.time, from), last = lowerBound(trace.time, to);
  const near = last - first < room / 3, bin = 3, bins = Math.ceil(room / bin), kinds = timeline.kinds.length;
  const hits = new Uint32Array(lanes * bins * kinds);
  for (let i = first; i < last; i++) {
    const b = Math.min(bins - 1, Math.floor((trace.time[i] - from) * scale / bin));
    hits[(trace.vcpu[i] * bins + b) * kinds + timeline.kindOf[trace.site[i]]]++;
  }
  let most = 1;
  for (let b = 0; b < lanes * bins; b++) { let sum = 0; for (let k = 0; k < kinds; k++) sum += hits[b * kinds + k]; most = Math.max(most, sum); }
  for (let lane = 0; lane < lanes; lane++) {
    const base = TOP + (lane + 1) * (LANE + GAP) - GAP;
    pen.fillStyle = ink; pen.textAlign = "left"; pen.fillText(`vCPU ${lane}`, 2, base - LANE / 2);
    pen.textAlign = "right";
    if (!near) { pen.fillText(number(most), LEFT - 6, base - LANE + 6); pen.fillText("0", LEFT - 6, base - 6); }
    pen.fillStyle = line; pen.fillRect(LEFT, base, room, 1); pen.fillRect(LEFT - 1, base - LANE, 1, LANE);
    if (near) continue;
    for (let b = 0; b < bins; b++) {
      let y = base;
      for (let k = 0; k < kinds; k++) {
        const n = hits[(lane * bins + b) * kinds + k];
        if (!n) continue;
        const h = Math.max(1, n / most * LANE);
        pen.fillStyle = timeline.colour(k); pen.fillRect(LEFT + b * bin, y - h, bin - .5, h); y -= h;
      }
    }
  }
  if (near) for (let i = Math.max(0, first - 1); i < last; i++) {
    const base = TOP + (trace.vcpu[i] + 1) * (LANE + GAP) - GAP, at = Math.max(LEFT, x(trace.time[i]));
    pen.fillStyle = timeline.colour(timeline.kindOf[trace.site[i]]);
    const end = Math.min(LEFT + room, x(trace.time[i] + trace.handle[i]));
    if (end >= LEFT) pen.fillRect(at, base - LANE + 8, Math.max(2, end - at), LANE - 8);
  }
  axis(pen, x, width, room, ink, line, near, bin / scale);
  if (page.selected >= 0) {
    const at = x(trace.time[page.selected]);
    if (at >= LEFT - 1 && at <= LEFT + room + 1) { pen.fillStyle = accent; pen.fillRect(at - 1, 0, 2, height - AXIS); }
  }
  $("span").textContent = near ? `${number(last - first)} exits, each as wide as it took to handle`
    : `${number(last - first)} exits; height: exits in ${duration(bin / scale)}`;
}

function axis(pen, x, width, room, ink, line) {
  const { from, to } = timeline, base = TOP + meta.vcpus * (LANE + GAP);
  const step = niceStep(to - from, room / 75);
  const [unit, size] = [["s", 1e9], ["ms", 1e6], ["µs", 1e3], ["ns", 1]].find(([, s]) => step >= s * .999) || ["ns", 1];
  pen.textAlign = "center";
  for (let t = Math.ceil(from / step) * step; t <= to; t += step) {
    const at = x(t);
    pen.fillStyle = line; pen.fillRect(at, TOP, 1, base - TOP + 3);
    pen.fillStyle = ink;
    if (at < width - 24) pen.fillText(number(Math.round(t / size)), at, base + 10);
  }
  pen.textAlign = "right"; pen.fillText(`time since the start (${unit})`, width - RIGHT, base + 25);
}

function view(from, to) {
  const least = 500, all = trace.end - trace.start || 1;
  let span = Math.min(Math.max(to - from, least), all * 1.02);
  const middle = (from + to) / 2, margin = all * .01;
  let start = Math.max(trace.start - margin, middle - span / 2);
  if (start + span > trace.end + margin) start = trace.end + margin - span;
  timeline.from = start; timeline.to = start + span;
  later(draw);
  if ($("view-only").checked) later(applyFilter);
}
const zoom = (factor, at = (timeline.from + timeline.to) / 2) =>
  view(at - (at - timeline.from) * factor, at + (timeline.to - at) * factor);
const showAll = () => view(trace.start, trace.end);

// The exit nearest to a point of the canvas: -1 if none is within 12 pixels.
function exitAt(event) {
  const box = $("timeline").getBoundingClientRect(), px = event.clientX - box.left, py = event.clientY - box.top;
  const lane = Math.floor((py - TOP) / (LANE + GAP)), room = box.width - LEFT - RIGHT;
  if (px < LEFT || lane < 0 || lane >= meta.vcpus) return -1;
  const scale = (timeline.to - timeline.from) / room, t = timeline.from + (px - LEFT) * scale;
  let best = -1, distance = 12 * scale;
  const start = lowerBound(trace.time, t);
  for (const step of [-1, 1])
    for (let i = step < 0 ? start - 1 : start, tries = 0; i >= 0 && i < trace.n && tries < 5000; i += step, tries++) {
      const inside = trace.time[i] <= t && t <= trace.time[i] + trace.handle[i];
      const far = inside ? 0 : Math.abs(trace.time[i] - t);
      if (trace.vcpu[i] === lane) { if (far < distance) { distance = far; best = i; } break; }
    }
  return best;
}

function watchTimeline() {
  const canvas = $("timeline"), tip = $("tip");
  let drag = null;
  canvas.addEventListener("wheel", e => {
    e.preventDefault();
    const box = canvas.getBoundingClientRect(), span = timeline.to - timeline.from, room = box.width - LEFT - RIGHT;
    if (Math.abs(e.deltaX) > Math.abs(e.deltaY)) return view(timeline.from + e.deltaX * span / room, timeline.to + e.deltaX * span / room);
    zoom(Math.exp(e.deltaY * .0022), timeline.from + (e.clientX - box.left - LEFT) / room * span);
  }, { passive: false });
  canvas.addEventListener("pointerdown", e => { drag = { x: e.clientX, from: timeline.from, to: timeline.to, moved: false }; canvas.setPointerCapture(e.pointerId); });
  canvas.addEventListener("pointermove", e => {
    if (drag) {
      const shift = (drag.x - e.clientX) * (drag.to - drag.from) / (canvas.clientWidth - LEFT - RIGHT);
      if (Math.abs(e.clientX - drag.x) > 3) drag.moved = true;
      if (drag.moved) view(drag.from + shift, drag.to + shift);
      return;
    }
    const i = exitAt(e);
    tip.hidden = i < 0;
    if (i < 0) return;
    const site = sites[trace.site[i]];
    tip.textContent = `#${i} ${what(i)}${site.place ? ` [${site.place}]` : ""}\n${code(site)}\nhandled in ${duration(trace.handle[i])}`;
    const box = $("timeline-box").getBoundingClientRect();
    tip.style.left = `${Math.max(4, Math.min(e.clientX - box.left + 12, box.width - tip.offsetWidth - 8))}px`;
    tip.style.top = `${e.clientY - box.top + 16}px`;
  });
  canvas.addEventListener("pointerup", e => {
    if (drag && !drag.moved) { const i = exitAt(e); if (i >= 0) select(i); }
    drag = null;
  });
  canvas.addEventListener("pointerleave", () => { tip.hidden = true; });
  canvas.addEventListener("dblclick", showAll);
  canvas.addEventListener("keydown", e => {
    const span = timeline.to - timeline.from;
    if (e.key === "+" || e.key === "=") zoom(.6); else if (e.key === "-") zoom(1.6); else if (e.key === "0") showAll();
    else if (e.key === "ArrowLeft") view(timeline.from - span * .2, timeline.to - span * .2);
    else if (e.key === "ArrowRight") view(timeline.from + span * .2, timeline.to + span * .2);
    else return;
    e.preventDefault();
  });
  $("zoom-in").onclick = () => zoom(.5); $("zoom-out").onclick = () => zoom(2); $("zoom-all").onclick = showAll;
}
