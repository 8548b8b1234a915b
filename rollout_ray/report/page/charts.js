// Draw charts as SVG: stacked histograms, curves with a band, intervals, and a timeline.

const PLOT = { width: 480, height: 210, left: 44, right: 12, top: 10, bottom: 38 };

function ticks(low, high, about) {
  const raw = (high - low) / about || 1;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((f) => f * power).find((size) => size >= raw * 0.999);
  const found = [];
  for (let n = Math.ceil(low / step - 1e-9); n * step <= high + step * 1e-9; n++) found.push(n * step);
  return { found, digits: Math.max(0, -Math.floor(Math.log10(step) + 1e-9)) };
}

const tick = (value, digits) => (Math.abs(value) >= 1e4 ? short(value) : value.toFixed(digits).replace("-", "\u2212"));

// Draws axes and grid over [x0, x1] by [y0, y1]. Returns the SVG and the two scales.
function frame(label, x0, x1, y0, y1, xLabel, xTicks) {
  const { width, height, left, right, top, bottom } = PLOT;
  const x = (value) => left + ((value - x0) / (x1 - x0 || 1)) * (width - left - right);
  const y = (value) => height - bottom - ((value - y0) / (y1 - y0 || 1)) * (height - top - bottom);
  const svg = s("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
  const vertical = ticks(y0, y1, 4);
  for (const value of vertical.found) {
    svg.append(s("line", { class: "grid", x1: left, x2: width - right, y1: y(value), y2: y(value) }));
    svg.append(s("text", { x: left - 6, y: y(value) + 4, "text-anchor": "end" }, tick(value, vertical.digits)));
  }
  const horizontal = xTicks ? { found: xTicks, digits: 0 } : ticks(x0, x1, 7);
  for (const value of horizontal.found) {
    svg.append(s("text", { x: x(value), y: height - bottom + 15, "text-anchor": "middle" }, tick(value, horizontal.digits)));
  }
  svg.append(s("line", { class: "axis", x1: left, x2: width - right, y1: height - bottom, y2: height - bottom }));
  svg.append(s("text", { x: (left + width - right) / 2, y: height - 6, "text-anchor": "middle" }, xLabel));
  return { svg, x, y };
}

// counts: one list of bin counts a series. series: [class, name] pairs.
function histogram(label, edges, counts, series, xLabel) {
  const totals = edges.slice(1).map((_, bin) => counts.reduce((sum, list) => sum + list[bin], 0));
  const { svg, x, y } = frame(label, edges[0], edges[edges.length - 1], 0, Math.max(1, ...totals), xLabel);
  const { digits } = ticks(0, edges[1] - edges[0], 1);
  totals.forEach((total, bin) => {
    if (!total) return;
    const from = x(edges[bin]) + 0.5;
    const width = Math.max(1, x(edges[bin + 1]) - x(edges[bin]) - 1);
    let base = 0;
    counts.forEach((list, number) => {
      if (!list[bin]) return;
      const top = y(base + list[bin]);
      svg.append(s("rect", { class: `f-${series[number][0]}`, x: from, width, y: top, height: y(base) - top }));
      base += list[bin];
    });
    const parts = counts.map((list, n) => (counts.length > 1 ? `\n${series[n][1]}: ${whole(list[bin])}` : "")).join("");
    const title = `${tick(edges[bin], digits)} to ${tick(edges[bin + 1], digits)}: ${whole(total)}${parts}`;
    svg.append(s("rect", { class: "hit", x: from, width, y: PLOT.top, height: y(0) - PLOT.top }, s("title", null, title)));
  });
  return svg;
}

// Draws one bar for each integer. The colour says none, some or all.
function countBars(label, counts, xLabel, name) {
  const most = counts.length - 1;
  const every = Math.max(1, Math.ceil(counts.length / 16));
  const places = counts.map((_, n) => n).filter((n) => n % every === 0);
  const { svg, x, y } = frame(label, -0.6, most + 0.6, 0, Math.max(1, ...counts), xLabel, places);
  const sum = counts.reduce((a, b) => a + b, 0);
  counts.forEach((count, n) => {
    const width = Math.max(1, (x(1) - x(0)) * 0.78);
    const group = n === 0 ? "wrong" : n === most ? "right" : "accent";
    svg.append(s("rect", { class: `f-${group}`, x: x(n) - width / 2, width, y: y(count), height: y(0) - y(count) }));
    const title = `${n} of ${most} right: ${whole(count)} ${name} (${percent(sum ? count / sum : 0)})`;
    svg.append(
      s("rect", { class: "hit", x: x(n) - width / 2, width, y: PLOT.top, height: y(0) - PLOT.top }, s("title", null, title)),
    );
  });
  return svg;
}

// lines: { name, style, points: [[mean, low, high], ...] } over the same ks. Above 16 the axis of k is logarithmic.
function curves(label, ks, lines, questions) {
  const log = ks[ks.length - 1] > 16;
  const place = (k) => (log ? Math.log2(k) : k);
  const values = lines.flatMap((line) => line.points.flat()).filter(known);
  const low = Math.max(0, Math.min(...values) - 0.04);
  const high = Math.min(1, Math.max(...values) + 0.04);
  const { svg, x, y } = frame(label, place(ks[0]), place(ks[ks.length - 1]), low, high, "k samples", []);
  for (const k of ks) svg.append(s("text", { x: x(place(k)), y: PLOT.height - PLOT.bottom + 15, "text-anchor": "middle" }, k));
  for (const { style, points } of lines) {
    const banded = ks.map((k, n) => [x(place(k)), ...points[n]]).filter(([, , from, to]) => known(from) && known(to));
    const outline = [...banded.map(([px, , , to]) => `${px},${y(to)}`), ...banded.reverse().map(([px, , from]) => `${px},${y(from)}`)];
    svg.append(s("polygon", { class: `b-${style}`, points: outline.join(" ") }));
    svg.append(s("polyline", { class: `s-${style}`, points: ks.map((k, n) => [k, points[n][0]]).filter(([, mean]) => known(mean)).map(([k, mean]) => `${x(place(k))},${y(mean)}`).join(" ") }));
  }
  ks.forEach((k, n) => {
    const said = lines.map(({ name, points: p }) => `${name}@${k}: ${percent(p[n][0])} (${percent(p[n][1])} to ${percent(p[n][2])})`);
    for (const { style, points } of lines) if (known(points[n][0])) svg.append(s("circle", { class: `f-${style}`, cx: x(place(k)), cy: y(points[n][0]), r: 2.6 }));
    const title = [...said, `over ${whole(questions[n])} questions`].join("\n");
    svg.append(s("rect", { class: "hit", x: x(place(k)) - 9, width: 18, y: PLOT.top, height: y(low) - PLOT.top }, s("title", null, title)));
  });
  return svg;
}

// Draws a dot with its interval, on a scale that all rows of a column share.
function whisker(label, [mean, low, high], from, to, reference) {
  const x = (value) => 5 + ((value - from) / (to - from || 1)) * 140;
  const svg = s("svg", { viewBox: "0 0 150 18", role: "img", "aria-label": label });
  svg.append(s("line", { class: "grid", x1: 5, x2: 145, y1: 9, y2: 9 }));
  if (known(reference)) svg.append(s("line", { class: "reference", x1: x(reference), x2: x(reference), y1: 1, y2: 17 }));
  if (known(low)) svg.append(s("line", { class: "interval", x1: x(low), x2: x(high), y1: 9, y2: 9 }));
  svg.append(s("circle", { class: "f-accent", cx: x(mean), cy: 9, r: 4 }));
  svg.append(s("title", null, label));
  return svg;
}

// points: { name, x: [mean, low, high], y: [mean, low, high] }. Each gets a cross and a name.
function scatter(label, points, xLabel) {
  const span = (values, least, most) => {
    const numbers = values.flat().filter(known);
    const room = (Math.max(...numbers) - Math.min(...numbers)) * 0.12 || 0.05 * Math.abs(numbers[0]) || 0.1;
    return [Math.max(least, Math.min(...numbers) - room), Math.min(most, Math.max(...numbers) + room)];
  };
  const [x0, x1] = span(points.map((point) => point.x), 0, Infinity);
  const [y0, y1] = span(points.map((point) => point.y), 0, 1);
  const { svg, x, y } = frame(label, x0, x1, y0, y1, xLabel);
  const labels = []; // positions of names so far; a name takes the first free position of a few
  for (const { name, x: across, y: up } of points) {
    const [cx, cy] = [x(across[0]), y(up[0])];
    if (known(across[1])) svg.append(s("line", { class: "cross", x1: x(across[1]), x2: x(across[2]), y1: cy, y2: cy }));
    if (known(up[1])) svg.append(s("line", { class: "cross", x1: cx, x2: cx, y1: y(up[1]), y2: y(up[2]) }));
    const title = `${name}: ${percent(up[0])} right, ${whole(across[0])} tokens`;
    svg.append(s("circle", { class: "f-accent", cx, cy, r: 4 }, s("title", null, title)));
    const end = cx > PLOT.width - 110;
    const free = (py) => !labels.some(([lx, ly]) => Math.abs(lx - cx) < 70 && Math.abs(ly - py) < 11);
    const py = [cy - 5, cy + 12, cy - 16, cy + 23].find(free);
    if (points.length > 12 || py === undefined) continue;
    labels.push([cx, py]);
    svg.append(s("text", { class: "label", x: cx + (end ? -7 : 7), y: py, "text-anchor": end ? "end" : "start" }, name));
  }
  return svg;
}

// rows: { name, spans: [[state, from, to], ...] }. marks: { time, text } over all rows.
// load: [[time, total], ...], shown below the rows as a rate.
function gantt(label, rows, seconds, marks, load) {
  const left = 92, width = 1400, rowHeight = rows.length > 40 ? 12 : 22, plot = load.length > 1 ? 70 : 0, bottom = 26;
  const height = rows.length * rowHeight + plot + bottom + 4;
  const x = (time) => left + (time / (seconds || 1)) * (width - left - 14);
  const svg = s("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
  const { found, digits } = ticks(0, seconds, 10);
  for (const time of found) {
    svg.append(s("line", { class: "grid", x1: x(time), x2: x(time), y1: 0, y2: height - bottom }));
    svg.append(s("text", { x: x(time), y: height - 10, "text-anchor": "middle" }, `${time.toFixed(digits)} s`));
  }
  rows.forEach(({ name, spans }, number) => {
    const y = number * rowHeight + 3;
    svg.append(s("text", { x: left - 8, y: y + rowHeight / 2 + 2, "text-anchor": "end" }, name));
    for (const [state, from, to] of spans) {
      const title = `${name}: ${state} ${duration(to - from)}, from ${duration(from)} to ${duration(to)}`;
      const place = { x: x(from), width: Math.max(1, x(to) - x(from)), y, height: rowHeight - 6, rx: 2 };
      svg.append(s("rect", { class: `f-${state}`, ...place }, s("title", null, title)));
    }
  });
  if (plot) {
    const rates = load.slice(1).map(([time, total], n) => [load[n][0], time, Math.max(0, (total - load[n][1]) / (time - load[n][0] || 1))]);
    const most = Math.max(1, ...rates.map(([, , rate]) => rate));
    const base = height - bottom;
    svg.append(s("text", { x: left - 8, y: base - 2, "text-anchor": "end" }, "tokens/s"));
    svg.append(s("text", { x: left - 8, y: base - plot + 18, "text-anchor": "end" }, short(most)));
    for (const [from, to, rate] of rates) {
      const tall = (rate / most) * (plot - 12);
      const title = `${duration(from)} to ${duration(to)}: ${whole(rate)} tokens/s`;
      svg.append(s("rect", { class: "f-running", x: x(from), width: Math.max(1, x(to) - x(from) - 0.5), y: base - tall, height: tall }, s("title", null, title)));
    }
  }
  for (const { time, text } of marks) {
    svg.append(s("circle", { class: "f-fault", cx: x(time), cy: height - bottom, r: 4 }, s("title", null, text)));
  }
  return svg;
}
