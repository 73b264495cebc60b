"use strict";
// Plays one trace, or two side by side. All data is in the page; nothing is loaded.

const traces = JSON.parse(document.getElementById("traces").textContent);
const element = (id) => document.getElementById(id);
const longest = Math.max(...traces.map((trace) => trace.steps));
const classes = [["low", 0.3, "below 0.3"], ["middle", 0.7, "below 0.7"], ["high", Infinity, "0.7 or more"]];
const [PLAY, PAUSE] = ["M4 2.5v11l9-5.5z", "M3 3h4v10H3zm6 0h4v10H9z"];
const state = { step: 0, playing: false, colours: "confidence", align: "share", stable: true,
  differences: true };
let timer = 0;

function make(parent, kind, name = "", text = "") {
  const made = document.createElement(kind);
  if (name) made.className = name;
  if (text) made.textContent = text;
  parent.append(made);
  return made;
}

function classOf(confidence) {
  return classes.find(([, bound]) => confidence < bound)[0];
}

// Dark violet to yellow over the steps, readable on light and dark paper.
function shade(share, alpha = 1) {
  return `hsl(${(265 + 150 * share) % 360} 65% ${38 + 22 * share}% / ${alpha})`;
}

class Panel {
  constructor(trace, parent) {
    this.trace = trace;
    const section = make(parent, "section");
    if (traces.length > 1) make(section, "h2", "", trace.name);
    const chips = make(section, "div", "chips");
    for (const [key, value] of trace.settings) make(chips, "span", "", `${key} ${value}`);
    if (trace.prompt.trim()) make(section, "div", "prompt", trace.prompt);
    this.text = make(section, "div", "text");
    this.pieces = [];
    let first = 0;
    for (const [text, count] of trace.pieces) {
      const span = make(this.text, "span", "piece");
      this.pieces.push({ span, text, first, count });
      first += count;
    }
    this.facts = make(section, "div", "facts");
    this.map = make(section, "canvas");
    this.map.title = "each token: position from left to right, step from top to bottom; click to go there";
    const axis = make(section, "div", "axis");
    make(axis, "span", "", "first position");
    make(axis, "span", "", "when each position was committed, steps downwards");
    make(axis, "span", "", "last position");
    this.map.addEventListener("click", (event) => {
      const share = event.offsetY / this.map.clientHeight;
      go(share * (state.align === "share" ? longest : this.trace.steps));
    });
  }

  // The step of this trace that is shown while the clock of the page stands at `step`.
  local(step) {
    if (state.align === "step") return Math.min(step, this.trace.steps);
    return Math.round((step / Math.max(1, longest)) * this.trace.steps);
  }

  show(step, other) {
    const now = this.local(step);
    const { order, confidence, end } = this.trace;
    for (const piece of this.pieces) {
      const places = Array.from({ length: piece.count }, (_, i) => piece.first + i);
      const open = places.some((i) => order[i] === -1 || order[i] >= now);
      const names = ["piece"];
      piece.span.style.background = "";
      if (open) names.push("open", ...(state.stable ? [] : ["loose"]));
      else {
        const sure = Math.min(...places.map((i) => confidence[i]));
        const when = Math.max(...places.map((i) => order[i]));
        if (when < 0) names.push("given");
        else if (state.colours === "confidence") names.push(classOf(sure));
        else piece.span.style.background = shade(when / Math.max(1, this.trace.steps - 1), 0.45);
        if (when === now - 1) names.push("fresh");
        if (other && state.differences && places.some((i) => this.trace.tokens[i] !== other.tokens[i]))
          names.push("differs");
        const how = when < 0 ? "given" : `step ${when + 1}, confidence ${sure.toFixed(3)}`;
        piece.span.title = `${JSON.stringify(piece.text)}  position ${piece.first}, ${how}`;
      }
      if (open) piece.span.title = `position ${piece.first}, still masked`;
      // Where tokens keep their places nothing moves while they appear, line breaks included.
      if (piece.first >= end) names.push("after");
      const shown = open && !state.stable ? "\u2591".repeat(piece.count)
        : piece.text.replaceAll("\n", "\u21b5\n");
      if (piece.span.textContent !== shown) piece.span.textContent = shown;
      const name = names.join(" ");
      if (piece.span.className !== name) piece.span.className = name;
    }
    this.tell(now, other);
    this.draw(now);
  }

  tell(now, other) {
    const { order, confidence, steps, end, tokens } = this.trace;
    const there = order.map((when, i) => (when >= 0 && when < now ? i : -1)).filter((i) => i >= 0);
    const mean = there.reduce((sum, i) => sum + confidence[i], 0) / Math.max(1, there.length);
    const facts = [["step", `${now} of ${steps}`], ["tokens", `${there.length} of ${order.length}`],
      ["tokens per step", (there.length / Math.max(1, now)).toFixed(2)],
      ["mean confidence", there.length ? mean.toFixed(2) : "-"]];
    if (other) {
      const reach = Math.max(end, other.end);
      let same = 0;
      for (let i = 0; i < reach; i += 1) same += tokens[i] === other.tokens[i];
      facts.push(["equal in the end", `${same} of ${reach}`]);
    }
    this.facts.replaceChildren();
    for (const [name, value] of facts) {
      const fact = make(this.facts, "span", "", `${name} `);
      make(fact, "b", "", value);
    }
  }

