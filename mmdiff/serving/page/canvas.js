// The canvas of an answer, token by token: colours, numbers, and which tokens are to be masked again.

import { el } from "./dom.js";

// From the first to the last, light and dark. Brightness alone tells them apart, so that they read without colour too.
const PALETTES = {
  step: {
    light: [[13, 59, 102], [74, 138, 190], [214, 231, 245]],
    dark: [[30, 48, 70], [56, 116, 170], [176, 216, 250]],
  },
  confidence: {
    light: [[140, 45, 4], [243, 152, 52], [255, 243, 220]],
    dark: [[255, 196, 110], [190, 98, 20], [58, 44, 32]],
  },
};

export const view = { colour: "step", numbers: false, dark: false };

export function shade(kind, share) {
  const stops = PALETTES[kind][view.dark ? "dark" : "light"];
  const at = Math.min(Math.max(share, 0), 1) * (stops.length - 1);
  const low = Math.min(Math.floor(at), stops.length - 2);
  return stops[low].map((from, i) => Math.round(from + (stops[low + 1][i] - from) * (at - low)));
}

export function legend(most) {
  if (view.colour === "none") return [];
  const of = (share) => `rgb(${shade(view.colour, share)})`;
  const bar = el("span", { className: "gradient" });
  bar.style.background = `linear-gradient(90deg, ${[0, 0.25, 0.5, 0.75, 1].map(of).join(", ")})`;
  const [low, high] = view.colour === "step" ? ["step 1", most ? `step ${most}` : "last step"] : ["0 % sure", "100 % sure"];
  return [low, bar, high, el("span", { className: "key pending" }, "masked"), el("span", { className: "key" }, "given")];
}

export class Canvas {
  // reopen(positions): called when tokens are to be masked again and predicted anew; null: nothing can be.
  // ends: ids that end an answer. specials: ids that are no part of a text, behind the first of which it fades.
  constructor({ reopen = null, ends = [], specials = [], grid = false, around = null } = {}) {
    Object.assign(this, { reopen, grid, ends: new Set(ends), specials: new Set(specials), around, tokens: [], chips: [], marked: new Set(), at: 0 });
    this.root = el("div", { className: grid ? "canvas grid" : "canvas", role: "group", "aria-label": "Tokens" });
    this.root.addEventListener("keydown", (event) => this.key(event));
    this.root.addEventListener("click", (event) => this.click(event));
    this.whole = false; // whether a long tail of end tokens is spelled out
  }

  // tokens: as a draft of the server has them, each maybe with `rewritten`.
  show(tokens, { live = false } = {}) {
    this.tokens = tokens;
    this.live = live;
    this.most = Math.max(1, ...tokens.map((token) => token.step));
    if (this.chips.length !== tokens.length) this.build();
    const over = this.around ? -1 : tokens.findIndex((token) => this.specials.has(token.id) && !token.pending);
    tokens.forEach((token, i) => {
      this.paint(this.chips[i], token, i, over >= 0 && i >= over);
    });
    this.fold();
  }

  repaint() {
    for (const chip of this.chips) chip.known = "";
    this.show(this.tokens, { live: this.live });
  }

  build() {
    this.chips = this.tokens.map((_, i) => el("button", { type: "button", className: "token", "data-i": String(i), tabindex: "-1" }));
    const parts = [];
    const gaps = typeof this.around === "function" ? this.around(this.tokens.length) : this.around || [this.tokens.length];
    let next = 0;
    for (const part of gaps) { // a text that is given, or the number of positions of a gap
      if (typeof part === "string") parts.push(el("span", { className: "given-text" }, part));
      else { parts.push(...this.chips.slice(next, next + part)); next += part; }
    }
    parts.push(...this.chips.slice(next));
    this.tail = el("button", { type: "button", className: "tail", hidden: true, onclick: () => { this.whole = true; this.fold(); } });
    this.root.replaceChildren(...parts, this.tail);
    if (this.chips[0]) this.chips[0].tabIndex = 0;
  }

