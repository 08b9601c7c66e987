"use strict";
// Lanes: unpacking one rank's data and drawing it. Everything here is a function of its arguments.

// From the bottom up: own work first, so that the slow rank's work stands out and the others' waiting lies above it.
const STACKED = ["forward", "backward_own", "optimizer", "data_wait", "checkpoint", "evaluation", "other", "untimed", "peer_wait"];
const STRIPS = [
  { name: "clock", title: "SM clock", unit: "MHz" },
  { name: "power", title: "power", unit: "W" },
  { name: "temperature", title: "temp.", unit: "\u00b0C" },
];
// A step this wide shows its phases side by side in time.
const SIDE_BY_SIDE_PX = 14;

function running(differences) {
  const sums = new Float64Array(differences.length);
  let sum = 0;
  for (let i = 0; i < sums.length; i++) sums[i] = sum += differences[i];
  return sums;
}

function unpackLane(raw, phases) {
  const steps = raw.steps, count = steps.t.length;
  const lane = Object.assign({}, raw, { count, t: running(steps.t), d: Float64Array.from(steps.d), s: steps.s });
  lane.n = steps.n || null;
  lane.lo = steps.lo || null;
  lane.hi = steps.hi || null;
  // Length of one step in each bar, and its phases with what no phase accounts for.
  lane.step = Float64Array.from(lane.d, (d, i) => (lane.n ? d / lane.n[i] : d));
  lane.phase = {};
  phases.forEach(([slug], place) => { lane.phase[slug] = steps.p[place]; });
  lane.phase.untimed = Float64Array.from(lane.step, (length, i) => {
    let told = 0;
    for (const [slug] of phases) told += lane.phase[slug][i] || 0;
    return Math.max(0, length - told);
  });
  lane.own = Float64Array.from(lane.step, (_, i) => {
    const parts = [lane.phase.forward[i], lane.phase.backward_own[i]];
    return parts[0] === null || parts[1] === null ? NaN : parts[0] + parts[1];
  });
  for (const { name } of STRIPS) if (raw[name]) lane[name] = Object.assign({}, raw[name], { t: running(raw[name].t) });
  return lane;
}

// Index of the last value that is not above `limit`; -1 where all are.
function lastAtMost(sorted, limit) {
  let low = 0, high = sorted.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (sorted[middle] <= limit) low = middle + 1; else high = middle;
  }
  return low - 1;
}

function barAt(lane, time) {
  const index = lastAtMost(lane.t, time);
  return index >= 0 && time <= lane.t[index] + lane.d[index] ? index : -1;
}

function pointAt(points, time) {
  const index = lastAtMost(points.t, time);
  if (index < 0 || time - points.t[index] > points.gap) return -1;
  return index;
}

// Draws a lane's steps between y and y + height; returns how many bars were in view.
function drawSteps(context, lane, view, y, height, top, colours) {
  const first = Math.max(0, lastAtMost(lane.t, view.from));
  const scale = view.width / (view.to - view.from);
  let drawn = 0, column = null;
  const flush = () => {
    if (!column) return;
    stack(context, column.x, column.width, y, height, column.sums, column.weight, top, colours);
    // Cut off: the step is longer than the lane is high.
    if (column.high > top) { context.fillStyle = colours.ink; context.fillRect(column.x, y, column.width, 2); }
  };
  for (let i = first; i < lane.count && lane.t[i] <= view.to; i++) {
    const x = (lane.t[i] - view.from) * scale, width = lane.d[i] * scale;
    if (x + width < 0) continue;
    drawn++;
    if (width >= SIDE_BY_SIDE_PX && !lane.n) { sideBySide(context, lane, i, x, width, y, height, colours); continue; }
    const left = Math.floor(x), right = Math.max(left + 1, Math.floor(x + width));
    if (!column || left >= column.x + column.width) {
      flush();
      column = { x: left, width: right - left, sums: STACKED.map(() => 0), weight: 0, high: 0 };
    } else {
      column.width = Math.max(column.width, right - column.x);
    }
    const weight = lane.n ? lane.n[i] : 1;
    STACKED.forEach((slug, place) => { column.sums[place] += weight * (lane.phase[slug][i] || 0); });
    column.weight += weight;
    column.high = Math.max(column.high, lane.hi ? lane.hi[i] : lane.step[i]);
  }
  flush();
  return drawn;
}

function stack(context, x, width, y, height, sums, weight, top, colours) {
  // A hair between wide bars lets the eye count steps.
  const drawn = width > 5 ? width - 1 : width;
  let base = y + height;
  STACKED.forEach((slug, place) => {
    const tall = Math.min(sums[place] / weight / top * height, base - y);
    if (tall <= 0) return;
    context.fillStyle = colours[slug];
    context.fillRect(x, base - tall, drawn, tall);
    base -= tall;
  });
}