  draw(now) {
    const ratio = window.devicePixelRatio || 1;
    const [width, height] = [this.map.clientWidth, this.map.clientHeight];
    this.map.width = width * ratio;
    this.map.height = height * ratio;
    const pen = this.map.getContext("2d");
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(name).trim();
    pen.scale(ratio, ratio);
    const { order, confidence, steps, block } = this.trace;
    const [dx, dy] = [width / Math.max(1, order.length), height / Math.max(1, steps)];
    pen.fillStyle = colour("--line");
    for (let i = block; block > 0 && i < order.length; i += block) pen.fillRect(i * dx, 0, 1, height);
    order.forEach((when, i) => {
      if (when < 0) return;
      pen.globalAlpha = when < now ? 1 : 0.18;
      pen.fillStyle = state.colours === "confidence"
        ? colour(`--${classOf(confidence[i])}-ink`) : shade(when / Math.max(1, steps - 1));
      pen.fillRect(i * dx, when * dy, Math.max(2, dx - 0.5), Math.max(2, dy - 0.5));
    });
    pen.globalAlpha = 1;
    pen.fillStyle = colour("--accent");
    pen.fillRect(0, Math.min(height - 1.5, now * dy), width, 1.5);
  }
}

function legend() {
  const list = element("legend");
  list.replaceChildren();
  const entry = (background, text) => {
    const item = make(list, "li");
    make(item, "i").style.background = background;
    item.append(text);
  };
  entry("var(--mask)", "masked");
  if (state.colours === "confidence")
    for (const [name, , text] of classes) entry(`var(--${name})`, `confidence ${text}`);
  else
    entry(`linear-gradient(90deg, ${shade(0)}, ${shade(0.5)}, ${shade(1)})`, "first to last step");
  if (traces.some((trace) => trace.order.includes(-2))) entry("var(--given)", "given");
  entry("linear-gradient(0deg, var(--accent) 3px, transparent 3px)", "committed in this step");
  entry("color-mix(in srgb, var(--faint) 25%, transparent)", "behind the end of the answer");
}

function show() {
  panels.forEach((panel, i) => panel.show(state.step, traces.length === 2 ? traces[1 - i] : null));
  element("scrub").value = state.step;
  const share = Math.round((100 * state.step) / Math.max(1, longest));
  element("where").textContent = traces.length === 2 && state.align === "share"
    ? `${share} %` : `step ${state.step} of ${longest}`;
  element("play").querySelector("path").setAttribute("d", state.playing ? PAUSE : PLAY);
  history.replaceState(null, "", `#step=${state.step}`);
}

function go(step) {
  state.step = Math.max(0, Math.min(longest, Math.round(step)));
  show();
}

function play(on) {
  clearInterval(timer);
  state.playing = on;
  if (on && state.step >= longest) state.step = 0;
  if (on) timer = setInterval(() => {
    if (state.step >= longest) play(false);
    else go(state.step + 1);
  }, 1000 / Number(element("speed").value));
  show();
}

const panels = traces.map((trace) => new Panel(trace, element("panels")));
element("scrub").max = longest;
for (const id of ["alignment", "differing"]) element(id).hidden = traces.length < 2;
element("play").onclick = () => play(!state.playing);
element("back").onclick = () => go(state.step - 1);
element("next").onclick = () => go(state.step + 1);
element("scrub").oninput = (event) => go(Number(event.target.value));
element("speed").onchange = () => state.playing && play(true);
element("colours").onchange = (event) => { state.colours = event.target.value; legend(); show(); };
element("align").onchange = (event) => { state.align = event.target.value; show(); };
element("stable").onchange = (event) => { state.stable = event.target.checked; show(); };
element("differences").onchange = (event) => { state.differences = event.target.checked; show(); };
window.addEventListener("resize", show);
window.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.tagName === "SELECT") return;
  const far = event.shiftKey ? 10 : 1;
  const actions = {
    " ": () => play(!state.playing), ArrowLeft: () => go(state.step - far),
    ArrowRight: () => go(state.step + far), Home: () => go(0), End: () => go(longest),
    c: () => { element("colours").selectedIndex ^= 1; element("colours").onchange({ target: element("colours") }); },
    d: () => element("differences").click(), w: () => element("stable").click(),
  };
  const action = actions[event.key];
  if (!action || (event.key === " " && event.target.tagName === "BUTTON")) return;
  event.preventDefault();
  action();
});
legend();
const asked = /^#step=(\d+)$/.exec(location.hash);
go(asked ? Number(asked[1]) : longest);
