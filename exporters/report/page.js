"use strict";
// The timeline: view, drawing, pointer and keys. Text from the data is only ever set as text.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  if (!data.lanes.length) return;
  const element = id => document.getElementById(id);
  const root = document.documentElement;
  const chart = element("chart"), lanesBox = element("lanes"), tooltip = element("tooltip"), crosshair = element("crosshair");
  const whole = { from: data.from_us, to: data.to_us }, span = whole.to - whole.from;
  const view = { from: whole.from, to: whole.to, width: 1 };
  const titles = new Map([...data.phases, ["untimed", "not timed"]]);
  const lanes = data.lanes.map(raw => unpackLane(raw, data.phases));
  const accused = lanes.filter(lane => lane.accused.length);
  const side = getComputedStyle(document.body).getPropertyValue("--side") ? document.body : root;
  let colours = {};
  let queued = false;

  function make(tag, properties, ...children) {
    const made = Object.assign(document.createElement(tag), properties || {});
    made.append(...children);
    return made;
  }

  function readColours() {
    const style = getComputedStyle(side);
    const get = name => style.getPropertyValue("--" + name).trim();
    colours = { font: style.fontFamily };
    for (const name of ["ink", "quiet", "card", "soft", "grid", "line", "critical", "warning", "info", "side", "clock", "power",
      "temperature", "focus", "hardware", "environment", "code", "unknown", ...STACKED]) colours[name] = get(name);
    colours.side = colours.side || colours.quiet;
  }

  const milliseconds = us => (us >= 1e6 ? (us / 1e6).toFixed(2) + " s" : us >= 1e5 ? (us / 1e3).toFixed(0) + " ms" : (us / 1e3).toFixed(us < 1e4 ? 2 : 1) + " ms");
  const clockTime = us => new Date(data.begin_wall_ms + us / 1e3).toISOString().slice(11, view.to - view.from < 2e7 ? 23 : 19);

  // ---- layout
  function counted(lane) {
    const wish = element("counters").value;
    if (wish === "none" || (wish === "accused" && !lane.accused.length)) return [];
    return STRIPS.filter(({ name }) => lane[name]);
  }

  function layout(lane) {
    const dense = lanes.length > 8 && !lane.accused.length;
    const steps = dense ? 22 : 52;
    const places = [];
    let y = steps + 6;
    const strips = counted(lane);
    if (strips.length && lane.reasons) { places.push({ name: "reasons", y, height: 14 }); y += 18; }
    for (const strip of strips) { places.push(Object.assign({ y, height: 24 }, strip)); y += 28; }
    return { dense, steps, places, height: places.length ? y - 2 : Math.max(steps, dense ? 22 : 52) };
  }

  function lastOf(strip, lane) {
    const points = lane[strip.name], shown = points.v.filter((_, i) => points.t[i] >= view.from && points.t[i] <= view.to);
    const values = shown.length ? shown : points.v;
    const low = Math.round(Math.min(...values)), high = Math.round(Math.max(...values));
    return (low === high ? high : low + "\u2013" + high) + " " + strip.unit;
  }

  function build() {
    lanesBox.replaceChildren(...lanes.map(lane => {
      const place = lane.place = layout(lane);
      const canvas = lane.canvas = make("canvas", { tabIndex: 0 });
      canvas.style.height = place.height + "px";
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", `Steps of rank ${lane.rank}: ${lane.count} bars${lane.accused.length ? ", accused of " + lane.accused.join(", ") : ""}`);
      const who = make("div", { className: "who", title: `rank ${lane.rank}, host ${lane.host}, GPU ${lane.gpu}` }, make("b", {}, `rank ${lane.rank}`));
      if (place.dense) who.append(` GPU ${lane.gpu}`);
      const label = make("div", { className: "label" }, who);
      label.style.height = place.height + "px";
      if (!place.dense) {
        label.append(make("div", { className: "who" }, `GPU ${lane.gpu}`));
        label.append(lane.accused.length ? make("div", { className: "who flag" }, lane.accused.join(", ")) : make("div", { className: "who" }, lane.host));
      }
      lane.strips = [];
      for (const strip of place.places) {
        const value = make("span"), line = make("div", { className: "strip" }, make("span", {}, strip.title || "clock reasons"), value);
        line.style.top = strip.y + "px";
        line.style.height = strip.height + "px";
        if (strip.unit) lane.strips.push({ strip, value });
        label.append(line);
      }
      const box = make("div", { className: "row lane" + (place.dense ? " dense" : "") + (lane.accused.length ? " accused" : "") }, label, canvas);
      box.dataset.rank = lane.rank;
      lane.box = box;
      listen(lane);
      return box;
    }));
  }

  // ---- drawing
  function prepare(canvas, height) {
    const width = canvas.clientWidth, ratio = window.devicePixelRatio || 1;
    if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
      canvas.width = Math.round(width * ratio);
      canvas.height = Math.round(height * ratio);
    }
    const context = canvas.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, height);
    return context;
  }

  const toX = time => (time - view.from) / (view.to - view.from) * view.width;

  function band(context, fault, height, from, to, width) {
    const x = Math.max(0, (fault.t0 - from) / (to - from) * width), right = Math.min(width, (fault.t1 - from) / (to - from) * width);
    if (right <= 0 || x >= width) return;
    context.fillStyle = colours[fault.side];
    context.globalAlpha = .14;
    context.fillRect(x, 0, right - x, height);
    context.globalAlpha = 1;
    context.fillRect(x, 0, right - x, 3);
    if (fault.t0 >= from) context.fillRect(x, 0, 2, height);
  }

  function drawLane(lane) {
    const place = lane.place, context = prepare(lane.canvas, place.height);
    const mine = data.faults.filter(fault => fault.ranks.includes(lane.rank));
    for (const fault of mine) band(context, fault, place.height, view.from, view.to, view.width);
    const bars = drawSteps(context, lane, view, 3, place.steps - 3, data.top_us, colours);
    for (const strip of place.places) {
      if (strip.name === "reasons") drawReasons(context, lane.reasons, view, strip.y, strip.height, data.reasons, colours);
      else drawSeries(context, lane[strip.name], view, strip.y, strip.height, data.scales[strip.name], colours[strip.name], colours.grid);
    }
    for (const { strip, value } of lane.strips) value.textContent = lastOf(strip, lane);
    for (const event of data.events) if (event.rank === lane.rank && event.severity !== "info") mark(context, toX(event.t), place.steps, colours[event.severity]);
    lane.box.dataset.drawn = bars;
  }

  function mark(context, x, y, colour) {
    if (x < -6 || x > view.width + 6) return;
    context.fillStyle = colour;
    context.beginPath();
    context.moveTo(x, y - 10);
    context.lineTo(x + 5, y);
    context.lineTo(x - 5, y);
    context.fill();
    context.strokeStyle = colours.card;
    context.lineWidth = 1;
    context.stroke();
  }

  function drawAxis() {
    const canvas = element("axis"), height = 40;
    canvas.style.height = height + "px";
    const context = prepare(canvas, height);
    context.font = "11px " + colours.font;
    context.textBaseline = "top";
    const rough = (view.to - view.from) / Math.max(2, view.width / 110);
    const unit = 10 ** Math.floor(Math.log10(rough)), tick = [1, 2, 5, 10].map(n => n * unit).find(step => step >= rough);
    for (let time = Math.ceil(view.from / tick) * tick; time <= view.to; time += tick) {
      const x = toX(time), digits = Math.max(0, -Math.floor(Math.log10(tick / 1e6) + 1e-9));
      context.fillStyle = colours.line;
      context.fillRect(x, 22, 1, height);
      context.fillStyle = colours.quiet;
      const text = (time / 1e6).toFixed(digits) + " s";
      const wide = context.measureText(text).width;
      context.fillText(text, Math.min(Math.max(0, x - wide / 2), view.width - wide), 24);
    }
    let free = -Infinity;
    for (const fault of data.faults) {
      const x = toX(fault.t0), text = fault.title + (fault.step === null ? "" : `, step ${fault.step}`);
      const wide = context.measureText(text).width, left = Math.max(4, Math.min(x + 6, view.width - wide - 2));
      if (x > view.width || toX(fault.t1) < 0) continue;
      context.fillStyle = colours[fault.side];
      if (x >= 0) context.fillRect(x, 2, 2, 18);
      if (left > free) { context.fillText(text, left, 5); free = left + wide + 12; }
    }
    for (const event of data.events) if (event.rank === null && event.severity !== "info") mark(context, toX(event.t), height, colours[event.severity]);
    element("range").textContent = `${clockTime(view.from)} \u2013 ${clockTime(view.to)}`;
  }

  const overviewHeight = 104;
  // Lines need no zero: own compute that differs by a few percent is to be seen.
  const floor = .7 * lanes.reduce((least, lane) => lane.own.reduce((low, us) => (us > 0 && us < low ? us : low), least), data.top_us);
  function drawOverview() {
    const canvas = element("overview");
    canvas.style.height = overviewHeight + "px";
    const context = prepare(canvas, overviewHeight), width = Math.max(1, Math.floor(canvas.clientWidth));
    const columns = overviewColumns(lanes, whole, width);
    const toY = us => overviewHeight - 6 - Math.max(0, Math.min(1, (us - floor) / (data.top_us - floor))) * (overviewHeight - 12);
    for (const fault of data.faults) band(context, fault, overviewHeight, whole.from, whole.to, width);
    context.fillStyle = colours.forward;
    columns.forEach((column, x) => { if (column.high > 0) context.fillRect(x, toY(column.high), 1, Math.max(2, toY(column.low) - toY(column.high))); });
    line(context, columns, column => column.step, colours.quiet, 1, toY);
    for (const lane of accused) line(context, columns, column => column.accused[lane.rank], colours.side, 2, toY);
    context.font = "11px " + colours.font;
    context.fillStyle = colours.quiet;
    context.textBaseline = "top";
    for (const [us, y] of [[data.top_us, 5], [floor, overviewHeight - 14]]) {
      const text = milliseconds(us);
      context.fillStyle = colours.card;
      context.fillRect(0, y - 2, context.measureText(text).width + 8, 15);
      context.fillStyle = colours.quiet;
      context.fillText(text, 4, y);
    }
    const left = (view.from - whole.from) / span * width, right = (view.to - whole.from) / span * width;
    if (right - left < width - 1) {
      context.fillStyle = colours.card;
      context.globalAlpha = .68;
      context.fillRect(0, 0, left, overviewHeight);
      context.fillRect(right, 0, width - right, overviewHeight);
      context.globalAlpha = 1;
      context.strokeStyle = colours.focus;
      context.lineWidth = 2;
      context.strokeRect(left, 1, Math.max(2, right - left), overviewHeight - 2);
    }
  }

  function line(context, columns, value, colour, width, toY) {
    context.strokeStyle = colour;
    context.lineWidth = width;
    context.lineJoin = "round";
    context.beginPath();
    let open = false;
    columns.forEach((column, x) => {
      const us = value(column);
      if (!us) { open = false; return; }
      if (open) context.lineTo(x + .5, toY(us)); else context.moveTo(x + .5, toY(us));
      open = true;
    });
    context.stroke();
  }

  function draw() {
    queued = false;
    view.width = Math.max(1, lanes[0].canvas.clientWidth);
    drawOverview();
    drawAxis();
    lanes.forEach(drawLane);
    root.dataset.ready = "1";
    root.dataset.view = `${Math.round(view.from)}-${Math.round(view.to)}`;
  }

  function redraw() {
    if (!queued) requestAnimationFrame(draw);
    queued = true;
  }

  // ---- view
  function show(from, to) {
    const size = Math.min(span, Math.max(1_000, to - from));
    view.from = Math.max(whole.from, Math.min(whole.to - size, from));
    view.to = view.from + size;
    redraw();
  }

  function zoom(factor, around) {
    const centre = around === undefined ? (view.from + view.to) / 2 : around;
    show(centre - (centre - view.from) * factor, centre + (view.to - centre) * factor);
  }

  const pan = share => show(view.from + (view.to - view.from) * share, view.to + (view.to - view.from) * share);
  const timeAt = (canvas, event) => view.from + (event.clientX - canvas.getBoundingClientRect().left) / view.width * (view.to - view.from);

  function dragging(canvas, move, end) {
    canvas.addEventListener("pointerdown", down => {
      if (down.button !== 0) return;
      canvas.setPointerCapture(down.pointerId);
      const moved = event => move(down, event);
      const done = event => {
        canvas.removeEventListener("pointermove", moved);
        canvas.removeEventListener("pointerup", done);
        canvas.removeEventListener("pointercancel", done);
        if (end) end(down, event);
      };
      canvas.addEventListener("pointermove", moved);
      canvas.addEventListener("pointerup", done);
      canvas.addEventListener("pointercancel", done);
    });
  }

  function selectable(canvas) {
    const selection = make("div", { id: "" });
    dragging(canvas, (down, event) => {
      const box = chart.getBoundingClientRect(), left = Math.min(down.clientX, event.clientX), right = Math.max(down.clientX, event.clientX);
      selection.style.cssText = `position:absolute;top:0;bottom:0;left:${left - box.left}px;width:${right - left}px;background:${colours.focus};opacity:.2;pointer-events:none;z-index:3`;
      chart.append(selection);
    }, (down, event) => {
      selection.remove();
      if (Math.abs(event.clientX - down.clientX) < 5) return;
      const times = [timeAt(canvas, down), timeAt(canvas, event)].sort((a, b) => a - b);
      show(times[0], times[1]);
    });
    canvas.addEventListener("dblclick", () => show(whole.from, whole.to));
  }

  function wheeled(canvas, always) {
    canvas.addEventListener("wheel", event => {
      if (Math.abs(event.deltaX) > Math.abs(event.deltaY)) { event.preventDefault(); pan(event.deltaX / view.width); return; }
      if (!always && !event.ctrlKey && !event.metaKey) return;
      event.preventDefault();
      zoom(Math.exp(Math.max(-1, Math.min(1, event.deltaY / 200))), timeAt(canvas, event));
    }, { passive: false });
  }

  // ---- what lies under the pointer
  function describe(lane, time, x, y) {
    const rows = [], bar = barAt(lane, time);
    const title = make("b", {}, `rank ${lane.rank}`);
    const head = make("div", {}, title, ` \u00b7 ${(time / 1e6).toFixed(3)} s \u00b7 ${clockTime(time)} UTC`);
    if (bar < 0) rows.push(["no step here", ""]);
    else {
      const many = lane.n && lane.n[bar] > 1;
      title.append(many ? `, steps ${lane.s[bar]}\u2013${lane.s[bar] + lane.n[bar] - 1} (mean)` : `, step ${lane.s[bar]}`);
      rows.push(["step", milliseconds(lane.step[bar]) + (many ? ` (${milliseconds(lane.lo[bar])} \u2013 ${milliseconds(lane.hi[bar])})` : "")]);
      for (const [slug, name] of titles) {
        const us = lane.phase[slug][bar];
        if (us === null) rows.push([name, "not seen", slug]);
        else if (us >= 1 && (slug !== "untimed" || us > lane.step[bar] / 100)) rows.push([name, milliseconds(us), slug]);
      }
    }
    for (const strip of STRIPS) {
      const index = lane[strip.name] ? pointAt(lane[strip.name], time) : -1;
      if (index >= 0) rows.push([strip.title, `${Math.round(lane[strip.name].v[index])} ${strip.unit}`, strip.name]);
    }
    const run = (lane.reasons || []).find(([begin, end]) => begin <= time && time < end);
    if (run) rows.push(["clock reasons", reasonNames(run[2], data.reasons)]);
    const near = (view.to - view.from) / view.width * 7;
    for (const event of data.events) if ((event.rank === lane.rank || event.rank === null) && Math.abs(event.t - time) < near) rows.push([event.kind, event.text]);
    const table = make("table", {}, ...rows.slice(0, 24).map(([name, value, slug]) => {
      const first = make("td");
      if (slug) { const swatch = make("i"); swatch.style.background = colours[slug]; first.append(swatch); }
      first.append(name);
      return make("tr", {}, first, make("td", {}, value));
    }));
    tooltip.replaceChildren(head, table);
    tooltip.hidden = false;
    const box = tooltip.getBoundingClientRect();
    tooltip.style.left = Math.max(4, x + 18 + box.width > innerWidth ? x - box.width - 14 : x + 18) + "px";
    tooltip.style.top = Math.max(4, Math.min(y + 14, innerHeight - box.height - 8)) + "px";
    crosshair.hidden = false;
    crosshair.style.left = lane.canvas.getBoundingClientRect().left - chart.getBoundingClientRect().left + toX(time) + "px";
  }

  function silence() {
    tooltip.hidden = crosshair.hidden = true;
  }

  function listen(lane) {
    const canvas = lane.canvas;
    canvas.addEventListener("pointermove", event => describe(lane, timeAt(canvas, event), event.clientX, event.clientY));
    canvas.addEventListener("pointerleave", silence);
    canvas.addEventListener("blur", silence);
    canvas.addEventListener("keydown", event => key(lane, event));
    selectable(canvas);
    wheeled(canvas, false);
  }

  function key(lane, event) {
    const turn = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (turn && event.shiftKey) pan(turn * .2);
    else if (turn) {
      if (!lane.count) return;
      const bar = lane.cursor === undefined ? Math.max(0, lastAtMost(lane.t, view.from)) : lane.cursor + turn;
      lane.cursor = Math.max(0, Math.min(lane.count - 1, bar));
      const time = lane.t[lane.cursor] + lane.d[lane.cursor] / 2;
      if (time < view.from || time > view.to) show(time - (view.to - view.from) / 2, time + (view.to - view.from) / 2);
      const box = lane.canvas.getBoundingClientRect();
      describe(lane, time, box.left + toX(time), box.top + 20);
    } else if (event.key === "+" || event.key === "=") zoom(.5);
    else if (event.key === "-") zoom(2);
    else if (event.key === "0") show(whole.from, whole.to);
    else if (event.key === "Escape") silence();
    else return;
    event.preventDefault();
  }

  // ---- once
  function legend() {
    const used = [...titles].filter(([slug]) => lanes.some(lane => Array.prototype.some.call(lane.phase[slug], us => us > data.top_us / 500)));
    element("legend").replaceChildren(...used.map(([slug, name]) => {
      const swatch = make("i");
      swatch.style.background = colours[slug];
      return make("li", {}, swatch, name);
    }));
    const keys = [["step", colours.quiet], [accused.length ? "own compute, others" : "own compute, all ranks", colours.forward]];
    if (accused.length) keys.push([`own compute, rank ${accused.slice(0, 3).map(lane => lane.rank).join(", ")}${accused.length > 3 ? ", ..." : ""}`, colours.side]);
    element("overview-label").replaceChildren(make("b", {}, "Whole run"), ...keys.map(([name, colour]) => {
      const item = make("div", { className: "key" }, make("span", {}, name));
      item.style.color = colour;
      item.firstChild.style.color = colours.quiet;
      return item;
    }));
  }

  function restyle() {
    readColours();
    legend();
    draw();
  }

  chart.hidden = false;
  element("counters").value = lanes.length <= 8 ? "all" : accused.length ? "accused" : "none";
  element("counters").addEventListener("change", () => { build(); redraw(); });
  element("zoom-in").addEventListener("click", () => zoom(.5));
  element("zoom-out").addEventListener("click", () => zoom(2));
  element("reset").addEventListener("click", () => show(whole.from, whole.to));
  selectable(element("axis"));
  wheeled(element("axis"), true);
  dragging(element("overview"), (down, event) => {
    const box = element("overview").getBoundingClientRect(), middle = whole.from + (event.clientX - box.left) / box.width * span, half = (view.to - view.from) / 2;
    show(middle - half, middle + half);
  });
  element("overview").addEventListener("wheel", event => {
    event.preventDefault();
    const box = element("overview").getBoundingClientRect();
    zoom(Math.exp(Math.max(-1, Math.min(1, event.deltaY / 200))), whole.from + (event.clientX - box.left) / box.width * span);
  }, { passive: false });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", restyle);
  // Paper is light whatever the screen is.
  addEventListener("beforeprint", () => { root.classList.add("printing"); restyle(); });
  addEventListener("afterprint", () => { root.classList.remove("printing"); restyle(); });
  build();
  restyle();
  new ResizeObserver(redraw).observe(lanesBox);
})();