function sideBySide(context, lane, i, x, width, y, height, colours) {
  const order = [...Object.keys(lane.phase)];
  let sum = 0;
  for (const slug of order) sum += lane.phase[slug][i] || 0;
  // The device's times of a step may exceed the host's by the little that the device runs behind.
  const scale = (width - 1) / (sum || 1);
  let left = x;
  for (const slug of order) {
    const wide = (lane.phase[slug][i] || 0) * scale;
    context.fillStyle = colours[slug];
    context.fillRect(left, y, wide, height);
    left += wide;
  }
  if (width > 44) {
    context.fillStyle = colours.ink;
    context.globalAlpha = .55;
    context.fillRect(x, y, 1, height);
    context.globalAlpha = 1;
  }
}

function drawSeries(context, points, view, y, height, scale, colour, grid) {
  const [low, high] = scale, span = high - low || 1;
  const toX = time => (time - view.from) / (view.to - view.from) * view.width;
  const toY = value => y + height - 1 - (value - low) / span * (height - 2);
  context.strokeStyle = grid;
  context.lineWidth = 1;
  context.beginPath();
  context.moveTo(0, y + height - .5);
  context.lineTo(view.width, y + height - .5);
  context.stroke();
  const first = Math.max(0, lastAtMost(points.t, view.from)), count = points.t.length;
  if (points.lo) {
    context.fillStyle = colour;
    context.globalAlpha = .25;
    for (let i = first; i < count && points.t[i] <= view.to; i++) {
      const next = i + 1 < count ? Math.min(points.t[i + 1], points.t[i] + points.gap) : points.t[i];
      context.fillRect(toX(points.t[i]), toY(points.hi[i]), Math.max(1, toX(next) - toX(points.t[i])), toY(points.lo[i]) - toY(points.hi[i]));
    }
    context.globalAlpha = 1;
  }
  context.strokeStyle = colour;
  context.lineWidth = 1.5;
  context.lineJoin = "round";
  context.beginPath();
  let before = -Infinity;
  for (let i = first; i < count; i++) {
    const x = toX(points.t[i]), value = toY(points.v[i]);
    // A silence is a gap in the line: nothing was read there.
    if (points.t[i] - before > points.gap) { context.moveTo(x, value); context.lineTo(x + 1, value); } else context.lineTo(x, value);
    before = points.t[i];
    if (before > view.to) break;
  }
  context.stroke();
}

function drawReasons(context, runs, view, y, height, reasons, colours) {
  context.fillStyle = colours.soft;
  context.fillRect(0, y, view.width, height);
  let labelled = -Infinity;
  for (const [begin, end, mask] of runs) {
    if (end < view.from || begin > view.to) continue;
    const x = Math.max(0, (begin - view.from) / (view.to - view.from) * view.width);
    const right = Math.min(view.width, (end - view.from) / (view.to - view.from) * view.width);
    const faulty = reasons.some(([bit, , fault]) => fault && mask & bit);
    context.fillStyle = faulty ? colours.critical : colours.other;
    context.fillRect(x, y, Math.max(1, right - x), height);
    const name = reasonNames(mask, reasons);
    context.font = "600 10px " + colours.font;
    if (right - x > context.measureText(name).width + 10 && x > labelled) {
      context.fillStyle = colours.card;
      context.textBaseline = "middle";
      context.fillText(name, x + 5, y + height / 2 + .5);
      labelled = right;
    }
  }
}

function reasonNames(mask, reasons) {
  const names = reasons.filter(([bit]) => mask & bit).map(([, name]) => name);
  return names.join(" + ") || "0x" + mask.toString(16);
}

// Own compute of accused ranks against the range of all others, with the step length above: the whole run at a glance.
function overviewColumns(lanes, whole, width) {
  const scale = width / (whole.to - whole.from);
  const columns = Array.from({ length: width }, () => ({ step: 0, low: Infinity, high: -Infinity, accused: {} }));
  for (const lane of lanes) {
    for (let i = 0; i < lane.count; i++) {
      const from = Math.max(0, Math.floor((lane.t[i] - whole.from) * scale));
      const to = Math.min(width - 1, Math.floor((lane.t[i] + lane.d[i] - whole.from) * scale));
      for (let x = from; x <= to; x++) {
        const column = columns[x];
        column.step = Math.max(column.step, lane.step[i]);
        if (Number.isNaN(lane.own[i])) continue;
        if (lane.accused.length) column.accused[lane.rank] = Math.max(column.accused[lane.rank] || 0, lane.own[i]);
        else { column.low = Math.min(column.low, lane.own[i]); column.high = Math.max(column.high, lane.own[i]); }
      }
    }
  }
  return columns;
}