  // behind: whether a token is no part of the text; it is underlined in its colour, not filled.
  paint(chip, token, i, behind) {
    const kind = view.colour;
    const known = `${token.id}|${token.pending}|${token.step}|${token.confidence}|${token.rewritten}|${this.most}|${this.live}|${behind}`;
    if (chip.known === known) return;
    const fresh = chip.known !== undefined && chip.pending && !token.pending;
    chip.known = known;
    chip.pending = token.pending;
    const end = this.ends.has(token.id) && !token.pending;
    const text = token.pending ? "\u00a0\u00a0" : visible(token.text);
    const given = !token.pending && !token.step;
    const number = kind === "confidence" ? `${Math.round(100 * token.confidence)}` : `${token.step}`;
    const bare = token.pending || given || kind === "none";
    chip.replaceChildren(text, ...(view.numbers && !token.pending && !given ? [el("sub", {}, number)] : []));
    chip.className = `token${token.pending ? " pending" : ""}${given ? " given" : ""}${end ? " end" : ""}`
      + `${behind ? " behind" : ""}${token.rewritten ? " rewritten" : ""}${fresh ? " fresh" : ""}`;
    if (text.includes("\u23ce") && !this.grid) chip.after((chip.end ||= el("br")));
    else chip.end?.remove();
    const share = kind === "step" ? (this.most > 1 ? (token.step - 1) / (this.most - 1) : 0) : token.confidence;
    const rgb = bare ? null : shade(kind, share);
    chip.style.backgroundColor = rgb && !behind ? `rgb(${rgb})` : "";
    chip.style.borderBottom = rgb && behind ? `4px solid rgb(${rgb})` : "";
    chip.style.color = rgb && !behind ? (brightness(rgb) > 0.19 ? "#101418" : "#ffffff") : "";
    const facts = given ? "given" : `step ${token.step}, ${(100 * token.confidence).toFixed(1)} % sure`;
    if (token.text.startsWith("action:")) chip.classList.add("action");
    const what = token.pending ? `position ${i + 1}: masked` : `position ${i + 1}: ${JSON.stringify(token.text)}, ${facts}`;
    chip.title = this.canReopen() && !token.pending ? `${what}\nclick: rewrite; shift-click: mark several` : what;
    chip.setAttribute("aria-label", what);
    chip.setAttribute("aria-pressed", String(this.marked.has(i)));
  }

  // A long run of end tokens at the end takes the space of one.
  fold() {
    let first = this.tokens.length;
    while (first && this.ends.has(this.tokens[first - 1].id) && !this.tokens[first - 1].pending) first -= 1;
    const folded = this.whole ? 0 : this.tokens.length - first - 1;
    this.chips.forEach((chip, i) => { chip.hidden = folded > 1 && i > first; });
    this.tail.hidden = folded <= 1;
    this.tail.textContent = `\u00d7 ${folded + 1}`;
    this.tail.title = this.tail.ariaLabel = `${folded + 1} end tokens: show all`;
  }

  canReopen() {
    return this.reopen !== null && !this.live;
  }

  click(event) {
    const chip = event.target.closest(".token");
    if (!chip || !this.canReopen()) return;
    this.focus(Number(chip.dataset.i));
    this.pick(Number(chip.dataset.i), event.shiftKey || this.marked.size > 0 || this.several);
  }

  pick(i, several) {
    if (this.tokens[i].pending) return;
    if (!several) return void this.reopen([i]);
    if (!this.marked.delete(i)) this.marked.add(i);
    this.chips[i].setAttribute("aria-pressed", String(this.marked.has(i)));
    this.root.dispatchEvent(new CustomEvent("marks"));
  }

  key(event) {
    const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 10, ArrowUp: -10 }[event.key];
    if (step) {
      event.preventDefault();
      const last = this.chips.findLastIndex((chip) => !chip.hidden);
      this.focus(Math.min(Math.max(this.at + step, 0), last));
      this.chips[this.at].focus();
    } else if (event.key === " " && event.target.classList.contains("token") && this.canReopen()) {
      event.preventDefault();
      this.pick(this.at, true);
    }
  }

  focus(i) {
    this.chips[this.at].tabIndex = -1;
    this.at = i;
    this.chips[i].tabIndex = 0;
  }
}

// Spaces stay, what nobody would see is shown by a sign.
function visible(text) {
  if (/^action:\d+$/.test(text)) return text.slice(7);
  const signs = text.replace(/\n/g, "\u23ce").replace(/[\u0000-\u001f]/g, (c) => String.fromCharCode(0x2400 + c.charCodeAt(0)));
  return signs || "\u2205";
}

function brightness([r, g, b]) {
  const linear = (v) => ((v /= 255) <= 0.04 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
}
