// A panel: settings, and what was asked and answered under them, each answer as it appears.

import { Canvas } from "./canvas.js";
import { announce, el, sleep } from "./dom.js";
import { media } from "./media.js";
import { Settings } from "./settings.js";

const DRAFTS = 256; // most drafts of an answer that are kept to be looked at again

export class Panel {
  // health: what the server says of itself. mode: of modes.js. hooks: pin(element), changed(), run(work).
  constructor({ server, health }, mode, conversation, name, hooks) {
    Object.assign(this, { server, health, mode, conversation, name, hooks, turns: [], pace: 0, running: null });
    const lengths = health.fields.includes("messages") || health.fields.includes("question") || mode === "text" || mode === "speech";
    this.settings = new Settings(health.sampler, lengths, name);
    this.log = el("div", { className: "log" });
    this.title = el("h2", {}, name);
    this.root = el("section", { className: "panel", "aria-label": `Panel ${name}` }, this.title, this.settings.root, this.log);
  }

  get steps() {
    return Math.max(0, ...this.turns.slice(-1).map((turn) => turn.canvas.most || 0));
  }

  clear() {
    this.turns = [];
    this.log.replaceChildren();
  }

  stop() {
    this.running?.abort();
  }

  // Ask for the answer of what modes.js made of the inputs; resolves when it is whole. Throws Refused.
  async ask(asked) {
    const row = asked.row(this.turns);
    const turn = this.begin({ ...asked, row });
    return this.generate(turn, { row }, { fresh: !asked.holes });
  }

  begin({ row, said, media: shown, around }) {
    if (!this.conversation) this.clear();
    const turn = { row, said, media: shown, around, drafts: [], tokens: [], prediction: "", again: 0 };
    turn.canvas = this.canvas(around, (at) => this.rewrite(turn, at));
    turn.facts = el("p", { className: "facts" });
    turn.result = el("div", { className: "result" });
    turn.tools = this.tools(turn);
    const ask = said || shown.length
      ? el("div", { className: "asked" }, ...shown.map(media), said ? el("p", {}, said) : null)
      : null;
    turn.root = el("article", { className: "turn" }, ask, el("div", { className: "answer" }, turn.canvas.root, turn.result, turn.facts, turn.tools.root));
    this.turns.push(turn);
    this.log.append(turn.root);
    if (this.mode !== "robot" && this.name === "A") turn.root.scrollIntoView({ block: "nearest" });
    return turn;
  }

  canvas(around, reopen) {
    const grid = this.mode === "protein";
    return new Canvas({ ends: this.health.end_ids, specials: grid ? [] : this.health.special_ids, grid, around, reopen });
  }

  tools(turn) {
    const button = (text, title, onclick) => el("button", { type: "button", className: "plain", title, onclick }, text);
    const scrub = el("input", { type: "range", min: "0", value: "0", "aria-label": "Step of this answer" });
    scrub.addEventListener("input", () => this.look(turn, Number(scrub.value)));
    const replay = button("▶ Replay", "Watch the steps again", () => this.replay(turn));
    const several = el("button", { type: "button", className: "plain", "aria-pressed": "false", title: "A click then marks a token; shift-click and the space bar always do" }, "Mark several");
    several.addEventListener("click", () => {
      turn.canvas.several = !turn.canvas.several;
      several.setAttribute("aria-pressed", String(turn.canvas.several));
    });
    const marked = el("button", { type: "button", className: "main small", hidden: true, onclick: () => this.rewrite(turn, [...turn.canvas.marked]) });
    turn.canvas.root.addEventListener("marks", () => {
      marked.hidden = !turn.canvas.marked.size;
      marked.textContent = `Rewrite ${turn.canvas.marked.size} marked`;
    });
    const copy = button("Copy", "Copy the answer", async () => {
      await navigator.clipboard?.writeText(textOf(turn.prediction)).catch(() => {});
      announce("copied");
    });
    const pin = button("Pin", "Keep this result below, to compare", () => this.hooks.pin(this.pinned(turn)));
    const root = el("div", { className: "tools", hidden: true }, marked, replay, scrub, several, copy, pin);
    return { root, scrub, marked };
  }

  pinned(turn) {
    const canvas = this.canvas(turn.around, null);
    canvas.show(turn.tokens);
    const asked = turn.root.querySelector(".asked")?.cloneNode(true) || null;
    const said = el("p", { className: "facts" }, turn.facts.textContent, ` · ${turn.under}`);
    const root = el("article", { className: "turn" }, asked, canvas.root, turn.result.cloneNode(true), said);
    root.canvas = canvas;
    return root;
  }

  // Have positions masked and predicted again; all others stay.
  async rewrite(turn, positions) {
    const before = turn.tokens;
    if (turn.root.classList.contains("live") || before.some((token) => token.pending) || !positions.length) return;
    turn.again += 1;
    const open = new Set(positions);
    let body = { row: turn.row, canvas: before.map((token, i) => (open.has(i) ? this.health.mask_id : token.id)) };
    if (this.mode === "protein") {  // a residue that was given has no letters that it may become; an open one has
      const sequence = [...String(turn.prediction)].map((letter, i) => (open.has(i) ? "_" : letter)).join("");
      body = { row: { ...turn.row, sequence } };
    }
    turn.canvas.marked.clear();
    turn.canvas.root.dispatchEvent(new CustomEvent("marks"));
    await this.hooks.run(async () => {
      const found = await this.generate(turn, body, { before, open });
      if (found) await this.rewritten?.(found); // the robot acts anew
    });
  }

  async generate(turn, body, { before = null, open = null, fresh = false } = {}) {
    const running = (this.running = new AbortController());
    this.hooks.changed();
    const settings = this.settings.fields(turn.again);
    if (!fresh) delete settings.max_tokens;
    turn.under = `${this.health.model}, ${this.settings.said()}`;
    turn.drafts = [];
    turn.root.classList.add("live");
    turn.tools.root.hidden = true;
    const began = performance.now();
    const took = () => ((performance.now() - began) / 1000).toFixed(2);
    let last = null;
    try {
      for await (const event of this.server.events("/predict", { ...body, ...settings, stream: true, drafts: true }, running.signal)) {
        const draft = event.draft || event.canvas;
        turn.tokens = before ? kept(draft.tokens, before, open) : draft.tokens;
        if (turn.drafts.length < DRAFTS) turn.drafts.push(turn.tokens);
        else turn.drafts[DRAFTS - 1] = turn.tokens;
        turn.canvas.show(turn.tokens, { live: !event.canvas });
        turn.facts.textContent = `step ${draft.step} · ${draft.committed} of ${draft.tokens.length} committed · ${took()} s`;
        this.hooks.changed();
        if (event.canvas) last = event;
        else if (this.pace) await sleep(this.pace);
        if (running.signal.aborted) throw new DOMException("", "AbortError");
      }
      turn.prediction = last.prediction;
      const many = last.batch > 1 ? ` · in a batch of ${last.batch}` : "";
      turn.facts.textContent = `${last.forwards} forward${last.forwards === 1 ? "" : "s"} · ${last.seconds.toFixed(3)} s in the model, ${took()} s in all${many} · seed ${last.seed}`;
      this.finish(turn);
      announce(`Panel ${this.name}: ${turn.facts.textContent}`);
      return last;
    } catch (error) {
      if (error.name !== "AbortError") {
        if (before || !turn.drafts.length) this.drop(turn, before);
        else turn.facts.textContent += " · failed";
        throw error;
      }
      turn.facts.textContent += " · stopped";
      if (before) this.restore(turn, before);
      return null;
    } finally {
      turn.root.classList.remove("live");
      this.running = null;
      this.hooks.changed();
    }
  }

  // What a refused request has left: the answer that was there before, or nothing.
  drop(turn, before) {
    if (before) return this.restore(turn, before);
    turn.root.remove();
    this.turns = this.turns.filter((one) => one !== turn);
  }

  restore(turn, before) {
    turn.tokens = before;
    turn.drafts = [before];
    turn.canvas.show(before);
    this.finish(turn);
  }

  finish(turn) {
    turn.whole = true;
    turn.tools.root.hidden = false;
    if (turn === this.turns.at(-1) && this.mode !== "robot" && this.name === "A") turn.root.scrollIntoView({ block: "nearest" });
    turn.tools.scrub.max = String(turn.drafts.length - 1);
    turn.tools.scrub.value = turn.tools.scrub.max;
    turn.canvas.show(turn.tokens);
    turn.canvas.repaint();
    const text = textOf(turn.prediction);
    const plain = turn.tokens.filter((token) => !this.health.end_ids.includes(token.id)).map((token) => token.text).join("");
    const letters = (one) => one.replace(/\s+/g, ""); // tokenizers of words leave the spaces to the text
    const same = typeof turn.prediction === "string" && letters(plain) === letters(text);
    turn.result.replaceChildren(...(same || this.mode === "text" ? [] : [shown(turn.prediction, this.health.names)]));
  }

  look(turn, i) {
    turn.canvas.show(turn.drafts[i], { live: i < turn.drafts.length - 1 });
    turn.tools.scrub.value = String(i);
    if (i === turn.drafts.length - 1) turn.canvas.repaint();
  }

  async replay(turn) {
    const drafts = turn.drafts;
    for (let i = 0; i < drafts.length && turn.drafts === drafts; i += 1) {
      this.look(turn, i);
      await sleep(this.pace || 150);
    }
  }

  repaint() {
    for (const turn of this.turns) if (turn.tokens.length) turn.canvas.repaint();
  }
}

// Tokens of a rewritten canvas: those that stayed keep what was known of them, those that are new are told apart.
function kept(tokens, before, open) {
  return tokens.map((token, i) => {
    if (open.has(i)) return { ...token, rewritten: true };
    return before[i] && before[i].id === token.id ? { ...before[i], rewritten: false } : token;
  });
}

const textOf = (prediction) => (typeof prediction === "string" ? prediction : JSON.stringify(prediction));

// A prediction that is not the text of its tokens: a chunk of actions as a table, anything else as text.
function shown(prediction, names) {
  const rows = Array.isArray(prediction) && prediction.every((row) => Array.isArray(row) && row.every((v) => typeof v === "number"));
  if (!rows || !prediction.length) return el("pre", {}, textOf(prediction));
  const head = names?.length === prediction[0].length ? names : prediction[0].map((_, i) => `${i + 1}`);
  return el("div", { className: "scroll" }, el("table", {}, el("thead", {}, el("tr", {}, el("th", {}, "#"), ...head.map((name) => el("th", {}, name)))),
    el("tbody", {}, ...prediction.map((row, i) => el("tr", {}, el("th", {}, String(i + 1)), ...row.map((v) => el("td", {}, v.toFixed(3))))))));
}
